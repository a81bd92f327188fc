"""What is the same for runners in threads and in processes: each test is of both.

Without postponed annotations: the names in them do not go along when the SDK pickles an app, and
then every request is answered 422 (see the gallery of bugs).
"""

import functools
import os
import pathlib
import subprocess
import threading

import fal
import httpx
import pytest
from apps import Clinging, Name, Other, Uploader
from fal.ref import get_current_app

from emulator.errors import EmulatorError
from emulator.runners.runner import RunnerError


@pytest.fixture(params=["thread", "process"])
def fal_runner(request, fal_emulator):
    return functools.partial(fal_emulator.runner, isolation=request.param)


def test_a_booted_app_is_idle_and_healthy(fal_runner):
    runner = fal_runner(Uploader)
    assert runner.state == "IDLE"
    assert runner.get("/health").json() == {"version": "unknown"}


def test_setup_runs_in_state_setup_and_requests_in_state_running(fal_runner):
    runner = fal_runner(Uploader)
    assert runner.run(lambda: get_current_app().states) == ["SETUP"]
    assert runner.post("/who", json={}).json()["state"] == "RUNNING"


def test_get_on_an_endpoint_is_405_as_on_the_platform(fal_runner):
    assert fal_runner(Uploader).get("/who").status_code == 405


def test_the_request_carries_what_the_gateway_adds(fal_runner):
    answer = fal_runner(Uploader).post("/who", json={}).json()
    assert len(answer["request_id"]) == 36
    assert answer["endpoint"] == "tester/app/who"
    assert answer["is_me"] is True


def test_headers_of_the_test_win_over_those_of_the_gateway(fal_runner):
    answer = fal_runner(Uploader).post("/who", json={}, headers={"x-fal-request-id": "mine"})
    assert answer.json()["request_id"] == "mine"


def test_the_caller_and_a_token_for_its_files_come_with_a_request(fal_runner, fal_emulator):
    answer = fal_runner(Uploader).post("/caller", json={}).json()
    assert answer["x-fal-caller-user-id"] == "tester"
    assert answer["x-fal-cdn-token"].startswith("emulated-")


@pytest.mark.parametrize("path", ["/", "/async"])
def test_an_upload_carries_request_id_and_lifecycle_of_its_request(fal_runner, fal_cdn, path):
    response = fal_runner(Uploader).post(
        path,
        json={"name": "a.txt"},
        headers={
            "x-fal-request-id": "r-1",
            "x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 60}',
        },
    )
    info = fal_cdn.info(response.json()["url"])
    assert info.request_id == "r-1"
    assert info.lifecycle == {"expiration_duration_seconds": 60}
    assert (info.expires_at - info.created_at).total_seconds() == 60


def test_an_upload_from_the_apps_own_thread_loses_the_request_as_on_the_platform(
    fal_runner, fal_cdn
):
    response = fal_runner(Uploader).post("/thread", json={}, headers={"x-fal-request-id": "r-1"})
    assert fal_cdn.info(response.json()["url"]).request_id is None


def test_the_ledger_names_the_runner_that_sent_a_request(fal_runner, fal_ledger):
    fal_runner(Uploader)
    fal_runner(Uploader).post("/", json={})
    assert {exchange.runner for exchange in fal_ledger.requests(method="PUT")} == {"runner-2"}


def test_two_different_apps_alive_at_once_each_have_their_own_context(fal_runner, fal_cdn):
    one, two = fal_runner(Uploader), fal_runner(Other)
    first = one.post("/who", json={}, headers={"x-fal-request-id": "1"}).json()
    second = two.post("/who", json={}, headers={"x-fal-request-id": "2"}).json()
    assert (first["app"], first["isinstance"], first["request_id"]) == ("Uploader", True, "1")
    assert second == {"app": "Other", "request_id": "2"}
    for runner, identifier in ((one, "1"), (two, "2")):
        url = runner.post("/", json={}, headers={"x-fal-request-id": identifier}).json()["url"]
        assert fal_cdn.info(url).request_id == identifier


def test_tmp_is_the_runners_own_for_subprocesses_too(fal_runner, fal_tmp):
    one, two = fal_runner(Uploader), fal_runner(Uploader)
    one.run(lambda: subprocess.run(["touch", "/tmp/from-a-subprocess"], check=True))
    assert one.tmp.tree() == ["from-a-subprocess"]
    assert two.run(lambda: os.path.exists("/tmp/from-a-subprocess")) is False
    assert fal_tmp.tree() == []


def test_tmp_is_kept_between_requests_and_gone_at_shutdown(fal_runner):
    runner = fal_runner(Uploader)
    runner.run(lambda: pathlib.Path("/tmp/warm").write_text("1"))
    assert runner.run(lambda: pathlib.Path("/tmp/warm").exists())
    runner.stop()
    assert runner.tmp.tree() == []


