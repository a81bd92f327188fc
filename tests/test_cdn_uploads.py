"""Uploads as the real clients do them, and what the platform refuses [platform facts §1.2-§1.9]."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import fal_client
import httpx
import pytest
from fal.toolkit import File
from fal.toolkit.file.providers.fal import InternalFalFileRepositoryV3
from fal_client import client as fal_client_module
from memory import MEBIBYTE, memory_grows_by_less_than
from PIL import Image
from versions import since

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    from pathlib import Path

    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.network.faults import Faults
    from emulator.storage.cdn import CDN

REST = "https://rest.fal.ai"
CDN_URL = "https://v3.fal.media"
ACCOUNT = {"Authorization": "Key id:secret"}
SPELLINGS = ["X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference"]
ONE_MINUTE = '{"expiration_duration_seconds": 60}'


def initiate(
    call: str = "initiate",
    storage_type: str = "fal-cdn-v3",
    headers: dict[str, str] | None = None,
    **body: Any,
) -> dict[str, str]:
    response = try_initiate(call, storage_type, headers, **body)
    assert response.status_code == 200, response.text
    answer: dict[str, str] = response.json()
    return answer


def try_initiate(
    call: str = "initiate",
    storage_type: str = "fal-cdn-v3",
    headers: dict[str, str] | None = None,
    **body: Any,
) -> httpx.Response:
    return httpx.post(
        f"{REST}/storage/upload/{call}?storage_type={storage_type}",
        json={"file_name": "a.bin", "content_type": "audio/wav", **body},
        headers={**ACCOUNT, **(headers or {})},
    )


def get_token(**body: Any) -> dict[str, str]:
    answer: dict[str, str] = httpx.post(
        f"{REST}/storage/auth/token?storage_type=fal-cdn-v3", json=body, headers=ACCOUNT
    ).json()
    return answer


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {get_token()['token']}"}


def below(upload_url: str, tail: str) -> str:
    """The upload's URL with something added to its path, its query kept."""
    address, _, query = upload_url.partition("?")
    return f"{address}/{tail}?{query}"


def put_parts(upload_url: str, *parts: bytes) -> list[dict[str, Any]]:
    """Upload parts 1, 2, ... and return what completing them takes."""
    answers = [
        httpx.put(below(upload_url, str(number)), content=part)
        for number, part in enumerate(parts, 1)
    ]
    return [answer.json() for answer in answers]


def complete(upload_url: str, parts: object) -> httpx.Response:
    return httpx.post(below(upload_url, "complete"), json={"parts": parts})


# --- the token [§1.3] -----------------------------------------------------------------------------


def test_token_answer_has_what_the_clients_read(fal_cdn: CDN) -> None:
    answer = get_token()
    assert answer["token_type"] == "Bearer"
    assert answer["base_url"] == "https://v3.fal.media"
    assert set(answer) == {"token", "token_type", "base_url", "expires_at"}


def test_token_expiry_carries_an_offset_and_no_z(fal_cdn: CDN) -> None:
    expires_at = get_token()["expires_at"]
    assert not expires_at.endswith("Z"), "Python 3.10 cannot read that"
    assert datetime.fromisoformat(expires_at).utcoffset() == timedelta(0)


def test_tokens_last_30_days(fal_clock: Clock) -> None:
    fal_clock.freeze()
    lifetime = datetime.fromisoformat(get_token()["expires_at"]) - fal_clock.now()
    assert lifetime == timedelta(days=30)


@pytest.mark.fal(token_lifetime=timedelta(hours=2))
def test_token_lifetime_can_be_set(fal_clock: Clock) -> None:
    fal_clock.freeze()
    lifetime = datetime.fromisoformat(get_token()["expires_at"]) - fal_clock.now()
    assert lifetime == timedelta(hours=2)


