"""What goes wrong in the emulator: what happened, why, and the line to write."""

from __future__ import annotations

__all__ = [
    "EmulatorError",
    "FilesystemError",
    "HostPathError",
    "NamespaceRefusedError",
    "RefusedRequest",
    "ThreadsRunningError",
    "UnknownHostError",
    "UnsupportedVersionError",
]


class EmulatorError(Exception):
    """Base of every error that the emulator itself raises."""


class UnsupportedVersionError(EmulatorError):
    """Another package is not as we know it; the message says which, and what to install."""


class RefusedRequest(Exception):  # noqa: N818 - an answer, no error of the test's
    """A request that the platform refuses; each host answers it in its own form.

    Attributes:
        status: HTTP status of the refusal.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class FilesystemError(EmulatorError):
    """A test needs a better rung for /data and /tmp than can be had here; says why not."""


class HostPathError(EmulatorError):
    """Something would reach the host's own /data or /tmp, as only Python's calls are rewritten."""


class NamespaceRefusedError(FilesystemError):
    """The kernel refused a namespace or a mount; the message says which and what to do."""


class ThreadsRunningError(NamespaceRefusedError):
    """A user namespace can be entered only by a process with one thread, and this has more."""


class UnknownHostError(EmulatorError, ConnectionError):
    """A client asked for something that nothing in the test answers.

    It is a ``ConnectionError``, as a machine without network would raise, but none of the
    exceptions that HTTP clients define, so that it is not mistaken for a passing fault.

    Attributes:
        fal_response: the answer for clients behind a socket, which cannot be handed an exception.
    """

    fal_response: object = None
