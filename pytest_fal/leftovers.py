"""What a test may not leave behind: the state of the process before and after, and the difference.

Compared are threads, descriptors, processes, mounts, environment variables, the working directory,
``sys.path``, attributes that the emulator and others replace, mocks, moto, freezegun, and what was
made in the folder for temporary files. What is not counted, as it is nobody's fault:

* what a module opened while it was imported: a module cannot be un-imported;
* connections that a pool of urllib3 (requests, boto3), httpcore (httpx) or aiohttp keeps to use
  again, and threads of a ``ThreadPoolExecutor`` that all wait for work. One that nobody holds any
  more ends by itself, so whoever made it keeps it;
* what a log handler opened when it wrote; tqdm's monitor; the resource tracker and fork server of
  multiprocessing and of joblib; the event loop that asyncio has set for the thread;
* what a thread opened, or started, that was there before the test: a server of the session's;
* a file or connection in the place of one to the same path or address that was closed meanwhile;
* ``/dev/urandom`` and NVIDIA's devices, which libraries open once (``fal_cuda_runner`` watches the
  latter itself); threads that are not Python's, such as numpy's, and what they wait with.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pytest_fal import descriptors as fds
from pytest_fal import mocking, processes
from pytest_fal.openers import Place, Recorder

__all__ = ["Leak", "Snapshot", "attributes"]

#: Threads of the session's emulator, which live until the session ends.
SESSION_THREADS = ("fal-wire", "fal-sweeper", "fal-forkserver")
#: In seconds: how long what is just ending may take to end.
PATIENCE = 2.0

#: Whose doing is nobody's fault: how the path of its file ends, and its function.
_LIVES_ON = (
    ("<frozen importlib._bootstrap>", ""),
    ("/importlib/_bootstrap.py", ""),
    ("/multiprocessing/resource_tracker.py", ""),
    ("/multiprocessing/forkserver.py", "ensure_running"),
    ("/loky/backend/resource_tracker.py", ""),
    ("/tqdm/_monitor.py", ""),
    ("/urllib3/connectionpool.py", ""),
    ("/httpcore/_sync/connection_pool.py", ""),
    ("/httpcore/_async/connection_pool.py", ""),
    ("/aiohttp/connector.py", ""),
    ("/logging/__init__.py", "emit"),
    ("/logging/handlers.py", "emit"),
    # tmp_path, wherever --basetemp puts it
    ("/_pytest/tmpdir.py", ""),
    ("/_pytest/pathlib.py", ""),
)
#: Everything of other packages that the emulator, or a mock of HTTP, replaces while it is active.
_ATTRIBUTES = {
    "time": "time sleep monotonic perf_counter time_ns",
    "datetime": "datetime date",
    "asyncio": "sleep",
    "os": "stat lstat fstat scandir utime open listdir rename readlink getcwd execve system",
    "io": "open open_code",
    "subprocess:Popen": "__init__",
    "builtins": "open input print",
    "socket": "getaddrinfo gethostbyname gethostbyname_ex gethostbyaddr getnameinfo "
    "create_connection",
    "socket:socket": "bind connect connect_ex sendto sendmsg",
    "httpcore:ConnectionPool": "handle_request",
    "httpcore:AsyncConnectionPool": "handle_async_request",
    "httpx:HTTPTransport": "handle_request",
    "httpx:AsyncHTTPTransport": "handle_async_request",
    "requests.adapters:HTTPAdapter": "send",
    "urllib.request": "_opener urlopen",
    "importlib.metadata": "distributions",
    "tempfile": "tempdir",
    "sys": "stdout stderr excepthook",
    "threading": "excepthook",
    "threading:Thread": "start run",
    "fal.ref": "current_app",
    "fal.auth.local": "_FAL_HOME_DIR",
    "fal.api:FalServerlessHost": "spawn",
    "grpc._cython.cygrpc": "Channel AioChannel",
    "aiohttp.connector": "_SSL_CONTEXT_VERIFIED",
}
_WHERE = [
    (module, owner, name, f"{module}{'.' if owner else ''}{owner}.{name}")
    for place, names in _ATTRIBUTES.items()
    for module, _, owner in [place.partition(":")]
    for name in names.split()
]
_UNKNOWN = object()


class _Real:
    """Functions that a test's clock must not replace here."""

    clock_gettime = staticmethod(getattr(time, "clock_gettime", lambda _: time.monotonic()))
    sleep = staticmethod(time.sleep)
    stat = staticmethod(os.stat)
    getcwd = staticmethod(os.getcwd)


