"""Pretended GPUs: each runner's own ``nvidia-smi``, and the script that plays it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import fal
import pytest
from fal.toolkit.compilation import get_gpu_type, synchronized_inductor_cache

from emulator.errors import EmulatorError
from emulator.gpus.machine_types import MACHINE_TYPES
from emulator.gpus.nvidia_smi import script
from emulator.storage import programs

NAME = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
needs_a_machine_without_gpu = pytest.mark.skipif(
    shutil.which("nvidia-smi") is not None, reason="this machine has an nvidia-smi of its own"
)


class Painter(fal.App):
    machine_type = "GPU-L40"

    @fal.endpoint("/")
    def gpu(self) -> str:
        return get_gpu_type()

    @fal.endpoint("/async")
    async def gpu_async(self) -> str:
        return get_gpu_type()

    @fal.endpoint("/thread")
    def gpu_in_a_thread_of_its_own(self) -> str:
        found = []
        thread = threading.Thread(target=lambda: found.append(get_gpu_type()))
        thread.start()
        thread.join()
        return found[0]


class Fleet(Painter):
    num_gpus = 4


def names():
    """What a library finds that asks nvidia-smi."""
    return subprocess.run(NAME, capture_output=True, text=True, check=True).stdout.splitlines()


def uuids():
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


# --- runners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/async", "/thread"])
def test_an_app_sees_the_pretended_gpu_wherever_it_asks(fal_runner, path):
    assert fal_runner(Painter, gpu="H100").post(path).json() == "H100"


def test_setup_sees_it_already(fal_runner):
    class AsksInSetup(Painter):
        def setup(self):
            self.found = get_gpu_type()

    runner = fal_runner(AsksInSetup, gpu="H200")
    assert runner.run(lambda: fal.ref.get_current_app().found) == "H200"


def test_the_apps_own_machine_type(fal_runner):
    assert fal_runner(Painter, gpu=True).post("/").json() == "L40"


def test_as_many_as_the_app_asks_for(fal_runner):
    assert fal_runner(Fleet, gpu="A100").run(names) == ["NVIDIA A100-SXM4-40GB"] * 4


@needs_a_machine_without_gpu
def test_runners_alive_at_once_see_each_their_own(fal_runner):
    h100, none, a100 = (fal_runner(Painter, gpu=gpu) for gpu in ("H100", None, "A100"))
    found = [runner.post("/").json() for runner in (h100, none, a100, h100)]
    assert found == ["H100", "UNKNOWN", "A100", "H100"]


def test_runners_of_one_machine_type_have_different_gpus(fal_runner):
    one, two = fal_runner(Fleet, gpu="H100"), fal_runner(Fleet, gpu="H100")
    assert len({*one.run(uuids), *two.run(uuids)}) == 8
    assert one.run(uuids) == one.run(uuids)


@needs_a_machine_without_gpu
def test_a_runner_without_gpu_has_no_nvidia_smi_beside_one_that_has(fal_runner):
    fal_runner(Painter, gpu="H100")
    with pytest.raises(FileNotFoundError):
        fal_runner(Painter).run(names)


@needs_a_machine_without_gpu
def test_the_test_itself_has_none(fal_runner):
    fal_runner(Painter, gpu="H100")
    assert get_gpu_type() == "UNKNOWN"


def test_a_real_nvidia_smi_is_found_by_a_runner_without_gpu(fal_runner, fal_data):
    fal_data.write("bin/nvidia-smi", b"#!/bin/sh\necho 'NVIDIA Real'\n").chmod(0o755)
    path = {"PATH": f"/data/bin:{os.environ['PATH']}"}
    pretended = fal_runner(Painter, gpu="H100", env=path)
    real = fal_runner(Painter, env=path)
    assert (pretended.run(get_gpu_type), real.run(get_gpu_type)) == ("H100", "Real")


def test_path_is_as_before_once_the_runners_are_gone(fal_runner):
    before = os.environ["PATH"]
    runner = fal_runner(Painter, gpu="H100")
    assert os.environ["PATH"] == f"{programs.DIRECTORY}:{before}"
    fal_runner(Painter, gpu="A100").stop()
    assert os.environ["PATH"] == f"{programs.DIRECTORY}:{before}"
    runner.stop()
    assert os.environ["PATH"] == before


def test_path_is_left_alone_without_a_pretended_gpu(fal_runner):
    before = os.environ["PATH"]
    fal_runner(Painter)
    assert os.environ["PATH"] == before


@pytest.mark.fal(filesystem="namespace")
def test_another_limit_of_tmp_changes_nothing_about_the_gpu(fal_runner):
    runner = fal_runner(Painter, gpu="H100")
    runner.tmp.limit(1_000_000)
    assert runner.post("/").json() == "H100"


def test_nothing_of_it_is_in_the_volumes(fal_runner, fal_data, fal_tmp):
    runner = fal_runner(Painter, gpu="H100")
    assert (runner.tmp.tree(), fal_tmp.tree(), fal_data.tree()) == ([], [], [])


def test_its_directory_is_not_on_the_host(fal_emulator, fal_runner):
    fal_runner(Painter, gpu="H100")
    assert os.path.isdir(programs.DIRECTORY)
    fal_emulator.stop()
    on_the_host = os.path.exists(programs.DIRECTORY)
    fal_emulator.start()
    assert not on_the_host


def test_what_is_no_gpu_is_refused_before_anything_boots(fal_runner, fal_emulator):
    with pytest.raises(EmulatorError, match="gpu='V100' is no machine type with a GPU"):
        fal_runner(Painter, gpu="V100")
    assert fal_emulator.runners == []


def test_a_runner_that_is_killed_leaves_no_gpu_behind(fal_runner):
    before = os.environ["PATH"]
    fal_runner(Painter, gpu="H100").kill()
    assert os.environ["PATH"] == before
    assert os.listdir(programs.DIRECTORY) == []


def test_compiled_kernels_are_shared_between_runners_with_the_same_gpu_only(fal_runner, fal_data):
    kernel = Path("/tmp/inductor-cache/kernel.so")

    def start():
        with synchronized_inductor_cache("painter/1"):
            warm = kernel.exists()
            kernel.parent.mkdir(exist_ok=True)
            kernel.write_text("compiled")
        return warm

    found = [fal_runner(Painter, gpu=gpu).run(start) for gpu in ("H100", "H100", "A100", "A100")]
    assert found == [False, True, False, True]
    assert [path for path in fal_data.tree() if path.endswith(".zip")] == [
        "inductor-caches/A100/painter/1.zip",
        "inductor-caches/H100/painter/1.zip",
    ]


# --- the script ----------------------------------------------------------------------------------

SHELLS = [shell for shell in ("sh", "dash", "bash") if shutil.which(shell)]
UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture(params=SHELLS)
def smi(request, tmp_path):
    """Runs nvidia-smi of a machine with two H100s: what it prints and its exit code."""
    path = tmp_path / "nvidia-smi"
    path.write_text(script(MACHINE_TYPES["GPU-H100"].gpu, 2, "runner-1"))

    def run(*arguments):
        command = [request.param, str(path), *arguments]
        # No PATH: it shall need no other program.
        done = subprocess.run(
            [shutil.which(command[0]), *command[1:]], capture_output=True, text=True, env={}
        )
        assert done.stderr == ""
        return done.stdout, done.returncode

    return run


def query(smi, fields, *options):
    return smi(f"--query-gpu={fields}", *(options or ("--format=csv,noheader",)))


def test_it_lists_the_gpus(smi):
    printed, code = smi("-L")
    first, second = printed.splitlines()
    assert UUID.sub("U", first) == "GPU 0: NVIDIA H100 80GB HBM3 (UUID: U)"
    assert UUID.sub("U", second) == "GPU 1: NVIDIA H100 80GB HBM3 (UUID: U)"
    assert first[6:] != second[6:]
    assert code == 0


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ("name", "NVIDIA H100 80GB HBM3"),
        ("gpu_name,compute_cap", "NVIDIA H100 80GB HBM3, 9.0"),
        ("memory.total,memory.used,memory.free", "81559 MiB, 0 MiB, 81559 MiB"),
        ("count,driver_version", "2, 570.124.06"),
        ("utilization.gpu,utilization.memory", "0 %, 0 %"),
        ("temperature.gpu,power.draw,power.limit", "30, 70.00 W, 700.00 W"),
        ("pstate,persistence_mode,mig.mode.current", "P0, Enabled, Disabled"),
        ("fan.speed,clocks.sm", "[N/A], [N/A]"),
    ],
)
def test_it_answers_queries(smi, fields, line):
    assert query(smi, fields) == (f"{line}\n{line}\n", 0)


def test_it_numbers_the_gpus(smi):
    printed, _ = query(smi, "index,pci.bus_id,uuid,serial")
    rows = [line.split(", ") for line in printed.splitlines()]
    assert [row[0] for row in rows] == ["0", "1"]
    assert all(len({row[column] for row in rows}) == 2 for column in range(4))


def test_the_header_has_the_units(smi):
    printed, _ = query(smi, "index,gpu_name,memory.total,clocks.sm", "--format=csv")
    assert printed.splitlines()[:2] == [
        "index, name, memory.total [MiB], clocks.current.sm [MHz]",
        "0, NVIDIA H100 80GB HBM3, 81559 MiB, [N/A]",
    ]


def test_values_without_units(smi):
    printed, _ = query(smi, "memory.total, power.draw", "--format=csv,nounits")
    assert printed.splitlines()[:2] == ["memory.total [MiB], power.draw [W]", "81559, 70.00"]


@pytest.mark.parametrize(
    "options",
    [
        ("--query-gpu=index", "--format=csv,noheader", "-i", "1"),
        ("-i", "1", "--query-gpu", "index", "--format", "csv,noheader"),
        ("--id=1", "--format=csv, noheader", "--query-gpu=index"),
        ("--query-gpu=index", "--format=csv,noheader", "-i", "00000000:28:00.0"),
    ],
)
def test_options_in_other_words_and_orders(smi, options):
    assert smi(*options) == ("1\n", 0)


def test_several_gpus_can_be_asked_for(smi):
    assert query(smi, "index", "--format=csv,noheader", "-i", "1,0") == ("1\n0\n", 0)


def test_a_gpu_can_be_asked_for_by_its_uuid(smi):
    uuid = query(smi, "uuid")[0].splitlines()[1]
    assert query(smi, "index", "--format=csv,noheader", "-i", uuid) == ("1\n", 0)


def test_nothing_runs_on_it(smi):
    answer = smi("--query-compute-apps=pid,used_memory", "--format=csv")
    assert answer == ("pid, used_gpu_memory [MiB]\n", 0)


def test_its_version(smi):
    assert smi("--version") == (
        "NVIDIA-SMI version  : 570.124.06\nNVML version        : 570.124\n"
        "DRIVER version      : 570.124.06\nCUDA Version        : 12.8\n",
        0,
    )


HELP = "Please run 'nvidia-smi -h' for help.\n"


@pytest.mark.parametrize(
    ("arguments", "printed", "code"),
    [
        (
            ("--query-gpu=name,cuda_version", "--format=csv"),
            'Field "cuda_version" is not a valid field to query.\n\n',
            2,
        ),
        (("--query-gpu=name",), f'"--format=" switch is missing. {HELP}', 2),
        (("--query-gpu=name", "--format=xml"), f'"--format=" switch is invalid. {HELP}', 2),
        (("--query-gpu",), f"ERROR: Option --query-gpu is missing its value. {HELP}", 2),
        (("-lms100",), f"ERROR: Option -lms100 is not recognized. {HELP}", 2),
        (("topo", "-m"), f"ERROR: Option topo is not recognized. {HELP}", 2),
        (("-L", "-i", "2"), "No devices were found\n", 6),
    ],
)
def test_what_it_does_not_know_it_answers_like_the_real_one(smi, arguments, printed, code):
    assert smi(*arguments) == (printed, code)


def test_its_help_says_that_it_is_pretended(smi):
    assert "of a pretended GPU" in smi("-h")[0]


# These print the time, for which they need a program.


@pytest.fixture
def whole_smi(tmp_path):
    def run(machine, *arguments):
        path = tmp_path / "nvidia-smi"
        path.write_text(script(MACHINE_TYPES[machine].gpu, 2, "runner-1"))
        command = ["sh", str(path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return run


@pytest.mark.parametrize("machine", [name for name, m in MACHINE_TYPES.items() if m.gpu])
def test_the_lines_of_the_table_are_equally_long(whole_smi, machine):
    _, *lines = whole_smi(machine).splitlines()
    assert {len(line) for line in lines} == {91}


def test_the_table_tells_what_libraries_look_for(whole_smi):
    """torch.utils.collect_env and others read versions off it."""
    table = whole_smi("GPU-H100")
    assert re.search(r"Driver Version: (.*?) ", table)[1] == "570.124.06"
    assert re.search(r"CUDA Version: (\d+\.\d+)", table)[1] == "12.8"
    assert table.count("| N/A   30C    P0             70W /  700W |       0MiB /  81559MiB |") == 2


def test_a_name_too_long_for_the_table_loses_its_end(whole_smi):
    assert "|   0  NVIDIA RTX PRO 6000 Bla...     On  |" in whole_smi("GPU-RTXPRO6000")


def test_the_table_of_one_gpu(whole_smi):
    table = whole_smi("GPU-H100", "-i", "1")
    assert "|   1  NVIDIA H100" in table
    assert "|   0  NVIDIA H100" not in table


def test_the_report_of_each_gpu(whole_smi):
    report = whole_smi("GPU-A100", "-q")
    assert report.count("    Product Name                          : NVIDIA A100-SXM4-40GB\n") == 2
    assert "Attached GPUs                             : 2\n" in report


def test_timestamps_have_the_real_ones_form(whole_smi):
    printed = whole_smi("GPU-H100", "--query-gpu=timestamp", "--format=csv,noheader", "-i", "0")
    assert re.fullmatch(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3}\n", printed)
