"""Who may call an app, and what its owner may do to its queue [facts §6.2]."""

# Without postponed annotations, for the apps in it.

import fal
import httpx
import pytest

from pytest_fal import Emulator, Gateway

API = "https://api.fal.ai/v1/serverless/apps/tester/app/queue"
run = pytest.mark.parametrize("host", ["fal.run", "queue.fal.run"])


class Open(fal.App):
    app_auth = "public"

    @fal.endpoint("/")
    def caller(self) -> dict:
        return {"caller": self.current_request.headers["x-fal-caller-user-id"]}


class Shared(Open):
    app_auth = "shared"


class Private(Open):
    app_auth = "private"


class Silent(Open):
    app_auth = None


def call(host: str, key: str | None) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Key {key}"}
    return httpx.post(f"https://{host}/tester/app", json={}, headers=headers)


# --- app_auth -------------------------------------------------------------------------------------


@run
@pytest.mark.parametrize("app", [Shared, Silent])
def test_whoever_has_a_key_may_call_it(
    host: str, app: type, fal_gateway: Gateway, fal_emulator: Emulator
) -> None:
    """Of an app that says nothing this is assumed: `fal deploy` would make it private."""
    fal_gateway.deploy("tester/app", app)
    keys = [fal_emulator.owner.key, fal_emulator.user("bob").key, None]
    assert [call(host, key).status_code for key in keys] == [200, 200, 401]


@run
def test_a_private_app_is_its_owners_and_the_teams(
    host: str, fal_gateway: Gateway, fal_emulator: Emulator
) -> None:
    fal_gateway.deploy("tester/app", Private)
    bob, eve = fal_emulator.user("bob", teams=["tester"]), fal_emulator.user("eve")
    keys = [fal_emulator.owner.key, bob.key, eve.key, None]
    assert [call(host, key).status_code for key in keys] == [200, 200, 403, 401]


def test_a_refused_caller_is_told(fal_gateway: Gateway, fal_emulator: Emulator) -> None:
    deployment = fal_gateway.deploy("tester/app", Private)
    answer = call("fal.run", fal_emulator.user("eve").key)
    assert answer.json() == {"detail": "eve has no access to tester/app"}
    assert fal_emulator.ledger.exchanges[-1].notes == [
        "tester/app is private (app_auth), and eve not in its team"
    ]
    assert deployment.calls == []


def test_a_public_app_needs_no_key(fal_gateway: Gateway, fal_emulator: Emulator) -> None:
    fal_gateway.deploy("tester/app", Open)
    caller = call("fal.run", None).json()["caller"]
    assert len(caller) == 64
    assert caller != call("fal.run", fal_emulator.user("bob").key).json()["caller"]


def test_the_queue_of_a_public_app_needs_no_key(fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/app", Open)
    body = call("queue.fal.run", None).json()
    deployment.calls[0].result()
    assert httpx.get(body["status_url"]).json()["status"] == "COMPLETED"
    assert httpx.get(body["response_url"]).status_code == 200


# --- the queue, for its owner ---------------------------------------------------------------------


def api(method: str, key: str, url: str = API) -> httpx.Response:
    return httpx.request(method, url, headers={"Authorization": f"Key {key}"})


def test_the_size_of_a_queue(fal_gateway: Gateway, fal_emulator: Emulator) -> None:
    deployment = fal_gateway.deploy("tester/app", Silent)
    deployment.hold()
    for _ in range(2):
        deployment.submit("/")
    answer = api("GET", fal_emulator.owner.key)
    assert (answer.status_code, answer.json()["queue_size"]) == (200, 2)


def test_a_queue_is_flushed(fal_gateway: Gateway, fal_emulator: Emulator) -> None:
    deployment = fal_gateway.deploy("tester/app", Silent)
    deployment.hold()
    done, *waiting = [deployment.submit("/") for _ in range(3)]
    deployment.run_next()
    assert api("DELETE", fal_emulator.owner.key).status_code == 200
    assert done.result().status_code == 200
    assert [call.result().json()["error_type"] for call in waiting] == ["client_cancelled"] * 2
    assert api("GET", fal_emulator.owner.key).json()["queue_size"] == 0


def test_flushing_needs_an_admins_key(fal_gateway: Gateway, fal_emulator: Emulator) -> None:
    fal_gateway.deploy("tester/app", Silent)
    assert api("DELETE", fal_emulator.owner.key_with("assets:read")).status_code == 403


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_queue_is_its_owners_business(
    method: str, fal_gateway: Gateway, fal_emulator: Emulator
) -> None:
    fal_gateway.deploy("tester/app", Silent)
    answer = api(method, fal_emulator.user("bob").key)
    assert answer.status_code == 404
    error = {"type": "not_found", "message": "Application tester/app not found"}
    assert answer.json() == {"error": error}


def test_an_app_that_is_not_there(fal_gateway: Gateway, fal_emulator: Emulator) -> None:
    answer = api("GET", fal_emulator.owner.key, API.replace("/app/", "/other/"))
    assert answer.json()["error"]["message"] == "Application tester/other not found"
