"""Runners on CUDA devices: which each gets, memory given back, this process kept out of CUDA."""

from __future__ import annotations

from pathlib import Path

import fal
import pytest
from cuda_machine import H100, L4, Machine
from hypothesis import given
from hypothesis import strategies as st

from emulator.errors import EmulatorError
from emulator.gpus.cuda import CudaRunners, assign, rotate
from emulator.gpus.cuda_version import too_old
from emulator.gpus.gpu import Choice, Device, Needs, Probe, choose, fitting

ONE, TWO = L4["UUID"], H100["UUID"]
GB = 10**9


def device(number: int, free: int = 80) -> Device:
    return Device(number, "NVIDIA H100 80GB HBM3", f"GPU-{number}", 80 * GB, free * GB, (9, 0))


FOUR = tuple(device(number) for number in range(4))


def numbers(devices):
    return [device.index for device in devices]


# --- the order of a worker -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker", "count", "order"),
    [
        (0, 1, [0, 1, 2, 3]),
        (1, 1, [1, 2, 3, 0]),
        (5, 1, [1, 2, 3, 0]),
        (1, 2, [2, 3, 0, 1]),
        (2, 2, [0, 1, 2, 3]),
    ],
)
def test_each_worker_begins_at_another_device(worker, count, order):
    assert numbers(rotate(FOUR, worker, count)) == order


def test_there_may_be_no_device_to_begin_with():
    assert rotate((), 3, 1) == ()


# Up to eight GPUs, as on the largest of fal's machines.
@given(there=st.integers(1, 8), count=st.integers(1, 8))
def test_workers_share_no_device_while_there_are_enough(there, count):
    devices = [device(number) for number in range(there)]
    workers = there // count
    taken = [
        n for worker in range(workers) for n in numbers(rotate(devices, worker, count))[:count]
    ]
    assert len(set(taken)) == workers * count


# --- the devices of a runner ---------------------------------------------------------------------


def test_a_runner_gets_devices_that_no_other_has():
    assert numbers(assign(FOUR, ["GPU-0", "GPU-2"], 2, {})) == [1, 3]


def test_when_all_are_taken_it_gets_the_one_with_most_free_memory():
    free = {"GPU-0": 10 * GB, "GPU-1": 30 * GB, "GPU-2": 20 * GB}
    assert numbers(assign(FOUR[:3], ["GPU-0", "GPU-1", "GPU-2"], 1, free)) == [1]


def test_one_that_is_not_taken_comes_before_one_with_more_memory():
    assert numbers(assign(FOUR[:3], ["GPU-0", "GPU-1"], 2, {"GPU-1": 99 * GB})) == [2, 1]


class Stand:
    """Stands in for a runner: what matters here is whether it has ended."""

    def __init__(self, name, log):
        self.name, self.state, self.log = name, "IDLE", log

    def stop(self):
        self.log.append(self.name)
        self.state = "TERMINATED"


class Bench:
    """CudaRunners on a machine with an L4 and an H100, whose memory the test sets."""

    def __init__(self, machine: Machine, needs: Needs | None = None) -> None:
        needs = needs or Needs()
        self.machine = machine
        self.booted: list[dict] = []
        self.stopped: list[str] = []
        self.pauses = 0
        self.while_waiting = lambda: None
        machine.gpus(L4, H100)
        devices = fitting(machine.probe(), needs)
        self.arguments = devices, needs, machine.system(), self.wait
        self.runners = CudaRunners(self.boot, *self.arguments)

    def boot(self, app, **options):
        self.booted.append(options)
        return Stand(f"runner-{len(self.booted)}", self.stopped)

    def wait(self, seconds):
        self.pauses += 1
        self.while_waiting()

    def free(self, number, gigabytes):
        self.machine.monkeypatch.setenv(f"FAKE_GPU_{number}_FREE", str(gigabytes * GB))

    @property
    def visible(self):
        return [options["env"]["CUDA_VISIBLE_DEVICES"] for options in self.booted]


@pytest.fixture
def bench(machine):
    return Bench(machine)


def test_a_runner_boots_in_a_process_of_its_own(bench):
    bench.runners.boot(object)
    assert bench.booted == [{"isolation": "process", "env": {"CUDA_VISIBLE_DEVICES": ONE}}]


def test_it_takes_what_fal_runner_takes(bench):
    bench.runners.boot(object, isolation="thread", gpu="H100", env={"A": "1"}, load="import")
    assert bench.booted == [
        {
            "isolation": "thread",
            "gpu": "H100",
            "load": "import",
            "env": {"A": "1", "CUDA_VISIBLE_DEVICES": ONE},
        }
    ]


