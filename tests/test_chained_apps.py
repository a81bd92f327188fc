"""Apps that call apps: the caller's token goes down the chain, and comes back extended [§4.7].

The SDK and fal_client pass it on by themselves; what is tested is the gateway between them.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import fal
import fal_client
import httpx
import pytest
from fal.toolkit import File, download_file

HIDE = {"X-Fal-Object-Lifecycle-Preference": json.dumps({"initial_acl": {"default": "hide"}})}
TOKEN = "x-fal-cdn-token"


class Drawing(fal.App):
    """Somebody's model."""

    @fal.endpoint("/")
    def draw(self, input: dict) -> dict:
        return {"url": File.from_bytes(b"drawn", "image/png", file_name="drawn.png").url}

    @fal.endpoint("/forgetful")
    def forget(self, input: dict) -> dict:
        """As with an SDK that tells the request of an upload, but not for whom it is."""
        del self.current_request.headers[TOKEN]
        return self.draw({})


class Framing(fal.App):
    """Has a picture drawn, and puts a frame around it."""

    @fal.endpoint("/")
    def frame(self, input: dict) -> dict:
        drawn = fal_client.run("tester/drawing", {}, headers=HIDE)["url"]
        token = self.current_request.headers[TOKEN]
        path = download_file(drawn, "/tmp", request_headers={"Authorization": f"Bearer {token}"})
        framed = b"[" + Path(path).read_bytes() + b"]"
        return {"drawn": drawn, "url": File.from_bytes(framed, file_name="framed.txt").url}

    @fal.endpoint("/run")
    def run(self, input: dict) -> dict:
        return fal_client.run("tester/drawing", {}, path="/forgetful", headers=HIDE)

    @fal.endpoint("/submit")
    def submit(self, input: dict) -> dict:
        handle = fal_client.submit("tester/drawing", {}, path="/forgetful", headers=HIDE)
        return handle.get()

    @fal.endpoint("/async")
    async def run_async(self, input: dict) -> dict:
        return await fal_client.run_async("tester/drawing", {}, path="/forgetful", headers=HIDE)


class Selling(fal.App):
    """Sells what is framed."""

    @fal.endpoint("/")
    def sell(self, input: dict) -> dict:
        return fal_client.run("tester/framing", {}, path="/run", headers=HIDE)


@pytest.fixture(params=["thread", "process"])
def isolation(request):
    return request.param


@pytest.fixture(autouse=True)
def deployed(isolation, fal_gateway):
    fal_gateway.deploy("tester/drawing", Drawing, isolation=isolation)
    fal_gateway.deploy("tester/framing", Framing, isolation=isolation)


@pytest.fixture
def bob(fal_emulator):
    return fal_emulator.user("bob")


def post(user, path, token=None):
    """A request of a user's, as a client sends it that keeps its token."""
    headers = {"Authorization": f"Key {user.key}"} | ({TOKEN: token} if token else {})
    return httpx.post(f"https://fal.run/tester/{path}", json={}, headers=headers)


def reads(url, token):
    return httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code


def test_a_restricted_intermediate_is_read_by_the_app_that_ordered_it(bob, fal_cdn):
    answer = post(bob, "framing").json()
    assert fal_cdn.get(answer["url"]) == b"[drawn]"
    assert httpx.get(answer["drawn"]).status_code == 404


def test_the_callers_token_goes_down_the_chain(bob, fal_cdn):
    answer = post(bob, "framing").json()
    assert fal_cdn.info(answer["drawn"]).owners == ("bob", "tester")
    assert bob.get(answer["drawn"]).content == b"drawn"


def test_a_stranger_reads_nothing_of_it(bob, fal_emulator):
    drawn = post(bob, "framing").json()["drawn"]
    assert fal_emulator.user("eve").get(drawn).status_code == 404


@pytest.mark.parametrize("path", ["/run", "/submit", "/async"])
def test_the_answer_of_a_nested_call_extends_the_token(bob, path):
    response = post(bob, f"framing{path}")
    drawn = response.json()["url"]
    assert bob.get(drawn).status_code == 404  # the model has lost whom it draws for
    assert reads(drawn, response.headers[TOKEN]) == 200


def test_it_is_extended_all_the_way_up(bob, fal_gateway, isolation):
    fal_gateway.deploy("tester/selling", Selling, isolation=isolation)
    response = post(bob, "selling")
    assert reads(response.json()["url"], response.headers[TOKEN]) == 200


def test_without_a_nested_call_no_token_comes_back(bob):
    assert TOKEN not in post(bob, "drawing").headers


def test_a_token_that_is_sent_comes_back_extended(bob):
    token = bob.token()
    response = post(bob, "drawing/forgetful", token)
    assert response.headers[TOKEN] != token
    assert reads(response.json()["url"], response.headers[TOKEN]) == 200


def test_an_extended_token_lives_no_longer(bob, fal_clock):
    fal_clock.freeze()
    renewed = post(bob, "drawing", bob.token(expires_in=60)).headers[TOKEN]
    url = post(bob, "framing").json()["drawn"]
    fal_clock.advance(59)
    assert reads(url, renewed) == 200
    fal_clock.advance(1)
    assert reads(url, renewed) == 404


def test_a_token_that_has_expired_is_not_extended(bob, fal_clock):
    fal_clock.freeze()
    token = bob.token(expires_in=timedelta(seconds=60))
    fal_clock.advance(60)
    assert TOKEN not in post(bob, "drawing", token).headers


def test_the_test_itself_calls_from_outside_of_all_apps(fal_ledger):
    for _ in range(2):
        fal_client.run("tester/framing", {}, path="/run")
    outside = [one for one in fal_ledger.requests(host="fal.run") if one.runner is None]
    assert [TOKEN in one.request_headers for one in outside] == [False, False]
