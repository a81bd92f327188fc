"""Bugs of ``fal files`` and of ``FalFileSystem``: /data, seen from outside of runners."""

from __future__ import annotations

import os
import tracemalloc
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import fal
import httpx
import pytest
from fal.cli.main import main
from fal.exceptions import FalServerlessException
from fal.files import FalFileSystem
from gallery import bug

FILES = "fal files and FalFileSystem"
SEEN = ("1.75.5", "1.83.0")

MIB = 1024 * 1024


@pytest.fixture
def fs(fal_emulator):
    return FalFileSystem()


@pytest.fixture
def local(tmp_path):
    """A small file on the developer's own disk."""
    path = tmp_path / "local.txt"
    path.write_bytes(b"new")
    return path


class App(fal.App):
    @fal.endpoint("/")
    def write(self) -> None:
        Path("/data/result.json").write_text("{}")


# --- the wrong file ------------------------------------------------------------------------------


@bug("N16", symptom="fal files rm removed another file", topic=FILES, seen=SEEN)
def test_a_hash_in_a_name_removes_another_file(fs, fal_data):
    """Names with # or ? mean another file: what comes before these characters.

    Production: a folder of runs, "run", "run#2", "run#3". Somebody removes "run#2", and the first
        one is gone.
    Expected: the name is quoted in the URL.
    Happens: the path goes into the URL as it is, where # and ? end it. What is after them is lost.
    Avoid: fs.rm(quote(path)) from urllib.parse; or names without these characters.
    """
    fal_data.write("run/weights.bin", b"the first")
    fal_data.write("run#2/weights.bin", b"the second")
    fs.rm("/data/run#2")
    assert fal_data.tree() == ["run#2/weights.bin"]

    fs.rm(quote("/data/run#2"))
    assert fal_data.tree() == []


@bug("N16", symptom="fal files upload replaced another file", topic=FILES, seen=SEEN)
def test_a_question_mark_in_a_name_replaces_another_file(fs, local, fal_data):
    """An upload to a name with ?, # or %41 goes to another name, and replaces what is there.

    Production: captions named after prompts: "who.txt" and "who?.txt" end up in one file.
    Expected: two files.
    Happens: "?" begins the URL's query, "#" its fragment, and "%41" is an A to the server.
    Avoid: quote(path) from urllib.parse, for put_file, get_file and rm.
    """
    fal_data.write("who", b"precious")
    fs.put_file(str(local), "/data/who?.txt")
    assert fal_data.read("who") == b"new"

    fs.put_file(str(local), quote("/data/who?.txt"))
    assert fal_data.tree() == ["who", "who?.txt"]


@bug("N17", symptom="fal files rm removed the whole folder", topic=FILES, seen=SEEN)
def test_rm_removes_folders_without_being_asked(fs, fal_data):
    """rm removes a folder with everything in it, also with recursive=False.

    Production: a script that cleans up temporary files passes a folder by mistake, and years of
        checkpoints are gone.
    Expected: an error, as from every other file system of fsspec and from rm without -r.
    Happens: the option is ignored; there is one call that removes whatever it is.
    Avoid: fs.isfile(path) before fs.rm(path).
    """
    fal_data.write("checkpoints/1/a.bin", b"")
    fs.rm("/data/checkpoints", recursive=False)
    assert fal_data.tree() == []


@bug("N18", symptom='mode="create" overwrites my file', topic=FILES, seen=SEEN)
def test_create_overwrites(fs, local, fal_data):
    """put_file(mode="create") replaces a file that is there.

    Production: two jobs publish a model under one version, and the second wins silently.
    Expected: FileExistsError.
    Happens: the argument is accepted and not looked at.
    Avoid: fs.exists(path) before, on a file system without its cache; it is no lock.
    """
    fal_data.write("v1.bin", b"old")
    fs.put_file(str(local), "/data/v1.bin", mode="create")
    assert fal_data.read("v1.bin") == b"new"


@bug("N19", symptom="my files are in models/models", topic=FILES, seen=SEEN)
def test_a_folder_that_is_uploaded_again_goes_into_itself(fal_data, tmp_path):
    """The second `fal files upload models /data/models` makes /data/models/models.

    Production: the first release works. The second uploads everything, and the app goes on with
        the old weights: the new ones are one folder deeper.
    Expected: the same command twice gives the same.
    Happens: a folder goes *into* the target if that is there, and becomes it if not, as with cp -r.
    Avoid: a slash at the end of the local folder: `fal files upload models/ /data/models`.
    """
    (tmp_path / "models").mkdir()
    weights = tmp_path / "models" / "a.bin"
    for version in (b"1", b"2"):
        weights.write_bytes(version)
        main(["files", "upload", str(tmp_path / "models"), "/data/models"])
    assert fal_data.tree() == ["models/a.bin", "models/models/a.bin"]
    assert fal_data.read("models/a.bin") == b"1"

    main(["files", "upload", f"{tmp_path / 'models'}/", "/data/models"])
    assert fal_data.read("models/a.bin") == b"2"


