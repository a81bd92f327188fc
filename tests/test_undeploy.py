"""An app is taken down: its runners end in order, who waits is told, the name is free again."""

from __future__ import annotations

from pathlib import Path

import fal
import fal_client
import httpx
import pytest

from emulator.errors import EmulatorError

URL = "https://example.com/slow.bin"
GONE = {"detail": "Application 'tester/app' not found: it was undeployed"}


class Writing(fal.App):
    @fal.endpoint("/")
    def answer(self) -> dict:
        return {"n": 1}

    def teardown(self) -> None:
        Path("/data/torn-down").touch()


class Fetching(fal.App):
    """Its handler waits for a server, so that a gate can hold it."""

    @fal.endpoint("/")
    def fetch(self) -> dict:
        return {"size": len(httpx.get(URL).content)}


class Starting(fal.App):
    """Its setup waits for a server."""

    def setup(self) -> None:
        httpx.get(URL)

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


def test_idle_runners_are_stopped_in_order(deploy, fal_data):
    deployment = deploy(Writing)
    deployment.post("/")
    (runner,) = deployment.runners
    deployment.undeploy()
    assert deployment.runners == []
    assert runner.state == "TERMINATED"
    assert fal_data.tree() == ["torn-down"]


def test_the_history_says_so(deploy):
    deployment = deploy(Writing)
    deployment.post("/")
    deployment.undeploy()
    assert [line.partition(" ")[2] for line in deployment.history[-2:]] == [
        "undeployed",
        "stopped runner-1 (undeployed)",
    ]


def test_a_running_call_is_finished(deploy, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    deployment = deploy(Fetching)
    call = deployment.submit("/")
    gate.wait()
    (runner,) = deployment.runners
    deployment.undeploy()
    gate.open()
    assert call.result().json() == {"size": 1}
    assert runner.state == "TERMINATED"


def test_a_waiting_call_is_answered_404(fal_gateway):
    deployment = fal_gateway.deploy("tester/app", Writing)
    deployment.hold()
    call = deployment.submit("/")
    deployment.undeploy()
    response = call.result()
    assert (response.status_code, response.json()) == (404, GONE)
    assert deployment.history[-1].endswith("call-1 ended with 404: tester/app was undeployed")


def test_a_call_that_waits_for_a_start_is_answered_404(fal_gateway, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    deployment = fal_gateway.deploy("tester/app", Starting)
    call = deployment.submit("/")
    gate.wait()
    deployment.undeploy()
    gate.open()
    assert call.result().status_code == 404


def test_a_runner_in_setup_is_stopped_when_it_is_ready(fal_gateway, fal_faults, fal_origin):
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    deployment = fal_gateway.deploy("tester/app", Starting, min_concurrency=1, wait=False)
    gate.wait()
    deployment.undeploy()
    gate.open()
    deployment.settle()
    assert deployment.runners == []
    assert deployment.history[-1].endswith("stopped runner-1 (undeployed)")


def test_minimum_concurrency_starts_nothing_any_more(fal_gateway, fal_clock):
    deployment = fal_gateway.deploy("tester/app", Writing, min_concurrency=1)
    deployment.undeploy()
    fal_clock.advance(hours=1)
    assert deployment.runners == []


def test_a_later_call_of_the_test_is_answered_404(fal_gateway):
    deployment = fal_gateway.deploy("tester/app", Writing)
    deployment.undeploy()
    assert deployment.post("/").json() == GONE


def test_clients_find_it_no_more(fal_gateway):
    fal_gateway.deploy("tester/app", Writing).undeploy()
    with pytest.raises(fal_client.FalClientHTTPError) as error:
        fal_client.run("tester/app", {})
    assert error.value.status_code == 404


def test_results_of_before_can_be_fetched(fal_gateway):
    deployment = fal_gateway.deploy("tester/app", Writing)
    handle = fal_client.submit("tester/app", {})
    handle.get()
    deployment.undeploy()
    assert handle.get() == {"n": 1}


def test_a_client_that_waits_gets_an_error(fal_gateway):
    deployment = fal_gateway.deploy("tester/app", Writing)
    deployment.hold()
    handle = fal_client.submit("tester/app", {})
    deployment.undeploy()
    with pytest.raises(fal_client.FalClientHTTPError) as error:
        handle.get()
    assert error.value.message == GONE["detail"]


def test_a_second_time_does_nothing(fal_gateway):
    deployment = fal_gateway.deploy("tester/app", Writing)
    deployment.undeploy()
    deployment.undeploy()
    assert [line for line in deployment.history if line.endswith("undeployed")] == [
        deployment.history[-1]
    ]


def test_the_name_can_be_deployed_again(fal_gateway):
    first = fal_gateway.deploy("tester/app", Writing)
    first.undeploy()
    second = fal_gateway.deploy("tester/app", Writing)
    first.undeploy()
    assert fal_gateway.deployments == {"tester/app": second}
    assert second.post("/").json() == {"n": 1}


def test_by_name(fal_gateway):
    fal_gateway.deploy("tester/app", Writing)
    fal_gateway.undeploy("tester/app")
    assert fal_gateway.deployments == {}


def test_a_name_that_is_not_deployed(fal_gateway):
    fal_gateway.deploy("tester/app", Writing)
    with pytest.raises(EmulatorError) as error:
        fal_gateway.undeploy("tester/ap")
    assert str(error.value) == (
        "undeploy('tester/ap'): it is not deployed. Deployed is: tester/app."
    )


def test_undeployed_apps_are_forgotten_with_the_test(fal_emulator):
    deployment = fal_emulator.gateway.deploy("tester/app", Writing)
    call = deployment.submit("/")
    call.result()
    deployment.undeploy()
    fal_emulator.reset()
    assert fal_emulator.gateway.call(call.request_id, "tester") is None


def test_each_line_that_runners_print_is_told(fal_gateway):
    lines = []

    class Printing(fal.App):
        def setup(self) -> None:
            print("setting up")

        @fal.endpoint("/")
        def answer(self) -> dict:
            print("an", "answer")
            return {}

    deployment = fal_gateway.deploy(
        "tester/app", Printing, on_output=lambda line: lines.append(line.text)
    )
    deployment.post("/")
    assert [line for line in lines if "packages" not in line] == ["setting up", "an answer"]


def test_what_other_apps_print_is_not_told(fal_gateway):
    lines = []
    fal_gateway.deploy("tester/app", Writing, on_output=lines.append)
    fal_gateway.deploy("tester/other", Writing).post("/")
    assert lines == []
