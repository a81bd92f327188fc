"""The user's own routes: a real ``respx.MockRouter`` asked before the platform's hosts.

The only module that looks into respx (seen: 0.22, 0.23).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine
from typing import Any

import httpx
import respx
from respx.models import AllMockedAssertionError, PassThrough, ResolvedRoute

__all__ = ["PassThrough", "Routes"]


class Routes:
    """The user's routes, for every client."""

    def __init__(self) -> None:
        # using=None: respx patches nothing itself; all clients come in through our own entrances.
        self.router = respx.MockRouter(assert_all_called=False, assert_all_mocked=True, using=None)

    def reset(self) -> None:
        """Forget all routes and calls."""
        if self.router.routes:
            self.router.clear()
        if self.router.calls:
            self.router.calls.clear()

    def may_answer(self, host: str) -> bool:
        """Whether a route could answer for *host*; a route without a host answers for any."""
        if not self.router.routes:
            return False
        probe = httpx.Request("GET", f"https://{_in_url(host)}/")
        return any(_may_match_host(route, probe) for route in self.router.routes)

    def passes_through(self, host: str) -> bool:
        """Whether a route names this very host and lets it through to the real network."""
        if not self.router.routes:
            return False
        probe = httpx.Request("GET", f"https://{_in_url(host)}/")
        return any(
            route.is_pass_through and _host_patterns(route) and _may_match_host(route, probe)
            for route in self.router.routes
        )

    def answer(self, request: httpx.Request) -> httpx.Response | None:
        """The response of the first route that matches; None when none does.

        Raises:
            PassThrough: the route lets the request through to the real network.
            Exception: whatever a route's side effect raises.
        """
        try:
            resolved = self._resolve(request)
        except AllMockedAssertionError:
            return None
        assert isinstance(resolved.response, httpx.Response)
        return resolved.response

    def _resolve(self, request: httpx.Request) -> ResolvedRoute:
        # Patterns and side effects look at request.content, which a stream only has once read.
        request.read()
        if any(inspect.iscoroutinefunction(route.side_effect) for route in self.router.routes):
            return _run(self.router.aresolve(request))
        return self.router.resolve(request)


def _host_patterns(route: respx.Route) -> list[Any]:
    return [p for p in (route.pattern or ()) if getattr(p, "key", None) in ("host", "url")]


def _may_match_host(route: respx.Route, probe: httpx.Request) -> bool:
    patterns = _host_patterns(route)
    return not patterns or any(_same_host(pattern, probe) for pattern in patterns)


def _same_host(pattern: Any, probe: httpx.Request) -> bool:
    if pattern.key == "host":
        return bool(pattern.match(probe))
    value = pattern.value  # a whole URL: text, httpx.URL or a compiled expression
    if isinstance(value, (str, httpx.URL)):
        return httpx.URL(value).host == probe.url.host
    return True


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _run(coroutine: Coroutine[Any, Any, ResolvedRoute]) -> ResolvedRoute:
    """Run an async side effect for a client that is not async (or whose loop is busy with us)."""
    result: list[ResolvedRoute] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(asyncio.run(coroutine))
        except BaseException as error:  # handed on to the caller, whatever it is
            failure.append(error)

    thread = threading.Thread(target=run, name="fal-async-side-effect")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
