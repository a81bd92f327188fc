"""What the platform does with a runner, in a thread or in a process: limits, 503, health, stops.

Each limit is over on the clock, and nobody waits for it. Without postponed annotations, see
``test_runners_alike``.
"""

import asyncio
import functools
import os
import pathlib
import threading
import time

import fal
import httpx
import pytest
from fal.app import AppClient
from fal.exceptions import AppException
from fastapi import Response

from emulator.runners.runner import RunnerError, StartupError


@pytest.fixture(params=["thread", "process"])
def fal_runner(request, fal_emulator):
    return functools.partial(fal_emulator.runner, isolation=request.param)


class Plain(fal.App):
    @fal.endpoint("/")
    def answer(self) -> dict:
        return {"answer": 42}


# --- states and events ----------------------------------------------------------------------------


class Broken(Plain):
    def setup(self):
        raise ValueError("no weights")


def categories(fal_ledger):
    return [event.category for event in fal_ledger.events if event.category]


def test_events_are_named_as_in_the_platforms_api(fal_runner, fal_ledger):
    fal_runner(Plain).stop()
    assert categories(fal_ledger) == [
        "runner_pending",
        "runner_setup",
        "runner_started",
        "runner_draining",
        "runner_stopping",
        "runner_finished",
    ]


def test_a_killed_runner_has_failed(fal_runner, fal_ledger):
    fal_runner(Plain).kill()
    assert categories(fal_ledger)[-1] == "runner_failed"


def test_one_that_does_not_come_up_is_a_startup_failure(fal_runner, fal_ledger):
    with pytest.raises(ValueError, match="no weights"):
        fal_runner(Broken)
    assert categories(fal_ledger) == ["runner_pending", "runner_setup", "runner_startup_failure"]


def test_an_app_with_an_image_of_its_own_is_pulled_first(fal_runner, fal_ledger):
    class Contained(Plain):
        image = fal.ContainerImage.from_dockerfile_str("FROM python:3.11")

    fal_runner(Contained)
    assert categories(fal_ledger)[:3] == ["runner_pending", "runner_docker_pull", "runner_setup"]


# --- start-up ------------------------------------------------------------------------------------


class SlowToStart(fal.App):
    def setup(self):
        time.sleep(601)

    @fal.endpoint("/")
    def answer(self) -> dict:
        return {}

    def teardown(self):
        pathlib.Path("/data/teardown").touch()


def test_a_runner_that_is_not_up_after_600_s_is_killed(fal_runner, fal_clock, fal_data):
    fal_clock.freeze()
    start = fal_clock.now()
    with pytest.raises(StartupError) as caught:
        fal_runner(SlowToStart)
    assert str(caught.value).startswith(
        "runner-1 did not come up: SlowToStart ended before its setup() was over (killed: its "
        "start took longer than startup_timeout (600 s))."
    )
    assert (fal_clock.now() - start).total_seconds() >= 600
    assert fal_data.tree() == []


def test_the_apps_own_startup_timeout_wins(fal_runner, fal_clock):
    class Patient(SlowToStart):
        startup_timeout = 700

    class Hasty(SlowToStart):
        startup_timeout = 10

    fal_clock.freeze()
    assert fal_runner(Patient).state == "IDLE"
    with pytest.raises(StartupError, match=r"longer than startup_timeout \(10 s\)"):
        fal_runner(Hasty)


@pytest.mark.fal(startup_timeout=700)
def test_the_accounts_startup_timeout_is_a_setting(fal_runner, fal_clock):
    fal_clock.freeze()
    assert fal_runner(SlowToStart).state == "IDLE"


def get_stuck(runner, fal_data):
    """A request in a thread, once it is being handled, and what it will raise."""
    errors = []

    def call():
        try:
            runner.post("/stuck")
        except RunnerError as error:
            errors.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    wait_for("began", fal_data)
    return thread, errors


