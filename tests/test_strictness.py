"""What a test can have refused that the platform may let pass, and what is reported otherwise."""

from __future__ import annotations

import gzip
import io
import json
import wave
import zipfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import fal
import httpx
import pytest
from fal.toolkit import File
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel
from versions import since

from emulator.storage.media import HEAD, contradicts, is_unrecognised, sniff, split_head

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.runners.runner import Runner, RunnerFactory
    from emulator.storage.cdn import CDN

REST = "https://rest.fal.ai/storage"
CDN_URL = "https://v3.fal.media"
ACCOUNT = {"Authorization": "Key id:secret"}
LIFECYCLE = "X-Fal-Object-Lifecycle-Preference"
EXAMPLE = (
    '. Write for example {"expiration_duration_seconds": 3600, "initial_acl": {"default": "hide"}}'
)
UNKNOWN_KEY = (
    "the lifecycle preference has an unknown key 'expires'; the keys are "
    f"expiration_duration_seconds, initial_acl and allow_io_storage{EXAMPLE}"
)
NOT_JSON = f"the lifecycle preference is not JSON: 1h{EXAMPLE}"
NO_OBJECT = f"the lifecycle preference is not a JSON object: 60{EXAMPLE}"
WRONG_ACL = "the ACL's default is not allow, forbid or hide: 'deny'"
MALFORMED = [
    ('{"expires": 60}', UNKNOWN_KEY),
    ("1h", NOT_JSON),
    ("60", NO_OBJECT),
    ('{"initial_acl": {"default": "deny"}}', WRONG_ACL),
]
refusing = pytest.mark.fal(malformed_lifecycle="refuse")


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, kind)
    return file.getvalue()


def sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", ""))
        writer.writeframes(b"\0\0")
    return file.getvalue()


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as writer:
        for name in names:
            writer.writestr(zipfile.ZipInfo(name), b"")  # whose date is always the same
    return file.getvalue()


PNG, JPEG = picture("PNG"), picture("JPEG")
BINARY = b"\x93NUMPY\x01\x00"


# --- every way of uploading -----------------------------------------------------------------------


def presigned(
    content: bytes, headers: dict[str, str], storage_type: str = "fal-cdn-v3"
) -> Iterator[httpx.Response]:
    url = f"{REST}/upload/initiate?storage_type={storage_type}"
    body = {"file_name": "a", "content_type": headers.get("Content-Type")}
    yield (answer := httpx.post(url, json=body, headers=ACCOUNT | only_lifecycle(headers)))
    yield httpx.put(answer.json()["upload_url"], content=content)


def multipart(content: bytes, headers: dict[str, str]) -> Iterator[httpx.Response]:
    url = f"{REST}/upload/initiate-multipart?storage_type=fal-cdn-v3"
    body = {"file_name": "a", "content_type": headers.get("Content-Type")}
    yield (answer := httpx.post(url, json=body, headers=ACCOUNT | only_lifecycle(headers)))
    address, _, query = answer.json()["upload_url"].partition("?")
    yield (part := httpx.put(f"{address}/1?{query}", content=content))
    yield httpx.post(f"{address}/complete?{query}", json={"parts": [part.json()]})


def direct(content: bytes, headers: dict[str, str]) -> Iterator[httpx.Response]:
    url = f"{CDN_URL}/files/upload"
    yield httpx.post(url, content=content, headers=bearer() | headers)


def direct_multipart(content: bytes, headers: dict[str, str]) -> Iterator[httpx.Response]:
    url = f"{CDN_URL}/files/upload/multipart"
    yield (answer := httpx.post(url, headers=bearer() | headers))
    address = f"{answer.json()['access_url']}/multipart/{answer.json()['uploadId']}"
    yield (part := httpx.put(f"{address}/1", content=content, headers=bearer()))
    body = {"parts": [part.json()]}
    yield httpx.post(f"{address}/complete", json=body, headers=bearer())


