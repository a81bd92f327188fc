"""``fal files`` and ``FalFileSystem`` on the test's /data [facts §2.1, §2.3]."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import fal
import httpx
import pytest
from fal.cli.main import main
from fal.exceptions import FalServerlessException
from fal.files import FalFileSystem

REST = "https://rest.alpha.fal.ai/files"
KIB, MIB = 1024, 1024 * 1024
DAY = timedelta(days=1)
#: The first and the last request of an upload in parts.
IN_PARTS = {"method": "POST", "path": "/files/file/multipart/*"}

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK),
    reason="a /data that differs between runners needs /dev/fuse (Docker: --device /dev/fuse)",
)


class App(fal.App):
    @fal.endpoint("/")
    def nothing(self) -> None: ...


@pytest.fixture
def fs(fal_emulator):
    return FalFileSystem()


@pytest.fixture
def local(tmp_path):
    """Writes a file on the developer's own disk; its path."""

    def write(name: str, content: bytes = b"content") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    return write


@pytest.fixture
def in_parts(monkeypatch):
    """Uploads in parts begin at 100 KiB, with parts of 40 KiB: faster than at 10 MiB."""
    monkeypatch.setattr("fal.files.MULTIPART_THRESHOLD", 100 * KIB)
    monkeypatch.setattr("fal.files.MULTIPART_CHUNK_SIZE", 40 * KIB)


def refused(call, *args, **options) -> str:
    """What the SDK says of a call that the service refuses."""
    with pytest.raises(FalServerlessException) as error:
        call(*args, **options)
    return str(error.value)


# --- one volume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_runner_reads_what_was_uploaded(fs, local, fal_runner, isolation):
    runner = fal_runner(App, isolation=isolation)
    fs.put_file(local("a.bin", b"weights"), "models/a.bin")
    assert runner.run(Path("/data/models/a.bin").read_bytes) == b"weights"


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_what_a_runner_wrote_is_downloaded(fs, tmp_path, fal_runner, isolation):
    fal_runner(App, isolation=isolation).run(Path("/data/out.txt").write_text, "output")
    fs.get("/data/out.txt", str(tmp_path / "out.txt"))
    assert (tmp_path / "out.txt").read_text() == "output"


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_runner_can_use_it_too(fal_runner, fal_data, isolation):
    def upload() -> list[str]:
        Path("/tmp/a.txt").write_text("from a runner")
        fs = FalFileSystem()
        fs.put_file("/tmp/a.txt", "a.txt")
        return fs.ls("/data", detail=False)

    assert fal_runner(App, isolation=isolation).run(upload) == ["/data/a.txt"]
    assert fal_data.read("a.txt") == b"from a runner"


def test_owner_and_mode_are_those_of_what_a_runner_writes(fs, local, fal_data, fal_runner):
    fal_runner(App).run(Path("/data/its.bin").write_bytes, b"")
    fs.put_file(local("a"), "uploaded.bin")
    its, uploaded = (os.stat(fal_data.backing / name) for name in ("its.bin", "uploaded.bin"))
    assert stat.filemode(uploaded.st_mode) == stat.filemode(its.st_mode) == "-rw-r--r--"
    assert uploaded.st_uid == its.st_uid


def test_times_are_those_of_the_clock(fs, local, fal_clock):
    fal_clock.freeze(at=datetime(2031, 5, 1, 12, tzinfo=timezone.utc))
    fs.put_file(local("a"), "a.bin")
    fal_clock.advance(days=1)
    fs.put_file(local("b"), "b.bin")
    a, b = (datetime.fromisoformat(entry["mtime"]) for entry in fs.ls("/data"))
    assert b - a == DAY
    assert abs(b - fal_clock.now()) < timedelta(seconds=1)


def test_a_seeded_age_is_told(fs, fal_data):
    fal_data.write("old.bin", b"x", age=30 * DAY)
    age = datetime.now(timezone.utc) - datetime.fromisoformat(fs.info("/data/old.bin")["mtime"])
    assert age > 29 * DAY


