"""Other packages of the name ``emulator``: found, and explained.

The name is ours only inside of our distribution's files. A folder of the user's, or another
distribution, may have it too, and whichever stands first on ``sys.path`` is imported.
"""

from __future__ import annotations

import os
import sys
from importlib import machinery

__all__ = ["explain"]

_NAME = "emulator"
#: The folder that has both of our packages, in a checkout and in site-packages alike.
_HOME = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_OURS = os.path.join(_HOME, _NAME)


def explain(error: BaseException | None) -> str | None:
    """What an ImportError means that is about ``emulator``; None: it is about something else.

    Asked only when one has come up, so it costs nothing before.
    """
    while error is not None:
        if isinstance(error, ImportError) and (error.name or "").split(".")[0] == _NAME:
            place = _place_imported()
            return _ours_is_there(error) if place == _OURS else _theirs_is_there(place)
        error = error.__cause__ or error.__context__
    return None


def _place_imported() -> str | None:
    """Where the package is that is imported, or would be."""
    loaded = sys.modules.get(_NAME)
    if loaded is not None:
        return _place(getattr(loaded, "__file__", None), getattr(loaded, "__path__", None))
    spec = machinery.PathFinder.find_spec(_NAME)
    return _place(spec.origin, spec.submodule_search_locations) if spec else None


def _place(file: str | None, folders: object) -> str | None:
    """The folder of a package, or the file of a module."""
    listed = [str(one) for one in folders] if folders is not None else []  # type: ignore[attr-defined]
    found = listed[0] if listed else file
    return os.path.realpath(found) if found else None


def _theirs_is_there(place: str | None) -> str:
    if place is None:
        return (
            f"pytest-fal's package {_NAME!r} is not where it should be, in {_OURS}. Install "
            "pytest-fal again: pip install --force-reinstall pytest-fal"
        )
    owner = _distribution_of(place)
    if owner:
        whose = f"which the distribution {owner} has installed"
        how = f"Uninstall {owner}, or test with pytest-fal in an environment of its own."
    else:
        whose = "which stands before it on sys.path"
        how = (
            "Rename it; or keep its folder off sys.path: write `pytest` for `python -m pytest`, "
            "and --import-mode=importlib."
        )
    return (
        f"pytest-fal's package {_NAME!r}, in {_OURS}, is hidden by another of that name: {place}, "
        f"{whose}. {how}"
    )


def _ours_is_there(error: ImportError) -> str:
    """Something of the same name was meant; or a file of ours is missing, or was replaced."""
    owner = _distribution_of(_OURS)
    if owner:
        return (
            f"{error}: the distribution {owner} has installed a package {_NAME!r} over "
            f"pytest-fal's, in {_OURS}. Uninstall {owner}, then: "
            "pip install --force-reinstall pytest-fal"
        )
    return (
        f"{error}: {_NAME!r} is pytest-fal's package here, in {_OURS}. If you meant another, of "
        "yours: there can be one of a name in a process, so rename it. If not: "
        "pip install --force-reinstall pytest-fal"
    )


def _distribution_of(place: str) -> str | None:
    """The distribution that has installed a package; reads all metadata, so only when needed."""
    from importlib import metadata

    for name in metadata.packages_distributions().get(_NAME, []):
        if name.replace("_", "-").lower() == "pytest-fal":
            continue
        found = metadata.distribution(name)
        if os.path.realpath(str(found.locate_file(_NAME))) in (place, place.removesuffix(".py")):
            return f"{name} {found.version}"
    return None
