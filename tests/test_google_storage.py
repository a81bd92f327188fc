"""Google Cloud Storage, as Google's own client and anybody's HTTP client find it."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.storage.buckets import Buckets

storage = pytest.importorskip("google.cloud.storage", reason="google-cloud-storage not installed")
from google.api_core import exceptions  # noqa: E402 - only where it is installed

API = "https://storage.googleapis.com/storage/v1/b"


@pytest.fixture
def client(fal_buckets: Buckets) -> Iterator[Any]:
    """Google's client, as an app makes one from its secret."""
    info = json.loads(fal_buckets.secrets["GCLOUD_SA_JSON"])
    client = storage.Client.from_service_account_info(info)
    yield client
    client.close()


@pytest.fixture
def bucket(client: Any) -> Any:
    return client.create_bucket("films")


def put(bucket: Any, name: str = "a film.mp4", data: bytes = b"frames") -> Any:
    blob = bucket.blob(name)
    blob.upload_from_string(data, content_type="video/mp4")
    return blob


def join_background() -> None:
    """google-cloud-storage 3.17 looks up the bucket of a request as well, in a thread."""
    for thread in threading.enumerate():
        if "_background" in thread.name:
            thread.join()


def asked(ledger: Ledger) -> list[str]:
    """What has been asked of the API."""
    requests = [f"{e.method} {e.url.partition('?')[0]}" for e in ledger.exchanges]
    return [request for request in requests if not request.endswith("/token")]


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.text.partition("<Code>")[2].partition("</Code>")[0]


# --- buckets and objects --------------------------------------------------------------------------


def test_a_bucket_is_made_found_and_removed(client: Any) -> None:
    client.create_bucket("films")
    assert [bucket.name for bucket in client.list_buckets()] == ["films"]
    assert client.get_bucket("films").location == "US"
    client.get_bucket("films").delete()
    with pytest.raises(exceptions.NotFound, match="The specified bucket does not exist"):
        client.get_bucket("films")


def test_a_name_is_taken_once(client: Any, bucket: Any) -> None:
    with pytest.raises(exceptions.Conflict, match="not available"):
        client.create_bucket("films")
    with pytest.raises(exceptions.BadRequest, match="Invalid bucket name: 'A'"):
        client.create_bucket("A")


def test_an_object_comes_back(bucket: Any) -> None:
    put(bucket)
    found = bucket.get_blob("a film.mp4")
    assert (found.size, found.content_type, found.md5_hash) == (6, "video/mp4", found.md5_hash)
    assert found.download_as_bytes() == b"frames"


@pytest.mark.parametrize("name", ["ü/ö.txt", "a+b&c=d?e#f", "%41", "a//b"])
def test_any_name_comes_back(bucket: Any, name: str) -> None:
    put(bucket, name, name.encode())
    assert bucket.blob(name).download_as_bytes() == name.encode()
    assert [blob.name for blob in bucket.list_blobs()] == [name]
    url = bucket.blob(name).generate_signed_url(version="v4", expiration=60)
    assert httpx.get(url).content == name.encode()


def test_a_large_file_goes_in_chunks(bucket: Any, fal_ledger: Ledger) -> None:
    data = bytes(range(256)) * 4000
    blob = bucket.blob("long.mp4", chunk_size=256 * 1024)
    blob.upload_from_file(io.BytesIO(data))
    assert len(fal_ledger.requests(method="PUT")) == 4
    assert bucket.blob("long.mp4").download_as_bytes() == data
    part = bucket.blob("long.mp4").download_as_bytes(start=256, end=511)
    assert part == bytes(range(256))


def test_a_listing_has_folders(client: Any, bucket: Any) -> None:
    for name in ("a", "dir/b", "dir/c"):
        put(bucket, name)
    listed = client.list_blobs("films", delimiter="/")
    assert [blob.name for blob in listed] == ["a"]
    assert listed.prefixes == {"dir/"}
    assert [blob.name for blob in client.list_blobs("films", prefix="dir/")] == ["dir/b", "dir/c"]


