"""Stand-ins for apps of other people, that apps and tests call by fal_client."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import fal
import fal_client
import httpx
import pytest
from fal.toolkit import File
from fastapi import HTTPException
from pydantic import BaseModel
from versions import needs_method

from emulator.errors import EmulatorError

FLUX = "fal-ai/flux/schnell"


class Picture(BaseModel):
    url: str


class Chaining(fal.App):
    """Has its picture made by somebody else's app."""

    @fal.endpoint("/")
    def make(self, input: dict) -> dict:
        Path("/tmp/own").touch()
        return fal_client.run(FLUX, input)

    @fal.endpoint("/queued")
    def queue(self, input: dict) -> dict:
        return fal_client.subscribe(FLUX, input)


@pytest.fixture(params=["thread", "process"])
def chaining(request, fal_gateway):
    return fal_gateway.deploy("tester/app", Chaining, isolation=request.param)


# --- what they answer -----------------------------------------------------------------------------


@pytest.mark.parametrize("content", [{"images": []}, [1, 2], "text", None])
def test_content_is_answered_as_json(fal_gateway, content):
    fal_gateway.deploy(FLUX, content)
    assert fal_client.run(FLUX, {}) == content


def test_a_model_is_answered_as_json(fal_gateway):
    fal_gateway.deploy(FLUX, Picture(url="https://example.com/a.png"))
    assert fal_client.run(FLUX, {}) == {"url": "https://example.com/a.png"}


def test_a_response_is_answered_as_it_is_each_time(fal_gateway):
    given = httpx.Response(201, headers={"x-fal-billable-units": "2"}, json={"seed": 1})
    fal_gateway.deploy(FLUX, given)
    for _ in range(2):
        response = httpx.post(f"https://fal.run/{FLUX}", headers=key(), json={})
        assert (response.status_code, response.json()) == (201, {"seed": 1})
        assert response.headers["x-fal-billable-units"] == "2"


def test_a_function_gets_the_arguments(fal_gateway):
    fal_gateway.deploy(FLUX, lambda arguments: {"seed": arguments["seed"] + 1})
    assert fal_client.run(FLUX, {"seed": 1}) == {"seed": 2}


def test_a_function_of_two_gets_the_request_as_well(fal_gateway):
    def answer(arguments, request):
        return {"path": request.url.path, "seen": request.headers["x-app-fal-style"]}

    fal_gateway.deploy("fal-ai/flux", answer)
    given = {"x-app-fal-style": "oil"}
    assert fal_client.run("fal-ai/flux/dev", {}, headers=given) == {"path": "/dev", "seen": "oil"}


@needs_method
def test_a_request_without_a_body_has_no_arguments(fal_gateway):
    fal_gateway.deploy(FLUX, lambda arguments: {"got": arguments})
    assert fal_client.run(FLUX, {}, method="GET") == {"got": {}}


def test_it_answers_through_the_queue(fal_gateway):
    fal_gateway.deploy(FLUX, lambda arguments: arguments)
    assert fal_client.subscribe(FLUX, {"seed": 3}) == {"seed": 3}


def test_an_exception_is_a_500_and_in_the_log(fal_gateway):
    def answer(arguments):
        raise LookupError("no such style")

    fal_gateway.deploy(FLUX, answer)
    handle = fal_client.submit(FLUX, {})
    with pytest.raises(fal_client.FalClientHTTPError, match="Internal Server Error") as caught:
        handle.get()
    assert caught.value.status_code == 500
    logs = handle.status(with_logs=True).logs
    assert (logs[-1]["level"], logs[-1]["message"]) == ("STDERR", "LookupError: no such style")


