"""The key-value store, as the SDK and as a person uses it [facts §5]."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import fal
import httpx
import pytest
import requests
from fal.toolkit import KVStore
from fal.toolkit.exceptions import KVStoreException
from versions import since

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    from emulator.account import Emulator
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.network.faults import Faults
    from emulator.storage.kv import KV

HOST = "https://kv.fal.media"
MONTH = timedelta(days=30)
START = datetime(2030, 1, 1, tzinfo=timezone.utc)
ACCOUNT = {"Authorization": "Key id:secret"}

since_ttl = since("1.75.7", "KVStore has ttl and delete")
both_kinds = pytest.mark.parametrize("isolation", ["thread", "process"])


@pytest.fixture
def jobs(fal_kv: KV) -> KVStore:
    """The SDK's client."""
    return KVStore("jobs")


@pytest.fixture
def stopped(fal_clock: Clock) -> Clock:
    fal_clock.freeze(START)
    return fal_clock


@pytest.fixture
def person(fal_emulator: Emulator) -> httpx.Client:
    """Somebody with a CDN token and an HTTP client."""
    return httpx.Client(base_url=HOST, headers=bearer())


def bearer() -> dict[str, str]:
    url = "https://rest.fal.ai/storage/auth/token?storage_type=fal-cdn-v3"
    answer = httpx.post(url, headers=ACCOUNT, json={}).json()
    return {"Authorization": f"{answer['token_type']} {answer['token']}"}


def notes(ledger: Ledger) -> list[str]:
    return [note for exchange in ledger.requests(host="kv.fal.media") for note in exchange.notes]


# --- values ---------------------------------------------------------------------------------------


def test_a_value_is_read_back(jobs: KVStore) -> None:
    jobs.set("1", "done")
    assert jobs.get("1") == "done"


def test_what_was_never_set_is_none(jobs: KVStore) -> None:
    assert jobs.get("1") is None


def test_the_last_write_wins(jobs: KVStore) -> None:
    jobs.set("1", "running")
    jobs.set("1", "done")
    assert jobs.get("1") == "done"


@pytest.mark.parametrize("value", ["", " ", "ü€🎉", "a\r\nb\x00", '{"a": [1]}', "a&b=c%20d"])
def test_any_text_comes_back_as_it_was(jobs: KVStore, value: str) -> None:
    jobs.set("1", value)
    assert jobs.get("1") == value


def test_databases_are_apart(fal_kv: KV) -> None:
    KVStore("jobs").set("1", "done")
    assert KVStore("users").get("1") is None
    KVStore("users").set("1", "Ada")
    assert KVStore("jobs").get("1") == "done"
    assert fal_kv.databases == ["jobs", "users"]


@since_ttl
def test_what_is_deleted_is_gone(jobs: KVStore) -> None:
    jobs.set("1", "done")
    jobs.delete("1")
    assert jobs.get("1") is None


@since_ttl
def test_deleting_what_is_not_there_is_no_error(jobs: KVStore) -> None:
    jobs.delete("1")
    jobs.delete("1")


def test_each_test_starts_with_an_empty_store(fal_kv: KV) -> None:
    assert (fal_kv.entries, fal_kv.writes, len(fal_kv)) == ([], [], 0)


# --- what a test sees and seeds -------------------------------------------------------------------


def test_a_test_sees_what_the_sdk_wrote(jobs: KVStore, fal_kv: KV, stopped: Clock) -> None:
    jobs.set("1", "done")
    assert fal_kv.get("jobs", "1") == "done"
    assert fal_kv.expires_at("jobs", "1") == START + MONTH
    entry = fal_kv.info("jobs", "1")
    assert (entry.db, entry.key, entry.value, entry.set_at) == ("jobs", "1", "done", START)
    assert repr(entry) == "<KV jobs/1: 4 bytes, until 2030-01-31 00:00:00 UTC>"


def test_the_sdk_sees_what_a_test_wrote(jobs: KVStore, fal_kv: KV) -> None:
    fal_kv.set("jobs", "1", "done")
    assert jobs.get("1") == "done"
    fal_kv.delete("jobs", "1")
    assert jobs.get("1") is None


