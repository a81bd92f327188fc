"""A machine with CUDA devices, made of files and of libraries that are compiled here from C.

``libnvidia-ml`` and ``libcuda`` export what the real ones do, are driven by environment variables
and write down every call, so all of the ctypes code runs.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from emulator.runners.gpu import Probe, System, probe

_COMMON = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static void called(const char *function) {
    const char *path = getenv("FAKE_CALLS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) { fprintf(file, "%s\n", function); fclose(file); }
}
"""

_CUDA = (
    _COMMON
    + r"""
__attribute__((constructor)) static void loaded(void) { called("libcuda loaded"); }
int cuInit(unsigned flags) { called(__func__); return 0; }
int cuCtxCreate_v2(void **context, unsigned flags, int device) { called(__func__); return 0; }
int cuDeviceGetCount(int *count) { called(__func__); *count = 1; return 0; }
"""
)

# A handle is 1 + index of the GPU, and 1000 * (1 + slot) more for a MIG instance.
# FAKE_FAIL="function=code" makes that function fail, for GPU 0 where it takes a handle.
_NVML = (
    _COMMON
    + r"""
typedef size_t handle;
static int fails(const char *function, handle device) {
    const char *wish = getenv("FAKE_FAIL");
    size_t length = strlen(function);
    called(function);
    if (!wish || strncmp(wish, function, length) || wish[length] != '=') return 0;
    return device > 1 ? 0 : atoi(wish + length + 1);
}
static const char *field(handle device, const char *name) {
    char key[80];
    int gpu = (int)(device % 1000) - 1, slot = (int)(device / 1000) - 1;
    if (slot < 0) snprintf(key, sizeof key, "FAKE_GPU_%d_%s", gpu, name);
    else snprintf(key, sizeof key, "FAKE_GPU_%d_MIG_%d_%s", gpu, slot, name);
    return getenv(key);
}
static int text(const char *value, char *buffer, unsigned length) {
    if (!value) return 999;
    if (strlen(value) + 1 > length) return 7;
    strcpy(buffer, value);
    return 0;
}
#define MAY_FAIL(device) do { int code = fails(__func__, device); if (code) return code; } while (0)

#ifndef WITHOUT_INIT
int nvmlInit_v2(void) { MAY_FAIL(0); return 0; }
#endif
int nvmlShutdown(void) { MAY_FAIL(0); return 0; }
const char *nvmlErrorString(int code) {
    return code == 18 ? "Driver/library version mismatch" : code == 15 ? "GPU is lost" : "Refused";
}
int nvmlSystemGetDriverVersion(char *buffer, unsigned length) {
    MAY_FAIL(0);
    return text("570.124.06", buffer, length);
}
#ifndef WITHOUT_MIG
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    const char *value = getenv("FAKE_CUDA");
    MAY_FAIL(0);
    *version = value ? atoi(value) : 12080;
    return 0;
}
#endif
int nvmlDeviceGetCount_v2(unsigned *count) {
    const char *value = getenv("FAKE_GPUS");
    MAY_FAIL(0);
    *count = value ? atoi(value) : 0;
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, handle *device) {
    MAY_FAIL(index + 1);
    *device = index + 1;
    return 0;
}
int nvmlDeviceGetName(handle device, char *buffer, unsigned length) {
    MAY_FAIL(device);
    return text(field(device, "NAME"), buffer, length);
}
int nvmlDeviceGetUUID(handle device, char *buffer, unsigned length) {
    MAY_FAIL(device);
    return text(field(device, "UUID"), buffer, length);
}
int nvmlDeviceGetMemoryInfo(handle device, unsigned long long *memory) {
    MAY_FAIL(device);
    if (!field(device, "TOTAL")) return 4;
    memory[0] = strtoull(field(device, "TOTAL"), NULL, 10);
    memory[1] = strtoull(field(device, "FREE"), NULL, 10);
    memory[2] = memory[0] - memory[1];
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(handle device, int *major, int *minor) {
    MAY_FAIL(device);
    if (device > 1000) return 2;
    return sscanf(field(device, "CAPABILITY"), "%d.%d", major, minor) == 2 ? 0 : 999;
}
#ifndef WITHOUT_MIG
int nvmlDeviceGetMigMode(handle device, unsigned *current, unsigned *pending) {
    MAY_FAIL(device);
    if (!field(device, "MIG")) return 3;
    *current = *pending = 1;
    return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(handle device, unsigned *count) {
    MAY_FAIL(device);
    *count = atoi(field(device, "MIG"));
    return 0;
}
int nvmlDeviceGetMigDeviceHandleByIndex(handle device, unsigned slot, handle *instance) {
    MAY_FAIL(device);
    *instance = device + 1000 * (slot + 1);
    return field(*instance, "UUID") ? 0 : 6;
}
int nvmlDeviceGetGpuInstanceId(handle device, unsigned *id) {
    MAY_FAIL(device);
    *id = 7 + (unsigned)(device / 1000);
    return 0;
}
int nvmlDeviceGetComputeInstanceId(handle device, unsigned *id) {
    MAY_FAIL(device);
    *id = 0;
    return 0;
}
#endif
"""
)

