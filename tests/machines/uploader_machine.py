"""The node's uploader beside a small model: what it accepts arrives, if nothing befalls it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import httpx
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from machines.machine import NOON, EmulatorMachine

from emulator.settings import Settings

if TYPE_CHECKING:
    from emulator.account import Emulator

__all__ = ["NodeUploads"]

HEADERS = {"Authorization": "Key id:secret", "X-Fal-File-Name": "a.txt"}
DELAY, DEADLINE = timedelta(seconds=10), timedelta(seconds=60)
CAPACITY = 3

# Few values, so that steps meet delay and deadline to the second.
steps_in_time = st.sampled_from([1, 9, 10, 50, 60]).map(lambda seconds: timedelta(seconds=seconds))
contents = st.binary(max_size=6)
which = st.integers(0, 5)


@dataclass
class Known:
    """An upload as it should be."""

    id: str
    url: str
    content: bytes = b""
    state: str = "receiving"
    has_body: bool = False
    accepted: datetime = NOON
    #: Whether its deadline has been looked at since; nothing is, while the node is down.
    is_forgotten: bool = False


class NodeUploads(EmulatorMachine):
    """Upload, reserve, hold, release, fail, crash, restart, drain, and let time pass."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__(emulator)
        self.known: list[Known] = []
        self.holds = self.is_down = False
        #: What arrives before its deadline while the clock is being moved.
        self.going: list[Known] = []

    @initialize()
    def begin(self) -> None:
        settings = Settings(
            uploader_delay=DELAY,
            uploader_deadline=DEADLINE,
            uploader_capacity=CAPACITY,
            unfinished_read="not_found",
        )
        self.emulator.reset(settings)
        self.emulator.clock.freeze(NOON)
        transport = httpx.HTTPTransport(uds=self.emulator.uploader.socket)
        self.client = httpx.Client(transport=transport, base_url="http://node", headers=HEADERS)

    @property
    def now(self) -> datetime:
        return self.emulator.clock.now()

    def ask(self, method: str, path: str, **options: object) -> httpx.Response:
        """The node's answer."""
        return self.client.request(method, path, **options)  # type: ignore[arg-type]

    def teardown(self) -> None:
        self.client.close()
        super().teardown()

    def pending(self) -> list[Known]:
        return [one for one in self.known if one.state == "pending"]

    @property
    def is_full(self) -> bool:
        return len(self.pending()) >= CAPACITY

    def settle(self) -> None:
        """What the clock has brought about by now."""
        for one in [] if self.is_down else self.pending():
            late = self.now - one.accepted
            if late >= DEADLINE and one not in self.going:
                one.state = "failed"
            elif late >= DELAY and not self.holds:
                one.state = "completed"

    # --- steps ------------------------------------------------------------------------------------

    @rule(content=contents)
    def upload(self, content: bytes) -> None:
        is_full = self.is_full
        answer = self.ask("POST", "/v1/uploads", content=content)
        assert answer.status_code == (429 if is_full else 202)
        if not is_full:
            told = answer.json()
            one = Known(told["upload_id"], told["file_url"], content, "pending", True, self.now)
            self.known.append(one)
            self.settle()

    @rule()
    def reserve(self) -> None:
        is_full = self.is_full
        answer = self.ask("POST", "/v1/upload-sessions")
        assert answer.status_code == (429 if is_full else 201)
        if not is_full:
            told = answer.json()
            self.known.append(Known(told["upload_id"], told["file_url"]))

    @precondition(lambda self: self.known)
    @rule(number=which, content=contents)
    def send_body(self, number: int, content: bytes) -> None:
        one = self.known[number % len(self.known)]
        answer = self.ask("PUT", f"/v1/upload-sessions/{one.id}/body", content=content)
        if one.is_forgotten:
            assert answer.status_code == 404
        elif one.state != "receiving" or one.has_body:
            assert answer.status_code == 409
        else:
            assert answer.status_code == 204
            one.content, one.has_body = content, True

    @precondition(lambda self: self.known)
    @rule(number=which, wrong=st.booleans())
    def finish(self, number: int, wrong: bool) -> None:
        one = self.known[number % len(self.known)]
        size = len(one.content) + wrong
        answer = self.ask("POST", f"/v1/upload-sessions/{one.id}/finish", json={"size_bytes": size})
        if one.is_forgotten:
            assert answer.status_code == 404
        elif one.state != "receiving" or not one.has_body:
            assert answer.status_code == 409
        elif wrong:
            assert answer.status_code == 422
        else:
            assert answer.status_code == 202
            one.state, one.accepted = "pending", self.now
            self.settle()

    @precondition(lambda self: self.known)
    @rule(number=which)
    def abort(self, number: int) -> None:
        one = self.known[number % len(self.known)]
        answer = self.ask("DELETE", f"/v1/upload-sessions/{one.id}")
        if one.is_forgotten:
            assert answer.status_code == 404
        else:
            assert answer.status_code == (202 if one.state == "receiving" else 409)
        if answer.status_code == 202:
            one.state = "aborted"

    @rule()
    def hold(self) -> None:
        self.emulator.uploader.hold()
        self.holds = True

    @rule()
    def release(self) -> None:
        self.emulator.uploader.release()
        self.holds = False
        self.settle()

    @precondition(lambda self: self.pending())
    @rule(number=which)
    def complete(self, number: int) -> None:
        one = self.pending()[number % len(self.pending())]
        self.emulator.uploader.complete(one.url)
        one.state = "completed"

    @precondition(lambda self: self.pending())
    @rule(number=which)
    def fail(self, number: int) -> None:
        one = self.pending()[number % len(self.pending())]
        self.emulator.uploader.fail(one.url)
        one.state = "failed"

    @rule(lose=st.sampled_from([False, False, True]), step=steps_in_time)
    def crash_and_restart(self, lose: bool, step: timedelta) -> None:
        self.emulator.uploader.crash(lose)
        self.is_down = True
        for one in self.known:
            if one.state == "receiving" or (lose and one.state == "pending"):
                one.state = "lost"
            one.is_forgotten |= lose
        self.let_time_pass(step)
        self.check()
        self.emulator.uploader.restart()
        self.is_down = False
        self.settle()

    @rule(content=contents)
    def upload_while_it_drains(self, content: bytes) -> None:
        self.emulator.uploader.drain()
        assert self.ask("POST", "/v1/uploads", content=content).status_code == 429
        self.emulator.uploader.restart()
        self.settle()

    @rule(step=steps_in_time)
    def let_time_pass(self, step: timedelta) -> None:
        # The delay is shorter than the deadline.
        if not self.holds and not self.is_down:
            self.going = self.pending()
        self.emulator.clock.advance(step)
        self.settle()
        self.going = []

    # --- what always holds ------------------------------------------------------------------------

    def check(self) -> None:
        uploader = self.emulator.uploader
        assert [(one.url, one.state) for one in uploader.uploads] == [
            (one.url, one.state) for one in self.known
        ]
        there = {file.url: self.emulator.cdn.get(file.url) for file in self.emulator.cdn.files}
        assert there == {one.url: one.content for one in self.known if one.state == "completed"}
        stored = self.emulator._store.keys()
        kept = [key for key in stored if key.startswith("node/")]
        alive = [one for one in self.known if one.state in ("receiving", "pending")]
        assert len(kept) == len([one for one in alive if one.has_body])
        if not self.is_down:
            for one in self.known[-3:]:
                answer = self.ask("GET", f"/v1/uploads/{one.id}")
                assert answer.status_code == (404 if one.is_forgotten else 200)
                assert one.is_forgotten or answer.json()["state"] == one.state
