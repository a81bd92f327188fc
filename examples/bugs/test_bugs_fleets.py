"""What happens between the runners of a deployment: retries, warm leftovers, killed caches."""

from __future__ import annotations

import uuid
from pathlib import Path

import fal
from fastapi.responses import JSONResponse
from gallery import bug
from pydantic import BaseModel

TOPIC = "Runners, /data and /tmp"


class Order(BaseModel):
    item: str = "poster"


class Shop(fal.App):
    """Writes the order down, then fails once: its payment service does not answer."""

    @fal.endpoint("/")
    def order(self, input: Order) -> JSONResponse:
        Path(f"/data/orders-{uuid.uuid4()}.txt").write_text(input.item)
        return self.answer()

    @fal.endpoint("/once")
    def order_once(self, input: Order) -> JSONResponse:
        name = self.current_request.request_id
        Path(f"/data/orders-{name}.txt").write_text(input.item)
        return self.answer()

    def answer(self) -> JSONResponse:
        if not Path("/data/paid").exists():
            Path("/data/paid").touch()
            return JSONResponse({"detail": "payment timed out"}, 504)
        return JSONResponse({})


@bug(
    "P31",
    symptom="one request left two files, and sent two mails",
    topic=TOPIC,
    seen=None,
)
def test_a_retry_runs_the_handler_again(fal_gateway, fal_data):
    """A request that is tried again runs from the start: what the first run did is done twice.

    Production: of every outage some orders are there twice; nobody has sent them twice.
    Expected: a request runs once, or its traces are taken back before the next try.
    Happens: after 503, 504, a time-out or a crash the queue runs the handler again, up to ten
        times, with the same request id.
    Avoid: name what a handler leaves after the request id, so that a second run overwrites the
        first; or answer with X-Fal-Needs-Retry: 0.
    """
    shop = fal_gateway.deploy("tester/shop", Shop)
    assert shop.submit("/", json={}).result().status_code == 200
    assert len(fal_data.tree()) == 3, "paid, and two orders"

    for name in fal_data.tree():
        (fal_data.path / name).unlink()
    call = shop.submit("/once", json={})
    call.result()
    assert fal_data.tree() == [f"orders-{call.request_id}.txt", "paid"]


class Frames(fal.App):
    """Cuts a video into frames in /tmp, and counts them."""

    @fal.endpoint("/")
    def cut(self, input: dict) -> int:
        for number in range(input["frames"]):
            Path(f"/tmp/frame-{number}.png").touch()
        return len(list(Path("/tmp").glob("frame-*.png")))


@bug(
    "P29",
    symptom="now and then a video has frames of somebody else's",
    topic=TOPIC,
    seen=None,
)
def test_a_warm_runner_has_leftovers(fal_gateway):
    """What one request leaves in /tmp is there for the next one on that runner.

    Production: right on the first call after a deploy and whenever a runner is new; wrong on a
        warm one, after a request with more frames.
    Expected: each request starts with an empty /tmp.
    Happens: /tmp is emptied when a runner ends, not between its requests.
    Avoid: tempfile.TemporaryDirectory(), or a folder named after the request id.
    """
    deployment = fal_gateway.deploy("tester/frames", Frames, min_concurrency=2)
    deployment.hold()
    for frames in (3, 1, 1):
        deployment.submit("/", json={"frames": frames})

    deployment.run_next(runner="runner-1")
    warm = deployment.run_next(runner="runner-1")
    cold = deployment.run_next(runner="runner-2")

    assert (warm.result().json(), cold.result().json()) == (3, 1)


class Loaded(fal.App):
    """Loads its model once a runner, and writes down that it did."""

    def setup(self) -> None:
        with Path("/data/loaded.txt").open("a") as file:
            file.write("loaded\n")

    @fal.endpoint("/")
    def generate(self, input: dict) -> dict:
        if input["prompt"] == "triton, god of the sea":
            raise ValueError(f"no word may be in here: {input['prompt']!r}")
        return {}


@bug(
    "P32",
    symptom="a single prompt makes us load the model ten times",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_one_request_ends_ten_runners(fal_gateway, fal_data):
    """A 503 ends its runner with everything it has in memory, and is tried again on the next.

    Production: cold starts in a row, for one request; everybody else waits meanwhile.
    Expected: a request that fails costs a request.
    Happens: the SDK answers 503 to any exception with a word like "triton" in its text; the
        platform kills the runner and tries the request on a new one, ten times in all.
    Avoid: retry_config = {"server_error": {"retries": 1}}; and FieldException for bad inputs.
    """
    deployment = fal_gateway.deploy("tester/loaded", Loaded)
    call = deployment.submit("/", json={"prompt": "triton, god of the sea"})
    assert call.result().status_code == 503
    assert len(fal_data.read("loaded.txt").splitlines()) == 10
    assert len({attempt.runner for attempt in call.attempts}) == 10
