"""What goes to a runner for a call, and what comes of its answer: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from emulator.fleets import gateway_headers
from emulator.fleets.retries import Outcome

if TYPE_CHECKING:
    from emulator.fleets.call import Call
    from emulator.fleets.call_queue import Member, Server

__all__ = ["final", "in_words", "outcome_of", "request_of"]


def request_of(call: Call, runner: Server, path: str, *, cancels: bool = False) -> httpx.Request:
    """A call as its runner gets it, or the word that it is cancelled."""
    url = f"http://{runner.name}.runner.fal{path}"
    dropped = "content-type" if cancels else None
    headers = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in call.headers.items()
        if name != dropped
    ]
    if cancels:
        return httpx.Request("POST", url, headers=headers)
    return httpx.Request(call.method, url, headers=headers, content=call.body)


def final(
    call: Call, member: Member, outcome: Outcome, response: httpx.Response | None
) -> httpx.Response:
    """What the caller gets."""
    if response is not None and call.is_under_way:
        return response
    if response is not None:
        return gateway_headers.answer(response, call.request_id, member.name)
    kind = "client_cancelled" if call.cancelled else outcome.error
    return gateway_headers.error(kind or "runner_disconnected", call.request_id)


def outcome_of(response: httpx.Response) -> Outcome:
    """An answer, as it is judged."""
    return Outcome(response.status_code, {k.lower(): v for k, v in response.headers.items()})


def in_words(outcome: Outcome) -> str:
    """How an attempt ended, for people."""
    if outcome.status is not None:
        return f"answered {outcome.status}"
    return "died" if outcome.error == "runner_disconnected" else "lost the connection"
