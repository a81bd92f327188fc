"""The file API over plain HTTP, on both hosts: what it answers, and what it never lets happen."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import zipfile
from contextlib import suppress
from datetime import datetime, timezone

import httpx
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from memory import MEBIBYTE, memory_grows_by_less_than

from emulator.hosts.forms import FormError, file_in_form

REST = "https://rest.fal.ai/files"
PLATFORM = "https://api.fal.ai/v1/serverless/files"
AUTH = {"Authorization": "Key id:secret"}


@pytest.fixture
def client(fal_emulator):
    with httpx.Client(headers=AUTH) as client:
        yield client


def send(client, path, content=b"content", **options):
    """Upload by form."""
    files = {"file_upload": ("any name", content)}
    return client.post(f"{REST}/file/local/{path}", files=files, **options)


def detail(response) -> tuple[int, str]:
    return response.status_code, response.json()["detail"]


# --- who may ask ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "Key nothing", "Basic eDp5"])
def test_an_account_key_is_needed(client, fal_data, key):
    fal_data.write("a.bin", b"a")
    client.headers = {"Authorization": key} if key else {}
    said = (401, "Authentication is required to access this API")
    assert detail(client.get(f"{REST}/list//data")) == said
    assert detail(client.get(f"{REST}/file//data/a.bin")) == said
    assert detail(client.delete(f"{REST}/file//data/a.bin")) == said
    assert detail(send(client, "/data/b.bin")) == said
    assert fal_data.tree() == ["a.bin"]


def test_other_paths_of_the_host_are_not_ours(client):
    assert client.get(f"{REST}/missing_hashes").json() == {
        "detail": "Path /files/missing_hashes not found"
    }
    assert httpx.post("https://rest.fal.ai/storage/auth/token", headers=AUTH).status_code == 200


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/data/a/b.txt", "//data///a//b.txt", "a/b.txt", "./a/b.txt", "/data/./a/b.txt"]
)
def test_a_path_is_absolute_or_below_data(client, fal_data, path):
    fal_data.write("a/b.txt", b"found")
    assert client.get(f"{REST}/file/{path}").content == b"found"


def test_a_folder_called_data_in_data(client, fal_data):
    """Relative paths mean it, absolute ones only with /data twice."""
    send(client, "data/a.txt")
    send(client, "/data/b.txt")
    assert fal_data.tree() == ["b.txt", "data/a.txt"]


@pytest.mark.fal(files_double_slash="merged")
def test_a_proxy_that_merges_slashes(client, fal_data, fal_ledger):
    send(client, "/data/a.txt")
    assert fal_data.tree() == ["data/a.txt"]
    assert fal_ledger.exchanges[-1].notes == [
        "a proxy has merged the slashes: the path is relative to /data"
    ]


@pytest.fixture
def outside(tmp_path, fal_data):
    """A file outside of the volume, and links to it inside."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    backing = fal_data.backing
    os.symlink(secret, backing / "absolute")
    os.symlink(os.path.relpath(secret, backing), backing / "relative")
    os.symlink(tmp_path, backing / "folder")
    os.symlink("/", backing / "root")
    return secret


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "/data/../etc/passwd", "../etc/passwd", "a/../../b", "/datax/a"),
        *("%2e%2e/%2e%2e/etc/passwd", "/data/%2e%2e%2fsecret", "..%2f..", "/"),
        *("absolute", "relative", "folder/secret", "root/etc/passwd", "folder"),
    ],
)
def test_nothing_outside_is_read_written_or_removed(client, outside, path, fal_data):
    before = sorted(os.listdir(outside.parent)), outside.read_bytes()
    for answer in (
        raw(client, "GET", f"/files/file/{path}"),
        raw(client, "GET", f"/files/list/{path}/x"),
        raw(client, "POST", f"/files/file/local/{path}", files={"file_upload": b"x"}),
        raw(client, "POST", f"/files/file/local/{path}/x", files={"file_upload": b"x"}),
        raw(client, "POST", f"/files/file/multipart/{path}/x/initiate"),
        raw(client, "DELETE", f"/files/file/{path}/x"),
    ):
        assert answer.status_code in (400, 403, 404), answer.text
        assert set(answer.json()) == {"detail"}
    assert (sorted(os.listdir(outside.parent)), outside.read_bytes()) == before


def raw(client, method, path, **options):
    """A request whose path is sent as it is written."""
    url = httpx.URL("https://rest.fal.ai").copy_with(raw_path=path.encode())
    return client.request(method, url, **options)


