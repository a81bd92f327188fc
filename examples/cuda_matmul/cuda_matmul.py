"""Matrix products on a GPU, as an app that would be deployed to fal.

Its kernel is compiled once for each type of GPU and shared with all runners through ``/data``.
"""

import subprocess

import fal
from fal.toolkit.compilation import (
    LOCAL_INDUCTOR_CACHE_DIR,
    get_gpu_type,
    load_inductor_cache,
    sync_inductor_cache,
)
from kernels import compile_kernel
from pydantic import BaseModel, field_validator

SIZE = 4
CACHE_KEY = "matmul/1"


class Input(BaseModel):
    a: list[list[float]]
    b: list[list[float]]

    @field_validator("a", "b")
    @classmethod
    def has_the_size(cls, matrix: list[list[float]]) -> list[list[float]]:
        if [len(row) for row in matrix] != [SIZE] * SIZE:
            raise ValueError(f"must have {SIZE} rows of {SIZE} numbers")
        return matrix


class Output(BaseModel):
    product: list[list[float]]


class About(BaseModel):
    gpu: str
    device: str
    precision: str
    compiled: list[str]


class MatMul(fal.App):
    machine_type = ["GPU-H100", "GPU-A100"]

    def setup(self) -> None:
        known = load_inductor_cache(CACHE_KEY)
        before = kernels_here()
        self.kernel, self.device = compile_kernel(SIZE)
        self.kernel([[1.0] * SIZE] * SIZE, [[1.0] * SIZE] * SIZE)  # compiles, where torch does it
        self.compiled = sorted(kernels_here() - before)
        sync_inductor_cache(CACHE_KEY, known)

    @fal.endpoint("/")
    def multiply(self, input: Input) -> Output:
        """The product, with nothing below -1."""
        return Output(product=self.kernel(input.a, input.b))

    @fal.endpoint("/about")
    def about(self) -> About:
        return About(
            gpu=get_gpu_type(), device=self.device, precision=precision(), compiled=self.compiled
        )


def kernels_here() -> set[str]:
    """The files of the cache on this runner."""
    return {path.name for path in LOCAL_INDUCTOR_CACHE_DIR.rglob("*") if path.is_file()}


def precision() -> str:
    """The smallest numbers that this GPU can calculate with."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "-i", "0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "fp32"
    return "fp8" if float(answer) >= 8.9 else "bf16"
