"""/data between runners: staged visibility, locks without effect, slow names, on the clock."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import fal
import pytest
from fal.toolkit import download_model_weights

from emulator.distributed import data as distributed
from emulator.errors import EmulatorError, NamespaceRefusedError
from emulator.settings import Settings
from emulator.storage import mounts

SECOND = timedelta(seconds=1)
DATACENTER, LISTED, EVERYWHERE = 2, 5, 60
FILE, LOCK, PART = Path("/data/a.bin"), Path("/data/lock"), Path("/data/a.bin.part")

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK),
    reason="a /data that differs between runners needs /dev/fuse (Docker: --device /dev/fuse)",
)
staged = pytest.mark.fal(
    data_visibility="staged",
    data_datacenter_delay=DATACENTER * SECOND,
    data_metadata_delay=LISTED * SECOND,
    data_global_delay=EVERYWHERE * SECOND,
)


class Empty(fal.App):
    @fal.endpoint("/")
    def nothing(self) -> None: ...


@pytest.fixture
def boot(fal_runner, fal_clock):
    """Boot an empty app on a stopped clock."""
    fal_clock.freeze()
    return lambda *where: fal_runner(
        Empty, **dict(zip(("server", "datacenter"), where, strict=False))
    )


@pytest.fixture
def pool():
    with ThreadPoolExecutor() as threads:
        yield threads


def listing(folder="/data"):
    return sorted(os.listdir(folder))


def names(*runners):
    return [runner.run(listing) for runner in runners]


# --- by default ----------------------------------------------------------------------------------


def test_by_default_everything_is_seen_at_once_in_one_directory(fal_runner):
    one, other = fal_runner(Empty), fal_runner(Empty)

    def write_and_keep_open():
        file = FILE.open("wb", buffering=0)
        file.write(b"half")
        return file

    with one.run(write_and_keep_open):
        assert other.run(FILE.read_bytes) == b"half"
    assert one.run(os.stat, "/data").st_dev == other.run(os.stat, "/data").st_dev


def test_by_default_a_place_makes_no_difference_and_is_refused(fal_runner):
    with pytest.raises(EmulatorError) as refused:
        fal_runner(Empty, datacenter="eu-west")
    assert str(refused.value) == (
        "server= and datacenter= make no difference: everything in /data is everywhere at once. "
        'Write @pytest.mark.fal(data_visibility="staged") above the test, with '
        "data_global_delay=timedelta(seconds=60) for example."
    )


def test_by_default_what_is_there_is_visible_now(fal_data, fal_clock):
    fal_clock.freeze()
    fal_data.write("a.bin", b"a")
    assert fal_data.visible_at("a.bin", datacenter="eu-west") == fal_clock.now()
    assert fal_data.visible_at("b.bin") is None


# --- the documented stages [platform facts 2.1] --------------------------------------------------


@staged
def test_while_a_file_is_open_only_its_runner_sees_it(boot, fal_data):
    writer, same_server = boot("a"), boot("a")

    def write_and_keep_open():
        file = FILE.open("wb", buffering=0)
        file.write(b"half")
        assert FILE.read_bytes() == b"half"
        return file

    with writer.run(write_and_keep_open):
        assert names(writer, same_server) == [["a.bin"], []]
        assert fal_data.read("a.bin") == b"half"  # the test itself sees everything
        assert fal_data.visible_at("a.bin") is None


@staged
def test_on_close_the_same_server_sees_it(boot):
    writer, same_server, same_datacenter = boot("a"), boot("a"), boot("b")
    writer.run(FILE.write_bytes, b"all")
    assert same_server.run(FILE.read_bytes) == b"all"
    assert names(same_datacenter) == [[]]


@staged
def test_then_the_same_datacenter_sees_it(boot, fal_clock):
    writer, same_datacenter, elsewhere = boot(), boot(), boot("b", "eu-west")
    writer.run(FILE.write_bytes, b"all")
    fal_clock.advance(DATACENTER - 0.001)
    assert names(same_datacenter) == [[]]
    fal_clock.advance(0.001)
    assert same_datacenter.run(FILE.read_bytes) == b"all"
    assert names(elsewhere) == [[]]


@staged
def test_then_other_datacenters_list_it_with_its_size(boot, fal_clock):
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(FILE.write_bytes, b"all")
    fal_clock.advance(LISTED - 0.001)
    assert elsewhere.run(FILE.exists) is False
    fal_clock.advance(0.001)
    assert elsewhere.run(FILE.stat).st_size == 3


@staged
def test_reading_it_there_waits_until_its_content_has_arrived(boot, fal_clock, fal_data, pool):
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(FILE.write_bytes, b"all")
    fal_clock.advance(LISTED)
    reading = pool.submit(elsewhere.run, FILE.read_bytes)
    fal_data.wait_for_reader("a.bin")
    fal_clock.advance(EVERYWHERE - LISTED - 0.001)
    assert not reading.done()
    fal_clock.advance(0.001)
    assert reading.result() == b"all"


@staged
def test_a_program_waits_as_well(boot, fal_clock, fal_data, pool):
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(FILE.write_bytes, b"all")
    fal_clock.advance(LISTED)
    reading = pool.submit(elsewhere.run, subprocess.check_output, ["cat", str(FILE)])
    fal_data.wait_for_reader("a.bin")
    fal_clock.advance(EVERYWHERE)
    assert reading.result() == b"all"


@staged
def test_the_ledger_tells_who_waited(boot, fal_clock, fal_data, fal_ledger, pool):
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    start = fal_clock.now()
    writer.run(FILE.write_bytes, b"all")
    fal_clock.advance(LISTED)
    reading = pool.submit(elsewhere.run, FILE.read_bytes)
    fal_data.wait_for_reader("a.bin")
    fal_clock.advance(EVERYWHERE)
    reading.result()
    arrival = start + EVERYWHERE * SECOND
    assert [(e.at - start, e.text) for e in fal_ledger.events if e.kind == "data"] == [
        (
            LISTED * SECOND,
            "runner-2 (server b, eu-west) waits for /data/a.bin: its content arrives "
            f"{arrival:%H:%M:%S}",
        ),
        (
            (LISTED + EVERYWHERE) * SECOND,
            "runner-2 (server b, eu-west) reads /data/a.bin, whose content has arrived",
        ),
    ]


@staged
def test_a_test_can_ask_what_is_visible_where_and_when(boot, fal_clock, fal_data):
    start, writer = fal_clock.freeze() or fal_clock.now(), boot("a")
    writer.run(FILE.write_bytes, b"all")
    assert fal_data.visible_at("a.bin", server="a") == start
    assert fal_data.visible_at("a.bin") == start + DATACENTER * SECOND
    elsewhere = {"datacenter": "eu-west"}
    assert fal_data.visible_at("a.bin", **elsewhere, listed=True) == start + LISTED * SECOND
    assert fal_data.visible_at("a.bin", **elsewhere) == start + EVERYWHERE * SECOND
    assert fal_data.visible_at("b.bin", **elsewhere) is None
    fal_clock.advance(EVERYWHERE + 9)
    assert fal_data.visible_at("a.bin", **elsewhere) == fal_clock.now()


@staged
def test_tmp_is_seen_by_one_runner_alone(fal_tmp):
    with pytest.raises(EmulatorError) as refused:
        fal_tmp.visible_at("a.bin")
    assert str(refused.value) == "/tmp is seen by one runner alone. Ask fal_data."


@staged
def test_what_was_there_before_and_what_the_test_writes_is_seen_by_all(boot, fal_data):
    fal_data.write("before.bin", b"1")
    runners = boot("a"), boot("b", "eu-west")
    fal_data.write("during.bin", b"2")
    assert names(*runners) == [["before.bin", "during.bin"]] * 2
    assert runners[1].run(Path("/data/during.bin").read_bytes) == b"2"


@staged
def test_a_new_runner_sees_what_has_arrived_at_its_server(boot, fal_clock):
    boot("a").run(FILE.write_bytes, b"all")
    assert names(boot("a"), boot("b"), boot("c", "eu-west")) == [["a.bin"], [], []]
    fal_clock.advance(DATACENTER)
    assert names(boot("b"), boot("c", "eu-west")) == [["a.bin"], []]


@staged
def test_an_empty_file_has_no_content_to_wait_for(boot, fal_clock):
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(FILE.touch)
    fal_clock.advance(LISTED)
    assert elsewhere.run(FILE.read_bytes) == b""


@staged
def test_on_a_running_clock_it_arrives_by_itself(fal_runner):
    runners = fal_runner(Empty, server="a"), fal_runner(Empty, server="b", datacenter="eu-west")
    runners[0].run(FILE.write_bytes, b"all")
    assert names(*runners) == [["a.bin"], []]


@pytest.mark.fal(data_visibility="staged", data_global_delay=timedelta(milliseconds=300))
def test_on_a_running_clock_a_reader_waits_in_real_time(fal_runner, fal_ledger):
    writer, elsewhere = fal_runner(Empty), fal_runner(Empty, datacenter="eu-west")
    writer.run(FILE.write_bytes, b"all")
    assert elsewhere.run(FILE.read_bytes) == b"all"
    assert [e.text for e in fal_ledger.events if e.kind == "data"][1:] == [
        "runner-2 (server runner-2, eu-west) reads /data/a.bin, whose content has arrived"
    ]


@staged
def test_moving_the_clock_back_takes_nothing_back(boot, fal_clock):
    writer, near, far = boot("a"), boot("b"), boot("c", "eu-west")
    writer.run(FILE.write_bytes, b"all")
    fal_clock.advance(DATACENTER)
    fal_clock.move_to(fal_clock.now() - timedelta(days=1))
    assert names(near, far) == [["a.bin"], []]
    fal_clock.advance(LISTED - DATACENTER)
    assert names(far) == [["a.bin"]]


# --- changes -------------------------------------------------------------------------------------


@staged
def test_a_rename_is_one_step_for_everybody(boot, fal_clock, fal_data):
    fal_data.write("a.bin", b"old")
    writer, elsewhere = boot("a"), boot("b", "eu-west")

    def replace():
        PART.write_bytes(b"newer")
        os.replace(PART, FILE)

    writer.run(replace)
    assert names(writer, elsewhere) == [["a.bin"]] * 2
    assert writer.run(FILE.read_bytes) == b"newer"
    assert elsewhere.run(FILE.read_bytes) == b"old"
    fal_clock.advance(EVERYWHERE)
    assert elsewhere.run(FILE.read_bytes) == b"newer"


@staged
def test_a_rename_of_an_open_file_waits_for_its_close(boot, fal_clock, fal_data):
    fal_data.write("a.bin", b"old")
    writer, elsewhere = boot("a"), boot("b", "eu-west")

    def replace():
        file = PART.open("wb", buffering=0)
        file.write(b"newer")
        os.replace(PART, FILE)
        return file

    file = writer.run(replace)
    fal_clock.advance(EVERYWHERE)
    assert elsewhere.run(FILE.read_bytes) == b"old"
    writer.run(file.close)
    fal_clock.advance(EVERYWHERE)
    assert names(elsewhere) == [["a.bin"]]
    assert elsewhere.run(FILE.read_bytes) == b"newer"


@staged
def test_a_folder_is_renamed_with_all_that_is_in_it(boot, fal_clock, fal_data):
    fal_data.write("old/deep/a.bin", b"a")
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(os.rename, "/data/old", "/data/new")
    assert names(writer, elsewhere) == [["new"], ["old"]]
    assert elsewhere.run(Path("/data/old/deep/a.bin").read_bytes) == b"a"
    fal_clock.advance(LISTED)
    assert names(elsewhere) == [["new"]]
    assert elsewhere.run(Path("/data/new/deep/a.bin").read_bytes) == b"a"


@staged
def test_what_was_deleted_is_there_elsewhere_until_the_news_arrives(boot, fal_clock, fal_data):
    fal_data.write("models/a.bin", b"a")
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(subprocess.check_call, ["rm", "-r", "/data/models"])
    assert fal_data.tree() == []
    assert elsewhere.run(listing, "/data/models") == ["a.bin"]
    assert elsewhere.run(Path("/data/models/a.bin").read_bytes) == b"a"
    fal_clock.advance(LISTED)
    assert names(elsewhere) == [[]]


@staged
@pytest.mark.parametrize("mode", ["wb", "r+b", "ab"])
def test_a_file_changed_in_place_is_the_old_one_elsewhere(boot, fal_clock, fal_data, mode):
    fal_data.write("a.bin", b"old old")
    writer, elsewhere = boot("a"), boot("b", "eu-west")

    def change():
        with FILE.open(mode) as file:
            file.write(b"new")
        return FILE.read_bytes()

    changed = {"wb": b"new", "r+b": b"new old", "ab": b"old oldnew"}[mode]
    assert writer.run(change) == changed
    assert elsewhere.run(FILE.read_bytes) == b"old old"
    assert elsewhere.run(FILE.stat).st_size == 7
    fal_clock.advance(EVERYWHERE)
    assert elsewhere.run(FILE.read_bytes) == changed
    assert fal_data.read("a.bin") == changed


@staged
def test_truncation_travels_too(boot, fal_clock, fal_data):
    fal_data.write("a.bin", b"old old")
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(os.truncate, FILE, 3)
    assert [r.run(FILE.read_bytes) for r in (writer, elsewhere)] == [b"old", b"old old"]
    fal_clock.advance(EVERYWHERE)
    assert elsewhere.run(FILE.read_bytes) == b"old"


@staged
def test_who_has_a_file_open_keeps_reading_what_it_opened(boot, fal_clock, fal_data):
    fal_data.write("a.bin", b"old")
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    with elsewhere.run(FILE.open, "rb") as file:
        writer.run(FILE.write_bytes, b"new")
        fal_clock.advance(EVERYWHERE)
        assert elsewhere.run(file.read) == b"old"
        assert elsewhere.run(FILE.read_bytes) == b"new"


@staged
def test_two_datacenters_that_make_one_file_agree_on_the_later(boot, fal_clock, fal_data):
    one, other = boot("a"), boot("b", "eu-west")
    one.run(FILE.write_bytes, b"one")
    other.run(FILE.write_bytes, b"other")
    assert [r.run(FILE.read_bytes) for r in (one, other)] == [b"one", b"other"]
    fal_clock.advance(EVERYWHERE)
    assert [r.run(FILE.read_bytes) for r in (one, other)] == [b"other"] * 2
    assert fal_data.read("a.bin") == b"other"


@staged
def test_two_datacenters_that_make_one_folder_share_it(boot, fal_clock):
    one, other = boot("a"), boot("b", "eu-west")
    for runner, name in ((one, "one"), (other, "other")):
        runner.run(os.makedirs, "/data/models", exist_ok=True)
        runner.run(Path(f"/data/models/{name}").write_text, name)
    assert one.run(listing, "/data/models") == ["one"]
    fal_clock.advance(EVERYWHERE)
    assert one.run(listing, "/data/models") == ["one", "other"]


@staged
def test_exclusive_creation_works_on_one_server_only(boot):
    create = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    writer, same_server, elsewhere = boot("a"), boot("a"), boot("b", "eu-west")
    descriptors = [writer.run(os.open, FILE, create)]
    with pytest.raises(FileExistsError):
        same_server.run(os.open, FILE, create)
    descriptors.append(elsewhere.run(os.open, FILE, create))
    for descriptor in descriptors:
        os.close(descriptor)


@staged
def test_a_child_that_closes_what_it_inherited_publishes_nothing(boot):
    writer, same_server = boot("a"), boot("a")

    def write():
        file = FILE.open("wb", buffering=0)
        file.write(b"half")
        subprocess.check_call(["true"], close_fds=False)
        return file

    with writer.run(write):
        assert names(same_server) == [[]]
    assert names(same_server) == [["a.bin"]]


@staged
def test_what_a_killed_runner_had_open_is_published_as_it_is(boot):
    writer, same_server = boot("a"), boot("a")

    def write():
        file = FILE.open("wb", buffering=0)
        file.write(b"half")
        return file

    file = writer.run(write)
    writer.kill()
    assert same_server.run(FILE.read_bytes) == b"half"
    with pytest.raises(OSError):
        file.write(b"more")
    with pytest.raises(OSError):
        file.close()


@staged
def test_what_a_killed_program_had_open_is_published_as_it_is(boot):
    writer, same_server = boot("a"), boot("a")
    code = "f = open('/data/a.bin', 'wb', 0); f.write(b'half'); print('ok', flush=True)"
    with writer.run(
        lambda: subprocess.Popen(
            [sys.executable, "-c", f"{code}; input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    ) as program:
        program.stdout.readline()
        assert names(same_server) == [[]]
        program.kill()
    assert same_server.run(FILE.read_bytes) == b"half"


# --- the SDK and the documentation's own code ----------------------------------------------------

WEIGHTS = "https://example.com/model.safetensors"


@staged
def test_each_datacenter_downloads_weights_that_have_not_arrived(boot, fal_origin, fal_clock):
    served = fal_origin.serve(WEIGHTS, content=b"weights")
    runners = boot("a"), boot("b", "eu-west")
    for runner in runners:
        assert runner.run(lambda: download_model_weights(WEIGHTS).read_bytes()) == b"weights"
    assert len(served.requests) == 2
    fal_clock.advance(EVERYWHERE)
    for runner in runners:
        assert runner.run(lambda: download_model_weights(WEIGHTS).read_bytes()) == b"weights"
    assert len(served.requests) == 2


@staged
def test_weights_that_are_listed_are_awaited_not_downloaded(
    boot, fal_origin, fal_clock, fal_data, pool
):
    served = fal_origin.serve(WEIGHTS, content=b"weights")
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(download_model_weights, WEIGHTS)
    fal_clock.advance(LISTED)
    found = elsewhere.run(download_model_weights, WEIGHTS)
    assert found.name == "model.safetensors"
    reading = pool.submit(elsewhere.run, found.read_bytes)
    folder = hashlib.sha256(WEIGHTS.encode()).hexdigest()
    fal_data.wait_for_reader(f".fal/model_weights/{folder}/model.safetensors")
    fal_clock.advance(EVERYWHERE)
    assert reading.result() == b"weights"
    assert len(served.requests) == 1


def check_then_download():
    """The documentation's own dataset example: "if it is not there, make it"."""
    if FILE.exists():
        return "found"
    FILE.write_bytes(b"dataset")
    return "downloaded"