@pytest.mark.parametrize("ttl", [90, 90.0, timedelta(seconds=90)])
def test_a_test_seeds_with_a_lifetime(fal_kv: KV, stopped: Clock, ttl: Any) -> None:
    fal_kv.set("jobs", "1", "done", ttl=ttl)
    assert fal_kv.expires_at("jobs", "1") == START + timedelta(seconds=90)


def test_a_test_can_list_what_the_sdk_cannot(fal_kv: KV) -> None:
    for key in ("b", "a"):
        fal_kv.set("jobs", key, "äö")
    fal_kv.set("users", "c", "")
    assert fal_kv.keys("jobs") == ["a", "b"]
    assert fal_kv.keys("none") == []
    assert [entry.name for entry in fal_kv.entries] == ["jobs/b", "jobs/a", "users/c"]
    assert (fal_kv.databases, fal_kv.size, len(fal_kv)) == (["jobs", "users"], 8, 3)
    assert repr(fal_kv) == "<KV: jobs (2 entries), users (1 entry)>"


def test_an_empty_store_says_so(fal_kv: KV) -> None:
    assert repr(fal_kv) == "<KV: empty>"


def test_what_was_overwritten_is_kept_for_the_test(jobs: KVStore, fal_kv: KV) -> None:
    jobs.set("1", "running")
    jobs.set("1", "done")
    assert [write.value for write in fal_kv.writes] == ["running", "done"]


def test_there_is_nothing_to_know_of_what_was_never_set(fal_kv: KV) -> None:
    fal_kv.set("jobs", "2", "x")
    with pytest.raises(EmulatorError) as error:
        fal_kv.expires_at("jobs", "1")
    assert str(error.value) == "jobs/1 was never set; there is jobs/2"


@pytest.mark.parametrize(
    ("value", "ttl", "message"),
    [
        ("x", 5, "ttl has to be a whole number of seconds from 60 to 2592000, not 5"),
        ("x", 2_592_000.5, "to 2592000, not 2592000.5"),
        ("x", 60.5, "to 2592000, not 60.5"),
        ("x", 1e15, "too large"),
        ("x", float("nan"), "NaN"),
        ("\ud800", None, "surrogates not allowed"),
        ("x" * 1_900_001, None, "the value has 1900001 bytes, more than 1900000"),
    ],
)
def test_a_test_cannot_set_what_the_store_does_not_take(
    fal_kv: KV, value: str, ttl: Any, message: str
) -> None:
    with pytest.raises(EmulatorError) as error:
        fal_kv.set("jobs", "1", value, ttl)
    assert str(error.value).startswith("fal_kv.set() cannot do this: ")
    assert message in str(error.value)
    assert str(error.value).endswith("at any moment all the same: fal_kv.expire('jobs', '1').")


def test_a_test_cannot_set_what_is_no_text(fal_kv: KV) -> None:
    with pytest.raises(EmulatorError, match="holds text only") as error:
        fal_kv.set("jobs", "1", {"state": "done"})  # type: ignore[arg-type]
    assert "Write for example fal_kv.set('jobs', '1', json.dumps(value))." in str(error.value)


# --- lifetimes ------------------------------------------------------------------------------------


def test_everything_is_gone_after_30_days(jobs: KVStore, fal_clock: Clock) -> None:
    jobs.set("1", "done")
    fal_clock.advance(days=29, hours=23)
    assert jobs.get("1") == "done"
    fal_clock.advance(hours=1)
    assert jobs.get("1") is None


@since_ttl
def test_a_lifetime_ends_to_the_instant(jobs: KVStore, stopped: Clock) -> None:
    jobs.set("1", "done", ttl=60)
    stopped.advance(seconds=60, milliseconds=-1)
    assert jobs.get("1") == "done"
    stopped.advance(milliseconds=1)
    assert jobs.get("1") is None


@since_ttl
@pytest.mark.parametrize("ttl", [60, 2_592_000])
def test_the_shortest_and_the_longest_lifetime(
    jobs: KVStore, fal_kv: KV, stopped: Clock, ttl: int
) -> None:
    jobs.set("1", "done", ttl=ttl)
    assert fal_kv.expires_at("jobs", "1") == START + timedelta(seconds=ttl)


def test_entries_expire_one_by_one(fal_kv: KV, fal_clock: Clock) -> None:
    fal_kv.set("jobs", "1", "x", ttl=60)
    fal_kv.set("jobs", "2", "x", ttl=120)
    fal_clock.advance(seconds=90)
    assert fal_kv.keys("jobs") == ["2"]


