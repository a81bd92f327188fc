"""The fixtures. Each stands on :func:`fal_emulator`, which lives as long as its test."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import respx

    from emulator.account import Emulator
    from emulator.clock import Clock
    from emulator.fleets.gateway import Gateway
    from emulator.hosts.git import Git
    from emulator.hosts.origin import Origin
    from emulator.hosts.webhooks import WebhookReceiver
    from emulator.ledger import Ledger
    from emulator.network.faults import Faults
    from emulator.runners.runner import RunnerFactory
    from emulator.storage.buckets import Buckets
    from emulator.storage.cdn import CDN
    from emulator.storage.kv import KV
    from emulator.storage.node_uploader import Uploader
    from emulator.storage.volume import Volume

#: On a test's node: its emulator, and whether it has failed.
running = pytest.StashKey["Emulator"]()
failed = pytest.StashKey[bool]()


@pytest.fixture
def fal_emulator(request: pytest.FixtureRequest) -> Generator[Emulator, None, None]:
    """A fresh fal account around this test: everything else is a part of it."""
    from pytest_fal.rungs import skip_unless_fit
    from pytest_fal.session import emulator_of, settings_of

    settings = settings_of(request)
    skip_unless_fit(request.config, settings)
    emulator = emulator_of(request)
    emulator.start(request.node.name, settings)
    request.node.stash[running] = emulator
    yield emulator
    has_failed = request.node.stash.get(failed, False)
    emulator.stop(keep=has_failed)
    if emulator.faults.unused and not has_failed:  # a failing test's report has them
        from pytest_fal.report import warn_of_unused

        warn_of_unused(emulator)


@pytest.fixture
def fal_data(fal_emulator: Emulator) -> Volume:
    """``/data``: shared by all runners, kept until deleted, empty at first."""
    return fal_emulator.data


@pytest.fixture
def fal_tmp(fal_emulator: Emulator) -> Volume:
    """``/tmp`` as the test itself has it; each runner has another."""
    return fal_emulator.tmp


@pytest.fixture
def fal_cdn(fal_emulator: Emulator) -> CDN:
    """The files on the CDN."""
    return fal_emulator.cdn


@pytest.fixture
def fal_kv(fal_emulator: Emulator) -> KV:
    """The entries of the key-value store."""
    return fal_emulator.kv


@pytest.fixture
def fal_uploader(fal_emulator: Emulator) -> Uploader:
    """The node's uploader, with ``@pytest.mark.fal(local_uploader=True)``: hold it, crash it."""
    return fal_emulator.uploader


@pytest.fixture
def fal_clock(fal_emulator: Emulator) -> Clock:
    """The clock: stop it, move it."""
    return fal_emulator.clock


@pytest.fixture
def fal_http(fal_emulator: Emulator) -> respx.MockRouter:
    """respx's router: routes added to it answer every HTTP client."""
    return fal_emulator.http


@pytest.fixture
def fal_origin(fal_emulator: Emulator) -> Origin:
    """Everybody else's servers: files served at any URL."""
    return fal_emulator.origin


@pytest.fixture
def fal_faults(fal_emulator: Emulator) -> Faults:
    """What goes wrong on the network."""
    return fal_emulator.faults


@pytest.fixture
def fal_buckets(fal_emulator: Emulator) -> Buckets:
    """Buckets of S3, R2 and Google Cloud Storage, and the secrets for an app that writes there."""
    return fal_emulator.buckets


@pytest.fixture
def fal_ledger(fal_emulator: Emulator) -> Ledger:
    """What happened."""
    return fal_emulator.ledger


@pytest.fixture
def fal_gateway(fal_emulator: Emulator) -> Gateway:
    """``fal_gateway.deploy("owner/app", MyApp)``: a fleet of runners with a queue before it."""
    return fal_emulator.gateway


@pytest.fixture
def fal_webhooks(fal_emulator: Emulator) -> WebhookReceiver:
    """A receiver of webhooks: ``submit(..., webhook_url=fal_webhooks.url)``, ``.received``."""
    return fal_emulator.webhooks


@pytest.fixture
def fal_git(fal_emulator: Emulator) -> Git:
    """Everybody else's git repositories: ``fal_git.serve("https://...", {"model.py": "..."})``."""
    return fal_emulator.git


@pytest.fixture
def fal_runner(fal_emulator: Emulator) -> RunnerFactory:
    """``fal_runner(MyApp)`` boots the app on a new runner.

    Runners still alive at the end of the test are shut down, ``teardown`` included.
    """
    return fal_emulator.runner


@pytest.fixture
def fal_cuda_runner(request: pytest.FixtureRequest) -> Generator[RunnerFactory, None, None]:
    """As ``fal_runner``, on CUDA devices and in a process of its own; skips where there are none.

    What the test needs stands in its marker:
    ``@pytest.mark.fal_cuda(count=1, memory="24GB", capability=(8, 0))``. Each runner gets devices
    that no other has, while there are enough.
    """
    from pytest_fal import cuda

    with cuda.runners_of(request) as runners:
        yield runners.boot
