"""The cache of ``download_file`` beside a small model: what each path holds, and why.

The model is the SDK as it is, not as one would wish. Where a sane cache would do something else, a
comment says what, with the number of the bug in docs/bugs.md.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fal.toolkit import download_file, download_model_weights
from fal.toolkit.utils.download_utils import DownloadError
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from machines.machine import NOON, EmulatorMachine
from machines.network_model import (
    ADDRESSES,
    ALL_FAILED,
    KINDS,
    MEBIBYTE,
    ONE,
    TWO,
    Answer,
    Broken,
    Expected,
    NetworkModel,
    framed,
    host_of,
)

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    from emulator.account import Emulator

URLS = (
    f"http://{ONE}/model.bin",
    f"https://{TWO}/model.bin",
    f"http://{ONE}/other.bin",
    f"http://{ONE}/dl?id=1",
    f"http://{ONE}/dl?id=2",
)
#: The file on the CDN, whose URL is different in each example, and when it expires.
ON_THE_CDN = "cdn"
END = NOON + timedelta(hours=2)
DIRECTORIES = {"models": "/data/models", "/data/inputs": "/data/inputs", "/tmp/in": "/tmp/in"}
WEIGHTS = "/data/.fal/model_weights"
PAGE = os.sysconf("SC_PAGE_SIZE")
#: After so many bytes of its body a download is held.
HELD_AFTER = 3
DAY = timedelta(days=1)

urls = st.sampled_from([*URLS, ON_THE_CDN])
directories = st.sampled_from(list(DIRECTORIES))
# Few, so that versions and files are often of one size; one is over a limit of 1 MB.
sizes = st.sampled_from([0, 5, 5, 4096, 4096, 70_000, MEBIBYTE + 1])
counts = st.sampled_from([0, 3, 4096, 70_000])
names = st.sampled_from([None, None, None, "renamed.bin", ".fal-renamed.bin"])
lengths = st.sampled_from(["true", "true", "true", "absent", "chunked", 4, 80_000])


class DownloadCache(EmulatorMachine):
    """Serve, update, download, let time pass and things go wrong, in any order."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__(emulator)
        self.network = NetworkModel()
        self.version = 0
        #: What each path holds.
        self.files: dict[str, bytes] = {}
        #: When weights were last marked as used, by directory.
        self.used: dict[str, datetime] = {}
        #: Pages that /data has, None: as many as the disk.
        self.pages: int | None = None

    @initialize(size=sizes)
    def start(self, size: int) -> None:
        self.emulator.reset()
        self.emulator.clock.freeze(NOON)
        for host, addresses in ADDRESSES.items():
            self.emulator.resolver.set(host, *addresses)
        body = self._body(size)
        self.cdn_url = self.emulator.cdn.put(body, "model.bin", expires_in=END - NOON)
        self.network.served[self.cdn_url] = Answer(body, size)
        for url in (URLS[0], URLS[1], URLS[3]):
            self.serve(url, size, "true", None, False)

    def _body(self, size: int) -> bytes:
        """Other bytes each time, from four on."""
        self.version += 1
        return (self.version.to_bytes(4, "big") * (size // 4 + 1))[:size]

    @property
    def now(self) -> datetime:
        return self.emulator.clock.now()

    # --- servers ---------------------------------------------------------------------------------

    @rule(url=st.sampled_from(URLS), size=sizes, length=lengths, name=names, compress=st.booleans())
    def serve(
        self, url: str, size: int, length: str | int, name: str | None, compress: bool
    ) -> None:
        content = self._body(size)
        options: dict[str, Any] = {"file_name": name, "gzip": compress}
        if length == "chunked":
            options["chunked"] = True
        else:
            options["content_length"] = length
        self.emulator.origin.serve(url, content, **options)
        # A client that asks for identity stores what comes (D9).
        body = gzip.compress(content, 6, mtime=0) if compress else content
        answer = Answer(body, len(body), name=name)
        if length in ("absent", "chunked"):
            answer = replace(answer, length=None, chunked=length == "chunked")
        elif isinstance(length, int):
            answer = framed(answer, length)
        self.network.served[url] = answer

    @rule(url=st.sampled_from(URLS), status=st.sampled_from([404, 410, 503]))
    def withdraw(self, url: str, status: int) -> None:
        self.emulator.origin.serve(url, status=status)
        self.network.served[url] = Answer(status=status)

    @rule(step=st.sampled_from([timedelta(hours=1), timedelta(hours=23), DAY]))
    def advance(self, step: timedelta) -> None:
        self.emulator.clock.advance(step)
        if self.now >= END:
            self.network.served[self.cdn_url] = Answer(status=404)

    # --- what goes wrong -------------------------------------------------------------------------

    @rule(
        url=urls,
        kind=st.sampled_from(KINDS),
        count=counts,
        times=st.sampled_from([1, 2]),
        directory=st.none() | directories,
    )
    def go_wrong(self, url: str, kind: str, count: int, times: int, directory: str | None) -> None:
        """At the next request, or at once."""
        url = self._real(url)
        self.network.inject(self.emulator.faults, host_of(url), kind, count, times)
        if directory is not None:
            self._download(url, directory)

    @rule(nbytes=st.sampled_from([PAGE, 80_000, MEBIBYTE + 90_000, 64 * MEBIBYTE]))
    def limit_the_disk(self, nbytes: int) -> None:
        pages = _pages(nbytes)
        if self._pages_in_use() > pages:
            with pytest.raises(EmulatorError, match="cannot be limited"):
                self.emulator.data.limit(nbytes)
            return
        self.emulator.data.limit(nbytes)
        self.pages = pages

    def _pages_in_use(self) -> int:
        on_data = [body for path, body in self.files.items() if path.startswith("/data/")]
        return sum(_pages(len(body)) for body in on_data)

    def _has_room(self, directory: str, *sizes: int) -> bool:
        """Whether these fit in, too: old files go only when the new ones are there (D3)."""
        if self.pages is None or not directory.startswith("/data/"):
            return True
        return self._pages_in_use() + sum(map(_pages, sizes)) <= self.pages

    # --- downloading -----------------------------------------------------------------------------

    @rule(url=urls, directory=directories)
    def download(self, url: str, directory: str) -> None:
        self._download(self._real(url), directory)

    @rule(directory=directories, force=st.booleans())
    def download_all(self, directory: str, force: bool) -> None:
        for url in [*URLS, self.cdn_url]:
            self._download(url, directory, force)

    @rule(url=urls, directory=directories)
    def download_by_force(self, url: str, directory: str) -> None:
        self._download(self._real(url), directory, force=True)

    @rule(url=urls, directory=directories, limit=st.sampled_from([0, 1]))
    def download_up_to(self, url: str, directory: str, limit: int) -> None:
        self._download(self._real(url), directory, limit=limit)

    def _download(
        self, url: str, directory: str, force: bool = False, limit: int | None = None
    ) -> None:
        where = DIRECTORIES[directory]
        expected = self._expect(url, where, limit)
        path = self._run(
            lambda: download_file(url, directory, force=force, filesize_limit=limit), expected
        )
        if path is not None:
            assert path == self._arrives(url, where, force, expected.answer)
            # Also a hit has moved the whole body (D3).
            sent = self.emulator.ledger.exchanges[-1].bytes_sent
            assert sent >= len(expected.answer.body)

    @rule(url=urls, force=st.booleans())
    def download_weights(self, url: str, force: bool) -> None:
        self._download_weights(self._real(url), force)

    @rule()
    def download_all_weights(self) -> None:
        for url in [*URLS, self.cdn_url]:
            self._download_weights(url, False)

    def _download_weights(self, url: str, force: bool) -> None:
        directory, found = self._weights(url)
        if found and not force:
            # Whichever the directory lists first, where there is more than one (D7).
            requests = len(self.emulator.ledger.exchanges)
            assert self._run(lambda: download_model_weights(url), Expected()) in found
            assert len(self.emulator.ledger.exchanges) == requests
        else:
            expected = self._expect(url, directory, None)
            path = self._run(lambda: download_model_weights(url, force=force), expected)
            if path is None:
                return
            assert path == self._arrives(url, directory, force, expected.answer)
        self._mark(directory)

    @rule(url=urls, directory=st.sampled_from(["models", "/data/inputs", None]))
    def download_to_a_read_only_disk(self, url: str, directory: str | None) -> None:
        """Also what is in the cache cannot be had, and the error is not the SDK's own (D3)."""
        url = self._real(url)
        weights, found = self._weights(url)
        marked = weights in self.used and self.used[weights] >= self.now - DAY
        with self.emulator.data.read_only():
            if directory is None and found and marked:
                assert str(download_model_weights(url)) in found
                return
            with pytest.raises(OSError, match="Read-only file system"):
                download_model_weights(url) if directory is None else download_file(url, directory)

    # --- two at once -----------------------------------------------------------------------------

    @rule(url=urls, directory=directories, between=st.sampled_from(["", "the same", "other bytes"]))
    def download_twice_at_once(self, url: str, directory: str, between: str) -> None:
        url = self._real(url)
        where = DIRECTORIES[directory]
        answer = self._expect_undisturbed(url, where)
        if answer is None:
            return
        with self._holding(lambda: download_file(url, directory), url) as outcome:
            if between == "other bytes" and url != self.cdn_url:
                self.serve(url, 5, "true", None, False)
            if between:
                self._download(url, directory)
        # Who comes last wins, also with older bytes.
        assert outcome == [self._arrives(url, where, False, answer)]

    @rule(url=urls)
    def download_weights_twice_at_once(self, url: str) -> None:
        url = self._real(url)
        where, found = self._weights(url)
        answer = None if found else self._expect_undisturbed(url, where)
        if answer is None:
            return
        with self._holding(lambda: download_model_weights(url), url) as outcome:
            # The second runner gets the file that is still growing, and which is gone when the
            # first has finished (D2). A runner that is killed here leaves it for ever (D1).
            growing = download_model_weights(url)
            assert growing.name.startswith("..fal_download.tmp.")
            assert answer.body.startswith(growing.read_bytes())
            self._mark(where)
        assert not growing.exists()
        assert outcome == [self._arrives(url, where, False, answer)]

    def _expect_undisturbed(self, url: str, directory: str) -> Answer | None:
        """What comes of two at once if nothing goes wrong; None where something would."""
        if self.network.is_troubled(host_of(url)) or url not in self.network.served:
            return None
        came = self.network.attempt(url)
        if isinstance(came, Broken) or came.status != 200 or len(came.body) <= HELD_AFTER:
            return None
        size = len(came.body)
        return came if self._has_room(directory, size, size) else None

    @contextlib.contextmanager
    def _holding(self, call: Callable[[], Path], url: str) -> Iterator[list[str]]:
        """While in this block, a download is under way in another thread."""
        gate = self.emulator.faults.gate(after=HELD_AFTER, host=host_of(url), times=1)
        outcome: list[str] = []
        thread = threading.Thread(target=lambda: outcome.append(str(call())))
        thread.start()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as end:
            end.callback(thread.join)
            end.callback(gate.open)
            gate.wait()
            # The server has sent its first bytes; a moment later the client has its files open.
            # Not time.sleep, which would move the clock.
            for _ in range(5000):
                if len(_under_way(self._visible())) == 2:
                    break
                threading.Event().wait(0.001)
            self._check_volumes(temporary=2)
            yield outcome

    # --- the model -------------------------------------------------------------------------------

    def _real(self, url: str) -> str:
        return self.cdn_url if url == ON_THE_CDN else url

    def _expect(self, url: str, directory: str, limit: int | None) -> Expected:
        most = None if limit is None else limit * MEBIBYTE
        return self.network.expect(url, most, lambda size: self._has_room(directory, size))

    def _run(self, call: Callable[[], Path], expected: Expected) -> str | None:
        """The path that a call returns; None if it fails as expected."""
        with contextlib.redirect_stdout(io.StringIO()):
            if expected.error is None:
                return str(call())
            with pytest.raises(DownloadError) as raised:
                call()
        allowed = [expected.error, ALL_FAILED] if expected.or_full else [expected.error]
        assert any(text in str(raised.value) for text in allowed)
        return None

    def _arrives(self, url: str, directory: str, force: bool, answer: Answer) -> str:
        """The path at which a body that has come can be read from now on."""
        # Two URLs with one basename are one file (D6).
        path = f"{directory}/{answer.name or _name(urllib.parse.urlsplit(url).path)}"
        old = self.files.get(path)
        # The same size means the same file, whatever it holds (D5) and although the new bytes have
        # just been fetched; where nothing tells the size, nothing is ever kept.
        if force or old is None or len(old) != answer.length:
            self.files[path] = answer.body
        return path

    def _weights(self, url: str) -> tuple[str, list[str]]:
        """The directory of some weights, and what is found in it."""
        directory = f"{WEIGHTS}/{hashlib.sha256(url.encode()).hexdigest()}"
        there = [path for path in self.files if os.path.dirname(path) == directory]
        # A name that begins with .fal is not recognised (D8).
        return directory, [path for path in there if not _name(path).startswith(".fal")]

    def _mark(self, directory: str) -> None:
        if directory not in self.used or self.used[directory] < self.now - DAY:
            self.used[directory] = self.now

    # --- what always holds -----------------------------------------------------------------------

    def check(self) -> None:
        # Neither a partial file nor a temporary one, however the download ended.
        self._check_volumes()
        # What is cached was served.
        assert set(self.files.values()) <= self.network.whole | self.network.cut
        for directory, moment in self.used.items():
            assert os.stat(f"{directory}/.fal_used").st_mtime == moment.timestamp()
        for trouble in self.network.troubles.values():
            assert len(trouble.fault.struck) == (trouble.fault.which.times or 0) - trouble.left

    def _check_volumes(self, temporary: int = 0) -> None:
        marks = {f"{directory}/.fal_used" for directory in self.used}
        visible = self._visible()
        under_way = _under_way(visible)
        assert len(under_way) == temporary
        assert sorted(set(visible) - set(under_way)) == sorted([*self.files, *marks])
        for path, body in self.files.items():
            with open(path, "rb") as file:
                assert file.read() == body
            assert os.stat(path).st_mode & 0o777 == 0o600  # although all runners share it (D15)

    def _visible(self) -> list[str]:
        # Hypothesis, too, keeps files in /tmp where it is told to.
        in_tmp = [rel for rel in self.emulator.tmp.tree() if rel.startswith("in/")]
        on_data = [f"/data/{rel}" for rel in self.emulator.data.tree()]
        return sorted(on_data + [f"/tmp/{rel}" for rel in in_tmp])


def _under_way(paths: list[str]) -> list[str]:
    return [path for path in paths if "fal_download.tmp" in path]


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE)


def _name(path: str) -> str:
    return path.rpartition("/")[2]
