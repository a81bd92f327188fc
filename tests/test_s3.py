"""S3's endpoints, answered by moto in this process: what any client of S3 finds."""

from __future__ import annotations

import io
import json
import os
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import requests
from boto import client, closed_clients, newer_moto  # noqa: F401 - a fixture
from botocore import UNSIGNED
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger

MINUTES_15 = 15 * 60
MEBIBYTE = 1024 * 1024


@pytest.fixture
def s3(fal_emulator: Any) -> Any:
    """A client, and a bucket "films" with "a film.mp4" in it."""
    s3 = client()
    s3.create_bucket(Bucket="films")
    s3.put_object(Bucket="films", Key="a film.mp4", Body=b"frames", ContentType="video/mp4")
    return s3


def presign(s3: Any, seconds: int = MINUTES_15, key: str = "a film.mp4", **more: Any) -> str:
    parameters = {"Bucket": "films", "Key": key, **more}
    return str(s3.generate_presigned_url("get_object", parameters, ExpiresIn=seconds))


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    text = response.text
    code = text.partition("<Code>")[2].partition("</Code>")[0]
    return response.status_code, code, text.partition("<Message>")[2].partition("</Message>")[0]


# --- endpoints ------------------------------------------------------------------------------------


def test_boto3_finds_its_bucket_over_a_real_connection(s3: Any, fal_ledger: Ledger) -> None:
    found = s3.get_object(Bucket="films", Key="a film.mp4")
    assert (found["Body"].read(), found["ContentType"]) == (b"frames", "video/mp4")
    assert {exchange.client for exchange in fal_ledger.exchanges} == {"wire"}


@pytest.mark.parametrize(
    ("options", "host"),
    [
        ({}, "films.s3.amazonaws.com"),
        ({"region_name": "eu-central-1"}, "films.s3.eu-central-1.amazonaws.com"),
        ({"style": "path"}, "s3.amazonaws.com"),
        ({"style": "path", "region_name": "eu-central-1"}, "s3.eu-central-1.amazonaws.com"),
        ({"endpoint_url": "https://s3.us-west-2.amazonaws.com", "style": "virtual"},
         "films.s3.us-west-2.amazonaws.com"),
        ({"endpoint_url": "https://s3.dualstack.us-west-2.amazonaws.com"},
         "s3.dualstack.us-west-2.amazonaws.com"),
        ({"endpoint_url": "https://s3-us-west-2.amazonaws.com"}, "s3-us-west-2.amazonaws.com"),
        ({"endpoint_url": "https://s3-accelerate.amazonaws.com"},
         "films.s3-accelerate.amazonaws.com"),
        ({"endpoint_url": "https://acc0.r2.cloudflarestorage.com", "style": "path"},
         "acc0.r2.cloudflarestorage.com"),
        ({"endpoint_url": "https://acc0.r2.cloudflarestorage.com", "style": "virtual"},
         "films.acc0.r2.cloudflarestorage.com"),
        ({"endpoint_url": "https://acc0.eu.r2.cloudflarestorage.com", "style": "path"},
         "acc0.eu.r2.cloudflarestorage.com"),
    ],
)  # fmt: skip
def test_all_endpoints_lead_to_the_same_buckets(
    s3: Any, fal_ledger: Ledger, options: dict[str, Any], host: str
) -> None:
    other = client(**options)
    other.put_object(Bucket="films", Key="dir/b.mp4", Body=b"b")
    assert s3.get_object(Bucket="films", Key="dir/b.mp4")["Body"].read() == b"b"
    assert fal_ledger.requests(host=host, method="PUT")

    url = other.generate_presigned_url("get_object", {"Bucket": "films", "Key": "dir/b.mp4"})
    assert httpx.get(url).content == b"b"


