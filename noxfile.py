"""The version matrix for nox: ``nox --list`` shows the cells. What a cell is stands in ``.ci``.

nox makes no environments here: ``.ci/matrix`` keeps one for each Python, in which fal is exchanged.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent / ".ci"))
import cells

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["covering"]
nox.options.default_venv_backend = "none"
_SKIPPED = 77


@nox.session
def covering(session: nox.Session) -> None:
    """What `.ci/run` tries: each Python and each fal at least once."""
    _matrix(session)


@nox.session
@nox.parametrize("fal", [nox.param(version, id=version) for version in reversed(cells.FALS)])
@nox.parametrize("python", [nox.param(version, id=version) for version in cells.PYTHONS])
def tests(session: nox.Session, python: str, fal: str) -> None:
    """One version of Python with one of fal: nox -s "tests(3.12, 1.80.1)" -- -x"""
    _matrix(session, python, fal)


@nox.session
def oldest_dependencies(session: nox.Session) -> None:
    """The lower bounds of pyproject.toml, on the oldest Python."""
    _matrix(session, "oldest-dependencies")


@nox.session
def newest_dependencies(session: nox.Session) -> None:
    """What pip finds today, on the newest Python."""
    _matrix(session, "newest-dependencies")


@nox.session
def packaging(session: nox.Session) -> None:
    """Wheel and sdist: built, looked into, installed and used outside of the checkout."""
    session.run(sys.executable, ".ci/packaging", external=True)


def _matrix(session: nox.Session, *what: str) -> None:
    """Run ``.ci/matrix``; ``--all`` among nox's arguments: every test."""
    everything = ["--everything"] if "--all" in session.posargs else []
    rest = [argument for argument in session.posargs if argument != "--all"]
    done = subprocess.run([sys.executable, ".ci/matrix", *what, *everything, "--", *rest])
    if done.returncode == _SKIPPED:
        session.skip("see above")
    if done.returncode:
        session.error("see above")
