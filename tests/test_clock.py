"""The one clock: what an app sees of it, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime as datetime_module
import os
import pathlib
import queue
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import freezegun
import freezegun.api
import pytest

from emulator.clock import Clock
from emulator.errors import EmulatorError

UTC = timezone.utc
NEW_YEAR = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.reset()


def everything_replaced() -> dict[str, Any]:
    """All that the clock may replace, by name."""
    owners: dict[str, Any] = {
        "time": time,
        "os": os,
        "asyncio": asyncio,
        "asyncio.tasks": asyncio.tasks,
        "datetime": datetime_module,
        "here": sys.modules[__name__],
        "loop": asyncio.BaseEventLoop,
    }
    found = {
        f"{owner}.{name}": value
        for owner, module in owners.items()
        for name, value in vars(module).items()
        if callable(value)
    }
    accessor = getattr(pathlib, "_NormalAccessor", None)
    found |= {f"accessor.{name}": value for name, value in vars(accessor or object).items()}
    found |= {
        f"os.{name}": frozenset(getattr(os, name))
        for name in vars(os)
        if name.startswith("supports_") and name != "supports_bytes_environ"
    }
    found["limit"] = freezegun.api.call_stack_inspection_limit
    return found


def changed(before: dict[str, Any]) -> list[str]:
    after = everything_replaced()
    return sorted(
        name
        for name in before.keys() | after.keys()
        if before.get(name) is not after.get(name) and before.get(name) != after.get(name)
    )


# Real time


def test_it_is_real_time_at_first(clock: Clock) -> None:
    before = everything_replaced()
    assert abs(clock.now().timestamp() - time.time()) < 60
    assert (clock.engaged, clock.shifted, clock.frozen) == (False, False, False)
    clock.reset()
    assert changed(before) == []


def test_its_moments_are_aware_and_real(clock: Clock) -> None:
    for _ in range(2):
        assert type(clock.now()).__name__ == "datetime"
        assert clock.now().tzinfo is UTC
        clock.freeze()


# Moving


def test_move_to(clock: Clock) -> None:
    assert clock.move_to(NEW_YEAR) == NEW_YEAR
    assert datetime.now(UTC).year == 2030
    assert abs(time.time() - clock.now().timestamp()) < 60
    assert (clock.engaged, clock.shifted, clock.frozen) == (True, True, False)


def test_advance_by_a_month(clock: Clock) -> None:
    clock.move_to(NEW_YEAR)
    clock.advance(timedelta(days=31))
    assert clock.now().month == 2


def test_a_running_clock_ticks(clock: Clock) -> None:
    clock.move_to(NEW_YEAR)
    first = clock.now()
    while clock.now() == first:
        pass
    assert clock.now() > first


def test_a_stopped_clock_does_not(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    clock.sleep(0)
    assert (clock.now(), clock.time(), clock.frozen) == (NEW_YEAR, NEW_YEAR.timestamp(), True)
    assert (time.time(), time.time_ns()) == (clock.time(), clock.time() * 10**9)
    assert datetime.now(UTC) == datetime.fromtimestamp(time.time(), UTC) == NEW_YEAR


def test_freezing_takes_the_moment_it_is(clock: Clock) -> None:
    before = clock.now()
    clock.freeze()
    assert before <= clock.now() <= before + timedelta(minutes=1)


def test_a_stopped_clock_stays_stopped_when_moved(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    assert clock.advance(1.5) == NEW_YEAR + timedelta(seconds=1.5)
    assert clock.move_to(NEW_YEAR - timedelta(days=700)) == clock.now()
    assert clock.frozen


@pytest.mark.parametrize(
    ("arguments", "named", "step"),
    [
        ((90,), {}, timedelta(seconds=90)),
        ((0.25,), {}, timedelta(milliseconds=250)),
        ((timedelta(days=3),), {}, timedelta(days=3)),
        ((timedelta(days=3),), {"hours": 1}, timedelta(days=3, hours=1)),
        ((), {"weeks": 1, "days": 1, "hours": 1}, timedelta(days=8, hours=1)),
        ((), {"minutes": 1, "seconds": 1, "milliseconds": 1}, timedelta(seconds=61.001)),
        ((), {"hours": -1}, timedelta(hours=-1)),
        ((0,), {}, timedelta()),
    ],
)
def test_advance(clock: Clock, arguments: Any, named: Any, step: timedelta) -> None:
    clock.freeze(NEW_YEAR)
    assert clock.advance(*arguments, **named) == NEW_YEAR + step == clock.now()


def test_advancing_by_nothing_says_what_to_write(clock: Clock) -> None:
    with pytest.raises(TypeError) as caught:
        clock.advance()
    assert str(caught.value) == (
        "advance() was not told by how much. Write clock.advance(hours=1), clock.advance(90) for "
        "seconds, or clock.advance(timedelta(days=30))."
    )


@pytest.mark.parametrize("method", ["move_to", "freeze"])
def test_a_moment_without_a_time_zone_says_what_to_write(clock: Clock, method: str) -> None:
    with pytest.raises(ValueError) as caught:
        getattr(clock, method)(datetime(2030, 1, 1))
    assert str(caught.value) == (
        f"Clock.{method}() was given 2030-01-01T00:00:00, which has no time zone, so it names no "
        f"moment. Write {method}(datetime(..., tzinfo=timezone.utc))."
    )
    assert not clock.engaged


def test_other_time_zones_count(clock: Clock) -> None:
    clock.freeze(datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    assert clock.now() == NEW_YEAR


def test_a_moment_beyond_the_calendar_changes_nothing(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    with pytest.raises(OverflowError):
        clock.advance(days=10_000 * 366)
    assert clock.now() == NEW_YEAR


def test_the_moment_read_from_the_app_s_own_clock_can_be_used(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    clock.move_to(datetime.now(UTC) + timedelta(days=1))
    assert clock.now() == NEW_YEAR + timedelta(days=1)
    assert type(clock.now()).__name__ == "datetime"


# Subscribers


def test_subscribers_hear_of_each_jump(clock: Clock) -> None:
    heard: list[tuple[datetime, datetime]] = []
    clock.freeze(NEW_YEAR)
    clock.subscribe(lambda old, new: heard.append((old, new)))
    clock.advance(hours=1)
    time.sleep(60)
    hour = NEW_YEAR + timedelta(hours=1)
    assert heard == [(NEW_YEAR, hour), (hour, hour + timedelta(minutes=1))]
    clock.resume()
    assert heard[2][0] == hour + timedelta(minutes=1)
    assert heard[2][1] < NEW_YEAR


def test_stopping_it_at_a_moment_is_one_jump(clock: Clock) -> None:
    heard: list[datetime] = []
    clock.subscribe(lambda _, new: heard.append(new))
    clock.freeze(NEW_YEAR)
    assert heard == [NEW_YEAR]


def test_it_says_that_a_test_is_going_to_move_it(clock: Clock) -> None:
    seen: list[datetime] = []
    clock.freeze(NEW_YEAR)
    clock.before_moving = lambda: seen.append(clock.now())
    clock.advance(1)
    clock.move_to(NEW_YEAR + timedelta(hours=1))
    assert seen == [NEW_YEAR, NEW_YEAR + timedelta(seconds=1)]


def test_the_last_subscriber_hears_of_it_after_all_others(clock: Clock) -> None:
    heard: list[str] = []
    clock.subscribe(lambda *_: heard.append("last"), last=True)
    clock.subscribe(lambda *_: heard.append("other"))
    clock.freeze()
    assert heard == ["other", "last"]


def test_a_subscriber_may_wait_for_another_thread_that_reads_the_clock(clock: Clock) -> None:
    read = []

    def in_another_thread(old: datetime, new: datetime) -> None:
        thread = threading.Thread(target=lambda: read.append(clock.advance(1)))
        clock.unsubscribe(in_another_thread)
        thread.start()
        thread.join()

    clock.freeze(NEW_YEAR)
    clock.subscribe(in_another_thread)
    clock.advance(1)
    assert read == [NEW_YEAR + timedelta(seconds=2)]


def test_unsubscribing_twice_does_nothing(clock: Clock) -> None:
    clock.unsubscribe(print)


# Going back


def test_a_reset_restores_everything(clock: Clock) -> None:
    before = everything_replaced()
    clock.freeze(NEW_YEAR)
    assert {"time.time", "time.sleep", "asyncio.sleep", "os.stat", "os.scandir"} <= {
        *changed(before)
    }
    clock.advance(5)
    clock.reset()
    assert changed(before) == []
    assert freezegun.api.freeze_factories == freezegun.api.ignore_lists == []
    assert freezegun.api.tick_flags == freezegun.api.tz_offsets == []
    assert not clock.engaged
    assert not clock.frozen


def test_a_reset_forgets_what_was_to_come(clock: Clock) -> None:
    appointment = clock.on(60, lambda: None)
    clock.reset()
    clock.advance(hours=1)
    assert appointment.calls == 0


def test_resuming_restores_everything(clock: Clock) -> None:
    before = everything_replaced()
    clock.freeze(NEW_YEAR)
    clock.resume()
    assert changed(before) == []
    assert clock.now() < NEW_YEAR
    clock.resume()


def test_modules_imported_in_the_meantime_are_restored_too(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    module: Any = types.ModuleType("imported_in_the_meantime")
    sys.modules[module.__name__] = module
    try:
        exec("from time import sleep, time\nfrom os import stat", vars(module))
        clock.reset()
        assert (module.sleep, module.time, module.stat) == (time.sleep, time.time, os.stat)
    finally:
        del sys.modules[module.__name__]


def test_a_replacement_of_somebody_else_is_left_to_him(clock: Clock) -> None:
    before = everything_replaced()
    with pytest.MonkeyPatch.context() as patch:
        clock.freeze(NEW_YEAR)
        patch.setattr(time, "sleep", print)
        clock.reset()
        assert time.sleep is print
    time.sleep(0)
    clock.freeze(NEW_YEAR)
    time.sleep(5)
    assert clock.now() == NEW_YEAR + timedelta(seconds=5)
    clock.reset()
    assert changed(before) == []


def test_it_can_be_moved_again(clock: Clock) -> None:
    for year in (2031, 2032):
        clock.move_to(datetime(year, 6, 1, tzinfo=UTC))
        assert datetime.now(UTC).year == year
        clock.reset()


# Sleeping


def test_sleeping_moves_a_stopped_clock(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    time.sleep(30 * 86_400)
    assert clock.now() == NEW_YEAR + timedelta(days=30)


def test_a_sleep_imported_by_name_does_too(clock: Clock) -> None:
    module: Any = types.ModuleType("an_app")
    exec("from time import sleep", vars(module))
    sys.modules["an_app"] = module
    try:
        clock.freeze(NEW_YEAR)
        module.sleep(5)
        assert clock.now() == NEW_YEAR + timedelta(seconds=5)
    finally:
        clock.reset()
        del sys.modules["an_app"]
    assert module.sleep is time.sleep


@pytest.mark.parametrize("infrastructure", ["threading", "concurrent.futures.thread", "emulator.x"])
def test_infrastructure_really_sleeps(clock: Clock, infrastructure: str) -> None:
    clock.freeze(NEW_YEAR)
    exec("import time; time.sleep(0.001)", {"__name__": infrastructure})
    assert clock.now() == NEW_YEAR


def test_an_app_named_like_infrastructure_does_not(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    exec("import time; time.sleep(5)", {"__name__": "queue_of_jobs"})
    assert clock.now() == NEW_YEAR + timedelta(seconds=5)


def test_a_running_clock_is_not_moved(clock: Clock) -> None:
    clock.move_to(NEW_YEAR)
    heard: list[object] = []
    clock.subscribe(lambda *moments: heard.append(moments))
    time.sleep(0.001)
    clock.sleep(0.001)
    assert heard == []


def test_negative_sleeps_fail_as_ever(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    with pytest.raises(ValueError, match="sleep length must be non-negative"):
        time.sleep(-1)


def test_fifty_threads_sleep_at_once(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    ready = threading.Barrier(50)
    woken: queue.Queue[datetime] = queue.Queue()

    def work() -> None:
        ready.wait()
        started = clock.now()
        time.sleep(3600)
        woken.put(clock.now() - started)

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slept = [woken.get() for _ in range(50)]
    assert min(slept) >= timedelta(hours=1)
    assert clock.now() <= NEW_YEAR + timedelta(hours=50)


def test_time_in_a_thread_is_the_clock_s(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        seen = list(pool.map(lambda _: (time.time(), datetime.now(UTC)), range(4)))
    assert seen == [(NEW_YEAR.timestamp(), NEW_YEAR)] * 4


def test_sleep_of_the_clock_itself(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    clock.sleep(2)
    assert clock.now() == NEW_YEAR + timedelta(seconds=2)


# Waiting for something real


def test_timeouts_of_threads_are_real(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    assert not threading.Event().wait(0.001)
    with pytest.raises(queue.Empty):
        queue.Queue[int]().get(timeout=0.001)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        go = threading.Event()
        future = pool.submit(go.wait)
        with pytest.raises(concurrent.futures.TimeoutError):
            list(concurrent.futures.as_completed([future], timeout=0.001))
        go.set()


def test_timeouts_of_subprocesses_are_real(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
        process.kill()
    assert clock.now() == NEW_YEAR


def test_asyncio_does_not_hang(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        called = asyncio.Event()
        asyncio.get_running_loop().call_later(0.001, called.set)
        await asyncio.wait_for(called.wait(), 60)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert clock.now() == NEW_YEAR


def test_a_coroutine_s_sleep_moves_a_stopped_clock(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)

    async def main() -> str:
        await asyncio.wait_for(asyncio.sleep(0.01), 60)
        return await asyncio.sleep(3600, "slept")

    assert asyncio.run(main()) == "slept"
    assert clock.now() == NEW_YEAR + timedelta(hours=1, seconds=0.01)


def test_coroutines_that_sleep_side_by_side_do_not_add_up(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)

    async def work() -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        await asyncio.gather(work(), work(), asyncio.sleep(1800))

    asyncio.run(main())
    assert clock.now() == NEW_YEAR + timedelta(hours=1)


# The SDK


def test_back_off_of_the_toolkit_takes_virtual_time(clock: Clock) -> None:
    retry = pytest.importorskip("fal.toolkit.utils.retry").retry
    clock.freeze(NEW_YEAR)
    attempts = []

    @retry(max_retries=5, base_delay=100, max_delay=10_000)
    def fails() -> None:
        attempts.append(clock.now() - NEW_YEAR)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert attempts == [timedelta(seconds=seconds) for seconds in (0, 100, 300, 700, 1500)]


def test_back_off_of_the_toolkit_in_a_coroutine(clock: Clock) -> None:
    retry = pytest.importorskip("fal.toolkit.utils.retry").retry
    clock.freeze(NEW_YEAR)
    attempts = []

    @retry(max_retries=5, base_delay=100, max_delay=10_000)
    async def fails() -> None:
        attempts.append(clock.now() - NEW_YEAR)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        asyncio.run(fails())
    assert attempts == [timedelta(seconds=seconds) for seconds in (0, 100, 300, 700, 1500)]


def test_the_first_app_can_be_built_on_a_moved_clock() -> None:
    pytest.importorskip("fal")
    program = """
        from datetime import datetime, timezone
        from emulator.clock import Clock
        clock = Clock()
        clock.freeze(datetime(2030, 1, 1, tzinfo=timezone.utc))
        import fal
        class App(fal.App):
            @fal.endpoint("/")
            def run(self) -> dict:
                return {}
        App(_allow_init=True)._build_app()
        clock.reset()
    """
    run_by_itself("-c", textwrap.dedent(program))


def run_by_itself(*arguments: str) -> None:
    """Another Python, outside of the emulation, in which nobody's configuration is read."""
    environment = {**os.environ, "FAL_CONFIG_PATH": os.devnull}
    subprocess.run([sys.executable, *arguments], env=environment, check=True)