def gcs(content: bytes, headers: dict[str, str]) -> Iterator[httpx.Response]:
    yield from presigned(content, headers, "gcs")


def gcs_multipart(content: bytes, headers: dict[str, str]) -> Iterator[httpx.Response]:
    url = f"{REST}/upload/initiate-multipart?storage_type=gcs"
    body = {"file_name": "a", "content_type": headers.get("Content-Type")}
    yield (answer := httpx.post(url, json=body, headers=ACCOUNT | only_lifecycle(headers)))
    address = answer.json()["upload_url"]
    yield (place := httpx.post(f"{address}/1", headers=ACCOUNT))
    yield (part := httpx.put(place.json()["upload_url"], content=content))
    parts = [{"part_number": 1, "etag": part.headers["etag"].strip('"')}]
    yield httpx.post(f"{address}/complete", json={"parts": parts}, headers=ACCOUNT)


def only_lifecycle(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name == LIFECYCLE}


def bearer() -> dict[str, str]:
    answer = httpx.post(f"{REST}/auth/token?storage_type=fal-cdn-v3", json={}, headers=ACCOUNT)
    return {"Authorization": f"Bearer {answer.json()['token']}"}


Way = Callable[[bytes, dict[str, str]], Iterator[httpx.Response]]
V3_WAYS: list[Way] = [presigned, multipart, direct, direct_multipart]
WAYS: list[Way] = [*V3_WAYS, gcs, gcs_multipart]