def test_a_dot_in_the_buckets_name_is_a_part_of_it(fal_emulator: Any) -> None:
    s3 = client()
    s3.create_bucket(Bucket="www.films.example")
    s3.put_object(Bucket="www.films.example", Key="a", Body=b"x")
    assert httpx.head("https://www.films.example.s3.amazonaws.com/a").status_code == 403
    url = s3.generate_presigned_url("get_object", {"Bucket": "www.films.example", "Key": "a"})
    assert httpx.get(url).content == b"x"


@pytest.mark.parametrize(
    "host",
    ["sts.amazonaws.com", "films.s3-website.us-east-1.amazonaws.com",
     "s3-control.us-east-1.amazonaws.com", "s3.amazonaws.com.example"],
)  # fmt: skip
def test_other_hosts_are_none_of_it(fal_emulator: Any, host: str) -> None:
    with pytest.raises(ConnectionError, match=r"fal_origin\.serve"):
        httpx.get(f"https://{host}/")


def test_a_region_is_the_buckets(fal_emulator: Any) -> None:
    s3 = client(region_name="eu-west-1")
    where = {"LocationConstraint": "eu-west-1"}
    s3.create_bucket(Bucket="films", CreateBucketConfiguration=where)
    assert s3.get_bucket_location(Bucket="films")["LocationConstraint"] == "eu-west-1"


def test_a_bucket_of_r2_needs_no_region(fal_emulator: Any) -> None:
    r2 = client(endpoint_url="https://acc0.r2.cloudflarestorage.com", region_name="auto")
    r2.create_bucket(Bucket="films")
    assert [bucket["Name"] for bucket in r2.list_buckets()["Buckets"]] == ["films"]


# --- objects --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a b", "ü/ö.txt", "a+b&c=d?e#f", "%41", "/begin", "a//b", "end/"])
def test_any_key_comes_back(s3: Any, key: str) -> None:
    s3.put_object(Bucket="films", Key=key, Body=key.encode())
    listed = s3.list_objects_v2(Bucket="films")["Contents"]
    assert key in [found["Key"] for found in listed]
    assert s3.get_object(Bucket="films", Key=key)["Body"].read() == key.encode()
    assert httpx.get(presign(s3, key=key)).content == key.encode()


def test_head_tells_without_a_body(s3: Any) -> None:
    assert s3.head_object(Bucket="films", Key="a film.mp4")["ContentLength"] == 6
    with pytest.raises(ClientError, match="404"):
        s3.head_object(Bucket="films", Key="no film.mp4")


def test_a_range_is_a_part(s3: Any) -> None:
    found = s3.get_object(Bucket="films", Key="a film.mp4", Range="bytes=2-3")
    assert (found["Body"].read(), found["ContentRange"]) == (b"am", "bytes 2-3/6")


def test_metadata_and_types_come_back(s3: Any) -> None:
    s3.put_object(Bucket="films", Key="a", Body=b"x", Metadata={"cut": "final"},
                  ContentEncoding="identity")  # fmt: skip
    found = s3.head_object(Bucket="films", Key="a")
    assert (found["Metadata"], found["ContentEncoding"]) == ({"cut": "final"}, "identity")
    s3.upload_fileobj(io.BytesIO(b"x"), "films", "b")
    assert "ContentEncoding" not in s3.head_object(Bucket="films", Key="b")


def test_a_large_file_goes_in_parts(s3: Any, fal_ledger: Ledger) -> None:
    data = bytes(range(256)) * (20 * MEBIBYTE // 256)
    s3.upload_fileobj(io.BytesIO(data), "films", "long.mp4")
    assert len(fal_ledger.requests(method="PUT", path="/long.mp4")) == 3
    s3.download_fileobj("films", "long.mp4", back := io.BytesIO())
    assert back.getvalue() == data


def test_parts_out_of_order_are_refused(s3: Any) -> None:
    upload = s3.create_multipart_upload(Bucket="films", Key="a")["UploadId"]
    where = {"Bucket": "films", "Key": "a", "UploadId": upload}
    parts = [
        {
            "PartNumber": number,
            "ETag": s3.upload_part(**where, PartNumber=number, Body=b"x")["ETag"],
        }
        for number in (2, 1)
    ]
    with pytest.raises(ClientError, match="InvalidPartOrder"):
        s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})


