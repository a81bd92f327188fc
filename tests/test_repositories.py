"""The SDK's other repositories: S3, R2, Google Cloud Storage, and in memory [§1.7]."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import fal
import httpx
import pytest
from boto import client, closed_clients  # noqa: F401 - a fixture
from fal.toolkit import File
from fal.toolkit.file.providers.gcp import GoogleStorageRepository
from fal.toolkit.file.providers.r2 import R2Repository
from fal.toolkit.file.providers.s3 import S3Repository
from pydantic import BaseModel

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.storage.buckets import Buckets

MINUTES_15 = 15 * 60
LIFECYCLE = {"object_lifecycle_preference": {"expiration_duration_seconds": 3600}}


def save(repository: Any, data: bytes = b"frames", **options: Any) -> str:
    """Upload with the toolkit; its URL."""
    options = {"file_name": "a b.mp4", "content_type": "video/mp4", **options}
    file = File.from_bytes(data, repository=repository, fallback_repository=None, **options)
    return str(file.url)


def parameter(url: str, name: str) -> str:
    return parse_qs(urlsplit(url).query)[name][0]


class Boxed:
    """A repository of each kind, made as an app makes it, and closed at the end of the test."""

    def __init__(self, buckets: Buckets, monkeypatch: Any) -> None:
        self.buckets = buckets
        self.monkeypatch = monkeypatch
        self.made: list[Any] = []

    def __call__(self, provider: str, **options: Any) -> Any:
        for name, value in self.buckets.secrets.items():
            self.monkeypatch.setenv(name, value)
        kinds = {"s3": S3Repository, "r2": R2Repository, "gcs": GoogleStorageRepository}
        if provider == "gcs":
            pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is missing")
        made = kinds[provider]("films", **options)
        self.made.append(made)
        return made

    def close(self) -> None:
        for made in self.made:
            for name in ("_s3_client", "_storage_client"):
                if getattr(made, name, None) is not None:
                    getattr(made, name).close()
            if hasattr(made, "_s3_resource"):
                made._s3_resource.meta.client.close()


@pytest.fixture
def repository(fal_buckets: Buckets, monkeypatch: Any) -> Any:
    """Makes repositories of the bucket "films"."""
    boxed = Boxed(fal_buckets, monkeypatch)
    yield boxed
    boxed.close()


# --- S3 and R2 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["s3", "r2"])
def test_a_file_is_in_the_bucket_and_its_url_is_presigned(
    fal_buckets: Buckets, repository: Any, provider: Any
) -> None:
    bucket = fal_buckets.create("films", provider)
    url = save(repository(provider))
    [key] = bucket.keys
    assert key.endswith("_a b.mp4")
    assert bucket.get(key) == b"frames"
    response = httpx.get(url)
    assert (response.content, response.headers["content-type"]) == (b"frames", "video/mp4")
    assert httpx.get(url.partition("?")[0]).status_code == 403


@pytest.mark.parametrize("provider", ["s3", "r2"])
def test_the_url_dies_after_15_minutes(
    fal_buckets: Buckets, repository: Any, fal_clock: Clock, provider: Any
) -> None:
    bucket = fal_buckets.create("films", provider)
    fal_clock.freeze()
    url = save(repository(provider))
    assert parameter(url, "X-Amz-Expires") == "900"
    fal_clock.advance(MINUTES_15 - 1)
    assert httpx.get(url).status_code == 200
    fal_clock.advance(1)
    assert httpx.get(url).status_code == 403
    assert bucket.get(bucket.keys[0]) == b"frames"  # it is only the URL that is dead


@pytest.mark.parametrize("provider", ["s3", "r2"])
def test_the_url_can_live_longer(fal_buckets: Buckets, repository: Any, provider: Any) -> None:
    fal_buckets.create("films", provider)
    url = save(repository(provider, url_expiration=7 * 24 * 3600))
    assert httpx.get(url).status_code == 200


@pytest.mark.parametrize("provider", ["s3", "r2"])
def test_a_large_file_goes_in_parts(
    fal_buckets: Buckets, repository: Any, fal_ledger: Ledger, provider: Any
) -> None:
    bucket = fal_buckets.create("films", provider)
    data = os.urandom(17 * 1024 * 1024)
    save(repository(provider), data)
    assert bucket.get(bucket.keys[0]) == data
    parts = [e for e in fal_ledger.requests(method="PUT") if "partNumber=" in e.url]
    assert len(parts) == 3


@pytest.mark.parametrize("provider", ["s3", "r2"])
def test_a_lifetime_is_ignored(
    fal_buckets: Buckets, repository: Any, fal_clock: Clock, provider: Any
) -> None:
    bucket = fal_buckets.create("films", provider)
    save(repository(provider), save_kwargs=LIFECYCLE)
    fal_clock.advance(days=30)
    assert len(bucket.keys) == 1


def test_folders(fal_buckets: Buckets, repository: Any) -> None:
    bucket = fal_buckets.create("films")
    save(repository("s3"), save_kwargs={"key": "outputs"})
    save(repository("r2", key="r2-outputs"))
    assert [key.partition("/")[0] for key in bucket.keys] == ["outputs", "r2-outputs"]


def test_a_passing_fault_is_tried_again(
    fal_buckets: Buckets, repository: Any, fal_faults: Any, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    bucket = fal_buckets.create("films")
    fal_faults.status(503, times=2, host="films.s3.amazonaws.com", method="PUT")
    save(repository("s3"))
    assert len(bucket.keys) == 1


def test_a_bucket_made_with_plain_boto3_does_as_well(repository: Any) -> None:
    s3 = client(None)
    s3.create_bucket(Bucket="films")
    url = save(repository("s3"))
    [found] = s3.list_objects_v2(Bucket="films")["Contents"]
    assert found["Size"] == 6
    assert httpx.get(url).content == b"frames"


def test_a_bucket_that_is_not_there_is_told(repository: Any, fal_clock: Clock) -> None:
    fal_clock.freeze()
    with pytest.raises(Exception, match=r"\(NoSuchBucket\)"):
        save(repository("s3"))


# --- Google ---------------------------------------------------------------------------------------


def test_googles_url_lives_15_hours(
    fal_buckets: Buckets, repository: Any, fal_clock: Clock
) -> None:
    bucket = fal_buckets.create("films", "gcs")
    fal_clock.freeze()
    url = save(repository("gcs"))
    assert parameter(url, "X-Goog-Expires") == "54000"
    fal_clock.advance(hours=15, seconds=-1)
    assert httpx.get(url).content == b"frames"
    fal_clock.advance(1)
    assert httpx.get(url).status_code == 400
    assert bucket.get(bucket.keys[0]) == b"frames"


def test_googles_plain_url_needs_a_public_bucket(fal_buckets: Buckets, repository: Any) -> None:
    fal_buckets.create("films", "gcs", public=True)
    url = save(repository("gcs", url_expiration=None, folder="outputs"))
    assert url.startswith("https://storage.googleapis.com/films/outputs/")
    assert httpx.get(url).headers["content-type"] == "video/mp4"


def test_googles_bucket_has_to_be_there(repository: Any) -> None:
    exceptions = pytest.importorskip("google.api_core.exceptions", reason="google is missing")
    with pytest.raises(exceptions.NotFound, match="The specified bucket does not exist"):
        repository("gcs")


# --- in memory, and the way out -------------------------------------------------------------------


def test_in_memory_is_in_the_url(fal_ledger: Ledger) -> None:
    url = save("in_memory")
    assert url == f"data:video/mp4;base64,{base64.b64encode(b'frames').decode()}"
    assert fal_ledger.exchanges == []


def test_what_a_repository_does_not_take_goes_to_the_fallback(
    repository: Any, fal_clock: Clock, fal_cdn: Any, capsys: Any
) -> None:
    fal_clock.freeze()
    s3 = repository("s3")  # there is no bucket
    file = File.from_bytes(b"frames", repository=s3, fallback_repository="fal_v3")
    assert fal_cdn.get(file.url) == b"frames"
    assert "NoSuchBucket" in capsys.readouterr().out


# --- apps -----------------------------------------------------------------------------------------


class Url(BaseModel):
    url: str


def make_app() -> Any:
    class Films(fal.App):
        @fal.endpoint("/{kind}")
        def run(self, kind: str) -> Url:
            from fal.toolkit import File
            from fal.toolkit.file.providers.gcp import GoogleStorageRepository
            from fal.toolkit.file.providers.r2 import R2Repository
            from fal.toolkit.file.providers.s3 import S3Repository

            kinds = {"s3": S3Repository, "r2": R2Repository, "gcs": GoogleStorageRepository}
            repository = kinds[kind]("films")
            url = File.from_bytes(b"app", repository=repository, fallback_repository=None).url
            for name in ("_s3_client", "_storage_client"):
                if getattr(repository, name, None) is not None:
                    getattr(repository, name).close()
            if kind == "r2":
                repository._s3_resource.meta.client.close()
            return Url(url=url)

    return Films


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("provider", ["s3", "r2", "gcs"])
def test_an_app_finds_its_secrets_and_its_bucket(
    fal_runner: Any, fal_buckets: Buckets, provider: Any, isolation: str
) -> None:
    if provider == "gcs":
        pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is missing")
    bucket = fal_buckets.create("films", provider)
    runner = fal_runner(make_app(), isolation=isolation, env=fal_buckets.secrets)
    url = runner.post(f"/{provider}", json={}).json()["url"]
    assert bucket.get(bucket.keys[0]) == b"app"
    assert httpx.get(url).content == b"app"
