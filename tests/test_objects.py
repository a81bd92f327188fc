"""The object store: in a private moto bucket, streamed, replaced atomically, freed at once."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path

import boto3
import pytest
from boto import nobodys_settings  # noqa: F401 - a fixture
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from moto import mock_aws
from moto.core.model_instances import model_data
from moto.s3.models import FakeKey, s3_backends

from emulator.errors import EmulatorError, UnsupportedVersionError
from emulator.storage import objects
from emulator.storage.contents import MEBIBYTE
from emulator.storage.objects import MEMORY_PER_OBJECT, ObjectStore, StoredObject

LARGE = MEMORY_PER_OBJECT + 1
NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")


@pytest.fixture
def spill(tmp_path: Path) -> Path:
    directory = tmp_path / "spill"
    directory.mkdir()
    return directory


@pytest.fixture
def store(spill: Path) -> Iterator[ObjectStore]:
    store = ObjectStore(spill)
    yield store
    store.close()


def put(store: ObjectStore, key: str, *chunks: bytes, **metadata: str) -> StoredObject:
    return store.put(key, chunks, content_type="text/plain", metadata=metadata)


def content(store: ObjectStore, key: str) -> bytes:
    return b"".join(store.read(key))


def pattern(size: int) -> bytes:
    """Bytes of which no two megabytes are alike."""
    numbers = b"".join(number.to_bytes(4, "big") for number in range(size // 1024 + 1))
    return (numbers * 256)[:size]


def open_paths() -> list[str]:
    """What the descriptors of this process lead to."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def files_in(directory: Path) -> list[str]:
    """The open files that are in the directory, unnamed ones too."""
    return [path for path in open_paths() if path.startswith(f"{directory}/")]


def s3() -> object:
    return boto3.client("s3", region_name="us-east-1")


# -- storing ----------------------------------------------------------------------------------


def test_chunks_become_one_object(store: ObjectStore) -> None:
    put(store, "a", b"one ", b"", b"two")
    assert content(store, "a") == b"one two"


def test_no_chunks_become_an_empty_object(store: ObjectStore) -> None:
    put(store, "a")
    assert (content(store, "a"), store.head("a").size) == (b"", 0)


def test_put_returns_what_head_returns(spill: Path) -> None:
    store = ObjectStore(spill, now=lambda: NOON)
    stored = put(store, "a", b"123", file_name="a.txt")
    assert stored == StoredObject("a", 3, "text/plain", {"file_name": "a.txt"}, NOON)
    assert store.head("a") == stored
    store.close()


def test_created_is_utc_whatever_the_zone_of_the_clock(spill: Path) -> None:
    store = ObjectStore(spill, now=lambda: NOON.astimezone(timezone(timedelta(hours=5))))
    assert put(store, "a").created.isoformat() == "2026-03-01T12:00:00+00:00"
    store.close()


def test_changing_what_head_returned_changes_nothing(store: ObjectStore) -> None:
    put(store, "a", name="value").metadata.clear()
    assert store.head("a").metadata == {"name": "value"}


def test_each_object_has_its_own_metadata(store: ObjectStore) -> None:
    put(store, "a", name="first")
    put(store, "b", other="second")
    assert store.head("a").metadata == {"name": "first"}


def test_set_metadata_replaces_all_of_it_and_nothing_else(store: ObjectStore) -> None:
    before = put(store, "a", b"1", old="x")
    store.set_metadata("a", {"new": "ü"})
    assert store.head("a") == StoredObject("a", 1, "text/plain", {"new": "ü"}, before.created)


def test_a_metadata_name_that_s3_would_change_is_refused(store: ObjectStore) -> None:
    with pytest.raises(ValueError) as caught:
        put(store, "a", Name="x")
    assert str(caught.value) == (
        "The metadata name 'Name' would not come back as it is: S3 keeps names in lower case. "
        "Write 'name'."
    )


