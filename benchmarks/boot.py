"""A runner, and the bare ASGI app with its lifespan."""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any
from unittest import mock

import fal
import httpx
from measure import Row, Table, in_turn, seconds_of

from emulator import Emulator

EXPLANATION = """\
Booting an app with an empty `setup` and shutting it down, and one request to it. Ours is a runner
(thread, private `/tmp`, environment, gateway headers). The alternative is the SDK's ASGI app in
`asyncio.run`, with its lifespan, and httpx's `ASGITransport`. At each start the SDK lists all
installed packages, which takes longer than everything else; ours reads that list once a process."""


class Echo(fal.App):
    """The least that is an app."""

    @fal.endpoint("/")
    def echo(self) -> dict[str, bool]:
        """Answer."""
        return {"ok": True}


def measure(quick: bool) -> Table:
    """Compare."""
    rounds, requests = (8, 20) if quick else (30, 50)
    emulator = Emulator()
    ours = Timed(lambda times: _runner(emulator, times), requests)
    bare = Timed(lambda times: asyncio.run(_bare(times)), requests)
    short = Timed(_without_package_list, requests)
    with redirect_stdout(io.StringIO()):
        boots = in_turn(rounds, ours.boot, bare.boot, short.boot)
    emulator.close()
    table = Table("A runner", EXPLANATION)
    table.rows = [
        Row("boot and stop / bare app", boots[0], boots[1]),
        Row("boot and stop / bare app without the list", boots[0], boots[2]),
        Row("one request / bare app", ours.requests[1:], bare.requests[1:]),
    ]
    return table


class Timed:
    """Runs one side; a run times the boot, and the requests in between."""

    def __init__(self, run: Callable[[int], tuple[float, float]], times: int) -> None:
        self._run = run
        self._times = times
        self.requests: list[float] = []

    def boot(self) -> float:
        """One run: seconds to boot and stop."""
        boot, request = self._run(self._times)
        self.requests.append(request)
        return boot


def _runner(emulator: Emulator, times: int) -> tuple[float, float]:
    emulator.start()
    try:
        start = time.perf_counter()
        runner = emulator.runner(Echo)
        booted = time.perf_counter()
        request = seconds_of(lambda: runner.post("/").raise_for_status(), times)
        answered = time.perf_counter()
        runner.stop()
        return booted - start + time.perf_counter() - answered, request
    finally:
        emulator.stop()


async def _bare(times: int) -> tuple[float, float]:
    start = time.perf_counter()
    asgi: Any = Echo(_allow_init=True)._build_app()
    async with asgi.router.lifespan_context(asgi):
        booted = time.perf_counter()
        transport = httpx.ASGITransport(asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            asked = time.perf_counter()
            for _ in range(times):
                (await client.post("/")).raise_for_status()
            request = (time.perf_counter() - asked) / times
        answered = time.perf_counter()
    return booted - start + time.perf_counter() - answered, request


def _without_package_list(times: int) -> tuple[float, float]:
    with mock.patch.object(importlib.metadata, "distributions", return_value=()):
        return asyncio.run(_bare(times))
