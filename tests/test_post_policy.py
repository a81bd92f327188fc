"""Browser uploads: which forms S3 takes, by the policy that was signed for them."""

from __future__ import annotations

import base64
import json
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from boto import client, closed_clients  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger

URL = "https://films.s3.amazonaws.com/"


@pytest.fixture
def s3(fal_emulator: Any) -> Any:
    s3 = client()
    s3.create_bucket(Bucket="films")
    return s3


def sign(s3: Any, key: str = "up/${filename}", seconds: int = 3600, **options: Any) -> Any:
    """As the caller's own server makes it."""
    return s3.generate_presigned_post("films", key, ExpiresIn=seconds, **options)


def send(post: Any, name: str = "a.mp4", data: bytes = b"x", **more: str) -> httpx.Response:
    """As a browser, or the SDK, sends it."""
    fields = {**post["fields"], **{n.replace("_", "-"): v for n, v in more.items()}}
    return httpx.post(post["url"], data=fields, files={"file": (name, data)})


def refusal(response: httpx.Response) -> str:
    text = response.text
    code = text.partition("<Code>")[2].partition("</Code>")[0]
    message = text.partition("<Message>")[2].partition("</Message>")[0]
    return f"{response.status_code} {code}: {message.replace('&quot;', chr(34))}"


# --- what fits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_form_that_fits_is_stored(s3: Any, version: str) -> None:
    response = send(sign(client(version)))
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["location"] == f"{URL}up%2Fa.mp4"
    assert s3.get_object(Bucket="films", Key="up/a.mp4")["Body"].read() == b"x"


def test_the_file_name_is_the_last_part_of_a_path(s3: Any) -> None:
    send(sign(s3), name="C:\\films/ü b.mp4")
    assert s3.list_objects_v2(Bucket="films")["Contents"][0]["Key"] == "up/ü b.mp4"


def test_the_fields_say_what_the_object_is(s3: Any) -> None:
    fields = {"Content-Type": "video/mp4", "x-amz-meta-cut": "final", "acl": "public-read"}
    conditions = [{name: value} for name, value in fields.items()]
    send(sign(s3, Fields=fields, Conditions=conditions))
    found = httpx.get(f"{URL}up/a.mp4")
    assert (found.content, found.headers["content-type"]) == (b"x", "video/mp4")
    assert found.headers["x-amz-meta-cut"] == "final"


def test_a_second_one_with_the_same_key_replaces_the_first(s3: Any) -> None:
    post = sign(s3)
    assert [send(post, data=data).status_code for data in (b"1", b"2")] == [204, 204]
    assert s3.get_object(Bucket="films", Key="up/a.mp4")["Body"].read() == b"2"


def test_every_byte_arrives(s3: Any) -> None:
    data = b"\r\n--" + bytes(range(256)) * 300 + b"\r\n"
    send(sign(s3), data=data)
    assert s3.get_object(Bucket="films", Key="up/a.mp4")["Body"].read() == data


@pytest.mark.parametrize(
    ("wanted", "status"), [("200", 200), ("201", 201), ("204", 204), ("418", 204)]
)
def test_the_caller_chooses_the_answer(s3: Any, wanted: str, status: int) -> None:
    fields = {"success_action_status": wanted}
    response = send(sign(s3, Fields=fields, Conditions=[fields]))
    assert response.status_code == status
    assert ("<Key>up/a.mp4</Key>" in response.text) == (status == 201)


def test_the_caller_is_sent_on(s3: Any) -> None:
    fields = {"success_action_redirect": "https://films.example/done?a=1"}
    response = send(sign(s3, Fields=fields, Conditions=[fields]))
    assert response.status_code == 303
    target = "https://films.example/done?a=1&bucket=films&key=up%2Fa.mp4&etag=%22"
    assert response.headers["location"].startswith(target)


