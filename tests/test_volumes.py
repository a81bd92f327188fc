"""``/data`` and ``/tmp`` as an app finds them: real mounts, whoever opens a file."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import fal
import pytest

from emulator import Emulator
from emulator.clock import Clock
from emulator.errors import EmulatorError
from emulator.runners.runner import Runner
from emulator.storage import mounts
from emulator.storage.mounted import MountedDisk
from emulator.storage.sweeper import Sweeper, remove_tree
from emulator.storage.volume import Volume

MEGABYTE = 1024 * 1024


class Idle(fal.App):  # type: ignore[misc]
    @fal.endpoint("/")  # type: ignore[untyped-decorator]
    def nothing(self) -> dict[str, str]:
        return {}


Boot = Callable[[type], Runner]


@pytest.fixture(params=["/data", "/tmp"])
def volume(request: pytest.FixtureRequest, fal_emulator: Emulator) -> Volume:
    return fal_emulator.data if request.param == "/data" else fal_emulator.tmp


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Emulator]:
    """An emulator that the test starts and stops itself."""
    root = tmp_path / "emulator"
    root.mkdir()
    emulator = Emulator(root=root, visible=[str(tmp_path)])
    yield emulator
    emulator.close()


def mount_points() -> set[str]:
    with open("/proc/thread-self/mountinfo") as file:
        return {line.split()[4] for line in file}


def refused_with(number: int, action: Callable[[], object]) -> bool:
    with pytest.raises(OSError) as caught:
        action()
    return caught.value.errno == number


# --- the mounts ----------------------------------------------------------------------------------


@pytest.mark.fal(filesystem="namespace")
def test_both_are_mount_points(fal_emulator: Emulator) -> None:
    assert {"/data", "/tmp"} <= mount_points()


def test_paths_are_those_of_the_platform(fal_data: Volume, fal_tmp: Volume) -> None:
    assert [str(fal_data.path), str(fal_tmp.path)] == ["/data", "/tmp"]


@pytest.mark.parametrize("turn", range(3))
def test_every_test_has_fresh_ones(volume: Volume, turn: int) -> None:
    assert volume.tree() == []
    assert not (volume.path / "left").exists()
    (volume.path / "left").mkdir()
    (volume.path / "left" / "file").write_text("from another test")


def test_nothing_else_lies_in_data(fal_data: Volume) -> None:
    assert os.listdir("/data") == []


def test_modes_are_those_of_the_platform(fal_data: Volume, fal_tmp: Volume) -> None:
    assert stat.filemode(os.stat("/data").st_mode) == "drwxr-xr-x"
    assert stat.filemode(os.stat("/tmp").st_mode) == "drwxrwxrwt"


def test_programs_find_the_files(volume: Volume) -> None:
    path = volume.write("in/hello.txt", "hello")
    assert subprocess.check_output(["cat", str(path)]) == b"hello"


@pytest.mark.fal(filesystem="namespace")
def test_files_of_programs_are_found(volume: Volume) -> None:
    subprocess.run(["sh", "-c", f"echo from sh > {volume.path}/out.txt"], check=True)
    assert volume.read("out.txt") == b"from sh\n"


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs zip")
def test_zip_packs_them(fal_data: Volume) -> None:
    fal_data.write("a.txt", "a")
    subprocess.run(["zip", "-q", "/data/all.zip", "a.txt"], cwd="/data", check=True)
    with zipfile.ZipFile("/data/all.zip") as archive:
        assert archive.read("a.txt") == b"a"


def test_sqlite_works_on_them(volume: Volume) -> None:
    database = sqlite3.connect(volume.path / "cache.db")
    database.execute("pragma journal_mode=wal")
    with database:
        database.execute("create table t as select 7 as a")
    assert database.execute("select a from t").fetchone() == (7,)
    database.close()
    assert volume.tree() == ["cache.db"]


@pytest.mark.fal(filesystem="namespace")
def test_native_code_opens_them(volume: Volume) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.open(os.fsencode(volume.path / "native"), os.O_CREAT | os.O_WRONLY, 0o644)
    assert libc.write(descriptor, b"abc", 3) == 3
    libc.close(descriptor)
    assert volume.read("native") == b"abc"


def test_numpy_maps_them(volume: Volume) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.memmap(volume.path / "weights", dtype="uint8", mode="w+", shape=(4,))
    array[:] = [1, 2, 3, 4]
    array.flush()
    assert volume.read("weights") == bytes([1, 2, 3, 4])


@pytest.mark.parametrize("action", [os.rename, os.replace, os.link])
@pytest.mark.fal(filesystem="namespace")
def test_nothing_moves_from_one_to_the_other(
    fal_data: Volume, fal_tmp: Volume, action: Callable[[str, str], None]
) -> None:
    fal_tmp.write("x", b"x")
    assert refused_with(errno.EXDEV, lambda: action("/tmp/x", "/data/x"))


def test_shutil_moves_by_copying(fal_data: Volume, fal_tmp: Volume) -> None:
    fal_tmp.write("x", b"x")
    shutil.move("/tmp/x", "/data/x")
    assert (fal_data.tree(), fal_tmp.tree()) == (["x"], [])


def test_hard_links_are_real(volume: Volume) -> None:
    volume.write("one", b"12345")
    os.link(volume.path / "one", volume.path / "two")
    assert os.stat(volume.path / "two").st_nlink == 2
    assert volume.tree() == ["one", "two"]
    assert volume.size == 5


def test_symbolic_links_are_real(volume: Volume) -> None:
    volume.write("blobs/1", b"blob")
    os.symlink(volume.path / "blobs" / "1", volume.path / "absolute")
    os.symlink("blobs/1", volume.path / "relative")
    assert (volume.path / "absolute").read_bytes() == b"blob"
    assert os.path.realpath(volume.path / "relative") == str(volume.path / "blobs" / "1")
    assert volume.tree() == ["absolute", "blobs/1", "relative"]


def test_temporary_files_lie_in_tmp(fal_tmp: Volume) -> None:
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        assert fal_tmp.tree() == [file.name.removeprefix("/tmp/")]


def test_the_working_directory_may_be_tmp(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir("/tmp")
    tmp: Volume = request.getfixturevalue("fal_tmp")
    Path("relative").write_text("x")
    assert (os.getcwd(), tmp.tree()) == ("/tmp", ["relative"])


# --- what the process itself needs ---------------------------------------------------------------


def test_tmp_path_stays_visible(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "before").write_text("1")
    tmp: Volume = request.getfixturevalue("fal_tmp")
    assert (tmp_path / "before").read_text() == "1"
    (tmp_path / "meanwhile").write_text("2")
    assert tmp.tree() == []


def test_the_interpreter_stays_visible(fal_tmp: Volume) -> None:
    subprocess.run([sys.executable, "-c", "import fal.toolkit"], check=True)
    assert fal_tmp.tree() == []


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[str]:
    """A project that is reached by way of a link in ``/tmp``."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "file").write_text("project")
    link = tempfile.mktemp(dir="/tmp")
    os.symlink(tmp_path / "project", link)
    sys.path.append(link)
    yield link
    sys.path.remove(link)
    os.unlink(link)


