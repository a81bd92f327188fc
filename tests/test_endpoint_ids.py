"""The names of endpoints in the gateway's URLs [facts §6.1]."""

from __future__ import annotations

import pytest

from emulator.fleets.endpoint_ids import NAME, endpoint_of, owner_of, queued_request


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/owner/app", ("owner/app", "/")),
        ("/owner/app/", ("owner/app", "/")),
        ("/owner/app/edit", ("owner/app", "/edit")),
        ("/owner/app/edit/fast", ("owner/app", "/edit/fast")),
        ("/a.b-c_1/D.e", ("a.b-c_1/D.e", "/")),
        ("/workflows/owner/app", ("workflows/owner/app", "/")),
        ("/workflows/owner/app/edit", ("workflows/owner/app", "/edit")),
        ("/comfy/owner/app", ("comfy/owner/app", "/")),
        ("/workflowsx/owner/app", ("workflowsx/owner", "/app")),
    ],
)
def test_a_path_names_an_endpoint(path: str, endpoint: tuple[str, str]) -> None:
    found = endpoint_of(path)
    assert found == endpoint
    assert (found.app, found.path) == endpoint  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/owner",
        "/owner/",
        "owner/app",
        "/own er/app",
        "//app",
        "/owner/a b",
        "/workflows/app",
        "/comfy/app",
    ],
)
def test_a_path_names_none(path: str) -> None:
    assert endpoint_of(path) is None


@pytest.mark.parametrize(
    ("app", "owner"),
    [
        ("owner/app", "owner"),
        ("owner/app/edit", "owner"),
        ("workflows/owner/app", "owner"),
        ("comfy/owner/app", "owner"),
        ("workflows/app", "workflows"),
    ],
)
def test_whose_an_app_is(app: str, owner: str) -> None:
    assert owner_of(app) == owner


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/owner/app/requests/7", ("owner/app", "7", "")),
        ("/owner/app/requests/7/", ("owner/app", "7", "")),
        ("/owner/app/requests/7/response", ("owner/app", "7", "")),
        ("/owner/app/requests/7/status", ("owner/app", "7", "status")),
        ("/owner/app/requests/7/status/", ("owner/app", "7", "status")),
        ("/owner/app/requests/7/status/stream", ("owner/app", "7", "status/stream")),
        ("/owner/app/requests/7/cancel", ("owner/app", "7", "cancel")),
        ("/owner/app/edit/fast/requests/7/status", ("owner/app", "7", "status")),
        ("/workflows/owner/app/requests/7", ("workflows/owner/app", "7", "")),
    ],
)
def test_a_path_asks_about_a_queued_request(path: str, asked: tuple[str, str, str]) -> None:
    found = queued_request(path)
    assert found == asked
    assert (found.app, found.request_id, found.call) == asked  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "path",
    [
        "/owner/app",
        "/owner/app/requests",
        "/owner/app/requests/",
        "/owner/requests/7",
        "/owner/app/requests/7/statuses",
        "/owner/app/requests/7/status/more",
        "owner/app/requests/7",
    ],
)
def test_a_path_asks_about_none(path: str) -> None:
    assert queued_request(path) is None


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("owner/app", True),
        ("owner/app/edit/fast", True),
        ("workflows/owner/app", True),
        ("owner", False),
        ("owner/app/", False),
        ("/owner/app", False),
        ("owner/a b", False),
    ],
)
def test_what_an_app_may_be_called(name: str, good: bool) -> None:
    assert (NAME.fullmatch(name) is not None) is good