def test_reading_does_not_prolong_a_lifetime(jobs: KVStore, fal_kv: KV, stopped: Clock) -> None:
    fal_kv.set("jobs", "1", "x", ttl=60)
    stopped.advance(seconds=59)
    assert jobs.get("1") == "x"
    stopped.advance(seconds=1)
    assert jobs.get("1") is None


def test_setting_again_begins_a_new_lifetime(jobs: KVStore, fal_kv: KV, stopped: Clock) -> None:
    fal_kv.set("jobs", "1", "x", ttl=60)
    stopped.advance(seconds=30)
    jobs.set("1", "y")
    assert fal_kv.expires_at("jobs", "1") == stopped.now() + MONTH


@pytest.mark.fal(kv_overwrite="keeps")
def test_setting_again_can_leave_the_lifetime_alone(
    jobs: KVStore, fal_kv: KV, stopped: Clock
) -> None:
    fal_kv.set("jobs", "1", "x", ttl=60)
    stopped.advance(seconds=30)
    jobs.set("1", "y")
    assert fal_kv.expires_at("jobs", "1") == START + timedelta(seconds=60)
    fal_kv.set("jobs", "1", "z", ttl=60)
    assert fal_kv.expires_at("jobs", "1") == START + timedelta(seconds=90), "a ttl is a ttl"
    stopped.advance(seconds=60)
    jobs.set("1", "anew")
    assert fal_kv.expires_at("jobs", "1") == stopped.now() + MONTH


@pytest.mark.fal(kv_lifetime=timedelta(hours=1))
def test_the_default_lifetime_can_be_set(jobs: KVStore, fal_clock: Clock) -> None:
    jobs.set("1", "done")
    fal_clock.advance(hours=1)
    assert jobs.get("1") is None


@pytest.mark.fal(kv_lifetime=None)
def test_entries_can_stay_for_ever_as_they_once_did(
    jobs: KVStore, fal_kv: KV, fal_clock: Clock
) -> None:
    jobs.set("1", "done")
    fal_clock.advance(days=4000)
    assert jobs.get("1") == "done"
    assert fal_kv.expires_at("jobs", "1") is None
    assert repr(fal_kv.info("jobs", "1")) == "<KV jobs/1: 4 bytes, for ever>"


def test_what_expired_does_not_come_back(jobs: KVStore, fal_kv: KV, fal_clock: Clock) -> None:
    start = fal_clock.now()
    fal_kv.set("jobs", "1", "x", ttl=60)
    fal_clock.advance(seconds=60)
    fal_clock.move_to(start)
    assert jobs.get("1") is None


def test_a_test_can_let_an_entry_expire(jobs: KVStore, fal_kv: KV) -> None:
    jobs.set("1", "done")
    fal_kv.expire("jobs", "1")
    assert jobs.get("1") is None
    assert fal_kv.expired("jobs", "1")
    fal_kv.expire("jobs", "1")  # is over already


def test_a_test_can_still_ask_about_an_expired_entry(fal_kv: KV, stopped: Clock) -> None:
    fal_kv.set("jobs", "1", "x", ttl=60)
    stopped.advance(hours=1)
    assert fal_kv.get("jobs", "1") is None
    assert fal_kv.expires_at("jobs", "1") == START + timedelta(seconds=60)
    assert fal_kv.info("jobs", "1").value == "x"


def test_the_ledger_has_the_moment(fal_kv: KV, stopped: Clock, fal_ledger: Ledger) -> None:
    fal_kv.set("jobs", "1", "x", ttl=60)
    stopped.advance(hours=1)
    (event,) = [event for event in fal_ledger.events if event.kind == "expired"]
    assert event.text == "KV jobs/1, at 2030-01-01 00:01:00 UTC"


def test_the_ledger_knows_why_a_value_is_none(
    jobs: KVStore, fal_kv: KV, stopped: Clock, fal_ledger: Ledger
) -> None:
    for key in ("expired", "deleted"):
        fal_kv.set("jobs", key, "x", ttl=60)
    fal_kv.delete("jobs", "deleted")
    stopped.advance(hours=1)
    assert [jobs.get(key) for key in ("expired", "deleted", "never")] == [None] * 3
    assert notes(fal_ledger) == [
        "jobs/expired expired at 2030-01-01 00:01:00 UTC",
        "jobs/deleted was deleted at 2030-01-01 00:00:00 UTC",
        "jobs/never was never set",
    ]