@dataclass(frozen=True)
class Leak:
    """One thing that was left behind."""

    #: ``"thread"``, ``"descriptor"``, ``"mount"`` and so on.
    kind: str
    #: What it is.
    text: str
    #: What to say before the place: ``"opened"``.
    verb: str = ""
    place: Place | None = None
    #: Why nobody can know the place.
    unknown: str = ""

    def describe(self, root: str = "") -> str:
        """The whole line: what it is, and what opened it."""
        text = self.text.replace(f"({os.path.join(root, '')}", "(") if root else self.text
        if self.place is not None:
            return f"{text}; {self.verb} at {self.place.describe(root)}"
        return f"{text}; {self.unknown}" if self.unknown else text


@dataclass
class Snapshot:
    """The state of the process that tests must not change."""

    threads: set[threading.Thread]
    descriptors: dict[int, fds.Descriptor]
    mounts: bytes
    children: set[int]
    environment: dict[Any, Any]
    directory: str
    path: list[str]
    attributes: dict[str, object]
    frozen: list[object]
    mocks: list[object]
    moto: int
    buckets: frozenset[str]
    #: The real time, in seconds.
    at: float
    recorder: Recorder | None = None
    #: Variables that were set meanwhile by others: so they are now, or as before.
    adopted: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def take(cls, recorder: Recorder | None = None) -> Snapshot:
        """Look at the process now.

        Args:
            recorder: is asked for what opened the things that are found later.
        """
        return cls(
            threads=set(threading.enumerate()),
            descriptors=fds.descriptors(),
            mounts=_mounts(),
            children=processes.children(),
            environment=_environment(),
            directory=_directory(),
            path=list(sys.path),
            attributes=attributes(),
            frozen=list(getattr(sys.modules.get("freezegun.api"), "freeze_factories", ())),
            mocks=mocking.started(),
            moto=mocking.moto_nested(),
            buckets=mocking.moto_buckets(),
            at=_now(),
            recorder=recorder,
        )

    def adopt(self, then: Snapshot, now: Snapshot) -> None:
        """Take what has changed between two other moments for something that was always there."""
        self.threads |= now.threads - then.threads
        self.children |= now.children - then.children
        for number, one in now.descriptors.items():
            if not one.is_same(then.descriptors.get(number)):
                self.descriptors[number] = one
        if now.mounts != then.mounts:
            self.mounts += now.mounts
        # The emulator of the test takes variables back, as it knows nothing of fixtures.
        _adopt(self.adopted, then.environment, now.environment)
        _adopt(self.attributes, then.attributes, now.attributes)
        if now.directory != then.directory:
            self.directory = now.directory
        if now.path != then.path:
            self.path = now.path
        self.frozen += [one for one in now.frozen if not _is_in(one, then.frozen)]
        self.mocks += [one for one in now.mocks if not _is_in(one, then.mocks)]
        self.moto += now.moto - then.moto
        self.buckets |= now.buckets - then.buckets

    def leaks_since(
        self, session: bool = False, allowed: Callable[[Leak], bool] = lambda _: False
    ) -> list[Leak]:
        """What is there now that was not.

        Args:
            session: what the emulator opened for the whole session is new since, and no leak.
            allowed: whether a leak is none.
        """

        def compare() -> list[Leak]:
            return [leak for leak in self._compare(session) if not allowed(leak)]

        found = compare()
        if not found:
            return found
        gc.collect()  # cycles are no leaks
        end = _now() + PATIENCE
        while (found := compare()) and _now() < end and any(map(_may_end, found)):
            _Real.sleep(0.002)
        return found

    # --- inside ----------------------------------------------------------------------------------

    def _compare(self, session: bool) -> list[Leak]:
        now = Snapshot.take()
        found = [
            *self._threads(now),
            *self._processes(now),
            *self._descriptors(now),
            *self._mounts(now),
            *self._variables(now),
            *self._places(now),
            *self._attributes(now),
            *self._mocking(now),
            *self._made(),
        ]
        return [leak for leak in found if not (leak.place and self._is_excused(leak, session))]

    def _is_excused(self, leak: Leak, session: bool) -> bool:
        assert leak.place is not None
        place = leak.place
        if place.passes(_LIVES_ON):
            return True
        if session and leak.kind in ("descriptor", "process") and place.is_the_emulators:
            return True
        others = (one for one in self.threads if one is not threading.current_thread())
        return any(
            one.ident == place.thread and not one.name.startswith(SESSION_THREADS) for one in others
        )

    def _threads(self, now: Snapshot) -> Iterator[Leak]:
        for thread in now.threads - self.threads:
            if thread.name.startswith(SESSION_THREADS) or _lives_on(thread):
                continue
            place = self.recorder.threads.get(thread) if self.recorder else None
            text = f"thread {thread.name!r} is running{_target(thread)}"
            yield Leak("thread", text, "started", place, _NATIVE)

    def _processes(self, now: Snapshot) -> Iterator[Leak]:
        for number in sorted(now.children - self.children - processes.servers()):
            command, ended = processes.command_of(number)
            state = "has ended and nobody has waited for it" if ended else "is running"
            place = self._starter(number, command)
            text = f"process {number} {state}{processes.shown(command)}"
            yield Leak("process", text, "started", place, _NATIVE)

    def _starter(self, number: int, command: list[str]) -> Place | None:
        """Where a process was started: by its command line, or by the time."""
        noted = self.recorder.processes if self.recorder else []
        exactly = [place for words, place in noted if words and words == command]
        if len(exactly) == 1:
            return exactly[0]
        started = processes.start_of(number)
        before = [p for _, p in noted if started is not None and p.at <= started + 0.02]
        return max(exactly or before, key=lambda place: place.at, default=None)

    def _descriptors(self, now: Snapshot) -> Iterator[Leak]:
        new = _not_in(now.descriptors, self.descriptors)
        new = {n: target for n, target in new.items() if not _is_of_a_library(target)}
        if not new:
            return
        gone = Counter(_not_in(self.descriptors, now.descriptors).values())
        shown = {number: fds.describe(number, target) for number, target in new.items()}
        loop = fds.of_the_current_loop()
        for number, target in sorted(new.items()):
            if gone[target] > 0:
                gone[target] -= 1  # in the place of one to the same: a log that was begun anew
            elif number not in loop and not _is_being_swept(number, target):
                leak = self._descriptor(number, target, shown[number])
                if leak.place or not fds.is_of_native_code(number, target):
                    yield leak

    def _descriptor(self, number: int, target: str, shown: str) -> Leak:
        place = None
        if self.recorder is not None:
            path = fds.path_of(number, target, self.recorder)
            place = self.recorder.files.get(path or "")
            if place is not None and target.startswith("/"):
                shown = str(path)
            place = place or fds.opener(number, target, self.recorder)
        return Leak("descriptor", f"descriptor {number} is open: {shown}", "opened", place, _NATIVE)

    def _mounts(self, now: Snapshot) -> Iterator[Leak]:
        if now.mounts == self.mounts:
            return
        known = Counter(_mounted(self.mounts))
        for place, kind in _mounted(now.mounts):
            known[(place, kind)] -= 1
            if known[(place, kind)] < 0:
                yield Leak("mount", f"mounted: {place} ({kind})", unknown=_KERNEL)

    def _variables(self, now: Snapshot) -> Iterator[Leak]:
        if now.environment == self.environment:
            return
        changed = {
            key
            for key in now.environment.keys() | self.environment.keys()
            if now.environment.get(key) != self.environment.get(key)
            if key not in self.adopted or now.environment.get(key) != self.adopted[key]
        }
        for key in sorted(changed):
            name = os.fsdecode(key)
            old, new = (_value(name, one.environment.get(key)) for one in (self, now))
            place = self.recorder.variables.get(os.fsencode(key)) if self.recorder else None
            text = f"environment variable {name}: {old} -> {new}"
            yield Leak("environment", text, "set", place, _NATIVE)

    def _places(self, now: Snapshot) -> Iterator[Leak]:
        if now.directory != self.directory:
            text = f"the working directory is {now.directory}, and was {self.directory}"
            place = self.recorder.directory if self.recorder else None
            yield Leak("directory", text, "changed", place, _NATIVE)
        if now.path != self.path:
            added = [entry for entry in now.path if entry not in self.path]
            removed = [entry for entry in self.path if entry not in now.path]
            what = [f"{entry!r} was added" for entry in added]
            what += [f"{entry!r} was removed" for entry in removed]
            text = f"sys.path has changed: {', '.join(what) or 'its order'}"
            yield Leak("path", text, unknown="Python tells nobody who changes it")

    def _attributes(self, now: Snapshot) -> Iterator[Leak]:
        mocks = [mock for mock in now.mocks if not _is_in(mock, self.mocks)]
        told = [getattr(mock, "new", None) for mock in mocks]  # see below
        frozen = len(now.frozen) > len(self.frozen)
        for name, value in self.attributes.items():
            current = now.attributes.get(name, _UNKNOWN)
            if current is value or _UNKNOWN in (current, value) or _is_in(current, told):
                continue
            if not (frozen and getattr(current, "__module__", None) == "freezegun.api"):
                text = f"{name} is {mocking.whose(current)}, and was {mocking.whose(value)}"
                yield Leak("attribute", text, unknown=_SILENT)

    def _mocking(self, now: Snapshot) -> Iterator[Leak]:
        recorder = self.recorder or Recorder()
        if now.moto > self.moto:
            place = recorder.last_start("MockAWS")
            yield Leak("moto", "moto: mock_aws is still started", "started", place, _EARLY)
        elif not now.moto:
            for bucket in sorted(now.buckets - self.buckets):
                text = f"moto: the bucket {bucket!r} is still there, and no mock is active"
                yield Leak("moto", text, unknown=_SILENT)
        for factory in now.frozen:
            if not _is_in(factory, self.frozen):
                place = recorder.started(factory)
                yield Leak("freezegun", "freezegun is still engaged", "started", place, _EARLY)
        for mock in now.mocks:
            place = recorder.started(mock)
            if not _is_in(mock, self.mocks) and not (place and place.passes(_MOTO)):
                text = f"unittest.mock: the patch of {mocking.patched(mock)} is still started"
                yield Leak("mock", text, "started", place, _EARLY)

    def _made(self) -> Iterator[Leak]:
        for path, place in (self.recorder.made if self.recorder else {}).items():
            try:
                status = _Real.stat(path, follow_symlinks=False)
            except OSError:
                continue
            # Another's of this name, in the test's own /tmp, was made before or not at all.
            if status.st_ctime < self.at - 0.05:
                continue
            kind = "folder" if os.path.isdir(path) else "file"
            yield Leak("temporary", f"temporary {kind} {path} is still there", "made", place)


