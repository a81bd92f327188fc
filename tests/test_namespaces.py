"""Who may mount and who sees it: hosts with a ``/data``, ordinary users, kernels that refuse.

Most runs here are of a pytest inside a machine made for it: other mounts, another user, other
limits, all of them in namespaces of its own. Making one needs root.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

AS_USER = str(Path(__file__).with_name("as_user.py"))
REPOSITORY = str(Path(__file__).parent.parent)
PLAIN = ("-p", "no:randomly", "-p", "no:cacheprovider")
EARLY = ("-p", "pytest_fal.namespace")

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make such a machine")

USES_NOTHING = """
def test_uses_nothing_of_ours():
    pass
"""
USES_DATA = """
def test_uses_data(fal_data):
    fal_data.write("x", b"x")
"""


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**clean, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_as_user(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    if cwd != Path(REPOSITORY):
        cwd.chmod(0o755)  # pytest's own are closed to others
    return run(AS_USER, "--", *arguments, cwd=cwd, **environment)


def outcome(result: subprocess.CompletedProcess[str]) -> str:
    """The counts of the last line; everything where there is none."""
    found = re.search(r"=+ (.*) in [0-9.]+s", result.stdout)
    return found[1] if found else result.stdout


def header(result: subprocess.CompletedProcess[str]) -> str:
    return next(line for line in result.stdout.splitlines() if line.startswith("fal: "))[5:]


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """Why the rung is not that of real mounts, as the header has it."""
    mark = "fal: not 'namespace': "
    return next((line[len(mark) :] for line in result.stdout.splitlines() if mark in line), "")


# --- tests that use none of our fixtures ---------------------------------------------------------

BEFORE_AND_AFTER = """
import os, subprocess

def view():
    with open("/proc/thread-self/mountinfo") as file:
        mounts = sorted(file)
    root = os.stat("/")
    program = subprocess.check_output(["readlink", "/proc/self/ns/mnt"])
    return mounts, sorted(os.listdir("/")), (root.st_dev, root.st_ino, root.st_mtime_ns), program

seen = []

def test_1_before():
    seen.append(view())

def test_2_in_use(fal_data, fal_tmp):
    assert view() != seen[0]

def test_3_after():
    assert view() == seen[0]

def test_4_in_use_again(fal_data):
    fal_data.write("x", b"x")

def test_5_after():
    assert view() == seen[0]
"""


@root_only
def test_other_tests_see_the_host_before_and_after(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(BEFORE_AND_AFTER)
    pytester.runpytest_subprocess(*PLAIN).assert_outcomes(passed=5)


# --- tests that lie in /tmp ----------------------------------------------------------------------

IN_TMP = """
import os
import helper

def test_in_tmp(fal_tmp):
    import late_helper
    assert os.getcwd() == "/tmp"
    assert fal_tmp.tree() == []
    with open("mine", "w"):
        pass
    assert fal_tmp.tree() == ["mine"]
"""

EMPTY_TMP = """
import os, subprocess, sys
from pathlib import Path
from emulator.storage import mounts

tmp, repository, *command = sys.argv[1:]
mounts.enter_private_namespace()
keep = [p for p in {sys.prefix, sys.base_prefix, repository} if p.startswith("/tmp/")]
Path("/tmp/test_in_tmp.py").exists() and sys.exit("/tmp has such a test")
mounts.mount_tmpfs(tmp, 1 << 24)
for path in keep:
    os.makedirs(tmp + path.removeprefix("/tmp"), exist_ok=True)
    mounts.bind(path, tmp + path.removeprefix("/tmp"), recursive=True)
mounts.move(tmp, "/tmp")
Path("/tmp/test_in_tmp.py").write_text(os.environ["TEST"])
Path("/tmp/helper.py").write_text("")
Path("/tmp/late_helper.py").write_text("")
Path("/tmp/pytest.ini").write_text("[pytest]")
os.chdir("/tmp")
code = subprocess.call(command)
print("left:", sorted(f for f in os.listdir("/tmp") if f == "mine"))
sys.exit(code)
"""


@root_only
def test_tests_may_lie_in_tmp(tmp_path: Path) -> None:
    """On a machine with another /tmp, so that this one's stays clean."""
    place = tmp_path / "tmp"
    place.mkdir()
    pytest_there = (sys.executable, "-m", "pytest", *PLAIN, "/tmp/test_in_tmp.py")
    environment = {"TEST": IN_TMP, "PYTHONDONTWRITEBYTECODE": "", "TMPDIR": "/tmp"}
    result = run(
        "-c", EMPTY_TMP, str(place), REPOSITORY, *pytest_there, cwd=tmp_path, **environment
    )
    assert outcome(result) == "1 passed"
    assert result.stdout.endswith("left: []\n")


