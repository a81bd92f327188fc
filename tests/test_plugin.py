"""The plugin as pytest's users meet it: header, markers, failure report, being idle, parallel."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

FAILING = """
    import fal, subprocess
    from fal.toolkit import File, download_file

    class App(fal.App):
        @fal.endpoint("/")
        def run(self) -> dict:
            print("the app says hello")
            return {"url": File.from_bytes(b"12345", file_name="a.bin").url}

    def test_it(fal_runner, fal_data, fal_clock, fal_faults, fal_origin):
        fal_clock.freeze()
        fal_faults.status(503, times=1, path="/storage/upload/initiate")
        fal_faults.refuse(host="never.example.com")
        fal_data.write("models/w.bin", b"weights")
        fal_runner(App).post("/", json={})
        raise AssertionError("look below")
"""


_failure = []


@pytest.fixture
def failure(request):
    """The run of a failing test: one for all that look at it."""
    if not _failure:
        pytester = request.getfixturevalue("pytester")
        pytester.makepyfile(FAILING)
        _failure.append(
            pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
        )
    return _failure[0]


def test_the_header_says_how_data_and_tmp_are_emulated(pytester):
    result = pytester.runpytest_subprocess()
    result.stdout.re_match_lines(
        [r"fal: /data and /tmp are real mounts in a private namespace \((as root|in a user .*)\)"]
    )


def test_a_failing_test_shows_its_exchanges(failure):
    failure.stdout.re_match_lines(
        [
            r"-+ fal: 3 exchanges -+",
            r"   #  time      status  received      sent  client  request",
            r"   1  \S+     503         0         0  urllib  POST https://rest.alpha.fal.ai"
            r"/storage/upload/initiate\?storage_type=fal-cdn-v3 \[runner-1\]",
            r" +! fault: status 503",
            r"   2  \S+     200 .* POST https://rest.alpha.fal.ai/storage/upload/initiate.*",
            r"   3  \S+     200         5         0  urllib  PUT https://v3b.fal.media/files/b/"
            r".*&signature=\*\*\* \[runner-1\]",
        ]
    )


def test_a_failing_test_shows_events_clock_and_faults_that_never_struck(failure):
    failure.stdout.re_match_lines(
        [
            r"-+ fal: events -+",
            r"\S+ runner: runner-1 SETUP",
            r"-+ fal: clock -+",
            r"virtual time \S+ \S+ UTC, stopped",
            r"-+ fal: faults that never struck -+",
            r".*refused.*never.example.com.*",
        ]
    )


def test_the_volumes_of_a_failing_test_are_kept_and_named(failure):
    text = failure.stdout.str()
    place = re.search(r"fal: volumes, kept in (\S+)", text)
    assert place is not None
    failure.stdout.fnmatch_lines(["/data/models/w.bin  7 bytes", "/tmp is empty"])
    with open(f"{place[1]}/data/models/w.bin", "rb") as file:
        assert file.read() == b"weights"


def test_what_the_app_printed_is_in_the_captured_output(failure):
    failure.stdout.fnmatch_lines(["the app says hello"])
    assert "Python packages installed" not in failure.stdout.str()


def test_a_passing_test_shows_nothing_and_keeps_nothing(pytester):
    pytester.makepyfile(
        """
        def test_it(fal_data):
            fal_data.write("x", b"x")
            print("place", fal_data.backing)
        """
    )
    result = pytester.runpytest_subprocess("-s")
    result.assert_outcomes(passed=1)
    text = result.stdout.str()
    assert "exchanges" not in text
    place = re.search(r"place (\S+)", text)
    assert subprocess.run(["test", "-e", place[1]]).returncode == 1


def test_a_failure_in_the_setup_of_a_later_fixture_is_reported_too(pytester):
    pytester.makepyfile(
        """
        import pytest, httpx

        @pytest.fixture
        def broken(fal_emulator):
            httpx.get("https://nowhere.example.com/x")

        def test_it(broken): pass
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fal: 1 exchange*", "*refused: nothing answers this URL*"])


# --- markers -------------------------------------------------------------------------------------


@pytest.mark.fal(nickname="outer", region="eu")
class TestMarkers:
    def test_a_marker_of_the_class_counts(self, fal_emulator):
        assert fal_emulator.settings.nickname == "outer"

    @pytest.mark.fal(nickname="inner")
    def test_the_closest_marker_wins_and_the_others_stay(self, fal_emulator):
        assert fal_emulator.settings.nickname == "inner"
        assert fal_emulator.settings.region == "eu"


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("colour='red'", "@pytest.mark.fal: colour: Extra inputs are not permitted. The settings"),
        ("cdn_host='x'", "@pytest.mark.fal: cdn_host: Input should be 'v3.fal.media' or 'v3b"),
        ("1", "@pytest.mark.fal takes settings by name, for example"),
    ],
)
def test_a_marker_that_makes_no_sense_says_what_to_write(pytester, marker, message):
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.fal({marker})
        def test_it(fal_emulator): pass
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    assert message in result.stdout.str()


