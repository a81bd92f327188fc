"""Canaries: a host's ``/data``, a home full of credentials, files in ``/tmp``; all watched.

Each holds words that are nowhere else, so that they are found wherever they end up. All lie on one
file system in memory, which fanotify watches as a whole: whatever mount of whatever namespace
something is opened through.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from as_user import CannotRunError, call, mount

FAN_CLOEXEC, FAN_NONBLOCK = 0x1, 0x2
FAN_MARK_ADD, FAN_MARK_FILESYSTEM = 0x1, 0x100
FAN_ACCESS, FAN_MODIFY, FAN_OPEN, FAN_OPEN_EXEC = 0x1, 0x2, 0x20, 0x1000
FAN_Q_OVERFLOW, FAN_ONDIR = 0x4000, 0x40000000
AT_FDCWD = -100
EVENT = struct.Struct("IBBHQii")

#: What the SDK reads as it is imported, whoever imports it: no secret of a test's.
CONFIGURATION = frozenset({"home/.fal/config.toml", "home/elsewhere/fal.toml"})


class Words:
    """Words that are nowhere else, by what they are for."""

    def __init__(self) -> None:
        self.meaning: dict[bytes, str] = {}

    def new(self, meaning: str) -> str:
        word = f"lark{secrets.token_hex(12)}"
        self.meaning[word.encode()] = meaning
        return word

    def found_in(self, data: bytes) -> set[str]:
        """What the words are for that are in there."""
        return {meaning for word, meaning in self.meaning.items() if word in data}


def files(words: Words) -> dict[str, str]:
    """The files, by path: below ``data``, ``home`` and ``tmp``."""
    google = {
        "type": "authorized_user",
        "client_id": words.new("Google's client id"),
        "client_secret": words.new("Google's client secret"),
        "refresh_token": words.new("Google's refresh token"),
    }
    cloud = json.dumps(google)
    key = f"{words.new('the key id in the fal configuration')}:{words.new('the key in it')}"
    config = f'[__internal__]\nprofile = "default"\n[default]\nkey = "{key}"\n'
    return {
        "data/precious": words.new("a file in /data"),
        "data/models/weights.safetensors": words.new("weights in /data"),
        "data/.fal/secret": words.new("a hidden file in /data"),
        "home/.fal/auth0_token": words.new("the fal login token"),
        "home/.fal/config.toml": config,
        "home/elsewhere/fal.toml": config,
        "home/.aws/credentials": (
            f"[default]\naws_access_key_id = {words.new('the AWS key id in ~/.aws')}\n"
            f"aws_secret_access_key = {words.new('the AWS key in ~/.aws')}\n"
        ),
        "home/.aws/config": "[default]\nregion = eu-west-3\n",
        "home/.netrc": (f"default login me password {words.new('the password in ~/.netrc')}\n"),
        "home/.git-credentials": f"https://me:{words.new('a password of git')}@github.com\n",
        "home/.cache/huggingface/token": words.new("the Hugging Face token in ~/.cache"),
        "home/.config/gcloud/application_default_credentials.json": cloud,
        "home/elsewhere/google.json": cloud,
        "home/.ssh/id_ed25519": words.new("a private key of ssh"),
        "tmp/of-another-program": words.new("a file in /tmp"),
    }


def variables(words: Words, home: str) -> dict[str, str]:
    """A user's environment, with credentials in it."""
    key = f"{words.new('the id in FAL_KEY')}:{words.new('FAL_KEY')}"
    return {
        "HOME": home,
        "FAL_KEY": key,
        "FAL_CONFIG_PATH": f"{home}/elsewhere/fal.toml",
        "AWS_ACCESS_KEY_ID": words.new("AWS_ACCESS_KEY_ID"),
        "AWS_SECRET_ACCESS_KEY": words.new("AWS_SECRET_ACCESS_KEY"),
        "AWS_SESSION_TOKEN": words.new("AWS_SESSION_TOKEN"),
        "HF_TOKEN": words.new("HF_TOKEN"),
        "GOOGLE_APPLICATION_CREDENTIALS": f"{home}/elsewhere/google.json",
    }


