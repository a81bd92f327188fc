"""A runner as a test sees it: an app that was booted, its requests, its ``/tmp``, its end."""

from __future__ import annotations

import abc
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

import httpx

from emulator.errors import EmulatorError
from emulator.storage.volume import Volume

__all__ = ["Runner", "RunnerError", "RunnerFactory", "State"]

#: The states of platform facts §4.1 that a runner of its own goes through.
State = Literal["SETUP", "IDLE", "RUNNING", "DRAINING", "TERMINATED"]
Result = TypeVar("Result")


class RunnerError(EmulatorError):
    """A runner could not do what the test asked of it."""


class Runner(abc.ABC):
    """One runner with one app.

    Requests get the headers that fal's gateway adds (request id, endpoint, caller, CDN token)
    unless the test gives its own.
    """

    def __init__(self, name: str, app_class: type, tmp: Volume, gateway: Mapping[str, str]) -> None:
        self.name = name
        self.app_class = app_class
        #: This runner's ``/tmp``. Emptied when it shuts down.
        self.tmp = tmp
        self._gateway = dict(gateway)
        self._client: httpx.Client | None = None

    def __repr__(self) -> str:
        return f"<Runner {self.name} {self.app_class.__name__} {self.state}>"

    @property
    @abc.abstractmethod
    def state(self) -> State:
        """Where it is in its life."""

    @property
    @abc.abstractmethod
    def output(self) -> str:
        """What the app printed, to stdout and stderr."""

    @abc.abstractmethod
    def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a function on the runner: its ``/tmp``, its current app. Its result or exception."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Shut down as on SIGTERM: ``handle_exit``, requests in flight, ``teardown``.

        All of that within the termination grace period; what takes longer is killed.
        ``/tmp`` is lost, ``/data`` stays. A second call does nothing.
        """

    @abc.abstractmethod
    def kill(self) -> None:
        """End it at once: no ``handle_exit``, no ``teardown``; requests in flight fail."""

    @abc.abstractmethod
    def _transport(self) -> httpx.BaseTransport:
        """The way of requests into the app."""

    @property
    def client(self) -> httpx.Client:
        """An httpx client whose requests reach this app, as through the gateway."""
        if self._client is None:
            self._client = httpx.Client(
                transport=self._transport(),
                base_url=f"http://{self.name}.runner.fal",
                trust_env=False,
                timeout=None,
                event_hooks={"request": [self._add_gateway_headers]},
            )
        return self._client

    def post(
        self,
        path: str = "/",
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> httpx.Response:
        """POST to the app; fal's endpoints answer nothing else."""
        return self.client.post(path, json=json, headers=headers, **options)

    def get(
        self, path: str = "/health", headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """GET from the app; by default its health."""
        return self.client.get(path, headers=headers, **options)

    def _add_gateway_headers(self, request: httpx.Request) -> None:
        headers = request.headers
        headers.setdefault("x-fal-request-id", str(uuid.uuid4()))
        endpoint = self._gateway["x-fal-endpoint"] + request.url.path.rstrip("/")
        headers.setdefault("x-fal-endpoint", endpoint)
        for name, value in self._gateway.items():
            headers.setdefault(name, value)

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()


class RunnerFactory(Protocol):
    """``fal_runner``: boots an app on a new runner."""

    def __call__(
        self,
        app: type,
        *,
        isolation: str = "thread",
        gpu: str | None = None,
        env: Mapping[str, str] | None = None,
        server: str | None = None,
        datacenter: str | None = None,
    ) -> Runner:
        """Boot an app and wait until it is set up; see ``Emulator.runner``."""
