"""The queues of apps, as ``fal queue`` and the platform API see them: their size, flushing [§6.2].

Anybody's calls are counted by ``by_user``; a flush can be of one caller's alone.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import httpx

from emulator.hosts.access import APIError, account_of, demand
from emulator.network.reply import json_reply

if TYPE_CHECKING:
    from emulator.fleets.call import Call
    from emulator.fleets.gateway import Gateway
    from emulator.hosts.platform_api import PlatformAPI
    from emulator.hosts.rest import RestHost
    from emulator.ledger import Exchange

__all__ = ["Queues"]


class Queues:
    """What an app's owner may do with its queue.

    Args:
        gateway: knows the deployments.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def offer(self, rest: RestHost, platform: PlatformAPI) -> None:
        """Add the calls to both APIs, and to the first the one by which the CLI knows its user."""
        rest.add("GET", "/users/current", _current_user)
        for add, pattern in (
            (rest.add, r"/applications/([^/]+)/([^/]+)/queue"),
            (platform.add, r"/v1/serverless/apps/([^/]+)/([^/]+)/queue"),
        ):
            add("GET", pattern, self._size)
            add("DELETE", pattern, self._flush)

    def _size(
        self, request: httpx.Request, exchange: Exchange, owner: str, app: str
    ) -> httpx.Response:
        queue = self._own(request, owner, app)
        sizes = {"size": len(queue), "queue_size": len(queue)}
        if request.url.params.get("by_user", "").lower() != "true":
            return json_reply(sizes)
        return json_reply({**sizes, "by_user": Counter(_caller(one, owner) for one in queue)})

    def _flush(
        self, request: httpx.Request, exchange: Exchange, owner: str, app: str
    ) -> httpx.Response:
        demand(request, "admin")
        only = request.url.params.get("caller_user_id")
        for call in self._own(request, owner, app):
            if only in (None, _caller(call, owner)):
                call.cancel()
        return json_reply({})

    def _own(self, request: httpx.Request, owner: str, app: str) -> list[Call]:
        """What waits for an app of who asks.

        Raises:
            APIError: 404, there is none.
        """
        deployment = self._gateway.deployments.get(f"{owner}/{app}")
        user = account_of(request).user
        if deployment is None or not (user.is_owner or user.nickname == owner):
            raise APIError(404, "not_found", f"Application {owner}/{app} not found")
        return [call for call in deployment.queue if not call.direct]


def _caller(call: Call, owner: str) -> str:
    return call.caller or owner


def _current_user(request: httpx.Request, _exchange: Exchange) -> httpx.Response:
    """Whose key it is; the members that the CLI insists on."""
    user = account_of(request).user
    return json_reply(
        {
            "full_name": user.nickname,
            "nickname": user.nickname,
            "user_id": user.id,
            "is_personal": True,
            "is_locked": False,
        }
    )