@pytest.mark.parametrize(("asked", "given"), [(60, 60), (90 * 86400, 30 * 86400)])
def test_a_client_can_shorten_a_tokens_life_only(fal_clock: Clock, asked: int, given: int) -> None:
    fal_clock.freeze()
    expires_at = datetime.fromisoformat(get_token(expiration_seconds=asked)["expires_at"])
    assert expires_at - fal_clock.now() == timedelta(seconds=given)


def test_an_expired_token_uploads_nothing(fal_clock: Clock, fal_cdn: CDN) -> None:
    headers = bearer()
    fal_clock.advance(days=31)
    assert httpx.post(f"{CDN_URL}/files/upload", content=b"x", headers=headers).status_code == 401
    assert fal_cdn.files == []


def test_the_clients_get_a_new_token_when_theirs_expires(
    fal_clock: Clock, fal_ledger: Ledger
) -> None:
    client = fal_client.SyncClient()
    client.upload(b"1", "text/plain", "1.txt")
    fal_clock.advance(days=31)
    client.upload(b"2", "text/plain", "2.txt")
    assert len(fal_ledger.requests(path="/storage/auth/token")) == 2


# --- initiate and presigned PUT [§1.4] ------------------------------------------------------------


@pytest.mark.parametrize("host", ["rest.fal.ai", "rest.alpha.fal.ai"])
def test_both_rest_hosts_answer(fal_cdn: CDN, host: str) -> None:
    answer = httpx.post(f"https://{host}/storage/upload/initiate", json={}, headers=ACCOUNT)
    assert set(answer.json()) == {"file_url", "upload_url"}


