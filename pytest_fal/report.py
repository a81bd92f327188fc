"""What a failing test's report says about the emulated platform."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

from pytest_fal.fixtures import failed, running
from pytest_fal.warnings import UnusedFaultWarning

if TYPE_CHECKING:
    import pytest

    from emulator.account import Emulator
    from emulator.fleets.deployment import Deployment
    from emulator.ledger import Event, Exchange
    from emulator.storage.volume import Volume

__all__ = ["add_sections", "hide_our_frames", "table", "warn_of_unused"]

_MOST = 40


def add_sections(item: pytest.Item, report: pytest.TestReport) -> None:
    """Add what happened to a failing test's report, and have its volumes kept."""
    emulator = item.stash[running]
    item.stash[failed] = True
    if not emulator.active:
        return  # the failure is one of tearing the emulator down
    for title, lines in _sections(emulator):
        if lines:
            report.sections.append((f"fal: {title}", "\n".join(lines)))


def _sections(emulator: Emulator) -> list[tuple[str, list[str]]]:
    ledger = emulator.ledger
    # What deployments decided stands with each of them.
    others = [event for event in ledger.events if not _is_of_a_deployment(event, emulator)]
    events = [f"{event.at:%H:%M:%S} {event.kind}: {event.text}" for event in others]
    sections = [
        (
            _count(len(ledger.exchanges), "exchange"),
            table(ledger.exchanges, emulator.settings.nickname),
        ),
        ("events", events[-_MOST:]),
        ("uploads by way of the node that are not there", _unfinished(emulator)),
        ("clock", _clock(emulator)),
        ("faults that never struck", [repr(fault) for fault in emulator.faults.unused]),
        ("buckets", [repr(bucket)[1:-1] for bucket in emulator.buckets.all]),
        (f"volumes, kept in {emulator.directory}", _volumes(emulator)),
        ("KV store", _kv(emulator)),
    ]
    for deployment in emulator.gateway.deployments.values():
        sections.append((repr(deployment)[1:-1], _deployment(deployment)))
    if len(emulator.runners) > 1:  # what a single one printed is in pytest's captured stdout
        for runner in emulator.runners:
            sections.append((f"output of {runner.name} ({runner.state})", _output(runner.output)))
    return sections


def _is_of_a_deployment(event: Event, emulator: Emulator) -> bool:
    names = tuple(f"{name}: " for name in emulator.gateway.deployments)
    return event.kind == "deployment" and event.text.startswith(names)


def warn_of_unused(emulator: Emulator) -> None:
    """Warn of each fault that never struck, at the line that injected it."""
    came = list(dict.fromkeys(f"{e.method} {e.url}" for e in emulator.ledger.exchanges))
    requests = f"The test's requests: {', '.join(came[:5])}" if came else "There was no request"
    more = f" and {len(came) - 5} others" if len(came) > 5 else ""
    for fault in emulator.faults.unused:
        which = f" ({fault.which})" if str(fault.which) else ""
        warnings.warn_explicit(
            f"The fault '{fault.kind}'{which} never struck. {requests}{more}. "
            "Take the fault out, or have it match one of them.",
            UnusedFaultWarning,
            *fault.place,
        )


def hide_our_frames() -> None:
    """Show the user's line where one of our errors struck, not ours below it.

    pytest leaves out frames whose module has this variable (--full-trace shows them).
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("emulator."):
            module.__tracebackhide__ = True  # type: ignore[attr-defined]


def table(exchanges: list[Exchange], owner: str | None = None) -> list[str]:
    """The exchanges, one a line, with what there is to say about them below.

    Args:
        owner: the account; who else asked is told.
    """
    if not exchanges:
        return []
    lines = ["   #  time      status  received      sent  client  request"]
    left_out = len(exchanges) - _MOST
    if left_out > 0:
        lines.append(f"      ... {left_out} earlier ones; fal_ledger.exchanges has them all")
    for exchange in exchanges[-_MOST:]:
        runner = f" [{exchange.runner}]" if exchange.runner else ""
        lines.append(
            f"{exchange.number:4}  {exchange.at:%H:%M:%S}  {exchange.status or '-':>6}  "
            f"{exchange.bytes_received:8}  {exchange.bytes_sent:8}  {exchange.client:6}  "
            f"{exchange.method} {exchange.url}{runner}{_asker(exchange, owner)}"
        )
        lines += [f"{'':43}! {note}" for note in exchange.notes]
    return lines


def _asker(exchange: Exchange, owner: str | None) -> str:
    return f" as {exchange.user}" if exchange.user not in (None, owner) else ""


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _clock(emulator: Emulator) -> list[str]:
    clock = emulator.clock
    if not clock.engaged:
        return []
    how = "stopped" if clock.frozen else "running"
    return [f"virtual time {clock.now():%Y-%m-%d %H:%M:%S} UTC, {how}"]


def _unfinished(emulator: Emulator) -> list[str]:
    return [repr(upload)[1:-1] for upload in emulator.uploader.unfinished[-_MOST:]]


def _volumes(emulator: Emulator) -> list[str]:
    lines = _tree(emulator.data) + _tree(emulator.tmp)
    for runner in emulator.runners:
        lines += [f"{line} [{runner.name}]" for line in _tree(runner.tmp)]
    return lines


def _tree(volume: Volume) -> list[str]:
    from emulator.checks import bytes_of

    lines: list[str] = []
    clones: set[str] = set()
    for rel in volume.tree():
        clone, is_gits, _ = f"/{rel}".partition("/.git/")
        if not is_gits:
            size = (volume.backing / rel).lstat().st_size
            lines.append(f"{volume.path / rel}  {bytes_of(size)}")
        elif clone not in clones:  # git has dozens of files of its own
            clones.add(clone)
            lines.append(f"{volume.path}{clone}/.git/")
    if len(lines) > _MOST:
        lines[_MOST:] = [f"... {len(lines) - _MOST} more in {volume.backing}"]
    return lines or [f"{volume.path} is empty"]


def _kv(emulator: Emulator) -> list[str]:
    from emulator.checks import bytes_of

    lines = []
    for entry in emulator.kv.entries:
        until = f"until {entry.expires_at:%Y-%m-%d %H:%M:%S}" if entry.expires_at else "for ever"
        runner = f" [{entry.runner}]" if entry.runner else ""
        lines.append(f"{entry.name}  {bytes_of(entry.size)}  {until}{runner}")
    if len(lines) > _MOST:
        lines[_MOST:] = [f"... {len(lines) - _MOST} more; fal_kv.entries has them all"]
    return lines


def _deployment(deployment: Deployment) -> list[str]:
    """What happened to it, then where each call is."""
    lines = [repr(call)[1:-1] for call in deployment.calls[-_MOST:]]
    return [*deployment.history[-_MOST:], *lines]


def _output(text: str) -> list[str]:
    from emulator.runners.output import without_noise

    return without_noise(text)[-_MOST:]