_MOTO = (("/moto/core/models.py", ""),)
_NATIVE = "it was not Python that opened it, or not in a way that can be followed"
_KERNEL = "the kernel tells nobody who mounts"
_EARLY = "started before that could be followed"
_SILENT = "Python tells nobody who sets it"


def _not_in(some: dict[int, fds.Descriptor], others: dict[int, fds.Descriptor]) -> dict[int, str]:
    """The targets of those that the others have not."""
    return {n: one.target for n, one in some.items() if not one.is_same(others.get(n))}


def attributes() -> dict[str, object]:
    """What other packages' attributes are now, by name; of those that have been imported."""
    found: dict[str, object] = {}
    modules = sys.modules
    for module, owner, name, shown in _WHERE:
        where: Any = modules.get(module)
        if where is not None and owner:
            where = getattr(where, owner, None)
        if where is not None:
            value = getattr(where, name, _UNKNOWN)
            keeper = type(getattr(value, "__self__", None))
            # pytest before 8.4 sets its own hook anew in each phase of a test.
            found[shown] = keeper if keeper.__module__ == "_pytest.threadexception" else value
    return found


def _now() -> float:
    return float(_Real.clock_gettime(time.CLOCK_REALTIME))


def _directory() -> str:
    try:
        return _Real.getcwd()
    except OSError:
        return "a folder that was removed"


