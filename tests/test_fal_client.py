"""fal's own client for Python, as its users call it, against deployed apps [facts §6.1-6.3].

Each test that can be is for both clients: the sync one, and the async one with its coroutines run.
"""

# Without postponed annotations, for the apps in it.

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import fal
import fal_client
import httpx
import pytest
from fal.exceptions import RequestCancelledException
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from PIL import Image as PILImage
from pydantic import BaseModel
from versions import needs_backup, needs_deprecation, needs_method

from emulator.fleets.gateway_headers import caller_id
from pytest_fal import CDN, Clock, Emulator, Faults, Gateway, Origin, Volume

URL = "https://example.com/slow.bin"

both = pytest.mark.parametrize("isolation", ["thread", "process"])


class Prompt(BaseModel):
    prompt: str


class Studio(fal.App):
    """One endpoint for each thing that a client may want to see."""

    @fal.endpoint("/")
    def echo(self, input: dict) -> dict:
        return {"echo": input}

    @fal.endpoint("/images/small")
    def small(self, input: Prompt) -> dict:
        return {"small": input.prompt}

    @fal.endpoint("/headers")
    def headers(self) -> dict:
        return dict(self.current_request.headers)

    @fal.endpoint("/logs")
    def logs(self) -> dict:
        print("loading")
        print("done")
        return {}

    @fal.endpoint("/wait")
    def wait(self, input: dict) -> dict:
        with Path("/data/runs").open("a") as file:
            file.write("run\n")
        time.sleep(input["seconds"])
        return {"waited": input["seconds"]}

    @fal.endpoint("/fetch")
    def fetch(self) -> dict:
        print("fetching")
        return {"size": len(httpx.get(URL).content)}

    @fal.endpoint("/fail")
    def fail(self, input: dict) -> JSONResponse:
        with Path("/data/runs").open("a") as file:
            file.write("run\n")
        body = input.get("body", {"detail": "no such style"})
        return JSONResponse(body, input["status"], headers=input.get("headers"))

    @fal.endpoint("/raise")
    def raise_it(self) -> dict:
        raise HTTPException(418, "I am a teapot")


class Patient(fal.App):
    """Can be cancelled while it is at work."""

    def setup(self) -> None:
        self.cancelled = threading.Event()
        self.begun = threading.Event()

    @fal.endpoint("/")
    def work(self) -> dict:
        self.begun.set()
        if self.cancelled.wait(10):
            raise RequestCancelledException("taken back")
        return {}

    @fal.endpoint("/cancel")
    def cancel(self) -> dict:
        self.begun.wait(10)
        self.cancelled.set()
        return {}


class Hinting(fal.App):
    """Its runners tell by a hint what they have loaded."""

    def setup(self) -> None:
        self.loaded: list = []

    def provide_hints(self) -> list:
        return self.loaded

    @fal.endpoint("/")
    def generate(self, input: dict) -> dict:
        found = input["model"] in self.loaded
        self.loaded = [input["model"]]
        return {"was_loaded": found}


class Link(BaseModel):
    url: str


class Reading(fal.App):
    @fal.endpoint("/")
    def read(self, input: Link) -> dict:
        return {"read": httpx.get(input.url).text}


