"""An upload to a bucket of the caller's: a presigned POST of S3, as the SDK hands it on [§1.13].

Pure but for reading the file.
"""

from __future__ import annotations

import io
import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from emulator.storage.uploads import UploadError

__all__ = ["POLICY_HEADER", "UploadPolicy", "parse_policy", "what_s3_said"]

POLICY_HEADER = "x-app-fal-upload-policy"

_FILE_NAME = "${filename}"
_HOST = re.compile(r"([a-z0-9][a-z0-9.-]*\.)?s3[a-z0-9.-]*\.amazonaws\.com(\.cn)?")
_ERROR_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")


@dataclass(frozen=True)
class UploadPolicy:
    """Where the caller wants the file, and what S3 is to be sent with it."""

    url: str
    #: The form's fields; signatures are among them.
    fields: dict[str, Any] = field(repr=False)

    def file_url(self, file_name: str) -> str:
        """Where the file will be, by the path that the SDK makes of the same policy."""
        key = urllib.parse.quote(self._key(file_name).lstrip("/"))
        return f"{self.url.rstrip('/')}/{key}"

    def request(
        self, file_name: str, content_type: str, chunks: Iterable[bytes], size: int
    ) -> httpx.Request:
        """The form that S3 takes: the policy's fields, then the file."""
        fields = {**self.fields, "key": self._key(file_name)}
        if not any(name.lower() == "content-type" for name in fields):
            fields["Content-Type"] = content_type
        file: Any = _Chunks(chunks, size)
        files = {"file": (file_name, file, content_type)}
        return httpx.Request("POST", self.url, data=fields, files=files)

    def _key(self, file_name: str) -> str:
        return str(self.fields["key"]).replace(_FILE_NAME, file_name)


def parse_policy(text: str) -> UploadPolicy:
    """The policy of the header.

    Raises:
        UploadError: 422, it is none.
    """
    try:
        policy = json.loads(text)
        url, fields = policy["url"], policy["fields"]
        parts = urllib.parse.urlsplit(url)
        key = fields["key"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UploadError(422, f"{POLICY_HEADER} has to be JSON with a url and fields") from None
    if parts.scheme != "https" or not _HOST.fullmatch(parts.hostname or ""):
        raise UploadError(422, f"{POLICY_HEADER}: its url is no bucket of S3's")
    if not isinstance(key, str) or _FILE_NAME not in key:
        raise UploadError(422, f"{POLICY_HEADER}: fields.key has to contain {_FILE_NAME!r}")
    return UploadPolicy(url, fields)


def what_s3_said(response: httpx.Response) -> str | None:
    """Why S3 did not take a file; None when it did. A redirect follows what it took."""
    if response.is_success or response.status_code == 303:
        return None
    code = _ERROR_CODE.search(response.text[:4096])
    return f"{response.status_code}{f' {code[1]}' if code else ''}"


class _Chunks(io.RawIOBase):
    """A file of known size that is read once; httpx asks a file for its end to know its size."""

    def __init__(self, chunks: Iterable[bytes], size: int) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._buffer = b""
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = self._size if whence == os.SEEK_END else offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._buffer) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._buffer += chunk
        taken = self._buffer if size < 0 else self._buffer[:size]
        self._buffer = self._buffer[len(taken) :]
        return taken
