"""Responses: small ones from bytes or JSON, large ones as streams that hold nothing in memory."""

from __future__ import annotations

import json as json_module
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import httpx

__all__ = ["Body", "ends_by_closing", "json_reply", "reply"]


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A response body that every client can read.

    Args:
        chunks: where the bytes come from; iterated once.
        count: told the size of each chunk as it is handed out.
        inner: the body that *chunks* are made from; closed together with this one, which a
            generator that was never begun would not do.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        count: Callable[[int], None] | None = None,
        inner: object = None,
    ) -> None:
        self._chunks = chunks
        self._inner = inner
        self.count = count

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._chunks:
                if self.count is not None:
                    # Before it is handed out: a client that has it finds it counted.
                    self.count(len(chunk))
                yield chunk
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk

    def close(self) -> None:
        """The client is done, or gone."""
        for part in (self._chunks, self._inner):
            close = getattr(part, "close", None)
            if close is not None:
                close()

    async def aclose(self) -> None:
        """The client is done."""
        self.close()


def reply(
    status: int = 200,
    content: bytes | str = b"",
    *,
    content_type: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    stream: Iterable[bytes] | None = None,
    length: int | None = None,
) -> httpx.Response:
    """A response from bytes, or from a *stream* of *length* bytes (None: length not told)."""
    fields = list(headers)
    if content_type is not None:
        fields.append(("content-type", content_type))
    if stream is not None:
        if length is not None:
            fields.append(("content-length", str(length)))
        return httpx.Response(status, headers=_encoded(fields), stream=Body(stream))
    body = content.encode() if isinstance(content, str) else content
    if status not in (204, 304):
        fields.append(("content-length", str(len(body))))
    return httpx.Response(status, headers=_encoded(fields), stream=Body((body,) if body else ()))


def _encoded(fields: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """As they are sent; httpx encodes ASCII only, and who uploads a file may name any type."""
    return [(name.encode(), value.encode("utf-8", "replace")) for name, value in fields]


def ends_by_closing(response: httpx.Response) -> bool:
    """Whether nothing but the end of the connection tells where its body ends."""
    headers = response.headers
    return "content-length" not in headers and "close" in headers.get("connection", "").lower()


def json_reply(
    data: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()
) -> httpx.Response:
    """A JSON response."""
    body = json_module.dumps(data).encode()
    return reply(status, body, content_type="application/json", headers=headers)
