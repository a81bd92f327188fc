"""/data as a file system between servers and datacenters: active where a setting asks for it.

Each runner gets a file system of its own over the account's volume, answered by a process that
knows who sees what when (:mod:`emulator.distributed.server`). That process lives from the first
such runner of a test to the end of the test.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulator.errors import EmulatorError
from emulator.file_times import real_now
from emulator.storage import mounts
from emulator.storage.disk import in_thread

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.settings import Settings
    from emulator.storage.volume import Volume

__all__ = ["DistributedData", "Share"]

#: How long a reader waits in real time for somebody to move the clock.
PATIENCE = timedelta(seconds=30)
#: How long a request waits for a stopped clock to be moved by its latency: what makes it may be
#: native code that holds the interpreter's lock, and then nobody can.
MOVE_PATIENCE = timedelta(seconds=2)
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_PROGRAM = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from emulator.distributed.server import main; main()"
)


class DistributedData:
    """What the runners of one test see of /data.

    Args:
        clock: everything happens on it.
        ledger: told when a reader waits, and when it goes on.
        settings: of the test under way.
        volume: the test's /data.
    """

    def __init__(
        self,
        clock: Clock,
        ledger: Ledger,
        settings: Callable[[], Settings],
        volume: Callable[[], Volume],
    ) -> None:
        self._clock = clock
        self._ledger = ledger
        self._settings = settings
        self._volume = volume
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._places: dict[str, str] = {}

    @property
    def is_asked_for(self) -> bool:
        """Whether a setting wants anything else than one plain directory."""
        settings = self._settings()
        return (
            settings.data_visibility == "staged"
            or settings.data_locks != "shared"
            or bool(settings.data_metadata_latency)
            or bool(settings.data_cold_read_latency)
        )

    def place(self, runner: str, server: str | None, datacenter: str | None) -> Share | None:
        """Put a runner on a server; None: its /data is the plain directory.

        Raises:
            EmulatorError: it is put somewhere although where it is makes no difference.
        """
        if not self.is_asked_for:
            if server is not None or datacenter is not None:
                raise EmulatorError(
                    "server= and datacenter= make no difference: everything in /data is everywhere "
                    'at once. Write @pytest.mark.fal(data_visibility="staged") above the test, '
                    "with data_global_delay=timedelta(seconds=60) for example."
                )
            return None
        datacenter = datacenter or self._settings().region
        server = server or runner
        self._places[runner] = f"{runner} (server {server}, {datacenter})"
        self._running()  # in the caller's mounts, not in the runner's
        return Share(self, runner, server, datacenter)

    def enter(self) -> int | None:
        """A descriptor of /data as one more server has it, which runs no runner: fal's own, with
        the file API; None: there is the plain directory alone.
        """
        share = self.place("fal files", None, None)
        if share is None:
            return None
        opened: list[int] = []

        def mount() -> None:
            # In mounts of its own, which go with the thread; the descriptor keeps this one.
            mounts.copy_namespace()
            share.mount("/data")
            opened.append(os.open("/data", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

        in_thread(mount)
        return opened[0]

    def visible_at(
        self, rel: str, server: str | None, datacenter: str | None, *, listed: bool
    ) -> datetime | None:
        """When the newest state of a path has arrived somewhere; see ``Volume.visible_at``."""
        now = self._clock.now()
        if self._server is None:
            return now if os.path.lexists(self._volume().backing / rel) else None
        asked = {"path": rel, "server": server or "", "datacenter": datacenter}
        asked["datacenter"] = datacenter or self._settings().region
        moments = self._server.ask("arrival", **asked)["moments"]
        if moments is None:
            return None
        nanoseconds = moments[0 if listed else 1]
        if nanoseconds <= _nanoseconds(now):
            return now
        return _EPOCH + timedelta(microseconds=-(-nanoseconds // 1000))

    def wait_for_reader(self, rel: str, timeout: float) -> None:
        """Return once a runner waits for a file's content; see ``Volume.wait_for_reader``."""
        if self._server is None or not self._server.wait_for_reader(rel, timeout):
            raise EmulatorError(
                f"No runner waits for /data/{rel}: in {timeout:g} s none has opened it where its "
                f"content has not arrived. Let one read it in a thread, before the clock is moved."
            )

    def stop(self) -> None:
        """The test is over: end the process, and with it every runner's /data."""
        server, self._server = self._server, None
        self._places.clear()
        if server is not None:
            self._clock.unsubscribe(self._clock_moved)
            server.stop()
            mounts.attempt(lambda: os.rmdir(self._scratch()))

    # --- for a share -----------------------------------------------------------------------------

    def connect(self, descriptor: int, share: Share) -> None:
        """Answer for a mount that was just made."""
        asked = {"runner": share.runner, "server": share.server, "datacenter": share.datacenter}
        self._running().ask("mount", descriptor, **asked)

    def disconnect(self, share: Share) -> None:
        """Let everything that a runner does in its /data fail from now on."""
        if self._server is not None:
            with suppress(EmulatorError):  # with the process everything has ended
                self._server.ask("end", runner=share.runner)

    def same_device(self, device: int) -> None:
        """The times of a file are the same through this device as in the volume."""
        self._clock.same_device(device, os.stat(self._volume().backing).st_dev)

    # --- inside ----------------------------------------------------------------------------------

    def _running(self) -> _Server:
        with self._lock:
            if self._server is None:
                server = _Server(self._happened)
                try:
                    server.ask("start", **self._options())
                    self._tell_time(server)
                except BaseException:
                    server.stop()
                    raise
                self._server = server
                self._clock.subscribe(self._clock_moved, last=True)
            return self._server

    def _options(self) -> dict[str, Any]:
        settings, scratch = self._settings(), self._scratch()
        os.makedirs(scratch, exist_ok=True)
        delays = None
        if settings.data_visibility == "staged":
            parts = (
                settings.data_datacenter_delay,
                settings.data_global_delay,
                settings.data_metadata_delay,
            )
            delays = [_span(part) for part in parts]
        return {
            "root": str(self._volume().backing),
            "scratch": scratch,
            "delays": delays,
            "locks": settings.data_locks,
            "metadata_latency": _span(settings.data_metadata_latency),
            "cold_latency": _span(settings.data_cold_read_latency),
            "patience": PATIENCE.total_seconds(),
            "move_patience": MOVE_PATIENCE.total_seconds(),
        }

    def _scratch(self) -> str:
        """Where copies are, which have no names: on the host's disk, beside the volume."""
        return str(self._volume().backing.parent / "data-as-others-see-it")

    def _clock_moved(self, before: datetime, after: datetime) -> None:
        if self._server is not None:
            self._tell_time(self._server)

    def _tell_time(self, server: _Server) -> None:
        virtual, ticking = _nanoseconds(self._clock.now()), not self._clock.frozen
        server.ask("clock", virtual=virtual, real=real_now(), ticking=ticking)

    def _happened(self, event: str, what: dict[str, Any]) -> None:
        """Something happened in the process (called in the thread that listens to it)."""
        if event == "move":
            wanted = what["until"] - _nanoseconds(self._clock.now())
            if wanted > 0 and self._clock.frozen:
                self._clock.sleep(wanted / 1e9)
            return
        if event == "error":
            self._ledger.event("data", f"an error: {what['text']}")
            return
        path, runner = f"/data/{what['path']}", self._places.get(what["runner"], what["runner"])
        arrives = _EPOCH + timedelta(microseconds=what["until"] // 1000)
        texts = {
            "blocked": f"{runner} waits for {path}: its content arrives {arrives:%H:%M:%S}",
            "released": f"{runner} reads {path}, whose content has arrived",
            "gave_up": f"{runner} got EIO for {path}: in {PATIENCE.total_seconds():g} s of real "
            f"time nobody moved the clock to {arrives:%H:%M:%S}. Call fal_clock.advance() while "
            f"it waits.",
        }
        self._ledger.event("data", texts[event])


class Share:
    """/data as one runner sees it."""

    def __init__(self, data: DistributedData, runner: str, server: str, datacenter: str) -> None:
        self._data = data
        self.runner = runner
        self.server = server
        self.datacenter = datacenter

    def mount(self, target: str) -> None:
        """Mount it; called by a thread in the runner's namespace.

        Raises:
            EmulatorError: the kernel does not allow it; says what to do.
        """
        self.serve(mounts.mount_fuse(target))
        self._data.same_device(os.stat(target).st_dev)

    def serve(self, descriptor: int) -> None:
        """Answer for what ``mounts.mount_fuse`` mounted, maybe in another process; closes it."""
        try:
            self._data.connect(descriptor, self)
        finally:
            os.close(descriptor)

    def end(self) -> None:
        """The runner is gone: what it wrote is published, what it still does there fails."""
        self._data.disconnect(self)


class _Server:
    """The process, and the two sockets to it."""

    def __init__(self, happened: Callable[[str, dict[str, Any]], None]) -> None:
        self._happened = happened
        self._lock = threading.Lock()
        self._news = threading.Condition()
        self._seen = 0
        self._readers: Counter[str] = Counter()
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._events, events = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).parent.parent.parent)
        numbers = (control.fileno(), events.fileno())
        with control, events:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-c", _PROGRAM, root),
                    *map(str, (*numbers, os.getpid())),
                ],
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, name="fal-data", daemon=True)
        self._listener.start()

    def ask(self, what: str, *descriptors: int, **arguments: Any) -> dict[str, Any]:
        """Ask the process for something; what it told before is known when this returns."""
        message = json.dumps({"do": what, **arguments}).encode()
        with self._lock:
            try:
                if descriptors:
                    socket.send_fds(self._control, [message], descriptors)
                else:
                    self._control.send(message)
                reply = self._control.recv(1 << 16)
            except OSError:
                reply = b""
        if not reply:
            raise EmulatorError(
                "The process that answers for the runners' /data has ended. Nothing in /data can "
                "be read or written by runners any more in this test."
            )
        answer: dict[str, Any] = json.loads(reply)
        if "error" in answer:
            raise EmulatorError(f"pytest-fal's own error in /data:\n{answer['error']}")
        if threading.current_thread() is not self._listener:
            with self._news:
                self._news.wait_for(lambda: self._seen >= answer["events"], timeout=5)
        return answer

    def wait_for_reader(self, rel: str, timeout: float) -> bool:
        """Whether a reader waits for a path within so many seconds."""
        with self._news:
            return self._news.wait_for(lambda: self._readers[rel] > 0, timeout)

    def stop(self) -> None:
        """End it."""
        self._control.close()
        # Not wait(timeout=): it sleeps, which would move a stopped clock.
        watched = os.pidfd_open(self._process.pid)
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        if not poll.poll(5000):
            self._process.kill()
        os.close(watched)
        self._process.wait()
        self._listener.join()
        self._events.close()

    def _listen(self) -> None:
        while message := self._receive():
            what = json.loads(message)
            event = what.pop("event")
            try:
                self._happened(event, what)
            except Exception as error:  # an appointment of the test's, kept as the clock moves
                self._happened("error", {"text": repr(error)})
            finally:
                with self._news:
                    self._seen += 1
                    if event == "blocked":
                        self._readers[what["path"]] += 1
                    elif event in ("released", "gave_up"):
                        self._readers[what["path"]] -= 1
                    self._news.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._events.recv(1 << 16)
        except OSError:
            return b""


def _nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND * 1000


def _span(delta: timedelta) -> int:
    return delta // _MICROSECOND * 1000
