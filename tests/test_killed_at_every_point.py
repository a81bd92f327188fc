"""A runner is killed at each of 200 points of a download, an upload and a cache's sync.

Whatever the point: no file that was complete is lost, none seems complete and is not, and the next
runner finds what the gallery of bugs says the SDK leaves behind. Each runner looks at what the one
before it left, and is then killed itself, a little later.
"""

import io
import os
import pathlib
import signal
import sys
import zipfile

import fal
import pytest
from fal.toolkit import File, download_file, download_model_weights
from fal.toolkit.compilation import sync_inductor_cache

from emulator.runners.runner import RunnerError

POINTS = 200
PARTS = 4
SIZE = 1_000_000
WEIGHTS = bytes(range(256)) * (SIZE // 256)

each_part = pytest.mark.parametrize("part", range(PARTS))


def points(part):
    return range(part, POINTS, PARTS)


class Plain(fal.App):
    @fal.endpoint("/")
    def answer(self) -> dict:
        return {}


@pytest.fixture
def boot(fal_emulator):
    return lambda: fal_emulator.runner(Plain, isolation="process")


def killed(runner, function, *arguments):
    with pytest.raises(RunnerError, match="before it answered"):
        runner.run(function, *arguments)


@each_part
def test_a_download(boot, fal_origin, fal_data, fal_faults, part):
    url = "https://models.example.com/new.bin"
    fal_origin.serve(url, content=WEIGHTS)
    fal_data.write("models/old.bin", b"old")
    for point in points(part):
        fal_faults.kill_runner(after=point * len(WEIGHTS) // POINTS, path="/new.bin", times=1)
        killed(boot(), download_file, url, "/data/models")
        fal_data.assert_holds("models/old.bin")
        assert fal_data.read("models/old.bin") == b"old"
        left = set(fal_data.tree()) - {"models/old.bin"}
        assert left == set(fal_data.partial_files), "nothing seems complete that is not"
    path = boot().run(download_file, url, "/data/models")
    assert fal_data.read(os.path.relpath(path, "/data")) == WEIGHTS


@each_part
def test_a_download_of_weights_leaves_a_part_that_is_taken_for_them(
    boot, fal_origin, fal_data, fal_faults, fal_ledger, part
):
    """D1 of the gallery: a part that has begun to be written is what the next runner gets."""
    fal_data.write("models/old.bin", b"old")
    before = None
    for point in points(part):
        host = f"m{point}.example.com"
        url = f"https://{host}/w.bin"
        fal_origin.serve(url, content=WEIGHTS)
        fal_faults.kill_runner(after=point * len(WEIGHTS) // POINTS, host=host, times=1)
        runner = boot()
        if before is not None:
            requests = len(fal_ledger.exchanges)
            taken = runner.run(download_model_weights, before)
            assert os.path.getsize(taken) < len(WEIGHTS)
            assert taken.name.startswith("..fal_download.tmp")
            assert len(fal_ledger.exchanges) == requests, "it does not ask the origin"
        killed(runner, download_model_weights, url)
        assert fal_data.read("models/old.bin") == b"old"
        before = url if point > 0 else None


@each_part
def test_an_upload(boot, fal_cdn, fal_faults, part):
    old = fal_cdn.put(b"old", file_name="old.bin")

    def upload(content):
        return File.from_bytes(content, file_name="new.bin").url

    for point in points(part):
        fal_faults.kill_runner(
            after=point * len(WEIGHTS) // POINTS, of="request", method="PUT", times=1
        )
        killed(boot(), upload, WEIGHTS)
        assert [file.url for file in fal_cdn.files] == [old]
        assert fal_cdn.get(old) == b"old"
    url = boot().run(upload, WEIGHTS)
    assert fal_cdn.get(url) == WEIGHTS


# --- a sync of compiled kernels ------------------------------------------------------------------

CACHE = "inductor-caches/UNKNOWN/app.zip"
KERNELS = 60
#: What reaches the disk, by the names that Python has for it.
TOUCHING = frozenset({"write", "open", "rename", "mkdir", "rmdir", "unlink", "close", "truncate"})


def sync(point):
    """Sync as the SDK does; SIGKILL at this call of those that touch the disk, 0: count them."""
    local = pathlib.Path("/tmp/inductor-cache")
    local.mkdir(exist_ok=True)
    for number in range(KERNELS):
        (local / f"kernel{number}.so").write_bytes(os.urandom(20_000))
    calls = 0

    def watch(_frame, event, argument):
        nonlocal calls
        if event == "c_call" and getattr(argument, "__name__", "") in TOUCHING:
            calls += 1
            if calls == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)
    try:
        sync_inductor_cache("app", "")
    finally:
        sys.setprofile(None)
    return calls


@each_part
def test_a_sync_of_compiled_kernels(boot, fal_data, part):
    old = io.BytesIO()
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("kernel-of-before.so", b"old")
    calls = boot().run(sync, 0)
    assert calls >= POINTS
    complete = 0
    for point in points(part):
        fal_data.write(CACHE, old.getvalue())
        killed(boot(), sync, 1 + point * calls // POINTS)
        with zipfile.ZipFile(fal_data.backing / CACHE) as archive:
            assert archive.testzip() is None
            names = archive.namelist()
        assert names == ["kernel-of-before.so"] or len(names) >= KERNELS
        complete += len(names) >= KERNELS
    assert complete < POINTS // PARTS, "most points are before the archive is put in its place"
    left = [rel for rel in fal_data.tree() if rel != CACHE]
    assert all(rel.startswith("tmp/") for rel in left), "what was begun stays in /data/tmp for ever"
    assert left
