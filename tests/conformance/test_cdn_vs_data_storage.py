"""The section "CDN vs /data Storage": what each of the three places is for, sentence by sentence
and cell by cell of its table.
"""

from __future__ import annotations

import os
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import fal
import httpx
import pytest
from fal.toolkit import File, Image, Video, download_file, download_model_weights
from fal.toolkit.utils.download_utils import DownloadError
from page import departs, states
from PIL import Image as PILImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_fal import CDN, Clock, Ledger, Origin, Runner, RunnerFactory, Volume

WEEK = timedelta(days=7)
WEIGHTS = "https://huggingface.co/org/model/resolve/main/weights.bin"
CLIP = "https://example.com/clip.mp4"
#: Every host of fal that answers in this emulator.
FAL_HOSTS = ["v3.fal.media", "v3b.fal.media", "fal.media", "rest.alpha.fal.ai", "rest.fal.ai"]


class Studio(fal.App):
    """Keeps its weights on /data, works in /tmp, returns files of the CDN."""

    def setup(self):
        self.weights = download_model_weights(WEIGHTS)

    @fal.endpoint("/")
    def work(self, clip_url: str) -> dict:
        clip = download_file(clip_url, target_dir="/tmp/inputs")
        result = Path("/tmp/result.bin")
        result.write_bytes(self.weights.read_bytes() + clip.read_bytes())
        return {"video": Video.from_path(result)}


class Notes(fal.App):
    """Writes and reads files where it is told to."""

    @fal.endpoint("/write")
    def write(self, path: str, text: str) -> dict:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
        return {"path": path}

    @fal.endpoint("/read")
    def read(self, path: str) -> dict:
        found = Path(path)
        return {"text": found.read_text() if found.exists() else None}


class OtherNotes(Notes):
    """Another app of the account."""


class Uploads(fal.App):
    """Returns the same bytes under the same name each time."""

    @fal.endpoint("/")
    def upload(self) -> dict:
        return {"file": File.from_bytes(b"content", file_name="result.bin")}


def write(runner: Runner, path: str, text: str) -> None:
    assert runner.post("/write", params={"path": path, "text": text}).status_code == 200


def read(runner: Runner, path: str) -> str | None:
    return runner.post("/read", params={"path": path}).json()["text"]


def upload(runner: Runner, lifetime: int | None = None) -> str:
    """The URL of an upload in a request that asks for that lifetime in seconds."""
    preference = f'{{"expiration_duration_seconds": {lifetime}}}'
    headers = {"x-fal-object-lifecycle-preference": preference} if lifetime else {}
    return runner.post("/", headers=headers).json()["file"]["url"]


def in_shell(command: str) -> str:
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


# --- two common mistakes --------------------------------------------------------------------------


@states("mistake-outputs")
def test_outputs_that_are_stored_on_data_pile_up(
    fal_runner: RunnerFactory, fal_data: Volume, fal_clock: Clock
) -> None:
    runner = fal_runner(Notes)
    for number in range(3):
        write(runner, f"/data/outputs/{number}.txt", "output")
    runner.stop()
    fal_clock.advance(days=365)
    assert fal_data.tree() == ["outputs/0.txt", "outputs/1.txt", "outputs/2.txt"]


@states("mistake-lost")
def test_a_generated_file_is_lost_with_the_runner_unless_it_is_on_the_cdn(
    fal_runner: RunnerFactory, fal_origin: Origin, fal_cdn: CDN
) -> None:
    fal_origin.serve(WEIGHTS, b"weights ")
    fal_origin.serve(CLIP, b"clip")
    runner = fal_runner(Studio)
    url = runner.post("/", params={"clip_url": CLIP}).json()["video"]["url"]
    assert runner.tmp.read("result.bin") == b"weights clip"
    runner.stop()
    assert not fal_runner(Notes).run(Path("/tmp/result.bin").exists)
    assert fal_cdn.get(url) == b"weights clip"


# --- the CDN --------------------------------------------------------------------------------------


