"""CUDA devices: the probe against real shared libraries, the choice, the marker and the skips.

The machine and its libraries are those of ``cuda_machine``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_machine import A100_IN_PARTS, H100, L4, UNSPLIT_YET, Machine
from hypothesis import given
from hypothesis import strategies as st

import emulator.runners
from emulator.runners.gpu import (
    Choice,
    Device,
    Needs,
    Probe,
    System,
    choose,
    parse_memory,
    probe,
    visible_devices,
)

# Where subprocesses shall import the packages from: where this process has them from.
UNDER_TEST = Path(emulator.runners.__file__).parents[2]

# --- Step 1: the device node -------------------------------------------------------------------


def bare(directory: Path) -> System:
    """A machine without any of it; needs no compiler."""
    return System(
        device_directory=str(directory),
        kernel_driver=str(directory / "version"),
        driver_library=str(directory / "libcuda.so.1"),
        management_library=str(directory / "libnvidia-ml.so.1"),
        environ={},
    )


def test_no_device_node_is_said_with_its_path(tmp_path):
    assert probe(bare(tmp_path)) == Probe(
        (),
        f"CUDA: no device node ({tmp_path}/nvidiactl is not there): this machine has no NVIDIA "
        "GPU, or the container was started without one (docker run --gpus all)",
        None,
    )


def test_control_node_without_a_gpu_is_no_device(tmp_path):
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "nvidia-uvm").touch()
    missing = probe(bare(tmp_path)).missing
    assert missing is not None
    assert missing.startswith(f"CUDA: no device node ({tmp_path}/nvidia0 is not there): this ")


def test_loaded_driver_without_nodes_says_how_they_are_made(tmp_path):
    (tmp_path / "version").touch()
    assert probe(bare(tmp_path)).missing == (
        f"CUDA: no device node ({tmp_path}/nvidiactl is not there) although the NVIDIA driver is "
        f"loaded ({tmp_path}/version): start the container with its GPUs (docker run --gpus all), "
        "or run nvidia-smi once as root on a host, which makes the nodes"
    )


def test_container_given_only_the_fourth_gpu_has_a_device_node(machine):
    (machine.nodes / "nvidia0").unlink()
    machine.node("nvidia3")
    assert machine.probe().missing is None


def test_windows_subsystem_has_one_node_of_another_name(machine):
    shutil.rmtree(machine.nodes)
    machine.nodes.mkdir()
    machine.node("dxg")
    assert machine.probe().missing is None


def test_without_a_device_node_nothing_is_imported_or_loaded(tmp_path):
    code = (
        "import sys\n"
        "from emulator.runners.gpu import System, probe\n"
        "before = set(sys.modules)\n"
        f"found = probe(System(device_directory={str(tmp_path)!r}))\n"
        "assert found.missing\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    assert run_python(code) == "[]\n"


def run_python(code: str, *path: Path) -> str:
    code = f"import sys; sys.path[:0] = {[*map(str, path), str(UNDER_TEST)]!r}\n{code}"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


# --- Step 2: the driver library ----------------------------------------------------------------


def test_missing_driver_library_is_said_with_the_loaders_words(machine):
    missing = machine.probe(driver_library="/nowhere/libcuda.so.1").missing
    assert missing == (
        "CUDA: the driver library cannot be loaded (/nowhere/libcuda.so.1: cannot open shared "
        "object file: No such file or directory): install the NVIDIA driver, or start the "
        "container with NVIDIA_DRIVER_CAPABILITIES=compute among its capabilities"
    )


def test_driver_library_is_opened_and_never_called(machine):
    code = (
        "from emulator.runners.gpu import System, probe\n"
        f"assert probe({machine.system()!r}).devices\n"
    )
    run_python(code)  # a process of its own, since a library is loaded once
    assert [call for call in machine.calls if "cu" in call] == ["libcuda loaded"]


def test_torch_is_not_imported(machine, tmp_path):
    (tmp_path / "torch.py").write_text("print('torch was imported')")
    code = (
        "import sys\n"
        "from emulator.runners.gpu import Needs, System, choose, probe\n"
        f"print(len(choose(probe({machine.system()!r}), Needs()).devices), 'torch' in sys.modules)"
    )
    assert run_python(code, tmp_path) == "1 False\n"


# --- Steps 3 and 4: NVML and its devices -------------------------------------------------------


def test_missing_nvml_is_said_with_what_the_container_needs(machine):
    missing = machine.probe(management_library="/nowhere/libnvidia-ml.so.1").missing
    assert missing == (
        "CUDA: NVML cannot be loaded (/nowhere/libnvidia-ml.so.1: cannot open shared object file: "
        "No such file or directory): install the NVIDIA driver, or start the container with "
        "NVIDIA_DRIVER_CAPABILITIES=utility among its capabilities"
    )


def test_library_and_kernel_module_of_different_versions(machine):
    machine.fail("nvmlInit_v2", 18)
    assert machine.probe().missing == (
        "CUDA: NVML does not start (nvmlInit_v2: Driver/library version mismatch, error 18): the "
        "kernel module and the library are of different versions, so restart the machine, or the "
        "container after an update of its host"
    )


def test_error_without_advice_of_ours_points_to_nvidia_smi(machine):
    machine.fail("nvmlInit_v2", 999)
    missing = machine.probe().missing
    assert missing == (
        "CUDA: NVML does not start (nvmlInit_v2: Refused, error 999): nvidia-smi may say more"
    )


def test_function_that_an_old_library_lacks(machine):
    library = machine.libraries / "libnvidia-ml-without-init.so.1"
    assert machine.probe(management_library=str(library)).missing == (
        "CUDA: NVML does not start (nvmlInit_v2: not in this library, error 13): install a newer "
        "NVIDIA driver"
    )


def test_device_that_cannot_be_read(machine):
    machine.fail("nvmlDeviceGetHandleByIndex_v2", 15)
    assert machine.probe() == Probe(
        (),
        "CUDA: NVML does not answer (nvmlDeviceGetHandleByIndex_v2: GPU is lost, error 15): the "
        "GPU has fallen off the bus, so restart the machine",
        "570.124.06",
        cuda=(12, 8),
    )


def test_driver_without_a_device(machine):
    machine.gpus()
    assert machine.probe() == Probe(
        (),
        "CUDA: driver 570.124.06 has no device: start the container with one (docker run --gpus "
        "all), or see in dmesg why the driver refused the GPU",
        "570.124.06",
        cuda=(12, 8),
    )


@pytest.mark.parametrize("failing", [None, "nvmlDeviceGetName"])
def test_nvml_is_shut_down(machine, failing):
    if failing is not None:
        machine.fail(failing, 15)
    machine.probe()
    assert machine.calls[-1] == "nvmlShutdown"


def test_failing_shutdown_does_not_hide_the_devices(machine):
    machine.fail("nvmlShutdown", 999)
    assert len(machine.probe().devices) == 1


# --- Step 6: what a device is ------------------------------------------------------------------


def test_device_is_described(machine):
    device = Device(0, "NVIDIA L4", "GPU-aaaa1111-0000", 23034000000, 22190000000, (8, 9))
    assert machine.probe() == Probe((device,), None, "570.124.06", (), (12, 8))


def test_device_without_memory_of_its_own_has_the_machines(machine):
    machine.host_memory.write_text(
        "MemTotal:       131072 kB\nMemFree:  7 kB\nMemAvailable:    1024 kB\n"
    )
    machine.fail("nvmlDeviceGetMemoryInfo", 3)
    (device,) = machine.probe().devices
    assert (device.total, device.free) == (131072 * 1024, 1024 * 1024)


def test_library_older_than_mig_has_whole_devices(machine):
    library = machine.libraries / "libnvidia-ml-without-mig.so.1"
    assert len(machine.probe(management_library=str(library)).devices) == 1


# --- Step 5: CUDA_VISIBLE_DEVICES --------------------------------------------------------------

ONE, TWO = L4["UUID"], H100["UUID"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param(None, [ONE, TWO], id="unset"),
        pytest.param("1", [TWO], id="index"),
        pytest.param("1,0", [TWO, ONE], id="order-of-the-list"),
        pytest.param(" 0, +1", [ONE, TWO], id="blanks-and-plus"),
        pytest.param("1gpu,0", [TWO, ONE], id="digits-then-letters"),
        pytest.param("1,-1,0", [TWO], id="cut-at-a-negative"),
        pytest.param("1,2,0", [TWO], id="cut-at-an-index-too-high"),
        pytest.param("1,one,0", [TWO], id="cut-at-a-word"),
        pytest.param("1,GPU-aaaa1111-0000", [TWO], id="cut-at-another-kind"),
        pytest.param("GPU-aaaa2222-0000", [TWO], id="uuid"),
        pytest.param("GPU-aaaa2", [TWO], id="start-of-a-uuid"),
        pytest.param("GPU-aaaa2,GPU-aaaa1", [TWO, ONE], id="order-of-uuids"),
        pytest.param("GPU-aaaa2,GPU-dddd,GPU-aaaa1", [TWO], id="cut-at-an-unknown-uuid"),
        pytest.param("GPU-aaaa2,GPU-aaaa,GPU-aaaa1", [TWO], id="cut-at-an-ambiguous-uuid"),
        pytest.param("GPU-aaaa2,", [TWO], id="cut-at-nothing"),
    ],
)
def test_visible_devices_are_those_of_cuda(machine, value, shown):
    assert machine.visible(value, L4, H100) == shown


def test_empty_entry_is_not_the_start_of_the_only_uuid(machine):
    assert machine.visible("GPU-aaaa1,", L4) == [ONE]


@pytest.mark.parametrize("value", ["", " ", "-1", "-1,0"])
def test_every_device_hidden(machine, value):
    assert machine.visible(value, L4) == []
    assert machine.probe().missing == (
        f"CUDA: CUDA_VISIBLE_DEVICES={value!r} hides every device: unset it, or name one "
        "(CUDA_VISIBLE_DEVICES=0)"
    )


@pytest.mark.parametrize(
    ("value", "first"),
    [("2,0", "2"), ("GPU-aaaa", "GPU-aaaa"), ("NoDevFiles", "NoDevFiles"), ("MIG-1", "MIG-1")],
)
def test_list_that_begins_with_no_device(machine, value, first):
    assert machine.visible(value, L4, H100) == []
    assert machine.probe().missing == (
        f"CUDA: CUDA_VISIBLE_DEVICES={value!r} begins with {first!r}, which is no device here or "
        "more than one: write one that is there (0 is GPU-aaaa1111-0000, 1 is GPU-aaaa2222-0000)"
    )


@pytest.mark.parametrize("value", ["0,1,0", "GPU-aaaa1,GPU-aaaa1111"])
def test_device_named_twice_hides_all(machine, value):
    assert machine.visible(value, L4, H100) == []
    assert machine.probe().missing == (
        f"CUDA: CUDA_VISIBLE_DEVICES={value!r} names a device twice, which CUDA takes for no "
        "device at all: name each once"
    )


def test_hidden_devices_are_noted(machine):
    machine.visible("GPU-aaaa1", L4, H100)
    assert machine.probe().notes == ("CUDA_VISIBLE_DEVICES='GPU-aaaa1' shows 1 of 2 devices",)


def test_indices_of_different_models_are_noted_to_be_cudas_own(machine):
    machine.visible("0,1", L4, H100)
    assert machine.probe().notes == (
        "CUDA_VISIBLE_DEVICES='0,1' may mean other devices to CUDA, which numbers the fastest "
        "first: set CUDA_DEVICE_ORDER=PCI_BUS_ID",
    )


def test_indices_by_pci_bus_are_certain(machine):
    machine.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    machine.visible("0,1", L4, H100)
    assert machine.probe().notes == ()


def test_indices_of_equal_models_are_certain(machine):
    machine.visible("0,1", L4, {**L4, "UUID": TWO})
    assert machine.probe().notes == ()


def test_the_process_environment_is_the_default(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    machine.gpus(L4, H100)
    environ = System().environ
    assert [device.uuid for device in machine.probe(environ=environ).devices] == [TWO]


# MIG: a partitioned GPU is no device itself, and CUDA shows one instance at most.

FIRST_PART, SECOND_PART = A100_IN_PARTS["MIG_0_UUID"], A100_IN_PARTS["MIG_2_UUID"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param(None, [FIRST_PART], id="unset"),
        pytest.param("0", [ONE], id="whole-gpu"),
        pytest.param("1", [FIRST_PART], id="index-of-the-partitioned-gpu"),
        pytest.param("0,1", [FIRST_PART], id="instance-excludes-whole-gpus"),
        pytest.param("GPU-bbbb", [FIRST_PART], id="uuid-of-the-partitioned-gpu"),
        pytest.param("MIG-cccc2222", [SECOND_PART], id="instance"),
        pytest.param("MIG-cccc2222,MIG-cccc0000", [SECOND_PART], id="one-instance-only"),
        pytest.param("MIG-GPU-bbbb3333-0000/10/0", [SECOND_PART], id="older-spelling"),
        pytest.param("MIG-dddd", [], id="unknown-instance"),
    ],
)
def test_visible_mig_instances_are_those_of_cuda(machine, value, shown):
    assert machine.visible(value, L4, A100_IN_PARTS) == shown


def test_exact_name_of_an_instance_is_not_the_start_of_another(machine):
    longer = {**A100_IN_PARTS, "MIG_2_UUID": FIRST_PART + "5"}
    assert machine.visible(FIRST_PART, longer) == [FIRST_PART]


def test_mig_instance_has_its_own_memory_and_its_gpus_capability(machine):
    machine.visible("MIG-cccc2222", L4, A100_IN_PARTS)
    name = "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
    assert machine.probe().devices == (
        Device(1, name, SECOND_PART, 20937965568, 20000000000, (8, 0)),
    )


def test_mig_limit_is_noted(machine):
    machine.visible(None, L4, A100_IN_PARTS)
    assert machine.probe().notes == ("CUDA shows a process one MIG instance and nothing beside it",)


def test_only_instance_is_nothing_to_note(machine):
    machine.visible(None, {**A100_IN_PARTS, "MIG_2_UUID": None})
    assert machine.probe().notes == ()


@pytest.mark.parametrize("value", [None, "0,1", "GPU-aaaa1,GPU-bbbb"])
def test_partitioned_gpu_without_instances_beside_another(machine, value):
    assert machine.visible(value, L4, UNSPLIT_YET) == [ONE]


def test_partitioned_gpu_without_instances(machine):
    machine.gpus(UNSPLIT_YET)
    assert machine.probe().missing == (
        "CUDA: MIG is on but no instance was made: make one (nvidia-smi mig -cgi <profile> -C) or "
        "switch MIG off (nvidia-smi -mig 0)"
    )


def test_chosen_devices_can_be_handed_to_a_process(machine):
    machine.gpus(L4, H100)
    wanted = tuple(reversed(machine.probe().devices))
    machine.environ["CUDA_VISIBLE_DEVICES"] = visible_devices(wanted)
    assert machine.probe().devices == wanted


# --- Amounts of memory -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "in_bytes"),
    [
        ("24GB", 24_000_000_000),
        ("24GiB", 25_769_803_776),
        ("1.5 GB", 1_500_000_000),
        (" 512 MiB ", 536_870_912),
        ("1TB", 10**12),
        ("3kB", 3000),
        ("7B", 7),
        (1, 1),
        (24_000_000_000, 24_000_000_000),
    ],
)
def test_memory_is_read(amount, in_bytes):
    assert parse_memory(amount) == in_bytes


@pytest.mark.parametrize("amount", ["24", "24G", "24gb", "GB", "-1GB", "0GB", "", 0, -5, True, 1.5])
def test_memory_that_cannot_be_read_says_what_to_write(amount):
    with pytest.raises(ValueError) as raised:
        parse_memory(amount)
    assert str(raised.value) == (
        f'memory={amount!r} is no amount of memory: write memory="24GB" (10^9 bytes each), '
        'memory="24GiB" (2^30 bytes each) or a number of bytes'
    )


# --- Needs and choice --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"count": 0}, "count=0 is no number of devices: write count=1 or more"),
        ({"count": True}, "count=True is no number of devices: write count=1 or more"),
        (
            {"capability": "8.0"},
            "capability='8.0' is not a pair of numbers: write capability=(8, 0)",
        ),
        ({"capability": (8,)}, "capability=(8,) is not a pair of numbers: write capability=(8, 0)"),
        (
            {"cuda": "new"},
            'cuda=\'new\' is no version of CUDA: write cuda="12.4", or cuda="12" for any of that '
            "major version",
        ),
        (
            {"cuda": 12.4},
            'cuda=12.4 is no version of CUDA: write cuda="12.4", or cuda="12" for any of that '
            "major version",
        ),
        ({"name": ""}, "name='' is no part of a device's name: write name=\"H100\""),
        (
            {"memory": "much"},
            "memory='much' is no amount of memory: write memory=\"24GB\" (10^9 bytes each), "
            'memory="24GiB" (2^30 bytes each) or a number of bytes',
        ),
    ],
)
def test_needs_that_cannot_be_meant_say_what_to_write(needs, message):
    with pytest.raises(ValueError) as raised:
        Needs(**needs)
    assert str(raised.value) == message


SMALL = Device(0, "NVIDIA L4", "GPU-a", 23_034_000_000, 22_190_000_000, (8, 9))
LARGE = Device(1, "NVIDIA H100 80GB HBM3", "GPU-b", 85_899_345_920, 84_000_000_000, (9, 0))
BOTH = Probe((SMALL, LARGE), None, "570.124.06")


@pytest.mark.parametrize(
    ("needs", "chosen"),
    [
        pytest.param(Needs(), (SMALL,), id="first-of-cudas-order"),
        pytest.param(Needs(count=2), (SMALL, LARGE), id="count"),
        pytest.param(Needs(memory="24GB"), (LARGE,), id="memory"),
        pytest.param(Needs(memory=22_190_000_000), (SMALL,), id="exactly-the-free-memory"),
        pytest.param(Needs(memory="22.5GB"), (LARGE,), id="free-counts-rather-than-total"),
        pytest.param(Needs(capability=(9, 0)), (LARGE,), id="capability"),
        pytest.param(Needs(capability=(8, 9)), (SMALL,), id="exactly-the-capability"),
        pytest.param(Needs(name="h100"), (LARGE,), id="name-in-any-case"),
    ],
)
def test_devices_that_meet_the_needs_are_chosen(needs, chosen):
    assert choose(BOTH, needs) == Choice(chosen, None)


@pytest.mark.parametrize(
    ("needs", "asked", "found"),
    [
        pytest.param(
            Needs(memory="90GB"),
            "1 device with 90 GB free is asked for and none is there",
            "NVIDIA L4 (GPU-a) has 22.1 GB free of 23.0 GB; "
            "NVIDIA H100 80GB HBM3 (GPU-b) has 84.0 GB free of 85.8 GB",
            id="memory",
        ),
        pytest.param(
            Needs(memory="80GiB"),
            "1 device with 85.89934592 GB free is asked for and none is there",
            "NVIDIA L4 (GPU-a) has 22.1 GB free of 23.0 GB; "
            "NVIDIA H100 80GB HBM3 (GPU-b) has 84.0 GB free of 85.8 GB",
            id="binary-memory",
        ),
        pytest.param(
            Needs(count=3),
            "3 devices are asked for and 2 are there",
            "NVIDIA L4 (GPU-a) would do; NVIDIA H100 80GB HBM3 (GPU-b) would do",
            id="count",
        ),
        pytest.param(
            Needs(count=2, memory="24GB", name="L4"),
            "2 devices each with 24 GB free and 'L4' in its name are asked for and none is there",
            "NVIDIA L4 (GPU-a) has 22.1 GB free of 23.0 GB; "
            "NVIDIA H100 80GB HBM3 (GPU-b) has another name",
            id="several-needs",
        ),
        pytest.param(
            Needs(count=2, capability=(9, 0)),
            "2 devices each with compute capability 9.0 or later are asked for and 1 is there",
            "NVIDIA L4 (GPU-a) has compute capability 8.9; NVIDIA H100 80GB HBM3 (GPU-b) would do",
            id="capability",
        ),
    ],
)
def test_needs_not_met_say_what_each_device_lacks(needs, asked, found):
    assert choose(BOTH, needs) == Choice((), f"CUDA: {asked}: {found}")


def test_needs_not_met_repeat_what_the_probe_noted():
    noted = Probe((SMALL,), None, "570.124.06", ("CUDA_VISIBLE_DEVICES='0' shows 1 of 2 devices",))
    assert choose(noted, Needs(count=2)).reason == (
        "CUDA: 2 devices are asked for and 1 is there: NVIDIA L4 (GPU-a) would do; "
        "CUDA_VISIBLE_DEVICES='0' shows 1 of 2 devices"
    )


def test_missing_step_is_the_reason():
    assert choose(Probe((), "CUDA: no", None), Needs()) == Choice((), "CUDA: no")


# Amounts straddle the asked ones; a handful of devices is enough for every order of them.
_DEVICES = st.lists(
    st.builds(
        Device,
        index=st.integers(0, 7),
        name=st.sampled_from(["NVIDIA L4", "NVIDIA H100 80GB HBM3"]),
        uuid=st.uuids().map(lambda uuid: f"GPU-{uuid}"),
        total=st.just(80 * 10**9),
        free=st.integers(1, 80 * 10**9),
        capability=st.sampled_from([(7, 5), (8, 0), (8, 9), (9, 0)]),
    ),
    max_size=5,
)


@given(devices=_DEVICES, count=st.integers(1, 5), memory=st.integers(1, 80 * 10**9))
def test_choice_is_the_first_devices_with_enough_or_a_reason(devices, count, memory):
    choice = choose(Probe(tuple(devices), None, "1"), Needs(count=count, memory=memory))
    enough = [device for device in devices if device.free >= memory][:count]
    if len(enough) == count:
        assert choice == Choice(tuple(enough), None)
    else:
        assert choice.devices == ()
        assert choice.reason is not None
        assert choice.reason.startswith("CUDA: ")


# --- Within pytest -----------------------------------------------------------------------------

_CONFTEST = """
import pytest
from emulator.runners.gpu import System
from pytest_fal import cuda

