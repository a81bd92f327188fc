"""Getting the right to mount, as early as it must be and as little as it can be.

It must be before any thread starts. Where another plugin starts one in Python, write
``-p pytest_fal.namespace`` into ``addopts``: such plugins are loaded before all others.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings

import pytest

__all__ = ["enter_early", "explain", "how", "pytest_addoption", "refusal_of"]

_refused = pytest.StashKey[str]()
# What came of entering a user namespace: None before it was tried, "" when it worked.
_outcome: str | None = None

_SWITCHED_OFF = (
    "/data and /tmp cannot be mounted: fal_user_namespace is off and this is not root. Set "
    "fal_user_namespace = true in the pytest configuration, or run the tests as root."
)


def pytest_addoption() -> None:
    """The first hook there is; only called for ``-p pytest_fal.namespace``."""
    if sys.platform == "linux":
        _enter()


def enter_early(config: pytest.Config) -> None:
    """As an ordinary user, enter a user namespace now; nothing is mounted yet.

    Root needs nothing, and pytest-xdist's workers inherit the controller's.
    """
    if _outcome is None and not config.getini("fal_user_namespace"):
        from emulator.storage import mounts

        if not mounts.has_mount_capability():
            explain(config, _SWITCHED_OFF)
        return
    _enter()
    if _outcome == "" and _starts_workers(config):
        from emulator.storage import mounts

        try:
            mounts.raise_ambient_capabilities()
        except OSError as error:
            explain(config, f"pytest-xdist's workers cannot be given the right to mount: {error}")
    elif _outcome:
        explain(config, _outcome)


def _enter() -> None:
    """Try it, once, if it is needed."""
    global _outcome
    from emulator.errors import NamespaceRefusedError, ThreadsRunningError
    from emulator.storage import mounts

    if _outcome is not None or mounts.has_mount_capability():
        return
    try:
        try:
            mounts.enter_user_namespace()
        except ThreadsRunningError:
            # Not threading.active_count(): pytest-xdist's workers start theirs below it.
            if len(sys._current_frames()) > 1:
                raise
            _continue_in_a_child()
            mounts.enter_user_namespace()
        _outcome = ""
    except NamespaceRefusedError as error:
        _outcome = str(error)


def _continue_in_a_child() -> None:
    """Go on in a child process, which has one thread; this one waits and ends as it ends.

    For the threads of native libraries only: numpy starts some when it is imported, and plugins
    such as pytest-randomly import it. Python's own threads would be missing in the child.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, which we mean
        child = os.fork()
    if child == 0:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child as well
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda received, _: os.kill(child, received))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):  # which nobody can handle
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def explain(config: pytest.Config, why: str) -> None:
    """Let the header and every fixture that is refused a mount say why."""
    from emulator.storage import mounts

    config.stash[_refused] = why
    mounts.explain_refusals(why)


def refusal_of(config: pytest.Config) -> str:
    """Why this process may not mount; empty: as far as is known it may."""
    return config.stash.get(_refused, "")


def how() -> str:
    """For pytest's header: by which right things are mounted."""
    if _outcome is not None:
        return "in a user namespace"
    return "as root" if os.geteuid() == 0 else "this user may mount"


def _starts_workers(config: pytest.Config) -> bool:
    """Whether pytest-xdist is going to start workers."""
    option = config.known_args_namespace
    return bool(getattr(option, "numprocesses", None) or getattr(option, "tx", None))
