"""Deployments with real apps: cold and warm, retried and killed, drained and cancelled [§4]."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import fal
import httpx
import pytest
from fal.exceptions import RequestCancelledException
from fastapi.responses import JSONResponse

from emulator.errors import EmulatorError

URL = "https://example.com/slow.bin"


class Counting(fal.App):
    """Knows how often it was asked, and what it was told."""

    def setup(self) -> None:
        self.count = 0

    @fal.endpoint("/")
    def count_up(self, input: dict) -> dict:
        self.count += 1
        return {"count": self.count, "input": input}

    @fal.endpoint("/headers")
    def headers(self) -> dict:
        return dict(self.current_request.headers)

    def teardown(self) -> None:
        with Path("/data/teardowns").open("a") as file:
            file.write(f"{self.count}\n")


class Answering(fal.App):
    """Answers what it is asked for, and writes down each run."""

    @fal.endpoint("/")
    def answer(self, input: dict) -> JSONResponse:
        with Path("/data/runs").open("a") as file:
            file.write("run\n")
        runs = len(Path("/data/runs").read_text().splitlines())
        statuses = input["statuses"]
        status = statuses[min(runs, len(statuses)) - 1]
        return JSONResponse({"run": runs}, status, headers=input.get("headers", {}))


class Fetching(fal.App):
    """Its handler waits for a server, so that a gate can hold it."""

    @fal.endpoint("/")
    def fetch(self) -> dict:
        return {"size": len(httpx.get(URL).content)}


class Waiting(fal.App):
    """Its handler sleeps, on the clock."""

    @fal.endpoint("/")
    def wait(self, input: dict) -> dict:
        time.sleep(input["seconds"])
        Path("/data/awake").touch()
        return {}


class Crashing(fal.App):
    """Crashes in setup so often as /data says."""

    def setup(self) -> None:
        left = int(Path("/data/crashes").read_text())
        if left:
            Path("/data/crashes").write_text(str(left - 1))
            raise OSError("no weights")

    @fal.endpoint("/")
    def answer(self) -> dict:
        return {}


@pytest.fixture(autouse=True)
def stopped(fal_clock):
    fal_clock.freeze()


@pytest.fixture(params=["thread", "process"])
def deploy(request, fal_gateway):
    def make(app, name="tester/app", **options):
        return fal_gateway.deploy(name, app, isolation=request.param, **options)

    return make


@pytest.fixture
def deploy_in_threads(fal_gateway):
    """For apps that share objects with their test, which a process cannot."""

    def make(app, name="tester/app", **options):
        return fal_gateway.deploy(name, app, **options)

    return make


def sentences(deployment):
    """The history without its times."""
    return [line.partition(" ")[2] for line in deployment.history]


def names(deployment):
    return [runner.name for runner in deployment.runners]


# --- cold and warm --------------------------------------------------------------------------------


def test_nothing_runs_before_the_first_call(deploy):
    assert deploy(Counting).runners == []


def test_a_direct_call_starts_a_runner(deploy, fal_ledger):
    deployment = deploy(Counting)
    assert deployment.post("/", json={"a": 1}).json() == {"count": 1, "input": {"a": 1}}
    assert [event.text for event in fal_ledger.events if event.kind == "deployment"] == [
        "tester/app: deployed Counting",
        "tester/app: started runner-1 (cold start: 1 queued, 0 running, max 10)",
        "tester/app: call-1 POST / on runner-1",
    ]


def test_a_warm_runner_is_used_again(deploy):
    deployment = deploy(Counting)
    deployment.post("/", json={})
    assert deployment.post("/", json={}).json()["count"] == 2
    assert names(deployment) == ["runner-1"]


def test_a_submitted_call_is_run_by_itself(deploy):
    call = deploy(Counting).submit("/", json={})
    assert call.result().json()["count"] == 1
    assert call.status == "COMPLETED"
    assert call.response.headers["x-fal-served-from"] == "runner-1"


def test_runners_there_in_advance(deploy):
    deployment = deploy(Counting, min_concurrency=2)
    assert [runner.state for runner in deployment.runners] == ["IDLE", "IDLE"]
    assert sentences(deployment)[1:] == [
        "started runner-1 (to keep warm: 0 queued, 0 running, max 10)",
        "started runner-2 (to keep warm: 0 queued, 0 running, max 10)",
    ]


def test_a_buffer_is_filled_up_while_a_request_runs(deploy, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    deployment = deploy(Fetching, concurrency_buffer=1)
    call = deployment.submit("/")
    gate.wait()
    deployment_names = names(deployment)
    gate.open()
    call.result()
    assert deployment_names == ["runner-1", "runner-2"]


def test_keep_alive_is_on_the_clock(deploy, fal_clock, fal_data):
    deployment = deploy(Counting)
    deployment.post("/", json={})
    fal_clock.advance(seconds=59.999)
    assert names(deployment) == ["runner-1"]
    fal_clock.advance(seconds=0.001)
    assert deployment.runners == []
    assert sentences(deployment)[-1] == "stopped runner-1 (idle for 60 s)"
    assert fal_data.read("teardowns") == b"1\n"


def test_each_request_starts_keep_alive_anew(deploy, fal_clock):
    deployment = deploy(Counting, keep_alive=10)
    for _ in range(3):
        deployment.post("/", json={})
        fal_clock.advance(seconds=9)
    assert names(deployment) == ["runner-1"]


def test_without_keep_alive_every_call_is_cold(deploy):
    deployment = deploy(Counting, keep_alive=0)
    assert [deployment.post("/", json={}).json()["count"] for _ in range(2)] == [1, 1]
    assert deployment.runners == []


def test_a_runner_that_got_nothing_goes_after_ten_seconds(deploy, fal_clock):
    deployment = deploy(Counting)
    deployment.hold()
    calls = [deployment.submit("/", json={}) for _ in range(2)]
    deployment.run_next(runner="runner-1")
    calls[1].cancel()
    fal_clock.advance(seconds=10)
    assert names(deployment) == ["runner-1"]
    assert sentences(deployment)[-1] == "stopped runner-2 (idle for 10 s)"


def test_min_concurrency_holds_a_runner_for_ever(deploy, fal_clock):
    deployment = deploy(Counting, min_concurrency=1)
    deployment.post("/", json={})
    fal_clock.advance(days=1)
    assert names(deployment) == ["runner-1"]


def test_max_concurrency_lets_calls_wait(deploy, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    deployment = deploy(Fetching, max_concurrency=1)
    first, second = deployment.submit("/"), deployment.submit("/")
    gate.wait()
    assert (first.status, second.status, second.position) == ("IN_PROGRESS", "IN_QUEUE", 0)
    gate.open()
    second.result()
    assert [call.attempts[0].runner for call in (first, second)] == ["runner-1", "runner-1"]


def test_an_app_that_sleeps_lets_the_time_of_idle_runners_pass(deploy):
    deployment = deploy(Waiting, keep_alive=10)
    deployment.hold()
    for _ in range(2):
        deployment.submit("/", json={"seconds": 0})
    deployment.run_next(runner="runner-1")
    deployment.run_next(runner="runner-2")
    deployment.submit("/", json={"seconds": 60})
    deployment.run_next(runner="runner-1")
    deployment.settle()
    assert names(deployment) == ["runner-1"]
    assert "stopped runner-2 (idle for 10 s)" in sentences(deployment)


def test_an_app_may_call_another_deployment(deploy_in_threads):
    class Inner(fal.App):
        @fal.endpoint("/")
        def files(self) -> list:
            Path("/tmp/inner").touch()
            return [Path("/tmp/outer").exists(), Path("/tmp/inner").exists()]

    class Outer(fal.App):
        @fal.endpoint("/")
        def ask(self) -> list:
            Path("/tmp/outer").touch()
            return [*inner.post("/").json(), Path("/tmp/inner").exists()]

    inner = deploy_in_threads(Inner, "tester/inner")
    assert deploy_in_threads(Outer, "tester/outer").post("/").json() == [False, True, False]


def test_multiplexing_gives_one_runner_several_requests(deploy, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    deployment = deploy(Fetching, max_multiplexing=2, max_concurrency=1)
    calls = [deployment.submit("/") for _ in range(3)]
    while len(gate.held) < 2:
        gate.wait()
    assert [call.status for call in calls] == ["IN_PROGRESS", "IN_PROGRESS", "IN_QUEUE"]
    gate.open()
    assert {call.result().headers["x-fal-served-from"] for call in calls} == {"runner-1"}


def test_scaling_delay_is_on_the_clock(deploy, fal_clock):
    deployment = deploy(Counting, scaling_delay=30)
    call = deployment.submit("/", json={})
    fal_clock.advance(seconds=29)
    assert deployment.runners == []
    fal_clock.advance(seconds=1)
    assert call.result().status_code == 200


def test_two_runners_boot_at_once(deploy_in_threads):
    """Both are in setup before one is ready: what they do there they do at the same time."""
    both = threading.Barrier(2, timeout=10)

    class Meeting(fal.App):
        def setup(self) -> None:
            both.wait()
            Path("/tmp/mine").touch()

        @fal.endpoint("/")
        def answer(self) -> dict:
            return {}

    deployment = deploy_in_threads(Meeting, min_concurrency=2)
    assert [runner.tmp.tree() for runner in deployment.runners] == [["mine"], ["mine"]]


# --- starts that fail -----------------------------------------------------------------------------


def test_a_crash_in_setup_backs_off_on_the_clock(deploy, fal_clock, fal_data):
    fal_clock.freeze(datetime(2026, 1, 1, tzinfo=timezone.utc))
    fal_data.write("crashes", b"2")
    deployment = deploy(Crashing)
    call = deployment.submit("/")
    deployment.settle()
    fal_clock.advance(seconds=30)
    deployment.settle()
    fal_clock.advance(seconds=60)
    assert call.result().status_code == 200
    assert [line for line in deployment.history if "did not start" in line] == [
        "00:00:00 runner-1 did not start: setup raised OSError('no weights'); "
        "CRASH_BACKOFF for 30 s, until 00:00:30",
        "00:00:30 runner-2 did not start: setup raised OSError('no weights'); "
        "CRASH_BACKOFF for 60 s, until 00:01:30",
    ]


def test_a_start_that_succeeds_ends_the_backoff(deploy, fal_clock, fal_data):
    fal_data.write("crashes", b"1")
    deployment = deploy(Crashing, keep_alive=0)
    call = deployment.submit("/")
    deployment.settle()
    fal_clock.advance(seconds=30)
    call.result()
    fal_data.write("crashes", b"1")
    deployment.submit("/")
    deployment.settle()
    assert "CRASH_BACKOFF for 30 s" in sentences(deployment)[-1]


def test_a_direct_caller_is_told_at_once(deploy, fal_data):
    fal_data.write("crashes", b"1")
    response = deploy(Crashing).post("/")
    assert response.status_code == 503
    assert response.headers["x-fal-error-type"] == "runner_connection_refused"
    assert response.json() == {
        "detail": "Runner refused the connection",
        "error_type": "runner_connection_refused",
    }


def test_no_machine_is_tried_again_after_20_seconds(deploy, fal_clock):
    deployment = deploy(Counting)
    deployment.refuse_machines()
    call = deployment.submit("/", json={})
    fal_clock.advance(seconds=19)
    assert call.status == "IN_QUEUE"
    fal_clock.advance(seconds=1)
    assert call.result().status_code == 200


def test_no_machine_for_a_direct_caller_is_503(deploy):
    deployment = deploy(Counting)
    deployment.refuse_machines()
    response = deployment.post("/", json={})
    assert response.status_code == 503
    assert response.json()["error_type"] == "runner_scheduling_failure"


def test_a_setup_that_takes_too_long_is_ended_and_tried_again(deploy, fal_clock, fal_data):
    class Slow(fal.App):
        startup_timeout = 60

        def setup(self) -> None:
            if not Path("/data/tried").exists():
                Path("/data/tried").touch()
                time.sleep(3600)
                Path("/data/woke").touch()

        @fal.endpoint("/")
        def answer(self) -> dict:
            return {}

    began = fal_clock.now()
    deployment = deploy(Slow)
    call = deployment.submit("/")
    deployment.settle()
    assert (fal_clock.now() - began).total_seconds() == 60
    assert "setup took longer than startup_timeout=60 s" in sentences(deployment)[-1]
    fal_clock.advance(seconds=30)
    assert call.result().status_code == 200
    assert fal_data.tree() == ["tried"]


# --- retries --------------------------------------------------------------------------------------


def test_a_503_kills_the_runner_and_runs_the_handler_again_on_another(deploy, fal_data):
    deployment = deploy(Answering)
    call = deployment.submit("/", json={"statuses": [503, 200]})
    assert call.result().json() == {"run": 2}
    assert fal_data.read("runs") == b"run\nrun\n", "side effects happen twice"
    assert [(one.runner, one.status, one.ended) for one in call.attempts] == [
        ("runner-1", 503, "answered 503"),
        ("runner-2", 200, "answered 200"),
    ]
    assert sentences(deployment)[2:] == [
        "call-1 POST / on runner-1",
        "killed runner-1 (it answered 503)",
        "started runner-2 (cold start: 1 queued, 0 running, max 10)",
        "retry 1 of call-1 on runner-2: runner-1 answered 503",
    ]


def test_the_request_id_stays_the_same(deploy, fal_data):
    class Remembering(fal.App):
        @fal.endpoint("/")
        def answer(self) -> JSONResponse:
            with Path("/data/ids").open("a") as file:
                file.write(self.current_request.request_id + "\n")
            return JSONResponse({}, 503)

    call = deploy(Remembering).submit("/", headers={"X-Fal-Retry-Config": budget(server_error=2)})
    call.result()
    assert fal_data.read("ids").decode().split() == [call.request_id] * 3


def budget(**retries):
    return json.dumps({condition: {"retries": count} for condition, count in retries.items()})


def test_ten_attempts_are_all(deploy, fal_data):
    deployment = deploy(Answering)
    call = deployment.submit("/", json={"statuses": [503]})
    assert call.result().status_code == 503
    assert len(call.attempts) == 10
    assert "call-1 is not retried: all 10 attempts are used up" in sentences(deployment)


def test_a_direct_call_is_never_retried(deploy, fal_data):
    response = deploy(Answering).post("/", json={"statuses": [503, 200]})
    assert (response.status_code, response.json()) == (503, {"run": 1})


def test_a_503_ends_the_runner_of_a_direct_call_too(deploy, fal_emulator):
    deployment = deploy(Answering)
    deployment.post("/", json={"statuses": [503]})
    assert deployment.runners == []
    assert fal_emulator.runners[0].state == "TERMINATED"


@pytest.mark.fal(runner_after_503="kept")
def test_an_account_may_keep_runners_that_answer_503(deploy):
    deployment = deploy(Answering, max_concurrency=1)
    call = deployment.submit("/", json={"statuses": [503, 200]})
    call.result()
    assert [one.runner for one in call.attempts] == ["runner-1", "runner-1"]


def test_a_500_is_probed_and_kept(deploy):
    deployment = deploy(Answering)
    assert deployment.submit("/", json={"statuses": [500]}).result().status_code == 500
    assert names(deployment) == ["runner-1"]
    assert sentences(deployment)[-1] == ("TCP probe of runner-1, which answered 500: it answers")


def test_a_504_is_retried_on_a_runner_that_is_kept(deploy):
    deployment = deploy(Answering, max_concurrency=1)
    call = deployment.submit("/", json={"statuses": [504, 200]})
    call.result()
    assert [one.runner for one in call.attempts] == ["runner-1", "runner-1"]


def test_the_apps_headers_to_the_gateway_do_not_reach_the_caller(deploy):
    headers = {"x-fal-needs-retry": "1", "x-fal-stop-runner": "0", "x-mine": "1"}
    call = deploy(Answering).submit("/", json={"statuses": [503, 200], "headers": headers})
    response = call.result()
    assert (len(call.attempts), response.headers["x-mine"]) == (2, "1")
    assert not {"x-fal-needs-retry", "x-fal-stop-runner"} & set(response.headers)


def test_stop_runner_ends_a_runner_after_a_good_answer(deploy):
    deployment = deploy(Answering)
    headers = {"x-fal-stop-runner": "true"}
    assert deployment.post("/", json={"statuses": [200], "headers": headers}).status_code == 200
    assert deployment.runners == []


def test_no_retry_of_the_caller(deploy):
    call = deploy(Answering).submit(
        "/", json={"statuses": [503, 200]}, headers={"X-Fal-No-Retry": "1"}
    )
    assert call.result().status_code == 503


def test_skip_retry_conditions_of_the_app(deploy):
    deployment = deploy(Answering, skip_retry_conditions=["server_error"])
    assert deployment.submit("/", json={"statuses": [503, 200]}).result().status_code == 503


def test_a_runner_that_is_killed_in_the_middle_is_replaced(deploy, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate(runner="runner-1")
    deployment = deploy(Fetching)
    call = deployment.submit("/")
    gate.wait()
    deployment.runners[0].kill()
    assert call.result().json() == {"size": 1}
    assert [(one.runner, one.ended) for one in call.attempts] == [
        ("runner-1", "died"),
        ("runner-2", "answered 200"),
    ]


def test_a_direct_call_to_a_runner_that_dies_is_503(deploy, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    deployment = deploy(Fetching)
    with ThreadPoolExecutor() as pool:
        calling = pool.submit(deployment.post, "/")
        gate.wait()
        deployment.runners[0].kill()
        response = calling.result()
    assert response.status_code == 503
    assert response.json() == {
        "detail": "Runner disconnected",
        "error_type": "runner_disconnected",
    }


def test_an_idle_runner_that_is_killed_is_replaced(deploy):
    deployment = deploy(Counting, min_concurrency=1)
    deployment.runners[0].kill()
    deployment.settle()
    assert names(deployment) == ["runner-2"]
    assert "lost runner-1 (it has ended)" in sentences(deployment)


def test_all_requests_of_a_killed_runner_are_retried(deploy, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate(runner="runner-1")
    deployment = deploy(Fetching, max_multiplexing=2)
    calls = [deployment.submit("/") for _ in range(2)]
    while len(gate.held) < 2:
        gate.wait()
    deployment.runners[0].kill()
    assert [call.result().json() for call in calls] == [{"size": 1}] * 2
    assert {call.attempts[0].ended for call in calls} == {"died"}


# --- time-outs ------------------------------------------------------------------------------------


def test_a_request_time_out_kills_the_runner_and_is_retried(
    deploy, fal_clock, fal_faults, fal_origin
):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate(runner="runner-1")
    deployment = deploy(Fetching, request_timeout=100)
    call = deployment.submit("/")
    gate.wait()
    fal_clock.advance(seconds=99)
    assert len(call.attempts) == 1
    fal_clock.advance(seconds=1)
    assert call.result().json() == {"size": 1}
    assert [(one.runner, one.ended) for one in call.attempts] == [
        ("runner-1", "ran longer than request_timeout=100 s"),
        ("runner-2", "answered 200"),
    ]


def test_a_direct_call_that_sleeps_too_long_is_504_at_that_very_moment(deploy, fal_clock, fal_data):
    deployment = deploy(Waiting, request_timeout=100)
    began = fal_clock.now()
    response = deployment.post("/", json={"seconds": 7200})
    assert response.status_code == 504
    assert response.json() == {"detail": "Request timed out", "error_type": "request_timeout"}
    assert (fal_clock.now() - began).total_seconds() == 100
    assert fal_data.tree() == []


def test_a_queued_call_that_sleeps_too_long_is_tried_again(deploy, fal_clock, fal_data):
    options = {"request_timeout": 100, "retry_config": {"timeout": {"retries": 1}}}
    deployment = deploy(Waiting, **options)
    began = fal_clock.now()
    call = deployment.submit("/", json={"seconds": 7200})
    assert call.result().status_code == 504
    assert [(one.runner, one.condition) for one in call.attempts] == [
        ("runner-1", "timeout"),
        ("runner-2", "timeout"),
    ]
    assert (fal_clock.now() - began).total_seconds() == 200
    assert fal_data.tree() == []


def test_a_start_time_out_of_the_caller_is_final(deploy, fal_clock):
    deployment = deploy(Counting, scaling_delay=60)
    call = deployment.submit("/", json={}, headers={"X-Fal-Request-Timeout": "5"})
    fal_clock.advance(seconds=5)
    response = call.result()
    assert response.status_code == 504
    assert response.headers["x-fal-request-timeout-type"] == "user"
    assert call.attempts == []


def test_request_start_timeout_of_the_app_counts_for_its_owner_only(deploy, fal_clock):
    deployment = deploy(Counting, scaling_delay=60, request_start_timeout=5)
    own, other = deployment.submit("/", json={}), deployment.submit("/", json={}, caller="other")
    fal_clock.advance(seconds=5)
    assert (own.result().status_code, other.status) == (504, "IN_QUEUE")


def test_a_start_time_out_that_makes_no_sense_is_400(deploy):
    response = deploy(Counting).post("/", json={}, headers={"X-Fal-Request-Timeout": "soon"})
    assert response.status_code == 400
    assert response.json()["error_type"] == "bad_request"


# --- cancelling -----------------------------------------------------------------------------------


def test_a_waiting_call_is_taken_out(deploy):
    deployment = deploy(Counting)
    deployment.hold()
    call = deployment.submit("/", json={})
    assert call.cancel() == "CANCELLATION_REQUESTED"
    assert call.result().status_code == 499
    assert call.result().json()["error_type"] == "client_cancelled"
    assert deployment.queue == []


def test_a_running_app_is_told_with_the_same_request_id(deploy_in_threads):
    class Cancellable(fal.App):
        def setup(self) -> None:
            self.cancelled = {}

        @fal.endpoint("/work")
        def work(self) -> dict:
            event = self.cancelled.setdefault(self.current_request.request_id, threading.Event())
            started.set()
            assert event.wait(10)
            raise RequestCancelledException("stopped in the middle")

        @fal.endpoint("/work/cancel")
        def cancel(self) -> dict:
            self.cancelled[self.current_request.request_id].set()
            return {}

    started = threading.Event()
    deployment = deploy_in_threads(Cancellable)
    call = deployment.submit("/work")
    assert started.wait(10)
    assert call.cancel() == "CANCELLATION_REQUESTED"
    response = call.result()
    assert (response.status_code, response.json()) == (499, {"detail": "stopped in the middle"})
    assert sentences(deployment)[-1] == (
        "cancelled call-1: runner-1 answered 200 to POST /work/cancel"
    )


def test_an_app_without_that_route_goes_on(deploy, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    deployment = deploy(Fetching)
    call = deployment.submit("/")
    gate.wait()
    call.cancel()
    gate.open()
    assert call.result().json() == {"size": 1}
    assert "cancelled call-1: runner-1 answered 404 to POST /cancel" in sentences(deployment)


def test_what_is_over_cannot_be_cancelled(deploy):
    call = deploy(Counting).submit("/", json={})
    call.result()
    assert call.cancel() == "ALREADY_COMPLETED"


# --- redeploying ----------------------------------------------------------------------------------


class Newer(fal.App):
    @fal.endpoint("/")
    def answer(self) -> dict:
        return {"newer": True}


def test_new_calls_go_to_new_runners_and_old_ones_finish(deploy, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    deployment = deploy(Fetching)
    old = deployment.submit("/")
    gate.wait()
    deployment.redeploy(Newer)
    assert deployment.submit("/").result().json() == {"newer": True}
    assert names(deployment) == ["runner-1", "runner-2"]
    gate.open()
    assert old.result().json() == {"size": 1}
    deployment.settle()
    assert names(deployment) == ["runner-2"]
    assert "runner-1 is DRAINING: 1 running" in sentences(deployment)
    assert "stopped runner-1 (drained)" in sentences(deployment)


def test_idle_runners_of_the_old_code_are_stopped_at_once(deploy, fal_data):
    deployment = deploy(Counting)
    deployment.post("/", json={})
    deployment.redeploy(Newer)
    assert deployment.runners == []
    assert fal_data.read("teardowns") == b"1\n"


def test_a_teardown_that_fails_is_noted_and_keeps_nothing_from_going_on(deploy):
    class Clinging(fal.App):
        @fal.endpoint("/")
        def answer(self) -> dict:
            return {}

        def teardown(self) -> None:
            raise ValueError("cannot let go")

    deployment = deploy(Clinging, keep_alive=0)
    assert deployment.post("/").status_code == 200
    assert deployment.runners == []
    expected = "the teardown of runner-1 raised ValueError('cannot let go')"
    assert sentences(deployment)[-1] == expected


def test_the_grace_period_can_be_given_to_deploy(deploy, fal_emulator):
    class Stuck(fal.App):
        @fal.endpoint("/")
        def answer(self) -> dict:
            return {}

        async def teardown(self) -> None:
            await asyncio.Event().wait()

    deploy(Stuck, keep_alive=0, termination_grace_period_seconds=0.01).post("/")
    assert fal_emulator.runners[0].end == "killed: not ended 0.01 s after SIGTERM"


def test_what_was_to_be_warm_is_warm_again(deploy):
    deployment = deploy(Counting, min_concurrency=1)
    deployment.redeploy(Newer)
    deployment.settle()
    assert [runner.app_class for runner in deployment.runners] == [Newer]


def test_a_start_under_way_does_not_take_the_time_that_the_clock_is_moved_by(deploy, fal_clock):
    deployment = deploy(Counting)
    deployment.hold()
    deployment.submit("/", json={})
    fal_clock.advance(hours=2)
    fal_clock.move_to(fal_clock.now() + timedelta(hours=2))
    assert deployment.run_next().response.status_code == 200
    assert names(deployment) == ["runner-1"]


def test_a_handler_at_work_does_not_take_it_either(deploy, fal_clock):
    deployment = deploy(Counting, request_timeout=60)
    deployment.post("/", json={})
    calls = [deployment.submit("/", json={}) for _ in range(3)]
    fal_clock.advance(hours=2)
    assert [len(call.attempts) for call in calls] == [1, 1, 1]


def test_a_sleep_elsewhere_does_not_take_the_time_of_a_start(deploy_in_threads):
    has_begun = threading.Event()

    class Starting(fal.App):
        def setup(self):
            has_begun.set()
            threading.Event().wait(0.05)  # real work

        @fal.endpoint("/")
        def answer(self) -> dict:
            return {}

    waiting = deploy_in_threads(Waiting, "tester/waiting")
    waiting.post("/", json={"seconds": 0})
    starting = deploy_in_threads(Starting, "tester/starting", startup_timeout=60)
    call = starting.submit("/")
    has_begun.wait()
    waiting.post("/", json={"seconds": 3600})
    assert call.result().status_code == 200
    assert [line for line in starting.history if "did not start" in line] == []


# --- one by one -----------------------------------------------------------------------------------


def test_a_held_queue_runs_call_by_call(deploy):
    deployment = deploy(Counting, max_concurrency=1)
    deployment.hold()
    calls = [deployment.submit("/", json={}) for _ in range(3)]
    assert [call.position for call in calls] == [0, 1, 2]
    assert deployment.run_next() is calls[0]
    assert [call.status for call in calls] == ["COMPLETED", "IN_QUEUE", "IN_QUEUE"]
    deployment.release()
    assert [call.result().json()["count"] for call in calls] == [1, 2, 3]


def test_the_test_chooses_the_runner(deploy):
    deployment = deploy(Counting, min_concurrency=2)
    deployment.hold()
    for _ in range(3):
        deployment.submit("/", json={})
    chosen = [deployment.runners[1], "runner-2", deployment.runners[0]]
    calls = [deployment.run_next(runner=runner) for runner in chosen]
    assert [call.result().json()["count"] for call in calls] == [1, 2, 1]


def test_a_retry_waits_for_the_test_as_well(deploy, fal_data):
    deployment = deploy(Answering)
    deployment.hold()
    call = deployment.submit("/", json={"statuses": [503, 200]})
    assert deployment.run_next().status == "IN_QUEUE"
    assert fal_data.read("runs") == b"run\n"
    assert deployment.run_next() is call
    assert call.status == "COMPLETED"


def test_two_calls_side_by_side_as_the_test_has_it(deploy, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    deployment = deploy(Fetching)
    deployment.hold()
    for _ in range(2):
        deployment.submit("/")
    first = deployment.start_next(runner="runner-1")
    gate.wait()
    second = deployment.start_next(runner="runner-2")
    assert (first.status, second.status) == ("IN_PROGRESS", "IN_PROGRESS")
    gate.open()
    assert [call.result().json() for call in (first, second)] == [{"size": 1}] * 2


def test_low_priority_comes_last(deploy):
    deployment = deploy(Counting, max_concurrency=1)
    deployment.hold()
    low = deployment.submit("/", json={}, headers={"X-Fal-Queue-Priority": "low"})
    normal = deployment.submit("/", json={})
    assert deployment.run_all() == [normal, low]


def test_a_hint_finds_the_runner_that_gave_it(deploy):
    class Hinting(fal.App):
        def setup(self) -> None:
            self.seen = []

        def provide_hints(self) -> list[str]:
            return self.seen

        @fal.endpoint("/")
        def load(self, input: dict) -> dict:
            self.seen.append(input["model"])
            return {}

    deployment = deploy(Hinting, min_concurrency=2)
    deployment.hold()
    deployment.submit("/", json={"model": "other"})
    deployment.submit("/", json={"model": "mine"})
    deployment.run_next(runner="runner-1")
    deployment.run_next(runner="runner-2")
    hinted = deployment.submit("/", json={"model": "mine"}, headers={"X-Fal-Runner-Hint": "mine"})
    deployment.run_next()
    assert hinted.attempts[0].runner == "runner-2"


def served_by(fal_gateway, deployment, seed):
    """Which call ran when, and where."""
    fal_gateway.explore(seed)
    calls = [deployment.submit("/", json={}) for _ in range(6)]
    ran = deployment.run_all()
    return [(calls.index(call), call.attempts[0].runner) for call in ran]


@pytest.fixture
def held(deploy):
    """Two warm runners and a queue that is held."""
    deployment = deploy(Counting, min_concurrency=2, max_concurrency=2)
    deployment.hold()
    return deployment


def test_a_seed_chooses_the_same_each_time(fal_gateway, held):
    once = served_by(fal_gateway, held, seed=7)
    assert served_by(fal_gateway, held, seed=7) == once
    assert sorted(number for number, _ in once) == list(range(6))


def test_other_seeds_choose_otherwise(fal_gateway, held):
    assert len({tuple(served_by(fal_gateway, held, seed)) for seed in range(4)}) == 4


@pytest.mark.fal(max_concurrency=3, request_timeout=7, startup_timeout=8)
def test_the_account_says_what_neither_app_nor_deploy_does(deploy):
    scaling = deploy(Counting).scaling
    assert (scaling.max_concurrency, scaling.request_timeout, scaling.startup_timeout) == (3, 7, 8)


def test_processes_are_told_under_which_name_they_are_deployed(fal_gateway):
    deployment = fal_gateway.deploy(
        "somebody/else", Counting, isolation="process", min_concurrency=1
    )
    seen = deployment.runners[0].run(os.getenv, "FAL_APP_NAME")
    assert (seen, deployment.owner) == ("else", "somebody")


@pytest.mark.fal(exploration_seed=3)
def test_the_seed_of_the_settings_is_in_the_ledger(deploy, fal_ledger):
    deploy(Counting)
    assert "exploring with seed 3: fal_gateway.explore(3)" in [
        event.text for event in fal_ledger.events
    ]


# --- headers --------------------------------------------------------------------------------------


def test_the_app_sees_what_the_gateway_adds(deploy):
    call = deploy(Counting).submit("/headers", headers={"X-Mine": "1"})
    seen = call.result().json()
    assert seen["x-fal-request-id"] == call.request_id
    assert seen["x-fal-endpoint"] == "tester/app/headers"
    assert seen["x-fal-caller-user-id"] == "tester"
    assert seen["x-fal-cdn-token"].startswith("emulated-")
    assert seen["x-mine"] == "1"


def test_a_third_party_is_a_hash(deploy):
    seen = deploy(Counting).post("/headers", caller="somebody").json()
    assert len(seen["x-fal-caller-user-id"]) == 64


def test_callers_cannot_set_the_gateways_headers(deploy):
    deployment = deploy(Counting)
    call = deployment.submit("/headers", headers={"X-Fal-Request-Id": "mine", "X-Fal-Foo": "1"})
    seen = call.result().json()
    assert seen["x-fal-request-id"] == call.request_id
    assert "x-fal-foo" not in seen
    assert "call-1: x-fal-request-id left out, callers cannot set it" in sentences(deployment)


def test_what_is_for_the_gateway_goes_no_further(deploy):
    headers = {"X-Fal-No-Retry": "1", "X-Fal-Store-IO": "0", "X-Fal-Request-Timeout": "9"}
    seen = deploy(Counting).post("/headers", headers=headers).json()
    assert not [name for name in seen if name in {header.lower() for header in headers}]


def test_lifecycle_and_app_headers_reach_the_app(deploy):
    headers = {
        "x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 60}',
        "x-app-fal-disable-fallback": "1",
    }
    seen = deploy(Counting).post("/headers", headers=headers).json()
    assert {name: seen[name] for name in headers} == headers


# --- what cannot work -----------------------------------------------------------------------------


def test_a_result_that_waits_for_the_clock_says_so(deploy):
    call = deploy(Counting, scaling_delay=30).submit("/", json={})
    with pytest.raises(EmulatorError) as caught:
        call.result()
    assert str(caught.value).startswith("call-1 waits for the clock: scaling_delay=30, at ")
    assert str(caught.value).endswith("Write fal_clock.advance(seconds=30) before result().")


def test_a_result_of_a_held_queue_says_so(deploy):
    deployment = deploy(Counting)
    deployment.hold()
    call = deployment.submit("/", json={})
    deployment.settle()
    with pytest.raises(EmulatorError, match=r"^call-1 waits in a queue that is held. Write deplo"):
        call.result()


def test_a_direct_call_that_waits_moves_a_stopped_clock(deploy, fal_clock):
    began = fal_clock.now()
    assert deploy(Counting, scaling_delay=30).post("/", json={}).status_code == 200
    assert (fal_clock.now() - began).total_seconds() == 30


def test_on_a_running_clock_it_says_so_instead(deploy, fal_clock):
    fal_clock.resume()
    with pytest.raises(EmulatorError, match=r"scaling_delay=30. Stop the clock first, so that"):
        deploy(Counting, scaling_delay=30).post("/", json={})


def test_run_next_needs_a_held_queue(deploy):
    with pytest.raises(EmulatorError, match=r"Write deployment\.hold\(\) before the calls"):
        deploy(Counting).run_next()


def test_run_next_needs_a_call(deploy):
    deployment = deploy(Counting)
    deployment.hold()
    with pytest.raises(EmulatorError, match=r"^run_next\(\): nothing is queued. Write deploymen"):
        deployment.run_next()


def test_run_next_needs_a_free_runner(deploy):
    deployment = deploy(Counting)
    deployment.hold()
    deployment.submit("/", json={})
    with pytest.raises(EmulatorError) as caught:
        deployment.run_next(runner="runner-9")
    assert str(caught.value) == ("run_next(runner='runner-9'): it is not free. Free is: runner-1.")


@pytest.mark.parametrize(
    ("name", "app", "message"),
    [
        (
            "app",
            Counting,
            "deploy() was given 'app'. Write owner and app: deploy(\"tester/my-app\", MyApp).",
        ),
        (
            "tester/app",
            int,
            "<class 'int'> is neither a subclass of fal.App nor an answer. Write "
            'deploy("tester/app", MyApp), without instantiating it; or what an app of somebody '
            'else\'s answers: deploy("tester/app", {"images": []}), or a function of its '
            'arguments: deploy("tester/app", lambda arguments: {"seed": arguments["seed"]}).',
        ),
        (
            "tester/app/path",
            Counting,
            "deploy() was given 'tester/app/path'. Write owner and app: "
            'deploy("tester/my-app", MyApp).',
        ),
    ],
)
def test_what_is_no_app_is_refused(fal_gateway, name, app, message):
    with pytest.raises(EmulatorError) as caught:
        fal_gateway.deploy(name, app)
    assert str(caught.value) == message


def test_the_same_name_twice_is_refused(deploy):
    deploy(Counting)
    with pytest.raises(EmulatorError) as caught:
        deploy(Newer)
    assert str(caught.value) == (
        "tester/app is deployed already. Write deployment.redeploy(Newer) for a new version, or "
        "deploy under another name."
    )


def test_an_error_of_the_tests_own_is_no_crash_of_the_app(fal_gateway):
    with pytest.raises(EmulatorError, match="isolation='nonsense'"):
        fal_gateway.deploy("tester/app", Counting, isolation="nonsense", min_concurrency=1)


# --- the end --------------------------------------------------------------------------------------


def test_what_is_queued_at_the_end_is_dropped_and_noted(fal_emulator):
    deployment = fal_emulator.gateway.deploy("tester/app", Counting)
    deployment.hold()
    call = deployment.submit("/", json={})
    fal_emulator.stop()
    assert sentences(deployment)[-1] == "dropped call-1 POST / at the end of the test"
    assert repr(call) == "<Call call-1 POST /: dropped at the test's end>"
    fal_emulator.start()


def test_a_handler_that_is_held_at_the_end_keeps_nothing(fal_emulator):
    fal_emulator.origin.serve(URL, b"x")
    gate = fal_emulator.faults.gate()
    fal_emulator.gateway.deploy("tester/app", Fetching).submit("/")
    gate.wait()
    fal_emulator.stop()
    assert [one.name for one in threading.enumerate() if one.name.startswith("fal-call")] == []
    fal_emulator.start()


def test_a_setup_that_is_held_at_the_end_keeps_nothing(fal_emulator):
    class Downloading(fal.App):
        def setup(self) -> None:
            httpx.get(URL)

        @fal.endpoint("/")
        def answer(self) -> dict:
            return {}

    fal_emulator.origin.serve(URL, b"x")
    gate = fal_emulator.faults.gate()
    fal_emulator.gateway.deploy("tester/app", Downloading, min_concurrency=2, wait=False)
    gate.wait()
    fal_emulator.stop()
    assert [one.name for one in threading.enumerate() if one.name.startswith("fal-boot")] == []
    fal_emulator.start()


def test_its_repr_tells_where_everything_is(deploy):
    deployment = deploy(Counting, min_concurrency=1)
    deployment.hold()
    call = deployment.submit("/", json={})
    assert repr(deployment) == "<Deployment tester/app: runner-1 IDLE; 1 queued>"
    assert repr(call) == "<Call call-1 POST /: IN_QUEUE>"
    deployment.run_next()
    assert repr(call) == "<Call call-1 POST /: 200 after 1 attempt>"


# --- in pytest -----------------------------------------------------------------------------------


def test_a_failing_tests_report_shows_the_deployments(pytester):
    pytester.makepyfile(
        """
        import fal

        class Answering(fal.App):
            @fal.endpoint("/")
            def answer(self) -> dict:
                return {}

        def test_it(fal_gateway):
            deployment = fal_gateway.deploy("tester/app", Answering, max_concurrency=1)
            deployment.submit("/").result()
            deployment.hold()
            deployment.submit("/")
            assert False
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*fal: Deployment tester/app: runner-1 IDLE; 1 queued*",
            "*:*:* started runner-1 (cold start: 1 queued, 0 running, max 1)",
            "Call call-1 POST /: 200 after 1 attempt",
            "Call call-2 POST /: IN_QUEUE",
        ]
    )