def test_the_tests_own_variable_wins(bench):
    bench.runners.boot(object, env={"CUDA_VISIBLE_DEVICES": ""})
    assert bench.visible == [""]


def test_runners_alive_at_once_have_different_devices(bench):
    bench.runners.boot(object)
    bench.runners.boot(object)
    assert bench.visible == [ONE, TWO]


@pytest.mark.parametrize(("roomy", "visible"), [(0, ONE), (1, TWO)])
def test_one_more_than_there_are_devices_shares_the_one_with_most_memory(bench, roomy, visible):
    bench.runners.boot(object)
    bench.runners.boot(object)
    bench.free(roomy, 20)
    bench.free(1 - roomy, 2)
    bench.runners.boot(object)
    assert bench.visible[2] == visible


def test_the_devices_of_a_runner_that_has_ended_are_free_again(bench):
    bench.runners.boot(object).stop()
    bench.runners.boot(object)
    assert bench.visible == [ONE, ONE]


def test_a_runner_gets_as_many_as_the_test_needs(machine):
    bench = Bench(machine, Needs(count=2))
    bench.runners.boot(object)
    assert bench.visible == [f"{ONE},{TWO}"]


def test_devices_that_do_not_meet_the_needs_are_not_used(machine):
    bench = Bench(machine, Needs(memory="24GB"))
    bench.runners.boot(object)
    bench.runners.boot(object)
    assert bench.visible == [TWO, TWO]


def test_what_a_runner_in_a_thread_sees_does_not_hide_devices_from_the_next(bench):
    bench.runners.boot(object)
    bench.machine.environ["CUDA_VISIBLE_DEVICES"] = ONE
    bench.runners.boot(object)
    assert bench.visible == [ONE, TWO]


def test_runners_in_threads_have_the_same_devices_since_they_share_the_variable(bench):
    bench.runners.boot(object, isolation="thread")
    bench.runners.boot(object)
    bench.runners.boot(object, isolation="thread")
    assert bench.visible == [ONE, TWO, ONE]


# --- memory --------------------------------------------------------------------------------------


def test_memory_that_is_back_is_not_waited_for(bench):
    bench.runners.boot(object)
    bench.runners.close()
    assert (bench.pauses, bench.runners.problems) == (0, [])


def test_memory_is_waited_for(bench):
    bench.runners.boot(object)
    bench.free(0, 2)
    bench.while_waiting = lambda: bench.pauses == 3 and bench.free(0, 22.19)
    bench.runners.close()
    assert (bench.pauses, bench.runners.problems) == (3, [])


def test_memory_that_does_not_come_back_is_told(bench):
    bench.runners.boot(object)
    bench.free(0, 2)
    bench.runners.close()
    assert bench.runners.problems == [
        f"CUDA: runner-1 has ended, and 20.2 GB of the memory of {ONE} are not given back after "
        "10 s: something that it started is still running (nvidia-smi lists it), or another "
        "process uses the device"
    ]


def test_memory_of_a_runner_whose_setup_failed_is_waited_for(bench):
    def fail(app, **options):
        bench.free(0, 2)
        raise RuntimeError("CUDA out of memory")

    bench.runners = CudaRunners(fail, *bench.arguments)
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        bench.runners.boot(object)
    bench.runners.close()
    (problem,) = bench.runners.problems
    assert problem.startswith("CUDA: a runner whose setup failed has ended, and 20.2 GB of the ")


def test_a_little_may_stay_taken(bench):
    bench.runners.boot(object)
    bench.free(0, 22.14)
    bench.runners.close()
    assert bench.pauses == 0


def test_the_next_runner_waits_for_the_memory_of_the_last(bench):
    bench.runners.boot(object).stop()
    bench.free(0, 2)
    bench.while_waiting = lambda: bench.free(0, 22.19)
    bench.runners.boot(object)
    assert bench.pauses == 1


def test_memory_of_a_device_that_another_runner_has_too_is_not_waited_for(machine):
    bench = Bench(machine, Needs(count=2))
    first = bench.runners.boot(object)
    bench.runners.boot(object)
    bench.free(0, 2)
    first.stop()
    bench.runners.boot(object)
    assert bench.pauses == 0


def test_memory_of_a_runner_in_a_thread_is_not_waited_for(bench):
    bench.runners.boot(object, isolation="thread")
    bench.free(0, 2)
    bench.runners.close()
    assert (bench.pauses, bench.runners.problems) == (0, [])


def test_a_device_that_is_gone_meanwhile_is_not_waited_for(bench):
    bench.runners.boot(object)
    bench.machine.fail("nvmlInit_v2", 15)
    bench.runners.close()
    assert bench.pauses == 0


