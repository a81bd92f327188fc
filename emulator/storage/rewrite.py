"""The last rung: Python's path calls lead to where the volumes really are.

Functions of ``os``, ``open``, and what other modules have taken from there are replaced while a
test has volumes; each looks up the place of its thread (:mod:`emulator.storage.places`). What an
app sees stays as it wrote it: names in errors, of open files, of directory entries, of links, of
the working directory. What is not Python's own is led or refused: programs by
:mod:`emulator.storage.commands`, known native code by :mod:`emulator.storage.natives`, and whatever
else opens such a path in this interpreter by :mod:`emulator.storage.audit`.

Imports next to nothing: a Python that the app starts needs it before anything else.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import posixpath
import sys
import types
from collections.abc import Callable
from typing import Any

from emulator.storage import audit, places
from emulator.storage.entries import Entry, Scan
from emulator.storage.places import Place, here

__all__ = ["Rewriter", "translated"]

#: Functions of ``os`` that take a path first, and what that argument is called.
_FIRST = dict.fromkeys(
    (
        *("access", "chflags", "chmod", "chown", "getxattr", "lchflags", "lchmod", "lchown"),
        *("listxattr", "lstat", "mkdir", "mkfifo", "mknod", "open", "pathconf", "remove"),
        *("removexattr", "rmdir", "setxattr", "stat", "statvfs", "truncate", "unlink", "utime"),
    ),
    "path",
)
_SECOND = ("link", "rename", "replace")
#: Modules whose classes keep functions of ``os``, also as defaults of arguments: one or the other
#: in each version of Python.
_WITH_CLASSES = ("glob", "pathlib", "pathlib._abc", "pathlib._local", "tempfile")
_DEFAULTS = "__defaults__"
_CAPABILITIES = (
    os.supports_dir_fd,
    os.supports_effective_ids,
    os.supports_fd,
    os.supports_follow_symlinks,
)


class _Real:
    """The functions as Python has them; in a class, where no scan of modules replaces them."""

    open: Callable[..., Any] = staticmethod(io.open)
    open_code = staticmethod(io.open_code)
    os_open = staticmethod(os.open)
    getcwd = staticmethod(os.getcwd)
    readlink = staticmethod(os.readlink)
    scandir = staticmethod(os.scandir)
    symlink = staticmethod(os.symlink)
    listdir: Callable[..., list[Any]] = staticmethod(os.listdir)
    chdir = staticmethod(os.chdir)


# --- paths ----------------------------------------------------------------------------------------


def translated(place: Place, path: Any, dir_fd: int | None = None) -> Any:
    """Where a path leads, as text or bytes like itself; the same object where that is the host's.

    Whatever is no path comes back too: who wanted one has its own words for it.
    """
    if path is None or isinstance(path, int):
        return path
    try:
        given = os.fspath(path)
    except TypeError:
        return path
    text = os.fsdecode(given)
    if text.startswith("/"):
        real = place.real(text)
    elif dir_fd is not None or not text:
        return path
    else:
        real = _real_of_relative(place, text)
    if real is None:
        return path
    return os.fsencode(real) if isinstance(given, bytes) else real


def _real_of_relative(place: Place, text: str) -> str | None:
    try:
        directory = _Real.getcwd()
    except OSError:  # it was removed
        return None
    shown = place.shown(directory)
    full = f"{shown or directory}/{text}"
    real = place.real(full)
    if real is None and shown is not None:
        return posixpath.normpath(full)  # out of the volume, to the host's
    return real


def _full(place: Place, path: Any) -> str:
    """A path from the root on, as the app means it; "" for what is none."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        return ""
    if text.startswith("/"):
        return text
    directory = _Real.getcwd()
    return f"{place.shown(directory) or directory}/{text}"


def _name_as_given(error: OSError, new: Any, given: Any) -> None:
    """Let an error name the path as the app wrote it."""
    if new is not given:
        if error.filename == new:
            error.filename = os.fspath(given)
        if error.filename2 == new:
            error.filename2 = os.fspath(given)


# --- what stands in the place of functions --------------------------------------------------------


def _first(real: Callable[..., Any], keyword: str) -> Callable[..., Any]:
    """For a function whose first argument is a path."""

    def substitute(*args: Any, **kwargs: Any) -> Any:
        place = here()
        if place is None:
            return real(*args, **kwargs)
        path = args[0] if args else kwargs.get(keyword)
        new = translated(place, path, kwargs.get("dir_fd"))
        if new is path:
            return real(*args, **kwargs)
        if args:
            args = (new, *args[1:])
        else:
            kwargs[keyword] = new
        try:
            return real(*args, **kwargs)
        except OSError as error:
            _name_as_given(error, new, path)
            raise

    return substitute


