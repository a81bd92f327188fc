"""What the gateway does to the headers of requests and answers [§4.6, §4.7, §6.3]: pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import cast

import httpx

from emulator.fleets.retries import ErrorType
from emulator.storage.lifecycle import LIFECYCLE_PREFERENCE_HEADER

__all__ = [
    "answer",
    "caller_id",
    "copy",
    "error",
    "forwarded",
    "start_deadline",
    "undeployed",
    "whole",
]

#: What callers may tell the gateway; it goes no further.
_CONSUMED = frozenset(
    {
        "x-fal-request-timeout",
        "x-fal-no-retry",
        "x-fal-retry-config",
        "x-fal-store-io",
        "x-fal-queue-priority",
        "x-fal-runner-hint",
    }
)
_TOKEN = "x-fal-cdn-token"
#: The lifecycle preference is the app's to read; the token is what fal_client sends along when an
#: app calls another one in its caller's name.
_PASSED = frozenset({LIFECYCLE_PREFERENCE_HEADER.lower(), _TOKEN})
#: What apps tell the gateway; it goes no further.
_STRIPPED = frozenset({"x-fal-needs-retry", "x-fal-stop-runner"})

_STATUS: Mapping[ErrorType, tuple[int, str]] = {
    "request_timeout": (504, "Request timed out"),
    "startup_timeout": (504, "Runner did not start in time"),
    "runner_scheduling_failure": (503, "No runner could be allocated"),
    "runner_disconnected": (503, "Runner disconnected"),
    "runner_connection_refused": (503, "Runner refused the connection"),
    "runner_connection_error": (503, "Connection to the runner failed"),
    "runner_incomplete_response": (502, "The runner's response was incomplete"),
    "client_cancelled": (499, "Request was cancelled by the client"),
    "client_disconnected": (499, "The client closed the connection"),
    "bad_request": (400, "Bad request"),
}


def forwarded(
    given: Mapping[str, str], gateway: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The headers that reach the app, and the names of those that callers cannot set.

    Args:
        given: the caller's; lower-case names.
        gateway: the gateway's own: request id, endpoint, caller, token.
    """
    refused = [name for name in given if _is_reserved(name) and name not in _CONSUMED]
    passed = {name: value for name, value in given.items() if not _is_reserved(name)}
    # The gateway's own win, but for the token, which nested calls bring along.
    winning = {name: value for name, value in gateway.items() if name != _TOKEN}
    return {**gateway, **passed, **winning}, refused


def _is_reserved(name: str) -> bool:
    return name.startswith("x-fal-") and name not in _PASSED


def caller_id(caller: str, owner: str) -> str:
    """How an app sees its caller: the owner by name, everybody else as a hash."""
    return caller if caller == owner else hashlib.sha256(caller.encode()).hexdigest()


def start_deadline(text: str | None) -> float | None:
    """The seconds of ``X-Fal-Request-Timeout``, in which a request has to be started.

    Raises:
        ValueError: it is no number above 0.1.
    """
    if text is None:
        return None
    seconds = float(text)
    if not 0.1 < seconds < float("inf"):
        raise ValueError(text)
    return seconds


def whole(response: httpx.Response) -> httpx.Response:
    """An answer that is there as a whole, its bytes as the app has sent them, maybe compressed.

    Raises:
        IncompleteAnswerError: it breaks off.
    """
    return _whole(response, response.headers.raw)


def answer(response: httpx.Response, request_id: str, runner: str) -> httpx.Response:
    """An app's answer as its caller gets it: whole, or under way."""
    headers = [
        (name, value)
        for name, value in response.headers.raw
        if name.lower().decode("latin-1") not in (*_STRIPPED, "x-fal-request-id")
    ]
    headers += [
        (b"x-fal-request-id", request_id.encode()),
        (b"x-fal-served-from", runner.encode()),
    ]
    if isinstance(response.stream, httpx.ByteStream):
        return _whole(response, headers)
    return httpx.Response(response.status_code, headers=headers, stream=response.stream)


def copy(response: httpx.Response) -> httpx.Response:
    """A whole answer once more, for another reader."""
    assert isinstance(response.stream, httpx.ByteStream)
    return _whole(response, response.headers.raw)


def _whole(response: httpx.Response, headers: list[tuple[bytes, bytes]]) -> httpx.Response:
    body = b"".join(cast("httpx.SyncByteStream", response.stream))
    made = httpx.Response(response.status_code, headers=headers, stream=httpx.ByteStream(body))
    made.read()
    return made


def error(kind: ErrorType, request_id: str, detail: str | None = None) -> httpx.Response:
    """What the gateway itself answers: ``{detail, error_type}``."""
    status, usual = _STATUS[kind]
    headers = {"x-fal-error-type": kind, "x-fal-request-id": request_id}
    return httpx.Response(
        status, headers=headers, json={"detail": detail or usual, "error_type": kind}
    )


def undeployed(name: str, request_id: str) -> httpx.Response:
    """The answer to a request whose app was taken down."""
    detail = f"Application {name!r} not found: it was undeployed"
    return httpx.Response(404, headers={"x-fal-request-id": request_id}, json={"detail": detail})
