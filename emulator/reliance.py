"""What we rely on in other people's packages, and what is said when it is no longer there.

The list of them is :mod:`emulator.relied_on`; ``tests/test_private_names.py`` looks whether each is
there, and whether our source uses others. In a user's tests only what has been loaded is looked at,
and once; what is missing is an :class:`UnsupportedVersionError`, which says what to install.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

from emulator.errors import UnsupportedVersionError
from emulator.relied_on import PACKAGES, PYTHON, Name, Package

__all__ = [
    "changed",
    "check_loaded",
    "explain",
    "gone",
    "is_expected",
    "lack",
    "newer_packages",
    "require",
]

Version = tuple[int, ...]


def check_loaded(*modules: str) -> None:
    """Look at what has been loaded since the last time.

    Args:
        modules: only at these; default: at all. Where something of ours stands in for something
            of theirs, that is not to be looked at.

    Raises:
        UnsupportedVersionError: something is no longer there.
    """
    asked = modules or _by_module()
    new = [module for module in asked if module not in _seen and module in sys.modules]
    if new:
        require(*new)
        _seen.update(new)


#: Modules that were looked at and have everything.
_seen: set[str] = set()


def require(*modules: str) -> None:
    """Look at modules that are loaded.

    Raises:
        UnsupportedVersionError: something that we need is no longer there.
    """
    for package, name in (pair for module in modules for pair in _by_module()[module]):
        problem = lack(name) if name.needed else ""
        if problem and is_expected(package, name):
            raise _unsupported(package, problem, name)


def gone(place: str) -> UnsupportedVersionError:
    """What to raise where a name of the list is missing.

    Args:
        place: as the list has it.
    """
    package, name = next(
        pair for pair in _by_module()[place.partition(":")[0]] if pair[1].place == place
    )
    return _unsupported(package, f"has no {name.dotted}", name)


def changed(package: str, problem: str) -> UnsupportedVersionError:
    """What to raise where a package does not do what it did.

    Args:
        package: its name in the list.
        problem: what was seen.
    """
    found = next(one for one in PACKAGES if one.name == package)
    return _unsupported(found, f"is not as it was ({problem})")


def lack(name: Name) -> str:
    """What is wrong with a name of a loaded module; empty: nothing, or it is not loaded."""
    module = sys.modules.get(name.module)
    if module is None:
        return ""
    found: Any = module
    *path, last = name.attributes or [""]
    for part in path:
        if not hasattr(found, part):
            return f"has no {name.dotted}"
        found = getattr(found, part)
    if name.on_instances:
        return "" if _is_set_by(found, last) else f"has no {name.dotted}"
    if last and not hasattr(found, last):
        return f"has no {name.dotted}"
    taken = _parameters(getattr(found, last)) if name.parameters else None
    gone = [one for one in name.parameters if taken is not None and one not in taken]
    return f"has a {name.dotted} without the parameter {', '.join(gone)}" if gone else ""


def explain(error: BaseException) -> UnsupportedVersionError | None:
    """What an ImportError or AttributeError of somebody else's package means.

    None: it is not about a package that we look into.
    """
    if not isinstance(error, (ImportError, AttributeError)):
        return None
    origin = _origin(error)
    for package in PACKAGES:
        if origin and any(name.module.split(".")[0] == origin for name in package.names):
            return changed(package.name, str(error))
    return None


def newer_packages(names: Iterable[str] | None = None) -> list[str]:
    """A sentence for each package that is newer than those that pytest-fal was tested with.

    Args:
        names: of the packages; default: all.
    """
    found = []
    for package in PACKAGES:
        if package.name != PYTHON and (names is None or package.name in names):
            installed = _installed(package.name)
            if installed and _version(installed) > _version(package.newest):
                found.append(
                    f"{package.name} {installed} is newer than {package.newest}, the newest that "
                    "this version of pytest-fal was tested with"
                )
    return found


# --- inside --------------------------------------------------------------------------------------


@functools.cache
def _by_module() -> dict[str, list[tuple[Package, Name]]]:
    found: dict[str, list[tuple[Package, Name]]] = {}
    for package in PACKAGES:
        for name in package.names:
            found.setdefault(name.module, []).append((package, name))
    return found


def _unsupported(
    package: Package, problem: str, name: Name | None = None
) -> UnsupportedVersionError:
    installed = _installed(package.name)
    if installed is None:
        problem = f"is not installed, or cannot be imported: it {problem}"
    why = f", by which pytest-fal {name.purpose} (emulator/{name.used_in})" if name else ""
    tested = f"This version of pytest-fal was tested with {package.oldest} to {package.newest}."
    if package.name == PYTHON:
        how = "Install a newer pytest-fal, or use one of these versions of Python."
    else:
        how = (
            "Install a newer pytest-fal (pip install --upgrade pytest-fal), or what it knows: "
            f'pip install "{package.name}=={package.newest}"'
        )
    return UnsupportedVersionError(
        " ".join(filter(None, [package.name, installed, problem])) + f"{why}. {tested} {how}"
    )


def is_expected(package: Package, name: Name) -> bool:
    """Whether the installed version should have it; a new one should have what the last had."""
    if not name.since and not name.until:
        return True
    installed = _version(_installed(package.name) or package.newest)
    is_too_old = bool(name.since) and installed < _version(name.since)
    return not is_too_old and not (name.until and installed >= _version(name.until))


def _is_set_by(kind: Any, attribute: str) -> bool:
    """Whether objects of a class have an attribute: the class has it, declares it or sets it."""
    for one in inspect.getmro(kind):
        if attribute in vars(one) or attribute in vars(one).get("__annotations__", {}):
            return True
        for found in vars(one).values():
            parts = (found.fget, found.fset) if isinstance(found, property) else (found,)
            codes = (getattr(part, "__code__", None) for part in parts)
            if any(attribute in code.co_names for code in codes if code is not None):
                return True
    return False


def _parameters(function: Callable[..., Any]) -> Iterable[str] | None:
    """The names of a function's parameters; None: it takes any, or does not tell."""
    try:
        taken = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())
    return None if takes_any else taken


def _origin(error: ImportError | AttributeError) -> str | None:
    """The top-level package that an error is about."""
    if isinstance(error, ImportError):
        module = error.name
    else:
        owner = getattr(error, "obj", None)
        kind = owner if isinstance(owner, type) else type(owner)
        module = getattr(owner, "__name__", None) if inspect.ismodule(owner) else kind.__module__
    return module.split(".")[0] if module else None


def _installed(name: str) -> str | None:
    if name == PYTHON:
        return sys.version.split()[0]
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _version(text: str) -> Version:
    """The numbers of a version, up to what marks a candidate or a local build."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()
