"""The emulator of one pytest process: made when the first fixture asks, closed with the session."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from emulator.account import Emulator
    from emulator.settings import Settings

__all__ = ["close", "emulator_of", "lives_on", "settings_of"]

_emulator = pytest.StashKey["Emulator"]()
AUTHORITY = "fal_authority"


def emulator_of(request: pytest.FixtureRequest) -> Emulator:
    """The session's emulator."""
    config = request.config
    if _emulator not in config.stash:
        from emulator import Emulator  # says what a failing import of its own means
        from emulator.settings import Settings
        from pytest_fal import rungs

        # Before /tmp is mounted over for the first time: this may create the directory.
        factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
        root = factory.mktemp("fal", numbered=True)
        pem = getattr(config, "workerinput", {}).get(AUTHORITY)
        visible = [str(config.rootpath), str(factory.getbasetemp()), *_test_paths(config)]
        settings = Settings.model_validate({"filesystem": rungs.wanted(config)})
        config.stash[_emulator] = Emulator(settings, root=root, authority=pem, visible=visible)
    return config.stash[_emulator]


def lives_on(config: pytest.Config) -> set[str]:
    """What has been started so far and lives until the session ends."""
    if _emulator not in config.stash:
        return set()
    pid = config.stash[_emulator].fork_server
    return {"emulator"} if pid is None else {"emulator", f"fork server {pid}"}


def _test_paths(config: pytest.Config) -> list[str]:
    paths = [argument.split("::")[0] for argument in config.args]
    folders = {os.path.dirname(p) if os.path.isfile(p) else p for p in map(os.path.abspath, paths)}
    return sorted(folders)


def settings_of(request: pytest.FixtureRequest) -> Settings:
    """The settings that the test's ``fal`` markers name; the closest marker wins.

    Raises:
        pytest.UsageError: a marker names no setting, or a value that does not fit.
    """
    from pydantic import ValidationError

    from emulator.settings import Settings

    values: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("fal"))):
        if marker.args:
            raise pytest.UsageError(
                "@pytest.mark.fal takes settings by name, for example "
                "@pytest.mark.fal(account_expiration=timedelta(days=7))"
            )
        values.update(marker.kwargs)
    try:
        return Settings(**values)
    except ValidationError as error:
        problems = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
        known = ", ".join(sorted(Settings.model_fields))
        raise pytest.UsageError(
            f"@pytest.mark.fal: {problems}. The settings are {known}."
        ) from None


def close(config: pytest.Config) -> None:
    """Close the emulator, if one was made."""
    emulator = config.stash.get(_emulator, None)
    if emulator is not None:
        del config.stash[_emulator]
        emulator.close()
