"""``fal.run``, ``queue.fal.run`` and ``ws.fal.run``: apps as callers reach them [facts §6]."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx

from emulator.fleets.call import Incoming
from emulator.fleets.endpoint_ids import endpoint_of
from emulator.fleets.waiting import Caller
from emulator.hosts import realtime
from emulator.hosts.queue import QueueAPI
from emulator.hosts.runner import passed_on
from emulator.ledger import Exchange
from emulator.network.reply import json_reply
from emulator.network.router import WouldBlock
from emulator.network.websocket import wants
from emulator.realtime_tokens import RealtimeTokenError, RealtimeTokens

if TYPE_CHECKING:
    from emulator.fleets.deployment import Deployment
    from emulator.fleets.gateway import Gateway
    from emulator.identity import Identities
    from emulator.settings import Settings

__all__ = ["GatewayHost", "not_deployed"]

_HOSTS = (
    ("queue", ("queue.fal.run", "queue.falrun.com"), "FAL_QUEUE_RUN_HOST"),
    ("ws", ("ws.fal.run",), "FAL_WS_RUN_HOST"),
    ("run", ("fal.run", "falrun.com"), "FAL_RUN_HOST"),
)
_TOKEN = "x-fal-cdn-token"
#: Of the caller's connection to the gateway and its account there, not the app's business.
_NOT_FORWARDED = frozenset(
    {
        *("host", "connection", "content-length", "transfer-encoding", "upgrade", "expect"),
        *("accept-encoding", "authorization", "sec-websocket-key", "sec-websocket-version"),
        "sec-websocket-extensions",
    }
)


class GatewayHost:
    """Takes requests to deployments.

    Args:
        gateway: knows the deployments.
        identities: whose key and token is whose.
        tokens: by which websockets are opened without a key.
        settings: the account's, as they are now.
    """

    def __init__(
        self,
        gateway: Gateway,
        identities: Identities,
        tokens: RealtimeTokens,
        settings: Callable[[], Settings],
    ) -> None:
        self._gateway = gateway
        self._identities = identities
        self._tokens = tokens
        self._queue = QueueAPI(gateway, settings)

    def answers(self, host: str) -> bool:
        """Whether this is a host of the gateway's: fal's own, or one that a client was told of."""
        return _kind_of(host) is not None

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        """Answer; an account's key is needed for everything, or a token for websockets."""
        if request.extensions.get("fal_may_block") is False:
            raise WouldBlock
        try:
            caller = self._caller(request, exchange)
        except RealtimeTokenError as error:
            if wants(request):
                return realtime.refuse(request, exchange, str(error))
            exchange.notes.append(str(error))
            return json_reply({"detail": "Unauthorized"}, 401)
        if caller is None:
            exchange.notes.append("no account key")
            return json_reply({"detail": "Authentication is required to access this app"}, 401)
        exchange.user = caller
        kind = _kind_of(request.url.host)
        asked = self._queue.ask(request, caller) if kind == "queue" else None
        return asked or self._call(request, exchange, caller, kind)

    def _caller(self, request: httpx.Request, exchange: Exchange) -> str | None:
        """Who asks; None: nobody can tell. RealtimeTokenError: by a token that does not count."""
        token = realtime.token_of(request)
        if token is not None:
            endpoint = endpoint_of(request.url.path)
            return self._tokens.check(token, endpoint.app if endpoint else "")
        users, authorization = self._identities.users, request.headers.get("authorization")
        account = users.account(authorization, exchange.runner)
        return None if account is None else account.user.nickname

    def _call(
        self, request: httpx.Request, exchange: Exchange, caller: str, kind: str | None
    ) -> httpx.Response:
        endpoint = endpoint_of(request.url.path)
        found = endpoint and self._gateway.deployment_at(*endpoint)
        if not found:
            exchange.notes.append(not_deployed(request.url.path))
            return json_reply({"detail": not_deployed(request.url.path)}, 404)
        deployment, path = found
        asked = incoming(request, path, caller, queued=kind == "queue")
        if kind == "ws":
            return realtime.speak_http(request, exchange, deployment, asked)
        if wants(request):
            return realtime.connect(request, exchange, deployment, asked)
        if kind == "queue":
            response = self._queue.submit(request, deployment, asked)
        else:
            response = self._run(request, deployment, asked)
        self._renew_token(request, response)
        return response

    def _run(
        self, request: httpx.Request, deployment: Deployment, asked: Incoming
    ) -> httpx.Response:
        patience = request.extensions.get("timeout", {}).get("read")
        hang_up = request.extensions.get("fal_wait")
        check = None if hang_up is None else lambda: hang_up(0)
        return passed_on(deployment.answer(asked, Caller(patience, check)), request)

    def _renew_token(self, request: httpx.Request, response: httpx.Response) -> None:
        """Extend the token of an app that calls another one: it may read what that one makes.

        fal_client in the app takes it up, and the SDK hands it on to the app's own caller
        [§4.7; ``fal/app.py``].
        """
        sent = self._identities.valid(request.headers.get(_TOKEN))
        if sent is None:
            return
        deeper = self._identities.valid(response.headers.get(_TOKEN))
        also = {
            *sent.also,
            response.headers["x-fal-request-id"],
            *(deeper.also if deeper is not None else ()),
        }
        lifetime = sent.expires_at - self._gateway.clock.now()
        renewed = self._identities.issue(sent.user, max(lifetime, timedelta(0)), sorted(also))
        response.headers[_TOKEN] = renewed.token


def incoming(request: httpx.Request, path: str, caller: str, *, queued: bool = True) -> Incoming:
    """A request as the gateway takes it in."""
    headers = {name: value for name, value in request.headers.items() if name not in _NOT_FORWARDED}
    query = request.url.query.decode("ascii")
    return Incoming(
        realtime.without_token(f"{path}?{query}" if query else path),
        headers,
        caller,
        request.read() or None,
        request.method,
        queued,
    )


def not_deployed(path: str) -> str:
    """What to tell who calls an app that is not there."""
    name = path.strip("/")
    endpoint = endpoint_of(f"/{name}")
    if endpoint is None:
        return f"Application {name!r} not found: a name has an owner and an app, owner/app"
    return (
        f"Application {name!r} not found: nothing is deployed under this name. Write "
        f'fal_gateway.deploy("{endpoint.app}", MyApp), or for an app of somebody else\'s what it '
        f'answers: fal_gateway.deploy("{name}", {{"images": []}})'
    )


def _kind_of(host: str) -> str | None:
    """Which of the gateway's hosts it is; None: none of them."""
    for kind, names, configured in _HOSTS:
        if host in names or host == _configured(configured):
            return kind
    return None


def _configured(name: str) -> str | None:
    """A host that fal_client or the SDK was told of by the environment when it was imported."""
    for module in ("fal_client.auth", "fal.flags"):
        host = getattr(sys.modules.get(module), name, None)
        if isinstance(host, str):
            return host
    return None
