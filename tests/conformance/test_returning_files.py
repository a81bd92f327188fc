"""The section "Returning Files from Endpoints": a file in a response becomes a public URL."""

from __future__ import annotations

import re
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING

import fal
import httpx
import pytest
from fal.toolkit import Audio, CompressedFile, File, Image, Video
from page import departs, states
from PIL import Image as PILImage

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pytest_fal import CDN, Clock, Ledger, RunnerFactory

KINDS = {kind.__name__: kind for kind in (File, Image, Video, Audio, CompressedFile)}
OUTPUT_LIFETIME = "x-fal-object-lifecycle-preference"


def make(kind: type[File]) -> File:
    """A file of that type, from bytes."""
    if issubclass(kind, Image):
        return kind.from_bytes(b"content", format="png", file_name="out.png")
    return kind.from_bytes(b"content", content_type="a/b", file_name="out.bin")


# --- as printed -----------------------------------------------------------------------------------


def load_model() -> Callable[[str], Any]:
    """What the snippet leaves undefined: the model paints every prompt red."""
    return lambda _prompt: SimpleNamespace(images=[PILImage.new("RGB", (4, 2), "red")])


class MyModel(fal.App):
    machine_type = "GPU-A100"

    def setup(self):
        self.pipe = load_model()

    @fal.endpoint("/")
    def generate(self, prompt: str) -> dict:
        pil_image = self.pipe(prompt).images[0]
        return {"image": Image.from_pil(pil_image)}


@states("returned-snippet")
def test_the_snippets_endpoint_returns_an_image_that_is_on_the_cdn(
    fal_runner: RunnerFactory, fal_cdn: CDN
) -> None:
    answer = fal_runner(MyModel).post("/", params={"prompt": "a cat"}).json()
    image = fal_cdn.image(answer["image"]["url"])
    assert (image.size, image.getpixel((0, 0))) == ((4, 2), (255, 0, 0))
    assert (answer["image"]["width"], answer["image"]["height"]) == (4, 2)


@states("returned-snippet")
@departs(
    "returned-snippet",
    does="prompt, a bare str, is a query parameter: a JSON body with it is answered 422",
    since="1.0.0",
)
def test_the_snippets_prompt_is_a_query_parameter(fal_runner: RunnerFactory) -> None:
    """The page: calls of its endpoint are not shown. fal's clients send arguments as JSON, and
    that is for endpoints that take a pydantic model: of a bare str FastAPI makes a query
    parameter."""
    response = fal_runner(MyModel).post("/", json={"prompt": "a cat"})
    assert response.status_code == 422
    (error,) = response.json()["detail"]
    assert (error["type"], error["loc"]) == ("missing", ["query", "prompt"])


# --- what comes back ------------------------------------------------------------------------------


class Returning(fal.App):
    """Returns a file of the type it is asked for."""

    @fal.endpoint("/")
    def make(self, kind: str) -> dict:
        return {"file": make(KINDS[kind])}

    @fal.endpoint("/typed")
    def typed(self) -> File:
        return make(File)

    @fal.endpoint("/forgotten")
    def forget(self) -> dict:
        make(File)
        return {}

    @fal.endpoint("/elsewhere")
    def elsewhere(self) -> dict:
        return {"file": File(url="https://example.com/out.bin")}


@states("returned-uploads")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_a_response_is_on_the_cdn_under_the_url_returned(
    fal_runner: RunnerFactory, fal_cdn: CDN, kind: str
) -> None:
    answer = fal_runner(Returning).post("/", params={"kind": kind}).json()
    assert fal_cdn.get(answer["file"]["url"]) == b"content"


@states("returned-uploads")
def test_a_file_that_is_the_response_is_its_url_and_what_is_known_of_it(
    fal_runner: RunnerFactory,
) -> None:
    answer = fal_runner(Returning).post("/typed").json()
    del answer["url"]
    assert answer == {"content_type": "a/b", "file_name": "out.bin", "file_size": 7}


