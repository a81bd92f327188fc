"""What faults do to a body, however it is cut into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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


@pytest.mark.parametrize("count", [-1, 0])
def test_nothing_is_asked_for_where_nothing_is_wanted(count: int) -> None:
    chunks = iter([b"12"])
    assert list(bodies.beginning(chunks, count)) == []
    assert next(chunks) == b"12"


def test_a_chunk_that_is_just_enough_is_the_last() -> None:
    chunks = iter([b"12", b"34"])
    assert list(bodies.beginning(chunks, 2)) == [b"12"]
    assert next(chunks) == b"34"


def test_exactly_takes_all_and_hands_out_no_empty_chunks() -> None:
    chunks = iter([b"12", b"34"])
    assert list(bodies.exactly(chunks, 2)) == [b"12"]
    assert list(chunks) == []


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (bodies.reset, "[Errno 104] Connection reset by peer (injected by fal_faults)"),
        (bodies.timed_out, "timed out (injected by fal_faults)"),
    ],
)
def test_an_error_says_who_made_it(error: Callable[[], OSError], shown: str) -> None:
    assert str(error()) == shown


def test_so_does_a_body_that_is_cut_short() -> None:
    with pytest.raises(bodies.CutShortError) as caught:
        list(bodies.truncated([b"12"], 1))
    assert str(caught.value) == "closed before the body was whole (injected by fal_faults)"


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


def test_the_lowest_bit_of_every_64th_byte_is_flipped() -> None:
    damaged = b"".join(bodies.flipped([bytes(100), bytes(30)]))
    assert {place: byte for place, byte in enumerate(damaged) if byte} == {0: 1, 64: 1, 128: 1}


@pytest.mark.parametrize(("speed", "step"), [(100, 10), (119, 11), (5, 1)])
def test_a_step_is_what_comes_in_a_tenth_of_a_second(speed: float, step: int) -> None:
    slept: list[float] = []
    parts = list(bodies.slowed([bytes(110)], speed, slept.append))
    assert parts == [bytes(step)] * (110 // step)
    assert slept == [step / speed] * (110 // step)


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


@given(CHUNKS)
def test_a_body_can_be_held_after_its_end(chunks: list[bytes]) -> None:
    got: list[bytes] = []
    at: list[int] = []
    for chunk in bodies.held(chunks, None, lambda: at.append(len(b"".join(got)))):
        got.append(chunk)
    assert got == chunks
    assert at == [len(b"".join(chunks))]
