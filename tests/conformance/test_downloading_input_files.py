"""The section "Downloading Input Files": how ``download_file`` brings a file to the runner."""

from __future__ import annotations

import base64
import errno
from collections.abc import Callable
from hashlib import sha256
from http.client import HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING

import fal
import pytest
from fal.toolkit import download_file
from fal.toolkit.utils.download_utils import DownloadError
from memory import MEBIBYTE, memory_grows_by_less_than
from observing import calls_of, eventually, held, kill_at, sizes
from page import departs, states

if TYPE_CHECKING:
    from pytest_fal import Faults, Ledger, Origin, RunnerFactory, Volume

URL = "https://example.com/clips/video.mp4"
CHUNK = 64 * 1024
BODY = b"video" * 1000


@states("download-local")
def test_a_url_is_downloaded_to_a_local_path(fal_origin: Origin) -> None:
    fal_origin.serve(URL, BODY)
    path = download_file(URL, target_dir="/tmp/inputs")
    assert path == Path("/tmp/inputs/video.mp4")
    assert path.read_bytes() == BODY


# --- the snippet ----------------------------------------------------------------------------------


class MyModel(fal.App):
    machine_type = "GPU-A100"

    @fal.endpoint("/")
    def process(self, video_url: str) -> dict:
        local_path = download_file(video_url, target_dir="/tmp/inputs")
        result = self.model.process(str(local_path))
        return {"output": result}


class Model:
    """What the snippet leaves undefined."""

    def process(self, path: str) -> str:
        return f"{Path(path).stat().st_size} bytes at {path}"


class WithModel(MyModel):
    def setup(self) -> None:
        self.model = Model()


@states("download-snippet")
def test_the_snippet_downloads_its_input_to_the_runners_tmp(
    fal_runner: RunnerFactory, fal_origin: Origin
) -> None:
    fal_origin.serve(URL, BODY)
    runner = fal_runner(WithModel)
    answer = runner.post("/", params={"video_url": URL})
    assert answer.json() == {"output": "5000 bytes at /tmp/inputs/video.mp4"}
    assert runner.tmp.tree() == ["inputs/video.mp4"]


@states("download-snippet")
@departs(
    "download-snippet",
    does="as printed, the endpoint takes video_url from the query; from a JSON body, which fal's "
    "clients send, it is refused with 422",
    since="1.0.0",
)
def test_the_snippet_takes_its_input_from_a_json_body(
    fal_runner: RunnerFactory, fal_origin: Origin
) -> None:
    """The page shows ``video_url: str`` as the endpoint's parameter. The SDK leaves parameters to
    FastAPI, for which a plain string belongs to the query. A pydantic model takes the body."""
    served = fal_origin.serve(URL, BODY)
    answer = fal_runner(WithModel).post("/", json={"video_url": URL})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "video_url"]
    assert served.requests == []


# --- chunks ---------------------------------------------------------------------------------------


@states("chunks")
@departs(
    "chunks",
    does="chunks are of 64 kB (until 1.75.4 they were of 64 MB)",
    since="1.75.5",
)
def test_large_files_are_streamed_in_64_mb_chunks(fal_origin: Origin) -> None:
    """The page: 64 MB chunks. The SDK since 1.75.5: 64 kB, the default of its new HTTP client."""
    fal_origin.serve(URL, size=10 * CHUNK)
    with calls_of(HTTPResponse.read) as reads:
        download_file(URL, target_dir="inputs")
    assert [read["amt"] for read in reads] == [CHUNK] * 11  # the last one finds the end


@states("efficient")
def test_a_chunk_is_on_disk_before_the_next_one_has_come(
    fal_origin: Origin, fal_faults: Faults, fal_data: Volume
) -> None:
    fal_origin.serve(URL, size=10 * CHUNK)
    gate = fal_faults.gate(after=4 * CHUNK - 1)
    with held(gate, lambda: download_file(URL, target_dir="inputs")):
        assert eventually(lambda: max(sizes(fal_data).values()) == 3 * CHUNK), sizes(fal_data)


@states("efficient")
def test_a_download_takes_no_more_memory_for_a_larger_file(fal_origin: Origin) -> None:
    fal_origin.serve(URL, size=64 * MEBIBYTE)
    with memory_grows_by_less_than(16 * MEBIBYTE):
        download_file(URL, target_dir="inputs")


# --- a temporary file, renamed --------------------------------------------------------------------


def temporary_file(data: Volume, size: int) -> Path | None:
    """The one with the content, once it has so much; an empty one beside it reserves its name."""
    found = [data.backing / rel for rel, there in sizes(data).items() if there == size]
    return found[0] if found else None


