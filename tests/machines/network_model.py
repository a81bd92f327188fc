"""A small model of servers and of what goes wrong on the way from them to ``download_file``."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulator.network.faults import Fault, Faults

__all__ = [
    "ADDRESSES",
    "ALL_FAILED",
    "KINDS",
    "MEBIBYTE",
    "ONE",
    "TWO",
    "Answer",
    "Broken",
    "Expected",
    "NetworkModel",
    "framed",
    "host_of",
]

ONE, TWO = "one.example.com", "two.example.com"
#: What each host resolves to; one that is not here has one address.
ADDRESSES = {TWO: ("192.88.99.201", "192.88.99.202")}
MEBIBYTE = 1024 * 1024
#: What the SDK asks of a response at a time.
BLOCK = 64 * 1024

# What the SDK says of a download that failed.
ALL_FAILED = "All validated addresses failed"
NO_PROPERTIES = "Failed to get remote file properties"
TOO_LARGE = "which is over the limit"
EXCEEDED = "Failed to download"
NO_SUCH_NAME = "DNS resolution failed"

# Kinds of faults, by where they strike.
AS_IT_CONNECTS = ("refuse", "timeout")
OF_THE_ANSWER = ("drop", "timeout-after", "truncate", "corrupt", "length", "no-length")
KINDS = ("dns", *AS_IT_CONNECTS, "tls", "status", *OF_THE_ANSWER)


@dataclass(frozen=True)
class Answer:
    """What comes from a server: the bytes, and what it says of them."""

    body: bytes = b""
    #: The Content-Length, which may be a lie; None: there is none.
    length: int | None = None
    chunked: bool = False
    name: str | None = None
    status: int = 200


@dataclass(frozen=True)
class Broken:
    """A connection that breaks; what was seen of the body before, and told of it."""

    seen: int = 0
    length: int | None = None


@dataclass
class Trouble:
    """A fault that waits for the next requests to a host."""

    kind: str
    count: int
    left: int
    fault: Fault


@dataclass(frozen=True)
class Expected:
    """What a download ends with: an error, or a body that has come."""

    error: str | None = None
    answer: Answer = Answer()
    #: A full disk is in the way, too, and either may be told.
    or_full: bool = False


class NetworkModel:
    """What is served where, and the faults that wait for requests."""

    def __init__(self) -> None:
        self.served: dict[str, Answer] = {}
        self.troubles: dict[str, Trouble] = {}
        #: Every body that a server has sent whole.
        self.whole: set[bytes] = set()
        #: Bodies that ended early where nothing tells how long they are: no client can know.
        self.cut: set[bytes] = set()

    def inject(self, faults: Faults, host: str, kind: str, count: int, times: int) -> None:
        """Inject a fault, if none waits for this host: how they go together is told elsewhere."""
        if self.is_troubled(host):
            return
        how: dict[str, Callable[..., Fault]] = {
            "status": lambda **which: faults.status(503, **which),
            "refuse": faults.refuse,
            "timeout": faults.timeout,
            "timeout-after": lambda **which: faults.timeout(after=count, **which),
            "drop": lambda **which: faults.drop(after=count, **which),
            "truncate": lambda **which: faults.truncate(after=count, **which),
            "corrupt": faults.corrupt,
            "dns": faults.dns_failure,
            "tls": lambda **which: faults.tls_failure("expired", **which),
            "length": lambda **which: faults.content_length(count, **which),
            "no-length": lambda **which: faults.content_length(None, **which),
        }
        self.troubles[host] = Trouble(kind, count, times, how[kind](host=host, times=times))

    def is_troubled(self, host: str) -> bool:
        """Whether a fault waits for this host."""
        return host in self.troubles and self.troubles[host].left > 0

    def expect(self, url: str, most: int | None, has_room: Callable[[int], bool]) -> Expected:
        """What a download ends with that takes *most* bytes, on a disk that *has_room*."""
        host = host_of(url)
        if self._strikes(host, "dns") or not self._is_known(host):
            return Expected(NO_SUCH_NAME)
        # Each address is tried once, whatever went wrong at the one before: a full disk, too (D10).
        for _ in ADDRESSES.get(host, [host]):
            came = self.attempt(url)
            if isinstance(came, Answer) and came.status != 200:
                return Expected(NO_PROPERTIES)
            if most is not None and came.length is not None and came.length > most:
                return Expected(TOO_LARGE)
            size = came.seen if isinstance(came, Broken) else len(came.body)
            full = not has_room(size)
            if most is not None and size > most:
                return Expected(EXCEEDED, or_full=full)
            if isinstance(came, Answer) and not full:
                return Expected(answer=came)
        return Expected(ALL_FAILED)

    def attempt(self, url: str) -> Answer | Broken:
        """One connection and one request."""
        host = host_of(url)
        if self._strikes(host, *AS_IT_CONNECTS):
            return Broken()
        if url.startswith("https:") and self._strikes(host, "tls"):
            return Broken()
        if self._strikes(host, "status"):
            return Answer(status=503)
        trouble = self._strikes(host, *OF_THE_ANSWER)
        if url not in self.served:
            return Answer(status=502)
        sent = self.served[url]
        came = sent if trouble is None else _change(sent, trouble)
        if isinstance(came, Broken) or came.status != 200:
            return came
        if came.length is not None and len(came.body) < came.length:
            return Broken(len(came.body) // BLOCK * BLOCK, came.length)
        (self.whole if len(came.body) == len(sent.body) else self.cut).add(came.body)
        return came

    def _is_known(self, host: str) -> bool:
        return host in ADDRESSES or any(host_of(url) == host for url in self.served)

    def _strikes(self, host: str, *kinds: str) -> Trouble | None:
        trouble = self.troubles.get(host)
        if trouble is None or not trouble.left or trouble.kind not in kinds:
            return None
        trouble.left -= 1
        return trouble


def _change(answer: Answer, trouble: Trouble) -> Answer | Broken:
    """What a fault makes of an answer."""
    count = trouble.count
    if trouble.kind in ("drop", "timeout-after") and count == 0:
        return Broken()
    if answer.status != 200:
        return answer  # nobody reads its body
    if trouble.kind == "corrupt":
        return replace(answer, body=_flipped(answer.body))
    if trouble.kind == "length":
        return framed(replace(answer, chunked=False), count)
    if trouble.kind == "no-length":
        return replace(answer, length=None)
    if len(answer.body) <= count:
        return answer
    if trouble.kind == "truncate" and answer.length is None and not answer.chunked:
        return replace(answer, body=answer.body[:count])
    return Broken(count // BLOCK * BLOCK, answer.length)


def framed(answer: Answer, length: int) -> Answer:
    """With a Content-Length: what is behind it is not sent."""
    return replace(answer, length=length, body=answer.body[:length])


def host_of(url: str) -> str:
    """Its host name."""
    return urllib.parse.urlsplit(url).hostname or ""


def _flipped(body: bytes) -> bytes:
    flipped = bytearray(body)
    for position in range(0, len(flipped), 64):
        flipped[position] ^= 1
    return bytes(flipped)