def seed(root: Path, words: Words) -> None:
    """Mount the file system of the canaries at *root* and fill it; everybody may read them."""
    mount("canaries", str(root), "tmpfs", 0, "mode=755,size=16m")
    for path, text in files(words).items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        os.utime(place, (1_600_000_000, 1_600_000_000))
    for folder in ("data", "home", "tmp"):
        (root / folder).chmod(0o777)


State = dict[str, tuple[object, ...]]


def state_of(root: Path) -> State:
    """Everything below *root*: what it is, when it was changed and what is in it."""
    found: State = {}
    for place in sorted(root.rglob("*")):
        status = place.lstat()
        state: tuple[object, ...] = (status.st_ino, status.st_mode, status.st_uid, status.st_gid)
        if not place.is_dir():  # what is made in a folder is named itself
            content = hashlib.sha256(place.read_bytes()).digest() if place.is_file() else b""
            state += (status.st_nlink, status.st_mtime_ns, status.st_ctime_ns, content)
        found[str(place.relative_to(root))] = state
    return found


def changes(before: State, after: State) -> Iterator[str]:
    """What was made, changed and removed, a line each."""
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            how = "made" if path not in before else "changed" if path in after else "removed"
            yield f"{path} was {how}"


class Watch:
    """Tells of each canary that is opened, read or written to, and by whom.

    Args:
        root: where the file system of the canaries is mounted.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths = {root.stat().st_ino: "."}
        for place in root.rglob("*"):
            self._paths[place.stat().st_ino] = str(place.relative_to(root))
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor: int = libc.fanotify_init(FAN_CLOEXEC | FAN_NONBLOCK, os.O_RDONLY)
        if self.descriptor < 0:
            raise CannotRunError(f"the kernel refused fanotify: {os.strerror(ctypes.get_errno())}")
        mask = FAN_OPEN | FAN_ACCESS | FAN_MODIFY | FAN_OPEN_EXEC | FAN_ONDIR
        marks = FAN_MARK_ADD | FAN_MARK_FILESYSTEM
        place = os.fsencode(root)
        call("fanotify_mark", self.descriptor, marks, ctypes.c_uint64(mask), AT_FDCWD, place)

    @property
    def count(self) -> int:
        """How many files are watched."""
        return sum((self._root / path).is_file() for path in self._paths.values())

    def read(self) -> Iterator[tuple[str, int]]:
        """The path and the process of each event since the last call."""
        with suppress(BlockingIOError):
            while data := os.read(self.descriptor, 65_536):
                yield from self._events(data)

    def _events(self, data: bytes) -> Iterator[tuple[str, int]]:
        place = 0
        while place < len(data):
            length, _, _, _, mask, descriptor, process = EVENT.unpack_from(data, place)
            place += length
            if mask & FAN_Q_OVERFLOW:
                yield "(more than the kernel counts)", process
                continue
            try:
                name = self._paths.get(os.fstat(descriptor).st_ino)
                yield name or os.readlink(f"/proc/self/fd/{descriptor}"), process
            finally:
                os.close(descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


def search(words: Words, folder: Path, names: Iterable[str]) -> tuple[int, list[str]]:
    """How many files are at these places in *folder*, and the words in them, a line each."""
    found, number = [], 0
    for root in (folder / name for name in names):
        for place in (root, *sorted(root.rglob("*"))):
            if place.is_file() and not place.is_symlink():
                number += 1
                where = place.relative_to(folder)
                found += [f"{meaning} is in {where}" for meaning in sorted(words_in(words, place))]
    return number, found


def words_in(words: Words, place: Path) -> set[str]:
    """The words in one file of any size."""
    found: set[str] = set()
    overlap = b""
    with place.open("rb") as file:
        while block := file.read(1 << 22):
            found |= words.found_in(overlap + block)
            overlap = block[-64:]
    return found
