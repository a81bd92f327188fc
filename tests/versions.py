"""Marks for tests of what the SDK does only from some version on."""

from __future__ import annotations

from importlib.metadata import version

import pytest


def since(first: str, what: str, package: str = "fal") -> pytest.MarkDecorator:
    """Skip below this version of fal, or of another package."""
    installed, wanted = (tuple(map(int, v.split(".")[:3])) for v in (version(package), first))
    reason = f"{package} {version(package)}: {what} only since {first}"
    return pytest.mark.skipif(installed < wanted, reason=reason)
