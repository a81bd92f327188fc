"""What an app sees of a moved clock: freezegun, ``time.sleep``, ``asyncio.sleep``, ``os.stat``.

The only module that touches freezegun's private parts (seen in 1.5.0 to 1.5.5) and that replaces
functions of the standard library. Everything it replaces is put back exactly as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import importlib
import os
import pathlib
import sys
import time
import types
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from emulator import google_clock
from emulator.file_times import FileTimes, real_now
from emulator.reliance import require

__all__ = [
    "INFRASTRUCTURE",
    "FreezegunLink",
    "TimePatch",
    "is_infrastructure",
    "naive_utc",
    "stands_for",
]

INFRASTRUCTURE = (
    "threading",
    "queue",
    "multiprocessing",
    "concurrent.futures",
    "subprocess",
    "selectors",
    "socketserver",
    "asyncio",
    "anyio",
    "uvicorn",
    "_pytest",
    "pluggy",
    "xdist",
    "execnet",
)
"""Modules that wait for something real, so that for them time is real."""

_OURS = ("emulator", "pytest_fal")
_STANDS_FOR = "_emulator_stands_for"
_FILE_FUNCTIONS = ("stat", "lstat", "fstat", "scandir", "utime")
_CAPABILITIES = ("supports_dir_fd", "supports_fd", "supports_follow_symlinks")

# Their first import while time is frozen fails: pydantic.v1 builds classes on ``datetime``, whose
# replacement has another metaclass; msgpack's C code looks at its size.
_IMPORT_BEFORE = (
    *(("pydantic.v1",) if sys.version_info < (3, 14) else ()),
    "msgpack",
    "fal.toolkit",
)


class _Real:
    """The functions as Python has them; in a class, where no scan of modules replaces them."""

    # The class is not looked up by its name, under which freezegun may have put another.
    datetime_class = next(kind for kind in datetime.datetime.__mro__ if kind.__name__ == "datetime")
    epoch: datetime.datetime = datetime_class(1970, 1, 1)
    sleep = staticmethod(time.sleep)
    asyncio_sleep: Callable[..., Awaitable[Any]] = staticmethod(asyncio.sleep)
    # Not ``time.monotonic``: freezegun may stand in its place while this module is imported.
    monotonic = staticmethod(lambda: time.clock_gettime(time.CLOCK_MONOTONIC))


def naive_utc(nanoseconds: int) -> datetime.datetime:
    """Return a moment since the epoch as freezegun wants it, cut off at microseconds.

    It is a real ``datetime.datetime`` also while freezegun has replaced that name.
    """
    return _Real.epoch + datetime.timedelta(microseconds=nanoseconds // 1000)


def stands_for(thing: object) -> Any:
    """The function that one of ours has replaced; None where it is none of ours."""
    return getattr(thing, _STANDS_FOR, None) if isinstance(thing, types.FunctionType) else None


def is_infrastructure(module: str) -> bool:
    """Whether code of ``module`` sleeps in real time although the clock stands still."""
    return any(module == name or module.startswith(f"{name}.") for name in INFRASTRUCTURE + _OURS)


class TimePatch:
    """Makes the process see one clock, from ``engage`` until ``disengage``.

    ``naive_now`` is the clock's UTC time; ``stopped`` whether it stands still; ``start_sleep``
    gives for a number of seconds a function that moves the clock to the end of that sleep.
    """

    def __init__(
        self,
        naive_now: Callable[[], datetime.datetime],
        stopped: Callable[[], bool],
        start_sleep: Callable[[float], Callable[[], object]],
        files: FileTimes,
    ) -> None:
        self.freezegun = FreezegunLink(naive_now)
        self.engaged = False
        self._stopped = stopped
        self._start_sleep = start_sleep
        self._files = files
        self._changes = _Changes()

    @staticmethod
    def real_sleep(seconds: float) -> None:
        """Really sleep."""
        _Real.sleep(seconds)

    def engage(self) -> None:
        """Replace everything; the work of the first time in a process is mostly imports."""
        self.freezegun.start()
        try:
            self._replace_functions()
        except BaseException:
            self.disengage()
            raise
        self.engaged = True

    def disengage(self) -> None:
        """Put everything back."""
        self.engaged = False
        self._changes.undo()
        self.freezegun.stop()
        for module, name in google_clock.keepers():
            # Imported meanwhile, it took freezegun's, which fails from now on.
            if google_clock.is_replaced(vars(module)[name], type(_Real.epoch)):
                setattr(module, name, _Real.epoch.now)

    def _replace_functions(self) -> None:
        replaced = {"sleep": [_Real.sleep, _Real.asyncio_sleep]}
        substitutes = {
            id(_Real.sleep): self._sleep_function(),
            id(_Real.asyncio_sleep): self._asyncio_sleep_function(),
        }
        for name in _FILE_FUNCTIONS:
            real = getattr(os, name)
            real = getattr(real, _STANDS_FOR, real)
            replaced[name] = [real]
            substitutes[id(real)] = _function(getattr(self._files, name), real)
            for capability in _CAPABILITIES:
                if real in getattr(os, capability):
                    self._changes.include(getattr(os, capability), substitutes[id(real)])
        for reals in replaced.values():
            for real in reals:
                setattr(substitutes[id(real)], _STANDS_FOR, real)
        self._changes.replace_everywhere(replaced, substitutes)
        self._changes.replace(asyncio.BaseEventLoop, "time", _loop_time)
        for module, name in google_clock.keepers():
            self._changes.replace(module, name, google_clock.now)
        self._replace_in_pathlib(substitutes)

    def _replace_in_pathlib(self, substitutes: dict[int, Any]) -> None:
        """Python 3.10's pathlib keeps functions of ``os`` in an accessor class."""
        accessor = getattr(pathlib, "_NormalAccessor", None)
        for name in ("stat", "scandir"):
            kept = vars(accessor).get(name) if accessor else None
            substitute = substitutes.get(id(getattr(kept, "__func__", kept)))
            if substitute is not None:
                self._changes.replace(accessor, name, staticmethod(substitute))

    def _sleep_function(self) -> Callable[[float], None]:
        stopped, start_sleep = self._stopped, self._start_sleep

        def sleep(seconds: float, /) -> None:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if seconds <= 0 or not stopped() or is_infrastructure(caller):
                _Real.sleep(seconds)
            else:
                start_sleep(seconds)()

        return sleep

    def _asyncio_sleep_function(self) -> Callable[..., Awaitable[Any]]:
        stopped, start_sleep = self._stopped, self._start_sleep

        def sleep(delay: float, result: Any = None) -> Awaitable[Any]:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if delay <= 0 or not stopped() or is_infrastructure(caller):
                return _Real.asyncio_sleep(delay, result)
            return _moving(start_sleep(delay), result)

        return sleep


