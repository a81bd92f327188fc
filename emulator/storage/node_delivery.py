"""The way of a file from the node to where it belongs: one attempt, and why it failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

from emulator.network.router import LetThrough
from emulator.storage.upload_policy import what_s3_said
from emulator.storage.uploads import UploadError

if TYPE_CHECKING:
    from emulator.storage.cdn import CDN
    from emulator.storage.node_upload import NodeUpload
    from emulator.storage.objects import ObjectStore

__all__ = ["to_bucket", "to_cdn"]


def to_cdn(upload: NodeUpload, store: ObjectStore, cdn: CDN, notes: list[str]) -> str | None:
    """Store the file on the CDN; None when that went well.

    Args:
        notes: is told what is wrong with its content.
    """
    assert upload.on_cdn is not None
    try:
        cdn.receive(upload.on_cdn, store.read(upload.key), notes)
    except UploadError as error:
        return str(error)
    return None


def to_bucket(
    upload: NodeUpload, store: ObjectStore, send: Callable[[httpx.Request, str], httpx.Response]
) -> str | None:
    """Post the file to the caller's bucket [§1.13]; None when that went well."""
    policy, size = upload.form.policy, upload.size
    assert policy is not None
    assert size is not None
    try:
        content = store.read(upload.key)
        request = policy.request(upload.file_name, upload.content_type, content, size)
        response = send(request, "node")
        response.read()
        return what_s3_said(response)
    except LetThrough:
        return "the emulated node does not reach the real network"
    except Exception as error:  # a fault's, or whatever a route of the test's raised
        return f"{type(error).__name__}: {error}"