def test_a_link_out_of_the_volume_says_so(client, outside):
    assert detail(client.get(f"{REST}/file/relative")) == (403, "a link in /data leads out of it")
    listed = {entry["name"]: entry["is_file"] for entry in client.get(f"{REST}/list").json()}
    assert listed == {"absolute": True, "relative": True, "folder": True, "root": True}


@pytest.mark.parametrize("target", ["../blobs/1", "/data/blobs/1"], ids=["relative", "absolute"])
def test_links_inside_are_followed_as_the_hugging_face_cache_has_them(client, fal_data, target):
    fal_data.write("blobs/1", b"weights")
    os.mkdir(fal_data.backing / "snapshots")
    os.symlink(target, fal_data.backing / "snapshots/model.bin")
    assert client.get(f"{REST}/file/snapshots/model.bin").content == b"weights"
    (entry,) = client.get(f"{REST}/list/snapshots").json()
    assert (entry["path"], entry["size"]) == ("/data/snapshots/model.bin", 7)


def test_who_changes_links_meanwhile_gains_nothing(client, fal_data, tmp_path):
    """The folder of an upload is a link to the outside every other moment."""
    outside, folder = tmp_path / "outside", fal_data.backing / "folder"
    outside.mkdir()
    fal_data.write("inside/x", b"")
    os.symlink("inside", folder)
    done = threading.Event()

    def change():
        while not done.is_set():
            for target in (outside, "inside"):
                os.symlink(target, fal_data.backing / "next")
                os.rename(fal_data.backing / "next", folder)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        answers = {send(client, "folder/a.bin").status_code for _ in range(150)}
    finally:
        done.set()
        thread.join()
    assert os.listdir(outside) == []
    assert answers == {200, 403}


def test_a_circle_of_links(client, fal_data):
    os.symlink("b", fal_data.backing / "a")
    os.symlink("a", fal_data.backing / "b")
    assert detail(client.get(f"{REST}/file/a")) == (
        400,
        "/data/a: Too many levels of symbolic links",
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a%00b", "'/data/a\\x00b' is no path: embedded null byte"),
        ("x" * 256, f"/data/{'x' * 256}: File name too long"),
        ("a.bin/b", "/data/a.bin/b: Not a directory"),
        ("folder", "/data/folder is a folder"),
        ("/data", "/data is a folder"),
        ("a%2F..%2Fb", "'a/../b' has '..' in it"),
        ("/etc/x", "/etc/x is not below /data"),
    ],
)
def test_places_at_which_nothing_can_be_stored(client, fal_data, path, said):
    fal_data.write("a.bin", b"a")
    fal_data.write("folder/b", b"b")
    files = {"file_upload": b"x"}
    assert detail(raw(client, "POST", f"/files/file/local/{path}", files=files)) == (400, said)
    answer = raw(client, "POST", f"/files/file/multipart/{path}/initiate")
    assert detail(answer) == (400, said)
    assert fal_data.tree() == ["a.bin", "folder/b"]


def test_what_is_no_file_is_not_read(client, fal_data):
    os.mkfifo(fal_data.backing / "pipe")
    fal_data.write("folder/b", b"b")
    assert detail(client.get(f"{REST}/file/pipe")) == (400, "/data/pipe is no regular file")
    assert detail(client.get(f"{REST}/file/folder")) == (400, "/data/folder is a folder")


# --- listing and reading --------------------------------------------------------------------------


def test_an_entry(client, fal_data, fal_clock):
    fal_clock.freeze(at=datetime(2031, 5, 1, 12, tzinfo=timezone.utc))
    fal_data.write("models/a.bin", b"abc")
    (entry,) = client.get(f"{REST}/list//data/models").json()
    assert entry["updated_time"].startswith("2031-05-01T12:00:00")
    assert entry.pop("created_time") == entry.pop("updated_time")
    assert entry == {"path": "/data/models/a.bin", "name": "a.bin", "is_file": True, "size": 3}


def test_a_download(client, fal_data):
    fal_data.write("cat.jpg", b"abc")
    answer = client.get(f"{REST}/file//data/cat.jpg")
    assert answer.content == b"abc"
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["content-length"] == "3"


