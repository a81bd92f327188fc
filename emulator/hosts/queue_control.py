"""``api.fal.ai/v1/serverless/apps/{owner}/{name}/queue``: its size, and emptying it [§6.2]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from emulator.hosts.access import APIError, account_of, demand
from emulator.network.reply import json_reply

if TYPE_CHECKING:
    from emulator.fleets.call import Call
    from emulator.fleets.gateway import Gateway
    from emulator.hosts.platform_api import PlatformAPI
    from emulator.ledger import Exchange

__all__ = ["QueueControl"]


class QueueControl:
    """The calls of the platform API about an app's queue; they are its owner's."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def offer(self, platform: PlatformAPI) -> None:
        """Add the calls to the platform API."""
        path = r"/v1/serverless/apps/([^/]+)/([^/]+)/queue"
        platform.add("GET", path, self._size)
        platform.add("DELETE", path, self._flush)

    def _size(
        self, request: httpx.Request, exchange: Exchange, owner: str, name: str
    ) -> httpx.Response:
        return json_reply({"queue_size": len(self._queue(request, owner, name))})

    def _flush(
        self, request: httpx.Request, exchange: Exchange, owner: str, name: str
    ) -> httpx.Response:
        """Cancel what waits; what runs goes on. The answer's body is not documented."""
        demand(request, "admin")
        for call in self._queue(request, owner, name):
            call.cancel()
        return json_reply({})

    def _queue(self, request: httpx.Request, owner: str, name: str) -> list[Call]:
        deployment = self._gateway.deployments.get(f"{owner}/{name}")
        user = account_of(request).user
        if deployment is None or not (user.is_owner or user.nickname == owner):
            raise APIError(404, "not_found", f"{user.nickname} has no app {owner}/{name}")
        return [call for call in deployment.queue if not call.direct]
