"""The section "Creating Files": each line of its snippet, as printed."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from fal.toolkit import Audio, File, Image, Video
from page import states
from PIL import Image as PILImage

if TYPE_CHECKING:
    from pytest_fal import CDN, Volume


@pytest.fixture
def pil_image() -> PILImage.Image:
    return PILImage.new("RGB", (4, 2), "red")


@pytest.fixture
def raw_bytes(pil_image: PILImage.Image) -> bytes:
    written = io.BytesIO()
    pil_image.save(written, "png")
    return written.getvalue()


def on_cdn(cdn: CDN, file: File) -> tuple[bytes, str, str]:
    """Content, type and name of what was uploaded, which is all that was."""
    (stored,) = cdn.files
    assert stored.url == file.url
    return cdn.get(file.url), stored.content_type, stored.file_name


@states("create-from-pil")
def test_an_image_from_pil(fal_cdn: CDN, pil_image: PILImage.Image) -> None:
    image = Image.from_pil(pil_image)
    _, content_type, _ = on_cdn(fal_cdn, image)
    stored = fal_cdn.image(image.url)
    assert (stored.format, content_type) == ("PNG", "image/png")
    assert stored.tobytes() == pil_image.tobytes()


@states("create-from-pil-webp")
def test_an_image_from_pil_as_webp(fal_cdn: CDN, pil_image: PILImage.Image) -> None:
    image = Image.from_pil(pil_image, format="webp")
    _, content_type, _ = on_cdn(fal_cdn, image)
    assert (fal_cdn.image(image.url).format, content_type) == ("WEBP", "image/webp")


@states("create-image-bytes")
def test_an_image_from_bytes(fal_cdn: CDN, raw_bytes: bytes) -> None:
    image = Image.from_bytes(raw_bytes, format="png")
    content, content_type, _ = on_cdn(fal_cdn, image)
    assert (content, content_type) == (raw_bytes, "image/png")


@states("create-image-path")
def test_an_image_from_a_path(fal_cdn: CDN, fal_tmp: Volume, raw_bytes: bytes) -> None:
    fal_tmp.write("output.png", raw_bytes)
    image = Image.from_path("/tmp/output.png")
    content, _, name = on_cdn(fal_cdn, image)
    assert (content, name) == (raw_bytes, "output.png")


@states("create-video-path")
def test_a_video_from_a_path(fal_cdn: CDN, fal_tmp: Volume) -> None:
    fal_tmp.write("output.mp4", b"film")
    video = Video.from_path("/tmp/output.mp4")
    content, _, name = on_cdn(fal_cdn, video)
    assert (type(video), content, name) == (Video, b"film", "output.mp4")


@states("create-audio-path")
def test_audio_from_a_path(fal_cdn: CDN, fal_tmp: Volume) -> None:
    fal_tmp.write("output.wav", b"song")
    audio = Audio.from_path("/tmp/output.wav")
    content, _, name = on_cdn(fal_cdn, audio)
    assert (type(audio), content, name) == (Audio, b"song", "output.wav")


@states("create-audio-bytes")
def test_audio_from_bytes(fal_cdn: CDN, raw_bytes: bytes) -> None:
    audio = Audio.from_bytes(raw_bytes, content_type="audio/wav", file_name="output.wav")
    assert type(audio) is Audio
    assert on_cdn(fal_cdn, audio) == (raw_bytes, "audio/wav", "output.wav")


@states("create-file-path")
def test_a_file_from_a_path(fal_cdn: CDN, fal_tmp: Volume) -> None:
    fal_tmp.write("result.obj", b"mesh")
    generic = File.from_path("/tmp/result.obj")
    content, _, name = on_cdn(fal_cdn, generic)
    assert (type(generic), content, name) == (File, b"mesh", "result.obj")


@states("create-file-bytes")
def test_a_file_from_bytes(fal_cdn: CDN) -> None:
    data = b"mesh"
    generic = File.from_bytes(data, content_type="application/octet-stream", file_name="model.glb")
    assert type(generic) is File
    assert on_cdn(fal_cdn, generic) == (data, "application/octet-stream", "model.glb")