@newer_moto
@pytest.mark.parametrize("algorithm", ["CRC32", "SHA256"])
def test_a_checksum_is_kept(s3: Any, algorithm: str) -> None:
    s3.put_object(Bucket="films", Key="a", Body=b"x", ChecksumAlgorithm=algorithm)
    found = s3.head_object(Bucket="films", Key="a", ChecksumMode="ENABLED")
    assert found[f"Checksum{algorithm}"]


def test_what_is_not_there_is_said_in_s3s_words(s3: Any) -> None:
    with pytest.raises(s3.exceptions.NoSuchKey):
        s3.get_object(Bucket="films", Key="no film")
    with pytest.raises(s3.exceptions.NoSuchBucket):
        s3.get_object(Bucket="songs", Key="a")


# --- who may read ---------------------------------------------------------------------------------


def test_nobody_reads_a_private_object(s3: Any) -> None:
    response = httpx.get("https://films.s3.amazonaws.com/a%20film.mp4")
    assert error_of(response) == (403, "AccessDenied", "Access Denied")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/new"), ("PUT", "/a%20film.mp4"), ("DELETE", "/a%20film.mp4"), ("GET", "/"),
        ("GET", "/?list-type=2"), ("HEAD", "/"), ("POST", "/new?uploads"), ("POST", "/?delete"),
        ("DELETE", "/"), ("PUT", "/?policy"),
    ],
)  # fmt: skip
def test_nobody_writes_to_or_lists_a_private_bucket(s3: Any, method: str, path: str) -> None:
    response = httpx.request(method, f"https://films.s3.amazonaws.com{path}")
    assert response.status_code == 403
    if method != "HEAD":
        assert error_of(response) == (403, "AccessDenied", "Access Denied")
    assert [o["Key"] for o in s3.list_objects_v2(Bucket="films")["Contents"]] == ["a film.mp4"]


def test_neither_does_a_client_that_does_not_sign(s3: Any) -> None:
    anonymous = client(UNSIGNED)
    with pytest.raises(ClientError, match="AccessDenied"):
        anonymous.put_object(Bucket="films", Key="new", Body=b"x")
    with pytest.raises(ClientError, match="AccessDenied"):
        anonymous.list_objects_v2(Bucket="films")


def test_a_policy_of_the_bucket_may_let_everybody_do_it(s3: Any) -> None:
    allowed = {"Effect": "Allow", "Principal": "*", "Action": ["s3:PutObject", "s3:ListBucket"]}
    where = ["arn:aws:s3:::films", "arn:aws:s3:::films/in/*"]
    policy = {"Version": "2012-10-17", "Statement": [{**allowed, "Resource": where}]}
    s3.put_bucket_policy(Bucket="films", Policy=json.dumps(policy))
    root = "https://films.s3.amazonaws.com"
    assert httpx.put(f"{root}/in/a", content=b"x").status_code == 200
    assert "<Key>in/a</Key>" in httpx.get(root).text
    refused = [
        httpx.put(f"{root}/out", content=b"x"),
        httpx.delete(f"{root}/in/a"),
        httpx.put(f"{root}/in/a?acl", content=b"x"),
        httpx.get(f"{root}/?policy"),
    ]
    assert [response.status_code for response in refused] == [403] * 4


def test_anybody_reads_a_public_one(s3: Any) -> None:
    s3.put_object(Bucket="films", Key="trailer", Body=b"x", ACL="public-read")
    assert httpx.get("https://films.s3.amazonaws.com/trailer").content == b"x"


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_presigned_url_lives_as_long_as_it_says(
    s3: Any, fal_clock: Clock, fal_ledger: Ledger, version: str
) -> None:
    fal_clock.freeze()
    url = presign(client(version))
    fal_clock.advance(MINUTES_15 - 1)
    assert httpx.get(url).content == b"frames"

    fal_clock.advance(1)
    assert error_of(httpx.get(url)) == (403, "AccessDenied", "Request has expired")
    assert fal_ledger.exchanges[-1].notes == ["AccessDenied: Request has expired"]


