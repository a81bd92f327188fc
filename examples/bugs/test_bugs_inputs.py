"""What endpoints take: parameters, ``File``, ``FileInput`` and ``ImageInput`` as inputs."""

from __future__ import annotations

import io
import warnings

import fal
import pytest
from fal.exceptions import FalServerlessException
from fal.toolkit import File, Image, download_file
from gallery import bug
from PIL import Image as PILImage
from pydantic import BaseModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # below 1.82.0 it imports from where pydantic 2 warns of
    from fal.toolkit.types import FileInput, ImageInput

TOPIC = "Inputs"
URL = "https://example.com/document.txt"
PHOTO = "https://example.com/photo.png"


# --- parameters ----------------------------------------------------------------------------------


class Prompt(BaseModel):
    prompt: str


class Painter(fal.App):
    @fal.endpoint("/")
    def paint(self, prompt: str) -> str:
        return f"a picture of {prompt}"

    @fal.endpoint("/with-a-model")
    def paint_with_a_model(self, input: Prompt) -> str:
        return f"a picture of {input.prompt}"


@bug(
    "N1",
    symptom="422 Field required, although the field is in the body",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_plain_parameter_is_not_taken_from_the_body(fal_runner):
    """An endpoint's parameter of a plain type is looked for in the URL, not in the body.

    Production: the endpoint answers 422 to each call, as fal's clients send JSON. Endpoints with
        such parameters are in fal's documentation.
    Expected: prompt: str is the field prompt of the body.
    Happens: the SDK leaves parameters to FastAPI, for which plain types are parameters of the
        query.
    Avoid: one parameter, whose type is a pydantic model.
    """
    runner = fal_runner(Painter)
    refused = runner.post("/", json={"prompt": "a cat"})
    assert refused.status_code == 422
    (error,) = refused.json()["detail"]
    assert (error["loc"], error["msg"]) == (["query", "prompt"], "Field required")
    assert runner.post("/", params={"prompt": "a cat"}).json() == "a picture of a cat"

    answer = runner.post("/with-a-model", json={"prompt": "a cat"})
    assert answer.json() == "a picture of a cat"


# --- File ----------------------------------------------------------------------------------------


class Attachment(BaseModel):
    file: File


def content_of(file):
    """What works for inputs and for files of one's own: the bytes at hand, or a download."""
    try:
        return file.as_bytes()
    except ValueError:
        return download_file(file.url, "/tmp/inputs").read_bytes()


class Reader(fal.App):
    @fal.endpoint("/")
    def read(self, input: Attachment) -> str:
        assert input.file.url.startswith("https://example.com/"), "we only read what is there"
        return content_of(input.file).decode()

    @fal.endpoint("/by-url")
    def read_by_url(self, input: Attachment) -> str:
        return content_of(File(url=input.file.url)).decode()


@bug(
    "N3",
    symptom="my app processed something that was never at the URL it had checked",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_caller_can_send_the_bytes_of_a_file(fal_runner, fal_origin):
    """A File that is an input has the field file_data, which its caller may fill with anything.

    Production: what was checked of an input, logged and kept is its URL; what was processed came
        with the request.
    Expected: the bytes of a File are those at its URL.
    Happens: as_bytes() returns file_data, which is left out of outputs, but not of inputs; the
        app's public schema has it, too.
    Avoid: keep nothing of the input but its URL.
    """
    origin = fal_origin.serve(URL, b"what is at the URL")
    runner = fal_runner(Reader)
    file = {"url": URL, "file_data": "what the caller wants"}
    assert runner.post("/", json={"file": file}).json() == "what the caller wants"
    assert origin.requests == []
    schemas = runner.get("/openapi.json").json()["components"]["schemas"]
    assert "file_data" in schemas["File"]["properties"]

    assert runner.post("/by-url", json={"file": file}).json() == "what is at the URL"


# --- FileInput and ImageInput --------------------------------------------------------------------


class Links(BaseModel):
    file: FileInput
    image: ImageInput


class LinkReader(fal.App):
    @fal.endpoint("/")
    def read(self, input: Links) -> str:
        return download_file(input.file, "/tmp/inputs").read_text()


@bug(
    "N6",
    symptom="AttributeError: 'str' object has no attribute 'as_temp_file'",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_the_values_of_file_inputs_are_plain_strings(fal_origin):
    """A FileInput or ImageInput is a plain str: the methods that these types define are not there.

    Production: each request that was valid fails with 500.
    Expected: as_temp_file() of a FileInput, and to_pil() of an ImageInput, as defined.
    Happens: the types tell pydantic to validate a str, and so it returns one.
    Avoid: download_file for files, Image(url=...) for images.
    """
    fal_origin.serve(URL, b"content")
    photo = io.BytesIO()
    PILImage.new("RGB", (4, 2)).save(photo, "PNG")
    fal_origin.serve(PHOTO, photo.getvalue())
    input = Links(file=URL, image=PHOTO)
    with pytest.raises(AttributeError, match=r"^'str' object has no attribute 'as_temp_file'$"):
        input.file.as_temp_file()
    with pytest.raises(AttributeError, match=r"^'str' object has no attribute 'to_pil'$"):
        input.image.to_pil()

    assert download_file(input.file, "/tmp/inputs").read_bytes() == b"content"
    assert Image(url=input.image).to_pil().size == (4, 2)


@bug(
    "N6",
    symptom="my app answers, but it cannot be deployed: Failed to generate OpenAPI metadata",
    topic=TOPIC,
    seen=("1.75.5", "1.81.4"),
    gone="1.82.0",
)
def test_an_app_with_file_inputs_has_no_schema(fal_runner, fal_origin):
    """An app that uses FileInput or ImageInput has no OpenAPI schema.

    Production: the deployment fails; where the app runs, /openapi.json is a 500.
    Expected: a field that takes a URL or a data URI.
    Happens: what should tell the schema is no class method, and so is called with too little.
    Avoid: fal 1.82.0 or newer, or a str.
    """
    fal_origin.serve(URL, b"content")
    runner = fal_runner(LinkReader)
    with pytest.raises(FalServerlessException) as failure:
        LinkReader.build_metadata()
    assert str(failure.value) == "Failed to generate OpenAPI metadata for function"
    assert runner.get("/openapi.json").status_code == 500
    assert runner.post("/", json={"file": URL, "image": PHOTO}).json() == "content"
