"""Whether a request is tried again, and what becomes of its runner: pure, by status and headers.

The table of platform facts §4.6 and fal's page on retries. A retry runs the handler again from the
start: whatever the first run has done, it does twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from emulator.fleets.options import CONDITIONS, Scaling

__all__ = ["ATTEMPTS", "ErrorType", "Outcome", "RetryPolicy", "Verdict", "judge"]

#: How often a request runs at most.
ATTEMPTS = 10

Condition = Literal["timeout", "server_error", "connection_error"]
#: What the gateway calls a request that its runner did not answer [§6.3].
ErrorType = Literal[
    "request_timeout",
    "startup_timeout",
    "runner_scheduling_failure",
    "runner_disconnected",
    "runner_connection_refused",
    "runner_connection_error",
    "runner_incomplete_response",
    "client_cancelled",
    "client_disconnected",
    "bad_request",
]
Fate = Literal["keep", "probe", "kill"]

_LOST: Mapping[str | None, Condition] = {
    "request_timeout": "timeout",
    "runner_disconnected": "server_error",
    "runner_connection_error": "connection_error",
}
_TRUE = ("1", "true", "yes")


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended: an answer of the app, or none."""

    #: None: the app did not answer.
    status: int | None
    #: Of the answer; lower-case names.
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Why there is no answer.
    error: ErrorType | None = None


@dataclass(frozen=True)
class RetryPolicy:
    """How often one request is tried again."""

    #: Direct calls never are.
    queued: bool = True
    #: ``X-Fal-No-Retry``.
    disabled: bool = False
    #: The app's ``skip_retry_conditions``.
    skipped: tuple[str, ...] = ()
    #: Condition: retries, of the caller's ``X-Fal-Retry-Config`` or the app's ``retry_config``.
    budgets: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, scaling: Scaling, headers: Mapping[str, str], queued: bool = True, owner: bool = True
    ) -> RetryPolicy:
        """The policy of a request.

        Args:
            headers: of the caller; lower-case names.
            owner: whether the app is the caller's own; else its retry configuration is ignored.
        """
        budgets = dict(scaling.retry_config)
        if owner:
            budgets |= _requested(headers.get("x-fal-retry-config"))
        disabled = headers.get("x-fal-no-retry", "").strip().lower() in _TRUE
        return cls(queued, disabled, scaling.skip_retry_conditions, budgets)


@dataclass(frozen=True)
class Verdict:
    """What follows from an outcome."""

    retry: bool
    #: The runner is kept, probed by TCP, or killed.
    runner: Fate
    #: What the retry is, or would be, about.
    condition: Condition | None
    #: In words, for people.
    why: str


def judge(
    outcome: Outcome,
    policy: RetryPolicy,
    earlier: tuple[str | None, ...] = (),
    after_503: Literal["killed", "kept"] = "killed",
) -> Verdict:
    """What follows from an outcome.

    Args:
        earlier: the condition of each attempt before this one.
        after_503: what becomes of a runner that answers 503 and does not say.
    """
    condition = _condition(outcome)
    retry, why = _retries(outcome, condition, policy, earlier)
    return Verdict(retry, _fate(outcome, after_503), condition, why)


def _fate(outcome: Outcome, after_503: str) -> Fate:
    if outcome.status is None:
        return "kill"
    stop = outcome.headers.get("x-fal-stop-runner", "").strip().lower()
    if stop in ("1", "true"):
        return "kill"
    if outcome.status == 503:
        return "keep" if stop in ("0", "false") or after_503 == "kept" else "kill"
    return "probe" if outcome.status in (500, 502, 504) else "keep"


def _condition(outcome: Outcome) -> Condition | None:
    if outcome.status is None:
        return _LOST.get(outcome.error)
    return "server_error" if outcome.status in (503, 504) else None


def _retries(
    outcome: Outcome,
    condition: Condition | None,
    policy: RetryPolicy,
    earlier: tuple[str | None, ...],
) -> tuple[bool, str]:
    asked = _asked(outcome)
    if asked is False:
        return False, "X-Fal-Needs-Retry: 0"
    if condition is None and not asked:
        return False, "an answer that is final"
    if not policy.queued:
        return False, "direct calls are never retried"
    if policy.disabled:
        return False, "X-Fal-No-Retry"
    if len(earlier) + 1 >= ATTEMPTS:
        return False, f"all {ATTEMPTS} attempts are used up"
    if asked:  # wins over the status and over skip_retry_conditions
        return True, "X-Fal-Needs-Retry: 1"
    assert condition is not None
    if condition in policy.skipped:
        return False, f"skip_retry_conditions has {condition}"
    budget = policy.budgets.get(condition)
    if budget is not None and earlier.count(condition) >= budget:
        return False, f"retry_config allows {budget} retries for {condition}"
    return True, condition


def _asked(outcome: Outcome) -> bool | None:
    """What the app wants; heard only on 5xx and 429."""
    if outcome.status is None or not (outcome.status >= 500 or outcome.status == 429):
        return None
    return {"1": True, "0": False}.get(outcome.headers.get("x-fal-needs-retry", "").strip())


def _requested(text: str | None) -> dict[str, int]:
    """The caller's budgets; whatever is malformed is ignored, as the platform does."""
    if text is None:
        return {}
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(entries, dict):
        return {}
    retries = {
        condition: entry["retries"]
        for condition, entry in entries.items()
        if condition in CONDITIONS and isinstance(entry, dict) and set(entry) == {"retries"}
    }
    return {
        condition: max(count, 0)
        for condition, count in retries.items()
        if isinstance(count, int) and not isinstance(count, bool)
    }
