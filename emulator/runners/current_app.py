"""The SDK's one current app a process, for several runners at once.

With one runner ``fal.ref.current_app`` is its app. With more it is a stand-in that finds the app of
the thread that asks, by its mount namespace: ``isinstance`` holds, but ``type()`` and ``is app`` do
not see through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["CurrentApp"]


class CurrentApp:
    """Behaves as the app of the runner that the calling thread is on, or as no app.

    Args:
        find: the app of the calling thread.
    """

    def __init__(self, find: Callable[[], Any]) -> None:
        object.__setattr__(self, "_find", find)

    def __bool__(self) -> bool:
        return self._find() is not None

    @property
    def __class__(self) -> Any:
        app = self._find()
        return CurrentApp if app is None else type(app)

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise TypeError("the current app's class cannot be set")

    def __getattr__(self, name: str) -> Any:
        app = self._find()
        if app is not None:
            return getattr(app, name)
        if name == "current_request":
            return None
        raise AttributeError(
            f"no app runs in this thread, so there is no current_app.{name}. Several runners are "
            f"alive; call it on one of them: runner.run(function)."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._find(), name, value)

    def __repr__(self) -> str:
        return f"<current app: {self._find()!r}>"
