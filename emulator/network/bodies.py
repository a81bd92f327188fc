"""What faults do to a body on its way: pure functions from chunks to chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "CutShortError",
    "beginning",
    "exactly",
    "flipped",
    "held",
    "reset",
    "reset_after",
    "slowed",
    "stalled",
    "timed_out",
    "truncated",
]

Chunks = Iterable[bytes]


class CutShortError(ConnectionError):
    """The sender closed the connection in order, before the body was whole."""


def reset() -> ConnectionResetError:
    """The error of a connection that is reset."""
    return ConnectionResetError(104, "Connection reset by peer (injected by fal_faults)")


def timed_out() -> TimeoutError:
    """The error of a client that has waited long enough."""
    return TimeoutError("timed out (injected by fal_faults)")


def beginning(chunks: Chunks, count: int) -> Iterator[bytes]:
    """The first *count* bytes; what is behind them is not asked for."""
    if count <= 0:
        return
    for chunk in chunks:
        if len(chunk) >= count:
            yield bytes(chunk[:count])
            return
        count -= len(chunk)
        yield chunk


def exactly(chunks: Chunks, count: int) -> Iterator[bytes]:
    """The first *count* bytes, of all that come."""
    for chunk in chunks:
        if count > 0:
            yield bytes(chunk[:count])
        count -= len(chunk)


def reset_after(chunks: Chunks, count: int | None) -> Iterator[bytes]:
    """Break off with a reset after *count* bytes, if there are more; None: after the last one."""
    for chunk in chunks:
        if count is not None and len(chunk) > count:
            yield bytes(chunk[:count])
            raise reset()
        count = None if count is None else count - len(chunk)
        yield chunk
    if count is None:
        raise reset()


def truncated(chunks: Chunks, count: int) -> Iterator[bytes]:
    """End after *count* bytes, if there are more."""
    for chunk in chunks:
        if len(chunk) > count:
            yield bytes(chunk[:count])
            raise CutShortError("closed before the body was whole (injected by fal_faults)")
        count -= len(chunk)
        yield chunk


def stalled(chunks: Chunks, count: int, hasten: Callable[[], None]) -> Iterator[bytes]:
    """Time out after *count* bytes, if there are more.

    *hasten* is called before the last of them is handed out: a client that waits already would
    not hear of it.
    """
    rest = iter(chunks)
    for chunk in rest:
        if len(chunk) < count:
            count -= len(chunk)
            yield chunk
            continue
        yield bytes(chunk[: count - 1])
        if len(chunk) > count or any(rest):
            hasten()
            yield bytes(chunk[count - 1 : count])
            raise timed_out()
        yield bytes(chunk[count - 1 :])


def slowed(
    chunks: Chunks, bytes_per_second: float, sleep: Callable[[float], None]
) -> Iterator[bytes]:
    """Hand out no more than that many bytes a second, in steps of at most a tenth of one."""
    step = max(1, int(bytes_per_second / 10))
    for chunk in chunks:
        for start in range(0, len(chunk), step):
            part = bytes(chunk[start : start + step])
            sleep(len(part) / bytes_per_second)
            yield part


def flipped(chunks: Chunks) -> Iterator[bytes]:
    """Flip the lowest bit of every 64th byte, beginning with the first."""
    position = 0
    for chunk in chunks:
        damaged = bytearray(chunk)
        for index in range(-position % 64, len(damaged), 64):
            damaged[index] ^= 1
        position += len(damaged)
        yield bytes(damaged)


def held(chunks: Chunks, count: int | None, hold: Callable[[], None]) -> Iterator[bytes]:
    """Call *hold* after *count* bytes, if there are more; None: after the last one."""
    if count is None:
        yield from chunks
        hold()
        return
    for chunk in chunks:
        if 0 <= count < len(chunk):
            yield bytes(chunk[:count])
            hold()
            yield bytes(chunk[count:])
            count = -1
            continue
        count -= len(chunk)
        yield chunk
