"""Sixty-four threads at once through every client: each gets its own answers, and none is left.

Without postponed annotations: the names in them do not go along when the SDK pickles an app.
"""

import asyncio
import gc
import http.client
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import fal
import httpx
import pytest
import requests
from wire_clients import settled, wire_threads

from emulator.network import server
from pytest_fal.descriptors import descriptors

THREADS = 64
REQUESTS = 4
SITE = "https://crowd.example"


def by_urllib(paths: list[str]) -> list[bytes]:
    answers = []
    for path in paths:
        with urllib.request.urlopen(SITE + path) as answer:
            answers.append(answer.read())
    return answers


def by_requests(paths: list[str]) -> list[bytes]:
    with requests.Session() as session:
        return [session.get(SITE + path).content for path in paths]


def by_http_client(paths: list[str]) -> list[bytes]:
    """Over one connection that is kept."""
    connection = http.client.HTTPSConnection("crowd.example")
    try:
        answers = []
        for path in paths:
            connection.request("GET", path)
            answers.append(connection.getresponse().read())
        return answers
    finally:
        connection.close()


def by_httpx(paths: list[str]) -> list[bytes]:
    with httpx.Client() as client:
        return [client.get(SITE + path).content for path in paths]


def by_aiohttp(paths: list[str]) -> list[bytes]:
    async def ask() -> list[bytes]:
        async with aiohttp.ClientSession() as session:
            answers = []
            for path in paths:
                async with session.get(SITE + path) as answer:
                    answers.append(await answer.read())
            return answers

    return asyncio.run(ask())


def crowd(ask, threads=THREADS):
    """What each thread gets for paths of its own; all of them begin together."""
    together = threading.Barrier(threads)

    def one(number: int) -> list[bytes]:
        together.wait()
        return ask([f"/{number}/{turn}" for turn in range(REQUESTS)])

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(threads)))


def expected(threads=THREADS) -> list[list[bytes]]:
    return [[f"/{number}/{turn}".encode() for turn in range(REQUESTS)] for number in range(threads)]


@pytest.fixture
def site(fal_http):
    """Answers each path with itself."""
    fal_http.get(url__startswith=f"{SITE}/").mock(
        side_effect=lambda request: httpx.Response(200, text=request.url.path)
    )


@pytest.mark.parametrize("ask", [by_urllib, by_requests, by_http_client, by_httpx, by_aiohttp])
def test_each_of_many_threads_gets_its_own_answers(site, fal_ledger, ask):
    ask(["/first"])
    gc.collect()
    before = len(descriptors())
    assert crowd(ask) == expected()
    assert len(fal_ledger.requests(host="crowd.example")) == THREADS * REQUESTS + 1
    gc.collect()
    assert settled(lambda: wire_threads() <= 2 * server.WAITING_THREADS)
    assert settled(lambda: len(descriptors()) <= before + 2)  # a thread may be in accept()


class Idle(fal.App):
    @fal.endpoint("/")
    def answer(self) -> dict:
        return {}


def test_httpx_over_the_wire(site, fal_runner):
    """As it goes in a runner's process, where nothing of it is replaced."""
    runner = fal_runner(Idle, isolation="process")
    assert runner.run(crowd, by_httpx, 16) == expected(16)
    runner.stop()
    assert settled(lambda: wire_threads() <= 2 * server.WAITING_THREADS)


def test_all_clients_together(site):
    asks = [by_urllib, by_requests, by_http_client, by_httpx, by_aiohttp]
    found = crowd(lambda paths: asks[int(paths[0].split("/")[1]) % len(asks)](paths))
    assert found == expected()
