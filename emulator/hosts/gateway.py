"""``fal.run``, ``queue.fal.run`` and ``ws.fal.run``: apps as callers reach them [facts §6]."""

from __future__ import annotations

import difflib
import re
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx

from emulator.fleets.call import Incoming
from emulator.fleets.endpoint_ids import endpoint_of
from emulator.fleets.read_timeout import ReadTimeout
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
_NO_KEY = (
    'there is no key, or none of the form "id:secret". Write os.environ["FAL_KEY"], or '
    'fal_emulator.user("bob").key'
)
#: Who calls a public app without a key.
_ANYBODY = "anonymous"
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
        self._settings = settings
        self._queue = QueueAPI(gateway, settings)

    def answers(self, host: str) -> bool:
        """Whether this is a host of the gateway's: fal's own, or one that a client was told of."""
        return _kind_of(host) is not None

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        """Answer; an account's key is needed for everything, or a token for websockets."""
        may_block = request.extensions.get("fal_may_block") is not False
        if not may_block and not self._queue.answers_at_once(request):
            request.extensions["fal_asker"] = threading.current_thread()
            raise WouldBlock
        try:
            caller = self._caller(request, exchange)
        except RealtimeTokenError as error:
            if wants(request):
                return realtime.refuse(request, exchange, str(error))
            exchange.notes.append(str(error))
            return json_reply({"detail": "Unauthorized"}, 401)
        found = self._found(request)
        if caller is None and (found is None or _auth_of(found[0]) != "public"):
            exchange.notes.append(_NO_KEY)
            detail = f"Authentication is required to access this app: {_NO_KEY}"
            return json_reply({"detail": detail}, 401)
        exchange.user = caller
        caller = caller or _ANYBODY
        kind = _kind_of(request.url.host)
        asked = self._queue.ask(request, caller) if kind == "queue" else None
        if asked is not None:
            return asked
        if found is None:
            told = not_deployed(request.url.path, self._gateway.deployments)
            exchange.notes.append(told)
            return json_reply({"detail": told}, 404)
        if not self._may(caller, found[0]):
            name = found[0].name
            exchange.notes.append(f"{name} is private (app_auth), and {caller} not in its team")
            return json_reply({"detail": f"{caller} has no access to {name}"}, 403)
        return self._call(request, exchange, found, caller, kind)

    def _caller(self, request: httpx.Request, exchange: Exchange) -> str | None:
        """Who asks; None: nobody can tell. RealtimeTokenError: by a token that does not count."""
        token = realtime.token_of(request)
        if token is not None:
            endpoint = endpoint_of(request.url.path)
            return self._tokens.check(token, endpoint.app if endpoint else "")
        users, authorization = self._identities.users, request.headers.get("authorization")
        account = users.account(authorization, exchange.runner)
        return None if account is None else account.user.nickname

    def _found(self, request: httpx.Request) -> tuple[Deployment, str] | None:
        """The deployment that a URL names, and the path in it."""
        endpoint = endpoint_of(raw_path(request))
        return None if endpoint is None else self._gateway.deployment_at(*endpoint)

    def _may(self, caller: str, deployment: Deployment) -> bool:
        """Whether somebody may call an app: a private one is its owner's and the owner's team's.

        That an app which says nothing may be called by all who have a key is assumed: it is how
        tests of several users want it. ``fal deploy`` makes it private, ``fal run`` public.
        """
        if _auth_of(deployment) != "private":
            return True
        owners = {self._settings().nickname, deployment.owner}
        return not owners.isdisjoint({caller, *self._identities.users.user(caller).teams})

    def _call(
        self,
        request: httpx.Request,
        exchange: Exchange,
        found: tuple[Deployment, str],
        caller: str,
        kind: str | None,
    ) -> httpx.Response:
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
        caller = realtime.caller_of(request)
        response = deployment.answer(asked, caller)
        if caller.patience is not None:  # between the pieces of an answer, too
            limit = ReadTimeout(self._gateway.clock, caller.patience)
            request.extensions.setdefault("fal_wait_for", limit.wait_for)
        return passed_on(response, request)

    def _renew_token(self, request: httpx.Request, response: httpx.Response) -> None:
        """Extend the token of an app that calls another one: it may read what that one makes.

        fal_client in the app takes it up, and the SDK hands it on to the app's own caller
        [§4.7; ``fal/app.py``].
        """
        sent = self._identities.valid(request.headers.get(_TOKEN))
        if sent is None:
            return
        deeper = self._identities.valid(response.headers.get(_TOKEN))
        request_id = response.headers.get("x-fal-request-id")
        if request_id is None:  # it was not taken in
            return
        also = {*sent.also, request_id, *(deeper.also if deeper is not None else ())}
        lifetime = sent.expires_at - self._gateway.clock.now()
        renewed = self._identities.issue(sent.user, max(lifetime, timedelta(0)), sorted(also))
        response.headers[_TOKEN] = renewed.token


def raw_path(request: httpx.Request) -> str:
    """The path as it was sent, in percent encoding."""
    return request.url.raw_path.decode("ascii").partition("?")[0]


def incoming(request: httpx.Request, path: str, caller: str, *, queued: bool = True) -> Incoming:
    """A request as the gateway takes it in."""
    pairs = [(n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in request.headers.raw]
    headers = {name: value for name, value in pairs if name not in _NOT_FORWARDED}
    query = request.url.query.decode("ascii")
    return Incoming(
        realtime.without_token(f"{path}?{query}" if query else path),
        headers,
        caller,
        request.read() or None,
        request.method,
        queued,
    )


def not_deployed(path: str, deployed: Iterable[str] = ()) -> str:
    """What to tell who calls an app that is not there.

    Args:
        deployed: the names of those that are.
    """
    name = path.strip("/")
    legacy = re.fullmatch(r"([0-9]+)-([A-Za-z0-9-]+)", name)
    if legacy is not None:
        proper = f"{legacy[1]}/{legacy[2]}"
        return (
            f"Application {name!r} not found: this form of names is of old, and not every call of "
            f"a client turns it into the one that URLs have. Write {proper!r}."
        )
    endpoint = endpoint_of(f"/{name}")
    if endpoint is None:
        return f"Application {name!r} not found: a name has an owner and an app, owner/app"
    near = difflib.get_close_matches(endpoint.app, list(deployed), 1)
    meant = f"{near[0]} is deployed: did you mean that? Else write " if near else "Write "
    return (
        f"Application {name!r} not found: nothing is deployed under this name. {meant}"
        f'fal_gateway.deploy("{endpoint.app}", MyApp), or for an app of somebody else\'s what it '
        f'answers: fal_gateway.deploy("{name}", {{"images": []}})'
    )


def _kind_of(host: str) -> str | None:
    """Which of the gateway's hosts it is; None: none of them."""
    for kind, names, configured in _HOSTS:
        if host in names or host == _configured(configured):
            return kind
    return None


def _auth_of(deployment: Deployment) -> str | None:
    """``"private"``, ``"shared"`` or ``"public"``, as ``fal.App.app_auth`` has it; None: unsaid."""
    return getattr(deployment.app, "app_auth", None)


def _configured(name: str) -> str | None:
    """A host that fal_client or the SDK was told of by the environment when it was imported."""
    for module in ("fal_client.auth", "fal.flags"):
        host = getattr(sys.modules.get(module), name, None)
        if isinstance(host, str):
            return host
    return None
