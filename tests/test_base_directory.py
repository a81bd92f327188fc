"""pytest's base directory is not in ``/tmp``, where apps would find it, and delete it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from emulator import Emulator
from emulator.storage import mounts, room
from emulator.storage.disk import in_thread
from emulator.storage.room import is_in_tmp, room_outside_tmp

PLAIN = ("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:cov")
ROOT = Path(__file__).parent.parent
SAID = "\nfal: in /tmp, where apps see it, and one that clears /tmp deletes it"
VARIABLES = ("TMPDIR", "TEMP", "TMP")

needs_elsewhere = pytest.mark.skipif(
    not os.access("/var/tmp", os.W_OK) or any(map(is_in_tmp, (sys.prefix, str(ROOT), *sys.path))),
    reason="this checkout, or its virtual environment, is in /tmp itself; or there is no /var/tmp",
)


def run(folder: Path, text: str, *arguments: str, **environment: str) -> str:
    """The output of a pytest that is told nothing else of its base directory, for one module."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(text)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    for name in VARIABLES:
        clean.pop(name, None)
    return subprocess.run(
        [sys.executable, "-B", "-m", "pytest", *PLAIN, *arguments],
        cwd=folder,
        env={**clean, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ).stdout


@pytest.fixture
def project():
    """A directory that is not in ``/tmp``, wherever pytest's own is."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        yield Path(place)


# An app that writes, looks through /tmp and clears it, as apps do before it is full.
CLEARS_TMP = """
import os, shutil
from pathlib import Path
import fal
import pytest

class Clears(fal.App):
    @fal.endpoint("/")
    def clear(self) -> list[str]:
        Path("/tmp/frames").mkdir()
        Path("/tmp/frames/1.png").write_bytes(b"1")
        found = sorted(str(path) for path in Path("/tmp").rglob("*"))
        for path in Path("/tmp").iterdir():
            shutil.rmtree(path)
        return found

@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_clears(fal_runner, fal_data, tmp_path, isolation):
    (tmp_path / "mine").write_text("x")
    fal_data.write("weights", b"x")
    for _ in range(2):
        found = fal_runner(Clears, isolation=isolation).post("/").json()
        assert found == ["/tmp/frames", "/tmp/frames/1.png"]
    assert (tmp_path / "mine").exists()
    assert fal_data.tree() == ["weights"]

def test_the_test_clears_its_own(fal_tmp, tmp_path):
    assert os.listdir("/tmp") == []
    shutil.rmtree("/tmp", ignore_errors=True)
    assert tmp_path.exists()

def test_after_it(fal_cdn):
    from fal.toolkit import File

    assert File.from_bytes(b"x").as_bytes() == b"x"
"""


@needs_elsewhere
def test_an_app_that_clears_tmp_finds_its_own_files_there_and_no_others(project: Path) -> None:
    output = run(project, CLEARS_TMP)
    assert "== 4 passed" in output, output
    assert SAID not in output


SHOWS = """
import os

def test_shows(tmp_path_factory):
    print("base:", tmp_path_factory.getbasetemp(), os.environ.get("PYTEST_DEBUG_TEMPROOT"))
"""


def base_of(output: str) -> tuple[str, str]:
    found = re.search(r"base: (\S+) (\S+)$", output, re.MULTILINE)
    assert found, output
    return found[1], found[2]


@needs_elsewhere
def test_the_base_directory_is_elsewhere_and_the_header_says_nothing(project: Path) -> None:
    output = run(project, SHOWS, "-s")
    place, _ = base_of(output)
    assert place.startswith(os.path.realpath("/var/tmp/"))
    assert SAID not in output


@needs_elsewhere
@pytest.mark.parametrize("dist", [("-n", "1"), ("-n", "1", "--dist", "loadfile")])
def test_that_of_workers_too(project: Path, dist: tuple[str, ...]) -> None:
    pytest.importorskip("xdist")
    text = f"{SHOWS}    assert str(tmp_path_factory.getbasetemp()).startswith('/var/tmp/')\n"
    assert "== 1 passed" in (output := run(project, text, "-p", "xdist", *dist)), output


@needs_elsewhere
@pytest.mark.parametrize("how", ["--basetemp", "PYTEST_DEBUG_TEMPROOT", *VARIABLES])
def test_what_the_user_says_holds(project: Path, how: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        place = os.path.realpath(place)
        if how == "--basetemp":
            output = run(project, SHOWS, "-s", f"--basetemp={place}/base")
        else:
            output = run(project, SHOWS, "-s", **{how: place})
        base, variable = base_of(output)
    assert base.startswith(f"{place}/")
    assert variable == (place if how == "PYTEST_DEBUG_TEMPROOT" else "None")
    assert f"{SAID}: pytest's base directory (--basetemp moves it)\n" in output


@needs_elsewhere
def test_the_header_says_that_the_project_is_in_tmp() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        output = run(Path(place), SHOWS)
        both = run(Path(place), SHOWS, "--basetemp=base")
    assert f"{SAID}: the project\n" in output
    assert f"{SAID}: the project, pytest's base directory (--basetemp moves it)\n" in both


DELETES_IT = """
import shutil
from pathlib import Path

def test_deletes(fal_runner, fal_cdn, fal_git, tmp_path_factory):
    from fal.toolkit import File

    File.from_bytes(b"x")
    shutil.rmtree(tmp_path_factory.getbasetemp(), ignore_errors=True)
    assert fail == "never", "the reason"

def test_after_it(fal_data):
    pass

def test_of_something_else():
    pass
"""


@needs_elsewhere
@pytest.mark.parametrize("fails", [True, False])
def test_an_app_that_deletes_it_all_the_same_gets_a_sentence(project: Path, fails: bool) -> None:
    text = DELETES_IT.replace("fail ==", "'always' ==" if fails else "'never' ==")
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        output = run(project, text, f"--basetemp={place}/base")
    assert "INTERNALERROR" not in output
    counts = "1 failed, 1 passed, 1 error" if fails else "2 passed, 1 error"
    assert f"== {counts} in" in output, output
    assert ("AssertionError: the reason" in output) == fails
    assert re.search(
        r"^E +emulator.errors.EmulatorError: \S+ is gone, without which no further test can run: "
        r"something has deleted it, most likely an app that clears /tmp. What this process has in "
        r"/tmp is shown there to apps. Let it have its directory elsewhere: pytest "
        r"--basetemp=<a directory outside of /tmp>.$",
        output,
        re.MULTILINE,
    ), output


COVERS_VOLUMES = """
import errno, os
import pytest

@pytest.mark.parametrize("times", range(2))
@pytest.mark.parametrize("which", ["data", "tmp", "both"])
def test_covers(fal_data, fal_tmp, fal_runner, which, times):
    assert not os.listdir("/data") and not fal_tmp.tree()
    for volume in {"data": [fal_data], "tmp": [fal_tmp], "both": [fal_data, fal_tmp]}[which]:
        for size in (1 << 16, 1 << 20):
            volume.limit(size)
            with pytest.raises(OSError) as full:
                volume.write("large", bytes(1 << 21))
            assert full.value.errno == errno.ENOSPC
        with volume.read_only(), pytest.raises(OSError) as refused:
            open(f"{volume.path}/new", "w")
        assert refused.value.errno == errno.EROFS

def test_after_it(fal_data, fal_tmp):
    assert not os.listdir("/data") and not fal_tmp.tree()
    fal_data.write("x", b"x")
"""


@needs_elsewhere
@pytest.mark.parametrize("where", ["/tmp", "/var/tmp"])
def test_covers_of_volumes_go_with_their_test_wherever_it_is(project: Path, where: str) -> None:
    with tempfile.TemporaryDirectory(dir=where) as place:
        output = run(project, COVERS_VOLUMES, f"--basetemp={place}/base")
    assert "== 7 passed in" in output, output


# --- which place --------------------------------------------------------------------------------


@pytest.fixture
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    return monkeypatch


@needs_elsewhere
def test_there_is_room_outside_of_tmp(nothing_said: pytest.MonkeyPatch) -> None:
    assert room_outside_tmp() == "/var/tmp"
    nothing_said.setattr(tempfile, "tempdir", "/tmp")  # as it is once somebody has asked
    assert room_outside_tmp() == "/var/tmp"


@needs_elsewhere
@pytest.mark.parametrize("name", VARIABLES)
def test_not_where_a_variable_says_another(nothing_said: pytest.MonkeyPatch, name: str) -> None:
    nothing_said.setenv(name, "/tmp")
    assert room_outside_tmp() is None


@needs_elsewhere
def test_not_where_the_program_has_said_another(nothing_said: pytest.MonkeyPatch) -> None:
    nothing_said.setattr(tempfile, "tempdir", "/mnt")
    assert room_outside_tmp() is None


def links_into_tmp(place: Path) -> None:
    place.symlink_to("/tmp")


def is_a_file(place: Path) -> None:
    place.write_text("")


def is_read_only(place: Path) -> None:
    place.mkdir()
    mounts.bind(str(place), str(place), read_only=True)


def starts_no_programs(place: Path) -> None:
    place.mkdir()
    mounts._mount("pytest-fal", str(place), "tmpfs", 8)


@pytest.mark.parametrize(
    "make",
    [lambda place: None, links_into_tmp, is_a_file, is_read_only, starts_no_programs],
    ids=["missing", "in /tmp", "a file", "read-only", "noexec"],
)
def test_not_where_the_place_is_no_good(
    nothing_said: pytest.MonkeyPatch, project: Path, make: Callable[[Path], None]
) -> None:
    place = project / "elsewhere"
    nothing_said.setattr(room, "_ELSEWHERE", str(place))

    def look() -> None:
        mounts.enter_private_namespace()
        make(place)
        assert room_outside_tmp() is None

    if mounts.refusal():
        pytest.skip(f"no mounts here: {mounts.refusal()}")
    in_thread(look)


@needs_elsewhere
def test_an_emulator_of_its_own_has_its_directory_there(nothing_said: pytest.MonkeyPatch) -> None:
    with Emulator() as emulator:
        directory = emulator.directory
        assert directory is not None
        assert directory.startswith("/var/tmp/fal-emulator-")
    assert not os.path.exists("/".join(directory.split("/")[:4]))
