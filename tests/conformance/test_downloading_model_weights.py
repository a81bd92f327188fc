"""The section "Downloading Model Weights": what ``download_model_weights`` keeps, and where."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import fal
import pytest
from fal.toolkit import download_file, download_model_weights
from fal.toolkit.utils.download_utils import DownloadError
from observing import calls_of, eventually, held, kill_at
from page import departs, states

if TYPE_CHECKING:
    from pytest_fal import Faults, Origin, RunnerFactory, Volume

URL = "https://huggingface.co/org/model/resolve/main/weights.bin"
FOLDER = f".fal/model_weights/{sha256(URL.encode()).hexdigest()}"
CHUNK = 64 * 1024


# --- a wrapper ------------------------------------------------------------------------------------


@states("weights-wrapper")
def test_it_calls_download_file(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"weights")
    with calls_of(download_file) as calls:
        download_model_weights(URL, force=True, request_headers={"X-Team": "research"})
    assert calls == [
        {
            "url": URL,
            "target_dir": Path("/data") / FOLDER,
            "force": True,
            "request_headers": {"X-Team": "research"},
            "filesize_limit": None,
        }
    ]


@states("weights-wrapper")
def test_it_returns_what_download_file_returns(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"weights", file_name="model v2.bin")
    path = download_model_weights(URL)
    assert path == download_file(URL, target_dir=path.parent)
    assert path.name == "model v2.bin"


@states("weights-wrapper")
def test_it_fails_as_download_file_does(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"weights")
    fal_faults.status(503)
    with pytest.raises(DownloadError, match=f"Failed to get remote file properties for {URL}"):
        download_model_weights(URL)


# --- where ----------------------------------------------------------------------------------------


@states("weights-place")
def test_weights_are_stored_under_a_hash_of_their_url(fal_origin: Origin, fal_data: Volume) -> None:
    fal_origin.serve(URL, b"weights")
    path = download_model_weights(URL)
    assert path == Path("/data") / FOLDER / "weights.bin"
    assert fal_data.read(f"{FOLDER}/weights.bin") == b"weights"


@states("weights-place")
def test_weights_of_the_same_name_do_not_meet(fal_origin: Origin) -> None:
    urls = [URL, f"{URL}?revision=2", URL.replace("org", "other")]
    for url in urls:
        fal_origin.serve(url, f"weights of {url}")
    paths = [download_model_weights(url) for url in urls]
    assert [path.read_text() for path in paths] == [f"weights of {url}" for url in urls]
    assert [path.name for path in paths] == ["weights.bin"] * 3


# --- cached ---------------------------------------------------------------------------------------


@states("weights-cached")
def test_a_repeated_call_makes_no_request(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"weights")
    assert download_model_weights(URL) == download_model_weights(URL)
    assert len(served.requests) == 1


@states("weights-cached")
def test_a_repeated_call_does_not_need_the_server(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"weights")
    download_model_weights(URL)
    served.status = 503
    assert download_model_weights(URL).read_bytes() == b"weights"


@states("weights-cached")
def test_another_url_of_the_same_weights_is_downloaded(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"weights")
    download_model_weights(URL)
    download_model_weights(f"{URL}?download=true")
    assert len(served.requests) == 2


@states("weights-cached")
def test_force_downloads_again(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"old weights")
    download_model_weights(URL)
    served.update(b"new weights")
    assert download_model_weights(URL, force=True).read_bytes() == b"new weights"


class Idle(fal.App):
    @fal.endpoint("/")
    def nothing(self) -> dict:
        return {}


@states("weights-cached")
@departs(
    "weights-cached",
    does="while one runner downloads, another one's call returns the first one's temporary file, "
    "as far as it has come, as the weights",
    since="1.2.1",
)
def test_another_runners_weights_are_returned_while_it_downloads(
    fal_runner: RunnerFactory, fal_origin: Origin, fal_faults: Faults, fal_data: Volume
) -> None:
    """The page: repeated calls are cached automatically. The SDK takes whatever lies in the folder
    of the URL for the weights, and since 1.2.1 temporary files lie there."""
    fal_origin.serve(URL, size=10 * CHUNK)
    gate = fal_faults.gate(after=5 * CHUNK)
    first, second = fal_runner(Idle), fal_runner(Idle)
    with held(gate, lambda: first.run(download_model_weights, URL)):
        assert eventually(lambda: fal_data.size == 5 * CHUNK)
        path = second.run(download_model_weights, URL)
        assert path.name.startswith("..fal_download.tmp.")
        assert path.stat().st_size == 5 * CHUNK
    assert not path.exists()


@states("weights-cached", "no-partial")
@departs(
    "weights-cached",
    does="after a runner was killed in mid-download, its partial file is returned as the weights",
    since="1.2.1",
)
@departs(
    "no-partial",
    does="download_model_weights returns the partial file of a runner that was killed",
    since="1.2.1",
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and newer
def test_a_killed_download_leaves_no_partial_weights(
    fal_origin: Origin, fal_faults: Faults, fal_data: Volume
) -> None:
    """The page: you never end up with a partial file, and repeated calls are cached. The SDK: the
    temporary file that a killed process left is what all later calls return."""
    served = fal_origin.serve(URL, size=10 * CHUNK)
    gate = fal_faults.gate(after=5 * CHUNK)
    kill_at(gate, lambda: fal_data.size == 5 * CHUNK, lambda: download_model_weights(URL))
    assert download_model_weights(URL).stat().st_size == 5 * CHUNK
    assert len(served.requests) == 1


# --- the snippet ----------------------------------------------------------------------------------


def load_from_weights(path: Path) -> bytes:
    """What the snippet leaves undefined."""
    return path.read_bytes()


class MyModel(fal.App):
    def setup(self):
        weights_path = download_model_weights(
            "https://huggingface.co/org/model/resolve/main/weights.bin"
        )
        self.model = load_from_weights(weights_path)


class WithEndpoint(MyModel):
    """An app has to have an endpoint, which the snippet leaves out."""

    @fal.endpoint("/")
    def process(self) -> dict:
        return {"model": self.model.decode()}


@states("weights-snippet")
def test_the_snippets_setup_downloads_the_weights(
    fal_runner: RunnerFactory, fal_origin: Origin, fal_data: Volume
) -> None:
    fal_origin.serve(URL, b"weights")
    assert fal_runner(WithEndpoint).post("/").json() == {"model": "weights"}
    assert fal_data.tree() == [f"{FOLDER}/.fal_used", f"{FOLDER}/weights.bin"]


@states("weights-snippet", "weights-cached")
def test_a_second_runner_finds_the_weights_of_the_snippet(
    fal_runner: RunnerFactory, fal_origin: Origin
) -> None:
    served = fal_origin.serve(URL, b"weights")
    fal_runner(WithEndpoint).stop()
    assert fal_runner(WithEndpoint).post("/").json() == {"model": "weights"}
    assert len(served.requests) == 1
