"""Deleting what a request left behind: its outputs, never its inputs [facts §1.15]."""

# Without postponed annotations, for the apps in it.

import uuid
from typing import Any

import fal
import httpx
import pytest
from fal.toolkit import File, Image
from PIL import Image as PILImage
from pydantic import BaseModel

from emulator.errors import EmulatorError
from pytest_fal import CDN, Clock, Emulator, Ledger, Runner, RunnerFactory

both = pytest.mark.parametrize("isolation", ["thread", "process"])


class Input(BaseModel):
    url: str


class Output(BaseModel):
    image: Image
    mask: File


class Retoucher(fal.App):
    @fal.endpoint("/")
    def retouch(self, input: Input) -> Output:
        picture = Image(url=input.url).to_pil()
        return Output(image=Image.from_pil(picture), mask=File.from_bytes(b"mask"))

    @fal.endpoint("/nothing")
    def nothing(self) -> dict:
        return {}


def delete(request_id: str, key: str, **headers: str) -> httpx.Response:
    url = f"https://api.fal.ai/v1/models/requests/{request_id}/payloads"
    return httpx.delete(url, headers={"Authorization": f"Key {key}", **headers})


def ask(runner: Runner, url: str, **options: Any) -> tuple[str, list[str]]:
    """Ask an app; the request's id, and the URLs of its outputs."""
    request_id = str(uuid.uuid4())
    headers = {"x-fal-request-id": request_id}
    answer = runner.post("/", json={"url": url}, headers=headers, **options).json()
    return request_id, [answer["image"]["url"], answer["mask"]["url"]]


@pytest.fixture
def picture() -> str:
    return str(Image.from_pil(PILImage.new("RGB", (2, 2)), "png").url)


@both
def test_outputs_go_and_inputs_stay(
    isolation: str, fal_runner: RunnerFactory, fal_emulator: Emulator, fal_cdn: CDN, picture: str
) -> None:
    request_id, outputs = ask(fal_runner(Retoucher, isolation=isolation), picture)
    answer = delete(request_id, fal_emulator.owner.key)
    assert answer.status_code == 200
    assert answer.json() == {
        "cdn_delete_results": [{"link": url, "exception": None} for url in outputs]
    }
    assert [httpx.get(url).status_code for url in (*outputs, picture)] == [404, 404, 200]
    assert [file.url for file in fal_cdn.files] == [picture]


def test_other_requests_keep_theirs(
    fal_runner: RunnerFactory, fal_emulator: Emulator, fal_cdn: CDN, picture: str
) -> None:
    runner = fal_runner(Retoucher)
    (request_id, _), (_, others) = ask(runner, picture), ask(runner, picture)
    delete(request_id, fal_emulator.owner.key)
    assert [httpx.get(url).status_code for url in others] == [200, 200]


def test_everything_says_that_it_was_deleted(
    fal_runner: RunnerFactory,
    fal_emulator: Emulator,
    fal_cdn: CDN,
    fal_clock: Clock,
    fal_ledger: Ledger,
    picture: str,
) -> None:
    fal_clock.freeze()
    request_id, (url, _) = ask(fal_runner(Retoucher), picture)
    delete(request_id, fal_emulator.owner.key)
    why = f"with the payloads of request {request_id}"
    when = f"deleted at {fal_clock.now():%Y-%m-%d %H:%M:%S} UTC {why}"

    assert fal_cdn.deleted(url)
    assert not fal_cdn.deleted(picture)
    assert not fal_cdn.expired(url)
    assert fal_cdn.info(url).request_id == request_id
    with pytest.raises(EmulatorError) as caught:
        fal_cdn.get(url)
    assert str(caught.value) == f"{url} is not there any more: it was {when}"
    with pytest.raises(AssertionError) as failed:
        fal_cdn.assert_alive(url)
    assert str(failed.value) == str(caught.value)
    httpx.get(url)
    assert fal_ledger.exchanges[-1].notes == [f"the file was {when}"]
    events = [event.text for event in fal_ledger.events if event.kind == "deleted"]
    assert events[0] == f"{url}, {why}"


@pytest.mark.fal(expired_status=410)
def test_deleted_is_not_expired(
    fal_runner: RunnerFactory, fal_emulator: Emulator, picture: str
) -> None:
    request_id, (url, _) = ask(fal_runner(Retoucher), picture)
    delete(request_id, fal_emulator.owner.key)
    assert httpx.get(url).status_code == 404


def test_it_cannot_be_undone(
    fal_runner: RunnerFactory, fal_emulator: Emulator, fal_clock: Clock, picture: str
) -> None:
    start = fal_clock.now()
    request_id, (url, _) = ask(fal_runner(Retoucher), picture)
    fal_clock.advance(hours=1)
    delete(request_id, fal_emulator.owner.key)
    fal_clock.move_to(start)
    assert httpx.get(url).status_code == 404
    assert fal_emulator.owner.get(url).status_code == 404


