"""The section "Supported Formats": which formats are accepted, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fal
import httpx
import pytest
from fal.toolkit import Audio, File, Image, Video
from page import departs, states
from PIL import Image as PILImage
from pydantic import BaseModel

if TYPE_CHECKING:
    from pytest_fal import CDN, Ledger, RunnerFactory, Volume

UNRESTRICTED = [File, Video, Audio]
#: The formats that the page lists and Pillow knows by these names.
WRITABLE = ["png", "jpeg", "webp", "gif"]
FILES = {
    "film.mp4": b"\0\0\0\x18ftypisom",
    "song.mp3": b"ID3\x04",
    "mesh.glb": b"glTF\x02",
    "page.html": b"<html>",
    "no-extension": b"\x7fELF",
    "empty.wav": b"",
}


def picture() -> PILImage.Image:
    return PILImage.new("RGB", (4, 2), "red")


# --- File, Video, Audio ---------------------------------------------------------------------------


@states("any-format")
@pytest.mark.parametrize("kind", UNRESTRICTED)
@pytest.mark.parametrize("name", FILES)
def test_bytes_of_any_format_are_accepted(fal_cdn: CDN, kind: type[File], name: str) -> None:
    file = kind.from_bytes(FILES[name], file_name=name)
    assert fal_cdn.get(file.url) == FILES[name]
    assert fal_cdn.info(file.url).file_name == name


@states("any-format")
@pytest.mark.parametrize("kind", UNRESTRICTED)
@pytest.mark.parametrize("name", FILES)
def test_paths_of_any_format_are_accepted(
    fal_cdn: CDN, fal_tmp: Volume, kind: type[File], name: str
) -> None:
    file = kind.from_path(fal_tmp.write(name, FILES[name]))
    assert fal_cdn.get(file.url) == FILES[name]


@states("any-url")
@pytest.mark.parametrize("kind", UNRESTRICTED)
@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/page.html",
        "http://example.com/photo.png",
        "https://example.com/no-extension?format=mp3",
        "data:text/plain,hello",
    ],
)
def test_any_url_is_accepted_and_not_looked_at(
    fal_ledger: Ledger, kind: type[File], url: str
) -> None:
    assert kind(url=url).url == kind.model_validate(url).url == url
    assert fal_ledger.exchanges == []


@states("any-url")
@pytest.mark.parametrize("kind", UNRESTRICTED)
def test_any_bytes_are_accepted_whatever_the_content_type(fal_cdn: CDN, kind: type[File]) -> None:
    file = kind.from_bytes(b"<html>", content_type="video/mp4", file_name="song.mp3")
    assert fal_cdn.get(file.url) == b"<html>"


class Attachment(BaseModel):
    file: File


class Taking(fal.App):
    @fal.endpoint("/")
    def take(self, input: Attachment) -> dict:
        return {"url": input.file.url}


@states("any-url")
@departs(
    "any-url",
    does='a URL given as a string must be http, https or data; {"url": ...} takes any text',
    since="1.0.0",
)
@pytest.mark.parametrize("url", ["ftp://example.com/a.mp4", "s3://bucket/a.mp4", "/data/a.mp4"])
def test_a_bare_url_of_another_scheme_is_refused(fal_runner: RunnerFactory, url: str) -> None:
    """The page: no validation at the SDK level, any URL can be passed. The SDK: a string is
    checked for its scheme, and the field url is not."""
    runner = fal_runner(Taking)
    refused = runner.post("/", json={"file": url})
    (error,) = refused.json()["detail"]
    assert (refused.status_code, error["msg"]) == (422, "Value error, value must be a valid URL")
    assert runner.post("/", json={"file": {"url": url}}).json() == {"url": url}


# --- content_type ---------------------------------------------------------------------------------


@states("content-type-metadata")
@pytest.mark.parametrize("kind", UNRESTRICTED)
@pytest.mark.parametrize("content_type", ["video/mp4", "application/x-own", "no type at all"])
def test_the_content_type_is_stored_beside_the_file(
    fal_cdn: CDN, kind: type[File], content_type: str
) -> None:
    file = kind.from_bytes(b"content", content_type=content_type)
    assert file.content_type == content_type
    assert httpx.get(file.url).headers["content-type"] == content_type


@states("content-type-metadata")
@pytest.mark.parametrize("kind", [File, Image, Video, Audio])
def test_the_content_type_restricts_no_upload(
    fal_cdn: CDN, fal_tmp: Volume, kind: type[File]
) -> None:
    path = fal_tmp.write("page.html", b"<html>")
    assert fal_cdn.get(kind.from_path(path, content_type="audio/wav").url) == b"<html>"


# --- Image ----------------------------------------------------------------------------------------


@states("image-formats")
@pytest.mark.parametrize("name", WRITABLE)
def test_from_pil_writes_the_formats_of_the_list(fal_cdn: CDN, name: str) -> None:
    image = Image.from_pil(picture(), format=name)
    assert fal_cdn.image(image.url).format == name.upper()
    assert fal_cdn.info(image.url).content_type == f"image/{name}"


@states("image-formats")
@departs("image-formats", does="from_pil(format='jpg') raises KeyError: 'JPG'", since="1.0.0")
def test_from_pil_does_not_know_jpg(fal_cdn: CDN) -> None:
    """The page: "jpg" is one of the formats. The SDK: its type hint has it, but the name goes to
    Pillow, which knows "jpeg" only."""
    with pytest.raises(KeyError) as caught:
        Image.from_pil(picture(), format="jpg")
    assert caught.value.args == ("JPG",)
    assert fal_cdn.files == []


@states("image-formats")
@departs("image-formats", does="from_pil(format='jpeg') refuses transparency", since="1.0.0")
def test_from_pil_does_not_write_a_transparent_jpeg(fal_cdn: CDN) -> None:
    """The page: "jpeg" is accepted. The SDK: not of an RGBA picture, which models often return;
    nothing converts it."""
    with pytest.raises(OSError, match="cannot write mode RGBA as JPEG"):
        Image.from_pil(picture().convert("RGBA"), format="jpeg")
    assert fal_cdn.files == []


@states("image-formats")
@pytest.mark.parametrize("name", [*WRITABLE, "jpg"])
def test_from_bytes_takes_the_formats_of_the_list(fal_cdn: CDN, name: str) -> None:
    image = Image.from_bytes(b"content", format=name)
    assert fal_cdn.get(image.url) == b"content"
    assert fal_cdn.info(image.url).content_type == f"image/{name}"


@states("image-formats")
@departs("image-formats", does="from_bytes(format='jpg') declares image/jpg", since="1.0.0")
def test_from_bytes_makes_a_type_that_does_not_exist_of_jpg(fal_cdn: CDN) -> None:
    """The page: "jpg" is one of the formats. The SDK: it puts the word behind "image/", and the
    registered type is image/jpeg."""
    image = Image.from_bytes(b"content", format="jpg")
    assert httpx.get(image.url).headers["content-type"] == "image/jpg"


@states("image-other-formats")
@departs(
    "image-other-formats",
    does="the list is a type hint: from_pil writes whatever Pillow can write",
    since="1.0.0",
)
@pytest.mark.parametrize("name", ["bmp", "tiff", "ppm"])
def test_from_pil_writes_formats_that_are_not_in_the_list(fal_cdn: CDN, name: str) -> None:
    """The page: Image has a defined list of formats. The SDK: nothing checks it."""
    image = Image.from_pil(picture(), format=name)
    assert fal_cdn.image(image.url).format == name.upper()
    assert fal_cdn.info(image.url).content_type == f"image/{name}"


@states("image-other-formats")
@departs(
    "image-other-formats",
    does="a format that Pillow does not know is a KeyError from inside Pillow",
    since="1.0.0",
)
def test_from_pil_of_an_unknown_format_is_pillows_error(fal_cdn: CDN) -> None:
    """The page: a defined list of formats. The SDK: what refuses the others is Pillow, with an
    error that names neither the parameter nor the list."""
    with pytest.raises(KeyError) as caught:
        Image.from_pil(picture(), format="heif2")
    assert caught.value.args == ("HEIF2",)


@states("image-other-formats")
@departs(
    "image-other-formats",
    does="from_bytes takes any word as the format and puts it behind image/",
    since="1.0.0",
)
@pytest.mark.parametrize("name", ["bmp", "PNG", "x/y", ""])
def test_from_bytes_takes_any_word_as_the_format(fal_cdn: CDN, name: str) -> None:
    """The page: a defined list of formats. The SDK: neither the word nor the bytes are checked."""
    image = Image.from_bytes(b"no picture", format=name)
    assert fal_cdn.info(image.url).content_type == f"image/{name}"


@states("image-path-any")
@pytest.mark.parametrize("name", [*FILES, "photo.bmp", "photo.heic"])
def test_an_image_from_a_path_can_be_anything(fal_cdn: CDN, fal_tmp: Volume, name: str) -> None:
    content = FILES.get(name, b"content")
    assert fal_cdn.get(Image.from_path(fal_tmp.write(name, content)).url) == content


# --- previews -------------------------------------------------------------------------------------


@states("preview-by-type")
@pytest.mark.parametrize(
    ("kind", "preview"), [(Image, "image"), (Video, "video"), (Audio, "audio")]
)
def test_the_preview_is_the_types_whatever_the_format(
    fal_cdn: CDN, fal_tmp: Volume, kind: type[File], preview: str
) -> None:
    """What tells the Playground is in the type's schema; a file's own JSON says its format and not
    its preview. How a browser then shows it, nothing here can see."""
    file = kind.from_path(fal_tmp.write("page.html", b"<html>"), content_type="text/html")
    assert kind.model_json_schema()["ui"] == {"field": preview}
    assert "ui" not in file.model_dump()


@states("widely-supported")
@pytest.mark.parametrize(
    ("kind", "name", "content_type"),
    [
        (Video, "output.mp4", "video/mp4"),
        (Audio, "output.mp3", "audio/mpeg"),
        (Audio, "output.wav", "audio/wav"),
    ],
)
def test_widely_supported_formats_are_served_as_what_they_are(
    fal_cdn: CDN, fal_tmp: Volume, kind: type[File], name: str, content_type: str
) -> None:
    """With ranges too, which players need to seek. No codec is looked at."""
    file = kind.from_path(fal_tmp.write(name, b"content"), content_type=content_type)
    part = httpx.get(file.url, headers={"range": "bytes=3-"})
    assert (part.status_code, part.content) == (206, b"tent")
    assert part.headers["content-type"] == content_type


@states("widely-supported")
@departs(
    "widely-supported",
    does="from_path serves an .mp4 as application/octet-stream unless told content_type=",
    since="1.3.1",
)
def test_a_film_from_a_path_is_not_served_as_a_film(fal_cdn: CDN, fal_tmp: Volume) -> None:
    """The page: MP4 for maximum compatibility. The SDK: the type has to be told, or browsers offer
    a download."""
    film = Video.from_path(fal_tmp.write("output.mp4", FILES["film.mp4"]))
    assert httpx.get(film.url).headers["content-type"] == "application/octet-stream"
