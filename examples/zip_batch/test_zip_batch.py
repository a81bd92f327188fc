"""Tests of the batch processor: what it returns, what it leaves behind, what it does in trouble."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import fal
import pytest
from PIL import Image as PILImage
from zip_batch import MAX_ARCHIVE_MB, PRIVATE_HOST, Input, Output, ZipBatch

if TYPE_CHECKING:
    import httpx

    from pytest_fal import CDN, Clock, Origin, Runner, RunnerFactory, Volume

URL = "https://example.com/uploads/images.zip"


@pytest.fixture
def runner(fal_runner: RunnerFactory) -> Iterator[Runner]:
    """A runner of the app. Whatever a test does with it, nothing may be left in its /tmp."""
    runner = fal_runner(ZipBatch, env={"ARCHIVE_TOKEN": "s3cret"})
    yield runner
    assert runner.tmp.tree() == []


def picture(colour: str, width: int = 400, height: int = 200, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    PILImage.new("RGB", (width, height), colour).save(file, format=format)
    return file.getvalue()


def archive_of(**files: bytes) -> bytes:
    """A ZIP with these files; ``red_png=...`` becomes ``red.png``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_", "."), content)
    return file.getvalue()


def process(runner: Runner, url: str = URL, **options: Any) -> httpx.Response:
    return runner.post("/", json={"archive_url": url, **options})


def thumbnails(response: httpx.Response, cdn: CDN) -> dict[str, PILImage.Image]:
    """The images in the archive that the app returned."""
    assert response.status_code == 200, response.text
    with zipfile.ZipFile(io.BytesIO(cdn.get(response.json()["archive"]["url"]))) as archive:
        return {n: PILImage.open(io.BytesIO(archive.read(n))) for n in archive.namelist()}


def refusal(response: httpx.Response) -> str:
    """What the app says is wrong with the URL."""
    assert response.status_code == 422, response.text
    (problem,) = response.json()["detail"]
    assert problem["loc"] == ["body", "archive_url"]
    return str(problem["msg"])


# --- the result ----------------------------------------------------------------------------------


def test_every_image_becomes_a_thumbnail(runner: Runner, fal_cdn: CDN, fal_origin: Origin) -> None:
    jpeg = picture("blue", 100, 300, "JPEG")
    fal_origin.serve(URL, archive_of(a_png=picture("red"), b_jpg=jpeg, notes_txt=b"hello"))
    response = process(runner, max_side=64)
    images = thumbnails(response, fal_cdn)
    assert {name: image.size for name, image in images.items()} == {
        "0000-a.png": (64, 32),
        "0001-b.png": (21, 64),
    }
    assert images["0000-a.png"].getpixel((5, 5)) == (255, 0, 0)
    assert (response.json()["images"], response.json()["skipped"]) == (2, 1)


def test_the_archive_is_a_zip_on_the_cdn(runner: Runner, fal_cdn: CDN, fal_origin: Origin) -> None:
    fal_origin.serve(URL, archive_of(a_png=picture("red")))
    archive = process(runner).json()["archive"]
    info = fal_cdn.info(archive["url"])
    assert (info.file_name, info.content_type) == ("thumbnails.zip", "application/zip")
    assert info.size == archive["file_size"]


def test_requests_at_once_do_not_mix(runner: Runner, fal_cdn: CDN, fal_origin: Origin) -> None:
    urls = [f"https://example.com/{colour}/images.zip" for colour in ("red", "lime", "blue")]
    for url in urls:
        fal_origin.serve(url, archive_of(a_png=picture(url.split("/")[3])))
    with ThreadPoolExecutor() as pool:
        responses = list(pool.map(lambda url: process(runner, url), urls))
    found = [thumbnails(response, fal_cdn)["0000-a.png"].getpixel((0, 0)) for response in responses]
    assert found == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_a_new_archive_at_the_same_url_is_seen(
    runner: Runner, fal_cdn: CDN, fal_origin: Origin
) -> None:
    """Had the app kept the first, ``download_file`` would take it for the second: same length."""
    red = archive_of(a_bmp=picture("red", format="BMP"))
    green = archive_of(a_bmp=picture("lime", format="BMP"))
    assert len(red) == len(green)
    served = fal_origin.serve(URL, red)
    process(runner)
    served.update(green)
    image = thumbnails(process(runner), fal_cdn)["0000-a.png"]
    assert image.getpixel((0, 0)) == (0, 255, 0)


# --- what it leaves behind -----------------------------------------------------------------------


