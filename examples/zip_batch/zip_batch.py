"""A batch processor as it would be deployed to fal: thumbnails of every image in a user's ZIP.

Everything happens in ``/tmp``, which lives as long as the runner: what one request leaves there is
in the way of all that follow. So each works in a folder of its own, and removes it.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from zipfile import BadZipFile

import fal
from fal.exceptions import AppException, FieldException
from fal.toolkit import CompressedFile, File, download_file
from fal.toolkit.utils.download_utils import DownloadError
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from pydantic import BaseModel, Field

MAX_ARCHIVE_MB = 2
PRIVATE_HOST = "archives.example.com"
REPORT = Path("/data/zip_batch/report.json")


class Input(BaseModel):
    archive_url: str = Field(description="A ZIP of images.")
    max_side: int = Field(128, ge=1, le=4096, description="Longest side of a thumbnail, in pixels.")


class Output(BaseModel):
    archive: File
    images: int
    skipped: int


class Archive(CompressedFile):
    """The SDK's ZIP, which by itself takes any size, sends no credentials, and is cleaned up only
    when Python gets round to it: after an exception that may be long after the request."""

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        if self.extract_dir is not None:
            shutil.rmtree(self.extract_dir)
            self.extract_dir = None

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        headers = {}
        if urlsplit(self.url).hostname == PRIVATE_HOST:
            headers["Authorization"] = f"Bearer {os.environ['ARCHIVE_TOKEN']}"
        with tempfile.TemporaryDirectory(prefix="download-") as folder:
            downloaded = download_file(
                self.url, folder, request_headers=headers, filesize_limit=MAX_ARCHIVE_MB
            )
            return downloaded.replace(path)


class ZipBatch(fal.App):
    machine_type = "M"

    def setup(self) -> None:
        self.requests = 0
        self.images = 0

    @fal.endpoint("/")
    def process(self, input: Input) -> Output:
        with clear_errors(), tempfile.TemporaryDirectory(prefix="batch-") as folder:
            thumbnails = Path(folder, "thumbnails")
            thumbnails.mkdir()
            with Archive(url=input.archive_url) as source:
                images, skipped = shrink_all(source, input.max_side, thumbnails)
            if not images:
                raise FieldException("archive_url", "there is no image in this archive")
            packed = pack(thumbnails, Path(folder, "thumbnails.zip"))
            archive = File.from_path(packed, content_type="application/zip")
        self.requests += 1
        self.images += images
        return Output(archive=archive, images=images, skipped=skipped)

    def teardown(self) -> None:
        """The runner ends and takes /tmp with it; /data stays."""
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(json.dumps({"requests": self.requests, "images": self.images}))


def shrink_all(archive: Archive, max_side: int, target: Path) -> tuple[int, int]:
    """Make the thumbnails; how many there are, and how many files were no images."""
    images = skipped = 0
    for path in sorted(path for path in archive.glob("**/*") if path.is_file()):
        try:
            with PILImage.open(path) as picture:
                picture.thumbnail((max_side, max_side))
                picture.convert("RGB").save(target / f"{images:04}-{path.stem}.png")
            images += 1
        except UnidentifiedImageError:
            skipped += 1
    return images, skipped


def pack(folder: Path, target: Path) -> Path:
    """Pack all files of a folder with ``zip``, or with Python's own where there is none."""
    program = ["zip", "-q"] if shutil.which("zip") else [sys.executable, "-m", "zipfile", "-c"]
    names = sorted(path.name for path in folder.iterdir())
    done = subprocess.run([*program, target, *names], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise AppException(f"packing failed: {done.stdout}{done.stderr}", 503)
    return target


@contextmanager
def clear_errors() -> Iterator[None]:
    """Tell the caller what went wrong, and whose fault it is."""
    try:
        yield
    except BadZipFile as error:
        raise FieldException("archive_url", "this is not a ZIP archive") from error
    except (DownloadError, OSError) as error:
        if is_disk_full(error):
            raise AppException("the disk of this runner is full", 503) from error
        if isinstance(error, DownloadError):
            raise FieldException("archive_url", " ".join(str(error).split())) from error
        raise


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind it: the SDK wraps its errors."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        error = error.__cause__
    return False
