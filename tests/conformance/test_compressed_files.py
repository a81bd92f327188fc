"""The section "Compressed Files": archives that unpack themselves and clean up."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

import fal
import pytest
from fal.toolkit import CompressedFile, File
from page import departs, states

if TYPE_CHECKING:
    from pytest_fal import Origin, RunnerFactory, Volume

URL = "https://example.com/photos.zip"
PHOTOS = {"a.png": "A", "b.png": "B", "notes.txt": "N", "raw/c.png": "C"}


def zipped(members: dict[str, str]) -> bytes:
    written = io.BytesIO()
    with ZipFile(written, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


def names(paths: Iterable[Path]) -> list[str]:
    return sorted(path.name for path in paths)


def unpacked(tmp: Volume) -> list[str]:
    """The files of ``/tmp``, without the folder of one archive."""
    return [rel.partition("/")[2] for rel in tmp.tree()]


# --- as printed -----------------------------------------------------------------------------------


class MyApp(fal.App):
    @fal.endpoint("/")
    def process(self, archive_url: str) -> dict:
        archive = CompressedFile(url=archive_url)
        png_files = list(archive.glob("*.png"))
        return {"file_count": len(png_files)}


@states("compressed-snippet")
def test_the_snippets_endpoint_counts_the_pngs(
    fal_runner: RunnerFactory, fal_origin: Origin
) -> None:
    """Those at the top: ``*.png`` does not look into folders."""
    fal_origin.serve(URL, zipped(PHOTOS))
    answer = fal_runner(MyApp).post("/", params={"archive_url": URL})
    assert answer.json() == {"file_count": 2}


@states("compressed-snippet")
@departs(
    "compressed-snippet",
    does="archive_url, a bare str, is a query parameter: a JSON body with it is answered 422",
    since="1.0.0",
)
def test_the_snippets_archive_url_is_a_query_parameter(
    fal_runner: RunnerFactory, fal_origin: Origin
) -> None:
    """The page: calls of its endpoint are not shown. fal's clients send arguments as JSON."""
    served = fal_origin.serve(URL, zipped(PHOTOS))
    response = fal_runner(MyApp).post("/", json={"archive_url": URL})
    (error,) = response.json()["detail"]
    assert (response.status_code, error["loc"]) == (422, ["query", "archive_url"])
    assert served.requests == []


# --- unpacking ------------------------------------------------------------------------------------


@states("compressed-extends")
def test_a_compressed_file_is_a_file_that_is_unpacked(fal_origin: Origin) -> None:
    fal_origin.serve(URL, zipped(PHOTOS))
    archive = CompressedFile(url=URL)
    assert isinstance(archive, File)
    assert {path.name: path.read_text() for path in archive.glob("*.*")} == {
        "a.png": "A",
        "b.png": "B",
        "notes.txt": "N",
    }


@states("compressed-extends")
def test_where_it_was_unpacked_stays_out_of_responses(fal_origin: Origin) -> None:
    fal_origin.serve(URL, zipped(PHOTOS))
    archive = CompressedFile(url=URL)
    assert names(archive) == ["a.png", "b.png", "notes.txt", "raw"]
    assert set(archive.model_dump()) == {"url", "content_type", "file_name", "file_size"}


@states("compressed-automatic")
def test_nothing_is_downloaded_before_somebody_looks(fal_origin: Origin, fal_tmp: Volume) -> None:
    served = fal_origin.serve(URL, zipped(PHOTOS))
    CompressedFile(url=URL)
    assert (served.requests, fal_tmp.tree()) == ([], [])


@states("compressed-automatic")
@pytest.mark.parametrize("look", [iter, lambda archive: archive.glob("*")], ids=["iter", "glob"])
def test_looking_downloads_and_unpacks_into_a_temporary_directory(
    fal_origin: Origin, fal_tmp: Volume, look: Callable[[CompressedFile], Iterable[Path]]
) -> None:
    served = fal_origin.serve(URL, zipped(PHOTOS))
    archive = CompressedFile(url=URL)
    (directory,) = {path.parent for path in look(archive)}
    assert directory.parent == Path("/tmp")
    assert unpacked(fal_tmp) == list(PHOTOS)
    assert len(served.requests) == 1


@states("compressed-automatic")
def test_iterating_gives_what_is_at_the_top(fal_origin: Origin) -> None:
    fal_origin.serve(URL, zipped(PHOTOS))
    archive = CompressedFile(url=URL)
    assert names(archive) == ["a.png", "b.png", "notes.txt", "raw"]


@states("compressed-automatic")
def test_glob_looks_into_folders_where_told_to(fal_origin: Origin) -> None:
    fal_origin.serve(URL, zipped(PHOTOS))
    archive = CompressedFile(url=URL)
    assert names(archive.glob("**/*.png")) == ["a.png", "b.png", "c.png"]
    assert names(archive.glob("raw/*")) == ["c.png"]


