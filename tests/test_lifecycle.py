"""What fal's lifecycle header means: expiry, access and ranges, as pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from itertools import permutations
from typing import Any

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emulator.storage.lifecycle import (
    Acl,
    ByteRange,
    Decision,
    ParsedPreference,
    Rule,
    Unsatisfiable,
    decide,
    expires_at,
    is_expired,
    parse_acl,
    parse_preference,
    parse_range,
    rewrite_file_name,
    status_of,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
EXAMPLE = (
    '. Write for example {"expiration_duration_seconds": 3600, "initial_acl": {"default": "hide"}}'
)
PERMISSIVENESS: dict[Decision, int] = {"hide": 0, "forbid": 1, "allow": 2}

decisions = st.sampled_from(sorted(PERMISSIVENESS))
users = st.sampled_from(["ann", "bob", "cid"])  # few, so that rules and readers often meet
rules = st.builds(Rule, users, decisions)
acls = st.builds(Acl, decisions, st.lists(rules, max_size=5).map(tuple))
identities = st.frozensets(users)
# Both ends stay inside the calendar whatever the offset and the duration.
instants = st.datetimes(
    datetime(1971, 1, 1),
    datetime(2999, 1, 1),
    timezones=st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours))),
)
durations = st.integers(1, 10**9) | st.floats(0.001, 1e9)
sizes = st.integers(0, 40)


def parse(headers: Mapping[str, str], **settings: Any) -> ParsedPreference:
    return parse_preference(httpx.Headers(headers), **settings)


def expiring(value: object) -> dict[str, str]:
    return {"x-fal-object-lifecycle": json.dumps({"expiration_duration_seconds": value})}


# -- the header -------------------------------------------------------------------------------


def test_no_header_is_no_preference() -> None:
    assert parse({}) == ParsedPreference(None, (), None)


@pytest.mark.parametrize(
    "name",
    ["X-Fal-Object-Lifecycle", "x-fal-object-lifecycle-preference", "X-FAL-OBJECT-LIFECYCLE"],
)
def test_either_spelling_in_any_case_is_read(name: str) -> None:
    assert parse({name: '{"expiration_duration_seconds": 60}'}) == ParsedPreference(
        {"expiration_duration_seconds": 60}
    )


def test_both_spellings_may_say_the_same_in_other_words() -> None:
    parsed = parse(
        {
            "X-Fal-Object-Lifecycle": '{"expiration_duration_seconds": 60, "initial_acl": null}',
            "X-Fal-Object-Lifecycle-Preference": '{"initial_acl":null,'
            '"expiration_duration_seconds":60}',
        }
    )
    assert parsed.problems == ()


def test_of_two_that_differ_the_lifecycle_header_wins() -> None:
    parsed = parse(
        {
            "X-Fal-Object-Lifecycle-Preference": '{"expiration_duration_seconds": 1}',
            "X-Fal-Object-Lifecycle": '{"expiration_duration_seconds": 2}',
        }
    )
    assert parsed == ParsedPreference(
        {"expiration_duration_seconds": 2},
        (
            'X-Fal-Object-Lifecycle ({"expiration_duration_seconds": 2}) and '
            'X-Fal-Object-Lifecycle-Preference ({"expiration_duration_seconds": 1}) differ; '
            "the former was taken",
        ),
    )


def test_true_and_1_differ() -> None:
    parsed = parse(
        {
            "X-Fal-Object-Lifecycle": '{"allow_io_storage": true}',
            "X-Fal-Object-Lifecycle-Preference": '{"allow_io_storage": 1}',
        }
    )
    assert len(parsed.problems) == 1


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", '{"expiration_duration_seconds": NaN}'])
def test_what_is_not_json_is_reported(text: str) -> None:
    assert parse({"X-Fal-Object-Lifecycle": text}) == ParsedPreference(
        None, (f"the lifecycle preference is not JSON: {text}{EXAMPLE}",)
    )


@pytest.mark.parametrize("text", ["[" * 50_000, "1" * 5_000], ids=["depth", "digits"])
def test_what_python_cannot_read_is_reported(text: str) -> None:
    parsed = parse({"X-Fal-Object-Lifecycle": text})
    assert (parsed.preference, len(parsed.problems), parsed.error) == (None, 1, None)


@pytest.mark.parametrize("text", ["[]", "60", "null", '"1h"'])
def test_what_is_no_object_is_reported(text: str) -> None:
    assert parse({"X-Fal-Object-Lifecycle": text}) == ParsedPreference(
        None, (f"the lifecycle preference is not a JSON object: {text}{EXAMPLE}",)
    )


def test_unknown_keys_are_reported_and_kept() -> None:
    text = '{"expiration_seconds": 60, "allow_io_storage": false}'
    assert parse({"X-Fal-Object-Lifecycle": text}) == ParsedPreference(
        {"expiration_seconds": 60, "allow_io_storage": False},
        (
            "the lifecycle preference has an unknown key 'expiration_seconds'; the keys are "
            f"expiration_duration_seconds, initial_acl and allow_io_storage{EXAMPLE}",
        ),
    )


def test_problems_of_the_acl_are_reported() -> None:
    text = '{"initial_acl": {"default": "deny"}}'
    assert parse({"X-Fal-Object-Lifecycle": text}).problems == (
        "the ACL's default is not allow, forbid or hide: 'deny'",
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"initial_acl": 1}'])
def test_what_is_malformed_can_be_refused(text: str) -> None:
    parsed = parse({"X-Fal-Object-Lifecycle": text}, malformed_lifecycle="refuse")
    assert parsed.error == (400, parsed.problems[0])


def test_all_that_is_malformed_is_refused_at_once() -> None:
    text = '{"a": 1, "initial_acl": 1}'
    parsed = parse({"X-Fal-Object-Lifecycle": text}, malformed_lifecycle="refuse")
    assert len(parsed.problems) == 2
    assert parsed.error == (400, "; ".join(parsed.problems))


@pytest.mark.parametrize(("second", "problems"), [("1h", 1), ("2h", 2)])
def test_two_that_are_no_json_differ_if_their_texts_do(second: str, problems: int) -> None:
    headers = {"X-Fal-Object-Lifecycle": "1h", "X-Fal-Object-Lifecycle-Preference": second}
    assert len(parse(headers).problems) == problems


def test_two_headers_that_differ_are_not_malformed() -> None:
    headers = expiring(1) | {"X-Fal-Object-Lifecycle-Preference": "{}"}
    assert parse(headers, malformed_lifecycle="refuse").error is None


@pytest.mark.parametrize(
    ("value", "shown"), [(-1, "-1"), (-0.5, "-0.5"), ("60", '"60"'), (True, "true"), ([], "[]")]
)
def test_an_invalid_expiration_is_refused(value: object, shown: str) -> None:
    why = f"expiration_duration_seconds must be a number of seconds >= 0 or null, not {shown}"
    assert parse(expiring(value)) == ParsedPreference(
        {"expiration_duration_seconds": value}, (why,), (422, why)
    )


def test_a_number_too_large_for_a_float_is_refused() -> None:
    headers = {"X-Fal-Object-Lifecycle": '{"expiration_duration_seconds": 1e999}'}
    assert parse(headers).error is not None


def test_an_invalid_expiration_can_be_ignored() -> None:
    parsed = parse(expiring(-1), invalid_expiration="ignore")
    assert parsed == ParsedPreference(
        {},
        (
            "expiration_duration_seconds must be a number of seconds >= 0 or null, not -1; "
            "it was ignored",
        ),
    )


@pytest.mark.parametrize("value", [0, None, 0.5, 60, 31_536_000_000])
def test_a_valid_expiration_is_no_problem(value: float | None) -> None:
    assert parse(expiring(value)) == ParsedPreference({"expiration_duration_seconds": value})


# -- expiry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preference", [None, {}, {"initial_acl": None}])
def test_without_an_expiration_the_accounts_default_holds(
    preference: dict[str, Any] | None,
) -> None:
    assert expires_at(NOON, preference, 60) == NOON + timedelta(minutes=1)


@pytest.mark.parametrize("never", [0, 0.0, None])
def test_0_and_null_mean_never_whatever_the_account_says(never: float | None) -> None:
    assert expires_at(NOON, {"expiration_duration_seconds": never}, 60) is None


def test_without_any_default_a_file_stays() -> None:
    assert expires_at(NOON, None, None) is None


@pytest.mark.parametrize(
    "seconds", [31_536_000_000 * 100, 10**400, 1e300], ids=["js", "int", "float"]
)
def test_beyond_the_calendar_is_never(seconds: float) -> None:
    assert expires_at(NOON, {"expiration_duration_seconds": seconds}, None) is None


@pytest.mark.parametrize("seconds", [-1, True, "60", float("nan"), float("inf")])
def test_a_duration_that_is_none_is_refused(seconds: Any) -> None:
    with pytest.raises(ValueError) as caught:
        expires_at(NOON, {"expiration_duration_seconds": seconds}, None)
    assert str(caught.value) == (
        f"expiration_duration_seconds must be a number of seconds >= 0 or None, not {seconds!r}"
    )


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        expires_at(datetime(2026, 3, 1), None, 60)
    assert str(caught.value) == (
        "created has no time zone. Write: created.replace(tzinfo=timezone.utc)"
    )


@given(created=instants, seconds=durations, default=st.none() | durations)
def test_the_preference_counts_from_creation_in_utc(
    created: datetime, seconds: float, default: float | None
) -> None:
    deadline = expires_at(created, {"expiration_duration_seconds": seconds}, default)
    assert deadline is not None
    assert deadline.tzinfo is timezone.utc
    assert deadline - created == timedelta(seconds=seconds)


@given(created=instants, shorter=durations, longer=durations)
def test_a_longer_duration_never_expires_earlier(
    created: datetime, shorter: float, longer: float
) -> None:
    assume(shorter <= longer)
    first, second = (expires_at(created, None, seconds) for seconds in (shorter, longer))
    assert first is not None
    assert second is not None
    assert first <= second


@given(deadline=instants, lag=st.timedeltas(timedelta(0), timedelta(days=365)))
def test_expired_from_the_deadline_and_the_lag_on_to_the_microsecond(
    deadline: datetime, lag: timedelta
) -> None:
    assert is_expired(deadline, deadline + lag, lag)
    assert not is_expired(deadline, deadline + lag - timedelta(microseconds=1), lag)


@given(deadline=instants)
def test_without_a_lag_it_is_expired_from_the_deadline_on(deadline: datetime) -> None:
    assert is_expired(deadline, deadline)
    assert not is_expired(deadline, deadline - timedelta(microseconds=1))


@given(deadline=instants, one=instants, other=instants)
def test_what_has_expired_stays_expired(deadline: datetime, one: datetime, other: datetime) -> None:
    earlier, later = sorted((one, other))
    assert is_expired(deadline, later) >= is_expired(deadline, earlier)


@given(now=instants)
def test_what_never_expires_is_never_expired(now: datetime) -> None:
    assert not is_expired(None, now)


def test_the_end_of_the_calendar_and_a_lag_is_no_error() -> None:
    end = datetime.max.replace(tzinfo=timezone.utc)
    assert not is_expired(end, NOON, timedelta(days=1))


# -- access -----------------------------------------------------------------------------------


def test_an_acl_is_read() -> None:
    value = {"default": "hide", "rules": [{"user": "ann", "decision": "allow"}]}
    assert parse_acl(value) == (Acl("hide", (Rule("ann", "allow"),)), ())


def test_a_rule_may_say_action() -> None:
    value = {"default": "hide", "rules": [{"user": "ann", "action": "forbid"}]}
    assert parse_acl(value) == (Acl("hide", (Rule("ann", "forbid"),)), ())


def test_no_acl_is_none() -> None:
    assert parse_acl(None) == (None, ())


@pytest.mark.parametrize("value", [{}, {"rules": None}, {"rules": []}])
def test_an_acl_without_a_default_allows(value: dict[str, Any]) -> None:
    assert parse_acl(value) == (Acl("allow"), ())


@pytest.mark.parametrize(
    ("value", "acl", "problem"),
    [
        ("hide", None, """the ACL is not an object such as {"default": "hide"}: 'hide'"""),
        (
            {"public": 1},
            Acl(),
            "the ACL has an unknown key 'public'; the keys are default and rules",
        ),
        ({"default": 1}, Acl(), "the ACL's default is not allow, forbid or hide: 1"),
        ({"default": []}, Acl(), "the ACL's default is not allow, forbid or hide: []"),
        ({"rules": "ann"}, Acl(), "the ACL's rules are not a list: 'ann'"),
    ],
)
def test_what_is_wrong_with_an_acl_is_said(value: object, acl: Acl | None, problem: str) -> None:
    assert parse_acl(value) == (acl, (problem,))


@pytest.mark.parametrize(
    "entry", [1, {"user": "ann"}, {"decision": "hide"}, {"user": 1, "decision": "hide"}]
)
def test_a_wrong_rule_is_left_out_and_the_others_stay(entry: object) -> None:
    acl, problems = parse_acl({"rules": [entry, {"user": "bob", "decision": "hide"}]})
    assert acl == Acl("allow", (Rule("bob", "hide"),))
    assert problems == (
        f"an ACL rule needs a user and a decision of allow, forbid or hide: {entry!r}",
    )


@given(acl=acls)
def test_an_acl_survives_json(acl: Acl) -> None:
    assert parse_acl(json.loads(json.dumps(acl.to_json()))) == (acl, ())


def test_without_an_acl_everybody_reads() -> None:
    assert decide(None, ()) == "allow"


@given(acl=acls, identities=identities)
def test_the_owner_always_reads(acl: Acl, identities: frozenset[str]) -> None:
    assert decide(acl, identities, owner=True) == "allow"


@given(acl=acls, identities=identities)
def test_the_default_holds_exactly_when_no_rule_matches(
    acl: Acl, identities: frozenset[str]
) -> None:
    matching = [rule.decision for rule in acl.rules if rule.user in identities]
    expected = max(matching, key=PERMISSIVENESS.__getitem__) if matching else acl.default
    assert decide(acl, identities) == expected


@given(default=decisions, rules=st.lists(rules, max_size=4), identities=identities)
def test_the_order_of_rules_does_not_matter(
    default: Decision, rules: list[Rule], identities: frozenset[str]
) -> None:
    orders = permutations(rules)
    assert len({decide(Acl(default, order), identities) for order in orders}) == 1


@given(acl=acls, identities=identities, more=users)
def test_another_credential_never_takes_away_what_a_rule_gave(
    acl: Acl, identities: frozenset[str], more: str
) -> None:
    assume(any(rule.user in identities for rule in acl.rules))
    before, after = decide(acl, identities), decide(acl, identities | {more})
    assert PERMISSIVENESS[after] >= PERMISSIVENESS[before]


@given(acl=acls, identities=identities, default=decisions)
def test_a_more_permissive_default_never_takes_away(
    acl: Acl, identities: frozenset[str], default: Decision
) -> None:
    assume(PERMISSIVENESS[default] >= PERMISSIVENESS[acl.default])
    before, after = decide(acl, identities), decide(Acl(default, acl.rules), identities)
    assert PERMISSIVENESS[after] >= PERMISSIVENESS[before]


def test_one_string_of_identities_is_refused() -> None:
    with pytest.raises(TypeError) as caught:
        decide(Acl(), "ann")
    assert str(caught.value) == "identities is one string. Write: decide(acl, ['ann'])"


@pytest.mark.parametrize(("decision", "status"), [("allow", 200), ("forbid", 403), ("hide", 404)])
def test_status_of_a_read(decision: Decision, status: int) -> None:
    assert status_of(decision) == status


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("plain name.png", "plain name.png"),
        ("über.png", "?ber.png"),
        ("日本.png", "??.png"),
        ("🙂.png", "?.png"),
        ("\udcff.png", "?.png"),
    ],
)
def test_each_character_that_is_not_ascii_becomes_a_question_mark(name: str, kept: str) -> None:
    assert rewrite_file_name(name) == kept


@given(name=st.text())
def test_a_name_keeps_its_length_and_its_ascii(name: str) -> None:
    assert rewrite_file_name(name) == "".join(c if c.isascii() else "?" for c in name)


# -- ranges -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", ByteRange(0, 1, 10)),
        ("bytes=2-5", ByteRange(2, 6, 10)),
        ("bytes=2-", ByteRange(2, 10, 10)),
        ("bytes=9-99", ByteRange(9, 10, 10)),
        ("bytes=-3", ByteRange(7, 10, 10)),
        ("bytes=-99", ByteRange(0, 10, 10)),
        ("BYTES=2-5", ByteRange(2, 6, 10)),
        ("bytes= 2-5 ,", ByteRange(2, 6, 10)),
        ("bytes=10-", Unsatisfiable(10)),
        ("bytes=10-20", Unsatisfiable(10)),
        ("bytes=-0", Unsatisfiable(10)),
        (None, None),
        ("", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=5-2", None),
        ("bytes=20-12", None),
        ("bytes=0-1,4-5", None),
        ("bytes=a-b", None),
        ("bytes=+1-2", None),
        ("bytes=1-2-3", None),
        ("bytes=\u0661-\u0662", None),
        ("items=0-1", None),
        pytest.param("bytes=0-" + "9" * 5_000, None, id="digits"),
    ],
)
def test_ranges_of_ten_bytes(header: str | None, expected: object) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [("bytes=0-", Unsatisfiable(0)), ("bytes=-5", None), ("bytes=-0", Unsatisfiable(0))],
)
def test_ranges_of_nothing(header: str, expected: object) -> None:
    assert parse_range(header, 0) == expected


def test_a_range_says_its_headers() -> None:
    assert (ByteRange(2, 6, 10).content_range, ByteRange(2, 6, 10).length) == ("bytes 2-5/10", 4)
    assert Unsatisfiable(10).content_range == "bytes */10"


@given(first=sizes, count=st.integers(1, 40), size=sizes)
def test_a_range_is_what_a_slice_is(first: int, count: int, size: int) -> None:
    data = bytes(range(size))
    found = parse_range(f"bytes={first}-{first + count - 1}", size)
    wanted = data[first : first + count]
    if isinstance(found, ByteRange):
        assert data[found.start : found.end] == wanted != b""
        assert found.length == len(wanted)
    else:
        assert (found, wanted) == (Unsatisfiable(size), b"")


@given(count=st.integers(1, 80), size=st.integers(1, 40))
def test_a_suffix_is_what_a_slice_from_the_end_is(count: int, size: int) -> None:
    data = bytes(range(size))
    found = parse_range(f"bytes=-{count}", size)
    assert isinstance(found, ByteRange)
    assert data[found.start : found.end] == data[-count:]


@given(header=st.text(alphabet="bytes=0123456789-, \t", max_size=20), size=sizes)
def test_whatever_is_asked_a_range_lies_inside(header: str, size: int) -> None:
    found = parse_range(header, size)
    if isinstance(found, ByteRange):
        assert 0 <= found.start < found.end <= size
