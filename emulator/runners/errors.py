"""What goes wrong with a runner, and with what it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.errors import EmulatorError
from emulator.network.bodies import CutShortError

if TYPE_CHECKING:
    import httpx

__all__ = [
    "HandshakeRefusedError",
    "IncompleteAnswerError",
    "RunnerError",
    "RunnerKilled",
    "StartupError",
]


class RunnerError(EmulatorError):
    """A runner could not do what the test asked of it."""


class StartupError(RunnerError):
    """A runner ended before its app was set up, without an exception of the app's."""


class IncompleteAnswerError(RunnerError, CutShortError):
    """The body of an answer ended before it was whole: the app raised, or its runner ended."""


class HandshakeRefusedError(RunnerError):
    """An app does not want to open a websocket.

    Attributes:
        response: what it answers instead.
    """

    def __init__(self, text: str, response: httpx.Response) -> None:
        super().__init__(text)
        self.response = response


class RunnerKilled(BaseException):
    """Ends the code of a runner in a thread that is killed while it sleeps.

    As a signal does, it passes by ``except Exception``.
    """
