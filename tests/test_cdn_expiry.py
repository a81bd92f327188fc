"""How long files live: account default, per-request lifetime, what follows [facts §1.9, §1.10]."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fal_client
import httpx
import pytest
import requests
from fal.toolkit import File, Image, download_file
from fal.toolkit.utils.download_utils import DownloadError
from PIL import Image as PILImage

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.storage.cdn import CDN

REST = "https://rest.fal.ai"
ACCOUNT = {"Authorization": "Key id:secret"}
WEEK = timedelta(days=7)


def upload(preference: dict[str, Any] | None = None) -> str:
    """Upload with the toolkit; its URL."""
    options = {"object_lifecycle_preference": preference}
    return str(File.from_bytes(b"x", file_name="a.bin", save_kwargs=options).url)


def upload_with_client(**settings: Any) -> str:
    lifecycle = fal_client.StorageSettings(**settings)
    return str(fal_client.SyncClient().upload(b"x", "text/plain", "a.txt", lifecycle=lifecycle))


def lifetime(cdn: CDN, url: str) -> timedelta | None:
    info = cdn.info(url)
    return None if info.expires_at is None else info.expires_at - info.created_at


# --- defaults -------------------------------------------------------------------------------------


def test_files_are_kept_without_limit(fal_cdn: CDN, fal_clock: Clock) -> None:
    url = upload()
    fal_clock.advance(days=4000)
    assert httpx.get(url).status_code == 200
    assert fal_cdn.info(url).expires_at is None


@pytest.mark.fal(account_expiration=WEEK)
def test_the_account_can_have_a_default(fal_cdn: CDN, fal_clock: Clock) -> None:
    url = upload()
    assert lifetime(fal_cdn, url) == WEEK
    fal_clock.advance(days=8)
    assert httpx.get(url).status_code == 404


@pytest.mark.fal(account_expiration=WEEK)
@pytest.mark.parametrize("expires_in", [None, timedelta(hours=1)])
def test_seeded_files_follow_the_account_too(fal_cdn: CDN, expires_in: timedelta | None) -> None:
    assert lifetime(fal_cdn, fal_cdn.put(b"x", expires_in=expires_in)) == (expires_in or WEEK)


@pytest.mark.fal(account_expiration=WEEK)
@pytest.mark.parametrize("options", [{}, {"multipart": True}], ids=["single", "multipart"])
def test_a_lifetime_overrides_the_accounts(fal_cdn: CDN, options: dict[str, Any]) -> None:
    options = {**options, "object_lifecycle_preference": {"expiration_duration_seconds": 60}}
    url = File.from_bytes(b"x", file_name="a", save_kwargs=options).url
    assert lifetime(fal_cdn, url) == timedelta(seconds=60)


@pytest.mark.fal(account_expiration=WEEK)
@pytest.mark.parametrize("forever", [0, None])
def test_zero_and_null_mean_forever(fal_cdn: CDN, forever: int | None) -> None:
    assert lifetime(fal_cdn, upload({"expiration_duration_seconds": forever})) is None


@pytest.mark.fal(account_expiration=WEEK)
def test_a_preference_about_access_leaves_the_lifetime_alone(fal_cdn: CDN) -> None:
    url = upload({"initial_acl": {"default": "allow"}})
    assert lifetime(fal_cdn, url) == WEEK


@pytest.mark.fal(account_expiration=WEEK)
def test_the_fallback_keeps_lifetimes(fal_cdn: CDN) -> None:
    settings = fal_client.StorageSettings(expires_in="1h")
    url = fal_client.SyncClient().upload(b"x", "text/plain", "ü.txt", lifecycle=settings)
    assert "storage.googleapis.com" in url
    assert lifetime(fal_cdn, url) == timedelta(hours=1)


# --- what fal_client's names mean -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires_in", "seconds"),
    [("immediate", 60), ("1h", 3600), ("1d", 86400), ("30d", 2592000), (90, 90)],
)
def test_the_names_of_lifetimes(fal_cdn: CDN, expires_in: Any, seconds: int) -> None:
    url = upload_with_client(expires_in=expires_in)
    assert lifetime(fal_cdn, url) == timedelta(seconds=seconds)


@pytest.mark.fal(account_expiration=WEEK)
def test_never_means_the_accounts_default(fal_cdn: CDN) -> None:
    url = upload_with_client(expires_in="never")
    assert fal_cdn.info(url).lifecycle is None, "the client sends nothing"
    assert lifetime(fal_cdn, url) == WEEK


def test_a_huge_lifetime_is_as_good_as_forever(fal_cdn: CDN, fal_clock: Clock) -> None:
    url = fal_cdn.put(b"x", expires_in=31_536_000_000)
    fal_clock.advance(days=365 * 100)
    assert httpx.get(url).status_code == 200


# --- the deadline ---------------------------------------------------------------------------------


def test_a_lifetime_ends_to_the_instant(fal_cdn: CDN, fal_clock: Clock) -> None:
    fal_clock.freeze()
    url = upload({"expiration_duration_seconds": 60})
    fal_clock.advance(seconds=60, milliseconds=-1)
    assert httpx.get(url).status_code == 200
    fal_clock.advance(milliseconds=1)
    assert httpx.get(url).status_code == 404


def test_a_lifetime_counts_from_the_end_of_the_upload(fal_cdn: CDN, fal_clock: Clock) -> None:
    headers = {**ACCOUNT, "X-Fal-Object-Lifecycle": '{"expiration_duration_seconds": 60}'}
    started = httpx.post(f"{REST}/storage/upload/initiate", json={}, headers=headers).json()
    fal_clock.advance(hours=1)
    httpx.put(started["upload_url"], content=b"x")
    assert httpx.get(started["file_url"]).status_code == 200
    fal_clock.advance(minutes=1)
    assert httpx.get(started["file_url"]).status_code == 404


@pytest.mark.fal(expiry_lag=timedelta(minutes=5))
def test_an_expired_file_can_linger(fal_cdn: CDN, fal_clock: Clock) -> None:
    fal_clock.freeze()
    url = fal_cdn.put(b"x", expires_in=60)
    fal_clock.advance(minutes=5, seconds=59)
    assert httpx.get(url).status_code == 200
    fal_clock.advance(seconds=1)
    assert httpx.get(url).status_code == 404


def test_files_expire_one_by_one(fal_cdn: CDN, fal_clock: Clock) -> None:
    one, two = fal_cdn.put(b"1", expires_in=60), fal_cdn.put(b"2", expires_in=120)
    fal_clock.advance(seconds=90)
    assert [httpx.get(url).status_code for url in (one, two)] == [404, 200]
    assert [file.url for file in fal_cdn.files] == [two]


def test_a_read_under_way_is_not_cut_off(fal_cdn: CDN, fal_clock: Clock) -> None:
    url = fal_cdn.put(b"x" * 5_000_000, expires_in=60)
    with httpx.stream("GET", url) as response:
        chunks = response.iter_bytes()
        read = len(next(chunks))
        fal_clock.advance(minutes=2)
        assert fal_cdn.files == []
        assert read + sum(map(len, chunks)) == 5_000_000


# --- afterwards -----------------------------------------------------------------------------------


@pytest.mark.parametrize("get", [httpx.get, requests.get], ids=["httpx", "requests"])
def test_an_expired_file_is_404(fal_cdn: CDN, fal_clock: Clock, get: Callable[..., Any]) -> None:
    url = fal_cdn.put(b"x", expires_in=60)
    fal_clock.advance(minutes=2)
    answer = get(url, timeout=10)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    "status",
    [
        pytest.param(403, marks=pytest.mark.fal(expired_status=403)),
        pytest.param(410, marks=pytest.mark.fal(expired_status=410)),
    ],
)
def test_the_status_of_an_expired_file_can_be_set(
    fal_cdn: CDN, fal_clock: Clock, status: int
) -> None:
    url = fal_cdn.put(b"x", expires_in=60)
    fal_clock.advance(minutes=2)
    assert httpx.get(url).status_code == status


@pytest.mark.fal(expired_status=410)
def test_the_set_status_is_for_expired_files_only(fal_cdn: CDN) -> None:
    assert httpx.get("https://v3.fal.media/files/none").status_code == 404


def test_what_expired_does_not_come_back(fal_cdn: CDN, fal_clock: Clock) -> None:
    url, start = fal_cdn.put(b"x", expires_in=60), fal_clock.now()
    fal_clock.advance(minutes=2)
    assert httpx.get(url).status_code == 404
    fal_clock.move_to(start)
    assert httpx.get(url).status_code == 404


def test_the_test_can_still_ask_about_an_expired_file(fal_cdn: CDN, fal_clock: Clock) -> None:
    url = fal_cdn.put(b"12345", file_name="a.wav", expires_in=60)
    fal_clock.advance(minutes=2)
    info = fal_cdn.info(url)
    assert (info.file_name, info.size) == ("a.wav", 5)
    assert info.expires_at is not None
    assert info.expires_at < fal_clock.now()
    with pytest.raises(EmulatorError, match="is not there any more: it expired at"):
        fal_cdn.get(url)


def test_the_ledger_has_the_moment(fal_cdn: CDN, fal_clock: Clock, fal_ledger: Ledger) -> None:
    fal_clock.freeze(datetime(2030, 1, 1, tzinfo=timezone.utc))
    url = fal_cdn.put(b"x", expires_in=60)
    fal_clock.advance(minutes=2)
    assert fal_cdn.files == []
    (event,) = [event for event in fal_ledger.events if event.kind == "expired"]
    assert event.text == f"{url}, at 2030-01-01 00:01:00 UTC"


def test_a_test_can_let_a_file_expire(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x")
    fal_cdn.expire(url)
    assert httpx.get(url).status_code == 404
    assert fal_cdn.files == []


def test_a_cached_url_outlives_its_file(fal_cdn: CDN, fal_clock: Clock) -> None:
    image = Image.from_pil(
        PILImage.new("RGB", (2, 2)),
        format="png",
        save_kwargs={"object_lifecycle_preference": {"expiration_duration_seconds": 60}},
    )
    cached = Image(url=image.url)
    assert cached.to_pil().size == (2, 2)
    fal_clock.advance(minutes=2)
    with pytest.raises(DownloadError):
        download_file(cached.url, target_dir="/data/inputs")


def test_a_download_fails_after_expiry_although_the_file_is_on_disk(
    fal_cdn: CDN, fal_clock: Clock
) -> None:
    url = fal_cdn.put(b"x", expires_in=60)
    path = download_file(url, target_dir="/data/inputs")
    fal_clock.advance(minutes=2)
    with pytest.raises(DownloadError):
        download_file(url, target_dir="/data/inputs")
    assert Path(path).read_bytes() == b"x"


def test_each_test_starts_with_an_empty_cdn(fal_cdn: CDN) -> None:
    assert fal_cdn.files == []


def test_many_readers_see_one_expiry(fal_cdn: CDN, fal_clock: Clock, fal_ledger: Ledger) -> None:
    url = fal_cdn.put(b"x", expires_in=60)
    fal_clock.advance(minutes=2)
    threads = [threading.Thread(target=httpx.get, args=(url,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [exchange.status for exchange in fal_ledger.exchanges] == [404] * 8
    assert len([event for event in fal_ledger.events if event.kind == "expired"]) == 1