@states("cdn-on-create")
@pytest.mark.parametrize(
    "create",
    [
        lambda path: Image.from_pil(PILImage.open(path).copy()),
        lambda path: File.from_path(path),
    ],
    ids=["Image.from_pil", "File.from_path"],
)
def test_creating_a_file_uploads_it(
    fal_cdn: CDN, fal_tmp: Volume, create: Callable[[str], File]
) -> None:
    PILImage.new("RGB", (4, 2), "red").save(fal_tmp.backing / "out.png")
    file = create("/tmp/out.png")
    assert [stored.url for stored in fal_cdn.files] == [file.url]
    assert httpx.get(file.url).content == file.as_bytes()
    assert fal_cdn.image(file.url).size == (4, 2)


@states("cdn-anyone", "table-access-cdn")
def test_anyone_reads_a_cdn_url_without_authentication(
    fal_runner: RunnerFactory, fal_ledger: Ledger
) -> None:
    url = upload(fal_runner(Uploads))
    answer = httpx.get(url)
    assert (answer.status_code, answer.content) == (200, b"content")
    sent = set(fal_ledger.exchanges[-1].request_headers)
    assert sent == {"accept", "accept-encoding", "connection", "host", "user-agent"}


@states("cdn-anyone", "table-access-cdn")
@pytest.mark.parametrize("authorization", ["Key wrong:key", "Bearer nobody", "Basic bm9ib2R5"])
def test_whoever_reads_a_cdn_url_is_not_looked_at(fal_cdn: CDN, authorization: str) -> None:
    url = File.from_bytes(b"content").url
    answer = httpx.get(url, headers={"authorization": authorization})
    assert (answer.status_code, answer.content) == (200, b"content")


@pytest.mark.fal(account_acl={"default": "forbid"})
@states("cdn-anyone", "table-access-cdn")
@departs(
    "cdn-anyone",
    does="not where the account, or the request's lifecycle preference, which the SDK passes on, "
    "has an initial_acl",
    since="1.5.2",
)
@departs(
    "table-access-cdn",
    does="not where the account or the request has an initial_acl",
    since="1.5.2",
)
def test_access_rules_close_a_cdn_url(fal_cdn: CDN) -> None:
    """The page: accessible to anyone. The platform has access rules since; another page of fal's
    documentation describes them."""
    open_to_all = {"object_lifecycle_preference": {"initial_acl": {"default": "allow"}}}
    closed = File.from_bytes(b"content").url
    opened = File.from_bytes(b"content", save_kwargs=open_to_all).url
    assert [httpx.get(url).status_code for url in (closed, opened)] == [403, 200]


@pytest.mark.fal(account_expiration=WEEK)
@states("cdn-expiry", "table-persistence-cdn")
def test_cdn_urls_expire_as_the_account_says(fal_runner: RunnerFactory, fal_clock: Clock) -> None:
    url = upload(fal_runner(Uploads))
    fal_clock.advance(days=6, hours=23)
    assert httpx.get(url).status_code == 200
    fal_clock.advance(hours=1)
    assert httpx.get(url).status_code == 404


@pytest.mark.fal(account_expiration=WEEK)
@states("cdn-expiry", "table-persistence-cdn")
def test_cdn_urls_expire_as_their_request_says(fal_runner: RunnerFactory, fal_clock: Clock) -> None:
    runner = fal_runner(Uploads)
    short, long = upload(runner, lifetime=3600), upload(runner, lifetime=30 * 86400)
    fal_clock.advance(hours=1)
    assert [httpx.get(url).status_code for url in (short, long)] == [404, 200]
    fal_clock.advance(days=30)
    assert httpx.get(long).status_code == 404


@states("cdn-expiry", "table-persistence-cdn")
def test_cdn_urls_without_a_setting_do_not_expire(
    fal_runner: RunnerFactory, fal_clock: Clock
) -> None:
    url = upload(fal_runner(Uploads))
    fal_clock.advance(days=10_000)
    assert httpx.get(url).content == b"content"


@states("cdn-expiry", "table-persistence-cdn")
def test_cdn_files_do_not_depend_on_their_runner(fal_runner: RunnerFactory) -> None:
    runner = fal_runner(Uploads)
    url = upload(runner)
    runner.stop()
    assert httpx.get(url).content == b"content"