def test_the_markers_are_registered(pytester):
    pytester.makeini("[pytest]\naddopts = --strict-markers\n")
    result = pytester.runpytest_subprocess("--markers")
    result.stdout.re_match_lines([r"@pytest.mark.fal\(\*\*settings\): .*"])
    result.stdout.re_match_lines([r"@pytest.mark.fal_cuda\(.*"])


# --- idle ----------------------------------------------------------------------------------------


def test_the_idle_plugin_imports_nothing_heavy(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_it():
            heavy = {"fal", "moto", "boto3", "botocore", "httpx", "respx", "freezegun", "trustme",
                     "pydantic", "fastapi", "cryptography", "PIL", "httpcore", "anyio", "torch"}
            assert heavy & set(sys.modules) == set()
        """
    )
    result = pytester.runpytest_subprocess(*IDLE)
    result.assert_outcomes(passed=1)


IDLE = ("-p", "no:randomly", "-p", "no:anyio", "-p", "no:hypothesispytest", "-p", "no:respx")


def test_a_test_without_our_fixtures_starts_nothing(pytester):
    pytester.makepyfile(
        """
        import threading, sys
        def test_it():
            assert [t.name for t in threading.enumerate()] == ["MainThread"]
            assert "emulator.account" not in sys.modules
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


# --- parallel ------------------------------------------------------------------------------------


def test_xdist_workers_share_one_authority_and_nothing_else(pytester):
    pytester.makepyfile(
        """
        import httpx, os, pathlib, pytest, requests, ssl

        @pytest.mark.parametrize("n", range(8))
        def test_it(n, fal_data, fal_origin):
            fal_origin.serve("https://example.com/a", b"a")
            assert requests.get("https://example.com/a").content == b"a"
            assert fal_data.tree() == []
            fal_data.write("x", b"x")
            (authority,) = ssl.create_default_context().get_ca_certs()
            with open(pathlib.Path(__file__).parent / "serials", "a") as file:
                file.write(f"{authority['serialNumber']} {os.getpid()}\\n")
        """
    )
    result = pytester.runpytest_subprocess("-p", "xdist", "-n", "2", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=8)
    lines = (pytester.path / "serials").read_text().split()
    assert len(set(lines[::2])) == 1
    assert len(set(lines[1::2])) == 2


def test_two_hundred_starts_leave_nothing(fal_emulator):
    """What each start takes, each stop gives back: descriptors, threads, mounts."""
    from pytest_fal.leftovers import Snapshot

    fal_emulator.stop()
    before = Snapshot.take()
    for _ in range(200):
        fal_emulator.start()
        fal_emulator.stop()
    assert before.leaks_since() == []
    fal_emulator.start()


def test_the_library_works_without_pytest(tmp_path):
    program = """
from emulator import Emulator
with Emulator() as fal:
    from fal.toolkit import File, download_file
    fal.origin.serve("https://example.com/a.bin", b"abc")
    path = download_file("https://example.com/a.bin", target_dir="in")
    file = File.from_path(path)
    assert fal.cdn.get(file.url) == b"abc"
    fal.clock.advance(days=1)
    print(path, fal.data.tree())
import os, threading
assert not os.path.exists("/data/in")
assert [t.name for t in threading.enumerate()] == ["MainThread"]
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "/data/in/a.bin ['in/a.bin']" in done.stdout


def test_an_error_of_ours_is_shown_at_the_users_line(pytester):
    pytester.makepyfile(
        """
        def test_it(fal_data):
            fal_data.read("missing")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    text = result.stdout.str()
    assert '>       fal_data.read("missing")' in text
    assert "E       FileNotFoundError: /data/missing is not there. In /data: nothing" in text
    assert "def read(" not in text


def test_a_look_up_that_is_refused_names_what_is_served(pytester):
    pytester.makepyfile(
        """
        import socket
        def test_it(fal_origin):
            fal_origin.serve("https://exmaple.com/x", b"")
            socket.gethostbyname("example.com")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(
        [
            "* refused: looking up example.com: nothing in this test answers for it "
            "(fal_origin serves exmaple.com)"
        ]
    )


def test_a_root_that_was_given_is_left_empty_and_an_own_one_is_removed(tmp_path):
    program = """
import os, sys
from emulator import Emulator
for root in (sys.argv[1], None):
    emulator = Emulator(root=root)
    for _ in range(2):
        emulator.start()
        emulator.data.write("x", b"x")
        emulator.stop()
    place = emulator._root
    emulator.close()
    emulator.close()
    print(os.listdir(place) if os.path.exists(place) else "gone")
"""
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "gone"], done.stderr
