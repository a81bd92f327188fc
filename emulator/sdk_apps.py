"""The SDK's apps: how they are sent, loaded and made the current one."""

from __future__ import annotations

import importlib
import importlib.metadata
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from emulator.errors import EmulatorError
from emulator.reliance import check_loaded

if TYPE_CHECKING:
    from emulator.runners.pickling import Sender

__all__ = [
    "app_of",
    "load_app",
    "load_app_module",
    "pickle_app",
    "publish_current_app",
    "quick_package_list",
    "tell_fal_client",
    "warm_package_list",
]


def load_app_module() -> Any:
    """``fal.app``, imported now if it was not.

    Raises:
        EmulatorError: fal is not installed, or not as we know it.
    """
    try:
        import fal.app
    except ImportError as error:
        raise EmulatorError(
            "a runner needs the fal SDK, which cannot be imported here. Run: pip install fal"
        ) from error
    check_loaded("fal.app")
    return fal.app


def publish_current_app(app: object) -> None:
    """Make *app* what ``fal.ref.get_current_app()`` returns.

    Not through ``set_current_app``, which insists on one app a process.
    """
    sys.modules["fal.ref"].current_app = app  # type: ignore[attr-defined]


def tell_fal_client(app_here: Callable[[], Any]) -> None:
    """Have fal_client ask for the app of the calling thread, and not for the one of the process.

    The test calls from outside of all apps: no request's token is to go along with its calls, and
    none that comes back is the app's.
    """
    headers = sys.modules.get("fal_client._headers")
    if headers is not None:
        headers.set_get_current_app(app_here)


def pickle_app(app: Any, sender: Sender) -> bytes:
    """An app as the SDK sends it to the platform: the function that makes and serves it, pickled.

    The app's own module goes by value, and so does the SDK [study §0, 5].

    Raises:
        EmulatorError: it cannot be pickled; says what to write.
    """
    from emulator.runners.pickling import by_value

    options = dict(app.host_kwargs)
    try:
        with by_value(app):
            serve = load_app_module().wrap_app(app).func
            # The copy of the SDK that goes along knows no app yet, whatever runs here.
            return sender.dumps(serve, without=sys.modules["fal.ref"].current_app)
    except Exception as error:
        raise EmulatorError(
            f"{app.__name__} cannot be pickled, as `fal run` and `fal deploy` do to send it to the "
            f"platform: {error!r}. Make what it refers to picklable (import it inside the method, "
            f'or make it in setup()), or let the runner import the app: load="import".'
        ) from error
    finally:
        app.host_kwargs = options  # wrap_app of fal < 1.81.4 changes them


def load_app(app: bytes | tuple[str, str]) -> Callable[[], Any]:
    """The function that makes and serves an app; called once, on the main thread.

    Args:
        app: pickled by :func:`pickle_app`, or the module and qualified name to import.
    """
    if isinstance(app, bytes):
        loaded: Callable[[], Any] = pickle.loads(app)
        return loaded
    module_name, name = app
    found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        found = getattr(found, part)
    imported: Callable[[], Any] = load_app_module().wrap_app(found).func
    return imported


def app_of(serve: Callable[[], Any] | None) -> Any:
    """The app that a function of :func:`load_app` has made; None before.

    It is the current app of the SDK as that function has it, which for a pickled one is a copy.
    """
    names = getattr(serve, "__globals__", {})
    setter = names.get("set_current_app")
    return getattr(setter, "__globals__", {}).get("current_app")


@contextmanager
def quick_package_list() -> Iterator[None]:
    """Let the SDK print the installed packages without reading their metadata at every boot.

    That is 45 of a boot's 48 ms, and the list does not change within a run.
    """
    with _boots:
        if not _real_distributions:
            _real_distributions.append(importlib.metadata.distributions)
        else:  # another boot is under way
            _real_distributions.append(_real_distributions[0])
        real = _real_distributions[0]

        def distributions(**options: Any) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__")
            if caller == "fal.app" and not options:
                return _installed_packages(real)
            return real(**options)

        importlib.metadata.distributions = distributions
    try:
        yield
    finally:
        with _boots:
            _real_distributions.pop()
            if not _real_distributions:
                importlib.metadata.distributions = real


_boots = threading.Lock()
#: One entry for each boot under way.
_real_distributions: list[Callable[..., Any]] = []


class _Package:
    """What the SDK's list needs of a distribution."""

    def __init__(self, name: str, version: str) -> None:
        self.metadata = {"Name": name}
        self.version = version


_packages: list[_Package] = []


def warm_package_list() -> None:
    """Read the list now, for all processes that are forked from this one."""
    _installed_packages(importlib.metadata.distributions)


def _installed_packages(real: Callable[[], Any]) -> list[_Package]:
    if not _packages:
        _packages.extend(_Package(d.metadata["Name"], d.version) for d in real())
    return _packages