class Blocking:
    """An async client, or a handle of it, whose coroutines are run at once."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if not callable(attribute):
            return attribute
        return lambda *args, **options: self._result(attribute(*args, **options))

    def _result(self, result: Any) -> Any:
        if inspect.isasyncgen(result):
            return self._loop.run_until_complete(_collect(result))
        found = self._loop.run_until_complete(result)
        is_handle = isinstance(found, fal_client.AsyncRequestHandle)
        return Blocking(found, self._loop) if is_handle else found


async def _collect(events: Any) -> list:
    return [event async for event in events]


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, fal_emulator: Emulator) -> Iterator[Any]:
    """One of the two clients; both are used in the same way."""
    if request.param == "sync":
        yield fal_client.SyncClient()
        return
    loop = asyncio.new_event_loop()
    yield Blocking(fal_client.AsyncClient(), loop)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


# --- run ------------------------------------------------------------------------------------------


@both
def test_run_returns_what_the_app_answers(
    client: Any, isolation: str, fal_gateway: Gateway
) -> None:
    fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    assert client.run("tester/studio", {"a": 1}) == {"echo": {"a": 1}}


@pytest.mark.parametrize("path", ["images/small", "/images/small"])
def test_a_path_leads_to_an_endpoint(client: Any, path: str, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    assert client.run("tester/studio", {"prompt": "cat"}, path=path) == {"small": "cat"}


def test_the_endpoint_may_be_part_of_the_name(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    assert client.run("tester/studio/images/small", {"prompt": "cat"}) == {"small": "cat"}


@needs_method
@both
def test_another_method(client: Any, isolation: str, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    assert "version" in client.run("tester/studio", {}, method="GET", path="/health")


@needs_method
def test_an_endpoint_takes_post_alone(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(fal_client.FalClientHTTPError, match=r"^Method Not Allowed$") as caught:
        client.run("tester/studio", {}, method="GET")
    assert caught.value.status_code == 405


@both
def test_the_app_gets_the_gateways_headers_and_the_callers(
    client: Any, isolation: str, fal_gateway: Gateway
) -> None:
    fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    preference = json.dumps({"expiration_duration_seconds": 60})
    own = {
        "X-Custom": "mine",
        "X-App-Fal-Disable-Fallback": "1",
        "X-Fal-Object-Lifecycle-Preference": preference,
        "X-Fal-Endpoint": "somebody/elses",
        "X-Fal-Store-IO": "0",
    }
    seen = client.run("tester/studio", {}, path="/headers", headers=own)
    assert seen["x-custom"] == "mine"
    assert seen["x-app-fal-disable-fallback"] == "1"
    assert seen["x-fal-object-lifecycle-preference"] == preference
    assert seen["x-fal-endpoint"] == "tester/studio/headers"
    assert seen["x-fal-caller-user-id"] == "tester"
    assert len(seen["x-fal-request-id"]) == 36
    assert seen["user-agent"].startswith("fal-client/")
    assert {"x-fal-store-io", "authorization"}.isdisjoint(seen)


def test_somebody_else_is_known_by_a_hash(fal_gateway: Gateway, fal_emulator: Emulator) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    bob = fal_client.SyncClient(key=fal_emulator.user("bob").key)
    seen = bob.run("tester/studio", {}, path="/headers")
    assert seen["x-fal-caller-user-id"] == caller_id("bob", "tester")
    assert "bob" not in seen["x-fal-caller-user-id"]


def test_the_key_of_the_environment_is_read_with_the_first_call(
    fal_gateway: Gateway, fal_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    client = fal_client.SyncClient()
    monkeypatch.setenv("FAL_KEY", fal_emulator.user("bob").key)
    seen = client.run("tester/studio", {}, path="/headers")
    assert seen["x-fal-caller-user-id"] == caller_id("bob", "tester")


def test_a_hint_leads_to_a_runner_that_gave_it(client: Any, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/hinting", Hinting, min_concurrency=2)
    deployment.hold()
    for runner, model in (("runner-1", "cats"), ("runner-2", "dogs")):
        client.submit("tester/hinting", {"model": model})
        deployment.run_next(runner=runner)
    deployment.release()
    assert client.run("tester/hinting", {"model": "dogs"}, hint="dogs") == {"was_loaded": True}
    handle = client.submit("tester/hinting", {"model": "dogs"}, hint="dogs")
    assert handle.get() == {"was_loaded": True}


def test_a_read_time_out_is_the_clocks_and_repeats_the_request(
    client: Any, fal_gateway: Gateway, fal_clock: Clock, fal_data: Volume
) -> None:
    fal_clock.freeze()
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(httpx.ReadTimeout, match=r"^no answer within 5 s"):
        client.run("tester/studio", {"seconds": 60}, path="/wait", timeout=5)
    assert fal_data.read("runs") == b"run\n" * 10


def test_with_a_start_timeout_a_read_time_out_is_final(
    client: Any, fal_gateway: Gateway, fal_clock: Clock, fal_data: Volume
) -> None:
    fal_clock.freeze()
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(httpx.ReadTimeout):
        client.run("tester/studio", {"seconds": 60}, path="/wait", timeout=5, start_timeout=2)
    assert fal_data.read("runs") == b"run\n"


def test_a_time_out_that_is_not_reached_does_nothing(
    client: Any, fal_gateway: Gateway, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    fal_gateway.deploy("tester/studio", Studio)
    answer = client.run("tester/studio", {"seconds": 4}, path="/wait", timeout=5)
    assert answer == {"waited": 4}


@pytest.mark.parametrize("call", ["run", "submit", "subscribe"])
def test_a_start_timeout_has_to_be_more_than_a_second(
    client: Any, call: str, fal_gateway: Gateway
) -> None:
    with pytest.raises(ValueError, match=r"^Timeout must be greater than 1 seconds$"):
        getattr(client, call)("tester/studio", {}, start_timeout=1)


# --- errors ---------------------------------------------------------------------------------------


def test_an_error_of_the_app(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(fal_client.FalClientHTTPError, match=r"^I am a teapot$") as caught:
        client.run("tester/studio", {}, path="/raise")
    error = caught.value
    assert (error.status_code, error.error_type) == (418, None)
    assert error.response.json() == {"detail": "I am a teapot"}
    assert error.response_headers["x-fal-served-from"] == "runner-1"
    assert len(error.response_headers["x-fal-request-id"]) == 36


def test_what_the_app_says_of_its_error(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    headers = {"X-Fal-Error-Type": "content_policy", "X-Fal-Retryable": "false"}
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.run("tester/studio", {"status": 403, "headers": headers}, path="/fail")
    assert caught.value.error_type == "content_policy"
    assert caught.value.response_headers["x-fal-retryable"] == "false"


@both
def test_inputs_that_do_not_fit(client: Any, isolation: str, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.run("tester/studio", {}, path="/images/small")
    error = caught.value
    assert error.status_code == 422
    (detail,) = error.message
    assert (detail["loc"], detail["msg"]) == (["body", "prompt"], "Field required")
    assert error.response_headers["x-fal-billable-units"] == "0"


def test_an_endpoint_that_is_not_there(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(fal_client.FalClientHTTPError, match="/nowhere") as caught:
        client.run("tester/studio", {}, path="/nowhere")
    assert caught.value.status_code == 404


@pytest.mark.parametrize("call", ["run", "submit", "subscribe"])
def test_an_app_that_is_not_there(client: Any, call: str, fal_gateway: Gateway) -> None:
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        getattr(client, call)("tester/nothing", {})
    assert caught.value.status_code == 404
    assert str(caught.value).startswith("Application 'tester/nothing' not found: ")
    assert 'fal_gateway.deploy("tester/nothing", MyApp)' in str(caught.value)


def test_a_runner_that_is_lost_is_a_503_for_a_direct_caller(
    client: Any, fal_gateway: Gateway
) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.refuse_machines()
    with pytest.raises(fal_client.FalClientHTTPError, match=r"^No runner could be") as caught:
        client.run("tester/studio", {})
    assert caught.value.status_code == 503
    assert caught.value.error_type == "runner_scheduling_failure"


@pytest.mark.parametrize("status", [408, 409, 429])
def test_statuses_that_the_client_takes_for_passing(
    client: Any, status: int, fal_gateway: Gateway, fal_clock: Clock, fal_data: Volume
) -> None:
    fal_clock.freeze()
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(fal_client.FalClientHTTPError, match=r"^no such style$"):
        client.run("tester/studio", {"status": status}, path="/fail")
    assert fal_data.read("runs") == b"run\n" * 10


def test_the_backoff_takes_no_real_time(
    fal_gateway: Gateway, fal_clock: Clock, fal_data: Volume
) -> None:
    fal_clock.freeze()
    fal_gateway.deploy("tester/studio", Studio)
    began = fal_clock.now()
    with pytest.raises(fal_client.FalClientHTTPError):
        fal_client.run("tester/studio", {"status": 429}, path="/fail")
    passed = (fal_clock.now() - began).total_seconds()
    assert 0.5 * 51.1 <= passed <= 1.5 * 51.1  # 0.1 s, doubled nine times, give or take a half


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_errors_of_the_server_are_not_repeated(
    client: Any, status: int, fal_gateway: Gateway, fal_data: Volume
) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.run("tester/studio", {"status": status}, path="/fail")
    assert caught.value.status_code == status
    assert fal_data.read("runs") == b"run\n"


# --- submit, status, get --------------------------------------------------------------------------


@both
def test_a_request_goes_through_the_queue(
    client: Any, isolation: str, fal_gateway: Gateway
) -> None:
    fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    handle = client.submit("tester/studio", {"a": 1})
    assert handle.get() == {"echo": {"a": 1}}
    assert handle.get() == {"echo": {"a": 1}}, "it can be fetched again"


def test_where_a_request_is_asked_about(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    handle = client.submit("tester/studio", {"prompt": "cat"}, path="images/small")
    base = f"https://queue.fal.run/tester/studio/requests/{handle.request_id}"
    assert (handle.response_url, handle.status_url, handle.cancel_url) == (
        base,
        f"{base}/status",
        f"{base}/cancel",
    )
    assert handle.get() == {"small": "cat"}


def test_queued_requests_know_their_position(client: Any, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    handles = [client.submit("tester/studio", {}) for _ in range(3)]
    assert [handle.status() for handle in handles] == [fal_client.Queued(n) for n in range(3)]
    deployment.run_next()
    assert [handle.status() for handle in handles[1:]] == [fal_client.Queued(n) for n in range(2)]


@both
def test_a_request_in_progress_has_logs_so_far(
    client: Any, isolation: str, fal_gateway: Gateway, fal_faults: Faults, fal_origin: Origin
) -> None:
    fal_origin.serve(URL, b"123")
    gate = fal_faults.gate(host="example.com")
    fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    handle = client.submit("tester/studio", {}, path="/fetch")
    gate.wait()
    without, with_logs = handle.status(), handle.status(with_logs=True)
    gate.open()
    assert without == fal_client.InProgress(logs=None)
    assert isinstance(with_logs, fal_client.InProgress)
    assert [entry["message"] for entry in with_logs.logs or []] == ["fetching"]
    assert handle.get() == {"size": 3}


@both
def test_a_completed_request_has_logs_and_metrics(
    client: Any, isolation: str, fal_gateway: Gateway, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    deployment = fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    deployment.hold()
    handle = client.submit("tester/studio", {}, path="/logs")
    deployment.run_next()
    entries = [
        {
            "message": message,
            "level": "STDOUT",
            "source": "USER",
            "timestamp": fal_clock.now().isoformat(),
        }
        for message in ("loading", "done")
    ]
    assert handle.status(with_logs=True).logs == entries
    assert handle.status() == fal_client.Completed(logs=None, metrics={"inference_time": 0.0})


def test_the_inference_time_is_the_clocks(
    client: Any, fal_gateway: Gateway, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    handle = client.submit("tester/studio", {"seconds": 90}, path="/wait")
    fal_clock.advance(seconds=10)
    deployment.run_next()
    assert handle.status().metrics == {"inference_time": 90.0}


def test_a_request_that_failed(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    headers = {"X-Fal-Error-Type": "content_policy"}
    arguments = {"status": 403, "headers": headers}
    handle = client.submit("tester/studio", arguments, path="/fail")
    with pytest.raises(fal_client.FalClientHTTPError, match=r"^no such style$") as caught:
        handle.get()
    assert (caught.value.status_code, caught.value.error_type) == (403, "content_policy")
    assert caught.value.response_headers["x-fal-request-id"] == handle.request_id
    status = handle.status()
    assert (status.error, status.error_type) == ("no such style", "content_policy")


def test_inputs_that_do_not_fit_are_an_error_by_number(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    handle = client.submit("tester/studio", {}, path="/images/small")
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        handle.get()
    assert caught.value.status_code == 422
    status = handle.status()
    assert (status.error, status.error_type) == ("Invalid status code: 422", None)


def test_events_end_with_the_request(client: Any, fal_gateway: Gateway, fal_clock: Clock) -> None:
    fal_clock.freeze()
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    handle = client.submit("tester/studio", {}, path="/logs")
    fal_clock.on(0.25, deployment.release)
    events = list(handle.iter_events(with_logs=True))
    assert events[:3] == [fal_client.Queued(0)] * 3
    assert isinstance(events[-1], fal_client.Completed)
    assert [entry["message"] for entry in events[-1].logs or []] == ["loading", "done"]
    assert all(isinstance(event, fal_client.InProgress) for event in events[3:-1])


def test_the_interval_of_events(client: Any, fal_gateway: Gateway, fal_clock: Clock) -> None:
    fal_clock.freeze()
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    handle = client.submit("tester/studio", {})
    fal_clock.on(25, deployment.run_next)
    assert list(handle.iter_events(interval=10))[:3] == [fal_client.Queued(0)] * 3


def test_a_request_is_found_by_its_id(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    request_id = client.submit("tester/studio", {"a": 1}).request_id
    assert client.result("tester/studio", request_id) == {"echo": {"a": 1}}
    assert isinstance(client.status("tester/studio", request_id), fal_client.Completed)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.cancel("tester/studio", request_id)
    assert caught.value.status_code == 400
    assert caught.value.response.json() == {"status": "ALREADY_COMPLETED"}


def test_a_handle_by_id(fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    client = fal_client.SyncClient()
    handle = client.submit("tester/studio", {"a": 1})
    assert client.get_handle("tester/studio/whatever/path", handle.request_id) == handle


def test_an_async_handle_by_id(fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)

    async def ask() -> Any:
        client = fal_client.AsyncClient()
        handle = await client.submit("tester/studio", {"a": 1})
        found = await client.get_handle("tester/studio", handle.request_id)
        assert found == handle
        return await found.get()

    assert asyncio.run(ask()) == {"echo": {"a": 1}}


@pytest.mark.parametrize("call", ["status", "result", "cancel"])
def test_a_request_that_nobody_made(client: Any, call: str, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        getattr(client, call)("tester/studio", "12345678")
    assert caught.value.status_code == 404


def test_a_legacy_name_finds_a_request(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("110602490/lora", Studio)
    handle = client.submit("110602490/lora", {"a": 1})
    assert client.result("110602490-lora", handle.request_id) == {"echo": {"a": 1}}


@pytest.mark.parametrize("call", ["run", "submit"])
def test_the_client_makes_no_request_to_a_legacy_name(
    client: Any, call: str, fal_gateway: Gateway
) -> None:
    fal_gateway.deploy("110602490/lora", Studio)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        getattr(client, call)("110602490-lora", {})
    assert caught.value.status_code == 404
    assert str(caught.value) == (
        "Application '110602490-lora' not found: this form of names is of old, and not every call "
        "of a client turns it into the one that URLs have. Write '110602490/lora'."
    )


@pytest.mark.parametrize("namespace", ["workflows", "comfy"])
def test_an_app_in_a_namespace(client: Any, namespace: str, fal_gateway: Gateway) -> None:
    name = f"{namespace}/tester/studio"
    fal_gateway.deploy(name, Studio)
    assert client.run(name, {"prompt": "cat"}, path="/images/small") == {"small": "cat"}
    handle = client.submit(name, {"a": 1})
    assert handle.status_url == f"https://queue.fal.run/{name}/requests/{handle.request_id}/status"
    assert client.result(name, handle.request_id) == {"echo": {"a": 1}}


def test_low_priority_waits_behind_normal(client: Any, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    low = client.submit("tester/studio", {}, priority="low")
    normal = client.submit("tester/studio", {}, priority="normal")
    unsaid = client.submit("tester/studio", {})
    positions = [handle.status().position for handle in (normal, unsaid, low)]
    assert positions == [0, 1, 2]


def test_priorities_are_two(client: Any, fal_gateway: Gateway) -> None:
    with pytest.raises(ValueError, match=r"^Priority must be one of \('normal', 'low'\)"):
        client.submit("tester/studio", {}, priority="high")


def test_a_start_timeout_in_the_queue(client: Any, fal_gateway: Gateway, fal_clock: Clock) -> None:
    fal_clock.freeze()
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    handle = client.submit("tester/studio", {}, start_timeout=30)
    fal_clock.advance(seconds=29)
    assert handle.status() == fal_client.Queued(0)
    fal_clock.advance(seconds=1)
    with pytest.raises(fal_client.FalClientHTTPError, match=r"^Request timed out$") as caught:
        handle.get()
    assert (caught.value.status_code, caught.value.error_type) == (504, "request_timeout")
    assert caught.value.response_headers["x-fal-request-timeout-type"] == "user"
    status = handle.status()
    assert (status.error, status.error_type) == ("Request timed out", "request_timeout")
    assert status.metrics == {}


def test_a_start_timeout_of_a_direct_call(
    client: Any, fal_gateway: Gateway, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    fal_gateway.deploy("tester/studio", Studio, scaling_delay=60)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.run("tester/studio", {}, start_timeout=30)
    assert (caught.value.status_code, caught.value.error_type) == (504, "request_timeout")
    assert caught.value.response_headers["x-fal-request-timeout-type"] == "user"


# --- cancel ---------------------------------------------------------------------------------------


def test_a_waiting_request_is_cancelled(client: Any, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    handle = client.submit("tester/studio", {})
    handle.cancel()
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        handle.get()
    assert (caught.value.status_code, caught.value.error_type) == (499, "client_cancelled")
    assert handle.status().error_type == "client_cancelled"


@both
def test_a_running_request_is_cancelled(client: Any, isolation: str, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/patient", Patient, isolation=isolation)
    handle = client.submit("tester/patient", {})
    for status in iter(handle.status, None):
        if isinstance(status, fal_client.InProgress):
            break
    client.cancel("tester/patient", handle.request_id)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        handle.get()
    assert caught.value.status_code == 499


def test_a_cancelled_request_may_be_finished_all_the_same(
    client: Any, fal_gateway: Gateway, fal_faults: Faults, fal_origin: Origin
) -> None:
    fal_origin.serve(URL, b"123")
    gate = fal_faults.gate(host="example.com")
    fal_gateway.deploy("tester/studio", Studio)
    handle = client.submit("tester/studio", {}, path="/fetch")
    gate.wait()
    handle.cancel()
    gate.open()
    assert handle.get() == {"size": 3}


# --- subscribe ------------------------------------------------------------------------------------


@both
def test_subscribe_returns_the_result(client: Any, isolation: str, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    assert client.subscribe("tester/studio", {"a": 1}) == {"echo": {"a": 1}}


def test_subscribe_tells_the_id_and_every_status(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    ids: list[str] = []
    statuses: list[fal_client.Status] = []
    client.subscribe(
        "tester/studio",
        {},
        path="/logs",
        with_logs=True,
        on_enqueue=ids.append,
        on_queue_update=statuses.append,
    )
    (request_id,) = ids
    last = statuses[-1]
    assert last == client.status("tester/studio", request_id, with_logs=True)
    assert isinstance(last, fal_client.Completed)
    assert [entry["message"] for entry in last.logs or []] == ["loading", "done"]


def test_callbacks_may_be_coroutines(fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    told: list[Any] = []

    async def tell(what: Any) -> None:
        told.append(what)

    asyncio.run(
        fal_client.subscribe_async(
            "tester/studio", {}, on_enqueue=tell, on_queue_update=tell, priority="low", hint="x"
        )
    )
    assert isinstance(told[0], str)
    assert isinstance(told[-1], fal_client.Completed)


def test_subscribe_raises_what_the_app_answers(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(fal_client.FalClientHTTPError, match=r"^I am a teapot$"):
        client.subscribe("tester/studio", {}, path="/raise", client_timeout=20)


def test_a_client_timeout_cancels_the_request(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio).hold()
    with (
        pytest.warns(UserWarning, match=r"^start_timeout \(2s\) is larger than client_timeout"),
        pytest.raises(fal_client.FalClientTimeoutError) as caught,
    ):
        client.subscribe("tester/studio", {}, start_timeout=2, client_timeout=0.2)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert str(error) == f"Request {error.request_id} timed out after 0.2 seconds"
    assert error.request_id is not None
    status = client.status("tester/studio", error.request_id)
    assert (status.error_type, status.metrics) == ("client_cancelled", {})


def test_a_client_timeout_is_the_start_timeout_too(client: Any, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    client.subscribe("tester/studio", {}, client_timeout=20)
    (call,) = deployment.calls
    assert call.deadline == call.waiting_since + timedelta(seconds=20)


# --- the same for everybody -----------------------------------------------------------------------


def test_the_module_has_it_all(fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    assert fal_client.run("tester/studio", {"a": 1}) == {"echo": {"a": 1}}
    assert fal_client.subscribe("tester/studio", {"a": 1}) == {"echo": {"a": 1}}
    request_id = fal_client.submit("tester/studio", {"a": 1}).request_id
    assert fal_client.result("tester/studio", request_id) == {"echo": {"a": 1}}
    assert isinstance(fal_client.status("tester/studio", request_id), fal_client.Completed)
    with pytest.raises(fal_client.FalClientHTTPError, match=r"ALREADY_COMPLETED"):
        fal_client.cancel("tester/studio", request_id)


def test_the_module_has_it_all_for_coroutines(fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)

    async def ask() -> list[Any]:
        handle = await fal_client.submit_async("tester/studio", {"a": 3})
        results = [
            await fal_client.run_async("tester/studio", {"a": 1}),
            await fal_client.subscribe_async("tester/studio", {"a": 2}),
            await fal_client.result_async("tester/studio", handle.request_id),
            await fal_client.status_async("tester/studio", handle.request_id),
        ]
        with pytest.raises(fal_client.FalClientHTTPError, match=r"ALREADY_COMPLETED"):
            await fal_client.cancel_async("tester/studio", handle.request_id)
        return results

    *results, status = asyncio.run(ask())
    assert results == [{"echo": {"a": number}} for number in (1, 2, 3)]
    assert isinstance(status, fal_client.Completed)


def test_many_at_once(fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio, max_concurrency=3)

    async def ask() -> list[Any]:
        client = fal_client.AsyncClient()
        asked = [client.subscribe("tester/studio", {"a": number}) for number in range(8)]
        return await asyncio.gather(*asked)

    assert asyncio.run(ask()) == [{"echo": {"a": number}} for number in range(8)]


def test_many_threads_at_once(fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio, max_concurrency=3)
    client = fal_client.SyncClient()

    def ask(number: int) -> Any:
        return client.subscribe("tester/studio", {"a": number})

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [{"echo": {"a": number}} for number in range(8)]


def test_a_queue_that_is_full_is_tried_again(
    client: Any, fal_gateway: Gateway, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    full = "tester/studio?fal_max_queue_length=1"
    client.submit(full, {"a": 1})
    fal_clock.on(5, deployment.run_next)
    began = fal_clock.now()
    handle = client.submit(full, {"a": 2})
    assert (fal_clock.now() - began).total_seconds() >= 5
    deployment.run_next()
    assert handle.get() == {"echo": {"a": 2}}


@needs_backup
def test_the_backup_domain(
    client: Any, fal_gateway: Gateway, fal_faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    fal_faults.refuse(host="fal.run")
    fal_faults.refuse(host="queue.fal.run")
    assert client.run("tester/studio", {"a": 1}) == {"echo": {"a": 1}}
    handle = client.submit("tester/studio", {"a": 1})
    assert handle.get() == {"echo": {"a": 1}}
    assert handle.status_url.startswith("https://queue.falrun.com/tester/studio/requests/")
    (first, second) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert first.endswith(
        "fal.run/tester/studio failed (ConnectError); trying backup domain falrun.com"
    )
    assert second.endswith("trying backup domain queue.falrun.com")


# --- files ----------------------------------------------------------------------------------------


def test_upload(client: Any, fal_cdn: CDN) -> None:
    lifecycle = fal_client.StorageSettings(expires_in="1h")
    url = client.upload("text", "text/plain", "a.txt", lifecycle=lifecycle)
    info = fal_cdn.info(url)
    assert (fal_cdn.get(url), info.content_type, info.file_name) == (b"text", "text/plain", "a.txt")
    assert info.expires_at is not None
    assert info.expires_at - info.created_at == timedelta(hours=1)


def test_upload_file(client: Any, fal_cdn: CDN, tmp_path: Path) -> None:
    (tmp_path / "sound.wav").write_bytes(b"RIFF")
    info = fal_cdn.info(client.upload_file(tmp_path / "sound.wav"))
    assert info.file_name == "sound.wav"
    assert info.content_type in ("audio/x-wav", "audio/wav")


def test_upload_image(client: Any, fal_cdn: CDN) -> None:
    url = client.upload_image(PILImage.new("RGB", (3, 2)), "png")
    assert fal_cdn.info(url).content_type == "image/png"
    assert fal_cdn.image(url).size == (3, 2)


def test_an_upload_is_an_input(client: Any, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/reading", Reading)
    url = client.upload(b"bytes", "text/plain", "a.txt")
    assert client.run("tester/reading", {"url": url}) == {"read": "bytes"}


@needs_deprecation
def test_an_upload_that_fails_goes_elsewhere(
    client: Any, fal_cdn: CDN, fal_faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    fal_faults.status(500, host="v3.fal.media", method="POST")
    url = client.upload(b"x", "text/plain", "a.txt")
    assert fal_cdn.get(url) == b"x"
    assert not url.startswith("https://v3")
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("Upload failed to fal_v3, falling back to fal: ")


def test_without_a_fallback_it_fails(client: Any, fal_faults: Faults) -> None:
    fal_faults.status(500, host="v3.fal.media", method="POST")
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.upload(b"x", "text/plain", fallback_repository=[])
    assert caught.value.status_code == 500


@needs_deprecation
def test_a_repository_of_old(client: Any, fal_cdn: CDN) -> None:
    with pytest.warns(DeprecationWarning, match=r"^`cdn` upload repository is deprecated"):
        url = client.upload(b"x", "text/plain", repository="cdn")
    assert fal_cdn.get(url) == b"x"


def test_a_repository_that_there_is_not(client: Any, fal_emulator: Emulator) -> None:
    with pytest.raises(ValueError, match=r"^Unsupported upload repository 's3'$"):
        client.upload(b"x", "text/plain", repository="s3")


@pytest.mark.parametrize(
    ("expires_in", "seconds"),
    [("immediate", 60), ("1d", 86_400), ("1y", 31_536_000), (5, 5), ("never", None), (None, None)],
)
def test_lifetimes(expires_in: Any, seconds: int | None, fal_cdn: CDN) -> None:
    lifecycle = fal_client.StorageSettings(expires_in=expires_in)
    info = fal_cdn.info(fal_client.upload(b"x", "text/plain", lifecycle=lifecycle))
    lived = None if info.expires_at is None else info.expires_at - info.created_at
    assert lived == (None if seconds is None else timedelta(seconds=seconds))


@pytest.mark.parametrize("expires_in", [0, -1, True, "2h"])
def test_lifetimes_that_make_no_sense(expires_in: Any) -> None:
    with pytest.raises(ValueError, match=r"lifecycle expires_in value"):
        fal_client.StorageSettings(expires_in=expires_in)


def test_who_may_read_an_upload(client: Any, fal_emulator: Emulator) -> None:
    bob, eve = fal_emulator.user("bob"), fal_emulator.user("eve")
    acl = fal_client.StorageACL("hide", [fal_client.StorageACLRule("bob", "allow")])
    url = client.upload(b"x", "text/plain", lifecycle=fal_client.StorageSettings(initial_acl=acl))
    assert [user.get(url).status_code for user in (bob, eve)] == [200, 404]


def test_files_as_data_urls(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text")
    (tmp_path / "unknown").write_bytes(b"text")
    assert fal_client.encode("text", "text/plain") == "data:text/plain;base64,dGV4dA=="
    assert fal_client.encode_file(tmp_path / "a.txt") == "data:text/plain;base64,dGV4dA=="
    unknown = fal_client.encode_file(tmp_path / "unknown")
    assert unknown == "data:application/octet-stream;base64,dGV4dA=="
    image = fal_client.encode_image(PILImage.new("RGB", (1, 1)), "png")
    assert image.startswith("data:image/png;base64,iVBOR")
