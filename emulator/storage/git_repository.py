"""A git repository on disk, written object by object: as git does it, in a hundredth of the time.

Only what a server needs: a bare repository with loose objects and branches. gitformat-pack(5) and
gitrepository-layout(5) tell the format. The same content gives the same hashes: names and dates of
commits are fixed.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emulator.errors import EmulatorError

__all__ = ["Link", "Repository"]

_AUTHOR = "Somebody Else <somebody@example.com>"
#: The date of the first commit, 2025-01-01; the others follow a minute apart.
_FIRST = 1735689600
_MINUTE = 60

_Tree = dict[str, "bytes | Link | _Tree"]


@dataclass(frozen=True)
class Link:
    """A directory that is a commit of another repository: a submodule."""

    commit: str


class Repository:
    """A bare repository at *path*, made with the first commit.

    Args:
        path: the directory, which is not there yet.
        branch: what its HEAD names.
    """

    def __init__(self, path: str, branch: str) -> None:
        self.path = path
        #: The newest commit of each branch.
        self.branches: dict[str, str] = {}
        self._count = 0
        for folder in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
            os.makedirs(os.path.join(path, folder))
        self._write("HEAD", f"ref: refs/heads/{branch}\n")
        self._write("config", "[core]\n\trepositoryformatversion = 0\n\tbare = true\n")

    def commit(
        self,
        files: Mapping[str, bytes | Link],
        branch: str,
        parent: str | None = None,
        message: str | None = None,
    ) -> str:
        """Add a commit of exactly these files to a branch.

        Args:
            files: by path; no path is a directory on the way to another.
            branch: its name.
            parent: the commit before it, of a new branch.
            message: what it says; default: its number.

        Returns:
            Its hash, 40 hexadecimal digits.
        """
        others = [one for one in self.branches if f"{one}/".startswith(f"{branch}/")]
        others += [one for one in self.branches if branch.startswith(f"{one}/")]
        if others and others != [branch]:
            raise EmulatorError(
                f"A repository cannot have branches {others[0]!r} and {branch!r}: to git one is a "
                "folder of the other. Give one of them another name."
            )
        self._count += 1
        parent = self.branches.get(branch, parent)
        who = f"{_AUTHOR} {_FIRST + (self._count - 1) * _MINUTE} +0000"
        lines = [
            f"tree {self._write_tree(_nested(files))}",
            *([f"parent {parent}"] if parent else []),
            f"author {who}",
            f"committer {who}",
            "",
            message or f"Commit {self._count}",
        ]
        commit = self._write_object("commit", "\n".join([*lines, ""]).encode())
        self._write(f"refs/heads/{branch}", f"{commit}\n")
        self.branches[branch] = commit
        return commit

    def tag(self, name: str, commit: str) -> None:
        """Name a commit."""
        self._write(f"refs/tags/{name}", f"{commit}\n")

    def _write_tree(self, tree: _Tree) -> str:
        entries = []
        for name, content in tree.items():
            if isinstance(content, dict):
                entries.append((name.encode(), b"40000", self._write_tree(content)))
            elif isinstance(content, Link):
                entries.append((name.encode(), b"160000", content.commit))
            else:
                entries.append((name.encode(), b"100644", self._write_object("blob", content)))
        entries.sort(key=_sorting)
        lines = [mode + b" " + name + b"\0" + bytes.fromhex(hash_) for name, mode, hash_ in entries]
        return self._write_object("tree", b"".join(lines))

    def _write_object(self, kind: str, content: bytes) -> str:
        whole = f"{kind} {len(content)}\0".encode() + content
        hashed = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
        folder = os.path.join(self.path, "objects", hashed[:2])
        path = os.path.join(folder, hashed[2:])
        if not os.path.exists(path):
            os.makedirs(folder, exist_ok=True)
            Path(f"{path}.new").write_bytes(zlib.compress(whole, 1))
            os.rename(f"{path}.new", path)
        return hashed

    def _write(self, name: str, text: str) -> None:
        path = os.path.join(self.path, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(f"{path}.new").write_text(text, "utf-8")
        os.rename(f"{path}.new", path)


def _sorting(entry: tuple[bytes, bytes, str]) -> bytes:
    """git sorts directories as if their names ended in a slash."""
    name, mode, _ = entry
    return name + b"/" if mode == b"40000" else name


def _nested(files: Mapping[str, bytes | Link]) -> _Tree:
    root: _Tree = {}
    for path, content in files.items():
        *folders, name = path.split("/")
        tree = root
        for folder in folders:
            deeper = tree.setdefault(folder, {})
            assert isinstance(deeper, dict)
            tree = deeper
        tree[name] = content
    return root
