"""``fal.apps``, the SDK's own client of the queue, and ``fal api`` on top of it."""

from __future__ import annotations

import os

import fal
import fal.apps
import httpx
import pytest
from apps_for_clients import Greeting, Live
from fal.apps import Completed, InProgress, Queued, RequestHandle
from fal.cli.main import main
from versions import since

URL = "https://example.com/slow.bin"


class Fetching(fal.App):
    """Its handler waits for a server, so that a gate can hold it."""

    @fal.endpoint("/")
    def fetch(self, input: dict) -> dict:
        print("fetching")
        return {"size": len(httpx.get(URL).content)}


@pytest.fixture(autouse=True)
def stopped(fal_clock):
    fal_clock.freeze()


@pytest.fixture
def deployment(fal_gateway):
    return fal_gateway.deploy("tester/greeting", Greeting)


@pytest.fixture
def held(fal_gateway, fal_faults, fal_origin):
    """A handler that is held, and its request's handle."""
    fal_origin.serve(URL, b"four")
    gate = fal_faults.gate(host="example.com")
    fal_gateway.deploy("tester/fetching", Fetching)
    handle = fal.apps.submit("tester/fetching", {})
    gate.wait()
    return gate, handle


def test_run(deployment):
    assert fal.apps.run("tester/greeting", {"name": "Ada"}) == {"text": "Hello, Ada"}


def test_run_an_endpoint_with_a_path(deployment):
    answer = fal.apps.run("tester/greeting", {"name": "Ada"}, path="/goodbye")
    assert answer == {"text": "Goodbye, Ada"}


def test_a_name_of_the_old_form(deployment):
    assert fal.apps.run("tester-greeting", {"name": "Ada"}) == {"text": "Hello, Ada"}


def test_submit_and_get(deployment):
    handle = fal.apps.submit("tester/greeting", {"name": "Ada"})
    assert handle.get() == {"text": "Hello, Ada"}
    assert handle.request_id == deployment.calls[0].request_id


def test_a_handle_of_an_id_alone(deployment):
    submitted = fal.apps.submit("tester/greeting", {"name": "Ada"}, path="/goodbye")
    handle = RequestHandle("tester/greeting/goodbye", submitted.request_id)
    assert handle.get() == {"text": "Goodbye, Ada"}


def test_the_status_while_it_waits(deployment):
    deployment.hold()
    handles = [fal.apps.submit("tester/greeting", {}) for _ in range(2)]
    assert [handle.status() for handle in handles] == [Queued(0), Queued(1)]


def test_the_status_while_it_runs(held):
    gate, handle = held
    status = handle.status(logs=True)
    gate.open()
    assert isinstance(status, InProgress)
    assert [entry["message"] for entry in status.logs] == ["fetching"]


def test_logs_are_there_only_if_asked_for(held):
    gate, handle = held
    status = handle.status()
    gate.open()
    assert status == InProgress(logs=None)


def test_the_status_when_it_is_over(deployment):
    handle = fal.apps.submit("tester/greeting", {"name": "Ada"})
    handle.get()
    status = handle.status(logs=True)
    assert isinstance(status, Completed)
    assert [entry["message"] for entry in status.logs] == ["greeting Ada"]


@since("1.80.0", "tells a request's error")
def test_the_status_of_what_has_failed(deployment):
    handle = fal.apps.submit("tester/greeting", {}, path="/fail")
    deployment.calls[0].result()
    assert handle.status() == Completed(logs=None, error="a teapot")


def test_events_go_on_until_it_is_over(deployment):
    deployment.hold()
    handle = fal.apps.submit("tester/greeting", {})
    seen = []
    for event in handle.iter_events():
        seen.append(event)
        deployment.release()
        deployment.calls[0].result()
    assert seen == [Queued(0)]


def test_polling_is_on_the_clock(deployment, fal_clock):
    deployment.hold()
    handle = fal.apps.submit("tester/greeting", {})
    events = handle.iter_events()
    next(events)
    before = fal_clock.now()
    next(events)
    assert (fal_clock.now() - before).total_seconds() == 0.2


def test_a_result_that_is_not_there_yet(deployment):
    deployment.hold()
    handle = fal.apps.submit("tester/greeting", {})
    with pytest.raises(httpx.HTTPStatusError) as error:
        handle.fetch_result()
    assert str(error.value) == f'400: {{"detail": "Request {handle.request_id} is IN_QUEUE"}}'


def test_an_error_of_the_app(deployment):
    handle = fal.apps.submit("tester/greeting", {}, path="/fail")
    with pytest.raises(httpx.HTTPStatusError) as error:
        handle.get()
    assert str(error.value) == '418: {"detail":"a teapot"}'


def test_cancel(deployment):
    deployment.hold()
    handle = fal.apps.submit("tester/greeting", {})
    handle.cancel()
    with pytest.raises(httpx.HTTPStatusError) as error:
        handle.get()
    assert error.value.response.status_code == 499


def test_cancelling_what_is_over_is_refused(deployment):
    handle = fal.apps.submit("tester/greeting", {})
    handle.get()
    with pytest.raises(httpx.HTTPStatusError) as error:
        handle.cancel()
    assert error.value.response.json() == {"status": "ALREADY_COMPLETED"}