@states("returned-uploads")
@departs(
    "returned-uploads",
    does="the upload happens where the object is made, whether it is then returned or not",
    since="1.0.0",
)
def test_a_file_that_is_never_returned_is_uploaded_too(
    fal_runner: RunnerFactory, fal_cdn: CDN
) -> None:
    """The page: wrap a file in a type before returning it, and the type uploads it. The SDK:
    making the object uploads; the response has nothing to do with it."""
    assert fal_runner(Returning).post("/forgotten").json() == {}
    assert [file.file_name for file in fal_cdn.files] == ["out.bin"]


@states("returned-uploads")
@departs(
    "returned-uploads",
    does="a file made of a URL, File(url=...), is returned with that URL; nothing is uploaded",
    since="1.0.0",
)
def test_a_file_made_of_a_url_is_not_uploaded(
    fal_runner: RunnerFactory, fal_ledger: Ledger
) -> None:
    """The page: the type handles uploading and returns a public URL. The SDK: only from_bytes,
    from_path and from_pil upload."""
    answer = fal_runner(Returning).post("/elsewhere").json()
    assert answer["file"]["url"] == "https://example.com/out.bin"
    assert fal_ledger.exchanges == []


# --- the URL --------------------------------------------------------------------------------------


@pytest.mark.fal(cdn_host="v3.fal.media")
@states("url-field")
def test_the_url_is_one_of_the_cdn(fal_cdn: CDN) -> None:
    url = make(File).url
    assert url.startswith("https://v3.fal.media/files/")
    assert fal_cdn.get(url) == b"content"


@states("url-field")
@departs(
    "url-field",
    does="the URL is whatever fal's REST host answers to the upload; new files get "
    "https://v3b.fal.media/files/b/..., which is served under v3.fal.media as well",
    since="1.0.0",
)
def test_the_url_is_what_the_rest_host_answers(fal_cdn: CDN) -> None:
    """The page: for example ``https://v3.fal.media/files/...``. The SDK does not choose the host:
    code that compares it with v3.fal.media breaks on the files of today."""
    file = make(File)
    shape = r"https://v3b\.fal\.media/files/b/[0-9a-f]{8}/[\w-]{21}_out\.bin"
    assert re.fullmatch(shape, file.url)
    assert [stored.url for stored in fal_cdn.files] == [file.url]
    assert httpx.get(file.url.replace("//v3b.", "//v3.")).content == b"content"


@states("url-public")
@pytest.mark.parametrize("kind", KINDS)
def test_anybody_can_read_the_url_returned(
    fal_runner: RunnerFactory, fal_ledger: Ledger, kind: str
) -> None:
    answer = fal_runner(Returning).post("/", params={"kind": kind}).json()
    assert httpx.get(answer["file"]["url"]).content == b"content"
    sent = fal_ledger.exchanges[-1].request_headers
    assert not {"authorization", "cookie"} & sent.keys()


@pytest.mark.fal(account_expiration=timedelta(days=7))
@states("url-expires")
def test_the_url_expires_as_the_account_says(fal_runner: RunnerFactory, fal_clock: Clock) -> None:
    url = fal_runner(Returning).post("/typed").json()["url"]
    fal_clock.advance(days=7, seconds=-5)
    assert httpx.get(url).status_code == 200
    fal_clock.advance(seconds=5)
    assert httpx.get(url).status_code == 404


@pytest.mark.fal(account_expiration=timedelta(days=7))
@states("url-expires")
def test_the_url_expires_as_the_request_says(fal_runner: RunnerFactory, fal_clock: Clock) -> None:
    headers = {OUTPUT_LIFETIME: '{"expiration_duration_seconds": 3600}'}
    url = fal_runner(Returning).post("/typed", headers=headers).json()["url"]
    fal_clock.advance(minutes=59)
    assert httpx.get(url).status_code == 200
    fal_clock.advance(minutes=1)
    assert httpx.get(url).status_code == 404


@states("url-expires")
def test_the_url_does_not_expire_where_no_setting_says_so(
    fal_runner: RunnerFactory, fal_clock: Clock
) -> None:
    url = fal_runner(Returning).post("/typed").json()["url"]
    fal_clock.advance(days=10_000)
    assert httpx.get(url).status_code == 200