def _environment() -> dict[Any, Any]:
    """A copy of the environment, without decoding it where the interpreter keeps it as bytes."""
    data = getattr(os.environ, "_data", None)
    found: dict[Any, Any] = dict(os.environ) if data is None else data.copy()
    for name in ("PYTEST_CURRENT_TEST", b"PYTEST_CURRENT_TEST"):
        found.pop(name, None)
    return found


def _mounts() -> bytes:
    """The kernel's table of mounts of this thread's namespace; empty where there is none."""
    try:
        with open("/proc/thread-self/mountinfo", "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""


def _mounted(table: bytes) -> list[tuple[str, str]]:
    """Places and kinds of file system."""
    found = []
    for line in table.decode(errors="replace").splitlines():
        fields = line.split()
        found.append((fields[4], fields[fields.index("-") + 1]))
    return found


def _may_end(leak: Leak) -> bool:
    """Whether it may go away by itself."""
    return leak.kind in ("thread", "process", "descriptor", "temporary", "mount")


def _is_of_a_library(target: str) -> bool:
    return target in ("/dev/urandom", "/dev/random") or target.startswith("/dev/nvidia")


def _is_being_swept(number: int, target: str) -> bool:
    """Whether it is a folder that a passing test wrote to, which is removed in the background."""
    return "/volumes/" in target and fds.is_folder(number)


def _lives_on(thread: threading.Thread) -> bool:
    """Whether it is nobody's, or waits for work in a pool that somebody keeps."""
    if isinstance(thread, threading._DummyThread):
        return True
    arguments = getattr(thread, "_args", None) or ()
    executor = arguments[0]() if arguments and isinstance(arguments[0], weakref.ref) else None
    idle = getattr(executor, "_idle_semaphore", None)
    threads = getattr(executor, "_threads", ())
    return idle is not None and thread in threads and idle._value >= len(threads)


def _target(thread: threading.Thread) -> str:
    """What a thread does, where it says so."""
    function = getattr(thread, "_target", None)
    if function is not None:
        return f" {mocking.whose(function)}"
    if type(thread) is not threading.Thread and type(thread).run is not threading.Thread.run:
        return f" {mocking.whose(type(thread).run)}"
    return ""


def _value(name: str, value: bytes | str | None) -> str:
    """The value of a variable, unless nobody is to see it."""
    if value is None:
        return "not set"
    from emulator.ledger import is_secret, masked

    text = os.fsdecode(value)
    if is_secret(name.lower()):
        return "***"
    return processes.cut(repr(masked(text) if "://" in text else text))


def _is_in(one: object, others: list[object]) -> bool:
    return any(one is other for other in others)


def _adopt(mine: dict[Any, Any], old: dict[Any, Any], new: dict[Any, Any]) -> None:
    for key in old.keys() | new.keys():
        if old.get(key) is new.get(key) or old.get(key) == new.get(key):
            continue
        mine[key] = new.get(key)
