"""What is not a path call of Python's, on the rungs without namespaces: programs and native code.

Starting a program goes through :mod:`emulator.storage.commands`. Functions of extension modules
that are known to open files themselves are handed the real path. Both while paths are rewritten.

Imports next to nothing: a Python that the app starts needs it before anything else.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from emulator.storage import commands, places
from emulator.storage.places import Place, here
from emulator.storage.rewrite import Rewriter, translated

__all__ = ["KNOWN", "Natives", "begin_in_a_program"]

#: The kernel takes 108 bytes for the name of a socket file.
_LONGEST_ADDRESS = 104

#: Functions and classes of extension modules that open files by themselves: their paths are led.
KNOWN: dict[str, tuple[str, ...]] = {
    "sqlite3": ("connect", "dbapi2.connect"),
    "ctypes": ("_dlopen",),
    "_imp": ("create_dynamic",),
    "ssl": ("SSLContext.load_cert_chain", "SSLContext.load_verify_locations"),
    "socket": ("socket.bind", "socket.connect", "socket.connect_ex"),
    "cv2": (
        *("imread", "imreadmulti", "imwrite", "imwritemulti", "VideoCapture", "VideoWriter"),
        *("FileStorage", "CascadeClassifier", "haveImageReader"),
    ),
    "safetensors": ("safe_open",),
    "safetensors.numpy": ("safe_open", "serialize_file"),
    "safetensors.torch": ("safe_open", "serialize_file"),
    "PIL.ImageFont": ("truetype",),
    "torch": ("save", "load"),
    "torch.jit": ("save", "load"),
    "onnxruntime": ("InferenceSession",),
    "soundfile": ("SoundFile.__init__", "info"),
    "h5py": ("File.__init__",),
    "av": ("open",),
    "decord": ("VideoReader.__init__", "AudioReader.__init__"),
}


class Natives:
    """Replaces the functions of :data:`KNOWN` and those that start programs."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, Any]] = []
        self._finder = _Finder(self._lead)

    def install(self) -> None:
        """Replace."""
        self._replace(subprocess.Popen, "__init__", _popen(subprocess.Popen.__init__))
        for name in ("execv", "execve", "posix_spawn", "posix_spawnp", "system"):
            if hasattr(os, name):
                self._replace(os, name, _STARTERS[name](getattr(os, name)))
        import multiprocessing.util as util

        self._replace(util, "spawnv_passfds", _spawnv(util.spawnv_passfds))
        for name in KNOWN:
            if name in sys.modules:
                self._lead(name)
        sys.meta_path.insert(0, self._finder)

    def uninstall(self) -> None:
        """Put everything back."""
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for owner, name, real, substitute in reversed(self._undo):
            # Somebody else's replacement, set after ours, is theirs to take back.
            if vars(owner).get(name) is not substitute:
                continue
            if real is None:
                delattr(owner, name)
            else:
                setattr(owner, name, real)
        self._undo.clear()

    def _replace(self, owner: Any, name: str, substitute: Any) -> None:
        # None: a class has it from another one.
        self._undo.append((owner, name, vars(owner).get(name), substitute))
        setattr(owner, name, substitute)

    def _lead(self, module: str) -> None:
        """Hand the functions of a module real paths from now on."""
        for qualified in KNOWN[module]:
            *owners, name = qualified.split(".")
            owner: Any = sys.modules[module]
            for step in owners:
                owner = getattr(owner, step, None)
            real = getattr(owner, name, None)
            if real is not None:
                self._replace(owner, name, _LEADING.get(module, _leading)(real))


class _Looking(threading.local):
    def __init__(self) -> None:
        self.names: set[str] = set()


class _Finder:
    """Leads a known module as soon as it is imported; finds nothing itself."""

    def __init__(self, lead: Callable[[str], None]) -> None:
        self._lead = lead
        self._looking = _Looking()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """As import finders have it."""
        if name not in KNOWN or name in self._looking.names:
            return None
        self._looking.names.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking.names.discard(name)
        execute = None if spec is None else getattr(spec.loader, "exec_module", None)
        if spec is None or execute is None:
            return spec

        def execute_and_lead(module: Any) -> None:
            execute(module)
            self._lead(name)

        with suppress(AttributeError):  # a loader that cannot be changed: then it is not led
            setattr(spec.loader, "exec_module", execute_and_lead)  # noqa: B010
        return spec


def _leading(real: Any) -> Any:
    """A function that gets real paths wherever it is given one of ours."""

    def led(*args: Any, **kwargs: Any) -> Any:
        place = here()
        if place is None:
            return real(*args, **kwargs)
        return real(
            *(_path(place, argument) for argument in args),
            **{name: _path(place, argument) for name, argument in kwargs.items()},
        )

    if isinstance(real, type):
        return _leading_class(real, led)
    return functools.update_wrapper(led, real)


def _leading_class(real: Any, make: Callable[..., Any]) -> Any:
    """A class whose instances another function makes; it need not be one to inherit from.

    ``isinstance`` and ``issubclass`` with it are those of the real one.
    """

    class Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, real)

        def __getattr__(cls, name: str) -> Any:
            return getattr(real, name)

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return make(*args, **kwargs)

    return Meta(real.__name__, (), {"__doc__": real.__doc__, "__module__": real.__module__})


def _path(place: Place, argument: Any) -> Any:
    if not isinstance(argument, (str, bytes, os.PathLike)):
        return argument
    text = os.fsdecode(argument)
    if text.startswith("file:"):  # sqlite's
        found = re.fullmatch(r"(file:(?://)?)(/[^?]*)(.*)", text)
        real = None if found is None else place.real(found[2])
        return argument if found is None or real is None else found[1] + real + found[3]
    return translated(place, argument) if text.startswith("/") else argument