def _loop_time(_: asyncio.BaseEventLoop) -> float:
    return _Real.monotonic()


async def _moving(end_sleep: Callable[[], object], result: Any) -> Any:
    # Yielding before the clock moves lets every task that is ready begin its own sleep from the
    # same moment, so that sleeps in parallel do not add up.
    await _Real.asyncio_sleep(0)
    end_sleep()
    return result


def _function(method: Callable[..., Any], real: Any) -> Callable[..., Any]:
    """Return a plain function named as ``real``: one that can stand in ``os``'s sets."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    replacement.__name__ = replacement.__qualname__ = real.__name__
    replacement.__doc__ = real.__doc__
    return replacement


class FreezegunLink:
    """Keeps our clock at the top of freezegun's stack, above and beside the user's own freezes.

    freezegun asks the topmost of its ``freeze_factories`` for the time, and each ``stop()`` takes
    away whatever is topmost. So ours lies at the bottom, where no ``stop()`` of the user's reaches
    it, and stands in for the user's topmost one where ours is to win.
    """

    def __init__(self, naive_now: Callable[[], datetime.datetime]) -> None:
        self._factory = _Factory(naive_now)
        self._leftover = _Factory(_utc_now)
        self._freezer: Any = None
        self._leftover_freezer: Any = None
        self._below: list[Any] = []
        self._displaced: list[tuple[int, Any, Any]] = []
        self._limit: int | None = None

    @property
    def foreign(self) -> tuple[Callable[[], datetime.datetime], bool] | None:
        """The user's own frozen clock where it is the one in force, and whether it ticks."""
        api = sys.modules.get("freezegun.api")
        factories = getattr(api, "freeze_factories", None)
        if not factories:
            return None
        top = factories[-1]
        if isinstance(top, _Factory):
            return None
        return top, bool(api.tick_flags[-1])  # type: ignore[union-attr]

    def start(self) -> None:
        """Make freezegun ask our clock; above the user's own freeze, if there is one."""
        api = _freezegun()
        self.clean_up()
        self._below = list(api.freeze_factories)
        if not self._below:
            _import_before()
        self._freezer = freezer = _freezer(api)
        # Emptied for a moment, so that freezegun takes this for a first start, patches everything
        # and can undo everything, even after the user's own stop().
        api.freeze_factories.clear()
        freezer.start()
        if self._below:
            freezer.modules_at_start = set()  # Search all modules for leftovers at the stop.
            for stack in _stacks(api):
                stack.insert(0, stack.pop())
        api.freeze_factories[:] = [self._factory, *self._below]
        self._limit = api.call_stack_inspection_limit
        # Only who calls ``time.time()`` decides. With freezegun's five frames, everything near the
        # top of a thread would see real time because ``threading`` started it.
        api.call_stack_inspection_limit = 1
        self.claim()

    def claim(self) -> None:
        """Put our clock in the place of a user's that was started later."""
        api = _freezegun()
        if self.foreign is None:
            return
        top = len(api.freeze_factories) - 1
        self._displaced.append((top, api.freeze_factories[top], api.ignore_lists[top]))
        api.freeze_factories[top] = self._factory
        api.ignore_lists[top] = api.ignore_lists[0]

    def stop(self) -> None:
        """Take our clock out, leave the user's in force if one still is."""
        if self._freezer is None:
            return
        api = _freezegun()
        factories = api.freeze_factories
        for index, factory, ignored in self._displaced:
            if index < len(factories) and factories[index] is self._factory:
                factories[index], api.ignore_lists[index] = factory, ignored
        self._displaced = []
        if self._limit is not None:
            api.call_stack_inspection_limit = self._limit
        freezer, self._freezer = self._freezer, None
        if factories == [self._factory]:
            freezer.stop()
        elif self._below and factories[1] is self._below[0]:
            # The user's own freeze is the older: it will put everything back.
            for stack in (factories, *_stacks(api)):
                del stack[0]
        else:
            # A freeze of the user's that began inside ours would put nothing back at its end.
            factories[0], self._leftover_freezer = self._leftover, freezer
        self._below = []

    def clean_up(self) -> None:
        """Finish a stop that had to leave freezegun in place for a freeze of the user's."""
        if self._leftover_freezer is None:
            return
        if _freezegun().freeze_factories == [self._leftover]:
            freezer, self._leftover_freezer = self._leftover_freezer, None
            freezer.stop()