# --- sizes and names ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100 * KIB - 1, 100 * KIB, 100 * KIB + 1, 200 * KIB])
def test_every_size_arrives(fs, local, fal_data, in_parts, size):
    content = os.urandom(size)
    fs.put_file(local("a.bin", content), "a.bin")
    assert fal_data.read("a.bin") == content


@pytest.mark.parametrize("size", [10 * MIB, 10 * MIB + 1], ids=["at once", "in parts"])
def test_the_real_threshold(fs, local, tmp_path, fal_data, fal_ledger, size):
    content = os.urandom(size)
    fs.put_file(local("a.bin", content), "a.bin")
    assert hashlib.md5(fal_data.read("a.bin")).digest() == hashlib.md5(content).digest()
    assert len(fal_ledger.requests(method="PUT")) == (2 if size > 10 * MIB else 0)
    fs.get_file("a.bin", str(tmp_path / "back"))
    assert os.path.getsize(tmp_path / "back") == size


@pytest.mark.parametrize(
    "name", ["ü ö.txt", " ", "a+b&c=d.txt", "[x].txt", "a\\b", "'\"", "100%", "日本.txt", "..."]
)
def test_names(fs, local, tmp_path, fal_data, name):
    fs.put_file(local("a"), f"folder/{name}")
    assert fal_data.tree() == [f"folder/{name}"]
    assert fs.ls("folder", detail=False) == [f"/data/folder/{name}"]
    fs.get_file(f"folder/{name}", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"content"
    fs.rm(f"folder/{name}")
    assert fal_data.tree() == []


@pytest.mark.parametrize("name", ["a?b.txt", "a#b.txt", "a%41b.txt"])
def test_names_that_the_sdk_does_not_escape_can_be_reached_over_http(fal_data, name, auth):
    fal_data.write(name, b"seeded")
    url = httpx.URL(f"{REST}/file/").copy_with(raw_path=b"/files/file/" + quoted(name))
    assert httpx.get(url, headers=auth).content == b"seeded"


# --- folders, as fsspec's users work with them ----------------------------------------------------


@pytest.fixture
def tree(fs, local, tmp_path, fal_data):
    """A folder of three files, uploaded."""
    for name in ("up/a.txt", "up/sub/b.txt", "up/sub/deep/c.bin"):
        local(name, name.encode())
    fs.put(str(tmp_path / "up"), "/data/up", recursive=True)
    return fs


def test_a_folder_is_uploaded(tree, fal_data):
    fal_data.assert_tree("up/a.txt", "up/sub/b.txt", "up/sub/deep/c.bin")


def test_a_folder_is_downloaded(tree, tmp_path):
    tree.get("/data/up", str(tmp_path / "back"), recursive=True)
    found = sorted(str(p.relative_to(tmp_path / "back")) for p in (tmp_path / "back").rglob("*.*"))
    assert found == ["a.txt", "sub/b.txt", "sub/deep/c.bin"]
    assert (tmp_path / "back/sub/b.txt").read_bytes() == b"up/sub/b.txt"


def test_what_fsspec_derives_from_the_listing(tree):
    assert tree.find("/data/up") == [
        "/data/up/a.txt",
        "/data/up/sub/b.txt",
        "/data/up/sub/deep/c.bin",
    ]
    assert tree.glob("/data/up/**/*.txt") == ["/data/up/a.txt", "/data/up/sub/b.txt"]
    assert tree.exists("/data/up/a.txt")
    assert not tree.exists("/data/up/z.txt")
    assert tree.isdir("/data/up/sub")
    assert tree.isfile("/data/up/a.txt")
    assert tree.du("/data/up") == sum(map(len, ("up/a.txt", "up/sub/b.txt", "up/sub/deep/c.bin")))
    assert [path for path, _, _ in tree.walk("/data/up")] == [
        "/data/up",
        "/data/up/sub",
        "/data/up/sub/deep",
    ]


def test_the_listing_is_by_name_with_folders_of_size_zero(tree):
    entries = [(e["name"], e["type"], e["size"]) for e in tree.ls("/data/up")]
    assert entries == [("/data/up/a.txt", "file", 8), ("/data/up/sub", "directory", 0)]


def test_the_root_has_one_folder(fs, fal_ledger):
    assert fs.ls("/", detail=False) == ["/data"]
    assert fal_ledger.exchanges == []


def test_the_listing_of_a_file_is_the_file(tree):
    """Otherwise `fal files download` could not download one: it walks whatever it is given."""
    assert tree.ls("/data/up/a.txt", detail=False) == ["/data/up/a.txt"]


def test_a_folder_that_is_not_there(fs):
    assert refused(fs.ls, "/data/none") == "/data/none not found"


@pytest.mark.fal(files_missing_folder="empty")
def test_a_folder_that_is_not_there_may_be_empty(fs, local, fal_data):
    assert fs.ls("/data/none") == []
    fs.put(local("a"), "/data/none/at/all/a")  # asks whether that is a folder
    assert fal_data.tree() == ["none/at/all/a"]


# --- changing -------------------------------------------------------------------------------------


def test_an_upload_replaces_what_was_there(fs, local, fal_data):
    fal_data.write("a.bin", b"a longer one than the new")
    fs.put_file(local("new", b"new"), "a.bin")
    assert fal_data.read("a.bin") == b"new"


def test_who_has_the_replaced_file_open_keeps_it(fs, local, fal_data):
    with fal_data.write("a.bin", b"old").open("rb") as file:
        fs.put_file(local("new", b"new"), "a.bin")
        assert file.read() == b"old"


def test_remove_a_file(tree, fal_data):
    tree.rm("/data/up/a.txt")
    fal_data.assert_tree("up/sub/b.txt", "up/sub/deep/c.bin")


def test_remove_a_folder(tree, fal_data):
    tree.rm("/data/up")
    assert os.listdir(fal_data.backing) == []


def test_remove_what_is_not_there(fs):
    assert refused(fs.rm, "/data/none") == "/data/none not found"


@pytest.mark.parametrize("path", ["/data", "/data/", "."])
def test_the_volume_itself_stays(fs, path):
    assert refused(fs.rm, path) == "/data itself can neither be moved nor removed"


def test_removing_a_link_leaves_what_it_leads_to(fs, fal_data):
    fal_data.write("a.bin", b"a")
    os.symlink("a.bin", fal_data.backing / "link")
    fs.rm("/data/link")
    assert os.listdir(fal_data.backing) == ["a.bin"]


def test_rename_across_folders(tree, fal_data):
    tree.mv("/data/up/a.txt", "/data/up/sub/deep/z.txt")
    fal_data.assert_tree("up/sub/b.txt", "up/sub/deep/c.bin", "up/sub/deep/z.txt")


def test_rename_a_folder(tree, fal_data):
    tree.mv("/data/up/sub", "/data/moved")
    fal_data.assert_tree("up/a.txt", "moved/b.txt", "moved/deep/c.bin")


def test_a_file_is_renamed_over_another(tree, fal_data):
    tree.mv("/data/up/a.txt", "/data/up/sub/b.txt")
    assert fal_data.read("up/sub/b.txt") == b"up/a.txt"


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("/data/none", "/data/x", "/data/none not found"),
        ("/data/up/a.txt", "/data/no/x", "/data/no/x not found"),
        ("/data/up/a.txt", "/data/up/sub", "/data/up/sub: Is a directory"),
        ("/data/up/sub", "/data/full", "/data/full: Directory not empty"),
        ("/data/up", "/data/up/sub/up", "/data/up/sub/up: Invalid argument"),
        ("/data/up/a.txt", "/etc/x", "/etc/x is not below /data"),
        ("/data", "/data/x", "/data itself can neither be moved nor removed"),
    ],
)
def test_renames_that_are_refused(tree, fal_data, source, target, said):
    fal_data.write("full/x", b"")
    before = fal_data.tree()
    assert refused(tree.mv, source, target) == said
    assert fal_data.tree() == before