@pytest.mark.fal(files_double_slash="merged")
@bug("N20", symptom="behind our proxy uploads land in /data/data", topic=FILES, seen=SEEN)
def test_a_proxy_that_merges_slashes_moves_everything(fs, local, fal_data):
    """Behind a proxy that merges slashes every path below /data gets another /data before it.

    Production: from the office everything works; in CI, behind another proxy, the upload succeeds
        and the app does not find the file.
    Expected: one path, wherever it is asked from.
    Happens: the SDK asks for /files/file/local//data/x. Merged to one slash, which RFC 3986 does
        not forbid, "data/x" is relative, and the service puts relative paths below /data.
    Avoid: paths without a slash at the beginning do not help, as the SDK adds it. Look at what is
        in /data/data when files are missing.
    """
    fs.put_file(str(local), "/data/x.txt")
    assert fal_data.tree() == ["data/x.txt"]


# --- nothing happens ------------------------------------------------------------------------------


@bug("N21", symptom="fs.open(path, 'w') writes nothing", topic=FILES, seen=SEEN)
def test_what_is_written_vanishes(fs, fal_data):
    """Writing to an open file, pipe() and touch() succeed, and store nothing.

    Production: df.to_csv through fsspec, or fs.pipe, reports success for weeks; /data is empty.
    Expected: the file, or NotImplementedError.
    Happens: the class takes fsspec's default for an open file, whose upload step does nothing.
    Avoid: write a local file and put_file() it.
    """
    fs.pipe("/data/a.json", b"{}")
    with fs.open("/data/b.csv", "w") as file:
        file.write("1,2")
    fs.touch("/data/c")
    assert os.listdir(fal_data.backing) == []


@bug("N21", symptom="fs.open(path) ends in a RecursionError", topic=FILES, seen=SEEN)
def test_files_cannot_be_read_in_place(fs, fal_data, tmp_path):
    """open() and cat() of a file end in a RecursionError.

    Production: pandas.read_csv of a file system that otherwise works crashes deep in fsspec.
    Expected: the content, or NotImplementedError.
    Happens: reading a range opens the file, which reads a range: fsspec's defaults for the two call
        each other, and the class has neither.
    Avoid: get_file() to a local path.
    """
    fal_data.write("a.txt", b"content")
    with pytest.raises(RecursionError):
        fs.cat("/data/a.txt")
    fs.get_file("/data/a.txt", str(tmp_path / "a.txt"))
    assert (tmp_path / "a.txt").read_bytes() == b"content"


@bug("N22", symptom="fs.mkdir does nothing", topic=FILES, seen=SEEN)
def test_empty_folders_do_not_exist(fs, fal_data, tmp_path):
    """mkdir() and makedirs() do nothing, and empty folders are not uploaded.

    Production: the app expects an outbox that the deployment script made, and fails with
        FileNotFoundError.
    Expected: a folder, or NotImplementedError.
    Happens: fsspec's default does nothing, for stores that have no folders; put_file leaves
        folders out.
    Avoid: a file in it (.keep), or os.makedirs(exist_ok=True) in the app's setup().
    """
    fs.makedirs("/data/outbox/new")
    (tmp_path / "up/outbox").mkdir(parents=True)
    fs.put(str(tmp_path / "up"), "/data/up", recursive=True)
    assert os.listdir(fal_data.backing) == []


@bug("N23", symptom="a large upload succeeds, and the file is not there", topic=FILES, seen=SEEN)
def test_a_conflict_counts_as_success(fs, tmp_path, fal_data, fal_faults):
    """When the service answers 409 to an upload in parts, nothing is uploaded and nobody is told.

    Production: the command ends with 100 % and exit code 0. The old file, or none, is in /data.
    Expected: an error.
    Happens: in the code that /data shares with the upload of an app's own files a conflict means
        that the same content is there already. For /data it cannot mean that, and without a
        checksum nothing is compared either.
    Avoid: compare fs.info(path)["size"] after the upload, on a file system without its cache.
    """
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(10 * MIB + 1))
    fal_faults.status(409, method="POST", path="/files/file/multipart/*", times=1)
    fs.put_file(str(large), "/data/large.bin")
    assert fal_data.tree() == []


