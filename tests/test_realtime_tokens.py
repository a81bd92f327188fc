"""Tokens for websockets: who gets one, for which apps, and until when [facts §6.5]."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import fal_client
import httpx
import jwt
import pytest

from emulator.realtime_tokens import RealtimeTokenError, RealtimeTokens

URL = "https://rest.fal.ai/tokens/"
NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def headers(fal_emulator):
    return {"Authorization": f"Key {fal_emulator.owner.key}"}


def test_fal_client_gets_one(fal_clock, fal_ledger):
    fal_clock.freeze(NOON)
    token = fal_client.SyncClient()._get_realtime_token("owner/my-app")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["allowed_apps"]) == ("tester", ["my-app"])
    assert claims["iat"] == NOON.timestamp()
    assert claims["exp"] == (NOON + timedelta(seconds=120)).timestamp()
    assert fal_ledger.requests(path="/tokens/")[0].user == "tester"


def test_the_documented_address_gives_it_in_an_object(headers, fal_clock):
    fal_clock.freeze(NOON)
    body = {"allowed_apps": ["owner/my-app"], "duration": 60}
    response = httpx.post(f"{URL}realtime", json=body, headers=headers)
    claims = jwt.decode(response.json()["token"], options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 60


def test_another_user_gets_one_of_that_user(fal_emulator):
    bob = {"Authorization": f"Key {fal_emulator.user('bob').key}"}
    response = httpx.post(URL, json={"allowed_apps": ["my-app"]}, headers=bob)
    claims = jwt.decode(response.json(), options={"verify_signature": False})
    assert claims["sub"] == "bob"


def test_without_credentials_there_is_none(fal_emulator):
    assert httpx.post(URL, json={"allowed_apps": ["my-app"]}).status_code == 401


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, 'allowed_apps has to be a list of apps: ["my-app"]'),
        ({"allowed_apps": "my-app"}, 'allowed_apps has to be a list of apps: ["my-app"]'),
        ({"allowed_apps": []}, 'allowed_apps has to be a list of apps: ["my-app"]'),
        ({"allowed_apps": [1]}, 'allowed_apps has to be a list of apps: ["my-app"]'),
        (
            {"allowed_apps": ["a"], "token_expiration": 0},
            "token_expiration has to be a number of seconds above 0",
        ),
        (
            {"allowed_apps": ["a"], "token_expiration": "1"},
            "token_expiration has to be a number of seconds above 0",
        ),
        (
            {"allowed_apps": ["a"], "token_expiration": True},
            "token_expiration has to be a number of seconds above 0",
        ),
        ({"allowed_apps": ["a"], "token_expiration": 1e15}, "token_expiration is too long"),
        ([], "the body is no JSON object"),
    ],
)
def test_a_malformed_body_is_refused(headers, body, detail):
    response = httpx.post(URL, json=body, headers=headers)
    assert (response.status_code, response.json()) == (422, {"detail": detail})


def test_a_token_counts_for_its_apps_until_its_time_is_over(fal_clock):
    fal_clock.freeze(NOON)
    tokens = RealtimeTokens(fal_clock.now)
    token = tokens.issue("bob", ["my-app", "owner/other"], timedelta(seconds=120))
    assert tokens.check(token, "my-app") == "bob"
    assert tokens.check(token, "anybody/my-app") == "bob"
    assert tokens.check(token, "owner/other/realtime") == "bob"
    assert tokens.check(token, "other") == "bob"
    fal_clock.advance(119)
    assert tokens.check(token, "my-app") == "bob"
    fal_clock.advance(1)
    with pytest.raises(RealtimeTokenError) as caught:
        tokens.check(token, "my-app")
    assert str(caught.value) == "the realtime token was valid until 2030-01-01 12:02:00 UTC"
    assert caught.value.status == 401


@pytest.mark.parametrize("app", ["third", "somebody/other"])
def test_a_token_does_not_count_for_other_apps(fal_clock, app):
    tokens = RealtimeTokens(fal_clock.now)
    token = tokens.issue("bob", ["my-app", "owner/other"], timedelta(seconds=120))
    with pytest.raises(RealtimeTokenError) as caught:
        tokens.check(token, app)
    assert str(caught.value) == f"the realtime token is for my-app, owner/other, not {app}"


def test_an_unknown_token_does_not_count(fal_clock):
    tokens, others = RealtimeTokens(fal_clock.now), RealtimeTokens(fal_clock.now)
    for token in ("nonsense", others.issue("bob", ["my-app"], timedelta(seconds=120))):
        with pytest.raises(RealtimeTokenError, match="is none that was ever given"):
            tokens.check(token, "my-app")


def test_tokens_of_another_test_do_not_count(fal_clock):
    tokens = RealtimeTokens(fal_clock.now)
    token = tokens.issue("bob", ["my-app"], timedelta(seconds=120))
    tokens.reset()
    with pytest.raises(RealtimeTokenError):
        tokens.check(token, "my-app")