@pytest.mark.fal(filesystem="namespace")
def test_a_limit_on_a_runners_tmp_is_the_kernels(fal_runner):
    runner = fal_runner(Uploader)
    runner.tmp.limit(64 * 1024)
    with pytest.raises(OSError, match="No space left"):
        runner.run(lambda: pathlib.Path("/tmp/big").write_bytes(b"x" * 200_000))


@pytest.mark.fal(tmp_size=64 * 1024)
def test_the_setting_tmp_size_limits_every_runner(fal_runner):
    with pytest.raises(OSError, match="No space left"):
        fal_runner(Uploader).run(lambda: pathlib.Path("/tmp/big").write_bytes(b"x" * 200_000))


@pytest.mark.fal(filesystem="namespace")
def test_data_stays_and_a_limit_on_it_reaches_a_running_runner(fal_runner, fal_data):
    runner = fal_runner(Uploader)
    runner.run(lambda: pathlib.Path("/data/kept").write_text("1"))
    fal_data.limit(64 * 1024)
    with pytest.raises(OSError, match="No space left"):
        runner.run(lambda: pathlib.Path("/data/big").write_bytes(b"x" * 200_000))
    runner.run(lambda: os.unlink("/data/big"))
    runner.stop()
    assert fal_data.tree() == ["kept"]


@pytest.mark.fal(filesystem="namespace")
def test_read_only_data_reaches_a_running_runner(fal_runner, fal_data):
    runner = fal_runner(Uploader)
    with fal_data.read_only(), pytest.raises(OSError, match="Read-only"):
        runner.run(lambda: pathlib.Path("/data/x").write_text("1"))
    runner.run(lambda: pathlib.Path("/data/x").write_text("1"))


class Dying(fal.App):
    def setup(self):
        self.log = pathlib.Path("/data/log")
        self.released = threading.Event()

    def note(self, word):
        with self.log.open("a") as file:
            file.write(f"{word} {os.environ['FAL_RUNNER_STATE']}\n")

    @fal.endpoint("/")
    def work(self, input: Name) -> dict:
        self.released.wait(10)
        self.note("worked")
        return {}

    def handle_exit(self):
        self.note("exit")
        self.released.set()

    def teardown(self):
        self.note("teardown")


def test_stop_is_handle_exit_then_requests_in_flight_then_teardown(fal_runner, fal_data):
    runner = fal_runner(Dying)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(runner.post("/", json={}).status_code))
    thread.start()
    while runner.state != "RUNNING":
        pass
    runner.stop()
    thread.join()
    assert answers == [200]
    assert fal_data.read("log").decode().splitlines() == [
        "exit RUNNING",
        "worked RUNNING",
        "teardown TERMINATING",
    ]


def test_a_second_stop_does_nothing(fal_runner, fal_data):
    runner = fal_runner(Dying)
    runner.stop()
    runner.stop()
    assert fal_data.read("log").decode().count("teardown") == 1


def test_kill_runs_neither_handle_exit_nor_teardown(fal_runner, fal_data):
    runner = fal_runner(Dying)
    runner.kill()
    assert runner.state == "TERMINATED"
    assert fal_data.tree() == []