def test_realtime_frames_can_be_read_for_the_first_time_on_a_moved_clock() -> None:
    program = """
        from datetime import datetime, timezone
        from emulator.clock import Clock
        clock = Clock()
        clock.freeze(datetime(2030, 1, 1, tzinfo=timezone.utc))
        import msgpack
        assert msgpack.unpackb(msgpack.packb({"a": 1})) == {"a": 1}
        clock.reset()
    """
    run_by_itself("-W", "error", "-c", textwrap.dedent(program))


# The user's own freezegun

USER = datetime(2020, 5, 5, tzinfo=UTC)


def user_freeze(**options: Any) -> Any:
    return freezegun.freeze_time("2020-05-05", **options)


def test_the_clock_follows_the_user_s_own_freeze(clock: Clock) -> None:
    with user_freeze() as frozen:
        assert clock.now() == USER
        assert type(clock.now()).__name__ == "datetime"
        frozen.tick(60)
        assert clock.time() == USER.timestamp() + 60
        assert not clock.engaged
    assert clock.now().year > 2020


def test_inside_the_user_s_freeze_our_moves_win(clock: Clock) -> None:
    before = everything_replaced()
    with user_freeze():
        clock.advance(days=1)
        assert clock.now() == datetime.now(UTC) == USER + timedelta(days=1)
        assert clock.frozen
        time.sleep(5)
        assert clock.now() == USER + timedelta(days=1, seconds=5)
        clock.resume()
        assert clock.now() == datetime.now(UTC) == USER
    assert changed(before) == []


