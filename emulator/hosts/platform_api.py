"""``api.fal.ai/v1``: the platform API, as far as files need it [facts §1.10, §1.15].

A table of paths, to which other parts add theirs::

    platform.add("GET", r"/v1/serverless/files/list/(.*)", handler)
    def handler(request, exchange, *groups) -> httpx.Response: ...

A handler knows whose key it is by ``account_of(request)``, and refuses by raising ``APIError``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx

from emulator.hosts.access import APIError, FileAccess, account_of, demand
from emulator.hosts.common import Handler, PathRouter
from emulator.ledger import Exchange
from emulator.network.reply import json_reply
from emulator.storage.cdn import CDN

__all__ = ["Payloads", "PlatformAPI"]

#: How long the answer to an ``Idempotency-Key`` is given again [§1.15].
_REMEMBERED = timedelta(minutes=10)


class PlatformAPI:
    """The platform API of all accounts."""

    def __init__(self, cdn: CDN) -> None:
        self._users = cdn.users
        #: Calls that need no key.
        self.public = PathRouter()
        self._paths = PathRouter()
        access = FileAccess(cdn)
        access.offer(self.add, "/v1/storage")
        self.add("POST", "/v1/storage/files/sign", access.sign)

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        """Offer a call; *pattern* is a regular expression for the whole path."""
        self._paths.add(method, pattern, handler)

    def answers(self, host: str) -> bool:
        """Whether this is the platform API's host."""
        return host == "api.fal.ai"

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        """Answer; an account's key is needed for everything that is not public."""
        handler, groups = self.public.find(request.method, request.url.path)
        if handler is not None:
            return handler(request, exchange, *groups)
        try:
            account = self._users.account(request.headers.get("authorization"), exchange.runner)
            if account is None:
                raise APIError(401, "authorization_error", "an API key is needed")
            exchange.user = account.user.nickname
            request.extensions["fal_account"] = account
            handler, groups = self._paths.find(request.method, request.url.path)
            if handler is None:
                exchange.notes.append("the emulator does not know this call")
                raise APIError(404, "not_found", f"Path {request.url.path} not found")
            return handler(request, exchange, *groups)
        except APIError as error:
            exchange.notes.append(str(error))
            body = {"error": {"type": error.type, "message": str(error)}}
            return json_reply(body, error.status)


@dataclass(frozen=True)
class _Answered:
    request_id: str
    at: datetime
    answer: dict[str, Any]


class Payloads:
    """``DELETE /v1/models/requests/{id}/payloads``: what a request left behind, but its inputs.

    Args:
        cdn: where its outputs are.
        now: the clock.
    """

    def __init__(self, cdn: CDN, now: Callable[[], datetime]) -> None:
        self._cdn = cdn
        self._now = now
        self._answered: dict[tuple[str, str], _Answered] = {}
        #: Each is told a request's id and a nickname, removes what it keeps of that user's request,
        #: and says whether it knew it.
        self.removers: list[Callable[[str, str], bool]] = []

    def reset(self) -> None:
        """Forget the answers."""
        self._answered.clear()

    def offer(self, platform: PlatformAPI) -> None:
        """Add the call to the platform API."""
        platform.add("DELETE", r"/v1/models/requests/([^/]+)/payloads", self._delete)

    def _delete(
        self, request: httpx.Request, exchange: Exchange, request_id: str
    ) -> httpx.Response:
        demand(request, "admin")
        nickname = account_of(request).user.nickname
        key = request.headers.get("idempotency-key")
        before = self._answered.get((nickname, key)) if key is not None else None
        if before is not None and self._now() < before.at + _REMEMBERED:
            note = f"the answer of {before.at:%H:%M:%S} again: its Idempotency-Key was the same"
            other = f", though that was for {before.request_id}: nothing is deleted"
            exchange.notes.append(note + (other if before.request_id != request_id else ""))
            return json_reply(before.answer)
        answer = self._remove(request_id, nickname)
        if key is not None:
            self._answered[nickname, key] = _Answered(request_id, self._now(), answer)
        return json_reply(answer)

    def _remove(self, request_id: str, nickname: str) -> dict[str, Any]:
        outputs = self._cdn.outputs_of(request_id, nickname)
        known = [remove(request_id, nickname) for remove in self.removers]
        if not outputs and not any(known):
            message = f"{nickname} has made no request {request_id}"
            raise APIError(404, "not_found", message)
        results: list[dict[str, Any]] = []
        why = f"with the payloads of request {request_id}"
        for file in outputs:
            gone = not self._cdn.delete(file.url, why)
            exception = "the file is not there any more" if gone else None
            results.append({"link": file.url, "exception": exception})
        return {"cdn_delete_results": results}
