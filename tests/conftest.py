"""Fixtures of our own suite."""

from __future__ import annotations

import os
import sys

import pytest

pytest_plugins = ["pytester", "cuda_machine"]


def pytest_make_parametrize_id(val, argname):
    """A test is not named after a whole file, which may differ from one worker to the next."""
    return argname if isinstance(val, (bytes, bytearray)) and len(val) > 16 else None


@pytest.fixture(autouse=True, scope="session")
def nobodys_configuration():
    """The SDK reads it as it is imported: here for the Pythons that tests are going to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAL_CONFIG_PATH", os.devnull)
        yield


@pytest.fixture(autouse=True)
def torch_stays_out():
    """What else a test may not leave behind, the plugin itself watches (pyproject.toml)."""
    had = "torch" in sys.modules
    yield
    if not had and "torch" in sys.modules:
        pytest.fail("torch was imported into pytest's process", pytrace=False)
