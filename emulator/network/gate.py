"""A gate: holds matching requests or answers until the test lets them go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from emulator.errors import EmulatorError
from emulator.network.bodies import reset

if TYPE_CHECKING:
    from emulator.ledger import Exchange

__all__ = ["Doorway"]

#: How long a request is held before it is taken for forgotten.
HOLD_SECONDS = 30.0
_STEP = 0.01


class Doorway:
    """Where requests wait; real time, whatever the clock says."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Exchange] = []
        self._is_open = False
        self._is_broken = False

    @property
    def waiting(self) -> list[Exchange]:
        """Those that are held now."""
        return list(self._waiting)

    def open(self) -> None:
        """Let all go, also those that come later."""
        with self._changed:
            self._is_open = True
            self._waiting.clear()
            self._changed.notify_all()

    def release(self) -> int:
        """Let those go that are held now; how many they were."""
        with self._changed:
            count = len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
            return count

    def break_down(self) -> None:
        """Reset the connections that are held, and any that come later."""
        with self._changed:
            self._is_broken = True
            self._changed.notify_all()

    def arrival(self, seconds: float) -> Exchange | None:
        """The first request that is held, as soon as there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting, seconds)
            return self._waiting[0] if self._waiting else None

    def hold(self, exchange: Exchange, check: Callable[[], object]) -> None:
        """Wait until let go; *check* is called meanwhile and raises when the client has gone."""
        with self._changed:
            if self._is_open:
                return
            self._waiting.append(exchange)
            self._changed.notify_all()
        try:
            for _ in range(int(HOLD_SECONDS / _STEP)):
                with self._changed:
                    self._changed.wait_for(lambda: not self._holds(exchange), _STEP)
                    if self._is_broken:
                        raise reset()
                    if exchange not in self._waiting:
                        return
                check()
            raise EmulatorError(
                f"{exchange.method} {exchange.url} was held by a gate for {HOLD_SECONDS:.0f} s of "
                "real time and nobody opened it. Make the request in a thread of its own, and "
                "call gate.open() in the test, or let the clock do it: fal_clock.on(when, "
                "gate.open)."
            )
        finally:
            with self._changed:
                if exchange in self._waiting:
                    self._waiting.remove(exchange)

    def _holds(self, exchange: Exchange) -> bool:
        return exchange in self._waiting and not self._is_broken
