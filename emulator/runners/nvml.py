"""NVML, the driver's library that knows its GPUs, called through ctypes.

It answers without a CUDA context, and closed again it leaves nothing behind in the process. Knows
nothing of CUDA's own order or ``CUDA_VISIBLE_DEVICES``: that is :mod:`emulator.runners.gpu`, which
imports this module only where there is a device node.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

__all__ = ["Management", "UnavailableError", "load_library"]


class UnavailableError(Exception):
    """A library cannot be loaded or does not answer; the text says why and what would change it."""


def load_library(library: str, what: str, capability: str) -> ctypes.CDLL:
    """Open a library of the driver; ``capability`` is the one that brings it into a container.

    Raises UnavailableError where it cannot be loaded.
    """
    try:
        return ctypes.CDLL(library)
    except OSError as error:
        raise UnavailableError(
            f"{what} cannot be loaded ({error}): install the NVIDIA driver, or start the "
            f"container with NVIDIA_DRIVER_CAPABILITIES={capability} among its capabilities"
        ) from None


class Management:
    """NVML, open while the context lasts; ``host_memory`` is the path of a ``meminfo``.

    Raises UnavailableError on entry when it does not start, and at the end of the context when a
    call in it was refused.
    """

    def __init__(self, library: str, host_memory: str) -> None:
        self._library = load_library(library, "NVML", "utility")
        self._host_memory = host_memory

    def __enter__(self) -> Management:
        try:
            self.call("nvmlInit_v2")
        except _RefusedError as refused:
            raise UnavailableError(f"NVML does not start ({refused}): {refused.advice}") from None
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with suppress(_RefusedError):  # nothing is left to be done about it
            self.call("nvmlShutdown")
        if isinstance(error, _RefusedError):
            raise UnavailableError(f"NVML does not answer ({error}): {error.advice}") from None

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of NVML; any answer but success ends the context, see the class."""
        try:
            code = getattr(self._library, function)(*arguments)
        except AttributeError:  # an older library than the function
            raise _RefusedError(function, _FUNCTION_NOT_FOUND, "not in this library") from None
        if code:
            raise _RefusedError(function, code, self._error_text(code))

    def _error_text(self, code: int) -> str:
        error_string = self._library.nvmlErrorString
        error_string.restype = ctypes.c_char_p
        return bytes(error_string(code)).decode()

    def number(self, function: str, *arguments: Any) -> int:
        """Call a function whose last argument receives a number."""
        number = ctypes.c_uint()
        self.call(function, *arguments, ctypes.byref(number))
        return number.value

    def text(self, function: str, *arguments: Any) -> str:
        """Call a function that fills a buffer; 96 is the longest that NVML asks for."""
        buffer = ctypes.create_string_buffer(96)
        self.call(function, *arguments, buffer, len(buffer))
        return buffer.value.decode()

    def handle(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        """Call a function whose last argument receives a handle of a device."""
        handle = ctypes.c_void_p()
        self.call(function, *arguments, ctypes.byref(handle))
        return handle

    def driver_version(self) -> str:
        """Read the version of the driver, such as ``570.124.06``."""
        return self.text("nvmlSystemGetDriverVersion")

    def cuda_version(self) -> tuple[int, int] | None:
        """Read the latest version of CUDA that the driver supports; None: it does not tell."""
        try:
            number = self.number("nvmlSystemGetCudaDriverVersion_v2")
        except _RefusedError as refused:
            if refused.code not in (_NOT_SUPPORTED, _NOT_FOUND, _FUNCTION_NOT_FOUND):
                raise
            return None
        return number // 1000, number % 1000 // 10

    def capability(self, handle: ctypes.c_void_p) -> tuple[int, int]:
        """Read the compute capability of a GPU; MIG instances have that of their GPU."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        pointers = ctypes.byref(major), ctypes.byref(minor)
        self.call("nvmlDeviceGetCudaComputeCapability", handle, *pointers)
        return major.value, minor.value

    def memory(self, handle: ctypes.c_void_p) -> tuple[int, int]:
        """Read total and free bytes; a GPU without memory of its own has the machine's."""
        amounts = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
        try:
            self.call("nvmlDeviceGetMemoryInfo", handle, amounts)
        except _RefusedError as refused:
            if refused.code != _NOT_SUPPORTED:
                raise
            return _read_host_memory(self._host_memory)
        return amounts[0], amounts[1]

    def partitioned(self, handle: ctypes.c_void_p) -> bool:
        """Ask whether a GPU is split into MIG instances, so that it is no CUDA device itself."""
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


def _read_host_memory(path: str) -> tuple[int, int]:
    with open(path) as lines:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
