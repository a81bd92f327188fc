"""The threads of `fal_client.subscribe(client_timeout=...)` end with their test."""

from __future__ import annotations

import threading

import fal
import fal_client
import fal_client.client
import pytest

from emulator import Emulator

pytestmark = pytest.mark.filterwarnings("ignore:start_timeout:UserWarning")


class Studio(fal.App):
    @fal.endpoint("/")
    def answer(self, input: dict) -> dict:
        return {}


def threads():
    return [one for one in threading.enumerate() if one.name.startswith("FAL_CLIENT_EXECUTOR")]


def give_up(emulator):
    """Leave a subscription behind that goes on, as its cancellation does not arrive."""
    emulator.gateway.deploy("tester/studio", Studio).hold()
    emulator.faults.status(500, method="PUT", host="queue.fal.run")
    with pytest.raises(fal_client.FalClientTimeoutError):
        fal_client.subscribe("tester/studio", {}, start_timeout=2, client_timeout=0.2)


def test_one_that_was_given_up_ends_with_the_test():
    outside = fal_client.client.EXECUTOR
    with Emulator() as emulator:
        give_up(emulator)
        assert len(threads()) == 1
    assert threads() == []
    assert fal_client.client.EXECUTOR is outside


def test_a_test_does_not_get_the_threads_of_the_one_before():
    with Emulator() as emulator:
        fal_gateway = emulator.gateway
        fal_gateway.deploy("tester/studio", Studio)
        fal_client.subscribe("tester/studio", {}, client_timeout=20)
        (first,) = threads()
        emulator.reset()
        emulator.gateway.deploy("tester/studio", Studio)
        fal_client.subscribe("tester/studio", {}, client_timeout=20)
        assert first not in threads()