def test_what_is_gone_already_is_told(
    fal_runner: RunnerFactory, fal_emulator: Emulator, fal_cdn: CDN, picture: str
) -> None:
    request_id, (url, mask) = ask(fal_runner(Retoucher), picture)
    fal_cdn.expire(mask)
    assert delete(request_id, fal_emulator.owner.key).json()["cdn_delete_results"] == [
        {"link": url, "exception": None},
        {"link": mask, "exception": "the file is not there any more"},
    ]
    assert fal_cdn.expired(mask)


def test_an_unknown_request(fal_emulator: Emulator) -> None:
    answer = delete("none", fal_emulator.owner.key)
    message = "tester has made no request none"
    assert answer.status_code == 404
    assert answer.json() == {"error": {"type": "not_found", "message": message}}


@both
def test_a_request_without_outputs_is_known(
    isolation: str, fal_runner: RunnerFactory, fal_emulator: Emulator
) -> None:
    headers = {"x-fal-request-id": "empty"}
    fal_runner(Retoucher, isolation=isolation).post("/nothing", headers=headers)
    answer = delete("empty", fal_emulator.owner.key)
    assert (answer.status_code, answer.json()) == (200, {"cdn_delete_results": []})


def test_so_is_a_call_in_a_queue(fal_emulator: Emulator) -> None:
    deployment = fal_emulator.gateway.deploy("tester/retoucher", Retoucher)
    deployment.hold()
    bob = fal_emulator.user("bob")
    call = deployment.submit("/nothing", caller=bob)
    users = fal_emulator.owner, bob, fal_emulator.user("eve")
    assert [delete(call.request_id, one.key).status_code for one in users] == [200, 200, 404]


def test_a_caller_deletes_what_was_made_for_him(
    fal_runner: RunnerFactory, fal_emulator: Emulator, picture: str
) -> None:
    bob, eve = fal_emulator.user("bob"), fal_emulator.user("eve")
    request_id, (url, _) = ask(fal_runner(Retoucher), picture, caller=bob)
    assert delete(request_id, eve.key).status_code == 404
    assert httpx.get(url).status_code == 200
    assert delete(request_id, bob.key).status_code == 200
    assert httpx.get(url).status_code == 404


def test_it_needs_an_admins_key(
    fal_runner: RunnerFactory, fal_emulator: Emulator, picture: str
) -> None:
    owner = fal_emulator.owner
    request_id, (url, _) = ask(fal_runner(Retoucher), picture)
    answer = delete(request_id, owner.key_with("assets:read", "assets:write"))
    message = "this API key has not the permission admin"
    assert answer.status_code == 403
    assert answer.json() == {"error": {"type": "authorization_error", "message": message}}
    assert httpx.get(url).status_code == 200
    assert delete(request_id, owner.key_with("admin")).status_code == 200


def test_the_same_idempotency_key_gets_the_same_answer_for_ten_minutes(
    fal_runner: RunnerFactory, fal_emulator: Emulator, fal_clock: Clock, picture: str
) -> None:
    fal_clock.freeze()
    request_id, _ = ask(fal_runner(Retoucher), picture)

    def again() -> list[str | None]:
        answer = delete(request_id, fal_emulator.owner.key, **{"Idempotency-Key": "k"}).json()
        return [result["exception"] for result in answer["cdn_delete_results"]]

    assert again() == [None, None]
    fal_clock.advance(minutes=10, milliseconds=-1)
    assert again() == [None, None]
    fal_clock.advance(milliseconds=1)
    assert again() == ["the file is not there any more"] * 2


def test_an_idempotency_key_of_another_request_deletes_nothing(
    fal_runner: RunnerFactory, fal_emulator: Emulator, fal_ledger: Ledger, picture: str
) -> None:
    runner = fal_runner(Retoucher)
    (first, _), (second, (url, _)) = ask(runner, picture), ask(runner, picture)
    for request_id in (first, second):
        delete(request_id, fal_emulator.owner.key, **{"Idempotency-Key": "k"})
    assert httpx.get(url).status_code == 200
    (note,) = (note for exchange in fal_ledger.exchanges for note in exchange.notes)
    assert note.endswith(
        f"its Idempotency-Key was the same, though that was for {first}: nothing is deleted"
    )


def test_not_storing_payloads_leaves_media_where_they_are(
    fal_runner: RunnerFactory, picture: str
) -> None:
    headers = {"x-fal-store-io": "0"}
    answer = fal_runner(Retoucher).post("/", json={"url": picture}, headers=headers).json()
    assert httpx.get(answer["image"]["url"]).status_code == 200