def test_links_in_tmp_stay_links(linked: str, request: pytest.FixtureRequest) -> None:
    target = os.readlink(linked)
    tmp: Volume = request.getfixturevalue("fal_tmp")
    assert Path(linked, "file").read_text() == "project"
    assert os.readlink(linked) == target
    assert tmp.tree() == []


def test_what_is_visible_may_be_replaced_between_tests(own: Emulator) -> None:
    folder = tempfile.mkdtemp(dir="/tmp")
    sys.path.append(folder)
    try:
        own.start()
        own.stop()
        os.rename(folder, f"{folder}-old")  # keeps the inode's number taken
        os.mkdir(folder)
        Path(folder, "new").touch()
        own.start()
        assert os.listdir(folder) == ["new"]
        own.stop()
    finally:
        sys.path.remove(folder)
        shutil.rmtree(folder)
        shutil.rmtree(f"{folder}-old")


@pytest.mark.fal(filesystem="namespace")
def test_what_a_test_imports_from_its_tmp_is_not_the_process_s(
    fal_runner: Boot, fal_tmp: Volume
) -> None:
    fal_tmp.write("code/module.py", "")
    sys.path.insert(0, "/tmp/code")
    fal_tmp.limit(MEGABYTE)
    assert fal_tmp.tree() == ["code/module.py"]
    assert fal_runner(Idle).run(os.path.exists, "/tmp/code") is False


# --- what a test does with a volume --------------------------------------------------------------


