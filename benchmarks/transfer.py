"""The toolkit's uploads and downloads on the emulator, and bare ones over a loopback connection."""

from __future__ import annotations

import functools
import io
import os
import ssl
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import trustme
from bare import BareServer, get_to_file, put
from measure import Row, Table, compare, seconds_of

from emulator import Emulator

MEGABYTE = 1_000_000
ORIGIN = "https://example.com/file.bin"

EXPLANATION = """\
Ours is `File.from_bytes` (asks for an upload URL, then PUTs; answered in this process, so the bytes
cross no connection: they are copied once, and hashed only when an ETag is asked for) and
`download_file` (over TLS to the emulator's server, into a file on `/data`; the first read of a file
on the CDN computes its ETag). The alternative is one bare request on a new loopback connection: for
uploads urllib's PUT to a server that throws the bytes away, for downloads http.client over TLS into
a file."""


def measure(quick: bool) -> Table:
    """Compare."""
    table = Table("Uploads and downloads", EXPLANATION)
    emulator = Emulator()
    with tempfile.TemporaryDirectory() as folder:
        small = Transfers(emulator, Path(folder), 1_000, times=20)
        large = Transfers(emulator, Path(folder), 64 * MEGABYTE)
        table.rows = [
            *small.compare("1 kB", rounds=5 if quick else 20),
            *large.compare("64 MB", rounds=3 if quick else 9),
        ]
    emulator.close()
    return table


class Transfers:
    """All ways of moving so many bytes, each *times* times a sample."""

    def __init__(self, emulator: Emulator, folder: Path, size: int, times: int = 1) -> None:
        self._emulator = emulator
        self._file = folder / "file.bin"
        self._certificate = folder / f"ca-{size}.pem"
        self._data = os.urandom(size)
        self._times = times
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self._certificate))
        self._plain = BareServer(self._data)
        self._secure = BareServer(self._data, authority)
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._context())
        )

    def compare(self, size: str, rounds: int) -> Iterator[Row]:
        """One row for each way."""
        megabytes = len(self._data) / MEGABYTE if len(self._data) >= MEGABYTE else None
        for way, ours, alternative in (
            ("upload / urllib PUT over TLS", self._upload, self._put(self._secure)),
            ("upload / urllib PUT, plain HTTP", self._upload, self._put(self._plain)),
            ("download from the CDN / http.client over TLS", self._from_cdn, self._get),
            ("download from an origin / http.client over TLS", self._from_origin, self._get),
        ):
            yield compare(f"{size}, {way}", rounds, ours, alternative, megabytes)

    def _upload(self) -> float:
        from fal.toolkit import File

        with _running(self._emulator):
            File.from_bytes(b"the first asks for a token", file_name="first.txt")
            upload = functools.partial(File.from_bytes, self._data, file_name="file.bin")
            return seconds_of(upload, self._times)

    def _from_cdn(self) -> float:
        with _running(self._emulator):
            return self._download(self._emulator.cdn.put(self._data, "file.bin"))

    def _from_origin(self) -> float:
        with _running(self._emulator):
            return self._download(self._emulator.origin.serve(ORIGIN, self._data).url)

    def _download(self, url: str) -> float:
        from fal.toolkit import download_file

        return seconds_of(lambda: download_file(url, "/data/files", force=True), self._times)

    def _put(self, server: BareServer) -> Callable[[], float]:
        return lambda: seconds_of(lambda: put(self._opener, server.url, self._data), self._times)

    def _get(self) -> float:
        # The SDK makes a context for each download too.
        return seconds_of(
            lambda: get_to_file(self._secure.port, self._context(), self._file), self._times
        )

    def _context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._certificate)


@contextmanager
def _running(emulator: Emulator) -> Iterator[None]:
    emulator.start()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        emulator.stop()