def test_every_client_is_told_that_it_has_expired(s3: Any, fal_clock: Clock) -> None:
    url = presign(s3)
    fal_clock.advance(MINUTES_15)
    assert requests.get(url, timeout=10).status_code == 403
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url)


def test_the_url_may_live_a_week_at_most(s3: Any) -> None:
    assert httpx.get(presign(s3, 7 * 24 * 3600)).status_code == 200
    status, code, message = error_of(httpx.get(presign(s3, 7 * 24 * 3600 + 1)))
    assert (status, code) == (400, "AuthorizationQueryParametersError")
    assert "must be less than a week" in message


def test_a_url_of_tomorrow_is_not_valid_yet(s3: Any, fal_clock: Clock) -> None:
    fal_clock.advance(days=1)
    url = presign(s3)
    fal_clock.move_to(fal_clock.now().replace(year=2020))
    assert error_of(httpx.get(url)) == (403, "AccessDenied", "Request is not yet valid")


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_another_object_than_the_signed_one_is_refused(s3: Any, version: str) -> None:
    s3.put_object(Bucket="films", Key="another", Body=b"secret")
    url = presign(client(version)).replace("a%20film.mp4", "another")
    assert error_of(httpx.get(url))[:2] == (403, "SignatureDoesNotMatch")


@newer_moto
@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_the_answers_headers_can_be_signed(s3: Any, version: str) -> None:
    url = presign(client(version), ResponseContentDisposition='attachment; filename="ü b.mp4"')
    found = httpx.get(url)
    assert found.status_code == 200, found.text
    assert "attachment" in found.headers["content-disposition"]


@newer_moto
@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_presigned_put_stores(s3: Any, version: str) -> None:
    where = {"Bucket": "films", "Key": "new", "ContentType": "text/plain"}
    url = client(version).generate_presigned_url("put_object", where)
    assert httpx.put(url, content=b"x", headers={"Content-Type": "text/plain"}).status_code == 200
    assert error_of(httpx.put(url, content=b"x"))[1] == "SignatureDoesNotMatch"
    assert s3.get_object(Bucket="films", Key="new")["ContentType"] == "text/plain"


def test_a_request_signed_with_another_secret_is_refused(s3: Any) -> None:
    identifier = os.environ["AWS_ACCESS_KEY_ID"]
    liar = client(aws_access_key_id=identifier, aws_secret_access_key="a guess")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        liar.get_object(Bucket="films", Key="a film.mp4")


def test_so_is_one_signed_the_older_way(s3: Any) -> None:
    identifier = os.environ["AWS_ACCESS_KEY_ID"]
    liar = client("s3", aws_access_key_id=identifier, aws_secret_access_key="a guess")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        liar.get_object(Bucket="films", Key="a film.mp4")


@pytest.mark.parametrize("style", ["path", "virtual"])
def test_the_older_way_is_understood(s3: Any, style: str) -> None:
    old = client("s3", style)
    old.put_object(Bucket="films", Key="ü b/c", Body=b"x", Metadata={"cut": "final"})
    assert old.get_object(Bucket="films", Key="ü b/c")["Metadata"] == {"cut": "final"}
    old.put_object_acl(Bucket="films", Key="ü b/c", ACL="public-read")
    listed = old.list_objects_v2(Bucket="films", Prefix="ü")["Contents"]
    assert [found["Key"] for found in listed] == ["ü b/c"]
    assert [bucket["Name"] for bucket in old.list_buckets()["Buckets"]] == ["films"]
    upload = old.create_multipart_upload(Bucket="films", Key="parts")["UploadId"]
    where = {"Bucket": "films", "Key": "parts", "UploadId": upload}
    etag = old.upload_part(**where, PartNumber=1, Body=b"part")["ETag"]
    parts = [{"PartNumber": 1, "ETag": etag}]
    old.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    everything = {"Objects": [{"Key": "parts"}, {"Key": "ü b/c"}, {"Key": "a film.mp4"}]}
    old.delete_objects(Bucket="films", Delete=everything)
    old.delete_bucket(Bucket="films")


