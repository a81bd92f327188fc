"""File times follow the clock: on real files, whoever wrote them."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from emulator import file_times
from emulator.clock import Clock
from emulator.file_times import FileTimes

DAY = 86_400
NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


def entry_of(path: Path) -> os.DirEntry[str]:
    with os.scandir(path.parent) as entries:
        return next(entry for entry in entries if entry.name == path.name)


@pytest.fixture(params=["fine stamps", "coarse stamps"])
def clock(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Clock]:
    """A clock as on kernels from Linux 6.13 on, and as on older ones."""
    clock = Clock(FileTimes(fine_stamps=request.param == "fine stamps"))
    clock.volumes = lambda: [str(tmp_path)]
    yield clock
    clock.reset()


def test_differences_are_exact_however_short_the_time_between(clock: Clock, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for _ in range(200):
        clock.freeze()
        start = clock.time()
        first.write_text("1")
        clock.advance(days=3)
        second.write_text("1")
        clock.advance(1)
        assert [first.stat().st_mtime, second.stat().st_mtime] == [start, start + 3 * DAY]
        first.write_text("2")
        third = start + 3 * DAY + 1
        assert [first.stat().st_mtime, second.stat().st_mtime] == [third, start + 3 * DAY]
        clock.resume()


def test_another_program_s_files_count(clock: Clock, tmp_path: Path) -> None:
    for turn in range(20):
        clock.freeze(NOON + timedelta(days=turn))
        before, after = tmp_path / "before", tmp_path / "after"
        subprocess.run(["/bin/sh", "-c", f"echo x > {before}"], check=True)
        clock.advance(days=3)
        subprocess.run(["/bin/sh", "-c", f"echo x > {after}"], check=True)
        assert before.stat().st_mtime == NOON.timestamp() + turn * DAY
        assert after.stat().st_mtime == NOON.timestamp() + (turn + 3) * DAY


def test_directories_and_symbolic_links_too(clock: Clock, tmp_path: Path) -> None:
    clock.freeze(NOON)
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    clock.advance(days=1)
    assert os.stat(tmp_path / "directory").st_mtime == NOON.timestamp()
    assert os.lstat(tmp_path / "link").st_mtime == NOON.timestamp()
    (tmp_path / "directory" / "file").touch()
    assert os.stat(tmp_path / "directory").st_mtime == NOON.timestamp() + DAY


def test_a_file_from_before_keeps_its_time(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.touch()
    os.utime(path, (1_000_000, 1_000_000))
    clock.move_to(NOON)
    assert path.stat().st_mtime == 1_000_000


def test_a_file_written_just_before_the_clock_was_first_moved(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.touch()
    written = path.stat().st_mtime_ns
    clock.move_to(NOON)
    assert path.stat().st_mtime_ns == written


def test_a_running_clock_stamps_between_its_readings(clock: Clock, tmp_path: Path) -> None:
    clock.move_to(NOON)
    (tmp_path / "file").touch()
    written = (tmp_path / "file").stat().st_mtime
    assert NOON.timestamp() <= written <= clock.time() + 1e-6


@pytest.mark.parametrize(
    "read",
    [
        lambda path: os.stat(path),
        lambda path: os.lstat(path),
        lambda path: path.stat(),
        lambda path: path.lstat(),
        lambda path: os.stat(os.fspath(path).encode()),
        lambda path: entry_of(path).stat(),
    ],
    ids=["os.stat", "os.lstat", "Path.stat", "Path.lstat", "bytes", "os.scandir"],
)
def test_every_way_to_read_tells_the_same(clock: Clock, tmp_path: Path, read: object) -> None:
    clock.freeze(NOON)
    path = tmp_path / "file"
    path.touch()
    status = read(path)  # type: ignore[operator]
    assert type(status) is os.stat_result
    seconds = int(NOON.timestamp())
    assert (status.st_atime, status.st_mtime, status.st_ctime) == (seconds,) * 3
    assert (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns) == (seconds * 10**9,) * 3
    assert tuple(status)[7:10] == (seconds,) * 3
    assert (status.st_size, status.st_ino) == (0, os.stat(path).st_ino)


def test_fstat_and_getmtime(clock: Clock, tmp_path: Path) -> None:
    clock.freeze(NOON)
    with open(tmp_path / "file", "w") as file:
        assert os.fstat(file.fileno()).st_mtime == NOON.timestamp()
        assert os.stat(file.fileno()).st_mtime == NOON.timestamp()
    assert os.path.getmtime(tmp_path / "file") == NOON.timestamp()
    assert os.path.getctime(tmp_path / "file") == NOON.timestamp()


def test_a_zip_file_holds_the_clock_s_time(clock: Clock, tmp_path: Path) -> None:
    clock.freeze(NOON)
    (tmp_path / "file").touch()
    info = zipfile.ZipInfo.from_file(tmp_path / "file")
    assert info.date_time[:3] == time.localtime(NOON.timestamp())[:3]


@pytest.mark.parametrize("seconds", [0, 1.25, 1_900_000_000.5, 4_000_000_000, -5])
def test_a_time_that_was_set_comes_back(clock: Clock, tmp_path: Path, seconds: float) -> None:
    clock.freeze(NOON)
    path = tmp_path / "file"
    path.touch()
    os.utime(path, (seconds, seconds))
    assert (path.stat().st_atime, path.stat().st_mtime) == (seconds, seconds)
    clock.advance(days=3)
    assert (path.stat().st_atime, path.stat().st_mtime) == (seconds, seconds)


def test_a_time_jumped_over_comes_back_in_nanoseconds(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    clock.freeze(NOON)
    jumped_over = time.time_ns() - 10**9 - 1
    os.utime(path, ns=(jumped_over, jumped_over))
    assert path.stat().st_mtime_ns == jumped_over


def test_a_real_time_of_the_engaged_period_is_taken_as_virtual(
    clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.touch()
    clock.freeze(NOON)
    moment = file_times.real_now()
    os.utime(path, ns=(moment, moment))
    assert path.stat().st_mtime_ns == moment
    clock.advance(days=1)
    assert path.stat().st_mtime_ns == moment
    path.write_text("written again")
    assert path.stat().st_mtime == NOON.timestamp() + DAY


def test_touch_means_now(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.utime(path, (5, 5))
    clock.freeze(NOON)
    path.touch()
    assert path.stat().st_mtime == NOON.timestamp()
    clock.advance(1)
    os.utime(path)
    assert path.stat().st_mtime == NOON.timestamp() + 1


def test_wrong_arguments_get_python_s_own_error(clock: Clock, tmp_path: Path) -> None:
    clock.freeze(NOON)
    with pytest.raises(TypeError, match="'times' must be either a tuple of two ints or None"):
        os.utime(tmp_path, 5)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        os.stat(tmp_path / "nothing")


def test_a_copy_with_its_times_keeps_them(clock: Clock, tmp_path: Path) -> None:
    clock.freeze(NOON)
    (tmp_path / "original").touch()
    clock.advance(days=3)
    shutil.copy2(tmp_path / "original", tmp_path / "copy")
    subprocess.run(["cp", "-p", tmp_path / "copy", tmp_path / "second"], check=True)
    for name in ("original", "copy", "second"):
        assert (tmp_path / name).stat().st_mtime == NOON.timestamp(), name


def test_capabilities_of_os_hold(clock: Clock, tmp_path: Path) -> None:
    clock.freeze(NOON)
    (tmp_path / "link").symlink_to("nowhere")
    os.utime(tmp_path / "link", (7, 7), follow_symlinks=False)
    shutil.copystat(tmp_path / "link", tmp_path / "link", follow_symlinks=False)
    assert (tmp_path / "link").lstat().st_mtime == 7
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert os.stat("link", dir_fd=descriptor, follow_symlinks=False).st_mtime == 7
        assert [entry.name for entry in os.scandir(descriptor)] == ["link"]
    finally:
        os.close(descriptor)


def test_walking_and_removing_trees_work(clock: Clock, tmp_path: Path) -> None:
    clock.freeze(NOON)
    (tmp_path / "tree" / "branch").mkdir(parents=True)
    (tmp_path / "tree" / "branch" / "leaf").touch()
    shutil.copytree(tmp_path / "tree", tmp_path / "other")
    assert [path.name for path in sorted((tmp_path / "other").rglob("*"))] == ["branch", "leaf"]
    assert [names for _, _, names in os.walk(tmp_path / "tree")] == [[], ["leaf"]]
    shutil.rmtree(tmp_path / "tree")
    assert os.listdir(tmp_path) == ["other"]


def test_scandir_gives_entries(clock: Clock, tmp_path: Path) -> None:
    clock.freeze(NOON)
    (tmp_path / "file").touch()
    with os.scandir(tmp_path) as entries:
        (entry,) = entries
    assert isinstance(entry, os.DirEntry)
    assert (entry.name, os.fspath(entry)) == ("file", str(tmp_path / "file"))
    assert entry.is_file()
    assert not entry.is_dir()
    assert repr(entry) == "<DirEntry 'file'>"
    assert entry.inode() == entry.stat(follow_symlinks=False).st_ino


def test_back_in_real_time_files_tell_the_kernel_s(clock: Clock, tmp_path: Path) -> None:
    clock.freeze(NOON)
    (tmp_path / "file").touch()
    clock.resume()
    assert abs((tmp_path / "file").stat().st_mtime - time.time()) < DAY


def test_a_clock_moved_again_remembers(clock: Clock, tmp_path: Path) -> None:
    for _ in range(100):  # the second may be stamped with the tick of the resuming, or a later one
        clock.freeze(NOON)
        (tmp_path / "first").touch()
        clock.resume()
        (tmp_path / "second").touch()
        between = (tmp_path / "second").stat().st_mtime_ns
        clock.freeze(NOON + timedelta(days=1))
        assert (tmp_path / "first").stat().st_mtime == NOON.timestamp()
        assert (tmp_path / "second").stat().st_mtime_ns == between


def test_after_a_reset_nothing_is_remembered(clock: Clock, tmp_path: Path) -> None:
    clock.freeze(NOON)
    (tmp_path / "file").touch()
    clock.reset()
    written = (tmp_path / "file").stat().st_mtime_ns
    clock.freeze(NOON)
    assert (tmp_path / "file").stat().st_mtime_ns == written


def test_a_large_volume_is_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_times, "ENTRIES_TO_PUSH_BACK", 3)
    clock = Clock(FileTimes(fine_stamps=False))
    clock.volumes = lambda: [str(tmp_path)]
    try:
        clock.freeze(NOON)
        paths = [tmp_path / str(number) for number in range(5)]
        for path in paths:
            path.touch()
        before = tmp_path.stat().st_mtime_ns
        clock.advance(days=1)
        (tmp_path / "new").touch()
        assert {path.stat().st_mtime for path in paths} == {NOON.timestamp()}
        assert (tmp_path / "new").stat().st_mtime == NOON.timestamp() + DAY
        assert before == NOON.timestamp() * 10**9
    finally:
        clock.reset()


def test_a_volume_that_is_not_there_yet(clock: Clock, tmp_path: Path) -> None:
    clock.volumes = lambda: [str(tmp_path / "later")]
    clock.freeze(NOON)
    (tmp_path / "later").mkdir()
    assert (tmp_path / "later").stat().st_mtime == NOON.timestamp()


def test_python_s_own_imports_see_real_times(clock: Clock, tmp_path: Path) -> None:
    clock.freeze(NOON)
    module = tmp_path / "module.py"
    module.touch()
    loader = importlib.machinery.SourceFileLoader("module", str(module))
    assert loader.path_stats(str(module))["mtime"] < NOON.timestamp()


def test_the_marker_of_used_weights_is_touched_once_a_day(clock: Clock, tmp_path: Path) -> None:
    download_utils = pytest.importorskip("fal.toolkit.utils.download_utils")
    clock.freeze(NOON)
    marker = tmp_path / ".fal_used"
    touched = []
    for _ in range(5):
        download_utils._mark_used_dir(tmp_path)
        touched.append((marker.stat().st_mtime - NOON.timestamp()) / 3600)
        clock.advance(hours=10)
    assert touched == [0, 0, 0, 30, 30]