def let_go(runner, fal_data):
    """A thread cannot be ended: let the stuck endpoint of a killed one come to its end."""
    fal_data.write("go", b"")
    if runner.isolation == "thread" and "began" in fal_data.tree():
        wait_for("gone", fal_data)


def wait_for(file, fal_data):
    for _ in range(1000):
        if file in fal_data.tree():
            return
        threading.Event().wait(0.01)  # in real time
    raise TimeoutError(file)


# --- requests that take too long -----------------------------------------------------------------


class SlowToAnswer(fal.App):
    request_timeout = 30

    @fal.endpoint("/")
    def answer(self) -> dict:
        time.sleep(31)
        return {}

    @fal.endpoint("/async")
    async def answer_async(self) -> dict:
        await asyncio.sleep(31)
        return {}

    @fal.endpoint("/stuck")
    def stuck(self) -> dict:
        pathlib.Path("/data/began").touch()
        while not os.path.exists("/data/go"):
            threading.Event().wait(0.01)  # in real time
        pathlib.Path("/data/gone").touch()
        return {}

    @fal.endpoint("/quick")
    def quick(self) -> dict:
        time.sleep(29)
        return {}


@pytest.mark.parametrize("path", ["/", "/async"])
def test_a_request_that_takes_longer_than_request_timeout_costs_the_runner(
    fal_runner, fal_clock, fal_ledger, path
):
    fal_clock.freeze()
    runner = fal_runner(SlowToAnswer)
    with pytest.raises(RunnerError) as caught:
        runner.post(path)
    assert str(caught.value) == (
        "runner-1 ended (killed: a request took longer than request_timeout (30 s)) before it "
        f"answered POST {path}"
    )
    assert runner.state == "TERMINATED"
    assert "runner-1 killed: a request took longer than request_timeout (30 s)" in [
        event.text for event in fal_ledger.events
    ]


def test_a_request_in_time_costs_nothing_and_no_later_move_of_the_clock_does(fal_runner, fal_clock):
    fal_clock.freeze()
    runner = fal_runner(SlowToAnswer)
    assert runner.post("/quick").status_code == 200
    fal_clock.advance(hours=2)
    assert runner.state == "IDLE"


def test_moving_the_clock_past_request_timeout_kills_while_the_app_is_at_work(
    fal_runner, fal_clock, fal_data
):
    fal_clock.freeze()
    runner = fal_runner(SlowToAnswer)
    thread, errors = get_stuck(runner, fal_data)
    fal_clock.advance(seconds=31)
    thread.join()
    let_go(runner, fal_data)
    assert runner.state == "TERMINATED"
    assert "request_timeout (30 s)" in errors[0]


@pytest.mark.fal(request_timeout=0.05)
def test_on_a_running_clock_the_time_out_is_real(fal_runner, fal_data):
    class Stuck(SlowToAnswer):
        request_timeout = None

    runner = fal_runner(Stuck)
    with pytest.raises(RunnerError, match=r"request_timeout \(0.05 s\)"):
        runner.post("/stuck")
    let_go(runner, fal_data)


# --- answers that end a runner -------------------------------------------------------------------


class Answering(fal.App):
    @fal.endpoint("/gpu")
    def gpu(self) -> dict:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    @fal.endpoint("/fail")
    def fail(self) -> dict:
        raise KeyError("lost")

    @fal.endpoint("/unavailable")
    def unavailable(self) -> dict:
        raise AppException("no memory", 503)

    @fal.endpoint("/refuse")
    def refuse(self) -> dict:
        raise AppException("not that", 422)

    @fal.endpoint("/stop")
    def stop(self) -> Response:
        return Response("{}", headers={"x-fal-stop-runner": "1"})

    def teardown(self):
        pathlib.Path("/data/teardown").touch()


@pytest.mark.parametrize("path", ["/gpu", "/unavailable"])
def test_a_runner_that_answers_503_is_killed(fal_runner, fal_data, path):
    runner = fal_runner(Answering)
    assert runner.post(path).status_code == 503
    assert (runner.state, runner.end) == ("TERMINATED", "killed: it answered 503")
    assert fal_data.tree() == []


