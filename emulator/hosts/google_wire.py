"""What Google's storage answers, and what its uploads look like: functions of one message."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from xml.sax.saxutils import escape

import httpx

from emulator.network.reply import json_reply, reply
from emulator.storage.google import GoogleBucket, GoogleObject
from emulator.storage.lifecycle import ByteRange, Unsatisfiable, parse_range

__all__ = [
    "Refusal",
    "answer_acl",
    "answer_policy",
    "decode",
    "deliver",
    "hashes",
    "is_public",
    "objects_in",
    "read_json",
    "read_related",
]


class Refusal(Exception):  # noqa: N818 - an answer
    """A refusal, by the JSON API or, with a *code*, in XML."""

    def __init__(self, status: int, message: str, reason: str = "", code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.code = code

    def response(self) -> httpx.Response:
        """As it goes to the client."""
        message = str(self)
        if self.code:
            known, _, details = message.partition("|")
            inner = f"<Code>{self.code}</Code><Message>{escape(known)}</Message>"
            inner += f"<Details>{escape(details)}</Details>" if details else ""
            body = f"<?xml version='1.0' encoding='UTF-8'?><Error>{inner}</Error>"
            return reply(self.status, body, content_type="application/xml; charset=UTF-8")
        errors = [{"message": message, "domain": "global", "reason": self.reason}]
        return json_reply(
            {"error": {"code": self.status, "message": message, "errors": errors}}, self.status
        )


def deliver(request: httpx.Request, found: GoogleObject) -> httpx.Response:
    """The bytes of an object, or the range of them that is asked for."""
    size = len(found.data)
    headers = [
        ("content-type", found.content_type),
        ("etag", f'"{found.md5}"'),
        ("x-goog-hash", f"md5={found.md5}"),
        ("x-goog-generation", str(found.generation)),
        ("accept-ranges", "bytes"),
    ]
    for field, header in (
        ("cacheControl", "cache-control"),
        ("contentDisposition", "content-disposition"),
        ("contentEncoding", "content-encoding"),
    ):
        if found.resource.get(field):
            headers.append((header, str(found.resource[field])))
    status, start, end = 200, 0, size
    wanted = parse_range(request.headers.get("range"), size)
    if isinstance(wanted, Unsatisfiable):
        why = "The requested range cannot be satisfied."
        raise Refusal(416, why, code="InvalidRange")
    if isinstance(wanted, ByteRange):
        status, start, end = 206, wanted.start, wanted.end
        headers.append(("content-range", f"bytes {start}-{end - 1}/{size}"))
    chunks = () if request.method == "HEAD" else (found.data[start:end],)
    return reply(status, headers=headers, stream=chunks, length=end - start)


_EVERYBODY = "allUsers"


def answer_acl(request: httpx.Request, found: GoogleObject) -> httpx.Response:
    """The rules of an object; the only one that counts is whether everybody may read it."""
    if request.method == "POST":
        found.public = found.public or read_json(request.read()).get("entity") == _EVERYBODY
    elif request.method == "DELETE":
        found.public = found.public and _EVERYBODY not in request.url.path
        return reply(204)
    return json_reply({"kind": "storage#objectAccessControls", "items": found.as_json["acl"]})


def answer_policy(
    request: httpx.Request, bucket: GoogleBucket, is_test: bool = False
) -> httpx.Response:
    """Who may do what with a bucket; likewise. *is_test*: whether who asks may, which he may."""
    if is_test:
        asked = request.url.params.get_list("permissions")
        return json_reply({"kind": "storage#testIamPermissionsResponse", "permissions": asked})
    if request.method == "PUT":
        bindings = objects_in(read_json(request.read()).get("bindings"))
        bucket.public = any(_EVERYBODY in (one.get("members") or ()) for one in bindings)
    readers = {"role": "roles/storage.objectViewer", "members": [_EVERYBODY]}
    answer = {"kind": "storage#policy", "version": 1, "etag": "CAE="}
    return json_reply({**answer, "bindings": [readers] if bucket.public else []})


def is_public(acl: Any, before: bool) -> bool:
    """Whether a list of access rules lets everybody read; *before* where there is none."""
    if not isinstance(acl, list):
        return before
    return any(one.get("entity") == _EVERYBODY for one in objects_in(acl))


def read_related(declared: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The two parts of an upload: what it is, in JSON, and its bytes."""
    boundary = re.search(r'boundary="?([^";]+)"?', declared)
    if boundary is None:
        raise Refusal(400, "Missing boundary in multipart/related.", "badContent")
    delimiter = b"--" + boundary[1].encode()
    _, _, rest = body.partition(delimiter)
    first, _, rest = rest.partition(b"\r\n" + delimiter)
    second = rest[: rest.rfind(b"\r\n" + delimiter)]
    _, _, text = first.partition(b"\r\n\r\n")
    head, _, data = second.partition(b"\r\n\r\n")
    resource = read_json(text)
    kind = re.search(rb"content-type:\s*([^\r\n]+)", head, re.IGNORECASE)
    if kind is not None:
        resource.setdefault("contentType", kind[1].decode("latin-1"))
    return resource, data


def read_json(body: bytes) -> dict[str, Any]:
    """An object of JSON; nothing is an empty one."""
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise Refusal(400, "Parse Error", "parseError") from None
    return found if isinstance(found, dict) else {}


def objects_in(value: Any) -> list[dict[str, Any]]:
    """A list of objects in JSON; nothing is an empty one.

    Raises:
        Refusal: 400, it is something else.
    """
    found = [] if value is None else value
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Refusal(400, "Invalid value: a list of objects is expected", "invalid")
    return found


def hashes(request: httpx.Request) -> str:
    """What the client says of its bytes, as ``crc32c=...,md5=...``."""
    return str(request.headers.get("x-goog-hash", ""))


def decode(text: str) -> bytes:
    """Base64 as tokens have it: for URLs, without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
