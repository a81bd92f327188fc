"""The section "The Type System and Playground": what the OpenAPI schema of an app says of files.

The Playground itself is not here: what can be shown is what fal is told of an app when it is
deployed, and that is its schema.
"""

from __future__ import annotations

import base64
import io
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import fal
import pytest
from fal.exceptions import FalServerlessException
from fal.toolkit import Audio, CompressedFile, File, Image, Video
from page import departs, states
from PIL import Image as PILImage
from pydantic import BaseModel
from versions import since

with warnings.catch_warnings():
    # Below 1.82.0 the module imports from where pydantic 2 warns of.
    warnings.simplefilter("ignore")
    from fal.toolkit.types import FileInput, ImageInput

if TYPE_CHECKING:
    from pytest_fal import CDN, RunnerFactory

has_input_schemas = since("1.82.0", "apps with FileInput have a schema")
has_no_input_schemas = pytest.mark.skipif(
    tuple(map(int, version("fal").split(".")[:2])) >= (1, 82),
    reason=f"fal {version('fal')}: apps with FileInput have a schema since 1.82.0",
)


def schemas(app: type[fal.App]) -> dict[str, Any]:
    """The types in the OpenAPI schema that a deployment sends to fal, by name."""
    return app.build_metadata()["openapi"]["components"]["schemas"]


# --- outputs --------------------------------------------------------------------------------------


class Output(BaseModel):
    image: Image
    video: Video
    audio: Audio


class Everything(fal.App):
    """Returns the snippet's Output."""

    @fal.endpoint("/")
    def make(self) -> Output:
        return Output(
            image=Image.from_bytes(b"image", format="png"),
            video=Video.from_bytes(b"video", file_name="a.mp4"),
            audio=Audio.from_bytes(b"audio", file_name="a.mp3"),
        )


class Files(BaseModel):
    file: File
    archive: CompressedFile


class Plain(fal.App):
    @fal.endpoint("/")
    def make(self) -> Files: ...


class Untyped(fal.App):
    @fal.endpoint("/")
    def make(self) -> dict:
        return {"image": Image.from_bytes(b"image", format="png")}


class Turned(BaseModel):
    image: Image


class Turning(fal.App):
    @fal.endpoint("/")
    def turn(self, input: Turned) -> Turned: ...


@states("schema-preview")
@pytest.mark.parametrize(
    ("kind", "field"), [("Image", "image"), ("Video", "video"), ("Audio", "audio")]
)
def test_the_types_of_an_output_name_their_preview(kind: str, field: str) -> None:
    assert schemas(Everything)[kind]["ui"] == {"field": field}


@states("schema-preview")
def test_a_running_app_serves_the_schema_that_is_deployed(fal_runner: RunnerFactory) -> None:
    served = fal_runner(Everything).get("/openapi.json").json()
    assert served["components"]["schemas"] == schemas(Everything)


@states("schema-preview")
def test_a_type_that_is_input_and_output_names_its_preview_in_both() -> None:
    """Twice in the schema, since inputs have a field that outputs have not."""
    found = schemas(Turning)
    assert found["Image-Input"]["ui"] == found["Image-Output"]["ui"] == {"field": "image"}


@states("schema-preview")
def test_an_endpoint_that_returns_dict_names_no_preview() -> None:
    """The page says "in your Pydantic output schema": the endpoints of its own snippets return
    dict, and then nothing tells the Playground what is in it."""
    schema = Untyped.build_metadata()["openapi"]
    response = schema["paths"]["/"]["post"]["responses"]["200"]
    answer = response["content"]["application/json"]["schema"]
    # pydantic before 2.8 leaves out what is true anyway.
    assert (answer["type"], answer.get("additionalProperties", True)) == ("object", True)
    assert "components" not in schema


@states("schema-file")
@pytest.mark.parametrize("kind", ["File", "CompressedFile"])
def test_a_file_names_no_preview(kind: str) -> None:
    """Which the Playground renders as a download link, says the page."""
    found = schemas(Plain)[kind]
    assert "ui" not in found
    assert found["properties"]["url"] == {
        "type": "string",
        "title": "Url",
        "description": "The URL where the file can be downloaded from.",
    }


@states("schema-snippet")
def test_the_snippets_output_has_its_three_types_in_the_schema() -> None:
    properties = schemas(Everything)["Output"]["properties"]
    assert properties == {
        "image": {"$ref": "#/components/schemas/Image"},
        "video": {"$ref": "#/components/schemas/Video"},
        "audio": {"$ref": "#/components/schemas/Audio"},
    }


@states("schema-snippet")
def test_the_snippets_output_is_returned_as_three_urls(
    fal_runner: RunnerFactory, fal_cdn: CDN
) -> None:
    answer = fal_runner(Everything).post("/").json()
    assert {name: fal_cdn.get(file["url"]) for name, file in answer.items()} == {
        "image": b"image",
        "video": b"video",
        "audio": b"audio",
    }


# --- inputs ---------------------------------------------------------------------------------------


class Input(BaseModel):
    file_url: FileInput
    image_url: ImageInput