def _leading_spec(real: Any) -> Any:
    """For the import of an extension module, which is told its file by a spec."""

    def create_dynamic(spec: Any, *rest: Any) -> Any:
        place = here()
        origin = spec.origin
        new = origin if place is None else translated(place, origin)
        if new is origin:
            return real(spec, *rest)
        spec.origin = new
        try:
            return real(spec, *rest)
        finally:
            spec.origin = origin

    return functools.update_wrapper(create_dynamic, real)


def _leading_address(real: Any) -> Any:
    """For a method of a socket, whose address may be a socket file."""

    def led(self: Any, address: Any) -> Any:
        place = here()
        new = (
            address
            if place is None or not isinstance(address, (str, bytes, os.PathLike))
            else (_path(place, address))
        )
        if new is address or len(os.fsencode(new)) < _LONGEST_ADDRESS:
            return real(self, new)
        folder, name = os.path.split(os.fsdecode(new))
        descriptor = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY))
        try:
            # As long as the kernel finds it: what the path is by way of a descriptor is short.
            return real(self, f"/proc/self/fd/{descriptor}/{name}")
        finally:
            os.close(descriptor)

    return functools.update_wrapper(led, real)


_LEADING: dict[str, Callable[[Any], Any]] = {"_imp": _leading_spec, "socket": _leading_address}


# --- programs -------------------------------------------------------------------------------------


def _popen(real: Any) -> Any:
    @functools.wraps(real)
    def __init__(self: Any, args: Any, *rest: Any, **options: Any) -> Any:  # noqa: N807
        place = here()
        if place is None:
            return real(self, args, *rest, **options)
        shell = bool(options.get("shell", rest[7] if len(rest) > 7 else False))
        given = options.get("executable", rest[1] if len(rest) > 1 else None)
        line = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
        python = not shell and bool(line) and commands.is_python(line, given)
        named = dict(zip(_POPEN, rest, strict=False))
        named.update(options)
        directory = named.get("cwd")
        led = commands.arguments(place, args, shell, program=given, directory=directory)
        if given is not None:
            named["executable"] = commands.working_directory(place, given)
        named["cwd"] = commands.working_directory(place, directory)
        named["env"] = commands.environment(place, named.get("env"), python)
        return real(self, led, **named)

    return __init__


#: The arguments of ``subprocess.Popen`` after the first, in their order.
_POPEN = (
    *("bufsize", "executable", "stdin", "stdout", "stderr", "preexec_fn", "close_fds", "shell"),
    *("cwd", "env", "universal_newlines", "startupinfo", "creationflags", "restore_signals"),
    *("start_new_session", "pass_fds"),
)


def _spawnv(real: Any) -> Any:
    """How multiprocessing starts a Python: with the environment of this process."""

    @functools.wraps(real)
    def spawnv_passfds(path: Any, args: Any, passfds: Any) -> Any:
        place = here()
        if place is None:
            return real(path, args, passfds)
        with _told(place):
            return real(path, args, passfds)

    return spawnv_passfds


_telling = threading.Lock()


@contextmanager
def _told(place: Place) -> Iterator[None]:
    """While a program is started that inherits this process's environment."""
    added = commands.environment(place, {}, python=True)
    before = os.environ.get("PYTHONPATH")
    if before:
        added["PYTHONPATH"] = f"{added['PYTHONPATH']}{os.pathsep}{before}"
    added.pop("PATH")
    with _telling:
        saved = {name: os.environ.get(name) for name in added}
        os.environ.update(added)
        try:
            yield
        finally:
            for name, value in saved.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _exec(real: Any) -> Any:
    @functools.wraps(real)
    def execv(path: Any, argv: Any, *rest: Any) -> Any:
        place = here()
        if place is None:
            return real(path, argv, *rest)
        python = commands.is_python(list(argv), path)
        env = commands.environment(place, rest[0] if rest else None, python)
        led = commands.arguments(place, argv, program=path)
        return _execve(commands.working_directory(place, path), led, env)

    return execv


def _spawn(real: Any) -> Any:
    @functools.wraps(real)
    def posix_spawn(path: Any, argv: Any, env: Any, *rest: Any, **options: Any) -> Any:
        place = here()
        if place is None or places.PLACE in env:  # subprocess, which has been led already
            return real(path, argv, env, *rest, **options)
        python = commands.is_python(list(argv), path)
        led = commands.arguments(place, argv, program=path)
        told = commands.environment(place, env, python)
        return real(commands.working_directory(place, path), led, told, *rest, **options)

    return posix_spawn


def _system(real: Any) -> Any:
    @functools.wraps(real)
    def system(command: Any) -> int:
        place = here()
        if place is None:
            return real(command)  # type: ignore[no-any-return]
        commands.arguments(place, command, shell=True)
        with _told(place):
            return real(command)  # type: ignore[no-any-return]

    return system


_execve = os.execve
_STARTERS: dict[str, Callable[[Any], Any]] = {
    "execv": _exec,
    "execve": _exec,
    "posix_spawn": _spawn,
    "posix_spawnp": _spawn,
    "system": _system,
}


def begin_in(place: Place) -> dict[str, Callable[..., Any]]:
    """Be in a place, for good: what a process does that is a runner.

    Returns:
        What stands in the place of the functions of ``os`` that tell the times of files.
    """
    places.set_default(place)
    names = ("stat", "lstat", "scandir", "utime")
    real = {name: getattr(os, name) for name in names}
    rewriter = Rewriter()
    rewriter.install()
    Natives().install()
    return {name: rewriter.substitute(function) for name, function in real.items()}


def begin_in_a_program(told: str) -> None:
    """Be in the place that the environment names: what a Python does that an app has started."""
    begin_in(Place.told(told))
