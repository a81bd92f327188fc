"""Run pytest as an ordinary user: ``python tests/as_user.py [--uid N] -- pytest arguments``.

``--by "-m coverage run -m pytest"`` has the interpreter start it so, and ``--through "unshare -r"``
has that program start the interpreter.

Needs root, to become that user. The interpreter and the project may lie below directories that the
user cannot enter: then this process gets mounts of its own, in which an empty directory hides such
a directory and what is needed of it is bound back at the same path. Exits with pytest's exit code,
or with 77 and one line that says why it cannot run at all.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

CANNOT = 77
NOBODY = 65534

CLONE_NEWNS = 0x00020000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18


class CannotRunError(Exception):
    """Why the tests cannot be run as another user."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--uid", type=int, default=NOBODY)
    parser.add_argument("--by", type=shlex.split, default=["-m", "pytest"])
    parser.add_argument("--through", type=shlex.split, default=[])
    parser.add_argument("pytest", nargs="*")
    options = parser.parse_args(arguments)
    own = ""
    try:
        if os.geteuid() != 0:
            raise CannotRunError("only root can become another user")
        closed = closed_to(options.uid, named(options.pytest))
        if closed is not None:
            raise CannotRunError(f"{closed} is closed to it; chmod o+rx {closed}")
        own = tempfile.mkdtemp(prefix="as-user-")
        os.chown(own, options.uid, options.uid)
        uncover([own, *needed(options.pytest)], options.uid)
        check(options.uid, own)
        command = [*options.through, sys.executable, *options.by]
        return run(options.uid, own, command, options.pytest)
    except CannotRunError as error:
        print(f"as_user: cannot run as user {options.uid}: {error}")
        return CANNOT
    finally:
        if own:
            shutil.rmtree(own, ignore_errors=True)


def needed(arguments: Iterable[str]) -> list[str]:
    """What the user has to reach: the interpreter, all that it imports, the project, the tests."""
    paths = [
        *(sys.prefix, sys.base_prefix, sys.executable, os.path.realpath(sys.executable)),
        *sys.path,
        str(Path(__file__).parent.parent),
        *named(arguments),
    ]
    return [os.path.abspath(path) for path in paths if path and os.path.exists(path)]


def named(arguments: Iterable[str]) -> list[str]:
    """The working directory and the paths among pytest's arguments."""
    paths = (argument.split("::")[0] for argument in arguments if not argument.startswith("-"))
    return [os.getcwd(), *(path for path in paths if os.path.exists(path))]


def closed_to(uid: int, paths: Iterable[str]) -> str | None:
    """The first directory in which that user may not look, though the tests are in it."""
    folders = (path for path in paths if os.path.isdir(path))
    return next((path for path in folders if not may_enter(path, uid)), None)


def uncover(paths: Iterable[str], uid: int) -> None:
    """Let a user reach these paths, with mounts that only this process and its children see."""
    closed: dict[str, set[str]] = {}
    for path in paths:
        for place in (path, os.path.realpath(path)):
            folder = next((f for f in ancestors(place) if not may_enter(f, uid)), None)
            if folder is not None:
                closed.setdefault(folder, set()).add(place)
    if not closed:
        return
    call("unshare", CLONE_NEWNS)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    for folder, inside in closed.items():
        rebuild(folder, inside)


def ancestors(path: str) -> Iterator[str]:
    """The directories above a path, from the root down."""
    return map(str, reversed(Path(path).parents))


def may_enter(folder: str, uid: int) -> bool:
    status = os.stat(folder)
    bit = stat.S_IXUSR if status.st_uid == uid else stat.S_IXOTH
    return bool(status.st_mode & bit)


def rebuild(folder: str, inside: Iterable[str]) -> None:
    """Hide a directory behind an empty one in which only some paths of it are visible."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    before = f"/proc/self/fd/{descriptor}"
    mount("as-user", folder, "tmpfs", 0, "mode=755")
    try:
        for path in sorted(inside):
            show(before, folder, path)
    finally:
        os.close(descriptor)


def show(before: str, folder: str, path: str) -> None:
    """Bind one path back, by way of the directories and links that lead there."""
    source = before + path.removeprefix(folder)
    if os.path.lexists(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), path)
    elif os.path.isdir(source):
        os.mkdir(path)
        mount(source, path, None, MS_BIND | MS_REC)
    else:
        Path(path).touch()
        mount(source, path, None, MS_BIND)


def check(uid: int, own: str) -> None:
    """Make sure that the interpreter starts as that user at all."""
    try:
        result = start([sys.executable, "-c", "import pytest"], uid, own, capture_output=True)
    except OSError as error:
        raise CannotRunError(f"{sys.executable} does not start: {error.strerror}") from None
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise CannotRunError(f"{sys.executable} cannot import pytest: {last}")


def run(uid: int, own: str, command: list[str], arguments: list[str]) -> int:
    ours = ("-p", "no:cacheprovider", f"--basetemp={own}/basetemp")
    return start([*command, *ours, *arguments], uid, own).returncode


def start(
    command: list[str], uid: int, own: str, capture_output: bool = False
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment.pop("FAL_CONFIG_PATH", None)  # another user's
    environment.update(
        HOME=own,
        HYPOTHESIS_STORAGE_DIRECTORY=f"{own}/hypothesis",
        PYTHONDONTWRITEBYTECODE="1",
        TMPDIR=own,
    )
    return subprocess.run(
        command,
        user=uid,
        group=uid,
        extra_groups=[],
        env=environment,
        capture_output=capture_output,
        text=True,
    )


def call(name: str, *arguments: object) -> None:
    """A libc function; its failure says what the kernel answered."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) == -1:
        raise CannotRunError(f"the kernel refused {name}: {os.strerror(ctypes.get_errno())}")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    names = (None if name is None else os.fsencode(name) for name in (source, target, kind))
    call("mount", *names, ctypes.c_ulong(flags), data.encode() or None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
