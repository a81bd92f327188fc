"""The key-value store beside a small model: a dictionary with deadlines."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fal.toolkit import KVStore
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from machines.machine import NOON, EmulatorMachine

from emulator.settings import Settings

if TYPE_CHECKING:
    from emulator.account import Emulator

# Few values, so that keys and deadlines meet; no deadline that real time reaches by itself.
MICROSECOND, MINUTE, HOUR = timedelta(microseconds=1), timedelta(minutes=1), timedelta(hours=1)
MONTH = timedelta(days=30)
databases = st.sampled_from(["jobs", "my jobs"])
keys = st.sampled_from(["1", "1/2", "a?b", "ü #"])
values = st.sampled_from(["", "x", "ü", "y" * 50])
lifetimes = st.sampled_from([None, MINUTE, HOUR, MONTH])
steps_in_time = st.sampled_from([MICROSECOND, MINUTE - MICROSECOND, MINUTE, HOUR, MONTH])


class KeysAndValues(EmulatorMachine):
    """Set, delete, expire and let time pass, by the SDK and by the test, in any order."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__(emulator)
        #: What is there: its value and deadline; and what was there until its time was over.
        self.there: dict[tuple[str, str], tuple[str, datetime | None]] = {}
        self.over: dict[tuple[str, str], datetime] = {}

    @property
    def now(self) -> datetime:
        return self.emulator.clock.now()

    @initialize(default=st.sampled_from([MONTH, HOUR, None]), keeps=st.booleans())
    def open_an_account(self, default: timedelta | None, keeps: bool) -> None:
        self.default, self.keeps = default, keeps
        overwrite: Any = "keeps" if keeps else "restarts"
        self.emulator.reset(Settings(kv_lifetime=default, kv_overwrite=overwrite))
        self.emulator.clock.freeze(NOON)

    @rule(db=databases, key=keys, value=values, ttl=lifetimes, by_sdk=st.booleans())
    def set(self, db: str, key: str, value: str, ttl: timedelta | None, by_sdk: bool) -> None:
        if by_sdk and ttl is None:  # the SDK has ttl since 1.75.7 only
            KVStore(quote(db)).set(quote(key, safe=""), value)
        else:
            self.emulator.kv.set(db, key, value, ttl)
        until = self._until(db, key, ttl)
        self.there[db, key] = value, until
        self.over.pop((db, key), None)

    def _until(self, db: str, key: str, ttl: timedelta | None) -> datetime | None:
        if ttl is None and self.keeps and (db, key) in self.there:
            return self.there[db, key][1]
        lifetime = self.default if ttl is None else ttl
        return None if lifetime is None else self.now + lifetime

    @rule(db=databases, key=keys)
    def get(self, db: str, key: str) -> None:
        value = self.there.get((db, key), (None, None))[0]
        assert KVStore(quote(db)).get(quote(key, safe="")) == value

    @rule(db=databases, key=keys)
    def delete(self, db: str, key: str) -> None:
        self.emulator.kv.delete(db, key)
        self.there.pop((db, key), None)

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        if self.there:
            db, key = data.draw(st.sampled_from(sorted(self.there)))
            self.emulator.kv.expire(db, key)
            del self.there[db, key]
            self.over[db, key] = self.now

    @rule(step=steps_in_time)
    def time_passes(self, step: timedelta) -> None:
        self.emulator.clock.advance(step)
        for place, (_, until) in list(self.there.items()):
            if until is not None and until <= self.now:
                del self.there[place]
                self.over[place] = until

    @rule(step=steps_in_time)
    def go_back_in_time(self, step: timedelta) -> None:
        self.emulator.clock.move_to(self.now - step)

    def check(self) -> None:
        kv = self.emulator.kv
        there = {(entry.db, entry.key): (entry.value, entry.expires_at) for entry in kv.entries}
        assert there == self.there
        assert kv.databases == sorted({db for db, _ in self.there})
        assert kv.size == sum(len(value.encode()) for value, _ in self.there.values())
        assert all(kv.expired(*place) for place in self.over)
        assert {place: kv.expires_at(*place) for place in self.over} == self.over
