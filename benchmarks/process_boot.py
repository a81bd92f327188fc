"""A runner in a process, and the SDK's own local run of the same app."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import redirect_stdout
from pathlib import Path

import fal
from measure import Row, Table, in_turn

from emulator import Emulator

EXPLANATION = """\
From the call to the first answer of `/health`, and then from the stop (SIGTERM) to the end of the
process, of an app with an empty `setup`. The first runner of a session starts the server that
forks all of them; the alternative is `fal.App.run_local` in a new Python each time, as `fal run
--local` does it."""

_PROGRAM = """\
import sys
from process_boot import Echo
Echo.run_local(exposed_port=int(sys.argv[1]), exposed_metrics_port=int(sys.argv[2]))
"""


class Echo(fal.App):
    """The least that is an app."""

    @fal.endpoint("/")
    def echo(self) -> dict[str, bool]:
        """Answer."""
        return {"ok": True}


def measure(quick: bool) -> Table:
    """Compare."""
    rounds = 4 if quick else 15
    with redirect_stdout(io.StringIO()):
        cold = in_turn(rounds, lambda: _session(1)[0], lambda: _local()[0])
        sessions = [_session(rounds // 2 + 1) for _ in range(2)]
        ends = in_turn(rounds, lambda: _session(1)[1], lambda: _local()[1])
        warm = [boot for session in sessions for boot in session[2]]
    table = Table("A runner in a process", EXPLANATION)
    table.rows = [
        Row("first boot of a session / local run", cold[0], cold[1]),
        Row("every other boot / local run", warm, cold[1]),
        Row("stop / local run", ends[0], ends[1]),
    ]
    return table


def _session(boots: int) -> tuple[float, float, list[float]]:
    """The first boot and stop of a new emulator, and the boots after it."""
    emulator = Emulator()
    emulator.start()
    times = []
    try:
        for _ in range(boots + (boots > 1)):
            start = time.perf_counter()
            runner = emulator.runner(Echo, isolation="process")
            runner.get("/health").raise_for_status()
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
            runner.stop()
            stop = time.perf_counter() - start
    finally:
        emulator.stop()
        emulator.close()
    return times[0], stop, times[1:]


def _local() -> tuple[float, float]:
    ports = [_free_port(), _free_port()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "FAL_KEY": "a:b"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *map(str, ports)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not _is_healthy(ports[0]):
        time.sleep(0.001)
    booted = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    process.wait()
    return booted - start, time.perf_counter() - booted


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
