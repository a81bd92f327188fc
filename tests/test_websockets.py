"""Websockets of apps, by hand and for every client: each test is of a thread and of a process.

Without postponed annotations: the names in them do not go along when the SDK pickles an app.
"""

import asyncio
import contextlib
import http.client
import threading
import time

import aiohttp
import fal
import httpx
import pytest
import websockets
from fal.ref import get_current_app
from fastapi import WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse
from websockets.sync import client as sync_client

from emulator.network.websocket import ABNORMAL
from emulator.runners.runner import HandshakeRefusedError, RunnerError


class Talker(fal.App):
    """Plain websocket endpoints."""

    def setup(self):
        self.ended = asyncio.Queue()

    @fal.endpoint("/echo", is_websocket=True)
    async def echo(self, websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    self.ended.put_nowait((message["code"], message.get("reason")))
                    return
                if message.get("text") is not None:
                    await websocket.send_text(message["text"].upper())
                else:
                    await websocket.send_bytes(message["bytes"][::-1])
        except WebSocketDisconnect as gone:
            self.ended.put_nowait((gone.code, gone.reason))

    @fal.endpoint("/who", is_websocket=True)
    async def who(self, websocket: WebSocket) -> None:
        await websocket.accept()
        names = ("x-fal-request-id", "x-fal-endpoint", "x-fal-caller-user-id", "x-mine", "host")
        await websocket.send_json({name: websocket.headers.get(name) for name in names})
        await websocket.send_json([websocket.url.path, websocket.query_params.get("a")])
        await websocket.close()

    @fal.endpoint("/chat", is_websocket=True)
    async def chat(self, websocket: WebSocket) -> None:
        await websocket.accept("v2", headers=[(b"x-room", b"7")])
        await websocket.receive_text()
        await websocket.close(4001, "so long")

    @fal.endpoint("/no", is_websocket=True)
    async def no(self, websocket: WebSocket) -> None:
        await websocket.close(1008)

    @fal.endpoint("/denied", is_websocket=True)
    async def denied(self, websocket: WebSocket) -> None:
        await websocket.send_denial_response(JSONResponse({"pay": "first"}, 402))

    @fal.endpoint("/raises", is_websocket=True)
    async def raises(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        raise ValueError("out of memory")

    @fal.endpoint("/raises-at-once", is_websocket=True)
    async def raises_at_once(self, websocket: WebSocket) -> None:
        raise ValueError("out of memory")

    @fal.endpoint("/late", is_websocket=True)
    async def late(self, websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            await websocket.receive_text()
        try:
            await websocket.send_text("are you there?")
        except Exception as error:
            self.ended.put_nowait((type(error).__name__, ""))


async def how_it_ended():
    return await asyncio.wait_for(get_current_app().ended.get(), 10)


@pytest.fixture(params=["thread", "process"])
def runner(request, fal_emulator):
    return fal_emulator.runner(Talker, isolation=request.param)


def test_messages_go_both_ways_and_the_client_closes(runner):
    socket = runner.connect("/echo")
    assert (runner.state, runner.in_flight) == ("RUNNING", 1)
    socket.send("text")
    socket.send(b"\x01\x02")
    assert [socket.receive(10), socket.receive(10)] == ["TEXT", b"\x02\x01"]
    socket.close(4000, "enough")
    assert (socket.code, socket.reason, socket.closed_by) == (4000, "enough", "client")
    assert runner.run(how_it_ended) == (4000, "enough")
    assert (runner.state, runner.in_flight) == ("IDLE", 0)


def test_the_app_closes(runner):
    socket = runner.connect(
        httpx.Request("GET", f"{runner.url}/chat", headers={"Sec-WebSocket-Protocol": "v1, v2"})
    )
    assert (socket.subprotocol, socket.headers) == ("v2", [("x-room", "7")])
    assert (socket.code, socket.closed_by) == (None, None)
    socket.send("go")
    assert socket.receive(10) is None
    assert (socket.code, socket.reason, socket.closed_by) == (4001, "so long", "app")
    assert runner.state == "IDLE"
    socket.close()


def test_it_comes_as_through_the_gateway(runner):
    socket = runner.connect(
        httpx.Request("GET", f"{runner.url}/who?a=b%20c", headers={"X-Mine": "1"})
    )
    seen = httpx.Response(200, text=socket.receive(10)).json()
    assert len(seen.pop("x-fal-request-id")) == 36
    assert seen == {
        "x-fal-endpoint": "tester/app/who",
        "x-fal-caller-user-id": "tester",
        "x-mine": "1",
        "host": "runner-1.runner.fal",
    }
    assert socket.receive(10) == '["/who","b c"]'
    assert socket.receive(10) is None
    assert socket.code == 1000
    socket.close()


@pytest.mark.parametrize(
    ("path", "status", "content"),
    [
        ("/no", 403, b""),
        ("/nowhere", 403, b""),
        ("/denied", 402, b'{"pay":"first"}'),
        ("/raises-at-once", 500, b"Internal Server Error"),
    ],
)
def test_an_app_may_refuse(runner, path, status, content):
    with pytest.raises(HandshakeRefusedError) as caught:
        runner.connect(path)
    assert (caught.value.response.status_code, caught.value.response.content) == (status, content)
    assert str(caught.value) == (
        f"runner-1 refused the websocket {path} with {status}: it has no websocket endpoint there, "
        "or did not accept. error.response has its answer."
    )
    assert runner.state == "IDLE"


def test_an_app_that_raises_ends_it_without_a_word(runner):
    socket = runner.connect("/raises")
    socket.send("go")
    assert socket.receive(10) is None
    assert (socket.code, socket.closed_by) == (ABNORMAL, "app")
    socket.close()


def test_an_app_that_sends_to_a_client_that_is_gone_is_told_so(runner):
    runner.connect("/late").close()
    assert runner.run(how_it_ended)[0] in ("WebSocketDisconnect", "RuntimeError")


def test_waiting_for_a_message_has_an_end(runner):
    socket = runner.connect("/echo")
    with pytest.raises(TimeoutError, match=r"no message has come within 0\.01 s"):
        socket.receive(0.01)
    socket.close()


def test_stopping_a_runner_ends_its_websockets_with_1012(runner):
    socket = runner.connect("/echo")
    runner.stop()
    assert socket.receive(10) is None
    assert (socket.code, socket.closed_by, runner.end) == (1012, "app", None)
    socket.close()


def test_killing_a_runner_ends_its_websockets_without_a_word(runner):
    socket = runner.connect("/echo")
    runner.kill()
    assert socket.receive(10) is None
    assert (socket.code, socket.closed_by) == (ABNORMAL, "app")
    socket.close()


def test_a_runner_that_has_ended_opens_none(runner):
    runner.stop()
    with pytest.raises(RunnerError, match="takes no more requests"):
        runner.connect("/echo")


def test_a_large_message_passes_both_ways(runner):
    socket = runner.connect("/echo")
    socket.send(b"\x00" * 5_000_000 + b"\x01")
    answer = socket.receive(30)
    assert (len(answer), answer[:1]) == (5_000_001, b"\x01")
    socket.close()


def test_the_emulator_ends_at_once_with_a_websocket_open(runner, fal_emulator):
    socket = runner.connect("/echo")
    before = time.monotonic()
    fal_emulator.reset()
    assert time.monotonic() - before < 4  # the grace period has 5 seconds
    assert socket.receive(10) is None


# --- over the wire -------------------------------------------------------------------------------


def ws(runner, path="/echo"):
    return f"{runner.url.replace('http', 'ws')}{path}"


def test_the_client_of_the_websockets_package(runner, fal_ledger):
    with sync_client.connect(ws(runner)) as socket:
        assert socket.protocol.extensions  # compression was agreed on
        socket.send("text" * 1000)
        assert socket.recv() == "TEXT" * 1000
        socket.send(b"\x01\x02")
        assert socket.recv() == b"\x02\x01"
    assert runner.run(how_it_ended) == (1000, "")
    (exchange,) = fal_ledger.requests(host="runner-1.runner.fal")
    assert exchange.status == 101
    assert exchange.notes == [
        "websocket: 2 messages from the client, 2 messages from the app; the client ended it with "
        "1000"
    ]
    assert runner.state == "IDLE"


def test_over_tls(runner):
    with sync_client.connect(f"wss://{runner.name}.runner.fal/echo") as socket:
        for number in range(50):
            socket.send(bytes([number, 0]) * 20_000)
        for number in range(50):
            assert socket.recv() == bytes([0, number]) * 20_000
        assert socket.ping().wait(10)


def test_messages_of_a_client_that_reads_late_wait(runner):
    with sync_client.connect(ws(runner), max_size=None, compression=None) as socket:
        for number in range(10):
            socket.send(bytes([number, 0]) * 500_000)
        for number in range(10):
            assert socket.recv() == bytes([0, number]) * 500_000


def test_text_that_is_none_is_refused(runner, fal_ledger):
    with sync_client.connect(ws(runner)) as socket:
        socket.socket.sendall(b"\x81\x81\0\0\0\0\xff")
        with pytest.raises(websockets.ConnectionClosedError) as caught:
            socket.recv()
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1007, "invalid UTF-8")
    assert runner.run(how_it_ended) == (1007, "invalid UTF-8")


def test_a_message_in_pieces_is_one_message(runner):
    with sync_client.connect(ws(runner)) as socket:
        socket.send(["one ", "two ", "three"])
        assert socket.recv() == "ONE TWO THREE"


def test_the_app_ends_it_for_the_client_too(runner, fal_ledger):
    with sync_client.connect(ws(runner, "/chat"), subprotocols=["v1", "v2"]) as socket:
        assert socket.subprotocol == "v2"
        assert socket.response.headers["x-room"] == "7"
        socket.send("go")
        with pytest.raises(websockets.ConnectionClosedError) as caught:
            socket.recv()
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "so long")
    (exchange,) = fal_ledger.requests(host="runner-1.runner.fal")
    assert exchange.notes == [
        "websocket: 1 message from the client, 0 messages from the app; the app ended it with "
        "4001 so long"
    ]


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_runner_that_ends_is_an_end_for_the_client(runner, end):
    with sync_client.connect(ws(runner)) as socket:
        getattr(runner, end)()
        with pytest.raises(websockets.ConnectionClosedError) as caught:
            socket.recv()
    received = caught.value.rcvd
    assert (received.code if received else None) == (1012 if end == "stop" else None)


def test_a_client_that_is_cut_off_is_noticed(runner, fal_ledger):
    with sync_client.connect(ws(runner)) as socket:
        socket.socket.shutdown(2)
        assert runner.run(how_it_ended)[0] == 1005
    (exchange,) = fal_ledger.requests(host="runner-1.runner.fal")
    assert exchange.notes == [
        "websocket: 0 messages from the client, 0 messages from the app; the client ended it "
        "without a word"
    ]


@pytest.mark.parametrize(("path", "status"), [("/no", 403), ("/nowhere", 403), ("/denied", 402)])
def test_the_client_sees_a_refusal(runner, path, status, fal_ledger):
    with pytest.raises(websockets.InvalidStatus) as caught, sync_client.connect(ws(runner, path)):
        pass
    assert caught.value.response.status_code == status
    assert fal_ledger.requests(host="runner-1.runner.fal")[0].status == status


def test_a_handshake_that_is_none_is_refused(runner):
    connection = http.client.HTTPConnection(f"{runner.name}.runner.fal")
    connection.request("GET", "/echo", headers={"Upgrade": "websocket"})
    assert connection.getresponse().status == 426
    connection.close()


def test_httpx_has_no_websockets(runner):
    response = httpx.get(f"{runner.url}/echo", headers={"Upgrade": "websocket"})
    assert response.status_code == 501
    assert response.json()["detail"] == (
        "httpx has no websockets here. Connect with websockets.sync.client, websockets.connect or "
        "aiohttp's ws_connect."
    )


def test_async_clients(runner):
    async def talk():
        async with websockets.connect(ws(runner)) as socket:
            await socket.send("one")
            assert await socket.recv() == "ONE"
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(ws(runner)) as socket:
                await socket.send_str("two")
                assert (await socket.receive()).data == "TWO"
                await socket.ping(b"are you there?")
                await socket.send_bytes(b"\x01\x02")
                assert (await socket.receive()).data == b"\x02\x01"

    asyncio.run(talk())
    assert [runner.run(how_it_ended)[0] for _ in range(2)] == [1000, 1000]


def test_many_at_once(runner):
    def talk(number):
        with sync_client.connect(ws(runner)) as socket:
            for count in range(20):
                socket.send(f"{number}-{count}")
                assert socket.recv() == f"{number}-{count}"
        done.append(number)

    done = []
    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(8))


def test_the_emulator_ends_at_once_with_a_client_connected(runner, fal_emulator):
    with sync_client.connect(ws(runner)) as socket:
        before = time.monotonic()
        fal_emulator.reset()
        assert time.monotonic() - before < 4
        with pytest.raises(websockets.ConnectionClosed):
            socket.recv()
