"""``fal_buckets``: what a test prepares and looks at, without a client."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.storage.buckets import Buckets

PROVIDERS = pytest.mark.parametrize("provider", ["s3", "r2", "gcs"])


@PROVIDERS
def test_what_is_put_is_there(fal_buckets: Buckets, provider: Any) -> None:
    bucket = fal_buckets.create("films", provider)
    assert (bucket.name, bucket.provider, bucket.keys) == ("films", provider, [])
    bucket.put("b/ö.txt", b"2", "text/plain")
    bucket.put("a b", b"1")
    assert bucket.keys == ["a b", "b/ö.txt"]
    assert [bucket.get(key) for key in bucket] == [b"1", b"2"]
    assert "a b" in bucket
    assert "c" not in bucket
    assert repr(bucket) == f"<Bucket 'films' ({provider}): a b, b/ö.txt>"


@pytest.mark.parametrize("provider", ["s3", "gcs"])
def test_a_public_bucket_is_read_by_its_urls(fal_buckets: Buckets, provider: Any) -> None:
    bucket = fal_buckets.create("films", provider, public=True)
    url = bucket.put("a b/ö.txt", b"x", "text/plain")
    response = httpx.get(url)
    assert (response.content, response.headers["content-type"]) == (b"x", "text/plain")
    assert httpx.get(bucket.url("nothing")).status_code == 404


@PROVIDERS
def test_a_private_one_is_not(fal_buckets: Buckets, provider: Any) -> None:
    bucket = fal_buckets.create("films", provider)
    assert httpx.get(bucket.put("a", b"x")).status_code == 403


@pytest.mark.parametrize("provider", ["s3", "r2"])
def test_a_presigned_url_is_read_until_it_expires(
    fal_buckets: Buckets, fal_clock: Clock, provider: Any
) -> None:
    fal_clock.freeze()
    bucket = fal_buckets.create("films", provider)
    bucket.put("a b", b"x")
    url = bucket.presigned_url("a b", expires_in=60)
    assert httpx.get(url).content == b"x"
    assert httpx.get(url.replace("a%20b", "other")).status_code == 403
    fal_clock.advance(60)
    assert "Request has expired" in httpx.get(url).text


def test_a_presigned_post_says_what_fits(fal_buckets: Buckets, fal_clock: Clock) -> None:
    fal_clock.move_to(fal_clock.now().replace(year=2030, month=1, day=1, hour=0, minute=0))
    bucket = fal_buckets.create("films")
    post = bucket.presigned_post(conditions=[["content-length-range", 1, 9]])
    assert post["url"] == "https://films.s3.amazonaws.com/"
    assert post["fields"]["key"] == "uploads/${filename}"
    policy = json.loads(base64.b64decode(post["fields"]["policy"]))
    assert policy["expiration"].startswith("2030-01-01T01:00:")
    assert policy["conditions"][:3] == [
        ["content-length-range", 1, 9],
        {"bucket": "films"},
        ["starts-with", "$key", "uploads/"],
    ]


def test_by_default_any_content_type_fits(fal_buckets: Buckets) -> None:
    policy = fal_buckets.create("films").presigned_post()["fields"]["policy"]
    conditions = json.loads(base64.b64decode(policy))["conditions"]
    assert conditions[0] == ["starts-with", "$Content-Type", ""]


def test_a_dot_in_a_name_goes_into_the_path(fal_buckets: Buckets) -> None:
    bucket = fal_buckets.create("www.films", public=True)
    assert bucket.url("a") == "https://s3.amazonaws.com/www.films/a"
    assert bucket.presigned_post()["url"] == "https://s3.amazonaws.com/www.films"
    assert httpx.get(bucket.put("a", b"x")).content == b"x"


def test_all_buckets_are_found_whoever_made_them(fal_buckets: Buckets) -> None:
    assert repr(fal_buckets) == "<Buckets: none>"
    fal_buckets.create("films")
    fal_buckets.create("songs", "r2")
    fal_buckets.create("books", "gcs")
    assert repr(fal_buckets) == "<Buckets: films, songs, books>"
    assert [bucket.provider for bucket in fal_buckets.all] == ["s3", "r2", "gcs"]
    assert fal_buckets["songs"].provider == "r2"


@pytest.mark.fal(tmp_size=1024 * 1024)
def test_what_is_stored_takes_nothing_of_the_apps_tmp(fal_buckets: Buckets, fal_tmp: Any) -> None:
    bucket = fal_buckets.create("films")
    bucket.put("large", bytes(6 * 1024 * 1024))
    assert len(bucket.get("large")) == 6 * 1024 * 1024
    assert fal_tmp.tree() == []


@PROVIDERS
def test_what_is_there_already_is_not_waited_for(fal_buckets: Buckets, provider: Any) -> None:
    bucket = fal_buckets.create("films", provider)
    bucket.put("a", b"x")
    assert bucket.wait_for(1, seconds=0) == ["a"]
    with pytest.raises(AssertionError, match=r"^2 objects did not come .* within 0 s: there is a"):
        bucket.wait_for(2, seconds=0)


# --- mistakes -------------------------------------------------------------------------------------


def test_a_missing_object_is_told_with_what_is_there(fal_buckets: Buckets) -> None:
    bucket = fal_buckets.create("films")
    with pytest.raises(EmulatorError) as empty:
        bucket.get("a")
    assert str(empty.value) == "No object 'a' in the bucket 'films'. The bucket is empty."
    for key in "bcdefgh":
        bucket.put(key, b"")
    with pytest.raises(EmulatorError) as full:
        bucket.get("a")
    assert str(full.value) == (
        "No object 'a' in the bucket 'films'. There is b, c, d, e, f and 2 more."
    )


def test_a_missing_bucket_is_told_with_what_is_there(fal_buckets: Buckets) -> None:
    fal_buckets.create("films")
    with pytest.raises(EmulatorError) as error:
        fal_buckets["songs"]
    assert str(error.value) == (
        "There is no bucket 'songs'; there is films. Write fal_buckets.create('songs'), or create "
        "it with a client."
    )


@PROVIDERS
def test_a_name_is_taken_once(fal_buckets: Buckets, provider: Any) -> None:
    fal_buckets.create("films", provider)
    with pytest.raises(EmulatorError, match=r"There is a bucket 'films'.* already"):
        fal_buckets.create("films", provider)


def test_a_bucket_of_r2_is_not_public(fal_buckets: Buckets) -> None:
    with pytest.raises(EmulatorError) as error:
        fal_buckets.create("films", "r2", public=True)
    assert str(error.value) == (
        "No bucket of R2 is public under its S3 endpoint: files for everybody have a domain of "
        "their own. Write fal_buckets.create('films', provider=\"r2\") and "
        "bucket.presigned_url(key), or serve the public file: "
        'fal_origin.serve("https://files.example/a.mp4", content=...).'
    )
    assert fal_buckets.all == []


def test_a_refused_name_is_told_in_s3s_words(fal_buckets: Buckets) -> None:
    with pytest.raises(EmulatorError, match="S3 does not create the bucket 'a': The specified"):
        fal_buckets.create("a")
    with pytest.raises(EmulatorError, match="Google does not create the bucket: Invalid bucket"):
        fal_buckets.create("A", "gcs")


def test_another_provider_is_told_of_those_there_are(fal_buckets: Buckets) -> None:
    with pytest.raises(EmulatorError, match=r"There is no provider 'azure'\. Write provider="):
        fal_buckets.create("films", "azure")  # type: ignore[arg-type]


@pytest.mark.parametrize("provider", ["r2", "gcs"])
def test_presigned_posts_are_s3s(fal_buckets: Buckets, provider: Any) -> None:
    with pytest.raises(EmulatorError, match="presigned POSTs are S3's"):
        fal_buckets.create("films", provider).presigned_post()


def test_a_mock_that_resets_moto_is_named(fal_buckets: Buckets) -> None:
    from moto import mock_aws

    bucket = fal_buckets.create("films")
    with mock_aws():
        with pytest.raises(EmulatorError, match=r"The bucket 'films' is gone: .*mock_aws"):
            bucket.get("a")
        assert repr(bucket) == "<Bucket 'films' (s3): it is gone>"


def test_a_failing_test_shows_its_buckets(pytester: Any) -> None:
    pytester.makepyfile(
        """
        def test_it(fal_buckets):
            fal_buckets.create("films").put("a", b"x")
            assert False
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["*fal: buckets*", "Bucket 'films' (s3): a"])
