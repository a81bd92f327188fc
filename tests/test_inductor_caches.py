"""Compiled kernels, from one runner to the next: the toolkit's inductor caches [facts §2.2, §2.4].

The compiler is a subprocess that writes one file for each kernel into the folder that
``TORCHINDUCTOR_CACHE_DIR`` names, as torch does; what is counted is what it had to make.
"""

import io
import os
import shutil
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import fal
import pytest
from fal.toolkit.compilation import (
    load_inductor_cache,
    sync_inductor_cache,
    synchronized_inductor_cache,
)

from emulator.runners.runner import RunnerError

KEY = "model/1"
LOCAL = Path("/tmp/inductor-cache")
ARCHIVE = "inductor-caches/H100/model/1.zip"
FOUND = f"Found compilation cache at /data/{ARCHIVE}, unpacking..."
MISSING = f"Couldn't find compilation cache at /data/{ARCHIVE}"
KERNELS = ["matmul", "softmax"]
COMPILER = 'cd "$TORCHINDUCTOR_CACHE_DIR" && printf "kernel %s" "$1" > "$1.so"'

both_kinds = pytest.mark.parametrize("isolation", ["thread", "process"])
needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK),
    reason="a /data that differs between runners needs /dev/fuse (Docker: --device /dev/fuse)",
)
staged = pytest.mark.fal(
    data_visibility="staged",
    data_datacenter_delay=timedelta(seconds=2),
    data_metadata_delay=timedelta(seconds=5),
    data_global_delay=timedelta(seconds=60),
)


def warm_up(*kernels):
    """What torch.compile() does at a first call: it makes what is missing. The names of that."""
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    folder.mkdir(exist_ok=True)
    missing = [kernel for kernel in kernels if not (folder / f"{kernel}.so").exists()]
    for kernel in missing:
        subprocess.run(["sh", "-c", COMPILER, "sh", kernel], check=True)
    return missing


class Model(fal.App):
    def setup(self):
        with synchronized_inductor_cache(KEY):
            self.made = warm_up(*KERNELS)

    @fal.endpoint("/")
    def what_was_compiled(self) -> list:
        return self.made


class Plain(fal.App):
    @fal.endpoint("/")
    def answer(self) -> dict:
        return {}


def compile_and_share(*kernels):
    with synchronized_inductor_cache(KEY):
        return warm_up(*kernels)


