"""The mapping between real and virtual time, on its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emulator.timeline import Timeline

HOUR = 3_600_000_000_000

# Real instants within days, virtual ones within years around them: far enough apart to collide
# only on purpose, small enough to shrink to something readable.
real_steps = st.integers(min_value=0, max_value=48 * HOUR)
virtual_moments = st.integers(min_value=-20_000 * HOUR, max_value=20_000 * HOUR)
# The kernel's coarse clock is up to 10 ms behind, its fine stamps a few microseconds ahead.
lags = st.integers(min_value=-10_000_000, max_value=50_000)
jumps = st.lists(st.tuples(real_steps, lags, virtual_moments, st.booleans()), min_size=1)


@st.composite
def timelines(draw: st.DrawFn) -> tuple[Timeline, int]:
    """A timeline and a real instant at which all of it is in the past."""
    timeline, real = Timeline(), 1_000 * HOUR
    for step, lag, virtual, ticking in draw(jumps):
        real += step
        timeline = timeline.then(real + lag, real, virtual, ticking=ticking)
    return timeline, max(real, timeline.boundaries[-1]) + draw(real_steps)


@given(st.integers())
def test_without_segments_time_is_real(instant: int) -> None:
    assert Timeline().now(instant) == instant
    assert Timeline().virtual_at(instant, instant) == instant
    assert Timeline().real_at(instant, instant) == instant


@given(timelines(), st.integers(min_value=1, max_value=900 * HOUR))
def test_before_the_first_segment_time_is_real(case: tuple[Timeline, int], back: int) -> None:
    timeline, now = case
    instant = timeline.boundaries[0] - back
    assert timeline.virtual_at(instant, now) == instant


@given(timelines(), st.integers(min_value=1))
def test_times_in_the_future_are_kept(case: tuple[Timeline, int], ahead: int) -> None:
    timeline, now = case
    assert timeline.virtual_at(now + ahead, now) == now + ahead


@given(timelines())
def test_the_present_is_the_last_segment(case: tuple[Timeline, int]) -> None:
    timeline, now = case
    assert timeline.virtual_at(now, now) == timeline.now(now)


@given(timelines(), real_steps, real_steps)
def test_within_one_segment_time_never_goes_back(
    case: tuple[Timeline, int], first: int, second: int
) -> None:
    timeline, _ = case
    segment = timeline.segments[-1]
    earlier, later = sorted((segment.boundary + first, segment.boundary + second))
    assert timeline.now(earlier) <= timeline.now(later)
    if not segment.ticking:
        assert timeline.now(earlier) == timeline.now(later)


@given(timelines(), real_steps)
def test_a_ticking_segment_ticks_at_the_pace_of_real_time(
    case: tuple[Timeline, int], step: int
) -> None:
    timeline, _ = case
    segment = timeline.segments[-1]
    if segment.ticking:
        start = segment.real_start
        assert timeline.now(start + step) - timeline.now(start) == step


@given(timelines(), real_steps)
def test_no_stamp_of_a_segment_is_earlier_than_its_beginning(
    case: tuple[Timeline, int], step: int
) -> None:
    timeline, _ = case
    segment = timeline.segments[-1]
    assert timeline.now(segment.boundary + step) >= segment.virtual_start


@given(timelines(), real_steps)
def test_the_inverse_gives_an_instant_at_which_the_clock_showed_it(
    case: tuple[Timeline, int], back: int
) -> None:
    timeline, now = case
    virtual = timeline.virtual_at(now - back, now)
    real = timeline.real_at(virtual, now)
    assert real is not None
    assert timeline.virtual_at(real, now) == virtual


@given(timelines(), virtual_moments)
def test_the_inverse_is_right_or_none(case: tuple[Timeline, int], virtual: int) -> None:
    timeline, now = case
    real = timeline.real_at(virtual, now)
    assert real is None or timeline.virtual_at(real, now) == virtual


def test_a_moment_that_was_jumped_over_has_no_inverse() -> None:
    timeline = Timeline().then(100, 100, 10_000, ticking=True)
    assert timeline.real_at(500, now=200) is None


def test_the_inverse_prefers_the_latest_instant() -> None:
    timeline = Timeline().then(100, 100, 1_000, ticking=True).then(200, 200, 1_000, ticking=True)
    assert timeline.real_at(1_050, now=300) == 250


def test_the_inverse_is_the_latest_instant_that_shows_the_beginning() -> None:
    """A coarse stamp lies before the instant of the jump, and shows the same."""
    timeline = Timeline().then(90, 100, 1_000, ticking=True)
    assert [timeline.virtual_at(real, 200) for real in (89, 90, 99, 100, 101)] == [
        89,
        1_000,
        1_000,
        1_000,
        1_001,
    ]
    assert timeline.real_at(1_000, now=200) == 100
    assert timeline.real_at(1_000, now=95) == 95
    before_the_next = timeline.then(96, 110, 5_000, ticking=True)
    assert before_the_next.real_at(1_000, now=200) == 95


def test_the_inverse_of_the_first_instant_is_in_its_segment() -> None:
    timeline = Timeline().then(100, 100, 1_000, ticking=True).then(200, 200, 5_000, ticking=False)
    assert timeline.real_at(1_000, now=300) == 100
    assert timeline.real_at(1_099, now=300) == 199
    assert timeline.real_at(1_100, now=300) is None
    assert timeline.real_at(5_000, now=300) == 200


def test_a_stamp_of_a_late_boundary_shows_what_has_passed_since_the_jump() -> None:
    timeline = Timeline().then(110, 100, 1_000, ticking=True)
    assert timeline.virtual_at(110, now=200) == 1_010
    assert timeline.real_at(1_000, now=200) is None


def test_an_instant_that_is_still_to_come_is_no_inverse() -> None:
    timeline = Timeline().then(100, 100, 1_000, ticking=True)
    assert timeline.real_at(1_100, now=200) == 200
    assert timeline.real_at(1_101, now=200) is None


def test_before_the_first_jump_the_inverse_is_the_moment_itself() -> None:
    timeline = Timeline().then(100, 100, 10_000, ticking=True)
    assert timeline.real_at(99, now=200) == 99
    assert timeline.real_at(100, now=200) is None


def test_the_first_boundary_is_none_until_something_happens() -> None:
    timeline = Timeline()
    assert timeline.first_boundary is None
    later = timeline.then(100, 100, 1_000, ticking=False).then(200, 200, 2_000, ticking=False)
    assert later.first_boundary == 100


def test_a_timeline_knows_what_came_after_an_earlier_one() -> None:
    start = Timeline().then(100, 100, 1_000, ticking=False)
    first = start.then(200, 200, 2_000, ticking=False)
    last = first.then(300, 300, 3_000, ticking=False)
    assert last.goes_on_from(start)
    assert last.goes_on_from(last)
    assert last.goes_on_from(Timeline())
    assert not start.goes_on_from(last)
    assert last.since(len(start)) == [*last.segments[1:]]
    assert first.since(len(start)) == [first.last]
    assert start.since(0) == [start.last]


def test_a_timeline_does_not_go_on_from_another_one() -> None:
    start = Timeline().then(100, 100, 1_000, ticking=False)
    first = start.then(200, 200, 2_000, ticking=False)
    second = start.then(300, 300, 3_000, ticking=False)
    assert not second.goes_on_from(first)
    assert not first.goes_on_from(Timeline().then(100, 100, 1_000, ticking=False))


def test_a_jump_backwards_keeps_earlier_stamps_where_they_were() -> None:
    timeline = Timeline().then(100, 100, 9_000, ticking=False).then(200, 200, 50, ticking=False)
    assert (timeline.virtual_at(150, 300), timeline.virtual_at(250, 300)) == (9_000, 50)


def test_of_two_jumps_at_the_same_stamp_the_later_counts() -> None:
    timeline = Timeline().then(100, 100, 1_000, ticking=False).then(100, 101, 2_000, ticking=False)
    assert timeline.virtual_at(100, 200) == 2_000


def test_a_boundary_never_lies_before_an_earlier_one() -> None:
    timeline = Timeline().then(100, 100, 1_000, ticking=True).then(40, 40, 2_000, ticking=True)
    assert timeline.boundaries == (100, 100)


def test_two_timelines_that_go_on_from_one_have_nothing_to_do_with_each_other() -> None:
    start = Timeline().then(100, 100, 1_000, ticking=False)
    first = start.then(200, 200, 2_000, ticking=False)
    second = start.then(300, 300, 3_000, ticking=False)
    assert [timeline.now(400) for timeline in (start, first, second)] == [1_000, 2_000, 3_000]
    assert [timeline.virtual_at(250, 400) for timeline in (start, first, second)] == [
        1_000,
        2_000,
        1_000,
    ]
    assert [len(timeline.segments) for timeline in (start, first, second)] == [1, 2, 2]
    assert start.boundaries == (100,)
    assert first.boundaries == (100, 200)
    assert second.boundaries == (100, 300)
