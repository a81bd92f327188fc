"""A plugin for ``no_escape.py``: says from outside which test a process is running.

The name of the test lies in a file that is called like the process, while the test is running. A
test waits before it, and at its end, until all has been seen: nothing is put down to another one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = "NO_ESCAPE_RUNNING"
#: The socket file in it; a connection to it is closed when all has been seen.
SEEN = "seen"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    folder = Path(os.environ[FOLDER])
    place = folder / str(os.getpid())
    wait_until_seen(folder)
    place.write_text(item.nodeid)
    try:
        return (yield)
    finally:
        wait_until_seen(folder)
        place.unlink()


def wait_until_seen(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(folder / SEEN))
        sock.recv(1)


def running(folder: Path) -> list[str]:
    """The tests that are running now, in any process."""
    processes = (int(place.name) for place in folder.iterdir() if place.name.isdigit())
    return sorted(filter(None, (started_by(folder, process) for process in processes)))


def started_by(folder: Path, process: int) -> str | None:
    """The test that a process, or one that started it, is running now."""
    while process > 1:
        try:
            return (folder / str(process)).read_text()
        except OSError:
            process = parent_of(process)
    return None


def parent_of(process: int) -> int:
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return int(fields[1])
