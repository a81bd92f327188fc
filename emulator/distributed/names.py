"""What a runner does to names in its /data: look up, list, create, remove, rename."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from emulator.distributed import protocol
from emulator.distributed.nodes import Handle, Node, Nodes, Request
from emulator.distributed.tree import (
    Content,
    Copy,
    File,
    Folder,
    Item,
    NameHistory,
    Tree,
    failure,
)
from emulator.distributed.visibility import Place, Version

__all__ = ["NameOperations"]

_NO_TIME = protocol.ATTRIBUTES_VALID.pack(0, 0, 0)


class NameOperations:
    """The requests of one runner about names and attributes.

    Args:
        tree: what everybody sees.
        place: where the runner is.
    """

    def __init__(self, tree: Tree, place: Place) -> None:
        self.tree = tree
        self.place = place
        self.nodes = Nodes(tree.root)

    # --- what is there ---------------------------------------------------------------------------

    def look_up(self, request: Request) -> bytes:
        """LOOKUP."""
        folder = self.nodes.get(request.node).folder
        item = self.tree.look(folder, protocol.names(bytes(request.data))[0], self.place)
        if item is None:
            raise failure(errno.ENOENT)
        return self.entry(item)

    def entry(self, item: Item) -> bytes:
        """The answer that names an item, in the version that this runner sees."""
        version = self.tree.content(item, self.place) if isinstance(item, File) else None
        status = self._status(item, version)
        node = self.nodes.enter(item, version)
        return protocol.ENTRY.pack(node.number, 0, 0, 0, 0, 0) + protocol.attributes(status)

    def _status(self, item: Item, version: Version[Content] | None) -> os.stat_result:
        status = self.tree.status(item)
        if version is None or version.value is None:
            return status
        return _as_it_was(status, version.value)

    def attributes_of(self, node: Node) -> bytes:
        """The answer to a question for attributes; they are asked for each time."""
        return _NO_TIME + protocol.attributes(self._status(node.item, node.version))

    def get_attributes(self, request: Request) -> bytes:
        """GETATTR."""
        return self.attributes_of(self.nodes.get(request.node))

    def read_link(self, request: Request) -> bytes:
        """READLINK."""
        item = self.nodes.get(request.node).item
        if item.places:
            return os.readlink(self.tree.path(item))
        if item.held is None:
            raise failure(errno.ENOENT)
        return os.readlink(b"", dir_fd=item.held.number)

    def open_folder(self, request: Request) -> bytes:
        """OPENDIR."""
        node = self.nodes.get(request.node)
        handle = Handle(node, entries=self._entries(node.folder))
        return protocol.OPEN_OUT.pack(self.nodes.open(handle), 0, 0)

    def list_folder(self, request: Request) -> bytes:
        """READDIR: from the beginning it is looked again."""
        number, offset, size, *_ = protocol.READ_IN.unpack_from(request.data)
        handle = self.nodes.handle(number)
        if handle.entries is None or (offset == 0 and handle.changed):
            handle.entries = self._entries(handle.node.folder)
        handle.changed = True
        return protocol.listing(handle.entries, offset, size)

    def _entries(self, folder: Folder) -> list[tuple[bytes, int, int]]:
        kind = stat.S_IFDIR >> 12
        dots = [(b".", folder.inode, kind), (b"..", folder.inode, kind)]
        return dots + self.tree.names(folder, self.place)

    def statistics(self, request: Request) -> bytes:
        """STATFS."""
        found = os.statvfs(self.tree.path(self.tree.root))
        return protocol.STATFS_OUT.pack(
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            found.f_bsize,
            found.f_namemax,
            found.f_frsize,
        )

    # --- new names -------------------------------------------------------------------------------

    def make_node(self, request: Request) -> bytes:
        """MKNOD."""
        mode, device, _, _ = protocol.MKNOD_IN.unpack_from(request.data)
        name = protocol.names(bytes(request.data), protocol.MKNOD_IN.size)[0]
        made = lambda path: os.mknod(path, mode, protocol.device_of(device))  # noqa: E731
        return self.entry(self._make(request, name, made, publish=True))

    def make_folder(self, request: Request) -> bytes:
        """MKDIR; a folder that another datacenter has just made becomes the same one."""
        mode, _ = protocol.MKDIR_IN.unpack_from(request.data)
        name = protocol.names(bytes(request.data), protocol.MKDIR_IN.size)[0]
        folder = self.nodes.get(request.node).folder
        if self.tree.look(folder, name, self.place) is None:
            there = self.tree.live(folder, name)
            if isinstance(there, Folder):
                self.tree.record(self.tree.history(folder, name), there, self.place)
                return self.entry(there)
        return self.entry(self._make(request, name, lambda path: os.mkdir(path, mode)))

    def make_link(self, request: Request) -> bytes:
        """SYMLINK."""
        name, target = protocol.names(bytes(request.data))
        made = lambda path: os.symlink(target, path)  # noqa: E731
        return self.entry(self._make(request, name, made, publish=True))

    def link(self, request: Request) -> bytes:
        """LINK: another name for a file."""
        (number,) = protocol.LINK_IN.unpack_from(request.data)
        item = self.nodes.get(number).item
        name = protocol.names(bytes(request.data), protocol.LINK_IN.size)[0]
        if not item.places:
            raise failure(errno.ENOENT)
        folder = self.nodes.get(request.node).folder
        history = self.clear(folder, name)
        os.link(self.tree.path(item), self.tree.child(folder, name), follow_symlinks=False)
        item.places.append((folder, name))
        self.tree.record(history, item, self.place)
        return self.entry(item)

    def clear(self, folder: Folder, name: bytes) -> NameHistory | None:
        """Make place for a new name: what this runner does not see yet is replaced.

        Returns:
            Where to record the new one.

        Raises:
            OSError: it sees something there.
        """
        if self.tree.look(folder, name, self.place) is not None:
            raise failure(errno.EEXIST)
        history = self.tree.history(folder, name)
        unseen = self.tree.live(folder, name)
        if unseen is not None:
            self._take_away(unseen, folder, name)
        return history

    def _make(
        self,
        request: Request,
        name: bytes,
        make: Callable[[bytes], object],
        *,
        publish: bool = False,
    ) -> Item:
        folder = self.nodes.get(request.node).folder
        history = self.clear(folder, name)
        path = self.tree.child(folder, name)
        make(path)
        return self.made(request, os.lstat(path), folder, name, history, publish=publish)

    def made(
        self,
        request: Request,
        status: os.stat_result,
        folder: Folder,
        name: bytes,
        history: NameHistory | None,
        *,
        publish: bool = False,
    ) -> Item:
        """Something new is there: it belongs to the one who asked for it."""
        path = self.tree.child(folder, name)
        if os.geteuid() == 0 and (request.uid or request.gid):
            os.chown(path, request.uid, request.gid, follow_symlinks=False)
        item = self.tree.item(status, folder, name, self.place)
        self.tree.record(history, item, self.place)
        if publish and isinstance(item, File):
            self.tree.publish(item, self.place)
        return item

    # --- names that go ---------------------------------------------------------------------------

    def unlink(self, request: Request) -> bytes:
        """UNLINK."""
        folder = self.nodes.get(request.node).folder
        name = protocol.names(bytes(request.data))[0]
        if self.tree.look(folder, name, self.place) is None:
            raise failure(errno.ENOENT)
        return self._remove(folder, name)

    def remove_folder(self, request: Request) -> bytes:
        """RMDIR: empty for this runner, and really."""
        folder = self.nodes.get(request.node).folder
        name = protocol.names(bytes(request.data))[0]
        seen = self.tree.look(folder, name, self.place)
        if seen is None:
            raise failure(errno.ENOENT)
        if not isinstance(seen, Folder):
            raise failure(errno.ENOTDIR)
        if self.tree.names(seen, self.place):
            raise failure(errno.ENOTEMPTY)
        return self._remove(folder, name)

    def _remove(self, folder: Folder, name: bytes) -> bytes:
        history = self.tree.history(folder, name)
        item = self.tree.live(folder, name)
        if item is not None:
            self._take_away(item, folder, name)
        self.tree.record(history, None, self.place)
        return b""

    def _take_away(self, item: Item, folder: Folder, name: bytes) -> None:
        path = self.tree.child(folder, name)
        self.tree.keep(item, folder, name)
        os.rmdir(path) if isinstance(item, Folder) else os.unlink(path)
        self.tree.lose(item, folder, name)

    def rename(self, request: Request) -> bytes:
        """RENAME and RENAME2."""
        if request.code == protocol.RENAME2:
            number, flags, _ = protocol.RENAME2_IN.unpack_from(request.data)
            old, new = protocol.names(bytes(request.data), protocol.RENAME2_IN.size)
        else:
            (number,), flags = protocol.RENAME_IN.unpack_from(request.data), 0
            old, new = protocol.names(bytes(request.data), protocol.RENAME_IN.size)
        if flags & ~protocol.RENAME_NOREPLACE:
            raise failure(errno.EINVAL)
        source = self.nodes.get(request.node).folder, old
        target = self.nodes.get(number).folder, new
        if flags and self.tree.look(*target, self.place) is not None:
            raise failure(errno.EEXIST)
        self._rename(source, target)
        return b""

    def _rename(self, source: tuple[Folder, bytes], target: tuple[Folder, bytes]) -> None:
        item, replaced = self.tree.live(*source), self.tree.live(*target)
        if item is None or self.tree.look(*source, self.place) is None:
            raise failure(errno.ENOENT)
        if item is replaced:
            return  # two names of one file: as POSIX has it, both stay
        histories = self.tree.history(*source), self.tree.history(*target)
        if replaced is not None:
            self.tree.keep(replaced, *target)
        os.rename(self.tree.child(*source), self.tree.child(*target))
        if replaced is not None:
            self.tree.lose(replaced, *target)
        self.tree.move(item, source, target)
        self.tree.record(histories[0], None, self.place)
        self.tree.record(histories[1], item, self.place)


def _as_it_was(status: os.stat_result, copy: Copy) -> os.stat_result:
    """The attributes of a file whose content is another one for this runner."""
    was = copy.before
    kind, (sequence, named) = status.__reduce__()  # type: ignore[misc]
    named = {
        **named,
        **{name: getattr(was, name) for name in ("st_mtime_ns", "st_ctime_ns", "st_blocks")},
    }
    result: os.stat_result = kind((*sequence[:6], was.st_size, *sequence[7:]), named)
    return result