def test_a_bucket_in_the_path_does_as_well(s3: Any) -> None:
    post = sign(client(style="path"))
    assert post["url"] == "https://s3.amazonaws.com/films"
    assert send(post).headers["location"] == "https://s3.amazonaws.com/films/up%2Fa.mp4"


# --- what does not --------------------------------------------------------------------------------


def test_a_policy_expires(s3: Any, fal_clock: Clock, fal_ledger: Ledger) -> None:
    fal_clock.freeze()
    post = sign(s3, seconds=600)
    fal_clock.advance(599)
    assert send(post).status_code == 204
    fal_clock.advance(1)
    expected = "403 AccessDenied: Invalid according to Policy: Policy expired."
    assert refusal(send(post)) == expected
    assert fal_ledger.exchanges[-1].notes == [expected[4:]]


def test_a_field_that_no_condition_names_is_refused(s3: Any) -> None:
    expected = "403 AccessDenied: Invalid according to Policy: Extra input fields: content-type"
    assert refusal(send(sign(s3), Content_Type="video/mp4")) == expected


def test_a_field_to_be_ignored_is(s3: Any) -> None:
    assert send(sign(s3), x_ignore_me="x").status_code == 204


@pytest.mark.parametrize(
    ("condition", "kind", "fits"),
    [
        ({"content-type": "video/mp4"}, "video/mp4", True),
        (["eq", "$Content-Type", "video/mp4"], "video/webm", False),
        (["starts-with", "$Content-Type", "video/"], "video/webm", True),
        (["starts-with", "$Content-Type", "video/"], "image/png", False),
        (["starts-with", "$Content-Type", ""], "anything", True),
        (["starts-with", "$Content-Type", "video/"], "video/mp4,image/png", False),
    ],
)
def test_a_condition_has_to_hold(s3: Any, condition: Any, kind: str, fits: bool) -> None:
    response = send(sign(s3, Conditions=[condition]), Content_Type=kind)
    if fits:
        assert response.status_code == 204
    else:
        shown = json.dumps(condition)
        failed = "403 AccessDenied: Invalid according to Policy: Policy Condition failed: "
        assert refusal(response) == failed + shown


def test_the_key_is_one_of_the_conditions(s3: Any) -> None:
    post = sign(s3)
    post["fields"]["key"] = "elsewhere/${filename}"
    assert 'Policy Condition failed: ["starts-with", "$key", "up/"]' in refusal(send(post))


def test_so_is_the_bucket(s3: Any) -> None:
    s3.create_bucket(Bucket="songs")
    post = {**sign(s3), "url": "https://songs.s3.amazonaws.com/"}
    assert 'Policy Condition failed: ["eq", "$bucket", "films"]' in refusal(send(post))


@pytest.mark.parametrize(
    ("size", "answer"),
    [
        (1, "400 EntityTooSmall: Your proposed upload is smaller than the minimum allowed size"),
        (2, "204 : "),
        (4, "204 : "),
        (5, "400 EntityTooLarge: Your proposed upload exceeds the maximum allowed size"),
    ],
)
def test_a_policy_limits_the_size(s3: Any, size: int, answer: str) -> None:
    post = sign(s3, Conditions=[["content-length-range", 2, 4]])
    assert refusal(send(post, data=bytes(size))) == answer


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_policy_cannot_be_changed(s3: Any, version: str) -> None:
    post = sign(client(version))
    policy = json.loads(base64.b64decode(post["fields"]["policy"]))
    policy["expiration"] = "2999-01-01T00:00:00Z"
    post["fields"]["policy"] = base64.b64encode(json.dumps(policy).encode()).decode()
    assert refusal(send(post)).startswith("403 SignatureDoesNotMatch: ")


def test_a_policy_of_the_users_own_key_is_taken_on_trust(s3: Any) -> None:
    own = client(aws_access_key_id="id", aws_secret_access_key="secret")
    assert send(sign(own)).status_code == 204


