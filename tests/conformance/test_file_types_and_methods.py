"""The section "File Types and Methods": each type, method and field of its table."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

import fal
import fal.toolkit.image.image
import pytest
from fal.toolkit import Audio, CompressedFile, File, Image, Video
from fal.toolkit.file.providers.fal import MultipartUploadV3
from fal.toolkit.image.image import ImageSize
from fal.toolkit.utils.download_utils import DownloadError
from fal.toolkit.utils.ssrf import SSRFError
from page import departs, states
from PIL import Image as PILImage
from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from pytest_fal import CDN, Ledger, Origin, RunnerFactory, Volume

ALL = [File, Image, Video, Audio, CompressedFile]
#: The types whose ``from_bytes`` is File's; Image has one of its own.
WITH_FILES_FROM_BYTES = [File, Video, Audio, CompressedFile]
URL = "https://example.com/file.bin"
RED = (255, 0, 0)


def make(kind: type[File], content: bytes = b"content") -> File:
    """A file of that type, from bytes."""
    if issubclass(kind, Image):
        return kind.from_bytes(content, format="png", file_name="out.png")
    return kind.from_bytes(content, file_name="out.bin")


def picture(size: tuple[int, int] = (4, 2)) -> PILImage.Image:
    return PILImage.new("RGB", size, RED)


def jpeg(image: PILImage.Image, quality: int) -> bytes:
    written = io.BytesIO()
    image.save(written, "jpeg", quality=quality)
    return written.getvalue()


# --- one family -----------------------------------------------------------------------------------


@states("inherit")
@pytest.mark.parametrize("kind", [Image, Video, Audio, CompressedFile])
def test_every_type_extends_file(kind: type[File]) -> None:
    assert kind.__mro__[1] is File


@states("inherit")
@pytest.mark.parametrize("kind", [Image, Video, Audio, CompressedFile])
@pytest.mark.parametrize("method", ["from_path", "as_bytes", "save"])
def test_every_type_has_files_own_methods(kind: type[File], method: str) -> None:
    assert hasattr(kind, method)
    assert method not in vars(kind)


@states("inherit")
@departs(
    "inherit",
    does="Image.from_bytes is another method: it takes format= and no content_type=",
    since="1.0.0",
)
def test_image_does_not_inherit_from_bytes(fal_cdn: CDN) -> None:
    """The page: all types inherit File's methods (its table shows the other signature). The SDK:
    what works for a Video is a TypeError for an Image."""
    with pytest.raises(TypeError) as caught:
        Image.from_bytes(b"content", content_type="image/png")
    assert "unexpected keyword argument 'content_type'" in str(caught.value)
    assert fal_cdn.files == []


# --- from_path ------------------------------------------------------------------------------------


@states("file-from-path", "image-from-path", "video", "audio", "compressed-methods")
@pytest.mark.parametrize("kind", ALL)
def test_from_path_uploads_the_file_at_a_path(
    fal_cdn: CDN, fal_tmp: Volume, kind: type[File]
) -> None:
    fal_tmp.write("out.bin", b"content")
    file = kind.from_path("/tmp/out.bin")
    assert type(file) is kind
    assert fal_cdn.get(file.url) == b"content"
    assert (file.file_name, file.file_size) == ("out.bin", 7)


@states("file-from-path")
def test_from_path_takes_a_path_object_too(fal_cdn: CDN, fal_data: Volume) -> None:
    path = fal_data.write("results/out.bin", b"content")
    assert isinstance(path, Path)
    assert fal_cdn.get(File.from_path(path).url) == b"content"


@states("file-from-path")
def test_from_path_of_no_file_is_an_error(fal_tmp: Volume, fal_ledger: Ledger) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        File.from_path("/tmp/out.bin")
    assert str(caught.value) == "File /tmp/out.bin does not exist"
    assert fal_ledger.exchanges == []


@states("file-from-path", "image-from-path")
@departs(
    "file-from-path",
    does="the content type is application/octet-stream whatever the name; from_bytes guesses it",
    since="1.3.1",
)
@departs(
    "image-from-path",
    does="a picture's content type is application/octet-stream, its width and height are None",
    since="1.3.1",
)
@pytest.mark.parametrize("kind", ALL)
def test_from_path_never_guesses_the_content_type(
    fal_cdn: CDN, fal_tmp: Volume, kind: type[File]
) -> None:
    """The page: nothing about the type of ``from_path("/tmp/output.png")``. The SDK: browsers are
    told application/octet-stream, and download the picture instead of showing it."""
    picture().save(fal_tmp.backing / "out.png")
    file = kind.from_path("/tmp/out.png")
    assert fal_cdn.info(file.url).content_type == file.content_type == "application/octet-stream"
    assert {file.model_dump().get("width"), file.model_dump().get("height")} == {None}


@states("file-from-path", "image-from-path", "video", "audio")
@pytest.mark.parametrize("kind", ALL)
def test_from_path_takes_the_content_type(fal_cdn: CDN, fal_tmp: Volume, kind: type[File]) -> None:
    file = kind.from_path(fal_tmp.write("out.png", b"content"), content_type="image/png")
    assert fal_cdn.info(file.url).content_type == file.content_type == "image/png"


# --- from_bytes -----------------------------------------------------------------------------------


@states("file-from-bytes", "video", "audio", "compressed-methods")
@pytest.mark.parametrize("kind", WITH_FILES_FROM_BYTES)
def test_from_bytes_uploads_bytes_with_type_and_name(fal_cdn: CDN, kind: type[File]) -> None:
    file = kind.from_bytes(b"content", content_type="audio/wav", file_name="out.wav")
    stored = fal_cdn.info(file.url)
    assert type(file) is kind
    assert fal_cdn.get(file.url) == b"content"
    assert stored.content_type == file.content_type == "audio/wav"
    assert stored.file_name == file.file_name == "out.wav"
    assert stored.size == file.file_size == 7


@states("file-from-bytes")
@pytest.mark.parametrize("kind", WITH_FILES_FROM_BYTES)
def test_from_bytes_guesses_the_content_type_by_the_name(fal_cdn: CDN, kind: type[File]) -> None:
    file = kind.from_bytes(b"content", file_name="out.png")
    assert fal_cdn.info(file.url).content_type == file.content_type == "image/png"


@states("file-from-bytes")
def test_from_bytes_invents_the_name_by_the_content_type(fal_cdn: CDN) -> None:
    file = File.from_bytes(b"content", content_type="image/png")
    assert re.fullmatch(r"[0-9a-f]{32}\.png", file.file_name)
    assert fal_cdn.info(file.url).file_name == file.file_name


@states("file-from-bytes")
def test_from_bytes_of_nothing_but_bytes(fal_cdn: CDN) -> None:
    file = File.from_bytes(b"content")
    assert re.fullmatch(r"[0-9a-f]{32}\.bin", file.file_name)
    assert fal_cdn.info(file.url).content_type == "application/octet-stream"


# --- fields ---------------------------------------------------------------------------------------


@states("file-fields")
def test_a_file_has_url_content_type_name_and_size(fal_cdn: CDN) -> None:
    file = File.from_bytes(b"content", content_type="a/b", file_name="out.bin")
    (stored,) = fal_cdn.files
    assert file.model_dump() == {
        "url": stored.url,
        "content_type": "a/b",
        "file_name": "out.bin",
        "file_size": 7,
    }


@states("file-fields", "image-fields")
@departs("file-fields", does="File(url=...) has its URL only, the others are None", since="1.0.0")
@departs("image-fields", does="Image(url=...) knows neither width nor height", since="1.0.0")
@pytest.mark.parametrize("kind", ALL)
def test_a_file_made_of_a_url_has_no_other_fields(fal_ledger: Ledger, kind: type[File]) -> None:
    """The page: the fields are content_type, file_name and file_size (and width and height). The
    SDK: nobody asks the server for them."""
    fields = kind(url=URL).model_dump()
    assert fields.pop("url") == URL
    assert set(fields.values()) == {None}
    assert fal_ledger.exchanges == []


class Attachment(BaseModel):
    file: File


class Reading(fal.App):
    """Tells what it reads from the file it is given."""

    @fal.endpoint("/")
    def read(self, input: Attachment) -> dict:
        return {"read": input.file.as_bytes().decode()}


@states("file-fields", "as-bytes")
@departs(
    "file-fields",
    does="there is a fifth, file_data: never in a response, but callers can set it",
    since="1.0.0",
)
@departs(
    "as-bytes",
    does="an input's as_bytes() is its field file_data, which is not what is at its URL",
    since="1.0.0",
)
def test_callers_can_write_the_field_file_data(
    fal_runner: RunnerFactory, fal_ledger: Ledger
) -> None:
    """The page: four fields, and as_bytes() returns the file's content. The SDK: the bytes are in
    a field that is left out of responses and not out of inputs: nothing was downloaded here."""
    runner = fal_runner(Reading)
    answer = runner.post("/", json={"file": {"url": URL, "file_data": "what the caller says"}})
    assert answer.json() == {"read": "what the caller says"}
    assert fal_ledger.exchanges == []
    schemas = runner.get("/openapi.json").json()["components"]["schemas"]
    assert "file_data" in schemas["File"]["properties"]


@states("image-fields")
def test_an_image_has_width_and_height(fal_cdn: CDN) -> None:
    image = Image.from_pil(picture(size=(4, 2)))
    assert (image.width, image.height) == (4, 2)
    assert set(Image.model_fields) - set(File.model_fields) == {"width", "height"}


@states("image-fields")
@departs(
    "image-fields",
    does="from_bytes takes width and height from size=, right or wrong, and else leaves them None",
    since="1.0.0",
)
@pytest.mark.parametrize(
    ("size", "fields"), [(None, (None, None)), (ImageSize(width=9, height=8), (9, 8))]
)
def test_from_bytes_does_not_look_how_large_an_image_is(
    fal_cdn: CDN, size: ImageSize | None, fields: tuple[int | None, int | None]
) -> None:
    """The page: Image adds width and height. The SDK: only from_pil knows them."""
    content = Image.from_pil(picture(size=(4, 2))).as_bytes()
    image = Image.from_bytes(content, "png", size=size)
    assert (image.width, image.height) == fields
    assert fal_cdn.image(image.url).size == (4, 2)


@states("video", "audio")
@pytest.mark.parametrize("kind", [Video, Audio])
def test_video_and_audio_have_no_fields_of_their_own(kind: type[File]) -> None:
    assert set(kind.model_fields) == set(File.model_fields)


@states("media-player")
@pytest.mark.parametrize(("kind", "player"), [(Video, "video"), (Audio, "audio")])
def test_video_and_audio_tell_the_playground_their_player(kind: type[File], player: str) -> None:
    assert kind.model_json_schema()["ui"] == {"field": player}


# --- Image ----------------------------------------------------------------------------------------


@states("image-from-pil")
def test_from_pil_uploads_the_image_in_a_format(fal_cdn: CDN) -> None:
    image = Image.from_pil(picture(), format="webp")
    stored = fal_cdn.image(image.url)
    assert type(image) is Image
    assert (stored.format, stored.size) == ("WEBP", (4, 2))
    assert fal_cdn.info(image.url).content_type == image.content_type == "image/webp"


@states("image-from-pil")
@departs(
    "image-from-pil",
    does="without format= an opened picture keeps its own, and its type is written image/JPEG",
    since="1.0.0",
)
def test_from_pil_of_an_opened_picture_writes_its_content_type_in_upper_case(
    fal_cdn: CDN, fal_tmp: Volume
) -> None:
    """The page: formats are "png", "jpeg" and so on. The SDK: Pillow's name of the format is taken
    as it is."""
    picture().save(fal_tmp.backing / "photo.jpg")
    with PILImage.open("/tmp/photo.jpg") as opened:
        image = Image.from_pil(opened)
    assert fal_cdn.info(image.url).content_type == image.content_type == "image/JPEG"


@states("image-from-pil")
@departs(
    "image-from-pil",
    does="an opened JPEG is saved with Pillow's quality, 75; with format='jpeg' it would be 95",
    since="1.3.4",
)
def test_from_pil_of_an_opened_picture_does_not_find_fals_quality(
    fal_cdn: CDN, fal_tmp: Volume
) -> None:
    """The page: nothing about quality. The SDK: its options are for "jpeg", and Pillow says
    "JPEG"."""
    noise = PILImage.effect_noise((64, 64), 80)
    noise.save(fal_tmp.backing / "photo.jpg")
    with PILImage.open("/tmp/photo.jpg") as opened:
        assert Image.from_pil(opened).as_bytes() == jpeg(opened, quality=75)
        assert Image.from_pil(opened, format="jpeg").as_bytes() == jpeg(opened, quality=95)


@states("image-from-pil")
@departs(
    "image-from-pil",
    does="a picture wider or higher than 14142 pixels is refused",
    since="1.0.0",
)
def test_from_pil_refuses_very_large_pictures(fal_cdn: CDN) -> None:
    """The page: no limit. The SDK: the size goes through ImageSize, the type of an *input*, and
    that is limited."""
    with pytest.raises(ValidationError, match="less than or equal to 14142"):
        Image.from_pil(PILImage.new("1", (14143, 1)))
    assert fal_cdn.files == []
    assert Image.from_pil(PILImage.new("1", (14142, 1))).width == 14142


@states("image-from-bytes")
def test_an_images_from_bytes_takes_format_and_size(fal_cdn: CDN) -> None:
    image = Image.from_bytes(b"content", "png", size=ImageSize(width=4, height=2))
    assert type(image) is Image
    assert fal_cdn.get(image.url) == b"content"
    assert fal_cdn.info(image.url).content_type == image.content_type == "image/png"
    assert (image.width, image.height) == (4, 2)


@states("image-from-bytes")
def test_an_images_from_bytes_demands_the_format(fal_cdn: CDN) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'format'"):
        Image.from_bytes(b"content")


@states("to-pil")
def test_to_pil_gives_the_picture_back(fal_cdn: CDN) -> None:
    painted = picture()
    painted.putpixel((1, 1), (0, 0, 255))
    returned = Image.from_pil(painted).to_pil()
    assert isinstance(returned, PILImage.Image)
    assert (returned.size, returned.tobytes()) == (painted.size, painted.tobytes())


@states("to-pil")
def test_to_pil_downloads_what_is_at_the_url(fal_origin: Origin, fal_tmp: Volume) -> None:
    picture().save(fal_tmp.backing / "photo.png")
    served = fal_origin.serve(URL, fal_tmp.read("photo.png"))
    assert Image(url=URL).to_pil().getpixel((0, 0)) == RED
    assert len(served.requests) == 1
    assert fal_tmp.tree() == ["photo.png"]


@states("to-pil")
def test_to_pil_reads_data_uris(fal_tmp: Volume) -> None:
    picture().save(fal_tmp.backing / "photo.png")
    encoded = base64.b64encode(fal_tmp.read("photo.png")).decode()
    assert Image(url=f"data:image/png;base64,{encoded}").to_pil().getpixel((0, 0)) == RED


@states("to-pil")
@departs("to-pil", does="transparency is lost; to_pil('RGBA') keeps it", since="1.0.0")
def test_to_pil_gives_rgb_unless_told_otherwise(fal_cdn: CDN) -> None:
    """The page: converts back. The SDK: the mode is RGB by default, whatever was uploaded."""
    clear = PILImage.new("RGBA", (4, 2), (255, 0, 0, 7))
    image = Image.from_pil(clear)
    assert image.to_pil().getpixel((0, 0)) == RED
    assert image.to_pil("RGBA").getpixel((0, 0)) == (255, 0, 0, 7)


@states("to-pil")
@departs("to-pil", does="pictures of more than 50 MiB are refused", since="1.75.5")
def test_to_pil_refuses_large_pictures(fal_origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page: no limit. The SDK: 50 MiB, and the error is none of the toolkit's public ones."""
    module = fal.toolkit.image.image
    assert module.MAX_IMAGE_DOWNLOAD_SIZE == 50 * 1024 * 1024
    monkeypatch.setattr(module, "MAX_IMAGE_DOWNLOAD_SIZE", 1000)
    fal_origin.serve(URL, b"x" * 1001)
    with pytest.raises(SSRFError) as caught:
        Image(url=URL).to_pil()
    assert str(caught.value) == "File body exceeded 1000 bytes before download"