# --- what is remembered ---------------------------------------------------------------------------


@bug("N24", symptom="fs.exists never sees the file that my app writes", topic=FILES, seen=SEEN)
def test_listings_are_remembered_for_ever(fs, fal_data, fal_runner):
    """A listing is remembered for ever, whatever invalidate_cache() and refresh=True promise.

    Production: a script waits until the app's result is in /data, for ever. In a new process it is
        there at once.
    Expected: a listing after the change, at the latest when asked to look again.
    Happens: listings are kept without a limit of time and cleared by the own changes of this object
        only. FalFileSystem() gives the same object again, and fsspec's two ways to look again are
        not overridden.
    Avoid: FalFileSystem(use_listings_cache=False).
    """
    assert not fs.exists("/data/result.json")
    fal_runner(App).post("/")
    fs.invalidate_cache()
    assert not fs.exists("/data/result.json")
    assert fs.ls("/data", refresh=True) == []
    assert not FalFileSystem().exists("/data/result.json")

    assert FalFileSystem(use_listings_cache=False).exists("/data/result.json")


@bug("N25", symptom="FalFileSystem still sends the old key", topic=FILES, seen=SEEN)
def test_a_file_system_keeps_its_key(fs, monkeypatch):
    """FalFileSystem() goes on with the key of its first use in the process.

    Production: a service whose key is rotated, or that works for several accounts in turn, gets
        401, or lists the files of the account before.
    Expected: the key that is set now.
    Happens: fsspec hands out one object for the same arguments, and its client has the key in it.
    Avoid: FalFileSystem(skip_instance_cache=True), or FalFileSystem.clear_instance_cache().
    """
    fs.ls("/data")
    monkeypatch.setenv("FAL_KEY", "new-id:new-secret")
    assert FalFileSystem()._client.headers["authorization"] != "Key new-id:new-secret"

    fresh = FalFileSystem(skip_instance_cache=True)
    assert fresh._client.headers["authorization"] == "Key new-id:new-secret"


# --- when something fails -------------------------------------------------------------------------


@bug("N26", symptom="a failed download emptied my local file", topic=FILES, seen=SEEN)
def test_a_download_that_fails_empties_the_local_file(fs, tmp_path, fal_data, fal_faults):
    """A download that fails leaves an empty file where there was a good one.

    Production: a nightly copy of /data. One night the service is down, and the last good copy is
        gone; later steps take the empty file for the data.
    Expected: the file of yesterday.
    Happens: the local file is opened for writing, which empties it, before anything is asked for.
    Avoid: download to another name in the same folder and os.replace() it.
    """
    fal_data.write("a.json", b"{}")
    copy = tmp_path / "a.json"
    copy.write_bytes(b"of yesterday")
    fal_faults.status(503, path="/files/file/*")
    with pytest.raises(FalServerlessException):
        fs.get_file("/data/a.json", str(copy))
    assert copy.read_bytes() == b""


@bug("N27", symptom="while fal is down, fs.exists says False", topic=FILES, seen=SEEN)
def test_during_an_outage_nothing_exists(fs, fal_data, fal_faults):
    """exists() and isfile() say False when the service answers with an error.

    Production: "if not fs.exists(weights): upload(weights)" replaces 50 GB during a hiccup, or a
        clean-up takes every file for gone.
    Expected: the error.
    Happens: every failure is a FalServerlessException, which fsspec takes for "not there".
    Avoid: look for the name in fs.ls(folder, detail=False), which raises.
    """
    fal_data.write("a.bin", b"a")
    fal_faults.status(503)
    assert fs.exists("/data/a.bin") is False
    assert fs.isfile("/data/a.bin") is False

    with pytest.raises(FalServerlessException):
        fs.ls("/data", detail=False)


@bug("N27", symptom="except FileNotFoundError does not catch it", topic=FILES, seen=SEEN)
def test_what_is_missing_is_no_file_not_found_error(fs):
    """What is not there raises FalServerlessException, which is no FileNotFoundError.

    Production: a script for any file system of fsspec crashes with this one: its "except
        FileNotFoundError", and walk(on_error="omit"), do not work.
    Expected: FileNotFoundError.
    Happens: one exception stands for every answer but 200, and it has no status.
    Avoid: except FalServerlessException; its text is the only thing to tell them apart by.
    """
    with pytest.raises(FalServerlessException) as missing:
        fs.ls("/data/none")
    assert not isinstance(missing.value, OSError)
    with pytest.raises(FalServerlessException):
        list(fs.walk("/data/none", on_error="omit"))
    with pytest.raises(FalServerlessException):
        fs.isdir("/data/none/at/all")


