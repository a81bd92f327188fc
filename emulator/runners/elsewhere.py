"""Runners in processes: what serves them, and what their processes ask of the test's."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from emulator.errors import EmulatorError
from emulator.network.peer import Peer
from emulator.runners.runner import RunnerKilled

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.clock_mirror import ClockMirror
    from emulator.network.resolver import Resolver
    from emulator.network.wire import Wire
    from emulator.runners.channel import Handler
    from emulator.runners.forkserver import ForkServer
    from emulator.runners.joining import Doorkeeper
    from emulator.runners.process import ProcessRunner, Services
    from emulator.runners.runner import Runner, Surroundings
    from emulator.storage.disk import Disk

__all__ = ["Elsewhere"]


class Elsewhere:
    """Runners in processes, and what their processes ask of this one.

    Nothing of it is there, and nothing imported, before the first of them.
    """

    def __init__(self, runners: list[Runner], clock: Clock, disk: Disk) -> None:
        self._runners = runners
        self._clock = clock
        self._disk = disk
        self._wire: Wire | None = None
        self._resolver: Resolver | None = None
        self._services: Services | None = None
        self._forkserver: ForkServer | None = None
        self._mirror: ClockMirror | None = None
        self._door: Doorkeeper | None = None
        self._acting = threading.local()

    @property
    def acting_for(self) -> int | None:
        """The runner in a process that the calling thread answers."""
        return getattr(self._acting, "number", None)

    def connect(self, wire: Wire, resolver: Resolver) -> None:
        """Say what serves names and connections."""
        self._wire, self._resolver = wire, resolver
        wire.hasten_elsewhere = self._hasten

    def runner(self, name: str, app: type, around: Surroundings, load: str) -> Runner:
        """A runner in a process, not started yet.

        Raises:
            EmulatorError: this system has no processes of the kind that it takes.
        """
        if sys.platform != "linux":
            raise EmulatorError(
                'isolation="process" needs what only Linux has (descriptors of processes, files in '
                f"memory), and this system is {sys.platform}. Write fal_runner({app.__name__}): "
                "the app runs in a thread then; or run the test in a Linux container."
            )
        from emulator.runners.process import ProcessRunner

        services = self._prepare()
        services.mirror.reset()
        services.forkserver.start()  # while the app is pickled here
        return ProcessRunner(name, app, around, services, load)

    def number_of(self, runner: Runner) -> int:
        """The number of a runner in a process."""
        from emulator.runners.process import ProcessRunner

        assert isinstance(runner, ProcessRunner)
        return runner.number

    def number_of_process(self, process: int) -> int | None:
        """The number of the runner whose process, or one that it has forked, this is."""
        try:
            session = os.getsid(process)
        except OSError:
            return None
        return next((r.number for r in self._alive() if r.pid == session), None)

    def close(self) -> None:
        """End the fork server and with it all processes."""
        if self._forkserver is not None:
            self._forkserver.close()
        if self._door is not None:
            self._door.close()
        if self._mirror is not None:
            self._mirror.close()
        self._services = self._forkserver = self._door = self._mirror = None

    def _prepare(self) -> Services:
        if self._services is None:
            from emulator.clock_mirror import ClockMirror
            from emulator.runners.forkserver import ForkServer
            from emulator.runners.joining import Doorkeeper
            from emulator.runners.process import Services

            assert self._wire is not None
            wire = self._wire
            self._forkserver = ForkServer(self._disk.at_home)
            self._mirror = ClockMirror(self._clock)
            self._mirror.changed = self._tell_clock
            self._door = Doorkeeper(self._handlers_of_a_guest)
            self._services = Services(
                self._forkserver,
                self._mirror,
                lambda: wire.address,
                self._door.address,
                self._handlers,
            )
        return self._services

    @property
    def fork_server(self) -> int | None:
        """The process that forks them; None while it is not there."""
        return None if self._forkserver is None else self._forkserver.pid

    def _handlers(self, number: int) -> dict[str, Handler]:
        """What a process of this runner may ask for."""
        mirror, resolver, wire = self._mirror, self._resolver, self._wire
        assert mirror is not None
        assert resolver is not None
        assert wire is not None

        def lookup(name: str) -> tuple[str, ...] | None:
            with self._act_for(number):
                return resolver.lookup(name)

        def connect(host: str, port: int, kind: int) -> bool:
            with self._act_for(number):
                return resolver.admits(host, port, socket.SocketKind(kind))

        def expect(local_port: int, address: str, port: int) -> None:
            wire.expect(local_port, Peer(address, port, number))

        def wake(end: int) -> None:
            with self._act_for(number), suppress(RunnerKilled):  # with the sleeper ends its sleep
                self._clock.wake(end)

        return {
            "lookup": lookup,
            "connect": connect,
            "expect": expect,
            "engaged": lambda: mirror.engaged,
            "wake": wake,
            "pins": mirror.pins,
            "pin": mirror.pin,
        }

    def _handlers_of_a_guest(self, number: int) -> dict[str, Handler] | None:
        is_known = any(runner.number == number for runner in self._alive())
        return self._handlers(number) if is_known else None

    @contextmanager
    def _act_for(self, number: int) -> Iterator[None]:
        self._acting.number = number
        try:
            yield
        finally:
            self._acting.number = None

    def _alive(self) -> list[ProcessRunner]:
        from emulator.runners.process import ProcessRunner

        return [
            runner
            for runner in self._runners
            if isinstance(runner, ProcessRunner) and runner.state != "TERMINATED"
        ]

    def newest(self) -> Runner | None:
        """The runner that was started last, of those that live."""
        return next(reversed(self._alive()), None)

    def _tell_clock(self, engaged: bool) -> None:
        for runner in self._alive():
            runner.follow_clock(engaged)
        if self._door is not None:
            self._door.tell_all("clock", engaged)

    def _hasten(self, peer: Peer, port: int) -> bool:
        return any(r.number == peer.runner and r.hasten(port) for r in self._alive())
