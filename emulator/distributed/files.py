"""What a runner does to the content of files in its /data: open, read, write, close, lock."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from emulator.distributed import protocol
from emulator.distributed.locks import Locks
from emulator.distributed.names import NameOperations
from emulator.distributed.nodes import Handle, Node, Request, process_of
from emulator.distributed.tree import Content, Descriptor, File, Tree, failure
from emulator.distributed.visibility import ALWAYS, Place, Version

__all__ = ["FileOperations", "NotYetError"]

_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND
#: What is written over whatever was there: no need to have it first.
_NOTHING: Version[Content] = Version(None)


class NotYetError(Exception):
    """The request has to wait.

    Args:
        until: the moment of the virtual clock.
        path: what it waits for, relative to /data.
        why: ``"content"``: it is on its way; ``"cold"``: the node's cache does not have it.
    """

    def __init__(self, until: int, path: bytes, why: str) -> None:
        super().__init__(path)
        self.until, self.path, self.why = until, path, why


class FileOperations(NameOperations):
    """All requests of one runner.

    Args:
        tree: what everybody sees.
        place: where the runner is.
        warm: what the node cache of the runner's server holds.
        cold_latency: nanoseconds that the first reading of anything else takes.
    """

    def __init__(self, tree: Tree, place: Place, warm: set[object], cold_latency: int = 0) -> None:
        super().__init__(tree, place)
        self.locks = Locks()
        self._warm = warm
        self._cold_latency = cold_latency
        self.handlers: dict[int, Callable[[Request], bytes]] = {
            protocol.LOOKUP: self.look_up,
            protocol.GETATTR: self.get_attributes,
            protocol.SETATTR: self.set_attributes,
            protocol.READLINK: self.read_link,
            protocol.SYMLINK: self.make_link,
            protocol.MKNOD: self.make_node,
            protocol.MKDIR: self.make_folder,
            protocol.UNLINK: self.unlink,
            protocol.RMDIR: self.remove_folder,
            protocol.RENAME: self.rename,
            protocol.RENAME2: self.rename,
            protocol.LINK: self.link,
            protocol.OPEN: self.open,
            protocol.CREATE: self.create,
            protocol.READ: self.read,
            protocol.WRITE: self.write,
            protocol.STATFS: self.statistics,
            protocol.FLUSH: self.flush,
            protocol.RELEASE: self.release,
            protocol.FSYNC: self.sync,
            protocol.FSYNCDIR: lambda _: b"",
            protocol.OPENDIR: self.open_folder,
            protocol.READDIR: self.list_folder,
            protocol.RELEASEDIR: self.release,
            protocol.GETLK: self.get_lock,
            protocol.SETLK: self.set_lock,
            protocol.SETLKW: self.set_lock,
            protocol.FALLOCATE: self.allocate,
        }

    # --- open and close --------------------------------------------------------------------------

    def open(self, request: Request) -> bytes:
        """OPEN; who wants to read what has not arrived waits here.

        Not in READ: a page of a mapped file would be awaited by a thread that nothing can wake.
        """
        flags, _ = protocol.OPEN_IN.unpack_from(request.data)
        node = self.nodes.get(request.node)
        if flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_TRUNC:
            self._await(request, node)
        return self._open(request, node, flags)

    def _open(self, request: Request, node: Node, flags: int) -> bytes:
        # Also where only a copy will be read: locks are the file's own.
        descriptor = Descriptor(os.open(self.tree.path(node.file), flags & _KEPT_FLAGS))
        handle = Handle(node, descriptor, flags)
        if handle.is_writable:
            handle.opener = process_of(request.pid)
        if flags & os.O_TRUNC:
            self._begin(handle, _NOTHING)
            os.ftruncate(handle.number, 0)
        return protocol.OPEN_OUT.pack(self.nodes.open(handle), 0, 0)

    def _await(self, request: Request, node: Node) -> None:
        """Wait for content that is on its way, then for a node cache that does not have it."""
        version = node.version
        if version is None:
            return
        moment, now = self.tree.readable(version, self.place), self.tree.now()
        is_empty = self._status(node.item, version).st_size == 0  # nothing to wait for
        if moment is not None and moment != ALWAYS and moment > now and not is_empty:
            raise NotYetError(moment, self.relative(node), "content")
        key = node.item.number, version
        if self._cold_latency and key not in self._warm and not request.fetched:
            request.fetched = True
            raise NotYetError(now + self._cold_latency, self.relative(node), "cold")
        self._warm.add(key)

    def relative(self, node: Node) -> bytes:
        """The path of a node below /data."""
        return self.tree.path(node.item)[len(self.tree.path(self.tree.root)) + 1 :]

    def create(self, request: Request) -> bytes:
        """CREATE: its file belongs to this runner alone until it is closed."""
        flags, mode, _, _ = protocol.CREATE_IN.unpack_from(request.data)
        name = protocol.names(bytes(request.data), protocol.CREATE_IN.size)[0]
        folder = self.nodes.get(request.node).folder
        seen = self.tree.look(folder, name, self.place)
        if seen is not None:
            return self._open_existing(request, seen, flags)
        taken = self.tree.is_taken(folder, name, self.place)
        if taken is not None:
            if flags & os.O_EXCL:
                raise failure(errno.EEXIST)
            self.tree.record(self.tree.history(folder, name), taken, self.place)
            return self._open_existing(request, taken, flags)
        history = self.clear(folder, name)
        opened = os.O_CREAT | os.O_EXCL | flags & _KEPT_FLAGS
        descriptor = Descriptor(os.open(self.tree.child(folder, name), opened, mode))
        status = os.fstat(descriptor.number)
        item = self.made(request, status, folder, name, history)
        entry = self.entry(item)
        (number,) = protocol.LINK_IN.unpack_from(entry)
        handle = Handle(self.nodes.get(number), descriptor, flags, process_of(request.pid), True)
        return entry + protocol.OPEN_OUT.pack(self.nodes.open(handle), 0, 0)

    def _open_existing(self, request: Request, item: object, flags: int) -> bytes:
        """What is to be created is there: it just arrived, or is open on the same server."""
        if flags & os.O_EXCL or not isinstance(item, File):
            raise failure(errno.EEXIST)
        entry = self.entry(item)
        (number,) = protocol.LINK_IN.unpack_from(entry)
        try:
            return entry + self._open(request, self.nodes.get(number), flags)
        except BaseException:
            self.nodes.forget(number, 1)
            raise

    def flush(self, request: Request) -> bytes:
        """FLUSH, of each close(): what was written is published, if its own process closes it.

        A child process that closes what it inherited publishes nothing.
        """
        number, _, _, owner = protocol.FLUSH_IN.unpack_from(request.data)
        handle = self.nodes.handle(number)
        self.locks.release(handle.node.file, owner)
        if handle.changed and process_of(request.pid) in (0, handle.opener):
            self._publish(handle)
        return b""

    def release(self, request: Request) -> bytes:
        """RELEASE and RELEASEDIR: nobody has it open any more."""
        number, *_ = protocol.RELEASE_IN.unpack_from(request.data)
        handle = self.nodes.handles.pop(number, None)
        if handle is not None and handle.entries is None and handle.changed:
            self._publish(handle)
        return b""

    def end(self) -> None:
        """The runner is gone: its files are closed, as the kernel does for a killed process."""
        for handle in self.nodes.handles.values():
            if handle.entries is None and handle.changed:
                self._publish(handle)
        self.nodes.handles.clear()
        self.locks = Locks()

    def _publish(self, handle: Handle) -> None:
        handle.changed = False
        self.tree.publish(handle.node.file, self.place)
        self._warm.add((handle.node.item.number, handle.node.version))

    def sync(self, request: Request) -> bytes:
        """FSYNC: on the host's disk; others see it when it is closed."""
        number, flags, _ = protocol.FSYNC_IN.unpack_from(request.data)
        handle = self.nodes.handle(number)
        if handle.descriptor is not None:
            (os.fdatasync if flags & 1 else os.fsync)(handle.number)
        return b""

    # --- content ---------------------------------------------------------------------------------

    def read(self, request: Request) -> bytes:
        """READ."""
        number, offset, size, *_ = protocol.READ_IN.unpack_from(request.data)
        handle = self.nodes.handle(number)
        version = handle.node.version
        copy = version.value if version is not None else None
        return os.pread(copy.number if copy is not None else handle.number, size, offset)

    def write(self, request: Request) -> bytes:
        """WRITE."""
        number, offset, size, *_ = protocol.WRITE_IN.unpack_from(request.data)
        handle = self.nodes.handle(number)
        self._begin(handle, handle.node.version)
        data = memoryview(request.data)[protocol.WRITE_IN.size :][:size]
        return protocol.WRITE_OUT.pack(os.pwrite(handle.number, data, offset), 0)

    def _begin(self, handle: Handle, base: Version[Content] | None) -> None:
        """Before a file is changed: others keep the content that they see."""
        if base is not None:
            begun = self.tree.change(handle.node.file, self.place, base)
            if self.tree.staged:
                self.nodes.turn(handle.node, begun)
        handle.changed = True

    def allocate(self, request: Request) -> bytes:
        """FALLOCATE."""
        number, offset, length, mode, _ = protocol.FALLOCATE_IN.unpack_from(request.data)
        if mode:
            raise failure(errno.EOPNOTSUPP)
        handle = self.nodes.handle(number)
        self._begin(handle, handle.node.version)
        os.posix_fallocate(handle.number, offset, length)
        return b""

    # --- attributes ------------------------------------------------------------------------------

    def set_attributes(self, request: Request) -> bytes:
        """SETATTR: length, mode, owner, times."""
        valid, _, number, size, _, *times, mode, _, uid, gid, _ = protocol.SETATTR_IN.unpack_from(
            request.data
        )
        node = self.nodes.get(request.node)
        if valid & protocol.SET_SIZE:
            self._truncate(request, node, number if valid & protocol.SET_HANDLE else None, size)
        path = self.tree.path(node.item)
        if valid & (protocol.SET_UID | protocol.SET_GID):
            owner = uid if valid & protocol.SET_UID else -1
            group = gid if valid & protocol.SET_GID else -1
            os.chown(path, owner, group, follow_symlinks=not node.item.places)
        if valid & protocol.SET_MODE:
            os.chmod(path, mode & 0o7777)
        if valid & (protocol.SET_ATIME | protocol.SET_MTIME):
            self._set_times(node, valid, times)
        return self.attributes_of(node)

    def _truncate(self, request: Request, node: Node, number: int | None, size: int) -> None:
        if number is not None:
            handle = self.nodes.handle(number)
            self._begin(handle, handle.node.version)
            os.ftruncate(handle.number, size)
            return
        descriptor = Descriptor(os.open(self.tree.path(node.file), os.O_WRONLY))
        handle = Handle(node, descriptor, os.O_WRONLY)
        self._begin(handle, node.version)
        os.ftruncate(descriptor.number, size)
        if not any(h.node is node and h.changed for h in self.nodes.handles.values()):
            self._publish(handle)

    def _set_times(self, node: Node, valid: int, times: list[int]) -> None:
        path, follow = self.tree.path(node.item), not node.item.places
        now = protocol.SET_ATIME_NOW | protocol.SET_MTIME_NOW
        if valid & now == now:
            os.utime(path, follow_symlinks=follow)
            return
        status = self.tree.status(node.item)
        atime, mtime, _, atime_rest, mtime_rest, _ = times
        wanted = [status.st_atime_ns, status.st_mtime_ns]
        if valid & protocol.SET_ATIME:
            wanted[0] = _signed(atime) * 1_000_000_000 + atime_rest
        if valid & protocol.SET_MTIME:
            wanted[1] = _signed(mtime) * 1_000_000_000 + mtime_rest
        os.utime(path, ns=(wanted[0], wanted[1]), follow_symlinks=follow)

    # --- locks -----------------------------------------------------------------------------------

    def set_lock(self, request: Request) -> bytes:
        """SETLK and SETLKW."""
        number, *_ = protocol.LOCK_IN.unpack_from(request.data)
        self.locks.set(request, self.nodes.handle(number))
        return b""

    def get_lock(self, request: Request) -> bytes:
        """GETLK."""
        number, *_ = protocol.LOCK_IN.unpack_from(request.data)
        return self.locks.get(request, self.nodes.handle(number))


def _signed(seconds: int) -> int:
    return seconds - (1 << 64) if seconds >> 63 else seconds