L4 = {"NAME": "NVIDIA L4", "UUID": "GPU-aaaa1111-0000", "CAPABILITY": "8.9"}
L4 |= {"TOTAL": "23034000000", "FREE": "22190000000"}
H100 = {"NAME": "NVIDIA H100 80GB HBM3", "UUID": "GPU-aaaa2222-0000", "CAPABILITY": "9.0"}
H100 |= {"TOTAL": "85899345920", "FREE": "84000000000"}
A100_IN_PARTS = {"NAME": "NVIDIA A100-SXM4-40GB", "UUID": "GPU-bbbb3333-0000", "CAPABILITY": "8.0"}
A100_IN_PARTS |= {
    "MIG": "3",  # slot 1 is empty
    "MIG_0_NAME": "NVIDIA A100-SXM4-40GB MIG 2g.10gb",
    "MIG_0_UUID": "MIG-cccc0000",
    "MIG_0_TOTAL": "10468982784",
    "MIG_0_FREE": "10000000000",
    "MIG_2_NAME": "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
    "MIG_2_UUID": "MIG-cccc2222",
    "MIG_2_TOTAL": "20937965568",
    "MIG_2_FREE": "20000000000",
}
UNSPLIT_YET = {**A100_IN_PARTS, "MIG_0_UUID": None, "MIG_2_UUID": None}


class Machine:
    """A machine with an NVIDIA driver: its device nodes, libraries, GPUs and recorded calls."""

    def __init__(self, directory: Path, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes = directory / "dev"
        self.nodes.mkdir()
        self.node("nvidiactl", "nvidia0")
        self.kernel_driver = directory / "version"
        self.host_memory = directory / "meminfo"
        self.libraries = libraries
        self.calls_file = directory / "calls"
        self.environ: dict[str, str] = {}
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("FAKE_CALLS", str(self.calls_file))
        self.gpus(L4)

    def node(self, *names: str) -> None:
        for name in names:
            (self.nodes / name).touch()

    def gpus(self, *gpus: dict[str, Any]) -> None:
        self.monkeypatch.setenv("FAKE_GPUS", str(len(gpus)))
        for index, gpu in enumerate(gpus):
            for field, value in gpu.items():
                if value is not None:
                    self.monkeypatch.setenv(f"FAKE_GPU_{index}_{field}", value)

    def fail(self, function: str, code: int) -> None:
        self.monkeypatch.setenv("FAKE_FAIL", f"{function}={code}")

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def system(self, **changes: Any) -> System:
        parts: dict[str, Any] = {
            "device_directory": str(self.nodes),
            "kernel_driver": str(self.kernel_driver),
            "host_memory": str(self.host_memory),
            "driver_library": str(self.libraries / "libcuda.so.1"),
            "management_library": str(self.libraries / "libnvidia-ml.so.1"),
            "environ": self.environ,
        }
        return System(**(parts | changes))

    def probe(self, **changes: Any) -> Probe:
        return probe(self.system(**changes))

    def visible(self, value: str | None, *gpus: dict[str, Any]) -> list[str]:
        """UUIDs of the devices shown when ``CUDA_VISIBLE_DEVICES`` has this value."""
        if value is not None:
            self.environ["CUDA_VISIBLE_DEVICES"] = value
        self.gpus(*gpus)
        return [device.uuid for device in self.probe().devices]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc): the libraries of the driver cannot be built")
    directory = tmp_path_factory.mktemp("libraries")
    for library, source, options in (
        ("libcuda.so.1", _CUDA, ()),
        ("libnvidia-ml.so.1", _NVML, ()),
        ("libnvidia-ml-without-mig.so.1", _NVML, ("-DWITHOUT_MIG",)),
        ("libnvidia-ml-without-init.so.1", _NVML, ("-DWITHOUT_INIT",)),
    ):
        command = [compiler, "-shared", "-fPIC", *options, "-x", "c", "-", "-o", library]
        subprocess.run(command, input=source, text=True, check=True, cwd=directory)
    return directory


@pytest.fixture
def machine(tmp_path: Path, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    directory = tmp_path / "machine"
    directory.mkdir()
    return Machine(directory, libraries, monkeypatch)