@bug("N28", symptom="small uploads fail where large ones succeed", topic=FILES, seen=SEEN)
def test_small_uploads_are_not_tried_again(fs, local, tmp_path, fal_data, fal_faults, fal_clock):
    """Uploads up to 10 MiB fail at the first 429 or 503; larger ones are tried three times.

    Production: a folder of 5,000 images stops at the first rate limit, with some of it uploaded;
        a single large file survives the same.
    Expected: one policy.
    Happens: only the code for parts retries. Listing, download, rename and removal do not either.
    Avoid: call put_file() for each file, in a loop that waits and tries again.
    """
    fal_clock.freeze()
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(10 * MIB + 1))
    limit = {"headers": {"Retry-After": "30"}, "times": 1}
    start = fal_clock.now()
    fal_faults.status(429, **limit)
    fs.put_file(str(large), "/data/large.bin")
    assert fal_clock.now() - start == timedelta(seconds=30)

    fal_faults.status(429, **limit)
    with pytest.raises(FalServerlessException, match="429"):
        fs.put_file(str(local), "/data/small.txt")
    assert fal_data.tree() == ["large.bin"]


@bug("N29", symptom="ValueError: invalid literal for int() in an upload", topic=FILES, seen=SEEN)
def test_a_date_in_retry_after_breaks_the_upload(fs, tmp_path, fal_faults):
    """A rate limit whose Retry-After is a date ends the upload with a ValueError.

    Production: an upload that would have had to wait a moment fails, and the message tells nothing
        of a rate limit.
    Expected: both forms that HTTP has for this header (RFC 9110, 10.2.3).
    Happens: int() of the header.
    Avoid: catch ValueError besides FalServerlessException, and try again.
    """
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(10 * MIB + 1))
    fal_faults.status(429, headers={"Retry-After": "Fri, 31 Dec 2027 23:59:59 GMT"}, times=1)
    with pytest.raises(ValueError, match="invalid literal for int"):
        fs.put_file(str(large), "/data/large.bin")


# --- and besides ----------------------------------------------------------------------------------


@bug("N30", symptom="fal files download runs out of memory", topic=FILES, seen=SEEN)
def test_a_download_is_held_in_memory(fs, tmp_path, fal_data):
    """A file that is downloaded is held in memory as a whole.

    Production: 40 GB of weights end in MemoryError, or the process is killed, after minutes.
    Expected: a stream into the file, as uploads are read in parts.
    Happens: the answer is read completely, and then written.
    Avoid: httpx.stream("GET", "https://rest.fal.ai/files/file/<path below /data>") with the
        account's key.
    """
    size = 16 * MIB
    fal_data.write("large.bin", bytes(size))
    url, key = "https://rest.fal.ai/files/file/large.bin", f"Key {os.environ['FAL_KEY']}"
    tracemalloc.start()
    try:
        with (
            httpx.stream("GET", url, headers={"Authorization": key}) as answer,
            open(tmp_path / "in pieces.bin", "wb") as file,
        ):
            for chunk in answer.iter_bytes():
                file.write(chunk)
        assert tracemalloc.get_traced_memory()[1] < size

        fs.get_file("/data/large.bin", str(tmp_path / "at once.bin"))
        assert tracemalloc.get_traced_memory()[1] >= size
    finally:
        tracemalloc.stop()
    assert os.path.getsize(tmp_path / "in pieces.bin") == size


@bug("N31", symptom="fal files list shows another name", topic=FILES, seen=SEEN)
def test_brackets_in_names_are_taken_for_colours(fal_data, capsys):
    """`fal files list` leaves out what stands in brackets, where it could be a style.

    Production: a script that parses the list looks for files that do not exist.
    Expected: the names.
    Happens: they are printed as Rich's markup, in which [bold] is no text.
    Avoid: FalFileSystem().ls(path, detail=False).
    """
    fal_data.write("[bold]a.txt", b"")
    main(["files", "list", "/data"])
    assert capsys.readouterr().out.strip() == "a.txt"

    assert FalFileSystem().ls("/data", detail=False) == ["/data/[bold]a.txt"]
