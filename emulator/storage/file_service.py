"""The files of ``/data`` as fal's file service has them: listed, read, stored, moved [facts §2.3].

They are the volume's own: what is uploaded is there for every runner, and the other way round. An
upload is kept beside the volume until it is complete, and then put into it in one step.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from emulator.storage.beneath import PATH_ONLY, OutsideError, Spot, find, open_folder
from emulator.storage.emptying import empty
from emulator.storage.spool import (
    FilesError,
    Names,
    PartedUpload,
    Received,
    Spool,
    chunks_of,
    discard,
    write,
)

try:
    from lzma import LZMAError
except ImportError:  # a Python without it says NotImplementedError
    LZMAError = zlib.error  # type: ignore[assignment,misc]

if TYPE_CHECKING:
    from emulator.settings import Settings
    from emulator.storage.volume import Volume

__all__ = ["FileService", "StoredFile", "split_path"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_CHUNK = 1 << 20
#: What a ZIP file raises that is damaged, encrypted or packed in a way that Python does not know.
_BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, LZMAError, struct.error),
    *(NotImplementedError, RuntimeError, EOFError, ValueError),
)
#: What of a volume's state is no fault of the request's.
_STATUS = {
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EEXIST: 409,
    errno.ENOTEMPTY: 409,
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
    errno.EROFS: 503,
    errno.EIO: 500,
}


@dataclass(frozen=True)
class StoredFile:
    """A file or folder of the volume."""

    names: Names
    #: Bytes; 0 for a folder.
    size: int
    is_file: bool
    created: datetime
    updated: datetime


class FileService:
    """Works on the volume of the test under way.

    Args:
        volume: the volume.
        settings: of the test.
        enter: a descriptor of ``/data`` as a server of its own sees it; None where there is nothing
            else to see than the plain directory.
    """

    def __init__(
        self,
        volume: Callable[[], Volume],
        settings: Callable[[], Settings],
        enter: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._volume = volume
        self.settings = settings
        self._enter = enter
        self._lock = threading.Lock()
        self._own_view: int | None = None
        #: What has no place in the volume so far.
        self.spool = Spool(lambda: str(volume().backing.parent / "uploads"))

    @property
    def is_staged(self) -> bool:
        """Whether a setting lets runners see different things in the volume."""
        between = self._volume().between
        return between is not None and between.is_asked_for

    def end(self) -> None:
        """The test is over: what is half uploaded is forgotten."""
        view, self._own_view = self._own_view, None
        if view is not None:
            os.close(view)
        self.spool.clear()

    # --- reading ---------------------------------------------------------------------------------

    def entries(self, names: Names) -> list[StoredFile]:
        """What is in a folder, by name; of a file, itself.

        Raises:
            FilesError: 404, nothing is there; or as :meth:`read`.
        """
        try:
            return self._listed(names)
        except FilesError as error:
            if error.status == 404 and self.settings().files_missing_folder == "empty":
                return []
            raise

    def _listed(self, names: Names) -> list[StoredFile]:
        with self._find(names) as (root, spot):
            if spot.status is None:
                raise self._missing(names)
            if not spot.is_folder:
                return [_stored(names, spot.status)]
            folder = open_folder(spot.folder, spot.name)
            try:
                found = sorted(os.listdir(folder))
            finally:
                os.close(folder)
            entries = (self._entry(root, (*names, name), (*spot.path, name)) for name in found)
            return [entry for entry in entries if entry is not None]

    def _entry(self, root: int, names: Names, really: Names) -> StoredFile | None:
        """What is listed for a name; a link as what it leads to, one to nowhere as itself."""
        volume = self._mount
        with suppress(OSError, OutsideError), find(root, really, mount=volume) as spot:
            if spot.status is not None:
                return _stored(names, spot.status)
        with suppress(OSError), find(root, really, mount=volume, follow=False) as spot:
            if spot.status is not None:
                return _stored(names, spot.status)
        return None  # removed meanwhile

    def read(self, names: Names) -> tuple[int, Iterator[bytes]]:
        """The size of a file, and its content in pieces.

        Raises:
            FilesError: 404, there is none; 400, it is no file, or a link out of the volume.
        """
        with self._find(names) as (_, spot):
            if spot.status is None:
                raise self._missing(names)
            if not stat.S_ISREG(spot.status.st_mode):
                kind = "a folder" if spot.is_folder else "no regular file"
                raise FilesError(400, f"{self._shown(names)} is {kind}")
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(spot.name, flags, dir_fd=spot.folder)
        size = os.fstat(descriptor).st_size
        return size, _Reader(descriptor, size)

    # --- uploading -------------------------------------------------------------------------------

    def store(self, received: Received, names: Names) -> None:
        """Put what has arrived at its place, in one step; what was there is replaced.

        Raises:
            FilesError: 400, that is a folder, or no place in the volume; 507, the volume is full;
                503, it is read-only.
        """
        try:
            with self._find(names, make=True) as (_, spot):
                self._check_place(spot, names)
                try:
                    os.rename(received.path, spot.name, dst_dir_fd=spot.folder)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    _copy(received.path, spot)
        finally:
            discard(received)

    def check(self, names: Names) -> None:
        """Refuse a place at which nothing can be stored, before anything is sent.

        Raises:
            FilesError: as :meth:`store` does.
        """
        with suppress(FileNotFoundError), self._find(names, raw=True) as (_, spot):
            self._check_place(spot, names)

    def _check_place(self, spot: Spot, names: Names) -> None:
        if spot.is_folder:
            raise FilesError(400, f"{self._shown(names)} is a folder")

    def unzip(self, received: Received, names: Names) -> bool:
        """Unpack a ZIP file into the folder of *names*; whether it is one.

        Raises:
            FilesError: 400, a name in it leaves that folder, or it is broken.
        """
        if not zipfile.is_zipfile(received.path):
            return False
        unpacked: list[Received] = []
        try:
            with zipfile.ZipFile(received.path) as archive:
                members = [one for one in archive.infolist() if not one.is_dir()]
                places = [(*names[:-1], *split_path(one.filename)) for one in members]
                for member in members:
                    with archive.open(member) as content:
                        chunks = iter(lambda: content.read(_CHUNK), b"")
                        unpacked.append(self.spool.receive(chunks))
            while unpacked:  # only now: a broken archive leaves nothing
                self.store(unpacked.pop(), places[len(unpacked)])
        except _BROKEN_ZIP as error:
            raise FilesError(400, f"the ZIP file cannot be unpacked: {error}") from error
        except OSError as error:
            if error.errno is not None:
                raise
            # As the decompressor of bzip2 says it.
            raise FilesError(400, f"the ZIP file cannot be unpacked: {error}") from error
        finally:
            for one in (received, *unpacked):
                discard(one)
        return True

    def begin(self, names: Names) -> PartedUpload:
        """Begin an upload in parts.

        Raises:
            FilesError: as :meth:`check`.
        """
        self.check(names)
        return self.spool.begin(names)

    def complete(self, upload: PartedUpload, parts: Sequence[tuple[int, str]]) -> Received:
        """Put the parts (number and ETag) together and the file at its place.

        Raises:
            FilesError: as :meth:`PartedUpload.chosen` and :meth:`store`; the upload can then be
                completed again.
        """
        whole = self.spool.join(upload, parts)
        self.store(whole, upload.names)
        self.spool.forget(upload)
        return whole

    # --- changing --------------------------------------------------------------------------------

    def remove(self, names: Names) -> None:
        """Remove a file, a link, or a folder with everything in it.

        Raises:
            FilesError: 404, there is none; 400 for the volume itself.
        """
        self._not_the_volume(names)
        with self._find(names, follow=False) as (_, spot):
            if spot.status is None:
                raise self._missing(names)
            _remove(spot.folder, spot.name, spot.is_folder)

    def rename(self, source: Names, target: Names) -> None:
        """Move a file or folder, in one step; a file that is there is replaced.

        Raises:
            FilesError: 404, the source or the target's folder is not there; 409, the target is a
                folder that is not empty; 400, one is a folder and the other none, or lies in it.
        """
        self._not_the_volume(source)
        self._not_the_volume(target)
        with self._find(source, follow=False) as (_, old):
            if old.status is None:
                raise self._missing(source)
            with self._find(target, follow=False) as (_, new):
                os.rename(old.name, new.name, src_dir_fd=old.folder, dst_dir_fd=new.folder)

    def _not_the_volume(self, names: Names) -> None:
        if not names:
            raise FilesError(400, f"{self._mount} itself can neither be moved nor removed")

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _mount(self) -> str:
        return str(self._volume().path)

    def _shown(self, names: Names) -> str:
        return "/".join((self._mount, *names))

    @contextmanager
    def _find(
        self, names: Names, *, follow: bool = True, make: bool = False, raw: bool = False
    ) -> Iterator[tuple[int, Spot]]:
        """Go to a place; what the kernel refuses there becomes a FilesError."""
        try:
            with (
                self._root() as root,
                find(root, names, mount=self._mount, follow=follow, make=make) as spot,
            ):
                yield root, spot
        except FileNotFoundError as error:
            if raw:
                raise
            raise self._refusal(error, names) from error
        except OSError as error:
            raise self._refusal(error, names) from error
        except OutsideError as error:
            raise FilesError(403, str(error)) from error
        except ValueError as error:  # no name for the kernel: a NUL, half a surrogate pair
            raise FilesError(400, f"{self._shown(names)!r} is no path: {error}") from error

    def _missing(self, names: Names) -> FilesError:
        return FilesError(404, f"{self._shown(names)} not found")

    def _refusal(self, error: OSError, names: Names) -> FilesError:
        if error.errno == errno.ENOENT:
            return self._missing(names)
        what = os.strerror(error.errno or errno.EIO)
        return FilesError(_STATUS.get(error.errno or 0, 400), f"{self._shown(names)}: {what}")

    @contextmanager
    def _root(self) -> Iterator[int]:
        with self._lock:
            if self._own_view is None:
                self._own_view = self._enter()
            view = self._own_view
        if view is not None:
            yield view
            return
        # Anew each time: a limit or a read-only cover is mounted over the directory.
        root = os.open(self._volume().backing, PATH_ONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield root
        finally:
            os.close(root)


def split_path(path: str) -> Names:
    """The names of a path; doubled slashes and ``.`` do not count.

    Raises:
        FilesError: 400, one is ``..``.
    """
    names = tuple(name for name in path.split("/") if name not in ("", "."))
    if ".." in names:
        raise FilesError(400, f"{path!r} has '..' in it")
    return names


class _Reader:
    """Reads a file piece by piece; the descriptor is closed with it, begun or not."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._left = size

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = self._file.read(min(_CHUNK, self._left)) if self._left else b""
        if not chunk:
            self.close()
            raise StopIteration
        self._left -= len(chunk)
        return chunk

    def close(self) -> None:
        """Give the descriptor back."""
        self._left = 0
        self._file.close()


def _stored(names: Names, status: os.stat_result) -> StoredFile:
    is_file = not stat.S_ISDIR(status.st_mode)
    updated = _moment(status.st_mtime_ns)
    created = _moment(min(status.st_ctime_ns, status.st_mtime_ns))
    return StoredFile(names, status.st_size if is_file else 0, is_file, created, updated)


def _moment(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _copy(path: str, spot: Spot) -> None:
    """Where a rename cannot: into a volume that has a limit, or is another file system.

    The file gets its name before it is closed. In a ``/data`` that differs between runners it is
    nobody else's until then, so no other name of it is ever seen.
    """
    temporary = f".fal_upload.tmp.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666, dir_fd=spot.folder)
    try:
        for chunk in chunks_of(path):
            write(descriptor, chunk)
        os.rename(temporary, spot.name, src_dir_fd=spot.folder, dst_dir_fd=spot.folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=spot.folder)
        raise
    finally:
        os.close(descriptor)


def _remove(folder: int, name: str, is_folder: bool) -> None:
    if not is_folder:
        os.unlink(name, dir_fd=folder)
        return
    inner = open_folder(folder, name)
    try:
        empty(inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)
