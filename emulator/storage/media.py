"""What the first bytes of a content say it is, and whether that is what its upload declared.

The signatures are those of the MIME Sniffing standard (https://mimesniff.spec.whatwg.org, sections
6 and 7.1), and of the few media formats besides that apps on fal often write. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["HEAD", "contradicts", "is_unrecognised", "sniff", "split_head"]

#: How many bytes of a content are looked at; as the standard has it.
HEAD = 1445

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"ID3", "audio/mpeg"),
    (b"OggS\x00", "application/ogg"),
    (b"fLaC", "audio/flac"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"PK\x05\x06", "application/zip"),  # an archive without files
    (b"\x1f\x8b\x08", "application/gzip"),
)
_FIRST_BYTES = {signature[:1] for signature, _ in _SIGNATURES} | {b"R", b"\x1a"}
_RIFF = {b"WAVE": "audio/wav", b"WEBP": "image/webp", b"AVI ": "video/x-msvideo"}
#: By the major brand of an ISO base media file; all others are MP4's.
_BRANDS = {
    b"qt  ": "video/quicktime",
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
}
#: No byte of a text: section 3 of the standard, "binary data byte".
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_BYTE_ORDER_MARKS = (b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf")

#: Declared types that promise nothing.
_SILENT = frozenset({"", "application/octet-stream", "binary/octet-stream"})
#: Further names of a type, and of types that it is a form of.
_ALSO: dict[str, frozenset[str]] = {
    "image/png": frozenset({"image/x-png", "image/apng", "image/vnd.mozilla.apng"}),
    "image/jpeg": frozenset({"image/jpg", "image/pjpeg"}),
    "image/heic": frozenset({"image/heif", "image/heic-sequence"}),
    "image/heif": frozenset({"image/heic", "image/avif"}),
    "audio/mpeg": frozenset({"audio/mp3", "audio/x-mp3", "audio/mpeg3", "audio/x-mpeg"}),
    "audio/wav": frozenset({"audio/wave", "audio/x-wav", "audio/vnd.wave"}),
    "audio/flac": frozenset({"audio/x-flac"}),
    "application/ogg": frozenset({"audio/ogg", "video/ogg", "audio/opus", "audio/vorbis"}),
    "application/pdf": frozenset({"application/x-pdf"}),
    "video/mp4": frozenset(
        {"audio/mp4", "application/mp4", "video/x-m4v", "audio/m4a", "audio/x-m4a"}
        | {"video/3gpp", "audio/3gpp", "video/3gpp2", "audio/3gpp2"}
    ),
    "video/webm": frozenset({"audio/webm", "video/x-matroska", "video/matroska"}),
    "video/x-matroska": frozenset({"video/matroska", "audio/x-matroska", "audio/matroska"}),
    "video/x-msvideo": frozenset({"video/avi", "video/msvideo", "video/vnd.avi"}),
}
#: Whatever else is an application's or a model's may well come packed: .docx, .jar, .usdz, .tgz.
_PACKED = frozenset({"application/zip", "application/gzip"})
_NOT_PACKED = _PACKED | {
    "application/json",
    "application/mp4",
    "application/ogg",
    "application/pdf",
    "application/x-pdf",
    "application/xml",
}


def sniff(head: bytes) -> str | None:
    """The media type of a content that begins with *head*; None where no signature fits."""
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head[:1] not in _FIRST_BYTES:
        return None  # most contents that are none of these, without a further look
    for signature, found in _SIGNATURES:
        if head.startswith(signature):
            return found
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    if head[:4] == b"\x1aE\xdf\xa3":
        return "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    return "audio/mpeg" if _is_mp3_frame(head) else None


def contradicts(declared: str, head: bytes) -> str | None:
    """The type that a content's first bytes say it has, where that is not the one *declared*.

    None: they agree, or one of the two says nothing.
    """
    essence = declared.partition(";")[0].strip().lower()
    if essence in _SILENT:
        return None
    found = sniff(head)
    if found is None or essence == found or essence in _ALSO.get(found, ()):
        return None
    if found in _PACKED and _may_be_packed(essence):
        return None
    return found


def is_unrecognised(head: bytes) -> bool:
    """Whether a content that begins so is binary and none of the types known here."""
    if head.startswith(_BYTE_ORDER_MARKS) or sniff(head) is not None:
        return False
    return _BINARY.search(head) is not None


def split_head(chunks: Iterator[bytes]) -> tuple[bytes, list[bytes]]:
    """The first :data:`HEAD` bytes of *chunks*, and the chunks that were taken to have them."""
    taken: list[bytes] = []
    missing = HEAD
    for chunk in chunks:
        taken.append(chunk)
        missing -= len(chunk)
        if missing <= 0:
            break
    return b"".join(bytes(chunk[:HEAD]) for chunk in taken)[:HEAD], taken


def _is_mp3_frame(head: bytes) -> bool:
    """Whether an MP3 without a tag begins so: layer III, a bit rate and a sample rate there are."""
    return (
        head[:2] in (b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2")
        and len(head) > 2
        and 0 < head[2] >> 4 < 15
        and head[2] >> 2 & 3 != 3
    )


def _may_be_packed(essence: str) -> bool:
    return essence.startswith(("application/", "model/")) and essence not in _NOT_PACKED
