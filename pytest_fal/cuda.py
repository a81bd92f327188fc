"""Tests on a CUDA device: the marker ``fal_cuda``, ``--fal-require-cuda``, skips with a reason.

The plugin calls :func:`add_options`, :func:`add_marker` and :func:`terminal_summary`; the
fixture ``fal_cuda_runner`` calls :func:`require`. Which devices there are is decided by
``emulator.runners.gpu``, which is imported when the first test asks.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_fal.warnings import MemoryNotGivenBackWarning

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from emulator.account import Emulator
    from emulator.runners.cuda import CudaRunners
    from emulator.runners.gpu import Device, Needs, System

__all__ = [
    "SYSTEM",
    "add_marker",
    "add_options",
    "devices_opened_here",
    "needs_of",
    "require",
    "runners_of",
    "summary_line",
    "terminal_summary",
]

_OPTION = "--fal-require-cuda"
_EXAMPLE = '@pytest.mark.fal_cuda(count=1, memory="24GB", capability=(8, 0), name="H100")'
_SKIPPED = pytest.StashKey[Counter[str]]()
#: In a config's stash: where to look for devices instead of in this machine. For tests.
SYSTEM = pytest.StashKey["System"]()


def add_options(parser: pytest.Parser) -> None:
    """Register ``--fal-require-cuda`` (dest ``fal_require_cuda``)."""
    parser.getgroup("fal").addoption(
        _OPTION,
        action="store_true",
        default=False,
        dest="fal_require_cuda",
        help="fail the tests that need a CUDA device where there is none, instead of skipping them",
    )


def add_marker(config: pytest.Config) -> None:
    """Register the marker ``fal_cuda``."""
    config.addinivalue_line(
        "markers",
        "fal_cuda(count=1, memory=None, capability=None, name=None, cuda=None): what the test "
        'needs of CUDA devices: how many, free memory on each ("24GB", "24GiB" or bytes), least '
        'compute capability ((8, 0)), part of the name ("H100"), CUDA of the driver ("12.4")',
    )


def needs_of(item: pytest.Item | pytest.Collector) -> Needs:
    """Read the needs of a test from its markers; of several, the closest to the test wins.

    Raises pytest.UsageError for an argument that is unknown or cannot be meant.
    """
    from emulator.runners.gpu import Needs

    merged: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers("fal_cuda"))):
        _check_arguments(item, mark)
        merged.update(mark.kwargs)
    try:
        return Needs(**merged)
    except ValueError as error:
        raise pytest.UsageError(f"{item.nodeid}: @pytest.mark.fal_cuda: {error}") from None


def require(request: pytest.FixtureRequest, system: System | None = None) -> tuple[Device, ...]:
    """Give the requesting test its devices, or skip it; ``--fal-require-cuda`` fails it instead.

    Devices are probed anew for each test, since free memory changes. ``system`` is for tests.
    """
    needs = _needs_or_fail(request)
    return _candidates(request, needs, system)[: needs.count]


@contextmanager
def runners_of(request: pytest.FixtureRequest) -> Iterator[CudaRunners]:
    """The runners of the requesting test on its devices; skips it as :func:`require` does.

    In the end they are stopped and the memory of their devices is waited for. What was not given
    back is a :class:`MemoryNotGivenBackWarning`. A test whose own process has opened a device by
    then, other than for a runner in a thread of it, fails.
    """
    from emulator.runners.cuda import CudaRunners

    needs = _needs_or_fail(request)
    system = request.config.stash.get(SYSTEM, None)
    devices = _candidates(request, needs, system)
    emulator: Emulator = request.getfixturevalue("fal_emulator")
    nodes = system.device_directory if system is not None else "/dev"
    before = devices_opened_here(nodes)
    runners = CudaRunners(emulator.runner, devices, needs, system)
    yield runners
    runners.close()
    for problem in runners.problems:
        warnings.warn(MemoryNotGivenBackWarning(problem), stacklevel=2)
    opened = devices_opened_here(nodes) - before
    if opened and not runners.in_this_process:
        pytest.fail(_context_here(sorted(opened)), pytrace=False)


def devices_opened_here(directory: str = "/dev") -> set[str]:
    """NVIDIA's device nodes that this process has open: any means a CUDA context, or NVML."""
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return set()
    targets = (_target(f"/proc/self/fd/{number}") for number in numbers)
    return {t for t in targets if t.startswith((f"{directory}/nvidia", f"{directory}/dxg"))}


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:  # the descriptor that listed them
        return ""


