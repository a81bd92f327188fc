"""The page's introduction: files come in by URL, and go out as public URLs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import fal
import pytest
from fal.toolkit import Audio, File, Image, Video, download_file, download_model_weights
from memory import MEBIBYTE, memory_grows_by_less_than
from page import departs, states
from PIL import Image as PILImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_fal import CDN, Origin, RunnerFactory, Volume

URL = "https://example.com/photo.png"


def png(size: tuple[int, int] = (4, 2)) -> bytes:
    written = io.BytesIO()
    PILImage.new("RGB", size, "red").save(written, "png")
    return written.getvalue()


class Mirror(fal.App):
    """Takes a picture's URL, returns it turned."""

    @fal.endpoint("/")
    def flip(self, image_url: str) -> dict:
        with PILImage.open(download_file(image_url, target_dir="/tmp/inputs")) as picture:
            return {"image": Image.from_pil(picture.transpose(PILImage.Transpose.ROTATE_90))}


@states("lifecycle")
def test_the_toolkit_covers_the_files_of_a_request_from_input_to_output(
    fal_runner: RunnerFactory, fal_origin: Origin, fal_cdn: CDN
) -> None:
    fal_origin.serve(URL, png((4, 2)))
    answer = fal_runner(Mirror).post("/", params={"image_url": URL}).json()
    assert fal_cdn.image(answer["image"]["url"]).size == (2, 4)


@states("input-side")
@pytest.mark.parametrize(
    "download",
    [lambda url: download_file(url, target_dir="/tmp/inputs"), download_model_weights],
    ids=["download_file", "download_model_weights"],
)
def test_remote_files_are_downloaded_to_a_local_path_on_the_runner(
    fal_runner: RunnerFactory, fal_origin: Origin, download: Callable[[str], Path]
) -> None:
    fal_origin.serve(URL, b"content")
    runner = fal_runner(Mirror)
    path = runner.run(download, URL)
    assert (type(path), path.name) == (type(Path()), "photo.png")
    assert runner.run(path.read_bytes) == b"content"


@states("input-caching")
def test_model_weights_are_cached(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"content")
    assert download_model_weights(URL) == download_model_weights(URL)
    assert len(served.requests) == 1


@states("input-caching")
@departs(
    "input-caching",
    does="download_file keeps a file that is there, but transfers the whole new one each time",
    since="1.75.5",
)
def test_download_file_is_cached(fal_origin: Origin) -> None:
    """The page: the download utilities have built-in caching. The SDK: a second download_file
    transfers as much as the first, and throws it away (see the section on caching)."""
    served = fal_origin.serve(URL, b"content")
    first = download_file(URL, target_dir="inputs")
    inode = first.stat().st_ino
    assert download_file(URL, target_dir="inputs") == first
    assert first.stat().st_ino == inode
    assert served.bytes_sent == 2 * len(b"content")


@states("input-streaming")
def test_large_files_are_streamed_to_disk(fal_origin: Origin) -> None:
    fal_origin.serve(URL, size=64 * MEBIBYTE)
    with memory_grows_by_less_than(16 * MEBIBYTE):
        path = download_file(URL, target_dir="inputs")
    assert path.stat().st_size == 64 * MEBIBYTE


@states("output-side")
@pytest.mark.parametrize("kind", [File, Image, Video, Audio])
def test_file_types_made_from_local_files_are_uploaded(
    fal_cdn: CDN, fal_tmp: Volume, kind: type[File]
) -> None:
    made = kind.from_path(fal_tmp.write("output.bin", b"content"))
    assert [file.url for file in fal_cdn.files] == [made.url]
    assert fal_cdn.get(made.url) == b"content"


@states("output-side")
@pytest.mark.parametrize("kind", [File, Video, Audio])
def test_file_types_made_from_raw_bytes_are_uploaded(fal_cdn: CDN, kind: type[File]) -> None:
    made = kind.from_bytes(b"content")
    assert [file.url for file in fal_cdn.files] == [made.url]
    assert fal_cdn.get(made.url) == b"content"


@states("output-side")
def test_an_image_made_from_raw_bytes_is_uploaded(fal_cdn: CDN) -> None:
    made = Image.from_bytes(png(), format="png")
    assert fal_cdn.get(made.url) == png()


@states("output-side")
def test_an_image_made_from_a_pil_image_is_uploaded(fal_cdn: CDN) -> None:
    made = Image.from_pil(PILImage.new("RGB", (4, 2), "red"))
    assert fal_cdn.image(made.url).size == (4, 2)
