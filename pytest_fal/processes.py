"""Processes that were started from this one: which there are, and what a report says of them."""

from __future__ import annotations

import os
import re
import sys

__all__ = ["children", "command_of", "cut", "servers", "shown", "start_of"]

_SECRET_ARGUMENT = re.compile(r"(?i)^(-{0,2}[\w.-]*(?:token|secret|password|passwd|key)[\w.-]*=).+")


def children() -> set[int]:
    """Processes started from this one, those that nobody has waited for included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):
        return set()
    found: set[int] = set()
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children", "rb", buffering=0) as file:
                found.update(map(int, file.readall().split()))
    except OSError:  # a thread that has just ended, or no such system
        return found
    return found


def servers() -> set[int]:
    """Processes of the session's emulator."""
    module = sys.modules.get("emulator.processes")
    return set(getattr(module, "servers", ()))


def command_of(number: int) -> tuple[list[str], bool]:
    """The command line of a process, and whether it has ended."""
    try:
        with open(f"/proc/{number}/cmdline", "rb") as file:
            words = file.read().split(b"\0")[:-1]
        with open(f"/proc/{number}/stat") as stat:
            state = stat.read().rpartition(")")[2].split()[0]
    except OSError:
        return [], True
    return [os.fsdecode(word) for word in words], state == "Z"


def shown(command: list[str]) -> str:
    """A command line, without credentials."""
    if command == command_of(os.getpid())[0]:
        return ": a fork of this process"
    words = " ".join(_SECRET_ARGUMENT.sub(r"\1***", word) for word in command)
    return f": {cut(words)}" if words else ""


def start_of(number: int) -> float | None:
    """When a process was started, in seconds since the machine was."""
    try:
        with open(f"/proc/{number}/stat") as stat:
            ticks = int(stat.read().rpartition(")")[2].split()[19])
    except OSError:
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def cut(text: str) -> str:
    """A text that is short enough for one line of a report."""
    return text if len(text) <= 200 else f"{text[:197]}..."