@pytest.mark.parametrize(("given", "stored"), [(b"\xff", b"\xff"), ("ä", b"\xc3\xa4")])
def test_write_makes_folders_and_returns_the_app_s_path(
    volume: Volume, given: bytes | str, stored: bytes
) -> None:
    path = volume.write("a/b/c", given)
    assert path == volume.path / "a" / "b" / "c"
    assert path.read_bytes() == volume.read("a/b/c") == stored


def test_write_replaces(fal_data: Volume) -> None:
    fal_data.write("x", b"long")
    assert fal_data.write("x", b"s").read_bytes() == b"s"


def test_written_files_can_be_old(fal_data: Volume, fal_clock: Clock) -> None:
    fal_clock.freeze(datetime(2030, 1, 10, tzinfo=timezone.utc))
    path = fal_data.write("x", b"", age=timedelta(days=9))
    assert path.stat().st_mtime == datetime(2030, 1, 1, tzinfo=timezone.utc).timestamp()


def test_age_moves_both_times_back(volume: Volume) -> None:
    path = volume.write("x", b"")
    os.utime(path, ns=(5 * 10**18, 6 * 10**17))
    volume.age("x", timedelta(hours=1, microseconds=1))
    moved = 3_600_000_001_000
    status = os.stat(path)
    assert (status.st_atime_ns, status.st_mtime_ns) == (5 * 10**18 - moved, 6 * 10**17 - moved)


@pytest.mark.fal(filesystem="namespace")
def test_programs_see_the_age(fal_data: Volume) -> None:
    path = fal_data.write("x", b"")
    fal_data.write("y", b"", age=timedelta(days=40))
    old = subprocess.check_output(["find", "/data", "-type", "f", "-mtime", "+30"], text=True)
    assert old.split() == ["/data/y"]
    assert path.exists()


def test_age_of_a_missing_file(fal_data: Volume) -> None:
    with pytest.raises(FileNotFoundError):
        fal_data.age("x", timedelta(days=1))


def test_read_of_a_missing_file_says_what_there_is(fal_data: Volume) -> None:
    fal_data.write("models/a", b"")
    fal_data.write("models/b", b"")
    with pytest.raises(FileNotFoundError) as caught:
        fal_data.read("models/c")
    assert str(caught.value) == "/data/models/c is not there. In /data: models/a, models/b"


def test_read_of_a_missing_file_in_an_empty_volume(fal_data: Volume) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fal_data.read("x")
    assert str(caught.value) == "/data/x is not there. In /data: nothing"


@pytest.mark.parametrize("rel", ["/data/x", "../x", "a/../../x", "", "."])
@pytest.mark.parametrize("verb", ["write", "read", "age"])
def test_paths_outside_are_refused(fal_data: Volume, rel: str, verb: str) -> None:
    rest = {"write": [b""], "read": [], "age": [timedelta(1)]}[verb]
    with pytest.raises(ValueError) as caught:
        getattr(fal_data, verb)(rel, *rest)
    assert str(caught.value) == (
        f"{rel!r} is not a path inside /data. Write it relative to the volume, "
        f"for example 'models/weights.bin'."
    )


def test_tree_and_size_leave_folders_out(volume: Volume) -> None:
    (volume.path / "empty").mkdir()
    volume.write("b", b"22")
    volume.write("a/b", b"1")
    assert (volume.tree(), volume.size) == (["a/b", "b"], 3)


def test_tree_of_a_folder_that_may_not_be_listed(fal_data: Volume) -> None:
    fal_data.write("closed/x", b"")
    os.chmod("/data/closed", 0)
    listed = ["closed/x"] if os.geteuid() == 0 else ["closed/"]
    assert fal_data.tree() == listed


def test_an_ordinary_user_has_no_more_rights_than_before(fal_data: Volume) -> None:
    path = fal_data.write("x", b"")
    path.chmod(0)
    assert os.access(path, os.R_OK) is (os.geteuid() == 0)


# --- full disks ----------------------------------------------------------------------------------


@pytest.mark.fal(filesystem="namespace")
def test_a_full_volume_is_the_kernel_s_error(volume: Volume) -> None:
    volume.limit(MEGABYTE)
    (volume.path / "fits").write_bytes(b"x" * (MEGABYTE - 65536))
    assert refused_with(errno.ENOSPC, lambda: (volume.path / "big").write_bytes(b"x" * MEGABYTE))