def test_large_files_are_not_held_in_memory(client, fal_data, tmp_path):
    (tmp_path / "large").write_bytes(bytes(96 * MEBIBYTE))
    with memory_grows_by_less_than(24 * MEBIBYTE):
        with open(tmp_path / "large", "rb") as file:
            assert send(client, "large", file).status_code == 200
        with client.stream("GET", f"{REST}/file/large") as answer:
            assert sum(map(len, answer.iter_raw())) == 96 * MEBIBYTE
    assert os.path.getsize(fal_data.backing / "large") == 96 * MEBIBYTE


def test_over_a_socket(fal_data, tmp_path):
    (tmp_path / "a.bin").write_bytes(os.urandom(300_000))
    with open(tmp_path / "a.bin", "rb") as file:
        answer = requests.post(
            f"{REST}/file/local//data/a.bin", headers=AUTH, files={"file_upload": file}
        )
    assert answer.json() is True
    assert fal_data.read("a.bin") == (tmp_path / "a.bin").read_bytes()
    assert requests.get(f"{REST}/file//data/a.bin", headers=AUTH).content == fal_data.read("a.bin")


def test_from_an_event_loop(fal_data, fal_origin):
    fal_origin.serve("https://example.com/b", content=b"b")

    async def work():
        async with httpx.AsyncClient(headers=AUTH) as client:
            await client.post(f"{REST}/file/local/a", files={"file_upload": b"a"})
            await client.post(f"{REST}/file/url/b", json={"url": "https://example.com/b"})
            return (await client.get(f"{REST}/file/b")).content

    assert asyncio.run(work()) == b"b"
    assert fal_data.tree() == ["a", "b"]


# --- forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"content": b"raw"}, "the body must be multipart/form-data with a boundary, not None"),
        ({"files": {"file": b"x"}}, "the form has no field 'file_upload'"),
        (
            {"content": b"--b\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
            "the form breaks off",
        ),
    ],
)
def test_forms_that_are_refused(client, fal_data, options, said):
    assert detail(client.post(f"{REST}/file/local/a", **options)) == (422, said)
    assert os.listdir(fal_data.backing) == []


def test_a_form_that_breaks_off_leaves_what_was_there(client, fal_data, fal_emulator):
    fal_data.write("a", b"old")
    whole = httpx.Request("POST", REST, files={"file_upload": b"x" * 5000})
    body = whole.read()[:-10]
    headers = {"Content-Type": whole.headers["content-type"]}
    answer = client.post(f"{REST}/file/local/a", content=body, headers=headers)
    assert detail(answer) == (422, "the form breaks off")
    assert fal_data.read("a") == b"old"
    assert os.listdir(fal_data.backing.parent / "uploads") == []


def test_other_fields_do_not_matter(client, fal_data):
    files = {"x": b"1", "file_upload": ("n", b"2"), "y": b"3"}
    client.post(f"{REST}/file/local/a", files=files, data={"z": "4"})
    assert fal_data.read("a") == b"2"


@given(
    content=st.binary(max_size=300) | st.sampled_from([b"\r\n--b", b"--b--", b"\r\n", b"\r\n--"]),
    before=st.lists(st.binary(max_size=20), max_size=2),
    sizes=st.lists(st.integers(1, 40), min_size=1),
)
def test_a_form_is_read_whatever_its_chunks(content, before, sizes):
    fields = {"file_upload": ("n", content)}
    fields.update({f"other{n}": ("n", other) for n, other in enumerate(before)})
    request = httpx.Request("POST", REST, files=fields)
    body, chunks = request.read(), []
    while body:
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(body[:size])
        body = body[size:]
    kind = request.headers["content-type"]
    assert b"".join(file_in_form(kind, chunks, "file_upload")) == content


@given(body=st.binary(max_size=100) | st.text("\r\n-b:x", max_size=40).map(str.encode))
def test_whatever_comes_is_a_form_or_is_refused(body):
    with suppress(FormError):
        b"".join(file_in_form("multipart/form-data; boundary=b", [body], "x"))


# --- archives -------------------------------------------------------------------------------------