@pytest.mark.fal(runner_after_503="kept")
def test_a_runner_that_answers_503_is_kept_where_the_setting_says_so(fal_runner):
    runner = fal_runner(Answering)
    assert runner.post("/unavailable").status_code == 503
    assert runner.state == "IDLE"


@pytest.mark.parametrize(("path", "status"), [("/fail", 500), ("/refuse", 422)])
def test_a_runner_that_answers_anything_else_lives_on(fal_runner, path, status):
    runner = fal_runner(Answering)
    assert runner.post(path).status_code == status
    assert runner.state == "IDLE"


def test_an_answer_that_asks_for_it_stops_the_runner(fal_runner, fal_data):
    runner = fal_runner(Answering)
    assert runner.post("/stop").status_code == 200
    assert (runner.state, runner.end) == ("TERMINATED", None)
    assert fal_data.tree() == ["teardown"]


# --- health --------------------------------------------------------------------------------------


class Checked(fal.App):
    def setup(self):
        self.failures = 0
        self.checks = 0

    @fal.endpoint("/check", health_check=fal.HealthCheck(start_period_seconds=60))
    def check(self) -> dict:
        self.checks += 1
        if self.failures > 0:
            self.failures -= 1
            raise RuntimeError("not well")
        return {}

    @fal.endpoint("/fail")
    def fail(self, times: int) -> dict:
        self.failures = times
        return {"checks": self.checks}

    @fal.endpoint("/ask")
    def ask(self) -> Response:
        return Response("{}", headers={"x-fal-runner-health-check": "1"})


def test_the_apps_health_check_is_asked_every_15_s_after_its_start_period(fal_runner, fal_clock):
    fal_clock.freeze()
    runner = fal_runner(Checked)
    fal_clock.advance(seconds=59)
    assert runner.post("/fail?times=0").json() == {"checks": 0}
    fal_clock.advance(seconds=31)
    assert runner.post("/fail?times=0").json() == {"checks": 3}


def test_three_failures_in_a_row_cost_the_runner_and_two_do_not(fal_runner, fal_clock):
    fal_clock.freeze()
    runner = fal_runner(Checked)
    runner.post("/fail?times=2")
    fal_clock.advance(minutes=5)
    assert runner.state == "IDLE"
    runner.post("/fail?times=3")
    fal_clock.advance(minutes=5)
    assert runner.end == (
        "killed: its health check failed 3 times in a row: POST /check answered 500"
    )


def test_one_failure_suffices_when_an_answer_asks_for_the_check(fal_runner):
    runner = fal_runner(Checked)
    runner.post("/fail?times=1")
    assert runner.post("/ask").status_code == 200
    assert runner.end == "killed: its health check failed: POST /check answered 500"


def test_without_a_check_of_its_own_an_apps_health_is_asked(fal_runner):
    runner = fal_runner(Plain)
    assert runner.check_health() is True
    assert runner.state == "IDLE"


# --- the end -------------------------------------------------------------------------------------


class Clinging(fal.App):
    @fal.endpoint("/")
    def answer(self) -> dict:
        return {}

    def teardown(self):
        pathlib.Path("/data/began").touch()
        time.sleep(6)
        pathlib.Path("/data/ended").touch()


def test_a_teardown_of_6_s_is_cut_off_after_5_on_the_clock(fal_runner, fal_clock, fal_data):
    fal_clock.freeze()
    start = fal_clock.now()
    runner = fal_runner(Clinging)
    runner.stop()
    assert runner.end == "killed: not ended 5 s after SIGTERM"
    assert fal_data.tree() == ["began"]
    assert 5 <= (fal_clock.now() - start).total_seconds() <= 6


