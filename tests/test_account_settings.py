"""What an account wants for the files that do not say it themselves [facts §1.10]."""

# Without postponed annotations, for the app in it.

from datetime import timedelta
from typing import Any

import fal
import fal_client
import fastapi
import httpx
import pytest
from fal.toolkit import File

from emulator.errors import EmulatorError
from pytest_fal import CDN, Clock, Emulator, Ledger, RunnerFactory

ADDRESSES = ("https://api.fal.ai/v1/storage/settings", "https://rest.fal.ai/storage/settings")
API = ADDRESSES[0]
WEEK = 7 * 24 * 3600
NOTHING = {"expiration_duration_seconds": None, "initial_acl": None}

addresses = pytest.mark.parametrize("address", ADDRESSES, ids=["api", "rest"])


def put(body: Any, key: str, address: str = API) -> httpx.Response:
    return httpx.put(address, json=body, headers={"Authorization": f"Key {key}"})


def get(key: str, address: str = API) -> Any:
    return httpx.get(address, headers={"Authorization": f"Key {key}"}).json()


def upload(**preference: Any) -> str:
    options = {"object_lifecycle_preference": preference}
    return str(File.from_bytes(b"x", save_kwargs=options).url)


class Painter(fal.App):
    @fal.endpoint("/")
    def paint(self) -> File:
        return File.from_bytes(b"pixels")


@addresses
def test_at_first_there_are_none(address: str, fal_emulator: Emulator) -> None:
    assert get(fal_emulator.owner.key, address) == NOTHING


@pytest.mark.fal(account_expiration=timedelta(days=7), account_acl={"default": "hide"})
def test_unless_the_test_has_set_some(fal_emulator: Emulator) -> None:
    assert get(fal_emulator.owner.key) == {
        "expiration_duration_seconds": WEEK,
        "initial_acl": {"default": "hide", "rules": []},
    }