# --- what the store does not take -----------------------------------------------------------------


def refused(call: Any, *arguments: Any, **options: Any) -> int:
    """The status of a call that the SDK refuses to take for done."""
    with pytest.raises(KVStoreException, match=r"^Error sending request\. Status \d+: ") as error:
        call(*arguments, **options)
    return int(str(error.value).split()[4].rstrip(":"))


@since("1.75.7", "the SDK's error says why")
def test_the_sdk_passes_on_why(jobs: KVStore) -> None:
    with pytest.raises(KVStoreException) as error:
        jobs.set("1", "y" * 1_900_001)
    assert str(error.value) == (
        "Error sending request. Status 413: the value has 1900001 bytes, more than 1900000"
    )


def test_a_value_has_at_most_1_9_megabytes(jobs: KVStore, fal_kv: KV, fal_ledger: Ledger) -> None:
    jobs.set("1", "x" * 1_900_000)
    assert refused(jobs.set, "1", "y" * 1_900_001) == 413
    assert notes(fal_ledger) == ["the value has 1900001 bytes, more than 1900000"]
    assert fal_kv.get("jobs", "1") == "x" * 1_900_000


@pytest.mark.fal(kv_value_limit=10, kv_too_large_status=400)
def test_the_limit_counts_bytes_and_can_be_set(jobs: KVStore, fal_ledger: Ledger) -> None:
    jobs.set("1", "ü" * 5)
    assert refused(jobs.set, "1", "ü" * 6) == 400
    assert notes(fal_ledger) == ["the value has 12 bytes, more than 10"]


@since_ttl
@pytest.mark.parametrize(
    ("ttl", "shown"),
    [(59, "59"), (0, "0"), (-60, "-60"), (2_592_001, "2592001"), (60.5, "'60.5'"), ("", "''")],
)
def test_a_lifetime_is_a_whole_number_of_seconds_within_limits(
    jobs: KVStore, fal_kv: KV, fal_ledger: Ledger, ttl: Any, shown: str
) -> None:
    assert refused(jobs.set, "1", "x", ttl=ttl) == 400
    assert notes(fal_ledger) == [
        f"ttl has to be a whole number of seconds from 60 to 2592000, not {shown}"
    ]
    assert fal_kv.entries == []


@since_ttl
@pytest.mark.fal(kv_bad_ttl_status=422)
def test_the_status_of_a_bad_lifetime_can_be_set(jobs: KVStore) -> None:
    assert refused(jobs.set, "1", "x", ttl=1) == 422


def test_a_value_that_is_no_text_is_refused(person: httpx.Client) -> None:
    answer = person.put("/set/jobs/1", content=b"\xff\xfe")
    assert (answer.status_code, answer.json()) == (400, {"error": "the value is not UTF-8 text"})


def test_a_key_must_not_be_empty(jobs: KVStore, fal_ledger: Ledger) -> None:
    assert refused(jobs.set, "", "x") == 400
    assert notes(fal_ledger) == ["the name of the database and the key must not be empty"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/set/jobs/1"), ("GET", "/list/jobs"), ("PUT", "/get/jobs/1")]
)
def test_there_are_three_calls_and_no_others(
    person: httpx.Client, fal_ledger: Ledger, method: str, path: str
) -> None:
    answer = person.request(method, path)
    assert answer.status_code == 404
    assert answer.json() == {"error": f"{method} {path} is no call of the KV store"}
    assert notes(fal_ledger)[0] == "the emulator does not know this call"


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [httpx, requests], ids=["httpx", "requests"])
def test_a_person_uses_it_with_any_client(fal_kv: KV, client: Any) -> None:
    headers = bearer()
    seen = [
        (answer.status_code, answer.json())
        for answer in (
            client.put(f"{HOST}/set/jobs/1?ttl=60", data=b"done", headers=headers)
            if client is requests
            else client.put(f"{HOST}/set/jobs/1?ttl=60", content=b"done", headers=headers),
            client.get(f"{HOST}/get/jobs/1", headers=headers),
            client.delete(f"{HOST}/delete/jobs/1", headers=headers),
            client.delete(f"{HOST}/delete/jobs/1", headers=headers),
            client.get(f"{HOST}/get/jobs/1", headers=headers),
        )
    ]
    ok = (200, {"status": "ok"})
    assert seen == [ok, (200, {"value": "done"}), ok, ok, (404, {"error": "not found"})]


