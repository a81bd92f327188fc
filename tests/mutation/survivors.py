"""The changes that no test can notice, and why: ``survivors.toml``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets import Target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Survivors"]

FILE = Path(__file__).with_name("survivors.toml")


@dataclass(frozen=True)
class Survivors:
    """For each module: reasons, each with the names of the changes that it explains."""

    tables: dict[str, list[dict[str, Any]]]

    @classmethod
    def read(cls) -> Survivors:
        """What the file says."""
        return cls(tomllib.loads(FILE.read_text("utf-8")))

    def of(self, target: Target) -> dict[str, str]:
        """The reason for each change of a module that is explained."""
        entries = self.tables.get(target.path, [])
        return {name: entry["why"] for entry in entries for name in entry["changes"]}
