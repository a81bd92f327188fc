"""What every runner sees of one backing directory: the newest state, or what it knows instead.

The directory itself always holds the newest state, for the test. Only what has not arrived
everywhere is kept beside it: for a name, what it was before; for a file's content, a copy of the
bytes that others still see. A name without such a history is looked up in the directory, so what
the test does there by itself is seen by all at once.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from typing import Optional, Union

from emulator.distributed.visibility import ALWAYS, Delays, History, Place, Version

__all__ = ["Content", "Descriptor", "File", "Folder", "Item", "NameHistory", "Tree", "failure"]

#: Bytes as they were, or None: those that the file itself has now.
Content = Union["Copy", None]
#: What a name stood for; None: nothing.
NameHistory = History[Optional["Item"]]


def failure(number: int) -> OSError:
    """The error of a system call."""
    return OSError(number, os.strerror(number))


class Descriptor:
    """A file descriptor that is closed when nothing needs it any more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)

    @property
    def path(self) -> bytes:
        """A path that leads to it, also when it has no name any more."""
        return b"/proc/self/fd/%d" % self.number


class Copy(Descriptor):
    """The bytes of a file as they were at a moment, in a file without a name."""

    def __init__(self, source: int, scratch: str) -> None:
        super().__init__(_nameless(scratch))
        #: What was known of the file then.
        self.before = os.fstat(source)
        copy_bytes(source, self.number)


class Item:
    """Something in the directory, or that was and is still seen by somebody."""

    def __init__(self, number: int, status: os.stat_result) -> None:
        self.number = number
        self.device, self.inode = status.st_dev, status.st_ino
        self.kind = stat.S_IFMT(status.st_mode)
        #: Where it is; the last one known is the best. Empty: it was removed.
        self.places: list[tuple[Folder, bytes]] = []
        #: Keeps what was removed for those who see it still.
        self.held: Descriptor | None = None


class Folder(Item):
    """A directory."""

    def __init__(self, number: int, status: os.stat_result) -> None:
        super().__init__(number, status)
        #: The names that have not arrived everywhere.
        self.names: dict[bytes, NameHistory] = {}


class File(Item):
    """Anything else: a file, a link, a socket."""

    def __init__(self, number: int, status: os.stat_result, by: Place | None = None) -> None:
        super().__init__(number, status)
        #: At first the content that it was found with, or that its maker is writing.
        self.content: History[Content] = History(Version(None, by))
        #: Names that are published with the content.
        self.waiting: list[Version[Item | None]] = []

    @property
    def is_published(self) -> bool:
        """Whether anybody but its maker may see it."""
        return any(v.by is None or v.at is not None for v in self.content.versions)