def test_another_body_than_the_signed_one_is_refused(s3: Any) -> None:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    key = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    url = "https://films.s3.amazonaws.com/a"
    request = AWSRequest("PUT", url, data=b"signed")
    request.context["payload_signing_enabled"] = True
    S3SigV4Auth(key, "s3", "us-east-1").add_auth(request)
    headers = dict(request.headers.items())
    assert len(headers["X-Amz-Content-SHA256"]) == 64
    assert httpx.put(url, content=b"signed", headers=headers).status_code == 200
    refused = httpx.put(url, content=b"another", headers=headers)
    assert error_of(refused)[:2] == (400, "XAmzContentSHA256Mismatch")


@pytest.mark.parametrize("kind", ["Bearer x", "Basic x", "nonsense"])
def test_other_kinds_of_authorization_are_none(s3: Any, kind: str) -> None:
    answer = httpx.put("https://films.s3.amazonaws.com/a", headers={"Authorization": kind})
    assert error_of(answer) == (400, "InvalidArgument", "Unsupported Authorization Type")


@pytest.mark.parametrize("change", [("Expires", "soon"), ("Expires", None), ("Signature", None),
                                    ("AWSAccessKeyId", None)])  # fmt: skip
def test_an_older_presigned_url_has_to_be_whole(s3: Any, change: tuple[str, str | None]) -> None:
    url = httpx.URL(presign(client("s3")))
    assert httpx.get(url).status_code == 200
    name, value = change
    url = url.copy_remove_param(name) if value is None else url.copy_set_param(name, value)
    assert error_of(httpx.get(url))[:2] == (403, "AccessDenied")


def test_keys_of_the_users_own_are_taken_on_trust(s3: Any) -> None:
    other = client(aws_access_key_id="id", aws_secret_access_key="secret")
    assert other.get_object(Bucket="films", Key="a film.mp4")["Body"].read() == b"frames"
    assert httpx.get(presign(other)).content == b"frames"


def test_other_peoples_files_are_an_origins(fal_emulator: Any, fal_origin: Any) -> None:
    url = "https://their-models.s3.amazonaws.com/model.bin"
    with pytest.raises(ConnectionError, match=re.escape(f'fal_origin.serve("{url}"')):
        httpx.get(url)
    fal_origin.serve(url, content=b"weights")
    assert httpx.get(url).content == b"weights"


# --- one test's buckets ---------------------------------------------------------------------------


@pytest.mark.parametrize("_", range(2))
def test_each_test_begins_without_a_bucket(fal_emulator: Any, _: int) -> None:
    s3 = client()
    assert s3.list_buckets()["Buckets"] == []
    s3.create_bucket(Bucket="films")
    s3.put_object(Bucket="films", Key="large", Body=bytes(6 * MEBIBYTE))
    s3.create_multipart_upload(Bucket="films", Key="never-completed")


def test_the_routes_of_the_test_come_first(fal_http: Any) -> None:
    fal_http.get("https://films.s3.amazonaws.com/a").respond(503)
    assert httpx.get("https://films.s3.amazonaws.com/a").status_code == 503


def test_credentials_are_not_written_down(s3: Any, fal_ledger: Ledger) -> None:
    url = presign(s3)
    httpx.get(url)
    written = repr([(e.url, e.request_headers) for e in fal_ledger.exchanges])
    assert "emulated/secret" not in written
    assert "X-Amz-Signature=***" in written
    assert "Signature=" not in repr([e.request_headers for e in fal_ledger.exchanges])
