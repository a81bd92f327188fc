"""Threads that run before pytest does, or before it is ready: debuggers, coverage, numpy, programs.

As an ordinary user, who has to be alone to enter a user namespace; root may mount at any time. Each
of them works, or the header says why real mounts do not and what to do.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from test_namespaces import (
    AS_USER,
    EARLY,
    PLAIN,
    THREADS_FIRST,
    USES_DATA,
    USES_NOTHING,
    header,
    outcome,
    refusal,
    run,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

QUIET = (*PLAIN, "test_inner.py")
IN_A_NAMESPACE = "/data and /tmp are real mounts in a private namespace (in a user namespace)"
WAY_OUT = ("--through", "unshare --map-current-user --keep-caps")

HAS_THREADS = """
import sys, threading, pytest

stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
code = pytest.main(sys.argv[1:])
stop.set()
thread.join()
print("the program goes on")
sys.exit(code)
"""
HAS_NUMPY = """
import os, sys, numpy, pytest

before = os.getpid()
code = pytest.main(sys.argv[1:])
print("the program goes on in a child:", os.getppid() == before)
sys.exit(code)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The user's, with a test that needs a mount and one that does not."""
    (tmp_path / "test_inner.py").write_text(USES_NOTHING + USES_DATA)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    tmp_path.chmod(0o777)
    return tmp_path