def test_a_user_s_ticking_freeze_goes_on_ticking(clock: Clock) -> None:
    with user_freeze(tick=True):
        clock.advance(days=1)
        assert not clock.frozen
        assert USER + timedelta(days=1) <= clock.now() < USER + timedelta(days=2)
        clock.reset()


def test_the_user_s_stop_does_not_stop_us(clock: Clock) -> None:
    before = everything_replaced()
    with user_freeze():
        clock.freeze(NEW_YEAR)
    assert clock.now() == datetime.now(UTC) == NEW_YEAR
    clock.reset()
    assert changed(before) == []
    assert freezegun.api.freeze_factories == []


def test_a_freeze_inside_ours(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    with user_freeze():
        assert clock.now() == datetime.now(UTC) == USER
        clock.advance(days=1)
        assert clock.now() == datetime.now(UTC) == USER + timedelta(days=1)
    assert clock.now() == datetime.now(UTC) == USER + timedelta(days=1)


def test_under_the_user_s_freeze_sleeps_are_real(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    with user_freeze():
        time.sleep(0.001)
    assert clock.now() == NEW_YEAR


def test_our_reset_leaves_the_user_s_freeze_alone(clock: Clock) -> None:
    before = everything_replaced()
    clock.freeze(NEW_YEAR)
    with user_freeze():
        clock.reset()
        assert clock.now() == datetime.now(UTC) == USER
    assert abs(clock.time() - time.time()) < 60
    clock.reset()
    assert changed(before) == []


def test_a_reset_returns_the_user_s_place_to_him(clock: Clock) -> None:
    before = everything_replaced()
    clock.freeze(NEW_YEAR)
    with user_freeze():
        clock.advance(days=1)
        clock.reset()
        assert datetime.now(UTC) == USER
        clock.freeze(NEW_YEAR)
        assert datetime.now(UTC) == NEW_YEAR
    clock.reset()
    assert changed(before) == []


def test_two_clocks_one_after_the_other(clock: Clock) -> None:
    before = everything_replaced()
    clock.freeze(NEW_YEAR)
    clock.reset()
    other = Clock()
    with contextlib.closing(types.SimpleNamespace(close=other.reset)):
        other.freeze(NEW_YEAR + timedelta(days=1))
        assert datetime.now(UTC) == other.now()
    assert changed(before) == []


def test_a_freezegun_without_what_is_needed_is_named(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(freezegun.api, "tz_offsets")
    with pytest.raises(EmulatorError) as caught:
        clock.freeze(NEW_YEAR)
    assert str(caught.value) == (
        f"freezegun {freezegun.__version__} has no freezegun.api.tz_offsets, by which pytest-fal "
        "shows the emulated clock to the app (emulator/timepatch.py). This version of pytest-fal "
        "was tested with 1.5.0 to 1.5.5. Install a newer pytest-fal (pip install --upgrade "
        'pytest-fal), or what it knows: pip install "freezegun==1.5.5"'
    )
    assert not clock.engaged


# Threads


def test_threads_that_move_the_clock_lose_no_move(clock: Clock) -> None:
    clock.freeze(NEW_YEAR)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: clock.advance(1), range(400)))
    assert clock.now() == NEW_YEAR + timedelta(seconds=400)
