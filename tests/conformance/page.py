"""The statements of fal's documentation page "Working with Files", one by one, in its order.

Each has at least one test in this folder, which carries it: ``@states("chunks")``. Where the SDK
does something else than the page says, the test pins what the SDK does and carries
``@departs("chunks", does="...", since="1.75.5")`` beside it. ``table.py`` makes the table of
``docs/conformance.md`` of both.
"""

# ruff: noqa: E501 - a statement is a line

from __future__ import annotations

from dataclasses import dataclass

import pytest

__all__ = ["SECTIONS", "STATEMENTS", "Statement", "departs", "states"]


@dataclass(frozen=True)
class Statement:
    """One thing the page says."""

    key: str
    section: str
    text: str


SECTIONS: dict[str, dict[str, str]] = {
    "Overview": {
        "lifecycle": "the download utilities and the file types together cover the file I/O of a request: what users provide is downloaded, processed and returned as public URLs",
        "input-side": "download_file and download_model_weights download remote files to a local path on the runner",
        "input-caching": "the download utilities have built-in caching",
        "input-streaming": "the download utilities stream large files",
        "output-side": "File, Image, Video and Audio are created from raw bytes, PIL images or local files, upload automatically and return a public URL",
    },
    "Downloading Input Files": {
        "download-local": "download_file downloads a user's URL to a local path on the runner",
        "download-snippet": "the section's snippet: an endpoint downloads its video_url to /tmp/inputs",
        "efficient": "large files are handled efficiently, by streaming",
        "chunks": "they are streamed in 64 MB chunks",
        "atomic": "it writes to a temporary file first, then renames atomically",
        "no-partial": "you never end up with a partial file if the download fails",
        "relative-target": "a relative target_dir resolves relative to /data: models/ is /data/models/",
        "absolute-target": "an absolute target_dir (/tmp/inputs) is used as it is",
        "data-uri": "data: URIs are decoded from base64 without a network request",
    },
    "Caching": {
        "cache-check": "it compares the local file's size to the remote file's Content-Length",
        "cache-hit": "if they match it returns the existing path without re-downloading",
        "cache-free": "repeated calls with the same URL are essentially free",
        "force": "force=True downloads again",
        "caching-snippet": "the section's snippet: the same call twice, and once with force=True",
        "size-not-hash": "caching uses file size, not content: a changed file of the same size is served from the cache",
        "force-fresh": "force=True guarantees freshness",
    },
    "Authenticated Downloads": {
        "request-headers": "custom headers are passed by request_headers",
        "authenticated-snippet": "the section's snippet: a Bearer token for a private file",
    },
    "File Size Limits": {
        "size-limit": "filesize_limit (in MB) rejects files that are too large",
        "size-limit-before": "they are rejected before downloading",
        "size-limit-snippet": "the section's snippet: filesize_limit=500",
    },
    "Downloading Model Weights": {
        "weights-wrapper": "download_model_weights is a wrapper around download_file",
        "weights-place": "it stores files in /data/.fal/model_weights/ under a hash of the URL",
        "weights-cached": "repeated calls with the same URL are cached automatically",
        "weights-snippet": "the section's snippet: setup() downloads the weights",
    },
    "Returning Files from Endpoints": {
        "returned-uploads": "a file type in the response uploads to the CDN and returns a public URL",
        "returned-snippet": "the section's snippet: an endpoint returns Image.from_pil()",
        "url-field": "the returned object has a .url with the public CDN URL (https://v3.fal.media/files/...)",
        "url-public": "these URLs are publicly accessible",
        "url-expires": "they are subject to the media expiration settings",
    },
    "File Types and Methods": {
        "inherit": "all file types extend File and inherit its methods",
        "file-from-path": "File.from_path(path)",
        "file-from-bytes": "File.from_bytes(data, content_type=, file_name=)",
        "file-fields": "File has url, content_type, file_name and file_size",
        "image-from-pil": "Image.from_pil(pil_image, format=)",
        "image-from-bytes": "Image.from_bytes(data, format, size=)",
        "image-from-path": "Image inherits from_path()",
        "image-fields": "Image has width and height",
        "video": "Video inherits from_path() and from_bytes(), and has no fields beyond File's",
        "audio": "Audio inherits from_path() and from_bytes(), and has no fields beyond File's",
        "media-player": "Video and Audio tell the Playground to render the appropriate media player",
        "compressed-methods": "CompressedFile inherits from_path() and from_bytes(), and supports __iter__() and glob()",
        "as-bytes": "every file type has as_bytes(), which returns the content",
        "save": "every file type has save(path), which writes it to a local path",
        "to-pil": "Image has to_pil(), which converts back to a PIL image",
    },
    "Supported Formats": {
        "any-format": "File, Video and Audio accept any format, without validation or allowlist",
        "any-url": "any URL or bytes can be passed regardless of content type",
        "content-type-metadata": "content_type is metadata stored alongside the file and restricts nothing",
        "image-formats": "Image.from_pil() and from_bytes() accept png, jpeg, jpg, webp and gif",
        "image-other-formats": "Image is the only type with a defined format list",
        "image-path-any": "Image.from_path() has no format restriction",
        "preview-by-type": "the Playground renders previews by the type used: an image viewer, a video player, an audio player",
        "widely-supported": "for maximum compatibility: MP4 (H.264) for video, WAV or MP3 for audio",
    },
    "Creating Files": {
        "create-from-pil": "Image.from_pil(pil_image), as printed",
        "create-from-pil-webp": 'Image.from_pil(pil_image, format="webp"), as printed',
        "create-image-bytes": 'Image.from_bytes(raw_bytes, format="png"), as printed',
        "create-image-path": 'Image.from_path("/tmp/output.png"), as printed',
        "create-video-path": 'Video.from_path("/tmp/output.mp4"), as printed',
        "create-audio-path": 'Audio.from_path("/tmp/output.wav"), as printed',
        "create-audio-bytes": 'Audio.from_bytes(raw_bytes, content_type="audio/wav", file_name="output.wav"), as printed',
        "create-file-path": 'File.from_path("/tmp/result.obj"), as printed',
        "create-file-bytes": 'File.from_bytes(data, content_type="application/octet-stream", file_name="model.glb"), as printed',
    },
    "The Type System and Playground": {
        "schema-preview": "Image, Video and Audio in the output schema tell the Playground which preview to render",
        "schema-file": "the base File type is a download link instead",
        "schema-snippet": "the section's snippet: an Output with an image, a video and an audio",
        "schema-inputs": "input schemas have the FileInput and ImageInput union types",
        "inputs-validate": "FileInput and ImageInput are file URL types that validate correctly",
    },
    "Compressed Files": {
        "compressed-extends": "CompressedFile extends File with ZIP extraction",
        "compressed-automatic": "iterating or glob() downloads and extracts to a temporary directory",
        "compressed-snippet": "the section's snippet: an endpoint counts the png files of an archive",
        "compressed-cleanup": "the extracted directory is cleaned up when the object is garbage collected",
    },
    "CDN vs /data Storage": {
        "mistake-outputs": "storing temporary outputs in persistent storage is a common mistake",
        "mistake-lost": "losing generated files after a runner shuts down is another",
        "cdn-on-create": "Image.from_pil() and File.from_path() upload and return a public URL",
        "cdn-anyone": "CDN URLs are accessible to anyone without authentication",
        "cdn-expiry": "CDN URLs expire according to the media expiration settings",
        "cdn-unique": "each upload has a unique URL: no shared namespace",
        "data-filesystem": "/data is a local filesystem on every runner",
        "data-shared": "/data is shared across all runners and all apps of the account",
        "data-persists": "/data persists across requests and runner restarts",
        "data-no-url": "files on /data are not accessible by URL",
        "data-until-deleted": "files on /data remain until you delete them",
        "tmp-scratch": "/tmp is for per-request temporary files",
        "tmp-local": "/tmp is local to each runner",
        "tmp-cleared": "/tmp is cleared when the runner shuts down",
        "table-use-cdn": "CDN, use for: generated outputs returned to users",
        "table-use-data": "/data, use for: model weights, datasets, caches",
        "table-use-tmp": "/tmp, use for: per-request scratch files",
        "table-persistence-cdn": "CDN, persistence: subject to the expiration settings",
        "table-persistence-data": "/data, persistence: permanent until deleted",
        "table-persistence-tmp": "/tmp, persistence: cleared on runner shutdown",
        "table-shared-cdn": "CDN, shared: no (each upload is unique)",
        "table-shared-data": "/data, shared: yes (across all runners and apps)",
        "table-shared-tmp": "/tmp, shared: no (per runner)",
        "table-access-cdn": "CDN, access: public URL, no auth",
        "table-access-data": "/data, access: local filesystem only",
        "table-access-tmp": "/tmp, access: local filesystem only",
    },
}  # fmt: skip

STATEMENTS = {
    key: Statement(key, section, text)
    for section, statements in SECTIONS.items()
    for key, text in statements.items()
}


def states(*keys: str) -> pytest.MarkDecorator:
    """The statements that a test is about."""
    unknown = [key for key in keys if key not in STATEMENTS]
    if unknown or not keys:
        raise ValueError(f"no statements of the page: {unknown}. page.py lists them by key.")
    return pytest.mark.states(*keys)


def departs(key: str, *, does: str, since: str) -> pytest.MarkDecorator:
    """The SDK does something else than statement *key* since that version of fal; the test pins it.

    Give ``since="1.0.0"`` where no version did what the page says.
    """
    if key not in STATEMENTS:
        raise ValueError(f"{key!r} is no statement of the page. page.py lists them by key.")
    return pytest.mark.departs(key, does=does, since=since)
