"""fal's own test client: against what is deployed, and with apps that are spawned for a test."""

from __future__ import annotations

import queue
import sys
import threading
import weakref

import fal
import httpx
import pytest
from apps_for_clients import Greeting, Name, Said, Short
from fal.app import AppClient, AppClientError, AppSpawnInfo

from emulator.errors import EmulatorError

# AppClient calls .dict() on models (see the gallery of bugs).
pytestmark = pytest.mark.filterwarnings("ignore:The `dict` method is deprecated")


@pytest.fixture(autouse=True)
def stopped(fal_clock):
    fal_clock.freeze()


@pytest.fixture(params=["thread", "process"])
def deployment(request, fal_gateway):
    return fal_gateway.deploy("tester/greeting", Greeting, isolation=request.param)


# --- against a deployment -------------------------------------------------------------------------


def test_a_deployment_has_a_url(fal_gateway):
    assert fal_gateway.deploy("tester/greeting", Greeting).url == "https://fal.run/tester/greeting"


def test_an_endpoint_answers_a_model(deployment):
    client = AppClient(Greeting, deployment.url)
    assert client.greet(Name(name="Ada")) == Said(text="Hello, Ada")


def test_an_endpoint_with_a_path(deployment):
    client = AppClient(Greeting, deployment.url)
    assert client.part({"name": "Ada"}) == Said(text="Goodbye, Ada")


def test_a_dictionary_will_do(deployment):
    assert AppClient(Greeting, deployment.url).greet({"name": "Ada"}) == Said(text="Hello, Ada")


def test_the_application_is_known_by_its_url(fal_gateway):
    deployment = fal_gateway.deploy("tester/greeting", Greeting)
    assert AppClient(Greeting, deployment.url).application == "tester/greeting"


def test_health(deployment):
    assert set(AppClient(Greeting, deployment.url).health()) == {"version"}


def test_an_error_of_the_app(deployment):
    with pytest.raises(AppClientError) as error:
        AppClient(Greeting, deployment.url).fail(Name(name="Ada"))
    assert error.value.status_code == 418
    assert error.value.message == (
        'Failed to POST https://fal.run/tester/greeting/fail: 418 {"detail":"a teapot"}'
    )
    assert error.value.headers["x-fal-served-from"] == "runner-1"


def test_a_model_that_is_not_valid(deployment):
    with pytest.raises(AppClientError) as error:
        AppClient(Greeting, deployment.url).greet({"name": ["Ada"]})
    assert error.value.status_code == 422


def test_nothing_is_deployed(fal_gateway):
    with pytest.raises(AppClientError) as error:
        AppClient(Greeting, "https://fal.run/tester/greeting").greet({"name": "Ada"})
    assert error.value.status_code == 404
    assert 'fal_gateway.deploy(\\"tester/greeting\\", MyApp)' in error.value.message


def test_the_key_is_sent(deployment, fal_ledger):
    AppClient(Greeting, deployment.url).greet({"name": "Ada"})
    (exchange,) = fal_ledger.requests(host="fal.run")
    assert exchange.user == "tester"


def test_acting_as_another_user(fal_emulator, fal_gateway):
    deployment = fal_gateway.deploy("tester/greeting", Greeting)
    with fal_emulator.user("bob"):
        AppClient(Greeting, deployment.url).greet({"name": "Ada"})
    (call,) = deployment.calls
    assert call.caller == "bob"


def test_without_a_key_it_is_refused(fal_gateway, monkeypatch):
    deployment = fal_gateway.deploy("tester/greeting", Greeting)
    monkeypatch.delenv("FAL_KEY")
    with pytest.raises(AppClientError) as error:
        AppClient(Greeting, deployment.url).greet({"name": "Ada"})
    assert error.value.status_code == 401


def test_a_timeout_is_on_the_clock(fal_gateway, fal_clock):
    deployment = fal_gateway.deploy("tester/greeting", Greeting)
    before = fal_clock.now()
    with pytest.raises(httpx.ReadTimeout):
        AppClient(Greeting, deployment.url, timeout=7).think({"seconds": 60})
    assert (fal_clock.now() - before).total_seconds() >= 7


# --- spawned --------------------------------------------------------------------------------------


def test_connect(fal_gateway):
    with AppClient.connect(Greeting) as client:
        assert client.greet(Name(name="Ada")) == Said(text="Hello, Ada")
        assert client.url == "https://fal.run/tester/greeting-1"
    assert fal_gateway.deployments == {}


def test_connect_ends_the_apps_runners(fal_emulator):
    with AppClient.connect(Greeting) as client:
        client.health()
    assert [runner.state for runner in fal_emulator.runners] == ["TERMINATED"]


def test_connect_prints_what_the_app_prints(capsys, fal_gateway, fal_clock):
    at = fal_clock.now()
    printed = ""
    with AppClient.connect(Greeting) as client:
        client.greet({"name": "Ada"})
        for _ in range(1000):  # its thread looks ten times a second
            printed += capsys.readouterr().out
            if "[stdout]" in printed:
                break
            threading.Event().wait(0.01)
    assert f"{at:%m/%d/%Y %H:%M:%S} [global]" in printed
    assert "[stdout]  greeting Ada" in printed


