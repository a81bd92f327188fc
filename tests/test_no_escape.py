"""The proof that nothing escapes is itself tried: with tests from which something does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NO_ESCAPE = str(Path(__file__).with_name("no_escape.py"))
AS_USER = str(Path(__file__).with_name("as_user.py"))
PLAIN = ("-q", "-p", "no:randomly")

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make such a machine")


def run(folder: Path, tests: str, *arguments: str) -> tuple[int, str, str]:
    """The exit code, pytest's output and the report; skips where such a machine cannot be made."""
    (folder / "test_inner.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]")
    done = subprocess.run(
        [sys.executable, NO_ESCAPE, "--", *PLAIN, *arguments, "test_inner.py"],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    output, _, report = done.stdout.partition("\n== what escaped: ")
    return done.returncode, output, report


HARMLESS = """
import os
import socket

import fal.toolkit
import pytest

def test_stays(fal_emulator, fal_cdn, tmp_path):
    (tmp_path / "mine").write_text("x")
    with open("/data/precious", "w") as file:
        file.write("another one")
    with pytest.raises(OSError):
        socket.create_connection(("1.1.1.1", 443))
    assert fal.toolkit.File.from_bytes(b"x", file_name="x").url

def test_talks_on_this_machine():
    places = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    for family, address in places if os.path.exists("/proc/net/if_inet6") else places[:1]:
        with socket.socket(family) as server:
            server.bind((address, 0))
            server.listen()
            socket.create_connection(server.getsockname()[:2]).close()

def test_fails():
    assert not "pytest's exit code is passed on"
"""


@root_only
def test_nothing_escapes_from_harmless_tests(tmp_path: Path) -> None:
    code, output, report = run(tmp_path, HARMLESS)
    assert "1 failed, 2 passed" in output, output + report
    lines = report.splitlines()
    # The SDK's, whose import reads it; see the page.
    at_import = "read by the SDK as it was imported, before any test: home/elsewhere/fal.toml"
    assert re.fullmatch(r"\d\d canaries in /data, /canary-home \(the home\) and /tmp", lines[0])
    assert re.fullmatch(rf"{re.escape(at_import)}, \d+ events", lines[1])
    assert [re.sub(r" \d+ files", " N files", line) for line in lines[2:]] == [
        "0 opened",
        "0 changed",
        "0 packets",
        "0 words in pytest's output, its report and N files",
        "0 processes that outlived pytest",
    ], report
    assert code == 1


HOSTILE = """
import os, pathlib, socket, subprocess, sys
import pytest

HOME = pathlib.Path.home()

def test_reads():
    assert open("/data/precious").read()

def test_has_a_program_read():
    subprocess.check_call(["cat", f"{HOME}/.netrc"], stdout=subprocess.DEVNULL)

def test_reads_the_configuration():
    os.close(os.open(f"{HOME}/.fal/config.toml", os.O_RDONLY))

def test_lists():
    assert os.listdir("/data")

def test_changes():
    with open("/data/models/weights.safetensors", "a") as file:
        file.write("x")
    (HOME / "made").mkdir()
    (HOME / ".fal" / "auth0_token").unlink()
    (HOME / ".aws" / "config").chmod(0o600)

def test_sends():
    places = [(socket.AF_INET, "1.1.1.1"), (socket.AF_INET6, "2606:4700::1111")]
    for family, host in places if os.path.exists("/proc/net/if_inet6") else places[:1]:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", (host, 9))
    with socket.socket() as sock:
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.connect(("192.0.2.1", 443))

def test_looks_up():
    with pytest.raises(OSError):
        socket.getaddrinfo("evil.example", 443)

def test_tells():
    print(os.environ["FAL_KEY"])
    assert False

def test_keeps(tmp_path):
    (tmp_path / "kept").write_text(os.environ["HF_TOKEN"])

def test_leaves_a_program():
    subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""


@root_only
def test_what_escapes_is_named_and_where_it_went(tmp_path: Path) -> None:
    code, output, report = run(tmp_path, HOSTILE)
    assert "1 failed, 9 passed" in output, output + report
    found = [re.sub(r", \d+ (events|times)$|(?<=process )\d+", "", x) for x in report.splitlines()]
    for line in (
        "- data/precious by test_inner.py::test_reads (pytest itself)",
        "- home/.fal/config.toml by test_inner.py::test_reads_the_configuration (pytest itself)",
        "- data by test_inner.py::test_lists (pytest itself)",
        "- data/models/weights.safetensors by test_inner.py::test_changes (pytest itself)",
        "4 changed",
        "- data/models/weights.safetensors was changed",
        "- home/.aws/config was changed",
        "- home/.fal/auth0_token was removed",
        "- home/made was made",
        "- UDP 1.1.1.1:9 while test_inner.py::test_sends was running",
        "- TCP 192.0.2.1:443 while test_inner.py::test_sends was running",
        "- UDP 203.0.113.53:53 (looking up evil.example) while test_inner.py::test_looks_up was "
        "running",
        "- FAL_KEY is in pytest's output",
        "- FAL_KEY is in report.xml",
        "- HF_TOKEN is in basetemp/test_keeps0/kept",
        "1 processes that outlived pytest",
        "- sleep 60 (process )",
    ):
        assert line in found, output + report
    if os.path.exists("/proc/net/if_inet6"):
        assert "- UDP [2606:4700::1111]:9 while test_inner.py::test_sends was running" in found
    by_a_program = r"- home/.netrc by test_inner.py::test_has_a_program_read \((cat .*|.* ended)\)"
    assert any(re.fullmatch(by_a_program, line) for line in found)
    assert not Path(f"/proc/{report.rpartition('process ')[2].rstrip(')')}").exists()
    assert code == 3


@root_only
def test_each_of_two_workers_is_known_by_its_test(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    tests = """
import pytest

@pytest.mark.parametrize("name", ["data/precious", "data/models/weights.safetensors"])
def test_reads(name):
    open(f"/{name}").close()
"""
    code, output, report = run(tmp_path, tests, "-p", "xdist", "-n", "2")
    assert "2 passed" in output, output + report
    for name in ("data/precious", "data/models/weights.safetensors"):
        assert f"- {name} by test_inner.py::test_reads[{name}] (" in report
    assert code == 3


@root_only
def test_who_is_not_root_is_told_that_it_cannot_run(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    inner = f"""
import subprocess, sys

def test_needs_root():
    command = [sys.executable, {NO_ESCAPE!r}]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 77
    assert result.stdout == "no_escape: cannot run: only root can make such a machine\\n"
"""
    (tmp_path / "test_inner.py").write_text(inner)
    done = subprocess.run(
        [sys.executable, AS_USER, "--", *PLAIN, "test_inner.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "1 passed" in done.stdout, done.stdout