def test_the_end_of_a_test_shuts_its_runners_down(pytester):
    pytester.makepyfile(
        """
        import fal, pathlib

        class App(fal.App):
            @fal.endpoint("/")
            def f(self) -> dict:
                return {}
            def teardown(self):
                import sys
                sys.__stderr__.write("torn down\\n")

        def test_it(fal_runner):
            fal_runner(App)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-s")
    result.assert_outcomes(passed=1)
    assert "torn down" in result.stderr.str()


def test_an_error_in_teardown_is_raised_by_stop(fal_runner):
    runner = fal_runner(Clinging)
    with pytest.raises(ValueError, match="cannot let go"):
        runner.stop()
    assert runner.state == "TERMINATED"


def test_an_error_in_setup_is_raised_by_fal_runner(fal_runner, fal_emulator):
    class Broken(fal.App):
        def setup(self):
            raise RuntimeError("no weights")

        @fal.endpoint("/")
        def f(self) -> dict:
            return {}

    with pytest.raises(RuntimeError, match="no weights"):
        fal_runner(Broken)
    assert get_current_app() is None


class Stuck(fal.App):
    termination_grace_period_seconds = 1

    @fal.endpoint("/")
    def f(self) -> dict:
        return {}

    async def teardown(self):
        import asyncio

        await asyncio.sleep(60)


@pytest.mark.fal(termination_grace_period=0.05)
def test_teardown_is_cut_off_when_the_grace_period_is_over(fal_runner):
    class Slow(Stuck):
        termination_grace_period_seconds = None

    runner = fal_runner(Slow)
    runner.stop()
    assert runner.state == "TERMINATED"
    assert runner.end == "killed: not ended 0.05 s after SIGTERM"


def test_a_runner_that_ended_takes_no_more_requests(fal_runner):
    runner = fal_runner(Uploader)
    runner.stop()
    with pytest.raises(RunnerError) as caught:
        runner.post("/", json={})
    assert str(caught.value) == (
        "runner-1 is TERMINATED and takes no more requests. Boot another one: fal_runner(Uploader)."
    )


def test_the_events_of_its_life_are_in_the_ledger(fal_runner, fal_ledger):
    fal_runner(Uploader).stop()
    assert [event.text for event in fal_ledger.events] == [
        "runner-1 PENDING",
        "runner-1 SETUP",
        "runner-1 IDLE",
        "runner-1 DRAINING",
        "runner-1 TERMINATING",
        "runner-1 TERMINATED",
    ]


def test_a_runners_environment_is_the_platforms(fal_runner):
    runner = fal_runner(Uploader, env={"MY_SECRET": "s3cret"})
    environment = runner.run(lambda: dict(os.environ))
    assert environment["FAL_APP_NAME"] == "app"
    assert environment["FAL_USER_NICKNAME"] == "tester"
    assert environment["FAL_REGION"] == "us-east"
    assert environment["HF_HOME"] == "/data/.cache/huggingface"
    assert environment["IS_ISOLATE_AGENT"] == "1"
    assert environment["MY_SECRET"] == "s3cret"
    runner.stop()
    for name in ("FAL_APP_NAME", "HF_HOME", "IS_ISOLATE_AGENT", "MY_SECRET", "FAL_RUNNER_STATE"):
        assert name not in os.environ


def test_output_is_the_runners_own(fal_runner, capsys):
    class Printing(fal.App):
        @fal.endpoint("/")
        def f(self, input: Name) -> dict:
            print("hello from", input.name)
            return {}

    one, two = fal_runner(Printing), fal_runner(Printing)
    one.post("/", json={"name": "one"})
    two.post("/", json={"name": "two"})
    assert "hello from one" in one.output
    assert "hello from two" not in one.output
    assert "hello from two" in two.output
    shown = capsys.readouterr().out
    assert "hello from one" in shown
    assert "Python packages installed" in one.output
    assert "Python packages installed" not in shown


@pytest.fixture
def booted(fal_runner):
    return fal_runner(Uploader)


def test_output_of_a_function_on_a_runner_that_a_fixture_has_booted(booted):
    booted.run(print, "hello from a function")
    assert "hello from a function" in booted.output


def test_an_unhandled_exception_is_500_and_its_traceback_is_in_the_output(fal_runner):
    class Raising(fal.App):
        @fal.endpoint("/")
        def f(self) -> dict:
            raise KeyError("lost")

    runner = fal_runner(Raising)
    response = runner.post("/", json={})
    assert (response.status_code, response.json()) == (500, {"detail": "Internal Server Error"})
    assert "KeyError" in runner.output


def test_run_returns_results_exceptions_and_awaits_coroutines(fal_runner):
    runner = fal_runner(Uploader)

    async def on_the_loop(value):
        return value + 1

    assert runner.run(max, 1, 2) == 2
    assert runner.run(on_the_loop, 1) == 2
    with pytest.raises(ZeroDivisionError):
        runner.run(lambda: 1 / 0)


def test_client_is_a_plain_httpx_client(fal_runner):
    client = fal_runner(Uploader).client
    assert isinstance(client, httpx.Client)
    response = client.post("/nowhere", json={})
    assert response.status_code == 404
    assert response.json() == {"detail": "Path /nowhere not found"}


def test_what_is_no_app_is_refused(fal_runner):
    with pytest.raises(EmulatorError) as caught:
        fal_runner(Uploader(_allow_init=True))
    assert "Write for example fal_runner(MyApp), without instantiating it." in str(caught.value)


def test_an_app_works_under_a_stopped_clock(fal_runner, fal_clock, fal_cdn):
    fal_clock.freeze()
    runner = fal_runner(Uploader)
    url = runner.post("/", json={}).json()["url"]
    assert fal_cdn.info(url).created_at == fal_clock.now()
    runner.stop()


def test_a_token_that_the_caller_sent_travels_to_the_cdn_but_not_into_the_ledger(
    fal_runner, fal_ledger
):
    fal_runner(Uploader).post("/", json={}, headers={"x-fal-cdn-token": "caller-secret"})
    initiate = fal_ledger.requests(path="/storage/upload/initiate")[0]
    assert initiate.request_headers["x-fal-cdn-token"] == "***"
    assert "caller-secret" not in repr(fal_ledger.exchanges)