def test_what_is_gone_is_not_found(bucket: Any) -> None:
    put(bucket).delete()
    assert bucket.get_blob("a film.mp4") is None
    with pytest.raises(exceptions.NotFound, match=r"No such object: films/a film\.mp4"):
        bucket.blob("a film.mp4").download_as_bytes()
    put(bucket)
    with pytest.raises(exceptions.Conflict, match="not empty"):
        bucket.delete()


def test_an_object_can_be_made_only_if_it_is_new(bucket: Any) -> None:
    put(bucket)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("a film.mp4").upload_from_string(b"x", if_generation_match=0)


def test_metadata_can_be_changed(bucket: Any) -> None:
    blob = put(bucket)
    blob.metadata, blob.cache_control = {"cut": "final"}, "no-store"
    blob.patch()
    assert bucket.get_blob("a film.mp4").metadata == {"cut": "final"}
    url = blob.generate_signed_url(version="v4", expiration=60)
    assert httpx.get(url).headers["cache-control"] == "no-store"


# --- copies ---------------------------------------------------------------------------------------


def test_a_renamed_object_has_its_bytes(bucket: Any) -> None:
    new = bucket.rename_blob(put(bucket), "dir/ü b.mp4")
    assert [blob.name for blob in bucket.list_blobs()] == ["dir/ü b.mp4"]
    assert (new.download_as_bytes(), new.content_type) == (b"frames", "video/mp4")


def test_a_copy_goes_into_another_bucket(client: Any, bucket: Any) -> None:
    other = client.create_bucket("songs")
    blob = put(bucket)
    blob.make_public()
    copied = bucket.copy_blob(blob, other, "b")
    assert other.blob("b").download_as_bytes() == blob.download_as_bytes() == b"frames"
    assert httpx.get(copied.public_url).status_code == 403  # who may read does not go along
    with pytest.raises(exceptions.NotFound, match="No such object: films/none"):
        bucket.copy_blob(bucket.blob("none"), other)


