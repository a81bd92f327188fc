"""Tests on a CUDA device: the marker ``fal_cuda``, ``--fal-require-cuda``, skips with a reason.

The plugin calls :func:`add_options`, :func:`add_marker` and :func:`terminal_summary`; the
fixture ``fal_cuda_runner`` calls :func:`require`. Which devices there are is decided by
``emulator.runners.gpu``, which is imported when the first test asks.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.runners.gpu import Device, Needs, System

__all__ = [
    "add_marker",
    "add_options",
    "needs_of",
    "require",
    "summary_line",
    "terminal_summary",
]

_OPTION = "--fal-require-cuda"
_EXAMPLE = '@pytest.mark.fal_cuda(count=1, memory="24GB", capability=(8, 0), name="H100")'
_SKIPPED = pytest.StashKey[Counter[str]]()


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
        "fal_cuda(count=1, memory=None, capability=None, name=None): what the test needs of CUDA "
        'devices: how many, free memory on each ("24GB", "24GiB" or bytes), least compute '
        'capability ((8, 0)), part of the name ("H100")',
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
    from emulator.runners import gpu

    try:
        needs = needs_of(request.node)
    except pytest.UsageError as error:
        # Raised within a fixture it would come with a traceback of this plugin.
        pytest.fail(str(error), pytrace=False)
    choice = gpu.choose(gpu.probe(system), needs)
    if choice.reason is None:
        return choice.devices
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
