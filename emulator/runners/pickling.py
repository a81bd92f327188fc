"""Functions, classes and results on their way between the test and a runner's process.

The only module that touches cloudpickle's private parts (seen: 2.2 to 3.1). An app goes as the SDK
sends it to the platform, by value; so does a function of the test's. What has gone over by value
once is named from then on: sent again it would replace the methods of the class that the other
side uses.
"""

from __future__ import annotations

import importlib
import io
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle

from emulator.errors import EmulatorError
from emulator.reliance import gone
from emulator.timepatch import stands_for

__all__ = ["Sender", "by_value", "dumps"]


class Sender:
    """Pickles for one process, and knows which classes it has."""

    def __init__(self) -> None:
        self._has: set[str] = set()

    def dumps(self, thing: Any, without: Any = None) -> bytes:
        """Pickle something for the other side; where it refers to *without* there will be None."""
        file = io.BytesIO()
        pickler = _Pickler(file, self._has.__contains__, without)
        pickler.dump(thing)
        self._has |= pickler.sent()
        return file.getvalue()

    def call(self, function: Callable[..., Any], arguments: Any, options: Any) -> bytes:
        """Pickle a call: the function's own module goes by value, the SDK by its name."""
        with by_value(function), _by_name("fal", "tblib"):
            return self.dumps((function, arguments, options))


def dumps(thing: Any, error: BaseException | None = None) -> bytes:
    """Pickle something for the test: it has every class that was ever sent between the two.

    Args:
        thing: what it is.
        error: an exception in it whose traceback is to go along.
    """
    if error is not None:
        from tblib import pickling_support

        pickling_support.install(error)
    file = io.BytesIO()
    with _by_name("fal", "tblib"):
        _Pickler(file, lambda _: True).dump(thing)
    return file.getvalue()


@contextmanager
def by_value(function: Any) -> Iterator[None]:
    """While in this block, the module of a function of the user's is pickled by value.

    Whatever else the block adds to the modules that are so treated is taken back as well.
    """
    modules = _private("_PICKLE_BY_VALUE_MODULES")
    before = set(modules)
    name = getattr(function, "__module__", None)
    if name and not _is_installed(name):
        modules.add(name)
    try:
        yield
    finally:
        modules &= before
        modules |= before


@contextmanager
def _by_name(*names: str) -> Iterator[None]:
    modules = _private("_PICKLE_BY_VALUE_MODULES")
    hidden = modules & set(names)
    modules -= hidden
    try:
        yield
    finally:
        modules |= hidden


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Names the classes that the other side has."""

    def __init__(self, file: io.BytesIO, has: Callable[[str], bool], without: Any = None) -> None:
        super().__init__(file)
        self._has = has
        self._without = without
        self._seen: list[type] = []

    def reducer_override(self, thing: Any) -> Any:
        if self._without is not None and thing is self._without:
            return type(None), ()
        if _is_replaced(thing):
            return _function_of, (thing.__module__, thing.__name__)
        if isinstance(thing, type):
            number = _private("_DYNAMIC_CLASS_TRACKER_BY_CLASS").get(thing)
            if number is not None and self._has(number):
                return _class_of, (number,)
            self._seen.append(thing)
        elif (real := stands_for(thing)) is not None:
            return _function_of, (real.__module__, real.__name__)
        elif isinstance(thing, types.CodeType):
            return _code_of, (thing.co_filename, *_private("_code_reduce")(thing)[:2])
        return super().reducer_override(thing)

    def sent(self) -> set[str]:
        """The numbers of the classes that went by value."""
        numbers = _private("_DYNAMIC_CLASS_TRACKER_BY_CLASS")
        return {numbers[thing] for thing in self._seen if thing in numbers}


def _is_replaced(thing: Any) -> bool:
    """Whether it is the real thing in whose place its module has another while the clock is moved.

    Something may have kept it: rich's console has ``datetime.now`` and ``time.monotonic``.
    """
    if not isinstance(thing, (type, types.BuiltinFunctionType)):
        return False
    module = sys.modules.get(thing.__module__) if thing.__module__ in ("datetime", "time") else None
    return module is not None and getattr(module, thing.__name__, thing) is not thing


def _code_of(file: str, make: Callable[..., types.CodeType], arguments: Any) -> types.CodeType:
    """Code with the file that it is from, which cloudpickle leaves out since 3.1.

    Tracebacks show its lines by it, and coverage counts them.
    """
    return make(*arguments).replace(co_filename=file)


def _function_of(module: str, name: str) -> Any:
    """What the other side has in the place of a function that a moved clock replaces."""
    return getattr(importlib.import_module("os" if module == "posix" else module), name)


def _class_of(number: str) -> type:
    found: type | None = _private("_DYNAMIC_CLASS_TRACKER_BY_ID").get(number)
    if found is None:
        raise EmulatorError("a class that was sent between test and runner is gone meanwhile")
    return found


def _is_installed(name: str) -> bool:
    """Whether the other process can import a module as this one did: no code of the user's."""
    file = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None) or ""
    places = ("/site-packages/", "/dist-packages/", f"{sys.base_prefix}/lib/")
    return not file or any(place in file for place in places)


def _private(name: str) -> Any:
    inside = cloudpickle.cloudpickle
    if not hasattr(inside, name):
        raise gone(f"cloudpickle.cloudpickle:{name}")
    return getattr(inside, name)