def test_when_the_chunks_fail_the_old_object_stays(store: ObjectStore) -> None:
    def failing() -> Iterator[bytes]:
        yield b"new"
        raise ConnectionResetError("the client went away")

    put(store, "a", b"old")
    with pytest.raises(ConnectionResetError, match="the client went away"):
        store.put("a", failing(), content_type="text/plain")
    assert content(store, "a") == b"old"


@needs_proc
def test_when_the_chunks_of_a_large_object_fail_its_file_is_closed(
    store: ObjectStore, spill: Path
) -> None:
    def failing() -> Iterator[bytes]:
        yield bytes(LARGE)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError) as caught:
        store.put("a", failing(), content_type="text/plain")
    assert files_in(spill) == []
    del caught  # until here its traceback kept everything alive


def test_etag_is_the_md5_in_quotes(store: ObjectStore) -> None:
    put(store, "a", b"hello")
    assert store.etag("a") == '"5d41402abc4b2a76b9719d911017c592"'


def test_etag_of_a_large_object(store: ObjectStore) -> None:
    data = pattern(LARGE)
    put(store, "a", data)
    assert store.etag("a") == f'"{hashlib.md5(data).hexdigest()}"'


def test_etag_of_a_replaced_object_is_new(store: ObjectStore) -> None:
    put(store, "a", b"old")
    old = store.etag("a")
    put(store, "a", b"new")
    assert store.etag("a") != old


@pytest.mark.parametrize("ask", ["head", "read", "etag"])
def test_an_absent_key_is_a_key_error_at_once(store: ObjectStore, ask: str) -> None:
    with pytest.raises(KeyError) as caught:
        getattr(store, ask)("a")
    assert caught.value.args == ("a",)


def test_deleting_an_absent_key_is_no_error(store: ObjectStore) -> None:
    store.delete("a")
    assert "a" not in store


def test_a_deleted_object_is_gone(store: ObjectStore) -> None:
    put(store, "a", b"123")
    store.delete("a")
    assert ("a" in store, store.keys(), store.total_size) == (False, [], 0)


def test_a_replaced_object_is_the_youngest(store: ObjectStore) -> None:
    for key in ("a", "b", "a"):
        put(store, key)
    assert store.keys() == ["b", "a"]


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_part_is_read_in_chunks(store: ObjectStore, size: int) -> None:
    data = pattern(size)
    put(store, "a", data)
    assert list(store.read("a", 2, 9, chunk_size=3)) == [data[2:5], data[5:8], data[8:9]]


def test_an_end_behind_the_last_byte_means_the_last_byte(store: ObjectStore) -> None:
    put(store, "a", b"123")
    assert list(store.read("a", 1, 99)) == [b"23"]


def test_a_negative_offset_is_refused(store: ObjectStore) -> None:
    put(store, "a", b"123")
    with pytest.raises(ValueError) as caught:
        store.read("a", -1)
    assert str(caught.value) == (
        "Cannot read start=-1, end=None, chunk_size=1048576: offsets are counted from the "
        "beginning of the object, and a chunk has one byte or more."
    )


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("change", ["delete", "replace", "reset", "close"])
def test_a_reader_is_not_disturbed(store: ObjectStore, size: int, change: str) -> None:
    data = pattern(size)
    put(store, "a", data)
    reader = store.read("a", chunk_size=max(size // 3, 1))
    first = next(reader)
    if change == "replace":
        put(store, "a", b"new")
    elif change == "delete":
        store.delete("a")
    else:
        getattr(store, change)()
    assert first + b"".join(reader) == data


def test_a_reader_that_has_not_begun_reads_what_was_there(store: ObjectStore) -> None:
    put(store, "a", b"old")
    reader = store.read("a")
    put(store, "a", b"new")
    assert b"".join(reader) == b"old"


def test_readers_of_one_large_object_share_no_position(store: ObjectStore) -> None:
    data = pattern(LARGE)
    put(store, "a", data)
    barrier = threading.Barrier(8)

    def read(start: int) -> bool:
        barrier.wait()
        return b"".join(store.read("a", start, chunk_size=64 * 1024)) == data[start:]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(0, 8_000_000, 1_000_000)))


# -- joining ----------------------------------------------------------------------------------


