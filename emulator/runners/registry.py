"""The runners of one test: booting, finding the one a thread is on, shutting all down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import httpx

from emulator.errors import EmulatorError
from emulator.fleets.gateway_headers import caller_id
from emulator.gpus.machine_types import pretend
from emulator.runners.current_app import CurrentApp
from emulator.runners.elsewhere import Elsewhere
from emulator.runners.environment import SharedEnvironment, variables
from emulator.runners.limits import Limits
from emulator.runners.log import Log
from emulator.runners.output import OutputSplitter
from emulator.runners.runner import Runner, Surroundings
from emulator.runners.thread import ThreadRunner
from emulator.sdk_apps import (
    load_app_module,
    publish_current_app,
    quick_package_list,
    tell_fal_client,
)
from emulator.storage.lifecycle import LIFECYCLE_PREFERENCE_HEADER, parse_preference
from emulator.users import nickname_of

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.distributed.data import Share
    from emulator.gpus.machine_types import Pretended
    from emulator.identity import Identities
    from emulator.ledger import Ledger
    from emulator.network.resolver import Resolver
    from emulator.network.wire import Wire
    from emulator.settings import Settings
    from emulator.storage.disk import Disk
    from emulator.users import User

__all__ = ["Runners"]

_ISOLATIONS = ("thread", "process")
_CATEGORIES = {
    "PENDING": "runner_pending",
    "DOCKER_PULL": "runner_docker_pull",
    "SETUP": "runner_setup",
    "IDLE": "runner_started",
    "DRAINING": "runner_draining",
    "TERMINATING": "runner_stopping",
}


class Runners:
    """Boots runners and knows them."""

    def __init__(
        self,
        disk: Disk,
        ledger: Ledger,
        identities: Identities,
        settings: Callable[[], Settings],
        clock: Clock,
        place: Callable[[str, str | None, str | None], Share | None],
    ) -> None:
        self._disk = disk
        self._ledger = ledger
        self._identities = identities
        self._settings = settings
        self._clock = clock
        self._place = place
        self.all: list[Runner] = []
        self._alive: dict[int, ThreadRunner] = {}
        self._names: dict[int, str] = {}
        self._count = 0
        #: By request id: the users who can say that it is theirs.
        self._served: dict[str, set[str]] = {}
        self._environment = SharedEnvironment()
        self._output = OutputSplitter(self._sink)
        self._stand_in = CurrentApp(self._app_here)
        self._booting = threading.Lock()
        self._publishing = threading.Lock()
        #: Starts under way: the environment stays as it is meanwhile.
        self._starting = 0
        #: Called with a runner that is there, before anything of its app has run.
        self.made: Callable[[Runner], None] = lambda _runner: None
        #: Called with the name of a runner that has ended.
        self.ended: Callable[[str], None] = _nobody
        self._elsewhere = Elsewhere(self.all, clock, disk)

    def reset(self) -> None:
        """Forget the runners of the last test."""
        self.all.clear()
        self._alive.clear()
        self._names.clear()
        self._served.clear()
        self._count = 0

    def connect(self, wire: Wire, resolver: Resolver) -> None:
        """Say what serves the names and connections of runners in processes."""
        self._elsewhere.connect(wire, resolver)

    def close(self) -> None:
        """End what lives longer than one test."""
        self._elsewhere.close()

    # --- who is here -----------------------------------------------------------------------------

    def number_here(self) -> int | None:
        """The number of the runner that the calling thread is on, or acts for."""
        acting = self._elsewhere.acting_for
        if acting is not None:
            return acting
        if not self._alive:
            return None
        number = self._disk.here()
        return number if number in self._alive else None

    def number_of_process(self, process: int) -> int | None:
        """The number of the runner that a process is on, or of no runner's mounts."""
        return self._disk.number_of_process(process) or self._elsewhere.number_of_process(process)

    def name_here(self) -> str | None:
        """The name of the runner that the calling thread is on."""
        return self.name_of(self.number_here())

    def is_in_an_app(self) -> bool:
        """Whether the calling thread is an app's own, and so cannot wait for its runner's end."""
        return bool(self._alive) and self._disk.here() in self._alive

    def name_of(self, number: int | None) -> str | None:
        """The name of a runner."""
        return None if number is None else self._names.get(number)

    def named(self, name: str | None) -> Runner | None:
        """The runner of this name."""
        return next((runner for runner in list(self.all) if runner.name == name), None)

    @property
    def fork_server(self) -> int | None:
        """The process that runners' processes are forked from; None before the first of them."""
        return self._elsewhere.fork_server

    def newest_process(self) -> Runner | None:
        """The runner in a process that was started last, of those that live."""
        return self._elsewhere.newest()

    def is_outside_of_requests(self, name: str | None) -> bool:
        """Whether an upload of this runner's without a request's context has lost it [§1.9].

        Not in ``setup`` and ``teardown``, nor in what a test runs there, which have none.
        """
        runner = self.named(name)
        if runner is None or runner.state not in ("IDLE", "RUNNING"):
            return False
        return runner.in_flight > 0 or not runner.runs

    def backings(self) -> Iterator[str]:
        """Where all volumes really are; their files' times follow the clock."""
        if self._disk.directory is None:
            return
        yield str(self._disk.data.backing)
        yield str(self._disk.tmp.backing)
        for runner in self.all:
            if runner.state != "TERMINATED":
                yield str(runner.tmp.backing)

    # --- booting ---------------------------------------------------------------------------------

    def boot(
        self,
        app: type,
        isolation: str,
        gpu: str | bool | None,
        env: dict[str, str],
        load: str,
        placement: tuple[str | None, str | None] = (None, None),
    ) -> Runner:
        """Boot an app on a new runner; see ``Emulator.runner``."""
        name = self.next_name()
        return self.boot_as(name, app, isolation, gpu, env, load, placement=placement)

    def next_name(self) -> str:
        """A name that no runner of this test has had."""
        with self._booting:
            self._count += 1
            return f"runner-{self._count}"

    def boot_as(
        self,
        name: str,
        app: type,
        isolation: str,
        gpu: str | bool | None,
        env: dict[str, str],
        load: str,
        fleet: Limits | None = None,
        placement: tuple[str | None, str | None] = (None, None),
    ) -> Runner:
        """Boot an app on a runner of a name that :meth:`next_name` gave; also in several threads.

        Args:
            fleet: the limits of the deployment it belongs to, which judges its answers.
            placement: its server and datacenter; None: as the settings say.
        """
        _check(load_app_module(), app, isolation)
        pretended = pretend(gpu, app)
        with self._booting:
            self._starting += 1
        try:
            with self._booting:
                limits = fleet or self._limits(app)
                around = self._surroundings(name, env, pretended, limits, placement)
                around.in_fleet = fleet is not None
                runner = self._make(name, app, around, isolation, env, load, pretended)
                self.all.append(runner)
            self.made(runner)
            return self._start(runner)
        finally:
            with self._booting:
                self._starting -= 1
            self._leave_after_the_last()

    def _make(
        self,
        name: str,
        app: type,
        around: Surroundings,
        isolation: str,
        env: dict[str, str],
        load: str,
        pretended: Pretended | None,
    ) -> Runner:
        if isolation == "process":
            return self._elsewhere.runner(name, app, around, load)
        alone = not self._alive and self._starting == 1
        self._environment.enter(self._settings(), env, pretended is not None, alone=alone)
        return ThreadRunner(name, app, around)

    def _start(self, runner: Runner) -> Runner:
        with quick_package_list():
            try:
                runner.start()
            except BaseException as error:
                if hasattr(error, "add_note"):
                    name = runner.app_class.__name__
                    error.add_note(f"(in the setup of {name} on {runner.name})")
                raise
        return runner

    def _limits(self, app: type) -> Limits:
        return Limits.of(app, self._settings())

    def stop_all(self) -> None:
        """Shut down every runner that is still alive, the newest first; raises the first error."""
        errors = []
        for runner in self.all:
            runner.hang_up()  # clients that are still there are about to go away
        for runner in reversed(self.all):
            try:
                runner.stop()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    # --- inside ----------------------------------------------------------------------------------

    def _surroundings(
        self,
        name: str,
        env: Mapping[str, str],
        pretended: Pretended | None,
        limits: Limits,
        placement: tuple[str | None, str | None],
    ) -> Surroundings:
        settings, share = self._settings(), self._place(name, *placement)
        disk = self._disk.new_runner(name, pretended.programs(name) if pretended else {})
        disk.share = share
        if share is not None:  # threads share theirs, of the account's region
            env = {"FAL_REGION": share.datacenter, **env}
        if settings.tmp_size is not None:
            disk.tmp.limit(settings.tmp_size)
        return Surroundings(
            disk=disk,
            clock=self._clock,
            settings=settings,
            gateway=self._gateway_headers,
            environment={**self._key(), **variables(settings, env, pretended)},
            changed=self._changed,
            note=lambda text: self._ledger.event("runner", text),
            intercept=self._intercept,
            limits=limits,
        )

    def _changed(self, runner: Runner, state: str) -> None:
        """A runner's life went on (called from its thread or the test's)."""
        if state not in ("request", "END"):
            self._ledger.event("runner", f"{runner.name} {state}", _category(runner, state))
        if isinstance(runner, ThreadRunner):
            self._thread_changed(runner, state)
        elif state == "SETUP":
            self._names[self._elsewhere.number_of(runner)] = runner.name
        if state == "TERMINATED":
            self.ended(runner.name)

    def _thread_changed(self, runner: ThreadRunner, state: str) -> None:
        if state == "request":
            self._output.install()
        elif state == "SETUP" and runner.namespace is not None:
            self._alive[runner.namespace] = runner
            self._names[runner.namespace] = runner.name
            self._output.install()
            self._publish()
        elif state == "IDLE":
            tell_fal_client(self._app_here)  # the SDK has told it otherwise as the app was set up
        elif state in ("END", "TERMINATED"):
            # Both: the thread of a killed runner may not end, in a blocking endpoint.
            # The kernel gives the number of a namespace that is gone to the next one.
            if self._alive.get(runner.namespace or 0) is runner:
                del self._alive[runner.namespace or 0]
            self._publish()
            if state == "TERMINATED":
                self._leave_after_the_last()

    def _leave_after_the_last(self) -> None:
        if not self._alive and not self._starting:
            self._output.uninstall()
            self._environment.leave()

    def _publish(self) -> None:
        """The SDK has one current app a process: the only one there is, or a stand-in."""
        with self._publishing:
            apps = [runner.app for runner in list(self._alive.values())]
            publish_current_app(None if not apps else apps[0] if len(apps) == 1 else self._stand_in)

    def _app_here(self) -> Any:
        runner = self._alive.get(self._disk.here())
        return None if runner is None else runner.app

    def _sink(self) -> Log | None:
        runner = self._alive.get(self._disk.here())
        return None if runner is None else runner.log

    def _key(self) -> dict[str, str]:
        """The account's key, for a process that is started while the test acts as another user."""
        users = self._identities.users
        return {} if users.present is users.owner else {"FAL_KEY": users.owner.key}

    def _gateway_headers(self, caller: User | str | None) -> dict[str, str]:
        settings, users = self._settings(), self._identities.users
        user = users.present if caller is None else users.user(nickname_of(caller))
        token = self._identities.issue(user.nickname, settings.token_lifetime)
        return {
            "x-fal-endpoint": f"{settings.nickname}/{settings.app_name}",
            "x-fal-caller-user-id": caller_id(user.nickname, settings.nickname),
            "x-fal-cdn-token": token.token,
        }

    def has_served(self, request_id: str, nickname: str) -> bool:
        """Whether a runner has had this request, of a user's or to a user's app."""
        return nickname in self._served.get(request_id, ())

    def _remember(self, request: httpx.Request) -> None:
        caller = self._identities.valid(request.headers.get("x-fal-cdn-token"))
        users = {self._settings().nickname, *([caller.user] if caller is not None else [])}
        self._served.setdefault(request.headers["x-fal-request-id"], set()).update(users)

    def _intercept(self, runner: Runner, request: httpx.Request) -> httpx.Response | None:
        """Report, or refuse, a lifecycle preference of the caller's that is wrong.

        The app itself swallows one that it cannot read, and passes on any other [§8, pitfall 7].
        """
        self._remember(request)
        text = request.headers.get(LIFECYCLE_PREFERENCE_HEADER)
        if text is None:
            return None
        malformed_lifecycle = self._settings().malformed_lifecycle
        parsed = parse_preference(
            {LIFECYCLE_PREFERENCE_HEADER: text}, malformed_lifecycle=malformed_lifecycle
        )
        call = f"{request.method} {request.url.path} to {runner.name}"
        for problem in parsed.problems:
            self._ledger.event("lifecycle", f"{call}: {problem}")
        if parsed.error is None or parsed.error[0] != 400:
            return None  # whether the gateway looks at the numbers is not known; uploads do
        return httpx.Response(400, json={"detail": parsed.error[1]}, request=request)


def _category(runner: Runner, state: str) -> str:
    """What the Platform API calls the event [§4.1]."""
    if state == "TERMINATED":
        if not runner.was_up:
            return "runner_startup_failure"
        return "runner_finished" if runner.end is None else "runner_failed"
    return _CATEGORIES[state]


def _nobody(name: str) -> None:
    """Nobody is told."""


def _check(module: Any, app: object, isolation: str) -> None:
    if not (isinstance(app, type) and issubclass(app, module.App)):
        raise EmulatorError(
            f"fal_runner() boots a subclass of fal.App, and {app!r} is none. "
            f"Write for example fal_runner(MyApp), without instantiating it."
        )
    if isolation not in _ISOLATIONS:
        raise EmulatorError(
            f"isolation={isolation!r} is not known. Write fal_runner({app.__name__}): the app then "
            f'runs in a thread with mounts of its own; or isolation="process" for a process.'
        )
