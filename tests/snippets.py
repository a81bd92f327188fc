"""The fenced blocks of a page of documentation, and what it takes to run or to check them.

A page with ``console`` blocks is a walkthrough: in one folder, from top to bottom, its blocks that
begin with ``# name.py`` become files and its commands are run; what they print is what it shows.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ROOT",
    "Block",
    "Command",
    "check_shell",
    "console",
    "pages",
    "play",
    "read",
    "resembles",
]

ROOT = Path(__file__).parent.parent

_PARTS = re.compile(
    r"^<!-- ?(?P<comment>.*?)-->"
    r"|^(?P<indent> *)(?P<ticks>`{3,})(?P<kind>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=ticks)$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"# ([\w./-]+\.\w+|\.?[\w-]+/[\w./-]+|Dockerfile)\n")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    kind: str
    text: str
    #: The HTML comment right above it.
    comment: str = ""

    @property
    def file(self) -> str | None:
        """The name that its first line says, as a comment."""
        named = _FILE.match(self.text)
        return named.group(1) if named else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page whose blocks are looked at."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def read(text: str, page: str = "page") -> list[Block]:
    """The blocks of a page, in order. What stands in an HTML comment is none of them."""
    found, comment, end = [], "", 0
    for part in _PARTS.finditer(text):
        if part.group("kind") is None:
            comment, end = part.group("comment"), part.end()
            continue
        near = not text[end : part.start()].strip()
        indent = part.group("indent")
        body = "".join(one.removeprefix(indent) for one in part.group("text").splitlines(True))
        line = text.count("\n", 0, part.start()) + 1
        found.append(Block(page, line, part.group("kind").strip(), body, comment if near else ""))
        comment = ""
    return found


# --- walkthroughs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command of a ``console`` block, and what it is said to print."""

    line: str
    shown: str


def console(text: str) -> Iterator[Command]:
    """The commands of a block: a line with ``$`` each, then what it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, shown = part.partition("\n")
        yield Command(line, shown)


def play(blocks: list[Block], folder: Path) -> None:
    """Do what a reader of a walkthrough does, and fail where something else happens."""
    for block in blocks:
        if block.kind == "console":
            for command in console(block.text):
                _run(block, command, folder)
        elif block.file is not None and block.kind != "dockerfile":
            target = folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, "utf-8")


def _run(block: Block, command: Command, folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", command.line],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    said = f"{block}: $ {command.line}\nends with {done.returncode} and prints\n{done.stdout}"
    fails = re.search(r"\b(failed|errors?)\b", command.shown) is not None
    assert (done.returncode != 0) == fails, said
    if command.shown.strip():
        assert resembles(command.shown, done.stdout), f"{said}\nThe page shows\n{command.shown}"


def _environment() -> dict[str, str]:
    """A reader's: our interpreter first, 80 columns, nothing of this run of pytest."""
    ours = ("PYTEST_", "COV_", "COVERAGE_")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    for name in ("CI", "BUILD_NUMBER", "FORCE_COLOR"):
        kept.pop(name, None)
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        "COLUMNS": "80",
        "NO_COLOR": "1",
        # A file that the page writes anew within the same second is another one.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_ADDOPTS": "-W error -p no:cacheprovider -p no:randomly",
    }


# --- output ---------------------------------------------------------------------------------------


def resembles(shown: str, real: str, *, somewhere: bool = False) -> bool:
    """Whether this is the output that the page shows: ``...`` is anything, times are any times.

    Args:
        somewhere: it is part of the output, and its lines may be broken elsewhere.
    """
    shown, real = _normal(shown), _normal(real)
    if somewhere:
        shown, real = " ".join(shown.split()), " ".join(real.split())
    wanted = ".*?".join(re.escape(piece) for piece in shown.split("..."))
    search = re.search if somewhere else re.fullmatch
    return search(wanted, real, re.DOTALL) is not None


def _normal(text: str) -> str:
    text = re.sub(r"\b\d+\.\d+s\b( \(\d+:\d+:\d+\))?", "0.00s", text)
    text = re.sub(r"\b\d\d:\d\d:\d\d\b", "00:00:00", text)
    text = re.sub(r"^\s*[\^~]+\s*$\n", "", text, flags=re.MULTILINE)  # since Python 3.11
    text = re.sub(r"([=_-])\1{2,}", r"\1\1\1", text)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


# --- what is not run ------------------------------------------------------------------------------

#: Commands of a page's scripts that the machine of the tests need not have.
_ELSEWHERE = frozenset({"docker", "sudo", "sysctl", "apt-get", "npm", "node", "nvidia-smi"})
_OURS = re.compile(r"^(?:\.ci|tests|examples|docs|benchmarks)/[\w./-]+$")


def check_shell(script: str, *, ours: bool = False) -> None:
    """Fail unless a script is one: bash can read it, and its commands are known.

    Args:
        ours: its paths are of this repository, and have to be there.
    """
    parsed = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    for words in _commands(script):
        name = words[0]
        known = name in _ELSEWHERE or shutil.which(name) or name.startswith((".venv", ".ci/", "./"))
        assert known or (Path(sys.executable).parent / name).exists(), f"what is {name}? {words}"
        if ours:
            missing = [w for w in words if _OURS.match(w) and not (ROOT / w).exists()]
            assert missing == [], f"not there: {missing}"


def _commands(script: str) -> Iterator[list[str]]:
    """The words of each simple command, without assignments and comments."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if not set(token) <= set(";&|"):
                words += [token] if words or not re.match(r"\w+=", token) else []
            elif words:
                yield words
                words = []