@addresses
def test_they_hold_for_later_uploads(
    address: str, fal_emulator: Emulator, fal_cdn: CDN, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    earlier = upload()
    body = {"expiration_duration_seconds": WEEK, "initial_acl": {"default": "forbid", "rules": []}}
    assert put(body, fal_emulator.owner.key, address).json() == body
    later = upload()
    assert [httpx.get(url).status_code for url in (earlier, later)] == [200, 403]
    fal_clock.advance(days=7)
    assert [fal_cdn.expired(url) for url in (earlier, later)] == [False, True]
    assert fal_emulator.settings.account_expiration == timedelta(days=7)


def test_a_put_replaces_all_of_them(fal_emulator: Emulator) -> None:
    key = fal_emulator.owner.key
    put({"expiration_duration_seconds": 60, "initial_acl": {"default": "hide"}}, key)
    assert put({"initial_acl": {"default": "forbid"}}, key).json() == {
        "expiration_duration_seconds": None,
        "initial_acl": {"default": "forbid", "rules": []},
    }
    assert put({}, key).json() == NOTHING
    assert get(key) == NOTHING


@pytest.mark.parametrize("seconds", [0, -1, 1.5, "60", True])
def test_a_lifetime_is_a_whole_number_from_1_on(seconds: Any, fal_emulator: Emulator) -> None:
    key = fal_emulator.owner.key
    put({"expiration_duration_seconds": 60}, key)
    answer = put({"expiration_duration_seconds": seconds}, key)
    message = "expiration_duration_seconds has to be a whole number of seconds >= 1, or null"
    error = {"type": "validation_error", "message": message}
    assert (answer.status_code, answer.json()) == (400, {"error": error})
    assert get(key)["expiration_duration_seconds"] == 60, "nothing has changed"


def test_a_very_long_one_is_for_ever(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    put({"expiration_duration_seconds": 10**30}, fal_emulator.owner.key)
    assert fal_cdn.info(upload()).expires_at is None


def test_rules_have_to_make_sense(fal_emulator: Emulator) -> None:
    answer = put({"initial_acl": {"default": "hidden"}}, fal_emulator.owner.key)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        400,
        "the ACL's default is not allow, forbid or hide: 'hidden'",
    )


def test_rules_for_unknown_users_are_dropped(fal_emulator: Emulator, fal_ledger: Ledger) -> None:
    fal_emulator.user("bob")
    known = {"user": "bob", "decision": "allow"}
    rules = [known, {"user": "carol", "decision": "allow"}]
    answer = put({"initial_acl": {"default": "hide", "rules": rules}}, fal_emulator.owner.key)
    assert answer.json()["initial_acl"] == {"default": "hide", "rules": [known]}
    assert "the rule for 'carol' was dropped" in fal_ledger.problems[0]


def test_a_misspelt_key_is_noted(fal_emulator: Emulator, fal_ledger: Ledger) -> None:
    assert put({"expiration_seconds": 60}, fal_emulator.owner.key).json() == NOTHING
    assert fal_ledger.exchanges[-1].notes == [
        "unknown key 'expiration_seconds' was ignored; "
        "what is not sent becomes the system's default"
    ]


def test_an_upload_that_says_it_itself_replaces_them_as_a_whole(
    fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    rules = [{"user": "bob", "decision": "allow"}]
    fal_emulator.owner.account_acl = {"default": "hide", "rules": rules}
    fal_emulator.owner.account_expiration = timedelta(days=7)
    bob = fal_emulator.user("bob")
    assert bob.get(upload()).status_code == 200
    url = upload(initial_acl={"default": "hide"})
    assert bob.get(url).status_code == 404, "his rule is not merged"
    assert fal_cdn.info(url).expires_at is not None, "its lifetime is another matter"


def test_never_is_the_accounts_default(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    fal_emulator.owner.account_expiration = timedelta(days=7)
    never = fal_client.StorageSettings(expires_in="never")
    url = fal_client.upload(b"x", "text/plain", "a.txt", lifecycle=never)
    info = fal_cdn.info(url)
    assert info.expires_at == info.created_at + timedelta(days=7)


def test_each_account_has_its_own(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    bob = fal_emulator.user("bob")
    put({"expiration_duration_seconds": 60, "initial_acl": {"default": "hide"}}, bob.key)
    assert bob.account_expiration == timedelta(minutes=1)
    assert get(fal_emulator.owner.key) == NOTHING
    own = upload()
    with bob:
        his = upload()
    assert [httpx.get(url).status_code for url in (own, his)] == [200, 404]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_an_output_follows_the_account_of_its_caller(
    isolation: str, fal_runner: RunnerFactory, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    """Assumed: an output is its caller's, and so are the settings that it follows."""
    bob = fal_emulator.user("bob")
    bob.account_expiration = timedelta(minutes=1)
    runner = fal_runner(Painter, isolation=isolation)
    own, his = (runner.post("/", caller=who).json()["url"] for who in (None, bob))
    assert fal_cdn.info(own).expires_at is None
    assert fal_cdn.info(his).expires_at is not None


@addresses
@pytest.mark.parametrize(
    ("permission", "statuses"),
    [("account:settings:read", (200, 403)), ("account:settings:write", (403, 200))],
)
def test_a_key_needs_permission(
    address: str, permission: str, statuses: tuple[int, int], fal_emulator: Emulator
) -> None:
    headers = {"Authorization": f"Key {fal_emulator.owner.key_with(permission)}"}
    answers = httpx.get(address, headers=headers), httpx.put(address, json={}, headers=headers)
    assert tuple(answer.status_code for answer in answers) == statuses
    other = {"read": "write", "write": "read"}[permission.rpartition(":")[2]]
    refused = next(answer for answer in answers if answer.status_code == 403)
    assert f"this API key has not the permission account:settings:{other}" in refused.text


def test_what_a_test_sets_has_to_make_sense(fal_emulator: Emulator) -> None:
    with pytest.raises(EmulatorError) as caught:
        fal_emulator.user("bob").account_acl = {"default": "hidden"}
    assert str(caught.value) == (
        "account_acl cannot be this: the ACL's default is not allow, forbid or hide: 'hidden'. "
        'Write for example account_acl = {"default": "hide"}.'
    )


class Keyed(fal.App):
    @fal.endpoint("/")
    def put(self, request: fastapi.Request) -> int:
        headers = {"Authorization": f"Key {request.headers['x-key']}"}
        url = "https://api.fal.ai/v1/storage/settings"
        return httpx.put(url, json={"expiration_duration_seconds": 60}, headers=headers).status_code


def test_a_key_with_few_permissions_does_not_get_more_on_a_runner(
    fal_runner: RunnerFactory, fal_emulator: Emulator
) -> None:
    bob = fal_emulator.user("bob")
    with bob:
        key = bob.key_with("assets:read")
        assert fal_runner(Keyed).post("/", headers={"x-key": key}).json() == 403
    assert fal_emulator.owner.account_expiration is None
