"""A request through the queue, by fal's own client, and the app's own time for it."""

from __future__ import annotations

from asyncio import new_event_loop
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from io import StringIO

import fal_client
from boot import Echo
from measure import Row, Table, in_turn, seconds_of

from emulator import Emulator

EXPLANATION = """\
One request with the real `fal_client` to a deployed app on a warm runner (a thread), through the
gateway: `run`, `submit` and `get` (three requests of the client's), `subscribe` with updates, and
eight submissions before the first `get`, a request. The alternative is `runner.post` on the same
runner: the app's own time, with all that our runner adds to it. What a request through the queue
costs beyond it is the difference of the two, not their ratio."""


def measure(quick: bool) -> Table:
    """Compare."""
    rounds, times = (10, 10) if quick else (40, 25)
    table = Table("A request through the queue", EXPLANATION)
    with Emulator() as emulator, redirect_stdout(StringIO()), closing(new_event_loop()) as loop:
        deployment = emulator.gateway.deploy("tester/echo", Echo, min_concurrency=1)
        runner = deployment.runners[0]
        client, asynchronous = fal_client.SyncClient(), fal_client.AsyncClient()

        def own() -> float:
            return seconds_of(lambda: runner.post("/").raise_for_status(), times)

        sides = {
            "run": lambda: client.run("tester/echo", {}),
            "submit and get": lambda: client.submit("tester/echo", {}).get(),
            "subscribe": lambda: client.subscribe("tester/echo", {}, on_queue_update=_ignore),
            "subscribe, async": lambda: loop.run_until_complete(
                asynchronous.subscribe("tester/echo", {})
            ),
        }
        for what, action in sides.items():
            ours, app = in_turn(rounds, _seconds(action, times), own)
            table.rows.append(Row(f"{what} / the app's own time", ours, app))
        eight, app = in_turn(rounds, _seconds(lambda: _eight(client), 1), own)
        each = [seconds / 8 for seconds in eight]
        table.rows.append(Row("eight at once, each / the app's own time", each, app))
    return table


def _seconds(action: Callable[[], object], times: int) -> Callable[[], float]:
    return lambda: seconds_of(action, times)


def _ignore(status: fal_client.Status) -> None:
    """Take an update."""


def _eight(client: fal_client.SyncClient) -> None:
    for handle in [client.submit("tester/echo", {}) for _ in range(8)]:
        handle.get()
