"""Who may read a file: rules, users, tokens, owners [facts §1.3, §1.10]."""

# Without postponed annotations, for the apps in it.

import asyncio
import os
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import fal
import fal_client
import fastapi
import httpx
import pytest
from fal.files import FalFileSystem
from fal.toolkit import File, KVStore, download_file
from fal.toolkit.utils.download_utils import DownloadError

from emulator.errors import EmulatorError
from pytest_fal import CDN, KV, Clock, Emulator, Faults, Ledger, RunnerFactory

REST = "https://rest.fal.ai/storage"
ACL = f"{REST}/files/acl"
PREFERENCE = "x-fal-object-lifecycle-preference"
HIDDEN = '{"initial_acl": {"default": "hide"}}'
FOR_BOB = {"default": "hide", "rules": [{"user": "bob", "decision": "allow"}]}

both = pytest.mark.parametrize("isolation", ["thread", "process"])


def upload(acl: Any = None, name: str = "a.txt") -> str:
    """Upload with the toolkit; its URL."""
    options = None if acl is None else {"object_lifecycle_preference": {"initial_acl": acl}}
    return str(File.from_bytes(b"x", file_name=name, save_kwargs=options).url)


def key(of: str) -> dict[str, str]:
    return {"Authorization": f"Key {of}"}


class Painter(fal.App):
    @fal.endpoint("/")
    def paint(self) -> File:
        return File.from_bytes(b"pixels", file_name="painting.png")

    @fal.endpoint("/thread")
    def paint_in_a_thread(self) -> File:
        files = []
        thread = threading.Thread(target=lambda: files.append(File.from_bytes(b"pixels")))
        thread.start()
        thread.join()
        return files[0]

    @fal.endpoint("/who")
    def who(self) -> dict:
        headers = self.current_request.headers
        return {"caller": headers["x-fal-caller-user-id"]}


# --- rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decision", "status"), [("allow", 200), ("forbid", 403), ("hide", 404)])
def test_a_request_says_who_may_read_its_upload(decision: str, status: int, fal_cdn: CDN) -> None:
    assert httpx.get(upload({"default": decision})).status_code == status


@pytest.mark.parametrize(("decision", "status"), [("allow", 200), ("forbid", 403), ("hide", 404)])
def test_the_account_says_it_for_uploads_that_do_not(
    decision: str, status: int, fal_emulator: Emulator
) -> None:
    fal_emulator.owner.account_acl = {"default": decision}
    assert httpx.get(upload()).status_code == status


@pytest.mark.parametrize(("decision", "status"), [("allow", 200), ("forbid", 403), ("hide", 404)])
def test_a_rule_is_for_one_user(decision: str, status: int, fal_emulator: Emulator) -> None:
    bob, ann = fal_emulator.user("bob"), fal_emulator.user("ann")
    url = upload({"default": "forbid", "rules": [{"user": "bob", "decision": decision}]})
    assert bob.get(url).status_code == status
    assert ann.get(url).status_code == 403


def test_a_rule_may_name_a_user_by_id(fal_emulator: Emulator) -> None:
    bob = fal_emulator.user("bob")
    url = upload({"default": "hide", "rules": [{"user": bob.id, "decision": "allow"}]})
    assert bob.get(url).content == b"x"
    assert fal_emulator.user("ann").get(url).status_code == 404


def test_fal_clients_rules_hold_too(fal_emulator: Emulator) -> None:
    bob = fal_emulator.user("bob")
    rules = [fal_client.StorageACLRule("bob", "allow")]
    settings = fal_client.StorageSettings(initial_acl=fal_client.StorageACL("hide", rules))
    url = fal_client.upload(b"x", "text/plain", "a.txt", lifecycle=settings)
    assert (bob.get(url).status_code, httpx.get(url).status_code) == (200, 404)


def test_rules_without_a_default_leave_a_file_public(fal_emulator: Emulator) -> None:
    bob = fal_emulator.user("bob")
    rules = [fal_client.StorageACLRule("bob", "hide")]
    settings = fal_client.StorageSettings(initial_acl=fal_client.StorageACL(rules=rules))
    url = fal_client.upload(b"x", "text/plain", "a.txt", lifecycle=settings)
    assert (bob.get(url).status_code, httpx.get(url).status_code) == (404, 200)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_range_and_a_head_are_reads_too(method: str, fal_emulator: Emulator) -> None:
    bob, url = fal_emulator.user("bob"), fal_emulator.cdn.put(b"12345", acl=FOR_BOB)
    wanted = {"Range": "bytes=1-2"}
    assert httpx.request(method, url, headers={**bob.headers, **wanted}).status_code == 206
    assert httpx.request(method, url, headers=wanted).status_code == 404


