"""Folders that are nested deeper than a path, a process's descriptors or Python's stack go."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from emulator.storage.sweeper import Sweeper

AUTH = {"Authorization": "Key id:secret"}
FILES = "https://rest.fal.ai/files"


#: In 30 folders of this name the path is longer than paths can be.
LONG = "x" * 200


def nest(place: Path, depth: int, name: str = "d") -> None:
    """Make so many folders, each in the one before, with a file in the last."""
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=folder)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    os.close(folder)


@pytest.mark.parametrize(
    ("depth", "name"), [(1, "d"), (127, "d"), (128, "d"), (129, "d"), (300, "d"), (30, LONG)]
)
def test_a_folder_is_removed_by_the_file_api_however_deep(fal_data, depth, name):
    (fal_data.backing / "top").mkdir()
    nest(fal_data.backing / "top", depth, name)
    fal_data.write("kept.bin", b"kept")
    assert httpx.delete(f"{FILES}/file/top", headers=AUTH).json() is True
    assert os.listdir(fal_data.backing) == ["kept.bin"]


def test_a_path_that_is_very_deep_is_refused(fal_data):
    path = "d/" * 200 + "a.bin"
    answer = httpx.post(
        f"{FILES}/file/local/{path}", headers=AUTH, files={"file_upload": ("a", b"x")}
    )
    assert answer.status_code == 400
    assert answer.json()["detail"] == f"/data/{path}: File name too long"
    assert os.listdir(fal_data.backing) == []


def test_a_very_deep_folder_stands_for_its_files(fal_data):
    nest(fal_data.backing, 30, LONG)
    [found] = fal_data.tree()
    assert found.startswith(f"{LONG}/{LONG}/")
    assert found.endswith(f"/{LONG}/")


@pytest.mark.parametrize(("depth", "name"), [(1, "d"), (1_050, "d"), (30, LONG)])
def test_what_tests_wrote_is_swept_however_deep(tmp_path, depth, name):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    nest(tmp_path / "one", depth, name)
    sweeper = Sweeper()
    sweeper.remove(str(tmp_path / "one"))
    sweeper.remove(str(tmp_path / "two"))
    sweeper.close()
    assert os.listdir(tmp_path) == []
