"""The contents of the CDN's objects: immutable once stored, freed by the last one who holds them.

Small ones are bytes in memory; large ones are unnamed files in a directory that is opened once, so
that mounting over ``/tmp`` cannot move it. Either is a file object, as moto expects of a content.
"""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Iterator
from typing import TypeAlias

from emulator.errors import EmulatorError

__all__ = ["MEBIBYTE", "Content", "InMemory", "SpillDirectory", "Spilled", "slices"]

MEBIBYTE = 1024 * 1024


class InMemory(io.BytesIO):
    """The bytes of a small object, and the file that moto expects to find them in."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)  # shares the bytes
        self._data = data
        self.size = self.memory = len(data)

    def read_at(self, start: int, count: int) -> bytes:
        """At most ``count`` bytes; fewer at the end."""
        return self._data[start : start + count]


class Spilled(io.FileIO):
    """An unnamed file of a large object; read at offsets, so that readers share no position."""

    memory = 0

    def __init__(self, descriptor: int) -> None:
        # ``closefd`` is ours to do: FileIO would warn of every file that its last reader lets go.
        super().__init__(descriptor, "rb+", closefd=False)
        self.size = 0

    def append(self, chunk: bytes) -> None:
        """Write the chunk at the end; only while the file is not stored yet."""
        with memoryview(chunk).cast("B") as view:
            written = 0
            while written < len(view):
                written += os.write(self.fileno(), view[written:])
            self.size += written

    def read_at(self, start: int, count: int) -> bytes:
        """At most ``count`` bytes; fewer at the end."""
        return os.pread(self.fileno(), count, start)

    def close(self) -> None:
        """Close the file, which frees its bytes; also when it is closed already."""
        if not self.closed:
            descriptor = self.fileno()
            super().close()
            os.close(descriptor)


Content: TypeAlias = "InMemory | Spilled"


def slices(
    content: Content, start: int = 0, end: int | None = None, chunk_size: int = MEBIBYTE
) -> Iterator[bytes]:
    """The bytes from ``start`` to before ``end``, in chunks."""
    stop = content.size if end is None else min(end, content.size)
    for offset in range(start, stop, chunk_size):
        yield content.read_at(offset, min(chunk_size, stop - offset))


class SpillDirectory:
    """A directory held open: its path may mean another place by the time it is needed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._path = os.fspath(path)

    def open(self) -> Spilled:
        """Make a file; EmulatorError when that cannot be done."""
        try:
            return Spilled(_unnamed_file(self._descriptor))
        except OSError as error:
            raise EmulatorError(
                f"A large object was not stored: no file can be made in the spill directory "
                f"{self._path} ({error.strerror}). Keep that directory until the emulator has "
                "stopped, and upload less at once if there are too many open files."
            ) from error

    def close(self) -> None:
        """Let go of the directory; its files stay readable."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def _unnamed_file(directory: int) -> int:
    # Not every system and filesystem can make a file without a name.
    with contextlib.suppress(AttributeError, OSError):
        return os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=directory)
    name = f".object-{uuid.uuid4().hex}"
    descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, dir_fd=directory)
    os.unlink(name, dir_fd=directory)
    return descriptor