def test_parts_are_joined_in_the_order_given_and_deleted(store: ObjectStore) -> None:
    put(store, "part 2", b"two")
    put(store, "part 1", b"one ")
    joined = store.join("a", ["part 1", "part 2"], content_type="image/png", metadata={"n": "v"})
    assert content(store, "a") == b"one two"
    assert (joined.size, joined.content_type, joined.metadata) == (7, "image/png", {"n": "v"})
    assert store.keys() == ["a"]


def test_when_a_part_is_missing_nothing_changes(store: ObjectStore) -> None:
    put(store, "part 1", b"one")
    with pytest.raises(KeyError) as caught:
        store.join("a", ["part 1", "part 2"], content_type="image/png")
    assert (caught.value.args, store.keys()) == (("part 2",), ["part 1"])


def test_a_part_may_have_the_key_of_the_whole(store: ObjectStore) -> None:
    put(store, "a", b"one ")
    put(store, "b", b"two")
    store.join("a", ["a", "b"], content_type="text/plain")
    assert (content(store, "a"), store.keys()) == (b"one two", ["a"])


def test_parts_come_from_ten_threads_at_once(store: ObjectStore) -> None:
    data = pattern(10 * 3 * MEBIBYTE)
    size = 3 * MEBIBYTE
    barrier = threading.Barrier(10)

    def upload(number: int) -> str:
        barrier.wait()
        part = memoryview(data)[number * size : (number + 1) * size]
        chunks = (bytes(part[at : at + 65536]) for at in range(0, size, 65536))
        return store.put(f"part {number}", chunks, content_type="text/plain").key

    with ThreadPoolExecutor(10) as pool:
        keys = list(pool.map(upload, range(10)))
    store.join("a", keys, content_type="text/plain")
    assert content(store, "a") == data


# -- where the bytes are ----------------------------------------------------------------------


@needs_proc
def test_only_a_large_object_becomes_a_file(store: ObjectStore, spill: Path) -> None:
    put(store, "small", bytes(MEMORY_PER_OBJECT))
    assert files_in(spill) == []
    put(store, "large", bytes(MEMORY_PER_OBJECT), b"1")
    assert len(files_in(spill)) == 1


@needs_proc
def test_parts_do_not_add_up_in_memory(store: ObjectStore, spill: Path) -> None:
    for number in range(10):
        put(store, f"part {number}", bytes(MEMORY_PER_OBJECT))
    assert len(files_in(spill)) == 2  # 8 of 16 MiB are all that memory takes
    put(store, "tiny", b"1")
    assert len(files_in(spill)) == 2


@needs_proc
def test_the_spill_directory_is_the_one_at_construction(spill: Path) -> None:
    store = ObjectStore(spill)
    moved = spill.rename(spill.with_name("moved"))
    spill.mkdir()  # as when a private /tmp is mounted over it
    put(store, "a", bytes(LARGE))
    assert (len(files_in(moved)), len(files_in(spill))) == (1, 0)
    store.close()


