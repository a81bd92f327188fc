"""Apps that call apps: whose results they are, and who may read them."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import fal
import fal_client
import httpx
import pytest
from fal.toolkit import File
from gallery import bug

TOPIC = "Apps that call apps"
HIDE = {"X-Fal-Object-Lifecycle-Preference": '{"initial_acl": {"default": "hide"}}'}
TOKEN = "x-fal-cdn-token"


class Upscaler(fal.App):
    @fal.endpoint("/")
    def upscale(self, input: dict) -> dict:
        return {"url": File.from_bytes(b"large", file_name="large.bin").url}


class Studio(fal.App):
    """Has its pictures upscaled by another app."""

    @fal.endpoint("/by-hand")
    def by_hand(self, input: dict) -> dict:
        key = {"Authorization": f"Key {os.environ['FAL_KEY']}"}
        return httpx.post("https://fal.run/tester/upscaler", json={}, headers=key | HIDE).json()

    @fal.endpoint("/in-a-thread")
    def in_a_thread(self, input: dict) -> dict:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.by_client, input).result()

    @fal.endpoint("/by-client")
    def by_client(self, input: dict) -> dict:
        return fal_client.run("tester/upscaler", {}, headers=HIDE)


@pytest.fixture
def bob(fal_gateway, fal_emulator):
    fal_gateway.deploy("tester/upscaler", Upscaler)
    fal_gateway.deploy("tester/studio", Studio)
    return fal_emulator.user("bob")


def ask(user, path):
    key = {"Authorization": f"Key {user.key}"}
    return httpx.post(f"https://fal.run/tester/studio/{path}", json={}, headers=key)


@bug(
    "P39",
    symptom="the caller gets a link, and the link says 404",
    topic=TOPIC,
    seen=None,
)
@pytest.mark.parametrize("path", ["by-hand", "in-a-thread"])
def test_a_call_without_the_callers_token_makes_files_that_the_caller_cannot_read(bob, path):
    """An app calls another one, and its caller may not read what that one has made.

    Production: as long as files are public nobody notices; with an access list the caller gets a
        link to a file that is hidden from everybody but the app's owner.
    Expected: what is made for a request is its caller's, however deep in the chain.
    Happens: who it is made for goes along in the header x-fal-cdn-token, which fal_client copies
        from the request; httpx does not, and in a thread of its own fal_client has no request.
    Avoid: call by fal_client, in the endpoint itself or in asyncio.to_thread.
    """
    assert bob.get(ask(bob, path).json()["url"]).status_code == 404

    response = ask(bob, "by-client")
    assert bob.get(response.json()["url"]).status_code == 200
    extended = {"Authorization": f"Bearer {response.headers[TOKEN]}"}
    assert httpx.get(response.json()["url"], headers=extended).status_code == 200


class Agency(fal.App):
    """Orders from the studio, in a thread of its own."""

    @fal.endpoint("/")
    def order(self, input: dict) -> dict:
        thread = threading.Thread(target=fal_client.run, args=("tester/studio/by-client", {}))
        thread.start()
        thread.join()
        return {}


@bug(
    "N44",
    symptom="an app hands out a token that it got long ago, for somebody else's request",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_thread_sends_the_token_of_an_earlier_call(bob, fal_gateway, fal_emulator):
    """What fal_client was told in a thread outside of all requests, it sends from all of them.

    Production: an app calls others from threads; from its second request on each of these calls
        carries a token that opens the results of earlier requests, of other callers.
    Expected: outside of a request there is no token to send.
    Happens: there the SDK's current request is one default object, the same for all threads, and
        fal_client keeps the token of an answer in it for good.
    Avoid: call other apps in the endpoint itself or in asyncio.to_thread.
    """
    fal_gateway.deploy("tester/agency", Agency)
    for user in (bob, fal_emulator.user("eve")):
        key = {"Authorization": f"Key {user.key}"}
        httpx.post("https://fal.run/tester/agency", json={}, headers=key)
    first, second = fal_gateway.deployments["tester/studio"].calls
    assert second.headers[TOKEN] == first.response.headers[TOKEN]
