"""Presigned POSTs and URLs of S3 as boto3 makes them, without boto3; pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

from emulator.storage import signatures

__all__ = ["presigned_post", "presigned_url"]

_ALGORITHM = "AWS4-HMAC-SHA256"


def presigned_post(
    url: str,
    bucket: str,
    key: str,
    conditions: Sequence[Any],
    credentials: tuple[str, str],
    now: datetime,
    expires: datetime,
    region: str = "us-east-1",
) -> dict[str, Any]:
    """What ``generate_presigned_post`` returns: ``{"url": ..., "fields": {...}}``.

    Args:
        url: the bucket's root.
        bucket: its name.
        key: the object's; with ``${filename}`` at its end it is a condition for the beginning.
        conditions: further ones.
        credentials: id and secret of a key.
        now: the time of the signature.
        expires: when the policy does.
        region: that is signed.
    """
    date = f"{now:%Y%m%dT%H%M%SZ}"
    scope = f"{now:%Y%m%d}/{region}/s3/aws4_request"
    fields = {
        "key": key,
        "x-amz-algorithm": _ALGORITHM,
        "x-amz-credential": f"{credentials[0]}/{scope}",
        "x-amz-date": date,
    }
    beginning = key.removesuffix("${filename}")
    own = ["starts-with", "$key", beginning] if beginning != key else {"key": key}
    signed = [{name: fields[name]} for name in fields if name != "key"]
    document = {
        "expiration": f"{expires:%Y-%m-%dT%H:%M:%SZ}",
        "conditions": [*conditions, {"bucket": bucket}, own, *signed],
    }
    policy = base64.b64encode(json.dumps(document).encode()).decode()
    signature = signatures.signature_v4(credentials[1], scope, policy)
    return {"url": url, "fields": {**fields, "policy": policy, "x-amz-signature": signature}}


def presigned_url(
    url: str,
    credentials: tuple[str, str],
    now: datetime,
    seconds: int,
    region: str = "us-east-1",
    method: str = "GET",
) -> str:
    """A URL of an object, without a query, made readable for so many seconds."""
    scope = f"{now:%Y%m%d}/{region}/s3/aws4_request"
    date = f"{now:%Y%m%dT%H%M%SZ}"
    pairs = [
        ("X-Amz-Algorithm", _ALGORITHM),
        ("X-Amz-Credential", f"{credentials[0]}/{scope}"),
        ("X-Amz-Date", date),
        ("X-Amz-Expires", str(seconds)),
        ("X-Amz-SignedHeaders", "host"),
    ]
    parts = urlsplit(url)
    request = signatures.canonical_request(
        method, parts.path, pairs, lambda _: parts.netloc, "host", "UNSIGNED-PAYLOAD"
    )
    text = signatures.string_to_sign_v4(_ALGORITHM, date, scope, request)
    pairs.append(("X-Amz-Signature", signatures.signature_v4(credentials[1], scope, text)))
    return f"{url}?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs)
