"""What a webhook says, and how it is signed and verified [platform facts §6.4]: without network.

The message that is signed are four lines: request id, user id, time stamp (the values of their
headers) and the hex SHA-256 of the raw body.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    import httpx

__all__ = ["HEADERS", "LEEWAY_SECONDS", "Keys", "WebhookNotVerifiedError", "body_of", "verify"]

#: Request id, user id, time stamp (Unix seconds), signature (hex).
HEADERS = (
    "X-Fal-Webhook-Request-Id",
    "X-Fal-Webhook-User-Id",
    "X-Fal-Webhook-Timestamp",
    "X-Fal-Webhook-Signature",
)
#: How far a time stamp may be off, in either direction.
LEEWAY_SECONDS = 300

#: As fal's page shows it.
_NO_JSON = (
    "Response payload is not JSON serializable. Either return a JSON serializable object or use "
    "the queue endpoint to retrieve the response."
)


class WebhookNotVerifiedError(EmulatorError):
    """A webhook that a receiver must not believe; the message says why."""


class Keys:
    """The platform's signing keys. They outlive a test: receivers may keep them for a day."""

    def __init__(self) -> None:
        self._first = Ed25519PrivateKey.generate()
        self._current = self._first
        self._listed = [self._first]

    @property
    def public(self) -> list[Ed25519PublicKey]:
        """The keys that are listed; a signature by any of them counts."""
        return [key.public_key() for key in self._listed]

    def rotate(self, drop_old: bool = False) -> None:
        """Sign with a new key from now on.

        Args:
            drop_old: list the old ones no more.
        """
        self._current = Ed25519PrivateKey.generate()
        self._listed = [self._current] if drop_old else [self._current, *self._listed]

    def reset(self) -> None:
        """Sign with the first key again, the only one listed."""
        self._current = self._first
        self._listed = [self._first]

    def jwks(self, *, padded: bool) -> dict[str, Any]:
        """The list of keys as it is published.

        Args:
            padded: whether ``x`` ends with the ``=`` that RFC 7515 leaves out.
        """
        return {"keys": [_jwk(key, padded) for key in self.public]}

    def headers(self, request_id: str, user_id: str, at: datetime, body: bytes) -> dict[str, str]:
        """The headers of a webhook, signed."""
        return signed_headers(self._current, request_id, user_id, at, body)


def signed_headers(
    key: Ed25519PrivateKey, request_id: str, user_id: str, at: datetime, body: bytes
) -> dict[str, str]:
    """The headers of a webhook, signed with a key."""
    values = [request_id, user_id, str(int(at.timestamp()))]
    signature = key.sign(_message(values, body)).hex()
    return dict(zip(HEADERS, (*values, signature), strict=True))


def body_of(request_id: str, gateway_request_id: str, response: httpx.Response) -> bytes:
    """The body of a webhook.

    ``error`` is null where all went well, and members are sorted, as in a delivery that somebody
    has published; fal's page leaves ``error`` out there.

    Args:
        request_id: of the queue.
        gateway_request_id: of the last attempt.
        response: the app's, or the gateway's own.
    """
    message: dict[str, Any] = {
        "request_id": request_id,
        "gateway_request_id": gateway_request_id,
        "status": "OK" if response.is_success else "ERROR",
        "error": None if response.is_success else f"Invalid status code: {response.status_code}",
    }
    try:
        message["payload"] = json.loads(response.content, parse_constant=_refuse)
    except (ValueError, RecursionError):
        message["payload"] = None
        message["payload_error"] = _NO_JSON
    return json.dumps(message, sort_keys=True).encode()


def verify(
    headers: Mapping[str, str], body: bytes, keys: Iterable[Ed25519PublicKey], now: datetime
) -> None:
    """Do what a receiver has to.

    Args:
        headers: in whatever case.
        body: as it came, not parsed and serialised again.
        keys: those that the platform lists.
        now: the receiver's time.

    Raises:
        WebhookNotVerifiedError: it is not to be believed.
    """
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in HEADERS if not given.get(name.lower())]
    if missing:
        raise WebhookNotVerifiedError(f"The webhook has no header {' and no '.join(missing)}.")
    *values, signature = (given[name.lower()] for name in HEADERS)
    _check_time(values[2], now)
    if not _is_signed(_message(values, body), _bytes_of(signature), keys):
        raise WebhookNotVerifiedError(
            "No listed key matches the signature: the body or one of the first three headers is "
            "not what was signed, or somebody else has signed it. Verify the raw bytes of the body "
            "as they came; parsed and serialised again they are others."
        )


def _check_time(stamp: str, now: datetime) -> None:
    if not (stamp.isascii() and stamp.isdigit()):
        raise WebhookNotVerifiedError(f"{HEADERS[2]} is {stamp!r}, no Unix seconds.")
    off = int(stamp) - int(now.timestamp())
    if abs(off) > LEEWAY_SECONDS:
        raise WebhookNotVerifiedError(
            f"{HEADERS[2]} is {abs(off)} s {'ahead' if off > 0 else 'old'}; more than "
            f"{LEEWAY_SECONDS} s is to be refused, as a replay."
        )


def _bytes_of(signature: str) -> bytes:
    try:
        return bytes.fromhex(signature)
    except ValueError:
        raise WebhookNotVerifiedError(f"{HEADERS[3]} is no hex: {signature!r}.") from None


def _is_signed(message: bytes, signature: bytes, keys: Iterable[Ed25519PublicKey]) -> bool:
    for key in keys:
        try:
            key.verify(signature, message)
        except InvalidSignature:
            continue
        return True
    return False


def _message(values: Iterable[str], body: bytes) -> bytes:
    return "\n".join((*values, hashlib.sha256(body).hexdigest())).encode()


def _jwk(key: Ed25519PublicKey, padded: bool) -> dict[str, str]:
    raw = key.public_bytes_raw()
    x = base64.urlsafe_b64encode(raw).decode()
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "alg": "EdDSA",
        "use": "sig",
        "kid": hashlib.sha256(raw).hexdigest()[:16],
        "x": x if padded else x.rstrip("="),
    }


def _refuse(constant: str) -> NoReturn:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(constant)
