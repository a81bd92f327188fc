"""The body of an app's answer, and the moment at which it is over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import httpx

from emulator.network.bodies import CutShortError

__all__ = ["Body"]

#: Real seconds in which another thread comes to the end of what follows from an answer.
_PATIENCE = 5.0


class Source(Protocol):
    """Where an answer's body comes from."""

    wait_with: Callable[[int], None] | None

    def __iter__(self) -> Iterator[bytes]:
        """The chunks."""

    def close(self) -> None:
        """The client goes away; from any thread."""


class Body(httpx.SyncByteStream):
    """Passes on what an app sends; closed from any thread.

    Whoever has all of a body that says how long it is finds that it is over.

    Args:
        response: the answer.
        method: of the request.
        end: called once, when it is over: with what broke it off, or None.
    """

    def __init__(
        self, response: httpx.Response, method: str, end: Callable[[BaseException | None], None]
    ) -> None:
        self._source = cast("Source", response.stream)
        self._ends = [end]
        #: Whether the client went away before it was over.
        self.was_left = False
        self._lock = threading.Lock()
        self._is_over = False
        self._has_ended = threading.Event()
        self._finisher: int | None = None
        length = response.headers.get("content-length", "")
        self._missing = int(length) if length.isdigit() else None
        if method == "HEAD" or response.status_code in (204, 304):
            self._missing = 0

    def wait_with(self, wait: Callable[[int], None]) -> None:
        """Have its reader wait by means of a function that waits for a descriptor."""
        self._source.wait_with = wait

    def then(self, end: Callable[[BaseException | None], None]) -> None:
        """Call something else, too, when it is over."""
        with self._lock:
            if not self._is_over:
                self._ends.append(end)
                return
        end(None)

    def end_if_empty(self) -> None:
        """End a body that has nothing in it, which clients do not read."""
        if self._missing == 0:
            for _ in self:
                pass

    def __iter__(self) -> Iterator[bytes]:
        if self._is_over and self._missing == 0:
            return
        chunks = iter(self._source)
        try:
            for chunk in chunks:
                if self._completes(chunk):
                    for _ in chunks:
                        pass
                    self._finish(None)
                yield chunk
        except GeneratorExit:
            self.close()
            raise
        except BaseException as error:  # the app's, or of its reader, who waited for it
            self._source.close()
            self._finish(error)
            raise
        self._finish(None)

    def close(self) -> None:
        """The client is done, or goes away."""
        if not self._is_over:
            self.was_left = True
            self._source.close()
            self._finish(None)

    def hang_up(self) -> None:
        """The client goes away."""
        self.close()

    def runner_ended(self) -> None:
        """Nothing more comes."""
        if not self._is_over:
            self._source.close()
            self._finish(CutShortError("the runner has ended"))

    def _completes(self, chunk: bytes) -> bool:
        if self._missing is None:
            return False
        self._missing = max(0, self._missing - len(chunk))
        return not self._missing

    def _finish(self, error: BaseException | None) -> None:
        with self._lock:
            is_first = not self._is_over
            self._is_over = True
            if is_first:
                self._finisher = threading.get_ident()
        if is_first:
            try:
                for end in self._ends:
                    end(error)
            finally:
                self._has_ended.set()
        elif self._finisher != threading.get_ident():
            # What follows from an answer has happened when its reader goes on.
            self._has_ended.wait(_PATIENCE)