@states("compressed-automatic")
def test_an_archive_is_downloaded_and_unpacked_once(fal_origin: Origin, fal_tmp: Volume) -> None:
    served = fal_origin.serve(URL, zipped(PHOTOS))
    archive = CompressedFile(url=URL)
    assert names(archive) == names(archive.glob("*"))
    assert len(served.requests) == 1
    assert unpacked(fal_tmp) == list(PHOTOS)


@states("compressed-automatic")
@departs(
    "compressed-automatic",
    does="it downloads to /tmp/<name in the URL>: a file of that name and size there, another "
    "request's archive, is unpacked instead, and is gone",
    since="1.0.0",
)
def test_a_file_in_tmp_with_the_archives_name_and_size_is_unpacked_instead(
    fal_origin: Origin, fal_tmp: Volume
) -> None:
    """The page: downloads and extracts the archive. The SDK: save() into /tmp, with what save()
    does to neighbours."""
    fal_origin.serve(URL, zipped({"mine.txt": "mine"}))
    fal_tmp.write("photos.zip", zipped({"hers.txt": "hers"}))
    archive = CompressedFile(url=URL)
    assert {path.name: path.read_text() for path in archive} == {"hers.txt": "hers"}
    assert unpacked(fal_tmp) == ["hers.txt"]


@states("compressed-automatic")
@departs(
    "compressed-automatic",
    does="what is no ZIP archive raises BadZipFile once; after that the object seems to be empty",
    since="1.0.0",
)
def test_a_broken_archive_seems_to_be_empty_when_looked_at_again(fal_origin: Origin) -> None:
    """The page: ZIP archives are extracted. The SDK: remembers its directory before there is
    anything in it, so code that catches the error goes on with no files."""
    fal_origin.serve(URL, b"no archive")
    archive = CompressedFile(url=URL)
    with pytest.raises(BadZipFile):
        list(archive)
    assert list(archive) == list(archive.glob("**/*")) == []


# --- cleaning up ----------------------------------------------------------------------------------


@states("compressed-cleanup")
def test_the_directory_is_gone_with_the_object(fal_origin: Origin, fal_tmp: Volume) -> None:
    fal_origin.serve(URL, zipped(PHOTOS))
    archive = CompressedFile(url=URL)
    (directory,) = {path.parent for path in archive}
    assert directory.is_dir()
    del archive
    assert not directory.exists()
    assert fal_tmp.tree() == []


@states("compressed-cleanup")
def test_the_snippets_endpoint_leaves_nothing_behind(
    fal_runner: RunnerFactory, fal_origin: Origin
) -> None:
    fal_origin.serve(URL, zipped(PHOTOS))
    runner = fal_runner(MyApp)
    runner.post("/", params={"archive_url": URL})
    assert runner.tmp.tree() == []


@states("compressed-cleanup")
def test_an_object_in_a_cycle_keeps_its_directory_until_it_is_collected(
    fal_origin: Origin, fal_tmp: Volume
) -> None:
    fal_origin.serve(URL, zipped({"a.txt": "A"}))
    gc.disable()
    try:
        cycle: list[object] = [CompressedFile(url=URL)]
        assert names(cycle[0]) == ["a.txt"]
        cycle.append(cycle)
        del cycle
        assert unpacked(fal_tmp) == ["a.txt"]
        gc.collect(0)
    finally:
        gc.enable()
    assert fal_tmp.tree() == []


@states("compressed-cleanup")
@departs(
    "compressed-cleanup",
    does="an object that only the loop holds is collected before its first file can be read",
    since="1.0.0",
)
def test_the_files_of_a_temporary_object_are_gone_before_they_are_read(
    fal_origin: Origin, fal_tmp: Volume
) -> None:
    """The page: cleaned up when the object is garbage collected. The SDK: true to the word, and
    the iterator does not hold the object."""
    fal_origin.serve(URL, zipped(PHOTOS))
    with pytest.raises(FileNotFoundError):
        [path.read_text() for path in CompressedFile(url=URL)]
    assert fal_tmp.tree() == []


@states("compressed-cleanup")
@departs(
    "compressed-cleanup",
    does="copies share the directory, and the first that is collected takes it from the others",
    since="1.0.0",
)
def test_a_copy_takes_the_directory_with_it(fal_origin: Origin) -> None:
    """The page: cleaned up when the object is garbage collected. The SDK: when any copy of it is
    (pydantic copies on model_copy)."""
    fal_origin.serve(URL, zipped(PHOTOS))
    archive = CompressedFile(url=URL)
    assert len(list(archive)) == 4
    copy = archive.model_copy()
    del copy
    with pytest.raises(FileNotFoundError):
        next(iter(archive)).read_text()
    archive.extract_dir = None  # or its own clean-up would fail
