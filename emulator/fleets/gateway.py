"""The gateway: apps that are deployed, by name. Its HTTP hosts stand elsewhere."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, Protocol

import httpx

from emulator.errors import EmulatorError
from emulator.fleets.call_queue import Server
from emulator.fleets.crew import Crew
from emulator.fleets.deployment import Deployment, Identity
from emulator.fleets.dispatch import Dispatch
from emulator.fleets.endpoint_ids import NAME, endpoint_of, owner_of
from emulator.fleets.options import Scaling
from emulator.fleets.stand_in import SomebodyElses, StandIn, code_of
from emulator.runners.log import Log
from emulator.runners.output import pause

if TYPE_CHECKING:
    from datetime import timedelta

    from emulator.clock import Clock
    from emulator.fleets.call import Call
    from emulator.identity import Identities
    from emulator.ledger import Ledger
    from emulator.runners.limits import Limits
    from emulator.runners.log import Line
    from emulator.runners.runner import Runner
    from emulator.settings import Settings

__all__ = ["Gateway"]

_PATIENCE = 5.0
_GRACE = 0.25
_STEP = 0.02
#: Real seconds that a piece of an answer takes through its app's middlewares.
_MOMENT = 0.005


class Boot(Protocol):
    """Boots runners: the registry of the emulator."""

    def boot_as(
        self,
        name: str,
        app: type,
        isolation: str,
        gpu: str | bool | None,
        env: dict[str, str],
        load: str,
        fleet: Limits | None,
    ) -> Runner:
        """Boot an app on a runner of that name."""

    def next_name(self) -> str:
        """A name that no runner has had."""

    def named(self, name: str) -> Runner | None:
        """A runner by name, also one that is being set up."""

    def name_here(self) -> str | None:
        """The name of the runner that the calling thread is on, or acts for."""

    def is_in_an_app(self) -> bool:
        """Whether the calling thread is an app's own, and so cannot wait for its runner's end."""


class Gateway:
    """Deploys apps, and knows those that are deployed."""

    def __init__(
        self,
        clock: Clock,
        ledger: Ledger,
        identities: Identities,
        settings: Callable[[], Settings],
        runners: Callable[[], Boot],
    ) -> None:
        self.clock = clock
        self._ledger = ledger
        self._identities = identities
        self._settings = settings
        self._runners = runners
        self._crew = Crew()
        #: By name, ``"owner/app"``.
        self.deployments: dict[str, Deployment] = {}
        #: Their calls can be asked about still.
        self._undeployed: list[Deployment] = []
        self._dispatches: list[Dispatch] = []
        #: The runners whose sleeps move the clock at this moment; None: the test's own.
        self._asleep: list[str | None] = []
        #: Chooses calls and runners; None: in order.
        self.chance: random.Random | None = None
        self.seed: int | None = None
        #: Sends a webhook: its URL, the request's id, the last attempt's, the user's, the answer.
        self.send_webhook: Callable[[str, str, str, str, httpx.Response], object] = _send_nothing
        self._numbers, self._stand_ins = count(1), count(1)

    def __repr__(self) -> str:
        return f"<Gateway: {', '.join(self.deployments) or 'nothing is deployed'}>"

    def deploy(
        self,
        name: str,
        app: type | object,
        *,
        isolation: str = "thread",
        gpu: str | bool | None = None,
        load: str = "pickle",
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        on_output: Callable[[Line], None] | None = None,
        **scaling: Any,
    ) -> Deployment:
        """Deploy an app: runners for it start and stop by themselves from now on.

        Args:
            name: ``"owner/app"``.
            app: a subclass of ``fal.App``; its scaling options count. Or what an app of somebody
                else's answers: content, an ``httpx.Response``, or a function of the arguments (and
                of the ``httpx.Request``, if it takes two), which may be a generator of events. Such
                a stand-in can be deployed for one endpoint alone: ``"fal-ai/flux/schnell"``.
            isolation: how its runners are kept apart; see ``Emulator.runner``.
            gpu: a machine type whose GPUs its runners pretend to have.
            load: how processes get the app.
            env: environment variables (secrets) of its runners.
            wait: return when the runners are ready that are there in advance (min_concurrency).
            on_output: told of each line that its runners print, in their threads.
            scaling: fal's options, instead of the app's own: ``keep_alive=5``.

        Raises:
            EmulatorError: the name, the app or an option makes no sense; says what to write.
        """
        code = code_of(name, app)
        self._check(name, code)
        settings = self._settings()
        account = {
            "max_concurrency": settings.max_concurrency,
            "startup_timeout": settings.startup_timeout.total_seconds(),
            "request_timeout": settings.request_timeout.total_seconds(),
        }
        options = Scaling.of(code, scaling, account)
        self._crew.begin()
        if settings.exploration_seed is not None and self.chance is None:
            self.explore(settings.exploration_seed)

        def boot(code: type, runner: str, options: Scaling) -> Server:
            if issubclass(code, SomebodyElses):
                return self._stand_in(code, runner)
            secrets = {**(_names_of(name) if isolation == "process" else {}), **(env or {})}
            limits = options.limits(self._settings().termination_grace_period)
            return self._runners().boot_as(runner, code, isolation, gpu, secrets, load, limits)

        dispatch = Dispatch(name, code, options, self, boot)
        dispatch.on_output = on_output
        self._dispatches.append(dispatch)
        number = lambda: next(self._numbers)  # noqa: E731
        deployment = Deployment(dispatch, self._identify, self.find, number, self._forget)
        self.deployments[name] = deployment
        dispatch.note(f"deployed {code.__name__}")
        dispatch.go_on()
        if wait:
            deployment.settle()
        return deployment

    def _stand_in(self, code: type[SomebodyElses], name: str) -> StandIn:
        log, fail = Log(self.clock.now), self._crew.errors.append
        return StandIn(name, code.answer, log, self.in_background, self.is_in_an_app, fail)

    def undeploy(self, name: str) -> None:
        """Take an app down; see ``Deployment.undeploy``.

        Raises:
            EmulatorError: nothing is deployed under this name.
        """
        if name not in self.deployments:
            there = ", ".join(self.deployments) or "nothing"
            raise EmulatorError(f"undeploy({name!r}): it is not deployed. Deployed is: {there}.")
        self.deployments[name].undeploy()

    def _forget(self, deployment: Deployment) -> None:
        if self.deployments.get(deployment.name) is deployment:
            del self.deployments[deployment.name]
            self._undeployed.append(deployment)

    def explore(self, seed: int) -> None:
        """Let a seed choose which queued call is next and which free runner gets it.

        The same seed chooses the same each time, where the test runs calls one by one
        (``deployment.hold()``, then ``run_next()`` or ``run_all()``); of calls that run by
        themselves it is not the only one to decide. Parametrise a test over seeds to try others.
        """
        self.seed, self.chance = seed, random.Random(seed)
        self.note(f"exploring with seed {seed}: fal_gateway.explore({seed})")

    # --- the platform of dispatches ---------------------------------------------------------------

    @property
    def after_503(self) -> Literal["killed", "kept"]:
        """What becomes of a runner that answers 503."""
        return self._settings().runner_after_503

    @property
    def payload_retention(self) -> timedelta | None:
        """How long the JSON of requests is kept; None: for ever."""
        return self._settings().payload_retention

    def note(self, text: str) -> None:
        """Tell the ledger."""
        self._ledger.event("deployment", text)

    def here(self) -> str | None:
        """The runner that the calling thread is on, or acts for."""
        return self._runners().name_here()

    def is_in_an_app(self) -> bool:
        """Whether the calling thread is an app's own, and so cannot wait for its runner's end."""
        return self._runners().is_in_an_app()

    def be_ready(self) -> None:
        """See to it that :meth:`in_background` works; called in the test's thread."""
        self._crew.begin()

    def in_background(self, name: str, job: Callable[[], object]) -> None:
        """Do something in a thread of the test's; what it raises, the test gets to see."""

        def do() -> None:
            try:
                job()
            except BaseException as error:
                for dispatch in self._dispatches:
                    dispatch.break_down(error)
                raise

        self._crew.start(name, do)

    def next_name(self, app: type) -> str:
        """Name a runner of an app, or a stand-in."""
        if issubclass(app, SomebodyElses):
            return f"stand-in-{next(self._stand_ins)}"
        return self._runners().next_name()

    def find(self, name: str) -> Runner | None:
        """A runner by name, also one that is being set up."""
        return self._runners().named(name)

    def completed(self, call: Call) -> None:
        """A call has its answer: tell the receiver of its webhook."""
        if call.webhook is None or call.response is None:
            return
        user = self._identities.users.user(call.caller or self._settings().nickname)
        last = call.attempts[-1].id if call.attempts else call.request_id
        self.send_webhook(call.webhook, call.request_id, last, user.id, call.response)

    def deployment_at(self, app: str, path: str) -> tuple[Deployment, str] | None:
        """What answers for an endpoint, and the endpoint's path in it.

        A stand-in may be deployed for one endpoint of an app alone: the longest name wins.
        """
        segments = path.strip("/").split("/")
        for end in range(len(segments), 0, -1):
            deployment = self.deployments.get("/".join([app, *segments[:end]]))
            if deployment is not None:
                return deployment, "/" + "/".join(segments[end:])
        deployment = self.deployments.get(app)
        return None if deployment is None else (deployment, path)

    def call_of(self, request_id: str) -> Call | None:
        """A call by its request's id."""
        found = [*self.deployments.values(), *self._undeployed]
        return next((call for one in found if (call := one.call(request_id)) is not None), None)

    def call(self, request_id: str, nickname: str) -> Call | None:
        """The same, for who made it and for the app's owner."""
        call = self.call_of(request_id)
        if call is None:
            return None
        owners = self._settings().nickname, owner_of(call.deployment), call.caller
        return call if nickname in owners else None

    def delete_payloads(self, request_id: str, nickname: str) -> bool:
        """Delete what is kept of a call; whether there was one, of this user's or to its app."""
        call = self.call(request_id, nickname)
        if call is not None:
            call.deleted = True
        return call is not None

    def runner_made(self, runner: Runner) -> None:
        """There is a runner, which has not printed anything; called by the registry."""
        for dispatch in self._dispatches:
            listener = dispatch.on_output
            if listener and any(one.name == runner.name for one in dispatch.fleet.members):
                runner.log.on_line = listener

    def runner_ended(self, name: str) -> None:
        """A runner has ended, by whatever; called by the registry."""
        for dispatch in self._dispatches:
            if any(
                member.runner and member.runner.name == name for member in dispatch.fleet.lost()
            ):
                dispatch.go_on()

    def come_to_rest(self, unless: Callable[[], bool]) -> None:
        """Give what goes on by itself a moment of real time to come to its end.

        Args:
            unless: whether something is held, so that there is no point in waiting.
        """
        for dispatch in self._dispatches:
            _wait_for(dispatch, _is_quiet, _PATIENCE, unless)

    def come_to_rest_before_time_passes(self, unless: Callable[[], bool]) -> None:
        """The same, before the test moves the clock.

        What starts by itself, or runs, takes real milliseconds: it shall not seem to take the hours
        that the clock is moved by. A handler may well wait for the test, though.
        """
        for dispatch in self._dispatches:
            _wait_for(dispatch, lambda one: not one.fleet.is_booting, _PATIENCE, unless)
            _wait_for(dispatch, _is_quiet, _GRACE, unless)

    @contextmanager
    def let_starts_end(self, unless: Callable[[], bool]) -> Iterator[None]:
        """Around a sleep that moves a stopped clock: what starts meanwhile takes no time of it.

        A start that sleeps itself is not waited for.
        """
        if any(map(_is_streaming, self._dispatches)):
            pause(_MOMENT)  # what an app has sent before its sleep is on its way through its loop
        if not any(dispatch.fleet.is_booting for dispatch in self._dispatches):
            yield
            return
        here = self.here()
        self._asleep.append(here)
        try:
            for dispatch in self._dispatches:
                with dispatch.changed:
                    dispatch.changed.notify_all()
            for dispatch in self._dispatches:
                _wait_for(dispatch, self._has_only_sleepers, _GRACE, unless)
            yield
        finally:
            self._asleep.remove(here)

    def _has_only_sleepers(self, dispatch: Dispatch) -> bool:
        """Whether every start that is under way sleeps on the clock."""
        return all(
            member.name in self._asleep for member in dispatch.fleet.members if member.booting
        )

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Start nothing more, drop what waits, and wait for what is being started."""
        for dispatch in self._dispatches:
            dispatch.close()
        for dispatch in self._dispatches:
            dispatch.wait_until(partial(_rests, dispatch), _PATIENCE)

    def end(self) -> None:
        """Wait for all threads; after the runners were stopped."""
        try:
            self._crew.end()
        finally:
            self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.deployments = {}
        self._undeployed = []
        self._dispatches = []
        self.chance = self.seed = None
        self._numbers, self._stand_ins = count(1), count(1)

    # --- inside ----------------------------------------------------------------------------------

    def _check(self, name: object, code: type) -> None:
        """What is deployed needs a name that nothing has yet."""
        if not isinstance(name, str):
            raise EmulatorError(
                f"deploy() was given {name!r} as a name. Write the name first: "
                f'deploy("{self._settings().nickname}/my-app", MyApp).'
            )
        is_app = not issubclass(code, SomebodyElses)
        endpoint = endpoint_of(f"/{name}") if NAME.fullmatch(name) else None
        if endpoint is None or (is_app and endpoint.path != "/"):
            raise EmulatorError(
                f"deploy() was given {name!r}. Write owner and app: "
                f'deploy("{self._settings().nickname}/my-app", MyApp).'
            )
        if name in self.deployments:
            shown = code.__name__ if is_app else "..."
            raise EmulatorError(
                f"{name} is deployed already. Write deployment.redeploy({shown}) for a new "
                "version, or deploy under another name."
            )

    def _identify(self, caller: str | None) -> Identity:
        """Whatever name an app is deployed under, its owner is the account that the test has."""
        users, lifetime = self._identities.users, self._settings().token_lifetime
        user = users.present if caller is None else users.user(caller)
        token = self._identities.issue(user.nickname, lifetime)
        account = self._settings().nickname
        return Identity(str(uuid.uuid4()), user.nickname, account, token.token)


def _send_nothing(*_: object) -> None:
    """Nobody is told."""


def _names_of(deployment: str) -> dict[str, str]:
    """What only a runner with an environment of its own can be told."""
    owner, app = deployment.split("/")[-2:]
    return {"FAL_APP_NAME": app, "FAL_APP_ID": f"emulated-{app}", "FAL_USER_NICKNAME": owner}


def _wait_for(
    dispatch: Dispatch,
    condition: Callable[[Dispatch], bool],
    seconds: float,
    unless: Callable[[], bool],
) -> None:
    for _ in range(int(seconds / _STEP)):
        if unless() or dispatch.wait_until(partial(condition, dispatch), _STEP):
            return


def _rests(dispatch: Dispatch) -> bool:
    return not dispatch.fleet.is_moving and not dispatch.fleet.is_booting


def _is_streaming(dispatch: Dispatch) -> bool:
    members = list(dispatch.fleet.members)
    return any(call.is_under_way for one in members for call in list(one.running.values()))


def _is_quiet(dispatch: Dispatch) -> bool:
    """Whether nothing goes on by itself; a stream or a websocket waits for its client."""
    calls = [call for member in dispatch.fleet.members for call in list(member.running.values())]
    return _rests(dispatch) and all(call.is_under_way for call in calls)
