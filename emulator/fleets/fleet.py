"""The runners of one deployment: started, stopped and killed as :func:`decide` has it.

Methods that begin with a verb change what is known, under the lock of whoever calls them, and
return the jobs to do outside of it: booting, ``teardown`` and killing take time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, Protocol

from emulator.errors import EmulatorError
from emulator.fleets.call_queue import Member, Server
from emulator.fleets.options import Scaling
from emulator.fleets.retries import ErrorType
from emulator.fleets.scaling import (
    SCHEDULING_DELAY,
    Decision,
    Load,
    RunnerLoad,
    crash_backoff,
    decide,
)
from emulator.runners.runner import Runner, RunnerError

if TYPE_CHECKING:
    import threading

    from emulator.clock import Clock
    from emulator.fleets.call import Call

__all__ = ["Fleet", "Job", "Platform"]


class Platform(Protocol):
    """What a fleet needs of the platform around it."""

    #: Chooses calls and runners; None: in order.
    chance: random.Random | None

    @property
    def clock(self) -> Clock:
        """The one clock."""

    @property
    def after_503(self) -> Literal["killed", "kept"]:
        """What becomes of a runner that answers 503."""

    @property
    def payload_retention(self) -> timedelta | None:
        """How long payloads are kept; None: for ever."""

    def note(self, text: str) -> None:
        """Tell the ledger."""

    def here(self) -> str | None:
        """The runner that the calling thread is on, or acts for."""

    def is_in_an_app(self) -> bool:
        """Whether the calling thread is an app's own, and so cannot wait for its runner's end."""

    def in_background(self, name: str, job: Callable[[], object]) -> None:
        """Do something in a thread of the test's."""

    def next_name(self, app: type) -> str:
        """Name a runner of an app, or a stand-in."""

    def find(self, name: str) -> Runner | None:
        """A runner, also one that is being set up."""

    def completed(self, call: Call) -> None:
        """A call has its answer."""


@dataclass(frozen=True)
class Job:
    """What is to be done outside of the lock."""

    name: str
    do: Callable[[], object]
    #: In a thread of its own: nobody waits for it.
    background: bool = False
    #: After everything else.
    last: bool = False


