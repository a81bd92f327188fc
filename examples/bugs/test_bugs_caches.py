"""Bugs of caches in memory and of compiled kernels: one cache where there should be two."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import fal
import pytest
from fal.toolkit.compilation import (
    get_gpu_type,
    load_inductor_cache,
    sync_inductor_cache,
    synchronized_inductor_cache,
)
from gallery import bug

MEMORY = "Results kept in memory"
KERNELS = "Compiled kernels"

#: Where torch.compile() keeps its kernels on a runner, and where the toolkit shares them.
LOCAL = Path("/tmp/inductor-cache")
SHARED = "inductor-caches/H100"


# --- fal.cached ----------------------------------------------------------------------------------


@bug(
    "C1",
    symptom="the second model answers like the first one",
    topic=MEMORY,
    seen=("1.75.5", "1.83.0"),
)
def test_functions_that_look_alike_share_one_result(fal_emulator):
    """Two functions with the same source text share one result of fal.cached.

    Production: of two modules or classes, each with its load() in the same words, one gets the
        other's model.
    Expected: a result for each function.
    Happens: results are kept under the function's text; what it refers to does not count.
    Avoid: give what makes the difference as an argument.
    """

    def loader(name):
        @fal.cached
        def load():
            return f"weights of {name}"

        return load

    assert loader("sdxl")() == "weights of sdxl"
    assert loader("flux")() == "weights of sdxl"

    @fal.cached
    def load(name):
        return f"weights of {name}"

    assert [load("sdxl"), load("flux")] == ["weights of sdxl", "weights of flux"]


# --- kernels -------------------------------------------------------------------------------------


class Upscaler(fal.App):
    @fal.endpoint("/")
    def gpu(self) -> str:
        return get_gpu_type()


@pytest.fixture
def runner(fal_runner):
    return fal_runner(Upscaler, gpu="H100")


def compile_kernels(key, **kernels):
    """A setup() that compiles and shares; a text of None is an error."""
    with synchronized_inductor_cache(key):
        make_kernels(**kernels)


def make_kernels(**kernels):
    """What torch.compile() does, as far as files go."""
    LOCAL.mkdir(exist_ok=True)
    for name, text in kernels.items():
        if text is None:
            raise RuntimeError("CUDA out of memory")
        (LOCAL / name).write_text(text)


def shared(fal_data, key):
    """The kernels that all runners get under a key, and their texts."""
    with zipfile.ZipFile(fal_data.path / SHARED / f"{key}.zip") as archive:
        return {name: archive.read(name).decode() for name in archive.namelist() if name[-1] != "/"}


@bug(
    *("I1", "P28"),
    symptom="I fixed my kernel, and each new runner has the broken one again",
    topic=KERNELS,
    seen=("1.75.5", "1.83.0"),
)
def test_a_changed_kernel_is_never_shared(runner, fal_runner, fal_data):
    """A kernel that was compiled anew under its old name is not shared, and is overwritten.

    Production: after a change of the driver or of Triton each runner compiles again, for ever; and
        gets the old kernels at each start.
    Expected: what has changed is shared.
    Happens: only the names of the files are compared.
    Avoid: a key that has the versions of all that takes part in compiling.
    """
    runner.run(compile_kernels, "upscaler", matmul="broken")
    runner.run(compile_kernels, "upscaler", matmul="fixed")
    assert shared(fal_data, "upscaler") == {"matmul": "broken"}

    new = fal_runner(Upscaler, gpu="H100")
    new.run(compile_kernels, "upscaler")
    assert new.tmp.read("inductor-cache/matmul") == b"broken"

    new.run(compile_kernels, "upscaler-2", matmul="fixed")
    assert shared(fal_data, "upscaler-2") == {"matmul": "fixed"}


@bug(
    *("I2", "P28"),
    symptom="one crash while compiling, and all runners are slow since",
    topic=KERNELS,
    seen=("1.75.5", "1.83.0"),
)
def test_half_a_cache_is_shared_after_an_error(runner, fal_data):
    """When compiling fails in the middle, what there is so far is shared with all runners.

    Production: half a cache replaces the whole one, and files that are cut off break others.
    Expected: nothing is shared after an error.
    Happens: the context manager shares what it finds, whatever ended the block.
    Avoid: load_inductor_cache() and sync_inductor_cache(), the latter only after success.
    """
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        runner.run(compile_kernels, "upscaler", first="whole", second="ha", third=None)
    assert shared(fal_data, "upscaler") == {"first": "whole", "second": "ha"}


@bug(
    *("I3", "P28"),
    symptom="the cache of my small model is gigabytes large",
    topic=KERNELS,
    seen=("1.75.5", "1.83.0"),
)
def test_one_keys_kernels_are_in_the_next_keys_cache(runner, fal_data):
    """A runner that compiles under two keys shares the kernels of both under the second.

    Production: caches grow with each model that a runner has seen, and starts take longer.
    Expected: under each key its own kernels.
    Happens: all keys have one local folder, and the whole of it is packed.
    Avoid: one key for each app; or empty the local folder in between.
    """
    runner.run(compile_kernels, "upscaler", upscale="")
    runner.run(compile_kernels, "captioner", caption="")
    assert set(shared(fal_data, "captioner")) == {"caption", "upscale"}


@bug(
    *("I4", "P28"),
    symptom="kernels fail on some machines: no kernel image is available for execution",
    topic=KERNELS,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [("RTX4090", "RTX5090", "GeForce"), ("A6000", "RTXPRO6000", "RTX")],
)
def test_incompatible_gpus_share_kernels(fal_runner, fal_data, one, other, kind):
    """GPUs of different generations count as one, so they share their kernels.

    Production: machine_type = ["GPU-RTX4090", "GPU-RTX5090"]: kernels of one are loaded on the
        other, where they fail or are compiled again.
    Expected: a cache for each type of GPU.
    Happens: the type is the first word after "NVIDIA" in what nvidia-smi says.
    Avoid: put torch.cuda.get_device_capability() into the key.
    """
    fal_runner(Upscaler, gpu=one).run(compile_kernels, "upscaler", matmul=f"for {one}")
    fal_data.assert_holds(f"inductor-caches/{kind}/upscaler.zip")

    second = fal_runner(Upscaler, gpu=other)
    second.run(compile_kernels, "upscaler")
    assert second.tmp.read("inductor-cache/matmul") == f"for {one}".encode()


@bug(
    "P28",
    symptom="two runners started, and one of them compiled for nothing",
    topic=KERNELS,
    seen=("1.75.5", "1.83.0"),
)
def test_of_two_caches_the_last_one_stays(fal_runner, fal_data):
    """What one runner shares replaces what another has shared since it started.

    Production: after a deploy many runners start at once; each compiles what its first requests
        need, and only the kernels of the last one are kept.
    Expected: the kernels of both.
    Happens: each packs its own folder, and puts it in the place of what is there.
    Avoid: compile the same in each setup(), and let one runner start before the others.
    """
    one, two = (fal_runner(Upscaler, gpu="H100") for _ in range(2))
    known = two.run(load_inductor_cache, "upscaler")  # there is nothing yet
    one.run(compile_kernels, "upscaler", matmul="")
    assert set(shared(fal_data, "upscaler")) == {"matmul"}
    two.run(make_kernels, softmax="")
    two.run(sync_inductor_cache, "upscaler", known)
    assert set(shared(fal_data, "upscaler")) == {"softmax"}


@bug(
    "N14",
    symptom="since the SDK's upgrade only one of my models starts fast",
    topic=KERNELS,
    seen=("1.75.5", "1.83.0"),
)
def test_only_the_first_old_cache_is_taken_over(fal_runner, fal_data):
    """Of caches from before there were folders for each GPU only the first one is taken over.

    Production: the first model to start after the upgrade finds its kernels. All others compile
        anew, though theirs are in /data as well.
    Expected: each key's old cache is taken over.
    Happens: the old place is looked at only while the GPU's folder does not exist, and the first
        one makes it.
    Avoid: move the archives by hand: /data/inductor-caches/KEY.zip to H100/KEY.zip in there.
    """
    for key in ("upscaler", "captioner"):
        with zipfile.ZipFile(fal_data.write(f"inductor-caches/{key}.zip", b""), "w") as archive:
            archive.writestr("kernel", key)
    runner = fal_runner(Upscaler, gpu="H100")
    assert runner.run(load_inductor_cache, "upscaler") != ""
    assert fal_runner(Upscaler, gpu="H100").run(load_inductor_cache, "captioner") == ""

    os.rename("/data/inductor-caches/captioner.zip", f"/data/{SHARED}/captioner.zip")
    assert fal_runner(Upscaler, gpu="H100").run(load_inductor_cache, "captioner") != ""


@bug(
    "N15",
    symptom="my app does not start: Read-only file system",
    topic=KERNELS,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.fal(filesystem="namespace")
def test_kernels_that_cannot_be_shared_fail_the_start(runner, fal_data):
    """Where /data cannot be written, sharing kernels raises instead of saying so.

    Production: setup() fails on each new runner, although all that it needs is compiled.
    Expected: "Failed to sync cache", as where there is no room for the archive.
    Happens: the folders for the archive are made outside of what catches errors.
    Avoid: load_inductor_cache() and sync_inductor_cache(), the latter where OSError is caught.
    """
    with fal_data.read_only(), pytest.raises(OSError, match="Read-only file system"):
        runner.run(compile_kernels, "upscaler", matmul="")

    fal_data.limit(128 * 1024)
    runner.run(compile_kernels, "upscaler", matmul=os.urandom(200_000).hex())
    assert "Failed to sync cache: [Errno 28] No space left on device" in runner.output
