"""A process that has imported the SDK, and forks itself for each runner that needs its own.

Started with the first process runner, ended with the session: the second runner is there within
milliseconds, as on a machine whose container is warm. The test's own process is never forked; it
has threads.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from emulator import processes
from emulator.errors import EmulatorError
from emulator.runners.zygote import EXITED, REPORT, Boot
from emulator.storage import mounts

__all__ = ["ForkServer"]

#: Coverage starts itself in the processes that have these; the forked ones are measured by us.
_NOT_FOR_THE_SERVER = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from emulator.runners.zygote import main; main(int(sys.argv[1]))"
)


class ForkServer:
    """Starts processes for runners.

    Args:
        at_home: calls a function in a thread that sees the host's own mounts.
    """

    def __init__(self, at_home: Callable[[Callable[[], None]], None]) -> None:
        self._at_home = at_home
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._pids: dict[int, tuple[threading.Event, list[int]]] = {}
        self._exits: dict[int, Callable[[int], None]] = {}
        self._errors = -1

    @property
    def pid(self) -> int | None:
        """Its process; None while it was not started."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, if it is not there; it is ready a while later.

        Raises:
            OSError: it cannot be started.
        """
        with self._lock:
            self._start()

    def fork(
        self,
        boot: Boot,
        descriptors: tuple[int, ...],
        exited: Callable[[int], None],
    ) -> int:
        """Start a process for a runner.

        Args:
            boot: what it is to do.
            descriptors: copied into it, in the order of :class:`Boot`'s docstring.
            exited: called once with its exit code, negative for a signal, when it has ended.

        Returns:
            Its process id.

        Raises:
            EmulatorError: the server could not be started; with what it printed.
        """
        answer, pids = threading.Event(), list[int]()
        with self._lock:
            self._start()
            self._pids[boot.ticket] = (answer, pids)
            self._exits[boot.ticket] = exited
            payload = pickle.dumps(boot, protocol=pickle.HIGHEST_PROTOCOL)
            assert self._socket is not None
            try:
                socket.send_fds(self._socket, [struct.pack("<q", len(payload))], descriptors)
                self._socket.sendall(payload)
            except OSError:
                pass  # it has ended; its reader says so
        answer.wait()
        if not pids:
            raise EmulatorError(f"the process that starts runners has ended: {self._printed()}")
        return pids[0]

    def close(self) -> None:
        """End it, and with it every process it has started."""
        if self._process is None:
            return
        assert self._socket is not None
        assert self._thread is not None
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        self._process.wait()
        processes.servers.discard(self._process.pid)
        os.close(self._errors)
        self._process = None

    # --- inside ----------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                return
            self.close()
        ours, theirs = socket.socketpair()
        self._errors = os.memfd_create("fal-forkserver")
        try:
            self._at_home(lambda: self._spawn(theirs.fileno()))
        except BaseException:
            ours.close()
            os.close(self._errors)
            raise
        finally:
            theirs.close()
        self._socket = ours
        self._thread = threading.Thread(target=self._read, name="fal-forkserver", daemon=True)
        self._thread.start()

    def _spawn(self, descriptor: int) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_FOR_THE_SERVER}
        if os.geteuid() != 0 and mounts.has_mount_capability():
            mounts.raise_ambient_capabilities()  # of this thread, which ends
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", _PROGRAM, str(descriptor), json.dumps(sys.path)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=(descriptor,),
            start_new_session=True,  # Ctrl-C is for pytest, which shuts the runners down
        )
        processes.servers.add(self._process.pid)

    def _read(self) -> None:
        assert self._socket is not None
        stream = self._socket.makefile("rb")
        with stream:
            while len(report := stream.read(REPORT.size)) == REPORT.size:
                kind, ticket, value = REPORT.unpack(report)
                if kind == EXITED:
                    self._exits.pop(ticket)(value)
                else:
                    answer, pids = self._pids.pop(ticket)
                    pids.append(value)
                    answer.set()
        with self._lock:
            for answer, _ in self._pids.values():
                answer.set()
            self._pids.clear()
            exits, self._exits = self._exits, {}
        for exited in exits.values():
            exited(-signal.SIGKILL)

    def _printed(self) -> str:
        size = os.fstat(self._errors).st_size
        return os.pread(self._errors, size, 0).decode(errors="replace").strip() or "without a word"