class Fleet:
    """All runners that a deployment ever had.

    Args:
        boot: boots the app under a name, with a grace period.
        go_on: called when a runner is ready or gone.
        note: tells what happens.
    """

    def __init__(
        self,
        app: type,
        scaling: Scaling,
        platform: Platform,
        boot: Callable[[type, str, Scaling], Server],
        changed: threading.Condition,
        go_on: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self.app = app
        self.scaling = scaling
        self.revision = 1
        self.members: list[Member] = []
        #: Starts that are to find no machine.
        self.missing_machines = 0
        self.blocked_until: datetime | None = None
        #: Why the last start failed.
        self.last_failure: tuple[ErrorType, str] = ("runner_scheduling_failure", "")
        #: An error of the test's own, not of the app.
        self.broken: BaseException | None = None
        #: Runners that the platform has killed: what still runs on them in this process ends.
        self.killed: set[str] = set()
        self.closed = False
        #: Undeployed: nothing is started any more, and nothing new is run.
        self.retired = False
        #: Starts that have failed in a row.
        self.failures = 0
        self._platform = platform
        self._boot_app = boot
        self._changed = changed
        self._go_on = go_on
        self._note = note

    # --- who there is ----------------------------------------------------------------------------

    def member(self, name: str) -> Member:
        """A runner by name."""
        return next(member for member in self.members if member.name == name)

    def current(self) -> Iterator[Member]:
        """The runners of the present revision that have not ended."""
        return (
            member
            for member in self.members
            if member.phase != "ENDED" and member.revision == self.revision
        )

    def free(self, name: str | None = None) -> list[Member]:
        """The runners that take one more request; of that name."""
        return [one for one in self.current() if one.is_free and name in (None, one.name)]

    @property
    def is_moving(self) -> bool:
        """Whether a runner is starting or stopping."""
        return any(member.phase in ("STARTING", "STOPPING") for member in self.members)

    @property
    def is_booting(self) -> bool:
        """Whether something still boots, though it may be given up already."""
        return any(member.booting for member in self.members)

    @property
    def is_down(self) -> bool:
        """Whether there is no runner, and for some time no start, after one has failed."""
        blocked = self.blocked_until is not None and self.blocked_until > self._now()
        return blocked and all(one.phase == "STOPPING" for one in self.current())

    def load(self, waiting: tuple[datetime, ...]) -> Load:
        """What scaling depends on."""
        runners = [
            RunnerLoad(one.name, one.phase, len(one.running), one.idle_since, one.served)
            for one in self.current()
        ]
        return Load(self._now(), tuple(runners), waiting, self.blocked_until)

    def _now(self) -> datetime:
        return self._platform.clock.now()

    # --- scaling ---------------------------------------------------------------------------------

    def scale(self, waiting: tuple[datetime, ...]) -> tuple[Decision, list[Job]]:
        """Start and stop what is to be started and stopped now."""
        if self.broken is not None or self.retired:
            return Decision(), []
        load = self.load(waiting)
        decision = decide(self.scaling, load)
        jobs = [self.stop(self.member(name)) for name in decision.stop]
        for _ in range(decision.start):
            if self.missing_machines:
                self._find_no_machine()
                return decide(self.scaling, self.load(waiting)), jobs
            jobs.append(self._start(load))
        return decision, jobs

    def _start(self, load: Load) -> Job:
        deadline = load.now + timedelta(seconds=self.scaling.startup_timeout)
        slots = self.scaling.max_multiplexing
        name = self._platform.next_name(self.app)
        member = Member(name, self.revision, slots, load.now, deadline)
        self.members.append(member)
        queued, running = len(load.waiting), sum(runner.requests for runner in load.runners)
        why = "cold start" if queued else "to keep warm"
        most = self.scaling.max_concurrency
        self._note(f"started {name} ({why}: {queued} queued, {running} running, max {most})")
        app, scaling = self.app, self.scaling
        return Job(f"boot-{name}", lambda: self._boot(member, app, scaling), background=True)

    def _find_no_machine(self) -> None:
        self.missing_machines -= 1
        self.blocked_until = self._now() + SCHEDULING_DELAY
        self.last_failure = "runner_scheduling_failure", "No runner could be allocated"
        self._note(f"no machine for a runner; the next try is at {self.blocked_until:%H:%M:%S}")

    def _boot(self, member: Member, app: type, scaling: Scaling) -> None:
        runner, error = None, None
        if not self.closed:
            try:
                runner = self._boot_app(app, member.name, scaling)
            except BaseException as raised:
                error = raised
        with self._changed:
            member.runner = runner
            jobs = self._booted(member, error)
        for job in jobs:
            job.do()
        member.booting = False
        self._go_on()

    def _booted(self, member: Member, error: BaseException | None) -> list[Job]:
        runner = member.runner
        if member.phase != "STARTING":  # its time was over meanwhile
            return (
                []
                if runner is None
                else [Job("kill", lambda: runner.kill("its start took too long"))]
            )
        if runner is None:
            member.phase = "ENDED"
            if isinstance(error, EmulatorError) and not isinstance(error, RunnerError):
                self.broken = error
            elif not self.closed:
                self.fail_start(member, "runner_connection_refused", f"setup raised {error!r}")
            return []
        member.phase, member.idle_since = "READY", self._now()
        self.failures, self.blocked_until = 0, None
        if self.closed or member.revision == self.revision:
            return []
        return [self.stop(member, self._why_replaced)]

    def fail_start(self, member: Member, kind: ErrorType, why: str) -> None:
        """A runner has not come up: the next start has to wait."""
        member.phase = "ENDED"
        self.failures += 1
        wait = crash_backoff(self.failures)
        self.blocked_until = self._now() + wait
        self.last_failure = kind, f"{member.name} did not start: {why}"
        self._note(
            f"{member.name} did not start: {why}; CRASH_BACKOFF for {wait.total_seconds():g} s, "
            f"until {self.blocked_until:%H:%M:%S}"
        )

    def fail_slow_starts(self) -> list[Job]:
        """End the runners that are over their ``startup_timeout``."""
        jobs = []
        for member in list(self.members):
            if member.phase == "STARTING" and member.startup_deadline <= self._now():
                seconds = (member.startup_deadline - member.started_at).total_seconds()
                limit = f"setup took longer than startup_timeout={seconds:g} s"
                self.fail_start(member, "startup_timeout", limit)
                self.killed.add(member.name)
                asleep = self._platform.here() == member.name
                if asleep and self._platform.is_in_an_app():
                    continue  # an error wakes it
                # Setup may run on in its thread: nobody can wait for that.
                kill = self._killing(member, limit)
                jobs.append(Job(f"kill-{member.name}", kill, background=not asleep))
        return jobs

    # --- ends ------------------------------------------------------------------------------------

    def stop(self, member: Member, why: str | None = None) -> Job:
        """Shut a runner down in order; by default because it is idle."""
        member.phase = "STOPPING"
        if why is None:
            assert member.idle_since is not None
            why = f"idle for {(self._now() - member.idle_since).total_seconds():g} s"
        self._note(f"stopped {member.name} ({why})")

        def stop() -> None:
            assert member.runner is not None
            try:
                member.runner.stop()
            except Exception as error:
                self._note(f"the teardown of {member.name} raised {error!r}")
            self._end(member)

        return Job(f"stop-{member.name}", stop)

    def kill(self, member: Member, why: str) -> Job:
        """End a runner at once; whatever it does is lost."""
        member.phase = "STOPPING"
        self.killed.add(member.name)
        self._note(f"killed {member.name} ({why})")
        kill = self._killing(member, why)

        def kill_and_go_on() -> None:
            kill()
            self._end(member)

        return Job(f"kill-{member.name}", kill_and_go_on)

    def _killing(self, member: Member, why: str) -> Callable[[], None]:
        def kill() -> None:
            runner = member.runner or self._platform.find(member.name)
            if runner is not None:
                runner.kill(why)

        return kill

    def lose(self, member: Member, why: str) -> None:
        """A runner has ended by itself, or by the test."""
        member.phase = "ENDED"
        self._note(f"lost {member.name} ({why})")

    def lost(self) -> list[Member]:
        """The runners that have ended and nobody has noticed."""
        return [
            member
            for member in self.members
            if member.phase in ("READY", "DRAINING")
            and member.runner is not None
            and member.runner.state == "TERMINATED"
        ]

    def _end(self, member: Member) -> None:
        with self._changed:
            member.phase = "ENDED"
        self._go_on()

    def redeploy(self, app: type, scaling: Scaling) -> list[Job]:
        """Have other code run from now on: idle runners end, busy ones finish what they do."""
        self.app, self.scaling = app, scaling
        self.failures, self.blocked_until = 0, None
        self._note(f"redeployed as {app.__name__}, revision {self.revision + 1}")
        return self._replace()

    def retire(self) -> list[Job]:
        """Start nothing more: idle runners end, busy ones finish what they do."""
        if self.retired:
            return []
        self.retired, self.blocked_until = True, None
        self._note("undeployed")
        return self._replace()

    @property
    def _why_replaced(self) -> str:
        return "undeployed" if self.retired else "an older deployment"

    def _replace(self) -> list[Job]:
        """End the runners that there are, those in setup as soon as they are ready."""
        self.revision += 1
        jobs = []
        for member in self.members:
            if member.phase == "READY" and member.running:
                member.phase = "DRAINING"
                self._note(f"{member.name} is DRAINING: {len(member.running)} running")
            elif member.phase == "READY":
                jobs.append(self.stop(member, self._why_replaced))
        return jobs
