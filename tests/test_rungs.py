"""The ladder: what each rung can do, found out on each, and how one is chosen and demanded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "rungs"))
from probes import PROBES  # noqa: E402
from rungs_page import EXPECTED, GUARDED, PAGE, RUNGS, page  # noqa: E402

linux_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can put itself in a container"
)


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="session", params=[*RUNGS, "guarded"])
def outcomes(request):
    """What came of the probes on one rung; "guarded" is the last one beside a host's ``/data``."""
    rung = request.param.replace("guarded", "rewrite")
    command = [sys.executable, str(HERE / "rungs" / "probes.py"), rung]
    has_data = os.path.exists("/data")
    needs_data = {"directory": None, "rewrite": False, "guarded": True}
    if needs_data.get(request.param, has_data) is not has_data:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only root can put itself in a container")
        there = ["--data"] if request.param == "guarded" else []
        command[:0] = [sys.executable, str(HERE / "container.py"), *there, "--"]
    ended = run(command)
    if ended.returncode == 77:
        pytest.skip(ended.stdout.strip())
    assert ended.returncode == 0, ended.stderr
    return request.param, json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PROBES)
def test_a_rung_can_do(outcomes, name):
    rung, came_of_it = outcomes
    if rung == "guarded":
        assert came_of_it[name] == GUARDED.get(name, EXPECTED[name][-1])
    else:
        assert came_of_it[name] == EXPECTED[name][RUNGS.index(rung)]


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run python tests/rungs/rungs_page.py"


# --- which one ------------------------------------------------------------------------------------

TEST = """
    import pytest

    def test_rung(fal_emulator):
        print("rung", fal_emulator.settings.filesystem_in_force)

    @pytest.mark.fal(filesystem="namespace")
    def test_mounts(fal_data):
        fal_data.limit(1 << 20)

    @pytest.mark.fal(data_size=1 << 20)
    def test_size(fal_data):
        pass
"""


def in_container(pytester, *arguments, user=False, data=False, test=TEST):
    pytester.makepyfile(test)
    like = [*(["--user"] if user else []), *(["--data"] if data else [])]
    launcher = [sys.executable, str(HERE / "container.py"), *like, "--"]
    pytester.path.chmod(0o777)
    command = [*launcher, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    ended = pytester.run(*command)
    if ended.ret == 77:
        pytest.skip(ended.outlines[-1])
    return ended


@linux_root
def test_root_without_the_right_to_mount_gets_a_real_data(pytester):
    result = in_container(pytester, "-rs")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(
        [
            "fal: /data is a real directory, another one for each test, and Python's calls are "
            "rewritten for /tmp (rung 'directory')",
            "fal: not 'namespace': the kernel refused *EPERM*",
        ]
    )
    for need in ("filesystem='namespace'", "real mounts for data_size=1048576"):
        result.stdout.fnmatch_lines([f"*needs {need}, and this run is on the rung 'directory'"])


@linux_root
def test_an_ordinary_user_without_namespaces_gets_rewriting(pytester):
    result = in_container(pytester, "-s", user=True)
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(
        [
            "fal: Python's calls are rewritten for /data and /tmp (rung 'rewrite')",
            "fal: not 'namespace': the kernel refused *EPERM*",
            "fal: not 'directory': / cannot be written to by this user",
        ]
    )
    result.stdout.fnmatch_lines(["*rung rewrite*"])


@linux_root
@pytest.mark.parametrize(
    ("user", "rung", "why"),
    [
        (False, "namespace", "*ERROR: fal_filesystem = namespace: *refused*EPERM*"),
        (
            True,
            "directory",
            "*ERROR: fal_filesystem = directory: *'directory' is asked for and "
            "cannot be had: / cannot be written to by this user.",
        ),
    ],
)
def test_a_rung_that_is_demanded_and_cannot_be_had_ends_the_run(pytester, user, rung, why):
    result = in_container(pytester, f"--fal-filesystem={rung}", user=user)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([why])


@linux_root
@pytest.mark.parametrize("user", [False, True])
def test_a_machine_s_own_data_is_led_around(pytester, user):
    test = """
    import subprocess
    from pathlib import Path
    import pytest
    from emulator.errors import HostPathError
    from emulator.storage import places

    def start(*line):
        subprocess.run(line, check=True)

    @pytest.mark.parametrize("isolation", ["thread", "process"])
    def test_it(fal_runner, fal_data, isolation, request):
        import fal

        class App(fal.App):
            @fal.endpoint("/")
            def run(self) -> dict:
                return {}

        runner = fal_runner(App, isolation=isolation)
        runner.run(Path("/data/a").write_text, "x")
        runner.run(start, "cp", "/data/a", "/data/b")
        with pytest.raises(HostPathError, match=r'write @pytest.mark.fal.trusted_programs=."awk"'):
            runner.run(start, "awk", "BEGIN {}")
        assert fal_data.tree() == ["a", "b"]

    @pytest.mark.fal(trusted_programs=["awk", "sh"])
    def test_trusted(fal_data):
        start("awk", "BEGIN {}")
        start("sh", "-c", "true")
        subprocess.run("true", shell=True, check=True)

    def test_theirs_is_there(fal_data):
        assert fal_data.tree() == []
        with places.outside():
            assert Path("/data/theirs").read_text() == "not ours"
    """
    result = in_container(pytester, user=user, data=True, test=test)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["fal: Python's calls are rewritten for /data and /tmp*"])


def test_a_rung_is_demanded_by_ini_and_the_option_wins(pytester):
    pytester.makepyfile(TEST)
    pytester.makeini("[pytest]\nfal_filesystem = rewrite")
    result = pytester.runpytest_subprocess("-s")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(
        ["fal: Python's calls are rewritten for /data and /tmp (rung 'rewrite'; as demanded)"]
    )
    result = pytester.runpytest_subprocess("-s", "--fal-filesystem=auto")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*rung namespace*"])


def test_a_rung_that_is_none_is_refused(pytester):
    pytester.makepyfile(TEST)
    pytester.makeini("[pytest]\nfal_filesystem = mounts")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: fal_filesystem = mounts: there is no such rung. Write one of auto, namespace, "
            "directory, rewrite."
        ]
    )