class Reading(fal.App):
    @fal.endpoint("/")
    def read(self, input: Input) -> dict:
        return {
            "types": [type(input.file_url).__name__, type(input.image_url).__name__],
            "file_url": input.file_url[:40],
        }


IMAGE_URL = "https://example.com/photo.png"


def png_as_data_uri() -> str:
    written = io.BytesIO()
    PILImage.new("RGB", (4, 2)).save(written, "png")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


@has_input_schemas
@states("schema-inputs")
@pytest.mark.parametrize("field", ["file_url", "image_url"])
def test_an_input_is_a_union_of_https_url_and_data_uri(field: str) -> None:
    union = schemas(Reading)["Input"]["properties"][field]["anyOf"]
    assert [(one["type"], one["format"], one["maxLength"]) for one in union] == [
        ("string", "https-url", 2048),
        ("string", "data-uri", 10 * 1024 * 1024),
    ]


@has_input_schemas
@states("schema-inputs")
@departs(
    "schema-inputs",
    does="FileInput and ImageInput are one and the same in the schema: nothing says image",
    since="1.82.0",
)
def test_the_schema_does_not_tell_the_two_unions_apart() -> None:
    """The page: for richer input schemas there are FileInput and ImageInput. The SDK: an upload
    field for pictures needs ``ImageField``, or a name that the Playground guesses by."""
    properties = schemas(Reading)["Input"]["properties"]
    assert properties["file_url"].pop("title") == "File Url"
    assert properties["image_url"].pop("title") == "Image Url"
    assert properties["file_url"] == properties["image_url"]
    assert "ui" not in properties["image_url"]


@has_no_input_schemas
@states("schema-inputs")
@departs(
    "schema-inputs",
    does="up to 1.81.4, with pydantic 2, an app that uses them has no schema: building it raises",
    since="1.7.0",
)
def test_an_app_with_these_unions_had_no_schema() -> None:
    """The page: for richer input schemas there are FileInput and ImageInput. The SDK: their schema
    methods were no class methods, so the app cannot be deployed."""
    with pytest.raises(FalServerlessException) as caught:
        schemas(Reading)
    assert str(caught.value) == "Failed to generate OpenAPI metadata for function"
    assert isinstance(caught.value.__cause__, TypeError)


@states("inputs-validate")
@pytest.mark.parametrize(
    "url",
    ["https://example.com/a.bin", "https://a.b.example.com:8443/a?b=c#d", "data:text/plain,hello"],
)
def test_https_urls_and_data_uris_are_valid(fal_runner: RunnerFactory, url: str) -> None:
    answer = fal_runner(Reading).post("/", json={"file_url": url, "image_url": png_as_data_uri()})
    assert (answer.status_code, answer.json()["file_url"]) == (200, url)


@states("inputs-validate")
@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.bin",
        "ftp://example.com/a.bin",
        "https://localhost/a.bin",
        "https://127.0.0.1/a.bin",
        "/data/a.bin",
        "https://example.com/a b.bin",
        "",
    ],
)
def test_other_urls_are_not(fal_runner: RunnerFactory, url: str) -> None:
    answer = fal_runner(Reading).post("/", json={"file_url": url, "image_url": IMAGE_URL})
    assert answer.status_code == 422
    errors = answer.json()["detail"]
    assert {(error["type"], *error["loc"][:2]) for error in errors} == {
        ("string_pattern_mismatch", "body", "file_url")
    }


@states("inputs-validate")
@pytest.mark.parametrize(("length", "status"), [(2048, 200), (2049, 422)])
def test_urls_have_at_most_2048_characters(
    fal_runner: RunnerFactory, length: int, status: int
) -> None:
    url = IMAGE_URL + "?" + "x" * (length - len(IMAGE_URL) - 1)
    answer = fal_runner(Reading).post("/", json={"file_url": url, "image_url": url})
    assert answer.status_code == status


@states("inputs-validate")
@pytest.mark.parametrize("content", ["text/plain,hello", "image/png;base64,AAAA", "image/png,"])
def test_what_is_at_the_url_is_not_validated(fal_runner: RunnerFactory, content: str) -> None:
    answer = fal_runner(Reading).post(
        "/", json={"file_url": "data:,", "image_url": f"data:{content}"}
    )
    assert answer.status_code == 200


@states("inputs-validate")
@departs(
    "inputs-validate",
    does="with pydantic 2 the value is a bare str: as_temp_file() and to_pil(), which the types "
    "define, are not there",
    since="1.7.0",
)
def test_a_valid_input_is_a_bare_str(fal_runner: RunnerFactory) -> None:
    """The page: types for file URLs. The SDK: HttpsUrl, DataUri and their Image forms have methods
    to download, but their core schema is that of a str, and what is validated stays one."""
    answer = fal_runner(Reading).post(
        "/", json={"file_url": "https://example.com/a.bin", "image_url": png_as_data_uri()}
    )
    assert answer.json()["types"] == ["str", "str"]
    assert not hasattr("", "as_temp_file")
    assert not hasattr("", "to_pil")
