"""What the platform does with a runner, by its answers, its health and the clock [§4.4-§4.6]."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

import httpx

from emulator.errors import EmulatorError
from emulator.runners import limits
from emulator.runners.body import Body
from emulator.runners.health import Check

if TYPE_CHECKING:
    from emulator.runners.runner import Runner, Surroundings
    from emulator.runners.websocket import AppWebSocket
    from emulator.schedule import Appointment

__all__ = ["Supervision"]


class Underway(Protocol):
    """What a client has open."""

    def hang_up(self) -> None:
        """End it as a client that goes away; from any thread."""

    def runner_ended(self) -> None:
        """End it, as its runner has; from any thread."""


class Supervision:
    """Watches over one runner.

    Args:
        runner: it is killed or stopped where the platform would.
        around: the clock that limits are kept by, and who is told what is decided.
    """

    def __init__(self, runner: Runner, around: Surroundings) -> None:
        self._runner = runner
        self._around = around
        self._clock = around.clock
        self._settings = around.settings
        self._note = around.note
        self._lock = threading.Lock()
        self._checks: Appointment | None = None
        self._failed = 0
        self._underway: set[Underway] = set()
        #: Those that may have something to give back: their tests need not close what has ended.
        self._websockets: list[AppWebSocket] = []
        #: How many requests the runner is at work on.
        self.in_flight = 0

    def begin(self) -> None:
        """The runner is up: check its health regularly, if its app declares how."""
        check = Check.of(self._runner.app_class)
        if check.regular:
            self._checks = self._clock.on(
                check.start_period, lambda: self._check_once(check), every=check.interval
            )

    def end(self) -> None:
        """The runner has ended."""
        if self._checks is not None:
            self._checks.cancel()
        for one in self._open():
            one.runner_ended()

    def open(self, request: httpx.Request, show: Callable[[], None]) -> httpx.Response:
        """Have the app answer, until its head is there.

        The body has to come in time as well; once it is over, *show* is called, and done what the
        answer asks for.
        """
        with ExitStack() as until:
            until.enter_context(self._in_time())
            response = self._runner.begin(request)
            until = until.pop_all()

        def end(error: BaseException | None) -> None:
            self._underway.discard(body)
            if error is None:
                until.close()
            else:
                until.__exit__(type(error), error, error.__traceback__)
            show()
            if error is None:
                self._judge(response)

        body = Body(response, request.method, end)
        self._underway.add(body)
        response.stream = body
        body.end_if_empty()
        return response

    def connect(self, request: httpx.Request) -> AppWebSocket:
        """Have the app open a websocket; in flight until it ends, however long that takes."""
        self._count(1)
        try:
            opened = self._runner.dial(request)
        except BaseException as error:
            self._count(-1)
            if isinstance(error, EmulatorError) and self._runner.end is not None:
                self._runner.stop()  # it has ended: what is left to do of it
            raise

        def end() -> None:
            self._underway.discard(opened)
            self._count(-1)

        with self._lock:
            self._websockets = [one for one in self._websockets if not one.is_released]
            self._websockets.append(opened)
        self._underway.add(opened)
        opened.call_at_end(end)
        return opened

    def hang_up(self) -> None:
        """End all answers and websockets that are under way, as clients that go away do."""
        for one in self._open():
            one.hang_up()

    def check_health(self, failures: int | None) -> bool:
        """Ask so often, by default as often as the app allows; kill the runner if all fail."""
        check = Check.of(self._runner.app_class)
        allowed = failures or check.failure_threshold
        problem = ""
        for _ in range(allowed):
            problem = check.problem(self._ask)
            if not problem:
                return True
        self._give_up(allowed, problem)
        return False

    # --- inside ----------------------------------------------------------------------------------

    def _open(self) -> set[Underway]:
        """What is under way, and websockets that have ended and were not closed."""
        with self._lock:
            return {*self._underway, *(one for one in self._websockets if not one.is_released)}

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """A request in flight; the runner is killed when it takes too long."""
        limit = self._around.limits.request_timeout
        is_over = threading.Event()

        def time_out() -> None:
            if not is_over.is_set():
                seconds = f"{limit.total_seconds():g} s"
                self._runner.kill(f"a request took longer than request_timeout ({seconds})")

        timer = self._real_timer(limit, time_out)  # of a deployment too, which has only the clock
        self._count(1)
        try:
            with self._around.within(limit, time_out):
                yield
        except EmulatorError:
            if self._runner.end is not None:
                self._runner.stop()  # it has ended: what is left to do of it
            raise
        finally:
            is_over.set()
            if timer is not None:
                timer.cancel()
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self.in_flight += change

    def _real_timer(self, limit: timedelta, time_out: Callable[[], None]) -> threading.Timer | None:
        """On a clock that runs nobody is there to keep an appointment while a request takes long.

        Only for limits that a test can sit out.
        """
        if self._clock.frozen or limit > limits.WORTH_A_TIMER:
            return None
        timer = threading.Timer(limit.total_seconds(), time_out)
        timer.name, timer.daemon = f"fal-{self._runner.name}-request-timeout", True
        timer.start()
        return timer

    def _judge(self, response: httpx.Response) -> None:
        """What the platform does with a runner after such an answer [§4.5, §4.6]."""
        if self._around.in_fleet and "x-fal-runner-health-check" not in response.headers:
            return
        if response.status_code == 503 and self._settings.runner_after_503 == "killed":
            self._runner.kill("it answered 503")
        elif "x-fal-runner-health-check" in response.headers:
            self.check_health(failures=1)
        elif "x-fal-stop-runner" in response.headers and not self.in_flight:
            self._note(f"{self._runner.name} asked to be stopped")
            self._runner.stop()

    def _check_once(self, check: Check) -> None:
        if self._runner.state not in ("IDLE", "RUNNING") or self._runner.is_here():
            return
        problem = check.problem(self._ask)
        self._failed = self._failed + 1 if problem else 0
        if self._failed >= check.failure_threshold:
            self._give_up(self._failed, problem)

    def _give_up(self, failures: int, problem: str) -> None:
        times = "" if failures == 1 else f" {failures} times in a row"
        self._runner.kill(f"its health check failed{times}: {problem}")

    def _ask(self, method: str, path: str) -> httpx.Response:
        self._runner.check_takes_requests()
        response = self._runner.begin(httpx.Request(method, f"{self._runner.url}{path}"))
        response.read()
        return response