@states("atomic")
def test_it_writes_to_a_temporary_file_beside_the_target(
    fal_origin: Origin, fal_faults: Faults, fal_data: Volume
) -> None:
    fal_origin.serve(URL, size=10 * CHUNK)
    gate = fal_faults.gate(after=5 * CHUNK)
    with held(gate, lambda: download_file(URL, target_dir="inputs")):
        assert eventually(lambda: temporary_file(fal_data, 5 * CHUNK) is not None)
        content, reserved = fal_data.tree()
    assert content.startswith("inputs/..fal_download.tmp.")
    assert reserved.startswith("inputs/.fal_download.tmp.")
    assert fal_data.tree() == ["inputs/video.mp4"]


@states("atomic")
def test_the_temporary_file_is_renamed_into_place(
    fal_origin: Origin, fal_faults: Faults, fal_data: Volume
) -> None:
    fal_origin.serve(URL, size=10 * CHUNK)
    gate = fal_faults.gate(after=5 * CHUNK)
    with held(gate, lambda: download_file(URL, target_dir="inputs")) as download:
        assert eventually(lambda: temporary_file(fal_data, 5 * CHUNK) is not None)
        inode = temporary_file(fal_data, 5 * CHUNK).stat().st_ino
        gate.open()
        assert download.result().stat().st_ino == inode


@states("atomic")
def test_the_file_of_an_earlier_download_stays_whole_until_it_is_replaced(
    fal_origin: Origin, fal_faults: Faults
) -> None:
    served = fal_origin.serve(URL, BODY)
    path = download_file(URL, target_dir="inputs")
    served.update(b"longer" * 1000)
    gate = fal_faults.gate(after=3000)
    with held(gate, lambda: download_file(URL, target_dir="inputs")) as download:
        assert path.read_bytes() == BODY
        gate.open()
        assert download.result().read_bytes() == b"longer" * 1000


# --- no partial file ------------------------------------------------------------------------------

HALF = 2 * CHUNK + 1
FAILURES: dict[str, Callable[[Faults], object]] = {
    "reset before the answer": lambda faults: faults.drop(),
    "reset in the middle": lambda faults: faults.drop(after=HALF),
    "ended early": lambda faults: faults.truncate(after=HALF),
    "shorter than its Content-Length": lambda faults: faults.content_length(5 * CHUNK),
    "timed out connecting": lambda faults: faults.timeout(),
    "timed out in the middle": lambda faults: faults.timeout(after=HALF),
    "refused": lambda faults: faults.refuse(),
    "no such host": lambda faults: faults.dns_failure(),
    "expired certificate": lambda faults: faults.tls_failure("expired"),
    "not found": lambda faults: faults.status(404),
    "unavailable": lambda faults: faults.status(503),
}


@states("no-partial")
@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
def test_a_failed_download_leaves_no_partial_file(
    fal_origin: Origin, fal_faults: Faults, fal_data: Volume, fail: Callable[[Faults], object]
) -> None:
    fal_origin.serve(URL, size=4 * CHUNK)
    fail(fal_faults)
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="inputs")
    assert fal_data.tree() == []


@states("no-partial")
@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
def test_a_failed_download_leaves_the_earlier_file_whole(
    fal_origin: Origin, fal_faults: Faults, fal_data: Volume, fail: Callable[[Faults], object]
) -> None:
    fal_origin.serve(URL, size=4 * CHUNK)
    fal_data.write("inputs/video.mp4", b"earlier")
    fail(fal_faults)
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="inputs", force=True)
    assert fal_data.tree() == ["inputs/video.mp4"]
    assert fal_data.read("inputs/video.mp4") == b"earlier"


@states("no-partial")
def test_a_chunked_body_that_ends_early_leaves_no_partial_file(
    fal_origin: Origin, fal_faults: Faults, fal_data: Volume
) -> None:
    fal_origin.serve(URL, size=4 * CHUNK, chunked=True)
    fal_faults.truncate(after=HALF)
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="inputs")
    assert fal_data.tree() == []


@states("no-partial")
@departs(
    "no-partial",
    does="takes what came for the whole file where the server tells neither a length nor chunks",
    since="1.0.0",
)
def test_a_body_that_ends_with_its_connection_is_taken_for_whole_when_it_is_cut(
    fal_origin: Origin, fal_faults: Faults, fal_data: Volume
) -> None:
    """The page: never a partial file if the download fails.

    The SDK: a body without a length ends where its connection does, so one that is cut cannot be
    told from one that is whole. HTTP has no other way; only the server can send a length.
    """
    fal_origin.serve(URL, size=4 * CHUNK, content_length="absent")
    fal_faults.truncate(after=HALF)
    assert download_file(URL, target_dir="inputs").stat().st_size == HALF