def test_a_key_may_be_quoted(person: httpx.Client, jobs: KVStore, fal_kv: KV) -> None:
    person.put("/set/my%2Fjobs/a%20b%2Fc%3Fd%23%C3%BC", content=b"x")
    assert fal_kv.get("my/jobs", "a b/c?d#ü") == "x"
    fal_kv.set("jobs", "a?b", "y")
    assert jobs.get("a%3Fb") == "y"


def test_a_key_may_have_slashes(jobs: KVStore, fal_kv: KV) -> None:
    jobs.set("2030/01/1", "done")
    assert fal_kv.keys("jobs") == ["2030/01/1"]


def test_a_key_that_is_not_utf8_is_refused(person: httpx.Client) -> None:
    answer = person.get("/get/jobs/%ff")
    assert answer.status_code == 400
    assert answer.json() == {"error": "%ff is not UTF-8 once it is decoded"}


def test_a_question_mark_in_a_key_is_noted(jobs: KVStore, fal_ledger: Ledger, fal_kv: KV) -> None:
    jobs.set("a?b", "x")
    assert fal_kv.keys("jobs") == ["a"]
    assert notes(fal_ledger) == [
        "the query says 'b', which means nothing here: a ? in a key has to be quoted, with "
        'urllib.parse.quote(key, safe="")'
    ]


def test_the_ledger_has_no_fragment_as_none_is_sent(jobs: KVStore, fal_ledger: Ledger) -> None:
    jobs.set("a#b", "x")
    (exchange,) = fal_ledger.requests(host="kv.fal.media")
    assert (exchange.url, exchange.path) == (f"{HOST}/set/jobs/a", "/set/jobs/a")


# --- who may --------------------------------------------------------------------------------------

HINT = (
    "; POST https://rest.fal.ai/storage/auth/token?storage_type=fal-cdn-v3 gives one, to send as "
    "Authorization: Bearer"
)


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({}, "no CDN token"),
        ({"Authorization": "Bearer made-up"}, "this is no CDN token"),
        (ACCOUNT, "an account's key is no CDN token"),
    ],
)
def test_a_cdn_token_is_needed(fal_kv: KV, headers: dict[str, str], problem: str) -> None:
    answer = httpx.get(f"{HOST}/get/jobs/1", headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"error": problem + HINT})


@pytest.mark.fal(token_lifetime=timedelta(hours=2))
def test_an_expired_token_does_not_count(stopped: Clock, person: httpx.Client) -> None:
    stopped.advance(hours=2)
    answer = person.put("/set/jobs/1", content=b"x")
    assert answer.status_code == 401
    assert answer.json() == {"error": "the CDN token expired at 2030-01-01 02:00:00 UTC" + HINT}


@pytest.mark.fal(token_lifetime=timedelta(hours=12))
def test_the_sdk_takes_another_token_when_less_than_an_hour_is_left(
    jobs: KVStore, stopped: Clock, fal_ledger: Ledger
) -> None:
    for _ in range(13):
        jobs.set("1", "x")
        stopped.advance(hours=1)
    tokens = fal_ledger.requests(path="/storage/auth/token")
    assert [(token.at - START) / timedelta(hours=1) for token in tokens] == [0, 11]


@pytest.mark.fal(token_lifetime=timedelta(hours=1))
def test_with_tokens_of_an_hour_the_sdk_takes_one_for_each_call(
    jobs: KVStore, fal_ledger: Ledger
) -> None:
    for _ in range(3):
        jobs.get("1")
    fal_ledger.assert_requested(3, path="/storage/auth/token")


def test_databases_of_another_user_are_others(
    jobs: KVStore, fal_kv: KV, fal_emulator: Emulator
) -> None:
    jobs.set("1", "mine")
    token = fal_emulator._identities.issue("somebody-else", MONTH).token
    other = httpx.Client(base_url=HOST, headers={"Authorization": f"Bearer {token}"})
    assert other.get("/get/jobs/1").status_code == 404
    other.put("/set/jobs/1", content=b"theirs")
    other.delete("/delete/jobs/2")
    assert (jobs.get("1"), other.get("/get/jobs/1").json()) == ("mine", {"value": "theirs"})
    assert [entry.value for entry in (*fal_kv.entries, *fal_kv.writes)] == ["mine", "mine"]


