"""/data between runners as a state machine: what each of five sees, beside a model of versions.

It speaks to the file system as the kernel does, without one: thousands of steps a second.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from machines.machine import EmulatorMachine

from emulator.distributed import protocol
from emulator.distributed.files import FileOperations, NotYetError
from emulator.distributed.nodes import Request
from emulator.distributed.tree import Tree
from emulator.distributed.visibility import ALWAYS, Delays, Place

__all__ = ["DataBetweenRunners"]

DELAYS = Delays(datacenter=2, everywhere=9, listing=4)
PLACES = [
    Place("r1", "a", "us"),
    Place("r2", "a", "us"),
    Place("r3", "b", "us"),
    Place("r4", "c", "eu"),
    Place("r5", "c", "eu"),
]
#: Few, so that they meet; one in a folder.
NAMES = ["x", "y", "d/x"]

places = st.integers(0, len(PLACES) - 1)
names = st.sampled_from(NAMES)
contents = st.sampled_from([b"1", b"22", b"333"])


class Client:
    """The kernel, for one runner."""

    def __init__(self, tree: Tree, place: Place) -> None:
        self.operations = FileOperations(tree, place, set())

    def call(self, code: int, node: int, data: bytes = b"") -> bytes:
        request = Request(code, 1, node, 0, 0, os.getpid(), data)
        return self.operations.handlers[code](request)

    def find(self, path: str) -> int:
        node = protocol.ROOT
        for name in path.split("/"):
            entry = self.call(protocol.LOOKUP, node, name.encode() + b"\0")
            (node,) = protocol.FORGET_IN.unpack_from(entry)
        return node

    def parent(self, path: str) -> tuple[int, bytes]:
        folder, _, name = path.rpartition("/")
        return (self.find(folder) if folder else protocol.ROOT), name.encode() + b"\0"

    def open(self, path: str, flags: int) -> int:
        """The handle; a file that is not seen is created, as open(2) does it."""
        try:
            node = self.find(path)
        except OSError:
            if not flags & os.O_CREAT:
                raise
            folder, name = self.parent(path)
            answer = self.call(
                protocol.CREATE, folder, protocol.CREATE_IN.pack(flags, 0o600, 0, 0) + name
            )[-protocol.OPEN_OUT.size :]
        else:
            answer = self.call(protocol.OPEN, node, protocol.OPEN_IN.pack(flags & ~os.O_CREAT, 0))
        return protocol.OPEN_OUT.unpack(answer)[0]

    def write(self, handle: int, data: bytes) -> None:
        self.call(
            protocol.WRITE, 0, protocol.WRITE_IN.pack(handle, 0, len(data), 0, 0, 0, 0) + data
        )

    def close(self, handle: int) -> None:
        self.call(protocol.FLUSH, 0, protocol.FLUSH_IN.pack(handle, 0, 0, 0))
        self.call(protocol.RELEASE, 0, protocol.RELEASE_IN.pack(handle, 0, 0, 0))

    def read(self, path: str) -> bytes:
        handle = self.open(path, os.O_RDONLY)
        try:
            return self.call(protocol.READ, 0, protocol.READ_IN.pack(handle, 0, 99, 0, 0, 0, 0))
        finally:
            self.close(handle)

    def size(self, path: str) -> int:
        answer = self.call(protocol.GETATTR, self.find(path), protocol.GETATTR_IN.pack(0, 0, 0))
        return protocol.ATTRIBUTES.unpack_from(answer, protocol.ATTRIBUTES_VALID.size)[1]

    def list(self, path: str = "") -> list[str]:
        node = self.find(path) if path else protocol.ROOT
        handle = protocol.OPEN_OUT.unpack(self.call(protocol.OPENDIR, node))[0]
        data = self.call(protocol.READDIR, node, protocol.READ_IN.pack(handle, 0, 9999, 0, 0, 0, 0))
        self.call(protocol.RELEASEDIR, node, protocol.RELEASE_IN.pack(handle, 0, 0, 0))
        found = []
        while data:
            _, _, length, _ = protocol.ENTRY_IN_LISTING.unpack_from(data)
            start = protocol.ENTRY_IN_LISTING.size
            found.append(data[start : start + length].decode())
            data = data[start + length + -(start + length) % 8 :]
        return sorted(set(found) - {".", ".."})


class Model:
    """For each name and each file what it was, by whom and since when; None: it is open."""

    def __init__(self) -> None:
        self.now = 0
        self.names: dict[str, list[list]] = {name: [[None, None, ALWAYS]] for name in NAMES}
        self.files: list[list[list]] = []

    def delay(self, by: Place, observer: Place, content: bool) -> int:
        if by.shares_server_with(observer):
            return 0
        if by.datacenter == observer.datacenter:
            return 2
        return 9 if content else 4

    def arrived(self, entry: list, observer: Place, content: bool = False) -> bool:
        _, by, at = entry
        if by is None or by == observer:
            return True
        return at is not None and at + self.delay(by, observer, content) <= self.now

    def seen(self, history: list[list], observer: Place) -> list:
        arrived = [entry for entry in history if self.arrived(entry, observer)]
        # Who renames what it does not see yet has the name before the content.
        return arrived[-1] if arrived else history[0]

    def file(self, name: str, observer: Place) -> int | None:
        return self.seen(self.names[name], observer)[0]

    def live(self, name: str) -> int | None:
        return self.names[name][-1][0]

    def content(self, file: int, observer: Place) -> list:
        return self.seen(self.files[file], observer)


class DataBetweenRunners(EmulatorMachine):
    """Five runners on three servers in two datacenters."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        root, scratch = self.folder / "data", self.folder / "scratch"
        (root / "d").mkdir(parents=True)
        scratch.mkdir()
        self.root = root
        self.model = Model()
        self.tree = Tree(os.fsencode(root), str(scratch), DELAYS, lambda: self.model.now)
        self.clients = [Client(self.tree, place) for place in PLACES]
        #: Runner, handle, file and content of what is open for writing.
        self.opened: list[tuple[int, int, int, list]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # --- steps -----------------------------------------------------------------------------------

    @rule(who=places, name=names, data=contents)
    def write(self, who: int, name: str, data: bytes) -> None:
        """Open, write, close: as ``Path.write_bytes``."""
        if self.is_open(who, name):
            return
        handle, entries = self.begin(who, name, data)
        self.clients[who].close(handle)
        self.publish(entries)

    @rule(who=places, name=names, data=contents)
    @precondition(lambda self: not self.opened)
    def write_and_keep_open(self, who: int, name: str, data: bytes) -> None:
        """Somebody is in the middle of writing."""
        handle, entries = self.begin(who, name, data)
        file = self.model.file(name, PLACES[who])
        self.opened.append((who, handle, file, entries))

    @rule()
    @precondition(lambda self: self.opened)
    def close(self) -> None:
        """It is written."""
        who, handle, _, entries = self.opened.pop()
        self.clients[who].close(handle)
        self.publish(entries)

    @rule(who=places, name=names)
    def unlink(self, who: int, name: str) -> None:
        """Remove a name."""
        if self.model.file(name, PLACES[who]) is None:
            self.fails(errno.ENOENT, self.remove, who, name)
            return
        self.remove(who, name)
        self.model.names[name].append([None, PLACES[who], self.model.now])

    @rule(who=places, source=names, goal=names)
    def rename(self, who: int, source: str, goal: str) -> None:
        """Rename, over whatever is there."""
        place, model = PLACES[who], self.model
        file = model.live(source)
        if (
            self.opened
            and self.opened[0][2] in (file, model.live(goal))
            and self.opened[0][0] != who
        ):
            return  # a file that its maker alone knows
        if file is None or model.file(source, place) is None:
            self.fails(errno.ENOENT, self.move, who, source, goal)
            return
        self.move(who, source, goal)
        if source == goal:
            return
        model.names[source].append([None, place, model.now])
        entry = [file, place, model.now]
        if self.opened and file == self.opened[0][2]:
            writing = self.opened[0][3]
            if all(at is None for _, _, at in model.files[file]):
                entry[2] = None
                writing.append(entry)
        model.names[goal].append(entry)

    @rule(span=st.integers(1, 5))
    def advance(self, span: int) -> None:
        """Time goes by."""
        self.model.now += span
        self.tree.settle()

    # --- how -------------------------------------------------------------------------------------

    def begin(self, who: int, name: str, data: bytes) -> tuple[int, list[list]]:
        """Write without closing: in the model, what is published later."""
        place, model, client = PLACES[who], self.model, self.clients[who]
        file = model.file(name, place)
        handle = client.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        client.write(handle, data)
        entries = []
        if file is None:
            file = len(model.files)
            model.files.append([])
            model.names[name].append([file, place, None])
            entries.append(model.names[name][-1])
        model.files[file].append([data, place, None])
        entries.append(model.files[file][-1])
        return handle, entries

    def publish(self, entries: list[list]) -> None:
        for entry in entries:
            entry[2] = self.model.now

    def is_open(self, who: int, name: str) -> bool:
        """Two that write one file at the same time mix their bytes: not modelled."""
        if not self.opened:
            return False
        seen, live = self.model.file(name, PLACES[who]), self.model.live(name)
        return self.opened[0][2] in (seen, live)

    def remove(self, who: int, name: str) -> None:
        client = self.clients[who]
        client.call(protocol.UNLINK, *client.parent(name))

    def move(self, who: int, source: str, target: str) -> None:
        client = self.clients[who]
        (old, name), (new, other) = client.parent(source), client.parent(target)
        client.call(protocol.RENAME, old, protocol.RENAME_IN.pack(new) + name + other)

    def fails(self, number: int, action: object, *arguments: object) -> None:
        with pytest.raises(OSError) as failed:
            action(*arguments)
        assert failed.value.errno == number

    # --- what always holds -----------------------------------------------------------------------

    def check(self) -> None:
        for place, client in zip(PLACES, self.clients, strict=True):
            there = [name for name in NAMES if self.model.file(name, place) is not None]
            shown = client.list() + [f"d/{name}" for name in client.list("d")]
            assert sorted(there) == sorted(set(shown) - {"d"})
            for name in there:
                self.check_content(place, client, name)
        live = {name: self.model.live(name) for name in NAMES}
        for name, file in live.items():
            path = self.root / name
            assert path.exists() == (file is not None)
            if file is not None:
                assert path.read_bytes() == self.model.files[file][-1][0]

    def check_content(self, place: Place, client: Client, name: str) -> None:
        entry = self.model.content(self.model.file(name, place), place)
        assert client.size(name) == len(entry[0])
        if self.model.arrived(entry, place, content=True):
            assert client.read(name) == entry[0]
            return
        with pytest.raises(NotYetError) as waits:
            client.read(name)
        assert waits.value.until == entry[2] + self.model.delay(entry[1], place, True)
