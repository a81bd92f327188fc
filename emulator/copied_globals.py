"""The clock in what came by pickle: functions whose globals are those of no module.

freezegun and we replace ``datetime``, ``time.time`` and their kin in modules. An app that goes to a
process by value brings copies of its module's globals along, and of the SDK's [study §0, 5]: no
module has these, and without this ``from datetime import datetime`` there would mean real time.
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterator
from typing import Any

__all__ = ["CopiedGlobals"]

#: Modules whose attributes stand for the clock, or read the times of files.
_MODULES = ("datetime", "time", "asyncio", "os", "uuid")


class CopiedGlobals:
    """Replaces in copies what was replaced in modules: ``look``, change them, ``follow``."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], Any] = {}
        self._known: list[dict[str, Any]] = []

    def remember(self) -> None:
        """Keep the copies that there are: an app may hide them, with ``gc.freeze()``."""
        self._known = _copies()

    def look(self) -> None:
        """Remember what the modules have."""
        self._before = dict(_attributes())

    def follow(self) -> None:
        """Give the copies what the modules have now instead of what they had."""
        changed = {
            id(self._before[place]): value
            for place, value in _attributes()
            if place in self._before and self._before[place] is not value
        }
        for namespace in [*self._known, *_copies()] if changed else ():
            for name, value in list(namespace.items()):
                if id(value) in changed:
                    namespace[name] = changed[id(value)]
        self._before = {}


def _attributes() -> Iterator[tuple[tuple[str, str], Any]]:
    for module in _MODULES:
        for name, value in list(vars(sys.modules.get(module, types)).items()):
            if callable(value):
                yield (module, name), value


def _copies() -> list[dict[str, Any]]:
    """The globals of all functions that are no module's."""
    modules = {id(getattr(module, "__dict__", None)) for module in list(sys.modules.values())}
    found = {
        id(thing.__globals__): thing.__globals__
        for thing in gc.get_objects()
        if type(thing) is types.FunctionType
    }
    return [namespace for key, namespace in found.items() if key not in modules]