def _second(real: Callable[..., Any]) -> Callable[..., Any]:
    """For a function of two paths, which have to be on one file system."""

    def substitute(src: Any, dst: Any, **kwargs: Any) -> Any:
        place = here()
        if place is None:
            return real(src, dst, **kwargs)
        source = translated(place, src, kwargs.get("src_dir_fd"))
        target = translated(place, dst, kwargs.get("dst_dir_fd"))
        if source is src and target is dst:
            return real(src, dst, **kwargs)
        has_descriptors = not {"src_dir_fd", "dst_dir_fd"}.isdisjoint(kwargs)
        if not has_descriptors and place.area(_full(place, src)) != place.area(_full(place, dst)):
            os.lstat(src)  # that it is not there comes first
            names = os.fspath(src), None, os.fspath(dst)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), *names)
        try:
            return real(source, target, **kwargs)
        except OSError as error:
            _name_as_given(error, source, src)
            _name_as_given(error, target, dst)
            raise

    return substitute


def _symlink(src: Any, dst: Any, target_is_directory: bool = False, **kwargs: Any) -> None:
    place = here()
    if place is None:
        return _Real.symlink(src, dst, target_is_directory, **kwargs)
    new = translated(place, dst, kwargs.get("dir_fd"))
    target = _link_target(place, src, dst)
    try:
        return _Real.symlink(target, new, target_is_directory, **kwargs)
    except OSError as error:
        _name_as_given(error, target, src)
        _name_as_given(error, new, dst)
        raise


def _link_target(place: Place, src: Any, dst: Any) -> Any:
    """What a link has to say, so that the kernel finds what the app means."""
    given = os.fspath(src)
    text = os.fsdecode(given)
    if text.startswith("/"):
        real = place.real(text)
    else:
        folder = posixpath.dirname(_full(place, dst))
        full = posixpath.normpath(f"{folder}/{text}")
        real = None if place.area(full) == place.area(folder) else place.real(full) or full
    if real is None:
        return src
    return os.fsencode(real) if isinstance(given, bytes) else real


def _readlink(path: Any, *, dir_fd: int | None = None) -> Any:
    place = here()
    if place is None:
        return _Real.readlink(path, dir_fd=dir_fd)
    new = translated(place, path, dir_fd)
    try:
        found = _Real.readlink(new, dir_fd=dir_fd)
    except OSError as error:
        _name_as_given(error, new, path)
        raise
    shown = place.shown(os.fsdecode(found))
    if shown is None:
        return found
    return os.fsencode(shown) if isinstance(found, bytes) else shown


def _getcwd() -> str:
    directory = _Real.getcwd()
    place = here()
    return directory if place is None else place.shown(directory) or directory


def _getcwdb() -> bytes:
    return os.fsencode(_getcwd())


def _chdir(path: Any) -> None:
    place = here()
    new = path if place is None else translated(place, path)
    try:
        _Real.chdir(new)
    except OSError as error:
        _name_as_given(error, new, path)
        raise


def _listdir(path: Any = None) -> list[Any]:
    place = here()
    if place is None:
        return _Real.listdir(path)
    new = translated(place, path)
    try:
        found = _Real.listdir(new)
    except OSError as error:
        _name_as_given(error, new, path)
        raise
    if new is path and not isinstance(path, int) and _full(place, path or ".").rstrip("/") == "":
        there: set[str] = {os.fsdecode(name) for name in found}
        tops = {area[1:] for area, _ in place.areas if area.count("/") == 1} - there
        as_given = os.fsencode if isinstance(path, bytes) else str
        found.extend(as_given(top) for top in sorted(tops))
    return found


def _scandir(path: Any = None) -> Any:
    place = here()
    if place is None or path is None:
        return _Real.scandir(path)
    new = translated(place, path)
    try:
        scan = _Real.scandir(new)
    except OSError as error:
        _name_as_given(error, new, path)
        raise
    if new is path:
        return scan
    folder = os.fspath(path)
    return Scan(scan, lambda entry: _Entry(entry, folder))


class _Entry(Entry):
    """An entry that is named as the app named its directory."""

    def __init__(self, real: os.DirEntry[Any], folder: Any) -> None:
        super().__init__(real)
        self.path = os.path.join(folder, real.name)

    def __fspath__(self) -> Any:
        return self.path


