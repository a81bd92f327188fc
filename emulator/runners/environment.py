"""The environment variables of a runner [§4.8]: a process has its own, threads share the test's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from emulator.errors import EmulatorError
from emulator.network.nodejs_entrance import NODE_OPTIONS, options
from emulator.storage import programs

if TYPE_CHECKING:
    from emulator.gpus.machine_types import Pretended
    from emulator.settings import Settings

__all__ = ["SharedEnvironment", "variables"]


def variables(
    settings: Settings, given: Mapping[str, str], pretended: Pretended | None = None
) -> dict[str, str]:
    """What the platform sets, and over it what the test gives (secrets).

    Args:
        settings: the account's.
        given: by the test.
        pretended: the GPU of a runner that has an environment of its own.
    """
    return {
        **(pretended.environment if pretended else {}),
        "IS_ISOLATE_AGENT": "1",
        "FAL_APP_NAME": settings.app_name,
        "FAL_APP_ID": f"emulated-{settings.app_name}",
        "FAL_JOB_ID": "emulated-job",
        "FAL_USER_NICKNAME": settings.nickname,
        "FAL_HOST": "api.alpha.fal.ai",
        "FAL_REGION": settings.region,
        "HF_HOME": "/data/.cache/huggingface",
        **given,
        **({NODE_OPTIONS: options(given[NODE_OPTIONS])} if NODE_OPTIONS in given else {}),
        **({"PATH": _path(given)} if pretended else {}),
    }


def _path(given: Mapping[str, str]) -> str:
    return programs.put_first(given.get("PATH", os.environ.get("PATH")))


class SharedEnvironment:
    """The process's environment while runners in threads live in it."""

    def __init__(self) -> None:
        self._before: dict[str, str | None] = {}
        self._given: dict[str, str] = {}

    def enter(
        self, settings: Settings, given: Mapping[str, str], has_programs: bool, alone: bool
    ) -> None:
        """Set what a runner in a thread finds.

        Args:
            settings: the account's.
            given: by the test.
            has_programs: whether the runner has programs of its own.
            alone: whether no other runner in a thread is alive.

        Raises:
            EmulatorError: another one has another value of a variable.
        """
        if alone:
            self._given = {}
        for name, value in given.items():
            if self._given.get(name, value) != value:
                raise EmulatorError(
                    f"{name} is {self._given[name]!r} for a runner that is alive. Runners in "
                    f"threads share the process's environment: stop() the other one first, give "
                    f'both the same env, or write isolation="process".'
                )
        self._given.update(given)
        names = variables(settings, given)
        if has_programs or programs.is_first(os.environ.get("PATH")):  # another's, that is alive
            names["PATH"] = _path(given)
        for name in ("FAL_RUNNER_STATE", *names):
            self._before.setdefault(name, os.environ.get(name))
        os.environ.update(names)

    def leave(self) -> None:
        """Put back what was there before the first of them."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}
