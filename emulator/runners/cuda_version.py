"""Versions of CUDA: which one the driver has to support, asked for or by the installed torch.

A driver runs what was built for its own version of CUDA or an earlier one, and within a major
version what was built for a later one too (NVIDIA's "minor version compatibility"). So ``"12"`` is
usually enough; ``"12.4"`` is what just-in-time compilation of PTX needs.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

__all__ = ["Version", "dotted", "needed_by_torch", "parse_version", "too_old"]

Version = tuple[int, ...]


def parse_version(version: str) -> Version:
    """Read ``"12"`` or ``"12.4"``. Raises ValueError with the line to write."""
    found = re.fullmatch(r"(\d+)(?:\.(\d+))?", version) if isinstance(version, str) else None
    if found is None:
        raise ValueError(
            f'cuda={version!r} is no version of CUDA: write cuda="12.4", or cuda="12" for any of '
            f"that major version"
        )
    return tuple(int(number) for number in found.groups() if number is not None)


def dotted(version: Version) -> str:
    """Write a version as ``parse_version`` reads it."""
    return ".".join(map(str, version))


@cache
def needed_by_torch() -> Version | None:
    """The CUDA that the installed torch was built for; None without one. torch is not imported."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text("utf-8")
    except (OSError, ValueError):
        return None
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"](\d+)\.(\d+)", text, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def too_old(driver: str | None, supported: Version | None, wanted: Version | None) -> str | None:
    """Say why a driver that supports this CUDA will not do; None: it will.

    Args:
        driver: its version.
        supported: the CUDA that it supports; None: not known, so it may do.
        wanted: the CUDA asked for; None: what the installed torch was built for.
    """
    if supported is None:
        return None
    if wanted is not None:
        enough = supported[: len(wanted)] >= wanted
        why, instead = f"CUDA {dotted(wanted)} is asked for", ""
    else:
        built = needed_by_torch()
        if built is None:
            return None
        enough = supported[0] >= built[0]
        why = f"the installed torch is built for CUDA {dotted(built)}"
        instead = f", or a torch that is built for CUDA {supported[0]}"
    if enough:
        return None
    return (
        f"driver {driver} is too old: it supports CUDA {dotted(supported)}, and {why}: install a "
        f"newer NVIDIA driver{instead}"
    )
