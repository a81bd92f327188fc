"""Everybody else's servers: files that a test serves at any URL, with the quirks servers have."""

from __future__ import annotations

import gzip as gzip_module
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import httpx

from emulator.checks import fail, happened, listed, short
from emulator.errors import EmulatorError
from emulator.ledger import Exchange
from emulator.network.reply import json_reply, reply
from emulator.storage.lifecycle import ByteRange, Unsatisfiable, parse_range

__all__ = ["Origin", "ServedFile"]

_BLOCK = bytes(range(256)) * 4096  # 1 MiB, the content of synthetic bodies, repeated


@dataclass(eq=False)
class ServedFile:
    """A file that the test serves. Change it at any time; the next request sees it."""

    #: Where it is served.
    url: str
    #: The bytes; empty where ``size`` makes them.
    content: bytes = field(repr=False)
    #: Bytes of a synthetic body; None: it is ``content``.
    size: int | None
    #: HTTP status of the answer.
    status: int
    #: Header of that name; None: none is sent.
    content_type: str | None
    #: ``"true"``, ``"absent"``, or a false number.
    content_length: Literal["true", "absent"] | int
    #: Whether it is sent compressed.
    gzip: bool
    #: Whether ranges can be asked for.
    ranges: bool
    #: Other headers of the answer.
    headers: dict[str, str]
    #: Headers without which a request is refused.
    require_headers: dict[str, str]
    #: Status of that refusal.
    require_status: int
    #: URL to which requests are sent on; None: none.
    redirect_to: str | None
    #: The requests that reached it, in order.
    requests: list[Exchange] = field(default_factory=list, repr=False)
    #: Body bytes that each of them is to get, by its number, where it asked for the file's content.
    _lengths: dict[int, int] = field(default_factory=dict, repr=False)

    @property
    def downloads(self) -> int:
        """How often it was downloaded: the GETs whose answer was 200 or 206 and taken whole."""
        return sum(
            exchange.status in (200, 206)
            and exchange.bytes_sent >= self._lengths.get(exchange.number, exchange.bytes_sent + 1)
            for exchange in self.requests
        )

    def assert_downloaded(self, times: int = 1) -> None:
        """Fail unless it was downloaded so often; see :attr:`downloads`."""
        __tracebackhide__ = True
        found = self.downloads
        if found != times:
            self._fail(happened("downloaded", found, times))

    def assert_not_requested(self) -> None:
        """Fail if anybody asked for it, in whatever way and with whatever success."""
        __tracebackhide__ = True
        if self.requests:
            self._fail(happened("requested", len(self.requests), 0))

    def _fail(self, what: str) -> None:
        __tracebackhide__ = True
        requests = [short(one, self._lengths.get(one.number)) for one in self.requests]
        fail(f"{self.url} {what}: {listed(requests) or 'nobody asked for it'}")

    @property
    def bytes_sent(self) -> int:
        """Body bytes that clients really took, of all requests together."""
        return sum(exchange.bytes_sent for exchange in self.requests)

    def update(self, content: bytes | str) -> None:
        """Serve other content from now on."""
        self.content = content.encode() if isinstance(content, str) else content
        self.size = None


class Origin:
    """Serves files at URLs of the test's choosing."""

    def __init__(self) -> None:
        self._served: dict[tuple[str, str, str], ServedFile] = {}
        self._hosts: set[str] = set()

    def reset(self) -> None:
        """Serve nothing."""
        self._served.clear()
        self._hosts.clear()

    def serve(
        self,
        url: str,
        content: bytes | str = b"",
        *,
        size: int | None = None,
        status: int = 200,
        content_type: str | None = None,
        file_name: str | None = None,
        content_disposition: str | None = None,
        content_length: Literal["true", "absent"] | int = "true",
        chunked: bool = False,
        gzip: bool = False,
        ranges: bool = True,
        headers: Mapping[str, str] | None = None,
        require_headers: Mapping[str, str] | None = None,
        require_status: int = 401,
        redirect_to: str | None = None,
    ) -> ServedFile:
        """Serve a file.

        Args:
            url: where. With a query it answers just that query, without one any query.
            content: what.
            size: instead of *content*, a synthetic body of this many bytes, made as it is sent.
            status: HTTP status.
            content_type: media type; default: none is sent.
            file_name: sent as ``Content-Disposition: attachment; filename="..."``.
            content_disposition: the whole header, instead of *file_name*.
            content_length: ``"true"``, ``"absent"`` (the body ends with the connection, and one
                that is cut short looks whole), or a number that may be a lie. A body that is
                longer than that ends there, as HTTP frames it.
            chunked: send in chunks, which also means without a Content-Length.
            gzip: compress, whether or not the client accepts it.
            ranges: answer ``Range`` requests.
            headers: further response headers.
            require_headers: request headers that must be there with these values.
            require_status: the answer where they are not.
            redirect_to: answer 302 (or *status*, if it is 3xx) to there; may be relative.

        Returns:
            The file, which counts its requests and bytes.

        Raises:
            EmulatorError: the URL or a combination of options makes no sense.
        """
        key = _key(url)
        _check_content(content, has_size=size is not None, gzip=gzip)
        if chunked and content_length != "true":
            raise EmulatorError(
                "serve(chunked=True) has no Content-Length; leave out content_length, or chunked."
            )
        if file_name is not None and content_disposition is not None:
            raise EmulatorError(
                "serve(content_disposition=...) is the whole header; leave out file_name, or it."
            )
        extra = {name.lower(): value for name, value in (headers or {}).items()}
        if file_name is not None:
            content_disposition = _attachment(file_name)
        if content_disposition is not None:
            extra["content-disposition"] = content_disposition
        if chunked:
            extra["transfer-encoding"] = "chunked"
        elif content_length == "absent":
            extra["connection"] = "close"
        served = ServedFile(
            url=url,
            content=content.encode() if isinstance(content, str) else content,
            size=size,
            status=302 if redirect_to is not None and not 300 <= status < 400 else status,
            content_type=content_type,
            content_length="absent" if chunked else content_length,
            gzip=gzip,
            ranges=ranges,
            headers=extra,
            require_headers={n.lower(): v for n, v in (require_headers or {}).items()},
            require_status=require_status,
            redirect_to=redirect_to,
        )
        self._served[key] = served
        self._hosts.add(_host(url))
        return served

    def answers(self, host: str) -> bool:
        """Whether anything is served at this host."""
        return host in self._hosts

    def __repr__(self) -> str:
        return f"<Origin: {len(self._served)} files served>"

    @property
    def hosts(self) -> list[str]:
        """The host names at which something is served."""
        return sorted(self._hosts)

    def served_at(self, host: str) -> list[str]:
        """The URLs served at a host, for the message about one that is not."""
        return [file.url for file in self._served.values() if _host(file.url) == host]

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response | None:
        """Answer, if this very URL is served."""
        origin, path, query = _key(str(request.url))
        served = self._served.get((origin, path, query)) or self._served.get((origin, path, ""))
        if served is None:
            return None
        served.requests.append(exchange)
        return _respond(served, request, exchange)