def archive(**files: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as made:
        for name, content in files.items():
            made.writestr(name.replace("__", "/"), content)
    return data.getvalue()


def test_an_archive_is_unpacked_beside_its_place(client, fal_data):
    packed = archive(a__b="1", c="2")
    assert send(client, "sets/x.zip", packed, params={"unzip": "true"}).json() is True
    fal_data.assert_tree("sets/a/b", "sets/c")


@pytest.mark.parametrize("unzip", [None, "false"])
def test_without_being_asked_it_is_not(client, fal_data, unzip):
    send(client, "x.zip", archive(a="1"), params={"unzip": unzip} if unzip else {})
    assert fal_data.tree() == ["x.zip"]


def test_what_is_no_archive_is_stored_as_it_is(client, fal_data):
    send(client, "x.zip", b"no archive", params={"unzip": "true"})
    assert fal_data.read("x.zip") == b"no archive"


def test_a_damaged_archive(client, fal_data):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a", b"a" * 1000)
    damaged = bytearray(data.getvalue())
    damaged[32:36] = b"\xff" * 4
    answer = send(client, "x.zip", bytes(damaged), params={"unzip": "true"})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("the ZIP file cannot be unpacked: ")
    assert fal_data.tree() == []
    assert os.listdir(fal_data.backing.parent / "uploads") == []


@pytest.mark.parametrize("name", ["../x", "a/../../x"])
def test_an_archive_cannot_leave_its_folder(client, fal_data, name):
    packed = archive(good="1", **{name.replace("/", "__"): "2"})
    answer = send(client, "sets/x.zip", packed, params={"unzip": "true"})
    assert detail(answer) == (400, f"{name!r} has '..' in it")
    assert fal_data.tree() == []


# --- uploads in parts -----------------------------------------------------------------------------


class Upload:
    def __init__(self, client, path="/data/a.bin"):
        self.client = client
        self.url = f"{REST}/file/multipart/{path}"
        self.id = client.post(f"{self.url}/initiate").json()["upload_id"]

    def part(self, number, content=b"x"):
        url = f"{self.url}/{self.id}/{number}"
        return self.client.put(url, files={"file_upload": ("chunk", content)})

    def complete(self, *parts):
        named = [{"part_number": number, "etag": etag} for number, etag in parts]
        return self.client.post(f"{self.url}/{self.id}/complete", json={"parts": named})

    def cancel(self):
        return self.client.post(f"{self.url}/{self.id}/cancel")


@pytest.fixture
def upload(client):
    return Upload(client)


def etag(answer) -> str:
    return answer.json()["etag"]


def test_parts_are_put_together_in_order(upload, fal_data):
    second, first = etag(upload.part(2, b"def")), etag(upload.part(1, b"abc"))
    assert upload.part(2, b"def").json() == {"part_number": 2, "etag": second}
    answer = upload.complete((1, first), (2, second))
    assert answer.json() == {"etag": "e80b5017098950fc58aad83c8c14978e"}  # MD5 of abcdef
    assert fal_data.read("a.bin") == b"abcdef"


def test_of_a_part_sent_twice_the_last_counts(upload, fal_data):
    upload.part(1, b"old")
    assert upload.complete((1, etag(upload.part(1, b"new")))).status_code == 200
    assert fal_data.read("a.bin") == b"new"


def test_completions_that_are_refused(upload, fal_data):
    good = etag(upload.part(1))
    assert detail(upload.complete()) == (400, "an upload needs at least one part")
    assert detail(upload.complete((1, good), (1, good))) == (400, "a part is named twice")
    assert detail(upload.complete((1, good), (2, "x"))) == (400, "part 2 was never uploaded")
    assert detail(upload.complete((1, "x"))) == (400, "part 1 has another ETag")
    assert fal_data.tree() == []
    assert upload.complete((1, good)).status_code == 200


@pytest.mark.parametrize("order", ["report", "strict"])
def test_parts_out_of_order(client, fal_data, fal_emulator, fal_ledger, order):
    fal_emulator.settings.part_order = order
    upload = Upload(client)
    first, second = etag(upload.part(1, b"1")), etag(upload.part(2, b"2"))
    answer = upload.complete((2, second), (1, first))
    assert answer.status_code == (200 if order == "report" else 400)
    assert fal_data.tree() == (["a.bin"] if order == "report" else [])
    assert "order" in fal_ledger.exchanges[-1].notes[0]


@pytest.mark.parametrize("number", ["0", "10001"])
def test_part_numbers_have_limits(upload, number):
    said = f"part numbers go from 1 to 10000, not {number}"
    assert detail(upload.part(number)) == (400, said)


def test_after_its_end_an_upload_is_unknown(upload, fal_data):
    good = etag(upload.part(1))
    assert upload.complete((1, good)).status_code == 200
    said = (404, f"no upload {upload.id} to this path is under way")
    assert detail(upload.complete((1, good))) == said
    assert detail(upload.part(1)) == said
    assert detail(upload.cancel()) == said


def test_a_cancelled_upload_leaves_nothing(upload, fal_data):
    upload.part(1)
    assert upload.cancel().status_code == 200
    assert upload.part(1).status_code == 404
    assert os.listdir(fal_data.backing) == []
    assert os.listdir(fal_data.backing.parent / "uploads") == []


def test_an_upload_is_to_one_path(client, upload):
    other = Upload(client, "/data/b.bin")
    other.id = upload.id
    assert other.part(1).status_code == 404


# --- the Platform APIs ----------------------------------------------------------------------------


def test_the_mirror_lists_with_relative_paths(client, fal_data):
    fal_data.write("datasets/images/cat.jpg", b"abc")
    (folder,) = client.get(f"{PLATFORM}/list").json()
    assert (folder["path"], folder["name"], folder["is_file"]) == ("datasets", "datasets", False)
    (entry,) = client.get(f"{PLATFORM}/list/datasets/images").json()
    assert (entry["path"], entry["name"]) == ("datasets/images/cat.jpg", "cat.jpg")


def test_the_mirror_moves_files(client, fal_data, fal_cdn):
    files = {"file_upload": ("cat.jpg", b"abc")}
    assert client.post(f"{PLATFORM}/file/local/datasets/cat.jpg", files=files).json() is True
    url = {"url": fal_cdn.put(b"def")}
    assert client.post(f"{PLATFORM}/file/url/datasets/dog.jpg", json=url).json() is True
    fal_data.assert_tree("datasets/cat.jpg", "datasets/dog.jpg")
    assert client.get(f"{PLATFORM}/file/datasets/dog.jpg").content == b"def"


def test_the_mirror_takes_a_path_that_is_one_escaped_name(client, fal_data):
    files = {"file_upload": b"abc"}
    raw_path = b"/v1/serverless/files/file/local/uploads%2Fa.jpg"
    client.post(httpx.URL("https://api.fal.ai").copy_with(raw_path=raw_path), files=files)
    assert fal_data.tree() == ["uploads/a.jpg"]


def test_the_mirror_unpacks(client, fal_data):
    files = {"file_upload": archive(a="1")}
    client.post(f"{PLATFORM}/file/local/sets/x.zip?unzip=true", files=files)
    assert fal_data.tree() == ["sets/a"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "file/none", 404, "not_found"),
        ("GET", "list/none", 404, "not_found"),
        ("POST", "file/url/a", 422, "validation_error"),
        ("GET", "file/..%2Fx", 400, "validation_error"),
        ("DELETE", "file/a", 404, "not_found"),
        ("POST", "rename/a", 404, "not_found"),
    ],
)
def test_the_mirrors_errors(client, fal_data, method, path, status, kind):
    fal_data.write("a", b"a")
    url = httpx.URL("https://api.fal.ai").copy_with(
        raw_path=f"/v1/serverless/files/{path}".encode()
    )
    answer = client.request(method, url)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert fal_data.tree() == ["a"]


