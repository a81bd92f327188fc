"""Google Cloud Storage's buckets: objects in memory, and the service account they belong to.

Bytes are held as a whole, as moto holds those of S3: an app's outputs, not its models.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

__all__ = [
    "GoogleAccount",
    "GoogleBucket",
    "GoogleBuckets",
    "GoogleObject",
    "crc32c_of",
    "md5_of",
]

HOST = "storage.googleapis.com"
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


class GoogleAccount:
    """The emulated service account; its key is made when first asked for, once a session."""

    email = "pytest-fal@emulated-project.iam.gserviceaccount.com"

    @property
    def info(self) -> dict[str, str]:
        """What stands in a service account's JSON file."""
        from cryptography.hazmat.primitives import serialization

        pem = _private_key().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return {
            "type": "service_account",
            "project_id": "emulated-project",
            "private_key_id": "emulated-key",
            "private_key": pem.decode(),
            "client_email": self.email,
            "client_id": "100000000000000000000",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": "https://oauth2.googleapis.com/token",
            "universe_domain": "googleapis.com",
        }

    def has_signed(self, signature: bytes, text: bytes) -> bool:
        """Whether a signature (RSA, SHA-256) is this account's."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        try:
            _private_key().public_key().verify(signature, text, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True


@functools.cache
def _private_key() -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def md5_of(data: bytes) -> str:
    """A content's MD5, in base64."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def crc32c_of(data: bytes) -> str | None:
    """Its CRC-32C, in base64; None where Google's package for it, its client's, is missing."""
    try:
        import google_crc32c
    except ImportError:
        return None
    checksum: Any = google_crc32c.Checksum  # has no types
    return base64.b64encode(checksum(data).digest()).decode()


@dataclass
class GoogleObject:
    """An object; ``resource`` has what its uploader said of it, by the JSON API's names."""

    bucket: str
    name: str
    data: bytes
    generation: int
    created: datetime
    resource: dict[str, Any] = field(default_factory=dict)
    public: bool = False

    @property
    def content_type(self) -> str:
        """As declared."""
        return str(self.resource.get("contentType") or "application/octet-stream")

    @property
    def md5(self) -> str:
        """Of the content, in base64."""
        return md5_of(self.data)

    @property
    def as_json(self) -> dict[str, Any]:
        """As the JSON API shows it."""
        created = f"{self.created:{_TIME}}"
        return {
            "kind": "storage#object",
            "storageClass": "STANDARD",
            **self.resource,
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": self.bucket,
            "contentType": self.content_type,
            "size": str(len(self.data)),
            "md5Hash": self.md5,
            "acl": [{"entity": "allUsers", "role": "READER"}] if self.public else [],
            "generation": str(self.generation),
            "metageneration": "1",
            "timeCreated": created,
            "updated": created,
            "etag": "CAE=",
        }


@dataclass
class GoogleBucket:
    """A bucket; *public*: everybody may read all of it."""

    name: str
    created: datetime
    public: bool = False
    resource: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, GoogleObject] = field(default_factory=dict)

    @property
    def as_json(self) -> dict[str, Any]:
        """As the JSON API shows it."""
        created = f"{self.created:{_TIME}}"
        return {
            "kind": "storage#bucket",
            "location": "US",
            "storageClass": "STANDARD",
            **self.resource,
            "id": self.name,
            "name": self.name,
            "timeCreated": created,
            "updated": created,
            "metageneration": "1",
            "etag": "CAE=",
        }


class GoogleBuckets:
    """The buckets of one account.

    Args:
        now: the clock.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._generation = 0
        self.buckets: dict[str, GoogleBucket] = {}

    def reset(self) -> None:
        """Forget everything."""
        self.buckets = {}

    def names(self) -> list[str]:
        """The names of all buckets."""
        return list(self.buckets)

    def create(self, name: str, public: bool = False) -> GoogleBucket:
        """Make a bucket; ``ValueError`` for a name that is refused, ``KeyError`` when it is taken.

        fal's own bucket, that of the fallback repository, is the CDN's.
        """
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"Invalid bucket name: '{name}'")
        if name in self.buckets or name == "falserverless":
            raise KeyError(name)
        made = self.buckets[name] = GoogleBucket(name, self._now(), public)
        return made

    def store(
        self, bucket: str, name: str, data: bytes, resource: dict[str, Any], public: bool = False
    ) -> GoogleObject:
        """Store an object, in place of the one with this name; KeyError without the bucket."""
        self._generation += 1
        # Google's are microseconds; two at one moment of a stopped clock differ too.
        generation = int(self._now().timestamp() * 1_000_000) + self._generation
        made = GoogleObject(bucket, name, data, generation, self._now(), resource, public)
        self.buckets[bucket].objects[name] = made
        return made

    # --- as a test uses them ---------------------------------------------------------------------

    def make(self, bucket: str, public: bool) -> None:
        """Make a bucket for a test."""
        try:
            self.create(bucket, public)
        except KeyError:
            raise EmulatorError(f"There is a bucket {bucket!r} of Google's already.") from None
        except ValueError as error:
            raise EmulatorError(f"Google does not create the bucket: {error}") from None

    def keys(self, bucket: str) -> list[str]:
        """The names of the objects in a bucket, sorted."""
        return sorted(self.buckets[bucket].objects)

    def get(self, bucket: str, key: str) -> bytes:
        """The bytes of an object."""
        return self.buckets[bucket].objects[key].data

    def put(self, bucket: str, key: str, data: bytes, content_type: str | None) -> None:
        """Store an object for a test."""
        resource = {"contentType": content_type} if content_type else {}
        self.store(bucket, key, bytes(data), resource)

    def url(self, bucket: str, key: str) -> str:
        """The plain URL of an object."""
        return f"https://{HOST}/{bucket}/{quote(key, safe='/~')}"
