"""gRPC connects in C, past Python's sockets: nothing of it leaves this machine either."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import fal
import grpc
import pytest
from apps_for_clients import Greeting
from fal.sdk import FalServerlessClient, FalServerlessKeyCredentials

from emulator.errors import UnknownHostError
from emulator.network.grpc_entrance import environment

REFUSED = (
    "a gRPC call to {}: gRPC is not emulated, and tests do not reach the network. Deploy an app "
    'with fal_gateway.deploy("owner/app", MyApp) or MyApp.spawn(), or let the host through with '
    '@pytest.mark.fal(allow_hosts=["{}"]).'
)
SDK = REFUSED.format("api.alpha.fal.ai", "api.alpha.fal.ai")


def ask(channel):
    """Any call."""
    return channel.unary_unary("/a.B/C")(b"", timeout=30)


@pytest.fixture
def server():
    """A gRPC server on this machine that knows no method."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        started = grpc.server(pool)
        port = started.add_insecure_port("127.0.0.1:0")
        started.start()
        yield port
        started.stop(None).wait()


def test_the_sdk_is_refused(fal_emulator):
    credentials = FalServerlessKeyCredentials("id", "secret")
    with FalServerlessClient("api.alpha.fal.ai", credentials).connect() as connection:
        with pytest.raises(UnknownHostError) as error:
            connection.list_user_keys()
    assert str(error.value) == SDK


def test_a_function_that_would_run_there_says_so(fal_emulator):
    @fal.function("virtualenv")
    def add() -> int:
        return 1

    with pytest.raises(UnknownHostError) as error:
        add()
    assert str(error.value) == SDK


def test_the_ledger_knows(fal_emulator, fal_ledger):
    with grpc.insecure_channel("example.com:50051") as channel:
        with pytest.raises(UnknownHostError):
            ask(channel)
    assert [event.text for event in fal_ledger.events if event.kind == "refused"] == [
        "a gRPC call to example.com:50051: nothing in this test answers for it"
    ]


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("example.com", "example.com"),
        ("dns:///example.com:443", "example.com"),
        ("dns://8.8.8.8/example.com:443", "example.com"),
        ("ipv4:127.0.0.1:80,192.0.2.7:80", "192.0.2.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("dns:443", "dns"),
    ],
)
def test_every_form_of_a_target_is_understood(fal_emulator, target, host):
    with grpc.insecure_channel(target) as channel:
        with pytest.raises(UnknownHostError) as error:
            ask(channel)
    assert str(error.value) == REFUSED.format(target, host)


def test_a_channel_that_is_not_used_may_be_made(fal_emulator):
    grpc.insecure_channel("example.com:443").close()


def test_waiting_until_a_channel_is_ready_is_refused(fal_emulator):
    with grpc.insecure_channel("example.com:443") as channel:
        with pytest.raises(UnknownHostError):
            channel._channel.watch_connectivity_state(0, 1.0)


def test_asyncio_is_refused(fal_emulator):
    async def call():
        async with grpc.aio.insecure_channel("example.com:443") as channel:
            await ask(channel)

    with pytest.raises(UnknownHostError):
        asyncio.run(call())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_reached(fal_emulator, server, host):
    with grpc.insecure_channel(f"{host}:{server}") as channel:
        with pytest.raises(grpc.RpcError) as error:
            ask(channel)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.fal(allow_hosts=["192.0.2.7"])
def test_a_host_that_is_let_through_gets_grpcs_own_channel(fal_emulator):
    from grpc._cython import cygrpc

    with grpc.insecure_channel("192.0.2.7:443") as channel:
        made = channel._channel
    with grpc.insecure_channel("192.0.2.8:443") as other:
        assert type(made) is not type(other._channel)
    assert os.environ["no_grpc_proxy"] == "localhost,127.0.0.1,::1,192.0.2.7"  # noqa: SIM112
    assert type(made).__module__ == cygrpc.__name__


SCRIPT = """
import grpc
with grpc.insecure_channel("192.0.2.7:443") as channel:
    try:
        channel.unary_unary("/a.B/C")(b"", timeout=20)
    except grpc.RpcError as error:
        print(error.details())
"""


def test_another_program_is_led_to_a_port_that_nobody_listens_on(fal_emulator):
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert "ipv4:127.0.0.1:1: Failed to connect to remote host" in done.stdout


def call_from_a_runner():
    with grpc.insecure_channel("example.com:443") as channel:
        channel.unary_unary("/a.B/C")(b"", timeout=20)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_runner_is_refused(fal_runner, isolation):
    runner = fal_runner(Greeting, isolation=isolation)
    with pytest.raises(UnknownHostError):
        runner.run(call_from_a_runner)


def test_the_variables_name_what_is_let_through():
    assert environment(["a.example.com"]) == {
        "grpc_proxy": "http://127.0.0.1:1",
        "no_grpc_proxy": "localhost,127.0.0.1,::1,a.example.com",
    }


def test_grpcs_own_channels_come_back(fal_emulator):
    from grpc._cython import cygrpc

    fal_emulator.stop()
    kinds = [type(cygrpc.Channel), type(cygrpc.AioChannel)]
    fal_emulator.start()
    assert kinds == [type, type]