def test_a_rewrite_takes_one_step(bucket: Any) -> None:
    blob = put(bucket)
    new = bucket.blob("b")
    new.metadata = {"cut": "final"}
    assert new.rewrite(blob) == (None, 6, 6)
    found = bucket.get_blob("b")
    assert (found.metadata, found.content_type) == ({"cut": "final"}, "video/mp4")
    with pytest.raises(exceptions.PreconditionFailed):
        new.rewrite(blob, if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        new.rewrite(blob, if_source_generation_match=1)


def test_a_moved_object_is_only_there(bucket: Any) -> None:
    if not hasattr(bucket, "move_blob"):
        pytest.skip("this google-cloud-storage has no move_blob")
    put(bucket)
    bucket.move_blob(bucket.blob("a film.mp4"), "b")
    assert [blob.name for blob in bucket.list_blobs()] == ["b"]
    assert bucket.blob("b").download_as_bytes() == b"frames"


def test_objects_are_composed_in_their_order(bucket: Any) -> None:
    parts = [put(bucket, name, name.encode()) for name in "ba"]
    whole = bucket.blob("whole")
    whole.content_type = "text/plain"
    whole.compose(parts)
    found = bucket.get_blob("whole")
    assert (found.download_as_bytes(), found.content_type) == (b"ba", "text/plain")


def test_what_is_not_served_says_so(client: Any, bucket: Any) -> None:
    put(bucket)
    for path in ("films/notificationConfigs", "films/acl", "films/o/a%20film.mp4/restore"):
        answer = httpx.post(f"{API}/{path}", headers={"Authorization": "Bearer x"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (501, 501)
        assert error["message"].endswith(" is not served by the emulator")
    with pytest.raises(exceptions.MethodNotImplemented, match="/batch/storage/v1 is not served"):
        with client.batch():
            bucket.blob("a film.mp4").delete()
    assert bucket.test_iam_permissions(["storage.objects.get"]) == ["storage.objects.get"]
    assert bucket.blob("a film.mp4").exists()


@pytest.mark.parametrize("field", ["md5Hash", "crc32c"])
def test_a_refused_upload_leaves_the_older_object(bucket: Any, field: str) -> None:
    put(bucket)
    resource = json.dumps({"name": "a film.mp4", field: "AAAA"})
    body = f"--x\r\n\r\n{resource}\r\n--x\r\n\r\nnew\r\n--x--"
    address = f"{API}/films/o?uploadType=multipart".replace("/storage/", "/upload/storage/")
    kind = {"Authorization": "Bearer x", "Content-Type": "multipart/related; boundary=x"}
    answer = httpx.post(address, content=body, headers=kind)
    assert answer.status_code == 400
    kind = "MD5 hash" if field == "md5Hash" else "CRC32C"
    assert answer.json()["error"]["message"].startswith(f'Provided {kind} "AAAA" doesn')
    assert bucket.blob("a film.mp4").download_as_bytes() == b"frames"


@pytest.mark.parametrize("checksum", ["md5", "crc32c"])
def test_a_checksum_that_fits_is_taken(bucket: Any, checksum: str) -> None:
    bucket.blob("a").upload_from_string(b"x", checksum=checksum)
    large = bucket.blob("b", chunk_size=256 * 1024)
    large.upload_from_file(io.BytesIO(bytes(600_000)), checksum=checksum)
    assert bucket.get_blob("b").size == 600_000


def test_only_the_meant_object_is_changed_or_deleted(bucket: Any) -> None:
    old = put(bucket).generation
    blob = put(bucket)
    with pytest.raises(exceptions.PreconditionFailed):
        blob.delete(if_generation_match=old)
    blob.cache_control = "no-store"
    with pytest.raises(exceptions.PreconditionFailed):
        blob.patch(if_generation_match=old)
    assert bucket.get_blob("a film.mp4").cache_control is None
    blob.delete(if_generation_match=blob.generation)
    assert not blob.exists()


# --- who may read ---------------------------------------------------------------------------------


def test_nobody_reads_a_private_object(bucket: Any) -> None:
    assert error_of(httpx.get(put(bucket).public_url)) == (403, "AccessDenied")


def test_anybody_reads_a_public_one(bucket: Any) -> None:
    blob = put(bucket)
    blob.make_public()
    response = httpx.get(blob.public_url)
    assert (response.content, response.headers["content-type"]) == (b"frames", "video/mp4")
    assert httpx.get("https://films.storage.googleapis.com/a%20film.mp4").content == b"frames"


def test_the_api_wants_a_token(bucket: Any) -> None:
    assert httpx.get(f"{API}/films").status_code == 401
    assert httpx.get(f"{API}/films", headers={"Authorization": "Bearer x"}).status_code == 200


def test_a_token_lives_an_hour(bucket: Any, fal_clock: Clock, fal_ledger: Ledger) -> None:
    token = bucket.client._credentials.token
    ours = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{API}/films", headers=ours).status_code == 200
    fal_clock.advance(hours=1)
    assert httpx.get(f"{API}/films", headers=ours).status_code == 401
    put(bucket)  # the client asks for another one
    assert len(fal_ledger.requests(host="oauth2.googleapis.com")) == 2


def test_a_forged_assertion_gets_no_token(fal_buckets: Buckets) -> None:
    from emulator.storage.google import GoogleAccount

    claims = json.dumps({"iss": GoogleAccount.email}).encode()
    import base64

    text = base64.urlsafe_b64encode(claims).decode()
    form = {"assertion": f"e30.{text}.c2lnbmF0dXJl"}
    response = httpx.post("https://oauth2.googleapis.com/token", data=form)
    assert (response.status_code, response.json()["error"]) == (400, "invalid_grant")


@pytest.mark.parametrize("version", ["v2", "v4"])
def test_a_signed_url_lives_as_long_as_it_says(
    bucket: Any, fal_clock: Clock, fal_ledger: Ledger, version: str
) -> None:
    fal_clock.freeze()
    blob = put(bucket)
    url = blob.generate_signed_url(version=version, expiration=timedelta(hours=15))
    fal_clock.advance(hours=15, seconds=-1)
    assert httpx.get(url).content == b"frames"
    fal_clock.advance(1)
    assert error_of(httpx.get(url)) == (400, "ExpiredToken")
    assert "The provided token has expired." in fal_ledger.exchanges[-1].notes[0]


def test_a_url_is_signed_by_the_moved_clock(bucket: Any, fal_clock: Clock) -> None:
    fal_clock.advance(days=40)
    url = put(bucket).generate_signed_url(version="v4", expiration=60)
    assert f"X-Goog-Date={fal_clock.now():%Y%m%d}" in url
    assert httpx.get(url).content == b"frames"


def test_a_whole_bucket_can_be_public(client: Any, bucket: Any) -> None:
    policy = bucket.get_iam_policy()
    policy.bindings.append({"role": "roles/storage.objectViewer", "members": ["allUsers"]})
    bucket.set_iam_policy(policy)
    assert httpx.get(put(bucket).public_url).content == b"frames"


def test_a_signature_is_of_one_object(bucket: Any) -> None:
    put(bucket, "another")
    url = put(bucket, "one").generate_signed_url(version="v4", expiration=60)
    assert httpx.get(url).status_code == 200
    assert error_of(httpx.get(url.replace("/one", "/another"))) == (403, "SignatureDoesNotMatch")


def test_a_signed_url_may_be_for_writing(bucket: Any) -> None:
    url = bucket.blob("new").generate_signed_url(
        version="v4", expiration=60, method="PUT", content_type="text/plain"
    )
    assert httpx.put(url, content=b"x", headers={"content-type": "text/plain"}).status_code == 200
    assert bucket.get_blob("new").content_type == "text/plain"
    assert httpx.put(url, content=b"x", headers={"content-type": "a/b"}).status_code == 403


def test_google_imported_on_a_moved_clock_keeps_nothing_of_it(pytester: Any) -> None:
    pytester.makepyfile(
        """
        import sys
        from datetime import timedelta

        import pytest

        def test_one(fal_clock):
            fal_clock.advance(days=40)
            assert "google.cloud.storage" not in sys.modules
            import google.cloud.storage

        @pytest.mark.parametrize("ours", [False, True, False])
        def test_others(request, ours):
            if ours:
                request.getfixturevalue("fal_clock").advance(days=80)
            from datetime import datetime, timezone
            from google.cloud.storage import _helpers
            apart = _helpers._NOW(timezone.utc) - datetime.now(timezone.utc)
            assert abs(apart) < timedelta(minutes=1)
        """
    )
    options = ("-p", "no:randomly", "-p", "no:cacheprovider")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=4)


# --- beside the rest ------------------------------------------------------------------------------


def test_the_bucket_of_fals_fallback_is_the_cdns(fal_buckets: Buckets, fal_cdn: Any) -> None:
    assert httpx.get("https://storage.googleapis.com/falserverless/x").status_code == 404
    assert fal_buckets.all == []


def test_the_test_and_the_client_see_the_same_bucket(fal_buckets: Buckets, client: Any) -> None:
    bucket = fal_buckets.create("films", provider="gcs")
    put(client.bucket("films"))
    assert bucket.get("a film.mp4") == b"frames"
    bucket.put("b", b"x", "text/plain")
    assert client.bucket("films").get_blob("b").content_type == "text/plain"


def test_only_what_was_asked_for_is_in_the_ledger(
    fal_buckets: Buckets, client: Any, fal_ledger: Ledger
) -> None:
    fal_buckets.create("films", provider="gcs")
    put(client.bucket("films"))
    join_background()
    upload = f"{API}/films/o".replace("/storage/v1", "/upload/storage/v1")
    assert asked(fal_ledger) == [f"POST {upload}"]


def test_nor_is_the_bucket_looked_for_after_a_404(
    client: Any, bucket: Any, fal_ledger: Ledger, fal_emulator: Any
) -> None:
    with pytest.raises(exceptions.NotFound):
        bucket.blob("a").download_as_bytes()
    join_background()
    assert asked(fal_ledger) == [
        f"POST {API}",
        f"GET {API}/films/o/a".replace("/storage/", "/download/storage/"),
    ]
    cache = sys.modules.get("google.cloud.storage._bucket_metadata_cache")
    if cache is not None:
        fal_emulator.stop()
        assert cache.BucketMetadataCache.check_and_evict.__name__ == "check_and_evict"
        fal_emulator.start()


@pytest.mark.parametrize("_", range(2))
def test_each_test_begins_without_a_bucket(client: Any, _: int) -> None:
    assert list(client.list_buckets()) == []
    client.create_bucket("films")
