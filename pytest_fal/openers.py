"""Who opened what: the line of code at which a thread, descriptor, process or folder began.

The interpreter announces most of it by its audit events. A hook for them cannot be removed again,
so there is one for the whole process, installed with the first :class:`Recorder`; while nobody
records it returns at once (60 ns an event). Three things are not announced and are replaced between
:func:`install` and :func:`uninstall`: ``threading.Thread.start``, what makes a descriptor without a
path (``os.pipe`` and its kin), and the ``start`` of freezegun, moto and ``unittest.mock``.

Native code that opens something by itself announces nothing; its opener stays unknown.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

__all__ = ["Place", "Recorder", "install", "uninstall"]

#: What is kept of a test at most, of each kind: the newest.
_MOST = 10_000
#: Frames below these are pytest's own.
_BOTTOM = frozenset({"pytest_pyfunc_call", "pytest_fixture_setup", "_multicall"})
_DEPTH = 200
#: What makes descriptors and announces nothing.
_MAKERS = ("pipe", "pipe2", "dup", "memfd_create", "eventfd", "pidfd_open", "timerfd_create")
#: Modules and their classes with a ``start`` that something has to follow.
_STARTS = (
    ("unittest.mock", "_patch"),
    ("unittest.mock", "_patch_dict"),
    ("freezegun.api", "_freeze_time"),
    ("moto.core.models", "MockAWS"),
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_NAMELESS: int = getattr(os, "O_TMPFILE", 0)
_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", 0)
_OWN = os.path.dirname(os.path.abspath(__file__))
_EMULATOR = os.path.join(os.path.dirname(_OWN), "emulator", "")
_INSTALLED = sysconfig.get_paths()
_STDLIB = tuple(os.path.join(_INSTALLED[name], "") for name in ("stdlib", "platstdlib"))
_LIBRARIES = (
    *_STDLIB,
    *(os.path.join(_INSTALLED[name], "") for name in ("purelib", "platlib")),
    *(os.path.join(path, "") for path in (*site.getsitepackages(), site.getusersitepackages())),
    os.path.join(_OWN, ""),
    _EMULATOR,
)


class _Real:
    """Functions that a test's clock must not replace here."""

    clock_gettime = staticmethod(getattr(time, "clock_gettime", lambda _: time.monotonic()))


@dataclass(frozen=True)
class Place:
    """Where something happened: the calls that led there, the innermost first."""

    calls: tuple[tuple[CodeType, int], ...]
    #: The thread, by its identifier.
    thread: int
    #: In seconds since the machine was started.
    at: float

    @property
    def files(self) -> list[str]:
        """The source file of each call."""
        return [code.co_filename for code, _ in self.calls]

    @property
    def is_the_emulators(self) -> bool:
        """Whether the emulator did it by itself: nobody else's code lies between."""
        for file in self.files:
            if file.startswith(_EMULATOR):
                return True
            if not _is_of_the_interpreter(file):
                return False
        return False

    def passes(self, places: Iterable[tuple[str, str]]) -> bool:
        """Whether one of the calls is in such a file (how its path ends), in such a function.

        Args:
            places: files and functions; an empty function is any.
        """
        return any(
            code.co_filename.endswith(file) and function in ("", code.co_name)
            for code, _ in self.calls
            for file, function in places
        )

    def describe(self, root: str = "") -> str:
        """``app.py:12 in load``; the line of a library that did it on behalf of that; and whose
        call led there: that of the test, of a fixture, or of a thread.

        Args:
            root: paths below it are shown relative to it.
        """
        shown = [(code, last) for code, last in self.calls if not code.co_filename.startswith("<")]
        own = [one for one in shown if not one[0].co_filename.startswith(_LIBRARIES)]
        others = [one for one in shown if not _is_of_the_interpreter(one[0].co_filename)]
        if not own:
            inner = (others or shown)[:1]
            return " ".join(_line(*one, root) for one in inner) or "a place that is not known"
        text = f"{_line(*own[0], root)} in {_name(own[0][0])}"
        if others[0] is not own[0]:
            text += f", by way of {_line(*others[0], root)}"
        if own[-1][0] is not own[0][0]:
            text += f", called from {_line(*own[-1], root)} in {_name(own[-1][0])}"
        return text


def _is_of_the_interpreter(file: str) -> bool:
    """Whether it is of the standard library."""
    if file.startswith("<"):
        return True
    return file.startswith(_STDLIB) and "site-packages" not in file


def _name(code: CodeType) -> str:
    return getattr(code, "co_qualname", code.co_name).replace("<locals>.", "")


def _line(code: CodeType, last: int, root: str) -> str:
    line = next((line for start, end, line in code.co_lines() if start <= last < end), None)
    return f"{_short(code.co_filename, root)}:{line or code.co_firstlineno}"


