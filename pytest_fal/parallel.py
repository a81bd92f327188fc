"""pytest-xdist: one certificate authority for all workers, and one reason if they may not mount."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_fal import namespace
from pytest_fal.session import AUTHORITY

_pem = pytest.StashKey[bytes]()
_REFUSED = "fal_refused"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the authority to a worker; through its channel, never through a file."""
    stash = node.config.stash
    if _pem not in stash:
        from emulator.network.trust import Authority

        stash[_pem] = Authority.create().pem
    node.workerinput[AUTHORITY] = stash[_pem]
    node.workerinput[_REFUSED] = namespace.refusal_of(node.config)


def pytest_configure(config: pytest.Config) -> None:
    """On a worker: it has threads from the start, so only the controller knows the real reason."""
    refused = getattr(config, "workerinput", {}).get(_REFUSED)
    if refused:
        namespace.explain(config, refused)