# --- import from a URL ----------------------------------------------------------------------------


def test_import_from_a_server(fs, fal_origin, fal_data, fal_ledger):
    fal_origin.serve("https://example.com/a.bin", content=b"bytes")
    fs.put_file_from_url("https://example.com/a.bin", "models/a.bin")
    assert fal_data.read("models/a.bin") == b"bytes"
    assert [e.client for e in fal_ledger.requests(host="example.com")] == ["fal"]


def test_import_from_the_cdn_while_the_file_lives(fs, fal_cdn, fal_clock, fal_data):
    url = fal_cdn.put(b"output", expires_in=timedelta(hours=1))
    fal_clock.advance(minutes=59)
    fs.put_file_from_url(url, "a.bin")
    fal_clock.advance(minutes=2)
    assert refused(fs.put_file_from_url, url, "b.bin") == (
        f"cannot download {url}: {url} answered 404 Not Found"
    )
    assert fal_data.tree() == ["a.bin"]


def test_import_follows_redirects(fs, fal_http, fal_origin, fal_data):
    fal_http.get("https://example.com/old").respond(302, headers={"location": "/new"})
    fal_origin.serve("https://example.com/new", content=b"moved")
    fs.put_file_from_url("https://example.com/old", "a.bin")
    assert fal_data.read("a.bin") == b"moved"


