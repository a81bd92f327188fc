"""``--fal-strict-leaks``: a test that leaves something behind fails, and names what opened it.

A plugin of its own, which is only registered where the option, or the ini setting
``fal_strict_leaks``, is on. What is watched is a test from before the first fixture of its own, of
function scope, is set up until the last of them is torn down. Fixtures of a wider scope are set up
before that; one that is asked for later, by ``request.getfixturevalue``, is not counted either.

A test that fails or is skipped anyway is not looked at: its traceback keeps alive what it had open.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from pytest_fal import fixtures, openers, session
from pytest_fal.leftovers import Leak, Snapshot
from pytest_fal.openers import Recorder

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["ALLOWED", "NAME", "check_settings", "is_on"]

NAME = "fal_strict_leaks"
ALLOWED = "fal_leaks_allowed"
_VALUES = {"": False, "false": False, "true": True, "all": True}
_OURS = frozenset(name for name in vars(fixtures) if name.startswith("fal_"))

_before = pytest.StashKey[Snapshot]()
_session = pytest.StashKey[set[str]]()
_failed = pytest.StashKey[bool]()


def is_on(config: pytest.Config) -> bool:
    """Whether tests are to be watched.

    Raises:
        pytest.UsageError: the ini setting has a value that it cannot have.
    """
    value = str(config.getini(NAME)).strip().lower()
    if value not in _VALUES:
        raise pytest.UsageError(
            f"{NAME} = {value!r} in the configuration file: it is true (tests that use a fixture "
            f"of pytest-fal), all (every test) or false, for example {NAME} = true"
        )
    return bool(config.getoption(NAME)) or _VALUES[value]


def pytest_configure() -> None:
    """Record from now on who opens what."""
    # What starts mocks and frozen clocks can be followed in modules that are there.
    for name in ("unittest.mock", "freezegun.api"):
        importlib.import_module(name)
    openers.install()


def pytest_unconfigure() -> None:
    """Put back what was replaced for that."""
    openers.uninstall()


@pytest.fixture(autouse=True)
def _fal_strict_leaks(request: pytest.FixtureRequest) -> Generator[None, None, None]:
    """Fail a test that leaves something behind."""
    item = request.node
    everything = str(request.config.getini(NAME)).strip().lower() == "all"
    if everything or not _OURS.isdisjoint(item.fixturenames):
        _begin(item)
    yield
    before = item.stash.get(_before, None)
    if before is None:
        return
    del item.stash[_before]
    assert before.recorder is not None
    before.recorder.end()
    if not item.stash.get(_failed, False):
        leaks = _leaks(item, before)
        if leaks:
            pytest.fail(_message(leaks, str(item.config.rootpath)), pytrace=False)


def _begin(item: pytest.Item) -> None:
    """Watch a test from now on."""
    item.stash[_failed] = False
    item.stash[_session] = session.lives_on(item.config)
    folders = (tempfile.gettempdir(), "/data", os.path.expanduser("~/.fal"))
    recorder = Recorder(map(os.path.normpath, folders))
    item.stash[_before] = Snapshot.take(recorder)
    recorder.begin()


def _leaks(item: pytest.Item, before: Snapshot) -> list[Leak]:
    patterns = item.config.getini(ALLOWED)
    root = str(item.config.rootpath)

    def allowed(leak: Leak) -> bool:
        line = leak.describe(root) if patterns else ""
        return any(fnmatch.fnmatchcase(line, pattern) for pattern in patterns)

    # The session's wire, authority and mounts come with its first test; the server that forks
    # runners, and the clock's memory, with the first runner in a process.
    new = not session.lives_on(item.config) <= item.stash[_session]
    return before.leaks_since(new, allowed)


def _message(leaks: list[Leak], root: str) -> str:
    count = "1 thing" if len(leaks) == 1 else f"{len(leaks)} things"
    lines = [f"  {leak.describe(root)}" for leak in leaks]
    return "\n".join([f"{count} left behind by this test:", *lines])


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Do not count what a fixture of a wider scope opens, when a test asks for it late."""
    item = request._pyfuncitem
    if fixturedef.scope == "function":
        if fixturedef.argname == "fal_emulator" and _before not in item.stash:
            _begin(item)  # asked for by name, so it was not known before
        return (yield)
    before = item.stash.get(_before, None)
    if before is None or before.recorder is None:
        return (yield)
    then, made = Snapshot.take(), set(before.recorder.made)
    try:
        return (yield)
    finally:
        before.adopt(then, Snapshot.take())
        before.recorder.forget_made(made)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Take note of a test that has not passed."""
    report = yield
    if report.when != "teardown" and not report.passed:
        item.stash[_failed] = True
    return report


def check_settings(config: pytest.Config) -> None:
    """Register this plugin where it is wanted."""
    if sys.platform == "linux" and is_on(config):
        config.pluginmanager.register(sys.modules[__name__], "fal-leaks")