def _short(file: str, root: str) -> str:
    if "site-packages/" in file:
        return file.rpartition("site-packages/")[2]
    if root and file.startswith(os.path.join(root, "")):
        return os.path.relpath(file, root)
    library = next((path for path in _STDLIB if file.startswith(path)), "")
    return file[len(library) :]


def _place(frame: FrameType | None) -> Place:
    """The calls that led to a frame, up to pytest's."""
    calls: list[tuple[CodeType, int]] = []
    while frame is not None and len(calls) < _DEPTH:
        code = frame.f_code
        if code.co_name in _BOTTOM:
            break
        calls.append((code, frame.f_lasti))
        frame = frame.f_back
    return Place(tuple(calls), threading.get_ident(), _Real.clock_gettime(_BOOT_CLOCK))


class Recorder:
    """What is opened, and where, between :meth:`begin` and :meth:`end`.

    Args:
        folders: new files and folders directly in these are noted.
    """

    def __init__(self, folders: Iterable[str] = ()) -> None:
        self._folders = frozenset(folders)
        #: By path, as it was given; the last time.
        self.files: dict[str, Place] = {}
        #: Folders in which a file without a name was made.
        self.nameless: list[tuple[str, Place]] = []
        #: By number: descriptors that were made without a path.
        self.numbers: dict[int, Place] = {}
        self.sockets: list[tuple[weakref.ref[Any], Place]] = []
        self.threads: weakref.WeakKeyDictionary[threading.Thread, Place] = (
            weakref.WeakKeyDictionary()
        )
        #: Command lines; None for a fork of this process.
        self.processes: list[tuple[list[str] | None, Place]] = []
        self.variables: dict[bytes, Place] = {}
        #: What was made in the noted folders, by path.
        self.made: dict[str, Place] = {}
        self.directory: Place | None = None
        #: What was started of mocks and frozen clocks, what that returned, and where.
        self.starts: list[tuple[Any, Any, Place]] = []

    def begin(self) -> None:
        """Record from now on."""
        global _recorders
        _follow_starts()
        _recorders = (*_recorders, self)

    def end(self) -> None:
        """Stop recording; what was recorded stays."""
        global _recorders
        _recorders = tuple(one for one in _recorders if one is not self)

    def started(self, thing: object) -> Place | None:
        """Where a mock was started, or what its ``start`` returned was."""
        for one, result, place in reversed(self.starts):
            if one is thing or result is thing:
                return place
        return None

    def last_start(self, kind: str) -> Place | None:
        """Where something of a class of that name was started last."""
        for one, _, place in reversed(self.starts):
            if type(one).__name__ == kind:
                return place
        return None

    def forget_made(self, known: set[str]) -> None:
        """Take only what was made before, of :attr:`made`."""
        self.made = {path: place for path, place in self.made.items() if path in known}

    # --- events ----------------------------------------------------------------------------------

    def note_open(self, path: object, flags: int, place: Place) -> None:
        """A file is going to be opened."""
        name = _absolute(path)
        if name is None:
            return
        if _NAMELESS and flags & _NAMELESS == _NAMELESS:
            self.nameless.append((name, place))
            del self.nameless[:-_MOST]
            return
        _keep(self.files, name, place)
        if flags & _WRITES:
            self._note_made(name, place)

    def note_folder(self, path: object, place: Place) -> None:
        """A folder is going to be made."""
        name = _absolute(path)
        if name is not None:
            self._note_made(name, place)

    def note_socket(self, sock: object, place: Place) -> None:
        """A socket is going to be made."""
        if len(self.sockets) >= _MOST:
            self.sockets = [one for one in self.sockets if one[0]() is not None][-_MOST // 2 :]
        self.sockets.append((weakref.ref(sock), place))

    def note_process(self, command: object, place: Place) -> None:
        """A process is going to be started."""
        words = [os.fsdecode(word) for word in command] if isinstance(command, list) else None
        self.processes.append((words, place))

    def _note_made(self, path: str, place: Place) -> None:
        folder, name = os.path.split(path)
        if folder in self._folders and not name.startswith("pytest-") and path not in self.made:
            _keep(self.made, path, place)


def _keep(places: dict[Any, Place], key: Any, place: Place) -> None:
    if len(places) >= _MOST:
        del places[next(iter(places))]
    places.pop(key, None)  # the newest last
    places[key] = place


def _absolute(path: object) -> str | None:
    if not isinstance(path, (str, bytes, os.PathLike)):
        return None  # a descriptor
    name = os.fsdecode(path)
    return os.path.normpath(name if name.startswith("/") else os.path.join(os.getcwd(), name))


# --- the hook ------------------------------------------------------------------------------------

_recorders: tuple[Recorder, ...] = ()
_hooked = False
_installed = 0
_undo: list[tuple[Any, str, Any]] = []
_followed: set[type] = set()


def install() -> None:
    """Make recording possible; may be called again, each is undone by one :func:`uninstall`."""
    global _hooked, _installed
    _installed += 1
    if _installed > 1:
        return
    if not _hooked:
        _hooked = True
        sys.addaudithook(_hook)
    _replace(threading.Thread, "start", _noting_thread)
    for name in _MAKERS:
        if hasattr(os, name):
            _replace(os, name, _noting_descriptors)


def uninstall() -> None:
    """Put back what :func:`install` has replaced."""
    global _installed
    _installed -= 1
    if _installed:
        return
    while _undo:
        owner, name, real = _undo.pop()
        setattr(owner, name, real)
    _followed.clear()


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    real = getattr(owner, name)
    substitute = wrap(real)
    for attribute in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(substitute, attribute, getattr(real, attribute, None))
    substitute.__wrapped__ = real
    _undo.append((owner, name, real))
    setattr(owner, name, substitute)


def _follow_starts() -> None:
    """Follow the classes whose modules have been imported by now."""
    for module, name in _STARTS:
        owner = getattr(sys.modules.get(module), name, None)
        if isinstance(owner, type) and owner not in _followed:
            _followed.add(owner)
            _replace(owner, "start", _noting_start)


def _noting_thread(real: Any) -> Any:
    def start(self: threading.Thread) -> None:
        if _recorders:
            place = _place(sys._getframe(1))
            for recorder in _recorders:
                recorder.threads[self] = place
        real(self)

    return start


def _noting_descriptors(real: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        made = real(*args, **kwargs)
        if _recorders:
            place = _place(sys._getframe(1))
            for recorder in _recorders:
                for number in made if isinstance(made, tuple) else (made,):
                    _keep(recorder.numbers, number, place)
        return made

    return make


def _noting_start(real: Any) -> Any:
    def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = real(self, *args, **kwargs)
        if _recorders:
            place = _place(sys._getframe(1))
            for recorder in _recorders:
                recorder.starts.append((self, result, place))
                del recorder.starts[:-_MOST]
        return result

    return start


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _recorders:
        return
    note = _EVENTS.get(event)
    if note is None:
        return
    try:
        note(args, sys._getframe(1))
    except Exception:  # an audit hook that raises would forbid what it was told of
        return


def _on_open(args: tuple[Any, ...], frame: FrameType) -> None:
    if frame.f_code.co_filename.startswith("<frozen importlib"):
        return  # closed at once
    place = _place(frame)
    for recorder in _recorders:
        recorder.note_open(args[0], args[2] if len(args) > 2 else 0, place)


def _on_folder(args: tuple[Any, ...], frame: FrameType) -> None:
    place = _place(frame)
    for recorder in _recorders:
        recorder.note_folder(args[0], place)


def _on_socket(args: tuple[Any, ...], frame: FrameType) -> None:
    place = _place(frame)
    for recorder in _recorders:
        recorder.note_socket(args[0], place)


def _on_program(args: tuple[Any, ...], frame: FrameType) -> None:
    place = _place(frame)
    for recorder in _recorders:
        recorder.note_process(args[1], place)


def _on_fork(_: tuple[Any, ...], frame: FrameType) -> None:
    place = _place(frame)
    for recorder in _recorders:
        recorder.note_process(None, place)


def _on_variable(args: tuple[Any, ...], frame: FrameType) -> None:
    if args[0] == b"PYTEST_CURRENT_TEST" or _is_the_emulators(frame):
        return
    place = _place(frame)
    for recorder in _recorders:
        _keep(recorder.variables, args[0], place)


def _on_directory(_: tuple[Any, ...], frame: FrameType) -> None:
    if not _is_the_emulators(frame):
        place = _place(frame)
        for recorder in _recorders:
            recorder.directory = place


def _is_the_emulators(frame: FrameType | None) -> bool:
    """Whether the emulator calls, or a mapping's method on its behalf: it puts everything back."""
    for _ in range(3):
        if frame is None:
            return False
        if frame.f_code.co_filename.startswith(_EMULATOR):
            return True
        frame = frame.f_back
    return False


_EVENTS: dict[str, Callable[[tuple[Any, ...], FrameType], None]] = {
    "open": _on_open,
    "sqlite3.connect": _on_open,
    "os.mkdir": _on_folder,
    "socket.__new__": _on_socket,
    "subprocess.Popen": _on_program,
    "os.posix_spawn": _on_program,
    "os.fork": _on_fork,
    "os.forkpty": _on_fork,
    "os.putenv": _on_variable,
    "os.unsetenv": _on_variable,
    "os.chdir": _on_directory,
}


def live_sockets(recorder: Recorder) -> Iterator[tuple[Any, Place]]:
    """The sockets that are still there, the newest first, and where they were made."""
    for reference, place in reversed(recorder.sockets):
        sock = reference()
        if sock is not None:
            yield sock, place