def test_a_failed_assertion_fails_the_test_whatever_the_app_makes_of_it(pytester):
    pytester.makepyfile(
        """
        import fal, fal_client

        class Careful(fal.App):
            @fal.endpoint("/")
            def make(self, input: dict) -> dict:
                try:
                    return fal_client.run("fal-ai/flux", input)
                except fal_client.FalClientHTTPError:
                    return {"fallback": True}

        def test_it(fal_gateway):
            def flux(arguments):
                assert arguments["prompt"] == "a dog"

            fal_gateway.deploy("fal-ai/flux", flux)
            fal_gateway.deploy("tester/careful", Careful)
            assert fal_client.run("tester/careful", {"prompt": "a cat"}) == {"fallback": True}
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E *AssertionError: assert 'a cat' == 'a dog'"])


def test_an_async_function_is_awaited(fal_gateway):
    async def answer(arguments):
        await asyncio.sleep(0)
        return arguments

    fal_gateway.deploy(FLUX, answer)
    assert fal_client.run(FLUX, {"seed": 1}) == {"seed": 1}
    assert asyncio.run(fal_client.subscribe_async(FLUX, {"seed": 2})) == {"seed": 2}


def test_a_name_that_is_nearly_that_of_an_app(fal_gateway):
    fal_gateway.deploy("fal-ai/flux", {})
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        fal_client.run("fal-ai/fluxx", {})
    assert "fal-ai/flux is deployed: did you mean that? Else write fal_g" in caught.value.message


def test_a_name_that_is_none_is_refused(fal_gateway):
    with pytest.raises(EmulatorError) as caught:
        fal_gateway.deploy({}, FLUX)
    assert str(caught.value) == (
        'deploy() was given {} as a name. Write the name first: deploy("tester/my-app", MyApp).'
    )


def test_an_exception_with_a_status_is_answered_with_it(fal_gateway):
    def answer(arguments):
        raise HTTPException(422, "prompt is missing")

    fal_gateway.deploy(FLUX, answer)
    with pytest.raises(fal_client.FalClientHTTPError, match="prompt is missing") as caught:
        fal_client.run(FLUX, {})
    assert caught.value.status_code == 422


def test_a_sleep_in_it_moves_a_stopped_clock(fal_gateway, fal_clock):
    fal_clock.freeze()
    start = fal_clock.now()

    def answer(arguments):
        time.sleep(90)
        return {}

    fal_gateway.deploy(FLUX, answer)
    handle = fal_client.submit(FLUX, {})
    handle.get()
    assert handle.status().metrics == {"inference_time": 90.0}
    assert (fal_clock.now() - start).total_seconds() >= 90


# --- for whom they stand --------------------------------------------------------------------------


def test_the_longest_name_answers(fal_gateway):
    fal_gateway.deploy("fal-ai/flux", {"by": "flux"})
    fal_gateway.deploy("fal-ai/flux/dev", {"by": "dev"})
    fal_gateway.deploy("fal-ai/flux/dev/image-to-image", {"by": "image-to-image"})
    endpoints = ("fal-ai/flux", "fal-ai/flux/pro", "fal-ai/flux/dev", "fal-ai/flux/dev/redux")
    answers = [fal_client.run(endpoint, {})["by"] for endpoint in endpoints]
    assert answers == ["flux", "flux", "dev", "dev"]
    assert fal_client.run("fal-ai/flux/dev/image-to-image", {})["by"] == "image-to-image"


def test_a_queued_request_of_an_endpoint_is_asked_about_at_its_app(fal_gateway):
    fal_gateway.deploy(FLUX, {})
    handle = fal_client.submit(FLUX, {})
    base = f"https://queue.fal.run/fal-ai/flux/requests/{handle.request_id}"
    assert (handle.response_url, handle.status_url) == (base, f"{base}/status")
    assert fal_client.result(FLUX, handle.request_id) == {}


def test_an_app_that_is_not_deployed_says_what_to_write(fal_gateway):
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        fal_client.run(FLUX, {})
    assert caught.value.status_code == 404
    assert caught.value.message == (
        "Application 'fal-ai/flux/schnell' not found: nothing is deployed under this name. Write "
        'fal_gateway.deploy("fal-ai/flux", MyApp), or for an app of somebody else\'s what '
        'it answers: fal_gateway.deploy("fal-ai/flux/schnell", {"images": []})'
    )


def test_its_caller_is_a_stranger(fal_gateway):
    fal_gateway.deploy(FLUX, lambda _, request: request.headers["x-fal-caller-user-id"])
    assert fal_client.run(FLUX, {}) == hashlib.sha256(b"tester").hexdigest()


def test_its_owner_may_call_it_too(fal_gateway, fal_emulator):
    fal_gateway.deploy(FLUX, lambda _, request: request.headers["x-fal-caller-user-id"])
    with fal_emulator.user("fal-ai"):
        assert fal_client.SyncClient().run(FLUX, {}) == "fal-ai"


def test_it_has_no_runners_of_the_tests(fal_gateway):
    deployment = fal_gateway.deploy(FLUX, {})
    fal_client.run(FLUX, {})
    assert deployment.runners == []
    assert [call.response.headers["x-fal-served-from"] for call in deployment.calls] == [
        "stand-in-1"
    ]


def test_it_can_be_changed(fal_gateway):
    deployment = fal_gateway.deploy(FLUX, {"version": 1})
    before = fal_client.run(FLUX, {})
    deployment.redeploy({"version": 2})
    assert [before, fal_client.run(FLUX, {})] == [{"version": 1}, {"version": 2}]


@pytest.mark.parametrize("given", [7, int, b"bytes"])
def test_what_cannot_be_answered_is_refused(fal_gateway, given):
    with pytest.raises(EmulatorError, match=r"is neither a subclass of fal\.App nor an answer"):
        fal_gateway.deploy(FLUX, given)


# --- called by apps -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/queued"])
def test_an_app_calls_it(chaining, fal_gateway, path):
    fal_gateway.deploy(FLUX, lambda arguments: {"prompt": arguments["prompt"]})
    assert fal_client.run("tester/app", {"prompt": "a cat"}, path=path) == {"prompt": "a cat"}


def test_it_does_not_run_where_the_app_runs(fal_gateway):
    def answer(arguments):
        return {"tmp": Path("/tmp/own").exists()}

    fal_gateway.deploy("tester/app", Chaining)
    fal_gateway.deploy(FLUX, answer)
    assert fal_client.run("tester/app", {}) == {"tmp": False}


def test_what_it_calls_itself_is_not_called_for_the_app(fal_gateway):
    fal_gateway.deploy("tester/app", Chaining)
    fal_gateway.deploy(FLUX, lambda _: fal_client.run("fal-ai/captions", {}))
    fal_gateway.deploy("fal-ai/captions", {})
    fal_client.run("tester/app", {})
    fal_client.run("tester/app", {})
    calls = fal_gateway.deployments["fal-ai/captions"].calls
    tokens = fal_gateway.deployments[FLUX].calls[0].headers["x-fal-cdn-token"]
    assert [call.headers["x-fal-cdn-token"] == tokens for call in calls] == [False, False]


def test_a_file_that_it_puts_is_not_the_calling_apps(fal_gateway, fal_cdn):
    fal_gateway.deploy("tester/app", Chaining)
    fal_gateway.deploy(FLUX, lambda _: {"url": File.from_bytes(b"made", file_name="a.txt").url})
    url = fal_client.run("tester/app", {})["url"]
    assert fal_cdn.info(url).request_id is None


def key():
    return {"Authorization": "Key id:secret"}