# --- several identities ---------------------------------------------------------------------------


def test_of_several_identities_the_most_permissive_wins(fal_emulator: Emulator) -> None:
    bob = fal_emulator.user("bob")
    decisions = {"bob": "hide", "team-a": "forbid", "team-b": "allow"}
    for team in ("team-a", "team-b"):
        fal_emulator.user(team)
    rules = [{"user": user, "decision": decision} for user, decision in decisions.items()]
    url = upload({"default": "hide", "rules": rules})

    def status(*also: str) -> int:
        headers = {"Authorization": f"Bearer {bob.token(also=also)}"}
        return httpx.get(url, headers=headers).status_code

    assert status() == 404
    assert status("team-a") == 403
    assert status("team-a", "team-b") == 200


def test_nickname_and_id_are_two_identities_of_one_user(fal_emulator: Emulator) -> None:
    bob = fal_emulator.user("bob")
    rules = [{"user": "bob", "decision": "hide"}, {"user": bob.id, "decision": "allow"}]
    assert bob.get(upload({"default": "forbid", "rules": rules})).status_code == 200


def test_a_member_of_a_team_reads_what_the_team_may(fal_emulator: Emulator) -> None:
    team = fal_emulator.user("acme")
    bob, ann = fal_emulator.user("bob", teams=[team]), fal_emulator.user("ann")
    for named in (team.nickname, team.id):
        url = upload({"default": "hide", "rules": [{"user": named, "decision": "allow"}]})
        assert (bob.get(url).status_code, ann.get(url).status_code) == (200, 404)