def test_import_gives_up_in_a_circle_of_redirects(fs, fal_http):
    fal_http.get("https://example.com/a").respond(302, headers={"location": "/a"})
    assert refused(fs.put_file_from_url, "https://example.com/a", "a.bin") == (
        "cannot download https://example.com/a: too many redirects"
    )


def test_import_from_nowhere_says_what_to_write(fs):
    said = refused(fs.put_file_from_url, "https://nowhere.example/a.bin", "a.bin")
    assert 'fal_origin.serve("https://nowhere.example/a.bin"' in said


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/a", "a.bin", "http://"])
def test_import_takes_only_web_addresses(fs, url, fal_data):
    assert refused(fs.put_file_from_url, url, "a.bin") == f"{url!r} is no http or https URL"
    assert fal_data.tree() == []


def test_import_from_this_machine_is_refused(fs):
    assert refused(fs.put_file_from_url, "http://localhost:1/a", "a.bin") == (
        "cannot download http://localhost:1/a: only what the test serves can be imported"
    )


def test_a_broken_import_leaves_what_was_there(fs, fal_origin, fal_faults, fal_data):
    fal_data.write("a.bin", b"old")
    fal_origin.serve("https://example.com/a.bin", content=b"x" * 5000)
    fal_faults.drop(after=1000, host="example.com")
    assert "cannot download https://example.com/a.bin" in refused(
        fs.put_file_from_url, "https://example.com/a.bin", "a.bin"
    )
    assert fal_data.read("a.bin") == b"old"


def test_an_import_is_unpacked_as_a_browser_does(fs, fal_origin, fal_data):
    fal_origin.serve("https://example.com/a.txt", content=b"text" * 1000, gzip=True)
    fs.put_file_from_url("https://example.com/a.txt", "a.txt")
    assert fal_data.read("a.txt") == b"text" * 1000


@pytest.mark.parametrize("after", [0, 1000])
def test_an_import_that_ends_early_stores_nothing(fs, fal_origin, fal_faults, fal_data, after):
    fal_origin.serve("https://example.com/a.bin", content=b"x" * 5000)
    fal_faults.truncate(after=after, host="example.com")
    said = refused(fs.put_file_from_url, "https://example.com/a.bin", "a.bin")
    assert said.startswith("cannot download https://example.com/a.bin: ")
    assert os.listdir(fal_data.backing) == []
    assert os.listdir(fal_data.backing.parent / "uploads") == []


