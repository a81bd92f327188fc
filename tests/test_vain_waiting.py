"""Tests that wait for what only they themselves could bring about are told so, and do not hang."""

from __future__ import annotations

import asyncio
import threading

import fal
import fal_client
import httpx
import pytest

from emulator.errors import EmulatorError

APP = "tester/app"
MESSAGE = (
    "call-1 waits in a queue that is held, and the test waits for call-1. Write "
    "deployment.run_next() before you ask for its result, or deployment.release(); or call "
    "subscribe() in a thread of its own."
)


class Answering(fal.App):
    @fal.endpoint("/")
    def answer(self, input: dict) -> dict:
        return {"seed": input["seed"]}


@pytest.fixture
def held(fal_gateway, fal_clock):
    fal_clock.freeze()  # so that polling takes no time
    deployment = fal_gateway.deploy(APP, Answering)
    deployment.hold()
    return deployment


def subscribe():
    return fal_client.subscribe(APP, {"seed": 1})


def subscribe_async():
    return asyncio.run(fal_client.subscribe_async(APP, {"seed": 1}))


def read_the_status_stream():
    handle = fal_client.submit(APP, {"seed": 1})
    headers = {"Authorization": "Key id:secret"}
    return httpx.get(f"{handle.status_url}/stream", headers=headers, timeout=None)


@pytest.mark.parametrize("wait", [subscribe, subscribe_async, read_the_status_stream])
def test_who_waits_for_a_held_queue_is_told(held, wait):
    with pytest.raises(EmulatorError) as caught:
        wait()
    assert str(caught.value) == MESSAGE


class Crashing(fal.App):
    def setup(self):
        raise OSError("no weights")

    @fal.endpoint("/")
    def answer(self, input: dict) -> dict:
        return {}


@pytest.mark.parametrize("stopped", [True, False])
def test_who_waits_for_an_app_that_does_not_come_up_is_told(fal_gateway, fal_clock, stopped):
    if stopped:
        fal_clock.freeze()
    fal_gateway.deploy(APP, Crashing)
    with pytest.raises(EmulatorError) as caught:
        subscribe()
    assert str(caught.value).startswith("call-1 waits for a runner of tester/app, and runner-")
    assert "did not start: setup raised OSError('no weights') (" in str(caught.value)


def test_another_thread_may_wait_for_the_test(held):
    results = []
    thread = threading.Thread(target=lambda: results.append(subscribe()))
    thread.start()
    while len(held.queue) < 1 or held.queue[0].asked_in_vain:
        pass
    held.run_next()
    thread.join()
    assert results == [{"seed": 1}]


def test_who_waits_for_a_start_time_out_gets_it(held):
    with pytest.raises(fal_client.FalClientHTTPError, match="timed out"):
        fal_client.subscribe(APP, {"seed": 1}, start_timeout=60)


def test_a_queue_that_runs_again_is_waited_for(held):
    handle = fal_client.submit(APP, {"seed": 1})
    for _ in range(49):
        handle.status()
    held.release()
    assert handle.get() == {"seed": 1}
