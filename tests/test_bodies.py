"""What faults do to a body, however it is cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.network import bodies

#: Small, so that every boundary of a chunk meets every count.
CHUNKS = st.lists(st.binary(max_size=5), max_size=6)
COUNTS = st.integers(0, 20)


def taken(chunks: Iterator[bytes]) -> tuple[bytes, type[BaseException] | None]:
    """All that comes, and the error it ends with."""
    got = b""
    try:
        for chunk in chunks:
            got += chunk
    except (OSError, bodies.CutShortError) as error:
        return got, type(error)
    return got, None


@given(CHUNKS, COUNTS)
def test_the_beginning_is_so_many_bytes(chunks: list[bytes], count: int) -> None:
    assert taken(bodies.beginning(chunks, count)) == (b"".join(chunks)[:count], None)


@given(CHUNKS, COUNTS)
def test_exactly_is_no_more_than_so_many_bytes(chunks: list[bytes], count: int) -> None:
    assert taken(bodies.exactly(chunks, count)) == (b"".join(chunks)[:count], None)


def test_what_is_behind_the_beginning_is_not_asked_for() -> None:
    chunks = iter([b"12", b"34", b"56"])
    assert b"".join(bodies.beginning(chunks, 3)) == b"123"
    assert next(chunks) == b"56"


@given(CHUNKS, COUNTS)
@pytest.mark.parametrize(
    ("how", "error"),
    [
        (bodies.reset_after, ConnectionResetError),
        (bodies.truncated, bodies.CutShortError),
        (lambda chunks, count: bodies.stalled(chunks, count + 1, lambda: None), TimeoutError),
    ],
    ids=["reset", "truncated", "stalled"],
)
def test_a_longer_body_breaks_off_and_a_shorter_one_is_whole(
    how, error: type[Exception], chunks: list[bytes], count: int
) -> None:
    whole = b"".join(chunks)
    limit = count + 1 if error is TimeoutError else count  # none stalls before its first byte
    expected = (whole[:limit], error) if len(whole) > limit else (whole, None)
    assert taken(how(chunks, count)) == expected


@given(CHUNKS)
def test_a_reset_after_the_body_comes_after_all_of_it(chunks: list[bytes]) -> None:
    assert taken(bodies.reset_after(chunks, None)) == (b"".join(chunks), ConnectionResetError)


@given(CHUNKS, st.integers(1, 20))
def test_a_client_is_hastened_before_it_gets_the_last_byte(chunks: list[bytes], count: int) -> None:
    got: list[bytes] = []
    had: list[int] = []
    with_error = bodies.stalled(chunks, count, lambda: had.append(len(b"".join(got))))
    try:
        for chunk in with_error:
            got.append(chunk)
    except TimeoutError:
        assert had == [count - 1]
    else:
        assert had == []


@given(CHUNKS)
def test_flipping_does_not_depend_on_the_chunks(chunks: list[bytes]) -> None:
    whole = b"".join(chunks) * 10
    assert taken(bodies.flipped(chunks * 10)) == taken(bodies.flipped([whole]))
    assert taken(bodies.flipped([b"".join(bodies.flipped([whole]))])) == (whole, None)


@given(CHUNKS, st.floats(0.5, 1000))
def test_a_slow_body_takes_its_time_in_small_steps(chunks: list[bytes], speed: float) -> None:
    slept: list[float] = []
    whole = b"".join(chunks)
    assert taken(bodies.slowed(chunks, speed, slept.append)) == (whole, None)
    assert sum(slept) == pytest.approx(len(whole) / speed)
    assert max(slept, default=0) <= max(0.1, 1 / speed)


@given(CHUNKS, COUNTS)
def test_a_body_is_held_once_and_after_that_many_bytes(chunks: list[bytes], count: int) -> None:
    got: list[bytes] = []
    at: list[int] = []
    for chunk in bodies.held(chunks, count, lambda: at.append(len(b"".join(got)))):
        got.append(chunk)
    whole = b"".join(chunks)
    assert b"".join(got) == whole
    assert at == ([count] if len(whole) > count else [])
