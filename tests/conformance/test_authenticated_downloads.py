"""The section "Authenticated Downloads": headers for files that not everybody may read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fal.toolkit import download_file
from fal.toolkit.utils.download_utils import DownloadError
from page import states

if TYPE_CHECKING:
    from pytest_fal import Origin, Volume

URL = "https://private-storage.example.com/model.bin"
BEARER = {"Authorization": "Bearer your-token"}


@states("request-headers")
def test_request_headers_are_sent(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"weights")
    download_file(URL, target_dir="models", request_headers={"X-Team": "research"})
    assert served.requests[0].request_headers["x-team"] == "research"


@states("request-headers")
def test_request_headers_come_beside_the_sdks_own(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"weights")
    download_file(URL, target_dir="models", request_headers={"X-Team": "research"})
    assert served.requests[0].request_headers["user-agent"].startswith("Mozilla/5.0")


@states("request-headers")
def test_request_headers_replace_the_sdks_own(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"weights")
    download_file(URL, target_dir="models", request_headers={"User-Agent": "my-app"})
    assert served.requests[0].request_headers["user-agent"] == "my-app"


@states("request-headers")
@pytest.mark.parametrize("headers", [None, {}, {"Authorization": "Bearer another-token"}])
def test_without_the_right_headers_a_private_file_is_not_downloaded(
    fal_origin: Origin, fal_data: Volume, headers: dict[str, str] | None
) -> None:
    fal_origin.serve(URL, b"weights", require_headers=BEARER)
    with pytest.raises(DownloadError, match=f"Failed to get remote file properties for {URL}"):
        download_file(URL, target_dir="models", request_headers=headers)
    assert fal_data.tree() == []


@states("request-headers")
def test_a_gated_model_is_downloaded_though_its_host_redirects_to_another(
    fal_origin: Origin,
) -> None:
    """As Hugging Face does: the token is for the first host, and is not shown to the second."""
    gated = "https://huggingface.co/org/model/resolve/main/weights.bin"
    storage = "https://cdn-lfs.huggingface.co/repos/1/2/3?signature=abc"
    asked = fal_origin.serve(gated, require_headers=BEARER, redirect_to=storage)
    sent = fal_origin.serve(storage, b"weights")
    path = download_file(gated, target_dir="/data/models", request_headers=BEARER)
    assert (path.name, path.read_bytes()) == ("weights.bin", b"weights")
    assert "authorization" in asked.requests[0].request_headers
    assert "authorization" not in sent.requests[0].request_headers


@states("authenticated-snippet")
def test_the_snippet_downloads_a_private_file(fal_origin: Origin, fal_data: Volume) -> None:
    fal_origin.serve(
        "https://private-storage.example.com/model.bin", b"weights", require_headers=BEARER
    )

    path = download_file(
        "https://private-storage.example.com/model.bin",
        target_dir="/data/models",
        request_headers={"Authorization": "Bearer your-token"},
    )

    assert str(path) == "/data/models/model.bin"
    assert fal_data.read("models/model.bin") == b"weights"
