"""A runner's own process: what it does between its fork and its end.

It goes into the mounts that were made for it, takes over what the emulated platform is made of in
this process (names and connections, the clock), loads the app as the platform does and lets the
SDK serve it: uvicorn on port 8080, metrics on 9090, signals included.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from emulator.clock_mirror import FollowingClock
from emulator.fleets.spawning import take_over
from emulator.network.grpc_entrance import GrpcEntrance
from emulator.network.remote_resolver import RemoteResolver
from emulator.network.sockets import hasten_socket
from emulator.runners.channel import Channel
from emulator.runners.joining import join
from emulator.runners.pickling import dumps
from emulator.runners.server_log import follow_server, hurry_server, tell_failure
from emulator.runners.zygote import Boot
from emulator.sdk_apps import app_of, load_app, publish_current_app, quick_package_list
from emulator.storage import mounts

if TYPE_CHECKING:
    from emulator.storage.places import Place

__all__ = ["run"]

_SLOW = frozenset({"run"})


def run(boot: Boot, descriptors: list[int]) -> int:
    """Be a runner; its exit code."""
    channel, output, clock, *mounts_of_it = descriptors
    os.setsid()
    mounts.die_with_parent()
    _redirect_output(output)
    if boot.place is None:
        _enter_mounts(boot, *mounts_of_it)
    os.environ.clear()
    os.environ.update(boot.environment)
    if boot.place is not None:
        _begin_in(boot.place, boot.directory)
    sys.path[:] = boot.path
    sys.argv = ["fal-runner"]
    return _Process(boot, channel, clock).live()


def _redirect_output(descriptor: int) -> None:
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    # By lines: what was printed before a kill is in the log.
    sys.stdout, sys.stderr = _by_lines(1), _by_lines(2)


def _by_lines(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)


def _enter_mounts(boot: Boot, namespace: int, root: int) -> None:
    view = mounts.View((namespace, root))
    view.enter()
    view.close()
    mounts.attempt(lambda: os.chdir(boot.directory))
    if os.geteuid() != 0:
        mounts.clear_ambient_capabilities()


def _begin_in(place: Place, directory: str) -> None:
    from emulator import file_times
    from emulator.storage.natives import begin_in

    file_times.stand_on(begin_in(place))
    mounts.attempt(lambda: os.chdir(directory))


class _Process:
    """The runner as its process sees itself."""

    def __init__(self, boot: Boot, channel: int, clock: int) -> None:
        self._boot = boot
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serve: Callable[[], Any] | None = None
        self._runs = 0
        self._lock = threading.Lock()
        handlers: dict[str, Callable[..., Any]] = {
            "clock": self._follow_clock,
            "run": self._run,
            "hasten": hasten_socket,
        }
        self._channel = Channel(channel, handlers, _SLOW)
        self._clock = FollowingClock(clock, self._channel.ask)
        self._resolver = RemoteResolver(
            self._channel.ask, boot.wire, boot.namespace, boot.ports, self._channel.tell
        )
        self._coverage: Any = None

    def live(self) -> int:
        """Serve until the end."""
        signal.signal(signal.SIGTERM, self._end_by_signal)
        self._listen(self._obey)
        os.register_at_fork(after_in_child=self._begin_as_a_fork)
        self._start_coverage()
        self._resolver.install()
        GrpcEntrance(lambda _: None).install()
        take_over()
        follow_server(self._channel.tell)
        hurry_server()
        self._clock.catch_up()
        try:
            self._serve = load_app(self._boot.app)
            self._clock.remember_app()
        except BaseException as error:
            tell_failure(self._channel.tell, error)
            raise
        try:
            with quick_package_list():
                asyncio.run(self._main())
        finally:
            self._finish()
        return 0

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        assert self._serve is not None
        served = self._serve()
        if inspect.isawaitable(served):
            await served

    def _listen(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name="fal-orders", daemon=True).start()

    def _begin_as_a_fork(self) -> None:
        """A worker of ``multiprocessing``, say: it has none of the threads of this process."""
        self._coverage = None
        try:
            self._channel.begin_anew(join(self._boot.door, self._boot.namespace))
        except OSError:
            return  # the test is over; what it asks for will fail
        self._listen(self._channel.serve)

    # --- orders ----------------------------------------------------------------------------------

    def _obey(self) -> None:
        self._channel.serve()
        os._exit(1)  # nobody is left to serve

    def _follow_clock(self, engaged: bool) -> None:
        self._clock.follow(engaged)

    def _run(self, pickled: bytes) -> bytes:
        function, arguments, options = pickle.loads(pickled)
        with _Current(self):
            try:
                if inspect.iscoroutinefunction(function):
                    assert self._loop is not None
                    running = function(*arguments, **options)
                    result = asyncio.run_coroutine_threadsafe(running, self._loop).result()
                else:
                    result = function(*arguments, **options)
            except BaseException as error:
                return dumps((False, error), error)
        return dumps((True, result))

    # --- the end ---------------------------------------------------------------------------------

    def _end_by_signal(self, number: int, _frame: Any) -> None:
        """What uvicorn leaves to do of a SIGTERM, once it has shut the app down."""
        self._finish()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _finish(self) -> None:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        if self._coverage is not None:
            self._coverage.stop()
            self._coverage.save()

    def _start_coverage(self) -> None:
        if self._boot.coverage is not None:
            import coverage

            self._coverage = coverage.Coverage(**self._boot.coverage)
            self._coverage.start()


class _Current:
    """While a test's function runs here, the SDK's current app is the app.

    An app that came by pickle has its own copy of the SDK's globals, as on the platform; the
    function has the module's.
    """

    def __init__(self, process: _Process) -> None:
        self._process = process

    def __enter__(self) -> None:
        with self._process._lock:
            self._process._runs += 1
            app = app_of(self._process._serve)
            if app is not None:
                publish_current_app(app)

    def __exit__(self, *_: object) -> None:
        with self._process._lock:
            self._process._runs -= 1
            if not self._process._runs and isinstance(self._process._boot.app, bytes):
                publish_current_app(None)