def test_an_import_from_a_route_that_raises(fs, fal_http):
    fal_http.get("https://example.com/a").mock(side_effect=httpx.ReadError("gone"))
    said = refused(fs.put_file_from_url, "https://example.com/a", "a.bin")
    assert said == "cannot download https://example.com/a: gone"


@pytest.mark.parametrize("fault", ["refuse", "dns_failure", "tls_failure", "timeout"])
def test_an_import_from_a_server_that_cannot_be_reached(fs, fal_origin, fal_faults, fault):
    fal_origin.serve("https://example.com/a.bin", content=b"x")
    getattr(fal_faults, fault)(host="example.com")
    said = refused(fs.put_file_from_url, "https://example.com/a.bin", "a.bin")
    assert said.startswith("cannot download https://example.com/a.bin: ")
    assert "injected by fal_faults" in said


# --- uploads in parts -----------------------------------------------------------------------------


def test_nothing_is_seen_before_the_last_step(fs, local, fal_data, fal_faults, in_parts, upload):
    completion = fal_faults.gate(of="request", nth=2, **IN_PARTS)
    thread = upload(fs, local("a.bin", os.urandom(300 * KIB)), "a.bin")
    completion.wait()
    assert os.listdir(fal_data.backing) == []
    completion.open()
    thread.join()
    assert fal_data.tree() == ["a.bin"]


def test_an_upload_that_fails_is_cancelled_and_leaves_nothing(
    fs, local, fal_data, fal_faults, fal_emulator, fal_ledger, in_parts
):
    fal_faults.status(400, nth=3, method="PUT")
    said = refused(fs.put_file, local("a.bin", os.urandom(300 * KIB)), "a.bin")
    assert said == "400, injected by fal_faults"
    assert os.listdir(fal_data.backing) == []
    assert fal_ledger.exchanges[-1].path.endswith("/cancel")
    assert fal_ledger.exchanges[-1].status == 200


def test_ten_parts_at_once(fs, local, fal_data, fal_ledger, in_parts):
    content = os.urandom(1200 * KIB)
    fs.put_file(local("a.bin", content), "a.bin")
    assert fal_data.read("a.bin") == content
    assert len(fal_ledger.requests(method="PUT")) == 30


def test_the_sdk_notices_another_checksum(fs, local, fal_http, fal_data, in_parts):
    fal_http.post(path__regex=r"/complete$").respond(200, json={"etag": "0" * 32})
    with pytest.raises(RuntimeError, match=f"MD5 mismatch on /data/a.bin: {'0' * 32} != "):
        fs.put_file(local("a.bin", os.urandom(200 * KIB)), "a.bin")


def test_the_sdk_waits_as_long_as_it_is_told(fs, local, fal_data, fal_faults, fal_clock, in_parts):
    fal_clock.freeze()
    start = fal_clock.now()
    fal_faults.status(429, times=1, headers={"Retry-After": "30"}, **IN_PARTS)
    fs.put_file(local("a.bin", os.urandom(200 * KIB)), "a.bin")
    assert fal_clock.now() - start == timedelta(seconds=30)
    assert fal_data.tree() == ["a.bin"]


def test_the_sdk_tries_three_times_with_growing_pauses(
    fs, local, fal_faults, fal_clock, fal_ledger, in_parts
):
    fal_clock.freeze()
    start = fal_clock.now()
    fal_faults.status(503, times=3, **IN_PARTS)
    said = refused(fs.put_file, local("a.bin", os.urandom(200 * KIB)), "a.bin")
    assert said == "503, injected by fal_faults"
    assert fal_clock.now() - start == timedelta(seconds=1 + 2)
    assert [e.status for e in fal_ledger.exchanges] == [503, 503, 503]


