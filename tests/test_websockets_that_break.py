"""Websockets whose sides do not keep to the rules: one that never listens, one that vanishes.

Without postponed annotations: the names in them do not go along when the SDK pickles an app.
"""

import asyncio
import json
import socket
import struct
from contextlib import suppress

import fal
import pytest
from fal.ref import get_current_app
from fastapi import WebSocket
from websockets.exceptions import ConnectionClosedError, InvalidMessage
from websockets.sync import client as sync_client
from wire_clients import settled

from emulator.network.relay import relay
from pytest_fal.descriptors import descriptors

HANDSHAKE = (
    b"GET /listen HTTP/1.1\r\nHost: runner-1.runner.fal\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Talker(fal.App):
    """Says more than it is asked for."""

    def setup(self):
        self.ended = asyncio.Queue()

    @fal.endpoint("/chatter", is_websocket=True)
    async def chatter(self, websocket: WebSocket) -> None:
        await websocket.accept()
        heard = asyncio.create_task(websocket.receive_text())
        for _ in range(50_000):
            if heard.done():
                await websocket.close(1000, await heard)
                return
            await websocket.send_text("and another thing")
            await asyncio.sleep(0)
        heard.cancel()

    @fal.endpoint("/flood", is_websocket=True)
    async def flood(self, websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_bytes(bytes(100_000))
                await asyncio.sleep(0)  # uvicorn's send does not wait for what does not block
        except Exception as error:
            self.ended.put_nowait(type(error).__name__)

    @fal.endpoint("/listen", is_websocket=True)
    async def listen(self, websocket: WebSocket) -> None:
        await websocket.accept()
        message = await websocket.receive()
        while message["type"] != "websocket.disconnect":
            message = await websocket.receive()
        self.ended.put_nowait(message["code"])

    @fal.endpoint("/bye", is_websocket=True)
    async def bye(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        await websocket.close(4001)

    @fal.endpoint("/later", is_websocket=True)
    async def later(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.go = asyncio.Event()
        await self.go.wait()
        sizes = [len(await websocket.receive_text()) for _ in range(200)]
        await websocket.send_json(sizes)


async def let_go():
    get_current_app().go.set()


async def how_it_ended():
    return await asyncio.wait_for(get_current_app().ended.get(), 10)


@pytest.fixture(params=["thread", "process"])
def runner(request, fal_emulator):
    return fal_emulator.runner(Talker, isolation=request.param)


def connect(runner, path, scheme="ws"):
    url = f"{scheme}://{runner.name}.runner.fal{path}"
    return sync_client.connect(url, compression=None, max_size=None)


def test_an_app_that_talks_all_the_time_hears_its_client(runner):
    with connect(runner, "/chatter") as socket:
        socket.recv()
        socket.send("stop")
        for _ in socket:
            pass
    assert (socket.protocol.close_rcvd.code, socket.protocol.close_rcvd.reason) == (1000, "stop")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_client_that_vanishes_with_messages_unsent_is_the_end_for_the_app(
    runner, fal_ledger, scheme
):
    with connect(runner, "/flood", scheme) as socket:
        socket.recv()
        with suppress(OSError):  # the flood may have ended it already
            socket.socket.shutdown(2)
        assert runner.run(how_it_ended)
    (exchange,) = fal_ledger.requests(path="/flood")
    assert exchange.notes[0].endswith("; the client ended it without a word")


def test_whatever_is_raised_while_messages_are_passed_on_both_sides_are_closed(runner):
    client, app = runner.connect("/listen"), runner.connect("/listen")
    client.close(4000, "enough")
    with pytest.raises(ZeroDivisionError):
        relay(client, app, lambda _passed: 1 / 0)
    assert (app.code, app.reason) == (4000, "enough")


def test_an_answer_that_is_dropped_opens_no_websocket(runner, fal_faults):
    fal_faults.drop(path="/listen")
    broken = pytest.raises((ConnectionError, EOFError, InvalidMessage))
    with broken, connect(runner, "/listen"):
        pass
    assert runner.run(how_it_ended) in (1005, 1006)
    assert (runner.state, runner.in_flight) == ("IDLE", 0)


def test_nor_does_one_whose_client_has_reset_the_connection(runner, fal_faults):
    gate = fal_faults.gate(path="/listen")
    with socket.create_connection((f"{runner.name}.runner.fal", 80)) as client:
        client.sendall(HANDSHAKE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gate.wait()
    gate.open()
    assert runner.run(how_it_ended) in (1005, 1006)


def test_one_that_the_app_has_ended_and_nobody_closes_is_given_back(runner, fal_emulator):
    before = sockets()
    opened = runner.connect("/bye")
    with pytest.raises(TimeoutError):
        opened.receive(0.01)
    opened.send("go")
    assert (opened.receive(10), opened.code) == (None, 4001)
    fal_emulator.reset()
    settled(lambda: sockets() <= before)
    assert sockets() - before == set()


def sockets() -> set[str]:
    """Those of this process, whatever their numbers: folders come and go while one is swept."""
    targets = (descriptor.target for descriptor in descriptors().values())
    return {target for target in targets if target.startswith("socket:")}


def test_faults_of_a_body_strike_no_websocket(runner, fal_faults):
    faults = [
        fal_faults.drop(after=1, optional=True),
        fal_faults.drop(after="body", optional=True),
        fal_faults.truncate(optional=True),
        fal_faults.corrupt(optional=True),
        fal_faults.slow(bytes_per_second=1, optional=True),
        fal_faults.timeout(after=1, optional=True),
        fal_faults.gate(after=1, optional=True),
        fal_faults.kill_runner(after=1, optional=True),
        fal_faults.content_length(7, optional=True),
    ]
    with connect(runner, "/bye") as socket:
        socket.send("go")
        with pytest.raises(ConnectionClosedError):
            socket.recv()
    assert [fault.count for fault in faults] == [0] * 9


def test_a_delay_strikes_one_as_it_is_opened(runner, fal_faults, fal_clock):
    fal_clock.freeze()
    start = fal_clock.now()
    slow = fal_faults.slow(30, bytes_per_second=1, path="/bye")
    with connect(runner, "/bye"):
        pass
    assert (slow.count, (fal_clock.now() - start).total_seconds()) == (1, 30)


def test_a_message_of_more_than_16_mib_is_the_end(runner):
    opened = runner.connect("/listen")
    opened.send(bytes(16 * 1024 * 1024 + 1))
    assert runner.run(how_it_ended) == 1009
    opened.close()


def test_one_of_16_mib_is_not(runner):
    opened = runner.connect("/listen")
    opened.send(bytes(16 * 1024 * 1024))
    opened.close(4000)
    assert runner.run(how_it_ended) == 4000


@pytest.mark.parametrize(("size", "most"), [(1, 32), (300_000, 4)])
def test_an_app_that_does_not_receive_is_sent_no_more(fal_runner, size, most):
    opened = fal_runner(Talker).connect("/later")
    sent = 0
    while opened.has_room:
        opened.send(bytes(size))
        sent += 1
    assert sent == most
    opened.close()


def test_what_is_held_back_comes_once_the_app_receives(runner):
    with connect(runner, "/later") as socket:
        for _ in range(200):
            socket.send("x" * 10_000)
        runner.run(let_go)
        assert socket.recv() == json.dumps([10_000] * 200, separators=(",", ":"))