def test_runners_are_stopped_the_newest_first(bench):
    for _ in range(3):
        bench.runners.boot(object)
    bench.runners.close()
    assert bench.stopped == ["runner-3", "runner-2", "runner-1"]


def test_an_error_of_one_does_not_keep_the_others_from_being_stopped(bench):
    bench.runners.boot(object)

    def fail():
        raise RuntimeError("teardown")

    bench.runners.boot(object).stop = fail
    with pytest.raises(RuntimeError, match="teardown"):
        bench.runners.close()
    assert bench.stopped == ["runner-1"]


# --- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "supported"),
    [("12", (12, 0)), ("12", (12, 8)), ("12.4", (12, 4)), ("11.8", (12, 0)), ("12", (13, 0))],
)
def test_a_driver_that_supports_that_cuda_will_do(cuda, supported):
    found = Probe((device(0),), None, "570.124.06", (), supported)
    assert choose(found, Needs(cuda=cuda)) == Choice((device(0),), None)


@pytest.mark.parametrize(("cuda", "supported"), [("12", (11, 4)), ("12.4", (12, 2))])
def test_a_driver_that_is_too_old_is_the_reason(cuda, supported):
    found = Probe((device(0),), None, "470.57.02", (), supported)
    assert choose(found, Needs(cuda=cuda)) == Choice(
        (),
        f"CUDA: driver 470.57.02 is too old: it supports CUDA {supported[0]}.{supported[1]}, and "
        f"CUDA {cuda} is asked for: install a newer NVIDIA driver",
    )


def test_a_driver_that_does_not_tell_may_do():
    assert too_old("390.1", None, (12, 4)) is None


