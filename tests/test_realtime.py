"""The SDK's realtime endpoints, through its own client: each test is of a thread and of a process.

Without postponed annotations: the names in them do not go along when the SDK pickles an app.
"""

import json
from collections.abc import AsyncIterator, Iterator

import fal
import pytest
import websockets
from fal.apps import _RealtimeConnection
from fal.realtime import msgpack_decode_message
from pydantic import BaseModel
from websockets.sync import client as sync_client


class Number(BaseModel):
    number: int


class Realtime(fal.App):
    @fal.realtime("/realtime", buffering=5)
    def unary(self, input: Number) -> Number:
        if input.number < 0:
            raise ValueError("only positive numbers")
        return {"number": 2 * input.number}  # of a model the SDK calls .dict(), which warns

    @fal.realtime("/short", session_timeout=0.05)
    async def short(self, input: Number) -> Number:
        return {"number": input.number}

    @fal.realtime("/count", buffering=5)
    async def server_streaming(self, input: Number) -> AsyncIterator[Number]:
        for number in range(input.number):
            yield {"number": number}

    @fal.realtime("/count-in-a-thread", buffering=5)
    def server_streaming_in_a_thread(self, input: Number) -> Iterator[Number]:
        for number in range(input.number):
            yield {"number": number}

    @fal.realtime("/sum", session_timeout=0.2)
    async def client_streaming(self, inputs: AsyncIterator[Number]) -> Number:
        return {"number": sum([one.number async for one in inputs])}

    @fal.realtime("/bidi")
    async def bidi(self, inputs: AsyncIterator[Number]) -> AsyncIterator[Number]:
        async for one in inputs:
            yield {"number": one.number}
            yield {"number": -one.number}


@pytest.fixture(params=["thread", "process"])
def connect(request, fal_emulator):
    runner = fal_emulator.runner(Realtime, isolation=request.param)
    return lambda path: sync_client.connect(f"ws://{runner.name}.runner.fal{path}")


def rest_of(socket):
    """All that comes, decoded as the client decodes it, and the code that it ends with."""
    found = []
    try:
        while True:
            message = socket.recv(10)
            is_text = isinstance(message, str)
            found.append(json.loads(message) if is_text else msgpack_decode_message(message))
    except websockets.ConnectionClosed as closed:
        return found, closed.rcvd.code


TIMEOUT = {
    "type": "x-fal-error",
    "error": "TIMEOUT",
    "reason": "no inputs, reconnect when needed!",
}


def test_the_sdks_own_client_talks_to_a_unary_endpoint(connect):
    with connect("/realtime") as socket:
        connection = _RealtimeConnection(socket)
        assert connection.run({"number": 21}) == {"number": 42}
        assert connection.run({"number": 1}) == {"number": 2}


def test_an_exception_is_told_as_an_internal_error(connect):
    with connect("/realtime") as socket:
        _RealtimeConnection(socket).send({"number": -1})
        assert rest_of(socket) == (
            [
                {
                    "type": "x-fal-error",
                    "error": "INTERNAL_ERROR",
                    "reason": "only positive numbers",
                }
            ],
            1000,
        )


def test_a_session_without_input_ends_with_timeout(connect):
    with connect("/short") as socket:
        assert rest_of(socket) == ([TIMEOUT], 1000)


@pytest.mark.parametrize("path", ["/count", "/count-in-a-thread"])
def test_server_streaming(connect, path):
    with connect(path) as socket:
        _RealtimeConnection(socket).send({"number": 3})
        assert rest_of(socket) == ([{"number": 0}, {"number": 1}, {"number": 2}, TIMEOUT], 1000)


def test_client_streaming_ends_with_the_session(connect):
    with connect("/sum") as socket:
        connection = _RealtimeConnection(socket)
        connection.send({"number": 20})
        connection.send({"number": 22})
        assert rest_of(socket) == ([{"number": 42}, TIMEOUT], 1000)


def test_both_ways_at_once(connect):
    with connect("/bidi") as socket:
        connection = _RealtimeConnection(socket)
        for number in (1, 2):
            connection.send({"number": number})
            assert [connection.recv(), connection.recv()] == [
                {"number": number},
                {"number": -number},
            ]
