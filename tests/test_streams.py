"""Answers that are read while the app makes them: each test is of a thread and of a process.

Without postponed annotations: the names in them do not go along when the SDK pickles an app, and
then every request is answered 422 (see the gallery of bugs).
"""

import asyncio
import contextlib
import gzip
import threading
import time
import urllib.request

import aiohttp
import fal
import httpx
import pytest
import requests
from fal.ref import get_current_app
from fastapi.responses import JSONResponse, Response, StreamingResponse

from emulator.network.bodies import CutShortError
from emulator.runners.runner import IncompleteAnswerError


class Speaker(fal.App):
    """Says what it is told to, as events."""

    request_timeout = 60

    def setup(self):
        self.said = asyncio.Queue()
        self.left = asyncio.Event()
        self.sent = 0

    def handle_exit(self):
        self.said.put_nowait("last")
        self.said.put_nowait("")

    @fal.endpoint("/stream")
    async def stream(self) -> StreamingResponse:
        async def events():
            try:
                yield b"data: first\n\n"
                while text := await self.said.get():
                    yield f"data: {text}\n\n".encode()
            except asyncio.CancelledError:
                self.left.set()
                raise

        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.endpoint("/broken")
    async def broken(self) -> StreamingResponse:
        async def events():
            yield b"data: first\n\n"
            if await self.said.get():
                raise ValueError("out of memory")

        return StreamingResponse(events(), headers={"content-length": "26"})

    @fal.endpoint("/broken-events")
    async def broken_events(self) -> StreamingResponse:
        async def events():
            yield b"data: first\n\n"
            raise ValueError("out of memory")

        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.endpoint("/flood")
    async def flood(self) -> StreamingResponse:
        async def chunks():
            for _ in range(1000):
                yield bytes(65_536)
                self.sent += 1

        return StreamingResponse(chunks())

    @fal.endpoint("/busy")
    async def busy(self) -> StreamingResponse:
        async def chunks():
            yield b"one"
            await self.said.get()
            yield b"two"

        return StreamingResponse(chunks(), status_code=503)

    @fal.endpoint("/packed")
    def packed(self) -> Response:
        headers = {"content-encoding": "gzip"}
        return Response(gzip.compress(b"unpacked"), headers=headers, media_type="text/plain")

    @fal.endpoint("/nothing")
    def nothing(self) -> Response:
        return Response(status_code=204)

    @fal.endpoint("/")
    def whole(self) -> JSONResponse:
        return JSONResponse({"whole": True})


async def say(text):
    get_current_app().said.put_nowait(text)


async def wait_until_left():
    await asyncio.wait_for(get_current_app().left.wait(), 10)


async def count_after_many_turns_of_the_loop():
    for _ in range(50_000):
        await asyncio.sleep(0)
    return get_current_app().sent


@pytest.fixture(params=["thread", "process"])
def runner(request, fal_emulator):
    return fal_emulator.runner(Speaker, isolation=request.param)


def post(runner, path="/stream"):
    return httpx.Request("POST", f"{runner.url}{path}")


FIRST, SECOND = b"data: first\n\n", b"data: other\n\n"


def test_an_answer_is_there_as_soon_as_the_app_has_sent_its_head(runner):
    response = runner.open(post(runner))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (runner.state, runner.in_flight) == ("RUNNING", 1)
    chunks = iter(response.stream)
    assert next(chunks) == FIRST
    runner.run(say, "other")
    assert next(chunks) == SECOND
    runner.run(say, "")
    assert list(chunks) == []
    assert (runner.state, runner.in_flight) == ("IDLE", 0)


def test_the_app_sees_a_client_that_closes_early_go_away(runner):
    response = runner.open(post(runner))
    assert next(iter(response.stream)) == FIRST
    response.close()
    assert runner.in_flight == 0
    runner.run(wait_until_left)


def test_a_body_that_nobody_reads_makes_the_app_wait(runner):
    response = runner.open(post(runner, "/flood"))
    assert runner.run(count_after_many_turns_of_the_loop) < 1000
    response.close()


def test_an_app_that_raises_in_the_middle_cuts_the_body_short(runner):
    chunks = iter(runner.open(post(runner, "/broken")).stream)
    assert next(chunks) == FIRST
    runner.run(say, "go")
    with pytest.raises(CutShortError) as caught:
        list(chunks)
    assert str(caught.value) == (
        "runner-1 broke off its answer to POST /broken: the app raised an exception while it sent "
        "the body, or the answer was closed. runner.output has what it printed."
    )
    assert runner.state == "IDLE"


def test_events_that_the_app_breaks_off_seem_to_be_whole_as_they_do_on_the_platform(runner):
    # The SDK's http middlewares are Starlette's, which end a body in order whatever was raised.
    assert list(runner.open(post(runner, "/broken-events")).stream) == [FIRST]


def test_a_runner_that_is_killed_meanwhile_cuts_the_body_short(runner):
    chunks = iter(runner.open(post(runner)).stream)
    assert next(chunks) == FIRST
    runner.kill()
    with pytest.raises(IncompleteAnswerError) as caught:
        list(chunks)
    assert str(caught.value) == (
        "runner-1 ended (killed: by the test) before its answer to POST /stream was whole"
    )


def test_a_stream_that_takes_longer_than_request_timeout_costs_the_runner(runner, fal_clock):
    fal_clock.freeze()
    chunks = iter(runner.open(post(runner)).stream)
    assert next(chunks) == FIRST
    fal_clock.advance(59)
    assert runner.state == "RUNNING"
    fal_clock.advance(2)
    assert runner.end == "killed: a request took longer than request_timeout (60 s)"
    with pytest.raises(IncompleteAnswerError):
        list(chunks)


