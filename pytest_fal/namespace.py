"""Getting the right to mount, as early as it must be and as little as it can be."""

from __future__ import annotations

import sys

import pytest

__all__ = ["describe", "enter_early"]

_refused = pytest.StashKey[str]()
_entered = pytest.StashKey[bool]()


def enter_early(config: pytest.Config) -> None:
    """As an ordinary user, enter a user namespace now; nothing is mounted yet.

    Root needs nothing, and pytest-xdist's workers inherit the controller's.
    """
    if not config.getini("fal_user_namespace"):
        return
    from emulator.errors import NamespaceRefusedError
    from emulator.storage import mounts

    if mounts.has_mount_capability():
        return
    try:
        mounts.enter_user_namespace()
        config.stash[_entered] = True
        if _starts_workers(config):
            mounts.raise_ambient_capabilities()
    except (NamespaceRefusedError, OSError) as error:
        config.stash[_refused] = str(error)


def describe(config: pytest.Config) -> str:
    """For pytest's header: the rung in force, or what refused it."""
    if sys.platform != "linux":
        return f"/data and /tmp cannot be mounted on {sys.platform}; run the tests on Linux"
    if _refused in config.stash:
        return config.stash[_refused]
    from emulator.storage import mounts

    if not mounts.has_mount_capability():
        if not config.getini("fal_user_namespace"):
            return (
                "/data and /tmp cannot be mounted: fal_user_namespace is off and this is not root"
            )
        return "/data and /tmp cannot be mounted: no CAP_SYS_ADMIN"
    how = "in a user namespace" if config.stash.get(_entered, False) else "as root"
    return f"/data and /tmp are real mounts in a private namespace ({how})"


def _starts_workers(config: pytest.Config) -> bool:
    """Whether pytest-xdist is going to start workers."""
    option = config.known_args_namespace
    return bool(getattr(option, "numprocesses", None) or getattr(option, "tx", None))
