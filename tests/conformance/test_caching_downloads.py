"""The section "Caching": what a second ``download_file`` of the same URL does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fal.toolkit import download_file
from fal.toolkit.utils.download_utils import DownloadError
from page import departs, states

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_fal import Faults, Origin, Volume

URL = "https://example.com/model.bin"
MEBIBYTE = 1024 * 1024


def identity(path: Path) -> int:
    """What changes when a file is replaced by another one of the same name."""
    return path.stat().st_ino


# --- the comparison -------------------------------------------------------------------------------


@states("cache-check")
@pytest.mark.parametrize("content", [b"longer content", b"short", b""])
def test_a_file_of_another_size_than_the_content_length_is_replaced(
    fal_origin: Origin, content: bytes
) -> None:
    served = fal_origin.serve(URL, b"content")
    download_file(URL, target_dir="inputs")
    served.update(content)
    assert download_file(URL, target_dir="inputs").read_bytes() == content


@states("cache-check")
def test_without_a_content_length_the_file_is_replaced(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"content", content_length="absent")
    before = identity(download_file(URL, target_dir="inputs"))
    assert identity(download_file(URL, target_dir="inputs")) != before


@states("cache-check")
@departs(
    "cache-check",
    does="it compares once the whole body has come, not before (until 1.75.4 a GET for the headers "
    "came first; it never was a HEAD)",
    since="1.75.5",
)
def test_it_compares_the_local_size_to_the_remote_content_length(
    fal_origin: Origin, fal_faults: Faults
) -> None:
    """The page: the local size is compared to the remote Content-Length. The SDK since 1.75.5: so
    it is, but after the body; a body that breaks off fails a download whose file is there."""
    served = fal_origin.serve(URL, b"content")
    download_file(URL, target_dir="inputs")
    fal_faults.truncate(after=3)
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="inputs")
    assert [(exchange.method, exchange.bytes_sent) for exchange in served.requests] == [
        ("GET", 7),
        ("GET", 3),
    ]


# --- a hit ----------------------------------------------------------------------------------------


@states("cache-hit")
def test_a_file_of_the_same_size_is_kept_and_its_path_returned(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"content")
    path = download_file(URL, target_dir="inputs")
    before = identity(path)
    assert download_file(URL, target_dir="inputs") == path
    assert identity(path) == before


@states("cache-hit")
def test_a_file_that_another_runner_downloaded_is_kept(
    fal_origin: Origin, fal_data: Volume
) -> None:
    fal_data.write("inputs/model.bin", b"already")
    fal_origin.serve(URL, b"content")
    assert download_file(URL, target_dir="inputs").read_bytes() == b"already"


@states("cache-hit")
@departs(
    "cache-hit",
    does="the whole body is transferred again and thrown away; the existing file is kept",
    since="1.75.5",
)
def test_a_hit_is_returned_without_downloading_again(fal_origin: Origin) -> None:
    """The page: the existing path is returned without re-downloading. The SDK since 1.75.5: one GET
    whose whole body is written to a temporary file, which is deleted if the sizes match."""
    served = fal_origin.serve(URL, size=3 * MEBIBYTE)
    download_file(URL, target_dir="inputs")
    download_file(URL, target_dir="inputs")
    assert [exchange.bytes_sent for exchange in served.requests] == [3 * MEBIBYTE, 3 * MEBIBYTE]


@states("cache-free")
@departs(
    "cache-free",
    does="each call costs a whole transfer, and room on the disk for a second copy",
    since="1.75.5",
)
@pytest.mark.fal(filesystem="namespace")
def test_repeated_calls_need_no_room_for_another_copy(fal_origin: Origin, fal_data: Volume) -> None:
    """The page: repeated calls are essentially free. The SDK since 1.75.5: a call that finds its
    file needs the disk for it a second time, and fails where there is none."""
    fal_origin.serve(URL, size=3 * MEBIBYTE)
    download_file(URL, target_dir="inputs")
    fal_data.limit(5 * MEBIBYTE)
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="inputs")
    assert fal_data.tree() == ["inputs/model.bin"]


@states("cache-free")
@departs(
    "cache-free",
    does="each call asks the server, and fails when that does, though the file is there",
    since="1.0.3",
)
def test_repeated_calls_do_not_need_the_server(fal_origin: Origin, fal_faults: Faults) -> None:
    """The page: repeated calls are essentially free. The SDK since 1.0.3: a file on the disk is of
    no use while its server is down. (Before, the first answer's headers were kept in memory.)"""
    fal_origin.serve(URL, b"content")
    path = download_file(URL, target_dir="inputs")
    fal_faults.status(503)
    with pytest.raises(DownloadError, match=f"Failed to get remote file properties for {URL}"):
        download_file(URL, target_dir="inputs")
    assert path.read_bytes() == b"content"


# --- force ----------------------------------------------------------------------------------------


@states("force")
def test_force_downloads_again(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"content")
    before = identity(download_file(URL, target_dir="inputs"))
    assert identity(download_file(URL, target_dir="inputs", force=True)) != before
    assert len(served.requests) == 2


@states("force")
def test_force_downloads_what_is_not_there(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"content")
    assert download_file(URL, target_dir="inputs", force=True).read_bytes() == b"content"


@states("caching-snippet")
def test_the_snippet_returns_one_path_three_times(fal_origin: Origin, fal_data: Volume) -> None:
    url = URL
    fal_origin.serve(url, b"content")

    path = download_file(url, target_dir="/data/inputs")
    first = (path, identity(path))

    path = download_file(url, target_dir="/data/inputs")
    second = (path, identity(path))

    path = download_file(url, target_dir="/data/inputs", force=True)
    third = (path, identity(path))

    assert first == second
    assert (first[0] == third[0], first[1] == third[1]) == (True, False)
    assert fal_data.tree() == ["inputs/model.bin"]


# --- size, not content ----------------------------------------------------------------------------


@states("size-not-hash")
def test_a_changed_file_of_the_same_size_is_served_from_the_cache(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"old bytes")
    download_file(URL, target_dir="inputs")
    served.update(b"new bytes")
    assert download_file(URL, target_dir="inputs").read_bytes() == b"old bytes"


@states("size-not-hash")
def test_another_file_of_the_same_name_and_size_is_served_from_the_cache(
    fal_origin: Origin,
) -> None:
    fal_origin.serve(URL, b"old bytes")
    fal_origin.serve("https://example.com/other/model.bin", b"new bytes")
    download_file(URL, target_dir="inputs")
    path = download_file("https://example.com/other/model.bin", target_dir="inputs")
    assert path.read_bytes() == b"old bytes"


@states("force-fresh")
def test_force_guarantees_freshness(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"old bytes")
    download_file(URL, target_dir="inputs")
    served.update(b"new bytes")
    assert download_file(URL, target_dir="inputs", force=True).read_bytes() == b"new bytes"
