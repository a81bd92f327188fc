"""Webhooks of queued requests: what the gateway tells when a request has its answer [§6.4]."""

from __future__ import annotations

import asyncio
from pathlib import Path

import fal
import fal_client
import pytest
from fastapi.responses import JSONResponse, PlainTextResponse

APP = "tester/app"


class Working(fal.App):
    @fal.endpoint("/")
    def answer(self, input: dict) -> dict:
        return {"seed": input["seed"]}

    @fal.endpoint("/refuse")
    def refuse(self, input: dict) -> JSONResponse:
        return JSONResponse({"detail": [{"loc": ["body", "prompt"], "msg": "is empty"}]}, 422)

    @fal.endpoint("/text")
    def tell(self, input: dict) -> PlainTextResponse:
        return PlainTextResponse("no JSON")

    @fal.endpoint("/flaky")
    def flake(self, input: dict) -> JSONResponse:
        first = not Path("/data/tried").exists()
        Path("/data/tried").touch()
        return JSONResponse({}, 504 if first else 200)


@pytest.fixture(autouse=True)
def app(fal_gateway):
    return fal_gateway.deploy(APP, Working)


@pytest.fixture
def told(fal_webhooks):
    """Submit a request, and what the receiver was told of it."""

    def submit(path="", **options):
        url = fal_webhooks.url
        handle = fal_client.submit(APP, {"seed": 3}, path=path, webhook_url=url, **options)
        fal_webhooks.wait()
        (webhook,) = fal_webhooks.received
        return handle, webhook

    return submit


def test_the_answer_of_a_request_is_its_payload(told):
    handle, webhook = told()
    assert (webhook.status, webhook.payload, webhook.error) == ("OK", {"seed": 3}, None)
    assert webhook.request_id == webhook.gateway_request_id == handle.request_id
    assert webhook.verified


def test_a_request_that_fails_is_told_with_the_apps_answer(told):
    _, webhook = told("/refuse")
    assert (webhook.status, webhook.error) == ("ERROR", "Invalid status code: 422")
    assert webhook.payload == {"detail": [{"loc": ["body", "prompt"], "msg": "is empty"}]}


def test_an_answer_that_is_no_json_is_told_as_such(told):
    _, webhook = told("/text")
    assert webhook.payload is None
    assert webhook.payload_error is not None


def test_a_request_that_was_tried_again_is_told_once_with_the_last_attempts_id(
    told, app, fal_clock
):
    fal_clock.freeze()
    handle, webhook = told("/flaky")
    (call,) = app.calls
    assert webhook.request_id == handle.request_id == call.attempts[0].id
    assert webhook.gateway_request_id == call.attempts[1].id != handle.request_id


def test_a_cancelled_request_is_told_as_an_error(app, fal_webhooks):
    app.hold()
    handle = fal_client.submit(APP, {"seed": 3}, webhook_url=fal_webhooks.url)
    handle.cancel()
    fal_webhooks.wait()
    (webhook,) = fal_webhooks.received
    assert (webhook.status, webhook.error) == ("ERROR", "Invalid status code: 499")


def test_the_async_client_asks_for_one_too(fal_webhooks):
    asyncio.run(fal_client.submit_async(APP, {"seed": 3}, webhook_url=fal_webhooks.url))
    fal_webhooks.wait()
    assert fal_webhooks.received[0].payload == {"seed": 3}


def test_the_app_does_not_see_that_there_is_one(told, app):
    told()
    assert app.calls[0].path == "/"


def test_it_is_the_users_whose_request_it_is(app, fal_webhooks, fal_emulator):
    bob = fal_emulator.user("bob")
    client = fal_client.SyncClient(key=bob.key)
    client.submit(APP, {"seed": 3}, webhook_url=fal_webhooks.url)
    fal_webhooks.wait()
    assert fal_webhooks.received[0].headers["x-fal-webhook-user-id"] == bob.id


def test_a_direct_call_has_none(fal_webhooks):
    fal_client.run(f"{APP}?fal_webhook={fal_webhooks.url}", {"seed": 3})
    fal_webhooks.settle()
    assert fal_webhooks.received == []


def test_a_lost_answer_is_told_twice_and_an_order_booked_twice(fal_webhooks, fal_clock):
    fal_clock.freeze()
    booked = []
    fal_webhooks.handler = lambda webhook: booked.append(webhook.request_id)
    fal_webhooks.lose_answer()
    handle = fal_client.submit(APP, {"seed": 3}, webhook_url=fal_webhooks.url)
    fal_webhooks.wait()
    fal_clock.advance(hours=2)
    assert booked == [handle.request_id, handle.request_id]
