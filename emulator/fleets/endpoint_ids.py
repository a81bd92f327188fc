"""The names of endpoints, as they stand in the gateway's URLs [§6.1]: pure."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["NAME", "QueuedRequest", "endpoint_of", "owner_of", "queued_request"]

#: Names in them have one segment more.
_NAMESPACES = ("workflows/", "comfy/")
_SEGMENT = r"[A-Za-z0-9_.-]+"
_APP = rf"(?:{'|'.join(_NAMESPACES)})?{_SEGMENT}/{_SEGMENT}"
#: ``owner/app``, ``owner/app/path`` or ``workflows/owner/app``.
NAME = re.compile(rf"{_APP}(?:/{_SEGMENT})*")
_ENDPOINT = re.compile(rf"/({_APP})(/.*)?")
_REQUEST = re.compile(
    rf"/(?P<app>{_APP})(?:/.+?)?/requests/(?P<id>[^/]+)"
    r"(?P<call>|/response|/status|/status/stream|/cancel)/?"
)


class Endpoint(NamedTuple):
    """An endpoint of an app."""

    #: ``owner/app``, or ``workflows/owner/app``.
    app: str
    #: Of the endpoint in the app; ``"/"`` for its main one.
    path: str


class QueuedRequest(NamedTuple):
    """What is asked about a queued request."""

    app: str
    request_id: str
    #: ``""`` (its result), ``"status"``, ``"status/stream"`` or ``"cancel"``.
    call: str


def endpoint_of(path: str) -> Endpoint | None:
    """The endpoint that a URL's path names; None: it names none."""
    match = _ENDPOINT.fullmatch(path)
    if match is None or (match[1].count("/") == 1 and match[1].startswith(_NAMESPACES)):
        return None
    return Endpoint(match[1], match[2] or "/")


def owner_of(app: str) -> str:
    """Whose an app of this name is."""
    namespace = app.startswith(_NAMESPACES) and app.count("/") > 1
    return app.split("/")[1 if namespace else 0]


def queued_request(path: str) -> QueuedRequest | None:
    """What a URL's path asks about a queued request; None: nothing.

    The result stands at the request itself, and at ``/response`` below it: pages show both.
    """
    match = _REQUEST.fullmatch(path)
    if match is None:
        return None
    call = match["call"][1:]
    return QueuedRequest(match["app"], match["id"], "" if call == "response" else call)
