"""Clients of boto3 as apps make them, closed at the end of the test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

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