def pytest_addoption(parser):
    cuda.add_options(parser)

def pytest_configure(config):
    cuda.add_marker(config)

def pytest_terminal_summary(terminalreporter):
    cuda.terminal_summary(terminalreporter)
    summary = cuda.summary_line(terminalreporter.config)
    terminalreporter.write_line("summary_line gives " + ("nothing" if summary is None else "it"))

@pytest.fixture
def gpu(request):
    return cuda.require(request, {system!r})
"""


class Inner:
    """A pytest run of its own, whose conftest wires ``pytest_fal.cuda`` to a machine."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        # Nobody else's plugins, and not our own, whose hooks are wired by the conftest here.
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        self.pytester = pytester
        monkeypatch.setenv("PYTHONPATH", str(UNDER_TEST), prepend=os.pathsep)
        self.system = bare(pytester.mkdir("dev"))
        self.reason = (
            f"CUDA: no device node ({self.system.device_directory}/nvidiactl is not there): this "
            "machine has no NVIDIA GPU, or the container was started without one (docker run "
            "--gpus all)"
        )

    def run(self, tests: str, *options: str) -> pytest.RunResult:
        self.pytester.makeconftest(_CONFTEST.format(system=self.system))
        self.pytester.makepyfile(test_inner=f"import pytest\n{tests}")
        return self.pytester.runpytest_subprocess("--strict-markers", "-W", "error", *options)


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Inner:
    return Inner(pytester, monkeypatch)