def test_without_unnamed_files_a_named_one_is_unlinked_at_once(
    store: ObjectStore, spill: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    data = pattern(LARGE)
    put(store, "a", data)
    assert list(spill.iterdir()) == []
    assert content(store, "a") == data


def test_a_deleted_spill_directory_is_named(store: ObjectStore, spill: Path) -> None:
    spill.rmdir()
    with pytest.raises(EmulatorError) as caught:
        put(store, "a", bytes(LARGE))
    assert str(caught.value) == (
        f"A large object was not stored: no file can be made in the spill directory {spill} (No "
        "such file or directory). Keep that directory until the emulator has stopped, and upload "
        "less at once if there are too many open files."
    )


@pytest.mark.parametrize("megabytes", [15, 96])
def test_no_object_is_in_memory_twice(store: ObjectStore, megabytes: int) -> None:
    tracemalloc.start()
    try:
        stream = (bytes(MEBIBYTE) for _ in range(megabytes))
        store.put("a", stream, content_type="text/plain")
        assert sum(map(len, store.read("a"))) == megabytes * MEBIBYTE
        store.etag("a")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * MEBIBYTE


# -- reset and close --------------------------------------------------------------------------


def test_reset_forgets_everything(store: ObjectStore) -> None:
    put(store, "a", b"1")
    store.reset()
    assert (store.keys(), store.total_size, "a" in store) == ([], 0, False)


@needs_proc
@pytest.mark.parametrize("end", ["reset", "close", "delete", "replace"])
def test_the_file_of_a_large_object_is_closed_with_it(
    store: ObjectStore, spill: Path, end: str
) -> None:
    put(store, "a", bytes(LARGE))
    actions = {
        "reset": store.reset,
        "close": store.close,
        "delete": lambda: store.delete("a"),
        "replace": lambda: put(store, "a", b"1"),
    }
    gc.disable()  # at once: no collection needed
    try:
        actions[end]()
        assert files_in(spill) == []
    finally:
        gc.enable()


@needs_proc
def test_a_reader_that_is_dropped_closes_the_file(store: ObjectStore, spill: Path) -> None:
    put(store, "a", bytes(LARGE))
    begun, untouched = store.read("a"), store.read("a")
    next(begun)
    store.reset()
    assert len(files_in(spill)) == 1
    del begun, untouched
    assert files_in(spill) == []


def test_an_upload_that_outlives_a_reset_is_not_stored(store: ObjectStore) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"of the test before"
        store.reset()

    with pytest.raises(EmulatorError) as caught:
        store.put("a", chunks(), content_type="text/plain")
    assert str(caught.value) == (
        "Object 'a' was not stored: the emulator was reset while its bytes were coming in, so "
        "they belong to a test that is over. Wait for the upload, or stop what sends it, before "
        "that test ends."
    )
    assert store.keys() == []


def test_a_closed_store_takes_nothing(store: ObjectStore) -> None:
    store.close()
    with pytest.raises(EmulatorError) as caught:
        put(store, "a", b"1")
    assert str(caught.value) == (
        "Nothing can be stored any more: the object store is closed. Start the emulator, or make "
        "a new ObjectStore, before uploading."
    )


@needs_proc
def test_closing_lets_go_of_the_spill_directory(store: ObjectStore, spill: Path) -> None:
    assert open_paths().count(str(spill)) == 1
    store.close()
    assert str(spill) not in open_paths()


@needs_proc
def test_a_store_that_is_dropped_leaves_nothing_behind(spill: Path) -> None:
    def ours() -> int:
        gc.collect()
        return sum(type(one).__name__ in ("CdnBucket", "CdnKey") for one in gc.get_objects())

    before = ours()
    store = ObjectStore(spill)
    put(store, "a", bytes(LARGE))
    del store
    assert (ours(), files_in(spill)) == (before, [])


def test_closing_twice_is_no_error(store: ObjectStore) -> None:
    store.close()
    store.close()


def test_a_store_is_not_made_without_its_spill_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ObjectStore(tmp_path / "missing")


# -- beside an app's own moto -----------------------------------------------------------------


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_mock_around_wipes_nothing(store: ObjectStore, size: int) -> None:
    data = pattern(size)
    put(store, "before", data)
    with mock_aws():
        s3().create_bucket(Bucket="mine")
        s3().put_object(Bucket="mine", Key="k", Body=b"theirs")
        put(store, "inside", data)
    assert (content(store, "before"), content(store, "inside")) == (data, data)


def test_a_mock_that_ends_during_an_upload_wipes_nothing(store: ObjectStore) -> None:
    def chunks() -> Iterator[bytes]:
        with mock_aws():
            s3().create_bucket(Bucket="mine")
            yield b"one "
        yield b"two"

    store.put("a", chunks(), content_type="text/plain")
    assert content(store, "a") == b"one two"


def test_a_moto_reset_wipes_nothing(store: ObjectStore) -> None:
    put(store, "a", b"1")
    with mock_aws():
        s3_backends["123456789012"]["aws"].reset()
    assert content(store, "a") == b"1"


def test_a_mock_does_not_see_the_cdn(store: ObjectStore) -> None:
    put(store, "a", b"1")
    with mock_aws():
        s3().create_bucket(Bucket="mine")
        assert [bucket["Name"] for bucket in s3().list_buckets()["Buckets"]] == ["mine"]
        assert list(s3_backends.bucket_accounts) == ["mine"]


def test_a_reset_of_the_cdn_leaves_a_mock_alone(store: ObjectStore) -> None:
    with mock_aws():
        s3().create_bucket(Bucket="mine")
        s3().put_object(Bucket="mine", Key="k", Body=b"theirs")
        put(store, "a", b"1")
        store.reset()
        ObjectStore().close()
        assert s3().get_object(Bucket="mine", Key="k")["Body"].read() == b"theirs"


def test_moto_keeps_no_list_of_what_is_stored(store: ObjectStore) -> None:
    def tracked() -> int:
        models = [model for models in model_data.values() for model in models.values()]
        name = "instances_tracked" if hasattr(FakeKey, "instances_tracked") else "instances"
        return sum(len(getattr(model, name)) for model in models)

    before = tracked()
    for number in range(5):
        put(store, f"{number}", b"1")
    assert tracked() == before


def test_moto_s_dashboard_does_not_list_our_classes(store: ObjectStore) -> None:
    assert "storage" not in model_data
    assert not [name for models in model_data.values() for name in models if "Cdn" in name]


def test_two_stores_do_not_see_each_other(store: ObjectStore, spill: Path) -> None:
    other = ObjectStore(spill)
    put(store, "a", b"1")
    other.reset()
    assert (other.keys(), store.keys()) == ([], ["a"])
    other.close()


def test_a_moto_that_has_changed_is_named(monkeypatch: pytest.MonkeyPatch, spill: Path) -> None:
    monkeypatch.delattr(FakeKey, "set_metadata")
    objects._moto_classes.cache_clear()
    with pytest.raises(UnsupportedVersionError) as caught:
        ObjectStore(spill)
    assert str(caught.value).startswith(
        f"moto {version('moto')} has no moto.s3.models.FakeKey.set_metadata, by which pytest-fal "
        "keeps the CDN's objects (emulator/storage/objects.py). "
    )


def test_importing_the_module_does_not_import_moto() -> None:
    code = "import sys, emulator.storage.objects; print({'moto', 'boto3'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


# -- all of it at once ------------------------------------------------------------------------


class StoreBesideADictionary(RuleBasedStateMachine):
    """Whatever is done in whatever order, the store holds what a dictionary would."""

    names = st.sampled_from("abcd")  # few, so that keys are replaced and joined often

    @initialize()
    def start(self) -> None:
        self.store = ObjectStore()
        self.model: dict[str, bytes] = {}

    @rule(name=names, chunks=st.lists(st.binary(max_size=8), max_size=3))
    def put(self, name: str, chunks: list[bytes]) -> None:
        put(self.store, name, *chunks)
        self.model.pop(name, None)
        self.model[name] = b"".join(chunks)

    @rule(name=names, parts=st.lists(names, max_size=4))
    def join(self, name: str, parts: list[str]) -> None:
        try:
            joined = b"".join(self.model[part] for part in parts)
        except KeyError as error:
            with pytest.raises(KeyError, match=str(error)):
                self.store.join(name, parts, content_type="text/plain")
            return
        self.store.join(name, parts, content_type="text/plain")
        for gone in {*parts, name}:
            self.model.pop(gone, None)
        self.model[name] = joined

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.store.delete(name)
        self.model.pop(name, None)

    @rule()
    def reset(self) -> None:
        self.store.reset()
        self.model.clear()

    @invariant()
    def the_store_holds_what_the_dictionary_holds(self) -> None:
        keys = self.store.keys()
        assert keys == list(self.model)
        assert [content(self.store, key) for key in keys] == list(self.model.values())
        assert self.store.total_size == sum(map(len, self.model.values()))

    def teardown(self) -> None:
        self.store.close()


TestStoreBesideADictionary = StoreBesideADictionary.TestCase