# --- what is kept --------------------------------------------------------------------------------

ONE_FAILS = """
import pytest

def test_passes(fal_data):
    fal_data.write("passed", b"")

def test_fails(fal_data, fal_tmp):
    fal_tmp.write("scratch", b"t")
    fal_data.write("before", b"1")
    fal_data.limit(1 << 20)
    fal_data.write("after", b"2")
    assert False
"""


def test_a_failing_test_s_volumes_are_kept_where_the_report_says(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(ONE_FAILS)
    result = pytester.runpytest_subprocess(*PLAIN)
    result.assert_outcomes(passed=1, failed=1)
    found = re.search(r"volumes, kept in (\S+)", result.stdout.str())
    assert found is not None
    kept = Path(found[1])
    files = {str(f.relative_to(kept)): f.read_bytes() for f in kept.rglob("*/[bas]*[er]*")}
    assert {k: v for k, v in files.items() if not k.startswith("data.before")} == {
        "data/before": b"1",
        "data/after": b"2",
        "tmp/scratch": b"t",
    }
    assert [folder.name for folder in kept.parent.iterdir()] == [kept.name]


# --- hosts that have a /data ---------------------------------------------------------------------

HOST_WITH_DATA = """
import os, subprocess, sys
from emulator.storage import mounts

kind, scratch, elsewhere, *command = sys.argv[1:]
directory = os.getcwd()
mounts.enter_private_namespace()
mounts.build_root_with("data", scratch)
if kind == "link":
    os.rmdir("/data")
    os.symlink(elsewhere, "/data")
with open("/data/precious", "w") as file:
    file.write("mine")
os.utime("/data/precious", (1, 2))
os.chmod("/data", 0o777)
os.utime("/data", (3, 4))
os.chdir(directory)
code = subprocess.call(command)
with open("/data/precious") as file:
    print("host:", os.listdir("/data"), file.read(), os.path.islink("/data"))
print("times:", os.stat("/data/precious").st_mtime, os.stat("/data").st_mtime)
sys.exit(code)
"""

BESIDE_HOST_DATA = """
import os, subprocess

WAITS_AND_WRITES = "read line; echo late > /data/late; echo done"
left = []

def start():
    pipe = subprocess.PIPE
    return subprocess.Popen(["sh", "-c", WAITS_AND_WRITES], stdin=pipe, stdout=pipe, stderr=pipe)

def test_1_sees_the_host_s():
    assert os.listdir("/data") == ["precious"]

def test_2_sees_its_own(fal_data):
    assert os.listdir("/data") == fal_data.tree() == []
    with open("/data/precious", "w") as file:
        file.write("another")
    left.append(start())

def test_3_what_is_left_does_not_reach_the_host_s():
    assert left[0].communicate(b"\\n")[0] == b"done\\n"
    assert os.listdir("/data") == ["precious"]

def test_4_sees_nothing_of_it(fal_data):
    assert os.listdir("/data") == []
"""


@root_only
@pytest.mark.parametrize("user", ["root", "an ordinary user"])
@pytest.mark.parametrize("kind", ["directory", "link"])
def test_a_host_s_data_is_hidden_and_untouched(tmp_path: Path, kind: str, user: str) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "test_inner.py").write_text(BESIDE_HOST_DATA)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    command = [sys.executable, *((AS_USER, "--") if user != "root" else ("-m", "pytest"))]
    host = ["-c", HOST_WITH_DATA, kind, str(tmp_path / "scratch"), str(tmp_path / "elsewhere")]
    for folder in (tmp_path, tmp_path / "elsewhere"):
        folder.chmod(0o755)
    result = run(*host, *command, *PLAIN, *EARLY, "test_inner.py", cwd=tmp_path)
    assert outcome(result) == "4 passed", result.stdout
    assert result.stdout.splitlines()[-2:] == [
        f"host: ['precious'] mine {kind == 'link'}",
        "times: 2.0 4.0",
    ]


