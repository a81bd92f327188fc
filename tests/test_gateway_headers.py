"""What the gateway does to headers on their way to an app and back [facts §4.6, §4.7, §6.3]."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator

import httpx
import pytest

from emulator.fleets.gateway_headers import (
    answer,
    caller_id,
    copy,
    error,
    forwarded,
    start_deadline,
    undeployed,
    whole,
)

PACKED = gzip.compress(b"hello", mtime=0)


class UnderWay(httpx.SyncByteStream):
    """A body that comes in pieces."""

    def __iter__(self) -> Iterator[bytes]:
        yield from (PACKED[:5], PACKED[5:])


def packed(stream: httpx.SyncByteStream) -> httpx.Response:
    headers = [("content-encoding", "gzip"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]
    return httpx.Response(201, headers=headers, stream=stream)


# --- to the app -----------------------------------------------------------------------------------


def test_a_callers_headers_reach_the_app_beside_the_gateways() -> None:
    sent, refused = forwarded({"accept": "a", "x-other": "b"}, {"x-fal-request-id": "7"})
    assert sent == {"accept": "a", "x-other": "b", "x-fal-request-id": "7"}
    assert refused == []


@pytest.mark.parametrize(
    "name",
    [
        "x-fal-request-timeout",
        "x-fal-no-retry",
        "x-fal-retry-config",
        "x-fal-store-io",
        "x-fal-queue-priority",
        "x-fal-runner-hint",
    ],
)
def test_what_callers_tell_the_gateway_goes_no_further(name: str) -> None:
    assert forwarded({name: "1"}, {}) == ({}, [])


def test_the_lifecycle_preference_is_the_apps_to_read() -> None:
    preference = {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 60}'}
    assert forwarded(preference, {}) == (preference, [])


def test_callers_cannot_set_the_gateways_headers() -> None:
    given = {"x-fal-request-id": "mine", "x-fal-caller-user-id": "somebody"}
    sent, refused = forwarded(given, {"x-fal-request-id": "7"})
    assert sent == {"x-fal-request-id": "7"}
    assert refused == ["x-fal-request-id", "x-fal-caller-user-id"]


def test_a_header_of_the_gateways_wins_whatever_its_name() -> None:
    assert forwarded({"host": "theirs"}, {"host": "ours"}) == ({"host": "ours"}, [])


def test_the_token_that_a_nested_call_brings_along_wins() -> None:
    gateway = {"x-fal-cdn-token": "ours"}
    assert forwarded({"x-fal-cdn-token": "theirs"}, gateway) == ({"x-fal-cdn-token": "theirs"}, [])
    assert forwarded({}, gateway) == (gateway, [])


def test_the_owner_is_seen_by_name_and_others_as_a_hash() -> None:
    assert caller_id("ann", "ann") == "ann"
    assert caller_id("bob", "ann") == hashlib.sha256(b"bob").hexdigest()


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("30", 30.0), ("0.11", 0.11), ("1e9", 1e9)]
)
def test_a_request_may_have_to_start_within_seconds(
    text: str | None, seconds: float | None
) -> None:
    assert start_deadline(text) == seconds


@pytest.mark.parametrize("text", ["0.1", "0", "-1", "soon", "inf", "nan"])
def test_within_what_is_no_number_above_a_tenth_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        start_deadline(text)


# --- to the caller --------------------------------------------------------------------------------


def test_what_the_app_tells_the_gateway_goes_no_further() -> None:
    headers = {"X-Fal-Needs-Retry": "1", "x-fal-stop-runner": "1", "x-fal-request-id": "its own"}
    given = httpx.Response(503, headers={**headers, "x-mine": "a"}, content=b"busy")
    found = answer(given, "7", "runner-1")
    assert (found.status_code, found.content) == (503, b"busy")
    assert found.headers.multi_items() == [
        ("x-mine", "a"),
        ("content-length", "4"),
        ("x-fal-request-id", "7"),
        ("x-fal-served-from", "runner-1"),
    ]


def test_an_answer_that_is_whole_stays_so_and_packed() -> None:
    found = answer(packed(httpx.ByteStream(PACKED)), "7", "runner-1")
    assert found.is_stream_consumed
    assert isinstance(found.stream, httpx.ByteStream)
    assert list(found.stream) == [PACKED]
    assert found.content == b"hello"


def test_an_answer_under_way_stays_under_way() -> None:
    stream = UnderWay()
    found = answer(packed(stream), "7", "runner-1")
    assert found.stream is stream
    assert (found.status_code, found.headers["x-fal-served-from"]) == (201, "runner-1")
    assert found.read() == b"hello"


@pytest.mark.parametrize("how", [whole, copy])
def test_a_whole_answer_has_the_bytes_that_the_app_sent(how) -> None:
    stream = UnderWay() if how is whole else httpx.ByteStream(PACKED)
    found = how(packed(stream))
    assert isinstance(found.stream, httpx.ByteStream)
    assert list(found.stream) == [PACKED]
    assert (found.status_code, found.content) == (201, b"hello")
    assert found.headers.get_list("set-cookie") == ["a=1", "b=2"]


# --- of the gateway itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status", "detail"),
    [
        ("request_timeout", 504, "Request timed out"),
        ("startup_timeout", 504, "Runner did not start in time"),
        ("runner_scheduling_failure", 503, "No runner could be allocated"),
        ("runner_disconnected", 503, "Runner disconnected"),
        ("runner_connection_refused", 503, "Runner refused the connection"),
        ("runner_connection_error", 503, "Connection to the runner failed"),
        ("runner_incomplete_response", 502, "The runner's response was incomplete"),
        ("client_cancelled", 499, "Request was cancelled by the client"),
        ("client_disconnected", 499, "The client closed the connection"),
        ("bad_request", 400, "Bad request"),
    ],
)
def test_an_error_of_the_gateways_says_its_type(kind, status: int, detail: str) -> None:
    found = error(kind, "7")
    assert found.status_code == status
    assert found.json() == {"detail": detail, "error_type": kind}
    assert (found.headers["x-fal-error-type"], found.headers["x-fal-request-id"]) == (kind, "7")


def test_an_error_may_say_more() -> None:
    found = error("bad_request", "7", "X-Fal-Request-Timeout is 'soon'")
    assert found.json() == {
        "detail": "X-Fal-Request-Timeout is 'soon'",
        "error_type": "bad_request",
    }


def test_an_app_that_was_taken_down_is_not_found() -> None:
    found = undeployed("owner/app", "7")
    assert (found.status_code, found.headers["x-fal-request-id"]) == (404, "7")
    assert found.json() == {
        "detail": "Application 'owner/app' not found: it was undeployed",
    }