# --- runners --------------------------------------------------------------------------------------


class Counter(fal.App):
    """Counts its calls in the store, as one would think of first."""

    def setup(self) -> None:
        self.kv = KVStore("counters")

    @fal.endpoint("/")
    def count(self) -> int:
        calls = int(self.kv.get("calls") or 0) + 1
        self.kv.set("calls", str(calls))
        return calls

    @fal.endpoint("/odd")
    def use_odd_keys(self) -> list[str]:
        failures = []
        for key in ("a b", "ü"):
            try:
                self.kv.set(key, "x")
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")
        return failures


@both_kinds
def test_runners_share_it(fal_runner: Any, fal_kv: KV, isolation: str) -> None:
    one, two = (fal_runner(Counter, isolation=isolation) for _ in range(2))
    assert [runner.post("/").json() for runner in (one, two, one)] == [1, 2, 3]
    one.stop()
    assert fal_runner(Counter, isolation=isolation).post("/").json() == 4
    fal_kv.assert_set("counters", "calls", "2", by=two, times=1)
    fal_kv.assert_set("counters", "calls", by=one, times=2)


@both_kinds
def test_an_update_gets_lost_between_two_runners(
    fal_runner: Any, fal_kv: KV, fal_faults: Faults, isolation: str
) -> None:
    one, two = (fal_runner(Counter, isolation=isolation) for _ in range(2))
    gate = fal_faults.gate(of="request", host="kv.fal.media", method="PUT", runner=one)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(one.post, "/")
        gate.wait()
        assert two.post("/").json() == 1
        gate.open()
        assert slow.result().json() == 1
    assert fal_kv.get("counters", "calls") == "1", "of two calls"
    assert [write.runner for write in fal_kv.writes] == [two.name, one.name]


@both_kinds
def test_entries_expire_for_runners_too(
    fal_runner: Any, fal_kv: KV, fal_clock: Clock, isolation: str
) -> None:
    runner = fal_runner(Counter, isolation=isolation)
    assert runner.post("/").json() == 1
    fal_clock.advance(days=30)
    fal_kv.assert_expired("counters", "calls")
    assert runner.post("/").json() == 1


@both_kinds
def test_keys_that_cannot_be_sent_are_refused_by_http_client_itself(
    fal_runner: Any, fal_kv: KV, isolation: str
) -> None:
    blank, umlaut = fal_runner(Counter, isolation=isolation).post("/odd").json()
    assert blank == (
        "InvalidURL: URL can't contain control characters. '/set/counters/a b' (found at least ' ')"
    )
    assert umlaut.startswith("UnicodeEncodeError: 'ascii' codec can't encode character '\\xfc'")
    assert fal_kv.entries == []


# --- faults ---------------------------------------------------------------------------------------


def test_a_busy_store_is_asked_again(
    jobs: KVStore, fal_kv: KV, fal_faults: Faults, stopped: Clock
) -> None:
    busy = fal_faults.status(503, times=4, host="kv.fal.media")
    jobs.set("1", "done")
    assert len(busy.struck) == 4
    fal_kv.assert_set("jobs", "1", "done", times=1)


def test_after_five_attempts_the_sdk_gives_up(
    jobs: KVStore, fal_faults: Faults, stopped: Clock
) -> None:
    busy = fal_faults.status(503, host="kv.fal.media")
    with pytest.raises(KVStoreException) as error:
        jobs.get("1")
    assert str(error.value) == "Error sending request. Status 503: Service Unavailable"
    assert len(busy.struck) == 5


def test_a_write_whose_answer_is_late_is_written_twice(
    jobs: KVStore, fal_kv: KV, fal_faults: Faults, stopped: Clock
) -> None:
    fal_faults.timeout(after=0, times=1, host="kv.fal.media", method="PUT")
    jobs.set("1", "done")
    fal_kv.assert_set("jobs", "1", "done", times=2)


