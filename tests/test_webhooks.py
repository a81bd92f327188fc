"""Webhooks [facts §6.4]: what they say, how they are signed, when they are sent again."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import apps_with_hooks
import httpx
import pytest
import requests
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from emulator import Emulator
from emulator.errors import EmulatorError
from pytest_fal import WebhookNotVerifiedError

#: Seconds from the first delivery to each, where none is taken.
MOMENTS = [0, 7, 21, 49, 105, 217, 441, 889, 1785, 3577, 7161]
#: The same where each takes its 15 s before it times out.
MOMENTS_OF_TIMEOUTS = [0, 15, 30, *MOMENTS[3:]]
ELSEWHERE = "https://shop.example/hook"


@pytest.fixture
def deliver(fal_emulator, fal_webhooks):
    """Deliver as the queue does."""

    def deliver(response, url=fal_webhooks.url, request_id="r-1", gateway_request_id="g-2"):
        platform = fal_emulator._webhooks
        return platform.deliver(url, request_id, gateway_request_id, "user-1", response)

    return deliver


def as_a_receiver_should(headers, body, host="rest.fal.ai", now=None):
    """Whether a webhook is fal's: fal's own description, written down a second time."""
    now = time.time() if now is None else now
    request_id = headers["X-Fal-Webhook-Request-Id"]
    user_id = headers["X-Fal-Webhook-User-Id"]
    timestamp = headers["X-Fal-Webhook-Timestamp"]
    if abs(int(now) - int(timestamp)) > 300:
        return False
    digest = hashlib.sha256(body).hexdigest()
    message = f"{request_id}\n{user_id}\n{timestamp}\n{digest}".encode()
    signature = bytes.fromhex(headers["X-Fal-Webhook-Signature"])
    for key in requests.get(f"https://{host}/.well-known/jwks.json", timeout=10).json()["keys"]:
        public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"]))
        try:
            public.verify(signature, message)
        except InvalidSignature:
            continue
        return True
    return False


def seconds_since_the_first(webhooks):
    return [(one.at - webhooks[0].at).total_seconds() for one in webhooks]


def events(ledger):
    return [event.text for event in ledger.events if event.kind == "webhook"]


# --- what they say --------------------------------------------------------------------------------


def test_a_webhook_brings_the_answer(deliver, fal_webhooks):
    deliver(httpx.Response(200, json={"images": [{"url": "https://x/1.png"}]}))

    [webhook] = fal_webhooks.wait()

    assert json.loads(webhook.body) == {
        "request_id": "r-1",
        "gateway_request_id": "g-2",
        "status": "OK",
        "error": None,
        "payload": {"images": [{"url": "https://x/1.png"}]},
    }


def test_the_receiver_reads_it(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    deliver(httpx.Response(200, json=[1]))

    [webhook] = fal_webhooks.wait()

    assert (webhook.request_id, webhook.gateway_request_id) == ("r-1", "g-2")
    assert (webhook.status, webhook.payload, webhook.attempt) == ("OK", [1], 1)
    assert (webhook.error, webhook.payload_error) == (None, None)
    assert webhook.headers["content-type"] == "application/json"
    assert (webhook.at, webhook.answered) == (fal_clock.now(), 200)


def test_an_error_brings_the_apps_own_words(deliver, fal_webhooks):
    detail = {"detail": [{"loc": ["body", "prompt"], "msg": "field required", "type": "missing"}]}
    deliver(httpx.Response(422, json=detail))

    [webhook] = fal_webhooks.wait()

    assert (webhook.status, webhook.error) == ("ERROR", "Invalid status code: 422")
    assert webhook.payload == detail


@pytest.mark.parametrize("body", [b"\x89PNG", b"", b'{"loss": NaN}'])
def test_what_is_no_json_is_left_out_and_said(deliver, fal_webhooks, body):
    deliver(httpx.Response(200, content=body))

    [webhook] = fal_webhooks.wait()

    assert (webhook.status, webhook.payload) == ("OK", None)
    assert webhook.payload_error == (
        "Response payload is not JSON serializable. Either return a JSON serializable object or "
        "use the queue endpoint to retrieve the response."
    )


def test_an_error_may_be_no_json_either(deliver, fal_webhooks):
    deliver(httpx.Response(500, text="Internal Server Error"))

    [webhook] = fal_webhooks.wait()

    assert (webhook.status, webhook.error) == ("ERROR", "Invalid status code: 500")
    assert webhook.payload is None
    assert webhook.payload_error.startswith("Response payload is not JSON serializable.")


def test_any_path_below_the_url_is_the_receivers(deliver, fal_webhooks):
    deliver(httpx.Response(200, json=1), url=f"{fal_webhooks.url}orders/7?shop=2")

    [webhook] = fal_webhooks.wait()

    assert webhook.path == "/orders/7"


# --- signatures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["rest.fal.ai", "rest.alpha.fal.ai"])
def test_the_signature_is_what_fal_describes(deliver, fal_webhooks, host):
    deliver(httpx.Response(200, json={"n": "ü"}))

    [webhook] = fal_webhooks.wait()

    assert as_a_receiver_should(webhook.headers, webhook.body, host)
    assert webhook.verified


def test_a_signature_is_for_one_body(deliver, fal_webhooks):
    deliver(httpx.Response(200, json={"price": 1}))

    [webhook] = fal_webhooks.wait()

    assert not as_a_receiver_should(webhook.headers, webhook.body.replace(b"1", b"0"))


def test_headers_name_the_request_and_whose_it_is(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    deliver(httpx.Response(200, json=1))

    [webhook] = fal_webhooks.wait()

    assert webhook.headers["X-Fal-Webhook-Request-Id"] == "r-1"
    assert webhook.headers["X-Fal-Webhook-User-Id"] == "user-1"
    assert webhook.headers["X-Fal-Webhook-Timestamp"] == str(int(fal_clock.now().timestamp()))


def test_each_attempt_is_signed_anew(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    fal_webhooks.answer(503, times=9)
    deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()
    fal_clock.advance(minutes=59, seconds=37)

    last = fal_webhooks.received[-1]

    assert last.headers["X-Fal-Webhook-Timestamp"] == str(int(last.at.timestamp()))
    assert len({one.headers["X-Fal-Webhook-Signature"] for one in fal_webhooks.received}) == 10
    assert as_a_receiver_should(last.headers, last.body, now=last.at.timestamp())


def test_the_keys_need_no_credentials_and_may_be_kept_for_a_day(fal_webhooks):
    answer = requests.get("https://rest.fal.ai/.well-known/jwks.json", timeout=10)

    assert answer.headers["cache-control"] == "public, max-age=86400"
    [key] = answer.json()["keys"]
    assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("OKP", "Ed25519", "sig", "EdDSA")
    assert len(base64.urlsafe_b64decode(key["x"])) == 32


@pytest.mark.fal(webhook_key_padding=False)
def test_keys_may_lack_the_padding_that_fals_sample_needs(fal_webhooks):
    [key] = requests.get("https://rest.fal.ai/.well-known/jwks.json", timeout=10).json()["keys"]

    assert len(key["x"]) == 43
    assert len(base64.urlsafe_b64decode(f"{key['x']}=")) == 32


def test_an_old_key_stays_listed_after_a_rotation(deliver, fal_webhooks):
    deliver(httpx.Response(200, json=1))
    [old] = fal_webhooks.wait()
    fal_webhooks.rotate_key()
    deliver(httpx.Response(200, json=2))
    new = fal_webhooks.wait(2)[1]

    assert (
        len(requests.get("https://rest.fal.ai/.well-known/jwks.json", timeout=9).json()["keys"])
        == 2
    )
    assert as_a_receiver_should(old.headers, old.body)
    assert as_a_receiver_should(new.headers, new.body)


def test_an_old_key_can_be_dropped(deliver, fal_webhooks):
    deliver(httpx.Response(200, json=1))
    [old] = fal_webhooks.wait()
    fal_webhooks.rotate_key(drop_old=True)
    deliver(httpx.Response(200, json=2))
    new = fal_webhooks.wait(2)[1]

    assert not as_a_receiver_should(old.headers, old.body)
    assert as_a_receiver_should(new.headers, new.body)


def test_the_key_is_the_same_in_the_next_test():
    def listed():
        return httpx.get("https://rest.fal.ai/.well-known/jwks.json").json()

    with Emulator() as fal:
        first = listed()
        fal.webhooks.rotate_key(drop_old=True)
        assert listed() != first
        fal.reset()
        assert listed() == first


def test_the_platform_says_where_webhooks_come_from(fal_webhooks):
    answer = httpx.get("https://api.fal.ai/v1/meta")

    assert answer.json() == {"webhook_ip_ranges": ["192.88.99.0/24"]}


# --- verify ---------------------------------------------------------------------------------------


def test_verify_believes_what_is_fals(deliver, fal_webhooks):
    deliver(httpx.Response(200, json=1))
    [webhook] = fal_webhooks.wait()

    fal_webhooks.verify({k.upper(): v for k, v in webhook.headers.items()}, webhook.body)


def test_verify_names_the_headers_that_are_missing(deliver, fal_webhooks):
    deliver(httpx.Response(200, json=1))
    [webhook] = fal_webhooks.wait()
    del webhook.headers["X-Fal-Webhook-User-Id"]
    del webhook.headers["X-Fal-Webhook-Signature"]

    with pytest.raises(WebhookNotVerifiedError) as error:
        fal_webhooks.verify(webhook.headers, webhook.body)

    expected = "The webhook has no header X-Fal-Webhook-User-Id and no X-Fal-Webhook-Signature."
    assert str(error.value) == expected


@pytest.mark.parametrize(("moved", "off"), [(301, "301 s old"), (-301, "301 s ahead")])
def test_verify_refuses_a_time_stamp_that_is_off(deliver, fal_webhooks, fal_clock, moved, off):
    fal_clock.freeze()
    deliver(httpx.Response(200, json=1))
    [webhook] = fal_webhooks.wait()
    fal_clock.move_to(fal_clock.now() + timedelta(seconds=moved))

    with pytest.raises(WebhookNotVerifiedError) as error:
        fal_webhooks.verify(webhook.headers, webhook.body)

    assert str(error.value) == (
        f"X-Fal-Webhook-Timestamp is {off}; more than 300 s is to be refused, as a replay."
    )


def test_verify_takes_300_seconds(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    deliver(httpx.Response(200, json=1))
    [webhook] = fal_webhooks.wait()
    fal_clock.advance(300)

    fal_webhooks.verify(webhook.headers, webhook.body)


@pytest.mark.parametrize("stamp", ["tomorrow", "-1", "1e9", "²"])
def test_verify_refuses_a_time_stamp_that_is_none(deliver, fal_webhooks, stamp):
    deliver(httpx.Response(200, json=1))
    [webhook] = fal_webhooks.wait()

    with pytest.raises(WebhookNotVerifiedError) as error:
        fal_webhooks.verify({**webhook.headers, "x-fal-webhook-timestamp": stamp}, webhook.body)

    assert str(error.value) == f"X-Fal-Webhook-Timestamp is {stamp!r}, no Unix seconds."


def test_verify_refuses_a_signature_that_is_no_hex(deliver, fal_webhooks):
    deliver(httpx.Response(200, json=1))
    [webhook] = fal_webhooks.wait()

    with pytest.raises(WebhookNotVerifiedError) as error:
        fal_webhooks.verify({**webhook.headers, "x-fal-webhook-signature": "zz"}, webhook.body)

    assert str(error.value) == "X-Fal-Webhook-Signature is no hex: 'zz'."


def test_verify_refuses_a_body_that_was_parsed_and_serialised_again(deliver, fal_webhooks):
    deliver(httpx.Response(200, json=1))
    [webhook] = fal_webhooks.wait()
    again = json.dumps(json.loads(webhook.body), separators=(",", ":")).encode()

    with pytest.raises(WebhookNotVerifiedError) as error:
        fal_webhooks.verify(webhook.headers, again)

    assert str(error.value) == (
        "No listed key matches the signature: the body or one of the first three headers is not "
        "what was signed, or somebody else has signed it. Verify the raw bytes of the body as they "
        "came; parsed and serialised again they are others."
    )


# --- when they are sent again ---------------------------------------------------------------------


def test_what_is_not_taken_is_sent_ten_times_more_within_two_hours(
    deliver, fal_webhooks, fal_clock
):
    fal_clock.freeze()
    fal_webhooks.answer(500, times=99)
    delivery = deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()

    fal_clock.advance(hours=2)

    assert seconds_since_the_first(fal_webhooks.received) == MOMENTS
    assert [one.attempt for one in fal_webhooks.received] == list(range(1, 12))
    assert (delivery.state, delivery.next_at) == ("failed", None)


def test_nothing_comes_after_two_hours(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    fal_webhooks.answer(500, times=11)
    deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()

    fal_clock.advance(days=30)

    assert len(fal_webhooks.received) == 11
    assert fal_webhooks.pending == []


def test_what_is_taken_is_not_sent_again(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    fal_webhooks.answer(500, times=2)
    delivery = deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()

    fal_clock.advance(days=1)

    assert [one.answered for one in fal_webhooks.received] == [500, 500, 200]
    assert delivery.state == "delivered"


@pytest.mark.parametrize("status", [199, 301, 307, 400, 401, 410, 429, 503])
def test_any_status_but_2xx_is_no_success(deliver, fal_webhooks, fal_clock, status):
    fal_clock.freeze()
    fal_webhooks.answer(status)
    delivery = deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()

    assert (delivery.state, delivery.attempts[0].problem) == ("pending", f"answered {status}")


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_2xx_is_a_success(deliver, fal_webhooks, status):
    fal_webhooks.answer(status)
    delivery = deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()

    assert (delivery.state, delivery.attempts[0].status) == ("delivered", status)


def test_redirects_are_not_followed(deliver, fal_webhooks, fal_http, fal_ledger, fal_clock):
    fal_clock.freeze()
    fal_http.post(ELSEWHERE).respond(302, headers={"location": fal_webhooks.url})
    delivery = deliver(httpx.Response(200, json=1), url=ELSEWHERE)
    fal_webhooks.settle()

    assert delivery.attempts[0].problem == "answered 302"
    fal_ledger.assert_requested(1)


@pytest.mark.fal(webhook_retries=(timedelta(minutes=1), timedelta(minutes=3)))
def test_the_schedule_is_a_setting(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    fal_webhooks.answer(500, times=99)
    deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()

    fal_clock.advance(hours=2)

    assert seconds_since_the_first(fal_webhooks.received) == [0, 60, 180]


def test_a_clock_that_runs_keeps_the_appointments_too(deliver, fal_webhooks, fal_clock):
    fal_webhooks.answer(500)
    delivery = deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()

    fal_clock.advance(8)
    fal_webhooks.settle()

    assert (delivery.state, len(delivery.attempts)) == ("delivered", 2)


def test_several_deliveries_are_sent_again_each_in_its_time(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    fal_webhooks.answer(500, times=3)
    deliver(httpx.Response(200, json=1), request_id="a")
    fal_webhooks.wait()
    fal_clock.advance(3)
    deliver(httpx.Response(200, json=1), request_id="b")
    fal_webhooks.wait(2)

    fal_clock.advance(hours=2)

    came = [one.request_id for one in fal_webhooks.received]
    assert came == ["a", "b", "a", "b", "a"]
    assert seconds_since_the_first(fal_webhooks.received) == [0, 3, 7, 10, 21]


# --- time-outs ------------------------------------------------------------------------------------


def test_a_receiver_that_takes_longer_than_15_seconds_gets_it_again(
    deliver, fal_webhooks, fal_clock
):
    fal_clock.freeze()
    fal_webhooks.handler = lambda webhook: time.sleep(15 if webhook.attempt == 1 else 14.9)
    delivery = deliver(httpx.Response(200, json=1))
    fal_webhooks.settle()

    assert [one.problem for one in delivery.attempts] == ["timed out after 15 s", None]
    assert delivery.state == "delivered"


def test_time_outs_are_all_over_within_two_hours(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    fal_webhooks.handler = lambda webhook: time.sleep(20)
    delivery = deliver(httpx.Response(200, json=1))
    fal_webhooks.settle()

    fal_clock.advance(hours=2)

    assert seconds_since_the_first(fal_webhooks.received) == MOMENTS_OF_TIMEOUTS
    assert {one.problem for one in delivery.attempts} == {"timed out after 15 s"}
    assert delivery.state == "failed"


def test_what_answers_too_late_is_told():
    with Emulator() as fal:
        fal.clock.freeze()
        fal.webhooks.handler = lambda webhook: time.sleep(16) if webhook.attempt == 1 else None
        fal.webhooks.send(request_id="r-1")
        fal.webhooks.settle()
        fal.stop()  # waits for what is late

        who = "r-1 to https://webhooks.test.fal/: attempt"
        told = events(fal.ledger)
        assert told[0].startswith(f"{who} 1 timed out after 15 s; again at ")
        assert told[1:] == [f"{who} 2 answered 200", f"{who} 1 answered 200, too late"]


def test_one_that_a_gate_holds_times_out_as_the_test_moves_the_clock(
    deliver, fal_webhooks, fal_clock, fal_faults
):
    fal_clock.freeze()
    gate = fal_faults.gate(host="webhooks.test.fal")
    delivery = deliver(httpx.Response(200, json=1))
    gate.wait()

    fal_clock.advance(15)
    gate.open()
    fal_webhooks.settle()

    assert delivery.attempts[0].problem == "timed out after 15 s"


def test_a_test_that_moves_the_clock_makes_no_receiver_slow(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    proceed = threading.Event()
    fal_webhooks.handler = lambda webhook: proceed.wait(1)
    delivery = deliver(httpx.Response(200, json=1))
    fal_clock.on(timedelta(seconds=10), proceed.set)

    fal_clock.advance(hours=2)

    assert (delivery.state, len(delivery.attempts)) == ("delivered", 1)


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_lost_answer_brings_it_again(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    charged = []
    fal_webhooks.handler = lambda webhook: charged.append(webhook.request_id)
    fal_webhooks.lose_answer()
    delivery = deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()
    fal_clock.advance(7)

    assert charged == ["r-1", "r-1"]
    assert delivery.attempts[0].problem == (
        "failed: ConnectionResetError: [Errno 104] the answer was lost (fal_webhooks.lose_answer)"
    )


def test_a_receiver_that_is_down_does_not_run(deliver, fal_webhooks):
    ran = []
    fal_webhooks.handler = ran.append
    fal_webhooks.answer(503)
    deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()

    assert ran == []


def test_plans_are_kept_in_their_order(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    fal_webhooks.answer(500)
    fal_webhooks.lose_answer()
    fal_webhooks.answer(429)
    deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()
    fal_clock.advance(hours=1)

    assert [one.answered for one in fal_webhooks.received] == [500, None, 429, 200]


def test_a_handler_that_raises_answers_500(deliver, fal_webhooks, fal_ledger):
    error = KeyError("order")

    def handler(webhook):
        raise error

    fal_webhooks.handler = handler
    deliver(httpx.Response(200, json=1))
    [webhook] = fal_webhooks.wait()

    assert (webhook.answered, webhook.raised) == (500, error)
    assert fal_ledger.exchanges[0].notes == ["the handler raised KeyError: 'order'"]


def test_a_handler_may_answer_itself(deliver, fal_webhooks):
    fal_webhooks.handler = lambda webhook: httpx.Response(202)
    deliver(httpx.Response(200, json=1))
    [webhook] = fal_webhooks.wait()

    assert webhook.answered == 202


def test_faults_strike_webhooks(deliver, fal_webhooks, fal_faults, fal_clock):
    fal_clock.freeze()
    fal_faults.dns_failure(host="webhooks.test.fal", times=1)
    fal_faults.timeout(host="webhooks.test.fal", path="/", times=1)
    fal_faults.drop(host="webhooks.test.fal", after=1, times=1)
    delivery = deliver(httpx.Response(200, json=1))
    fal_webhooks.settle()
    fal_clock.advance(hours=1)

    problems = [one.problem for one in delivery.attempts]
    assert [problem and problem.split(":")[0] for problem in problems] == [
        "failed",
        "timed out",
        "failed",
        None,
    ]


def test_a_host_that_nobody_serves_is_tried_as_any(deliver, fal_webhooks, fal_clock, fal_ledger):
    fal_clock.freeze()
    delivery = deliver(httpx.Response(200, json=1), url="https://nobody.example/hook")
    fal_webhooks.settle()
    fal_clock.advance(hours=2)

    assert [one.problem for one in delivery.attempts] == ["failed: nothing answers this URL"] * 11
    assert delivery.state == "failed"
    fal_ledger.assert_requested(11, host="nobody.example", method="POST", path="/hook")


@pytest.mark.parametrize("url", ["hook", "https://", "ftp://x/y", "https://[::1/x"])
def test_what_is_no_url_fails(deliver, fal_webhooks, fal_clock, url):
    fal_clock.freeze()
    delivery = deliver(httpx.Response(200, json=1), url=url)
    fal_webhooks.settle()
    fal_clock.advance(hours=2)

    assert (delivery.state, len(delivery.attempts)) == ("failed", 11)


# --- receivers ------------------------------------------------------------------------------------


def test_a_route_of_the_tests_receives(deliver, fal_webhooks, fal_http):
    route = fal_http.post(ELSEWHERE).respond(200)
    delivery = deliver(httpx.Response(200, json={"n": 1}), url=ELSEWHERE)
    fal_webhooks.settle()

    [call] = route.calls
    assert json.loads(call.request.content)["payload"] == {"n": 1}
    assert as_a_receiver_should(call.request.headers, call.request.content)
    assert delivery.state == "delivered"


def test_what_a_route_raises_is_no_answer(deliver, fal_webhooks, fal_http, fal_clock):
    fal_clock.freeze()
    fal_http.post(ELSEWHERE).mock(
        side_effect=[httpx.ReadTimeout, httpx.ConnectError("no"), ZeroDivisionError]
    )
    delivery = deliver(httpx.Response(200, json=1), url=ELSEWHERE)
    fal_webhooks.settle()
    fal_clock.advance(21)

    assert [one.problem for one in delivery.attempts] == [
        "timed out: Mock Error",
        "failed: ConnectError: no",
        "failed: ZeroDivisionError",
    ]


def test_an_origin_receives(deliver, fal_webhooks, fal_origin):
    served = fal_origin.serve(ELSEWHERE)
    delivery = deliver(httpx.Response(200, json=1), url=ELSEWHERE)
    fal_webhooks.settle()

    assert delivery.state == "delivered"
    assert [request.method for request in served.requests] == ["POST"]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_an_app_receives_and_verifies(deliver, fal_webhooks, fal_runner, isolation):
    runner = fal_runner(apps_with_hooks.Shop, isolation=isolation)
    delivery = deliver(
        httpx.Response(200, json={"n": 1}), url=f"http://{runner.name}.runner.fal/hook"
    )
    fal_webhooks.settle(timeout=30)

    assert delivery.state == "delivered"
    assert runner.post("/orders").json() == [["r-1", True]]


def test_an_app_that_sleeps_too_long_gets_it_again(deliver, fal_webhooks, fal_runner, fal_clock):
    fal_clock.freeze()
    runner = fal_runner(apps_with_hooks.Shop)
    delivery = deliver(httpx.Response(200, json={"sleep": 20}), url=f"{runner.url}/hook")
    fal_webhooks.settle(timeout=30)

    assert [one.problem for one in delivery.attempts] == ["timed out after 15 s", None]
    assert runner.post("/orders").json() == [["r-1", True], ["r-1", True]]


def test_a_server_of_the_tests_own_receives(deliver, fal_webhooks, fal_ledger):
    came = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            came.append((self.headers, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("localhost", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        delivery = deliver(
            httpx.Response(200, json=1), url=f"http://localhost:{server.server_port}/"
        )
        fal_webhooks.settle()
        thread.join()

    [(headers, body)] = came
    assert as_a_receiver_should(headers, body)
    assert (delivery.state, delivery.attempts[0].status) == ("delivered", 204)
    note = "only here: the platform does not reach your localhost"
    assert fal_ledger.exchanges[0].notes == ["let through to the real host", note]


# --- the test's own means -------------------------------------------------------------------------


def test_send_needs_no_app(fal_webhooks, fal_emulator):
    fal_webhooks.send({"n": 1}, request_id="r-7")
    [webhook] = fal_webhooks.wait()

    assert (webhook.request_id, webhook.payload, webhook.verified) == ("r-7", {"n": 1}, True)
    assert webhook.headers["X-Fal-Webhook-User-Id"] == fal_emulator.owner.id


def test_send_is_the_users_as_whom_the_test_acts(fal_webhooks, fal_emulator):
    bob = fal_emulator.user("bob")
    with bob:
        fal_webhooks.send(status=500)
    [webhook] = fal_webhooks.wait()

    assert webhook.headers["X-Fal-Webhook-User-Id"] == bob.id
    assert webhook.error == "Invalid status code: 500"


def test_a_forged_webhook_is_signed_by_somebody_else(fal_webhooks):
    answer = fal_webhooks.forge({"paid": True})

    [webhook] = fal_webhooks.received
    assert answer.status_code == 200  # nobody looked
    assert (webhook.payload, webhook.verified, webhook.attempt) == ({"paid": True}, False, None)
    assert webhook.problem.startswith("No listed key matches the signature")
    assert not as_a_receiver_should(webhook.headers, webhook.body)


def test_a_forged_webhook_may_have_no_signature(fal_webhooks):
    fal_webhooks.forge(signed=False)

    [webhook] = fal_webhooks.received
    assert webhook.problem.startswith("The webhook has no header X-Fal-Webhook-Request-Id and no ")


def test_a_replay_is_as_it_was(fal_webhooks, fal_clock):
    fal_clock.freeze()
    fal_webhooks.send(1, url=f"{fal_webhooks.url}orders/7")
    [first] = fal_webhooks.wait()
    fal_clock.advance(300)
    fal_webhooks.replay(first)
    fal_clock.advance(1)
    fal_webhooks.replay(first)

    assert [one.verified for one in fal_webhooks.received] == [True, True, False]
    assert {one.body for one in fal_webhooks.received} == {first.body}
    assert {one.path for one in fal_webhooks.received} == {"/orders/7"}


def test_a_replay_with_another_payload_is_not_believed(fal_webhooks):
    fal_webhooks.send({"price": 1})
    [first] = fal_webhooks.wait()
    fal_webhooks.replay(first, payload={"price": 0})

    changed = fal_webhooks.received[1]
    assert (changed.request_id, changed.payload) == (first.request_id, {"price": 0})
    assert not changed.verified


def test_a_forged_webhook_gets_to_other_receivers(fal_webhooks, fal_http):
    fal_http.post(ELSEWHERE).respond(401)

    assert fal_webhooks.forge(url=ELSEWHERE).status_code == 401


def test_wait_says_what_happened_instead(fal_webhooks, fal_clock):
    fal_clock.freeze()
    fal_webhooks.answer(500)
    fal_webhooks.send()
    fal_webhooks.wait()

    with pytest.raises(EmulatorError) as error:
        fal_webhooks.wait(2, timeout=0.01)

    again = f"{fal_clock.now() + timedelta(seconds=7):%Y-%m-%d %H:%M:%S} UTC"
    assert str(error.value) == (
        "Waited 0.01 s for 2 webhooks, and 1 came to https://webhooks.test.fal/. Deliveries: "
        "Delivery to https://webhooks.test.fal/: pending, tried once (answered 500), again at "
        f"{again}. The platform tries again in 7 s of the clock: fal_clock.advance(7)."
    )


def test_wait_says_that_nothing_was_sent(fal_webhooks):
    with pytest.raises(EmulatorError) as error:
        fal_webhooks.wait(timeout=0)

    assert str(error.value) == (
        "Waited 0 s for 1 webhook, and none came to https://webhooks.test.fal/. "
        "Deliveries: none at all."
    )


def test_settle_says_who_has_not_answered(deliver, fal_webhooks, fal_faults):
    gate = fal_faults.gate(host="webhooks.test.fal")
    deliver(httpx.Response(200, json=1))
    gate.wait()

    with pytest.raises(EmulatorError) as error:
        fal_webhooks.settle(timeout=0)

    assert str(error.value) == (
        "Receivers have not answered after 0 s of real time: <Delivery to "
        "https://webhooks.test.fal/: pending, tried once>. If a gate holds one, open it, or move "
        "the clock past its time-out: fal_clock.advance(15)."
    )


def test_pending_deliveries_know_their_next_moment(deliver, fal_webhooks, fal_clock):
    fal_clock.freeze()
    fal_webhooks.answer(500)
    delivery = deliver(httpx.Response(200, json=1))
    fal_webhooks.wait()

    assert fal_webhooks.pending == [delivery]
    assert delivery.next_at == fal_clock.now() + timedelta(seconds=7)


def test_the_receiver_takes_posts_only(fal_webhooks):
    assert httpx.get(fal_webhooks.url).status_code == 405
    assert fal_webhooks.received == []


def test_what_is_no_webhook_is_received_too(fal_webhooks):
    requests.post(fal_webhooks.url, data=b"hello", timeout=10)

    [webhook] = fal_webhooks.received
    assert (webhook.body, webhook.request_id, webhook.verified) == (b"hello", None, False)


# --- the ledger and the end -----------------------------------------------------------------------


def test_the_ledger_tells_each_attempt(deliver, fal_webhooks, fal_clock, fal_ledger):
    fal_clock.freeze()
    fal_webhooks.answer(500)
    deliver(httpx.Response(200, json=1), url=f"{fal_webhooks.url}?token=secret")
    fal_webhooks.wait()
    again = f"{fal_clock.now() + timedelta(seconds=7):%Y-%m-%d %H:%M:%S} UTC"
    fal_clock.advance(7)

    assert events(fal_ledger) == [
        f"r-1 to https://webhooks.test.fal/?token=***: attempt 1 answered 500; again at {again}",
        "r-1 to https://webhooks.test.fal/?token=***: attempt 2 answered 200",
    ]
    sent = [(one.client, one.status, one.bytes_received) for one in fal_ledger.exchanges]
    size = len(fal_webhooks.received[0].body)
    assert sent == [("fal", 500, size), ("fal", 200, size)]


def test_what_is_pending_when_the_test_ends_is_dropped_and_told():
    with Emulator() as fal:
        fal.clock.freeze()
        fal.webhooks.answer(500)
        delivery = fal.webhooks.send()
        fal.webhooks.wait()
        again = f"{fal.clock.now() + timedelta(seconds=7):%Y-%m-%d %H:%M:%S} UTC"
        fal.stop()

        assert delivery.state == "dropped"
        assert events(fal.ledger)[-1] == (
            f"{delivery.request_id} to https://webhooks.test.fal/: was not delivered when the test "
            f"ended; the next attempt was due at {again}"
        )


def test_what_a_gate_holds_when_the_test_ends_is_dropped():
    with Emulator() as fal:
        gate = fal.faults.gate(host="webhooks.test.fal")
        delivery = fal.webhooks.send()
        gate.wait()
        fal.stop()

        assert (delivery.state, len(delivery.attempts)) == ("dropped", 1)


def test_what_ends_after_the_test_is_not_sent():
    with Emulator() as fal:
        platform = fal._webhooks
        fal.stop()
        delivery = platform.deliver(
            "https://x.example/", "r", "g", "u", httpx.Response(200, json=1)
        )

        assert (delivery.state, delivery.attempts) == ("dropped", [])


def test_the_next_test_begins_with_nothing():
    with Emulator() as fal:
        fal.webhooks.answer(500)
        fal.webhooks.handler = print
        fal.webhooks.forge()
        fal.webhooks.answer(500)
        fal.reset()

        assert (fal.webhooks.received, fal.webhooks.handler) == ([], None)
        assert fal.webhooks.forge().status_code == 200