def upload(way: Way, content: bytes = b"x", **headers: str) -> httpx.Response:
    """The last answer; all before it were 200."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = httpx.Response(500)
    for answer in way(content, named):
        if answer.status_code != 200:
            break
    return answer


def all_notes(ledger: Ledger) -> list[str]:
    return [note for exchange in ledger.exchanges for note in exchange.notes]


# --- lifecycle preferences of uploads -------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("preference", "problem"), MALFORMED)
def test_a_wrong_preference_is_reported_on_every_way(
    fal_cdn: CDN, fal_ledger: Ledger, way: Way, preference: str, problem: str
) -> None:
    answer = upload(way, **{LIFECYCLE: preference})
    assert answer.status_code == 200
    assert all_notes(fal_ledger) == [problem]
    assert len(fal_cdn.files) == 1


@refusing
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("preference", "problem"), MALFORMED)
def test_a_wrong_preference_can_be_refused_on_every_way(
    fal_cdn: CDN, way: Way, preference: str, problem: str
) -> None:
    answer = upload(way, **{LIFECYCLE: preference})
    assert (answer.status_code, answer.json()) == (400, {"detail": problem})
    assert fal_cdn.files == []


@refusing
def test_the_toolkit_says_why_its_upload_was_refused(fal_cdn: CDN) -> None:
    options = {"object_lifecycle_preference": {"expires": 60}}
    with pytest.raises(Exception, match="400: Bad Request"):
        File.from_bytes(b"x", save_kwargs=options, fallback_save_kwargs=options)
    assert fal_cdn.uploads == []


# --- lifecycle preferences of callers -------------------------------------------------------------


class Nothing(BaseModel):
    pass


class Uploader(fal.App):  # type: ignore[misc]
    def setup(self) -> None:
        self.calls = 0

    @fal.endpoint("/")  # type: ignore[untyped-decorator]
    def upload(self, input: Nothing) -> dict[str, Any]:
        self.calls += 1
        return {"url": File.from_bytes(b"x", file_name="a.txt").url, "calls": self.calls}


def call(runner: Runner, preference: str) -> httpx.Response:
    return runner.post("/", json={}, headers={LIFECYCLE: preference})


@pytest.mark.parametrize(("preference", "problem"), MALFORMED)
def test_a_callers_wrong_preference_is_reported(
    fal_runner: RunnerFactory, fal_ledger: Ledger, preference: str, problem: str
) -> None:
    assert call(fal_runner(Uploader), preference).status_code == 200
    assert fal_ledger.problems[-1] == f"lifecycle: POST / to runner-1: {problem}"


def test_the_report_names_the_runner(fal_runner: RunnerFactory, fal_ledger: Ledger) -> None:
    fal_runner(Uploader)
    call(fal_runner(Uploader), "1h")
    assert fal_ledger.problems == [f"lifecycle: POST / to runner-2: {NOT_JSON}"]


@refusing
@pytest.mark.parametrize(("preference", "problem"), MALFORMED)
def test_a_callers_wrong_preference_can_be_refused_before_the_app_sees_it(
    fal_runner: RunnerFactory, fal_ledger: Ledger, preference: str, problem: str
) -> None:
    runner = fal_runner(Uploader)
    answer = call(runner, preference)
    assert (answer.status_code, answer.json()) == (400, {"detail": problem})
    assert fal_ledger.problems == [f"lifecycle: POST / to runner-1: {problem}"]
    assert call(runner, "{}").json()["calls"] == 1


@refusing
def test_a_refused_call_is_an_error_as_an_apps_own_is(fal_runner: RunnerFactory) -> None:
    with pytest.raises(httpx.HTTPStatusError):
        call(fal_runner(Uploader), "1h").raise_for_status()


@refusing
@pytest.mark.parametrize(
    "preference",
    ["{}", '{"expiration_duration_seconds": 60, "initial_acl": null, "allow_io_storage": true}'],
)
def test_a_callers_right_preference_is_no_problem(
    fal_runner: RunnerFactory, fal_ledger: Ledger, preference: str
) -> None:
    assert call(fal_runner(Uploader), preference).status_code == 200
    assert fal_ledger.problems == []


@refusing
def test_a_callers_invalid_lifetime_is_reported_and_the_app_called(
    fal_runner: RunnerFactory, fal_ledger: Ledger
) -> None:
    """What the gateway says to it is not known; the upload is refused."""
    answer = call(fal_runner(Uploader), '{"expiration_duration_seconds": -1}')
    assert answer.status_code == 500
    assert fal_ledger.problems[-1] == (
        "lifecycle: POST / to runner-1: expiration_duration_seconds must be a number of seconds "
        ">= 0 or null, not -1"
    )


# --- another Content-Type than initiated ----------------------------------------------------------


@pytest.mark.fal(content_type_mismatch="refuse")
def test_another_type_than_initiated_can_be_refused(fal_cdn: CDN) -> None:
    body = {"file_name": "a", "content_type": "image/png"}
    answer = httpx.post(f"{REST}/upload/initiate", json=body, headers=ACCOUNT).json()
    put = httpx.put(answer["upload_url"], content=b"x", headers={"Content-Type": "image/webp"})
    assert put.status_code == 400
    assert put.json() == {"detail": "Content-Type 'image/webp', but 'image/png' was initiated"}


# --- content of another type than declared --------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_another_content_than_declared_is_reported_on_every_way(
    fal_cdn: CDN, fal_ledger: Ledger, way: Way
) -> None:
    assert upload(way, JPEG, Content_Type="image/png").status_code == 200
    assert fal_ledger.exchanges[-1].notes == [
        "the content is image/jpeg, but image/png was declared: "
        '@pytest.mark.fal(content_check="refuse") refuses it'
    ]
    (file,) = fal_cdn.files
    assert fal_cdn.get(file.url) == JPEG


@pytest.mark.fal(content_check="refuse")
@pytest.mark.parametrize("way", WAYS)
def test_another_content_than_declared_can_be_refused_on_every_way(
    fal_cdn: CDN, fal_ledger: Ledger, way: Way
) -> None:
    answer = upload(way, JPEG, Content_Type="image/png")
    problem = "the content is image/jpeg, but image/png was declared"
    assert (answer.status_code, answer.json()) == (400, {"detail": problem})
    assert fal_ledger.exchanges[-1].notes == [problem]
    assert fal_cdn.files == []


@pytest.mark.fal(content_check="off")
@pytest.mark.parametrize("way", WAYS)
def test_content_need_not_be_looked_at(fal_cdn: CDN, fal_ledger: Ledger, way: Way) -> None:
    assert upload(way, JPEG, Content_Type="image/png").status_code == 200
    assert all_notes(fal_ledger) == []


@pytest.mark.fal(content_check="refuse")
def test_a_refused_upload_url_can_still_be_used(fal_cdn: CDN) -> None:
    body = {"file_name": "a.png", "content_type": "image/png"}
    url = httpx.post(f"{REST}/upload/initiate", json=body, headers=ACCOUNT).json()["upload_url"]
    assert [httpx.put(url, content=data).status_code for data in (JPEG, PNG)] == [400, 200]


@pytest.mark.fal(content_check="refuse")
def test_the_first_bytes_may_come_in_small_pieces(fal_cdn: CDN) -> None:
    pieces = (JPEG[index : index + 1] for index in range(len(JPEG)))
    headers = bearer() | {"Content-Type": "image/png"}
    answer = httpx.post(f"{CDN_URL}/files/upload", content=pieces, headers=headers)
    assert answer.status_code == 400


@pytest.mark.fal(content_check="refuse")
def test_the_first_bytes_may_be_spread_over_parts(fal_cdn: CDN) -> None:
    options = {"multipart": True, "multipart_chunk_size": 2}
    with pytest.raises(Exception, match="400: Bad Request"):
        File.from_bytes(JPEG[:8], "image/png", save_kwargs=options, fallback_save_kwargs=options)
    assert fal_cdn.uploads == []


@pytest.mark.fal(content_check="refuse")
def test_the_toolkits_images_are_what_they_are_declared_to_be(fal_cdn: CDN) -> None:
    from fal.toolkit import Image as ToolkitImage

    for format in ("png", "jpeg", "webp", "gif"):
        ToolkitImage.from_pil(Image.new("RGB", (2, 2)), format=format)
    ToolkitImage.from_pil(Image.open(io.BytesIO(JPEG)))  # as image/JPEG
    assert len(fal_cdn.files) == 5


@pytest.mark.fal(content_check="refuse")
def test_what_a_test_puts_is_not_looked_at(fal_cdn: CDN) -> None:
    assert fal_cdn.get(fal_cdn.put(JPEG, "a.png")) == JPEG


# --- content of no known type ---------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_unrecognised_content_is_accepted(fal_cdn: CDN, fal_ledger: Ledger, way: Way) -> None:
    assert upload(way, BINARY).status_code == 200
    assert all_notes(fal_ledger) == []


@pytest.mark.fal(unrecognised_content="rate_limit")
@pytest.mark.parametrize("way", V3_WAYS)
def test_unrecognised_content_can_be_rate_limited(
    fal_cdn: CDN, fal_ledger: Ledger, way: Way
) -> None:
    answer = upload(way, BINARY)
    problem = "too many uploads of binary content of no known type"
    assert (answer.status_code, answer.json()) == (429, {"detail": problem})
    assert fal_ledger.exchanges[-1].notes == [problem]
    assert fal_cdn.files == []


@pytest.mark.fal(unrecognised_content="rate_limit")
@pytest.mark.parametrize("way", [gcs, gcs_multipart])
def test_the_fallbacks_bucket_limits_nothing(fal_cdn: CDN, way: Way) -> None:
    assert upload(way, BINARY).status_code == 200


@pytest.mark.fal(unrecognised_content="rate_limit")
@pytest.mark.parametrize("content", [PNG, b"text", b"{}", b"", archive("a")])
def test_what_is_recognised_is_not_rate_limited(fal_cdn: CDN, content: bytes) -> None:
    assert upload(presigned, content).status_code == 200


@pytest.mark.fal(unrecognised_content="rate_limit", content_check="off")
def test_a_rate_limit_alone_compares_nothing(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    assert upload(presigned, JPEG, Content_Type="image/png").status_code == 200
    assert all_notes(fal_ledger) == []


@since("1.77.0", "the fallback is gcs alone")
@pytest.mark.fal(unrecognised_content="rate_limit", content_check="off")
def test_the_toolkit_retries_and_falls_back_where_it_is_rate_limited(
    fal_cdn: CDN, fal_ledger: Ledger, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    file = File.from_bytes(BINARY, file_name="a.npy")
    assert file.url.startswith("https://storage.googleapis.com/")
    statuses = [e.status for e in fal_ledger.requests(method="PUT", host="v3b.fal.media")]
    assert statuses == [429] * 5


# --- the order of parts ---------------------------------------------------------------------------


def complete_backwards(count: int = 2) -> httpx.Response:
    body = {"file_name": "a", "content_type": None}
    answer = httpx.post(f"{REST}/upload/initiate-multipart", json=body, headers=ACCOUNT)
    address, _, query = answer.json()["upload_url"].partition("?")
    numbers = range(count, 0, -1)
    parts = [httpx.put(f"{address}/{n}?{query}", content=str(n).encode()).json() for n in numbers]
    return httpx.post(f"{address}/complete?{query}", json={"parts": parts})


def test_parts_out_of_order_are_sorted_and_reported(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    assert fal_cdn.get(complete_backwards().json()["access_url"]) == b"12"
    assert fal_ledger.exchanges[-1].notes == [
        "parts were completed out of order (2, 1): S3 answers InvalidPartOrder; "
        '@pytest.mark.fal(part_order="strict") does too'
    ]


def test_of_many_parts_the_first_are_named(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    complete_backwards(12)
    (note,) = fal_ledger.exchanges[-1].notes
    assert "(12, 11, 10, 9, 8, 7, 6, 5, 4, 3 and 2 more)" in note


@pytest.mark.fal(part_order="any")
def test_parts_out_of_order_can_be_taken_silently(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    assert fal_cdn.get(complete_backwards().json()["access_url"]) == b"12"
    assert all_notes(fal_ledger) == []


@pytest.mark.fal(part_order="strict")
def test_parts_out_of_order_can_be_refused(fal_cdn: CDN) -> None:
    answer = complete_backwards()
    assert answer.status_code == 400
    assert answer.json() == {"detail": "InvalidPartOrder: the parts are not in ascending order"}


def test_parts_in_order_are_no_problem(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    upload(multipart, b"x")
    assert all_notes(fal_ledger) == []


# --- signatures -----------------------------------------------------------------------------------


def box(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\2\0"


SAMPLES = [
    (PNG, "image/png"),
    (JPEG, "image/jpeg"),
    (picture("GIF"), "image/gif"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (picture("WEBP"), "image/webp"),
    (box(b"avif"), "image/avif"),
    (box(b"avis"), "image/avif"),
    (box(b"heic"), "image/heic"),
    (box(b"heix"), "image/heic"),
    (box(b"mif1"), "image/heif"),
    (box(b"isom"), "video/mp4"),
    (box(b"mp42"), "video/mp4"),
    (box(b"qt  "), "video/quicktime"),
    (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm", "video/webm"),
    (b"\x1aE\xdf\xa3\xa3B\x86\x81\x01B\x82\x88matroska", "video/x-matroska"),
    (b"RIFF\0\0\0\0AVI LIST", "video/x-msvideo"),
    (sound(), "audio/wav"),
    (b"ID3\x04\0\0", "audio/mpeg"),
    (b"\xff\xfb\x90\x00", "audio/mpeg"),
    (b"\xff\xf3\x40\xc0", "audio/mpeg"),
    (b"\xff\xfa\x10", "audio/mpeg"),  # the lowest bit rate
    (b"\xff\xf3\x98", "audio/mpeg"),
    (b"\xff\xf2\xe8", "audio/mpeg"),  # the highest one, and the last sample rate
    (b"OggS\0\2", "application/ogg"),
    (b"fLaC\0\0\0\x22", "audio/flac"),
    (b"%PDF-1.7\n", "application/pdf"),
    (archive("a"), "application/zip"),
    (archive(), "application/zip"),
    (gzip.compress(b"x", mtime=0), "application/gzip"),
]


@pytest.mark.parametrize(("content", "found"), SAMPLES)
def test_a_type_is_known_by_its_first_bytes(content: bytes, found: str) -> None:
    assert sniff(content) == found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89",
        b"png",
        b"RIFF",
        b"RIFF\0\0\0\0RMID",
        b"ftyp",
        b"GIF88a",
        b"\xff\xd8",
        b"PK\1\2",
    ],
)
def test_what_only_resembles_a_type_is_none(content: bytes) -> None:
    assert sniff(content) is None


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfb", b"\xff\xfb\x00", b"\xff\xfb\xf0", b"\xff\xfb\x9c", b"\xff\xff\x90", b"\xff" * 9],
    ids=["short", "free rate", "no bit rate", "no sample rate", "layer I", "ones"],
)
def test_a_frame_that_cannot_be_played_is_no_mp3(content: bytes) -> None:
    assert sniff(content) is None


def test_the_type_of_a_matroska_file_is_looked_for_in_its_header() -> None:
    header = b"\x1aE\xdf\xa3".ljust(60)
    assert sniff(header + b"webm") == "video/webm"
    assert sniff(header + b" webm") == "video/x-matroska"


#: By what is found: the other names of it, and those of what it is a form of.
NAMES = {
    PNG: "image/x-png image/apng image/vnd.mozilla.apng",
    JPEG: "image/jpg image/pjpeg",
    box(b"heic"): "image/heif image/heic-sequence",
    box(b"mif1"): "image/heic image/avif",
    b"ID3\x04\0\0": "audio/mp3 audio/x-mp3 audio/mpeg3 audio/x-mpeg",
    sound(): "audio/wave audio/x-wav audio/vnd.wave",
    b"fLaC\0\0\0\x22": "audio/x-flac",
    b"OggS\0\2": "audio/ogg video/ogg audio/opus audio/vorbis",
    b"%PDF-1.7\n": "application/x-pdf",
    box(b"isom"): "audio/mp4 application/mp4 video/x-m4v audio/m4a audio/x-m4a video/3gpp "
    "audio/3gpp video/3gpp2 audio/3gpp2",
    b"\x1aE\xdf\xa3B\x82\x84webm": "audio/webm video/x-matroska video/matroska",
    b"\x1aE\xdf\xa3B\x82\x88matroska": "video/matroska audio/x-matroska audio/matroska",
    b"RIFF\0\0\0\0AVI LIST": "video/avi video/msvideo video/vnd.avi",
}


@pytest.mark.parametrize(
    ("content", "declared"),
    [(content, name) for content, names in NAMES.items() for name in names.split()],
)
def test_a_type_goes_by_its_other_names(content: bytes, declared: str) -> None:
    assert contradicts(declared, content) is None
    assert contradicts(declared, BINARY + b"x") is None
    assert contradicts("text/plain", content) == sniff(content)


@pytest.mark.parametrize(
    "declared",
    [
        "application/json",
        "application/mp4",
        "application/ogg",
        "application/pdf",
        "application/x-pdf",
        "application/xml",
        "application/gzip",
    ],
)
def test_what_is_never_packed_is_contradicted_by_an_archive(declared: str) -> None:
    assert contradicts(declared, archive("a")) == "application/zip"


def test_two_kinds_of_archives_are_two() -> None:
    assert contradicts("application/zip", gzip.compress(b"x", mtime=0)) == "application/gzip"


def test_the_bytes_that_no_text_has_are_those_of_the_standard() -> None:
    found = [byte for byte in range(256) if is_unrecognised(b"a" + bytes([byte]))]
    assert found == [*range(0x09), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20)]


@pytest.mark.parametrize("mark", [b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_begins_a_text(mark: bytes) -> None:
    assert not is_unrecognised(mark + b"\0a")
    assert is_unrecognised(b"\0a" + mark)


@pytest.mark.parametrize(
    ("content", "declared"),
    [
        *SAMPLES,
        (PNG, "IMAGE/PNG ; x=1"),
        (JPEG, "image/JPEG"),
        (JPEG, "image/jpg"),
        (sound(), "audio/x-wav"),
        (box(b"M4A "), "audio/mp4"),
        (b"OggS\0\2", "audio/ogg"),
        (b"\x1aE\xdf\xa3B\x82\x84webm", "audio/webm"),
        (archive("a"), "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        (archive("a"), "model/vnd.usdz+zip"),
        (gzip.compress(b"x", mtime=0), "application/x-tar"),
    ],
)
def test_a_type_has_several_names_and_forms(content: bytes, declared: str) -> None:
    assert contradicts(declared, content) is None


@pytest.mark.parametrize("declared", ["", "application/octet-stream", "binary/octet-stream"])
def test_who_declares_nothing_is_not_contradicted(declared: str) -> None:
    assert contradicts(declared, PNG) is None


@pytest.mark.parametrize("declared", ["image/png", "text/plain", "application/json", "video/mp4"])
def test_content_of_no_known_type_contradicts_nothing(declared: str) -> None:
    assert contradicts(declared, BINARY) is None


@pytest.mark.parametrize(
    ("content", "declared", "found"),
    [
        (PNG, "image/jpeg", "image/png"),
        (PNG, "text/html", "image/png"),
        (PNG, "application/json", "image/png"),
        (PNG, "application/x-www-form-urlencoded", "image/png"),
        (box(b"qt  "), "video/mp4", "video/quicktime"),
        (b"\x1aE\xdf\xa3B\x82\x88matroska", "video/webm", "video/x-matroska"),
        (archive("a"), "application/pdf", "application/zip"),
        (archive("a"), "application/gzip", "application/zip"),
        (archive("a"), "image/png", "application/zip"),
        (gzip.compress(b"x", mtime=0), "application/json", "application/gzip"),
    ],
)
def test_the_type_found_is_told(content: bytes, declared: str, found: str) -> None:
    assert contradicts(declared, content) == found


@pytest.mark.parametrize(
    ("content", "unrecognised"),
    [
        (BINARY, True),
        (json.dumps({"a": 1}).encode() + b"\0", True),
        (b"text with \t, \n, \x0c, \r and \x1b", False),
        ("süß".encode(), False),
        ("utf-16".encode("utf-16"), False),
        (PNG, False),
        (b"", False),
    ],
)
def test_binary_content_of_no_known_type_is_unrecognised(
    content: bytes, unrecognised: bool
) -> None:
    assert is_unrecognised(content) is unrecognised


@given(head=st.binary(max_size=40), declared=st.text(max_size=20))
def test_whatever_the_bytes_are_an_answer_is_found(head: bytes, declared: str) -> None:
    found = sniff(head)
    assert contradicts(declared, head) in (None, found)
    assert not (found and is_unrecognised(head))


@given(chunks=st.lists(st.binary(max_size=HEAD), max_size=6))
def test_the_head_is_taken_and_nothing_lost(chunks: list[bytes]) -> None:
    rest = iter(chunks)
    head, taken = split_head(rest)
    assert head == b"".join(chunks)[:HEAD]
    assert taken + list(rest) == chunks


@pytest.mark.parametrize(("first", "taken"), [(1444, 2), (1445, 1), (1446, 1)])
def test_no_more_is_taken_than_the_head_needs(first: int, taken: int) -> None:
    """1,445 bytes are what the standard has a browser look at."""
    head, chunks = split_head(iter([bytes(first), b"ab", b"c"]))
    assert (len(head), len(chunks)) == (1445, taken)
