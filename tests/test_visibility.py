"""The rules of who sees what in /data when, without files: every property for any delays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emulator.distributed.visibility import ALWAYS, Delays, History, Place, Version

#: Three datacenters would show nothing that two do not; servers of one name are in both.
PLACES = [
    Place("r1", "a", "us"),
    Place("r2", "a", "us"),
    Place("r3", "b", "us"),
    Place("r4", "a", "eu"),
    Place("r5", "c", "eu"),
]
WRITER, SAME_SERVER, SAME_DATACENTER, ELSEWHERE, _ = PLACES

places = st.sampled_from(PLACES)
#: Small numbers, so that moments coincide often.
spans = st.integers(0, 6)
delays = st.builds(Delays, datacenter=spans, everywhere=spans, listing=spans)
#: What happened: who changed something, at which moment; None: it is open still.
changes = st.lists(st.tuples(places, st.none() | st.integers(0, 12)), max_size=6)


def history_of(made: list[tuple[Place, int | None]]) -> History[int]:
    """In the order of their moments, as a clock lets things happen; what is open comes last."""
    history = History(Version(0))
    for version in in_order(made):
        history.add(version)
    return history


def in_order(made: list[tuple[Place, int | None]]) -> list[Version[int]]:
    ordered = sorted(made, key=lambda change: (change[1] is None, change[1] or 0))
    return [Version(number, by, at) for number, (by, at) in enumerate(ordered, 1)]


def seen(history: History[int], now: int, known: Delays) -> list[int | None]:
    found = [history.seen_by(place, now, known) for place in PLACES]
    return [None if version is None else version.value for version in found]


@given(delays, st.integers(0, 12))
def test_it_arrives_in_the_documented_order(known, at):
    version = Version(1, WRITER, at)
    moments = [version.listed(place, known) for place in PLACES[:4]]
    moments.append(version.readable(ELSEWHERE, known))
    assert moments == sorted(moments)
    assert moments[:2] == [ALWAYS, at]


@given(delays)
def test_what_is_open_is_its_runners_alone(known):
    version = Version(1, WRITER)
    assert version.listed(WRITER, known) == ALWAYS
    assert [version.listed(place, known) for place in PLACES[1:]] == [None] * 4
    assert version.everywhere(known) is None


def test_two_servers_of_one_name_in_two_datacenters_are_two():
    version = Version(1, WRITER, 0)
    known = Delays(datacenter=1, everywhere=9, listing=2)
    assert version.listed(Place("r9", "a", "eu"), known) == 2


def test_no_other_datacenter_lists_it_before_its_own_does():
    assert Version(1, WRITER, 0).listed(ELSEWHERE, Delays(datacenter=5)) == 5


@given(changes, delays, st.integers(0, 30))
def test_everybody_sees_the_newest_that_has_arrived(made, known, now):
    history, versions = history_of(made), [Version(0), *in_order(made)]
    for place in PLACES:
        arrived = [v.value for v in versions if _has_arrived(v, place, now, known)]
        assert history.seen_by(place, now, known).value == arrived[-1]


def _has_arrived(version: Version[int], place: Place, now: int, known: Delays) -> bool:
    listed = version.listed(place, known)
    return listed is not None and listed <= now


@given(changes, delays, st.integers(0, 30), st.integers(0, 30))
def test_nobody_goes_back_to_an_older_state(made, known, earlier, span):
    history = history_of(made)
    before, after = seen(history, earlier, known), seen(history, earlier + span, known)
    assert all(old <= new for old, new in zip(before, after, strict=True))


@given(changes, delays)
def test_all_agree_in_the_end(made, known):
    history = history_of([(by, at or 0) for by, at in made])
    assert set(seen(history, 100, known)) == {history.newest.value}
    assert history.settle(100, known)


@given(changes, delays, st.integers(0, 30), st.integers(0, 30))
def test_what_is_forgotten_was_seen_by_nobody(made, known, now, span):
    history, twin = history_of(made), history_of(made)
    history.settle(now, known)
    for moment in (now, now + span):
        assert seen(history, moment, known) == seen(twin, moment, known)


@given(changes, delays, st.integers(0, 30), st.integers(0, 30), st.integers(1, 40))
def test_a_clock_that_is_moved_back_takes_nothing_back(made, known, now, span, back):
    history, twin = history_of(made), history_of(made)
    history.settle(now, known)
    history.shift(-back)
    assert seen(history, now - back, known) == seen(twin, now, known)
    assert seen(history, now - back + span, known) == seen(twin, now + span, known)


def test_what_nobody_will_ever_see_is_not_kept():
    history = history_of([(WRITER, 1), (WRITER, 1), (SAME_SERVER, 1), (WRITER, 1), (WRITER, None)])
    assert [version.value for version in history.versions] == [0, 3, 4, 5]


@given(delays, places, places, st.integers(0, 5), st.integers(0, 5))
def test_of_two_that_write_at_once_the_last_to_close_wins(known, one, other, first, span):
    history = History(Version(0))
    opened, later = Version(1, one), Version(2, other)
    history.add(opened)
    history.add(later)
    history.publish(later, first)
    history.publish(opened, first + span)
    assert set(seen(history, 100, known)) == {1}


def test_without_delays_everybody_sees_it_at_once():
    version = Version(1, WRITER, 5)
    assert [version.listed(place, Delays()) for place in PLACES[1:]] == [5] * 4
    assert [version.readable(place, Delays()) for place in PLACES[1:]] == [5] * 4
    assert version.everywhere(Delays()) == 5


@given(places, delays, st.none() | st.integers(0, 12))
def test_what_can_be_read_is_listed(place, known, at):
    version = Version(1, WRITER, at)
    listed, readable = version.listed(place, known), version.readable(place, known)
    assert (listed is None) == (readable is None)
    assert listed is None or readable >= listed
    assert place.datacenter != WRITER.datacenter or readable == listed


def test_what_was_there_before_is_everybodys():
    version = Version(1)
    assert (
        version.readable(WRITER, Delays(1, 2, 3)) == version.everywhere(Delays(1, 2, 3)) == ALWAYS
    )


def test_a_history_is_settled_once_its_last_state_has_arrived_everywhere():
    known = Delays(datacenter=1, everywhere=9, listing=2)
    history = history_of([(WRITER, 1)])
    assert not history.settle(9, known)
    assert [version.value for version in history.versions] == [0, 1]
    assert history.settle(10, known)
    assert [(version.value, version.by) for version in history.versions] == [(1, None)]
    history.add(Version(2, WRITER))
    assert not history.settle(100, known), "it is open still"
    assert history.newest.value == 2


def test_nothing_is_settled_while_the_first_state_is_under_way():
    history = History(Version(1, WRITER, 5))
    assert not history.settle(4, Delays())
    assert history.settle(5, Delays())


def test_what_is_closed_at_the_moment_of_its_like_replaces_it():
    history, again = history_of([(WRITER, 3)]), Version(1, WRITER)
    history.add(again)
    history.publish(again, 3)
    assert [version.value for version in history.versions] == [0, 1]
    assert history.newest is again


def test_each_place_has_its_own_delay():
    known, version = Delays(datacenter=1, everywhere=9, listing=5), Version(1, WRITER, 0)
    assert version.listed(SAME_DATACENTER, known) == version.readable(SAME_DATACENTER, known) == 1
    assert (version.listed(ELSEWHERE, known), version.readable(ELSEWHERE, known)) == (5, 9)


def test_what_has_arrived_is_as_if_it_had_always_been_there():
    known = Delays(datacenter=1, everywhere=9, listing=2)
    history = history_of([(WRITER, 1), (WRITER, 100)])
    assert not history.settle(10, known)
    assert [version.value for version in history.versions] == [1, 2]
    first = history.versions[0]
    assert first.listed(ELSEWHERE, known) == first.readable(ELSEWHERE, known) == ALWAYS
