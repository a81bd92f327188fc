"""The bytes behind the fake CDN: objects in moto's S3, in a bucket that nobody else can see.

The only module that touches moto's models, and it does so without boto3: backend objects cost
microseconds where a client's request costs 1.5 ms. Seen with moto 5.0.20 and 5.2.5.

The bucket belongs to a private ``S3Backend`` that is registered nowhere, and its keys are of a
class that moto does not track. So an app's own ``mock_aws()`` neither sees nor wipes the CDN, and
resetting the CDN leaves the app's buckets alone. Where the bytes themselves are kept is decided
here and done in :mod:`emulator.storage.contents`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from emulator.errors import EmulatorError
from emulator.reliance import changed, require
from emulator.storage.contents import MEBIBYTE, Content, InMemory, SpillDirectory, slices

__all__ = ["ObjectStore", "StoredObject"]

#: An object above this goes to the spill directory.
MEMORY_PER_OBJECT = 16 * MEBIBYTE
#: Once this much is in memory, only objects up to ``ALWAYS_IN_MEMORY`` follow: the 10 MiB parts
#: of a large multipart upload must not add up to the whole of it.
MEMORY_IN_ALL = 128 * MEBIBYTE
ALWAYS_IN_MEMORY = 64 * 1024

_BUCKET = "pytest-fal cdn"  # a blank is not allowed in a real name: no app's bucket can collide
_REGION = "us-east-1"
_ACCOUNT = "000000000000"
_METADATA_PREFIX = "x-amz-meta-"


@dataclass(frozen=True)
class StoredObject:
    """What is known of an object without reading it; ``size`` in bytes, ``created`` in UTC."""

    key: str
    size: int
    content_type: str
    metadata: dict[str, str]
    created: datetime


class ObjectStore:
    """Objects by key; every method may be called from any thread.

    ``spill_directory`` holds what is too large for memory (default: the temporary directory as
    it is now); ``now`` gives the time of creation, aware, from whichever clock is in force.
    """

    def __init__(
        self,
        spill_directory: str | os.PathLike[str] | None = None,
        *,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._bucket = _PrivateBucket()
        self._directory = SpillDirectory(spill_directory or tempfile.gettempdir())
        self._now = now or _utc_now
        self._lock = threading.RLock()
        self._generation = 0
        self._closed = False

    def put(
        self,
        key: str,
        chunks: Iterable[bytes],
        *,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store the chunks as one object, in place of the one that had this key.

        Whoever is reading the old object goes on reading the old one. When ``chunks`` raises,
        nothing changes and the error goes on. Raises ``ValueError`` for a metadata name that is
        not lower case (S3 would change it), ``EmulatorError`` when the store was reset or closed
        while the chunks were coming in.
        """
        attributes = _attributes(content_type, metadata)
        generation = self._generation
        return self._store(key, self._write(chunks), attributes, generation)

    def join(
        self,
        key: str,
        part_keys: Sequence[str],
        *,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store the parts, one after the other, as one object and delete them.

        Raises ``KeyError`` naming the first part that is not there; nothing changes then.
        """
        attributes = _attributes(content_type, metadata)
        generation = self._generation
        with self._lock:
            parts = [self._bucket.find(part_key).content for part_key in part_keys]
        content = self._write(itertools.chain.from_iterable(map(slices, parts)))
        with self._lock:
            stored = self._store(key, content, attributes, generation)
            for part_key in part_keys:
                if part_key != key:
                    self._bucket.remove(part_key)
        return stored

    def read(
        self, key: str, start: int = 0, end: int | None = None, chunk_size: int = MEBIBYTE
    ) -> Iterator[bytes]:
        """The bytes from ``start`` to before ``end``, as they are now.

        Deleting or replacing the key does not disturb a reader. Raises ``KeyError`` at once when
        there is no such object; an ``end`` behind the last byte means the last byte.
        """
        if start < 0 or (end is not None and end < 0) or chunk_size < 1:
            raise ValueError(
                f"Cannot read {start=}, {end=}, {chunk_size=}: offsets are counted from the "
                "beginning of the object, and a chunk has one byte or more."
            )
        with self._lock:
            content = self._bucket.find(key).content
        return slices(content, start, end, chunk_size)

    def head(self, key: str) -> StoredObject:
        """What is known of the object; ``KeyError`` when there is none."""
        with self._lock:
            return self._bucket.head(key)

    def etag(self, key: str) -> str:
        """The MD5 of the content in hexadecimal and in quotes, computed when first asked for."""
        with self._lock:
            found = self._bucket.find(key)
        with found.lock:
            if found._etag is None:
                digest = hashlib.md5(usedforsecurity=False)
                for chunk in slices(found.content):
                    digest.update(chunk)
                found._etag = digest.hexdigest()
        return str(found.etag)

    def set_metadata(self, key: str, metadata: Mapping[str, str]) -> None:
        """Replace the metadata as a whole; content type and time of creation stay."""
        with self._lock:
            found = self._bucket.find(key)
            attributes = _attributes(found.metadata["content-type"], metadata)
            found.set_metadata(attributes, replace=True)

    def delete(self, key: str) -> None:
        """Delete the object; as in S3, it is no error when there is none."""
        with self._lock:
            self._bucket.remove(key)

    def keys(self) -> list[str]:
        """All keys, the object created first before the others."""
        with self._lock:
            return list(self._bucket.keys)

    def __contains__(self, key: object) -> bool:
        """Whether there is an object with this key."""
        with self._lock:
            return key in self._bucket.keys

    @property
    def total_size(self) -> int:
        """Bytes in all objects together."""
        with self._lock:
            return sum(found.size for found in self._bucket.all())

    def reset(self) -> None:
        """Forget everything; memory and descriptors are free at once, or with their last reader.

        An upload that is still coming in ends with an ``EmulatorError`` and is not stored.
        """
        with self._lock:
            self._generation += 1
            self._bucket.clear()

    def close(self) -> None:
        """Forget everything and let go of the spill directory; storing fails from now on."""
        with self._lock:
            self._closed = True
            self.reset()
            self._directory.close()

    def _write(self, chunks: Iterable[bytes]) -> Content:
        self._check_open()
        limit = ALWAYS_IN_MEMORY
        memory = io.BytesIO()
        rest = iter(chunks)
        for chunk in rest:
            size = memory.tell() + len(chunk)
            if size > limit:
                limit = self._memory_left()
            if size > limit:
                return self._spill(itertools.chain((memory.getvalue(), chunk), rest))
            memory.write(chunk)
        return InMemory(memory.getvalue())

    def _memory_left(self) -> int:
        with self._lock:
            in_use: int = sum(key.content.memory for key in self._bucket.all())
        return max(ALWAYS_IN_MEMORY, min(MEMORY_PER_OBJECT, MEMORY_IN_ALL - in_use))

    def _spill(self, chunks: Iterable[bytes]) -> Content:
        spilled = self._directory.open()
        try:
            for chunk in chunks:
                spilled.append(chunk)
        except BaseException:
            spilled.close()
            raise
        return spilled

    def _store(
        self, key: str, content: Content, attributes: dict[str, str], generation: int
    ) -> StoredObject:
        with self._lock:
            self._check_open()
            if generation != self._generation:
                raise EmulatorError(
                    f"Object {key!r} was not stored: the emulator was reset while its bytes were "
                    "coming in, so they belong to a test that is over. Wait for the upload, or "
                    "stop what sends it, before that test ends."
                )
            return self._bucket.replace(key, content, attributes, self._now())

    def _check_open(self) -> None:
        if self._closed:
            raise EmulatorError(
                "Nothing can be stored any more: the object store is closed. Start the emulator, "
                "or make a new ObjectStore, before uploading."
            )


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def _attributes(content_type: str, metadata: Mapping[str, str] | None) -> dict[str, str]:
    attributes = {"content-type": content_type}
    for name, value in (metadata or {}).items():
        if name != name.lower():
            raise ValueError(
                f"The metadata name {name!r} would not come back as it is: S3 keeps names in "
                f"lower case. Write {name.lower()!r}."
            )
        attributes[_METADATA_PREFIX + name] = value
    return attributes


# -- moto -------------------------------------------------------------------------------------


class _PrivateBucket:
    """A bucket of an ``S3Backend`` that is registered nowhere. Its user holds the lock."""

    def __init__(self) -> None:
        try:
            backend_class, bucket_class, key_class, names_in_use = _moto_classes()
            self._backend = backend_class(_REGION, _ACCOUNT)
            bucket = bucket_class(_BUCKET, _ACCOUNT, _REGION)
            # Making a key from nothing takes 11 us and leaves three tracked ACL objects behind.
            self._template = key_class("", b"", account_id=_ACCOUNT, region_name=_REGION)
            self.keys = bucket.keys
        except (ImportError, AttributeError, TypeError) as error:
            raise changed("moto", str(error)) from error
        self._backend.buckets[_BUCKET] = bucket
        # To others the name would promise a bucket that they cannot find.
        names_in_use.pop(_BUCKET, None)

    def find(self, name: str) -> Any:
        found = self._backend.get_object(_BUCKET, name)
        if found is None:
            raise KeyError(name)
        return found

    def head(self, name: str) -> StoredObject:
        found = self.find(name)
        return StoredObject(
            key=name,
            size=found.size,
            content_type=found.metadata["content-type"],
            metadata={
                attribute[len(_METADATA_PREFIX) :]: value
                for attribute, value in found.metadata.items()
                if attribute.startswith(_METADATA_PREFIX)
            },
            created=found.last_modified.replace(tzinfo=timezone.utc),
        )

    def replace(
        self, name: str, content: Content, attributes: dict[str, str], created: datetime
    ) -> StoredObject:
        key = self._template.filled(name, content, attributes, created)
        self.remove(name)  # so that the new one is the last in order of creation
        self.keys.setlist(name, [key])
        return self.head(name)

    def remove(self, name: str) -> None:
        if name in self.keys:
            self.keys.pop(name)

    def all(self) -> Iterator[Any]:
        return (self.keys[name] for name in self.keys)

    def clear(self) -> None:
        for key in self.all():
            key.dispose()
        # Not S3Backend.reset(): that one closes every key of every backend in the process.
        self.keys.clear()


@functools.cache
def _moto_classes() -> tuple[Any, Any, Any, dict[str, Any]]:
    """What is used of moto; importing it takes 0.3 s, so not before a store is made."""
    from moto.core.model_instances import model_data
    from moto.s3.models import FakeBucket, FakeKey, S3Backend, s3_backends

    require("moto.s3.models", "moto.s3.utils")

    class CdnBucket(FakeBucket):  # type: ignore[misc]
        def __new__(cls, *_: Any, **__: Any) -> CdnBucket:
            return object.__new__(cls)  # moto's own keeps every instance in a list

    class CdnKey(FakeKey):  # type: ignore[misc]
        """A key that moto does not track, with a content that outlives it while it is read."""

        _value_buffer: Any
        disposed: bool

        def __new__(cls, *_: Any, **__: Any) -> CdnKey:
            return object.__new__(cls)  # as above; FakeKey's list is closed by each reset

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._value_buffer.close()
            self._value_buffer = InMemory(b"")

        def __del__(self) -> None:
            """Do nothing: moto's own warns and closes, but a reader may hold the content."""

        @property
        def content(self) -> Content:
            content: Content = self._value_buffer
            return content

        def filled(
            self, name: str, content: Content, attributes: dict[str, str], created: datetime
        ) -> CdnKey:
            key = object.__new__(CdnKey)
            key.__dict__.update(self.__dict__)
            key.name = name
            key.lock = threading.Lock()
            key._value_buffer = content
            key.contentsize = content.size
            key._etag = None
            key.set_metadata(attributes, replace=True)
            # moto's times are naive and in UTC.
            key.last_modified = created.astimezone(timezone.utc).replace(tzinfo=None)
            return key

        def dispose(self, garbage: bool = False) -> None:
            self._value_buffer = InMemory(b"")
            self.disposed = True

    for made in (CdnBucket, CdnKey):  # moto lists every subclass on its dashboard
        service = made.__module__.split(".")[1]
        model_data[service].pop(made.__name__, None)
        if not model_data[service]:
            del model_data[service]
    return S3Backend, CdnBucket, CdnKey, s3_backends.bucket_accounts
