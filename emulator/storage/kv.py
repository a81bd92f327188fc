"""The key-value store: what is in it, whose it is, and when it expires [facts §5].

Strings in named databases, each with a lifetime. There is no update in one step: a reader that
writes what it has read overwrites whatever came in between.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from emulator.checks import ANY, TIME, bytes_of, fail, happened, listed, name_of
from emulator.errors import EmulatorError, RefusedRequest

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.runners.runner import Runner
    from emulator.settings import Settings

__all__ = ["KV", "LONGEST", "SHORTEST", "KVEntry", "KVError"]

#: Lifetimes that a ``ttl`` may ask for [§5].
SHORTEST, LONGEST = timedelta(seconds=60), timedelta(days=30)

#: Who, in which database, under which key.
_Place = tuple[str, str, str]


class KVError(RefusedRequest):
    """A call that the store refuses."""


@dataclass(frozen=True, repr=False)
class KVEntry:
    """A value under its key, as one write left it."""

    #: Name of the store.
    db: str
    #: The key in it.
    key: str
    #: The value.
    value: str
    #: Virtual time of the write.
    set_at: datetime
    #: Virtual time of its deletion; None only where the setting ``kv_lifetime`` is None.
    expires_at: datetime | None
    #: Name of the runner that wrote it, None for the test itself.
    runner: str | None = None

    def __repr__(self) -> str:
        until = "for ever" if self.expires_at is None else f"until {_at(self.expires_at)}"
        return f"<KV {self.name}: {bytes_of(self.size)}, {until}>"

    @property
    def size(self) -> int:
        """Bytes of the value, in UTF-8."""
        return len(self.value.encode())

    @property
    def name(self) -> str:
        """Database and key: ``"jobs/1"``."""
        return f"{self.db}/{self.key}"


@dataclass(frozen=True)
class _Gone:
    """What was there, and what became of it."""

    entry: KVEntry
    how: str


class KV:
    """The account's key-value store, as a test sees and seeds it.

    What is said about entries is meant of this account's; those of other users, who have tokens of
    their own, are theirs.
    """

    def __init__(self, clock: Clock, ledger: Ledger, settings: Settings) -> None:
        self.settings = settings
        self._clock = clock
        self._ledger = ledger
        self._lock = threading.RLock()
        self._entries: dict[_Place, KVEntry] = {}
        self._gone: dict[_Place, _Gone] = {}
        #: Every write of the account's, in their order, what was overwritten included.
        self.writes: list[KVEntry] = []
        clock.subscribe(self._pass_time)

    def reset(self, settings: Settings) -> None:
        """Forget all entries."""
        self.settings = settings
        self._entries.clear()
        self._gone.clear()
        self.writes = []

    def __repr__(self) -> str:
        count = Counter(entry.db for entry in self.entries)
        return f"<KV: {', '.join(f'{db} ({_count(n)})' for db, n in count.items()) or 'empty'}>"

    def __len__(self) -> int:
        """How many entries there are, in all databases."""
        return len(self.entries)

    # --- for tests -------------------------------------------------------------------------------

    def get(self, db: str, key: str) -> str | None:
        """The value; None if there is none (any more), as ``KVStore(db).get(key)`` answers."""
        entry = self.read(self._account, db, key)
        return None if entry is None else entry.value

    def set(self, db: str, key: str, value: str, ttl: timedelta | float | None = None) -> None:
        """Set a value, as ``KVStore(db).set(key, value, ttl)`` does.

        Args:
            db: the database; there are as many as are named.
            key: any text, also one that the SDK cannot send.
            value: text of at most ``kv_value_limit`` bytes.
            ttl: its lifetime (seconds or a timedelta); None: the setting ``kv_lifetime``.

        Raises:
            EmulatorError: it is nothing that the store takes.
        """
        if not isinstance(value, str):
            raise EmulatorError(
                f"The KV store holds text only, and {value!r} is none. Write for example "
                f"fal_kv.set({db!r}, {key!r}, json.dumps(value))."
            )
        try:
            lifetime = ttl if ttl is None or isinstance(ttl, timedelta) else timedelta(seconds=ttl)
            self.write(self._account, db, key, value.encode(), lifetime)
        except (KVError, ValueError, OverflowError) as error:
            raise EmulatorError(
                f"fal_kv.set() cannot do this: {error}. The time of an entry can be over at any "
                f"moment all the same: fal_kv.expire({db!r}, {key!r})."
            ) from None

    def delete(self, db: str, key: str) -> None:
        """Delete an entry; none is as good."""
        self.remove(self._account, db, key)

    def expires_at(self, db: str, key: str) -> datetime | None:
        """Virtual time at which an entry is deleted, or was; None: never.

        Raises:
            EmulatorError: there never was one, or it was deleted before.
        """
        return self.info(db, key).expires_at

    def info(self, db: str, key: str) -> KVEntry:
        """What is known of an entry, also of one that has expired.

        Raises:
            EmulatorError: there never was one, or it was deleted.
        """
        place = self._account, db, key
        entry = self.read(*place)
        if entry is None and place in self._gone and self.expired(db, key):
            entry = self._gone[place].entry
        if entry is None:
            raise EmulatorError(f"{db}/{key} {self.why_not(*place)}{self._what_there_is()}")
        return entry

    @property
    def entries(self) -> list[KVEntry]:
        """What there is now, in the order in which the keys were first set."""
        self._expire_due()
        account = self._account
        return [entry for place, entry in list(self._entries.items()) if place[0] == account]

    @property
    def databases(self) -> list[str]:
        """The names of all databases that have entries, sorted."""
        return sorted({entry.db for entry in self.entries})

    def keys(self, db: str) -> list[str]:
        """The keys in a database, sorted. The SDK cannot list them."""
        return sorted(entry.key for entry in self.entries if entry.db == db)

    @property
    def size(self) -> int:
        """Bytes of all values together."""
        return sum(entry.size for entry in self.entries)

    def expire(self, db: str, key: str) -> None:
        """Let an entry's time be over now.

        Raises:
            EmulatorError: there never was one, or it was deleted.
        """
        self.info(db, key)
        place = self._account, db, key
        with self._lock:
            if place in self._entries:
                now = self._clock.now()
                self._entries[place] = replace(self._entries[place], expires_at=now)
                self._expire_due()

    def expired(self, db: str, key: str) -> bool:
        """Whether an entry's time is over: it was there, was not deleted, and is not there."""
        self._expire_due()
        gone = self._gone.get((self._account, db, key))
        return gone is not None and gone.how.startswith("expired")

    def assert_holds(self, db: str, key: str, value: str = ANY) -> None:
        """Fail unless there is such an entry, with this value if one is given."""
        __tracebackhide__ = True
        entry = self.read(self._account, db, key)
        if entry is None:
            why = self.why_not(self._account, db, key)
            fail(f"{db}/{key} {why}{self._what_there_is()}")
        if value is not ANY and entry.value != value:
            fail(f"{db}/{key} is {entry.value!r}, set {_when(entry)}, expected {value!r}")

    def assert_lacks(self, db: str, key: str) -> None:
        """Fail if there is such an entry."""
        __tracebackhide__ = True
        entry = self.read(self._account, db, key)
        if entry is not None:
            fail(f"{db}/{key} is there: {entry.value!r}, set {_when(entry)}")

    def assert_expired(self, db: str, key: str) -> None:
        """Fail unless the entry was there and its time is over."""
        __tracebackhide__ = True
        entry = self.read(self._account, db, key)
        if entry is not None:
            until = "never does" if entry.expires_at is None else f"will at {_at(entry.expires_at)}"
            fail(f"{db}/{key} has not expired: it {until}, and it is {_at(self._clock.now())}")
        if not self.expired(db, key):
            why = self.why_not(self._account, db, key)
            fail(f"{db}/{key} has not expired: it {why}{self._what_there_is()}")

    def assert_set(
        self,
        db: str,
        key: str,
        value: str = ANY,
        *,
        by: Runner | str | None = ANY,
        times: int | None = None,
    ) -> None:
        """Fail unless the key was set like this, whatever became of it since.

        Args:
            db: the database.
            key: the key.
            value: what it was set to.
            by: the runner or its name that set it; None: the test itself.
            times: how often, exactly; default: at least once.
        """
        __tracebackhide__ = True
        writes = [entry for entry in self.writes if (entry.db, entry.key) == (db, key)]
        found = [
            entry
            for entry in writes
            if value in (ANY, entry.value) and name_of(by) in (ANY, entry.runner)
        ]
        if not found if times is None else len(found) != times:
            to = "" if value is ANY else f" to {value!r}"
            who = "" if by is ANY else f" by {name_of(by) or 'the test'}"
            there = listed([f"{e.name} to {e.value!r} {_when(e)}" for e in writes or self.writes])
            count = happened(f"set{to}{who}", len(found), times)
            fail(f"{db}/{key} {count}: there was {there or 'nothing'}")

    # --- for the host ----------------------------------------------------------------------------

    def read(self, user: str, db: str, key: str) -> KVEntry | None:
        """An entry whose time is not over. To read it does not prolong it."""
        self._expire_due()
        return self._entries.get((user, db, key))

    def write(
        self,
        user: str,
        db: str,
        key: str,
        value: bytes,
        ttl: timedelta | None = None,
        runner: str | None = None,
    ) -> KVEntry:
        """Set or replace an entry.

        Raises:
            KVError: it is refused; says why.
        """
        text = self._check(db, key, value, ttl)
        place = user, db, key
        with self._lock:
            self._expire_due()
            now, before = self._clock.now(), self._entries.get(place)
            if ttl is None and before is not None and self.settings.kv_overwrite == "keeps":
                until = before.expires_at
            else:
                lifetime = self.settings.kv_lifetime if ttl is None else ttl
                until = None if lifetime is None else now + lifetime
            entry = KVEntry(db, key, text, now, until, runner)
            self._entries[place] = entry
            self._gone.pop(place, None)
            if user == self._account:
                self.writes.append(entry)
        return entry

    def remove(self, user: str, db: str, key: str) -> None:
        """Delete an entry; none is as good."""
        place = user, db, key
        with self._lock:
            self._expire_due()
            entry = self._entries.pop(place, None)
            if entry is not None:
                self._gone[place] = _Gone(entry, f"was deleted at {_at(self._clock.now())}")

    def why_not(self, user: str, db: str, key: str) -> str:
        """Why there is no such entry: these look alike to the SDK."""
        gone = self._gone.get((user, db, key))
        return "was never set" if gone is None else gone.how

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _account(self) -> str:
        return self.settings.nickname

    def _check(self, db: str, key: str, value: bytes, ttl: timedelta | None) -> str:
        """Refuse what the store does not take; the value as text."""
        limit = self.settings.kv_value_limit
        if not db or not key:
            raise KVError(400, "the name of the database and the key must not be empty")
        if ttl is not None and not (SHORTEST <= ttl <= LONGEST and not ttl.microseconds):
            raise KVError(self.settings.kv_bad_ttl_status, refused_ttl(_seconds(ttl)))
        if len(value) > limit:
            size = bytes_of(len(value))
            raise KVError(
                self.settings.kv_too_large_status, f"the value has {size}, more than {limit}"
            )
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise KVError(400, "the value is not UTF-8 text") from None

    def _pass_time(self, old: datetime, new: datetime) -> None:
        """The clock jumped: what was over before or is now is deleted, also if nobody looked."""
        self._expire_due(max(old, new))

    def _expire_due(self, now: datetime | None = None) -> None:
        """Delete what is over, for good: moving the clock back does not bring it back."""
        if not self._entries:
            return
        now = now or self._clock.now()
        with self._lock:
            over = [
                (place, entry)
                for place, entry in self._entries.items()
                if entry.expires_at is not None and entry.expires_at <= now
            ]
            for place, entry in over:
                assert entry.expires_at is not None
                del self._entries[place]
                self._gone[place] = _Gone(entry, f"expired at {_at(entry.expires_at)}")
                self._ledger.event("expired", f"KV {entry.name}, at {_at(entry.expires_at)}")

    def _what_there_is(self) -> str:
        return f"; there is {listed([entry.name for entry in self.entries]) or 'nothing'}"


def refused_ttl(ttl: str) -> str:
    """What the store says of a ``ttl`` that it does not take."""
    shortest, longest = (int(span.total_seconds()) for span in (SHORTEST, LONGEST))
    return f"ttl has to be a whole number of seconds from {shortest} to {longest}, not {ttl}"


def _seconds(span: timedelta) -> str:
    seconds = span.total_seconds()
    return f"{seconds:.0f}" if seconds.is_integer() else f"{seconds}"


def _when(entry: KVEntry) -> str:
    """Who set an entry, and when."""
    return f"by {entry.runner or 'the test'} at {_at(entry.set_at)}"


def _at(moment: datetime) -> str:
    return f"{moment:{TIME}}"


def _count(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"
