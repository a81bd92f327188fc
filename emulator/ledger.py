"""What happened, in order: every exchange, what was refused, what the test should know about."""

from __future__ import annotations

import re
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from emulator.checks import fail, happened, listed

__all__ = ["Event", "Exchange", "Ledger", "is_secret", "masked"]

_SECRET_HEADERS = frozenset(
    {
        *("cookie", "set-cookie", "x-auth", "x-session"),
        "x-app-fal-upload-policy",  # which has signatures
    }
)
#: They only sound like it.
_PLAIN_HEADERS = frozenset(
    {
        *("sec-websocket-key", "idempotency-key", "x-idempotency-key", "surrogate-key"),
        "access-control-allow-credentials",
    }
)
#: Have a URL, maybe without its host.
_ADDRESSES = frozenset({"location", "content-location", "referer"})
_SECRET_PARAMETERS = (
    *("token", "signature", "identity", "key", "secret", "credential", "jwt", "hmac"),
    *("password", "passwd", "pwd", "session", "authorization"),
)
#: As a whole name only: ``author`` is none, nor ``design``.
_SECRET_NAMES = ("auth", "pass", "bearer", "sig")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s\"'<>]+")
#: A credential as it stands in a header, and in what quotes one.
_CREDENTIAL = re.compile(
    r"\b((?:[Bb]earer|Basic|Key) +|(?:Credential|Signature)=)(?=\S*[0-9:=_-])[^\s,;&\"']+"
)


@dataclass(eq=False, repr=False)
class Exchange:
    """One request and what became of it."""

    #: Counted from 1, within the test.
    number: int
    #: Virtual time of the request.
    at: datetime
    #: What sent it: ``"httpx"``, ``"urllib"`` or ``"wire"`` (any other client, over a socket);
    #: ``"node"``: the node's uploader, to a bucket; ``"fal"``: the platform, a webhook.
    client: str
    #: HTTP method.
    method: str
    #: The URL, with the values of secret parameters replaced by ``***``.
    url: str
    #: Path on the host, without the query.
    path: str
    #: Name of the host, without the port.
    host: str
    #: Lower-case header names; credentials are replaced by ``***``.
    request_headers: dict[str, str] = field(repr=False)
    #: Name of the runner that sent it, None for the test itself.
    runner: str | None = None
    #: The address that the client connected to; in process only while faults are injected.
    address: str | None = None
    #: The nickname of the user who asks, where fal's hosts were shown a valid credential.
    user: str | None = None
    #: HTTP status of the answer; None: there is none, or not yet.
    status: int | None = None
    #: Lower-case header names; credentials are replaced by ``***``.
    response_headers: dict[str, str] = field(default_factory=dict, repr=False)
    #: Body bytes of the request that really moved.
    bytes_received: int = 0
    #: Body bytes of the answer that the client really took.
    bytes_sent: int = 0
    #: What the emulator has to say about it: a fault that struck, an unknown lifecycle key.
    notes: list[str] = field(default_factory=lambda: _Notes())

    @property
    def wants_websocket(self) -> bool:
        """Whether the request asks for a websocket."""
        return self.request_headers.get("upgrade", "").lower() == "websocket"

    def __repr__(self) -> str:
        by = f" by {self.runner}" if self.runner else ""
        return f"<#{self.number} {self.method} {self.url}: {self.status or 'no answer'}{by}>"


@dataclass(frozen=True)
class Event:
    """Something that is no exchange: a runner's state, an expiry, a refused connection."""

    #: Virtual time.
    at: datetime
    #: What it is about: ``"runner"``, ``"expired"``, ``"refused"``.
    kind: str
    #: What happened, in words.
    text: str
    #: As fal's own API names it, where it does: ``"runner_started"`` [§4.1].
    category: str | None = None


