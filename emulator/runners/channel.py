"""Calls between this process and a runner's: either side asks, from any thread, and is answered.

One stream socket, framed by ``multiprocessing.connection``. Whoever calls :meth:`Channel.serve`
reads it; a handler that may wait for the other side in its turn is called in a thread of its own.
"""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from emulator.errors import EmulatorError

__all__ = ["Channel", "ChannelClosedError", "Handler"]

_ASK, _TELL, _ANSWER, _FAILURE = range(4)
Handler = Callable[..., Any]


class ChannelClosedError(EmulatorError, ConnectionError):
    """The other side has ended before it answered."""


class Channel:
    """One end.

    Args:
        descriptor: a connected stream socket; closed by :meth:`close`.
        handlers: what the other side may ask for, by name.
        slow: names of handlers that may take time or ask back.
    """

    def __init__(
        self, descriptor: int, handlers: Mapping[str, Handler], slow: frozenset[str] = frozenset()
    ) -> None:
        self._handlers = dict(handlers)
        self._slow = slow
        self._begin(descriptor)

    def _begin(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._numbers = count(1)
        self._waiting: dict[int, queue.SimpleQueue[tuple[int, Any]]] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._closed = False

    def begin_anew(self, descriptor: int) -> None:
        """In a process that was forked: use another socket, the parent goes on with this one."""
        self._connection.close()
        self._begin(descriptor)

    def fileno(self) -> int:
        """The socket's descriptor, to wait for."""
        return self._connection.fileno()

    def ask(self, name: str, *arguments: Any) -> Any:
        """Have a handler of the other side called; its result, or the exception that it raised.

        Raises:
            ChannelClosedError: the other side is gone.
        """
        answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        number = next(self._numbers)
        with self._lock:
            if self._closed:
                self._fail(name)
            self._waiting[number] = answers
        try:
            self._send(_ASK, number, (name, arguments))
            kind, value = answers.get()
        except OSError:
            self._fail(name)
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if kind == _FAILURE:
            raise value
        return value

    def tell(self, name: str, *arguments: Any) -> None:
        """Have a handler of the other side called, and do not wait; lost if that has ended."""
        with suppress(OSError):
            self._send(_TELL, 0, (name, arguments))

    def serve(self) -> None:
        """Read until the other side has ended."""
        while self.step():
            pass

    def step(self) -> bool:
        """Read one message and do what it says; whether another may follow."""
        try:
            kind, number, content = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            self._give_up()
            return False
        if kind in (_ANSWER, _FAILURE):
            with self._lock:
                answers = self._waiting.get(number)
            if answers is not None:
                answers.put((kind, content))
        elif content[0] in self._slow:
            name = f"fal-{content[0]}"
            work = threading.Thread(
                target=self._handle, args=(kind, number, *content), name=name, daemon=True
            )
            work.start()
        else:
            self._handle(kind, number, *content)
        return True

    def close(self) -> None:
        """Give the descriptor back; who waits for an answer is told that none comes."""
        self._give_up()
        with self._sending:
            self._connection.close()

    # --- inside ----------------------------------------------------------------------------------

    def _handle(self, kind: int, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            answer: tuple[int, Any] = (_ANSWER, self._handlers[name](*arguments))
        except BaseException as error:
            answer = (_FAILURE, error)
        if kind == _TELL:
            return
        try:
            self._send(answer[0], number, answer[1])
        except OSError:
            pass  # the other side has ended meanwhile
        except Exception as error:  # what cannot be pickled
            self._send(_FAILURE, number, _unpicklable(name, answer, error))

    def _send(self, kind: int, number: int, content: Any) -> None:
        message = pickle.dumps((kind, number, content), protocol=pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._connection.send_bytes(message)

    def _give_up(self) -> None:
        with self._lock:
            self._closed = True
            waiting = list(self._waiting.values())
        for answers in waiting:
            answers.put((_FAILURE, ChannelClosedError("the other process has ended")))

    def _fail(self, name: str) -> NoReturn:
        raise ChannelClosedError(f"the other process ended before it answered {name!r}") from None


def _unpicklable(name: str, answer: tuple[int, Any], error: Exception) -> EmulatorError:
    kind, value = answer
    if kind == _FAILURE:
        return EmulatorError(f"{name} raised {value!r}, which cannot be pickled: {error}")
    return EmulatorError(f"the result of {name}, {value!r:.200}, cannot be pickled: {error}")
