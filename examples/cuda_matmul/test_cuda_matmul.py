"""Tests of the matrix products: on pretended GPUs anywhere, on a real one where there is one."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
from cuda_matmul import SIZE, MatMul

if TYPE_CHECKING:
    from pytest_fal import Runner, RunnerFactory, Volume

ONE = [[float(row == column) for column in range(SIZE)] for row in range(SIZE)]
NUMBERS = [[float(SIZE * row + column) for column in range(SIZE)] for row in range(SIZE)]


def about(runner: Runner) -> dict[str, Any]:
    return runner.post("/about").json()


def multiply(runner: Runner, a: list[list[float]], b: list[list[float]]) -> Any:
    response = runner.post("/", json={"a": a, "b": b})
    assert response.status_code == 200, response.text
    return response.json()["product"]


# --- the CPU twin, on pretended GPUs -------------------------------------------------------------


def test_the_product_is_right(fal_runner: RunnerFactory) -> None:
    runner = fal_runner(MatMul, gpu="H100")
    assert multiply(runner, NUMBERS, ONE) == NUMBERS
    assert multiply(runner, NUMBERS, NUMBERS)[1] == [152.0, 174.0, 196.0, 218.0]


def test_nothing_is_below_minus_one(fal_runner: RunnerFactory) -> None:
    negative = [[-2.0 * number for number in row] for row in ONE]
    assert multiply(fal_runner(MatMul, gpu="H100"), negative, ONE)[0] == [-1.0, 0.0, 0.0, 0.0]


def test_the_product_is_right_without_a_compiler(fal_runner: RunnerFactory) -> None:
    runner = fal_runner(MatMul, gpu="H100", env={"PATH": "/nowhere"})
    assert about(runner)["compiled"][0].endswith(".py")
    assert multiply(runner, NUMBERS, NUMBERS)[1] == [152.0, 174.0, 196.0, 218.0]


def test_a_matrix_of_another_size_is_refused(fal_runner: RunnerFactory) -> None:
    response = fal_runner(MatMul, gpu="H100").post("/", json={"a": [[1.0]], "b": ONE})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "a"]


def test_it_runs_on_the_first_machine_type_that_it_names(fal_runner: RunnerFactory) -> None:
    assert about(fal_runner(MatMul, gpu=True))["gpu"] == "H100"


def test_the_second_runner_on_the_same_gpu_compiles_nothing(
    fal_runner: RunnerFactory, fal_data: Volume
) -> None:
    first = fal_runner(MatMul, gpu="H100")
    assert len(about(first)["compiled"]) == 1
    fal_data.assert_holds("inductor-caches/H100/matmul/1.zip")
    first.stop()

    second = fal_runner(MatMul, gpu="H100")
    assert about(second)["compiled"] == []
    assert "Cache unpacked successfully." in second.output
    assert multiply(second, NUMBERS, ONE) == NUMBERS


def test_a_runner_on_another_gpu_compiles_anew(fal_runner: RunnerFactory, fal_data: Volume) -> None:
    fal_runner(MatMul, gpu="H100")
    other = fal_runner(MatMul, gpu="A100")
    assert len(about(other)["compiled"]) == 1
    archives = [path for path in fal_data.tree() if path.endswith(".zip")]
    assert archives == ["inductor-caches/A100/matmul/1.zip", "inductor-caches/H100/matmul/1.zip"]


def test_a_cache_that_is_cut_off_is_compiled_anew(
    fal_runner: RunnerFactory, fal_data: Volume
) -> None:
    fal_runner(MatMul, gpu="H100").stop()
    archive = "inductor-caches/H100/matmul/1.zip"
    fal_data.write(archive, fal_data.read(archive)[:-40])
    runner = fal_runner(MatMul, gpu="H100")
    assert "Failed to unpack cache" in runner.output
    assert multiply(runner, NUMBERS, ONE) == NUMBERS


@pytest.mark.parametrize(
    ("gpu", "precision"),
    [("A100", "bf16"), ("A6000", "bf16"), ("L40", "fp8"), ("H100", "fp8"), ("B200", "fp8")],
)
def test_each_gpu_calculates_as_precisely_as_it_can(
    fal_runner: RunnerFactory, gpu: str, precision: str
) -> None:
    assert about(fal_runner(MatMul, gpu=gpu))["precision"] == precision


# --- on a real device ----------------------------------------------------------------------------


@pytest.fixture
def real(fal_cuda_runner: RunnerFactory) -> RunnerFactory:
    """Boots on a CUDA device; skips where there is none, or no torch to use it with."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    return fal_cuda_runner


@pytest.mark.fal_cuda(memory="2GB", capability=(7, 0))
def test_the_product_is_right_on_a_real_device(real: RunnerFactory) -> None:
    runner = real(MatMul)
    assert about(runner)["device"] != "cpu"
    assert multiply(runner, NUMBERS, ONE) == NUMBERS


@pytest.mark.fal_cuda(memory="2GB", capability=(7, 0))
def test_kernels_for_a_real_device_are_shared(real: RunnerFactory, fal_data: Volume) -> None:
    first = real(MatMul)
    assert about(first)["compiled"]
    fal_data.assert_holds(f"inductor-caches/{about(first)['gpu']}/matmul/1.zip")
    first.stop()
    assert "Cache unpacked successfully." in real(MatMul).output
