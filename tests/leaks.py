"""What a test may not leave behind, each leak by name. Used around every test of our own suite."""

from __future__ import annotations

import asyncio
import datetime
import gc
import importlib.metadata
import os
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import freezegun.api
import httpcore

#: Threads and descriptors of the session's emulator, which live until the session ends.
SESSION_THREADS = ("fal-wire", "fal-sweeper", "fal-forkserver")


def patched_attributes() -> dict[str, object]:
    """Everything of other packages that the emulator replaces while it is active."""
    owners = {
        "time": (time, "time sleep monotonic perf_counter time_ns"),
        "datetime": (datetime, "datetime date"),
        "asyncio": (asyncio, "sleep"),
        "os": (os, "stat lstat fstat scandir utime"),
        "socket": (socket, "getaddrinfo gethostbyname gethostbyname_ex create_connection"),
        "socket.socket": (socket.socket, "connect connect_ex"),
        "httpcore.ConnectionPool": (httpcore.ConnectionPool, "handle_request"),
        "httpcore.AsyncConnectionPool": (httpcore.AsyncConnectionPool, "handle_async_request"),
        "urllib.request": (urllib.request, "_opener"),
        "importlib.metadata": (importlib.metadata, "distributions"),
        "tempfile": (tempfile, "tempdir"),
        "sys": (sys, "stdout stderr"),
        "fal.ref": (sys.modules.get("fal.ref"), "current_app"),
        "fal.auth.local": (sys.modules.get("fal.auth.local"), "_FAL_HOME_DIR"),
        "fal.api.FalServerlessHost": (
            getattr(sys.modules.get("fal.api"), "FalServerlessHost", None),
            "spawn",
        ),
        "cygrpc": (sys.modules.get("grpc._cython.cygrpc"), "Channel AioChannel"),
        "aiohttp.connector": (sys.modules.get("aiohttp.connector"), "_SSL_CONTEXT_VERIFIED"),
    }
    return {
        f"{name}.{attribute}": getattr(owner, attribute, None)
        for name, (owner, attributes) in owners.items()
        if owner is not None
        for attribute in attributes.split()
    }


def descriptors() -> dict[int, str]:
    """Open file descriptors and what they are."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # the one that listed the directory
    return found


def mounts() -> list[str]:
    """Where file systems are mounted in this thread's namespace."""
    with open("/proc/thread-self/mountinfo") as file:
        return sorted(line.split()[4] for line in file)


def children() -> set[int]:
    """Processes started from this one."""
    with open("/proc/thread-self/children") as file:
        return {int(number) for number in file.read().split()}


@dataclass
class Snapshot:
    """The state of the process that tests must not change."""

    threads: set[threading.Thread]
    descriptors: dict[int, str]
    mounts: list[str]
    children: set[int]
    environment: dict[str, str]
    directory: str
    path: list[str]
    attributes: dict[str, object]
    frozen: int
    torch: bool

    @classmethod
    def take(cls) -> Snapshot:
        return cls(
            threads=set(threading.enumerate()),
            descriptors=descriptors(),
            mounts=mounts(),
            children=children(),
            environment={k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
            directory=os.getcwd(),
            path=list(sys.path),
            attributes=patched_attributes(),
            frozen=len(freezegun.api.freeze_factories),
            torch="torch" in sys.modules,
        )

    def leaks_since(self, expected: tuple[str, ...] = ()) -> list[str]:
        """What is there now that was not, by name; without what begins with one of *expected*."""

        def compare() -> list[str]:
            return [leak for leak in self._compare() if not leak.startswith(expected)]

        found = compare()
        if found:
            gc.collect()  # cycles are no leaks
            _settle(lambda: not compare())
            found = compare()
        return found

    def _compare(self) -> list[str]:
        now = Snapshot.take()
        leaks = [
            f"thread {thread.name!r} is running"
            for thread in now.threads - self.threads
            if not thread.name.startswith(SESSION_THREADS)
        ]
        leaks += [f"process {number} is running" for number in now.children - self.children]
        leaks += [
            f"descriptor {number} is open: {target}"
            for number, target in now.descriptors.items()
            if number not in self.descriptors and not _is_being_swept(target)
        ]
        leaks += [f"mounted: {place}" for place in now.mounts if place not in self.mounts]
        leaks += _differences("environment variable", self.environment, now.environment)
        if now.directory != self.directory:
            leaks.append(f"the working directory is {now.directory}")
        if now.path != self.path:
            leaks.append(f"sys.path has changed: {set(now.path) ^ set(self.path)}")
        leaks += [
            f"{name} is {now.attributes[name]!r}"
            for name, value in self.attributes.items()
            if now.attributes.get(name) is not value
        ]
        if now.frozen != self.frozen:
            leaks.append("freezegun is still engaged")
        if now.torch and not self.torch:
            leaks.append("torch was imported into pytest's process")
        return leaks


def _is_being_swept(target: str) -> bool:
    """Whether it is what a passing test wrote, which is removed in the background."""
    return "/volumes/" in target


def _differences(what: str, before: dict[str, str], after: dict[str, str]) -> list[str]:
    names = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    return [f"{what} {name}: {before.get(name)!r} -> {after.get(name)!r}" for name in names]


def _settle(done: Callable[[], bool]) -> None:
    """Threads that are just ending need a moment."""
    deadline = time.monotonic() + 2
    while not done() and time.monotonic() < deadline:
        time.sleep(0.002)
