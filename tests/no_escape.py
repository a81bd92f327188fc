"""Prove that tests touch nothing of the user's: ``python tests/no_escape.py -- pytest arguments``.

Runs pytest on a machine made for it: with a ``/data``, with credentials in its home and in its
environment (see ``canaries.py``), and with a network that leads to a counter of packets (see
``nowhere.py``). At its end it says what was read, changed and sent. Exits with pytest's exit code;
with 3 if anything escaped; with 77 and one line that says why it cannot run at all (it needs root).

It counts: each opening of a canary, by whom; each change of one; each packet beyond loopback; each
word of a canary in pytest's output, in its report and in its base directory (both are this
program's own, whatever the arguments say); each process that outlived pytest. What the SDK reads of
its configuration as it is imported, before the first test, is told, but is no escape: it is whoever
imports it that reads it.
"""

from __future__ import annotations

import argparse
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from as_user import CANNOT, CannotRunError, mount
from canaries import CONFIGURATION, Watch, Words, changes, search, seed, state_of, variables
from nowhere import MS_BIND, Outside, ask_there
from running_tests import FOLDER, SEEN, running, started_by

from emulator.errors import NamespaceRefusedError
from emulator.storage import mounts

ESCAPED = 3
#: Directories of the machine's own root.
PLACE, HOME = Path("/no-escape"), Path("/canary-home")
SETTLE_SECONDS = 3.0
#: As ``python -m pytest``, with the directory of the plugin at the end of the path.
PYTEST = """
import os, sys
sys.path[:1] = [os.getcwd()]
sys.path.append(sys.argv.pop(1))
import pytest
sys.exit(pytest.main())
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pytest", nargs="*")
    options = parser.parse_args(arguments)
    own = ""
    try:
        if os.geteuid() != 0:
            raise CannotRunError("only root can make such a machine")
        own = tempfile.mkdtemp(prefix="no-escape-")
        os.chmod(own, 0o755)
        return Machine(Path(own)).run(options.pytest)
    except (CannotRunError, NamespaceRefusedError) as error:
        print(f"no_escape: cannot run: {error}")
        return CANNOT
    finally:
        if own:
            leave(own)


class Machine:
    """This process's own mounts and network, and what is seen to happen there.

    Args:
        own: an empty directory of the host's, for pytest's base directory.
    """

    def __init__(self, own: Path) -> None:
        self.own = own
        self.words = Words()
        self.opened: Counter[str] = Counter()
        self.at_import: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.told: set[str] = set()
        directory = os.getcwd()
        (own / "root").mkdir()
        mounts.enter_private_namespace()
        mounts.build_root_with("data", str(own / "root"), also=PLACE.name)
        self.canaries = self._lay_out_canaries()
        self.running = PLACE / "running"
        self.running.mkdir()
        self.running.chmod(0o777)
        self.asked = socket.socket(socket.AF_UNIX)
        self.asked.bind(str(self.running / SEEN))
        (self.running / SEEN).chmod(0o777)
        self.asked.listen()
        self.asked.setblocking(False)
        ask_there(PLACE)
        os.chdir(directory)
        self.outside = Outside()
        self.before = state_of(self.canaries)
        self.watch = Watch(self.canaries)
        self.watched = self.watch.count

    def _lay_out_canaries(self) -> Path:
        """Put them where a user has such things, and only there."""
        whole = PLACE / "whole"
        whole.mkdir()
        seed(whole, self.words)
        # In /tmp, unless TMPDIR says otherwise.
        places = {"data": Path("/data"), "home": HOME, "tmp": self.own / "canary"}
        for name, place in places.items():
            place.mkdir(exist_ok=True)
            mount(str(whole / name), str(place), None, MS_BIND)
        descriptor = os.open(whole, os.O_PATH)
        mounts.unmount(str(whole))
        whole.rmdir()
        return Path(f"/proc/self/fd/{descriptor}")

    def run(self, arguments: list[str]) -> int:
        code = self._look_on(self._start(arguments))
        left = end_what_is_left()
        self._take_in()
        self.watch.close()
        self.outside.close()
        changed = list(changes(self.before, state_of(self.canaries)))
        number, found = search(self.words, self.own, ("basetemp", "report.xml"))
        found += [f"{meaning} is in pytest's output" for meaning in sorted(self.told)]
        escaped = self._report(changed, number, found, left)
        return ESCAPED if escaped else code

    def _start(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment.update(variables(self.words, str(HOME)))
        environment[FOLDER] = str(self.running)
        own = [
            *("-p", "running_tests", "-p", "no:cacheprovider", "-o", "junit_logging=all"),
            *(f"--basetemp={self.own}/basetemp", f"--junitxml={self.own}/report.xml"),
        ]
        command = [sys.executable, "-c", PYTEST, str(Path(__file__).parent)]
        return subprocess.Popen(
            [*command, *arguments, *own],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _look_on(self, pytest: subprocess.Popen[bytes]) -> int:
        """Pass on pytest's output, and take in what happens, until pytest has ended."""
        assert pytest.stdout is not None
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to pytest as well
        signal.signal(signal.SIGTERM, lambda *_: pytest.terminate())
        before = b""
        output = pytest.stdout.fileno()
        os.set_blocking(output, False)
        with selectors.DefaultSelector() as selector:
            for descriptor in (output, self.watch.descriptor, self.outside.descriptor, self.asked):
                selector.register(descriptor, selectors.EVENT_READ)
            ended = False
            while not ended:
                ended = pytest.poll() is not None
                selector.select(0.2)
                self._take_in()
                self._answer()
                with suppress(BlockingIOError):
                    while block := os.read(output, 65_536):
                        sys.stdout.buffer.write(block)
                        self.told |= self.words.found_in(before + block)
                        before = (before + block)[-64:]
                sys.stdout.flush()
        return pytest.wait()

    def _answer(self) -> None:
        """Let tests go on that wait until all that they did has been seen."""
        with suppress(BlockingIOError):
            while True:
                waiting, _ = self.asked.accept()
                self._take_in()
                waiting.close()

    def _take_in(self) -> None:
        for path, process in self.watch.read():
            if process == os.getpid():
                continue
            test = self._test_of(process)
            if test is None and path in CONFIGURATION:
                self.at_import[path] += 1
            else:
                self.opened[f"{path} by {test or 'no test'} ({command_of(process)})"] += 1
        for meant in self.outside.packets():
            tests = running(self.running)
            self.sent[f"{meant} while {' and '.join(tests) or 'no test'} was running"] += 1

    def _test_of(self, process: int) -> str | None:
        """The test that opened something, or those that it may have been."""
        if Path(f"/proc/{process}").exists():
            return started_by(self.running, process)
        return " or ".join(running(self.running)) or None

    def _report(self, changed: list[str], number: int, found: list[str], left: list[str]) -> bool:
        """Say it; whether anything escaped."""
        print(f"\n== what escaped: {self.watched} canaries in /data, {HOME} (the home) and /tmp")
        for times, path in sorted((n, p) for p, n in self.at_import.items()):
            print(f"read by the SDK as it was imported, before any test: {path}, {times} events")
        told = {
            "opened": [f"{line}, {n} events" for line, n in sorted(self.opened.items())],
            "changed": changed,
            "packets": [f"{line}, {n} times" for line, n in sorted(self.sent.items())],
            f"words in pytest's output, its report and {number} files": found,
            "processes that outlived pytest": left,
        }
        for what, lines in told.items():
            print(f"{len(lines)} {what}")
            for line in lines:
                print(f"- {line}")
        sys.stdout.flush()
        return any(told.values())


def command_of(process: int) -> str:
    """The command line of a process, shortened."""
    try:
        line = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        line = ""
    if PYTEST in line:
        return "pytest itself"
    return line.replace("\0", " ").strip()[:100] or "a process that has ended"


def end_what_is_left() -> list[str]:
    """Kill what still has this network after pytest's end; what that was, a line each."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (left := others_in_network()) and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = [f"{command_of(process)} (process {process})" for process in left]
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return lines


def others_in_network() -> list[int]:
    """The processes, but for this one, that have this process's network namespace."""
    ours = os.stat("/proc/self/ns/net").st_ino
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if os.stat(entry / "ns" / "net").st_ino == ours and not is_dead(entry):
                    found.append(int(entry.name))
    return found


def is_dead(entry: Path) -> bool:
    return (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"


def leave(own: str) -> None:
    """Remove what is on the host's disk; the mounts go with this process."""
    mounts.attempt(lambda: mounts.unmount(f"{own}/canary"))
    shutil.rmtree(own, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