def test_a_token_and_a_signed_url_count_together(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    bob, ann = fal_emulator.user("bob"), fal_emulator.user("ann")
    rules = [{"user": "bob", "decision": "allow"}, {"user": "ann", "decision": "forbid"}]
    url = upload({"default": "hide", "rules": rules})
    assert ann.get(url).status_code == 403
    assert ann.get(fal_cdn.sign(url, by=bob)).status_code == 200
    assert bob.get(fal_cdn.sign(url, by=ann)).status_code == 200


# --- owners ---------------------------------------------------------------------------------------


def test_the_owner_reads_what_is_hidden_from_everybody(
    fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    url = upload({"default": "hide", "rules": [{"user": "tester", "decision": "hide"}]})
    assert fal_emulator.owner.get(url).content == b"x"
    assert fal_cdn.info(url).owner == fal_emulator.owner.nickname == "tester"


def test_whose_key_uploads_owns_the_file(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    bob = fal_emulator.user("bob")
    with bob:
        hidden = upload({"default": "hide"})
    assert fal_cdn.info(hidden).owner == "bob"
    assert bob.get(hidden).content == b"x"
    assert fal_emulator.owner.get(hidden).status_code == 404


def test_fal_client_uploads_as_the_user_the_test_acts_as(
    fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    urls = [fal_client.upload(b"x", "text/plain", "a.txt")]
    with fal_emulator.user("bob"):
        urls.append(fal_client.upload(b"x", "text/plain", "a.txt"))
        urls.append(fal_client.SyncClient().upload(b"x", "text/plain", "a.txt"))
        urls.append(asyncio.run(fal_client.AsyncClient().upload(b"x", "text/plain", "a.txt")))
    urls.append(fal_client.upload(b"x", "text/plain", "a.txt"))
    owners = [fal_cdn.info(url).owner for url in urls]
    assert owners == ["tester", "bob", "bob", "bob", "tester"]


def test_fal_clients_own_client_forgets_the_last_tests_account(
    fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    fal_client.upload(b"x", "text/plain", "a.txt")
    fal_emulator.reset()
    url = fal_client.upload(b"x", "text/plain", "a.txt")
    assert url.startswith("https://v3b.fal.media/"), "with an old token it goes to the fallback"


def test_the_fallback_has_an_owner_and_no_rules(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    private = fal_client.StorageSettings(initial_acl=fal_client.StorageACL("hide"))
    with fal_emulator.user("bob"):
        url = fal_client.upload(b"x", "text/plain", "ü.txt", lifecycle=private)
    assert (fal_cdn.info(url).owner, fal_cdn.info(url).acl) == ("bob", None)
    assert httpx.get(url).status_code == 200


def test_users_can_act_within_each_other(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    bob, ann = fal_emulator.user("bob"), fal_emulator.user("ann")
    with bob:
        with ann, bob, ann:
            inner = upload(), fal_cdn.put(b"x")
        outer = upload(), fal_cdn.put(b"x")
    after = upload(), fal_cdn.put(b"x")
    owners = [{fal_cdn.info(url).owner for url in urls} for urls in (inner, outer, after)]
    assert owners == [{"ann"}, {"bob"}, {"tester"}]


def test_what_a_test_puts_has_the_owner_it_names(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    bob = fal_emulator.user("bob")
    urls = [fal_cdn.put(b"x", owner=bob), fal_cdn.put(b"x", owner="ann"), fal_cdn.put(b"x")]
    with bob:
        urls.append(fal_cdn.put(b"x"))
    assert [fal_cdn.info(url).owner for url in urls] == ["bob", "ann", "tester", "bob"]
    assert [file.url for file in fal_cdn.files_of(bob)] == [urls[0], urls[3]]
    assert [file.url for file in fal_cdn.files_of()] == [urls[2]]


# --- apps and their callers -----------------------------------------------------------------------


@both
def test_an_output_is_its_callers(
    isolation: str, fal_runner: RunnerFactory, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    bob = fal_emulator.user("bob")
    runner = fal_runner(Painter, isolation=isolation)
    url = runner.post("/", headers={PREFERENCE: HIDDEN}, caller=bob).json()["url"]
    assert fal_cdn.info(url).owner == "bob"
    assert bob.get(url).content == b"pixels"
    assert fal_emulator.user("ann").get(url).status_code == 404


@both
def test_the_apps_owner_reads_outputs_too(
    isolation: str, fal_runner: RunnerFactory, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    """Whether that is so on the platform is not known."""
    runner = fal_runner(Painter, isolation=isolation)
    url = runner.post("/", headers={PREFERENCE: HIDDEN}, caller="bob").json()["url"]
    assert fal_cdn.info(url).owners == ("bob", "tester")
    assert fal_emulator.owner.get(url).content == b"pixels"


@both
def test_who_the_test_acts_as_calls_the_app(
    isolation: str, fal_runner: RunnerFactory, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    runner = fal_runner(Painter, isolation=isolation)
    with fal_emulator.user("bob"):
        assert runner.post("/who").json()["caller"] != "tester"
        url = runner.post("/").json()["url"]
        # Its key stays the account's: that is the second owner.
        assert fal_cdn.info(url).owners == ("bob", "tester")
    assert runner.post("/who").json() == {"caller": "tester"}


@both
def test_an_app_that_is_booted_by_somebody_acting_has_the_accounts_key(
    isolation: str, fal_runner: RunnerFactory, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    with fal_emulator.user("bob"):
        runner = fal_runner(Painter, isolation=isolation)
    assert fal_cdn.info(runner.post("/").json()["url"]).owners == ("tester",)


@both
def test_a_thread_of_an_app_uploads_for_its_owner_not_the_caller(
    isolation: str, fal_runner: RunnerFactory, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    """Pitfall 3: neither the caller's token nor the rules reach a thread of the app's own."""
    runner = fal_runner(Painter, isolation=isolation)
    url = runner.post("/thread", headers={PREFERENCE: HIDDEN}, caller="bob").json()["url"]
    assert fal_cdn.info(url).owners == ("tester",)
    assert httpx.get(url).status_code == 200


def test_headers_name_a_caller_for_any_client(
    fal_runner: RunnerFactory, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    bob, runner = fal_emulator.user("bob"), fal_runner(Painter)
    answer = httpx.post(runner.url, headers=bob.as_caller)
    assert fal_cdn.info(answer.json()["url"]).owner == "bob"


@pytest.mark.parametrize("how", ["post", "submit"])
def test_the_caller_of_a_deployment_owns_the_outputs(
    how: str, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    bob, deployment = fal_emulator.user("bob"), fal_emulator.gateway.deploy("tester/p", Painter)

    def call(**options: Any) -> str:
        if how == "post":
            answer = deployment.post("/", **options)
        else:
            answer = deployment.submit("/", **options).result()
        return fal_cdn.info(answer.json()["url"]).owner

    assert [call(), call(caller=bob), call(caller="bob")] == ["tester", "bob", "bob"]
    with bob:
        assert call() == "bob"


def test_a_callers_token_that_is_over_owns_nothing(
    fal_runner: RunnerFactory,
    fal_emulator: Emulator,
    fal_cdn: CDN,
    fal_clock: Clock,
    fal_ledger: Ledger,
) -> None:
    stale = {"x-fal-cdn-token": fal_emulator.user("bob").token(expires_in=60)}
    runner = fal_runner(Painter)
    fal_clock.advance(minutes=1)
    url = runner.post("/", headers=stale).json()["url"]
    assert fal_cdn.info(url).owners == ("tester",)
    assert fal_ledger.problems[-1].endswith(
        "X-Fal-CDN-Token is not valid (any more), so the file is not its caller's"
    )


def test_a_token_with_a_requests_id_reads_its_outputs(
    fal_runner: RunnerFactory, fal_emulator: Emulator
) -> None:
    """As the gateway extends a token when an app calls another one [SDK: fal/app.py]."""
    bob, runner = fal_emulator.user("bob"), fal_runner(Painter)
    headers = {PREFERENCE: HIDDEN, "x-fal-request-id": "nested-1"}
    url = runner.post("/", headers=headers).json()["url"]
    assert bob.get(url).status_code == 404
    renewed = {"Authorization": f"Bearer {bob.token(also=['nested-1'])}"}
    assert httpx.get(url, headers=renewed).content == b"pixels"


# --- credentials ----------------------------------------------------------------------------------


def test_an_account_key_reads_nothing(fal_emulator: Emulator, fal_ledger: Ledger) -> None:
    url = upload({"default": "hide"})
    answer = httpx.get(url, headers=key(fal_emulator.owner.key))
    assert answer.status_code == 404
    assert fal_ledger.exchanges[-1].notes == [
        "the file's access rules say hide",
        "an account key is not accepted for reading: send a CDN token, "
        "as fal_emulator.owner.headers has it",
    ]


def test_a_token_dies_though_the_file_lives(
    fal_emulator: Emulator, fal_clock: Clock, fal_ledger: Ledger
) -> None:
    fal_clock.freeze(datetime(2030, 1, 1, tzinfo=timezone.utc))
    bob = fal_emulator.user("bob")
    url = upload(FOR_BOB)
    headers = {"Authorization": f"Bearer {bob.token()}"}
    fal_clock.advance(timedelta(days=30, microseconds=-1))
    assert httpx.get(url, headers=headers).status_code == 200
    fal_clock.advance(timedelta(microseconds=1))
    assert httpx.get(url, headers=headers).status_code == 404
    assert fal_ledger.exchanges[-1].notes == [
        "the file's access rules say hide",
        "the CDN token of bob was valid until 2030-01-31 00:00:00 UTC",
    ]
    assert bob.get(url).status_code == 200, "a new one"


def test_the_token_call_gives_a_token_of_the_keys_user(fal_emulator: Emulator) -> None:
    bob, url = fal_emulator.user("bob"), upload()
    fal_emulator.cdn.set_acl(url, FOR_BOB)
    body = {"expiration_seconds": 60}
    answer = httpx.post(f"{REST}/auth/token", json=body, headers=key(bob.key)).json()
    reading = {"Authorization": f"{answer['token_type']} {answer['token']}"}
    assert httpx.get(url, headers=reading).status_code == 200
    fal_emulator.clock.advance(minutes=1)
    assert httpx.get(url, headers=reading).status_code == 404


def test_a_cdn_token_is_no_account_key(fal_emulator: Emulator, fal_ledger: Ledger) -> None:
    answer = httpx.get(ACL, params={"url": upload()}, headers=fal_emulator.owner.headers)
    assert answer.status_code == 401


@both
def test_the_toolkit_reads_as_nobody(
    isolation: str, fal_runner: RunnerFactory, fal_cdn: CDN, fal_ledger: Ledger
) -> None:
    """Pitfall 10: download_file sends no token, so an app cannot read its own account's file."""
    runner = fal_runner(Painter, isolation=isolation)
    url = fal_cdn.put(b"x", acl="hide")
    with pytest.raises(DownloadError):
        runner.run(download_file, url, "inputs")
    assert fal_ledger.exchanges[-1].notes == ["the file's access rules say hide"]


# --- who is known ---------------------------------------------------------------------------------


def test_rules_for_unknown_users_are_dropped_and_the_test_told(
    fal_cdn: CDN, fal_ledger: Ledger
) -> None:
    url = upload({"default": "hide", "rules": [{"user": "carol", "decision": "allow"}]})
    acl = fal_cdn.info(url).acl
    assert acl is not None
    assert acl.to_json() == {"default": "hide", "rules": []}
    (note,) = (note for exchange in fal_ledger.exchanges for note in exchange.notes)
    assert note == (
        "the rule for 'carol' was dropped: the platform knows no such user. Write "
        'fal_emulator.user("carol") before this, or @pytest.mark.fal(users=["carol"])'
    )


@pytest.mark.fal(users=["carol"])
def test_settings_name_known_users(fal_emulator: Emulator, fal_ledger: Ledger) -> None:
    url = upload({"default": "hide", "rules": [{"user": "carol", "decision": "allow"}]})
    assert fal_emulator.user("carol").get(url).status_code == 200
    assert fal_ledger.problems == []


def test_what_is_dropped_is_decided_when_the_upload_begins(
    fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    header = '{"initial_acl": {"default": "hide", "rules": [{"user": "eve", "decision": "allow"}]}}'
    headers = {**key("id:secret"), "X-Fal-Object-Lifecycle": header}
    begun = httpx.post(f"{REST}/upload/initiate", json={}, headers=headers).json()
    eve = fal_emulator.user("eve")
    httpx.put(begun["upload_url"], content=b"x")
    assert eve.get(begun["file_url"]).status_code == 404


def test_direct_uploads_drop_them_too(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    rules = [fal_client.StorageACLRule("carol", "allow")]
    settings = fal_client.StorageSettings(initial_acl=fal_client.StorageACL("hide", rules))
    fal_client.upload(b"x", "text/plain", "a.txt", lifecycle=settings)
    assert "the rule for 'carol' was dropped" in fal_ledger.problems[0]


def test_a_test_that_names_users_makes_them_known(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x", acl=FOR_BOB)
    assert fal_emulator.user("bob").get(url).status_code == 200


@pytest.mark.fal(account_acl=FOR_BOB)
def test_so_do_its_settings(fal_emulator: Emulator) -> None:
    assert fal_emulator.user("bob").get(upload()).status_code == 200


def test_a_user_is_one_and_the_same_object(fal_emulator: Emulator) -> None:
    bob = fal_emulator.user("bob")
    assert fal_emulator.user("bob") is bob
    assert fal_emulator.user(bob.id) is bob
    assert fal_emulator.user("tester") is fal_emulator.owner
    assert repr(bob) == "<User bob>"


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\nb"])
def test_not_everything_is_a_nickname(name: str, fal_emulator: Emulator) -> None:
    with pytest.raises(EmulatorError) as caught:
        fal_emulator.user(name)
    assert str(caught.value) == (
        f'{name!r} is no nickname. Write for example fal_emulator.user("bob").'
    )


def test_users_are_gone_with_their_test(fal_emulator: Emulator, fal_ledger: Ledger) -> None:
    with fal_emulator.user("bob") as bob:
        url = upload()
        fal_emulator.reset()
        with pytest.raises(EmulatorError, match="there never was a file"):
            fal_emulator.cdn.info(url)
    upload({"default": "hide", "rules": [{"user": bob.nickname, "decision": "allow"}]})
    assert "the rule for 'bob' was dropped" in fal_ledger.problems[0]


# --- rules that change ----------------------------------------------------------------------------

HOSTS = ("https://rest.fal.ai/storage", "https://api.fal.ai/v1/storage")
hosts = pytest.mark.parametrize("host", HOSTS, ids=["rest", "api"])


@hosts
def test_rules_can_be_read_and_replaced(host: str, fal_emulator: Emulator, fal_cdn: CDN) -> None:
    bob, owner = fal_emulator.user("bob"), key(fal_emulator.owner.key)
    url = upload(FOR_BOB)
    asked = {"params": {"url": url}, "headers": owner}
    assert httpx.get(f"{host}/files/acl", **asked).json() == FOR_BOB

    answer = httpx.put(f"{host}/files/acl", json={"default": "forbid"}, **asked)
    assert (answer.status_code, answer.json()) == (200, {"default": "forbid", "rules": []})
    assert httpx.get(f"{host}/files/acl", **asked).json() == answer.json()
    assert bob.get(url).status_code == 403


@hosts
def test_a_file_without_rules_answers_that_it_is_public(host: str, fal_emulator: Emulator) -> None:
    asked = {"params": {"url": upload()}, "headers": key(fal_emulator.owner.key)}
    answer = httpx.get(f"{host}/files/acl", **asked).json()
    assert answer == {"default": "allow", "rules": []}


@hosts
def test_either_host_of_the_cdn_names_the_file(host: str, fal_emulator: Emulator) -> None:
    url = upload().replace("v3b.", "v3.")
    asked = {"params": {"url": url}, "headers": key(fal_emulator.owner.key)}
    assert httpx.put(f"{host}/files/acl", json={"default": "hide"}, **asked).status_code == 200
    assert httpx.get(url).status_code == 404


@hosts
def test_the_answer_has_what_was_applied(
    host: str, fal_emulator: Emulator, fal_ledger: Ledger
) -> None:
    fal_emulator.user("bob")
    rules = [{"user": "bob", "decision": "allow"}, {"user": "carol", "decision": "allow"}]
    asked = {"params": {"url": upload()}, "headers": key(fal_emulator.owner.key)}
    answer = httpx.put(f"{host}/files/acl", json={"default": "hide", "rules": rules}, **asked)
    assert answer.json() == FOR_BOB
    assert "the rule for 'carol' was dropped" in fal_ledger.problems[-1]


def test_what_an_upload_carried_stays_on_record(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    url = upload({"default": "hide"})
    fal_cdn.set_acl(url, "allow")
    assert httpx.get(url).status_code == 200
    (made,) = fal_cdn.uploads
    assert made.acl is not None
    assert made.acl.default == "hide"


def refusals(fal_emulator: Emulator) -> dict[str, tuple[dict[str, Any], int, str, str]]:
    """By what is wrong: the request's options, and the answer."""
    url, bucket = upload(), fal_client.upload(b"x", "text/plain", "ü.txt")
    other = fal_emulator.user("eve")
    gone = "https://v3b.fal.media/files/b/0/none.bin"
    owner, params, body = key(fal_emulator.owner.key), {"url": url}, {"default": "hide"}
    usual = {"headers": owner, "params": params, "json": body}
    no_rules = "files at storage.googleapis.com have no access rules: only those on the v3 CDN do"
    return {
        "default": (
            {**usual, "json": {"rules": []}},
            400,
            "validation_error",
            "default is missing: allow, forbid or hide",
        ),
        "decision": (
            {**usual, "json": {"default": "hidden"}},
            400,
            "validation_error",
            "the ACL's default is not allow, forbid or hide: 'hidden'",
        ),
        "json": (
            {"headers": owner, "params": params, "content": b"{"},
            400,
            "validation_error",
            "the body is not JSON",
        ),
        "query": (
            {**usual, "params": {"url": f"{url}?identity=x"}},
            400,
            "validation_error",
            "url must not have a query",
        ),
        "url": (
            {**usual, "params": {}},
            400,
            "validation_error",
            "url has to be the URL of a file on the CDN",
        ),
        "bucket": ({**usual, "params": {"url": bucket}}, 400, "validation_error", no_rules),
        "gone": (
            {**usual, "params": {"url": gone}},
            404,
            "not_found",
            f"there is no file at {gone}",
        ),
        "other": (
            {**usual, "headers": key(other.key)},
            403,
            "authorization_error",
            "only its owner may do this: the file is tester's, not eve's",
        ),
    }


@hosts
@pytest.mark.parametrize(
    "wrong", ["default", "decision", "json", "query", "url", "bucket", "gone", "other"]
)
def test_what_is_refused_says_why(host: str, wrong: str, fal_emulator: Emulator) -> None:
    options, status, kind, message = refusals(fal_emulator)[wrong]
    answer = httpx.put(f"{host}/files/acl", **options)
    errors = [{"detail": message}, {"error": {"type": kind, "message": message}}]
    assert (answer.status_code, answer.json()) == (status, errors["api" in host])


def test_the_platform_api_wants_a_key(fal_emulator: Emulator) -> None:
    answer = httpx.get("https://api.fal.ai/v1/storage/files/acl", params={"url": upload()})
    assert answer.status_code == 401
    assert answer.json() == {
        "error": {"type": "authorization_error", "message": "an API key is needed"}
    }


def test_the_platform_api_knows_what_it_has_not(fal_emulator: Emulator, fal_ledger: Ledger) -> None:
    answer = httpx.get("https://api.fal.ai/v1/none", headers=key(fal_emulator.owner.key))
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")
    assert "the emulator does not know this call" in fal_ledger.exchanges[-1].notes


@hosts
def test_a_key_may_be_allowed_only_to_look(host: str, fal_emulator: Emulator) -> None:
    reads = key(fal_emulator.owner.key_with("assets:read"))
    asked = {"params": {"url": upload()}, "headers": reads}
    assert httpx.get(f"{host}/files/acl", **asked).status_code == 200
    answer = httpx.put(f"{host}/files/acl", json={"default": "hide"}, **asked)
    message = "this API key has not the permission assets:write"
    errors = [
        {"detail": message},
        {"error": {"type": "authorization_error", "message": message}},
    ]
    assert (answer.status_code, answer.json()) == (403, errors["api" in host])


def test_a_permission_that_there_is_not(fal_emulator: Emulator) -> None:
    with pytest.raises(EmulatorError) as caught:
        fal_emulator.owner.key_with("assets:delete")
    assert str(caught.value) == (
        "there is no permission 'assets:delete'; there are account:settings:read, "
        "account:settings:write, admin, assets:read, assets:write"
    )


# --- what a failing test sees ---------------------------------------------------------------------


def test_the_ledger_says_who_asked_and_why_not(fal_emulator: Emulator, fal_ledger: Ledger) -> None:
    bob, ann = fal_emulator.user("bob"), fal_emulator.user("ann")
    url = upload({"default": "hide", "rules": [{"user": "bob", "decision": "forbid"}]})
    for user in (bob, ann):
        user.get(url)
    assert [(exchange.user, exchange.notes) for exchange in fal_ledger.exchanges[-2:]] == [
        ("bob", ["the file's access rules say forbid to bob"]),
        ("ann", ["the file's access rules say hide to ann, whom no rule names"]),
    ]


def test_tokens_and_keys_stay_out_of_the_ledger(fal_emulator: Emulator, fal_ledger: Ledger) -> None:
    bob, url = fal_emulator.user("bob"), upload()
    token = bob.token()
    httpx.get(url, headers={"Authorization": f"Bearer {token}"})
    with bob:
        upload()
    recorded = repr([vars(exchange) for exchange in fal_ledger.exchanges])
    for secret in (token, bob.key):
        assert secret not in recorded


def test_a_failing_tests_report_names_the_reader(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(fal_emulator):
            bob = fal_emulator.user("bob")
            url = fal_emulator.cdn.put(b"x", acl="hide")
            fal_emulator.owner.get(url)
            assert bob.get(url).status_code == 200
        """
    )
    output = pytester.runpytest_subprocess("-p", "no:cacheprovider").stdout
    output.fnmatch_lines(
        [
            "*GET https://v3b.fal.media/files/b/*file.bin",
            "*GET https://v3b.fal.media/files/b/*file.bin as bob",
            "*! the file's access rules say hide to bob, whom no rule names",
        ]
    )


def test_a_rule_that_makes_no_sense_is_refused(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x")
    with pytest.raises(EmulatorError) as caught:
        fal_cdn.set_acl(url, "nobody")
    assert str(caught.value) == (
        "fal_cdn.set_acl() cannot do this: the ACL's default is not allow, forbid or hide: "
        "'nobody'. Write for example fal_cdn.set_acl(url, \"hide\")."
    )


# --- acting, and what the SDK remembers -----------------------------------------------------------


class Notes(fal.App):
    @fal.endpoint("/")
    def write(self) -> str:
        KVStore("notes").set("who", "the app")
        return fal_client.upload(b"x", "text/plain", "x.txt")


def test_a_token_that_the_test_got_as_another_user_is_not_the_apps(
    fal_runner: RunnerFactory, fal_emulator: Emulator, fal_kv: KV, fal_cdn: CDN
) -> None:
    runner = fal_runner(Notes)
    with fal_emulator.user("bob"):
        KVStore("notes").get("who")  # the SDK keeps bob's token, for threads too
        fal_client.upload(b"x", "text/plain", "bobs.txt")
        url = runner.post("/").json()
    assert fal_kv.get("notes", "who") == "the app"
    assert fal_cdn.info(url).owner == "tester"


def test_a_token_that_an_app_got_is_not_another_users(
    fal_runner: RunnerFactory, fal_emulator: Emulator, fal_kv: KV
) -> None:
    runner = fal_runner(Notes)
    with fal_emulator.user("bob"):
        runner.post("/")
        assert KVStore("notes").get("who") is None
        KVStore("notes").set("who", "bob")
    assert fal_kv.get("notes", "who") == "the app"


class Callers(fal.App):
    @fal.endpoint("/")
    def who(self, request: fastapi.Request) -> dict[str, list[str]]:
        names = ("x-fal-caller-user-id", "x-fal-cdn-token")
        return {name: request.headers.getlist(name) for name in names}


def test_an_app_has_each_header_once(fal_runner: RunnerFactory, fal_emulator: Emulator) -> None:
    token = fal_emulator.user("ann").token()
    answer = fal_runner(Callers).post("/", caller="bob", headers={"X-Fal-CDN-Token": token}).json()
    assert answer["x-fal-cdn-token"] == [token]
    assert len(answer["x-fal-caller-user-id"]) == 1


def test_the_headers_of_a_caller_say_who_calls(
    fal_runner: RunnerFactory, fal_emulator: Emulator
) -> None:
    bob, runner = fal_emulator.user("bob"), fal_runner(Callers)
    by_headers = runner.post("/", headers=bob.as_caller).json()["x-fal-caller-user-id"]
    assert by_headers == runner.post("/", caller=bob).json()["x-fal-caller-user-id"]
    assert runner.post("/").json()["x-fal-caller-user-id"] == ["tester"]


def test_a_nickname_may_be_any_word(fal_emulator: Emulator, fal_cdn: CDN) -> None:
    with fal_emulator.user("zoë"):
        assert fal_cdn.info(upload()).owner == "zoë"


def test_file_systems_are_the_users_too(fal_emulator: Emulator) -> None:
    mine = FalFileSystem()
    with fal_emulator.user("bob"):
        assert FalFileSystem() is not mine
    assert FalFileSystem() is mine


def test_a_user_of_another_test_is_refused(fal_emulator: Emulator) -> None:
    bob = fal_emulator.user("bob")
    fal_emulator.reset()
    with pytest.raises(EmulatorError) as caught:
        bob.__enter__()
    assert str(caught.value) == (
        "bob is a user of another test, and this one's emulator does not know it. Write with "
        'fal_emulator.user("bob"): in the test itself.'
    )


def test_who_goes_on_acting_after_the_test_changes_nothing_of_the_users(
    fal_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = fal_emulator.user("bob")
    bob.__enter__()
    fal_emulator.stop()
    monkeypatch.setenv("FAL_KEY", "users-own:key")
    bob.__exit__(None, None, None)
    key = os.environ["FAL_KEY"]
    monkeypatch.undo()
    fal_emulator.start()
    assert key == "users-own:key"


def test_rules_are_only_for_files_on_v3(fal_emulator: Emulator, fal_faults: Faults) -> None:
    fal_faults.status(500, host="v3b.fal.media")
    fal_faults.status(500, host="v3.fal.media", optional=True)
    fal_emulator.clock.freeze()
    url = upload()
    # Below fal 1.77 the first fallback is the CDN before v3.
    assert httpx.URL(url).host in ("storage.googleapis.com", "fal.media")
    with pytest.raises(EmulatorError) as caught:
        fal_emulator.cdn.set_acl(url, "hide")
    assert str(caught.value) == (
        f"{url} has no access rules: only files on the v3 CDN do, and those of the fallback are "
        "public."
    )


@pytest.mark.fal(upload_url_reuse="accept")
def test_a_file_that_is_gone_does_not_come_back_by_its_upload_url(
    fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    answer = httpx.post(
        f"{REST}/upload/initiate",
        json={"file_name": "a.txt", "content_type": "text/plain"},
        headers={"Authorization": f"Key {fal_emulator.owner.key}"},
    ).json()
    httpx.put(answer["upload_url"], content=b"x")
    fal_cdn.expire(answer["file_url"])
    again = httpx.put(answer["upload_url"], content=b"y")
    assert (again.status_code, again.json()) == (
        403,
        {"detail": "the file of this upload URL is gone for good"},
    )
    assert httpx.get(answer["file_url"]).status_code == 404


def test_a_url_that_is_none_is_refused(fal_emulator: Emulator) -> None:
    answer = httpx.get(f"{ACL}?url=https://[", headers=key(fal_emulator.owner.key))
    assert answer.status_code == 400
    assert answer.json() == {"detail": "url has to be the URL of a file on the CDN"}


def test_a_signature_within_a_parameter_is_not_in_the_ledger(
    fal_emulator: Emulator, fal_cdn: CDN, fal_ledger: Ledger
) -> None:
    signed = fal_cdn.sign(fal_cdn.put(b"x"))
    headers = key(fal_emulator.owner.key)
    assert httpx.get(ACL, params={"url": signed}, headers=headers).status_code == 400
    [exchange] = fal_ledger.exchanges
    assert signed.rpartition("=")[2] not in exchange.url
    assert exchange.url.endswith("%3Fidentity=***")
