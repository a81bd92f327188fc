"""When runners start and stop: the pure rules [facts §4.1, §4.4], and fal's options."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from itertools import count

import fal
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.errors import EmulatorError
from emulator.fleets.options import Scaling
from emulator.fleets.scaling import (
    SCHEDULING_DELAY,
    Decision,
    Load,
    RunnerLoad,
    crash_backoff,
    decide,
    expiry,
    wanted,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)


def ready(name="runner-1", requests=0, idle=0.0, served=True):
    since = None if requests else NOW - timedelta(seconds=idle)
    return RunnerLoad(name, "READY", requests, since, served)


def load(*runners, waiting=0, waited=0.0, blocked=None):
    since = NOW - timedelta(seconds=waited)
    return Load(NOW, tuple(runners), (since,) * waiting, blocked)


# --- how many -----------------------------------------------------------------------------------


def test_a_runner_for_each_request():
    assert decide(Scaling(), load(waiting=3)).start == 3


def test_no_more_than_max_concurrency():
    assert decide(Scaling(max_concurrency=2), load(waiting=3)).start == 2


def test_runners_that_are_starting_count():
    starting = RunnerLoad("runner-1", "STARTING")
    assert decide(Scaling(), load(starting, waiting=3)).start == 2


def test_runners_that_are_stopping_still_take_room():
    stopping = RunnerLoad("runner-1", "STOPPING")
    assert decide(Scaling(max_concurrency=1), load(stopping, waiting=1)).start == 0


def test_min_concurrency_is_there_without_requests():
    assert decide(Scaling(min_concurrency=2), load()).start == 2


def test_multiplexing_needs_fewer_runners():
    assert decide(Scaling(max_multiplexing=4), load(waiting=5)).start == 2


@pytest.mark.parametrize(
    ("options", "requests", "expected"),
    [
        ({"concurrency_buffer": 2}, 0, 2),
        ({"concurrency_buffer": 2}, 3, 5),
        ({"min_concurrency": 3, "concurrency_buffer": 2}, 0, 3),
        ({"min_concurrency": 3, "concurrency_buffer": 2}, 4, 6),
        ({"concurrency_buffer_perc": 20}, 0, 0),
        ({"concurrency_buffer_perc": 20}, 1, 2),
        ({"concurrency_buffer_perc": 50, "concurrency_buffer": 1}, 4, 6),
        ({"concurrency_buffer_perc": 50, "concurrency_buffer": 3}, 4, 7),
        ({"concurrency_buffer": 20}, 1, 10),
        ({"concurrency_buffer_perc": 100, "max_concurrency": 300}, 101, 202),
        ({"max_multiplexing": 4, "concurrency_buffer": 2}, 4, 3),
    ],
)
def test_a_buffer_stands_beside_what_requests_need(options, requests, expected):
    assert wanted(Scaling(**options), 0, requests) == expected


def test_each_busy_runner_is_needed_however_few_requests_it_has():
    assert wanted(Scaling(max_multiplexing=4), 3, 3) == 3


def test_runners_that_have_requests_count_with_those_that_wait():
    assert decide(Scaling(), load(ready(requests=1), waiting=1)).start == 1
    busy = [ready(f"runner-{n}", requests=1) for n in (1, 2)]
    assert decide(Scaling(max_multiplexing=4, concurrency_buffer=1), load(*busy)).start == 1


def test_requests_of_a_runner_that_only_finishes_do_not_count():
    draining = RunnerLoad("runner-1", "DRAINING", requests=2)
    assert decide(Scaling(), load(draining)) == Decision()


def test_nothing_is_to_be_done_without_requests_and_runners():
    decision = decide(Scaling(), Load(NOW))
    assert (decision.start, decision.stop, decision.wake) == (0, (), None)


# --- when they start ------------------------------------------------------------------------------


def test_scaling_delay_lets_a_request_wait_first():
    scaling = Scaling(scaling_delay=30)
    assert decide(scaling, load(waiting=1, waited=10)) == Decision(wake=NOW + 20 * SECOND)
    assert decide(scaling, load(waiting=1, waited=30)).start == 1


def test_without_room_a_request_waits_for_no_moment():
    scaling = Scaling(scaling_delay=30, max_concurrency=1)
    assert decide(scaling, load(ready(requests=1), waiting=1)) == Decision()
    assert decide(scaling, load(waiting=1)) == Decision(wake=NOW + 30 * SECOND)


def test_of_two_requests_the_later_one_waits_on():
    waiting = NOW - 30 * SECOND, NOW - 10 * SECOND
    scaling = Scaling(scaling_delay=30)
    assert decide(scaling, Load(NOW, (), waiting)) == Decision(start=1, wake=NOW + 20 * SECOND)


@pytest.mark.parametrize(("seconds", "wake"), [(10, 10), (30, 20)])
def test_the_end_of_backoff_and_of_a_delay_whichever_is_first(seconds, wake):
    waiting = NOW - 30 * SECOND, NOW - 10 * SECOND
    blocked = Load(NOW, (), waiting, NOW + seconds * SECOND)
    assert decide(Scaling(scaling_delay=30), blocked) == Decision(wake=NOW + wake * SECOND)


def test_the_end_of_backoff_is_nothing_to_whom_needs_no_runner():
    assert decide(Scaling(), load(blocked=NOW + SECOND)) == Decision()


@pytest.mark.parametrize(("idle", "wake"), [(50, 10), (10, 30)])
def test_the_end_of_a_runner_and_of_a_delay_whichever_is_first(idle, wake):
    runners = [ready(f"runner-{n}", idle=idle) for n in (1, 2)]
    decision = decide(Scaling(scaling_delay=30), load(*runners, waiting=1))
    assert decision == Decision(wake=NOW + wake * SECOND)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 30), (2, 60), (5, 150), (19, 570), (20, 600), (21, 600)]
)
def test_crash_backoff_grows_by_30_seconds_up_to_ten_minutes(failures, seconds):
    assert crash_backoff(failures) == timedelta(seconds=seconds)


def test_nothing_starts_during_backoff():
    blocked = NOW + 30 * SECOND
    assert decide(Scaling(), load(waiting=1, blocked=blocked)) == Decision(wake=blocked)
    assert decide(Scaling(), load(waiting=1, blocked=NOW)).start == 1


def test_a_machine_is_looked_for_again_after_20_seconds():
    assert timedelta(seconds=20) == SCHEDULING_DELAY


# --- when they stop -------------------------------------------------------------------------------


def test_keep_alive_is_exact():
    scaling = Scaling(keep_alive=60)
    just_before = decide(scaling, load(ready(idle=59.999999)))
    assert just_before == Decision(wake=NOW + timedelta(microseconds=1))
    assert decide(scaling, load(ready(idle=60))) == Decision(stop=("runner-1",))


def test_a_runner_that_never_had_a_request_goes_after_ten_seconds():
    assert decide(Scaling(), load(ready(served=False, idle=10))).stop == ("runner-1",)
    assert decide(Scaling(), load(ready(served=False, idle=9))).wake == NOW + SECOND


def test_only_an_idle_runner_has_an_end():
    assert expiry(Scaling(), RunnerLoad("a", "READY", idle_since=NOW)) == NOW + 10 * SECOND
    assert expiry(Scaling(), RunnerLoad("a", "READY")) is None
    assert expiry(Scaling(), RunnerLoad("a", "READY", requests=1, idle_since=NOW)) is None
    assert expiry(Scaling(), RunnerLoad("a", "DRAINING", idle_since=NOW)) is None


def test_a_short_keep_alive_is_shorter_than_that():
    assert decide(Scaling(keep_alive=2), load(ready(served=False, idle=2))).stop == ("runner-1",)


def test_with_a_buffer_unused_runners_have_their_whole_keep_alive():
    scaling = Scaling(concurrency_buffer=1)
    runners = [ready(f"runner-{n}", served=False, idle=30) for n in (1, 2)]
    assert decide(scaling, load(*runners)) == Decision(wake=NOW + 30 * SECOND)


def test_min_concurrency_holds_idle_runners():
    assert decide(Scaling(min_concurrency=1), load(ready(idle=9999))) == Decision()


def test_the_one_that_has_been_idle_longest_goes_first():
    scaling = Scaling(min_concurrency=1)
    runners = ready("runner-1", idle=100), ready("runner-2", idle=200)
    assert decide(scaling, load(*runners)).stop == ("runner-2",)


def test_of_two_that_are_as_long_idle_the_first_goes_first():
    runners = ready("runner-9", idle=100), ready("runner-10", idle=100)
    assert decide(Scaling(min_concurrency=1), load(*runners)).stop == ("runner-9",)


def test_the_next_look_is_at_the_first_end():
    runners = ready("runner-1", idle=10), ready("runner-2", idle=30)
    assert decide(Scaling(), load(*runners)) == Decision(wake=NOW + 30 * SECOND)


def test_a_runner_that_starts_lets_an_idle_one_go_and_one_that_stops_does_not():
    scaling, idle = Scaling(min_concurrency=1), ready(idle=100)
    assert decide(scaling, load(idle, RunnerLoad("other", "STARTING"))).stop == ("runner-1",)
    assert decide(scaling, load(idle, RunnerLoad("other", "STOPPING"))).stop == ()


def test_where_runners_are_missing_none_goes():
    runners = [ready(f"runner-{n}", idle=100) for n in (1, 2)]
    assert decide(Scaling(min_concurrency=3), load(*runners)) == Decision(start=1)


def test_a_waiting_request_holds_an_idle_runner():
    assert decide(Scaling(), load(ready(idle=9999), waiting=1)) == Decision()


def test_a_request_within_its_scaling_delay_holds_an_idle_runner():
    scaling = Scaling(scaling_delay=30)
    assert decide(scaling, load(ready(idle=9999), waiting=1)).stop == ()


def test_a_busy_runner_stays():
    assert decide(Scaling(keep_alive=0), load(ready(requests=1))) == Decision()


# --- whatever happens -----------------------------------------------------------------------------

scalings = st.builds(
    Scaling,
    keep_alive=st.integers(0, 100),
    min_concurrency=st.integers(0, 3),
    max_concurrency=st.integers(3, 6),  # never less than min_concurrency: that is refused
    concurrency_buffer=st.integers(0, 3),
    concurrency_buffer_perc=st.sampled_from([0, 20, 150]),
    max_multiplexing=st.integers(1, 4),
    scaling_delay=st.sampled_from([0, 30]),
)


@st.composite
def loads(draw):
    """A fleet of up to 6 runners, the most that the options above allow, in any state."""
    numbers = count(1)

    def runner(phase):
        requests = draw(st.integers(0, 4)) if phase == "READY" else 0
        idle = timedelta(seconds=draw(st.integers(0, 120)))
        since = NOW - idle if phase == "READY" and not requests else None
        served = draw(st.booleans())
        return RunnerLoad(f"runner-{next(numbers)}", phase, requests, since, served)

    phases = draw(st.lists(st.sampled_from(["STARTING", "READY", "STOPPING"]), max_size=6))
    waits = draw(st.lists(st.integers(0, 60), max_size=8))
    waiting = tuple(NOW - timedelta(seconds=wait) for wait in waits)
    blocked = draw(st.sampled_from([None, NOW - SECOND, NOW + SECOND]))
    return Load(NOW, tuple(runner(phase) for phase in phases), waiting, blocked)


def alive(load):
    return [one for one in load.runners if one.phase in ("STARTING", "READY")]


@given(scalings, loads())
def test_never_above_max(scaling, load):
    decision = decide(scaling, load)
    if decision.start:
        assert len(load.runners) + decision.start <= scaling.max_concurrency


@given(scalings, loads())
def test_never_below_min_once_warm(scaling, load):
    decision = decide(scaling, load)
    if decision.stop:
        assert len(alive(load)) - len(decision.stop) >= scaling.min_concurrency


@given(scalings, loads())
def test_only_idle_runners_are_stopped_and_none_is_started_meanwhile(scaling, load):
    decision = decide(scaling, load)
    idle = {one.name for one in load.runners if one.phase == "READY" and not one.requests}
    assert set(decision.stop) <= idle
    assert not (decision.start and decision.stop)


@given(scalings, loads())
def test_the_next_look_is_in_the_future(scaling, load):
    wake = decide(scaling, load).wake
    assert wake is None or wake > NOW


@given(scalings, loads())
def test_nothing_is_missed_until_the_next_look(scaling, load):
    """One microsecond before its wake nothing is to be done, if nothing was before."""
    first = decide(scaling, load)
    if first.start or first.stop or first.wake is None:
        return
    just_before = first.wake - timedelta(microseconds=1)
    later = Load(just_before, load.runners, load.waiting, load.blocked_until)
    assert decide(scaling, later) == first


# --- options --------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_fal_app():
    assert Scaling.of(fal.App, {}) == Scaling(keep_alive=60, max_concurrency=10)


def test_options_are_read_from_the_class():
    class Scaled(fal.App, keep_alive=300):
        min_concurrency = 1
        max_concurrency = 4
        max_multiplexing = 2
        skip_retry_conditions = ["timeout"]
        retry_config = {"server_error": {"retries": 3}}

    scaling = Scaling.of(Scaled, {})
    assert (scaling.keep_alive, scaling.min_concurrency, scaling.max_concurrency) == (300, 1, 4)
    assert scaling.max_multiplexing == 2
    assert scaling.skip_retry_conditions == ("timeout",)
    assert dict(scaling.retry_config) == {"server_error": 3}


def test_options_given_to_deploy_win():
    class Scaled(fal.App):
        keep_alive = 300

    assert Scaling.of(Scaled, {"keep_alive": 5}).keep_alive == 5


def test_retry_config_in_the_sdks_own_form():
    sdk = pytest.importorskip("fal.sdk")
    if not hasattr(sdk, "RetryConfig"):
        pytest.skip("this fal has no RetryConfig")
    given = {"retry_config": sdk.RetryConfig(timeout=0, server_error=2)}
    scaling = Scaling.of(fal.App, given)
    assert dict(scaling.retry_config) == {"timeout": 0, "server_error": 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"keep_alife": 1},
            "'keep_alife' is no scaling option of fal's. Write keep_alive=....",
        ),
        (
            {"min_concurrency": -1},
            "deploy(..., min_concurrency=...) is -1 and has to be a whole number, 0 or more.",
        ),
        (
            {"max_multiplexing": 1.5},
            "deploy(..., max_multiplexing=...) is 1.5 and has to be a whole number, 1 or more.",
        ),
        (
            {"max_concurrency": True},
            "deploy(..., max_concurrency=...) is True and has to be a whole number, 1 or more.",
        ),
        (
            {"request_timeout": 0},
            "deploy(..., request_timeout=...) is 0 and has to be a number, more than 0.",
        ),
        (
            {"termination_grace_period_seconds": 3601},
            "deploy(..., termination_grace_period_seconds=...) is 3601 and has to be a number, "
            "0 to 3600.",
        ),
        (
            {"min_concurrency": 3, "max_concurrency": 2},
            "min_concurrency=3 is more than max_concurrency=2, so there would never be so many. "
            "Write max_concurrency=3 or more.",
        ),
        (
            {"skip_retry_conditions": ["503"]},
            "deploy(..., skip_retry_conditions=...) has '503', which is no condition. Write a list "
            "of some of: timeout, server_error, connection_error.",
        ),
        (
            {"retry_config": {"server_error": 3}},
            "deploy(..., retry_config=...) is {'server_error': 3}. Write for example "
            '{"server_error": {"retries": 3}, "timeout": {"retries": 0}}; the conditions are '
            "timeout, server_error, connection_error.",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_line_to_write(given, message):
    with pytest.raises(EmulatorError) as caught:
        Scaling.of(fal.App, given)
    assert str(caught.value) == message


def test_a_mistake_in_the_class_names_the_class():
    class Scaled(fal.App):
        keep_alive = "60"

    with pytest.raises(EmulatorError, match=r"^Scaled\.keep_alive is '60' and has to be a number"):
        Scaling.of(Scaled, {})


def test_a_redeploy_keeps_the_scale_and_takes_what_follows_the_code():
    class New(fal.App):
        keep_alive = 1
        max_multiplexing = 8
        startup_timeout = 30

    old = Scaling(keep_alive=300, min_concurrency=2)
    kept = old.redeployed(New, {}, reset_scale=False)
    assert (kept.keep_alive, kept.min_concurrency) == (300, 2)
    assert (kept.max_multiplexing, kept.startup_timeout) == (8, 30)
    reset = old.redeployed(New, {}, reset_scale=True)
    assert (reset.keep_alive, reset.min_concurrency) == (1, 0)
