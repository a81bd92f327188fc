"""Which rung of the ladder the run is on: ``fal_filesystem``, ``--fal-filesystem``, the header."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_fal import namespace

if TYPE_CHECKING:
    from emulator.settings import Settings
    from emulator.storage.ladder import Choice

__all__ = ["add_options", "check", "describe", "skip_unless_fit", "wanted"]

_NAMES = ("auto", "namespace", "directory", "rewrite")
_choice = pytest.StashKey["Choice"]()
_SHORT = {
    "namespace": "/data and /tmp are real mounts in a private namespace",
    "directory": "/data is a real directory, another one for each test, and Python's calls are "
    "rewritten for /tmp",
    "rewrite": "Python's calls are rewritten for /data and /tmp",
}


def add_options(parser: pytest.Parser) -> None:
    """The option and the ini setting."""
    explained = (
        "rung for /data and /tmp: namespace (real mounts), directory (a real /data for root in a "
        "disposable container), rewrite (Python's path calls), or auto, the best there is"
    )
    group = parser.getgroup("fal")
    group.addoption("--fal-filesystem", choices=_NAMES, default=None, help=explained)
    parser.addini("fal_filesystem", explained, default="auto")


def wanted(config: pytest.Config) -> str:
    """The rung that the run demands, or ``"auto"``.

    Raises:
        pytest.UsageError: it is none.
    """
    option = config.getoption("--fal-filesystem") or config.getini("fal_filesystem")
    if option not in _NAMES:
        raise pytest.UsageError(
            f"fal_filesystem = {option}: there is no such rung. Write one of {', '.join(_NAMES)}."
        )
    return str(option)


def check(config: pytest.Config) -> None:
    """Refuse to run at all where a rung is demanded and cannot be had.

    Raises:
        pytest.UsageError: says why not.
    """
    if wanted(config) != "auto":
        from emulator.errors import EmulatorError

        try:
            _choose(config)
        except EmulatorError as error:
            raise pytest.UsageError(f"fal_filesystem = {wanted(config)}: {error}") from None


def describe(config: pytest.Config) -> list[str]:
    """For pytest's header: the rung, and a line for each better one on why it is not that."""
    choice = _choose(config)
    how = namespace.how() if choice.rung == "namespace" else f"rung {choice.rung!r}"
    demanded = "; as demanded" if choice.demanded else ""
    lines = [f"fal: {_SHORT[choice.rung]} ({how}{demanded})"]
    lines += [f"fal: not {rung!r}: {reason}" for rung, reason in choice.refusals]
    return lines


def skip_unless_fit(config: pytest.Config, settings: Settings) -> None:
    """Skip a test whose marker needs another rung than there is."""
    rung = _choose(config).rung
    if settings.filesystem not in ("auto", rung):
        needed = f"filesystem={settings.filesystem!r}"
    elif rung != "namespace" and settings.needs_mounts:
        needed = f"real mounts for {', '.join(settings.needs_mounts)}"
    else:
        return
    pytest.skip(f"needs {needed}, and this run is on the rung {rung!r}")


def _choose(config: pytest.Config) -> Choice:
    from emulator.storage import ladder

    if _choice not in config.stash:
        config.stash[_choice] = ladder.choose(wanted(config))
    return config.stash[_choice]
