"""Bugs of ``download_model_weights`` and what else keeps models in ``/data``."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import fal
import pytest
from fal.toolkit import download_file, download_model_weights
from freezegun import freeze_time
from gallery import bug, wait_until

from pytest_fal import StartupError

TOPIC = "Model weights"
URL = "https://example.com/model.bin"
MIB = 2**20
WEIGHTS = bytes(range(256)) * (3 * MIB // 256)


class Model(fal.App):
    def setup(self) -> None:
        self.weights = download_model_weights(URL)

    @fal.endpoint("/")
    def size(self) -> int:
        return self.weights.stat().st_size


# --- what is taken for the weights ---------------------------------------------------------------


@bug(
    *("D1", "P21"),
    symptom="my model loads garbage after a deploy, and restarting does not help",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_killed_runner_leaves_truncated_weights(fal_runner, fal_origin, fal_faults):
    """A runner killed in mid-download leaves truncated weights, which all others load for ever.

    Production: a start that takes too long, a deploy or a full node kills a runner that is
        downloading. From then on every runner fails to load the model, or loads noise.
    Expected: an unfinished file is no cached file: the next runner downloads it again.
    Happens: the unfinished file lies in the directory of the weights under a hidden name, and
        whatever lies there is returned, without a look at its size. force=True only adds the whole
        file beside it.
    Avoid: download_file to a directory of your own, if the file is not there yet: it gets its name
        only once it is complete. What was left over is never taken for it.
    """
    model = fal_origin.serve(URL, WEIGHTS)
    fal_faults.kill_runner(after=MIB, path="/model.bin", times=1)
    with pytest.raises(StartupError):
        fal_runner(Model, isolation="process")

    assert fal_runner(Model, isolation="process").post("/").json() == MIB
    assert download_model_weights(URL).read_bytes() == WEIGHTS[:MIB]
    assert download_model_weights(URL).read_bytes() == WEIGHTS[:MIB]
    assert len(model.requests) == 1

    path = Path("/data/models/model.bin")
    if not path.exists():
        download_file(URL, "models")
    assert path.read_bytes() == WEIGHTS


@bug(
    *("D2", "P21"),
    symptom="when two runners start at once, one of them loads half a model, or finds none",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_second_runner_gets_the_growing_file(fal_origin, fal_faults, fal_data):
    """A runner that starts while another one downloads gets the unfinished file.

    Production: after a deploy several runners start at once, and all but one fail.
    Expected: the second runner waits, or downloads the weights itself.
    Happens: it gets the path of the first one's temporary file, with what is in it by then; as soon
        as the first is done nothing is at that path any more.
    Avoid: download_file to a directory of your own, if the file is not there yet.
    """
    fal_origin.serve(URL, WEIGHTS)
    gate = fal_faults.gate(after=MIB, times=1)
    with ThreadPoolExecutor() as runner:
        first = runner.submit(download_model_weights, URL)
        gate.wait()
        wait_until(lambda: fal_data.size == MIB)
        second = download_model_weights(URL)
        assert second.read_bytes() == WEIGHTS[:MIB]
        gate.open()
        assert first.result().read_bytes() == WEIGHTS
    assert not second.exists()


@bug(
    "P21",
    symptom="I pushed new weights to the same URL, and all runners still load the old ones",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_new_weights_at_an_old_url_are_never_seen(fal_origin):
    """Weights that were downloaded once are never compared with what the URL has now.

    Production: a fix of the model does not arrive, on no runner, ever.
    Expected: the documentation speaks of a comparison of lengths.
    Happens: the server is not even asked. That has its good side: the weights survive their URL.
    Avoid: a version in the URL, or force=True once.
    """
    model = fal_origin.serve(URL, b"version 1")
    download_model_weights(URL)
    model.update(b"version 2, which is longer")
    assert download_model_weights(URL).read_bytes() == b"version 1"
    assert len(model.requests) == 1

    path = download_model_weights(URL, force=True)
    assert path.read_bytes() == b"version 2, which is longer"


@bug(
    *("D7", "P21"),
    symptom="after force=True some runners have the new model and some the old one",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_force_keeps_the_old_weights_too(fal_origin):
    """Where the server has renamed the file, force=True leaves both, and either may be loaded.

    Production: two versions of a model answer, depending on which file the volume lists first.
    Expected: the weights that were downloaded last.
    Happens: the first file that the directory lists is returned.
    Avoid: remove the directory (the parent of the returned path) before you force.
    """
    fal_origin.serve(URL, b"version 1", file_name="v1.bin")
    download_model_weights(URL)
    fal_origin.serve(URL, b"version 2", file_name="v2.bin")
    directory = download_model_weights(URL, force=True).parent

    there = [name for name in os.listdir(directory) if not name.startswith(".fal")]
    assert sorted(there) == ["v1.bin", "v2.bin"]
    assert download_model_weights(URL) == directory / there[0]


@bug(
    "D8",
    symptom="download_model_weights downloads one of my models again at each start",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_name_that_begins_with_fal_is_never_cached(fal_origin):
    """Weights whose name begins with ".fal" are downloaded by every call.

    Production: slow starts, for this model only.
    Expected: the file's name, which the server chooses, does not matter.
    Happens: such files are taken for the SDK's own notes, and not for weights.
    Avoid: another name on the server.
    """
    model = fal_origin.serve(URL, WEIGHTS, file_name=".falcon.bin")
    download_model_weights(URL)
    download_model_weights(URL)
    assert model.bytes_sent == 2 * len(WEIGHTS)


# --- around it -----------------------------------------------------------------------------------


@bug(
    "D17",
    symptom="my clean-up of unused models passes its tests under freezegun, and never removes any",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_the_mark_of_use_ignores_a_frozen_clock(fal_origin, fal_clock):
    """The mark of a model's last use, .fal_used, does not follow a clock that freezegun froze.

    Production: the clean-up was proven with marks that lie in the future, and so nothing.
    Expected: the mark is renewed by a use more than a day later, and then is as old as that.
    Happens: its time is the kernel's; frozen in the past, the SDK sees a mark that is never old.
    Avoid: a clock that file times follow, too.
    """
    fal_origin.serve(URL, b"weights")
    with freeze_time("2020-01-01") as frozen:
        mark = download_model_weights(URL).with_name(".fal_used")
        frozen.tick(timedelta(days=40))
        download_model_weights(URL)
        assert mark.stat().st_mtime > time.time() + timedelta(days=365).total_seconds()

    fal_clock.freeze()
    download_model_weights(URL)
    fal_clock.advance(days=40)
    download_model_weights(URL)
    assert mark.stat().st_mtime == time.time()


@bug(
    "P26",
    symptom="my Hugging Face models are downloaded twice, to two places in /data",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_the_nsfw_filter_moves_the_hugging_face_cache(fal_runner, monkeypatch):
    """The SDK's NSFW filter sets HF_HOME to another directory, for the whole process.

    Production: what is loaded after the first request is downloaded again, to another place.
    Expected: HF_HOME stays as the platform sets it: /data/.cache/huggingface.
    Happens: the first use of the filter sets it to /data/models. Libraries that were imported
        before have read the old value, others and subprocesses get the new one.
    Avoid: load everything in setup(), or give cache_dir yourself.
    """
    model = SimpleNamespace(from_pretrained=lambda name: name)
    # Stands in for the library, which the filter imports before it sets the variable.
    transformers = SimpleNamespace(AutoModelForImageClassification=model, ViTImageProcessor=model)
    monkeypatch.setitem(sys.modules, "transformers", transformers)

    class App(fal.App):
        @fal.endpoint("/")
        def check(self) -> str:
            from fal.toolkit.image.nsfw_filter.model import get_model

            get_model()
            return os.environ["HF_HOME"]

    runner = fal_runner(App)
    assert os.environ["HF_HOME"] == "/data/.cache/huggingface"
    assert runner.post("/").json() == "/data/models"
