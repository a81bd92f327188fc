"""pytest-xdist: one certificate authority, made by the controller, for all workers."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_fal.session import AUTHORITY

_pem = pytest.StashKey[bytes]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the authority to a worker; through its channel, never through a file."""
    stash = node.config.stash
    if _pem not in stash:
        from emulator.network.trust import Authority

        stash[_pem] = Authority.create().pem
    node.workerinput[AUTHORITY] = stash[_pem]