def test_a_runner_is_killed_for_503_once_all_of_the_answer_is_there(runner):
    response = runner.open(post(runner, "/busy"))
    chunks = iter(response.stream)
    assert (response.status_code, next(chunks), runner.state) == (503, b"one", "RUNNING")
    runner.run(say, "go on")
    assert list(chunks) == [b"two"]
    assert runner.end == "killed: it answered 503"


def test_send_reads_all_of_the_answer(runner):
    runner.run(say, "")
    response = runner.send(post(runner))
    assert response.content == FIRST
    assert runner.state == "IDLE"


def test_an_answer_without_a_body_is_over_with_its_head(runner):
    assert runner.open(post(runner, "/nothing")).status_code == 204
    assert runner.state == "IDLE"


def test_whoever_has_all_of_an_answer_finds_the_runner_idle(runner):
    chunks = iter(runner.open(post(runner, "/")).stream)
    assert next(chunks) == b'{"whole":true}'
    assert runner.state == "IDLE"


def test_a_compressed_body_is_passed_on_as_it_is(runner):
    assert runner.post("/packed").text == "unpacked"
    assert requests.post(f"{runner.url}/packed").text == "unpacked"


def test_the_runners_own_client_streams(runner):
    with runner.client.stream("POST", "/stream") as response:
        chunks = response.iter_bytes()
        assert next(chunks) == FIRST
        runner.run(say, "other")
        assert next(chunks) == SECOND


@contextlib.contextmanager
def with_httpx(url):
    with httpx.stream("POST", url) as response:
        yield response.iter_bytes()


@contextlib.contextmanager
def with_requests(url):
    with requests.post(url, stream=True) as response:
        yield response.iter_content(len(FIRST))


@contextlib.contextmanager
def with_urllib(url):
    with urllib.request.urlopen(urllib.request.Request(url, b"", method="POST")) as response:
        yield iter(lambda: response.read1(), b"")


@pytest.mark.parametrize("client", [with_httpx, with_requests, with_urllib])
def test_every_client_has_a_chunk_when_the_app_has_sent_it(runner, client):
    with client(f"{runner.url}/stream") as chunks:
        assert next(chunks) == FIRST
        runner.run(say, "other")
        assert next(chunks) == SECOND
        runner.run(say, "")
        assert list(chunks) == []
    assert runner.state == "IDLE"


@pytest.mark.parametrize("client", [with_httpx, with_requests, with_urllib])
def test_a_client_that_hangs_up_is_noticed_before_the_next_chunk(runner, client):
    with client(f"{runner.url}/stream") as chunks:
        assert next(chunks) == FIRST
    runner.run(wait_until_left)


@contextlib.asynccontextmanager
async def with_async_httpx(url):
    async with httpx.AsyncClient() as client, client.stream("POST", url) as response:
        yield response.aiter_bytes()


@contextlib.asynccontextmanager
async def with_aiohttp(url):
    async with aiohttp.ClientSession() as session, session.post(url) as response:
        yield response.content.iter_any()


@pytest.mark.parametrize("client", [with_async_httpx, with_aiohttp])
def test_every_async_client_has_a_chunk_when_the_app_has_sent_it(runner, client):
    async def talk():
        async with client(f"{runner.url}/stream") as chunks:
            assert await anext(chunks) == FIRST
            await asyncio.to_thread(runner.run, say, "other")
            assert await anext(chunks) == SECOND
            await asyncio.to_thread(runner.run, say, "")
            assert [chunk async for chunk in chunks] == []

    asyncio.run(talk())


@pytest.mark.parametrize("client", [with_async_httpx, with_aiohttp])
def test_an_async_client_that_gives_up_waiting_is_noticed(runner, client):
    async def talk():
        async with client(f"{runner.url}/stream") as chunks:
            assert await anext(chunks) == FIRST
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(anext(chunks), 0.01)

    asyncio.run(talk())
    runner.run(wait_until_left)


BROKEN_OFF = {
    with_httpx: httpx.RemoteProtocolError,
    with_requests: requests.exceptions.ChunkedEncodingError,
}


@pytest.mark.parametrize("client", BROKEN_OFF)
def test_every_client_notices_a_body_that_is_cut_short(runner, client, fal_emulator):
    with client(f"{runner.url}/broken") as chunks:
        assert next(chunks) == FIRST
        runner.run(say, "go")
        with pytest.raises(BROKEN_OFF[client]):
            list(chunks)


@pytest.mark.parametrize("client", [with_httpx, with_requests])
def test_the_emulator_ends_at_once_with_an_answer_under_way(runner, client, fal_emulator):
    with contextlib.ExitStack() as stack:
        chunks = stack.enter_context(client(f"{runner.url}/stream"))
        assert next(chunks) == FIRST
        before = time.monotonic()
        fal_emulator.reset()
        assert time.monotonic() - before < 4  # the grace period has 5 seconds


def test_a_runner_that_is_stopped_finishes_what_is_under_way(runner):
    chunks = iter(runner.open(post(runner)).stream)
    assert next(chunks) == FIRST
    stop = threading.Thread(target=runner.stop)
    stop.start()
    assert list(chunks) == [b"data: last\n\n"]  # said in handle_exit
    stop.join()
    assert (runner.state, runner.end) == ("TERMINATED", None)