@states("cdn-unique", "table-shared-cdn")
def test_the_same_bytes_under_the_same_name_get_another_url(fal_runner: RunnerFactory) -> None:
    runner = fal_runner(Uploads)
    first, second = upload(runner), upload(runner)
    assert first != second
    assert [httpx.get(url).content for url in (first, second)] == [b"content"] * 2


@states("cdn-unique", "table-shared-cdn")
def test_an_upload_never_replaces_another_of_its_name(fal_cdn: CDN) -> None:
    older = File.from_bytes(b"older", file_name="result.bin")
    newer = File.from_bytes(b"newer", file_name="result.bin")
    assert [httpx.get(file.url).content for file in (older, newer)] == [b"older", b"newer"]


@states("cdn-unique", "table-shared-cdn")
def test_there_is_no_folder_in_which_uploads_could_be_found(fal_cdn: CDN) -> None:
    first, second = (File.from_bytes(b"content", file_name="a.bin").url for _ in range(2))
    assert first.rpartition("/")[0] != second.rpartition("/")[0]
    for place in (first.rpartition("/")[0], "https://v3b.fal.media/files/a.bin"):
        assert httpx.get(place).status_code == 404


@states("table-use-cdn")
def test_generated_outputs_reach_users_through_the_cdn(
    fal_runner: RunnerFactory, fal_origin: Origin
) -> None:
    fal_origin.serve(WEIGHTS, b"weights ")
    fal_origin.serve(CLIP, b"clip")
    answer = fal_runner(Studio).post("/", params={"clip_url": CLIP}).json()
    assert httpx.get(answer["video"]["url"]).content == b"weights clip"


# --- /data ----------------------------------------------------------------------------------------


@states("data-filesystem", "table-access-data")
@pytest.mark.fal(filesystem="namespace")
def test_data_is_mounted_on_every_runner(fal_runner: RunnerFactory) -> None:
    for runner in (fal_runner(Notes), fal_runner(Notes), fal_runner(OtherNotes)):
        assert runner.run(os.path.ismount, "/data")
        assert runner.run(os.access, "/data", os.R_OK | os.W_OK | os.X_OK)


@states("data-filesystem", "table-access-data")
@pytest.mark.fal(filesystem="namespace")
def test_data_is_a_file_system_for_every_program(fal_runner: RunnerFactory) -> None:
    """Folders, renames, links, appending; for the app and for what it starts."""
    runner = fal_runner(Notes)
    runner.run(in_shell, "mkdir -p /data/a && echo one > /data/a/x && echo two >> /data/a/x")
    runner.run(in_shell, "mv /data/a/x /data/y && ln -s y /data/z && rmdir /data/a")
    assert runner.run(in_shell, "cat /data/z && ls /data") == "one\ntwo\ny\nz\n"
    assert read(runner, "/data/y") == "one\ntwo\n"


@states("data-shared", "table-shared-data")
@pytest.mark.parametrize("other", [Notes, OtherNotes], ids=["same app", "other app"])
def test_what_one_runner_writes_to_data_every_other_reads(
    fal_runner: RunnerFactory, other: type[fal.App]
) -> None:
    one, two = fal_runner(Notes), fal_runner(other)
    write(one, "/data/shared.txt", "from one")
    assert read(two, "/data/shared.txt") == "from one"
    write(two, "/data/shared.txt", "from two")
    assert read(one, "/data/shared.txt") == "from two"


@states("data-shared", "table-shared-data")
@pytest.mark.fal(filesystem="namespace")
def test_a_runner_started_later_finds_what_others_wrote_to_data(fal_runner: RunnerFactory) -> None:
    write(fal_runner(Notes), "/data/shared.txt", "earlier")
    later = fal_runner(OtherNotes)
    assert read(later, "/data/shared.txt") == "earlier"
    assert later.run(in_shell, "cat /data/shared.txt") == "earlier"


@states("data-persists", "table-persistence-data")
def test_data_persists_from_request_to_request(fal_runner: RunnerFactory) -> None:
    runner = fal_runner(Notes)
    write(runner, "/data/kept.txt", "kept")
    assert [read(runner, "/data/kept.txt") for _ in range(2)] == ["kept", "kept"]


