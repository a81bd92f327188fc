"""S3's forms and policies as such: what is read, what a policy covers, what S3 says otherwise."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest

from emulator.storage.post_policy import (
    S3Error,
    UploadForm,
    check_policy,
    expiration_of,
    read_form,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
KIND = "multipart/form-data; boundary=sep"
MALFORMED = (
    "400 MalformedPOSTRequest: The body of your POST request is not well-formed "
    "multipart/form-data. {}"
)
NO_FORM = (
    "412 PreconditionFailed: At least one of the pre-conditions you specified did not hold "
    "{'Condition': 'Bucket POST must be of the enclosure-type multipart/form-data'}"
)
NO_FILE = (
    "400 InvalidArgument: POST requires exactly one file upload per request. "
    "{'ArgumentName': 'file', 'ArgumentValue': '0'}"
)
NO_KEY = (
    "400 InvalidArgument: Bucket POST must contain a field named 'key'.  If it is specified, "
    "please check the order of the fields. {'ArgumentName': 'key', 'ArgumentValue': ''}"
)


def refusal(error: S3Error) -> str:
    assert str(error) == f"{error.code}: {error.message}"
    return f"{error.status} {error.code}: {error.message} {error.more}"


def part(disposition: str, content: str, *headers: str) -> bytes:
    head = "\r\n".join((f"Content-Disposition: form-data; {disposition}", *headers))
    return f"\r\n{head}\r\n\r\n{content}\r\n--sep".encode()


def body(*parts: bytes, before: bytes = b"", after: bytes = b"--\r\n") -> bytes:
    return before + b"--sep" + b"".join(parts) + after


KEY = part('name="key"', "up/${filename}")
FILE = part('name="file"; filename="a.mp4"', "frames", "Content-Type: video/mp4")


# --- the form -------------------------------------------------------------------------------------


def test_a_form_of_httpx_is_read() -> None:
    files = {"file": ("ü a.mp4", b"\r\n--x\0\xff", "video/mp4")}
    request = httpx.Request(
        "POST", "https://films.test", data={"KEY": "up/${filename}", "acl": "ü"}, files=files
    )
    request.read()
    assert read_form(request.headers["content-type"], request.content) == UploadForm(
        {"key": "up/ü a.mp4", "acl": "ü"}, "ü a.mp4", "video/mp4", b"\r\n--x\0\xff"
    )


@pytest.mark.parametrize(
    "kind",
    [
        KIND,
        'multipart/form-data; boundary="sep"',
        "Multipart/Form-Data; charset=utf-8; boundary=sep",
        "multipart/form-data; boundary=sep; charset=utf-8",
        "multipart/form-data; boundary=sep, other",
    ],
)
def test_a_boundary_is_found(kind: str) -> None:
    assert read_form(kind, body(KEY, FILE)).data == b"frames"


@pytest.mark.parametrize(
    "kind", ["", "multipart/form-data", "text/plain; boundary=sep", "multipart/mixed; boundary=sep"]
)
def test_what_is_no_form_is_told_so(kind: str) -> None:
    with pytest.raises(S3Error) as caught:
        read_form(kind, body(KEY, FILE))
    assert refusal(caught.value) == NO_FORM


def test_what_stands_before_the_first_part_does_not_count() -> None:
    assert read_form(KIND, body(KEY, FILE, before=b"preamble\r\n")).fields == {"key": "up/a.mp4"}
    assert read_form(KIND, body(KEY, FILE, before=b"\r\n")).fields == {"key": "up/a.mp4"}


def test_what_comes_after_the_file_does_not_count() -> None:
    late = part('name="acl"', "private")
    assert read_form(KIND, body(KEY, FILE, late)).fields == {"key": "up/a.mp4"}
    assert read_form(KIND, body(KEY, FILE, after=b" nonsense")).data == b"frames"


def test_of_two_fields_of_one_name_the_first_counts() -> None:
    for first, second in (("ACL", "acl"), ("acl", "ACL")):
        twice = part(f'name="{first}"', "1"), part(f'name="{second}"', "2")
        assert read_form(KIND, body(KEY, *twice, FILE)).fields == {"key": "up/a.mp4", "acl": "1"}


def test_the_type_of_a_field_is_not_the_files() -> None:
    field = part('name="acl"', "private", "Content-Type: text/plain")
    assert read_form(KIND, body(KEY, field, part('name="file"', "x"))).content_type is None


def test_a_field_may_end_with_the_line_that_ends_its_head() -> None:
    empty = b'\r\nContent-Disposition: form-data; name="acl"\r\n\r\n--sep'
    assert read_form(KIND, body(KEY, empty, FILE)).fields["acl"] == ""


def test_the_file_may_have_no_name_and_no_type() -> None:
    form = read_form(KIND, body(KEY, part('name="FILE"', "frames")))
    assert form == UploadForm({"key": "up/"}, "", None, b"frames")


@pytest.mark.parametrize("line", ["content-type:video/mp4", "CONTENT-TYPE:  video/mp4 "])
def test_headers_of_a_part_in_any_case(line: str) -> None:
    head = f'\r\n{line}\r\nCONTENT-DISPOSITION: form-data; NAME="file"; FileName="a"'
    form = read_form(KIND, body(KEY, f"{head}\r\n\r\nx\r\n--sep".encode()))
    assert (form.file_name, form.content_type, form.data) == ("a", "video/mp4", b"x")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("a b.mp4", "a b.mp4"),
        ("C:\\\\films\\\\a.mp4", "a.mp4"),
        ("films/sub/a.mp4", "a.mp4"),
        ("a%22b%0D%0Ac", 'a"b\r\nc'),
        ('a\\"b', 'a"b'),
        ("a%20b", "a%20b"),
    ],
)
def test_the_name_of_the_file_is_that_of_the_client(written: str, name: str) -> None:
    form = read_form(KIND, body(KEY, part(f'name="file"; filename="{written}"', "x")))
    assert form.file_name == name
    assert form.fields["key"] == f"up/{name}"


def test_the_name_is_filled_in_everywhere_but_in_the_policy() -> None:
    more = part('name="policy"', "${filename}"), part('name="x-amz-meta-a"', "<${filename}>")
    assert read_form(KIND, body(KEY, *more, FILE)).fields == {
        "key": "up/a.mp4",
        "policy": "${filename}",
        "x-amz-meta-a": "<a.mp4>",
    }


def test_an_empty_field_and_an_empty_file_are_some() -> None:
    form = read_form(KIND, body(KEY, part('name="acl"', ""), part('name="file"', "")))
    assert (form.fields["acl"], form.data) == ("", b"")


def test_bytes_that_are_no_text_are_replaced() -> None:
    odd = b'\r\nContent-Disposition: form-data; name="acl"\r\n\r\na\xff\r\n--sep'
    assert read_form(KIND, body(KEY, odd, FILE)).fields["acl"] == "a\ufffd"
    odd = b'\r\nContent-Disposition: form-data; name="file"; filename="a\xff"\r\n\r\nx\r\n--sep'
    assert read_form(KIND, body(KEY, odd)).file_name == "a\ufffd"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (body(KEY), NO_FILE),
        (body(), NO_FILE),
        (body(FILE), NO_KEY),
        (body(part('name="key"', ""), FILE), NO_KEY),
        (body(FILE, KEY), NO_KEY),
        (b"", MALFORMED),
        (b"nothing", MALFORMED),
        (b"--sep", MALFORMED),
        (b"--sep-", MALFORMED),
        (b"abcdef--", MALFORMED),
        (b"--sep\r\n", MALFORMED),
        (body(KEY, after=b""), MALFORMED),
        (body(KEY, after=b"x-"), MALFORMED),
        (body(KEY, b"\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx"), MALFORMED),
        (body(KEY, b"\r\nContent-Disposition: form-data; name=\"file\"\r\n--sep"), MALFORMED),
        (body(part("", "x"), FILE), MALFORMED),
        (body(b"\r\n\r\nx\r\n--sep", FILE), MALFORMED),
    ],
    ids=[
        "no file", "nothing", "no key", "empty key", "key too late", "empty", "no delimiter",
        "delimiter only", "half an end", "an end only", "no part", "no end", "no proper end",
        "file without end", "part without content", "part without name",
        "part without head",
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_form_is_told(sent: bytes, told: str) -> None:
    with pytest.raises(S3Error) as caught:
        read_form(KIND, sent)
    assert refusal(caught.value) == told


# --- its policy -----------------------------------------------------------------------------------


def encoded(document: Any) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def verdict(*conditions: Any, size: int = 1, now: datetime = NOON, **fields: str) -> str | None:
    """What S3 says of a form with these fields under a policy of these conditions."""
    form = UploadForm({n.replace("_", "-"): v for n, v in fields.items()}, "a", None, bytes(size))
    policy = {"expiration": "2026-03-01T13:00:00Z", "conditions": list(conditions)}
    try:
        check_policy(encoded(policy), form, "films", now)
    except S3Error as error:
        return refusal(error)
    return None


@pytest.mark.parametrize(
    "condition",
    [
        {"key": "up/a"},
        {"KEY": "up/a"},
        ["eq", "$key", "up/a"],
        ["EQ", "$Key", "up/a"],
        ["starts-with", "$key", "up/"],
        ["Starts-With", "$key", ""],
    ],
)
def test_a_condition_holds_and_covers_its_field(condition: Any) -> None:
    assert verdict(condition, key="up/a") is None


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ({"key": "up/b"}, '["eq", "$key", "up/b"]'),
        (["eq", "$key", "up/"], '["eq", "$key", "up/"]'),
        (["starts-with", "$key", "a"], '["starts-with", "$key", "a"]'),
        (["eq", "$acl", "private"], '["eq", "$acl", "private"]'),
    ],
)
def test_a_condition_that_does_not_hold_is_named(condition: Any, told: str) -> None:
    assert verdict({"key": "up/a"}, condition, key="up/a") == (
        f"403 AccessDenied: Invalid according to Policy: Policy Condition failed: {told} {{}}"
    )


def test_all_conditions_of_one_object_have_to_hold() -> None:
    both = {"key": "a", "acl": "private"}
    assert verdict(both, key="a", acl="private") is None
    assert "failed" in str(verdict(both, key="a", acl="public"))
    assert "failed" in str(verdict(both, key="b", acl="private"))


def test_each_condition_covers_its_own_fields() -> None:
    size = ["content-length-range", 0, 9]
    assert verdict({"key": "a"}, {"acl": "b"}, size, key="a", acl="b") is None


def test_the_bucket_can_be_a_condition() -> None:
    assert verdict({"bucket": "films"}) is None
    assert "failed" in str(verdict({"bucket": "other"}))


def test_a_number_in_a_condition_is_its_digits() -> None:
    form = UploadForm({"success_action_status": "201"}, "a", None, b"")
    policy = {"expiration": "2027-01-01T00:00:00Z", "conditions": [{"success_action_status": 201}]}
    check_policy(encoded(policy), form, "films", NOON)


def test_a_field_that_is_missing_is_empty() -> None:
    assert verdict({"acl": ""}, ["starts-with", "$acl", ""]) is None


def test_each_of_several_types_has_to_begin_so() -> None:
    images = ["starts-with", "$Content-Type", "image/"]
    assert verdict(images, content_type="image/png, image/jpeg") is None
    assert "failed" in str(verdict(images, content_type="image/png, text/html"))
    assert "failed" in str(verdict(images, content_type=" image/png"))
    assert "failed" in str(verdict(images, content_type="text/html,image/png"))
    assert verdict(["eq", "$Content-Type", "a,b"], content_type="a,b") is None
    assert "failed" in str(verdict(["starts-with", "$acl", "a"], acl="b,a"))
    assert verdict(["starts-with", "$acl", "a"], acl="a,b") is None


@pytest.mark.parametrize(
    "name",
    [
        "x-amz-signature",
        "x-amz-security-token",
        "signature",
        "awsaccesskeyid",
        "policy",
        "bucket",
        "x-ignore-me",
    ],
)
def test_these_need_no_condition(name: str) -> None:
    form = UploadForm({name: "films"}, "a", None, b"")
    check_policy(encoded({"expiration": "2027-01-01T00:00:00Z"}), form, "films", NOON)


def test_all_others_do() -> None:
    assert verdict({"key": "a"}, key="a", x_amz_meta_b="1", acl="private", ignore="2") == (
        "403 AccessDenied: Invalid according to Policy: Extra input fields: acl, ignore, "
        "x-amz-meta-b {}"
    )


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_size_within_its_limits(size: int) -> None:
    assert verdict(["content-length-range", 2, "4"], size=size) is None
    assert verdict(["Content-Length-Range", "2", 4], size=size) is None


def test_a_size_outside_its_limits() -> None:
    limits = ["content-length-range", 2, 4]
    assert verdict(limits, size=1) == (
        "400 EntityTooSmall: Your proposed upload is smaller than the minimum allowed size "
        "{'ProposedSize': 1, 'MinSizeAllowed': 2}"
    )
    assert verdict(limits, size=5) == (
        "400 EntityTooLarge: Your proposed upload exceeds the maximum allowed size "
        "{'ProposedSize': 5, 'MaxSizeAllowed': 4}"
    )


@pytest.mark.parametrize(
    "condition",
    [
        1,
        "eq",
        "abc",
        None,
        ["eq", "$key"],
        ["eq", "$key", "a", "b"],
        ["ends-with", "$key", "a"],
        ["content-length-range", "a", 2],
        ["content-length-range", 1, None],
        ["content-length-range", 1, [2]],
    ],
)
def test_what_is_no_condition_is_told(condition: Any) -> None:
    assert verdict(condition, key="a") == (
        "400 InvalidPolicyDocument: Invalid Policy: Invalid Condition: "
        f"{json.dumps(condition)} {{}}"
    )


def test_a_limit_without_end_is_no_condition() -> None:
    policy = (
        '{"expiration": "2027-01-01T00:00:00Z", "conditions": [["content-length-range", 0, 1e999]]}'
    )
    with pytest.raises(S3Error, match="Invalid Condition"):
        check_policy(
            base64.b64encode(policy.encode()).decode(), UploadForm({}, "a", None, b""), "f", NOON
        )


def test_a_policy_holds_until_its_very_end() -> None:
    end = NOON + timedelta(hours=1)
    assert verdict(now=end - timedelta(microseconds=1)) is None
    assert verdict(now=end) == ("403 AccessDenied: Invalid according to Policy: Policy expired. {}")


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01T12:00:00Z",
        "2026-03-01T12:00:00z",
        "2026-03-01T14:00:00+02:00",
        "2026-03-01T12:00:00",
        "2026-03-01T12:00:00.000Z",
    ],
)
def test_when_a_policy_expires(text: str) -> None:
    assert expiration_of({"expiration": text}) == NOON


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({}, "Policy missing expiration."),
        ({"expiration": "soon"}, "Invalid 'expiration' value: 'soon'"),
        ({"expiration": None}, "Invalid 'expiration' value: 'None'"),
        ({"expiration": 5}, "Invalid 'expiration' value: '5'"),
    ],
)
def test_a_policy_that_does_not_say_when_it_expires(document: dict[str, Any], told: str) -> None:
    with pytest.raises(S3Error) as caught:
        expiration_of(document)
    assert refusal(caught.value) == f"400 InvalidPolicyDocument: Invalid Policy: {told} {{}}"


@pytest.mark.parametrize(
    "policy",
    [
        "",
        "no base64!",
        encoded([]),
        encoded("x"),
        base64.b64encode(b"{").decode(),
        base64.b64encode(b"\xff").decode(),
        f"{encoded({})}\n",
        pytest.param(base64.b64encode(b"[" * 100_000).decode(), id="too deep"),
    ],
)
def test_a_policy_that_cannot_be_read(policy: str) -> None:
    with pytest.raises(S3Error) as caught:
        check_policy(policy, UploadForm({}, "a", None, b""), "films", NOON)
    assert refusal(caught.value) == ("400 InvalidPolicyDocument: Invalid Policy: Invalid JSON. {}")


def test_conditions_are_a_list() -> None:
    policy = {"expiration": "2027-01-01T00:00:00Z", "conditions": {"bucket": "films"}}
    with pytest.raises(S3Error) as caught:
        check_policy(encoded(policy), UploadForm({}, "a", None, b""), "films", NOON)
    assert refusal(caught.value) == (
        "400 InvalidPolicyDocument: Invalid Policy: Invalid 'conditions' value: must be a List. {}"
    )


@pytest.mark.parametrize("conditions", [None, []])
def test_a_policy_may_have_no_conditions(conditions: Any) -> None:
    policy = {"expiration": "2027-01-01T00:00:00Z", "conditions": conditions}
    check_policy(encoded(policy), UploadForm({}, "a", None, b""), "films", NOON)