class _Factory:
    """What freezegun asks for the time: a callable that returns naive UTC."""

    def __init__(self, naive_now: Callable[[], datetime.datetime]) -> None:
        self._naive_now = naive_now

    def __call__(self) -> datetime.datetime:
        return self._naive_now()


class _Changes:
    """Attributes that were replaced, to be put back in reverse order."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, Any]] = []
        self._sets: list[tuple[set[Any], Any]] = []
        self._seen: set[str] = set()
        self._names: tuple[str, ...] = ()

    def replace(self, owner: Any, name: str, substitute: Any) -> None:
        """Replace one attribute."""
        self._undo.append((owner, name, vars(owner)[name], substitute))
        setattr(owner, name, substitute)

    def include(self, group: set[Any], member: Any) -> None:
        """Add to a set."""
        group.add(member)
        self._sets.append((group, member))

    def replace_everywhere(
        self, replaced: dict[str, list[Any]], substitutes: dict[int, Any]
    ) -> None:
        """Replace functions in every module that holds one under its own name."""
        self._names, self._seen = tuple(replaced), set(sys.modules)
        names = replaced.keys()
        for module, namespace in _modules(self._seen):
            if names.isdisjoint(namespace.keys()):
                continue  # most have none of them
            for name in names & namespace.keys():
                # Somebody's undo may have brought back a substitute of an earlier time.
                value = getattr(namespace[name], _STANDS_FOR, namespace[name])
                if any(value is real for real in replaced[name]):
                    self._undo.append((module, name, value, substitutes[id(value)]))
                    setattr(module, name, substitutes[id(value)])

    def undo(self) -> None:
        """Put everything back, also in modules that were imported in the meantime."""
        reals = {id(substitute): real for _, _, real, substitute in self._undo}
        if self._names:
            for module, namespace in _modules(set(sys.modules) - self._seen):
                for name in self._names:
                    if id(namespace.get(name)) in reals:
                        setattr(module, name, reals[id(namespace[name])])
        for owner, name, real, substitute in reversed(self._undo):
            # Somebody else's replacement, set after ours, is theirs to take back.
            if vars(owner).get(name) is substitute:
                setattr(owner, name, real)
        for group, member in self._sets:
            group.discard(member)
        self._undo, self._sets, self._names = [], [], ()


def _modules(names: Iterable[str]) -> Iterator[tuple[Any, dict[str, Any]]]:
    for name in list(names):
        module = sys.modules.get(name)
        # ``posix`` stays as it is: the import system reads real file times through it.
        if not isinstance(module, types.ModuleType) or name in ("posix", "nt"):
            continue
        # Not ``vars``: that would load a module that waits for its first use.
        try:
            yield module, object.__getattribute__(module, "__dict__")
        except AttributeError:
            continue  # what cffi loads is taken for a module and has no dictionary


def _freezegun() -> Any:
    """Return ``freezegun.api`` after a look at the parts that are used of it."""
    api = importlib.import_module("freezegun.api")
    require("freezegun.api")
    return api


def _freezer(api: Any) -> Any:
    # real_asyncio would create an event loop to find its class, and leave an attribute on it;
    # BaseEventLoop.time is replaced here instead.
    freezer = api.freeze_time(_utc_now(), real_asyncio=False)
    # "gi", which freezegun ignores, is also how "gifs" and "git" begin.
    freezer.ignore = tuple(
        dict.fromkeys([*(name for name in freezer.ignore if name != "gi"), *INFRASTRUCTURE])
    )
    return freezer


def _stacks(api: Any) -> tuple[list[Any], ...]:
    """Return the stacks beside ``freeze_factories``, which go up and down with it."""
    return (api.ignore_lists, api.tick_flags, api.tz_offsets)


def _utc_now() -> datetime.datetime:
    return naive_utc(real_now())


def _import_before() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _IMPORT_BEFORE:
            if name not in sys.modules:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