def test_the_mirror_needs_a_key(fal_emulator):
    assert httpx.get(f"{PLATFORM}/list").json() == {
        "error": {
            "type": "authorization_error",
            "message": "Authentication is required to access this API",
        }
    }


def test_a_test_that_does_not_use_it_has_no_directory_for_it(fal_data):
    assert not (fal_data.backing.parent / "uploads").exists()


def test_a_broken_archive_leaves_nothing(client, fal_data):
    packed = bytearray(archive(**{"a.txt": "first", "b.txt": "second"}))
    place = packed.index(b"second")
    packed[place : place + 6] = b"SECOND"  # its checksum is another now
    answer = send(client, "sets/x.zip", bytes(packed), params={"unzip": "true"})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("the ZIP file cannot be unpacked: Bad CRC-32")
    assert fal_data.tree() == []


def test_the_mirror_deletes_nothing(client, fal_data):
    fal_data.write("local/x", b"x")
    answer = client.delete("https://api.fal.ai/v1/serverless/files/file/local/x")
    assert answer.status_code == 404
    assert fal_data.tree() == ["local/x"]


def test_credentials_of_an_import_are_not_shown(client, fal_ledger):
    secret = "https://user:PASSWORD@example.com/x?X-Amz-Signature=SIGNATURE&token=TOKEN"
    answer = client.post(f"{REST}/file/url/x", json={"url": secret})
    assert answer.status_code == 400
    shown = [answer.text, *fal_ledger.problems, *(repr(vars(one)) for one in fal_ledger.exchanges)]
    assert not [word for word in ("PASSWORD", "SIGNATURE", "TOKEN") if word in "".join(shown)]
