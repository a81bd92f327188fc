"""Real pytest sessions in processes of their own, timed as a whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["project", "seconds_of_session"]


@contextmanager
def project(files: dict[str, str], parent: str) -> Iterator[Path]:
    """A project with these test files, in a new folder of *parent*."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-", dir=parent))
    try:
        (folder / "pytest.ini").write_text("[pytest]\n")
        for name, text in files.items():
            (folder / name).write_text(text)
        yield folder
    finally:
        shutil.rmtree(folder)


def seconds_of_session(folder: Path, *options: str, autoload: bool = False) -> float:
    """Wall time from the start of the process to its end.

    Args:
        autoload: load every pytest plugin installed, as pytest does by default.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    if not autoload:
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return seconds
