"""The runners of one test: booting, finding the one a thread is on, shutting all down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx

from emulator.errors import EmulatorError
from emulator.runners.current_app import CurrentApp
from emulator.runners.output import OutputSplitter
from emulator.runners.runner import Runner
from emulator.runners.thread import ThreadRunner
from emulator.sdk import load_app_module, publish_current_app, quick_package_list
from emulator.storage import mounts
from emulator.storage.lifecycle import LIFECYCLE_PREFERENCE_HEADER, parse_preference

if TYPE_CHECKING:
    from emulator.identity import Identities
    from emulator.ledger import Ledger
    from emulator.settings import Settings
    from emulator.storage.disk import Disk
    from emulator.storage.distributed import Share

__all__ = ["Runners"]


class Runners:
    """Boots runners and knows them."""

    def __init__(
        self,
        disk: Disk,
        ledger: Ledger,
        identities: Identities,
        settings: Callable[[], Settings],
        place: Callable[[str, str | None, str | None], Share | None],
    ) -> None:
        self._disk = disk
        self._ledger = ledger
        self._identities = identities
        self._settings = settings
        self._place = place
        self.all: list[Runner] = []
        self._alive: dict[int, ThreadRunner] = {}
        self._names: dict[int, str] = {}
        self._count = 0
        self._environment: dict[str, str | None] = {}
        self._given: dict[str, str] = {}
        self._output = OutputSplitter(self._sink)
        self._stand_in = CurrentApp(self._app_here)

    def reset(self) -> None:
        """Forget the runners of the last test."""
        self.all.clear()
        self._alive.clear()
        self._names.clear()
        self._count = 0

    # --- who is here -----------------------------------------------------------------------------

    def number_here(self) -> int | None:
        """The number of the runner that the calling thread is on."""
        if not self._alive:
            return None
        number = mounts.current_namespace()
        return number if number in self._alive else None

    def name_here(self) -> str | None:
        """The name of the runner that the calling thread is on."""
        return self.name_of(self.number_here())

    def name_of(self, number: int | None) -> str | None:
        """The name of a runner."""
        return None if number is None else self._names.get(number)

    def backings(self) -> Iterator[str]:
        """Where all volumes really are; their files' times follow the clock."""
        if self._disk.directory is None:
            return
        yield str(self._disk.data.backing)
        yield str(self._disk.tmp.backing)
        for runner in self._alive.values():
            yield str(runner.tmp.backing)

    # --- booting ---------------------------------------------------------------------------------

    def boot(
        self,
        app: type,
        isolation: str,
        gpu: str | None,
        env: dict[str, str],
        placement: tuple[str | None, str | None] = (None, None),
    ) -> Runner:
        """Boot an app on a new runner; see ``Emulator.runner``."""
        module = load_app_module()
        _check(module, app, isolation, gpu)
        self._count += 1
        name = f"runner-{self._count}"
        self._set_environment(env)
        share = self._place(name, *placement)
        disk = self._disk.new_runner(name)
        disk.share = share
        settings = self._settings()
        if settings.tmp_size is not None:
            disk.tmp.limit(settings.tmp_size)
        headers, grace = self._gateway_headers(), self._grace(app)
        runner = ThreadRunner(name, app, disk, headers, self._changed, grace, self._intercept)
        self.all.append(runner)
        with quick_package_list():
            try:
                runner.start()
            except BaseException as error:
                if hasattr(error, "add_note"):
                    error.add_note(f"(in the setup of {app.__name__} on {name})")
                raise
        return runner

    def stop_all(self) -> None:
        """Shut down every runner that is still alive, the newest first; raises the first error."""
        errors = []
        for runner in reversed(self.all):
            try:
                runner.stop()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    # --- inside ----------------------------------------------------------------------------------

    def _changed(self, runner: ThreadRunner, state: str) -> None:
        """A runner's life went on (called from its thread or the test's)."""
        if state == "request":
            self._output.install()
            return
        if state == "END":
            self._forget(runner)
            return
        self._ledger.event("runner", f"{runner.name} {state}")
        if state == "SETUP" and runner.namespace is not None:
            self._alive[runner.namespace] = runner
            self._names[runner.namespace] = runner.name
            self._output.install()
            self._publish()
        elif state == "TERMINATED":
            # Also where the thread did not end: a blocking endpoint of a killed runner.
            self._forget(runner)
            if not self._alive:
                self._output.uninstall()
                self._restore_environment()

    def _forget(self, runner: ThreadRunner) -> None:
        self._alive.pop(runner.namespace or 0, None)
        self._publish()

    def _publish(self) -> None:
        """The SDK has one current app a process: the only one there is, or a stand-in."""
        apps = [runner.app for runner in self._alive.values()]
        publish_current_app(None if not apps else apps[0] if len(apps) == 1 else self._stand_in)

    def _app_here(self) -> Any:
        runner = self._alive.get(mounts.current_namespace())
        return None if runner is None else runner.app

    def _sink(self) -> list[str] | None:
        runner = self._alive.get(mounts.current_namespace())
        return None if runner is None else runner.printed

    def _gateway_headers(self) -> dict[str, str]:
        settings = self._settings()
        token = self._identities.issue(settings.nickname, settings.token_lifetime)
        return {
            "x-fal-endpoint": f"{settings.nickname}/{settings.app_name}",
            "x-fal-caller-user-id": settings.nickname,
            "x-fal-cdn-token": token.token,
        }

    def _intercept(self, runner: ThreadRunner, request: httpx.Request) -> httpx.Response | None:
        """Report, or refuse, a lifecycle preference of the caller's that is wrong.

        The app itself swallows one that it cannot read, and passes on any other [§8, pitfall 7].
        """
        text = request.headers.get(LIFECYCLE_PREFERENCE_HEADER)
        if text is None:
            return None
        malformed_lifecycle = self._settings().malformed_lifecycle
        parsed = parse_preference(
            {LIFECYCLE_PREFERENCE_HEADER: text}, malformed_lifecycle=malformed_lifecycle
        )
        call = f"{request.method} {request.url.path} to {runner.name}"
        for problem in parsed.problems:
            self._ledger.event("lifecycle", f"{call}: {problem}")
        if parsed.error is None or parsed.error[0] != 400:
            return None  # whether the gateway looks at the numbers is not known; uploads do
        return httpx.Response(400, json={"detail": parsed.error[1]}, request=request)

    def _grace(self, app: type) -> timedelta:
        own = getattr(app, "termination_grace_period_seconds", None)
        return timedelta(seconds=own) if own else self._settings().termination_grace_period

    def _set_environment(self, given: dict[str, str]) -> None:
        settings = self._settings()
        if not self._alive:
            self._given = {}
        for name, value in given.items():
            if self._given.get(name, value) != value:
                raise EmulatorError(
                    f"{name} is {self._given[name]!r} for a runner that is alive. Runners in "
                    f"threads share the process's environment: stop() the other one first, or "
                    f"give both the same env."
                )
        self._given.update(given)
        names = {
            "IS_ISOLATE_AGENT": "1",
            "FAL_APP_NAME": settings.app_name,
            "FAL_APP_ID": f"emulated-{settings.app_name}",
            "FAL_JOB_ID": "emulated-job",
            "FAL_USER_NICKNAME": settings.nickname,
            "FAL_HOST": "api.alpha.fal.ai",
            "FAL_REGION": settings.region,
            "HF_HOME": "/data/.cache/huggingface",
            **given,
        }
        for name in ("FAL_RUNNER_STATE", *names):
            self._environment.setdefault(name, os.environ.get(name))
        os.environ.update(names)

    def _restore_environment(self) -> None:
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment = {}


def _check(module: Any, app: object, isolation: str, gpu: str | None) -> None:
    if not (isinstance(app, type) and issubclass(app, module.App)):
        raise EmulatorError(
            f"fal_runner() boots a subclass of fal.App, and {app!r} is none. "
            f"Write for example fal_runner(MyApp), without instantiating it."
        )
    if isolation != "thread":
        raise EmulatorError(
            f"isolation={isolation!r} is not there yet. Write fal_runner({app.__name__}): the app "
            f'then runs in a thread with mounts of its own (isolation="thread").'
        )
    if gpu is not None:
        raise EmulatorError(
            f"gpu={gpu!r}: pretended GPUs are not there yet. Leave gpu out, or use "
            f"fal_cuda_runner on a machine that has one."
        )
