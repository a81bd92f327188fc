"""Any sequence of steps, beside a small model of what should be.

Each run here is short and always the same; CONTRIBUTING.md has the command for a long one.
"""

from __future__ import annotations

import gc
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("machines")

from machines.access_machine import AccessControl  # noqa: E402
from machines.cdn_machine import CDNLifecycle  # noqa: E402
from machines.clock_machine import ClockAndFiles  # noqa: E402
from machines.data_machine import DataBetweenRunners  # noqa: E402
from machines.download_machine import DownloadCache  # noqa: E402
from machines.kv_machine import KeysAndValues  # noqa: E402
from machines.machine import run  # noqa: E402
from machines.uploader_machine import NodeUploads  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from emulator.account import Emulator
    from emulator.clock import Clock
    from emulator.storage.cdn import CDN

HOUR = timedelta(hours=1)


def test_files_on_the_cdn(fal_emulator: Emulator) -> None:
    run(CDNLifecycle, fal_emulator, examples=15)


def test_who_may_read(fal_emulator: Emulator) -> None:
    run(AccessControl, fal_emulator, examples=20)


# The SDK leaves a socket to the garbage collector when a body without a length is reset.
@pytest.mark.filterwarnings("ignore:unclosed <(ssl|socket):ResourceWarning")
def test_the_cache_of_downloads(fal_emulator: Emulator) -> None:
    run(DownloadCache, fal_emulator, examples=20)
    gc.collect()  # here, and not in another test, where it would be an error


def test_the_clock_and_the_times_of_files(fal_emulator: Emulator) -> None:
    run(ClockAndFiles, fal_emulator, examples=10)


def test_the_key_value_store(fal_emulator: Emulator) -> None:
    run(KeysAndValues, fal_emulator, examples=15)


def test_data_between_runners(tmp_path: Path) -> None:
    run(DataBetweenRunners, tmp_path, examples=30)


def test_files_handed_to_the_node(fal_emulator: Emulator) -> None:
    run(NodeUploads, fal_emulator, examples=20)


# --- what the machines have found -----------------------------------------------------------------


def test_what_was_over_when_the_clock_was_ahead_is_over(fal_cdn: CDN, fal_clock: Clock) -> None:
    fal_clock.freeze()
    url = fal_cdn.put(b"x", expires_in=HOUR)
    start = fal_clock.now()
    fal_clock.advance(HOUR)
    fal_clock.move_to(start)
    assert fal_cdn.expired(url)


@pytest.mark.fal(expiry_lag=timedelta(minutes=1))
def test_expiring_a_file_again_does_not_lengthen_its_life(fal_cdn: CDN, fal_clock: Clock) -> None:
    fal_clock.freeze()
    url = fal_cdn.put(b"x")
    fal_cdn.expire(url)
    fal_clock.advance(seconds=30)
    fal_cdn.expire(url)
    fal_clock.advance(seconds=30)
    assert fal_cdn.expired(url)
