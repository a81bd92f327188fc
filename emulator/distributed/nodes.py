"""What the kernel holds of a runner's /data: numbers of files it knows and of files it has open."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

from emulator.distributed import protocol
from emulator.distributed.tree import Content, Descriptor, File, Folder, Item, failure
from emulator.distributed.visibility import Version

__all__ = ["Handle", "Node", "Nodes", "Request", "process_of"]


@dataclass
class Request:
    """One request of the kernel's."""

    code: int
    unique: int
    node: int
    uid: int
    gid: int
    #: The thread that makes the system call.
    pid: int
    data: bytes | memoryview
    #: The latency of names was waited for already.
    paid: bool = False
    #: So was that of a cache that did not have the file.
    fetched: bool = False


@dataclass(eq=False)
class Node:
    """A file or folder with the content that one runner sees: another content is another node.

    So the kernel's own cache of pages never mixes two contents.
    """

    number: int
    item: Item
    #: None: a folder.
    version: Version[Content] | None
    lookups: int = 0

    @property
    def file(self) -> File:
        """The file.

        Raises:
            OSError: it is a folder.
        """
        if not isinstance(self.item, File):
            raise failure(errno.EISDIR)
        return self.item

    @property
    def folder(self) -> Folder:
        """The folder.

        Raises:
            OSError: it is a file.
        """
        if not isinstance(self.item, Folder):
            raise failure(errno.ENOTDIR)
        return self.item


@dataclass(eq=False)
class Handle:
    """An open file or folder."""

    node: Node
    #: None: a folder.
    descriptor: Descriptor | None = None
    flags: int = 0
    #: The process that opened it.
    opener: int = 0
    #: Written to since it was last published.
    changed: bool = False
    entries: list[tuple[bytes, int, int]] | None = None

    @property
    def number(self) -> int:
        """The descriptor's number.

        Raises:
            OSError: there is none.
        """
        if self.descriptor is None:
            raise failure(errno.EBADF)
        return self.descriptor.number

    @property
    def is_writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


@dataclass
class Nodes:
    """The tables of one mount."""

    root: Folder
    handles: dict[int, Handle] = field(default_factory=dict)
    _nodes: dict[int, Node] = field(default_factory=dict)
    _numbers: dict[tuple[int, Version[Content] | None], int] = field(default_factory=dict)
    _count: int = protocol.ROOT

    def __post_init__(self) -> None:
        self._nodes[protocol.ROOT] = Node(protocol.ROOT, self.root, None, 1)

    def get(self, number: int) -> Node:
        """The node of a request."""
        node = self._nodes.get(number)
        if node is None:
            raise failure(errno.ESTALE)
        return node

    def enter(self, item: Item, version: Version[Content] | None) -> Node:
        """The node of what was found; the kernel knows it once more."""
        number = self._numbers.get((item.number, version))
        if number is None:
            self._count += 1
            number = self._numbers[item.number, version] = self._count
            self._nodes[number] = Node(number, item, version)
        node = self._nodes[number]
        node.lookups += 1
        return node

    def forget(self, number: int, times: int) -> None:
        """The kernel does not know a node any more."""
        node = self._nodes.get(number)
        if node is None or number == protocol.ROOT:
            return
        node.lookups -= times
        if node.lookups <= 0:
            del self._nodes[number]
            if self._numbers.get((node.item.number, node.version)) == number:
                del self._numbers[node.item.number, node.version]

    def turn(self, node: Node, version: Version[Content]) -> None:
        """A node's runner writes to it: what it stands for is the content being written now."""
        if node.version is version:
            return
        self._numbers.pop((node.item.number, node.version), None)
        node.version = version
        self._numbers.setdefault((node.item.number, version), node.number)

    def open(self, handle: Handle) -> int:
        """A number for an open file."""
        self._count += 1
        self.handles[self._count] = handle
        return self._count

    def handle(self, number: int) -> Handle:
        """The open file of a request."""
        handle = self.handles.get(number)
        if handle is None:
            raise failure(errno.EBADF)
        return handle


def process_of(thread: int) -> int:
    """The process that a thread belongs to; 0: it is gone."""
    try:
        with open(f"/proc/{thread}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Tgid:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
