"""Tests of two apps that talk to each other, through fal's queue and by nothing but fal_client."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import fal_client
import httpx
import pytest
from PIL import Image as PILImage
from storyboard import PAINTER, SIZE, Painter, Storyboard

if TYPE_CHECKING:
    from pytest_fal import CDN, Clock, Deployment, Emulator, Gateway, WebhookReceiver

APP = "tester/storyboard"
SCENES = ["a cat wakes up", "it sees a bird", "the bird is a kite"]
BLUE = (0, 0, 255)


@pytest.fixture(autouse=True)
def painter(fal_gateway: Gateway) -> Deployment:
    """The app that the other one calls; three of its runners at most."""
    return fal_gateway.deploy(PAINTER, Painter, max_concurrency=3)


@pytest.fixture(autouse=True)
def storyboard(fal_gateway: Gateway) -> Deployment:
    return fal_gateway.deploy(APP, Storyboard)


def draw(**arguments: Any) -> dict[str, Any]:
    answer: dict[str, Any] = fal_client.subscribe(APP, {"scenes": SCENES, **arguments})
    return answer


def logo() -> str:
    """Upload a blue square, as a client does with its inputs."""
    return fal_client.upload_image(PILImage.new("RGB", (8, 8), BLUE), format="png")


def test_every_scene_is_on_the_board(fal_cdn: CDN, painter: Deployment) -> None:
    answer = draw()
    assert fal_cdn.image(answer["board"]["url"]).size == (3 * SIZE, SIZE)
    assert answer["missing"] == []
    assert len(painter.calls) == 3


def test_the_scenes_are_painted_side_by_side(painter: Deployment) -> None:
    draw()
    assert len(painter.runners) == 3, "each order has started a runner"


def test_a_scene_that_cannot_be_painted_stays_white(fal_cdn: CDN) -> None:
    answer = draw(scenes=["a cat", " ", "a bird"])
    assert answer["missing"] == [1]
    board = fal_cdn.image(answer["board"]["url"])
    assert board.getpixel((SIZE + 1, 1)) == (255, 255, 255)


def test_what_is_made_on_the_way_is_hidden_and_gone_after_an_hour(
    fal_cdn: CDN, fal_clock: Clock
) -> None:
    board = draw()["board"]["url"]
    pictures = [file.url for file in fal_cdn.files if file.url != board]
    assert [httpx.get(url).status_code for url in pictures] == [404, 404, 404]

    fal_clock.advance(hours=1)
    for url in pictures:
        fal_cdn.assert_expired(url)
    fal_cdn.assert_alive(board)


def test_the_board_lives_as_long_as_the_caller_wants(fal_cdn: CDN, fal_clock: Clock) -> None:
    answer = fal_client.subscribe(
        APP,
        {"scenes": SCENES},
        headers={"X-Fal-Object-Lifecycle-Preference": '{"expiration_duration_seconds": 60}'},
    )
    fal_clock.advance(60)
    fal_cdn.assert_expired(answer["board"]["url"])


def test_the_pictures_are_the_callers(fal_cdn: CDN, fal_emulator: Emulator) -> None:
    bob, eve = fal_emulator.user("bob"), fal_emulator.user("eve")
    board = fal_client.SyncClient(key=bob.key).subscribe(APP, {"scenes": SCENES})["board"]["url"]
    pictures = [file.url for file in fal_cdn.files if file.url != board]
    assert [bob.get(url).status_code for url in pictures] == [200, 200, 200]
    assert [eve.get(url).status_code for url in pictures] == [404, 404, 404]


def test_a_logo_is_put_into_the_corner(fal_cdn: CDN) -> None:
    board = fal_cdn.image(draw(logo_url=logo())["board"]["url"])
    assert board.getpixel((1, 1)) == BLUE


def test_a_logo_may_be_gone_when_it_is_the_requests_turn(
    storyboard: Deployment, painter: Deployment, fal_clock: Clock
) -> None:
    """A lifetime that is right on a quiet day is too short when the queue is long."""
    storyboard.hold()
    fal_clock.freeze()
    url = fal_client.upload(
        b"...", "image/png", "logo.png", lifecycle=fal_client.StorageSettings(expires_in="1h")
    )
    handle = fal_client.submit(APP, {"scenes": SCENES, "logo_url": url})
    fal_clock.advance(hours=2)
    storyboard.run_next()
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        handle.get()
    assert caught.value.status_code == 422
    assert caught.value.message[0]["loc"] == ["body", "logo_url"]
    assert painter.calls == [], "nothing was painted, and paid for, in vain"


def test_the_painter_can_be_somebody_elses(fal_gateway: Gateway, painter: Deployment, fal_cdn: CDN):
    """Where there is nothing to run, a function says what the other app answers."""

    def paint(arguments: dict[str, Any]) -> dict[str, Any]:
        picture = io.BytesIO()
        PILImage.new("RGB", (SIZE, SIZE), BLUE).save(picture, "png")
        return {"image": {"url": fal_cdn.put(picture.getvalue(), "a.png", "image/png")}}

    painter.redeploy(paint)
    assert fal_cdn.image(draw()["board"]["url"]).getpixel((5, 5)) == BLUE


def test_a_painter_that_is_down_leaves_the_board_white(painter: Deployment) -> None:
    painter.redeploy(lambda arguments: httpx.Response(500, json={"detail": "no paint"}))
    assert draw()["missing"] == [0, 1, 2]


def test_a_client_is_told_when_its_board_is_done(fal_webhooks: WebhookReceiver) -> None:
    handle = fal_client.submit(APP, {"scenes": SCENES}, webhook_url=fal_webhooks.url)
    fal_webhooks.wait()
    (webhook,) = fal_webhooks.received
    assert (webhook.request_id, webhook.verified) == (handle.request_id, True)
    assert webhook.payload["missing"] == []


@pytest.mark.parametrize("app", [Painter, Storyboard])
def test_the_apps_work_as_they_are_deployed(fal_gateway: Gateway, app: type) -> None:
    """In processes, to which they go by pickle, as ``fal deploy`` sends them."""
    fal_gateway.deploy("other/painter", app, isolation="process")
    arguments = {"prompt": "a cat"} if app is Painter else {"scenes": SCENES}
    assert fal_client.run("other/painter", arguments)


def test_many_boards_are_drawn_at_once(painter: Deployment) -> None:
    async def draw_four() -> list[dict[str, Any]]:
        client = fal_client.AsyncClient()
        boards = [client.subscribe(APP, {"scenes": SCENES}) for _ in range(4)]
        return list(await asyncio.gather(*boards))

    boards = asyncio.run(draw_four())
    assert len({board["board"]["url"] for board in boards}) == 4
    assert len(painter.calls) == 12
