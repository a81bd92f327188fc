"""Websockets whose sides do not keep to the rules: one that never listens, one that vanishes.

Without postponed annotations: the names in them do not go along when the SDK pickles an app.
"""

import asyncio

import fal
import pytest
from fal.ref import get_current_app
from fastapi import WebSocket
from websockets.sync import client as sync_client

from emulator.network.relay import relay


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
        except Exception as error:
            self.ended.put_nowait(type(error).__name__)


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
        socket.socket.shutdown(2)
        assert runner.run(how_it_ended)
    (exchange,) = fal_ledger.requests(path="/flood")
    assert exchange.notes[0].endswith("; the client ended it without a word")


def test_whatever_is_raised_while_messages_are_passed_on_both_sides_are_closed(runner):
    client, app = runner.connect("/chatter"), runner.connect("/chatter")
    client.close(4000, "enough")
    with pytest.raises(ZeroDivisionError):
        relay(client, app, lambda _passed: 1 / 0)
    assert (app.code, app.reason) == (4000, "enough")
