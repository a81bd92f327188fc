"""``queue.fal.run``: requests are submitted, asked about, fetched and cancelled [facts §6.2]."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx

from emulator.fleets import gateway_headers
from emulator.fleets.endpoint_ids import endpoint_of, queued_request
from emulator.fleets.request_log import entries
from emulator.network.reply import json_reply, reply

if TYPE_CHECKING:
    from emulator.fleets.call import Call, Incoming
    from emulator.fleets.deployment import Deployment
    from emulator.fleets.gateway import Gateway
    from emulator.settings import Settings

__all__ = ["QueueAPI"]

#: A client that asks too early is let wait so long, in real seconds, for a request that goes on by
#: itself: it would ask again in 0.1 s, as fal_client does, however short the request is.
_PATIENCE = 0.1
_PING_SECONDS = 15.0
_LIMIT = re.compile(r"[0-9]{1,18}")
_TRUE = ("1", "true")


class QueueAPI:
    """The calls of the queue.

    Args:
        gateway: knows the deployments and their calls.
        settings: the account's, as they are now.
    """

    def __init__(self, gateway: Gateway, settings: Callable[[], Settings]) -> None:
        self._gateway = gateway
        self._settings = settings

    def submit(
        self, request: httpx.Request, deployment: Deployment, asked: Incoming
    ) -> httpx.Response:
        """Take in a request; its ids and URLs."""
        path, parameters = _without_ours(asked.path)
        limit = parameters.get("fal_max_queue_length", "")
        if _LIMIT.fullmatch(limit) and len(deployment.queue) >= int(limit):
            why = f"The queue has {len(deployment.queue)} requests, fal_max_queue_length={limit}"
            return json_reply({"detail": why}, 429)
        asked = replace(asked, path=path, webhook=parameters.get("fal_webhook"))
        call = deployment.accept(asked)
        if call.response is not None and not call.attempts:
            return gateway_headers.copy(call.response)  # malformed: it has never been in the queue
        body = {
            "status": "IN_QUEUE",
            "request_id": call.request_id,
            "gateway_request_id": call.request_id,
            **_urls(request, call),
            "queue_position": call.position or 0,
        }
        return json_reply(body, headers=[("x-fal-request-id", call.request_id)])

    def answers_at_once(self, request: httpx.Request) -> bool:
        """Whether a request is about one that is over, so that nobody has to wait."""
        asked = queued_request(request.url.path)
        call = (
            self._gateway.call_of(asked.request_id) if asked and request.method == "GET" else None
        )
        return call is not None and call.over.is_set()

    def ask(self, request: httpx.Request, nickname: str) -> httpx.Response | None:
        """Answer a question about a request; None: it is none."""
        asked = queued_request(request.url.path)
        if asked is None or (request.method, asked.call) == ("POST", ""):  # an app's own endpoint
            return None
        handler = _HANDLERS.get((request.method, asked.call))
        if handler is None:
            return json_reply({"detail": "Method Not Allowed"}, 405)
        call = self._gateway.call(asked.request_id, nickname)
        if call is None or call.direct or call.dropped or asked.app != _app_of(call):
            why = f"Request {asked.request_id} not found"
            body = {"status": "NOT_FOUND"} if asked.call == "cancel" else {"detail": why}
            return json_reply(body, 404)
        response: httpx.Response = handler(self, request, call)
        response.headers["x-fal-request-id"] = call.request_id
        return response

    # --- the calls -------------------------------------------------------------------------------

    def _status(self, request: httpx.Request, call: Call) -> httpx.Response:
        call.wait(_PATIENCE, _asker(request))
        body = self._told(request, call)
        return json_reply(body, 200 if body["status"] == "COMPLETED" else 202)

    def _stream(self, request: httpx.Request, call: Call) -> httpx.Response:
        response = reply(content_type="text/event-stream", stream=self._events(request, call))
        response.extensions["fal_may_wait"] = True
        return response

    def _events(self, request: httpx.Request, call: Call) -> Iterator[bytes]:
        told: dict[str, Any] | None = None
        logged, quiet, asker = 0, 0.0, _asker(request)
        while not call.dropped:
            body = self._told(request, call)
            if body != told:
                told, quiet = dict(body), 0.0
                if body.get("logs") is not None:  # clients collect them: each is told once
                    body["logs"], logged = body["logs"][logged:], len(body["logs"])
                yield f"data: {json.dumps(body)}\n\n".encode()
            if body["status"] == "COMPLETED":
                return
            call.wait_for_news(_PATIENCE, asker)
            quiet += _PATIENCE
            if quiet >= _PING_SECONDS:
                quiet = 0.0
                yield b": ping\n\n"

    def _result(self, request: httpx.Request, call: Call) -> httpx.Response:
        response = call.response if call.status == "COMPLETED" else None
        if response is None:
            return json_reply({"detail": f"Request {call.request_id} is {call.status}"}, 400)
        if call.deleted or call.has_been_over_for(self._settings().queue_result_lifetime):
            return json_reply({"detail": f"Request {call.request_id} not found"}, 404)
        return gateway_headers.copy(response)

    def _cancel(self, request: httpx.Request, call: Call) -> httpx.Response:
        outcome = call.cancel()
        return json_reply({"status": outcome}, 400 if outcome == "ALREADY_COMPLETED" else 202)

    # --- inside ----------------------------------------------------------------------------------

    def _told(self, request: httpx.Request, call: Call) -> dict[str, Any]:
        """The status of a request, as JSON."""
        status = call.status
        logs = entries(call) if request.url.params.get("logs", "").lower() in _TRUE else None
        common = {"request_id": call.request_id, **_urls(request, call)}
        if status == "IN_QUEUE":
            return {"status": status, "queue_position": call.position or 0, **common}
        if status == "IN_PROGRESS":
            return {"status": status, "logs": logs, **common}
        return {"status": status, "logs": logs, **common, **_outcome(call)}


_HANDLERS: dict[tuple[str, str], Callable[[QueueAPI, httpx.Request, Call], httpx.Response]] = {
    ("GET", ""): QueueAPI._result,
    ("GET", "status"): QueueAPI._status,
    ("GET", "status/stream"): QueueAPI._stream,
    ("PUT", "cancel"): QueueAPI._cancel,
}


def _urls(request: httpx.Request, call: Call) -> dict[str, str]:
    """Of a request; whatever its endpoint, they have the app's name alone."""
    base = f"https://{request.url.host}/{_app_of(call)}/requests/{call.request_id}"
    return {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}


