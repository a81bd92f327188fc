"""Ways to watch the SDK at work. Nothing of it is replaced."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from types import FrameType, FunctionType

    from emulator.network.faults import Gate
    from emulator.storage.volume import Volume

__all__ = ["calls_of", "eventually", "held", "kill_at", "sizes"]

Result = TypeVar("Result")


@contextmanager
def calls_of(function: FunctionType) -> Iterator[list[dict[str, Any]]]:
    """The arguments of each call of a Python function in this thread, seen by the interpreter."""
    calls: list[dict[str, Any]] = []

    def look(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code is function.__code__:
            calls.append(dict(frame.f_locals))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield calls
    finally:
        sys.setprofile(before)


@contextmanager
def held(gate: Gate, work: Callable[[], Result]) -> Iterator[Future[Result]]:
    """Run *work* in a thread, up to the gate; it goes on after the block or ``gate.open()``."""
    with ThreadPoolExecutor(1) as pool:
        try:
            result = pool.submit(work)
            gate.wait()
            yield result
        finally:
            gate.open()


def kill_at(gate: Gate, ready: Callable[[], bool], work: Callable[[], object]) -> None:
    """Run *work* in a process, up to the gate, and kill it there once *ready* says so."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    try:
        gate.wait()
        assert eventually(ready)
    finally:
        process.kill()
        process.join()
        process.close()
        gate.open()


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether that becomes true, for what another thread is about to do."""
    end = time.perf_counter() + seconds
    while not holds():
        if time.perf_counter() > end:
            return False
        time.sleep(0.001)
    return True


def sizes(volume: Volume) -> dict[str, int]:
    """The files of a volume, hidden ones too, and how large they are."""
    return {rel: (volume.backing / rel).stat().st_size for rel in volume.tree()}