def test_without_an_account_nothing_is_initiated(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    answer = httpx.post(f"{REST}/storage/upload/initiate", json={})
    assert answer.status_code == 401
    assert fal_ledger.exchanges[-1].notes == ["no account key"]


def test_an_unknown_storage_type_is_refused(fal_cdn: CDN) -> None:
    assert try_initiate(storage_type="floppy").status_code == 422


def test_urls_have_the_shape_of_fals(fal_cdn: CDN) -> None:
    url = initiate(file_name="a cat.png")["file_url"]
    shape = r"https://v3b\.fal\.media/files/b/[0-9a-f]{8}/[A-Za-z0-9_]{21}_a%20cat\.png"
    assert re.fullmatch(shape, url), url


@pytest.mark.fal(cdn_host="v3.fal.media")
def test_the_host_of_new_urls_can_be_set(fal_cdn: CDN) -> None:
    assert initiate()["file_url"].startswith("https://v3.fal.media/files/")


def test_the_same_name_twice_gives_two_files(fal_cdn: CDN) -> None:
    one = File.from_bytes(b"1", file_name="same.txt")
    two = File.from_bytes(b"2", file_name="same.txt")
    assert one.url != two.url
    assert (fal_cdn.get(one.url), fal_cdn.get(two.url)) == (b"1", b"2")


def test_presigned_put_stores_the_bytes_under_the_initiated_type(fal_cdn: CDN) -> None:
    upload = initiate(file_name="a.wav", content_type="audio/wav")
    assert httpx.put(upload["upload_url"], content=b"wave").status_code == 200
    info = fal_cdn.info(upload["file_url"])
    assert (info.file_name, info.content_type, info.size) == ("a.wav", "audio/wav", 4)
    assert fal_cdn.get(upload["file_url"]) == b"wave"


def test_content_type_null_is_a_stream_of_octets(fal_cdn: CDN) -> None:
    upload = initiate(content_type=None)
    httpx.put(upload["upload_url"], content=b"x")
    assert fal_cdn.info(upload["file_url"]).content_type == "application/octet-stream"


def test_the_file_is_not_there_before_its_bytes(fal_cdn: CDN) -> None:
    url = initiate()["file_url"]
    assert fal_cdn.files == []
    with pytest.raises(EmulatorError, match="its upload has begun and is not finished"):
        fal_cdn.info(url)


def test_a_forged_signature_is_refused(fal_cdn: CDN) -> None:
    url = initiate()["upload_url"]
    assert httpx.put(f"{url[:-4]}0000", content=b"x").status_code == 403


def test_a_signature_counts_for_its_own_url_only(fal_cdn: CDN) -> None:
    one, two = initiate(), initiate()
    query = one["upload_url"].partition("?")[2]
    assert httpx.put(f"{two['file_url']}?{query}", content=b"x").status_code == 403


def test_a_presigned_url_works_once(fal_cdn: CDN) -> None:
    upload = initiate()
    httpx.put(upload["upload_url"], content=b"first")
    assert httpx.put(upload["upload_url"], content=b"second").status_code == 403
    assert fal_cdn.get(upload["file_url"]) == b"first"


@pytest.mark.fal(upload_url_reuse="accept")
def test_a_presigned_url_can_be_made_to_work_again(fal_cdn: CDN) -> None:
    upload = initiate()
    httpx.put(upload["upload_url"], content=b"first")
    assert httpx.put(upload["upload_url"], content=b"second").status_code == 200
    assert fal_cdn.get(upload["file_url"]) == b"second"


def test_a_presigned_url_has_no_time_limit(fal_cdn: CDN, fal_clock: Clock) -> None:
    upload = initiate()
    fal_clock.advance(days=400)
    assert httpx.put(upload["upload_url"], content=b"x").status_code == 200


@pytest.mark.fal(upload_url_lifetime=timedelta(seconds=120))
def test_a_presigned_url_can_be_given_a_time_limit(fal_cdn: CDN, fal_clock: Clock) -> None:
    upload = initiate()
    fal_clock.advance(seconds=121)
    answer = httpx.put(upload["upload_url"], content=b"x")
    assert answer.status_code == 403
    assert answer.json() == {"detail": "this upload URL was valid for 0:02:00"}


def test_another_type_than_initiated_is_reported_and_not_kept(
    fal_cdn: CDN, fal_ledger: Ledger
) -> None:
    upload = initiate(content_type="image/png")
    httpx.put(upload["upload_url"], content=b"x", headers={"Content-Type": "image/webp"})
    assert fal_cdn.info(upload["file_url"]).content_type == "image/png"
    assert fal_ledger.exchanges[-1].notes == [
        "Content-Type 'image/webp', but 'image/png' was initiated: the initiated type is kept"
    ]


@pytest.mark.fal(content_type_mismatch="refuse")
def test_another_type_than_initiated_can_be_refused(fal_cdn: CDN) -> None:
    upload = initiate(content_type="image/png")
    answer = httpx.put(upload["upload_url"], content=b"x", headers={"Content-Type": "image/webp"})
    assert answer.status_code == 400
    assert fal_cdn.files == []


def test_the_toolkit_initiates_and_puts(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    file = File.from_bytes(b"x", content_type="audio/wav", file_name="a.wav")
    assert [(e.method, e.status) for e in fal_ledger.exchanges] == [("POST", 200), ("PUT", 200)]
    assert fal_cdn.get(file.url) == b"x"


def test_from_path_never_guesses_the_type(fal_cdn: CDN, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    file = File.from_path(tmp_path / "a.png")
    assert fal_cdn.info(file.url).content_type == "application/octet-stream"


def test_names_that_are_not_ascii_get_question_marks(fal_cdn: CDN) -> None:
    file = File.from_bytes(b"x", file_name="süß.txt")
    assert fal_cdn.info(file.url).file_name == "s??.txt"
    assert file.url.endswith("_s%3F%3F.txt")
    assert urllib.request.urlopen(file.url).read() == b"x"


def test_the_request_id_of_an_upload_is_kept(fal_cdn: CDN) -> None:
    upload = initiate(headers={"X-Fal-Request-ID": "r-1"})
    httpx.put(upload["upload_url"], content=b"x")
    assert fal_cdn.info(upload["file_url"]).request_id == "r-1"


def test_an_upload_that_breaks_off_leaves_no_file(fal_cdn: CDN) -> None:
    def break_off() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("the disk is gone")

    upload = initiate()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        httpx.put(upload["upload_url"], content=break_off())
    assert fal_cdn.files == []


# --- multipart [§1.4] -----------------------------------------------------------------------------


def test_the_toolkits_multipart_arrives_in_order(fal_cdn: CDN) -> None:
    data = bytes(range(256)) * 4
    options = {"multipart": True, "multipart_chunk_size": 100}
    file = File.from_bytes(data, file_name="big.bin", save_kwargs=options)
    assert fal_cdn.get(file.url) == data


def test_the_toolkits_multipart_from_a_path(fal_cdn: CDN, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"0123456789")
    options = {"multipart_chunk_size": 3}
    file = File.from_path(tmp_path / "big.bin", multipart=True, save_kwargs=options)
    assert fal_cdn.get(file.url) == b"0123456789"


@since("1.82.0", "an empty file is sent as one part")
def test_the_toolkits_empty_multipart_is_one_empty_part(
    fal_cdn: CDN, fal_ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    file = File.from_path(tmp_path / "empty", multipart=True)
    assert len(fal_ledger.requests(method="PUT")) == 1
    assert fal_cdn.get(file.url) == b""


def test_a_part_is_answered_for_python_and_for_javascript(fal_cdn: CDN) -> None:
    upload = initiate("initiate-multipart")
    answer = httpx.put(below(upload["upload_url"], "1"), content=b"part")
    assert re.fullmatch('"[0-9a-f]{32}"', answer.headers["etag"])
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"partNumber": 1, "etag": answer.headers["etag"]}


def test_parts_are_sorted(fal_cdn: CDN) -> None:
    upload = initiate("initiate-multipart")
    parts = put_parts(upload["upload_url"], b"1", b"2", b"3")
    assert complete(upload["upload_url"], parts[::-1]).status_code == 200
    assert fal_cdn.get(upload["file_url"]) == b"123"


@pytest.mark.fal(part_order="strict")
def test_parts_out_of_order_can_be_refused_as_s3_does(fal_cdn: CDN) -> None:
    upload = initiate("initiate-multipart")
    parts = put_parts(upload["upload_url"], b"1", b"2")
    assert complete(upload["upload_url"], parts[::-1]).status_code == 400
    assert complete(upload["upload_url"], parts).status_code == 200


def test_zero_parts_are_refused(fal_cdn: CDN) -> None:
    upload = initiate("initiate-multipart")
    answer = complete(upload["upload_url"], [])
    assert answer.status_code == 400
    assert answer.json() == {"detail": "a multipart upload needs at least one part"}


def test_a_part_that_was_never_uploaded_is_refused(fal_cdn: CDN) -> None:
    upload = initiate("initiate-multipart")
    parts = [*put_parts(upload["upload_url"], b"1"), {"partNumber": 2, "etag": '"0"'}]
    assert complete(upload["upload_url"], parts).status_code == 400
    assert fal_cdn.files == []


def test_a_wrong_etag_is_refused(fal_cdn: CDN) -> None:
    upload = initiate("initiate-multipart")
    put_parts(upload["upload_url"], b"1")
    assert complete(upload["upload_url"], [{"partNumber": 1, "etag": '"0"'}]).status_code == 400


def test_a_part_named_twice_is_refused(fal_cdn: CDN) -> None:
    upload = initiate("initiate-multipart")
    parts = put_parts(upload["upload_url"], b"1")
    assert complete(upload["upload_url"], parts * 2).status_code == 400


def test_parts_count_from_one(fal_cdn: CDN) -> None:
    upload = initiate("initiate-multipart")
    assert httpx.put(below(upload["upload_url"], "0"), content=b"x").status_code == 400


@pytest.mark.parametrize("body", ["[]", "{}", '{"parts": null}', '{"parts": [1]}', "not JSON"])
def test_a_malformed_completion_is_refused(fal_cdn: CDN, body: str) -> None:
    upload = initiate("initiate-multipart")
    url = below(upload["upload_url"], "complete")
    assert httpx.post(url, content=body.encode()).status_code == 400


def test_of_a_part_sent_twice_the_last_wins(fal_cdn: CDN) -> None:
    upload = initiate("initiate-multipart")
    put_parts(upload["upload_url"], b"old")
    parts = put_parts(upload["upload_url"], b"new")
    complete(upload["upload_url"], parts)
    assert fal_cdn.get(upload["file_url"]) == b"new"


@pytest.mark.fal(upload_url_reuse="accept")
def test_parts_count_for_one_completion(fal_cdn: CDN) -> None:
    upload = initiate("initiate-multipart")
    parts = put_parts(upload["upload_url"], b"1")
    complete(upload["upload_url"], parts)
    assert complete(upload["upload_url"], parts).status_code == 400
    assert fal_cdn.get(upload["file_url"]) == b"1"


# --- direct to the CDN [§1.5] ---------------------------------------------------------------------


def test_the_internal_repository_uploads_directly(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    repository = InternalFalFileRepositoryV3()
    file = File.from_bytes(b"x", "audio/wav", "a.wav", repository=repository)
    info = fal_cdn.info(file.url)
    assert (info.file_name, info.content_type, info.size) == ("a.wav", "audio/wav", 1)
    assert fal_ledger.requests(path="/files/upload")[0].host == "v3.fal.media"


def test_the_internal_repositorys_multipart(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    file = File.from_bytes(
        b"0123456789",
        "audio/wav",
        "a.wav",
        repository=InternalFalFileRepositoryV3(),
        save_kwargs={"multipart": True, "multipart_chunk_size": 3},
    )
    assert fal_cdn.get(file.url) == b"0123456789"
    assert fal_cdn.info(file.url).content_type == "audio/wav"
    assert len(fal_ledger.requests(path="/files/upload/multipart")) == 1


@pytest.mark.parametrize("headers", [{}, ACCOUNT], ids=["nothing", "an account key"])
def test_direct_uploads_take_a_cdn_token_only(fal_cdn: CDN, headers: dict[str, str]) -> None:
    answer = httpx.post(f"{CDN_URL}/files/upload", content=b"x", headers=headers)
    assert answer.status_code == 401


def test_direct_parts_take_a_cdn_token_only(fal_cdn: CDN) -> None:
    start = httpx.post(f"{CDN_URL}/files/upload/multipart", headers=bearer()).json()
    url = f"{start['access_url']}/multipart/{start['uploadId']}/1"
    assert httpx.put(url, content=b"x", headers=ACCOUNT).status_code == 401
    assert httpx.put(url, content=b"x", headers=bearer()).status_code == 200


def test_fal_client_uploads_directly(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    url = fal_client.SyncClient().upload("text", "text/plain", "a.txt")
    info = fal_cdn.info(url)
    assert (info.file_name, info.content_type) == ("a.txt", "text/plain")
    assert fal_cdn.get(url) == b"text"
    assert [e.path for e in fal_ledger.exchanges] == ["/storage/auth/token", "/files/upload"]


def test_fal_clients_async_upload(fal_cdn: CDN) -> None:
    async def upload() -> str:
        return str(await fal_client.AsyncClient().upload(b"async", "text/plain", "a.txt"))

    assert fal_cdn.get(asyncio.run(upload())) == b"async"


def test_fal_client_uploads_a_file_with_its_type(fal_cdn: CDN, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    info = fal_cdn.info(fal_client.SyncClient().upload_file(tmp_path / "a.png"))
    assert (info.file_name, info.content_type) == ("a.png", "image/png")


def test_fal_clients_image_has_no_name_and_gets_one(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    url = fal_client.SyncClient().upload_image(Image.new("RGB", (3, 2)))
    assert "x-fal-file-name" not in fal_ledger.exchanges[-1].request_headers
    assert url.endswith("_upload.jpg")
    assert fal_cdn.image(url).size == (3, 2)


def test_a_name_is_made_from_a_type_with_parameters(fal_cdn: CDN) -> None:
    url = fal_client.SyncClient().upload(b"x", "text/plain; charset=utf-8")
    assert fal_cdn.info(url).file_name == "upload.txt"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fal_client_module, "MULTIPART_THRESHOLD", 5)
    monkeypatch.setattr(fal_client_module, "MULTIPART_CHUNK_SIZE", 3)


@since("1.0.2", "the threads of SyncClient.upload send each its own part", "fal-client")
@pytest.mark.usefixtures("small_parts")
def test_fal_clients_multipart(fal_cdn: CDN) -> None:
    url = fal_client.SyncClient().upload(b"0123456789", "audio/wav", "a.wav")
    assert fal_cdn.get(url) == b"0123456789"
    assert fal_cdn.info(url).file_name == "a.wav"


@pytest.mark.usefixtures("small_parts")
def test_fal_clients_async_multipart_from_a_file(fal_cdn: CDN, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"0123456789")

    async def upload() -> str:
        return str(await fal_client.AsyncClient().upload_file(tmp_path / "a.wav"))

    assert fal_cdn.get(asyncio.run(upload())) == b"0123456789"


def test_the_hosts_before_v3_take_the_accounts_key(fal_cdn: CDN) -> None:
    answer = httpx.post("https://fal.media/files/upload", content=b"old", headers=ACCOUNT)
    url = answer.json()["access_url"]
    assert url.startswith("https://fal.media/files/")
    assert httpx.get(url).content == b"old"


# --- storage_type=gcs [§1.6] ----------------------------------------------------------------------


def test_the_fal_repository_goes_to_google(fal_cdn: CDN) -> None:
    file = File.from_bytes(b"x", "audio/wav", "a.wav", repository="fal")
    assert file.url.startswith("https://storage.googleapis.com/falserverless/")
    assert httpx.get(file.url).content == b"x"
    assert fal_cdn.info(file.url).content_type == "audio/wav"


def test_the_fal_repositorys_multipart(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    options = {"multipart": True, "multipart_chunk_size": 3}
    file = File.from_bytes(b"0123456789", file_name="a", repository="fal", save_kwargs=options)
    assert fal_cdn.get(file.url) == b"0123456789"
    assert len(fal_ledger.requests(host="storage.googleapis.com", method="PUT")) == 4


def test_zero_parts_are_refused_at_google_too(fal_cdn: CDN) -> None:
    url = initiate("initiate-multipart", "gcs")["upload_url"]
    answer = httpx.post(f"{url}/complete", json={"parts": []}, headers=ACCOUNT)
    assert answer.status_code == 400


@since("1.77.0", "the fallback is gcs alone")
def test_the_toolkit_falls_back_to_google(
    fal_cdn: CDN,
    fal_faults: Faults,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fal_faults.status(403, times=1, path="/storage/upload/initiate")
    file = File.from_bytes(b"x", file_name="a.bin")
    assert file.url.startswith("https://storage.googleapis.com/")
    assert "falling back to fal" in capsys.readouterr().out


def test_fal_client_sends_names_that_are_not_ascii_to_google(
    fal_cdn: CDN, fal_ledger: Ledger
) -> None:
    url = fal_client.SyncClient().upload(b"x", "image/png", "ü.png")
    assert url.startswith("https://storage.googleapis.com/")
    assert fal_cdn.info(url).file_name == "?.png"
    put = fal_ledger.requests(method="PUT")[0]
    assert put.request_headers["authorization"] == "***", "the account's key travels along"
    assert put.status == 200


def test_the_fallback_loses_the_access_rules(fal_cdn: CDN) -> None:
    hidden = fal_client.StorageSettings(initial_acl=fal_client.StorageACL(default="hide"))
    client = fal_client.SyncClient()
    there = client.upload(b"x", "image/png", "u.png", lifecycle=hidden)
    fallen = client.upload(b"x", "image/png", "ü.png", lifecycle=hidden)
    assert [httpx.get(url).status_code for url in (there, fallen)] == [404, 200]


@pytest.mark.fal(account_acl={"default": "hide"})
def test_the_accounts_access_rules_do_not_reach_google(fal_cdn: CDN) -> None:
    file = File.from_bytes(b"x", file_name="a", repository="fal")
    assert httpx.get(file.url).status_code == 200


def test_other_peoples_buckets_are_not_ours(fal_cdn: CDN) -> None:
    with pytest.raises(Exception, match=re.escape('fal_origin.serve("https://storage.google')):
        httpx.get("https://storage.googleapis.com/their-bucket/model.bin")


# --- the lifecycle header [§1.9] ------------------------------------------------------------------


@pytest.mark.parametrize("spelling", [*SPELLINGS, SPELLINGS[0].upper()])
@pytest.mark.parametrize("call", ["initiate", "initiate-multipart"])
def test_both_spellings_are_accepted_by_rest(fal_cdn: CDN, call: str, spelling: str) -> None:
    upload = initiate(call, headers={spelling: ONE_MINUTE})
    if call == "initiate":
        httpx.put(upload["upload_url"], content=b"x")
    else:
        complete(upload["upload_url"], put_parts(upload["upload_url"], b"x"))
    info = fal_cdn.info(upload["file_url"])
    assert info.lifecycle == {"expiration_duration_seconds": 60}
    assert info.expires_at == info.created_at + timedelta(seconds=60)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_both_spellings_are_accepted_by_the_cdn(fal_cdn: CDN, spelling: str) -> None:
    headers = {**bearer(), spelling: ONE_MINUTE}
    answer = httpx.post(f"{CDN_URL}/files/upload", content=b"x", headers=headers)
    info = fal_cdn.info(answer.json()["access_url"])
    assert info.lifecycle == {"expiration_duration_seconds": 60}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_both_spellings_are_accepted_by_the_cdns_multipart(fal_cdn: CDN, spelling: str) -> None:
    headers = {**bearer(), spelling: ONE_MINUTE}
    start = httpx.post(f"{CDN_URL}/files/upload/multipart", headers=headers).json()
    url = f"{start['access_url']}/multipart/{start['uploadId']}"
    part = httpx.put(f"{url}/1", content=b"x", headers=bearer()).json()
    httpx.post(f"{url}/complete", json={"parts": [part]}, headers=bearer())
    assert fal_cdn.info(start["access_url"]).lifecycle == {"expiration_duration_seconds": 60}


def test_the_toolkits_preference_arrives(fal_cdn: CDN) -> None:
    preference = {"expiration_duration_seconds": 60}
    options = {"object_lifecycle_preference": preference}
    file = File.from_bytes(b"x", file_name="a", save_kwargs=options)
    assert fal_cdn.info(file.url).lifecycle == preference


@pytest.mark.parametrize("preference", ["not JSON", "[]", '{"expires": 1}'])
def test_a_malformed_preference_is_accepted_and_reported(
    fal_cdn: CDN, fal_ledger: Ledger, preference: str
) -> None:
    upload = initiate(headers={SPELLINGS[0]: preference})
    httpx.put(upload["upload_url"], content=b"x")
    assert fal_cdn.info(upload["file_url"]).expires_at is None
    assert "lifecycle preference" in fal_ledger.requests(method="POST")[0].notes[0]
    assert len(fal_ledger.problems) == 1


@pytest.mark.fal(malformed_lifecycle="refuse")
@pytest.mark.parametrize("preference", ["not JSON", "[]", '{"expires": 1}'])
def test_a_malformed_preference_can_be_refused(fal_cdn: CDN, preference: str) -> None:
    assert try_initiate(headers={SPELLINGS[0]: preference}).status_code == 400


@pytest.mark.parametrize("seconds", [-1, "60", True])
def test_an_invalid_lifetime_is_refused(fal_cdn: CDN, seconds: object) -> None:
    preference = json.dumps({"expiration_duration_seconds": seconds})
    assert try_initiate(headers={SPELLINGS[0]: preference}).status_code == 422


@pytest.mark.fal(invalid_expiration="ignore", account_expiration=timedelta(days=1))
@pytest.mark.parametrize("seconds", [-1, "60", True])
def test_an_invalid_lifetime_can_be_ignored(fal_cdn: CDN, seconds: object) -> None:
    preference = json.dumps({"expiration_duration_seconds": seconds})
    upload = initiate(headers={SPELLINGS[0]: preference})
    httpx.put(upload["upload_url"], content=b"x")
    info = fal_cdn.info(upload["file_url"])
    assert info.expires_at == info.created_at + timedelta(days=1)


# --- what a test seeds ----------------------------------------------------------------------------


def test_put_guesses_the_type(fal_cdn: CDN) -> None:
    assert fal_cdn.info(fal_cdn.put(b"x", file_name="a.png")).content_type == "image/png"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"expires_in": -1}, "expiration_duration_seconds must be a number of seconds >= 0"),
        ({"acl": "hidden"}, "the ACL's default is not allow, forbid or hide: 'hidden'"),
    ],
)
def test_put_refuses_what_no_upload_could_ask_for(
    fal_cdn: CDN, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(EmulatorError, match=re.escape(problem)):
        fal_cdn.put(b"x", **options)


# --- secrets and memory ---------------------------------------------------------------------------


def test_credentials_never_get_into_the_ledger(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    token = get_token()["token"]
    upload = initiate(headers={"X-Fal-CDN-Token": "caller-secret"})
    httpx.put(upload["upload_url"], content=b"x")
    httpx.post(
        f"{CDN_URL}/files/upload", content=b"x", headers={"Authorization": f"Bearer {token}"}
    )
    httpx.get(f"{upload['file_url']}?identity=reader-secret")
    recorded = repr([vars(exchange) for exchange in fal_ledger.exchanges])
    signature = upload["upload_url"].rpartition("=")[2]
    for secret in (token, "id:secret", "caller-secret", "reader-secret", signature):
        assert secret not in recorded


def test_a_large_upload_is_not_held_in_memory(fal_cdn: CDN, tmp_path: Path) -> None:
    size = 200 * MEBIBYTE
    with (tmp_path / "big").open("wb") as file:
        file.truncate(size)
    upload = initiate()
    with (tmp_path / "big").open("rb") as file, memory_grows_by_less_than(60 * MEBIBYTE):
        request = urllib.request.Request(upload["upload_url"], data=file, method="PUT")
        urllib.request.urlopen(request).close()
    assert fal_cdn.info(upload["file_url"]).size == size
    fal_cdn.expire(upload["file_url"])


def test_a_large_upload_from_memory_is_not_held_twice(fal_cdn: CDN) -> None:
    upload = initiate()
    data = bytes(200 * MEBIBYTE)
    with memory_grows_by_less_than(60 * MEBIBYTE):
        request = urllib.request.Request(upload["upload_url"], data=data, method="PUT")
        urllib.request.urlopen(request).close()
    assert fal_cdn.info(upload["file_url"]).size == len(data)
    fal_cdn.expire(upload["file_url"])


def test_the_cdn_before_v3_takes_direct_uploads_with_the_accounts_key(fal_cdn: CDN) -> None:
    """What the SDK's ``cdn`` repository sent before 1.77.0 [sdk-study §1b]."""
    headers = {**ACCOUNT, "Content-Type": "text/plain", "X-Fal-File-Name": "a.txt"}
    answer = httpx.post("https://fal.media/files/upload", content=b"x", headers=headers)
    assert answer.json()["access_url"].startswith("https://fal.media/files/")
    assert fal_cdn.get(answer.json()["access_url"]) == b"x"