def _open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
) -> Any:
    place = here()
    new = file if place is None else translated(place, file)
    if new is file:
        return _Real.open(file, mode, buffering, encoding, errors, newline, closefd, opener)

    def through(_: Any, flags: int) -> int:
        try:
            return _Real.os_open(new, flags, 0o666)
        except OSError as error:
            _name_as_given(error, new, file)
            raise

    with audit.passing():  # it is announced by the name that the app has
        opener = opener or through
        return _Real.open(file, mode, buffering, encoding, errors, newline, closefd, opener)


def _open_code(path: str) -> Any:
    place = here()
    return _Real.open_code(path if place is None else translated(place, path))


# --- all of it ------------------------------------------------------------------------------------


def _substitutes() -> dict[int, tuple[Any, Any]]:
    """By the identity of a real function: itself, and what stands in its place."""
    pairs: list[tuple[Any, Any]] = [
        (_Real.open, _open),
        (_Real.open_code, _open_code),
        (_Real.symlink, _symlink),
        (_Real.readlink, _readlink),
        (_Real.getcwd, _getcwd),
        (os.getcwdb, _getcwdb),
        (_Real.chdir, _chdir),
        (_Real.listdir, _listdir),
        (_Real.scandir, _scandir),
    ]
    for name, keyword in _FIRST.items():
        real = getattr(os, name, None)
        if real is not None:
            pairs.append((real, _first(real, keyword)))
    pairs.extend((getattr(os, name), _second(getattr(os, name))) for name in _SECOND)
    for real, substitute in pairs:
        substitute.__name__ = substitute.__qualname__ = real.__name__
        substitute.__doc__ = real.__doc__
        for group in _CAPABILITIES:
            if real in group:
                group.add(substitute)  # who asks gets the answer for the real one
    return {id(real): (real, substitute) for real, substitute in pairs}


class Rewriter:
    """Replaces the functions, and puts them back. One for the whole process."""

    def __init__(self) -> None:
        self._substitutes: dict[int, tuple[Any, Any]] = {}
        #: Where a real function was found, and what stands there while we are installed.
        self._found: list[tuple[Any, str, Any, Any]] = []
        self._seen: set[int] = set()
        self._users = 0

    def substitute(self, real: Any) -> Any:
        """What stands in the place of a function of ``os``."""
        return self._substitutes[id(real)][1]

    def install(self) -> None:
        """Replace; a second call only counts."""
        self._users += 1
        if self._users > 1:
            return
        if not self._substitutes:
            self._substitutes = _substitutes()
        self._look()
        for owner, name, _, substitute in self._found:
            setattr(owner, name, substitute)
        places.follow_threads()
        audit.begin()

    def uninstall(self) -> None:
        """Put everything back that was replaced."""
        self._users -= 1
        if self._users:
            return
        audit.end()
        places.leave_threads()
        for owner, name, real, substitute in self._found:
            # Somebody else's replacement, set after ours, is theirs to take back.
            stands = getattr(owner, name) if name == _DEFAULTS else vars(owner).get(name)
            if stands is substitute:
                setattr(owner, name, real)

    def _look(self) -> None:
        """Find the functions in modules that have not been looked at."""
        for module in list(sys.modules.values()):
            if id(module) in self._seen or not isinstance(module, types.ModuleType):
                continue
            try:
                namespace = object.__getattribute__(module, "__dict__")
            except AttributeError:
                continue
            self._seen.add(id(module))
            if module.__name__.startswith("emulator."):
                continue  # what we do ourselves is meant as it is
            for name, value in list(namespace.items()):
                substitute = self._for(value)
                if substitute is not None:
                    self._found.append((module, name, value, substitute))
            if module.__name__ in _WITH_CLASSES:
                for kind in list(namespace.values()):
                    if isinstance(kind, type):
                        self._look_into(kind)

    def _look_into(self, kind: type) -> None:
        for name, value in list(vars(kind).items()):
            real = getattr(value, "__func__", value)  # as it is, or as a static method
            substitute = self._for(real)
            if substitute is not None:
                self._found.append((kind, name, value, staticmethod(substitute)))
            defaults = getattr(real, _DEFAULTS, None)
            if defaults and any(self._for(default) is not None for default in defaults):
                led = tuple(self._for(default) or default for default in defaults)
                self._found.append((real, _DEFAULTS, defaults, led))

    def _for(self, real: Any) -> Any:
        """What stands in the place of this; None where it is none of the functions."""
        pair = self._substitutes.get(id(real))
        return pair[1] if pair is not None and pair[0] is real else None


assert builtins.open is io.open