def test_a_leftover_in_tmp_is_noticed(
    fal_runner: RunnerFactory, fal_cdn: CDN, fal_origin: Origin
) -> None:
    """The check in the fixture above would see an app that forgets a file."""

    class Careless(ZipBatch):
        @fal.endpoint("/")
        def process(self, input: Input) -> Output:
            tempfile.NamedTemporaryFile(suffix=".forgotten", delete=False).close()
            return super().process(input)

    fal_origin.serve(URL, archive_of(a_png=picture("red")))
    careless = fal_runner(Careless)
    assert process(careless).status_code == 200
    (left,) = careless.tmp.tree()
    assert left.endswith(".forgotten")


def test_the_report_outlives_the_runner(
    runner: Runner, fal_data: Volume, fal_origin: Origin
) -> None:
    fal_origin.serve(URL, archive_of(a_png=picture("red"), b_png=picture("blue")))
    process(runner)
    runner.run(lambda: open("/tmp/scratch", "w").close())
    runner.stop()
    assert runner.tmp.tree() == []
    assert json.loads(fal_data.read("zip_batch/report.json")) == {"requests": 1, "images": 2}


# --- trouble with the archive --------------------------------------------------------------------


def test_a_corrupt_archive_is_refused(runner: Runner, fal_origin: Origin) -> None:
    fal_origin.serve(URL, archive_of(a_png=picture("red"))[:-30])
    assert refusal(process(runner)) == "this is not a ZIP archive"


def test_an_archive_without_images_is_refused(runner: Runner, fal_origin: Origin) -> None:
    fal_origin.serve(URL, archive_of(notes_txt=b"hello"))
    assert refusal(process(runner)) == "there is no image in this archive"


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "without a length"])
def test_a_too_large_archive_is_refused(runner: Runner, fal_origin: Origin, chunked: bool) -> None:
    served = fal_origin.serve(URL, size=500 * 2**20, chunked=chunked)
    refusal(process(runner))
    assert served.bytes_sent < (MAX_ARCHIVE_MB + 8) * 2**20, "it gave up soon"


def test_an_upload_that_expired_before_the_run_is_refused(
    runner: Runner, fal_cdn: CDN, fal_clock: Clock
) -> None:
    url = fal_cdn.put(archive_of(a_png=picture("red")), "images.zip", expires_in=timedelta(hours=1))
    assert process(runner, url).status_code == 200
    fal_clock.advance(hours=2)
    assert url in refusal(process(runner, url))


def test_a_private_archive_is_fetched_with_the_token(runner: Runner, fal_origin: Origin) -> None:
    url = f"https://{PRIVATE_HOST}/images.zip"
    token = {"Authorization": "Bearer s3cret"}
    fal_origin.serve(url, archive_of(a_png=picture("red")), require_headers=token)
    assert process(runner, url).status_code == 200


def test_the_token_goes_to_nobody_else(runner: Runner, fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, archive_of(a_png=picture("red")))
    assert process(runner).status_code == 200
    assert "authorization" not in served.requests[0].request_headers


# --- a full disk ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(100_000, id="downloading"),
        pytest.param(800_000, id="unpacking"),
        pytest.param(1_450_000, id="shrinking"),
    ],
)
@pytest.mark.fal(filesystem="namespace")
def test_a_full_disk_is_not_the_callers_fault(
    runner: Runner, fal_origin: Origin, room: int
) -> None:
    fal_origin.serve(URL, archive_of(a_png=noise(), b_png=noise()))
    runner.tmp.limit(room)
    response = process(runner, max_side=4096)
    assert response.status_code == 503
    assert response.json() == {"detail": "the disk of this runner is full"}


@pytest.mark.fal(filesystem="namespace")
def test_a_subprocess_meets_the_full_disk_too(runner: Runner, fal_origin: Origin) -> None:
    fal_origin.serve(URL, archive_of(a_png=noise(), b_png=noise()))
    runner.tmp.limit(2_250_000)
    response = process(runner, max_side=4096)
    assert response.status_code == 503
    assert "packing failed" in response.text
    assert "No space left on device" in response.text


@pytest.mark.fal(tmp_size=8_000_000)
def test_a_small_disk_serves_many_requests(runner: Runner, fal_origin: Origin) -> None:
    fal_origin.serve(URL, archive_of(a_png=noise(), b_png=noise()))
    statuses = [process(runner, max_side=4096).status_code for _ in range(8)]
    assert statuses == [200] * 8


def noise() -> bytes:
    """An image that nothing compresses: about 280 kB."""
    file = io.BytesIO()
    PILImage.effect_noise((640, 480), 100).save(file, format="PNG")
    return file.getvalue()
