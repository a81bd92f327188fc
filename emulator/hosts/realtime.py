"""Websockets at the gateway: realtime endpoints, and HTTP over a websocket [facts §6.5]."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import httpx

from emulator.fleets.call import Incoming
from emulator.fleets.deployment import Deployment
from emulator.fleets.waiting import Caller
from emulator.hosts.runner import handshake_of, opened
from emulator.ledger import Exchange
from emulator.network.bodies import CutShortError
from emulator.network.websocket import SocketEnd
from emulator.runners.errors import RunnerError

__all__ = ["caller_of", "connect", "refuse", "speak_http", "token_of", "without_token"]

#: What JavaScript's client takes for a token that does not count (any more).
_UNAUTHORIZED = {"status": "error", "error": "Unauthorized"}
_TOKEN = "fal_jwt_token"


def connect(
    request: httpx.Request, exchange: Exchange, deployment: Deployment, asked: Incoming
) -> httpx.Response:
    """Open a websocket on a deployment's app."""
    asked = replace(asked, method="GET", opens_websocket=True)
    return opened(request, exchange, lambda: deployment.connect(asked, caller_of(request)))


def caller_of(request: httpx.Request) -> Caller:
    """Who waits for the answer to a request: until its read time-out, or until it hangs up."""
    patience: float | None = request.extensions.get("timeout", {}).get("read")
    hang_up: Callable[[float], object] | None = request.extensions.get("fal_wait")
    return Caller(patience, None if hang_up is None else lambda: hang_up(0))


def refuse(request: httpx.Request, exchange: Exchange, why: str) -> httpx.Response:
    """Tell a client over its websocket that its token does not count, as its client reads it.

    That the gateway opens the websocket for that is concluded from what JavaScript's client looks
    for in its messages.
    """
    exchange.notes.append(why)
    handshake = handshake_of(request, exchange)
    if isinstance(handshake, httpx.Response):
        return handshake

    def serve(client: SocketEnd) -> None:
        client.send(json.dumps(_UNAUTHORIZED))
        client.close()

    return handshake.accept(serve)


def speak_http(
    request: httpx.Request, exchange: Exchange, deployment: Deployment, asked: Incoming
) -> httpx.Response:
    """Answer each message of a websocket as a request to the app.

    A message is the request's JSON. Its answer is a message that tells the head, the body's pieces
    as the app sends them, and one that tells the end.
    """
    handshake = handshake_of(request, exchange)
    if isinstance(handshake, httpx.Response):
        return handshake
    asked = replace(asked, headers={"content-type": "application/json", **asked.headers})

    def serve(client: SocketEnd) -> None:
        count = 0
        while (message := client.receive()) is not None:
            body = message if isinstance(message, bytes) else message.encode()
            count += 1
            try:
                _answer(client, deployment, replace(asked, body=body, method="POST"))
            except ConnectionError:
                break
        client.close()  # what it has been told last has to go out
        exchange.notes.append(f"websocket: {count} request{'s' * (count != 1)}")

    return handshake.accept(serve)


def _answer(client: SocketEnd, deployment: Deployment, asked: Incoming) -> None:
    begun = time.perf_counter()
    response = deployment.answer(asked, Caller(check=lambda: _check(client)))
    waited = time.perf_counter() - begun
    request_id = response.headers["x-fal-request-id"]
    told = {"request_id": request_id, "status": response.status_code}
    client.send(json.dumps({"type": "start", **told, "headers": dict(response.headers)}))
    try:
        for chunk in cast("httpx.SyncByteStream", response.stream):
            client.send(chunk)
            client.step()
            if client.is_over:
                return
    except (CutShortError, RunnerError):
        client.close(1011, "the app broke off its answer")
        return
    finally:
        response.close()
    client.send(json.dumps({"type": "end", **told, "time_to_first_byte_seconds": waited}))


def _check(client: SocketEnd) -> None:
    """Raise ConnectionError once the client has ended its websocket."""
    client.step()
    if client.code is not None:
        raise ConnectionError("the client has closed the websocket")


def without_token(path: str) -> str:
    """A path with its query, without the client's token, which is no business of the app's."""
    url = httpx.URL(f"http://app{path}")
    return url.copy_remove_param(_TOKEN).raw_path.decode("ascii") if _TOKEN in path else path


def token_of(request: httpx.Request) -> str | None:
    """The realtime token that a URL carries."""
    token: str | None = request.url.params.get(_TOKEN)
    return token
