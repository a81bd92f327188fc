"""httpx's way to a runner, past the emulated network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from emulator.runners.runner import Runner

__all__ = ["RunnerTransport"]


class RunnerTransport(httpx.BaseTransport):
    """Takes a client's requests to the runner, past the emulated network."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, once its head is there."""
        sent = httpx.Request(
            request.method, request.url, headers=request.headers, content=request.read()
        )
        response = self._runner.open(sent)
        return httpx.Response(
            response.status_code, headers=response.headers.raw, stream=response.stream
        )
