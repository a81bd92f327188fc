"""A runner in a process of its own: the app as the platform loads it, with signals and crashes."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import httpx

from emulator.errors import EmulatorError
from emulator.runners.channel import Channel, ChannelClosedError, Handler
from emulator.runners.errors import IncompleteAnswerError
from emulator.runners.http_answer import HttpAnswer
from emulator.runners.log import Log
from emulator.runners.measuring import coverage_options
from emulator.runners.output import Transcript
from emulator.runners.pickling import Sender
from emulator.runners.runner import Result, Runner, RunnerError, StartupError, Surroundings
from emulator.runners.websocket import AppWebSocket, SocketWebSocket
from emulator.runners.zygote import Boot
from emulator.sdk_apps import pickle_app
from emulator.storage.places import package_home

if TYPE_CHECKING:
    from emulator.clock_mirror import ClockMirror
    from emulator.runners.forkserver import ForkServer
    from emulator.storage.disk import Seat

__all__ = ["ProcessRunner", "Services"]

_APP_PORT = 8080
#: What still holds its output open then is no process of the runner's.
_READ_SECONDS = 5.0
#: A connection breaks a moment before the process that had it has ended.
_DYING_MILLISECONDS = 400
_SLOW = frozenset({"wake", "lookup", "connect"})
_tickets = count(1)


class Services:
    """What a runner's process is served with by the test's.

    ``handlers`` gives what the process of a runner, by its number, may ask for.
    """

    def __init__(
        self,
        forkserver: ForkServer,
        mirror: ClockMirror,
        wire: Callable[[], tuple[str, int]],
        door: str,
        handlers: Callable[[int], dict[str, Handler]],
    ) -> None:
        self.forkserver = forkserver
        self.mirror = mirror
        self.wire = wire
        self.door = door
        self.handlers = handlers


class ProcessRunner(Runner):
    """Boots an app in a process.

    Its environment, its module globals and its signals are its own. The app is pickled by the
    SDK's own means, or imported by the process (``load="import"``), and served by the SDK's own
    uvicorn. What the app started ends with it.
    """

    def __init__(
        self,
        name: str,
        app_class: type,
        around: Surroundings,
        services: Services,
        load: str,
    ) -> None:
        super().__init__(name, app_class, around)
        self.tmp.remount = self._remount
        self._services = services
        self._sender = Sender()
        self._app = self._prepare(load)
        self._seat: Seat | None = None
        self._pidfd = -1
        self._channel: Channel | None = None
        self.log = Log(around.clock.now)
        self._transcript = Transcript(self.log)
        self._reader = threading.Thread(target=self._read, name=f"fal-{name}", daemon=True)
        self._failure: BaseException | None = None
        self._told_all = threading.Event()
        #: Its process id, once it has one.
        self.pid: int | None = None
        #: What it ended with, negative for a signal; None while it lives.
        self.exit_code: int | None = None
        #: Where its server listens on 127.0.0.1, once it does.
        self.port: int | None = None

    # --- for tests -------------------------------------------------------------------------------

    @property
    def isolation(self) -> str:
        """How it is told apart from other runners."""
        return "process"

    @property
    def output(self) -> str:
        """What the app and its server printed, to stdout and stderr."""
        return self._transcript.text

    def catch_up(self) -> None:
        """Wait for what is still in the pipe."""
        self._transcript.catch_up()

    def _call(
        self, function: Callable[..., Result], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Result:
        try:
            pickled = self._sender.call(function, args, kwargs)
        except Exception as error:
            name = getattr(function, "__name__", repr(function))
            raise RunnerError(
                f"{name} cannot be sent to the process of {self.name}: {error!r}. Let it import "
                "what it needs, and return what can be pickled."
            ) from error
        assert self._channel is not None
        try:
            good, result = pickle.loads(self._channel.ask("run", pickled))
        except ChannelClosedError:
            self._await_exit()
            raise self._lost("run()") from None
        if good:
            return result  # type: ignore[no-any-return]
        raise result

    @property
    def number(self) -> int:
        """The number of its mount namespace, or of its place; 0 before it has one."""
        return 0 if self._seat is None else self._seat.number

    def follow_clock(self, engaged: bool) -> None:
        """Have its process show the app the test's clock, or real time again, and wait for it."""
        self._ask_if_alive("clock", engaged)

    def hasten(self, port: int) -> bool:
        """Let the reads of its process's socket with that local port time out at once."""
        return bool(self._ask_if_alive("hasten", port))

    def _ask_if_alive(self, name: str, *arguments: Any) -> Any:
        try:
            return self._channel.ask(name, *arguments) if self._channel is not None else None
        except ChannelClosedError:
            return None

    # --- its life --------------------------------------------------------------------------------

    def _prepare(self, load: str) -> bytes | tuple[str, str]:
        if load == "pickle":
            return pickle_app(self.app_class, self._sender)
        module, name = self.app_class.__module__, self.app_class.__qualname__
        if load != "import":
            raise EmulatorError(f'load={load!r}: write load="pickle" or load="import".')
        if "<locals>" in name or module == "__main__":
            raise EmulatorError(
                f'load="import": {self.app_class.__name__} is defined inside a function or script '
                f"({module}:{name}), where no process can import it from. Move it to a module, or "
                'write load="pickle".'
            )
        return module, name

    def _boot(self) -> None:
        self._seat = self._around.disk.enter_aside()
        ours, theirs = socket.socketpair()
        output, output_of_child = os.pipe()
        number = self._seat.number
        with theirs:
            handlers: dict[str, Handler] = {
                "listening": self._listening,
                "state": self._told_state,
                "failed": self._told_failure,
                **self._services.handlers(number),
            }
            self._channel = Channel(ours.detach(), handlers, _SLOW)
            self._transcript.follow(output)
            self._reader.start()
            self._move("SETUP")
            descriptors = (theirs.fileno(), output_of_child, self._services.mirror.descriptor)
            try:
                self.pid = self._services.forkserver.fork(
                    self._boot_order(self._seat),
                    (*descriptors, *self._seat.descriptors),
                    self._exited,
                )
                with suppress(ProcessLookupError):  # it has ended already
                    self._pidfd = os.pidfd_open(self.pid)
                if self.end is not None:  # somebody wanted it killed meanwhile
                    self._signal(signal.SIGKILL)
            finally:
                os.close(output_of_child)

    def _boot_order(self, seat: Seat) -> Boot:
        environment = {**os.environ, **self._around.environment}
        if seat.place is not None:
            environment.update(seat.place.variables(package_home()))
        return Boot(
            ticket=next(_tickets),
            namespace=seat.number,
            place=seat.place,
            environment=environment,
            path=list(sys.path),
            directory=os.getcwd(),
            app=self._app,
            wire=self._services.wire(),
            door=self._services.door,
            coverage=coverage_options(),
        )

    def _terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def _destroy(self) -> None:
        self._signal(signal.SIGKILL)
        self._await_exit()

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _await_exit(self) -> None:
        """Wait for a process that is ending anyway."""
        if self.pid is not None:
            with suppress(Exception):
                self._ended.exception()

    def is_here(self) -> bool:
        """Whether the calling thread must not wait for this runner."""
        return False

    def _dispose(self) -> None:
        self._await_exit()
        if self._reader.ident is not None and threading.current_thread() is not self._reader:
            self._reader.join(_READ_SECONDS)
        if self._channel is not None:
            self._channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        if self._seat is not None:
            self._seat.close()

    def _show(self) -> None:
        self._transcript.show()

    # --- told by the process ---------------------------------------------------------------------

    def _read(self) -> None:
        """Read what it prints and what it asks for, until both are closed."""
        assert self._channel is not None
        channel = self._channel.fileno()
        sources = {channel: self._channel.step}
        sources[self._transcript.descriptor] = self._transcript.read
        poller = select.poll()
        for descriptor in sources:
            poller.register(descriptor, select.POLLIN)
        while sources:
            for descriptor, _ in poller.poll():
                if not sources[descriptor]():
                    poller.unregister(descriptor)
                    del sources[descriptor]
                    if descriptor == channel:
                        self._told_all.set()

    def _listening(self, port: int, real: int) -> None:
        if port == _APP_PORT:
            self.port = real
            self._move("IDLE")
            self._ready.set_result(None)

    def _told_state(self, state: str) -> None:
        if state == "TERMINATING" and self._life == "DRAINING":
            self._move("TERMINATING")

    def _told_failure(self, pickled: bytes | None, text: str) -> None:
        if self._life not in ("SETUP", "TERMINATING") or self._failure is not None:
            return
        self._failure = RunnerError(f"{self.app_class.__name__} raised {text}")
        if pickled is not None:
            with suppress(Exception):
                self._failure = pickle.loads(pickled)

    def _exited(self, code: int) -> None:
        """Its process has ended (called by the fork server's reader)."""
        self._told_all.wait(_READ_SECONDS)  # the last that it said may not have been read yet
        self.exit_code = code
        died = self._life in ("SETUP", "IDLE") and self.end is None and self._failure is None
        if died:
            self.end = f"crashed: its process ended {_ending(code)}"
            self._around.note(f"{self.name} {self.end}")
        if not self._ready.done():
            self._ready.set_exception(self._failure or self._gone())
        if self._failure is not None:
            self._ended.set_exception(self._failure)
        else:
            self._ended.set_result(None)
        if died and self._life == "IDLE":
            threading.Thread(target=self._finish, name=f"fal-{self.name}-end", daemon=True).start()

    def _gone(self) -> StartupError:
        return StartupError(f"{self.name} did not come up")

    # --- requests --------------------------------------------------------------------------------

    def begin(self, request: httpx.Request) -> httpx.Response:
        """Have the app answer, until its head is there."""
        # Over a connection of its own: uvicorn closes one after an app's exception, and a request
        # that is sent over it at that moment would seem to have met the runner's end.
        what = f"{request.method} {request.url.path}"
        try:
            assert self.port is not None
            return HttpAnswer(self.port, lambda: self._broken(what)).ask(request)
        except OSError:
            self._await_exit_of_a_broken_connection()
            raise self._lost(what) from None

    def dial(self, request: httpx.Request) -> AppWebSocket:
        """Have the app accept a websocket."""
        try:
            assert self.port is not None
            answer = SocketWebSocket.connect(self.port, request)
        except OSError:
            self._await_exit_of_a_broken_connection()
            raise self._lost(f"the websocket {request.url.path}") from None
        if isinstance(answer, httpx.Response):
            raise self._refused(request, answer)
        return answer

    def _broken(self, what: str) -> IncompleteAnswerError:
        """What a reader is told of a body whose connection broke."""
        if self.end is None and self._is_dying():
            self._await_exit()
        return self._cut_short(what)

    def _is_dying(self) -> bool:
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(_DYING_MILLISECONDS))

    def _await_exit_of_a_broken_connection(self) -> None:
        """A connection breaks a moment before its process is reaped."""
        with suppress(Exception):
            self._ended.exception(1.0)

    def _remount(self) -> None:
        if self._seat is not None:
            self._around.disk.remount_aside(self._seat)


def _ending(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
