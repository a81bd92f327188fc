"""Paths and headers at the gateway: they reach the app, and the caller, as they were sent.

Without postponed annotations: the names in them do not go along when the SDK pickles an app.
"""

import fal
import fal_client
import httpx
import pytest
import requests
from fastapi import Request
from fastapi.responses import Response

APP = "tester/app"
KEY = {"Authorization": "Key id:secret"}


class Echo(fal.App):
    @fal.endpoint("/items/{name}")
    def item(self, name: str, request: Request) -> dict:
        return {"name": name, "query": request.scope["query_string"].decode()}

    @fal.endpoint("/header")
    def header(self, request: Request) -> Response:
        value = dict(request.headers.raw).get(b"x-name", "café".encode("latin-1"))
        return Response("{}", headers={"x-name": value.decode("latin-1")})


@pytest.fixture(autouse=True, params=["thread", "process"])
def app(request, fal_gateway):
    return fal_gateway.deploy(APP, Echo, isolation=request.param)


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("a%3Fb", "a?b"),
        ("a%23c", "a#c"),
        ("a%2541", "a%41"),
        ("caf%C3%A9", "café"),
        ("café", "café"),
        ("a%20b", "a b"),
    ],
)
@pytest.mark.parametrize("ask", [fal_client.run, fal_client.subscribe])
def test_a_path_is_decoded_once(ask, sent, name):
    assert ask(APP, {}, path=f"items/{sent}") == {"name": name, "query": ""}


def test_a_tests_own_call_may_have_any_path(app):
    assert app.post("/items/café?a=ü").json() == {"name": "café", "query": "a=%C3%BC"}


@pytest.mark.parametrize("client", [httpx, requests])
@pytest.mark.parametrize("value", [None, "größe".encode("latin-1"), "größe".encode()])
def test_headers_pass_as_bytes(client, value):
    headers = KEY if value is None else {**KEY, "x-name": value}
    response = client.post(f"https://fal.run/{APP}/header", json={}, headers=headers)
    raw = dict(response.headers.raw) if client is httpx else response.raw.headers
    got = raw[b"x-name"] if client is httpx else raw["x-name"].encode("latin-1")
    assert got == (value or "café".encode("latin-1"))


class Calling(fal.App):
    @fal.endpoint("/")
    def call(self, input: dict) -> dict:
        url = "https://queue.fal.run/tester/app/items/a?fal_max_queue_length=0"
        token = self.current_request.headers["x-fal-cdn-token"]
        answer = httpx.post(url, json={}, headers={**KEY, "x-fal-cdn-token": token})
        return {"status": answer.status_code}


def test_a_full_queue_is_one_for_apps_too(fal_gateway):
    fal_gateway.deploy("tester/calling", Calling)
    assert fal_client.run("tester/calling", {}) == {"status": 429}
