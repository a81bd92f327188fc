"""Tests of the image generator: the real fal SDK, no network, no account, no GPU."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from image_generator import WEIGHTS_URL, ImageGenerator

if TYPE_CHECKING:
    from pytest_fal import CDN, Clock, Faults, Origin, Runner, RunnerFactory, ServedFile, Volume

PALETTE = json.dumps([[12, 20, 69], [250, 128, 114], [255, 239, 213]])
ONE_HOUR = {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 3600}'}


@pytest.fixture
def weights(fal_origin: Origin) -> ServedFile:
    """The model's weights, on an emulated huggingface.co."""
    return fal_origin.serve(WEIGHTS_URL, PALETTE, content_type="application/json")


@pytest.fixture
def runner(weights: ServedFile, fal_runner: RunnerFactory) -> Runner:
    """A runner that has booted and is waiting for requests."""
    return fal_runner(ImageGenerator)


def generate(runner: Runner, headers: dict[str, str] | None = None, **options: Any) -> Any:
    """Ask for an image as a client would; the JSON of the answer."""
    response = runner.post("/", json={"prompt": "a sunset", **options}, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_image_is_what_was_asked_for(runner: Runner, fal_cdn: CDN, format: str) -> None:
    answer = generate(runner, image_size={"width": 96, "height": 64}, format=format)
    picture = fal_cdn.image(answer["image"]["url"])
    assert (picture.size, picture.format) == ((96, 64), format.upper())
    assert (answer["image"]["width"], answer["image"]["height"]) == (96, 64)
    assert fal_cdn.info(answer["image"]["url"]).content_type == f"image/{format}"


def test_a_size_can_be_named(runner: Runner, fal_cdn: CDN) -> None:
    answer = generate(runner, image_size="portrait_4_3")
    assert fal_cdn.image(answer["image"]["url"]).size == (768, 1024)


def test_the_same_seed_gives_the_same_image(runner: Runner, fal_cdn: CDN) -> None:
    first, again, other = (generate(runner, seed=seed)["image"]["url"] for seed in (7, 7, 8))
    assert first != again, "every upload gets a URL of its own"
    assert fal_cdn.get(first) == fal_cdn.get(again)
    assert fal_cdn.get(first) != fal_cdn.get(other)


def test_the_seed_that_was_drawn_is_returned(runner: Runner, fal_cdn: CDN) -> None:
    drawn = generate(runner)
    repeated = generate(runner, seed=drawn["seed"])
    assert fal_cdn.get(drawn["image"]["url"]) == fal_cdn.get(repeated["image"]["url"])


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"format": "tiff"}, "format"),
        ({"image_size": {"width": 0, "height": 64}}, "image_size"),
    ],
)
def test_wrong_input_is_refused(
    runner: Runner, fal_cdn: CDN, wrong: dict[str, Any], field: str
) -> None:
    response = runner.post("/", json={"prompt": "a sunset", **wrong})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][:2] == ["body", field]
    assert fal_cdn.files == []


# --- weights -------------------------------------------------------------------------------------


def test_runners_share_one_download_of_the_weights(
    weights: ServedFile, fal_runner: RunnerFactory, fal_data: Volume
) -> None:
    fal_runner(ImageGenerator)
    fal_runner(ImageGenerator)
    assert len(weights.requests) == 1
    (stored,) = (path for path in fal_data.tree() if path.endswith("palette.json"))
    assert stored.startswith(".fal/model_weights/")


def test_a_runner_boots_from_data_while_the_origin_is_down(
    weights: ServedFile, fal_runner: RunnerFactory, fal_faults: Faults
) -> None:
    fal_runner(ImageGenerator).stop()
    fal_faults.refuse(host="huggingface.co", optional=True)  # the point is that nobody asks it
    second = fal_runner(ImageGenerator)
    assert second.state == "IDLE"
    generate(second)


def test_the_first_runner_cannot_boot_while_the_origin_is_down(
    fal_runner: RunnerFactory, fal_origin: Origin
) -> None:
    fal_origin.serve(WEIGHTS_URL, status=503)
    with pytest.raises(Exception, match="Failed to get remote file properties"):
        fal_runner(ImageGenerator)


# --- what becomes of the images ------------------------------------------------------------------


def test_an_image_lives_as_long_as_the_caller_asked(runner: Runner, fal_clock: Clock) -> None:
    url = generate(runner, headers=ONE_HOUR)["image"]["url"]
    fal_clock.advance(minutes=59)
    assert httpx.get(url).status_code == 200
    fal_clock.advance(minutes=2)
    assert httpx.get(url).status_code == 404


def test_an_image_stays_when_nobody_names_a_lifetime(runner: Runner, fal_clock: Clock) -> None:
    url = generate(runner)["image"]["url"]
    fal_clock.advance(days=1000)
    assert httpx.get(url).status_code == 200


@pytest.mark.fal(account_expiration=timedelta(days=7))
def test_the_account_may_have_a_default_lifetime(
    runner: Runner, fal_cdn: CDN, fal_clock: Clock
) -> None:
    default = generate(runner)["image"]["url"]
    shorter = generate(runner, headers=ONE_HOUR)["image"]["url"]
    fal_clock.advance(days=6)
    assert [file.url for file in fal_cdn.files] == [default]
    fal_clock.advance(days=2)
    assert fal_cdn.files == []
    assert fal_cdn.info(default).lifecycle is None
    assert fal_cdn.info(shorter).lifecycle == {"expiration_duration_seconds": 3600}


def test_an_upload_is_traceable_to_its_request(runner: Runner, fal_cdn: CDN) -> None:
    url = generate(runner, headers={"x-fal-request-id": "request-42"})["image"]["url"]
    assert fal_cdn.info(url).request_id == "request-42"


def test_an_upload_survives_a_busy_cdn(
    runner: Runner, fal_cdn: CDN, fal_clock: Clock, fal_faults: Faults
) -> None:
    fal_clock.freeze()  # the SDK's back-off moves a stopped clock, nobody waits
    before = fal_clock.now()
    busy = fal_faults.status(503, times=2, method="PUT")
    url = generate(runner)["image"]["url"]
    assert fal_cdn.image(url).size == (512, 512)
    assert len(busy.struck) == 2
    assert fal_clock.now() > before