@pytest.fixture
def inner_with_gpus(inner: Inner, machine: Machine) -> Inner:
    machine.gpus(L4, H100)
    inner.system = machine.system()
    return inner


THREE_TESTS = """
@pytest.mark.parametrize("number", range(3))
def test_gpu(gpu, number):
    raise AssertionError("ran without a device")
"""


def test_without_a_device_the_test_is_skipped_with_the_reason(inner):
    result = inner.run("def test_gpu(gpu): raise AssertionError('ran')", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED *: {inner.reason}"])


def test_option_turns_the_skip_into_an_error(inner):
    result = inner.run("def test_gpu(gpu): pass", "--fal-require-cuda")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [f"{inner.reason} (--fal-require-cuda turns this skip into an error)"]
    )


def test_option_leaves_a_test_with_its_device_alone(inner_with_gpus):
    result = inner_with_gpus.run("def test_gpu(gpu): pass", "--fal-require-cuda")
    result.assert_outcomes(passed=1)


def test_fixture_gives_the_devices_that_the_marker_needs(inner_with_gpus):
    result = inner_with_gpus.run(
        "@pytest.mark.fal_cuda(memory='24GB', capability=(9, 0), name='H100')\n"
        "def test_gpu(gpu):\n"
        "    assert [device.uuid for device in gpu] == ['GPU-aaaa2222-0000']\n"
    )
    result.assert_outcomes(passed=1)


