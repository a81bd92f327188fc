"""The scaling options of a deployment, by fal's names, read from the App class [§4.4].

The SDK's ``fal/app.py`` and ``fal/sdk.py`` are the last word on names; what an App leaves out has
the platform's default here. Times are seconds, as the SDK has them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from emulator.errors import EmulatorError
from emulator.runners.limits import Limits

__all__ = ["CONDITIONS", "KEPT_ON_REDEPLOY", "Scaling"]

#: What a retry can be about [§4.6].
CONDITIONS = ("timeout", "server_error", "connection_error")

#: What a redeploy leaves as it is, unless told to reset the scale; the rest follows the code.
KEPT_ON_REDEPLOY = (
    "keep_alive",
    "min_concurrency",
    "max_concurrency",
    "concurrency_buffer",
    "concurrency_buffer_perc",
    "scaling_delay",
    "request_timeout",
    "request_start_timeout",
)

#: Name: smallest value, largest value (None: any), whether fractions make sense.
_BOUNDS: Mapping[str, tuple[float, float | None, bool]] = {
    "keep_alive": (0, None, True),
    "min_concurrency": (0, None, False),
    "max_concurrency": (1, None, False),
    "concurrency_buffer": (0, None, False),
    "concurrency_buffer_perc": (0, None, True),
    "max_multiplexing": (1, None, False),
    "scaling_delay": (0, None, True),
    "request_timeout": (0.001, None, True),
    "request_start_timeout": (0, None, True),
    "startup_timeout": (0.001, None, True),
    # Pages disagree: 30 s or an hour. The larger one does not refuse what the platform may allow.
    "termination_grace_period_seconds": (0, 3600, True),
}


@dataclass(frozen=True)
class Scaling:
    """How a deployment scales and retries; times in seconds."""

    #: A runner stays so long after its last request.
    keep_alive: float = 60
    #: Runners that are always there.
    min_concurrency: int = 0
    #: Runners that there are at most; unknown, 10 in an older reference.
    max_concurrency: int = 10
    #: Runners beyond what the requests need.
    concurrency_buffer: int = 0
    #: The same, in percent of the requests; the larger one counts.
    concurrency_buffer_perc: float = 0
    #: Requests that one runner has at once.
    max_multiplexing: int = 1
    #: A request waits so long before a runner is started for it.
    scaling_delay: float = 0
    #: A request may run so long; then its runner is killed.
    request_timeout: float = 3600
    #: The owner's requests may wait so long for a runner; None and 0: for ever.
    request_start_timeout: float | None = None
    #: ``setup`` may take so long.
    startup_timeout: float = 600
    #: From SIGTERM to SIGKILL; None: the account's setting.
    termination_grace_period_seconds: float | None = None
    #: Conditions under which nothing is retried.
    skip_retry_conditions: tuple[str, ...] = ()
    #: Condition: how many retries.
    retry_config: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(
        cls, app: type, given: Mapping[str, Any], account: Mapping[str, Any] | None = None
    ) -> Scaling:
        """The options of an App, those that are given instead.

        Args:
            account: what holds where neither says anything.

        Raises:
            EmulatorError: an option that fal does not have, or a value that makes no sense; says
                what to write.
        """
        names = [one.name for one in fields(cls)]
        for name in given:
            if name not in names:
                raise _unknown(name, names)
        values: dict[str, Any] = {"max_concurrency": 10, **(account or {})}
        for name in names:
            written = _declared(app, name)
            if name in given:
                values[name] = _checked(name, given[name], f"deploy(..., {name}=...)")
            elif written is not None:
                values[name] = _checked(name, written, f"{app.__name__}.{name}")
        if "max_concurrency" not in given and _declared(app, "max_concurrency") is None:
            least = values.get("min_concurrency", 0), values.get("concurrency_buffer", 0)
            values["max_concurrency"] = max(values["max_concurrency"], *least)
        return cls(**values)._consistent()

    def redeployed(self, app: type, given: Mapping[str, Any], reset_scale: bool) -> Scaling:
        """These options after a redeploy of other code [§4.4]."""
        account = {"max_concurrency": self.max_concurrency, "request_timeout": self.request_timeout}
        new = Scaling.of(app, given, account)
        if reset_scale:
            return new
        kept = {name: getattr(self, name) for name in KEPT_ON_REDEPLOY if name not in given}
        return replace(new, **kept)._consistent()

    @property
    def holds_runners(self) -> bool:
        """Whether runners are kept although there is nothing to do."""
        return self.min_concurrency > 0 or self.concurrency_buffer > 0

    def limits(self, grace: timedelta) -> Limits:
        """The limits of its runners; *grace* is the account's."""
        own = self.termination_grace_period_seconds
        return Limits(
            timedelta(seconds=self.startup_timeout),
            timedelta(seconds=self.request_timeout),
            grace if own is None else timedelta(seconds=own),
        )

    def _consistent(self) -> Scaling:
        for name in ("min_concurrency", "concurrency_buffer"):
            value = getattr(self, name)
            if value > self.max_concurrency:
                raise EmulatorError(
                    f"{name}={value} is more than max_concurrency={self.max_concurrency}, so there "
                    f"would never be so many. Write max_concurrency={value} or more."
                )
        return self


def _declared(app: type, name: str) -> Any:
    """What an App says, as class attribute or as ``class MyApp(fal.App, keep_alive=300)``."""
    value = getattr(app, "host_kwargs", {}).get(name)
    return getattr(app, name, None) if value is None else value


def _unknown(name: str, names: list[str]) -> EmulatorError:
    close = difflib.get_close_matches(name, names, 1)
    hint = f"Write {close[0]}=..." if close else f"There are {', '.join(names)}"
    return EmulatorError(f"{name!r} is no scaling option of fal's. {hint}.")


def _checked(name: str, value: Any, where: str) -> Any:
    if name == "skip_retry_conditions":
        return _conditions(value, where)
    if name == "retry_config":
        return _retry_config(value, where)
    if value is None and name in ("request_start_timeout", "termination_grace_period_seconds"):
        return None
    least, most, fractions = _BOUNDS[name]
    number = (int, float) if fractions else int
    fits = isinstance(value, number) and not isinstance(value, bool) and value >= least
    if not fits or (most is not None and value > most):
        kind = "a number" if fractions else "a whole number"
        upper = f" to {most:g}" if most is not None else " or more"
        low = "more than 0" if 0 < least < 1 else f"{least:g}{upper}"
        raise EmulatorError(f"{where} is {value!r} and has to be {kind}, {low}.")
    return value


def _conditions(value: Any, where: str) -> tuple[str, ...]:
    given = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    for one in given:
        if one not in CONDITIONS:
            raise EmulatorError(
                f"{where} has {one!r}, which is no condition. Write a list of some of: "
                f"{', '.join(CONDITIONS)}."
            )
    return tuple(given)


def _retry_config(value: Any, where: str) -> Mapping[str, int]:
    """The SDK's RetryConfig, or its dictionary; strict, as the SDK is when it deploys."""
    entries = value.to_dict() if hasattr(value, "to_dict") else value
    budgets = {}
    pairs = list(entries.items()) if isinstance(entries, Mapping) else []
    for condition, entry in pairs or [(None, None)]:
        retries = entry.get("retries") if isinstance(entry, Mapping) and len(entry) == 1 else None
        if condition not in CONDITIONS or type(retries) is not int:
            raise EmulatorError(
                f"{where} is {value!r}. Write for example "
                '{"server_error": {"retries": 3}, "timeout": {"retries": 0}}; the conditions are '
                f"{', '.join(CONDITIONS)}."
            )
        budgets[condition] = max(retries, 0)
    return MappingProxyType(budgets)