def test_the_drivers_cuda_is_read(machine, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA", "11040")
    assert machine.probe().cuda == (11, 4)


def test_a_library_too_old_to_tell(machine):
    library = machine.libraries / "libnvidia-ml-without-mig.so.1"
    assert machine.probe(management_library=str(library)).cuda is None


# --- what the platform makes of an error on the device -------------------------------------------


class OutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError: a RuntimeError with one argument."""


class Greedy(fal.App):
    @fal.endpoint("/")
    def allocate(self) -> None:
        raise OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 90.00 GiB. GPU 0 has a total capacity of "
            "79.10 GiB of which 12.00 GiB is free."
        )


def test_out_of_memory_is_the_platforms_503(fal_runner):
    response = fal_runner(Greedy).post("/")
    assert response.status_code == 503
    assert response.json() == {"detail": "CUDA error: out of memory"}


# --- the fixture ---------------------------------------------------------------------------------

CONFTEST = """
from emulator.gpus.gpu import System
from pytest_fal import cuda

def pytest_configure(config):
    config.stash[cuda.SYSTEM] = {system!r}
"""
APP = """
import os, sys
import fal, pytest

class Sees(fal.App):
    @fal.endpoint("/")
    def run(self) -> dict:
        return {"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid()}
"""


@pytest.fixture
def inner(pytester, machine):
    """A pytest run on a machine with an L4 and an H100."""
    machine.gpus(L4, H100)
    nodes = pytester.mkdir("dev")  # where the test's /tmp does not hide them
    for name in ("nvidiactl", "nvidia0"):
        (nodes / name).touch()

    def run(tests, *options):
        system = machine.system(device_directory=str(nodes))
        pytester.makeconftest(CONFTEST.format(system=system))
        pytester.makepyfile(test_inner=APP + tests)
        return pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", *options)

    return run


@pytest.fixture
def process_runners(fal_runner):
    """Skips where runners cannot have a process of their own."""
    try:
        fal_runner(Greedy, isolation="process")
    except EmulatorError as error:
        pytest.skip(str(error))


def test_the_fixture_boots_on_a_device_that_meets_the_needs(inner):
    result = inner(
        "@pytest.mark.fal_cuda(memory='24GB')\n"
        "def test_it(fal_cuda_runner):\n"
        "    runner = fal_cuda_runner(Sees, isolation='thread')\n"
        f"    assert runner.post('/').json()['devices'] == {TWO!r}\n"
    )
    result.assert_outcomes(passed=1)


def test_the_fixture_boots_in_a_process_with_devices_of_its_own(inner, process_runners):
    result = inner(
        "def test_it(fal_cuda_runner):\n"
        "    found = [fal_cuda_runner(Sees).post('/').json() for _ in range(2)]\n"
        f"    assert [answer['devices'] for answer in found] == [{ONE!r}, {TWO!r}]\n"
        "    assert len({os.getpid(), *(answer['process'] for answer in found)}) == 3\n"
    )
    result.assert_outcomes(passed=1)


def test_workers_begin_at_different_devices(inner):
    result = inner(
        "@pytest.mark.parametrize('number', range(4))\n"
        "def test_it(fal_cuda_runner, number):\n"
        "    runner = fal_cuda_runner(Sees, isolation='thread')\n"
        f"    mine = {{'gw0': {ONE!r}, 'gw1': {TWO!r}}}[os.environ['PYTEST_XDIST_WORKER']]\n"
        "    assert runner.post('/').json()['devices'] == mine\n",
        *("-n", "2"),
    )
    result.assert_outcomes(passed=4)


def test_a_driver_too_old_for_the_installed_torch_skips(inner, pytester, machine):
    torch = pytester.mkpydir("torch")
    (torch / "__init__.py").write_text("raise AssertionError('torch was imported')")
    (torch / "version.py").write_text("__version__ = '3.0.0'\ncuda: Optional[str] = '13.2'\n")
    result = inner("def test_it(fal_cuda_runner): pass\n")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        [
            "fal: 1 GPU test was skipped: CUDA: driver 570.124.06 is too old: it supports CUDA "
            "12.8, and the installed torch is built for CUDA 13.2: install a newer NVIDIA driver, "
            "or a torch that is built for CUDA 12 *"
        ]
    )


def test_torch_is_not_imported_into_pytests_process(inner, pytester):
    torch = pytester.mkpydir("torch")
    (torch / "version.py").write_text("cuda = '12.1'\n")
    result = inner(
        "def test_it(fal_cuda_runner):\n"
        "    fal_cuda_runner(Sees, isolation='thread').post('/')\n"
        "    assert 'torch' not in sys.modules\n"
    )
    result.assert_outcomes(passed=1)


def test_torch_in_pytests_process_is_a_leak_of_our_own_suite(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    pytester.makepyfile("import sys\n\ndef test_it():\n    sys.modules['torch'] = sys\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", f"--rootdir={pytester.path}")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["torch was imported into pytest's process"])


def test_nothing_of_nvidias_is_open_while_the_test_runs(inner):
    result = inner(
        "from pytest_fal.cuda import devices_opened_here\n"
        "def test_it(fal_cuda_runner):\n"
        "    fal_cuda_runner(Sees, isolation='thread').post('/')\n"
        "    assert devices_opened_here() == set()\n"
    )
    result.assert_outcomes(passed=1)


def test_a_test_that_opens_a_device_in_pytests_process_fails(inner, pytester):
    """As a CUDA context does."""
    node = pytester.path / "dev" / "nvidiactl"
    result = inner(f"def test_it(fal_cuda_runner): sys.kept = open({str(node)!r})\n")
    result.assert_outcomes(passed=1, errors=1)
    assert (
        f"CUDA: pytest's own process has opened {node}: the test used CUDA itself, beside its "
        "runner, or left NVML open. A CUDA context keeps memory of the device until pytest ends, "
        "and breaks CUDA in forked children. Use CUDA on the runner: runner.run(function)."
    ) in result.outlines


def test_a_runner_in_a_thread_may_open_devices(inner, pytester):
    node = pytester.path / "dev" / "nvidiactl"
    result = inner(
        "def test_it(fal_cuda_runner):\n"
        "    fal_cuda_runner(Sees, isolation='thread')\n"
        f"    sys.kept = os.open({str(node)!r}, os.O_RDONLY)\n"
    )
    result.assert_outcomes(passed=1)


def test_runners_of_the_fixture_are_stopped_while_their_account_is_there(inner):
    result = inner(
        "class Ends(Sees):\n"
        "    def teardown(self):\n"
        "        Ends.saw = os.listdir('/data')\n"
        "def test_it(fal_cuda_runner, fal_data):\n"
        "    fal_data.write('file', b'')\n"
        "    test_it.runner = fal_cuda_runner(Ends, isolation='thread')\n"
        "def test_then():\n"
        "    assert test_it.runner.state == 'TERMINATED'\n"
        "    assert Ends.saw == ['file']\n",
        *("-p", "no:randomly"),
    )
    result.assert_outcomes(passed=2)


def test_memory_that_is_not_given_back_is_a_warning(inner, process_runners):
    result = inner(
        "import emulator.gpus.cuda\n"
        "emulator.gpus.cuda._ATTEMPTS = 1\n"
        "def test_it(fal_cuda_runner):\n"
        "    fal_cuda_runner(Sees)\n"
        "    os.environ['FAKE_GPU_0_FREE'] = '1'\n",
        *("-W", "default::pytest_fal.warnings.MemoryNotGivenBackWarning"),
    )
    result.assert_outcomes(passed=1, warnings=1)
