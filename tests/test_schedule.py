"""What a test lets happen at a moment of the clock: ``fal_clock.on``."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import fal_client
import httpx
import pytest
from fal.toolkit import File, download_file
from fal.toolkit.file.providers.fal import InternalFalFileRepositoryV3

if TYPE_CHECKING:
    from pytest_fal import CDN, Clock, Emulator, Faults, Ledger, Origin

URL = "https://example.com/model.bin"
HOUR = timedelta(hours=1)


@pytest.fixture
def start(fal_clock: Clock) -> datetime:
    """The moment at which the clock was stopped."""
    fal_clock.freeze(datetime(2026, 1, 1, tzinfo=timezone.utc))
    return fal_clock.now()


def test_it_is_called_at_its_very_moment(fal_clock: Clock, start: datetime) -> None:
    seen = []
    fal_clock.on(HOUR, lambda: seen.append(fal_clock.now()))
    fal_clock.advance(hours=3)
    assert seen == [start + HOUR]
    assert fal_clock.now() == start + 3 * HOUR


@pytest.mark.parametrize("when", [HOUR, 3600, 3600.0])
def test_a_moment_can_be_told_from_now(fal_clock: Clock, start: datetime, when: Any) -> None:
    seen = []
    fal_clock.on(when, lambda: seen.append(fal_clock.now()))
    fal_clock.advance(hours=1)
    assert seen == [start + HOUR], "also when the clock stops right there"


def test_a_moment_can_be_told_as_a_date(fal_clock: Clock, start: datetime) -> None:
    seen = []
    fal_clock.on(start + HOUR, lambda: seen.append(fal_clock.now()))
    fal_clock.move_to(start + 2 * HOUR)
    assert seen == [start + HOUR]


def test_it_is_not_called_before(fal_clock: Clock, start: datetime) -> None:
    seen = []
    appointment = fal_clock.on(HOUR, lambda: seen.append(1))
    fal_clock.advance(minutes=59)
    assert (seen, appointment.done, appointment.calls) == ([], False, 0)


def test_it_is_called_once(fal_clock: Clock, start: datetime) -> None:
    appointment = fal_clock.on(HOUR, lambda: None)
    fal_clock.advance(hours=2)
    fal_clock.move_to(start)
    fal_clock.advance(hours=2)
    assert (appointment.calls, appointment.done) == (1, True)


def test_several_are_called_in_their_order(fal_clock: Clock, start: datetime) -> None:
    seen: list[str] = []
    fal_clock.on(2 * HOUR, lambda: seen.append("third"))
    fal_clock.on(HOUR, lambda: seen.append("first"))
    fal_clock.on(HOUR, lambda: seen.append("second"))
    fal_clock.advance(days=1)
    assert seen == ["first", "second", "third"]


def test_it_can_repeat(fal_clock: Clock, start: datetime) -> None:
    seen = []
    appointment = fal_clock.on(HOUR, lambda: seen.append(fal_clock.now()), every=HOUR)
    fal_clock.advance(hours=3)
    assert seen == [start + HOUR, start + 2 * HOUR, start + 3 * HOUR]
    assert (appointment.calls, appointment.done) == (3, False)


def test_it_can_be_cancelled(fal_clock: Clock, start: datetime) -> None:
    seen = []
    appointment = fal_clock.on(HOUR, lambda: seen.append(1))
    appointment.cancel()
    fal_clock.advance(hours=2)
    assert seen == []
    assert appointment.done


def test_two_of_one_moment_are_two(fal_clock: Clock, start: datetime) -> None:
    one, other = (fal_clock.on(HOUR, print) for _ in range(2))
    assert len({one, other}) == 2
    assert one != other
    assert "print" not in repr(one)


def test_it_can_make_another(fal_clock: Clock, start: datetime) -> None:
    seen = []
    fal_clock.on(HOUR, lambda: fal_clock.on(HOUR, lambda: seen.append(fal_clock.now())))
    fal_clock.advance(hours=3)
    assert seen == [start + 2 * HOUR]


def test_it_can_move_the_clock(fal_clock: Clock, start: datetime) -> None:
    fal_clock.on(HOUR, lambda: fal_clock.advance(hours=5))
    fal_clock.advance(hours=2)
    assert fal_clock.now() == start + 6 * HOUR, "never back"


def test_a_sleep_of_the_app_meets_it(fal_clock: Clock, start: datetime) -> None:
    seen = []
    fal_clock.on(HOUR, lambda: seen.append(fal_clock.now()))
    time.sleep(7200)
    assert seen == [start + HOUR]
    assert fal_clock.now() == start + 2 * HOUR


def test_stopping_the_clock_in_the_future_passes_it(fal_clock: Clock) -> None:
    seen = []
    moment = fal_clock.now() + HOUR
    fal_clock.on(moment, lambda: seen.append(fal_clock.now()))
    fal_clock.freeze(moment + HOUR)
    assert [at - moment for at in seen] == [timedelta(0)]
    assert fal_clock.now() == moment + HOUR


def test_what_it_raises_ends_the_move_there(fal_clock: Clock, start: datetime) -> None:
    def complain() -> None:
        raise RuntimeError("not now")

    fal_clock.on(HOUR, complain)
    with pytest.raises(RuntimeError, match="not now"):
        fal_clock.advance(hours=2)
    assert fal_clock.now() == start + HOUR


def test_on_a_running_clock_the_next_request_finds_it_done(
    fal_clock: Clock, fal_origin: Origin
) -> None:
    served = fal_origin.serve(URL, b"old")
    fal_clock.on(0.001, lambda: served.update(b"new"))
    time.sleep(0.002)
    assert httpx.get(URL).content == b"new"


def test_a_running_clock_that_is_moved_meets_it(fal_clock: Clock) -> None:
    seen = []
    appointment = fal_clock.on(HOUR, lambda: seen.append(fal_clock.now()))
    fal_clock.advance(hours=2)
    assert appointment.calls == 1
    assert abs(seen[0] - (fal_clock.now() - HOUR)) < timedelta(seconds=5)


def test_going_back_does_not_meet_it(fal_clock: Clock, start: datetime) -> None:
    seen = []
    fal_clock.on(HOUR, lambda: seen.append(fal_clock.now()))
    assert fal_clock.move_to(start - HOUR) == start - HOUR
    fal_clock.freeze(start - 2 * HOUR)
    assert (fal_clock.now(), seen) == (start - 2 * HOUR, [])
    fal_clock.move_to(start + HOUR)
    assert seen == [start + HOUR]


def test_stopping_the_clock_now_leaves_it_to_come(fal_clock: Clock) -> None:
    appointment = fal_clock.on(HOUR, lambda: None)
    fal_clock.freeze()
    assert (appointment.calls, fal_clock.frozen) == (0, True)


def test_stopping_the_clock_does_not_undo_a_move_on_the_way(
    fal_clock: Clock, start: datetime
) -> None:
    fal_clock.on(HOUR, lambda: fal_clock.advance(hours=5))
    fal_clock.freeze(start + 2 * HOUR)
    assert fal_clock.now() == start + 6 * HOUR


def test_the_present_is_met_by_the_next_move(fal_clock: Clock, start: datetime) -> None:
    seen = []
    fal_clock.on(0, lambda: seen.append(fal_clock.now()))
    fal_clock.on(start, lambda: seen.append(fal_clock.now()))
    fal_clock.keep_appointments()
    assert seen == [], "the clock stands still"
    fal_clock.advance(0)
    assert seen == [start, start]


def test_on_a_running_clock_it_is_met_once_its_moment_has_come(fal_clock: Clock) -> None:
    seen = []
    fal_clock.on(0, lambda: seen.append("now"))
    fal_clock.on(0, lambda: seen.append("then"))
    fal_clock.on(HOUR, lambda: seen.append("later"))
    fal_clock.keep_appointments()
    assert seen == ["now", "then"]


def test_each_test_starts_with_nothing_to_come(fal_clock: Clock) -> None:
    assert not fal_clock._agenda


def test_the_past_is_refused(fal_clock: Clock, start: datetime) -> None:
    with pytest.raises(ValueError) as caught:
        fal_clock.on(start - HOUR, lambda: None)
    assert str(caught.value) == (
        "Clock.on() was given 2025-12-31T23:00:00+00:00, and the clock is at "
        "2026-01-01T00:00:00+00:00 already. Write on(timedelta(hours=1), ...) for an hour from now."
    )


def test_a_moment_without_a_time_zone_is_refused(fal_clock: Clock) -> None:
    with pytest.raises(ValueError) as caught:
        fal_clock.on(datetime(2999, 1, 1), lambda: None)
    assert str(caught.value) == (
        "Clock.on() was given 2999-01-01T00:00:00, which has no time zone, so it names no moment. "
        "Write on(datetime(..., tzinfo=timezone.utc))."
    )


@pytest.mark.parametrize("every", [0, timedelta(seconds=-1)])
def test_it_cannot_repeat_without_end(fal_clock: Clock, start: datetime, every: Any) -> None:
    with pytest.raises(ValueError) as caught:
        fal_clock.on(HOUR, lambda: None, every=every)
    assert str(caught.value) == (
        "Clock.on(every=...) has to be more than 0, for example 60 seconds."
    )


# --- with the rest of the platform ----------------------------------------------------------------


def test_a_file_is_replaced_while_it_is_downloaded(
    fal_clock: Clock, fal_origin: Origin, fal_faults: Faults, start: datetime
) -> None:
    served = fal_origin.serve(URL, size=1_000_000)
    fal_faults.slow(bytes_per_second=100_000, times=1)
    fal_clock.on(5, lambda: served.update(b"x" * 10))
    path = download_file(URL, target_dir="models")
    assert path.stat().st_size == 1_000_000, "what is under way goes on with what it began"
    assert fal_clock.now() == start + timedelta(seconds=10)
    assert download_file(URL, target_dir="models").stat().st_size == 10


def test_a_link_expires_while_it_is_downloaded(
    fal_clock: Clock, fal_cdn: CDN, fal_faults: Faults, start: datetime
) -> None:
    url = fal_cdn.put(bytes(1_000_000), expires_in=60)
    fal_faults.slow(bytes_per_second=10_000, times=1)
    seen = []
    fal_clock.on(61, lambda: seen.append(httpx.get(url).status_code))
    assert len(httpx.get(url).content) == 1_000_000, "what is under way is sent to its end"
    assert seen == [404]


def test_the_sdk_renews_its_token_when_less_than_an_hour_is_left(
    fal_clock: Clock, fal_emulator: Emulator, fal_ledger: Ledger, start: datetime
) -> None:
    """Of 12 hours it is used for 11; a token of an hour would be renewed at each call."""
    fal_emulator.settings.token_lifetime = timedelta(hours=12)
    asked = []
    for _ in range(13):
        before = len(fal_ledger.requests(path="/storage/auth/token"))
        File.from_bytes(b"x", repository=InternalFalFileRepositoryV3())
        if len(fal_ledger.requests(path="/storage/auth/token")) > before:
            asked.append((fal_clock.now() - start) // HOUR)
        fal_clock.advance(hours=1)
    assert asked == [0, 11]


def test_fal_client_backs_off_in_virtual_time_in_a_coroutine_too(
    fal_clock: Clock, fal_faults: Faults, fal_cdn: CDN, start: datetime
) -> None:
    fault = fal_faults.refuse(times=2, path="/files/upload")
    url = asyncio.run(fal_client.AsyncClient().upload(b"x", "text/plain", "a.txt"))
    assert fal_cdn.get(url) == b"x"
    assert len(fault.struck) == 2
    assert timedelta(0) < fal_clock.now() - start < timedelta(minutes=1)
