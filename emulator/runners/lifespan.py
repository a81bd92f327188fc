"""The ASGI lifespan protocol, as a server speaks it to an app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["Lifespan"]

ASGIApp = Callable[..., Any]


class Lifespan:
    """Starts and shuts down an ASGI app on the running loop."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._to_app: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Let the app set itself up.

        Raises:
            BaseException: whatever the app's setup raised.
        """
        self._task = asyncio.create_task(self._serve(), name="lifespan")
        # Nobody asks for what it raised where the runner is killed meanwhile.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        await self._ask("startup")

    async def shutdown(self) -> None:
        """Let the app tear itself down.

        Raises:
            BaseException: whatever the app's teardown raised.
        """
        await self._ask("shutdown")
        if self._task is not None:
            await self._task

    async def _serve(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        await self._app(scope, self._to_app.get, self._answers.put)

    async def _ask(self, step: str) -> None:
        assert self._task is not None
        await self._to_app.put({"type": f"lifespan.{step}"})
        answer = asyncio.create_task(self._answers.get())
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done() and not answer.result()["type"].endswith(".failed"):
            return
        answer.cancel()
        await self._task  # raises what the app raised
        raise RuntimeError(f"the app ended before its {step} was complete")
