"""CUDA devices: which are usable here, and which of them a test may have.

The question is answered without torch and without a CUDA context: device node, driver library
(opened, never initialised: ``cuInit`` is slow and does not survive a fork), NVML, then
``CUDA_VISIBLE_DEVICES``. A machine without a device node costs a few ``stat`` calls and loads
nothing. Every answer that is no says in one sentence, beginning with ``CUDA: ``, which step
failed and what would change it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emulator.runners.cuda_version import Version, parse_version, too_old

if TYPE_CHECKING:
    import ctypes

    from emulator.runners.nvml import Management

__all__ = [
    "Choice",
    "Device",
    "Needs",
    "Probe",
    "System",
    "choose",
    "fitting",
    "parse_memory",
    "probe",
    "visible_devices",
]


@dataclass(frozen=True)
class System:
    """Where the probe looks; tests point it at a directory and libraries of their own."""

    device_directory: str = "/dev"
    kernel_driver: str = "/proc/driver/nvidia/version"
    host_memory: str = "/proc/meminfo"
    driver_library: str = "libcuda.so.1"
    management_library: str = "libnvidia-ml.so.1"
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


@dataclass(frozen=True)
class Device:
    """A CUDA device: a GPU, or a MIG instance of one. Memory is in bytes, as it was when probed.

    ``index`` is NVML's number of the GPU, which is that of ``nvidia-smi``.
    """

    index: int
    name: str
    uuid: str
    total: int
    free: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Probe:
    """What is usable: devices in CUDA's order, or the step that is ``missing``; never both.

    ``notes`` say what else bears on the answer, such as devices that are hidden. ``cuda`` is the
    latest version that the driver supports, where it tells.
    """

    devices: tuple[Device, ...]
    missing: str | None
    driver: str | None
    notes: tuple[str, ...] = ()
    cuda: Version | None = None


@dataclass(frozen=True)
class Needs:
    """What a test asks for; memory must be free on each device. Raises ValueError when unclear.

    ``cuda`` is what the driver has to support: ``"12.4"``, or ``"12"`` for any of that major
    version. Where it is left out, it is the major version that an installed torch is built for.
    """

    count: int = 1
    memory: int | str | None = None
    capability: tuple[int, int] | None = None
    name: str | None = None
    cuda: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, with the argument to write instead."""
        if not _is_count(self.count, least=1):
            raise ValueError(f"count={self.count!r} is no number of devices: write count=1 or more")
        if self.capability is not None and not _is_capability(self.capability):
            raise ValueError(
                f"capability={self.capability!r} is not a pair of numbers: write capability=(8, 0)"
            )
        if self.name is not None and not (isinstance(self.name, str) and self.name):
            raise ValueError(
                f'name={self.name!r} is no part of a device\'s name: write name="H100"'
            )
        _ = self.memory_bytes, self.cuda_version

    @property
    def memory_bytes(self) -> int:
        """The memory asked for on each device, in bytes; 0 when none is."""
        return 0 if self.memory is None else parse_memory(self.memory)

    @property
    def cuda_version(self) -> Version | None:
        """The version of CUDA asked for; None when none is."""
        return None if self.cuda is None else parse_version(self.cuda)


@dataclass(frozen=True)
class Choice:
    """The devices chosen, or the ``reason`` why there are not enough of them."""

    devices: tuple[Device, ...]
    reason: str | None


def probe(system: System | None = None) -> Probe:
    """Find the CUDA devices that a process started now would see."""
    system = System() if system is None else system
    try:
        _check_device_node(system)
    except _MissingError as missing:
        return Probe((), f"CUDA: {missing}", None)
    return _probe_driver(system)