def test_a_part_whose_answer_is_lost_is_sent_again(
    fs, local, fal_data, fal_faults, fal_clock, in_parts
):
    fal_clock.freeze()
    fal_faults.drop(method="PUT", times=1)
    content = os.urandom(200 * KIB)
    fs.put_file(local("a.bin", content), "a.bin")
    assert fal_data.read("a.bin") == content


# --- what the volume refuses ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [80 * KIB, 200 * KIB], ids=["at once", "in parts"])
@pytest.mark.fal(filesystem="namespace")
def test_a_full_volume(fs, local, fal_data, fal_clock, in_parts, size):
    fal_clock.freeze()  # 507 is tried again
    fal_data.limit(64 * KIB)
    fal_data.write("a.bin", b"old")
    said = refused(fs.put_file, local("a.bin", os.urandom(size)), "a.bin")
    assert said == "/data/a.bin: No space left on device"
    assert fal_data.read("a.bin") == b"old"
    assert os.listdir(fal_data.backing) == ["a.bin"]


@pytest.mark.fal(filesystem="namespace")
def test_what_fits_under_a_limit(fs, local, fal_data):
    fal_data.limit(64 * KIB)
    fs.put_file(local("a.bin", b"x" * 1000), "folder/a.bin")
    assert fal_data.tree() == ["folder/a.bin"]


@pytest.mark.fal(filesystem="namespace")
def test_a_read_only_volume(fs, local, fal_data):
    fal_data.write("b.bin", b"b")
    with fal_data.read_only():
        said = "Read-only file system"
        assert refused(fs.put_file, local("a"), "a.bin") == f"/data/a.bin: {said}"
        assert refused(fs.rm, "b.bin") == f"/data/b.bin: {said}"
        assert refused(fs.mv, "b.bin", "c.bin") == f"/data/c.bin: {said}"
    assert fal_data.tree() == ["b.bin"]


# --- between servers and datacenters --------------------------------------------------------------


@needs_fuse
@pytest.mark.fal(
    data_visibility="staged",
    data_datacenter_delay=timedelta(seconds=2),
    data_global_delay=timedelta(seconds=60),
)
@pytest.mark.parametrize("size", [10, 200 * KIB], ids=["at once", "in parts"])
def test_an_upload_travels_as_another_servers_write(
    fs, local, fal_data, fal_clock, fal_runner, in_parts, size
):
    fal_clock.freeze()
    near, far = fal_runner(App), fal_runner(App, datacenter="eu-west")
    content = os.urandom(size)
    fs.put_file(local("a.bin", content), "models/a.bin")
    assert fal_data.tree() == ["models/a.bin"]
    assert near.run(os.path.exists, "/data/models/a.bin") is False
    fal_clock.advance(2)
    assert near.run(Path("/data/models/a.bin").read_bytes) == content
    assert near.run(os.listdir, "/data/models") == far.run(os.listdir, "/data/models") == ["a.bin"]
    assert fal_data.visible_at("models/a.bin", datacenter="eu-west") == (
        fal_clock.now() + timedelta(seconds=58)
    )
    fal_clock.advance(58)
    assert far.run(Path("/data/models/a.bin").read_bytes) == content


@needs_fuse
@pytest.mark.fal(data_visibility="staged", data_datacenter_delay=timedelta(seconds=2))
def test_the_listing_lags_as_on_another_server(fs, fal_clock, fal_runner):
    fal_clock.freeze()
    fal_runner(App).run(Path("/data/a.bin").write_bytes, b"a")
    assert FalFileSystem(use_listings_cache=False).ls("/data") == []
    fal_clock.advance(2)
    assert FalFileSystem(use_listings_cache=False).ls("/data", detail=False) == ["/data/a.bin"]