class Tree:
    """One backing directory and its histories.

    Args:
        root: the directory.
        scratch: a directory for nameless copies, on the host's disk.
        delays: how long what takes; None: everything is everywhere at once.
        now: the virtual clock, in nanoseconds.
    """

    def __init__(
        self, root: bytes, scratch: str, delays: Delays | None, now: Callable[[], int]
    ) -> None:
        self.root = Folder(0, os.lstat(root))
        self.delays = delays or Delays()
        self.staged = delays is not None
        self.now = now
        self._path = root
        self._scratch = scratch
        self._count = 0
        self._items: dict[tuple[int, int], Item] = {}
        #: What has not arrived everywhere.
        self._travelling: dict[NameHistory, tuple[Folder, bytes]] = {}
        self._changing: set[File] = set()

    # --- where things are ------------------------------------------------------------------------

    def path(self, item: Item) -> bytes:
        """A path to an item; of one that was removed, a way to what is left of it."""
        if item is self.root:
            return self._path
        if not item.places:
            if item.held is None:
                raise failure(errno.ENOENT)
            return item.held.path
        folder, name = item.places[-1]
        return self.child(folder, name)

    def child(self, folder: Folder, name: bytes) -> bytes:
        """The path of a name in a folder that is there."""
        if folder is not self.root and not folder.places:
            raise failure(errno.ENOENT)  # removed, though not everybody knows yet
        return self.path(folder) + b"/" + name

    def status(self, item: Item) -> os.stat_result:
        """What is known of an item now."""
        if item.places or item is self.root:
            return os.lstat(self.path(item))
        if item.held is None:
            raise failure(errno.ENOENT)
        return os.fstat(item.held.number)

    def live(self, folder: Folder, name: bytes) -> Item | None:
        """What the directory really has under a name."""
        try:
            status = os.lstat(self.child(folder, name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self.item(status, folder, name)

    def item(
        self, status: os.stat_result, folder: Folder, name: bytes, by: Place | None = None
    ) -> Item:
        """The item that was found at a place, the same one each time.

        Args:
            by: it has just been made, by this one.
        """
        key = status.st_dev, status.st_ino
        found = self._items.get(key)
        if found is not None and by is None and self._is_still(found, status, folder, name):
            if found.places[-1] != (folder, name):
                if (folder, name) in found.places:
                    found.places.remove((folder, name))
                found.places.append((folder, name))
            return found
        self._count += 1
        if stat.S_ISDIR(status.st_mode):
            made: Item = Folder(self._count, status)
        else:
            made = File(self._count, status, by if self.staged else None)
        made.places.append((folder, name))
        self._items[key] = made
        return made

    def _is_still(self, item: Item, status: os.stat_result, folder: Folder, name: bytes) -> bool:
        """Whether this inode is that item, and not another one that got its number."""
        if item.kind != stat.S_IFMT(status.st_mode) or not item.places:
            return False
        if (folder, name) in item.places:
            return True
        try:
            known = os.lstat(self.path(item))
        except OSError:
            return False
        return (known.st_dev, known.st_ino) == (item.device, item.inode)

    # --- what somebody sees ----------------------------------------------------------------------

    def look(self, folder: Folder, name: bytes, observer: Place) -> Item | None:
        """What the observer sees under a name."""
        history = folder.names.get(name)
        if history is None:
            return self.live(folder, name)
        seen = history.seen_by(observer, self.now(), self.delays)
        if seen is not None and seen is history.newest:
            live = self.live(folder, name) if folder.places or folder is self.root else seen.value
            if live is not seen.value:
                self._forget_name(history)  # the test itself has changed it: for everybody
            return live
        return None if seen is None else seen.value

    def is_taken(self, folder: Folder, name: bytes, observer: Place) -> Item | None:
        """What somebody on the same server has just created, and has open still.

        Nobody else sees it, but one server does not make one name twice.
        """
        history = folder.names.get(name)
        by = history.newest.by if history is not None else None
        if history is None or by is None or not by.shares_server_with(observer):
            return None
        return history.newest.value

    def names(self, folder: Folder, observer: Place) -> list[tuple[bytes, int, int]]:
        """What the observer sees in a folder: names, inodes and types."""
        found = {}
        if folder is self.root or folder.places:
            with os.scandir(self.path(folder)) as entries:
                for entry in entries:
                    found[entry.name] = (entry.inode(), _type_of(entry))
        for name in list(folder.names):
            item = self.look(folder, name, observer)
            if item is None:
                found.pop(name, None)
            else:
                found[name] = (item.inode, item.kind >> 12)
        return [(name, *what) for name, what in found.items()]

    def content(self, file: File, observer: Place) -> Version[Content]:
        """The content that the observer sees."""
        seen = file.content.seen_by(observer, self.now(), self.delays)
        return seen if seen is not None else file.content.versions[0]

    def readable(self, version: Version[Content], observer: Place) -> int | None:
        """When the observer can read a content."""
        return version.readable(observer, self.delays)

    # --- changes of names ------------------------------------------------------------------------

    def history(self, folder: Folder, name: bytes) -> NameHistory | None:
        """Where to record a change of a name; to be asked for before the change is made."""
        if not self.staged:
            return None
        known = folder.names.get(name)
        if known is None:
            known = folder.names[name] = History(Version(self.live(folder, name)))
            self._travelling[known] = (folder, name)
        return known

    def record(self, history: NameHistory | None, value: Item | None, by: Place) -> None:
        """A name was changed by somebody: published at once, or with its file's content."""
        if history is None:
            return
        version = Version(value, by)
        if isinstance(value, File) and not value.is_published:
            value.waiting.append(version)
        else:
            version.at = self.now()
        history.add(version)

    def keep(self, item: Item, folder: Folder, name: bytes) -> None:
        """An item is about to lose a name: keep it for those who have it open or see it still."""
        if len(item.places) <= 1 and item.held is None:
            flags = os.O_PATH | os.O_NOFOLLOW
            item.held = Descriptor(os.open(self.child(folder, name), flags))

    def lose(self, item: Item, folder: Folder, name: bytes) -> None:
        """An item has lost a name."""
        if (folder, name) in item.places:
            item.places.remove((folder, name))
        if not item.places and self._items.get((item.device, item.inode)) is item:
            del self._items[item.device, item.inode]

    def move(self, item: Item, source: tuple[Folder, bytes], target: tuple[Folder, bytes]) -> None:
        """An item was renamed."""
        if source in item.places:
            item.places.remove(source)
        item.places.append(target)

    # --- changes of content ----------------------------------------------------------------------

    def change(self, file: File, by: Place, base: Version[Content]) -> Version[Content]:
        """Somebody who sees *base* is about to change a file in place.

        Who sees another content keeps it, in a copy. Returns the version that is being written.
        """
        if not self.staged:
            return base
        content = file.content
        published = [v for v in content.versions if v.by is None or v.at is not None]
        self._copy_for_others(file, [v for v in published if v.value is None])
        for version in content.versions:
            if version.by is not None and version.by.runner == by.runner and version.at is None:
                return version
        if base.value is not None:
            self._restore(file, base.value)
        begun: Version[Content] = Version(None, by)
        content.add(begun)
        self._changing.add(file)
        return begun

    def _copy_for_others(self, file: File, versions: list[Version[Content]]) -> None:
        if versions:
            source = Descriptor(os.open(self.path(file), os.O_RDONLY))
            copy = Copy(source.number, self._scratch)
            for version in versions:
                version.value = copy

    def _restore(self, file: File, copy: Copy) -> None:
        """Who changes a file that it sees as it was changes that, and not what it does not see."""
        target = Descriptor(os.open(self.path(file), os.O_WRONLY))
        os.ftruncate(target.number, 0)
        copy_bytes(copy.number, target.number)

    def publish(self, file: File, by: Place) -> None:
        """Somebody closed a file that it had changed."""
        if not self.staged:
            return
        now = self.now()
        for version in list(file.content.versions):
            if version.by is not None and version.by.runner == by.runner and version.at is None:
                file.content.publish(version, now)
        for waiting in file.waiting:
            waiting.at = now
        file.waiting.clear()
        self._changing.add(file)

    # --- time ------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Forget what has arrived everywhere."""
        now = self.now()
        for history in list(self._travelling):
            if history.settle(now, self.delays):
                self._forget_name(history)
        self._changing = {f for f in self._changing if not f.content.settle(now, self.delays)}

    def shift(self, span: int) -> None:
        """The clock was moved back."""
        for history in self._travelling:
            history.shift(span)
        for file in self._changing:
            file.content.shift(span)

    def arrival(self, path: bytes, observer: Place) -> tuple[int, int] | None:
        """When the newest state of a path is listed and readable there; None: nobody can tell."""
        folder: Folder = self.root
        moment: tuple[int, int] | None = (ALWAYS, ALWAYS)
        names = [part for part in path.split(b"/") if part]
        for depth, name in enumerate(names, 1):
            item = self.live(folder, name)
            if item is None:
                return None
            history = folder.names.get(name)
            if history is not None and history.newest.value is item:
                listed = _arrival(history.newest, observer, self.delays)
                # A name has no content of its own to wait for.
                moment = _later(moment, listed and (listed[0], listed[0]))
            if isinstance(item, File):
                if depth < len(names):
                    return None
                moment = _later(moment, _arrival(item.content.newest, observer, self.delays))
            else:
                assert isinstance(item, Folder)
                folder = item
            if moment is None:
                return None
        return moment

    def _forget_name(self, history: NameHistory) -> None:
        folder, name = self._travelling.pop(history)
        if folder.names.get(name) is history:
            del folder.names[name]


def _arrival(
    version: Version[Item | None] | Version[Content], observer: Place, delays: Delays
) -> tuple[int, int] | None:
    """When a version is listed and readable."""
    if version.by is not None and version.at is None:
        return None
    listed, readable = version.listed(observer, delays), version.readable(observer, delays)
    return None if listed is None or readable is None else (listed, readable)


def _later(one: tuple[int, int] | None, other: tuple[int, int] | None) -> tuple[int, int] | None:
    """When both have arrived."""
    if one is None or other is None:
        return None
    return max(one[0], other[0]), max(one[1], other[1])


def copy_bytes(source: int, target: int) -> None:
    """Copy a file's bytes, from its beginning."""
    offset = 0
    while sent := os.sendfile(target, source, offset, 1 << 24):
        offset += sent


def _nameless(folder: str) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:  # not every file system has them
        number, path = tempfile.mkstemp(dir=folder)
        os.unlink(path)
        return number


def _type_of(entry: os.DirEntry[bytes]) -> int:
    """The type as the kernel lists it; 0: it has to be asked for."""
    if entry.is_symlink():
        return stat.S_IFLNK >> 12
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR >> 12
    return stat.S_IFREG >> 12 if entry.is_file(follow_symlinks=False) else 0