def test_needs_not_met_skip_the_test(inner_with_gpus):
    result = inner_with_gpus.run("@pytest.mark.fal_cuda(count=3)\n" + "def test_gpu(gpu): pass")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["fal: 1 GPU test was skipped: CUDA: 3 devices are asked for *"])


def test_closest_marker_wins_and_others_add_to_it(inner):
    result = inner.run(
        "from pytest_fal.cuda import needs_of\n"
        "from emulator.runners.gpu import Needs\n"
        "pytestmark = pytest.mark.fal_cuda(count=4, memory='1GB', name='A100')\n"
        "@pytest.mark.fal_cuda(count=3, memory='2GB')\n"
        "class TestIt:\n"
        "    @pytest.mark.fal_cuda(count=2)\n"
        "    def test_gpu(self, request):\n"
        "        assert needs_of(request.node) == Needs(count=2, memory='2GB', name='A100')\n"
    )
    result.assert_outcomes(passed=1)


def test_test_without_a_marker_needs_one_device(inner):
    result = inner.run(
        "from pytest_fal.cuda import needs_of\n"
        "from emulator.runners.gpu import Needs\n"
        "def test_gpu(request):\n"
        "    assert needs_of(request.node) == Needs(count=1)\n"
    )
    result.assert_outcomes(passed=1)


