"""Fixtures of our own suite: every test is watched for what it leaves behind."""

from __future__ import annotations

import os
import sys

import pytest

pytest_plugins = ["pytester", "cuda_machine"]


def pytest_make_parametrize_id(val, argname):
    """A test is not named after a whole file, which may differ from one worker to the next."""
    return argname if isinstance(val, (bytes, bytearray)) and len(val) > 16 else None


@pytest.fixture(autouse=True)
def nobodys_configuration(request):
    """The SDK reads it as it is imported: here for a pytest that the test is going to start."""
    with pytest.MonkeyPatch.context() as patch:
        if "pytester" in request.fixturenames:
            patch.setenv("FAL_CONFIG_PATH", os.devnull)
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind(request):
    """Fail a test that leaves a thread, descriptor, mount, variable or patch behind, naming it."""
    if sys.platform != "linux":
        yield
        return
    from leaks import Snapshot

    from pytest_fal import session

    had = session.lives_on(request.config)
    before = Snapshot.take()
    yield
    # The session's own wire, certificate and mounts come with its first test; the server that forks
    # runners, and the clock's memory, with the first runner in a process.
    new = session.lives_on(request.config) - had
    expected = {"emulator": ("descriptor", "mounted"), "fork": ("descriptor", "process")}
    kinds = tuple(kind for one in new for kind in expected[one.split()[0]])
    leaks = before.leaks_since(expected=kinds)
    if leaks:
        pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)
