"""Fixtures of our own suite."""

from __future__ import annotations

import sys

import pytest

pytest_plugins = ["pytester", "cuda_machine"]


def pytest_make_parametrize_id(val, argname):
    """A test is not named after a whole file, which may differ from one worker to the next."""
    return argname if isinstance(val, (bytes, bytearray)) and len(val) > 16 else None


@pytest.fixture(autouse=True)
def torch_stays_out():
    """What else a test may not leave behind, the plugin itself watches (pyproject.toml)."""
    had = "torch" in sys.modules
    yield
    if not had and "torch" in sys.modules:
        pytest.fail("torch was imported into pytest's process", pytrace=False)
