"""Signatures of S3: the examples of Amazon's own documentation, and what botocore makes."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from botocore.auth import HmacV1Auth, S3SigV4PostAuth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from freezegun import freeze_time

from emulator.storage import signatures
from emulator.storage.presigning import presigned_post, presigned_url

#: Of Amazon's examples.
ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
HOST = "examplebucket.s3.amazonaws.com"
DATE, SCOPE = "20130524T000000Z", "20130524/us-east-1/s3/aws4_request"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
WELCOME = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"
MOMENT = datetime(2013, 5, 24, tzinfo=timezone.utc)
EVENING = datetime(2026, 3, 1, 21, 4, 5, tzinfo=timezone.utc)


# --- version 4 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "payload", "signature"),
    [
        pytest.param(
            "GET",
            "/test.txt",
            "",
            {"range": "bytes=0-9", "x-amz-content-sha256": EMPTY, "x-amz-date": DATE},
            EMPTY,
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            id="GET an object",
        ),
        pytest.param(
            "PUT",
            "/test$file.text",
            "",
            {
                "date": "Fri, 24 May 2013 00:00:00 GMT",
                "x-amz-content-sha256": WELCOME,
                "x-amz-date": DATE,
                "x-amz-storage-class": "REDUCED_REDUNDANCY",
            },
            WELCOME,
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            id="PUT an object",
        ),
        pytest.param(
            "GET",
            "/",
            "lifecycle",
            {"x-amz-content-sha256": EMPTY, "x-amz-date": DATE},
            EMPTY,
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            id="GET a bucket's lifecycle",
        ),
        pytest.param(
            "GET",
            "/",
            "prefix=J&max-keys=2",
            {"x-amz-content-sha256": EMPTY, "x-amz-date": DATE},
            EMPTY,
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            id="list a bucket",
        ),
    ],
)
def test_amazons_examples_of_version_4(
    method: str, path: str, query: str, headers: dict[str, str], payload: str, signature: str
) -> None:
    headers = {"host": HOST, **headers}
    signed = ";".join(sorted(headers))
    pairs = signatures.pairs_of(query)
    request = signatures.canonical_request(
        method, path, pairs, headers.__getitem__, signed, payload
    )
    text = signatures.string_to_sign_v4("AWS4-HMAC-SHA256", DATE, SCOPE, request)
    assert signatures.signature_v4(SECRET, SCOPE, text) == signature


def test_the_canonical_form_of_a_request() -> None:
    given = {"host": HOST, "x-amz-meta-a": "  two   spaces  "}
    request = signatures.canonical_request(
        "GET",
        "/a b/%C3%BC~.txt",
        [("b", "x/y z"), ("a+", "2"), ("a/+", "1"), ("a-_.~", "-_.~")],
        given.__getitem__,
        "host;x-amz-meta-a",
        "UNSIGNED-PAYLOAD",
    )
    assert request.split("\n") == [
        "GET",
        "/a%20b/%C3%BC~.txt",
        "a%2B=2&a%2F%2B=1&a-_.~=-_.~&b=x%2Fy%20z",
        f"host:{HOST}",
        "x-amz-meta-a:two spaces",
        "",
        "host;x-amz-meta-a",
        "UNSIGNED-PAYLOAD",
    ]


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("/a/b", "/a/b"),
        ("/a b", "/a%20b"),
        ("/a%20b", "/a%20b"),
        ("/a+b", "/a%2Bb"),
        ("/%7e-_.~", "/~-_.~"),
        ("/%ff", "/%FF"),
        ("/ü", "/%C3%BC"),
    ],
)
def test_a_path_is_escaped_once(path: str, canonical: str) -> None:
    assert signatures.canonical_path(path) == canonical


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        ("", []),
        ("a=1&b=2", [("a", "1"), ("b", "2")]),
        ("a=1&a=1", [("a", "1"), ("a", "1")]),
        ("uploads", [("uploads", "")]),
        ("a=", [("a", "")]),
        ("a=1=2", [("a", "1=2")]),
        ("&a=1&", [("a", "1")]),
        ("a%3D=%26+x", [("a=", "&+x")]),
    ],
)
def test_the_parameters_of_a_query(query: str, pairs: list[tuple[str, str]]) -> None:
    assert signatures.pairs_of(query) == pairs


# --- version 2 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "resource", "query", "headers", "date", "signature"),
    [
        (
            "GET",
            "/awsexamplebucket1/photos/puppy.jpg",
            "",
            {},
            "Tue, 27 Mar 2007 19:36:42 +0000",
            "qgk2+6Sv9/oM7G3qLEjTH1a1l1g=",
        ),
        (
            "PUT",
            "/awsexamplebucket1/photos/puppy.jpg",
            "",
            {"content-type": "image/jpeg", "content-length": "94328"},
            "Tue, 27 Mar 2007 21:15:45 +0000",
            "iqRzw+ileNPu1fhspnRs8nOjjIA=",
        ),
        (
            "GET",
            "/awsexamplebucket1/",
            "prefix=photos&max-keys=50&marker=puppy",
            {"user-agent": "Mozilla/5.0"},
            "Tue, 27 Mar 2007 19:42:41 +0000",
            "m0WP8eCtspQl5Ahe6L1SozdX9YA=",
        ),
        (
            "GET",
            "/awsexamplebucket1/",
            "acl",
            {},
            "Tue, 27 Mar 2007 19:44:46 +0000",
            "82ZHiFIjc+WbcwFKGUVEQspPn+0=",
        ),
    ],
    ids=["GET an object", "PUT an object", "list a bucket", "a bucket's rights"],
)
def test_amazons_examples_of_version_2(
    method: str, resource: str, query: str, headers: dict[str, str], date: str, signature: str
) -> None:
    pairs = signatures.pairs_of(query)
    found = signatures.signature_v2(SECRET, method, resource, pairs, headers.items(), date)
    assert found == signature


def test_version_2_covers_what_botocore_has_it_cover() -> None:
    headers = {"content-md5": "abc", "content-type": "text/plain"}
    amazon = {"x-amz-meta-b": " 2 ", "x-amz-acl": "private", "other": "3"}
    query = "uploadId=1&prefix=a&partNumber=2&acl&acls=3"
    pairs = signatures.pairs_of(query)
    every = [*headers.items(), *amazon.items()]
    ours = signatures.signature_v2(SECRET, "PUT", "/films/a.mp4", pairs, every, "1700000000")
    theirs = HmacV1Auth(Credentials(ID, SECRET)).sign_string(
        "PUT\nabc\ntext/plain\n1700000000\nx-amz-acl:private\nx-amz-meta-b:2\n"
        "/films/a.mp4?acl&partNumber=2&uploadId=1"
    )
    assert ours == theirs


#: Google's, which botocore signs with the same class.
GOOGLES = {"defaultObjectAcl"}


@pytest.mark.parametrize("name", sorted({*HmacV1Auth.QSAOfInterest} - GOOGLES))
def test_what_botocore_signs_is_a_subresource(name: str) -> None:
    assert signatures.is_subresource(name)


@pytest.mark.parametrize("name", ["prefix", "max-keys", "marker", "acls", "my-acl", "response-"])
def test_what_asks_for_a_part_or_a_listing_is_none(name: str) -> None:
    assert not signatures.is_subresource(name)


# --- presigned ------------------------------------------------------------------------------------


def test_amazons_example_of_a_presigned_url() -> None:
    assert presigned_url(f"https://{HOST}/test.txt", (ID, SECRET), MOMENT, 86400) == (
        f"https://{HOST}/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={ID}%2F"
        "20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&"
        "X-Amz-SignedHeaders=host&X-Amz-Signature="
        "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


def test_a_presigned_url_is_what_botocore_makes() -> None:
    url = f"https://{HOST}/up/a%20b.mp4"
    request = AWSRequest("PUT", url)
    with freeze_time(EVENING.replace(tzinfo=None)):
        S3SigV4QueryAuth(Credentials(ID, SECRET), "s3", "eu-west-3", 60).add_auth(request)
    ours = presigned_url(url, (ID, SECRET), EVENING, 60, region="eu-west-3", method="PUT")
    assert ours == request.url


def made_by_botocore(url: str, region: str, fields: dict[str, Any], policy: Any) -> Any:
    """The fields that it adds, and the policy as it reads it."""
    request = AWSRequest("POST", url)
    request.context["s3-presign-post-fields"] = fields
    request.context["s3-presign-post-policy"] = policy
    with freeze_time(EVENING.replace(tzinfo=None)):
        S3SigV4PostAuth(Credentials(ID, SECRET), "s3", region).add_auth(request)
    return request.context["s3-presign-post-fields"]


@pytest.mark.parametrize(
    ("key", "condition"),
    [
        ("up/${filename}", ["starts-with", "$key", "up/"]),
        ("${filename}", ["starts-with", "$key", ""]),
        ("up/a.mp4", {"key": "up/a.mp4"}),
    ],
)
@pytest.mark.parametrize("region", ["us-east-1", "eu-west-3"])
def test_a_presigned_post_is_what_botocore_makes(key: str, condition: Any, region: str) -> None:
    url, expires = f"https://{HOST}/", EVENING + timedelta(hours=1)
    limit = ["content-length-range", 1, 9]
    chosen = {} if region == "us-east-1" else {"region": region}
    post = presigned_post(url, "films", key, [limit], (ID, SECRET), EVENING, expires, **chosen)
    policy = {
        "expiration": "2026-03-01T22:04:05Z",
        "conditions": [limit, {"bucket": "films"}, condition],
    }
    theirs = made_by_botocore(url, region, {"key": key}, policy)
    assert post == {"url": url, "fields": theirs}
