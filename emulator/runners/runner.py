"""A runner as a test sees it: an app that was booted, its requests, its ``/tmp``, its end.

What the platform does with any runner is here; how an app is made to run, in a thread or in a
process, is its subclasses'.
"""

from __future__ import annotations

import abc
import concurrent.futures
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import httpx

from emulator.runners.errors import (
    HandshakeRefusedError,
    IncompleteAnswerError,
    RunnerError,
    RunnerKilled,
    StartupError,
)
from emulator.runners.output import without_noise
from emulator.runners.supervision import Supervision
from emulator.runners.surroundings import Surroundings
from emulator.runners.transport import RunnerTransport

if TYPE_CHECKING:
    from emulator.runners.log import Log
    from emulator.runners.websocket import AppWebSocket
    from emulator.storage.volume import Volume
    from emulator.users import User

__all__ = [
    "HandshakeRefusedError",
    "IncompleteAnswerError",
    "Runner",
    "RunnerError",
    "RunnerFactory",
    "RunnerKilled",
    "StartupError",
    "State",
    "Surroundings",
]

#: The states of platform facts §4.1; CRASH_BACKOFF is one of a fleet.
State = Literal[
    "PENDING",
    "DOCKER_PULL",
    "SETUP",
    "IDLE",
    "RUNNING",
    "DRAINING",
    "TERMINATING",
    "TERMINATED",
]
Result = TypeVar("Result")

_FINISH_SECONDS = 10.0
_ENDING = ("DRAINING", "TERMINATING", "TERMINATED")


