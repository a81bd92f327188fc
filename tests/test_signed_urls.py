"""URLs that let whoever has them read a file for a while [facts §1.10]."""

from __future__ import annotations

import urllib.request
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
import requests
from fal.toolkit import download_file

from emulator.errors import EmulatorError
from pytest_fal import CDN, Clock, Emulator, Ledger

SIGN = "https://api.fal.ai/v1/storage/files/sign"
DAY, WEEK = timedelta(days=1), timedelta(days=7)
FOR_BOB = {"default": "hide", "rules": [{"user": "bob", "decision": "allow"}]}


def sign_on_the_cdn(url: str, headers: dict[str, str], **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/sign", json=body, headers=headers)


def sign_on_the_platform(url: str, key: str, body: Any) -> httpx.Response:
    headers = {"Authorization": f"Key {key}"}
    return httpx.post(SIGN, params={"url": url}, json=body, headers=headers)


# --- the CDN's form -------------------------------------------------------------------------------


def test_the_cdn_signs_for_who_has_a_token(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    bob, url = fal_emulator.user("bob"), fal_cdn.put(b"x", acl=FOR_BOB)
    answer = sign_on_the_cdn(url, bob.headers, duration=3600, scope=["read"])
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text.startswith(f"{url}?identity=")
    assert httpx.get(answer.text).content == b"x"
    assert httpx.get(url).status_code == 404


def test_it_carries_the_signers_identity(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    bob, url = fal_emulator.user("bob"), fal_cdn.put(b"x", acl=FOR_BOB)
    signed = sign_on_the_cdn(url, bob.headers).text
    fal_cdn.set_acl(url, "hide")
    assert httpx.get(signed).status_code == 404, "what bob may not, it may not"
    by_owner = sign_on_the_cdn(url, fal_emulator.owner.headers).text
    assert httpx.get(by_owner).status_code == 200


def test_it_is_valid_for_a_day_unless_it_says_otherwise(
    fal_emulator: Emulator, fal_cdn: CDN, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    url = fal_cdn.put(b"x", acl="hide")
    signed = sign_on_the_cdn(url, fal_emulator.owner.headers).text
    fal_clock.advance(DAY - timedelta(microseconds=1))
    assert httpx.get(signed).status_code == 200
    fal_clock.advance(timedelta(microseconds=1))
    assert httpx.get(signed).status_code == 404


def test_it_may_outlive_the_token_it_was_made_with(
    fal_emulator: Emulator, fal_cdn: CDN, fal_clock: Clock
) -> None:
    url = fal_cdn.put(b"x", acl="hide")
    token = fal_emulator.owner.token(expires_in=60)
    signed = sign_on_the_cdn(url, {"Authorization": f"Bearer {token}"}).text
    fal_clock.advance(minutes=2)
    assert httpx.get(signed).status_code == 200


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"duration": 604801}, "duration has to be more than 0 and at most 604800 seconds"),
        ({"duration": 0}, "duration has to be more than 0 and at most 604800 seconds"),
        ({"duration": "1h"}, "duration has to be a number of seconds, not '1h'"),
        ({"duration": True}, "duration has to be a number of seconds, not True"),
        ({"scope": ["write"]}, 'scope has to be ["read"]'),
    ],
)
def test_what_the_cdn_does_not_sign(
    body: dict[str, Any], detail: str, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    answer = sign_on_the_cdn(fal_cdn.put(b"x"), fal_emulator.owner.headers, **body)
    assert (answer.status_code, answer.json()) == (422, {"detail": detail})


def test_a_body_is_not_needed_and_has_to_be_json(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    url, headers = fal_cdn.put(b"x", acl="hide"), fal_emulator.owner.headers
    assert httpx.get(httpx.post(f"{url}/sign", headers=headers).text).status_code == 200
    assert httpx.post(f"{url}/sign", headers=headers, content=b"[]").status_code == 422


def test_the_cdn_does_not_sign_for_who_has_no_token(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x")
    for headers in ({}, {"Authorization": f"Key {fal_emulator.owner.key}"}):
        assert sign_on_the_cdn(url, headers).status_code == 401


@pytest.mark.parametrize(("decision", "status"), [("forbid", 403), ("hide", 404)])
def test_who_may_not_read_gets_no_link_to_nothing(
    decision: str, status: int, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    bob = fal_emulator.user("bob")
    assert sign_on_the_cdn(fal_cdn.put(b"x", acl=decision), bob.headers).status_code == status


def test_what_is_not_there_is_not_signed(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    url = "https://v3b.fal.media/files/b/0/none.bin"
    assert sign_on_the_cdn(url, fal_emulator.owner.headers).status_code == 404


# --- the platform's form --------------------------------------------------------------------------


def test_the_platform_signs_whatever_the_rules_say(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x", acl="hide")
    answer = sign_on_the_platform(url, fal_emulator.owner.key, {"expiration_seconds": 60})
    assert (answer.status_code, list(answer.json())) == (200, ["signed_url"])
    assert httpx.get(answer.json()["signed_url"]).content == b"x"


def test_for_no_longer_than_asked(
    fal_emulator: Emulator, fal_cdn: CDN, fal_clock: Clock, fal_ledger: Ledger
) -> None:
    fal_clock.freeze(datetime(2030, 1, 1, tzinfo=timezone.utc))
    url = fal_cdn.put(b"x", acl="hide")
    answer = sign_on_the_platform(url, fal_emulator.owner.key, {"expiration_seconds": 604800})
    fal_clock.advance(WEEK - timedelta(microseconds=1))
    assert httpx.get(answer.json()["signed_url"]).status_code == 200
    fal_clock.advance(timedelta(microseconds=1))
    assert httpx.get(answer.json()["signed_url"]).status_code == 404
    assert fal_ledger.exchanges[-1].notes == [
        "the file's access rules say hide",
        "the signed URL was valid until 2030-01-08 00:00:00 UTC",
    ]


@pytest.mark.parametrize("seconds", [0, 604801, -1, 1.5, "60", None, True])
def test_what_the_platform_does_not_sign(
    seconds: Any, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    url, body = fal_cdn.put(b"x"), {"expiration_seconds": seconds}
    answer = sign_on_the_platform(url, fal_emulator.owner.key, body)
    message = "expiration_seconds has to be a whole number from 1 to 604800"
    error = {"type": "validation_error", "message": message}
    assert (answer.status_code, answer.json()) == (400, {"error": error})


def test_only_the_owner_signs_there(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    url, eve = fal_cdn.put(b"x"), fal_emulator.user("eve")
    answer = sign_on_the_platform(url, eve.key, {"expiration_seconds": 60})
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "authorization_error")


def test_and_only_with_a_key_for_files(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    url, owner = fal_cdn.put(b"x"), fal_emulator.owner
    for permission, status in (("assets:read", 200), ("account:settings:read", 403)):
        key = owner.key_with(permission)
        answer = sign_on_the_platform(url, key, {"expiration_seconds": 60})
        assert answer.status_code == status


# --- reading with one -----------------------------------------------------------------------------


def test_every_client_reads_with_it(fal_cdn: CDN) -> None:
    signed = fal_cdn.sign(fal_cdn.put(b"x", file_name="a.txt", acl="hide"))
    assert requests.get(signed, timeout=10).content == b"x"
    with urllib.request.urlopen(signed) as response:
        assert response.read() == b"x"
    assert download_file(signed, "inputs").read_bytes() == b"x"


def test_it_holds_on_both_hosts(fal_cdn: CDN) -> None:
    signed = fal_cdn.sign(fal_cdn.put(b"x", acl="hide"))
    assert httpx.get(signed.replace("v3b.", "v3.")).status_code == 200


def test_a_test_signs_in_a_line(fal_emulator: Emulator, fal_cdn: CDN, fal_clock: Clock) -> None:
    bob, url = fal_emulator.user("bob"), fal_cdn.put(b"x", acl="hide")
    assert httpx.get(fal_cdn.sign(url)).status_code == 200
    assert httpx.get(fal_cdn.sign(url, by=bob)).status_code == 404
    short = fal_cdn.sign(url, expires_in=60)
    fal_clock.advance(minutes=1)
    assert httpx.get(short).status_code == 404


@pytest.mark.parametrize("expires_in", [0, -1, timedelta(days=7, microseconds=1)])
def test_but_not_what_the_platform_would_not(expires_in: Any, fal_cdn: CDN) -> None:
    with pytest.raises(EmulatorError) as caught:
        fal_cdn.sign(fal_cdn.put(b"x"), expires_in=expires_in)
    assert str(caught.value).endswith(
        "fal signs for 7 days at most. Write for example "
        "fal_cdn.sign(url, expires_in=timedelta(hours=1))."
    )


def test_one_that_was_tampered_with_is_no_credential(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    signed = fal_cdn.sign(fal_cdn.put(b"x", acl="hide"))
    assert httpx.get(f"{signed}x").status_code == 404
    assert fal_ledger.exchanges[-1].notes == [
        "the file's access rules say hide",
        "the URL's signature (identity=) is none that was ever given",
    ]


def test_another_files_is_no_credential(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    mine, other = fal_cdn.put(b"x", acl="forbid"), fal_cdn.put(b"y", acl="forbid")
    identity = fal_cdn.sign(mine).partition("?")[2]
    assert httpx.get(f"{other}?{identity}").status_code == 403
    assert fal_ledger.exchanges[-1].notes == [
        "the file's access rules say forbid",
        "the URL's signature (identity=) is for another file",
    ]


def test_none_of_them_hurts_where_everybody_may_read(
    fal_cdn: CDN, fal_clock: Clock, fal_ledger: Ledger
) -> None:
    url = fal_cdn.put(b"x")
    late = fal_cdn.sign(url, expires_in=60)
    fal_clock.advance(minutes=2)
    assert [httpx.get(one).status_code for one in (late, f"{url}?identity=x")] == [200, 200]
    assert fal_ledger.problems == []


@pytest.mark.fal(expired_signature=403)
def test_a_late_signature_can_be_a_403_even_then(
    fal_emulator: Emulator, fal_cdn: CDN, fal_clock: Clock
) -> None:
    url = fal_cdn.put(b"x")
    late = fal_cdn.sign(url, expires_in=60)
    assert httpx.get(late).status_code == 200
    fal_clock.advance(minutes=1)
    assert httpx.get(late).status_code == 403
    assert fal_emulator.user("bob").get(late).status_code == 200, "who is somebody besides"


@pytest.mark.fal(expired_signature=403)
def test_the_files_own_end_comes_first(fal_cdn: CDN, fal_clock: Clock) -> None:
    signed = fal_cdn.sign(fal_cdn.put(b"x", expires_in=30), expires_in=60)
    for _ in range(2):
        fal_clock.advance(seconds=40)
        assert httpx.get(signed).status_code == 404


def test_the_ledger_has_no_signature(fal_emulator: Emulator, fal_ledger: Ledger) -> None:
    url = fal_emulator.cdn.put(b"x", acl="hide")
    signed = sign_on_the_cdn(url, fal_emulator.owner.headers).text
    httpx.get(signed)
    identity = signed.partition("=")[2]
    assert identity not in repr([vars(exchange) for exchange in fal_ledger.exchanges])
    assert fal_ledger.exchanges[-1].url == f"{url}?identity=***"
    assert fal_ledger.exchanges[-1].user == "tester"
