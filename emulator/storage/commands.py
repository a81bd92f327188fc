"""Programs that an app starts, on the rungs without namespaces.

A program knows the host's paths alone. So an argument that is a path of ``/data`` or ``/tmp``
becomes where that really is; one that only mentions such a path (a shell's line, say) is refused. A
Python gets the same rewriting as this one, and keeps its arguments as they are.

Imports next to nothing: a Python that the app starts needs it before anything else.
"""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from emulator.storage import guard
from emulator.storage.audit import refusal
from emulator.storage.places import Place, package_home

__all__ = ["arguments", "environment", "is_python", "working_directory"]

_PYTHON = re.compile(r"(python|pypy)[0-9.]*")
#: With these a Python loads nothing of ours: isolated, without its environment, without site.
_CLOSED = re.compile(r"-[a-zA-Z]*[IES]")
_MENTION = re.compile(r"(?<![\w.~\-/])/[^\s\"'`;:|&<>(){}$,=]*")
_OPTION = re.compile(r"(-{1,2}[\w\-]+=|[\w\-]+=|@|file://)(/.*)", re.DOTALL)
_START = os.path.join(os.path.dirname(os.path.abspath(__file__)), "python_start")


def arguments(
    place: Place, given: Any, shell: bool = False, *, program: Any = None, directory: Any = None
) -> Any:
    """A command line as the program has to have it.

    Args:
        place: who starts it.
        given: the line, or the list of its words.
        shell: it is for a shell.
        program: what is started, where that is not the line's first word.
        directory: where it is started; None: here.

    Raises:
        HostPathError: it mentions a path in a way that cannot be led elsewhere, or may reach a
            ``/data`` of the host's by itself.
    """
    line = [given] if isinstance(given, (str, bytes, os.PathLike)) else list(given)
    if line and not shell and is_python(line):
        # It reads its arguments itself; the program is found by the system.
        return [_path(place, line[0]), *line[1:]]
    shown = (
        shlex.join(map(os.fsdecode, line)) if line is not given and len(line) > 1 else str(given)
    )
    if shell:
        for word in line:
            _check(place, os.fsdecode(word), shown)
        led = line
    else:
        led = [_argument(place, word, shown) for word in line]
    if place.guarded and line:
        name, *words = map(os.fsdecode, line)
        name = "sh" if shell else name if program is None else os.fsdecode(program)
        guard.check(place, name, [] if shell else words, _where(directory), shown)
    return led[0] if isinstance(given, (str, bytes, os.PathLike)) else led


def environment(place: Place, given: Mapping[Any, Any] | None, python: bool) -> dict[str, str]:
    """The environment of a program: with what tells it where it is.

    Args:
        given: None: that of this process.
        python: whether it is a Python, which gets the rewriting.
    """
    source = os.environ if given is None else given
    variables = {os.fsdecode(name): os.fsdecode(value) for name, value in source.items()}
    variables.update(place.variables(package_home()))
    if python:
        before = variables.get("PYTHONPATH")
        variables["PYTHONPATH"] = _START if not before else f"{_START}{os.pathsep}{before}"
        variables["PATH"] = _list(place, variables.get("PATH", os.defpath))
        return variables
    for name, value in variables.items():
        if name not in place.variables(""):
            variables[name] = _list(place, value)
    tmp = next((backing for area, backing in place.areas if area == "/tmp"), None)
    if tmp is not None:
        variables.setdefault("TMPDIR", tmp)
    return variables


def working_directory(place: Place, given: Any) -> Any:
    """Where a program is started."""
    return given if given is None or isinstance(given, int) else _path(place, given)


def _where(directory: Any) -> str:
    with suppress(OSError):  # it was removed
        return posixpath.join(os.getcwd(), os.fsdecode(directory or ""))
    return "/"


def is_python(line: Sequence[Any], executable: Any = None) -> bool:
    """Whether a program is a Python that loads the rewriting, or a script for one."""
    program = os.fsdecode(executable if executable is not None else line[0])
    if not _PYTHON.fullmatch(os.path.basename(program)):
        return _is_script(program)
    for word in map(os.fsdecode, line[1:]):
        if not word.startswith("-") or word in ("-c", "-m", "-"):
            break
        if _CLOSED.fullmatch(word):
            return False
    return True


def _is_script(program: str) -> bool:
    """Whether a program is one of Python's console scripts, ``pytest`` or ``fal`` say."""
    found = shutil.which(program)
    if found is None:
        return False
    try:
        with open(found, "rb") as file:
            first = file.readline(256)
    except OSError:
        return False
    interpreter = first[2:].decode("utf-8", "replace").split()
    return first.startswith(b"#!") and any(
        _PYTHON.fullmatch(os.path.basename(word)) for word in interpreter[:2]
    )


def _argument(place: Place, word: Any, line: str) -> Any:
    text = os.fsdecode(word)
    if text.startswith("/"):
        led = _path(place, word)
        if led is not word:
            return led
    option = _OPTION.fullmatch(text)
    if option is not None:
        real = place.real(option[2])
        if real is not None:
            led = option[1] + real
            return os.fsencode(led) if isinstance(word, bytes) else led
    _check(place, text, line)
    return word


def _path(place: Place, path: Any) -> Any:
    text = os.fsdecode(path)
    real = place.real(text) if text.startswith("/") else None
    if real is None:
        return path
    return os.fsencode(real) if isinstance(path, bytes) else real


def _list(place: Place, value: str) -> str:
    """A path, or a list of paths as in PATH; anything else comes back."""
    if "/" not in value:
        return value
    return os.pathsep.join(
        (place.real(entry) or entry) if entry.startswith("/") else entry
        for entry in value.split(os.pathsep)
    )


def _check(place: Place, text: str, line: str) -> None:
    mentioned = next((path for path in _mentions(text) if place.real(path) is not None), None)
    if mentioned is not None:
        raise refusal(f"starting {line!r}", mentioned)


def _mentions(text: str) -> Iterable[str]:
    return (found.group() for found in _MENTION.finditer(text))