def test_a_teardown_within_the_apps_own_grace_period_is_not_cut_off(
    fal_runner, fal_clock, fal_data
):
    class Patient(Clinging):
        termination_grace_period_seconds = 10

    fal_clock.freeze()
    runner = fal_runner(Patient)
    runner.stop()
    assert runner.end is None
    assert fal_data.tree() == ["began", "ended"]


def test_a_kill_loses_the_requests_in_flight(fal_runner, fal_data):
    runner = fal_runner(SlowToAnswer)
    thread, errors = get_stuck(runner, fal_data)
    runner.kill()
    thread.join()
    let_go(runner, fal_data)
    assert errors == ["runner-1 ended (killed: by the test) before it answered POST /stuck"]


def test_a_killed_runner_says_why_it_takes_no_requests(fal_runner):
    runner = fal_runner(Plain)
    runner.kill()
    with pytest.raises(RunnerError) as caught:
        runner.post("/")
    assert str(caught.value) == (
        "runner-1 is TERMINATED (killed: by the test) and takes no more requests. Boot another "
        "one: fal_runner(Plain)."
    )


# --- who can reach it ----------------------------------------------------------------------------


def test_the_sdks_own_app_client_reaches_a_runner(fal_runner):
    client = AppClient(Plain, fal_runner(Plain).url)
    assert client.health() == {"version": "unknown"}
    assert client.answer({}) == {"answer": 42}


def test_any_client_reaches_a_runner_by_its_url(fal_runner):
    import requests

    url = fal_runner(Plain).url
    assert httpx.post(url).json() == {"answer": 42}
    assert requests.post(url, timeout=10).json() == {"answer": 42}


def test_an_async_client_reaches_a_runner_without_blocking_its_loop(fal_runner):
    url = fal_runner(Plain).url

    async def ask():
        async with httpx.AsyncClient() as client:
            answers = await asyncio.gather(client.post(url), client.post(url))
        return [answer.json() for answer in answers]

    assert asyncio.run(ask()) == [{"answer": 42}] * 2


def test_one_runner_reaches_another(fal_runner):
    class Chained(fal.App):
        @fal.endpoint("/")
        def ask(self, url: str) -> dict:
            return httpx.post(url).json()

    target = fal_runner(Plain)
    answer = fal_runner(Chained).post("/", params={"url": target.url})
    assert answer.json() == {"answer": 42}


def test_a_runner_that_has_ended_answers_503_at_its_url(fal_runner):
    runner = fal_runner(Plain)
    runner.stop()
    answer = httpx.post(runner.url)
    assert answer.status_code == 503
    assert answer.json()["error_type"] == "runner_connection_error"


# --- the context of requests ---------------------------------------------------------------------


class Uploading(fal.App):
    @fal.endpoint("/thread")
    async def in_an_executor(self) -> dict:
        from fal.toolkit import File

        def upload():
            return File.from_bytes(b"x", file_name="x").url

        loop = asyncio.get_running_loop()
        return {"url": await loop.run_in_executor(None, upload)}

    def teardown(self):
        from fal.toolkit import File

        File.from_bytes(b"x", file_name="x")


def test_an_upload_that_lost_its_requests_context_is_noted(fal_runner, fal_ledger):
    fal_runner(Uploading).post("/thread")
    notes = [note for exchange in fal_ledger.exchanges for note in exchange.notes]
    assert [note.partition(":")[0] for note in notes] == ["the request's context was lost"]


def test_an_upload_that_never_had_one_is_not(fal_runner, fal_ledger):
    runner = fal_runner(Uploading)

    def upload():
        from fal.toolkit import File

        File.from_bytes(b"x", file_name="x")

    runner.run(upload)
    runner.stop()
    assert len(fal_ledger.requests(method="PUT")) == 2
    assert fal_ledger.problems == []


def test_a_runners_environment_names_its_state(fal_runner):
    assert fal_runner(Plain).run(lambda: os.environ["FAL_RUNNER_STATE"]) == "RUNNING"