# --- CompressedFile -------------------------------------------------------------------------------


@states("compressed-methods")
@pytest.mark.parametrize("make_it", ["from_path", "from_bytes"])
def test_a_compressed_file_iterates_and_globs_over_its_archive(
    fal_cdn: CDN, fal_tmp: Volume, make_it: str
) -> None:
    with ZipFile(fal_tmp.backing / "out.zip", "w") as archive:
        archive.writestr("a.txt", "A")
        archive.writestr("b.png", "B")
    argument = {"from_path": "/tmp/out.zip", "from_bytes": fal_tmp.read("out.zip")}[make_it]
    compressed = getattr(CompressedFile, make_it)(argument)
    assert {path.name: path.read_text() for path in compressed} == {"a.txt": "A", "b.png": "B"}
    assert [path.name for path in compressed.glob("*.png")] == ["b.png"]


# --- as_bytes -------------------------------------------------------------------------------------


@states("as-bytes")
@pytest.mark.parametrize("kind", ALL)
def test_as_bytes_returns_what_a_file_was_made_of(fal_cdn: CDN, kind: type[File]) -> None:
    assert make(kind).as_bytes() == b"content"


@states("as-bytes")
@pytest.mark.parametrize("kind", ALL)
def test_as_bytes_returns_what_was_at_the_path(
    fal_cdn: CDN, fal_tmp: Volume, kind: type[File]
) -> None:
    assert kind.from_path(fal_tmp.write("out.bin", b"content")).as_bytes() == b"content"