def _context_here(opened: list[str]) -> str:
    return (
        f"CUDA: pytest's own process has opened {', '.join(opened)}: the test used CUDA itself, "
        f"beside its runner, or left NVML open. A CUDA context keeps memory of the device until "
        f"pytest ends, and breaks CUDA in forked children. Use CUDA on the runner: "
        f"runner.run(function)."
    )


def _needs_or_fail(request: pytest.FixtureRequest) -> Needs:
    try:
        return needs_of(request.node)
    except pytest.UsageError as error:
        # Raised within a fixture it would come with a traceback of this plugin.
        pytest.fail(str(error), pytrace=False)


def _worker(config: pytest.Config) -> int:
    """The number of this worker of pytest-xdist; 0 without."""
    name = getattr(config, "workerinput", {}).get("workerid", "gw0")
    digits = name.removeprefix("gw")
    return int(digits) if digits.isdecimal() else 0


def _candidates(
    request: pytest.FixtureRequest, needs: Needs, system: System | None
) -> tuple[Device, ...]:
    """The devices that meet the needs, this worker's first; or the skip."""
    from emulator.runners import gpu
    from emulator.runners.cuda import rotate

    found = gpu.probe(system)
    choice = gpu.choose(found, needs)
    if choice.reason is None:
        return rotate(gpu.fitting(found, needs), _worker(request.config), needs.count)
    if request.config.getoption("fal_require_cuda", default=False):
        pytest.fail(f"{choice.reason} ({_OPTION} turns this skip into an error)", pytrace=False)
    pytest.skip(choice.reason)


def summary_line(config: pytest.Config) -> str | None:
    """Say how many tests were skipped for want of a CUDA device; one line for each reason."""
    skipped = config.stash.get(_SKIPPED, None)
    if not skipped:
        return None
    lines = [_skipped_line(count, reason) for reason, count in skipped.most_common()]
    return "\n".join(lines) + f" (use {_OPTION} to make that an error)"


def terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the skips and print the summary line; for ``pytest_terminal_summary``.

    Reports are counted, not calls of :func:`require`: under xdist these happen in the workers.
    """
    config = terminalreporter.config
    config.stash[_SKIPPED] = Counter(_cuda_skips(terminalreporter.stats.get("skipped", ())))
    line = summary_line(config)
    if line is not None:
        terminalreporter.write_line(line)


def _check_arguments(item: pytest.Item | pytest.Collector, mark: pytest.Mark) -> None:
    from dataclasses import fields

    from emulator.runners.gpu import Needs

    accepted = [field.name for field in fields(Needs)]
    unknown = [name for name in mark.kwargs if name not in accepted]
    if mark.args:
        problem = f"takes its arguments by name only, not {', '.join(map(repr, mark.args))}"
    elif unknown:
        problem = f"does not know {', '.join(unknown)}; it knows {', '.join(accepted)}"
    else:
        return
    raise pytest.UsageError(
        f"{item.nodeid}: @pytest.mark.fal_cuda {problem}: write, for example, {_EXAMPLE}"
    )


def _cuda_skips(reports: Iterable[object]) -> Iterable[str]:
    """Find the reasons; pytest gives a skip as (path, line, "Skipped: " and the reason)."""
    for report in reports:
        longrepr = getattr(report, "longrepr", None)
        if isinstance(longrepr, tuple) and longrepr[-1].startswith("Skipped: CUDA: "):
            yield longrepr[-1].removeprefix("Skipped: ")


def _skipped_line(count: int, reason: str) -> str:
    tests = "1 GPU test was" if count == 1 else f"{count} GPU tests were"
    return f"fal: {tests} skipped: {reason}"
