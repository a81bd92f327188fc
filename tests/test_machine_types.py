"""fal's machine types: the table, which of them ``gpu=`` means, and what the SDK makes of each."""

from __future__ import annotations

import fal
import pytest
from fal.toolkit.compilation import get_gpu_type

from emulator.errors import EmulatorError
from emulator.runners.machine_types import MACHINE_TYPES, environment_of, pretend

WITH_GPU = [name for name, machine in MACHINE_TYPES.items() if machine.gpu]
WITHOUT_GPU = [name for name, machine in MACHINE_TYPES.items() if not machine.gpu]
LIST = (
    "GPU-A100, GPU-L40, GPU-H100, GPU-RTXPRO6000, GPU-H200, GPU-B200, GPU-B300, GPU-A6000, "
    "GPU-RTX4090, GPU-RTX5090, GPU"
)


class Plain(fal.App):
    @fal.endpoint("/")
    def run(self) -> str:
        return get_gpu_type()


def app(**attributes):
    """An app with these class attributes."""
    return type("Own", (Plain,), attributes)


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cpus", "memory", "gpu_memory"),
    [
        ("XS", 0.5, 0.512, None),
        ("S", 1, 1, None),
        ("M", 2, 2, None),
        ("L", 4, 15, None),
        ("XL", 8, 30, None),
        ("GPU-A100", 12, 60, 40),
        ("GPU-L40", 6, 100, 48),
        ("GPU-H100", 12, 112, 80),
        ("GPU-RTXPRO6000", 6, 100, 96),
        ("GPU-H200", 12, 112, 141),
        ("GPU-B200", 19, 210, 192),
        ("GPU-B300", None, None, 288),
        ("GPU-A6000", 10, 18, 48),
        ("GPU-RTX4090", 12, 48, 24),
        ("GPU-RTX5090", 14, 60, 32),
        ("GPU", 8, 64, 40),
    ],
)
def test_a_machine_type_is_what_fals_pages_say(name, cpus, memory, gpu_memory):
    machine = MACHINE_TYPES[name]
    assert (machine.cpus, machine.memory, machine.gpu_memory) == (cpus, memory, gpu_memory)


def test_every_machine_type_is_in_the_table_above():
    (table,) = (
        mark.args[1]
        for mark in test_a_machine_type_is_what_fals_pages_say.pytestmark
        if mark.name == "parametrize"
    )
    assert [row[0] for row in table] == list(MACHINE_TYPES)


@pytest.mark.parametrize("name", WITH_GPU)
def test_nvidias_memory_of_a_gpu_is_about_fals(name):
    """fal counts in round gigabytes, NVIDIA in MiB of what is left of them."""
    machine = MACHINE_TYPES[name]
    assert machine.gpu.memory * 2**20 == pytest.approx(machine.gpu_memory * 10**9, rel=0.09)


# --- what gpu= means -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_GPU)
def test_a_machine_type_is_meant_by_its_name_as_fal_spells_it(name):
    assert pretend(name, Plain).machine is MACHINE_TYPES[name]


@pytest.mark.parametrize("name", [n for n in WITH_GPU if n != "GPU"])
def test_a_machine_type_is_meant_by_its_gpu_alone(name):
    assert pretend(name.removeprefix("GPU-"), Plain).machine is MACHINE_TYPES[name]


@pytest.mark.parametrize("gpu", [None, False])
def test_without_gpu_none_is_pretended(gpu):
    assert pretend(gpu, app(machine_type="GPU-H100")) is None


@pytest.mark.parametrize("gpu", ["V100", "h100", "", "GPU-", "M", 100])
def test_what_is_no_machine_type_with_a_gpu_is_refused_with_the_list(gpu):
    with pytest.raises(EmulatorError) as caught:
        pretend(gpu, Plain)
    assert str(caught.value) == (
        f"gpu={gpu!r} is no machine type with a GPU. Write one of {LIST}; "
        '"H100" is short for "GPU-H100", and gpu=True is the app\'s own machine_type.'
    )


@pytest.mark.parametrize("gpu", [True, "auto"])
def test_the_apps_own_machine_type_is_meant(gpu):
    meant = pretend(gpu, app(machine_type="GPU-A100", num_gpus=2))
    assert (meant.machine.name, meant.count) == ("GPU-A100", 2)


def test_of_several_machine_types_the_first_is_meant_as_fal_tries_them_in_order():
    meant = pretend(True, app(machine_type=["GPU-RTX5090", "GPU-RTX4090"]))
    assert meant.machine.name == "GPU-RTX5090"


@pytest.mark.parametrize("machine_type", WITHOUT_GPU)
def test_an_app_whose_own_machine_type_has_no_gpu_gets_none(machine_type):
    assert pretend(True, app(machine_type=machine_type)) is None


@pytest.mark.parametrize("machine_type", ["H100", [], ["A100", "GPU-H100"]])
def test_an_own_machine_type_that_fal_would_refuse_is_refused(machine_type):
    with pytest.raises(EmulatorError) as caught:
        pretend(True, app(machine_type=machine_type))
    assert str(caught.value) == (
        "gpu=True asks for the machine type of Own, and its machine_type "
        f"{machine_type!r} is none. Write one of XS, S, M, L, XL, {LIST}."
    )


@pytest.mark.parametrize(("num_gpus", "count"), [(None, 1), (1, 1), (8, 8)])
def test_there_are_as_many_gpus_as_the_app_asks_for(num_gpus, count):
    assert pretend("H100", app(num_gpus=num_gpus)).count == count


@pytest.mark.parametrize("num_gpus", [0, 9, -1, "2"])
def test_more_gpus_than_a_machine_has_are_refused(num_gpus):
    with pytest.raises(EmulatorError) as caught:
        pretend("H100", app(num_gpus=num_gpus))
    assert str(caught.value) == (
        f"Own has num_gpus = {num_gpus!r}, and a machine has 1 to 8 GPUs. Write for example "
        "num_gpus = 2."
    )


# --- environment ---------------------------------------------------------------------------------


def test_a_machine_with_gpus_has_the_variables_of_nvidias_container_runtime():
    assert environment_of(MACHINE_TYPES["GPU-H100"], 2) == {
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    }


def test_pretended_gpus_know_their_variables():
    assert pretend("H100", Plain).environment == environment_of(MACHINE_TYPES["GPU-H100"], 1)


@pytest.mark.parametrize("name", WITHOUT_GPU)
def test_a_machine_without_a_gpu_has_no_variables_of_one(name):
    assert environment_of(MACHINE_TYPES[name], 0) == {}


# --- what the SDK makes of it --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "folder"),
    [
        ("A100", "A100"),
        ("L40", "L40"),
        ("H100", "H100"),
        ("RTXPRO6000", "RTX"),
        ("H200", "H200"),
        ("B200", "B200"),
        ("B300", "B300"),
        ("A6000", "RTX"),
        ("RTX4090", "GeForce"),
        ("RTX5090", "GeForce"),
        ("GPU", "A100"),
    ],
)
def test_the_sdk_finds_the_folder_of_a_machine_types_kernels(fal_runner, gpu, folder):
    assert fal_runner(Plain, gpu=gpu).run(get_gpu_type) == folder
