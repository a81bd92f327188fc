"""``<name>.runner.fal``: a runner, for every client, as through fal's gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

from emulator.ledger import Exchange
from emulator.network.relay import relay
from emulator.network.reply import json_reply
from emulator.network.router import WouldBlock
from emulator.network.websocket import ABNORMAL, Handshake, SocketEnd, wants
from emulator.runners.body import Body
from emulator.runners.runner import HandshakeRefusedError, RunnerError

if TYPE_CHECKING:
    from emulator.runners.runner import Runner
    from emulator.runners.websocket import AppWebSocket

__all__ = ["DOMAIN", "RunnerHost", "handshake_of", "opened", "passed_on"]

DOMAIN = ".runner.fal"
#: Of the connection between gateway and client, not of the request.
_OF_THE_CONNECTION = (b"connection", b"transfer-encoding")
_NO_WEBSOCKETS = (
    "httpx has no websockets here. Connect with websockets.sync.client, websockets.connect or "
    "aiohttp's ws_connect."
)


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
        headers = [pair for pair in request.headers.raw if _travels(pair[0])]
        sent = httpx.Request(request.method, request.url, headers=headers, content=request.read())
        try:
            if wants(request):
                return opened(request, exchange, lambda: runner.connect(sent))
            answer = runner.open(sent)
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
    headers = [pair for pair in answer.headers.raw if _travels(pair[0])]
    extensions = {"fal_may_wait": True}
    return httpx.Response(answer.status_code, headers=headers, stream=stream, extensions=extensions)


def opened(
    request: httpx.Request, exchange: Exchange, connect: Callable[[], AppWebSocket]
) -> httpx.Response:
    """Open a client's websocket on an app, and relay what the two say.

    Args:
        request: the client's, which wants one.
        exchange: where it is noted how it went.
        connect: opens the app's side: ``runner.connect``.

    Raises:
        RunnerError: the app's side cannot be opened, other than by the app's own refusal.
    """
    handshake = handshake_of(request, exchange)
    if isinstance(handshake, httpx.Response):
        return handshake
    try:
        app = connect()
    except HandshakeRefusedError as error:
        return error.response

    def serve(client: SocketEnd) -> None:
        relay(client, app, lambda passed: exchange.notes.append(str(passed)))

    return handshake.accept(serve, app.subprotocol, app.headers, lambda: app.close(ABNORMAL))


def handshake_of(request: httpx.Request, exchange: Exchange) -> Handshake | httpx.Response:
    """The handshake of a client that wants a websocket; or the answer, if it cannot have one."""
    if request.extensions.get("fal_client") != "wire":
        exchange.notes.append(_NO_WEBSOCKETS)
        return json_reply({"detail": _NO_WEBSOCKETS}, 501)
    handshake = Handshake(request)
    return handshake if handshake.refusal is None else handshake.refusal


def _travels(name: bytes) -> bool:
    return name.lower() not in _OF_THE_CONNECTION
