"""What is being uploaded, beside the volume: whole files, and files that come in parts."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from emulator.errors import RefusedRequest

__all__ = [
    "FilesError",
    "Names",
    "PartedUpload",
    "Received",
    "Spool",
    "chunks_of",
    "discard",
    "write",
]

#: A path below the volume, name by name; empty: the volume itself.
Names = tuple[str, ...]

_CHUNK = 1 << 20
_MOST_PARTS = 10_000


class FilesError(RefusedRequest):
    """A request that the file service refuses."""


@dataclass(frozen=True)
class Received:
    """Bytes that have arrived, in a file of their own."""

    path: str
    size: int
    md5: str


@dataclass(eq=False)
class PartedUpload:
    """An upload in parts that is under way."""

    id: str
    names: Names
    #: By number; of one that is sent twice, the later.
    parts: dict[int, Received] = field(default_factory=dict)

    def chosen(self, parts: Sequence[tuple[int, str]]) -> list[Received]:
        """The parts that a completion names (number and ETag), in their order.

        Raises:
            FilesError: 400 for no parts, one named twice, a missing one or a wrong ETag.
        """
        if not parts:
            raise FilesError(400, "an upload needs at least one part")
        if len({number for number, _ in parts}) < len(parts):
            raise FilesError(400, "a part is named twice")
        chosen = []
        for number, etag in sorted(parts):
            part = self.parts.get(number)
            if part is None:
                raise FilesError(400, f"part {number} was never uploaded")
            if etag.strip('"') != part.md5:
                raise FilesError(400, f"part {number} has another ETag")
            chosen.append(part)
        return chosen


class Spool:
    """Keeps what has arrived until it gets its place.

    Args:
        directory: where; on the volume's own disk, so that a place is given by a rename. Made when
            it is first needed.
    """

    def __init__(self, directory: Callable[[], str]) -> None:
        self._where = directory
        self._lock = threading.Lock()
        self._directory: str | None = None
        self._uploads: dict[str, PartedUpload] = {}

    def clear(self) -> None:
        """Forget everything that has no place."""
        directory, self._directory = self._directory, None
        self._uploads.clear()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    def receive(self, chunks: Iterable[bytes]) -> Received:
        """Take bytes in."""
        path = os.path.join(self._made(), secrets.token_hex(8))
        md5, size = hashlib.md5(usedforsecurity=False), 0
        # Mode and owner are those of what a runner writes.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for chunk in chunks:
                md5.update(chunk)
                size += len(chunk)
                write(descriptor, chunk)
        except BaseException:
            with suppress(FileNotFoundError):  # the test is over
                os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        return Received(path, size, md5.hexdigest())

    def begin(self, names: Names) -> PartedUpload:
        """Begin an upload in parts."""
        upload = PartedUpload(secrets.token_hex(16), names)
        self._uploads[upload.id] = upload
        return upload

    def upload(self, identifier: str, names: Names) -> PartedUpload:
        """An upload that was begun for this place.

        Raises:
            FilesError: 404, there is none, or not any more.
        """
        upload = self._uploads.get(identifier)
        if upload is None or upload.names != names:
            raise FilesError(404, f"no upload {identifier} to this path is under way")
        return upload

    def receive_part(self, upload: PartedUpload, number: int, chunks: Iterable[bytes]) -> Received:
        """Take a part in; its MD5 is its ETag.

        Raises:
            FilesError: 400, there are no such numbers; 404, the upload was cancelled meanwhile.
        """
        if not 1 <= number <= _MOST_PARTS:
            raise FilesError(400, f"part numbers go from 1 to {_MOST_PARTS}, not {number}")
        part = self.receive(chunks)
        with self._lock:
            if upload.id not in self._uploads:
                discard(part)
                raise FilesError(404, f"no upload {upload.id} is under way")
            before, upload.parts[number] = upload.parts.get(number), part
        if before is not None:
            discard(before)
        return part

    def join(self, upload: PartedUpload, parts: Sequence[tuple[int, str]]) -> Received:
        """Put parts (number and ETag) together; they stay until the upload is forgotten.

        Raises:
            FilesError: as :meth:`PartedUpload.chosen`.
        """
        return self.receive(
            chunk for part in upload.chosen(parts) for chunk in chunks_of(part.path)
        )

    def forget(self, upload: PartedUpload) -> None:
        """Forget an upload, with what was sent of it."""
        with self._lock:
            self._uploads.pop(upload.id, None)
        while upload.parts:
            discard(upload.parts.popitem()[1])

    def _made(self) -> str:
        with self._lock:
            if self._directory is None:
                self._directory = self._where()
                os.makedirs(self._directory, exist_ok=True)
            return self._directory


def discard(received: Received) -> None:
    """What has arrived is not wanted (any more)."""
    with suppress(FileNotFoundError):
        os.unlink(received.path)


def chunks_of(path: str) -> Iterator[bytes]:
    """The content of a file."""
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def write(descriptor: int, chunk: bytes) -> None:
    """Write all of it."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
