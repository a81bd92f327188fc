"""Clients of boto3 as apps make them, closed at the end of the test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from moto import __version__ as moto_version

#: What the oldest moto does not do.
newer_moto = pytest.mark.skipif(
    tuple(map(int, moto_version.split(".")[:2])) < (5, 1),
    reason=f"moto {moto_version} does not do it: only since 5.1",
)

_open: list[Any] = []


def client(version: str | None = "s3v4", style: str = "auto", **options: Any) -> Any:
    """A plain client for S3; *version* None: boto3's own choice."""
    import boto3
    from botocore.client import Config

    config = Config(signature_version=version, s3={"addressing_style": style})
    made = boto3.client("s3", config=config, **options)
    _open.append(made)
    return made


@pytest.fixture(autouse=True)
def closed_clients() -> Iterator[None]:
    """Close them, so that no connection is left behind."""
    yield
    while _open:
        _open.pop().close()


@pytest.fixture(autouse=True, scope="module")
def nobodys_settings() -> Iterator[None]:
    """A user's mock is outside of our emulation: boto3 would find what the user has at Amazon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield
