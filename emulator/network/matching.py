"""Which requests a fault strikes: the matchers that every method of ``Faults`` takes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from emulator.errors import EmulatorError
from emulator.ledger import matches_path

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    from emulator.runners.runner import Runner

    class Matchers(TypedDict, total=False):
        """The matchers; see :class:`Which`."""

        times: int | None
        nth: int
        host: str
        method: str
        path: str
        runner: Runner | str
        address: str
        optional: bool


__all__ = ["Connection", "Target", "Which"]


class Target(Protocol):
    """What can be struck: an exchange, or a connection before its first request."""

    @property
    def host(self) -> str:
        """Host name."""

    @property
    def method(self) -> str | None:
        """Method; None while it is not known."""

    @property
    def path(self) -> str | None:
        """Path; None while it is not known."""

    @property
    def runner(self) -> str | None:
        """Name of the runner that it comes from."""

    @property
    def address(self) -> str | None:
        """The address that the client connects to."""


class Connection(NamedTuple):
    """A client that looks a name up, connects or shakes hands: its request is not known yet."""

    host: str
    address: str | None
    runner: str | None
    method: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class Which:
    """Which requests: all that fit every matcher given.

    Args:
        times: how many of them at most; default: all, or one where *nth* is given.
        nth: the first of them to strike, counted from 1 since the fault was injected.
        host: host name; one that begins with ``*`` fits by its end.
        method: HTTP method.
        path: path without the query; one that ends in ``*`` fits by its beginning.
        runner: the runner, or its name, that sends them.
        address: the address that the client has connected to.
        optional: it may well strike none; else one that never struck is reported.
    """

    times: int | None = None
    nth: int | None = None
    host: str | None = None
    method: str | None = None
    path: str | None = None
    runner: str | None = None
    address: str | None = None
    optional: bool = False

    @classmethod
    def of(cls, given: Any) -> Which:
        """Check and take over what a method was given.

        Raises:
            EmulatorError: there is no such matcher, or it can never fit.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise EmulatorError(
                f"{unknown[0]} is no matcher of a fault. There are {', '.join(known)}."
            )
        times, nth = given.get("times"), given.get("nth")
        if times is not None and times < 1:
            raise EmulatorError(
                f"A fault that strikes {times} times is none. Leave out times for all "
                "requests, or write for example times=1."
            )
        if nth is not None and nth < 1:
            raise EmulatorError(f"There is no request number {nth}. The first one is nth=1.")
        values = dict(given)
        if nth is not None:
            values.setdefault("times", 1)
        for name, change in (("host", str.lower), ("method", str.upper)):
            if values.get(name) is not None:
                values[name] = change(values[name])
        if values.get("runner") is not None:
            values["runner"] = getattr(values["runner"], "name", values["runner"])
        return cls(**values)

    @property
    def is_of_requests(self) -> bool:
        """Whether only a request can be told to fit, and no connection."""
        return self.method is not None or self.path is not None

    def fits(self, target: Target) -> bool:
        """Whether a target fits, however many did before."""
        return (
            (self.host is None or _fits_host(self.host, target.host))
            and self.method in (None, target.method)
            and (
                self.path is None
                or (target.path is not None and matches_path(self.path, target.path))
            )
            and self.runner in (None, target.runner)
            and self.address in (None, target.address)
        )

    def __str__(self) -> str:
        given = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return ", ".join(f"{name}={value!r}" for name, value in given if value)


def _fits_host(pattern: str, host: str) -> bool:
    if pattern.startswith("*"):
        return host.lower().endswith(pattern[1:])
    return host.lower() == pattern