@states("data-persists", "table-persistence-data")
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_data_persists_over_restarts_of_runners(fal_runner: RunnerFactory, end: str) -> None:
    runner = fal_runner(Notes)
    write(runner, "/data/kept.txt", "kept")
    getattr(runner, end)()
    assert read(fal_runner(Notes), "/data/kept.txt") == "kept"


@states("data-no-url", "table-access-data")
@pytest.mark.parametrize("host", FAL_HOSTS)
@pytest.mark.parametrize("prefix", ["", "/files", "/files/b", "/files/file/"])
def test_no_url_of_fal_leads_to_a_file_on_data(fal_data: Volume, host: str, prefix: str) -> None:
    fal_data.write("outputs/result.bin", b"secret")
    answer = httpx.get(f"https://{host}{prefix}/data/outputs/result.bin")
    assert answer.is_client_error
    assert b"secret" not in answer.content


@states("data-no-url", "table-access-data", "table-access-tmp")
@pytest.mark.parametrize("place", ["/data", "/tmp"])
def test_no_url_of_the_app_leads_to_its_files(fal_runner: RunnerFactory, place: str) -> None:
    runner = fal_runner(Notes)
    write(runner, f"{place}/result.txt", "secret")
    assert runner.get(f"{place}/result.txt").status_code == 404


@states("data-no-url", "table-access-data", "table-access-tmp")
@pytest.mark.parametrize("place", ["/data", "/tmp"])
@pytest.mark.parametrize(
    ("scheme", "message"),
    [("file://", "URL scheme 'file' is not allowed"), ("", "URL has no scheme")],
)
def test_the_toolkit_takes_no_local_path_for_a_url(
    fal_data: Volume, fal_tmp: Volume, place: str, scheme: str, message: str
) -> None:
    """So a caller cannot have an app read its own files by passing their paths."""
    {"/data": fal_data, "/tmp": fal_tmp}[place].write("result.bin", b"secret")
    with pytest.raises(DownloadError) as caught:
        download_file(f"{scheme}{place}/result.bin", target_dir="/tmp/inputs")
    assert str(caught.value) == message


@states("data-no-url", "table-access-data")
def test_a_file_on_data_becomes_a_url_by_being_uploaded(fal_cdn: CDN, fal_data: Volume) -> None:
    url = File.from_path(fal_data.write("outputs/result.bin", b"content")).url
    assert httpx.get(url).content == b"content"
    assert "/data" not in url


@pytest.mark.fal(account_expiration=WEEK)
@states("data-until-deleted", "table-persistence-data")
def test_files_on_data_never_expire(fal_runner: RunnerFactory, fal_clock: Clock) -> None:
    """Whatever is set for the CDN."""
    runner = fal_runner(Notes)
    write(runner, "/data/kept.txt", "kept")
    runner.stop()
    fal_clock.advance(days=10_000)
    assert read(fal_runner(Notes), "/data/kept.txt") == "kept"


@states("data-until-deleted", "table-persistence-data")
def test_a_file_deleted_from_data_is_gone_for_all(fal_runner: RunnerFactory) -> None:
    one, two = fal_runner(Notes), fal_runner(OtherNotes)
    write(one, "/data/kept.txt", "kept")
    two.run(os.unlink, "/data/kept.txt")
    assert read(one, "/data/kept.txt") is None
    assert read(fal_runner(Notes), "/data/kept.txt") is None


@states("table-use-data")
def test_weights_on_data_are_downloaded_once_for_all_runners(
    fal_runner: RunnerFactory, fal_origin: Origin
) -> None:
    weights = fal_origin.serve(WEIGHTS, b"weights ")
    fal_runner(Studio).stop()
    one, two = fal_runner(Studio), fal_runner(Studio)
    assert len(weights.requests) == 1
    fal_origin.serve(CLIP, b"clip")
    assert [r.post("/", params={"clip_url": CLIP}).status_code for r in (one, two)] == [200, 200]


@states("table-use-data")
@pytest.mark.fal(filesystem="namespace")
def test_datasets_on_data_are_read_by_every_program(
    fal_runner: RunnerFactory, fal_data: Volume
) -> None:
    for number in range(3):
        fal_data.write(f"datasets/cats/{number}.txt", f"cat {number}\n")
    runner = fal_runner(Notes)
    assert runner.run(in_shell, "cat /data/datasets/cats/*.txt") == "cat 0\ncat 1\ncat 2\n"


