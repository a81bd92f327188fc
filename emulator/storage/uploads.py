"""Uploads to the CDN on their way, and what the platform or a setting says against one."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from emulator.checks import listed
from emulator.errors import RefusedRequest
from emulator.storage.media import contradicts, is_unrecognised, split_head

if TYPE_CHECKING:
    from emulator.settings import Settings

__all__ = [
    "V3_HOSTS",
    "Upload",
    "UploadError",
    "check_content",
    "check_order",
    "checked",
    "looks_at_content",
]

#: The names of the one CDN there is today; only files on it have access rules [§1.6].
V3_HOSTS = frozenset({"v3.fal.media", "v3b.fal.media"})
#: How many part numbers a note shows.
_MOST_PARTS = 10


class UploadError(RefusedRequest):
    """An upload that the CDN refuses."""


@dataclass(eq=False)
class Upload:
    """An upload under way. Its URL is known from the start; the file is not there yet."""

    id: str
    url: str
    file_name: str
    content_type: str
    started: datetime
    signature: str
    lifecycle: dict[str, Any] | None
    request_id: str | None
    runner: str | None = None
    #: Nicknames of those whose file it will be; the first is the one it is made for.
    owners: tuple[str, ...] = ()
    #: Whom its access rules name that the platform does not know.
    unknown: tuple[str, ...] = ()
    done: bool = False
    #: Part number to (key of the part's bytes, ETag).
    parts: dict[int, tuple[str, str]] = field(default_factory=dict)
    #: When it will be finished, where that is known: whoever waits for it waits until then.
    due: datetime | None = None
    #: Why it never will be finished, where that is known: nobody need really wait for it.
    failure: str | None = None

    @property
    def is_to_v3(self) -> bool:
        """Whether it goes to the CDN, and not to the fallback's bucket or the CDN before it."""
        return urllib.parse.urlsplit(self.url).hostname in V3_HOSTS

    def keys_of(self, parts: Sequence[tuple[int, str]]) -> list[str]:
        """The keys of the parts that a completion names (number and ETag), in their order.

        Raises:
            UploadError: 400 for no parts, one named twice, a missing one or a wrong ETag.
        """
        if not parts:
            raise UploadError(400, "a multipart upload needs at least one part")
        if len({number for number, _ in parts}) < len(parts):
            raise UploadError(400, "InvalidPart: a part is named twice")
        keys = []
        for number, etag in sorted(parts):
            if number not in self.parts:
                raise UploadError(400, f"InvalidPart: part {number} was never uploaded")
            key, expected = self.parts[number]
            if etag.strip('"') != expected.strip('"'):
                raise UploadError(400, f"InvalidPart: part {number} has another ETag")
            keys.append(key)
        return keys


def check_order(numbers: list[int], settings: Settings, notes: list[str]) -> None:
    """Note, or refuse, parts that are not completed in ascending order; S3 refuses them.

    Raises:
        UploadError: 400 with the setting ``part_order="strict"``.
    """
    if numbers == sorted(numbers) or settings.part_order == "any":
        return
    if settings.part_order == "strict":
        raise UploadError(400, "InvalidPartOrder: the parts are not in ascending order")
    notes.append(
        f"parts were completed out of order ({listed(numbers, _MOST_PARTS)}): S3 answers "
        'InvalidPartOrder; @pytest.mark.fal(part_order="strict") does too'
    )


def looks_at_content(settings: Settings) -> bool:
    """Whether any setting asks what an upload contains."""
    return settings.content_check != "off" or settings.unrecognised_content != "accept"


def check_content(upload: Upload, head: bytes, settings: Settings, notes: list[str]) -> None:
    """Note, or refuse, a content that begins with *head* and is not what it was declared to be.

    Raises:
        UploadError: 400 with the setting ``content_check="refuse"``, 429 for what is no known type
            with ``unrecognised_content="rate_limit"``.
    """
    found = contradicts(upload.content_type, head) if settings.content_check != "off" else None
    if found is not None:
        problem = f"the content is {found}, but {upload.content_type} was declared"
        if settings.content_check == "refuse":
            raise UploadError(400, problem)
        notes.append(f'{problem}: @pytest.mark.fal(content_check="refuse") refuses it')
    limited = settings.unrecognised_content == "rate_limit" and upload.is_to_v3
    if limited and is_unrecognised(head):
        raise UploadError(429, "too many uploads of binary content of no known type")


def checked(
    upload: Upload, chunks: Iterator[bytes], settings: Settings, notes: list[str]
) -> Iterator[bytes]:
    """The chunks of an upload, none of them before :func:`check_content` has let it pass."""
    head, taken = split_head(chunks)
    check_content(upload, head, settings, notes)
    yield from taken
    yield from chunks
