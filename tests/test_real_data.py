"""The rung with a real /data: one for the whole machine, never anybody else's, gone after it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONTAINER = str(Path(__file__).parent / "container.py")
PYTEST = f"{sys.executable} -m pytest -p no:cacheprovider -p no:randomly -q"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can put itself in a container"
)


def in_container(folder: Path, script: str) -> str:
    """Run a shell's script in a container of its own; what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    ended = subprocess.run(
        [sys.executable, CONTAINER, "--", "sh", "-ec", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ended.returncode == 77:
        pytest.skip(ended.stdout.strip())
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_nothing_of_it_is_left_and_no_test_finds_another_one_s(tmp_path):
    (tmp_path / "test_inner.py").write_text("""
import os

def test_one(fal_data):
    open("/data/file", "w").close()
    assert os.path.isdir("/data")

def test_between():
    assert not os.path.lexists("/data")

def test_two(fal_data):
    assert os.listdir("/data") == [] == fal_data.tree()
""")
    printed = in_container(tmp_path, f"{PYTEST}; ls -a /")
    assert "3 passed" in printed
    assert not {"data", ".fal-emulator-data"} & set(printed.split())


def test_a_data_of_somebody_s_is_not_touched(tmp_path):
    (tmp_path / "test_inner.py").write_text("""
def test_one(fal_data, fal_emulator):
    assert fal_emulator.settings.filesystem_in_force == "rewrite"
    open("/data/file", "w").close()
    assert fal_data.tree() == ["file"]
""")
    script = f"mkdir /data; echo mine > /data/own; {PYTEST} -v; ls /data; cat /data/own"
    printed = in_container(tmp_path, script)
    assert "1 passed" in printed
    assert "fal: not 'directory': there is a /data already, which is not ours to touch" in printed
    assert printed.endswith("own\nmine\n")


def test_what_a_killed_session_left_is_cleared_up(tmp_path):
    (tmp_path / "killed.py").write_text("""
import os, signal

def test_killed(fal_data):
    open("/data/file", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
""")
    (tmp_path / "test_next.py").write_text("""
import os

def test_next(fal_data):
    assert os.listdir("/data") == []
""")
    script = f"{PYTEST} killed.py || true; ls /data; {PYTEST} test_next.py; ls -a /"
    printed = in_container(tmp_path, script)
    assert "file" in printed.split("1 passed")[0].split()
    assert "1 passed" in printed
    assert "data" not in printed.split("1 passed")[1].split()


def test_workers_take_turns(tmp_path):
    (tmp_path / "test_inner.py").write_text("""
import os, time
import pytest

@pytest.mark.parametrize("number", range(20))
def test_alone(fal_data, number):
    assert os.listdir("/data") == []
    with open(f"/data/{number}", "w"):
        time.sleep(0.01)
    assert os.listdir("/data") == [str(number)]
""")
    printed = in_container(tmp_path, f"{PYTEST} -p xdist -n 2; ls -a /")
    assert "20 passed" in printed
    assert not {"data", ".fal-emulator-data"} & set(printed.split())


def test_a_failing_test_s_data_is_kept(tmp_path):
    (tmp_path / "test_inner.py").write_text("""
def test_fails(fal_data):
    fal_data.write("models/a.bin", b"weights")
    assert False
""")
    printed = in_container(
        tmp_path, f"{PYTEST} --basetemp=base || cat base/*/volumes/*/data/models/*"
    )
    assert "/data/models/a.bin  7 bytes" in printed
    assert printed.endswith("weights")


def test_a_second_emulator_of_a_process_is_told_so(tmp_path):
    (tmp_path / "script.py").write_text("""
from emulator import Emulator

with Emulator() as one:
    try:
        with Emulator():
            pass
    except Exception as error:
        print(type(error).__name__, error)
    one.data.write("x", b"x")
    assert open("/data/x").read() == "x"
""")
    printed = in_container(tmp_path, f"{sys.executable} script.py; ls -a /")
    assert "EmulatorError Another emulator of this process has /data" in printed
    assert not {"data", ".fal-emulator-data"} & set(printed.split())


def test_a_test_may_remove_it(tmp_path):
    (tmp_path / "test_inner.py").write_text("""
import os

def test_one(fal_data):
    os.rmdir("/data")

def test_two(fal_data):
    assert os.path.isdir("/data")
""")
    assert "2 passed" in in_container(tmp_path, PYTEST)