def test_no_policy_is_no_permission(s3: Any) -> None:
    post = {"url": URL, "fields": {"key": "a"}}
    assert refusal(send(post)) == "403 AccessDenied: Access Denied"


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_neither_is_one_that_nobody_has_signed(s3: Any, version: str) -> None:
    signature = ("x-amz-signature", "signature")
    signer = ("x-amz-credential", "AWSAccessKeyId")
    for names in (signature, signer, signature + signer):
        post = sign(client(version))
        post["fields"] = {n: v for n, v in post["fields"].items() if n not in names}
        assert refusal(send(post)) == "403 AccessDenied: Access Denied"


def test_r2_takes_no_forms(s3: Any) -> None:
    post = sign(client(endpoint_url="https://acc0.r2.cloudflarestorage.com"))
    assert refusal(send(post)).startswith("501 NotImplemented: R2 takes no forms")


def test_a_bucket_has_to_be_there(s3: Any) -> None:
    post = client().generate_presigned_post("songs", "a")
    assert refusal(send(post)).startswith("404 NoSuchBucket: ")


def test_a_key_is_no_place_to_post_to(s3: Any) -> None:
    post = {**sign(s3), "url": f"{URL}up"}
    assert refusal(send(post)).startswith("405 MethodNotAllowed: ")


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("no base64!", "400 InvalidPolicyDocument: Invalid Policy: Invalid JSON."),
        ("[]", "400 InvalidPolicyDocument: Invalid Policy: Invalid JSON."),
        ("{}", "400 InvalidPolicyDocument: Invalid Policy: Policy missing expiration."),
        ('{"expiration": "soon"}',
         "400 InvalidPolicyDocument: Invalid Policy: Invalid 'expiration' value: 'soon'"),
        ('{"expiration": "2999-01-01T00:00:00Z", "conditions": [["is", "$key", "a"]]}',
         '400 InvalidPolicyDocument: Invalid Policy: Invalid Condition: ["is", "$key", "a"]'),
        ('{"expiration": "2999-01-01T00:00:00Z",'
         ' "conditions": [["content-length-range", "a few", null]]}',
         "400 InvalidPolicyDocument: Invalid Policy: Invalid Condition: "
         '["content-length-range", "a few", null]'),
    ],
)  # fmt: skip
def test_a_malformed_policy_is_told_why(s3: Any, policy: str, why: str) -> None:
    encoded = policy if "!" in policy else base64.b64encode(policy.encode()).decode()
    own = {"AWSAccessKeyId": "own", "signature": "own"}
    assert refusal(send({"url": URL, "fields": {"key": "a", "policy": encoded, **own}})) == why


def test_a_form_without_a_file_or_a_key_is_told_so(s3: Any) -> None:
    text = httpx.post(URL, files={"key": (None, "a"), "policy": (None, "x")})
    assert refusal(text).startswith("400 InvalidArgument: POST requires exactly one file upload")
    no_key = httpx.post(URL, files={"file": ("a", b"x")})
    assert refusal(no_key).startswith("400 InvalidArgument: Bucket POST must contain a field named")
    empty = sign(s3, "${filename}")
    empty["fields"]["key"] = ""
    assert refusal(send(empty)).startswith("400 InvalidArgument: Bucket POST must contain a field")
    broken = httpx.post(
        URL, content=b"--x\r\n", headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert refusal(broken).startswith("400 MalformedPOSTRequest: ")


def test_a_policy_made_by_hand_is_what_boto3_makes(s3: Any, fal_clock: Clock) -> None:
    from emulator.storage.presigning import presigned_post

    fal_clock.freeze()
    key = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    expires = fal_clock.now() + timedelta(hours=1)
    ours = presigned_post(URL, "films", "up/${filename}", [], key, fal_clock.now(), expires)
    theirs = sign(s3)
    assert ours["url"] == theirs["url"]
    for post in (ours, theirs):
        post["fields"]["policy"] = json.loads(base64.b64decode(post["fields"]["policy"]))
        post["fields"].pop("x-amz-signature")
        post["fields"]["policy"]["conditions"].sort(key=repr)
    assert ours == theirs
