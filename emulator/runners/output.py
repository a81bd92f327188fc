"""What the apps print, told apart by the runner they run on."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import re
import select
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

from emulator.runners.log import Log

__all__ = ["OutputSplitter", "Transcript", "is_noise", "pause", "readable", "without_noise"]

#: The SDK prints every installed package at every start; it belongs to the runner's log only.
_NOISE = "[debug] Python packages installed:"
#: What uvicorn says of every app, whatever happens.
_SERVER = re.compile(
    r"INFO:     (Started server process|Waiting for application|Application (startup|shutdown) "
    r"complete|Uvicorn running on|Shutting down|Finished server process)"
)
#: How often, and how many seconds apart, is looked whether a pipe was read.
_LOOKS, _FEW_LOOKS, _LOOK = 2000, 20, 0.0005
#: The SDK prints an unhandled exception as one line of JSON, its frames in reverse.
_TRACEBACK = '{"traceback": '
_INSTALLED = ("/site-packages/", "/dist-packages/", "/lib/python3")


_one_writes = threading.RLock()


class OutputSplitter:
    """Stands in for ``sys.stdout`` and ``sys.stderr`` while runners live.

    Args:
        sink: where the calling thread's output is collected; None when it is on no runner.
    """

    def __init__(self, sink: Callable[[], Log | None]) -> None:
        self._sink = sink
        # print() holds no reference to the stream that it writes to (until Python 3.14): one that
        # is freed while a thread prints crashes the process.
        self._kept: deque[_Split] = deque(maxlen=64)

    def install(self) -> None:
        """Stand in; again, if something (pytest's capture) has put another stream there since."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, _Split):
                split = _Split(stream, self._sink, name.upper())
                self._kept.append(split)
                setattr(sys, name, split)

    def uninstall(self) -> None:
        """Give back the streams that are ours."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if isinstance(stream, _Split):
                setattr(sys, name, stream._stream)


class _Split:
    """A text stream that also keeps what is written from a runner's threads."""

    def __init__(self, stream: TextIO, sink: Callable[[], Log | None], level: str) -> None:
        self._stream = stream
        self._sink = sink
        self._level = level
        #: The runners that are printing noise, by their sinks.
        self._noisy: set[int] = set()

    def write(self, text: str) -> int:
        sink = self._sink()
        if sink is None:
            return self._pass_on(text)
        sink.append(text, self._level)
        if text.startswith(_TRACEBACK):
            self._pass_on(readable(text))
        elif text.startswith(_NOISE):
            self._noisy.add(id(sink))
        elif id(sink) not in self._noisy:
            self._pass_on(text)
        elif text.endswith("\n"):  # print() writes its parts one by one, up to the newline
            self._noisy.discard(id(sink))
        return len(text)

    def _pass_on(self, text: str) -> int:
        # Python before 3.12.4 crashes when two threads write to one text stream (gh-119506).
        with _one_writes:
            return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Transcript:
    """What a runner's process prints, read from its end of a pipe.

    All of it is kept. What a person wants to see goes on to this process's stdout, when and where
    :meth:`show` is called: a line that came between two phases of a test would be shown in neither.
    """

    def __init__(self, log: Log) -> None:
        self.descriptor = -1
        self._log = log
        self._lock = threading.Lock()
        self._ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self._unshown: list[str] = []

    @property
    def text(self) -> str:
        """All that was printed so far, what is still in the pipe included."""
        self._wait_for_the_pipe(_LOOKS)
        return self._log.text

    def catch_up(self) -> None:
        """Wait until nothing is left in the pipe."""
        self._wait_for_the_pipe(_LOOKS)

    def show(self) -> None:
        """Print what was not shown yet."""
        self._wait_for_the_pipe(_FEW_LOOKS)
        with self._lock:
            lines, self._unshown = self._unshown, []
        sys.stdout.write("".join(lines))

    def _wait_for_the_pipe(self, looks: int) -> None:
        for _ in range(looks):
            if not self._waits():
                break
            pause(_LOOK)

    def follow(self, descriptor: int) -> None:
        """Read from this pipe; it is closed at its end."""
        self.descriptor = descriptor

    def read(self) -> bool:
        """Take what there is; whether there may be more."""
        with self._lock:
            chunk = os.read(self.descriptor, 65_536)
            self._keep(self._decoder.decode(chunk, final=not chunk))
            if not chunk:
                self._show(self._line)
                os.close(self.descriptor)
                self._ended = True
            return bool(chunk)

    def _waits(self) -> bool:
        """Whether something that was printed has not been read yet."""
        with self._lock:
            if self._ended or self.descriptor < 0:
                return False
            size = fcntl.ioctl(self.descriptor, termios.FIONREAD, bytes(4))
            return any(size)

    def _keep(self, text: str) -> None:
        self._log.append(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._show(f"{line}\n")

    def _show(self, line: str) -> None:
        if line and not is_noise(line):
            self._unshown.append(readable(line) if line.startswith(_TRACEBACK) else line)


def pause(seconds: float) -> None:
    """Wait in real time, whatever the clock says."""
    select.select([], [], [], seconds)


def is_noise(line: str) -> bool:
    """Whether nobody wants to see a line: the SDK and the server print it of every app."""
    return line.startswith(_NOISE) or _SERVER.match(line) is not None


def readable(line: str) -> str:
    """An exception as the SDK prints it, as Python does: the app's own frames, in order.

    Anything that does not look like that is returned as it is.
    """
    try:
        text = json.loads(line)["traceback"]
        pieces = re.findall(r'^  File "[^"]+", line \d+.*\n(?:    .*\n)*', text, re.MULTILINE)
        exception = text[: text.index('  File "')] if pieces else text
    except (ValueError, KeyError, TypeError):
        return line
    # What follows the first header repeats the same exception inside the web framework.
    first = text.find("Traceback (most recent call last):")
    frames = [piece for piece in pieces if text.index(piece) < first or first < 0][::-1]
    own = [frame for frame in frames if not any(place in frame for place in _INSTALLED)]
    shown = own or frames[-3:]
    left_out = len(frames) - len(shown)
    note = f"  ... {left_out} frames of installed packages left out\n" if left_out else ""
    return f"Traceback (most recent call last):\n{note}{''.join(shown)}{exception}"


def without_noise(output: str) -> list[str]:
    """The lines of a runner's output as a person reads them."""
    lines = [line for line in output.splitlines() if not is_noise(line)]
    return [shown for line in lines for shown in readable(line).splitlines()]