def _asker(request: httpx.Request) -> threading.Thread | None:
    """The thread in which somebody waits for the answer; None: it is not known, over the wire."""
    if request.extensions.get("fal_client") == "wire":
        return None
    asker: threading.Thread = request.extensions.get("fal_asker", threading.current_thread())
    return asker


def _app_of(call: Call) -> str:
    endpoint = endpoint_of(f"/{call.deployment}")
    assert endpoint is not None
    return endpoint.app


def _outcome(call: Call) -> dict[str, Any]:
    """What the status of a finished request says about its end."""
    assert call.response is not None
    metrics: dict[str, float] = {}
    ended = [(each.at, each.ended_at) for each in call.attempts if each.ended_at is not None]
    if ended:
        at, ended_at = ended[-1]
        metrics["inference_time"] = (ended_at - at).total_seconds()
    if call.response.is_success:
        return {"metrics": metrics}
    error_type = call.response.headers.get("x-fal-error-type")
    error = {"error": _error_of(call.response)}
    return {"metrics": metrics, **error, **({"error_type": error_type} if error_type else {})}


def _error_of(response: httpx.Response) -> str:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = None
    return detail if isinstance(detail, str) else f"Invalid status code: {response.status_code}"


def _without_ours(path: str) -> tuple[str, dict[str, str]]:
    """A path with its query, without the parameters that are the gateway's; those."""
    url = httpx.URL(f"http://app{path}")
    ours = {name: value for name, value in url.params.items() if name in _PARAMETERS}
    if not ours:
        return path, {}
    for name in ours:
        url = url.copy_remove_param(name)
    return url.raw_path.decode("ascii"), ours


_PARAMETERS = ("fal_webhook", "fal_max_queue_length")