@states("no-partial")
@pytest.mark.fal(filesystem="namespace")
def test_a_full_disk_leaves_no_partial_file(fal_origin: Origin, fal_data: Volume) -> None:
    fal_origin.serve(URL, size=10 * CHUNK)
    fal_data.limit(5 * CHUNK)
    with pytest.raises(DownloadError, match="All validated addresses failed") as failure:
        download_file(URL, target_dir="inputs")
    assert failure.value.__cause__.__cause__.errno == errno.ENOSPC
    assert fal_data.tree() == []


@states("no-partial")
@pytest.mark.fal(filesystem="namespace")
def test_a_read_only_disk_leaves_no_partial_file(fal_origin: Origin, fal_data: Volume) -> None:
    served = fal_origin.serve(URL, BODY)
    with fal_data.read_only(), pytest.raises(OSError, match="Read-only file system"):
        download_file(URL, target_dir="/data")
    assert fal_data.tree() == []
    assert served.requests == []


@states("no-partial")
@departs(
    "no-partial",
    does="a runner that is killed in mid-download leaves its partial file behind, under a hidden "
    "name beside the target, for good",
    since="1.2.1",
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and newer
def test_a_killed_download_leaves_no_partial_file(
    fal_origin: Origin, fal_faults: Faults, fal_data: Volume
) -> None:
    """The page: you never end up with a partial file. The SDK: not under the file's name; but
    nobody removes the temporary files of a process that was killed."""
    fal_origin.serve(URL, size=10 * CHUNK)
    gate = fal_faults.gate(after=5 * CHUNK, times=1)
    kill_at(
        gate,
        lambda: temporary_file(fal_data, 5 * CHUNK) is not None,
        lambda: download_file(URL, target_dir="inputs"),
    )
    download_file(URL, target_dir="inputs")
    partial, reserved, whole = fal_data.tree()
    assert partial.startswith("inputs/..fal_download.tmp.")
    assert reserved.startswith("inputs/.fal_download.tmp.")
    assert sizes(fal_data) == {partial: 5 * CHUNK, reserved: 0, whole: 10 * CHUNK}


# --- where to -------------------------------------------------------------------------------------


@states("relative-target")
@pytest.mark.parametrize("target_dir", ["models/", "models", Path("models"), "./models"])
def test_a_relative_target_dir_is_under_data(
    fal_origin: Origin, fal_data: Volume, target_dir: str | Path
) -> None:
    fal_origin.serve(URL, BODY)
    assert download_file(URL, target_dir=target_dir) == Path("/data/models/video.mp4")
    assert fal_data.read("models/video.mp4") == BODY


@states("relative-target")
def test_a_relative_target_dir_has_nothing_to_do_with_the_working_directory(
    fal_origin: Origin, fal_tmp: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fal_tmp.path)
    fal_origin.serve(URL, BODY)
    assert download_file(URL, target_dir="models/") == Path("/data/models/video.mp4")
    assert fal_tmp.tree() == []


@states("absolute-target")
@pytest.mark.parametrize("target_dir", ["/tmp/inputs", "/data/inputs", "/tmp/a/b/c"])
def test_an_absolute_target_dir_is_used_as_it_is(fal_origin: Origin, target_dir: str) -> None:
    fal_origin.serve(URL, BODY)
    path = download_file(URL, target_dir=target_dir)
    assert str(path) == f"{target_dir}/video.mp4"
    assert path.read_bytes() == BODY


# --- data: ----------------------------------------------------------------------------------------


@states("data-uri")
def test_a_data_uri_is_decoded_from_base64(fal_emulator: object) -> None:
    uri = f"data:video/mp4;base64,{base64.b64encode(BODY).decode()}"
    path = download_file(uri, target_dir="/tmp/inputs")
    assert path.read_bytes() == BODY


@states("data-uri")
def test_a_data_uri_takes_no_network_request(fal_ledger: Ledger) -> None:
    download_file("data:text/plain;base64,aGVsbG8=", target_dir="/tmp/inputs")
    assert (fal_ledger.exchanges, fal_ledger.events) == ([], [])


@states("data-uri")
def test_the_file_of_a_data_uri_is_named_after_its_hash(fal_data: Volume) -> None:
    uri = "data:text/plain;base64,aGVsbG8="
    path = download_file(uri, target_dir="inputs")
    assert path.name == sha256(uri.encode()).hexdigest()
    assert fal_data.tree() == [f"inputs/{path.name}"]
