"""``<name>.runner.fal``: a runner, for every client, as through fal's gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

from emulator.ledger import Exchange
from emulator.network.reply import json_reply
from emulator.network.router import WouldBlock
from emulator.runners.body import Body
from emulator.runners.runner import RunnerError

if TYPE_CHECKING:
    from emulator.runners.runner import Runner

__all__ = ["DOMAIN", "RunnerHost", "passed_on"]

DOMAIN = ".runner.fal"
#: Of the connection between gateway and client, not of the request.
_OF_THE_CONNECTION = ("connection", "transfer-encoding")


class RunnerHost:
    """Passes requests on to runners.

    Args:
        named: finds a runner by its name.
    """

    def __init__(self, named: Callable[[str], Runner | None]) -> None:
        self._named = named

    def answers(self, host: str) -> bool:
        """Whether there is such a runner."""
        return self._runner(host) is not None

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response | None:
        """The app's answer; 503 if it has ended."""
        runner = self._runner(request.url.host)
        if runner is None:
            return None
        if request.extensions.get("fal_may_block") is False:
            raise WouldBlock
        headers = [pair for pair in request.headers.multi_items() if _travels(pair[0])]
        try:
            answer = runner.open(
                httpx.Request(request.method, request.url, headers=headers, content=request.read())
            )
        except RunnerError as error:
            exchange.notes.append(str(error))
            return json_reply({"detail": str(error), "error_type": "runner_connection_error"}, 503)
        return passed_on(answer, request)

    def _runner(self, host: str) -> Runner | None:
        return self._named(host.removesuffix(DOMAIN)) if host.endswith(DOMAIN) else None


def passed_on(answer: httpx.Response, request: httpx.Request) -> httpx.Response:
    """An app's answer for a client: its body comes as the app sends it, until the client is gone.

    Args:
        answer: from ``runner.open``.
        request: the client's.
    """
    wait, stream = request.extensions.get("fal_wait_for"), answer.stream
    if wait is not None and isinstance(stream, Body):
        stream.wait_with(wait)
    headers = [pair for pair in answer.headers.multi_items() if _travels(pair[0])]
    extensions = {"fal_may_wait": True}
    return httpx.Response(answer.status_code, headers=headers, stream=stream, extensions=extensions)


def _travels(name: str) -> bool:
    return name.lower() not in _OF_THE_CONNECTION