def choose(probe: Probe, needs: Needs) -> Choice:
    """Take the first devices, in CUDA's order, that meet the needs.

    Free memory is that of the moment of the probe: nothing is reserved.
    """
    if probe.missing is not None:
        return Choice((), probe.missing)
    outdated = too_old(probe.driver, probe.cuda, needs.cuda_version)
    if outdated is not None:
        return Choice((), f"CUDA: {outdated}")
    fit = fitting(probe, needs)
    if len(fit) >= needs.count:
        return Choice(fit[: needs.count], None)
    described = [_describe(device, needs) for device in probe.devices]
    there = {0: "none is there", 1: "1 is there"}.get(len(fit), f"{len(fit)} are there")
    explained = "; ".join([*described, *probe.notes])
    return Choice((), f"CUDA: {_asked(needs)} asked for and {there}: {explained}")


def fitting(probe: Probe, needs: Needs) -> tuple[Device, ...]:
    """All devices that meet the needs, in CUDA's order."""
    return tuple(device for device in probe.devices if not _shortcomings(device, needs))


def visible_devices(devices: Sequence[Device]) -> str:
    """Spell ``CUDA_VISIBLE_DEVICES`` for a process that shall see these devices, in this order."""
    return ",".join(device.uuid for device in devices)


def parse_memory(amount: int | str) -> int:
    """Read an amount of memory in bytes; ``GB`` is 10^9 bytes and ``GiB`` 2^30.

    Raises ValueError with the line to write.
    """
    if _is_count(amount, least=1):
        return int(amount)
    found = _AMOUNT.fullmatch(amount) if isinstance(amount, str) else None
    in_bytes = int(float(found["number"]) * _UNITS[found["unit"]]) if found else 0
    if in_bytes < 1:
        raise ValueError(
            f'memory={amount!r} is no amount of memory: write memory="24GB" (10^9 bytes each), '
            f'memory="24GiB" (2^30 bytes each) or a number of bytes'
        )
    return in_bytes


_DECIMAL_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_UNITS = _DECIMAL_UNITS | _BINARY_UNITS
_AMOUNT = re.compile(rf"\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>{'|'.join(_UNITS)})\s*", re.ASCII)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_capability(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_count(n, 0) for n in value)


# --- The steps ---------------------------------------------------------------------------------


class _MissingError(Exception):
    """A step failed; the text is the sentence without its ``CUDA: ``."""


def _probe_driver(system: System) -> Probe:
    """Steps 2 to 5, for a machine that has a device node; any other is to import nothing for it."""
    from emulator.runners import nvml

    driver: str | None = None
    cuda: Version | None = None
    try:
        # Step 2. Opening is all: ``cuInit`` would tie the process to CUDA.
        nvml.load_library(system.driver_library, "the driver library", "compute")
        # Step 3.
        with nvml.Management(system.management_library, system.host_memory) as management:
            driver = management.driver_version()
            cuda = management.cuda_version()
            gpus = _list_gpus(management, driver)
        devices, notes = _visible(gpus, system.environ)
    except (_MissingError, nvml.UnavailableError) as missing:
        return Probe((), f"CUDA: {missing}", driver, cuda=cuda)
    return Probe(tuple(devices), None, driver, tuple(notes), cuda)


def _check_device_node(system: System) -> None:
    """Step 1. WSL has one node for all graphics, ``/dev/dxg``, and none of NVIDIA's."""
    directory = system.device_directory
    if os.path.exists(f"{directory}/dxg"):
        return
    absent = "nvidiactl"
    if os.path.exists(f"{directory}/{absent}"):
        # In a container the numbers need not begin with 0, so every name is looked at.
        if any(re.fullmatch(r"nvidia\d+", name) for name in os.listdir(directory)):
            return
        absent = "nvidia0"
    if os.path.exists(system.kernel_driver):
        # A container sees the host's /proc, and a host makes the nodes only when first asked.
        raise _MissingError(
            f"no device node ({directory}/{absent} is not there) although the NVIDIA driver is "
            f"loaded ({system.kernel_driver}): start the container with its GPUs (docker run "
            f"--gpus all), or run nvidia-smi once as root on a host, which makes the nodes"
        )
    raise _MissingError(
        f"no device node ({directory}/{absent} is not there): this machine has no NVIDIA GPU, "
        f"or the container was started without one (docker run --gpus all)"
    )