# --- ordinary users ------------------------------------------------------------------------------


@root_only
def test_the_volumes_work_for_an_ordinary_user() -> None:
    """numpy has threads by then: pytest-randomly imports it, and so do tests."""
    result = run_as_user("tests/test_volumes.py", *EARLY, cwd=Path(REPOSITORY))
    assert re.fullmatch(r"\d{3} passed(, \d skipped)?", outcome(result)), result.stdout
    assert header(result) == (
        "/data and /tmp are real mounts in a private namespace (in a user namespace)"
    )


@root_only
def test_the_volumes_work_for_an_ordinary_user_s_workers() -> None:
    pytest.importorskip("xdist")
    some = "mount_points or fresh or full or read_only or own_limit or runner"
    arguments = ("tests/test_volumes.py", "-n", "2", "-k", some, *EARLY)
    result = run_as_user(*arguments, cwd=Path(REPOSITORY))
    assert re.fullmatch(r"\d\d passed", outcome(result)), result.stdout


LIKE_BEFORE = """
import os, pathlib, subprocess
import pytest

def test_may_read_no_more_than_before(tmp_path):
    secret = tmp_path / "secret"
    secret.touch(mode=0)
    with pytest.raises(PermissionError):
        secret.read_bytes()

def test_is_the_same_user():
    assert os.getuid() == os.geteuid() == os.getgid() == 65534

def test_the_root_is_not_ours(fal_data):
    pass

def test_the_root_is_not_ours_afterwards():
    assert not os.access("/", os.W_OK)
    assert not os.path.exists("/data")

def test_programs_get_no_capabilities():
    status = subprocess.check_output(["cat", "/proc/self/status"], text=True)
    assert "CapEff:\\t0000000000000000" in status
"""