def test_what_still_goes_on_comes_to_rest_before_pytest_reads_the_output(pytester):
    pytester.makepyfile(
        """
        import fal

        class Printing(fal.App):
            def setup(self):
                for number in range(2000):
                    print("line", number)

            @fal.endpoint("/")
            def answer(self) -> dict:
                print("answered")
                return {}

        def test_it(fal_gateway):
            fal_gateway.deploy("tester/app", Printing, concurrency_buffer=1, wait=False).submit("/")
            assert False
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    assert result.outlines.count("line 1999") >= 2  # pytest's, and each runner's own
    assert "answered" in result.outlines
    assert "Captured stdout teardown" not in result.stdout.str()


def test_the_owner_is_no_third_party_by_whatever_name(deploy, fal_emulator):
    deployment = deploy(Counting)
    for caller in (None, fal_emulator.owner, "tester", fal_emulator.owner.id):
        assert deployment.post("/headers", caller=caller).json()["x-fal-caller-user-id"] == "tester"


def test_a_caller_may_be_named_by_id(deploy, fal_emulator):
    bob, deployment = fal_emulator.user("bob"), deploy(Counting)
    ids = {
        deployment.post("/headers", caller=who).json()["x-fal-caller-user-id"]
        for who in (bob, "bob", bob.id)
    }
    assert len(ids) == 1
