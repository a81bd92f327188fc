"""The section "File Size Limits": files that are too large are refused."""

from __future__ import annotations

from http.client import HTTPResponse
from typing import TYPE_CHECKING

import pytest
from fal.toolkit import download_file
from fal.toolkit.utils.download_utils import DownloadError
from observing import calls_of
from page import departs, states

if TYPE_CHECKING:
    from pytest_fal import Origin, Volume

URL = "https://example.com/model.bin"
MEBIBYTE = 1024 * 1024
CHUNK = 64 * 1024


@states("size-limit")
def test_a_file_over_the_limit_is_rejected(fal_origin: Origin, fal_tmp: Volume) -> None:
    fal_origin.serve(URL, size=3 * MEBIBYTE)
    with pytest.raises(DownloadError, match=r"is of size 3\.0,\s+which is over the limit of 2$"):
        download_file(URL, target_dir="/tmp", filesize_limit=2)
    assert fal_tmp.tree() == []


@states("size-limit")
def test_a_megabyte_has_1024_times_1024_bytes(fal_origin: Origin) -> None:
    fal_origin.serve(URL, size=MEBIBYTE)
    assert download_file(URL, target_dir="/tmp", filesize_limit=1).stat().st_size == MEBIBYTE
    fal_origin.serve(URL, size=MEBIBYTE + 1)
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="/tmp", filesize_limit=1)


@states("size-limit")
def test_the_limit_holds_for_a_file_of_undeclared_length(
    fal_origin: Origin, fal_tmp: Volume
) -> None:
    fal_origin.serve(URL, size=MEBIBYTE + 1, chunked=True)
    with pytest.raises(DownloadError, match=f"Failed to download {URL} to /tmp"):
        download_file(URL, target_dir="/tmp", filesize_limit=1)
    assert fal_tmp.tree() == []


@states("size-limit")
def test_the_limit_holds_for_a_data_uri(fal_tmp: Volume) -> None:
    uri = f"data:text/plain,{'x' * (MEBIBYTE + 1)}"
    with pytest.raises(DownloadError, match=r"Attempted to download more data 1048577"):
        download_file(uri, target_dir="/tmp", filesize_limit=1)
    assert fal_tmp.tree() == []


@states("size-limit")
def test_without_a_limit_a_file_may_be_of_any_size(fal_origin: Origin) -> None:
    fal_origin.serve(URL, size=3 * MEBIBYTE)
    assert download_file(URL, target_dir="/tmp").stat().st_size == 3 * MEBIBYTE


@states("size-limit-before")
def test_a_file_of_declared_length_is_rejected_before_downloading(fal_origin: Origin) -> None:
    fal_origin.serve(URL, size=3 * MEBIBYTE)
    with calls_of(HTTPResponse.read) as reads, pytest.raises(DownloadError):
        download_file(URL, target_dir="/tmp", filesize_limit=2)
    assert reads == []


@states("size-limit-before")
@departs(
    "size-limit-before",
    does="a file whose server declares no Content-Length is downloaded up to the limit, and "
    "rejected then",
    since="1.11.1",
)
def test_a_file_of_undeclared_length_is_rejected_before_downloading(fal_origin: Origin) -> None:
    """The page: too large files are rejected before downloading. The SDK, since it has the limit:
    only where the server declares the length; else it reads until there is too much."""
    served = fal_origin.serve(URL, size=3 * MEBIBYTE, chunked=True)
    with calls_of(HTTPResponse.read) as reads, pytest.raises(DownloadError):
        download_file(URL, target_dir="/tmp", filesize_limit=2)
    assert sum(read["amt"] for read in reads) == 2 * MEBIBYTE + CHUNK
    assert served.bytes_sent > 2 * MEBIBYTE


@states("size-limit-snippet")
def test_the_snippet_rejects_more_than_500_mb(fal_origin: Origin, fal_tmp: Volume) -> None:
    url = URL
    fal_origin.serve(url, size=501 * MEBIBYTE)
    with pytest.raises(
        DownloadError, match=r"is of size 501\.0,\s+which is over the limit of 500$"
    ):
        path = download_file(url, target_dir="/tmp", filesize_limit=500)
    assert fal_tmp.tree() == []

    fal_origin.serve(url, b"weights")
    path = download_file(url, target_dir="/tmp", filesize_limit=500)
    assert (str(path), path.read_bytes()) == ("/tmp/model.bin", b"weights")