@root_only
@pytest.mark.skipif(os.path.lexists("/data"), reason="this machine has a /data")
def test_an_ordinary_user_s_other_tests_are_as_before(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(LIKE_BEFORE)
    result = run_as_user(*PLAIN, "test_inner.py", cwd=tmp_path)
    assert outcome(result) == "5 passed"


SWITCHED_OFF = (
    "/data and /tmp cannot be mounted: fal_user_namespace is off and this is not root. Set "
    "fal_user_namespace = true in the pytest configuration, or run the tests as root."
)


@root_only
def test_the_user_namespace_can_be_switched_off(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(USES_NOTHING + USES_DATA)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfal_user_namespace = false\n")
    result = run_as_user(*PLAIN, "test_inner.py", cwd=tmp_path)
    assert outcome(result) == "2 passed"
    assert refusal(result) == SWITCHED_OFF


THREADS_FIRST = (
    "pytest-fal must enter a user namespace before any thread starts, and threads are running "
    "already. Where a plugin starts them, add -p pytest_fal.namespace to addopts, which loads "
    "before other plugins. Where a debugger, sitecustomize, a .pth file or a program that calls "
    "pytest.main() does, start all of it in such a namespace: unshare --map-current-user "
    "--keep-caps python -m pytest; or run the tests as root."
)
STARTS_A_THREAD = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


@root_only
def test_threads_of_a_plugin_come_too_early(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(USES_NOTHING + USES_DATA)
    (tmp_path / "threading_plugin.py").write_text(STARTS_A_THREAD)
    plugin = ("-p", "threading_plugin")
    environment = {"PYTHONPATH": str(tmp_path)}
    result = run_as_user(*PLAIN, *plugin, "test_inner.py", cwd=tmp_path, **environment)
    assert outcome(result) == "2 passed"
    assert refusal(result) == THREADS_FIRST

    result = run_as_user(*PLAIN, *EARLY, *plugin, "test_inner.py", cwd=tmp_path, **environment)
    assert outcome(result) == "2 passed"
    assert refusal(result) == ""


IMPORTS_NUMPY = """
import os

import numpy

before = os.getpid()
assert len(os.listdir("/proc/self/task")) > 1
"""
SAYS_WHERE_IT_RUNS = """
import os
import numpy_plugin

def test_runs_in_a_child_of_the_process_that_was_started(fal_data):
    assert os.getppid() == numpy_plugin.before
    assert fal_data.tree() == []

def test_fails():
    assert False
"""


@root_only
@pytest.mark.skipif((os.cpu_count() or 1) == 1, reason="numpy starts no threads on one processor")
@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n", "2")], ids=["one", "two workers"])
def test_native_threads_are_left_behind(tmp_path: Path, workers: tuple[str, ...]) -> None:
    pytest.importorskip("numpy")
    (tmp_path / "test_inner.py").write_text(SAYS_WHERE_IT_RUNS if not workers else USES_DATA)
    (tmp_path / "numpy_plugin.py").write_text(IMPORTS_NUMPY)
    arguments = (*PLAIN, "-p", "numpy_plugin", *workers, "test_inner.py")
    result = run_as_user(*arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert outcome(result) == ("1 passed" if workers else "1 failed, 1 passed"), result.stdout
    assert result.returncode == (0 if workers else 1)


@root_only
def test_threads_of_sitecustomize_come_too_early(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(USES_NOTHING + USES_DATA)
    (tmp_path / "sitecustomize.py").write_text(STARTS_A_THREAD)
    arguments = (*PLAIN, *EARLY, "test_inner.py")
    result = run_as_user(*arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert outcome(result) == "2 passed"
    assert refusal(result) == THREADS_FIRST


# --- kernels that refuse -------------------------------------------------------------------------

LIMITED = """
import ctypes, os, sys

libc = ctypes.CDLL(None)
limit, *command = sys.argv[1:]
if libc.unshare(0x10000000):
    sys.exit("no user namespace")
for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
with open(f"/proc/sys/user/{limit}", "w") as file:
    file.write("0")
if limit == "max_user_namespaces":
    libc.prctl(24, 21, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SYS_ADMIN: not from the next exec on
os.execv(sys.executable, [sys.executable, *command])
"""


@root_only
@pytest.mark.parametrize(
    ("limit", "what", "workers"),
    [
        ("max_mnt_namespaces", "a mount namespace, unshare(CLONE_NEWNS)", []),
        ("max_user_namespaces", "a user namespace, unshare(CLONE_NEWUSER)", []),
        ("max_user_namespaces", "a user namespace, unshare(CLONE_NEWUSER)", ["-n", "1"]),
    ],
)
def test_the_refusal_says_what_the_kernel_answered(
    tmp_path: Path, limit: str, what: str, workers: list[str]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    (tmp_path / "test_inner.py").write_text(USES_NOTHING + USES_DATA)
    demand = "--fal-filesystem=namespace"
    command = ("-m", "pytest", *PLAIN, *workers, demand, "test_inner.py")
    result = run("-c", LIMITED, limit, *command, cwd=tmp_path)
    if "no user namespace" in result.stdout:
        pytest.skip("this machine has no user namespaces")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    message = (
        f"the kernel refused {what} (ENOSPC: No space left on device), without which /data and "
        f"/tmp cannot be real mounts. There are as many as it allows: sysctl "
        f"user.max_user_namespaces user.max_mnt_namespaces shows how many that is, and "
        f"sysctl -w user.max_mnt_namespaces=10000, for example, allows more."
    )
    assert f"ERROR: fal_filesystem = namespace: {message}\n" in result.stdout


NO_RIGHTS = """
import ctypes, os, sys

ctypes.CDLL(None).prctl(24, 21, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SYS_ADMIN
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@root_only
def test_root_without_the_capability_gets_a_user_namespace(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(USES_NOTHING + USES_DATA)
    command = ("-m", "pytest", *PLAIN, "test_inner.py")
    result = run("-c", NO_RIGHTS, *command, cwd=tmp_path)
    assert outcome(result) == "2 passed"
    assert header(result).endswith("(in a user namespace)")


# --- the helper ----------------------------------------------------------------------------------


@root_only
def test_as_user_passes_the_exit_code_on(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text("def test_x(): assert False")
    assert run_as_user(*PLAIN, "test_inner.py", cwd=tmp_path).returncode == 1


@root_only
def test_as_user_says_why_it_cannot_run(tmp_path: Path) -> None:
    inner = f"""
import subprocess, sys

def test_needs_root():
    command = [sys.executable, {AS_USER!r}]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 77
    assert result.stdout == (
        "as_user: cannot run as user 65534: only root can become another user\\n"
    )
"""
    (tmp_path / "test_inner.py").write_text(inner)
    result = run_as_user(*PLAIN, "test_inner.py", cwd=tmp_path)
    assert outcome(result) == "1 passed"
