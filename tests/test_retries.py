"""What a status, a loss and the headers of both sides come to: the table of facts §4.6."""

from __future__ import annotations

import json

import pytest

from emulator.fleets.options import Scaling
from emulator.fleets.retries import ATTEMPTS, Outcome, RetryPolicy, judge

QUEUED = RetryPolicy()
DIRECT = RetryPolicy(queued=False)


def answered(status, **headers):
    return Outcome(status, {name.replace("_", "-"): value for name, value in headers.items()})


def lost(error):
    return Outcome(None, error=error)


@pytest.mark.parametrize(
    ("outcome", "runner", "retried"),
    [
        pytest.param(answered(200), "keep", False, id="2xx: healthy, final"),
        pytest.param(answered(302), "keep", False, id="3xx: healthy, final"),
        pytest.param(answered(404), "keep", False, id="404: healthy, final"),
        pytest.param(answered(422), "keep", False, id="422: healthy, final"),
        pytest.param(answered(429), "keep", False, id="429: healthy, final"),
        pytest.param(answered(499), "keep", False, id="499: healthy, final"),
        pytest.param(answered(500), "probe", False, id="500: TCP probe, not retried"),
        pytest.param(answered(502), "probe", False, id="502: TCP probe, not retried"),
        pytest.param(answered(503), "kill", True, id="503: runner killed, retried"),
        pytest.param(answered(504), "probe", True, id="504: TCP probe, retried"),
        pytest.param(lost("runner_disconnected"), "kill", True, id="crash: replaced, retried"),
        pytest.param(
            lost("runner_connection_error"), "kill", True, id="connection lost: replaced, retried"
        ),
        pytest.param(lost("request_timeout"), "kill", True, id="time-out: killed, retried"),
    ],
)
def test_the_table(outcome, runner, retried):
    queued, direct = judge(outcome, QUEUED), judge(outcome, DIRECT)
    assert (queued.runner, queued.retry) == (runner, retried)
    assert (direct.runner, direct.retry) == (runner, False), "direct calls are never retried"
    why = "direct calls are never retried" if retried else "an answer that is final"
    assert direct.why == why


def test_why_an_answer_is_not_tried_again():
    assert judge(answered(404), QUEUED).why == "an answer that is final"
    assert judge(answered(503), QUEUED).why == "server_error"


def test_a_503_may_leave_the_runner():
    verdict = judge(answered(503), QUEUED, after_503="kept")
    assert (verdict.runner, verdict.retry) == ("keep", True)


@pytest.mark.parametrize(
    ("outcome", "condition"),
    [
        (answered(503), "server_error"),
        (answered(504), "server_error"),
        (lost("runner_disconnected"), "server_error"),
        (lost("request_timeout"), "timeout"),
        (lost("runner_connection_error"), "connection_error"),
        (answered(500), None),
        (answered(200), None),
    ],
)
def test_conditions(outcome, condition):
    assert judge(outcome, QUEUED).condition == condition


def test_a_request_runs_ten_times_at_most():
    earlier = ("server_error",) * (ATTEMPTS - 2)
    assert judge(answered(503), QUEUED, earlier).retry
    last = judge(answered(503), QUEUED, (*earlier, "server_error"))
    assert (last.retry, last.why) == (False, "all 10 attempts are used up")


# --- what the app says ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 429, 503])
@pytest.mark.parametrize("value", ["1", " 1 "])
def test_needs_retry_1_forces_a_retry(status, value):
    verdict = judge(answered(status, x_fal_needs_retry=value), QUEUED)
    assert (verdict.retry, verdict.why) == (True, "X-Fal-Needs-Retry: 1")


@pytest.mark.parametrize("status", [503, 504])
def test_needs_retry_0_prevents_one(status):
    verdict = judge(answered(status, x_fal_needs_retry="0"), QUEUED)
    assert (verdict.retry, verdict.why) == (False, "X-Fal-Needs-Retry: 0")


@pytest.mark.parametrize("status", [200, 302, 400, 404, 422, 499])
def test_needs_retry_is_only_heard_on_5xx_and_429(status):
    assert not judge(answered(status, x_fal_needs_retry="1"), QUEUED).retry


def test_needs_retry_wins_over_skip_retry_conditions():
    policy = RetryPolicy(skipped=("server_error",))
    assert judge(answered(503, x_fal_needs_retry="1"), policy).retry


