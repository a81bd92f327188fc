"""Runners in threads: the real ``fal.App``, its life, its context, what it shares and what not."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import threading

import fal
import pytest
from apps import Clinging, Name, Other, Uploaded, Uploader
from fal.ref import get_current_app
from fal.toolkit import File

from emulator.errors import EmulatorError
from pytest_fal.leftovers import Snapshot, attributes


def test_requests_of_two_runners_at_the_same_time_keep_their_contexts(fal_runner, fal_cdn):
    barrier = threading.Barrier(2, timeout=10)

    class Meeting(fal.App):
        @fal.endpoint("/")
        def meet(self, input: Name) -> Uploaded:
            barrier.wait()
            url = File.from_bytes(b"x", file_name=input.name).url
            barrier.wait()
            return Uploaded(url=url)

    runners = [fal_runner(Meeting), fal_runner(Meeting)]
    results = {}

    def call(number):
        headers = {"x-fal-request-id": f"r-{number}"}
        results[number] = runners[number].post("/", json={}, headers=headers).json()["url"]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [fal_cdn.info(results[n]).request_id for n in range(2)] == ["r-0", "r-1"]


def test_with_one_runner_left_the_current_app_is_that_very_app_again(fal_runner):
    one, two = fal_runner(Uploader), fal_runner(Other)
    two.stop()
    assert one.post("/who", json={}).json()["is_me"] is True


def test_the_test_itself_is_on_no_runner(fal_runner, fal_cdn):
    fal_runner(Uploader), fal_runner(Other)
    assert not get_current_app()
    assert get_current_app().current_request is None
    assert fal_cdn.info(File.from_bytes(b"x", file_name="x").url).request_id is None


def test_there_is_no_current_app_after_the_last_runner(fal_runner):
    fal_runner(Uploader).stop()
    assert get_current_app() is None


def test_runners_in_threads_cannot_have_different_values_of_a_variable(fal_runner):
    fal_runner(Uploader, env={"MODE": "a"})
    with pytest.raises(EmulatorError) as caught:
        fal_runner(Uploader, env={"MODE": "b"})
    assert str(caught.value) == (
        "MODE is 'a' for a runner that is alive. Runners in threads share the process's "
        "environment: stop() the other one first, give both the same env, or write "
        'isolation="process".'
    )


def test_an_isolation_that_is_not_known_is_refused(fal_runner):
    with pytest.raises(EmulatorError) as caught:
        fal_runner(Uploader, isolation="container")
    assert str(caught.value) == (
        "isolation='container' is not known. Write fal_runner(Uploader): the app then runs in a "
        'thread with mounts of its own; or isolation="process" for a process.'
    )


def test_finalizers_of_the_apps_objects_run_in_its_own_tmp(fal_runner, fal_tmp, fal_data):
    class Holder:
        def __del__(self):
            there = pathlib.Path("/tmp/mine").exists()
            pathlib.Path("/data/finalized").write_text(str(there))

    class Holding(fal.App):
        def setup(self):
            pathlib.Path("/tmp/mine").write_text("1")
            self.holder = Holder()
            self.cycle = self

        @fal.endpoint("/")
        def f(self) -> dict:
            return {}

    fal_runner(Holding).stop()
    assert fal_data.read("finalized") == b"True"


def test_so_they_do_when_another_app_was_booted_later_and_lives_on(fal_runner, fal_data):
    class Holder:
        def __del__(self):
            pathlib.Path("/data/finalized").write_text(threading.current_thread().name)

    class Holding(Uploader):
        def setup(self):
            self.holder = Holder()
            self.cycle = self

    runner = fal_runner(Holding)
    fal_runner(Other)
    runner.stop()
    assert fal_data.read("finalized") == b"fal-runner-1"


def test_objects_are_set_aside_until_the_last_runner_has_ended(fal_runner):
    before = gc.get_freeze_count()
    runners = [fal_runner(Uploader), fal_runner(Other)]
    runners[1].stop()
    assert gc.get_freeze_count() > before
    runners[0].stop()
    assert gc.get_freeze_count() == before


@pytest.mark.fal(termination_grace_period=0.2)
def test_one_that_is_killed_as_its_loop_closes_ends(fal_runner):
    let_go = threading.Event()

    class Lingering(fal.App):
        @fal.endpoint("/")
        async def answer(self) -> dict:
            asyncio.get_running_loop().run_in_executor(None, let_go.wait)
            return {}

    before = gc.get_freeze_count()
    runner = fal_runner(Lingering)
    runner.post("/", json={})
    try:
        runner.stop()
        assert runner.end == "killed: not ended 0.2 s after SIGTERM"
        assert gc.get_freeze_count() == before
    finally:
        let_go.set()


def test_its_loop_runs_until_the_threads_of_the_loop_have_ended(fal_runner, fal_data):
    begun = threading.Event()

    class CallsBack(fal.App):
        @fal.endpoint("/")
        async def answer(self) -> dict:
            loop = asyncio.get_running_loop()

            def work() -> None:
                begun.wait(10)
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
                pathlib.Path("/data/done").touch()

            loop.run_in_executor(None, work)
            return {}

        def teardown(self) -> None:
            begun.set()

    runner = fal_runner(CallsBack)
    runner.post("/", json={})
    runner.stop()
    assert (runner.end, fal_data.tree()) == (None, ["done"])


def test_an_app_that_cannot_be_torn_down_does_not_keep_the_emulation_in_place(fal_emulator):
    fal_emulator.runner(Clinging)
    during = attributes()["socket.getaddrinfo"]
    with pytest.raises(ValueError, match="cannot let go"):
        fal_emulator.stop()
    assert attributes()["socket.getaddrinfo"] is not during
    assert "FAL_APP_NAME" not in os.environ
    assert fal_emulator.directory is None
    fal_emulator.start()


def test_nothing_of_200_runners_is_left(fal_runner):
    fal_runner(Uploader).stop()
    before = Snapshot.take()
    for _ in range(199):
        fal_runner(Uploader).stop()
    assert before.leaks_since() == []


def test_the_end_of_a_runner_is_not_that_of_one_with_the_same_number(fal_runner, fal_ledger):
    one, two = fal_runner(Uploader), fal_runner(Uploader)
    one.namespace = two.namespace  # as the kernel numbers namespaces: anew, once one is gone
    one.stop()
    two.post("/", json={})
    assert {exchange.runner for exchange in fal_ledger.requests(method="PUT")} == {"runner-2"}