@since("1.82.0", "asks again")
def test_the_next_status_is_asked_for_after_a_failure(deployment, fal_faults):
    handle = fal.apps.submit("tester/greeting", {"name": "Ada"})
    fal_faults.refuse(host="queue.fal.run", times=2)
    assert handle.get() == {"text": "Hello, Ada"}


def test_stream(deployment):
    chunks = fal.apps.stream("tester/greeting", {"name": "Ada"})
    assert b"".join(chunks) == b'{"text":"Hello, Ada"}'


def test_an_app_that_is_not_there(fal_gateway):
    with pytest.raises(httpx.HTTPStatusError) as error:
        fal.apps.submit("tester/greeting", {})
    assert error.value.response.status_code == 404


def test_a_realtime_connection(fal_gateway):
    fal_gateway.deploy("tester/greeting", Live)
    with fal.apps._connect("tester/greeting") as connection:
        assert connection.run({"name": "Ada"}) == {"text": "Hello, Ada"}


def test_http_over_a_websocket(deployment):
    with fal.apps.ws("tester/greeting") as connection:
        assert connection.run({"name": "Ada"}) == b'{"text":"Hello, Ada"}'


# --- its client -----------------------------------------------------------------------------------


def test_the_client_of_before_is_not_used(deployment, fal_emulator):
    fal_emulator.stop()
    before = fal.apps._get_http_client()
    fal_emulator.start()
    assert fal.apps._get_http_client() is not before
    assert not before.is_closed
    fal.apps._get_http_client.cache_clear()
    before.close()


def test_the_client_of_a_test_does_not_outlive_it(fal_emulator):
    client = fal.apps._get_http_client()
    fal_emulator.stop()
    assert fal.apps._get_http_client.cache_info().currsize == 0
    assert client.is_closed
    fal_emulator.start()


# --- on the command line --------------------------------------------------------------------------


@pytest.fixture
def command(capsys, fal_emulator):
    """Run a command of fal's; its exit code, and what it prints in one line."""

    def run(*arguments):
        code = main(list(arguments))
        return code, " ".join(capsys.readouterr().out.split())

    return run


def test_fal_api(command, deployment, capsys):
    _, printed = command("api", "tester/greeting", "name=Ada")
    assert "{'text': 'Hello, Ada'}" in printed


def test_fal_queue_size(command, deployment):
    deployment.hold()
    for _ in range(2):
        deployment.submit("/")
    assert command("queue", "size", "greeting")[1] == "Total queue size: 2"


def test_fal_queue_size_by_user(command, deployment):
    deployment.hold()
    for caller in (None, "bob", "bob"):
        deployment.submit("/", caller=caller)
    _, printed = command("queue", "size", "greeting", "--by-user", "--output", "json")
    assert printed == '{"size": 3, "by_user": {"tester": 1, "bob": 2}}'


def test_fal_queue_flush(command, deployment):
    deployment.hold()
    call = deployment.submit("/")
    assert command("queue", "flush", "greeting")[1] == "Queue flushed successfully."
    assert call.result().status_code == 499
    assert deployment.queue == []


def test_fal_queue_flush_of_one_caller(command, deployment):
    deployment.hold()
    deployment.submit("/", caller="bob")
    mine = deployment.submit("/")
    command("queue", "flush", "greeting", "--caller-user-id", "bob")
    assert deployment.queue == [mine]


@pytest.mark.parametrize("what", ["size", "flush"])
def test_fal_queue_of_an_app_that_is_not_there(command, what):
    _, printed = command("queue", what, "greeting")
    assert printed.endswith(": Application tester/greeting not found")


def test_the_platform_api_tells_the_size(deployment):
    deployment.hold()
    deployment.submit("/")
    url = "https://api.fal.ai/v1/serverless/apps/tester/greeting/queue"
    headers = {"Authorization": f"Key {os.environ['FAL_KEY']}"}
    assert httpx.get(url, headers=headers).json() == {"size": 1, "queue_size": 1}


def test_the_queue_of_somebody_else_is_not_told(fal_emulator, deployment):
    url = "https://api.fal.ai/v1/serverless/apps/tester/greeting/queue"
    headers = {"Authorization": f"Key {fal_emulator.user('bob').key}"}
    assert httpx.get(url, headers=headers).json() == {
        "error": {"type": "not_found", "message": "Application tester/greeting not found"}
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("apps", "list"),
        ("keys", "list"),
        ("secrets", "list"),
        ("environments", "list"),
        ("runners", "list"),
        ("run", "tests/apps_for_clients.py::Greeting"),
        ("deploy", "tests/apps_for_clients.py::Greeting"),
    ],
    ids="-".join,
)
def test_a_command_that_needs_grpc_says_what_to_do(command, arguments, request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    code, printed = command(*arguments)
    assert code == 1
    assert "a gRPC call to api.alpha.fal.ai: gRPC is not emulated" in printed
    assert 'fal_gateway.deploy("owner/app", MyApp)' in printed
