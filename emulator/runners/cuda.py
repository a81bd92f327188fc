"""Runners on real CUDA devices: which of them each gets, and that it gives their memory back.

Everything here asks NVML; this process has no CUDA context and never imports torch. What the
memory is waited for is real hardware, so that wait is real time, and bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from emulator.runners import gpu
from emulator.runners.gpu import Device, Needs, System, visible_devices

if TYPE_CHECKING:
    from emulator.runners.runner import Runner

__all__ = ["CudaRunners", "assign", "rotate"]

#: How often NVML is asked whether memory has come back, and how long between.
_ATTEMPTS, _PAUSE = 200, 0.05
#: Memory that may stay taken: the driver's own books of a device, in bytes.
_SLACK = 64 * 2**20


def rotate(devices: Sequence[Device], worker: int, count: int) -> tuple[Device, ...]:
    """The devices in the order in which this one of several test processes takes them.

    Each begins *count* devices after the one before it, so that they share none while there are
    enough; the order is the same in every run.
    """
    start = worker * count % len(devices) if devices else 0
    return (*devices[start:], *devices[:start])


def assign(
    devices: Sequence[Device], taken: Sequence[str], count: int, free: dict[str, int]
) -> tuple[Device, ...]:
    """Choose the devices of the next runner.

    Those that no other runner has, in their order; where these are too few, the others with the
    most *free* memory. Both are told apart by UUID, since their free memory changes.
    """
    alone = [device for device in devices if device.uuid not in taken]
    shared = [device for device in devices if device.uuid in taken]
    shared.sort(key=lambda device: -free.get(device.uuid, device.free))
    return tuple([*alone, *shared][:count])


@dataclass(frozen=True)
class _Placed:
    """A runner, its devices, and how much of their memory was free before it booted."""

    #: None: its setup failed.
    runner: Runner | None
    devices: tuple[Device, ...]
    free: dict[str, int]
    own_process: bool

    @property
    def ended(self) -> bool:
        return self.runner is None or self.runner.state == "TERMINATED"

    @property
    def name(self) -> str:
        return "a runner whose setup failed" if self.runner is None else self.runner.name


class CudaRunners:
    """Boots the runners of one test on the devices that meet its needs.

    Args:
        boot: ``Emulator.runner``.
        devices: those that meet the needs, in the order in which they are to be taken.
        needs: what the test asks for.
        system: where to look for devices.
        wait: waits that many seconds of real time.
    """

    def __init__(
        self,
        boot: Callable[..., Runner],
        devices: Sequence[Device],
        needs: Needs,
        system: System | None = None,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        system = System() if system is None else system
        self._boot = boot
        self._devices = tuple(devices)
        self._needs = needs
        # As it is now: a runner in a thread changes what this process sees.
        self._system = replace(system, environ=dict(system.environ))
        self._wait = threading.Event().wait if wait is None else wait
        self._placed: list[_Placed] = []
        #: What was not given back, one sentence each.
        self.problems: list[str] = []
        #: Whether any of them was in a thread of this process, which then has a CUDA context.
        self.in_this_process = False

    def boot(self, app: type, *, isolation: str = "process", **options: Any) -> Runner:
        """As ``Emulator.runner``; with ``CUDA_VISIBLE_DEVICES`` for devices of its own.

        A variable of that name in ``env`` wins.
        """
        self._settle()
        free = self._free()
        devices = self._devices_for(isolation, free)
        env = {"CUDA_VISIBLE_DEVICES": visible_devices(devices), **(options.pop("env", None) or {})}
        self.in_this_process |= isolation != "process"
        before = {device.uuid: free.get(device.uuid, 0) for device in devices}
        runner = None
        try:
            runner = self._boot(app, isolation=isolation, env=env, **options)
        finally:
            self._placed.append(_Placed(runner, devices, before, isolation == "process"))
        return runner

    def _devices_for(self, isolation: str, free: dict[str, int]) -> tuple[Device, ...]:
        for placed in self._placed:
            if isolation != "process" and not placed.own_process:
                return placed.devices  # one process has one CUDA_VISIBLE_DEVICES
        taken = [device.uuid for placed in self._placed for device in placed.devices]
        return assign(self._devices, taken, self._needs.count, free)

    def close(self) -> None:
        """Stop the runners, the newest first, and wait for their memory; raises the first error."""
        errors = []
        for placed in reversed(self._placed):
            try:
                if placed.runner is not None:
                    placed.runner.stop()
            except Exception as error:
                errors.append(error)
        self._settle()
        if errors:
            raise errors[0]

    def _settle(self) -> None:
        """Wait for the memory of those that have ended, and forget them."""
        ended = [placed for placed in self._placed if placed.ended]
        self._placed = [placed for placed in self._placed if placed not in ended]
        in_use = {device.uuid for placed in self._placed for device in placed.devices}
        # What several had is given back when the first of them found it; torch in a thread of this
        # process keeps its memory for the next.
        wanted: dict[str, int] = {}
        names: dict[str, str] = {}
        for placed in ended:
            for uuid, free in placed.free.items() if placed.own_process else ():
                if uuid not in in_use and uuid not in wanted:
                    wanted[uuid] = free
                names[uuid] = placed.name
        missing = self._await(wanted)
        self.problems += [
            f"CUDA: {names[uuid]} has ended, and {lacking / 1e9:.1f} GB of the memory of {uuid} "
            f"are not given back after {_ATTEMPTS * _PAUSE:g} s: something that it started is "
            f"still running (nvidia-smi lists it), or another process uses the device"
            for uuid, lacking in missing.items()
        ]

    def _await(self, wanted: dict[str, int]) -> dict[str, int]:
        """Wait until so much is free on each; how much is missing in the end."""
        missing = dict(wanted)
        for attempt in range(_ATTEMPTS + 1):
            free = self._free() if missing else {}
            missing = {
                uuid: wanted[uuid] - free[uuid]
                for uuid in missing
                if uuid in free and wanted[uuid] - free[uuid] > _SLACK
            }
            if not missing or attempt == _ATTEMPTS:
                break
            self._wait(_PAUSE)
        return missing

    def _free(self) -> dict[str, int]:
        return {device.uuid: device.free for device in gpu.probe(self._system).devices}
