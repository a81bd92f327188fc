"""A caller's upload policy as such: how it is read, and the request that is made of it [§1.13]."""

from __future__ import annotations

import json
import os
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.storage.upload_policy import UploadPolicy, _Chunks, parse_policy, what_s3_said
from emulator.storage.uploads import UploadError

URL = "https://outputs.s3.amazonaws.com/"
NO_POLICY = "x-app-fal-upload-policy has to be JSON with a url and fields"
NO_BUCKET = "x-app-fal-upload-policy: its url is no bucket of S3's"
NO_NAME = "x-app-fal-upload-policy: fields.key has to contain '${filename}'"


def policy(url: str = URL, key: str = "out/${filename}", **fields: Any) -> UploadPolicy:
    return parse_policy(json.dumps({"url": url, "fields": {"key": key, **fields}}))


def sent(request: httpx.Request) -> dict[str, tuple[str | None, str | None, bytes]]:
    """By name: file name, content type and content of each part."""
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    parts = {}
    for one in request.read().split(b"--" + boundary)[1:-1]:
        head, _, content = one[2:-2].partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        disposition = dict(item.split("=", 1) for item in lines[0].partition("; ")[2].split("; "))
        kind = next((line.partition(": ")[2] for line in lines[1:] if "Type" in line), None)
        name = disposition["name"].strip('"')
        parts[name] = (disposition.get("filename", "").strip('"') or None, kind, content)
    return parts


# --- reading it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://outputs.s3.amazonaws.com/",
        "https://outputs.s3.eu-west-3.amazonaws.com/",
        "https://out.puts.s3-eu-west-3.amazonaws.com/",
        "https://s3.amazonaws.com/outputs",
        "https://outputs.s3.cn-north-1.amazonaws.com.cn/",
    ],
)
def test_a_bucket_of_s3_is_taken(url: str) -> None:
    found = policy(url, acl="private")
    assert found == UploadPolicy(url, {"key": "out/${filename}", "acl": "private"})


def test_its_fields_are_not_shown() -> None:
    assert repr(policy(signature="secret")) == f"UploadPolicy(url={URL!r})"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", NO_POLICY),
        ("{", NO_POLICY),
        ("[]", NO_POLICY),
        ("null", NO_POLICY),
        pytest.param("[" * 100_000, NO_POLICY, id="too deep"),
        ('{"fields": {"key": "${filename}"}}', NO_POLICY),
        (json.dumps({"url": URL}), NO_POLICY),
        (json.dumps({"url": URL, "fields": {}}), NO_POLICY),
        (json.dumps({"url": URL, "fields": "key"}), NO_POLICY),
        (json.dumps({"url": 1, "fields": {"key": "${filename}"}}), NO_POLICY),
        (json.dumps({"url": "https://[", "fields": {"key": "${filename}"}}), NO_POLICY),
        (json.dumps({"url": URL, "fields": {"key": 1}}), NO_NAME),
        (json.dumps({"url": URL, "fields": {"key": ["${filename}"]}}), NO_NAME),
        (json.dumps({"url": URL, "fields": {"key": "fixed"}}), NO_NAME),
    ],
)
def test_what_is_no_policy_is_refused(text: str, told: str) -> None:
    with pytest.raises(UploadError) as caught:
        parse_policy(text)
    assert (caught.value.status, str(caught.value)) == (422, told)


@pytest.mark.parametrize(
    "url",
    [
        "http://outputs.s3.amazonaws.com/",
        "https://example.com/",
        "https:///path",
        "https://amazonaws.com/",
        "https://outputs.s3.amazonaws.com.example.com/",
        "https://-s3.amazonaws.com/",
    ],
)
def test_another_address_is_refused(url: str) -> None:
    with pytest.raises(UploadError) as caught:
        policy(url)
    assert (caught.value.status, str(caught.value)) == (422, NO_BUCKET)