@needs_fuse
@pytest.mark.fal(data_visibility="staged")
def test_rename_and_removal_between_servers(fs, local, fal_data, fal_runner):
    runner = fal_runner(App)
    fs.put_file(local("a"), "folder/a.bin")
    fs.mv("/data/folder/a.bin", "/data/b.bin")
    fs.rm("/data/folder")
    assert runner.run(os.listdir, "/data") == ["b.bin"]


@needs_fuse
@pytest.mark.fal(data_visibility="staged")
def test_an_event_loop_is_not_held_up_meanwhile(fal_data, fal_clock, fal_runner, auth):
    """The files are then answered for by another process, which may have to wait."""
    fal_runner(App)

    async def work():
        async with httpx.AsyncClient(headers=auth) as client:
            await client.post(f"{REST}/file/local/a", files={"file_upload": b"a"})
            return (await client.get(f"{REST}/list")).json()[0]["path"]

    assert asyncio.run(work()) == "/data/a"


# --- the command ----------------------------------------------------------------------------------


def run(*arguments: str) -> int | None:
    return main(["files", *arguments])


def test_the_commands(tmp_path, local, fal_data, fal_cdn, capsys):
    local("models/a.bin", b"a")
    assert not run("upload", str(tmp_path / "models"), "/data/models")
    assert not run("upload-url", fal_cdn.put(b"output"), "/data/models/b.bin")
    assert not run("mv", "/data/models/b.bin", "/data/c.bin")
    fal_data.assert_tree("models/a.bin", "c.bin")
    capsys.readouterr()
    assert not run("list", "/data")
    assert capsys.readouterr().out.split() == ["c.bin", "models"]
    assert not run("download", "/data/models", str(tmp_path / "back"))
    assert (tmp_path / "back/a.bin").read_bytes() == b"a"
    assert not run("rm", "/data/models")
    assert fal_data.tree() == ["c.bin"]


def test_a_command_that_fails_says_why_and_ends_with_1(fal_emulator, capsys):
    assert run("rm", "/data/none") == 1
    assert "/data/none not found" in capsys.readouterr().out


def test_the_commands_need_nothing_but_the_rest_host(local, fal_data, fal_ledger, fal_emulator):
    run("upload", local("a"), "/data/a")
    run("list", "/data")
    # An older SDK asks whether it is the newest, and goes on without an answer.
    hosts = {exchange.host for exchange in fal_ledger.exchanges} - {"pypi.org"}
    assert hosts == {"rest.alpha.fal.ai"}
    assert fal_ledger.events == []


# --- from test to test ----------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["first", "second"])
def test_no_listing_is_remembered_from_the_test_before(fal_data, test):
    """fsspec keeps one file system for the same arguments in a process, with its listings."""
    fal_data.write(f"{test}.bin", b"")
    assert FalFileSystem().ls("/data", detail=False) == [f"/data/{test}.bin"]


def test_a_file_system_of_before_is_there_again_afterwards(fal_emulator):
    fal_emulator.stop()
    try:
        of_before = FalFileSystem()
    finally:
        fal_emulator.start()
    inside = FalFileSystem()
    assert inside is not of_before
    fal_emulator.stop()
    try:
        assert FalFileSystem() is of_before
    finally:
        FalFileSystem.clear_instance_cache()
        fal_emulator.start()


# --- helpers --------------------------------------------------------------------------------------


@pytest.fixture
def auth():
    return {"Authorization": "Key id:secret"}


@pytest.fixture
def upload():
    """Uploads in a thread."""

    def begin(fs, source, target):
        thread = threading.Thread(target=fs.put_file, args=(source, target))
        thread.start()
        return thread

    return begin


def quoted(name: str) -> bytes:
    from urllib.parse import quote

    return quote(name).encode()


def test_another_users_data_is_not_this_accounts(fs, fal_data, fal_emulator):
    fal_data.write("a.txt", b"a")
    with fal_emulator.user("bob"), pytest.raises(FalServerlessException) as caught:
        FalFileSystem().ls("/data")
    assert str(caught.value) == "the emulator has no /data of bob's, only the account's"