EXAMPLE = '@pytest.mark.fal_cuda(count=1, memory="24GB", capability=(8, 0), name="H100")'


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            "memmory='1GB'",
            "@pytest.mark.fal_cuda does not know memmory; it knows count, memory, capability, "
            f"name, cuda: write, for example, {EXAMPLE}",
        ),
        (
            "2, '1GB'",
            "@pytest.mark.fal_cuda takes its arguments by name only, not 2, '1GB': write, for "
            f"example, {EXAMPLE}",
        ),
        (
            "count=0",
            "@pytest.mark.fal_cuda: count=0 is no number of devices: write count=1 or more",
        ),
    ],
)
def test_wrong_marker_is_an_error_even_without_a_device(inner, arguments, problem):
    result = inner.run(f"@pytest.mark.fal_cuda({arguments})\ndef test_gpu(gpu): pass")
    result.assert_outcomes(errors=1)
    assert f"\ntest_inner.py::test_gpu: {problem}\n" in result.stdout.str()


def test_wrong_marker_is_a_usage_error_for_who_reads_it(inner):
    result = inner.run(
        "from pytest_fal.cuda import needs_of\n"
        "@pytest.mark.fal_cuda(3)\n"
        "def test_gpu(request):\n"
        "    with pytest.raises(pytest.UsageError, match='by name only'):\n"
        "        needs_of(request.node)\n"
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")], ids=["alone", "xdist"])
def test_skips_are_summed_up_in_one_line(inner, options):
    if "xdist" in options:
        pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    result = inner.run(THREE_TESTS, *options)
    result.assert_outcomes(skipped=3)
    lines = [line for line in result.outlines if line.startswith("fal: ")]
    assert lines == [
        f"fal: 3 GPU tests were skipped: {inner.reason} (use --fal-require-cuda to make that an "
        "error)"
    ]
    assert "summary_line gives it" in result.outlines


def test_each_reason_has_a_line_the_commonest_first(inner_with_gpus):
    result = inner_with_gpus.run(
        "@pytest.mark.fal_cuda(count=3)\n"
        "def test_one(gpu): pass\n"
        "@pytest.mark.fal_cuda(count=4)\n"
        "@pytest.mark.parametrize('number', range(2))\n"
        "def test_two(gpu, number): pass\n"
    )
    lines = [line.partition(" are asked")[0] for line in result.outlines if "fal: " in line]
    assert lines == [
        "fal: 2 GPU tests were skipped: CUDA: 4 devices",
        "fal: 1 GPU test was skipped: CUDA: 3 devices",
    ]


def test_other_skips_are_not_summed_up(inner):
    result = inner.run("def test_gpu(): pytest.skip('no CUDA: today')")
    result.assert_outcomes(skipped=1)
    assert "summary_line gives nothing" in result.outlines
    result.stdout.no_fnmatch_line("fal: *")


def test_marker_and_option_explain_themselves(inner):
    result = inner.run("", "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.fal_cuda(count=1, memory=None, capability=None, *"])
    result = inner.run("", "--help")
    result.stdout.fnmatch_lines(["fal:", "*--fal-require-cuda*"])
