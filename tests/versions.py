"""Marks for tests of what the SDK does only from some version on."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import fal_client.client
import pytest


def since(first: str, what: str, package: str = "fal") -> pytest.MarkDecorator:
    """Skip below this version of fal, or of another package."""
    installed, wanted = (tuple(map(int, v.split(".")[:3])) for v in (version(package), first))
    reason = f"{package} {version(package)}: {what} only since {first}"
    return pytest.mark.skipif(installed < wanted, reason=reason)


def with_client(code: str, what: str) -> pytest.MarkDecorator:
    """Skip where fal_client has not this text in its code."""
    reason = f"fal-client {version('fal-client')}: {what}"
    return pytest.mark.skipif(code not in inspect.getsource(fal_client.client), reason=reason)


needs_method = pytest.mark.skipif(
    "method" not in inspect.signature(fal_client.SyncClient.run).parameters,
    reason=f"fal-client {version('fal-client')}: run() has no method",
)
needs_backup = with_client("queue.falrun.com", "there is no backup domain")
needs_deprecation = with_client("`cdn` upload repository is deprecated", "`cdn` is a repository")