def content(archive):
    """The files in an archive; also that it is whole."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/")}


def archive_of(**kernels):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in kernels.items():
            archive.writestr(f"{name}.so", text)
    return made.getvalue()


# --- from one runner to the next ------------------------------------------------------------------


@both_kinds
def test_the_first_runner_compiles_and_shares(fal_runner, fal_data, isolation):
    runner = fal_runner(Model, gpu="H100", isolation=isolation)
    assert runner.post("/").json() == KERNELS
    fal_data.assert_tree(ARCHIVE)
    assert content(fal_data.read(ARCHIVE)) == {
        "matmul.so": b"kernel matmul",
        "softmax.so": b"kernel softmax",
    }
    assert MISSING in runner.output
    assert "Changes detected in the cache dir, syncing..." in runner.output


@pytest.mark.parametrize("second", ["thread", "process"])
@pytest.mark.parametrize("first", ["thread", "process"])
def test_the_next_one_on_the_same_gpu_compiles_nothing(fal_runner, first, second):
    fal_runner(Model, gpu="H100", isolation=first).stop()
    runner = fal_runner(Model, gpu="H100", isolation=second)
    assert runner.post("/").json() == []
    assert runner.tmp.read("inductor-cache/matmul.so") == b"kernel matmul"
    assert f"{FOUND}\nCache unpacked successfully." in runner.output
    assert "No changes in the cache dir, skipping sync." in runner.output


@both_kinds
def test_one_on_another_gpu_does_not_find_them(fal_runner, fal_data, isolation):
    fal_runner(Model, gpu="H100", isolation=isolation)
    other = fal_runner(Model, gpu="A100", isolation=isolation)
    assert other.post("/").json() == KERNELS
    fal_data.assert_tree(ARCHIVE, "inductor-caches/A100/model/1.zip")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_without_a_gpu_they_are_those_of_an_unknown_one(fal_runner, fal_data):
    assert fal_runner(Model).post("/").json() == KERNELS
    fal_data.assert_tree("inductor-caches/UNKNOWN/model/1.zip")


def test_a_deployments_next_runner_compiles_nothing(fal_gateway):
    model = fal_gateway.deploy("acme/model", Model, gpu="H100")
    assert model.post("/").json() == KERNELS
    model.runners[0].kill()
    assert model.post("/").json() == []


@both_kinds
def test_the_local_folder_is_the_runners_own(fal_runner, fal_tmp, isolation):
    one, two = (fal_runner(Plain, gpu="H100", isolation=isolation) for _ in range(2))
    one.run(compile_and_share, "matmul")
    assert one.tmp.tree() == ["inductor-cache/matmul.so"]
    two.tmp.assert_empty()
    fal_tmp.assert_empty()
    one.stop()
    three = fal_runner(Plain, gpu="H100", isolation=isolation)
    three.tmp.assert_empty()


def test_the_folders_name_does_not_reach_the_next_test(fal_emulator, fal_runner):
    fal_runner(Model, gpu="H100")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/tmp/inductor-cache"
    fal_emulator.reset()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


# --- by hand --------------------------------------------------------------------------------------


@both_kinds
def test_loading_and_syncing_by_hand(fal_runner, fal_data, isolation):
    def first():
        known = load_inductor_cache(KEY)
        made = warm_up("matmul")
        sync_inductor_cache(KEY, known)
        return known, made

    known, made = fal_runner(Plain, gpu="H100", isolation=isolation).run(first)
    assert (known, made) == ("", ["matmul"])
    known, made = fal_runner(Plain, gpu="H100", isolation=isolation).run(first)
    assert (len(known), made) == (64, [])
    fal_data.assert_tree(ARCHIVE)


def test_what_is_new_is_added_to_what_was_loaded(fal_runner, fal_data):
    fal_runner(Plain, gpu="H100").run(compile_and_share, "matmul")
    assert fal_runner(Plain, gpu="H100").run(compile_and_share, "matmul", "relu") == ["relu"]
    assert set(content(fal_data.read(ARCHIVE))) == {"matmul.so", "relu.so"}


def test_where_nothing_is_new_nothing_is_written(fal_runner, fal_data):
    fal_runner(Plain, gpu="H100").run(compile_and_share, "matmul")
    before = os.stat(fal_data.backing / ARCHIVE)
    fal_runner(Plain, gpu="H100").run(compile_and_share, "matmul")
    after = os.stat(fal_data.backing / ARCHIVE)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_each_key_has_an_archive_of_its_own(fal_runner, fal_data):
    def share(key):
        with synchronized_inductor_cache(key):
            warm_up("matmul")

    for key in ("model/2", "plain"):
        fal_runner(Plain, gpu="H100").run(share, key)
    fal_data.assert_tree("inductor-caches/H100/model/2.zip", "inductor-caches/H100/plain.zip")


def test_where_nothing_was_compiled_there_is_nothing_to_share(fal_runner, fal_data):
    runner = fal_runner(Plain, gpu="H100")
    runner.run(sync_inductor_cache, KEY, "")
    assert "No cache to sync, /tmp/inductor-cache doesn't exist." in runner.output
    fal_data.assert_empty()


# --- what is in /data already ---------------------------------------------------------------------


@both_kinds
def test_an_archive_from_before_there_were_folders_for_gpus_is_taken_over(
    fal_runner, fal_data, isolation
):
    fal_data.write("inductor-caches/model/1.zip", archive_of(matmul="old", softmax="old"))
    runner = fal_runner(Model, gpu="H100", isolation=isolation)
    assert runner.post("/").json() == []
    assert runner.tmp.read("inductor-cache/matmul.so") == b"old"
    fal_data.assert_tree(ARCHIVE, "inductor-caches/model/1.zip")


def test_an_archive_that_is_cut_off_is_compiled_anew_and_replaced(fal_runner, fal_data):
    fal_data.write(ARCHIVE, archive_of(matmul="old", softmax="old")[:-30])
    runner = fal_runner(Model, gpu="H100")
    assert "Failed to unpack cache: " in runner.output
    assert runner.post("/").json() == KERNELS
    assert set(content(fal_data.read(ARCHIVE))) == {"matmul.so", "softmax.so"}


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_runner_killed_as_it_packs_leaves_the_old_archive(fal_runner, fal_data, fal_faults):
    fal_data.write(ARCHIVE, archive_of(matmul="old"))
    runner = fal_runner(Plain, gpu="H100", isolation="process")
    fal_faults.kill_runner(after=50_000, file="/data/tmp/*/inductor_cache.zip")

    def share_much():
        with synchronized_inductor_cache(KEY):
            warm_up("relu")
            for number in range(300):
                (LOCAL / f"kernel{number}.so").write_bytes(os.urandom(20_000))

    with pytest.raises(RunnerError, match="before it answered"):
        runner.run(share_much)
    assert content(fal_data.read(ARCHIVE)) == {"matmul.so": b"old"}
    assert fal_runner(Plain, gpu="H100").run(compile_and_share, "matmul") == []


@both_kinds
def test_a_full_data_is_only_said(fal_runner, fal_data, isolation):
    fal_data.write(ARCHIVE, archive_of(matmul="old"))
    fal_data.limit(fal_data.size + 64 * 1024)
    runner = fal_runner(Plain, gpu="H100", isolation=isolation)

    def share_much():
        with synchronized_inductor_cache(KEY):
            (LOCAL / "large.so").write_bytes(os.urandom(200_000))

    runner.run(share_much)
    assert "Failed to sync cache: [Errno 28] No space left on device" in runner.output
    fal_data.assert_tree(ARCHIVE)
    assert content(fal_data.read(ARCHIVE)) == {"matmul.so": b"old"}


@both_kinds
def test_a_full_tmp_is_only_said_too(fal_runner, fal_data, isolation):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("large.so", os.urandom(200_000))
    fal_data.write(ARCHIVE, made.getvalue())
    runner = fal_runner(Plain, gpu="H100", isolation=isolation)
    runner.tmp.limit(64 * 1024)
    assert runner.run(load_inductor_cache, KEY) == ""
    assert "Failed to unpack cache: [Errno 28] No space left on device" in runner.output


def test_on_a_data_that_is_read_only_kernels_are_loaded(fal_runner, fal_data):
    fal_data.write(ARCHIVE, archive_of(matmul="old", softmax="old"))
    with fal_data.read_only():
        assert fal_runner(Model, gpu="H100").post("/").json() == []


# --- two at once ----------------------------------------------------------------------------------


def test_of_two_that_share_at_once_the_last_one_wins(fal_runner, fal_data):
    """Nobody sees an archive that is torn, at no moment; each is that of one runner, as a whole."""
    runners = [fal_runner(Plain, gpu="H100") for _ in range(2)]
    for number, runner in enumerate(runners):
        runner.run(load_inductor_cache, KEY)
        runner.run(warm_up, *(f"r{number}k{kernel}" for kernel in range(10)))
    sets = [{f"r{number}k{kernel}.so" for kernel in range(10)} for number in range(2)]
    seen, done = [], threading.Event()

    def look():
        while not done.is_set():
            if (fal_data.backing / ARCHIVE).exists():
                seen.append(set(content(fal_data.read(ARCHIVE))))

    with ThreadPoolExecutor() as pool:
        looking = pool.submit(look)
        try:
            for _ in range(20):
                for sharing in [pool.submit(r.run, sync_inductor_cache, KEY, "") for r in runners]:
                    sharing.result()
        finally:
            done.set()
        looking.result()
    assert len(seen) > 20
    assert all(found in sets for found in seen)
    fal_data.assert_tree(ARCHIVE)


# --- a /data that differs between runners ---------------------------------------------------------


@needs_fuse
@staged
def test_they_reach_the_same_server_at_once_and_others_later(fal_runner, fal_clock):
    fal_clock.freeze()
    fal_runner(Model, gpu="H100", server="a")
    assert fal_runner(Model, gpu="H100", server="a").post("/").json() == []
    early = fal_runner(Plain, gpu="H100", server="b")
    assert early.run(load_inductor_cache, KEY) == ""
    fal_clock.advance(2)
    assert fal_runner(Model, gpu="H100", server="b").post("/").json() == []


@needs_fuse
@staged
@both_kinds
def test_a_runner_elsewhere_compiles_what_it_does_not_see_yet(fal_runner, fal_clock, isolation):
    fal_clock.freeze()
    fal_runner(Model, gpu="H100", isolation=isolation)
    abroad = fal_runner(Model, gpu="H100", datacenter="eu-west", isolation=isolation)
    assert abroad.post("/").json() == KERNELS
    assert MISSING in abroad.output


@needs_fuse
@staged
def test_a_runner_elsewhere_waits_for_what_it_sees_and_cannot_read(fal_runner, fal_clock, fal_data):
    fal_clock.freeze()
    fal_runner(Model, gpu="H100")
    abroad = fal_runner(Plain, gpu="H100", datacenter="eu-west")
    fal_clock.advance(5)
    with ThreadPoolExecutor() as pool:
        starting = pool.submit(abroad.run, compile_and_share, *KERNELS)
        fal_data.wait_for_reader(ARCHIVE)
        fal_clock.move_to(fal_data.visible_at(ARCHIVE, datacenter="eu-west"))
        assert starting.result() == []