class Ledger:
    """The record of one test. Credentials never get into it."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._lock = threading.Lock()
        #: Every exchange of the test, in order.
        self.exchanges: list[Exchange] = []
        self._events: list[Event] = []
        #: Called before events are read: adds those that are known of only now.
        self.before_reading: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<Ledger: {len(self.exchanges)} exchanges>"

    def reset(self) -> None:
        """Forget everything."""
        self.exchanges = []
        self._events = []

    @property
    def events(self) -> list[Event]:
        """Everything else that happened, in order."""
        self.before_reading()
        return self._events

    def open(
        self,
        client: str,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]],
        runner: str | None = None,
    ) -> Exchange:
        """Record a request."""
        shown = masked(url)
        host, path = _split(shown.partition("?")[0])
        exchange = Exchange(
            number=0,
            at=self._now(),
            client=client,
            method=method,
            url=shown,
            path=path,
            host=host,
            request_headers=redact_headers(headers),
            runner=runner,
        )
        with self._lock:
            exchange.number = len(self.exchanges) + 1
            self.exchanges.append(exchange)
        return exchange

    def event(
        self, kind: str, text: str, category: str | None = None, at: datetime | None = None
    ) -> None:
        """Record something else that happened, at the present virtual time or an earlier one."""
        place = len(self._events)
        while at is not None and place and self._events[place - 1].at > at:
            place -= 1
        self._events.insert(place, Event(at or self._now(), kind, masked_text(text), category))

    def requests(
        self, host: str | None = None, method: str | None = None, path: str | None = None
    ) -> list[Exchange]:
        """The exchanges with this host, method and path; a path that ends in ``*`` is a prefix."""
        return [
            exchange
            for exchange in self.exchanges
            if (host is None or exchange.host == host)
            and (method is None or exchange.method == method.upper())
            and (path is None or matches_path(path, exchange.path))
        ]

    def bytes_sent(
        self, host: str | None = None, method: str | None = None, path: str | None = None
    ) -> int:
        """Body bytes that clients took in the answers to such :meth:`requests`: downloaded."""
        return sum(exchange.bytes_sent for exchange in self.requests(host, method, path))

    def bytes_received(
        self, host: str | None = None, method: str | None = None, path: str | None = None
    ) -> int:
        """Body bytes that clients sent with such :meth:`requests`: uploaded."""
        return sum(exchange.bytes_received for exchange in self.requests(host, method, path))

    def assert_requested(
        self,
        times: int | None = None,
        *,
        host: str | None = None,
        method: str | None = None,
        path: str | None = None,
    ) -> None:
        """Fail unless there were so many such :meth:`requests`; by default at least one."""
        __tracebackhide__ = True
        found = self.requests(host, method, path)
        if not found if times is None else len(found) != times:
            given = {"host": host, "method": method, "path": path}
            wanted = [f"{name}={value!r}" for name, value in given.items() if value is not None]
            evidence = listed([_shown(exchange) for exchange in found or self.exchanges])
            fail(
                f"a request{' with ' if wanted else ''}{listed(wanted)} "
                f"{happened('sent', len(found), times)}: "
                f"{'' if found else 'there was '}{evidence or 'none at all'}"
            )

    @property
    def problems(self) -> list[str]:
        """What a test should know about, one sentence each.

        Notes on exchanges, lifecycle preferences that callers sent wrongly, refused connections.
        """
        noted = [
            f"#{exchange.number} {exchange.method} {exchange.url}: {note}"
            for exchange in self.exchanges
            for note in exchange.notes
        ]
        kinds = ("lifecycle", "refused", "error")
        return noted + [f"{one.kind}: {one.text}" for one in self.events if one.kind in kinds]


def _shown(exchange: Exchange) -> str:
    return f"#{exchange.number} {exchange.method} {exchange.url} {exchange.status or '-'}"


def matches_path(pattern: str, path: str) -> bool:
    """Whether *path* is the pattern, or begins with it where it ends in ``*``."""
    if pattern.endswith("*"):
        return path.startswith(pattern[:-1])
    return path == pattern


def masked(url: str) -> str:
    """A URL without credentials, and without the fragment, which is never sent."""
    address, _, query = _without_user(url.partition("#")[0]).partition("?")
    return f"{address}?{_redact_query(query)}" if query else address


def redact_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Lower-case names, credentials replaced, repeated headers joined by a comma."""
    result: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        shown = "***" if _is_secret_header(key) else value
        if key in _ADDRESSES:
            shown = masked(shown)
        elif "://" in value:
            shown = masked_text(shown)
        result[key] = f"{result[key]}, {shown}" if key in result else shown
    return result


def masked_text(text: str) -> str:
    """A text, with the credentials that URLs in it have, or that stand in it as in a header."""
    if "://" in text:
        text = _URL.sub(_masked_in_a_sentence, text)
    return _CREDENTIAL.sub(r"\1***", text)


def _masked_in_a_sentence(found: re.Match[str]) -> str:
    url = found[0].rstrip(".,:;)]")
    return masked(url) + found[0][len(url) :]


class _Notes(list[str]):
    """What is noted is shown, so no credentials get into it."""

    def append(self, note: str) -> None:
        super().append(masked_text(note))

    def extend(self, notes: Iterable[str]) -> None:
        super().extend(map(masked_text, notes))


def _is_secret_header(name: str) -> bool:
    return name in _SECRET_HEADERS or (is_secret(name) and name not in _PLAIN_HEADERS)


def _redact_query(query: str) -> str:
    # Some servers take a semicolon for an ampersand, too.
    return "".join(
        part if part in "&;" else _redact_parameter(part) for part in re.split("([&;])", query)
    )


def _redact_parameter(part: str) -> str:
    name, separator, value = part.partition("=")
    if separator and is_secret(urllib.parse.unquote_plus(name).lower()):
        return f"{name}=***"
    if "%3F" not in part.upper() and "://" not in urllib.parse.unquote(value):
        return part
    # A URL in a parameter, maybe with a user and a query of its own.
    plain = urllib.parse.unquote(part)
    address, mark, query = _without_user(plain).partition("?")
    if f"{address}{mark}{query}" == plain and not query:
        return part
    return urllib.parse.quote(f"{address}{mark}{_redact_query(query)}", safe="=*")


def is_secret(name: str) -> bool:
    """Whether what has this name, in lower case, is a credential."""
    return name in _SECRET_NAMES or any(word in name for word in _SECRET_PARAMETERS)


def _without_user(url: str) -> str:
    """A URL whose authority names nobody."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    end = next((at for at, sign in enumerate(rest) if sign in "/?#"), len(rest))
    return f"{scheme}://{rest[:end].rpartition('@')[2]}{rest[end:]}"


def _split(address: str) -> tuple[str, str]:
    after_scheme = address.partition("://")[2] or address
    authority, slash, rest = after_scheme.partition("/")
    host = authority.rpartition("@")[2]
    if host.startswith("["):
        return host[1:].partition("]")[0], slash + rest or "/"
    return host.partition(":")[0], slash + rest or "/"
