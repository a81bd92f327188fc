"""Which requests a fault strikes: the matchers of ``fal_faults``, without any request."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.errors import EmulatorError
from emulator.network.matching import Connection, Which

REQUEST = Connection("v3.fal.media", "192.88.99.1", "runner-1", "GET", "/files/a/b.png")
CONNECTION = Connection("v3.fal.media", "192.88.99.1", "runner-1")


class Named:
    """Stands for a runner, of which only the name counts."""

    name = "runner-1"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"host": "v3.fal.media"},
        {"host": "V3.FAL.MEDIA"},
        {"host": "*.fal.media"},
        {"host": "*"},
        {"method": "GET"},
        {"method": "get"},
        {"path": "/files/a/b.png"},
        {"path": "/files/*"},
        {"path": "*"},
        {"runner": "runner-1"},
        {"runner": Named()},
        {"address": "192.88.99.1"},
        {"host": "*.media", "method": "GET", "path": "/files/*", "runner": "runner-1"},
    ],
)
def test_a_request_fits(given: dict[str, Any]) -> None:
    assert Which.of(given).fits(REQUEST)


@pytest.mark.parametrize(
    "given",
    [
        {"host": "fal.media"},
        {"host": "v3.fal.*"},
        {"host": "*.fal.run"},
        {"host": "*.al.media"},
        {"method": "POST"},
        {"path": "/files/a"},
        {"path": "/b.png"},
        {"path": "*/b.png"},
        {"runner": "runner-2"},
        {"address": "192.88.99.2"},
        {"host": "*.media", "method": "POST"},
    ],
)
def test_a_request_does_not_fit(given: dict[str, Any]) -> None:
    assert not Which.of(given).fits(REQUEST)


@pytest.mark.parametrize("pattern", ["v3.fal.media", "*.fal.media"])
def test_the_case_of_a_name_does_not_matter(pattern: str) -> None:
    assert Which.of({"host": pattern}).fits(REQUEST._replace(host="V3.Fal.Media"))


@pytest.mark.parametrize("given", [{"method": "GET"}, {"path": "/files/*"}, {"path": "*"}])
def test_what_is_about_requests_does_not_fit_a_connection(given: dict[str, Any]) -> None:
    assert Which.of(given).is_of_requests
    assert not Which.of(given).fits(CONNECTION)


@pytest.mark.parametrize("given", [{}, {"host": "v3.fal.media"}, {"runner": "runner-1"}])
def test_what_is_not_fits_a_connection_too(given: dict[str, Any]) -> None:
    assert not Which.of(given).is_of_requests
    assert Which.of(given).fits(CONNECTION)


def test_unless_told_it_strikes_all_and_has_to_strike_once() -> None:
    assert Which.of({}) == Which(times=None, nth=None, optional=False)
    assert Which() == Which.of({"optional": False})
    assert Which.of({"optional": True}).optional


def test_the_nth_is_one_request_unless_told() -> None:
    assert Which.of({"nth": 3}) == Which(times=1, nth=3)
    assert Which.of({"nth": 1, "times": 2}) == Which(times=2, nth=1)
    assert Which.of({"times": 1}) == Which(times=1)


def test_what_was_given_is_not_changed() -> None:
    given = {"nth": 3, "host": "A.test"}
    Which.of(given)
    assert given == {"nth": 3, "host": "A.test"}


@pytest.mark.parametrize("name", ["host", "method", "path", "runner", "address", "times", "nth"])
def test_none_is_as_if_it_were_left_out(name: str) -> None:
    assert Which.of({name: None}) == Which()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"hots": "a.test", "hosts": "b.test"},
            "hots is no matcher of a fault. There are times, nth, host, method, path, runner, "
            "address, optional.",
        ),
        (
            {"times": 0},
            "A fault that strikes 0 times is none. Leave out times for all requests, or write for "
            "example times=1.",
        ),
        ({"nth": 0}, "There is no request number 0. The first one is nth=1."),
    ],
)
def test_what_can_never_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(EmulatorError) as caught:
        Which.of(given)
    assert str(caught.value) == message


def test_it_is_shown_as_it_is_written() -> None:
    which = Which.of({"nth": 2, "host": "*.Media", "optional": True})
    assert str(which) == "times=1, nth=2, host='*.media', optional=True"
