"""A local emulator of the fal platform, usable without pytest.

``with Emulator() as fal: ...`` gives the real ``fal`` SDK a ``/data``, a ``/tmp``, a CDN and a
clock that the program controls. Importing this package imports nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulator.account import Emulator
    from emulator.settings import Settings

__all__ = ["Emulator", "Settings"]


def __getattr__(name: str) -> object:
    if name == "Emulator":
        try:
            from emulator.account import Emulator
        except (ImportError, AttributeError) as error:
            from emulator.reliance import explain

            if (explained := explain(error)) is None:
                raise
            raise explained from None
        return Emulator
    if name == "Settings":
        from emulator.settings import Settings

        return Settings
    raise AttributeError(
        f"module {__name__!r} (of pytest-fal, {__file__}) has no attribute {name!r}"
    )
