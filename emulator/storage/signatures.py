"""Signed requests as S3 and Google Storage define them: canonical forms and signatures, pure.

Sources: AWS's "Signature Version 4" and "Signing and authenticating REST requests" (version 2),
Google's "V4 signing process".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote, unquote, unquote_to_bytes

__all__ = [
    "canonical_path",
    "canonical_request",
    "is_subresource",
    "pairs_of",
    "policy_signature_v2",
    "signature_v2",
    "signature_v4",
    "string_to_sign_v4",
]

#: Parameters that a version 2 signature covers; the others it ignores.
_SUBRESOURCES = re.compile(
    "accelerate|acl|analytics|cors|delete|inventory|legal-hold|lifecycle|location|logging|metrics|"
    "notification|object-lock|partNumber|policy|replication|requestPayment|response-[a-z-]+|"
    "restore|retention|select|select-type|storageClass|tagging|torrent|uploadId|uploads|versionId|"
    "versioning|versions|website"
)


def pairs_of(query: str) -> list[tuple[str, str]]:
    """The parameters of a query, decoded; a plus sign is itself, as in a signed query."""
    parts = [part.partition("=") for part in query.split("&") if part]
    return [(unquote(name), unquote(value)) for name, _, value in parts]


def is_subresource(name: str) -> bool:
    """Whether a parameter stands for something else than the object, or the listing, itself."""
    return _SUBRESOURCES.fullmatch(name) is not None


def canonical_path(path: str) -> str:
    """A path as it is signed: everything but unreserved characters and slashes is escaped."""
    return quote(unquote_to_bytes(path))


def canonical_request(
    method: str,
    path: str,
    pairs: Iterable[tuple[str, str]],
    headers: Callable[[str], str],
    signed: str,
    payload: str,
) -> str:
    """What version 4 calculates the hash of.

    Args:
        method: ``"GET"`` and so on.
        path: of the URL.
        pairs: the parameters, without the signature itself.
        headers: gives the value of a header, by its name in lower case.
        signed: the names of the signed headers, separated by semicolons.
        payload: the hash of the body, or what stands for it.
    """
    encoded = sorted((quote(n, safe=""), quote(v, safe="")) for n, v in pairs)
    lines = [f"{name}:{re.sub(r' +', ' ', headers(name).strip())}" for name in signed.split(";")]
    query = "&".join(f"{name}={value}" for name, value in encoded)
    return "\n".join([method, canonical_path(path), query, *lines, "", signed, payload])


def string_to_sign_v4(algorithm: str, date: str, scope: str, request: str) -> str:
    """What version 4 signs: *date* as ``20260102T030405Z``, *scope* without the key's id."""
    digest = hashlib.sha256(request.encode()).hexdigest()
    return "\n".join([algorithm, date, scope, digest])


def signature_v4(secret: str, scope: str, text: str) -> str:
    """Sign with the key of a scope, ``20260102/us-east-1/s3/aws4_request``; hexadecimal.

    The text is a string to sign, or a policy in base64.
    """
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def signature_v2(
    secret: str,
    method: str,
    resource: str,
    pairs: Iterable[tuple[str, str]],
    headers: Iterable[tuple[str, str]],
    date: str,
) -> str:
    """The older signature of a request, in base64.

    Args:
        secret: of the key.
        method: ``"GET"`` and so on.
        resource: ``/bucket/key``, wherever the bucket stands in the URL.
        pairs: the parameters.
        headers: all of them, with names in lower case.
        date: the ``Date``; for a presigned URL its ``Expires``.
    """
    given = dict(headers)
    amazon = sorted(f"{n}:{v.strip()}\n" for n, v in given.items() if n.startswith("x-amz-"))
    covered = sorted((n, v) for n, v in pairs if _SUBRESOURCES.fullmatch(n))
    query = "&".join(f"{n}={v}" if v else n for n, v in covered)
    lines = [method, given.get("content-md5", ""), given.get("content-type", ""), date]
    path = canonical_path(resource) + (f"?{query}" if query else "")
    return policy_signature_v2(secret, "\n".join(lines) + "\n" + "".join(amazon) + path)


def policy_signature_v2(secret: str, text: str) -> str:
    """The older signature of a text, such as a policy in base64; in base64."""
    return base64.b64encode(hmac.digest(secret.encode(), text.encode(), "sha1")).decode()