@staged
def test_check_then_download_downloads_once_a_datacenter(boot, fal_clock):
    runners = boot("a"), boot("b"), boot("c", "eu-west"), boot("a")
    assert [r.run(check_then_download) for r in runners] == ["downloaded"] * 3 + ["found"]
    fal_clock.advance(EVERYWHERE)
    assert {r.run(check_then_download) for r in runners} == {"found"}


@staged
def test_the_documentations_advice_never_shows_a_part(boot, fal_clock, fal_data):
    """ "Write to a temporary name beside the target, then rename"."""
    runners = boot("a"), boot("a"), boot("b"), boot("c", "eu-west")

    def write():
        with PART.open("wb", buffering=0) as file:
            file.write(b"1")
            seen = [r.run(FILE.exists) for r in runners[1:]]
            file.write(b"2")
        os.rename(PART, FILE)
        return seen

    assert runners[0].run(write) == [False] * 3
    for _ in range(EVERYWHERE):
        fal_clock.advance(1)
        for runner in runners[:3]:
            assert runner.run(lambda: FILE.read_bytes() if FILE.exists() else b"12") == b"12"
    assert runners[3].run(FILE.read_bytes) == b"12"


# --- locks ---------------------------------------------------------------------------------------


def lock_file(how):
    """Lock a file and keep it so; None: somebody else has it."""
    file = LOCK.open("r+b")
    try:
        how(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def record_lock_in_a_process():
    """Whether another process gets a record lock (those of one process are all its own)."""
    code = "import fcntl; fcntl.lockf(open('/data/lock', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.call([sys.executable, "-c", code], stderr=subprocess.DEVNULL) == 0


@pytest.mark.fal(data_visibility="staged")
def test_flock_works_between_runners(boot, fal_data):
    fal_data.write("lock", b"")
    one, other = boot(), boot()
    with one.run(lock_file, fcntl.flock):
        assert other.run(lock_file, fcntl.flock) is None
    other.run(lock_file, fcntl.flock).close()


@pytest.mark.fal(data_visibility="staged")
def test_record_locks_work_between_runners(boot, fal_data):
    fal_data.write("lock", b"")
    one, other = boot(), boot()
    with one.run(lock_file, fcntl.lockf):
        assert other.run(record_lock_in_a_process) is False
    assert other.run(record_lock_in_a_process) is True


@pytest.mark.fal(data_visibility="staged")
def test_locks_of_runners_and_of_the_test_are_the_same(boot, fal_data):
    fal_data.write("lock", b"")
    runner = boot()
    with runner.run(lock_file, fcntl.flock), open("/data/lock") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.fal(data_visibility="staged")
@pytest.mark.parametrize("how", [fcntl.flock, fcntl.lockf])
def test_who_waits_for_a_lock_gets_it(boot, fal_data, how):
    fal_data.write("lock", b"")
    one, other = boot(), boot()
    holder = one.run(lock_file, how)
    code = (
        "import fcntl, sys; print('waits', flush=True); "
        f"fcntl.{how.__name__}(open('/data/lock', 'r+'), fcntl.LOCK_EX); print('got it')"
    )
    with other.run(
        lambda: subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    ) as program:
        assert program.stdout.readline() == "waits\n"
        one.run(holder.close)
        assert program.stdout.read() == "got it\n"


@pytest.mark.fal(data_visibility="staged")
def test_who_waits_for_a_lock_can_be_killed(boot, fal_data):
    fal_data.write("lock", b"")
    one, other = boot(), boot()
    code = (
        "import fcntl; print('waits', flush=True); "
        "fcntl.flock(open('/data/lock', 'r+'), fcntl.LOCK_EX)"
    )
    with one.run(lock_file, fcntl.flock):
        program = other.run(
            lambda: subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        )
        with program:
            program.stdout.readline()
            program.kill()
        assert program.returncode == -signal.SIGKILL


@staged
def test_a_lock_file_is_one_file_on_one_server_and_two_on_two(boot):
    one, same_server, other = boot("a"), boot("a"), boot("b")

    def make_and_lock():
        file = LOCK.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    with one.run(make_and_lock):
        assert same_server.run(make_and_lock) is None
        other.run(make_and_lock).close()


@staged
def test_locks_work_on_a_file_of_which_one_sees_an_older_content(boot, fal_data):
    fal_data.write("lock", b"old")
    one, other = boot("a"), boot("b", "eu-west")
    one.run(LOCK.write_bytes, b"new")
    assert other.run(LOCK.read_bytes) == b"old"
    with one.run(lock_file, fcntl.flock):
        assert other.run(lock_file, fcntl.flock) is None


@pytest.mark.fal(data_locks="per_runner")
def test_locks_that_do_nothing_between_runners_work_within_one(boot, fal_data):
    fal_data.write("lock", b"")
    one, other = boot(), boot()
    with one.run(lock_file, fcntl.flock):
        assert one.run(lock_file, fcntl.flock) is None
        other.run(lock_file, fcntl.flock).close()
    with one.run(lock_file, fcntl.lockf):
        assert one.run(record_lock_in_a_process) is False
        assert other.run(record_lock_in_a_process) is True


@pytest.mark.fal(data_locks="per_runner")
def test_without_locks_everything_else_is_immediate(boot):
    one, other = boot(), boot()

    def write_and_keep_open():
        file = FILE.open("wb", buffering=0)
        file.write(b"half")
        return file

    with one.run(write_and_keep_open) as file:
        assert other.run(FILE.read_bytes) == b"half"
        with other.run(FILE.open, "rb") as reader:
            assert other.run(reader.read) == b"half"
            one.run(file.write, b" more")
            assert other.run(reader.read) == b" more"


# --- latencies -----------------------------------------------------------------------------------


def span_of(clock, runner, function, *args):
    start = clock.now()
    runner.run(function, *args)
    return (clock.now() - start).total_seconds()


@pytest.mark.fal(data_metadata_latency=timedelta(milliseconds=10))
def test_each_name_costs_its_latency_on_the_clock(boot, fal_clock, fal_data):
    fal_data.write("models/a.bin", b"a")
    runner = boot()
    assert span_of(fal_clock, runner, os.stat, "/data/models") == 0.01
    assert span_of(fal_clock, runner, os.stat, "/data/models/a.bin") == 0.02
    assert span_of(fal_clock, runner, os.listdir, "/data/models") == 0.02
    assert span_of(fal_clock, runner, Path("/data/models/a.bin").read_bytes) == 0.02


@pytest.mark.fal(data_metadata_latency=timedelta(milliseconds=10))
def test_a_thousand_small_files_are_slow(boot, fal_clock, fal_data):
    for number in range(1000):
        fal_data.write(f"{number}.txt", b"x")
    runner = boot()

    def read_all():
        for name in os.listdir("/data"):
            Path("/data", name).read_bytes()

    assert span_of(fal_clock, runner, read_all) >= 10


@pytest.mark.fal(data_metadata_latency=timedelta(milliseconds=1))
def test_on_a_running_clock_the_latency_is_real(fal_runner):
    assert fal_runner(Empty).run(FILE.exists) is False


@pytest.mark.fal(data_cold_read_latency=timedelta(seconds=20))
def test_the_first_reading_on_a_server_is_slow(boot, fal_clock, fal_data):
    fal_data.write("a.bin", b"a")
    one, same_server, other = boot("a"), boot("a"), boot("b")
    assert span_of(fal_clock, one, FILE.read_bytes) == 20
    assert span_of(fal_clock, one, FILE.read_bytes) == 0
    assert span_of(fal_clock, same_server, FILE.read_bytes) == 0
    assert span_of(fal_clock, other, FILE.read_bytes) == 20


@pytest.mark.fal(data_cold_read_latency=timedelta(seconds=20))
def test_what_a_server_wrote_is_in_its_cache(boot, fal_clock):
    runner = boot()
    runner.run(FILE.write_bytes, b"a")
    assert span_of(fal_clock, runner, FILE.read_bytes) == 0


# --- a file system like any other ----------------------------------------------------------------


@pytest.fixture(params=["staged", "immediate"])
def runner(request, fal_emulator):
    """One runner of whatever kind; what it does alone is as on a disk."""
    fal_emulator.reset(
        Settings(
            data_visibility=request.param,
            data_global_delay=EVERYWHERE * SECOND,
            data_locks="per_runner",
        )
    )
    return fal_emulator.runner(Empty)


def test_links(runner):
    def do():
        FILE.write_bytes(b"a")
        os.symlink("a.bin", "/data/soft")
        os.link(FILE, "/data/hard")
        assert os.readlink("/data/soft") == "a.bin"
        assert os.stat("/data/hard").st_nlink == 2
        assert os.path.samefile(FILE, "/data/hard")
        os.unlink(FILE)
        assert Path("/data/hard").read_bytes() == b"a"
        with pytest.raises(FileNotFoundError):
            Path("/data/soft").read_bytes()

    runner.run(do)


def test_attributes(runner):
    def do():
        FILE.write_bytes(b"a")
        os.chmod(FILE, 0o640)
        os.utime(FILE, ns=(10**18 + 1, 2 * 10**18 + 3))
        status = FILE.stat()
        assert status.st_mode & 0o7777 == 0o640
        assert (status.st_atime_ns, status.st_mtime_ns) == (10**18 + 1, 2 * 10**18 + 3)
        os.utime(FILE, ns=(-5, -7))
        assert FILE.stat().st_mtime_ns == -7
        os.utime(FILE)
        assert FILE.stat().st_mtime_ns > 10**18
        assert os.statvfs("/data").f_bavail > 0

    runner.run(do)


def test_a_file_that_was_deleted_while_open(runner):
    def do():
        with FILE.open("w+b", buffering=0) as file:
            os.unlink(FILE)
            file.write(b"still here")
            file.seek(0)
            assert file.read() == b"still here"
            assert os.fstat(file.fileno()).st_size == 10
        assert listing() == []

    runner.run(do)


def test_mapped_memory(runner):
    content = os.urandom(3 * 2**20 + 5)

    def do():
        FILE.write_bytes(content)
        with FILE.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            assert memory[:] == content
            memory[:4] = b"abcd"
            memory.flush()
        assert FILE.read_bytes() == b"abcd" + content[4:]

    runner.run(do)


def test_a_folder_of_thousands(runner, fal_emulator):
    expected = [f"{number:05}" for number in range(3000)]
    for name in expected:
        fal_emulator.data.write(name, b"")
    assert runner.run(listing) == expected
    runner.run(subprocess.check_call, "rm /data/0*", shell=True)
    assert runner.run(listing) == []


def test_git(runner):
    def do():
        subprocess.check_call(
            "git init -q one && cd one && echo hello > file && git add . && "
            "git -c user.email=a@b -c user.name=a commit -qm first && git clone -q . ../two && "
            "cd ../two && git fsck --strict && cp -r . ../three && cat ../three/file",
            shell=True,
            cwd="/data",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    runner.run(do)
    assert runner.run(Path("/data/three/file").read_text) == "hello\n"


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite(runner, journal):
    def do():
        base = sqlite3.connect("/data/base.db")
        base.execute(f"pragma journal_mode={journal}")
        base.execute("create table numbers (number)")
        base.executemany("insert into numbers values (?)", [(n,) for n in range(1000)])
        base.commit()
        reader = sqlite3.connect("/data/base.db")
        found = reader.execute("select count(*) from numbers").fetchone()
        reader.close()
        base.close()
        return found

    assert runner.run(do) == (1000,)


def test_programs_and_modules_run_from_it(runner):
    def do():
        shutil.copy("/bin/true", "/data/program")
        subprocess.check_call(["/data/program"])
        Path("/data/module.py").write_text("print('imported')")
        return subprocess.check_output([sys.executable, "-c", "import module"], cwd="/data")

    assert runner.run(do) == b"imported\n"


def test_an_app_that_works_in_data(runner):
    def do():
        subprocess.check_call(
            "mkdir work && cd work && echo 1 > a && mv ../work ../moved && cat a && echo 2 > b",
            shell=True,
            cwd="/data",
            stdout=subprocess.DEVNULL,
        )
        return listing("/data/moved")

    assert runner.run(do) == ["a", "b"]


def test_errors_are_the_disks_own(runner):
    def error_of(function, *args):
        with pytest.raises(OSError) as raised:
            function(*args)
        return errno.errorcode[raised.value.errno]

    def do():
        os.makedirs("/data/folder/inner")
        FILE.touch()
        assert error_of(os.rmdir, "/data/folder") == "ENOTEMPTY"
        assert error_of(os.mkdir, "/data/folder") == "EEXIST"
        assert error_of(os.unlink, "/data/none") == "ENOENT"
        assert error_of(os.rename, "/data/none", "/data/other") == "ENOENT"
        assert error_of(os.rename, "/data/folder", "/data/folder/inner/x") == "EINVAL"
        assert error_of(os.rename, FILE, "/data/folder") == "EISDIR"
        assert error_of(os.listdir, FILE) == "ENOTDIR"
        assert error_of(open, "/data/folder", "w") == "EISDIR"
        assert error_of(os.mkdir, "/data/" + "x" * 300) == "ENAMETOOLONG"

    runner.run(do)


def test_names_that_are_no_text(runner):
    name = b"/data/\xff\xfe"
    runner.run(lambda: os.mkdir(name))
    assert runner.run(os.listdir, b"/data") == [b"\xff\xfe"]


def test_a_size_limit_holds(runner, fal_emulator):
    fal_emulator.data.limit(8192)
    with pytest.raises(OSError) as full:
        runner.run(FILE.write_bytes, bytes(100_000))
    assert full.value.errno == errno.ENOSPC


def test_read_only_holds(runner, fal_emulator):
    with fal_emulator.data.read_only(), pytest.raises(OSError) as refused:
        runner.run(FILE.write_bytes, b"a")
    assert refused.value.errno == errno.EROFS
    runner.run(FILE.write_bytes, b"a")


def test_ages_are_seen_through_it(runner, fal_emulator):
    fal_emulator.clock.advance(days=30)
    # A real time after the jump: only who knows that it was set by hand can tell.
    fal_emulator.data.write("a.bin", b"a", age=timedelta(days=30))
    age = runner.run(lambda: fal_emulator.clock.time() - FILE.stat().st_mtime)
    assert timedelta(days=30) <= timedelta(seconds=age) < timedelta(days=30, minutes=5)


# --- its end -------------------------------------------------------------------------------------


@staged
def test_a_reader_that_nobody_releases_gets_an_error(boot, fal_clock, fal_ledger, monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(milliseconds=50))
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(FILE.write_bytes, b"all")
    fal_clock.advance(LISTED)
    with pytest.raises(OSError) as failed:
        elsewhere.run(FILE.read_bytes)
    assert failed.value.errno == errno.EIO
    fal_clock.advance(0)  # which asks the process that serves /data: it has told all by then
    arrival = fal_clock.now() + (EVERYWHERE - LISTED) * SECOND
    assert fal_ledger.events[-1].text == (
        "runner-2 (server b, eu-west) got EIO for /data/a.bin: in 0.05 s of real time nobody moved "
        f"the clock to {arrival:%H:%M:%S}. Call fal_clock.advance() while it waits."
    )


def open_with_the_interpreter_locked(path):
    """As native code does that does not give the lock back: no Python code runs meanwhile."""
    library = ctypes.PyDLL(None, use_errno=True)
    return library.open(os.fsencode(path), os.O_RDONLY), errno.errorcode.get(ctypes.get_errno())


@staged
def test_native_code_that_waits_does_not_lock_up_everything(boot, fal_clock, monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(milliseconds=50))
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(FILE.write_bytes, b"all")
    fal_clock.advance(LISTED)
    assert elsewhere.run(open_with_the_interpreter_locked, FILE) == (-1, "EIO")


@pytest.mark.fal(data_metadata_latency=timedelta(hours=1))
def test_native_code_does_not_wait_for_a_latency_for_ever(boot, fal_clock, monkeypatch):
    monkeypatch.setattr(distributed, "MOVE_PATIENCE", timedelta(milliseconds=50))
    assert boot().run(open_with_the_interpreter_locked, FILE) == (-1, "ENOENT")


@staged
def test_a_reader_whose_runner_is_killed_gets_an_error(boot, fal_clock, fal_data, pool):
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(FILE.write_bytes, b"all")
    fal_clock.advance(LISTED)
    errors = []

    ended = threading.Event()

    def read():
        try:
            FILE.read_bytes()
        except OSError as error:
            errors.append(errno.errorcode[error.errno])
        ended.set()

    reading = pool.submit(elsewhere.run, read)
    fal_data.wait_for_reader("a.bin")
    elsewhere.kill()
    reading.exception()
    ended.wait()
    assert errors == ["ECONNABORTED"]


@staged
def test_a_program_that_waits_can_be_killed(boot, fal_clock, fal_data):
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(FILE.write_bytes, b"all")
    fal_clock.advance(LISTED)
    program = elsewhere.run(subprocess.Popen, ["cat", str(FILE)])
    fal_data.wait_for_reader("a.bin")
    program.kill()
    assert program.wait() == -signal.SIGKILL


@staged
def test_nobody_waits(fal_data, boot):
    boot("a")
    with pytest.raises(EmulatorError) as refused:
        fal_data.wait_for_reader("a.bin", timeout=0)
    assert str(refused.value) == (
        "No runner waits for /data/a.bin: in 0 s none has opened it where its content has not "
        "arrived. Let one read it in a thread, before the clock is moved."
    )


CRASH = """
    import os, signal, subprocess
    from datetime import timedelta
    import fal, pytest

    class Empty(fal.App):
        @fal.endpoint("/")
        def nothing(self) -> None: ...

    @pytest.mark.fal(data_visibility="staged", data_global_delay=timedelta(hours=1))
    def test_it(fal_runner, fal_data):
        one, other = fal_runner(Empty), fal_runner(Empty, datacenter="eu-west")
        one.run(lambda: open("/data/a.bin", "w").write("a"))
        program = other.run(subprocess.Popen, ["cat", "/data/a.bin"], stderr=subprocess.DEVNULL)
        fal_data.wait_for_reader("a.bin")
        children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        commands = {n: open(f"/proc/{n}/cmdline").read() for n in children}
        (server,) = [n for n in children if "emulator.distributed.server" in commands[n]]
        print("processes", server, program.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_crash_of_pytest_leaves_no_process(pytester):
    pytester.makepyfile(CRASH)
    result = pytester.runpytest_subprocess("-s", "-p", "no:cacheprovider")
    assert result.ret == -signal.SIGKILL
    (line,) = [line for line in result.outlines if "processes" in line]
    for number in map(int, line.split("processes ")[1].split()):
        wait_for_end(number)


def wait_for_end(number):
    """Return once a process, which is nobody's child here, has ended."""
    try:
        watched = os.pidfd_open(number)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    ended = poll.poll(10_000)
    os.close(watched)
    assert ended


def test_where_fuse_is_refused_it_says_what_to_do(tmp_path):
    refusals = []

    def attempt():
        mounts.enter_private_namespace()
        mounts.bind("/dev/null", "/dev/fuse")
        try:
            mounts.mount_fuse(str(tmp_path))
        except NamespaceRefusedError as refusal:
            refusals.append(str(refusal))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert refusals == [
        "A /data that differs between runners is a FUSE file system, and the kernel refused one "
        "(EINVAL: Invalid argument). Load its module (modprobe fuse), let this user open /dev/fuse "
        "(chmod 666 /dev/fuse; in Docker --device /dev/fuse), or leave out the settings "
        "data_visibility, data_locks, data_metadata_latency and data_cold_read_latency."
    ]


def test_a_negative_delay_is_refused():
    with pytest.raises(ValueError, match="data_global_delay"):
        Settings(data_global_delay=timedelta(seconds=-1))


@staged
def test_without_its_process_everything_fails_and_says_so(boot, fal_clock):
    runner = boot("a")
    (server,) = [
        int(number)
        for number in Path(f"/proc/self/task/{threading.get_native_id()}/children")
        .read_text()
        .split()
        if "emulator.distributed.server" in Path(f"/proc/{number}/cmdline").read_text()
    ]
    os.kill(server, signal.SIGKILL)
    wait_for_end(server)
    with pytest.raises(OSError):
        runner.run(FILE.write_bytes, b"a")
    with pytest.raises(EmulatorError) as failed:
        fal_clock.advance(1)
    assert str(failed.value) == (
        "The process that answers for the runners' /data has ended. Nothing in /data can be read "
        "or written by runners any more in this test."
    )


@staged
def test_a_stopped_runner_leaves_the_others_alone(boot):
    one, other = boot("a"), boot("a")
    one.run(FILE.write_bytes, b"a")
    one.stop()
    assert other.run(FILE.read_bytes) == b"a"


@staged
def test_many_runners_come_and_go(boot):
    for number in range(30):
        runner = boot("a")
        runner.run(Path(f"/data/{number}").write_text, "x")
        runner.kill() if number % 2 else runner.stop()
    assert len(boot("a").run(listing)) == 30
