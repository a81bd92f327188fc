"""Mocks that are in force: of ``unittest.mock`` and moto; and whose code a value is."""

from __future__ import annotations

import sys
from typing import Any

from pytest_fal.processes import cut

__all__ = ["moto_buckets", "moto_nested", "patched", "started", "whose"]


def started() -> list[object]:
    """Patches of ``unittest.mock`` that were started by ``start()``."""
    patch = getattr(sys.modules.get("unittest.mock"), "_patch", None)
    return list(getattr(patch, "_active_patches", ()))


def patched(mock: Any) -> str:
    """What a patch replaces."""
    if hasattr(mock, "in_dict"):
        return f"a dictionary ({type(mock.in_dict).__name__})"
    target = getattr(mock, "target", None)
    owner = getattr(target, "__qualname__", getattr(target, "__name__", repr(target)))
    module = getattr(target, "__module__", "")
    name = f"{module + '.' if module else ''}{owner}.{getattr(mock, 'attribute', '')}"
    new = getattr(mock, "new", None)
    return f"{name} by {'a mock' if repr(new) == 'sentinel.DEFAULT' else whose(new)}"


def moto_nested() -> int:
    """How many mocks of moto's are in force."""
    module = sys.modules.get("moto.core.models")
    return int(getattr(getattr(module, "MockAWS", None), "_nested_count", 0))


def moto_buckets() -> frozenset[str]:
    """The buckets of moto's S3, which a mock removes when it ends."""
    if "moto.s3.models" not in sys.modules:
        return frozenset()
    from emulator.storage.moto_s3 import MotoS3

    return frozenset(MotoS3().names())


def whose(value: Any) -> str:
    """A value, and where it comes from if that can be told."""
    function = getattr(value, "__func__", value)
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", "").replace("<locals>.", "")
    module = getattr(function, "__module__", None)
    if not name or not module:
        return cut(repr(value))
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{module}.{name}{where}"
