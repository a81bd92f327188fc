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
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ctypes

__all__ = [
    "Choice",
    "Device",
    "Needs",
    "Probe",
    "System",
    "choose",
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

    ``notes`` say what else bears on the answer, such as devices that are hidden.
    """

    devices: tuple[Device, ...]
    missing: str | None
    driver: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Needs:
    """What a test asks for; memory must be free on each device. Raises ValueError when unclear."""

    count: int = 1
    memory: int | str | None = None
    capability: tuple[int, int] | None = None
    name: str | None = None

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
        _ = self.memory_bytes

    @property
    def memory_bytes(self) -> int:
        """The memory asked for on each device, in bytes; 0 when none is."""
        return 0 if self.memory is None else parse_memory(self.memory)


@dataclass(frozen=True)
class Choice:
    """The devices chosen, or the ``reason`` why there are not enough of them."""

    devices: tuple[Device, ...]
    reason: str | None


def probe(system: System | None = None) -> Probe:
    """Find the CUDA devices that a process started now would see."""
    system = System() if system is None else system
    driver: str | None = None
    try:
        _check_device_node(system)
        _check_driver_library(system)
        with _Management(system) as management:
            driver = management.driver_version()
            gpus = _list_gpus(management, driver, system)
        devices, notes = _visible(gpus, system.environ)
    except _MissingError as missing:
        return Probe((), f"CUDA: {missing}", driver)
    return Probe(tuple(devices), None, driver, tuple(notes))


def choose(probe: Probe, needs: Needs) -> Choice:
    """Take the first devices, in CUDA's order, that meet the needs.

    Free memory is that of the moment of the probe: nothing is reserved.
    """
    if probe.missing is not None:
        return Choice((), probe.missing)
    fit = tuple(device for device in probe.devices if not _shortcomings(device, needs))
    if len(fit) >= needs.count:
        return Choice(fit[: needs.count], None)
    described = [_describe(device, needs) for device in probe.devices]
    there = {0: "none is there", 1: "1 is there"}.get(len(fit), f"{len(fit)} are there")
    explained = "; ".join([*described, *probe.notes])
    return Choice((), f"CUDA: {_asked(needs)} asked for and {there}: {explained}")


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


def _check_driver_library(system: System) -> None:
    """Step 2. Opening is all: ``cuInit`` would tie the process to CUDA."""
    _load(system.driver_library, "the driver library", "compute")


def _load(library: str, what: str, capability: str) -> ctypes.CDLL:
    import ctypes

    try:
        return ctypes.CDLL(library)
    except OSError as error:
        raise _MissingError(
            f"{what} cannot be loaded ({error}): install the NVIDIA driver, or start the "
            f"container with NVIDIA_DRIVER_CAPABILITIES={capability} among its capabilities"
        ) from None


class _RefusedError(Exception):
    """NVML answered with an error code."""

    def __init__(self, function: str, code: int, text: str) -> None:
        super().__init__(f"{function}: {text}, error {code}")
        self.code = code
        self.advice = _ADVICE.get(code, "nvidia-smi may say more")


# nvmlReturn_t of nvml.h
_NOT_SUPPORTED, _NOT_FOUND, _FUNCTION_NOT_FOUND = 3, 6, 13
_ADVICE = {
    4: "give this user access to the device nodes (often the group video)",
    9: "load the kernel module (modprobe nvidia) or install the driver",
    13: "install a newer NVIDIA driver",
    15: "the GPU has fallen off the bus, so restart the machine",
    18: "the kernel module and the library are of different versions, so restart the machine, "
    "or the container after an update of its host",
}


class _Management:
    """Steps 3 and 6: NVML, open while the context lasts. Knows nothing of CUDA's own order."""

    def __init__(self, system: System) -> None:
        self._library = _load(system.management_library, "NVML", "utility")

    def __enter__(self) -> _Management:
        try:
            self.call("nvmlInit_v2")
        except _RefusedError as refused:
            raise _MissingError(f"NVML does not start ({refused}): {refused.advice}") from None
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with suppress(_RefusedError):  # nothing is left to be done about it
            self.call("nvmlShutdown")
        if isinstance(error, _RefusedError):
            raise _MissingError(f"NVML does not answer ({error}): {error.advice}") from None

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of NVML. Raises _RefusedError for any answer but success."""
        try:
            code = getattr(self._library, function)(*arguments)
        except AttributeError:  # an older library than the function
            raise _RefusedError(function, _FUNCTION_NOT_FOUND, "not in this library") from None
        if code:
            raise _RefusedError(function, code, self._error_text(code))

    def _error_text(self, code: int) -> str:
        import ctypes

        error_string = self._library.nvmlErrorString
        error_string.restype = ctypes.c_char_p
        return bytes(error_string(code)).decode()

    def number(self, function: str, *arguments: Any) -> int:
        """Call a function whose last argument receives a number."""
        import ctypes

        number = ctypes.c_uint()
        self.call(function, *arguments, ctypes.byref(number))
        return number.value

    def text(self, function: str, *arguments: Any) -> str:
        """Call a function that fills a buffer; 96 is the longest that NVML asks for."""
        import ctypes

        buffer = ctypes.create_string_buffer(96)
        self.call(function, *arguments, buffer, len(buffer))
        return buffer.value.decode()

    def handle(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        """Call a function whose last argument receives a handle of a device."""
        import ctypes

        handle = ctypes.c_void_p()
        self.call(function, *arguments, ctypes.byref(handle))
        return handle

    def driver_version(self) -> str:
        """Read the version of the driver, such as ``570.124.06``."""
        return self.text("nvmlSystemGetDriverVersion")

    def capability(self, handle: ctypes.c_void_p) -> tuple[int, int]:
        """Read the compute capability of a GPU; MIG instances have that of their GPU."""
        import ctypes

        major, minor = ctypes.c_int(), ctypes.c_int()
        pointers = ctypes.byref(major), ctypes.byref(minor)
        self.call("nvmlDeviceGetCudaComputeCapability", handle, *pointers)
        return major.value, minor.value

    def memory(self, handle: ctypes.c_void_p, system: System) -> tuple[int, int]:
        """Read total and free bytes; a GPU without memory of its own has the machine's."""
        import ctypes

        amounts = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
        try:
            self.call("nvmlDeviceGetMemoryInfo", handle, amounts)
        except _RefusedError as refused:
            if refused.code != _NOT_SUPPORTED:
                raise
            return _host_memory(system.host_memory)
        return amounts[0], amounts[1]

    def partitioned(self, handle: ctypes.c_void_p) -> bool:
        """Ask whether a GPU is split into MIG instances, so that it is no CUDA device itself."""
        import ctypes

        current, pending = ctypes.c_uint(), ctypes.c_uint()
        pointers = ctypes.byref(current), ctypes.byref(pending)
        try:
            self.call("nvmlDeviceGetMigMode", handle, *pointers)
        except _RefusedError as refused:
            if refused.code not in (_NOT_SUPPORTED, _FUNCTION_NOT_FOUND):
                raise
            return False
        return bool(current.value)

    def instances(self, handle: ctypes.c_void_p) -> list[ctypes.c_void_p]:
        """Find the MIG instances of a GPU; the slots that are not filled are passed over."""
        found = []
        for slot in range(self.number("nvmlDeviceGetMaxMigDeviceCount", handle)):
            try:
                found.append(self.handle("nvmlDeviceGetMigDeviceHandleByIndex", handle, slot))
            except _RefusedError as refused:
                if refused.code != _NOT_FOUND:
                    raise
        return found


def _host_memory(path: str) -> tuple[int, int]:
    with open(path) as lines:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024


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


def _list_gpus(management: _Management, driver: str, system: System) -> list[_Gpu]:
    """Step 4."""
    count = management.number("nvmlDeviceGetCount_v2")
    if count == 0:
        raise _MissingError(
            f"driver {driver} has no device: start the container with one (docker run --gpus "
            f"all), or see in dmesg why the driver refused the GPU"
        )
    return [_read_gpu(management, index, system) for index in range(count)]


def _read_gpu(management: _Management, index: int, system: System) -> _Gpu:
    gpu = management.handle("nvmlDeviceGetHandleByIndex_v2", index)
    gpu_uuid = management.text("nvmlDeviceGetUUID", gpu)
    capability = management.capability(gpu)

    def read(handle: ctypes.c_void_p) -> Device:
        name = management.text("nvmlDeviceGetName", handle)
        uuid = management.text("nvmlDeviceGetUUID", handle)
        return Device(index, name, uuid, *management.memory(handle, system), capability)

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
