"""Bugs and pitfalls of the key-value store: keys, lost updates, entries that are gone."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.parse import quote

import fal
import pytest
from fal.toolkit import KVStore
from fal.toolkit.exceptions import KVStoreException
from gallery import bug

TOPIC = "The KV store"
HOST = "kv.fal.media"


# --- keys ----------------------------------------------------------------------------------------


@bug(
    "K1",
    symptom="two customers see each other's results: their keys differ only after a # or a ?",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.parametrize("key", ["song#2", "song?take=2"])
def test_a_key_ends_at_its_first_special_character(fal_kv, key):
    """What follows a # or a ? in a key is lost: keys that differ only there are one.

    Production: with URLs, prompts or names of users as keys, one entry overwrites another, and
        reading gives somebody else's value.
    Expected: one entry for each key.
    Happens: the key is put into the URL as it is, where # begins a fragment and ? a query.
    Avoid: quote(key, safe="") wherever a key goes in, or a hash of it.
    """
    songs = KVStore("songs")
    songs.set("song", "the first")
    songs.set(key, "the second")
    assert songs.get("song") == "the second"
    assert fal_kv.keys("songs") == ["song"]

    songs.set("song", "the first")
    songs.set(quote(key, safe=""), "the second")
    assert (songs.get("song"), songs.get(quote(key, safe=""))) == ("the first", "the second")
    assert fal_kv.keys("songs") == ["song", key]


@bug(
    "K1",
    symptom="InvalidURL or UnicodeEncodeError from KVStore, for some users only",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_key_with_a_blank_or_an_umlaut_is_an_error(fal_kv):
    """A key with a blank, or with a letter that is not ASCII, raises errors of the HTTP client.

    Production: the app works for all test data and answers 500 to the first user called Zoë; code
        that catches KVStoreException does not catch these.
    Expected: any text can be a key; or a KVStoreException.
    Happens: the key is put into the URL as it is, and Python's http.client refuses to send it.
    Avoid: quote(key, safe="") wherever a key goes in.
    """
    users = KVStore("users")
    for call in (users.get, lambda key: users.set(key, "x")):
        with pytest.raises(http.client.InvalidURL, match="URL can't contain control characters"):
            call("Ada Lovelace")
        with pytest.raises(UnicodeEncodeError, match="'ascii' codec can't encode character"):
            call("Zoë")
    assert fal_kv.entries == []

    users.set(quote("Zoë Lovelace", safe=""), "x")
    assert fal_kv.keys("users") == ["Zoë Lovelace"]


@bug(
    "K1",
    symptom="entries with a ttl of a minute are there for a month",
    topic=TOPIC,
    # KVStore has ttl since 1.75.7.
    seen=("1.75.7", "1.83.0"),
)
@pytest.mark.parametrize("key", ["song#2", "song?take=2"])
def test_a_ttl_is_lost_behind_a_special_character(fal_kv, fal_clock, key):
    """The ttl of a key with a # or a ? in it gets lost, or is refused.

    Production: locks and sessions that were to last a minute last for 30 days.
    Expected: the lifetime that was asked for.
    Happens: "?ttl=60" is put behind the key, where it is a part of a fragment or of the query.
    Avoid: quote(key, safe="") wherever a key goes in.
    """
    fal_clock.freeze()
    songs = KVStore("songs")
    songs.set(key, "x", ttl=60)
    assert fal_kv.expires_at("songs", "song") == fal_clock.now() + timedelta(days=30)

    songs.set("song?ttl=90", "x")
    assert fal_kv.expires_at("songs", "song") == fal_clock.now() + timedelta(seconds=90)
    with pytest.raises(KVStoreException, match="Status 400"):
        songs.set("song?ttl=90", "x", ttl=60)

    songs.set(quote(key, safe=""), "x", ttl=60)
    assert fal_kv.expires_at("songs", key) == fal_clock.now() + timedelta(seconds=60)


@bug(
    "K1",
    symptom="deleting one entry deletes another",
    topic=TOPIC,
    # KVStore has delete() since 1.75.7.
    seen=("1.75.7", "1.83.0"),
)
def test_deleting_a_key_with_a_special_character_deletes_another(fal_kv):
    """delete("song?take=2") deletes "song".

    Production: tidying up after one request removes what another one needs.
    Expected: the entry of that key is deleted, or nothing if there is none.
    Happens: the key is put into the URL as it is, and ends at the ? or #.
    Avoid: quote(key, safe="") wherever a key goes in.
    """
    songs = KVStore("songs")
    songs.set("song", "the first")
    songs.delete("song?take=2")
    assert fal_kv.entries == []

    songs.set("song", "the first")
    songs.delete(quote("song?take=2", safe=""))
    assert songs.get("song") == "the first"


# --- answers -------------------------------------------------------------------------------------


@bug(
    "K2",
    symptom="set() raised nothing, and the value is not there",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_set_that_was_not_found_counts_as_done(fal_kv, fal_faults):
    """A set that is answered 404 returns as if the value were stored.

    Production: a mistake in a proxy or in a route loses writes, and nothing tells.
    Expected: a KVStoreException, as for any other status of 400 and more.
    Happens: 404 means None to get(), and the code is shared by all calls.
    Avoid: read back what must not get lost.
    """
    fal_faults.status(404, method="PUT", host=HOST)
    jobs = KVStore("jobs")
    jobs.set("1", "done")
    assert jobs.get("1") is None
    fal_kv.assert_set("jobs", "1", times=0)


@bug(
    "K2",
    symptom="JSONDecodeError from KVStore.set",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_an_answer_without_json_is_a_raw_error(fal_http):
    """A success without a JSON body is an error, and not a KVStoreException.

    Production: code that handles KVStoreException is passed by; the value is stored all the same.
    Expected: a 204 is a success.
    Happens: whatever the answer, its body is read as JSON.
    Avoid: catch ValueError beside KVStoreException.
    """
    jobs = KVStore("jobs")
    for answer in ({"status_code": 204}, {"status_code": 200, "text": "OK"}):
        fal_http.put("https://kv.fal.media/set/jobs/1").respond(**answer)
        with pytest.raises(json.JSONDecodeError):
            jobs.set("1", "done")


# --- what the store is not -----------------------------------------------------------------------


@bug(
    "P33",
    symptom="settings of my users are gone after a month",
    topic=TOPIC,
    seen=None,
)
def test_every_entry_is_deleted_within_a_month(fal_kv, fal_clock):
    """Every entry is deleted 30 days after it was set, however often it is read.

    Production: what was set once, at sign-up or by a migration, is None a month later.
    Expected: a store keeps what it was given.
    Happens: 30 days are both the default and the longest lifetime; reading does not prolong it.
    Avoid: set again what is read, or keep it elsewhere; the store is a cache.
    """
    users = KVStore("users")
    users.set("ada", "dark mode")
    for _ in range(29):
        fal_clock.advance(days=1)
        assert users.get("ada") == "dark mode"
    fal_clock.advance(days=1)
    assert users.get("ada") is None
    fal_kv.assert_expired("users", "ada")


class Counter(fal.App):
    def setup(self) -> None:
        self.kv = KVStore("counters")

    @fal.endpoint("/")
    def count(self) -> int:
        calls = int(self.kv.get("calls") or 0) + 1
        self.kv.set("calls", str(calls))
        return calls


@bug(
    "P33",
    symptom="my counter of requests is too low, the more runners the lower",
    topic=TOPIC,
    seen=None,
)
def test_two_runners_lose_an_update(fal_runner, fal_kv, fal_faults):
    """Two runners that read, add and write back lose one of two updates.

    Production: counters, quotas and lists in one entry lose updates under load, never in a test.
    Expected: two calls are two.
    Happens: there is no operation that changes a value in one step; the last write wins.
    Avoid: an entry for each runner or request, to be added up by who reads.
    """
    one, two = fal_runner(Counter), fal_runner(Counter)
    gate = fal_faults.gate(of="request", host=HOST, method="PUT", runner=one)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(one.post, "/")
        gate.wait()
        assert two.post("/").json() == 1
        gate.open()
        assert slow.result().json() == 1
    fal_kv.assert_holds("counters", "calls", "1")


@bug(
    "P33",
    symptom="the longest conversations are not saved any more",
    topic=TOPIC,
    seen=None,
)
def test_a_value_grows_until_it_is_refused(fal_kv):
    """A value of more than 1.9 MB is refused, and the old one stays.

    Production: what is appended to, a history for example, is stored until the day that it is not.
    Expected: a limit that one meets at once, or none.
    Happens: the whole value is sent at each set, and refused above 1.9 MB. The status of that is
        not documented; here it is 413.
    Avoid: an entry for each part; a file on the CDN or in /data for what is large.
    """
    history = KVStore("chats")
    history.set("ada", "x" * 1_900_000)
    with pytest.raises(KVStoreException, match="Status 413"):
        history.set("ada", history.get("ada") + "one more sentence")
    assert len(fal_kv.get("chats", "ada")) == 1_900_000
