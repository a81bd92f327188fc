"""``App.spawn()``, and with it ``AppClient.connect``: an app for a while, under a name of its own.

The SDK spawns over gRPC, by means of C that nothing in Python sees. So one method of ``fal.App`` is
replaced while an emulation is around the process: it deploys the app at the gateway. What it
returns is the SDK's own, and so is everything that is done with it.

The only module that knows how the SDK spawns (seen: fal 1.75.5 to 1.83.0). It looks at modules that
are loaded already and imports none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from emulator.errors import EmulatorError
from emulator.runners.output import is_noise, readable

if TYPE_CHECKING:
    from emulator.fleets.deployment import Deployment
    from emulator.fleets.gateway import Gateway
    from emulator.runners.log import Line
    from emulator.settings import Settings

__all__ = ["Spawning", "take_over"]


class Spawning:
    """Stands in for the SDK's way of spawning while installed.

    Args:
        gateway: where apps are deployed.
        settings: the account's, as they are now.
    """

    def __init__(self, gateway: Gateway, settings: Callable[[], Settings]) -> None:
        self._gateway = gateway
        self._settings = settings
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Take over, if the SDK is loaded."""
        _installed.append(self)
        self._undo = take_over()

    def uninstall(self) -> None:
        """Give back."""
        _installed.clear()
        for undo in self._undo:
            undo()
        self._undo = []

    def spawn(self, app: Any) -> Any:
        """Deploy an app; what ``App.spawn`` returns."""
        fal_app: Any = sys.modules["fal.app"]
        info = fal_app.SpawnInfo()
        deployment = self._gateway.deploy(
            self._name(app), app, on_output=lambda line: _tell(info.logs, line)
        )
        info.stream = _Stream(deployment)
        info.url = deployment.url
        return fal_app.AppSpawnInfo(info)

    def _name(self, app: Any) -> str:
        """A name that nothing is deployed under: the platform gives each spawn another one."""
        base = f"{self._settings().nickname}/{app.app_name}"
        names = (f"{base}-{number}" for number in count(1))
        return next(name for name in names if name not in self._gateway.deployments)


#: The one that is installed in this process; none in those of runners.
_installed: list[Spawning] = []


def take_over() -> list[Callable[[], None]]:
    """Replace what the SDK spawns with, as far as it is loaded; what puts it back."""
    app = getattr(sys.modules.get("fal.app"), "App", None)
    host = getattr(sys.modules.get("fal.api"), "FalServerlessHost", None)
    undo: list[Callable[[], None]] = []
    for owner, value in ((app, classmethod(_spawn)), (host, _refuse)):
        if owner is not None:
            undo.append(partial(setattr, owner, "spawn", vars(owner)["spawn"]))
            owner.spawn = value
    return undo


def _spawn(cls: Any) -> Any:
    """Stands in for ``App.spawn``. No method: an app goes to a process with the SDK's classes."""
    if not _installed:
        raise EmulatorError(
            f"{cls.__name__}.spawn() was called on a runner in a process, where it is not "
            "emulated. Spawn it in the test, and tell the app its url."
        )
    return _installed[0].spawn(cls)


class _Stream:
    """The run of a spawned app, as far as its caller holds it."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def cancel(self) -> bool:
        """End it: the app is undeployed."""
        self._deployment.undeploy()
        return True


def _tell(logs: Any, line: Line) -> None:
    """Hand on a line as the platform does."""
    if not line.text or is_noise(line.text):
        return
    isolate: Any = sys.modules["isolate.logs"]
    logs.put(
        isolate.Log(
            readable(line.text),
            source=isolate.LogSource.USER,
            level=isolate.LogLevel[line.level],
            timestamp=line.at,
        )
    )


def _refuse(_host: object, func: Any, *_: object, **__: object) -> None:
    name = getattr(func, "__name__", "function")
    raise EmulatorError(
        f"{name}.spawn() runs a function on the platform, and only apps are emulated. Run it here "
        f"with {name}.func(...), or make it an endpoint of a fal.App and write MyApp.spawn()."
    )