def test_a_write_whose_answer_is_lost_is_an_error_and_is_there(
    jobs: KVStore, fal_kv: KV, fal_faults: Faults
) -> None:
    fal_faults.drop(host="kv.fal.media", method="PUT")
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        jobs.set("1", "done")
    fal_kv.assert_holds("jobs", "1", "done")


# --- assertions -----------------------------------------------------------------------------------


def failure(assertion: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as error:
        assertion(*arguments, **options)
    return str(error.value)


def test_assert_holds(fal_kv: KV, stopped: Clock) -> None:
    fal_kv.set("jobs", "1", "done")
    fal_kv.assert_holds("jobs", "1")
    fal_kv.assert_holds("jobs", "1", "done")
    assert failure(fal_kv.assert_holds, "jobs", "1", "running") == (
        "jobs/1 is 'done', set by the test at 2030-01-01 00:00:00 UTC, expected 'running'"
    )
    assert failure(fal_kv.assert_holds, "jobs", "2") == "jobs/2 was never set; there is jobs/1"
    fal_kv.expire("jobs", "1")
    assert failure(fal_kv.assert_holds, "jobs", "1") == (
        "jobs/1 expired at 2030-01-01 00:00:00 UTC; there is nothing"
    )


def test_assert_lacks(fal_kv: KV, stopped: Clock) -> None:
    fal_kv.assert_lacks("jobs", "1")
    fal_kv.set("jobs", "1", "done")
    assert failure(fal_kv.assert_lacks, "jobs", "1") == (
        "jobs/1 is there: 'done', set by the test at 2030-01-01 00:00:00 UTC"
    )


def test_assert_expired(fal_kv: KV, stopped: Clock) -> None:
    fal_kv.set("jobs", "1", "done", ttl=60)
    assert failure(fal_kv.assert_expired, "jobs", "1") == (
        "jobs/1 has not expired: it will at 2030-01-01 00:01:00 UTC, "
        "and it is 2030-01-01 00:00:00 UTC"
    )
    stopped.advance(minutes=1)
    fal_kv.assert_expired("jobs", "1")
    fal_kv.set("jobs", "1", "again")
    fal_kv.delete("jobs", "1")
    assert failure(fal_kv.assert_expired, "jobs", "1") == (
        "jobs/1 has not expired: it was deleted at 2030-01-01 00:01:00 UTC; there is nothing"
    )


@pytest.mark.fal(kv_lifetime=None)
def test_assert_expired_of_what_never_does(fal_kv: KV, stopped: Clock) -> None:
    fal_kv.set("jobs", "1", "done")
    assert failure(fal_kv.assert_expired, "jobs", "1") == (
        "jobs/1 has not expired: it never does, and it is 2030-01-01 00:00:00 UTC"
    )


def test_assert_set(fal_kv: KV, stopped: Clock) -> None:
    fal_kv.set("jobs", "1", "done")
    fal_kv.assert_set("jobs", "1")
    fal_kv.assert_set("jobs", "1", "done", by=None, times=1)
    fal_kv.assert_set("jobs", "2", times=0)
    there = "there was jobs/1 to 'done' by the test at 2030-01-01 00:00:00 UTC"
    assert failure(fal_kv.assert_set, "jobs", "1", "running") == (
        f"jobs/1 was never set to 'running', expected at least once: {there}"
    )
    assert failure(fal_kv.assert_set, "jobs", "1", by="runner-1", times=2) == (
        f"jobs/1 was never set by runner-1, expected twice: {there}"
    )
    assert failure(fal_kv.assert_set, "jobs", "2") == (
        f"jobs/2 was never set, expected at least once: {there}"
    )


# --- a failing test's report ----------------------------------------------------------------------


def test_a_failing_test_shows_what_is_in_the_store(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from datetime import datetime, timezone

        def test_it(fal_kv, fal_clock):
            fal_clock.freeze(datetime(2030, 1, 1, tzinfo=timezone.utc))
            fal_kv.set("jobs", "1", "done", ttl=60)
            fal_kv.set("users", "ada/name", "Ada Lovelace")
            assert False

        def test_without_entries(fal_kv):
            assert False
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*- fal: KV store -*",
            "jobs/1  4 bytes  until 2030-01-01 00:01:00",
            "users/ada/name  12 bytes  until 2030-01-31 00:00:00",
        ]
    )
    assert result.stdout.str().count("fal: KV store") == 1