def test_needs_retry_does_not_win_over_the_most_attempts():
    assert not judge(answered(503, x_fal_needs_retry="1"), QUEUED, (None,) * 9).retry


@pytest.mark.parametrize("value", ["1", "true", " True "])
def test_stop_runner_kills_whatever_the_status(value):
    verdict = judge(answered(200, x_fal_stop_runner=value), QUEUED)
    assert (verdict.runner, verdict.retry) == ("kill", False)


@pytest.mark.parametrize("value", ["0", "false"])
def test_stop_runner_false_keeps_the_runner_and_the_retry_of_a_503(value):
    verdict = judge(answered(503, x_fal_stop_runner=value), QUEUED)
    assert (verdict.runner, verdict.retry) == ("keep", True)


# --- what the app's options say -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "outcome"),
    [
        ("timeout", lost("request_timeout")),
        ("server_error", answered(503)),
        ("connection_error", lost("runner_connection_error")),
    ],
)
def test_skip_retry_conditions(condition, outcome):
    verdict = judge(outcome, RetryPolicy(skipped=(condition,)))
    assert (verdict.retry, verdict.why) == (False, f"skip_retry_conditions has {condition}")


def test_retries_are_counted_beside_the_first_attempt():
    policy = RetryPolicy(budgets={"server_error": 1})
    assert judge(answered(503), policy).retry
    verdict = judge(answered(503), policy, ("server_error",))
    why = "retry_config allows 1 retries for server_error"
    assert (verdict.retry, verdict.why) == (False, why)


def test_each_condition_has_a_budget_of_its_own():
    policy = RetryPolicy(budgets={"server_error": 1, "timeout": 1})
    assert judge(lost("request_timeout"), policy, ("server_error",)).retry


def test_a_condition_that_is_left_out_has_the_platforms():
    assert judge(lost("request_timeout"), RetryPolicy(budgets={"server_error": 0})).retry


# --- what the caller says -------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "true", "yes", " TRUE "])
def test_no_retry_wins_over_everything(value):
    config = json.dumps({"server_error": {"retries": 3}})
    headers = {"x-fal-no-retry": value, "x-fal-retry-config": config}
    policy = RetryPolicy.of(Scaling(), headers)
    verdict = judge(answered(503, x_fal_needs_retry="1"), policy)
    assert (verdict.retry, verdict.why) == (False, "X-Fal-No-Retry")


@pytest.mark.parametrize("value", ["0", "no", ""])
def test_other_values_of_no_retry_mean_nothing(value):
    assert not RetryPolicy.of(Scaling(), {"x-fal-no-retry": value}).disabled


def test_the_callers_retry_config_wins_over_the_apps():
    scaling = Scaling(retry_config={"server_error": 5, "timeout": 1})
    header = json.dumps({"server_error": {"retries": 0}})
    policy = RetryPolicy.of(scaling, {"x-fal-retry-config": header})
    assert policy.budgets == {"server_error": 0, "timeout": 1}


def test_a_retry_config_that_is_too_deep_is_ignored():
    headers = {"x-fal-retry-config": "[" * 100_000}
    assert RetryPolicy.of(Scaling(retry_config={"timeout": 1}), headers).budgets == {"timeout": 1}


@pytest.mark.parametrize(("retries", "budget"), [(3, 3), (1, 1), (0, 0), (-1, 0)])
def test_the_callers_number_of_retries(retries, budget):
    header = json.dumps({"timeout": {"retries": retries}})
    policy = RetryPolicy.of(Scaling(), {"x-fal-retry-config": header})
    assert policy.budgets == {"timeout": budget}


def test_other_peoples_retry_config_is_ignored():
    header = json.dumps({"server_error": {"retries": 0}})
    assert not RetryPolicy.of(Scaling(), {"x-fal-retry-config": header}, owner=False).budgets


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"server_error": 3}',
        '{"server_error": {"retries": "3"}}',
        '{"server_error": {"retries": true}}',
        '{"server_error": {"retries": 1, "wait": 2}}',
        '{"503": {"retries": 3}}',
    ],
)
def test_a_malformed_retry_config_is_ignored(text):
    assert not RetryPolicy.of(Scaling(), {"x-fal-retry-config": text}).budgets