def _check_content(content: object, *, has_size: bool, gzip: bool) -> None:
    """Refuse what cannot be a body, or is one beside a synthetic one."""
    if not isinstance(content, (bytes, bytearray, str)):
        raise EmulatorError(
            f"serve(content=...) is bytes or text, not {type(content).__name__}. For a server "
            "of your own write a route: fal_http.route(host=...).mock(side_effect=...); "
            "docs/webhooks.md shows one for an ASGI app."
        )
    if has_size and (content or gzip):
        raise EmulatorError(
            "serve(size=...) makes a synthetic body; leave out content and gzip, or size."
        )


def _respond(served: ServedFile, request: httpx.Request, exchange: Exchange) -> httpx.Response:
    for name, value in served.require_headers.items():
        if request.headers.get(name) != value:
            detail = f"header {name} is missing or wrong"
            return json_reply({"detail": detail}, served.require_status)
    headers = list(served.headers.items())
    if served.content_type is not None:
        headers.append(("content-type", served.content_type))
    if served.redirect_to is not None:
        location = ("location", served.redirect_to)
        return reply(served.status, headers=[*headers, location])
    if served.gzip:
        headers.append(("content-encoding", "gzip"))
    content = gzip_module.compress(served.content, 6, mtime=0) if served.gzip else served.content
    return _deliver(served, request, exchange, headers, content)


def _deliver(
    served: ServedFile,
    request: httpx.Request,
    exchange: Exchange,
    headers: list[tuple[str, str]],
    content: bytes,
) -> httpx.Response:
    total = len(content) if served.size is None else served.size
    start, end, status = 0, total, served.status
    if served.ranges and status == 200 and isinstance(served.content_length, str):
        headers.append(("accept-ranges", "bytes"))
        wanted = parse_range(request.headers.get("range"), total)
        if isinstance(wanted, Unsatisfiable):
            return reply(416, headers=[*headers, ("content-range", wanted.content_range)])
        if isinstance(wanted, ByteRange):
            start, end, status = wanted.start, wanted.end, 206
            headers.append(("content-range", wanted.content_range))
    length = end - start
    if isinstance(served.content_length, int):
        length = served.content_length
        end = min(end, length)
    if request.method == "GET":
        served._lengths[exchange.number] = length
    stream = _slices(content, start, end) if served.size is None else _synthetic(start, end)
    return reply(
        status,
        headers=headers,
        stream=() if request.method == "HEAD" else stream,
        length=None if served.content_length == "absent" else length,
    )


def _slices(content: bytes, start: int, end: int) -> Iterator[bytes]:
    if (start, end) == (0, len(content)) and end <= len(_BLOCK):
        yield content
        return
    for position in range(start, end, len(_BLOCK)):
        yield content[position : min(end, position + len(_BLOCK))]


def _synthetic(start: int, end: int) -> Iterator[bytes]:
    """Bytes *start* to *end* of an endless repetition of one block."""
    while start < end:
        offset = start % len(_BLOCK)
        piece = _BLOCK[offset : offset + min(len(_BLOCK) - offset, end - start)]
        yield piece
        start += len(piece)


def _key(url: str) -> tuple[str, str, str]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EmulatorError(
            f"{url!r} is no URL to serve at. Write it whole, "
            f'for example "https://example.com/model.bin".'
        )
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    # Clients differ in what they quote; here all spellings of a URL are one.
    path = urllib.parse.unquote(parts.path or "/")
    return f"{parts.scheme}://{_host(url)}:{port}", path, urllib.parse.unquote_plus(parts.query)


def _attachment(file_name: str) -> str:
    """The header that names a file, in the form of RFC 6266 where its name needs that."""
    if not file_name.isascii():
        return f"attachment; filename*=UTF-8''{urllib.parse.quote(file_name, safe='')}"
    quoted = file_name.replace("\\", "\\\\").replace('"', '\\"')
    return f'attachment; filename="{quoted}"'


def _host(url: str) -> str:
    return (urllib.parse.urlsplit(url).hostname or "").lower()