@states("as-bytes")
def test_as_bytes_of_an_image_from_pil_is_the_encoded_picture(fal_cdn: CDN) -> None:
    image = Image.from_pil(picture())
    assert image.as_bytes() == fal_cdn.get(image.url)


@states("as-bytes")
@departs(
    "as-bytes",
    does="only where the object was made from bytes or a path, in this process: as_bytes() of a "
    "file made of its URL raises ValueError and downloads nothing",
    since="1.0.0",
)
@pytest.mark.parametrize("kind", ALL)
def test_as_bytes_of_a_file_made_of_a_url_is_an_error(
    fal_cdn: CDN, fal_ledger: Ledger, kind: type[File]
) -> None:
    """The page: every type's as_bytes() returns the content. The SDK: of an input file, which is
    the usual case, it cannot be asked."""
    file = kind(url=fal_cdn.put(b"content"))
    with pytest.raises(ValueError) as caught:
        file.as_bytes()
    assert str(caught.value) == "File has not been downloaded"
    assert fal_ledger.exchanges == []


@states("as-bytes")
@departs("as-bytes", does="the bytes do not travel with the object as JSON", since="1.0.0")
@pytest.mark.parametrize("kind", ALL)
def test_as_bytes_is_lost_on_the_way_through_json(fal_cdn: CDN, kind: type[File]) -> None:
    """The page: as_bytes() returns the content. The SDK: not after the trip to another app."""
    arrived = kind.model_validate_json(make(kind).model_dump_json())
    with pytest.raises(ValueError, match="File has not been downloaded"):
        arrived.as_bytes()