def test_connect_ends_what_it_began_when_the_test_fails(fal_gateway):
    with pytest.raises(ZeroDivisionError):
        with AppClient.connect(Greeting):
            raise ZeroDivisionError
    assert fal_gateway.deployments == {}


def test_two_at_once(fal_gateway):
    with AppClient.connect(Greeting) as first, AppClient.connect(Greeting) as second:
        assert [first.application, second.application] == [
            "tester/greeting-1",
            "tester/greeting-2",
        ]
        assert second.greet({"name": "Ada"}) == Said(text="Hello, Ada")


def test_a_setup_that_fails(fal_gateway):
    class Failing(fal.App):
        def setup(self) -> None:
            raise OSError("no weights")

    with pytest.raises(AppClientError) as error:
        with AppClient.connect(Failing):
            pytest.fail("it has no setup")
    assert error.value.status_code == 503
    assert error.value.message.startswith("Health check failed with non-retryable error: 503")
    assert fal_gateway.deployments == {}


def test_spawn(fal_gateway):
    info = Greeting.spawn()
    assert type(info) is AppSpawnInfo
    assert info.url == "https://fal.run/tester/greeting-1"
    assert info.application == "tester/greeting-1"
    assert list(fal_gateway.deployments) == ["tester/greeting-1"]


def test_spawn_starts_no_runner_before_it_is_waited_for(fal_gateway):
    info = Greeting.spawn()
    (deployment,) = fal_gateway.deployments.values()
    assert deployment.runners == []
    info.wait()
    assert [runner.state for runner in deployment.runners] == ["IDLE"]


def test_wait_gives_up_on_the_clock(fal_gateway, fal_clock):
    info = Greeting.spawn()
    info.stream.cancel()
    before = fal_clock.now()
    with pytest.raises(AppClientError) as error:
        info.wait(startup_timeout=3, health_check_interval=1)
    assert error.value.message == (
        "Health check failed after 3s (3 attempts). Last error: Server not ready (HTTP 404)"
    )
    assert (fal_clock.now() - before).total_seconds() == 3


def test_a_spawned_app_is_called_by_whatever_client(fal_gateway):
    info = Greeting.spawn()
    answer = fal.apps.run(info.application, {"name": "Ada"})
    assert answer == {"text": "Hello, Ada"}


def test_logs_are_what_its_runners_print(fal_gateway, fal_clock):
    info = Greeting.spawn()
    fal.apps.run(info.application, {"name": "Ada"})
    log = info.logs.get_nowait()
    assert (log.message, log.level.name, log.source.value, log.timestamp) == (
        "greeting Ada",
        "STDOUT",
        "user",
        fal_clock.now(),
    )
    with pytest.raises(queue.Empty):
        info.logs.get_nowait()


def test_the_name_of_an_app_is_its_own(fal_gateway):
    assert Short.spawn().application == "tester/brief-1"


def test_the_account_owns_it(fal_emulator):
    fal_emulator.reset(fal_emulator.settings.model_copy(update={"nickname": "ada"}))
    assert Greeting.spawn().application == "ada/greeting-1"


def test_a_name_that_is_deployed_is_left_alone(fal_gateway):
    fal_gateway.deploy("tester/greeting-1", Greeting)
    assert Greeting.spawn().application == "tester/greeting-2"


def test_a_spawned_app_that_nobody_ends_is_ended_with_the_test(fal_emulator):
    Greeting.spawn().wait()
    (runner,) = fal_emulator.runners
    fal_emulator.stop()
    assert runner.state == "TERMINATED"
    fal_emulator.start()


def test_functions_are_not_spawned(fal_emulator):
    @fal.function("virtualenv")
    def add() -> int:
        return 1

    with pytest.raises(EmulatorError) as error:
        add.spawn()
    assert str(error.value) == (
        "add.spawn() runs a function on the platform, and only apps are emulated. Run it here with "
        "add.func(...), or make it an endpoint of a fal.App and write MyApp.spawn()."
    )


def test_the_sdks_own_way_comes_back(fal_emulator):
    from fal.api import FalServerlessHost

    fal_emulator.stop()
    modules = [fal.App.spawn.__module__, FalServerlessHost.spawn.__module__]
    fal_emulator.start()
    assert modules == ["fal.app", "fal.api.api"]


def spawn_another():
    Short.spawn()


def test_a_runner_in_a_process_spawns_nothing(fal_runner):
    runner = fal_runner(Greeting, isolation="process")
    with pytest.raises(EmulatorError) as error:
        runner.run(spawn_another)
    assert str(error.value) == (
        "Short.spawn() was called on a runner in a process, where it is not emulated. Spawn it in "
        "the test, and tell the app its url."
    )


def test_a_stream_that_a_thread_prints_to_is_not_freed(fal_emulator):
    runner = fal_emulator.runner(Greeting)
    stream = weakref.ref(sys.stdout)
    runner.stop()
    assert stream() is not None
    assert stream() is not sys.stdout
