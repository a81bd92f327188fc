"""The compiled kernel: torch's where a CUDA device is, its CPU twin everywhere else.

The twin does what Inductor does: it writes source for one size of matrix, compiles it, and keeps
the result in the folder that ``TORCHINDUCTOR_CACHE_DIR`` names. It needs a C compiler to be fast;
without one it keeps Python code.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from itertools import chain
from pathlib import Path

Matrix = list[list[float]]
Kernel = Callable[[Matrix, Matrix], Matrix]


def compile_kernel(size: int) -> tuple[Kernel, str]:
    """A function for the product of two matrices of this size, and what it runs on."""
    try:
        import torch
    except ImportError:
        return _on_cpu(size), "cpu"
    if not torch.cuda.is_available():
        return _on_cpu(size), "cpu"
    return _on_cuda(torch), torch.cuda.get_device_name()


def _on_cuda(torch) -> Kernel:
    # A bare product is cuBLAS's; what comes after it is what Inductor compiles.
    compiled = torch.compile(lambda a, b: torch.relu(a @ b + 1.0) - 1.0)

    def multiply(a: Matrix, b: Matrix) -> Matrix:
        on_device = (torch.tensor(m, dtype=torch.float32, device="cuda") for m in (a, b))
        return compiled(*on_device).tolist()

    return multiply


# --- the twin ------------------------------------------------------------------------------------

_C = """
void multiply(const double *a, const double *b, double *out) {
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++) {
            double sum = 0;
            for (int k = 0; k < SIZE; k++) sum += a[i * SIZE + k] * b[k * SIZE + j];
            out[i * SIZE + j] = sum > -1 ? sum : -1;
        }
}
"""
_PYTHON = """
def multiply(a, b):
    columns = list(zip(*b))
    return [[max(sum(x * y for x, y in zip(row, column)), -1.0) for column in columns]
            for row in a]
"""


def _on_cpu(size: int) -> Kernel:
    compiler = shutil.which("cc")
    return _in_c(compiler, size) if compiler else _in_python()


def _cached(source: str, ending: str) -> Path:
    """Where what becomes of this source is kept; its name changes with the source."""
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"multiply-{hashlib.sha256(source.encode()).hexdigest()[:16]}{ending}"


def _in_c(compiler: str, size: int) -> Kernel:
    source = _C.replace("SIZE", str(size))
    library = _cached(source, ".so")
    if not library.exists():
        command = [compiler, "-O2", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
        subprocess.run(command, input=source, text=True, check=True)
    compiled = ctypes.CDLL(str(library))
    array = ctypes.c_double * (size * size)

    def multiply(a: Matrix, b: Matrix) -> Matrix:
        out = array()
        compiled.multiply(array(*chain(*a)), array(*chain(*b)), out)
        return [list(out[row * size : (row + 1) * size]) for row in range(size)]

    return multiply


def _in_python() -> Kernel:
    module = _cached(_PYTHON, ".py")
    if not module.exists():
        module.write_text(_PYTHON)
    names: dict = {}
    exec(compile(module.read_text(), str(module), "exec"), names)
    return names["multiply"]