@dataclass(frozen=True)
class _Named:
    """A CUDA device and the names that ``CUDA_VISIBLE_DEVICES`` may call it by."""

    device: Device
    names: tuple[str, ...]
    instance: bool = False


@dataclass(frozen=True)
class _Gpu:
    """A physical GPU: one CUDA device, or its MIG instances, of which there may be none yet."""

    uuid: str
    devices: tuple[_Named, ...]


def _list_gpus(management: Management, driver: str) -> list[_Gpu]:
    """Step 4."""
    count = management.number("nvmlDeviceGetCount_v2")
    if count == 0:
        raise _MissingError(
            f"driver {driver} has no device: start the container with one (docker run --gpus "
            f"all), or see in dmesg why the driver refused the GPU"
        )
    return [_read_gpu(management, index) for index in range(count)]


def _read_gpu(management: Management, index: int) -> _Gpu:
    gpu = management.handle("nvmlDeviceGetHandleByIndex_v2", index)
    gpu_uuid = management.text("nvmlDeviceGetUUID", gpu)
    capability = management.capability(gpu)

    def read(handle: ctypes.c_void_p) -> Device:
        name = management.text("nvmlDeviceGetName", handle)
        uuid = management.text("nvmlDeviceGetUUID", handle)
        return Device(index, name, uuid, *management.memory(handle), capability)

    def read_instance(handle: ctypes.c_void_p) -> _Named:
        device = read(handle)
        group = management.number("nvmlDeviceGetGpuInstanceId", handle)
        compute = management.number("nvmlDeviceGetComputeInstanceId", handle)
        return _Named(device, (device.uuid, f"MIG-{gpu_uuid}/{group}/{compute}"), instance=True)

    if management.partitioned(gpu):
        return _Gpu(gpu_uuid, tuple(map(read_instance, management.instances(gpu))))
    return _Gpu(gpu_uuid, (_Named(read(gpu), (gpu_uuid,)),))


# --- CUDA_VISIBLE_DEVICES ----------------------------------------------------------------------


def _visible(gpus: list[_Gpu], environ: Mapping[str, str]) -> tuple[list[Device], list[str]]:
    """Step 5: the devices that CUDA would number, in its order, and what is noteworthy about it.

    Sources: CUDA programming guide, "CUDA Environment Variables"; MIG user guide, "CUDA Device
    Enumeration"; ``torch.cuda._parse_visible_devices`` for what these leave open.
    """
    value = environ.get("CUDA_VISIBLE_DEVICES")
    every = [named for gpu in gpus for named in gpu.devices]
    if not every:
        raise _MissingError(
            "MIG is on but no instance was made: make one (nvidia-smi mig -cgi <profile> -C) "
            "or switch MIG off (nvidia-smi -mig 0)"
        )
    shown = every
    notes: list[str] = []
    if value is not None:
        shown = _requested(value, gpus)
        notes += _order_note(value, every, environ)
        if len(shown) < len(every):
            notes.append(
                f"CUDA_VISIBLE_DEVICES={value!r} shows {len(shown)} of {len(every)} devices"
            )
    instances = [named for named in shown if named.instance]
    if instances and len(every) > 1:
        # "CUDA can only enumerate a single compute instance", and then no other GPU either.
        shown = instances[:1]
        notes.append("CUDA shows a process one MIG instance and nothing beside it")
    return [named.device for named in shown], notes


def _requested(value: str, gpus: list[_Gpu]) -> list[_Named]:
    """Read the list up to its first entry that is no device. Raises _MissingError for none."""
    by_uuid = value.startswith(("GPU-", "MIG-"))
    find: Callable[[str, list[_Gpu]], _Named | None] = _find_uuid if by_uuid else _find_index
    found: list[_Named] = []
    for entry in value.split(","):
        named = find(entry, gpus)
        if named is None:
            break
        if named in found:
            raise _MissingError(
                f"CUDA_VISIBLE_DEVICES={value!r} names a device twice, which CUDA takes for no "
                f"device at all: name each once"
            )
        found.append(named)
    if not found:
        raise _MissingError(_nothing_requested(value, gpus))
    return found