# --- where it will be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "key", "file_url"),
    [
        (URL, "out/${filename}", f"{URL}out/a%20b.mp4"),
        (URL.rstrip("/"), "out/${filename}", f"{URL}out/a%20b.mp4"),
        (URL, "/out/${filename}", f"{URL}out/a%20b.mp4"),
        (f"{URL}X", "/X/${filename}", f"{URL}X/X/a%20b.mp4"),
        (URL, "~x+y/${filename}/", f"{URL}~x%2By/a%20b.mp4/"),
        (f"{URL}/", "${filename}-${filename}", f"{URL}a%20b.mp4-a%20b.mp4"),
    ],
)
def test_where_the_file_will_be(url: str, key: str, file_url: str) -> None:
    assert policy(url, key).file_url("a b.mp4") == file_url


# --- what S3 is sent ------------------------------------------------------------------------------


def test_s3_is_sent_the_fields_then_the_file() -> None:
    request = policy(acl="private").request("a.mp4", "video/mp4", [b"fra", b"mes"], 6)
    assert (request.method, request.url) == ("POST", URL)
    parts = sent(request)
    assert parts == {
        "key": (None, None, b"out/a.mp4"),
        "acl": (None, None, b"private"),
        "Content-Type": (None, None, b"video/mp4"),
        "file": ("a.mp4", "video/mp4", b"frames"),
    }
    assert [*parts][-1] == "file", "what comes after the file is not looked at"
    assert int(request.headers["content-length"]) == len(request.content)


@pytest.mark.parametrize("name", ["Content-Type", "content-type"])
def test_a_content_type_of_the_policys_stays(name: str) -> None:
    parts = sent(policy(**{name: "image/png"}).request("a", "video/mp4", [b"x"], 1))
    assert parts[name] == (None, None, b"image/png")
    assert len(parts) == 3
    assert parts["file"][1] == "video/mp4"


def test_a_request_does_not_change_the_policy() -> None:
    found = policy()
    found.request("a", "video/mp4", [b"x"], 1)
    assert found == policy()


@given(st.lists(st.binary(max_size=4), max_size=5), st.integers(1, 6))
def test_a_file_can_be_read_in_any_steps(chunks: list[bytes], step: int) -> None:
    whole = b"".join(chunks)
    file = _Chunks(chunks, len(whole))
    assert (file.readable(), file.seekable()) == (True, True)
    pieces = list(iter(lambda: file.read(step), b""))
    assert b"".join(pieces) == whole
    assert [len(piece) for piece in pieces[:-1]] == [step] * (len(pieces) - 1)
    file = _Chunks(chunks, len(whole))
    assert file.read(step) + file.read() == whole
    assert file.read() == b""


def test_a_files_size_is_where_it_ends() -> None:
    file = _Chunks([b"frames"], 6)
    assert file.tell() == 0
    assert (file.seek(0, os.SEEK_END), file.tell()) == (6, 6)
    assert (file.seek(0), file.tell()) == (0, 0)


def test_no_more_of_a_file_is_asked_for_than_is_read() -> None:
    chunks = iter([b"12", b"34", b"56", b"78"])
    file = _Chunks(chunks, 8)
    assert file.read(0) == b""
    assert file.read(2) == b"12"
    assert next(chunks) == b"34"
    assert (file.read(1), file.read(0), file.read(1)) == (b"5", b"", b"6")
    assert next(chunks) == b"78"


# --- what S3 answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 204, 303])
def test_s3_has_taken_it(status: int) -> None:
    assert what_s3_said(httpx.Response(status)) is None


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (403, "<Error><Code>AccessDenied</Code></Error>", "403 AccessDenied"),
        (307, "", "307"),
        (500, "Oops", "500"),
        (500, "<Code></Code>", "500"),
        (500, "<Code>a b</Code>", "500"),
        (500, f"<Code>{'x' * 64}</Code>", f"500 {'x' * 64}"),
        (500, f"<Code>{'x' * 65}</Code>", "500"),
        (500, " " * (4096 - 14) + "<Code>A</Code>", "500 A"),
        (500, " " * (4096 - 13) + "<Code>A</Code>", "500"),
    ],
    ids=["denied", "moved", "no xml", "empty", "no code", "64", "65", "early", "late"],
)
def test_s3_has_not(status: int, text: str, said: str) -> None:
    assert what_s3_said(httpx.Response(status, text=text)) == said