@pytest.mark.fal(filesystem="namespace")
def test_a_full_volume_is_full_to_the_byte(volume: Volume) -> None:
    volume.limit(MEGABYTE)
    with open(volume.path / "all", "wb", buffering=0) as file:
        assert file.write(b"x" * MEGABYTE) == MEGABYTE
        assert refused_with(errno.ENOSPC, lambda: file.write(b"x"))


@pytest.mark.fal(filesystem="namespace")
def test_folders_and_empty_files_take_no_space(fal_data: Volume) -> None:
    fal_data.limit(4096)
    for number in range(20):
        fal_data.write(f"{number}/empty", b"")
    fal_data.write("page", b"x" * 4096)


@pytest.mark.fal(filesystem="namespace")
def test_programs_find_it_full(fal_data: Volume) -> None:
    fal_data.limit(MEGABYTE)
    command = ["dd", "if=/dev/zero", "of=/data/big", "bs=1M", "count=2"]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, env={"LC_ALL": "C"})
    assert result.returncode != 0
    assert "No space left on device" in result.stderr


@pytest.mark.fal(filesystem="namespace")
def test_deleting_makes_room(fal_data: Volume) -> None:
    fal_data.limit(MEGABYTE)
    fal_data.write("old", b"x" * MEGABYTE)
    os.unlink("/data/old")
    fal_data.write("new", b"x" * MEGABYTE)