@states("table-use-data")
def test_caches_on_data_are_shared_and_outlive_a_runner(fal_runner: RunnerFactory) -> None:
    """Hugging Face's is there by the environment that fal gives to runners."""
    runner = fal_runner(Notes)
    assert runner.run(os.environ.get, "HF_HOME") == "/data/.cache/huggingface"
    write(runner, "/data/.cache/huggingface/hub/model.bin", "cached")
    runner.stop()
    assert read(fal_runner(OtherNotes), "/data/.cache/huggingface/hub/model.bin") == "cached"


# --- /tmp -----------------------------------------------------------------------------------------


@states("tmp-scratch", "table-use-tmp")
def test_a_request_works_with_files_in_tmp(fal_runner: RunnerFactory, fal_origin: Origin) -> None:
    fal_origin.serve(WEIGHTS, b"weights ")
    fal_origin.serve(CLIP, b"clip")
    runner = fal_runner(Studio)
    runner.post("/", params={"clip_url": CLIP})
    assert runner.tmp.tree() == ["inputs/clip.mp4", "result.bin"]


@states("tmp-scratch", "table-use-tmp")
def test_nothing_clears_tmp_between_requests(fal_runner: RunnerFactory) -> None:
    """The page calls them per-request files; it is the app that deletes them, or the end of the
    runner. What a failed request left is there for the next."""
    runner = fal_runner(Notes)
    write(runner, "/tmp/scratch.txt", "of the first request")
    assert read(runner, "/tmp/scratch.txt") == "of the first request"


@states("tmp-local", "table-shared-tmp")
@pytest.mark.parametrize("other", [Notes, OtherNotes], ids=["same app", "other app"])
def test_what_one_runner_writes_to_tmp_no_other_sees(
    fal_runner: RunnerFactory, other: type[fal.App]
) -> None:
    one, two = fal_runner(Notes), fal_runner(other)
    write(one, "/tmp/scratch.txt", "one's")
    assert read(two, "/tmp/scratch.txt") is None
    write(two, "/tmp/scratch.txt", "two's")
    assert read(one, "/tmp/scratch.txt") == "one's"


@states("tmp-local", "table-shared-tmp", "table-access-tmp")
@pytest.mark.fal(filesystem="namespace")
def test_the_programs_of_a_runner_see_its_tmp_and_no_others(fal_runner: RunnerFactory) -> None:
    one, two = fal_runner(Notes), fal_runner(Notes)
    one.run(in_shell, "echo scratch > /tmp/scratch.txt")
    assert read(one, "/tmp/scratch.txt") == "scratch\n"
    assert one.run(in_shell, "cat /tmp/scratch.txt") == "scratch\n"
    assert "scratch" not in two.run(in_shell, "ls /tmp")


@states("table-access-tmp")
@pytest.mark.fal(filesystem="namespace")
def test_tmp_is_a_file_system_for_every_program(fal_runner: RunnerFactory) -> None:
    runner = fal_runner(Notes)
    assert runner.run(os.path.ismount, "/tmp")
    runner.run(in_shell, "mkdir -p /tmp/a && echo one > /tmp/a/x && mv /tmp/a/x /tmp/y")
    assert read(runner, "/tmp/y") == "one\n"


@states("tmp-cleared", "table-persistence-tmp")
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_tmp_is_gone_when_the_runner_shuts_down(fal_runner: RunnerFactory, end: str) -> None:
    runner = fal_runner(Notes)
    write(runner, "/tmp/scratch.txt", "scratch")
    assert runner.tmp.tree() == ["scratch.txt"]
    getattr(runner, end)()
    assert runner.tmp.tree() == []
    assert read(fal_runner(Notes), "/tmp/scratch.txt") is None


@states("tmp-cleared", "table-persistence-tmp")
def test_tmp_is_kept_as_long_as_the_runner_lives(
    fal_runner: RunnerFactory, fal_clock: Clock
) -> None:
    runner = fal_runner(Notes)
    write(runner, "/tmp/scratch.txt", "scratch")
    fal_clock.advance(days=10_000)
    assert read(runner, "/tmp/scratch.txt") == "scratch"