def _find_index(entry: str, gpus: list[_Gpu]) -> _Named | None:
    """CUDA reads numbers as strtoul does: blanks before and anything after them is ignored."""
    number = re.match(r"\s*[+-]?\d+", entry, re.ASCII)
    index = int(number[0]) if number else -1
    if not 0 <= index < len(gpus) or not gpus[index].devices:
        return None
    return gpus[index].devices[0]


def _find_uuid(entry: str, gpus: list[_Gpu]) -> _Named | None:
    """A UUID may be cut short as long as it means one device."""
    if entry.startswith("GPU-"):
        named = [(gpu.uuid, gpu.devices[0]) for gpu in gpus if gpu.devices]
    else:
        named = [(name, device) for gpu in gpus for device in gpu.devices for name in device.names]
    exact = [device for name, device in named if name == entry]
    begun = [device for name, device in named if entry and name.startswith(entry)]
    meant = exact or begun
    return meant[0] if len(meant) == 1 else None


def _nothing_requested(value: str, gpus: list[_Gpu]) -> str:
    if not value.strip() or value.strip().startswith("-"):
        return (
            f"CUDA_VISIBLE_DEVICES={value!r} hides every device: unset it, or name one "
            f"(CUDA_VISIBLE_DEVICES=0)"
        )
    there = ", ".join(f"{index} is {gpu.uuid}" for index, gpu in enumerate(gpus))
    return (
        f"CUDA_VISIBLE_DEVICES={value!r} begins with {value.split(',')[0]!r}, which is no device "
        f"here or more than one: write one that is there ({there})"
    )


def _order_note(value: str, every: list[_Named], environ: Mapping[str, str]) -> list[str]:
    """NVML numbers by PCI bus, CUDA fastest first unless told otherwise; equal models agree."""
    by_pci_bus = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    one_model = len({named.device.name for named in every}) == 1
    if by_pci_bus or one_model or value.startswith(("GPU-", "MIG-")):
        return []
    return [
        f"CUDA_VISIBLE_DEVICES={value!r} may mean other devices to CUDA, which numbers the "
        f"fastest first: set CUDA_DEVICE_ORDER=PCI_BUS_ID"
    ]


# --- What a choice says ------------------------------------------------------------------------


def _shortcomings(device: Device, needs: Needs) -> list[str]:
    found = []
    if device.free < needs.memory_bytes:
        found.append(f"{_down(device.free)} GB free of {_down(device.total)} GB")
    if needs.capability is not None and device.capability < needs.capability:
        found.append(f"compute capability {_dotted(device.capability)}")
    if needs.name is not None and needs.name.casefold() not in device.name.casefold():
        found.append("another name")
    return found


def _describe(device: Device, needs: Needs) -> str:
    shortcomings = _shortcomings(device, needs)
    verdict = "has " + " and ".join(shortcomings) if shortcomings else "would do"
    return f"{device.name} ({device.uuid}) {verdict}"


def _asked(needs: Needs) -> str:
    wishes = []
    if needs.memory_bytes:
        wishes.append(f"{needs.memory_bytes / 1e9:.9f}".rstrip("0").rstrip(".") + " GB free")
    if needs.capability is not None:
        wishes.append(f"compute capability {_dotted(needs.capability)} or later")
    if needs.name is not None:
        wishes.append(f"{needs.name!r} in its name")
    devices = "1 device" if needs.count == 1 else f"{needs.count} devices"
    of_each = "" if needs.count == 1 or not wishes else " each"
    wished = f"{of_each} with " + " and ".join(wishes) if wishes else ""
    return f"{devices}{wished} {'is' if needs.count == 1 else 'are'}"


def _down(amount: int) -> str:
    """Gigabytes, rounded down so that what falls short never looks sufficient."""
    return f"{amount // 10**8 / 10:.1f}"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
