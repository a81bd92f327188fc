"""What the rung without mounts costs, beside that of real mounts."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import fal
from measure import Row, Table, in_turn

from emulator import Emulator, Settings

EXPLANATION = """\
The rung `rewrite`, where Python's path calls are rewritten, and as the alternative the rung
`namespace`, where `/data` is a real mount and the calls are Python's own. A test is a `start()` and
`stop()` of the emulator."""


class Empty(fal.App):
    """The least that is an app."""

    @fal.endpoint("/")
    def ask(self) -> bool:
        """Answer."""
        return True


def measure(quick: bool) -> Table:
    """Compare. To be measured last: the audit hook of `rewrite` stays in the process."""
    rounds = 5 if quick else 20
    mounted = Side(Emulator(Settings(filesystem="namespace")))
    rewritten = Side(Emulator(Settings(filesystem="rewrite")))
    table = Table("The rungs", EXPLANATION)
    with redirect_stdout(io.StringIO()):
        for what, side in (
            ("a test", Side.test),
            ("boot and stop a runner", Side.boot),
            ("os.stat, a thousand times", Side.stat),
            ("open, read and close, a thousand times", Side.read),
        ):
            ours, alternative = in_turn(
                rounds, lambda side=side: side(rewritten), lambda side=side: side(mounted)
            )
            table.rows.append(Row(what, ours, alternative))
    for one in (mounted, rewritten):
        one.emulator.close()
    return table


class Side:
    """One rung; each method is a sample in seconds."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator

    def test(self) -> float:
        """A test that does nothing."""
        start = time.perf_counter()
        self.emulator.start()
        self.emulator.stop()
        return time.perf_counter() - start

    def boot(self) -> float:
        """A runner in a thread."""
        return self._inside(lambda: self.emulator.runner(Empty).stop())

    def stat(self) -> float:
        """Asking for one file."""
        return self._inside(lambda: [os.stat("/data/folder/file") for _ in range(1000)])

    def read(self) -> float:
        """Reading one file."""
        return self._inside(lambda: [_read("/data/folder/file") for _ in range(1000)])

    def _inside(self, action: Callable[[], object]) -> float:
        self.emulator.start()
        try:
            self.emulator.data.write("folder/file", b"x")
            start = time.perf_counter()
            action()
            return time.perf_counter() - start
        finally:
            self.emulator.stop()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