class Runner(abc.ABC):
    """One runner with one app.

    Requests get the headers that fal's gateway adds (request id, endpoint, caller, CDN token)
    unless the test gives its own. As on the platform, a runner that answers 503 is killed, and so
    is one that takes longer than ``request_timeout`` over a request [§4.6].
    """

    def __init__(self, name: str, app_class: type, around: Surroundings) -> None:
        #: ``"runner-1"``, and so on; the ledger has it.
        self.name = name
        self.app_class = app_class
        #: What the app printed, line by line.
        self.log: Log
        #: This runner's ``/tmp``. Emptied when it shuts down.
        self.tmp: Volume = around.disk.tmp
        self._around = around
        self._life: State = "PENDING"
        #: Whether its app was ever set up.
        self.was_up = False
        #: How it ended, where it did not end in order: ``"killed: it answered 503"``,
        #: ``"crashed: its process ended by SIGSEGV"``.
        self.end: str | None = None
        self._lock = threading.RLock()
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        #: How many functions of the test's are at work on it.
        self.runs = 0
        self._client: httpx.Client | None = None
        self._finisher: int | None = None
        self._is_over = threading.Event()
        self._supervision = Supervision(self, around)

    def __repr__(self) -> str:
        return f"<Runner {self.name} {self.app_class.__name__} {self.state}>"

    # --- what it is ------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where it is in its life [§4.1]."""
        if self.end is not None:
            return "TERMINATED"
        return "RUNNING" if self._life == "IDLE" and self.in_flight else self._life

    @property
    def in_flight(self) -> int:
        """How many requests it is at work on."""
        return self._supervision.in_flight

    @property
    def url(self) -> str:
        """Where any client reaches the app while the test runs, as through fal's gateway.

        For ``fal.app.AppClient(MyApp, runner.url)``, requests, aiohttp or another app.
        """
        return f"http://{self.name}.runner.fal"

    @property
    @abc.abstractmethod
    def isolation(self) -> str:
        """``"thread"`` or ``"process"``."""

    @property
    @abc.abstractmethod
    def output(self) -> str:
        """What the app printed, to stdout and stderr."""

    @abc.abstractmethod
    def catch_up(self) -> None:
        """Have all that the app printed so far in ``log``."""

    def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a function on the runner: its ``/tmp``, its current app. Its result or exception.

        An async one is awaited on its event loop. To a process it goes by value, as the app does;
        its result and exceptions come back pickled.

        Raises:
            RunnerError: the runner takes no more, or ended before the function did.
        """
        self.check_takes_requests()
        with self._lock:
            self.runs += 1
        try:
            return self._call(function, args, kwargs)
        finally:
            self._show()
            with self._lock:
                self.runs -= 1

    @abc.abstractmethod
    def _call(
        self, function: Callable[..., Result], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Result:
        """Call a function there."""

    # --- its life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot, and wait until the app is set up.

        Raises:
            BaseException: whatever the app's ``setup`` raised.
            StartupError: it ended or was killed before that, or it took longer than the app's
                ``startup_timeout`` [§4.4].
        """
        limit = self._around.limits.startup_timeout
        reason = f"its start took longer than startup_timeout ({limit.total_seconds():g} s)"
        self._move("PENDING")
        if self.app_class.host_kwargs.get("kind") == "container":  # type: ignore[attr-defined]
            self._move("DOCKER_PULL")
        try:
            with self._around.within(limit, lambda: self.kill(reason)):
                self._boot()
                self._ready.result()
        except BaseException as error:
            self._finish()
            if self.end is not None or isinstance(error, RunnerKilled):
                raise self._startup_error() from None
            raise
        finally:
            self._show()
        self._supervision.begin()

    def stop(self) -> None:
        """Shut down as on SIGTERM: ``handle_exit``, requests in flight, ``teardown``.

        All of that within the termination grace period, on the clock and in real time; what takes
        longer is killed [§4.3]. ``/tmp`` is lost, ``/data`` stays. A second call does nothing.
        """
        if self.end is not None:
            self._finish()
            return
        if self._life in _ENDING:
            self._await_end()
            return
        self._refuse_from_inside("stop itself. Call runner.stop() from the test.")
        grace = self._around.limits.grace
        reason = f"not ended {grace.total_seconds():g} s after SIGTERM"
        self._move("DRAINING")
        alarm = self._around.clock.on(grace, lambda: self.kill(reason))
        try:
            self._terminate()
            self._ended.result(grace.total_seconds())
        except concurrent.futures.TimeoutError:
            self.kill(reason)
        except RunnerKilled:
            pass  # while it slept in its teardown
        finally:
            alarm.cancel()
            self._finish()

    def kill(self, reason: str = "by the test") -> None:
        """End it at once: no ``handle_exit``, no ``teardown``; requests in flight fail.

        Args:
            reason: for the ledger.
        """
        with self._lock:
            if self._life == "TERMINATED" or self.end is not None:
                return
            self.end = f"killed: {reason}"
        self._around.note(f"{self.name} {self.end}")
        self._destroy()
        self._finish()

    @abc.abstractmethod
    def _boot(self) -> None:
        """Start it; ``_ready`` is set once the app is set up or has failed to."""

    @abc.abstractmethod
    def _terminate(self) -> None:
        """Send SIGTERM; ``_ended`` is set once it has ended, with what ``teardown`` raised."""

    @abc.abstractmethod
    def _destroy(self) -> None:
        """Send SIGKILL. Raises RunnerKilled when called from code on the runner itself."""

    @abc.abstractmethod
    def _dispose(self) -> None:
        """Give everything back, after its end."""

    @abc.abstractmethod
    def _show(self) -> None:
        """Print what the app printed meanwhile, where it did not do that here itself."""

    @abc.abstractmethod
    def is_here(self) -> bool:
        """Whether the calling thread is the one that must not wait for this runner."""

    def _finish(self) -> None:
        """After its end: give everything back, once; who comes later waits for it."""
        with self._lock:
            is_first = self._finisher is None
            if is_first:
                self._finisher = threading.get_ident()
        if not is_first:
            self._await_end()
            return
        self._life = "TERMINATED"
        try:
            if self._client is not None:
                self._client.close()
            self._supervision.end()
            self._dispose()
            self._show()
            self._around.changed(self, "TERMINATED")
            self._around.disk.discard()
        finally:
            self._is_over.set()

    def _await_end(self) -> None:
        """Somebody else is ending it."""
        if self._finisher != threading.get_ident() and not self.is_here():
            limit = self._around.limits.grace.total_seconds()
            self._is_over.wait(limit + _FINISH_SECONDS)

    def _move(self, state: State) -> None:
        with self._lock:
            if self.end is not None or self._finisher is not None:
                return  # what still runs of it does not bring it back
            self._life = state
            self.was_up = self.was_up or state == "IDLE"
        self._around.changed(self, state)

    def _startup_error(self) -> StartupError:
        printed = "\n".join(without_noise(self.output)[-20:])
        said = f" The last that it printed:\n{printed}" if printed else ""
        return StartupError(
            f"{self.name} did not come up: {self.app_class.__name__} ended before its setup() was "
            f"over ({self.end}).{said}"
        )

    # --- requests --------------------------------------------------------------------------------

    @property
    def client(self) -> httpx.Client:
        """An httpx client whose requests reach this app, as through the gateway."""
        if self._client is None:
            self._client = httpx.Client(
                transport=RunnerTransport(self),
                base_url=self.url,
                trust_env=False,
                timeout=None,
            )
        return self._client

    def post(
        self,
        path: str = "/",
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        caller: User | str | None = None,
        **options: Any,
    ) -> httpx.Response:
        """POST to the app; fal's endpoints answer nothing else.

        Args:
            caller: who asks; default: as whom the test acts, by default the app's owner.
        """
        headers = self._called_by(caller, headers)
        return self.client.post(path, json=json, headers=headers, **options)

    def get(
        self,
        path: str = "/health",
        headers: Mapping[str, str] | None = None,
        *,
        caller: User | str | None = None,
        **options: Any,
    ) -> httpx.Response:
        """GET from the app; by default its health."""
        return self.client.get(path, headers=self._called_by(caller, headers), **options)

    def send(self, request: httpx.Request) -> httpx.Response:
        """Let the gateway pass a request on to the app, and do what its answer asks for [§4.6].

        Raises:
            RunnerError: it takes no requests, or ended before it answered.
        """
        response = self.open(request)
        response.read()
        return response

    def open(self, request: httpx.Request) -> httpx.Response:
        """As :meth:`send`, but only until the app has sent the head of its answer.

        The answer's ``stream`` has the body as the app sends it. The request is in flight until
        that is read to its end, or closed: then the app sees its client go away.

        Raises:
            RunnerError: it takes no requests, or ended before it answered. Of the stream,
                IncompleteAnswerError: the app raised, or the runner ended, before it was whole.
        """
        refusal = self._admit(request)
        if refusal is not None:
            return refusal
        try:
            return self._supervision.open(request, self._show)
        finally:
            self._show()

    def connect(self, request: httpx.Request | str) -> AppWebSocket:
        """Open a websocket on the app; it is in flight until it ends.

        Args:
            request: the client's, with its headers, or just a path. It needs none of a handshake
                but ``Sec-WebSocket-Protocol``.

        Raises:
            HandshakeRefusedError: the app, or the gateway, does not want to; has its answer.
            RunnerError: the runner takes no requests, or ended before it answered.
        """
        if isinstance(request, str):
            request = httpx.Request("GET", f"{self.url}{request}")
        refusal = self._admit(request)
        if refusal is not None:
            raise self._refused(request, refusal)
        try:
            return self._supervision.connect(request)
        finally:
            self._show()

    def _admit(self, request: httpx.Request) -> httpx.Response | None:
        """What the gateway does with a request before the app gets it; its own answer, if any."""
        self.check_takes_requests()
        self._refuse_from_inside(
            "wait for the event loop that this call runs on. Use a sync endpoint or "
            "asyncio.to_thread to call a runner from itself."
        )
        self._add_gateway_headers(request)
        return self._around.intercept(self, request)

    def hang_up(self) -> None:
        """End all answers and websockets that are under way, as clients that go away do."""
        self._supervision.hang_up()

    def check_health(self, failures: int | None = None) -> bool:
        """Do the platform's health check; the runner is killed if it fails [§4.5].

        The check is the endpoint that the app declares one (``fal.HealthCheck``), else
        ``GET /health``.

        Args:
            failures: how many in a row mean that it is not healthy; default: the app's
                ``failure_threshold``, else 3.

        Returns:
            Whether it is healthy.
        """
        return self._supervision.check_health(failures)

    @abc.abstractmethod
    def begin(self, request: httpx.Request) -> httpx.Response:
        """Have the app answer, until its head is there. RunnerError if the runner ends before."""

    @abc.abstractmethod
    def dial(self, request: httpx.Request) -> AppWebSocket:
        """Have the app accept a websocket. RunnerError if it does not, or the runner ends."""

    def check_takes_requests(self) -> None:
        """RunnerError where it is not up, or not any more."""
        if self.state in _ENDING:
            why = f" ({self.end})" if self.end else ""
            raise RunnerError(
                f"{self.name} is {self.state}{why} and takes no more requests. "
                f"Boot another one: fal_runner({self.app_class.__name__})."
            )

    def _refuse_from_inside(self, what: str) -> None:
        if self.is_here():
            raise RunnerError(f"a runner cannot {what}")

    def _refused(self, request: httpx.Request, answer: httpx.Response) -> HandshakeRefusedError:
        return HandshakeRefusedError(
            f"{self.name} refused the websocket {request.url.path} with {answer.status_code}: it "
            "has no websocket endpoint there, or did not accept. error.response has its answer.",
            answer,
        )

    def _lost(self, what: str) -> RunnerError:
        """The runner is gone, and an answer with it."""
        how = f" ({self.end})" if self.end else ""
        return RunnerError(f"{self.name} ended{how} before it answered {what}")

    def _cut_short(self, what: str) -> IncompleteAnswerError:
        """Of an answer there is a head, and not all of the body."""
        if self.end is not None:
            return IncompleteAnswerError(
                f"{self.name} ended ({self.end}) before its answer to {what} was whole"
            )
        return IncompleteAnswerError(
            f"{self.name} broke off its answer to {what}: the app raised an exception while it "
            "sent the body, or the answer was closed. runner.output has what it printed."
        )

    def _called_by(
        self, caller: User | str | None, headers: Mapping[str, str] | None
    ) -> Mapping[str, str] | None:
        """The headers by which the app knows its caller, and over them those given."""
        if caller is None:
            return headers
        gateway = self._around.gateway(caller)
        known = {name: gateway[name] for name in ("x-fal-caller-user-id", "x-fal-cdn-token")}
        together = httpx.Headers(known)
        together.update(headers)
        return together

    def _add_gateway_headers(self, request: httpx.Request) -> None:
        headers, gateway = request.headers, self._around.gateway(None)
        headers.setdefault("x-fal-request-id", str(uuid.uuid4()))
        endpoint = gateway["x-fal-endpoint"] + request.url.path.rstrip("/")
        headers.setdefault("x-fal-endpoint", endpoint)
        for name, value in gateway.items():
            headers.setdefault(name, value)


class RunnerFactory(Protocol):
    """``fal_runner``: boots an app on a new runner."""

    def __call__(
        self,
        app: type,
        *,
        isolation: str = "thread",
        gpu: str | bool | None = None,
        env: Mapping[str, str] | None = None,
        load: str = "pickle",
        server: str | None = None,
        datacenter: str | None = None,
    ) -> Runner:
        """Boot an app and wait until it is set up; see ``Emulator.runner``."""
