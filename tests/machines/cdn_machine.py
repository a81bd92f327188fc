"""The CDN's lifecycle beside a small model: a file is what was uploaded, until its time is over."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import fal
import httpx
import pytest
from fal.toolkit import File
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, multiple, precondition, rule
from machines.cdn_model import FAR, LIFETIME, Begun, Known, lifetime_of
from machines.machine import NOON, EmulatorMachine
from pydantic import BaseModel

from emulator.errors import EmulatorError
from emulator.settings import Settings

if TYPE_CHECKING:
    from emulator.account import Emulator

REST = "https://rest.fal.ai/storage"
ACCOUNT = {"Authorization": "Key id:secret"}
SPELLINGS = ("X-Fal-Object-Lifecycle", "x-fal-object-lifecycle-preference")

# Few values, so that deadlines meet and moves of the clock reach them; none that real time reaches
# by itself, so that what fails fails again.
MICROSECOND, MINUTE, HOUR = timedelta(microseconds=1), timedelta(minutes=1), timedelta(hours=1)
MONTH = timedelta(days=30)
steps_in_time = st.sampled_from(
    [MICROSECOND, MINUTE / 2, MINUTE - MICROSECOND, MINUTE, HOUR, MONTH]
)
contents = st.binary(max_size=12)
content_types = st.sampled_from(["text/plain", "image/png", "application/octet-stream"])
preferences = st.sampled_from(
    [None, {}, {"initial_acl": {"default": "allow"}}]
    + [{LIFETIME: seconds} for seconds in (None, 0, 90.5, 60, 3600, FAR)]
)


class Input(BaseModel):
    content: list[int]
    content_type: str


class Output(BaseModel):
    file: File


class Writer(fal.App):
    @fal.endpoint("/")
    def write(self, input: Input) -> Output:
        data = bytes(input.content)
        return Output(file=File.from_bytes(data, content_type=input.content_type))


class CDNLifecycle(EmulatorMachine):
    """Upload, read, expire, and let time pass, in any order."""

    files = Bundle("files")
    uploads = Bundle("uploads")

    def __init__(self, emulator: Emulator) -> None:
        super().__init__(emulator)
        self.given: set[str] = set()
        self.known: list[Known] = []
        self.begun: list[Begun] = []
        self.client = httpx.Client()

    def teardown(self) -> None:
        self.client.close()
        super().teardown()

    @property
    def now(self) -> datetime:
        return self.emulator.clock.now()

    # --- the account -----------------------------------------------------------------------------

    @initialize(
        default=st.sampled_from([None, HOUR]),
        lag=st.sampled_from([timedelta(0), MINUTE]),
        order=st.sampled_from(["any", "report", "strict"]),
        expired=st.sampled_from([404, 403, 410]),
    )
    def open_an_account(
        self, default: timedelta | None, lag: timedelta, order: Any, expired: Any
    ) -> None:
        self.settings = Settings(
            account_expiration=default,
            expiry_lag=lag,
            part_order=order,
            expired_status=expired,
            unfinished_read="not_found",
        )
        self._start()

    @precondition(lambda self: sum(not file.forgotten for file in self.known) > 2)
    @rule()
    def reset(self) -> None:
        self.settings.account_expiration = self.emulator.settings.account_expiration
        self._start()
        for file in self.known:
            file.forgotten = True
        for upload in self.begun:
            upload.forgotten = True

    def _start(self) -> None:
        self.emulator.reset(self.settings)
        self.emulator.clock.freeze(NOON)
        self.runner = None

    @rule(lifetime=st.sampled_from([None, MINUTE, MONTH]))
    def change_the_default(self, lifetime: timedelta | None) -> None:
        self.emulator.settings.account_expiration = lifetime

    # --- uploading -------------------------------------------------------------------------------

    @rule(
        target=files,
        data=contents,
        content_type=content_types,
        lifetime=st.sampled_from([None, 0, 60, HOUR, float(FAR)]),
    )
    def put(self, data: bytes, content_type: str, lifetime: Any) -> Known:
        started = self.now
        url = self.emulator.cdn.put(data, content_type=content_type, expires_in=lifetime)
        seconds = lifetime.total_seconds() if isinstance(lifetime, timedelta) else lifetime
        preference = None if lifetime is None else {LIFETIME: seconds}
        return self._uploaded(url, data, content_type, preference, started)

    @rule(
        target=files,
        data=contents,
        content_type=content_types,
        preference=preferences,
        multipart=st.booleans(),
    )
    def upload(
        self, data: bytes, content_type: str, preference: dict[str, Any] | None, multipart: bool
    ) -> Known:
        started = self.now
        options = {"object_lifecycle_preference": preference, "multipart": multipart}
        file = File.from_bytes(data, content_type=content_type, save_kwargs=options)
        return self._uploaded(file.url, data, content_type, preference, started)

    @rule(
        target=files,
        data=contents,
        content_type=content_types,
        preference=preferences,
        spelling=st.sampled_from(SPELLINGS),
    )
    def upload_directly(
        self, data: bytes, content_type: str, preference: dict[str, Any] | None, spelling: str
    ) -> Known:
        started = self.now
        answer = self.client.post(f"{REST}/auth/token?storage_type=fal-cdn-v3", headers=ACCOUNT)
        headers = {
            "Authorization": f"Bearer {answer.json()['token']}",
            "Content-Type": content_type,
            **_header(spelling, preference),
        }
        url = "https://v3.fal.media/files/upload"
        answer = self.client.post(url, content=data, headers=headers)
        return self._uploaded(answer.json()["access_url"], data, content_type, preference, started)

    @rule(target=files, data=contents, content_type=content_types, preference=preferences)
    def ask_an_app(
        self, data: bytes, content_type: str, preference: dict[str, Any] | None
    ) -> Known:
        if self.runner is None:
            self.runner = self.emulator.runner(Writer)
        started = self.now
        body = {"content": list(data), "content_type": content_type}
        answer = self.runner.post("/", json=body, headers=_header(SPELLINGS[1], preference))
        url = answer.json()["file"]["url"]
        return self._uploaded(url, data, content_type, preference, started)

    @rule(target=uploads, content_type=content_types, preference=preferences)
    def begin(self, content_type: str, preference: dict[str, Any] | None) -> Begun:
        answer = self.client.post(
            f"{REST}/upload/initiate-multipart?storage_type=fal-cdn-v3",
            json={"file_name": "large.bin", "content_type": content_type},
            headers={**ACCOUNT, **_header(SPELLINGS[0], preference)},
        ).json()
        upload = Begun(answer["file_url"], answer["upload_url"], content_type, preference)
        self._give(upload.url)
        self.begun.append(upload)
        return upload

    @rule(upload=uploads, parts=st.dictionaries(st.sampled_from([1, 2, 3]), contents, min_size=1))
    def send_parts(self, upload: Begun, parts: dict[int, bytes]) -> None:
        for number, data in parts.items():
            answer = self.client.put(upload.address(str(number)), content=data)
            if upload.forgotten or upload.done:
                assert answer.status_code == 403
            else:
                upload.parts[number] = (data, answer.headers["etag"])

    @rule(
        target=files,
        upload=uploads,
        order=st.permutations([1, 2, 3]),
        mistake=st.sampled_from(["", "", "", "", "a part too many", "a part twice", "an ETag"]),
    )
    def complete(self, upload: Begun, order: list[int], mistake: str) -> Any:
        started = self.now
        numbers = [number for number in order if number in upload.parts]
        parts = [{"partNumber": n, "etag": upload.parts[n][1]} for n in numbers]
        if mistake == "a part too many":
            parts.append({"partNumber": 4, "etag": '"4"'})
        elif mistake == "a part twice":
            parts.extend(parts[:1])
        elif mistake and parts:
            parts[0]["etag"] = '"0"'
        answer = self.client.post(upload.address("complete"), json={"parts": parts})
        if upload.forgotten or upload.done:
            assert answer.status_code == 403
            return multiple()
        ordered = numbers == sorted(numbers) or self.settings.part_order != "strict"
        if mistake or not numbers or not ordered:
            assert answer.status_code == 400
            return multiple()
        assert answer.status_code == 200
        upload.done = True
        data = b"".join(upload.parts[number][0] for number in sorted(numbers))
        return self._added(upload.url, data, upload.content_type, upload.preference, started)

    @rule(
        target=files,
        content_type=content_types,
        preference=preferences,
        parts=st.lists(contents, min_size=2, max_size=3),
        order=st.permutations([1, 2, 3]),
    )
    def upload_in_parts(
        self,
        content_type: str,
        preference: dict[str, Any] | None,
        parts: list[bytes],
        order: list[int],
    ) -> Any:
        upload = self.begin(content_type, preference)
        self.send_parts(upload, dict(enumerate(parts, 1)))
        return self.complete(upload, order, "")

    def _uploaded(self, url: str, *rest: Any) -> Known:
        self._give(url)
        return self._added(url, *rest)

    def _give(self, url: str) -> None:
        """No URL is given twice."""
        assert url not in self.given
        self.given.add(url)

    def _added(
        self,
        url: str,
        data: bytes,
        content_type: str,
        preference: dict[str, Any] | None,
        started: datetime,
    ) -> Known:
        default = self.emulator.settings.account_expiration
        created = self.emulator.cdn.info(url).created_at
        assert started <= created <= self.now
        lifetime = lifetime_of(preference, default)
        expires = None if lifetime is None else created + lifetime
        file = Known(url, data, content_type, created, expires, self.settings.expiry_lag)
        self.known.append(file)
        return file

    # --- reading ---------------------------------------------------------------------------------

    @rule(
        file=files,
        method=st.sampled_from(["GET", "HEAD"]),
        with_urllib=st.booleans(),
        host=st.sampled_from(["v3.fal.media", "v3b.fal.media"]),
    )
    def read(self, file: Known, method: str, with_urllib: bool, host: str) -> None:
        url = urllib.parse.urlsplit(file.url)._replace(netloc=host).geturl()
        with self._reading(file) as readable:
            status, headers, body = self._fetch(url, method, {}, with_urllib)
            readable.append(status == 200)
        if status != 200:
            assert status == (404 if file.forgotten else self.settings.expired_status)
            return
        assert headers["content-type"] == file.content_type
        assert headers["content-length"] == str(len(file.data))
        assert body == (b"" if method == "HEAD" else file.data)

    @rule(
        file=files,
        first=st.integers(0, 13),
        last=st.none() | st.integers(0, 13),
        with_urllib=st.booleans(),
    )
    def read_a_part(self, file: Known, first: int, last: int | None, with_urllib: bool) -> None:
        wanted = {"Range": f"bytes={first}-{'' if last is None else last}"}
        with self._reading(file) as readable:
            status, headers, body = self._fetch(file.url, "GET", wanted, with_urllib)
            readable.append(status in (200, 206, 416))
        if not readable[0]:
            return
        size = len(file.data)
        if last is not None and last < first:
            assert (status, body) == (200, file.data)
        elif first >= size:
            assert (status, headers["content-range"]) == (416, f"bytes */{size}")
        else:
            end = size if last is None else min(last + 1, size)
            assert (status, body) == (206, file.data[first:end])
            assert headers["content-range"] == f"bytes {first}-{end - 1}/{size}"

    @rule(upload=uploads)
    def read_what_is_not_there_yet(self, upload: Begun) -> None:
        if upload.done:
            return
        assert self.client.get(upload.url).status_code == 404
        reason = "there never was a file" if upload.forgotten else "its upload has begun"
        with pytest.raises(EmulatorError, match=reason):
            self.emulator.cdn.info(upload.url)

    @contextmanager
    def _reading(self, file: Known) -> Iterator[list[bool]]:
        """Checks that the file is read exactly while its time is not over."""
        readable: list[bool] = []
        before = self.now
        yield readable
        file.look(readable[0], before, self.now)
        assert readable == [file.readable]

    def _fetch(
        self, url: str, method: str, headers: dict[str, str], with_urllib: bool
    ) -> tuple[int, Any, bytes]:
        if not with_urllib:
            answer = self.client.request(method, url, headers=headers)
            return answer.status_code, answer.headers, answer.content
        request = urllib.request.Request(url, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    # --- time ------------------------------------------------------------------------------------

    @rule(file=files)
    def expire(self, file: Known) -> None:
        if file.forgotten:
            with pytest.raises(EmulatorError, match="there never was a file"):
                self.emulator.cdn.expire(file.url)
            return
        before = self.now
        self.emulator.cdn.expire(file.url)
        told = self.emulator.cdn.info(file.url).expires_at
        assert told is not None
        # Now; what was over before is not over later.
        assert told == file.expires_at or before <= told <= self.now
        assert file.expires_at is None or told <= file.expires_at
        file.expires_at = told

    @rule(step=steps_in_time, how=st.sampled_from(["advance", "back", "sleep", "look ahead"]))
    def pass_time(self, step: timedelta, how: str) -> None:
        clock = self.emulator.clock
        if how == "back":
            self._jump(lambda: clock.move_to(self.now - step))
        elif how == "sleep" and clock.frozen:
            self._jump(lambda: time.sleep(step.total_seconds()))
        else:
            self._jump(lambda: clock.advance(step))
        if how == "look ahead":
            # It was that late: what was over then is over, although nobody asked for it.
            self._jump(lambda: clock.move_to(self.now - step))

    @rule(file=files, offset=st.sampled_from([-MICROSECOND, timedelta(0), MICROSECOND]))
    def move_to_the_end_of(self, file: Known, offset: timedelta) -> None:
        if file.expires_at is not None:
            moment = file.expires_at + self.settings.expiry_lag + offset
            self._jump(lambda: self.emulator.clock.move_to(moment))

    @rule(at=st.sampled_from([None, NOON]))
    def freeze(self, at: datetime | None) -> None:
        self._jump(lambda: self.emulator.clock.freeze(at))

    @precondition(lambda self: self.emulator.clock.engaged)
    @rule()
    def resume(self) -> None:
        self._jump(self.emulator.clock.resume)

    def _jump(self, move: Any) -> None:
        before, real = self.now, _real_seconds()
        move()
        # On a clock that ticks, the jump began a moment after the look at it.
        latest = before + timedelta(seconds=_real_seconds() - real)
        for file in self.known:
            file.pass_time(before, latest)

    # --- what always holds -----------------------------------------------------------------------

    def check(self) -> None:
        cdn, before = self.emulator.cdn, self.now
        listed = cdn.files
        seen, after = [file.url for file in listed], self.now
        for file in self.known:
            file.look(file.url in seen, before, after)
        assert seen == [file.url for file in self.known if file.readable]
        for file in self.known:
            if file.forgotten:
                with pytest.raises(EmulatorError, match="there never was a file"):
                    cdn.info(file.url)
                continue
            told = cdn.info(file.url)
            assert (told.content_type, told.size) == (file.content_type, len(file.data))
            assert (told.created_at, told.expires_at) == (file.created_at, file.expires_at)
            assert cdn.expired(file.url) == file.gone
            if file.gone:
                with pytest.raises(EmulatorError, match="is not there any more: it expired at"):
                    cdn.get(file.url)
            else:
                assert cdn.get(file.url) == file.data


def _header(name: str, preference: dict[str, Any] | None) -> dict[str, str]:
    return {} if preference is None else {name: json.dumps(preference)}


def _real_seconds() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)