def run_by(
    how: str, folder: Path, *arguments: str, through: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Pytest as an ordinary user, started as *how* says."""
    options = (*through, "--by", how)
    return run(AS_USER, *options, "--", *arguments, *QUIET, cwd=folder, **environment)


def measured(folder: Path) -> set[str]:
    """The files of which coverage has something."""
    coverage = pytest.importorskip("coverage")
    found: set[str] = set()
    for place in folder.glob("measured*"):
        data = coverage.CoverageData(str(place))
        data.read()
        found |= {Path(file).name for file in data.measured_files() if data.lines(file)}
        data.close()
    return found


# --- what works -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "arguments"),
    [
        ("-m pytest", ()),
        ("-m pytest", ("-o", "faulthandler_timeout=60")),
        ("-X faulthandler -m pytest", ()),
        ("-m pdb -c continue -c quit -m pytest", ()),
    ],
    ids=["nothing", "faulthandler's own thread", "faulthandler", "pdb"],
)
def test_it_works_beside(folder: Path, how: str, arguments: tuple[str, ...]) -> None:
    result = run_by(how, folder, *arguments)
    assert outcome(result) == "2 passed", result.stdout
    assert header(result) == IN_A_NAMESPACE


@pytest.mark.parametrize("numpy", [False, True], ids=["alone", "numpy"])
def test_coverage_measures_all_of_it(folder: Path, numpy: bool) -> None:
    """Also where pytest goes on in a child process, as numpy's threads are in the way."""
    if numpy:
        pytest.importorskip("numpy")
    plugin = ("-p", "numpy") if numpy else ()
    pytest.importorskip("coverage")
    result = run_by(f"-m coverage run --data-file={folder}/measured -m pytest", folder, *plugin)
    assert outcome(result) == "2 passed", result.stdout
    assert "test_inner.py" in measured(folder)
    assert len(list(folder.glob("measured*"))) == 1


def test_coverage_measures_the_programs_that_tests_start(folder: Path) -> None:
    pytest.importorskip("coverage", minversion="7.10")
    (folder / ".coveragerc").write_text("[run]\npatch = subprocess\n")
    (folder / "started.py").write_text("print(1)\n")
    (folder / "test_inner.py").write_text(
        "import subprocess, sys\n"
        "def test_starts(fal_data):\n"
        f"    subprocess.check_call([sys.executable, {str(folder / 'started.py')!r}])\n"
    )
    result = run_by(f"-m coverage run --data-file={folder}/measured -m pytest", folder)
    assert outcome(result) == "1 passed", result.stdout
    assert {"test_inner.py", "started.py"} <= measured(folder)


def test_pytest_cov_measures_it(folder: Path) -> None:
    pytest.importorskip("pytest_cov")
    (folder / ".coveragerc").write_text(f"[run]\ndata_file = {folder}/measured\n")
    result = run_by("-m pytest", folder, "--cov=.", "--cov-report=")
    assert outcome(result) == "2 passed", result.stdout
    assert "test_inner.py" in measured(folder)


def test_a_time_out_in_a_thread_of_its_own(folder: Path) -> None:
    pytest.importorskip("pytest_timeout")
    result = run_by("-m pytest", folder, "--timeout=60", "--timeout-method=thread")
    assert outcome(result) == "2 passed", result.stdout


@pytest.mark.parametrize("place", ["conftest", "sitecustomize"])
def test_numpy_was_imported_before(folder: Path, place: str) -> None:
    pytest.importorskip("numpy")
    (folder / f"{place}.py").write_text("import numpy\n")
    result = run_by("-m pytest", folder, PYTHONPATH=str(folder))
    assert outcome(result) == "2 passed", result.stdout
    assert header(result) == IN_A_NAMESPACE


def test_a_program_that_has_imported_numpy_goes_on_in_a_child(folder: Path) -> None:
    pytest.importorskip("numpy")
    (folder / "program.py").write_text(HAS_NUMPY)
    result = run_by("program.py", folder, OPENBLAS_NUM_THREADS="2")
    assert outcome(result) == "2 passed", result.stdout
    alone = (os.cpu_count() or 1) == 1  # then numpy starts no threads
    assert result.stdout.endswith(f"the program goes on in a child: {not alone}\n")


# --- what comes too early -------------------------------------------------------------------------


def test_a_program_with_threads_is_told_the_way_out(folder: Path) -> None:
    (folder / "program.py").write_text(HAS_THREADS)
    result = run_by("program.py", folder, *EARLY)
    assert outcome(result) == "2 passed", result.stdout  # on the last rung
    assert refusal(result) == THREADS_FIRST
    assert result.stdout.endswith("the program goes on\n")

    result = run_by("program.py", folder, through=WAY_OUT)
    assert outcome(result) == "2 passed", result.stdout
    assert result.stdout.endswith("the program goes on\n")


def test_a_program_with_threads_is_no_matter_to_root(folder: Path) -> None:
    (folder / "program.py").write_text(HAS_THREADS)
    result = run("program.py", *QUIET, cwd=folder)
    assert outcome(result) == "2 passed", result.stdout
    assert result.stdout.endswith("the program goes on\n")


DEBUGPY = "-X frozen_modules=off -m debugpy --listen 127.0.0.1:0 -m pytest"


def test_a_debugger_with_threads_is_told_the_way_out(folder: Path) -> None:
    pytest.importorskip("debugpy")
    result = run_by(DEBUGPY, folder)
    assert outcome(result) == "2 passed", result.stdout  # on the last rung
    assert refusal(result) == THREADS_FIRST

    result = run_by(DEBUGPY, folder, through=WAY_OUT)
    assert outcome(result) == "2 passed", result.stdout


def test_a_debugger_with_threads_is_no_matter_to_root(folder: Path) -> None:
    pytest.importorskip("debugpy")
    result = run(*DEBUGPY.split(), *QUIET, cwd=folder)
    assert outcome(result) == "2 passed", result.stdout


def test_the_way_out_is_in_force_for_workers_too(folder: Path) -> None:
    pytest.importorskip("xdist")
    workers = ("-p", "xdist", "-n", "2")
    result = run_by("-m pytest", folder, *workers, through=WAY_OUT)
    assert outcome(result) == "2 passed", result.stdout
    assert header(result) == (
        "/data and /tmp are real mounts in a private namespace (this user may mount)"
    )


def test_what_runs_after_the_way_out_is_still_this_user(folder: Path) -> None:
    (folder / "test_inner.py").write_text(
        "import os, pytest\n"
        "def test_user(fal_data):\n"
        "    assert os.getuid() == os.getgid() == 65534\n"
    )
    result = run_by("-m pytest", folder, through=WAY_OUT)
    assert outcome(result) == "1 passed", result.stdout