@pytest.mark.fal(filesystem="namespace")
def test_disk_usage_shows_the_limit(volume: Volume) -> None:
    volume.limit(MEGABYTE)
    volume.write("half", b"x" * (MEGABYTE // 2))
    assert shutil.disk_usage(volume.path)[:3] == (MEGABYTE, MEGABYTE // 2, MEGABYTE // 2)


@pytest.mark.fal(filesystem="namespace")
def test_a_limit_keeps_what_is_there(volume: Volume) -> None:
    path = volume.write("a/file", b"12345", age=timedelta(days=3))
    os.chmod(path, 0o640)
    os.link(path, volume.path / "hard")
    os.symlink("a/file", volume.path / "soft")
    os.mkfifo(volume.path / "pipe", 0o600)
    before = os.stat(path)
    volume.limit(MEGABYTE)
    after = os.stat(path)
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert volume.tree() == ["a/file", "hard", "pipe", "soft"]
    assert os.path.samefile(path, volume.path / "hard")
    assert stat.S_ISFIFO(os.stat(volume.path / "pipe").st_mode)
    assert (volume.path / "soft").read_bytes() == b"12345"
    assert stat.filemode(os.stat(volume.path).st_mode)[-9:] == (
        "rwxr-xr-x" if volume.path == Path("/data") else "rwxrwxrwt"
    )


@pytest.mark.fal(filesystem="namespace")
def test_a_limit_can_be_changed(volume: Volume) -> None:
    volume.limit(MEGABYTE)
    volume.write("a", b"x" * MEGABYTE)
    volume.limit(2 * MEGABYTE)
    volume.write("b", b"x" * MEGABYTE)
    assert refused_with(errno.ENOSPC, lambda: volume.write("c", b"x"))
    assert volume.tree()[:2] == ["a", "b"]


@pytest.mark.fal(filesystem="namespace")
def test_a_limit_below_the_content_is_refused(fal_data: Volume) -> None:
    fal_data.write("a", b"x" * 5000)
    with pytest.raises(EmulatorError) as caught:
        fal_data.limit(4096)
    assert str(caught.value) == (
        "/data cannot be limited to 4096 bytes: in whole pages it holds 8192 already. "
        "Call limit() before writing, or with a larger number."
    )
    assert fal_data.read("a") == b"x" * 5000


@pytest.mark.fal(data_size=MEGABYTE, tmp_size=MEGABYTE)
def test_limits_of_the_marker(volume: Volume) -> None:
    assert shutil.disk_usage(volume.path).total == MEGABYTE


@pytest.mark.fal(tmp_size=MEGABYTE)
def test_runners_have_the_limit_of_the_marker(fal_runner: Boot) -> None:
    assert fal_runner(Idle).run(shutil.disk_usage, "/tmp").total == MEGABYTE


@pytest.mark.fal(filesystem="namespace")
def test_a_limited_tmp_shows_what_the_process_needs(tmp_path: Path, fal_tmp: Volume) -> None:
    (tmp_path / "x").write_text("x")
    fal_tmp.limit(MEGABYTE)
    assert (tmp_path / "x").read_text() == "x"
    (tmp_path / "big").write_bytes(b"x" * 2 * MEGABYTE)
    assert fal_tmp.tree() == []


@pytest.mark.fal(filesystem="namespace")
def test_runners_find_data_full(fal_data: Volume, fal_runner: Boot) -> None:
    fal_data.write("kept", b"kept")
    runner = fal_runner(Idle)
    fal_data.limit(MEGABYTE)
    assert runner.run(Path("/data/kept").read_bytes) == b"kept"
    big = Path("/data/big")
    assert refused_with(errno.ENOSPC, lambda: runner.run(big.write_bytes, b"x" * 2 * MEGABYTE))


@pytest.mark.fal(filesystem="namespace")
def test_a_runner_limits_data_for_everybody(fal_data: Volume, fal_runner: Boot) -> None:
    fal_data.write("kept", b"kept")
    one, two = fal_runner(Idle), fal_runner(Idle)
    one.run(fal_data.limit, MEGABYTE)
    for usage in (
        shutil.disk_usage("/data"),
        one.run(shutil.disk_usage, "/data"),
        two.run(shutil.disk_usage, "/data"),
    ):
        assert usage.total == MEGABYTE
    assert fal_data.read("kept") == b"kept"


@pytest.mark.fal(filesystem="namespace")
def test_a_runner_s_tmp_has_a_limit_of_its_own(fal_tmp: Volume, fal_runner: Boot) -> None:
    one, two = fal_runner(Idle), fal_runner(Idle)
    one.run(Path("/tmp/kept").write_text, "1")
    one.tmp.limit(MEGABYTE)
    assert one.run(Path("/tmp/kept").read_text) == "1"
    assert one.run(shutil.disk_usage, "/tmp").total == MEGABYTE
    assert two.run(shutil.disk_usage, "/tmp").total > MEGABYTE
    assert shutil.disk_usage("/tmp").total > MEGABYTE


@pytest.mark.fal(filesystem="namespace")
def test_the_test_s_tmp_is_not_limited_from_a_runner(fal_tmp: Volume, fal_runner: Boot) -> None:
    runner = fal_runner(Idle)
    with pytest.raises(EmulatorError) as caught:
        runner.run(fal_tmp.limit, MEGABYTE)
    assert str(caught.value) == (
        "This thread has another /tmp than the test. Call limit() and read_only() of the test's "
        "/tmp from the test, and those of a runner's on runner.tmp."
    )


@pytest.mark.fal(filesystem="namespace")
def test_a_thread_outside_mounts_nothing_on_the_host(request: pytest.FixtureRequest) -> None:
    wanted: list[Volume] = []
    answers: list[BaseException] = []
    go, places = threading.Event(), set[str]()

    def limit() -> None:
        go.wait()
        try:
            wanted[0].limit(MEGABYTE)
        except EmulatorError as error:
            answers.append(error)
        places.update(mount_points())

    thread = threading.Thread(target=limit)
    thread.start()
    wanted.append(request.getfixturevalue("fal_data"))
    go.set()
    thread.join()
    assert str(answers[0]) == (
        "This thread was started before the test's volumes were mounted and does not see /data. "
        "Call limit() and read_only() from the test or on a runner."
    )
    assert not any(place.startswith(str(wanted[0].backing)) for place in places)


# --- read-only -----------------------------------------------------------------------------------


def writes(volume: Volume) -> dict[str, Callable[[], object]]:
    there = volume.path / "there"
    return {
        "write": lambda: there.write_bytes(b"new"),
        "create": lambda: (volume.path / "new").touch(),
        "delete": there.unlink,
        "mkdir": (volume.path / "folder").mkdir,
        "rename": lambda: there.rename(volume.path / "other"),
        "chmod": lambda: there.chmod(0o600),
        "utime": lambda: os.utime(there),
    }


@pytest.mark.parametrize(
    "write", ["write", "create", "delete", "mkdir", "rename", "chmod", "utime"]
)
@pytest.mark.fal(filesystem="namespace")
def test_every_write_is_refused_when_read_only(volume: Volume, write: str) -> None:
    volume.write("there", b"old")
    with volume.read_only():
        assert refused_with(errno.EROFS, writes(volume)[write])
        assert (volume.path / "there").read_bytes() == b"old"
    writes(volume)[write]()


@pytest.mark.fal(filesystem="namespace")
def test_programs_find_it_read_only(volume: Volume) -> None:
    with volume.read_only():
        command = ["touch", f"{volume.path}/x"]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, env={"LC_ALL": "C"})
    assert result.stderr.strip().endswith("Read-only file system")


@pytest.mark.fal(filesystem="namespace")
def test_runners_find_data_read_only(fal_data: Volume, fal_runner: Boot) -> None:
    runner = fal_runner(Idle)
    path = Path("/data/x")
    with fal_data.read_only():
        assert refused_with(errno.EROFS, lambda: runner.run(path.write_text, "x"))
        late = fal_runner(Idle)
        assert refused_with(errno.EROFS, lambda: late.run(path.write_text, "x"))
    runner.run(path.write_text, "x")
    assert late.run(path.read_text) == "x"


@pytest.mark.fal(filesystem="namespace")
def test_a_runner_s_tmp_is_read_only_alone(fal_tmp: Volume, fal_runner: Boot) -> None:
    one, two = fal_runner(Idle), fal_runner(Idle)
    path = Path("/tmp/x")
    with one.tmp.read_only():
        assert refused_with(errno.EROFS, lambda: one.run(path.write_text, "x"))
        two.run(path.write_text, "x")
        path.write_text("x")
    one.run(path.write_text, "x")


@pytest.mark.fal(filesystem="namespace")
def test_read_only_ends_when_the_block_raises(volume: Volume) -> None:
    with pytest.raises(KeyError), volume.read_only():
        raise KeyError
    volume.write("x", b"x")


@pytest.mark.fal(filesystem="namespace")
def test_read_only_nests(volume: Volume) -> None:
    with volume.read_only():
        with volume.read_only():
            pass
        assert refused_with(errno.EROFS, lambda: (volume.path / "x").touch())
    (volume.path / "x").touch()


@pytest.mark.fal(filesystem="namespace")
def test_read_only_keeps_the_limit(volume: Volume) -> None:
    volume.limit(MEGABYTE)
    volume.write("x", b"x")
    with volume.read_only():
        assert (volume.path / "x").read_bytes() == b"x"
    assert shutil.disk_usage(volume.path).total == MEGABYTE


@pytest.mark.fal(filesystem="namespace")
def test_a_read_only_tmp_shows_what_the_process_needs(tmp_path: Path, fal_tmp: Volume) -> None:
    with fal_tmp.read_only():
        (tmp_path / "x").write_text("x")
    assert fal_tmp.tree() == []


@pytest.mark.fal(filesystem="namespace")
def test_a_read_only_volume_gets_no_limit(fal_data: Volume) -> None:
    with fal_data.read_only(), pytest.raises(EmulatorError) as caught:
        fal_data.limit(MEGABYTE)
    assert str(caught.value) == (
        "/data cannot be limited while it is read-only. Call limit() outside of read_only()."
    )


# --- from one test to the next -------------------------------------------------------------------


def test_what_a_test_left_is_gone(own: Emulator) -> None:
    own.start()
    own.data.write("x", b"")
    own.tmp.write("x", b"")
    own.stop()
    own.start()
    assert (own.data.tree(), own.tmp.tree(), os.listdir("/data")) == ([], [], [])
    own.stop()


def test_an_open_file_stays_with_its_test(own: Emulator) -> None:
    own.start()
    with open("/data/open", "w") as file:
        own.stop()
        own.start()
        file.write("late")
        file.flush()
        assert own.data.tree() == []
    own.stop()


@pytest.mark.parametrize("folder", ["/data", "/tmp"])
def test_a_program_stays_in_the_directory_of_its_test(own: Emulator, folder: str) -> None:
    own.start()
    command = ["sh", "-c", "read line; echo late > late"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, cwd=folder) as program:
        own.stop()
        own.start()
        program.communicate(b"\n")
    assert (own.data.tree(), own.tmp.tree()) == ([], [])
    own.stop()


def test_limits_end_with_the_test(own: Emulator) -> None:
    own.start()
    own.data.limit(4096)
    own.tmp.limit(4096)
    own.stop()
    own.start()
    own.data.write("x", b"x" * MEGABYTE)
    own.tmp.write("x", b"x" * MEGABYTE)
    own.stop()


def test_a_test_may_leave_a_block_of_read_only_open(own: Emulator) -> None:
    own.start()
    block = own.data.read_only()
    block.__enter__()
    own.stop()
    own.start()
    own.data.write("x", b"x")
    own.stop()
    block.gen.close()


def changes(volume: Volume) -> dict[str, Callable[[], object]]:
    def make_and_remove() -> None:
        (volume.path / "x").touch()
        (volume.path / "x").unlink()

    def fill_the_place_of_something_visible() -> None:
        for entry in os.scandir(volume.backing):
            Path(entry.path, "x").touch()

    return {
        "nothing": lambda: None,
        "make and remove": make_and_remove,
        "mode": lambda: os.chmod(volume.path, 0o700),
        "attribute": lambda: os.setxattr(volume.path, "user.x", b"1"),
        "times": lambda: os.utime(volume.path, (1, 1)),
        "places": fill_the_place_of_something_visible,
    }


@pytest.mark.parametrize("change", ["mode", "attribute", "places"])
@pytest.mark.parametrize("path", ["/data", "/tmp"])
def test_no_change_is_handed_on(own: Emulator, path: str, change: str) -> None:
    def describe() -> tuple[object, ...]:
        place = volume().backing
        folders = sorted(str(f.relative_to(place)) for f in place.rglob("*"))
        return oct(place.stat().st_mode), os.listxattr(place), folders

    def volume() -> Volume:
        return own.data if path == "/data" else own.tmp

    own.start()
    before = describe()
    try:
        changes(volume())[change]()
    except OSError as error:
        pytest.skip(f"this file system: {error}")
    finally:
        own.stop()
    own.start()
    assert describe() == before
    own.stop()


@pytest.mark.parametrize("path", ["/data", "/tmp"])
@pytest.mark.parametrize(("change", "same"), [("nothing", True), ("make and remove", False)])
def test_only_an_untouched_directory_is_used_again(
    own: Emulator, path: str, change: str, same: bool
) -> None:
    own.start()
    volume = own.data if path == "/data" else own.tmp
    changes(volume)[change]()
    held = os.open(volume.backing, os.O_PATH)  # its inode number is not given away meanwhile
    own.stop()
    own.start()
    volume = own.data if path == "/data" else own.tmp
    assert os.path.samestat(os.fstat(held), os.stat(volume.backing)) is same
    os.close(held)
    own.stop()


def test_places_of_what_is_visible_may_be_removed(own: Emulator) -> None:
    own.start()
    subprocess.run(["find", str(own.tmp.backing), "-depth", "-empty", "-delete"], check=False)
    own.stop()
    own.start()
    assert (own.tmp.tree(), own.data.tree()) == ([], [])
    own.stop()


def test_a_closed_folder_is_removed_too(own: Emulator, tmp_path: Path) -> None:
    own.start()
    own.data.write("a/b/c", b"")
    for folder in ("/data/a/b", "/data/a", "/data"):
        os.chmod(folder, 0)
    own.stop()
    own.close()
    assert not (tmp_path / "emulator" / "volumes").exists()


def test_close_leaves_nothing(own: Emulator, tmp_path: Path) -> None:
    before = mount_points()
    for _ in range(3):
        own.start()
        own.data.write("x", b"")
        own.stop()
    own.close()
    assert not (tmp_path / "emulator" / "volumes").exists()
    assert mount_points() == before


def test_nothing_is_mounted_outside_of_a_test(own: Emulator) -> None:
    before, listing = mount_points(), sorted(os.listdir("/"))
    own.start()
    own.stop()
    assert (mount_points(), sorted(os.listdir("/"))) == (before, listing)


def test_other_things_may_have_to_be_visible_in_the_next_test(
    own: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is visible depends on the working directory, and on what nobody wrote to."""
    for folder in ("/tmp", "/", "/tmp", "/tmp", "/"):
        monkeypatch.chdir(folder)
        own.start()
        assert (own.tmp.tree(), own.data.tree()) == ([], [])
        Path("/tmp/x").touch()
        own.stop()


def test_the_working_directory_is_the_same_afterwards(
    own: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own.start()
    os.chdir("/data")
    own.stop()
    assert os.path.samefile(".", tmp_path)


def test_the_working_directory_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")  # as "python -c" has it
    folder.rmdir()
    disk = MountedDisk(str(tmp_path / "volumes"))
    disk.mount()
    assert {"/data", "/tmp"} <= mount_points()
    disk.unmount(keep=False)
    disk.close()
    with pytest.raises(FileNotFoundError):
        os.getcwd()


def test_emulators_nest(own: Emulator, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    own.start()
    own.data.write("x", b"outer")
    with Emulator(root=tmp_path / "inner", visible=[str(tmp_path)]) as inner:
        assert inner.data.tree() == []
        inner.data.write("x", b"inner")
        assert Path("/data/x").read_bytes() == b"inner"
    assert Path("/data/x").read_bytes() == b"outer"
    own.stop()


def test_only_the_thread_that_started_may_stop(tmp_path: Path) -> None:
    disk = MountedDisk(str(tmp_path))
    disk.mount()
    answers: list[str] = []

    def stop() -> None:
        mounts.enter_private_namespace()
        try:
            disk.unmount(keep=False)
        except EmulatorError as error:
            answers.append(str(error))

    thread = threading.Thread(target=stop)
    thread.start()
    thread.join()
    disk.unmount(keep=False)
    disk.close()
    assert answers == [
        "The emulator was started in another thread, or another emulator was started after it. "
        "Call stop() in the thread that called start(), the newest emulator first."
    ]


# --- what failing tests leave --------------------------------------------------------------------


def test_kept_volumes_lie_on_the_host_s_disk(own: Emulator) -> None:
    own.start()
    own.data.write("a/data", b"d")
    own.tmp.write("tmp", b"t")
    kept = own.stop(keep=True)
    assert kept is not None
    assert Path(kept, "data/a/data").read_bytes() == b"d"
    assert os.listdir(f"{kept}/tmp") == ["tmp"]


def test_limited_volumes_are_kept_too(own: Emulator) -> None:
    own.start()
    own.data.write("before", b"1")
    own.data.limit(MEGABYTE)
    own.data.write("after", b"2")
    own.tmp.limit(MEGABYTE)
    own.tmp.limit(2 * MEGABYTE)
    own.tmp.write("after", b"3")
    kept = own.stop(keep=True)
    assert kept is not None
    assert sorted(os.listdir(f"{kept}/data")) == ["after", "before"]
    assert os.listdir(f"{kept}/tmp") == ["after"]
    assert os.stat(f"{kept}/data").st_dev == os.stat(kept).st_dev


def test_kept_volumes_outlive_the_emulator(own: Emulator) -> None:
    own.start()
    kept = own.stop(keep=True)
    own.start()
    own.data.write("x", b"next")
    own.stop()
    own.close()
    assert kept is not None
    assert sorted(os.listdir(kept)) == ["data", "tmp"]
    assert os.listdir(f"{kept}/data") == []


def test_a_kept_directory_has_the_test_s_name(own: Emulator) -> None:
    own.start("test_x[a/b-../..]")
    kept = own.stop(keep=True)
    assert kept is not None
    assert os.path.basename(kept) == "1-test_x-a-b-..-.."


# --- removing ------------------------------------------------------------------------------------


def test_removing_follows_no_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    inside = tmp_path / "inside"
    (inside / "closed").mkdir(parents=True)
    (inside / "closed" / "link").symlink_to(outside)
    (inside / "closed").chmod(0)
    remove_tree(str(inside))
    assert stat.filemode(outside.stat().st_mode) == "dr-x------"


def test_what_cannot_be_removed_waits(tmp_path: Path) -> None:
    """A mount point is busy in its own namespace. The sweeper survives it and does the rest."""
    busy, other = tmp_path / "busy", tmp_path / "other"
    (busy / "mounted").mkdir(parents=True)
    other.mkdir()

    def sweep() -> None:
        mounts.enter_private_namespace()
        mounts.mount_tmpfs(str(busy / "mounted"), 4096)
        sweeper = Sweeper()
        sweeper.remove(str(busy))
        sweeper.remove(str(other))
        sweeper.close()

    thread = threading.Thread(target=sweep)
    thread.start()
    thread.join()
    assert (busy.exists(), other.exists()) == (True, False)


def test_the_sweeper_does_not_mind_a_clock_that_comes_and_goes(fal_emulator: Emulator) -> None:
    """``shutil.rmtree`` compares ``os.lstat`` with itself from step to step (Python 3.13)."""
    for number in range(20):
        fal_emulator.data.write(f"folder-{number}/a/b/c", b"1")
        fal_emulator.clock.freeze()
        fal_emulator.stop()
        fal_emulator.start()
        fal_emulator.clock.freeze()
        fal_emulator.clock.resume()