@states("as-bytes")
@departs("as-bytes", does="not for files of more than 100 MiB from a path", since="1.3.1")
def test_as_bytes_of_a_large_file_from_a_path_is_an_error(
    fal_cdn: CDN, fal_tmp: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page: as_bytes() returns the content. The SDK: not of what it sent in parts, unless it
    was made from bytes. (The limit is lowered here.)"""
    assert MultipartUploadV3.MULTIPART_THRESHOLD == 100 * 1024 * 1024
    monkeypatch.setattr(MultipartUploadV3, "MULTIPART_THRESHOLD", 6)
    file = File.from_path(fal_tmp.write("out.bin", b"content"))
    assert fal_cdn.get(file.url) == b"content"
    with pytest.raises(ValueError, match="File has not been downloaded"):
        file.as_bytes()
    assert File.from_bytes(b"content").as_bytes() == b"content"


# --- save -----------------------------------------------------------------------------------------


@states("save")
@pytest.mark.parametrize("kind", ALL)
def test_save_writes_the_content_to_a_path(
    fal_cdn: CDN, fal_data: Volume, kind: type[File]
) -> None:
    saved = make(kind).save("/data/results/copy.bin")
    assert saved == Path("/data/results/copy.bin")
    assert fal_data.tree() == ["results/copy.bin"]
    assert fal_data.read("results/copy.bin") == b"content"


@states("save")
@pytest.mark.parametrize("kind", ALL)
def test_save_downloads_what_is_at_the_url(
    fal_origin: Origin, fal_tmp: Volume, kind: type[File]
) -> None:
    fal_origin.serve(URL, b"content")
    kind(url=URL).save("/tmp/copy.bin")
    assert fal_tmp.tree() == ["copy.bin"]
    assert fal_tmp.read("copy.bin") == b"content"


@states("save")
def test_save_takes_a_relative_path_from_the_working_directory(
    fal_cdn: CDN, fal_tmp: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from /data, as the target_dir of download_file."""
    monkeypatch.chdir("/tmp")
    assert make(File).save("copy.bin") == Path("/tmp/copy.bin")
    assert fal_tmp.read("copy.bin") == b"content"


@states("save")
def test_save_does_not_overwrite_unless_told_to(fal_cdn: CDN, fal_tmp: Volume) -> None:
    fal_tmp.write("copy.bin", b"older")
    file = make(File)
    with pytest.raises(FileExistsError) as caught:
        file.save("/tmp/copy.bin")
    assert str(caught.value) == "File /tmp/copy.bin already exists"
    assert fal_tmp.read("copy.bin") == b"older"
    file.save("/tmp/copy.bin", overwrite=True)
    assert fal_tmp.read("copy.bin") == b"content"


@states("save")
@departs(
    "save",
    does="it downloads again even where the bytes are at hand: once the file has expired, it fails",
    since="1.0.0",
)
def test_save_fails_after_expiry_though_the_bytes_are_at_hand(
    fal_cdn: CDN, fal_tmp: Volume
) -> None:
    """The page: writes the content to a local path. The SDK: always from the URL."""
    file = make(File)
    fal_cdn.expire(file.url)
    assert file.as_bytes() == b"content"
    with pytest.raises(DownloadError):
        file.save("/tmp/copy.bin")
    assert fal_tmp.tree() == []


@states("save")
@departs(
    "save",
    does="it downloads next to the target, under the URL's name, and moves that: a neighbour of "
    "that name is overwritten and gone",
    since="1.0.0",
)
def test_save_destroys_a_neighbour_with_the_urls_name(fal_origin: Origin, fal_data: Volume) -> None:
    """The page: writes to a local path. The SDK: another file of the folder is lost with it."""
    fal_origin.serve(URL, b"content")
    fal_data.write("results/file.bin", b"another result")
    File(url=URL).save("/data/results/copy.bin")
    assert fal_data.tree() == ["results/copy.bin"]
    assert fal_data.read("results/copy.bin") == b"content"


@states("save")
@departs(
    "save",
    does="a neighbour with the URL's name and the same size is moved to the path instead",
    since="1.0.0",
)
def test_save_delivers_a_neighbour_with_the_urls_name_and_size(
    fal_origin: Origin, fal_data: Volume
) -> None:
    """The page: writes the file's content. The SDK: the neighbour passes for the download, since
    download_file compares names and sizes: another content arrives, and the neighbour is gone."""
    fal_origin.serve(URL, b"content")
    fal_data.write("results/file.bin", b"another")
    File(url=URL).save("/data/results/copy.bin")
    assert fal_data.tree() == ["results/copy.bin"]
    assert fal_data.read("results/copy.bin") == b"another"


@states("save")
@departs(
    "save",
    does="overwrite=True keeps the old content where the path has the URL's name and the size is "
    "the same",
    since="1.0.0",
)
def test_save_with_overwrite_keeps_a_file_of_the_urls_name_and_size(
    fal_origin: Origin, fal_data: Volume
) -> None:
    """The page: writes the content. The SDK: download_file takes the old file for the new one."""
    fal_origin.serve(URL, b"content")
    fal_data.write("file.bin", b"another")
    File(url=URL).save("/data/file.bin", overwrite=True)
    assert fal_data.read("file.bin") == b"another"
