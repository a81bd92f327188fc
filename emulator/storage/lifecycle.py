"""What fal's object lifecycle means: when a file expires, and who may read it.

Pure functions of headers, metadata and clock; nothing is read or written here. The rules are
those of platform-facts 1.9 (lifecycle header), 1.10 (access control lists) and 1.11 (ranges);
where the platform's answer is not known, section 10 there gives the default and the caller's
settings the alternative.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, NoReturn, Protocol, TypeAlias, TypeGuard

__all__ = [
    "LIFECYCLE_HEADER",
    "LIFECYCLE_PREFERENCE_HEADER",
    "Acl",
    "ByteRange",
    "Decision",
    "ParsedPreference",
    "Rule",
    "Unsatisfiable",
    "decide",
    "expires_at",
    "is_expired",
    "parse_acl",
    "parse_preference",
    "parse_range",
    "rewrite_file_name",
    "status_of",
]

LIFECYCLE_HEADER = "X-Fal-Object-Lifecycle"
LIFECYCLE_PREFERENCE_HEADER = "X-Fal-Object-Lifecycle-Preference"

_EXPIRATION = "expiration_duration_seconds"
_ACL = "initial_acl"
_KNOWN_KEYS = (_EXPIRATION, _ACL, "allow_io_storage")
_ACL_KEYS = ("default", "rules")
_EXAMPLE = f'. Write for example {{"{_EXPIRATION}": 3600, "{_ACL}": {{"default": "hide"}}}}'

Decision: TypeAlias = Literal["allow", "forbid", "hide"]
_STATUS: dict[Decision, int] = {"allow": 200, "forbid": 403, "hide": 404}
_MOST_PERMISSIVE_FIRST: tuple[Decision, ...] = ("allow", "forbid", "hide")


# -- the header -------------------------------------------------------------------------------


class Headers(Protocol):
    """Request headers whose names may be asked for in any case, such as ``httpx.Headers``."""

    def get(self, name: str, /) -> str | None:
        """The value of a header, or None."""


@dataclass(frozen=True)
class ParsedPreference:
    """A lifecycle preference as it was sent, what is wrong with it, and whether to refuse it.

    ``preference`` None: none was sent, or none that could be read, so the account's default
    holds. ``problems`` are sentences for the report of a test. ``error`` is the status and the
    detail to answer instead of accepting the upload.
    """

    preference: dict[str, Any] | None = None
    problems: tuple[str, ...] = ()
    error: tuple[int, str] | None = None


def parse_preference(
    headers: Headers,
    *,
    malformed_lifecycle: Literal["report", "refuse"] = "report",
    invalid_expiration: Literal["refuse", "ignore"] = "refuse",
) -> ParsedPreference:
    """The preference in either spelling of the header; ``X-Fal-Object-Lifecycle`` wins.

    What is malformed (no JSON, no object, an unknown key, an unreadable ACL) is reported, or
    refused with 400. An expiration that is no number or negative is refused with 422, or
    reported and left out, so that the account's default holds.
    """
    text, differing = _choose(headers)
    if text is None:
        return ParsedPreference()
    try:
        preference = _json_object(text)
    except ValueError as error:
        unreadable = str(error)
        refusal = (400, unreadable) if malformed_lifecycle == "refuse" else None
        return ParsedPreference(None, (*differing, unreadable), refusal)

    malformed = _malformed_parts(preference)
    if malformed and malformed_lifecycle == "refuse":
        return ParsedPreference(preference, differing + malformed, (400, "; ".join(malformed)))
    problems = differing + malformed
    wrong = _wrong_expiration(preference)
    if wrong is None:
        return ParsedPreference(preference, problems)
    if invalid_expiration == "refuse":
        return ParsedPreference(preference, (*problems, wrong), (422, wrong))
    del preference[_EXPIRATION]
    return ParsedPreference(preference, (*problems, f"{wrong}; it was ignored"))


def _choose(headers: Headers) -> tuple[str | None, tuple[str, ...]]:
    first = headers.get(LIFECYCLE_HEADER)
    second = headers.get(LIFECYCLE_PREFERENCE_HEADER)
    if first is None or second is None:
        return (second if first is None else first), ()
    if _same_json(first, second):
        return first, ()
    return first, (
        f"{LIFECYCLE_HEADER} ({first}) and {LIFECYCLE_PREFERENCE_HEADER} ({second}) differ; "
        "the former was taken",
    )


def _same_json(first: str, second: str) -> bool:
    if first == second:
        return True
    try:
        return _canonical(_json_object(first)) == _canonical(_json_object(second))
    except ValueError:
        return False


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_such_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the lifecycle preference is not JSON: {text}{_EXAMPLE}") from error
    if not isinstance(value, dict):
        raise ValueError(f"the lifecycle preference is not a JSON object: {text}{_EXAMPLE}")
    return value


def _no_such_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _malformed_parts(preference: dict[str, Any]) -> tuple[str, ...]:
    unknown = tuple(
        f"the lifecycle preference has an unknown key {key!r}; the keys are {_EXPIRATION}, {_ACL} "
        f"and allow_io_storage{_EXAMPLE}"
        for key in preference
        if key not in _KNOWN_KEYS
    )
    return unknown + parse_acl(preference.get(_ACL))[1]


def _wrong_expiration(preference: dict[str, Any]) -> str | None:
    seconds = preference.get(_EXPIRATION)
    if seconds is None or _is_duration(seconds):
        return None
    return f"{_EXPIRATION} must be a number of seconds >= 0 or null, not {json.dumps(seconds)}"


def _is_duration(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value >= 0 and (isinstance(value, int) or math.isfinite(value))


# -- expiry -----------------------------------------------------------------------------------


def expires_at(
    created: datetime, preference: dict[str, Any] | None, account_default_seconds: float | None
) -> datetime | None:
    """When an object expires, in UTC; None for never.

    Counted from creation. A preference that names an expiration overrides the account's default,
    and 0 and null there mean never; without one the default holds. A time beyond the calendar
    (year 9999) means never too. Raises ``ValueError`` for a duration that is no number or
    negative, and for a ``created`` without a time zone.
    """
    if created.tzinfo is None:
        raise ValueError("created has no time zone. Write: created.replace(tzinfo=timezone.utc)")
    seconds = (preference or {}).get(_EXPIRATION, account_default_seconds)
    if seconds is None:
        return None
    if not _is_duration(seconds):
        raise ValueError(f"{_EXPIRATION} must be a number of seconds >= 0 or None, not {seconds!r}")
    if seconds == 0:
        return None
    try:
        return created.astimezone(timezone.utc) + timedelta(seconds=seconds)
    except OverflowError:
        return None


def is_expired(expires_at: datetime | None, now: datetime, lag: timedelta = timedelta(0)) -> bool:
    """Whether an object is gone at ``now``: from ``lag`` after its deadline on, to the instant."""
    return expires_at is not None and now - expires_at >= lag


# -- access -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What one user, by nickname or id, gets."""

    user: str
    decision: Decision


@dataclass(frozen=True)
class Acl:
    """Who may read an object: rules for users, and a default for whoever matches none."""

    default: Decision = "allow"
    rules: tuple[Rule, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The form that the platform takes and answers with; ``parse_acl`` reads it back."""
        rules = [{"user": rule.user, "decision": rule.decision} for rule in self.rules]
        return {"default": self.default, "rules": rules}


def parse_acl(value: object) -> tuple[Acl | None, tuple[str, ...]]:
    """An ACL from its JSON form, and what is wrong with it.

    None is no ACL: public. A missing default is "allow", as fal_client sends ACLs of rules
    alone. A rule may say ``action`` for ``decision``, as newer fixtures of fal do. What cannot
    be read is left out and reported: a wrong default counts as "allow", a wrong rule as none.
    """
    if value is None:
        return None, ()
    if not isinstance(value, dict):
        return None, (f'the ACL is not an object such as {{"default": "hide"}}: {value!r}',)
    problems = [
        f"the ACL has an unknown key {key!r}; the keys are default and rules"
        for key in value
        if key not in _ACL_KEYS
    ]
    default = value.get("default", "allow")
    if not _is_decision(default):
        problems.append(f"the ACL's default is not allow, forbid or hide: {default!r}")
        default = "allow"
    written = value.get("rules")
    if written is not None and not isinstance(written, list | tuple):
        problems.append(f"the ACL's rules are not a list: {written!r}")
        written = None
    rules = [_parse_rule(entry, problems) for entry in written or ()]
    return Acl(default, tuple(rule for rule in rules if rule is not None)), tuple(problems)


def _parse_rule(entry: object, problems: list[str]) -> Rule | None:
    if isinstance(entry, dict):
        user = entry.get("user")
        decision = entry.get("decision", entry.get("action"))
        if isinstance(user, str) and _is_decision(decision):
            return Rule(user, decision)
    problems.append(f"an ACL rule needs a user and a decision of allow, forbid or hide: {entry!r}")
    return None


def _is_decision(value: object) -> TypeGuard[Decision]:
    return isinstance(value, str) and value in _STATUS


def decide(acl: Acl | None, identities: Collection[str], owner: bool = False) -> Decision:
    """What a reader gets who is known by these nicknames and ids (none: anonymous).

    The owner always reads. The default applies only if no identity matches a rule; if several
    rules match, the most permissive decision holds: allow, then forbid, then hide.
    """
    if isinstance(identities, str):
        raise TypeError(f"identities is one string. Write: decide(acl, [{identities!r}])")
    if owner or acl is None:
        return "allow"
    matching = {rule.decision for rule in acl.rules if rule.user in identities}
    return next((one for one in _MOST_PERMISSIVE_FIRST if one in matching), acl.default)


def status_of(decision: Decision) -> int:
    """The HTTP status of a read: 200, 403 or 404."""
    return _STATUS[decision]


# -- names and ranges -------------------------------------------------------------------------


def rewrite_file_name(name: str) -> str:
    """The name as fal's REST API keeps it: ``?`` for each character that is not ASCII (1.2)."""
    return name.encode("ascii", errors="replace").decode("ascii")


@dataclass(frozen=True)
class ByteRange:
    """The bytes from ``start`` to before ``end`` of an object of ``size`` bytes: answer 206."""

    start: int
    end: int
    size: int

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.end - self.start

    @property
    def content_range(self) -> str:
        """The ``Content-Range`` of the answer."""
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


@dataclass(frozen=True)
class Unsatisfiable:
    """A range that holds none of the ``size`` bytes: answer 416."""

    size: int

    @property
    def content_range(self) -> str:
        """The ``Content-Range`` of the answer."""
        return f"bytes */{self.size}"


# Python refuses to read numbers of more than 4300 digits; such a header is ignored.
_SINGLE_RANGE = re.compile(r"bytes=[ \t,]*([0-9]{0,4000})-([0-9]{0,4000})[ \t,]*", re.IGNORECASE)


def parse_range(header: str | None, size: int) -> ByteRange | Unsatisfiable | None:
    """The part of an object that a ``Range`` header asks for (RFC 9110, section 14).

    None means the whole: there is no header, it is malformed or of another unit, or it asks for
    several ranges, which a server may answer with all of the object.
    """
    match = _SINGLE_RANGE.fullmatch(header) if header is not None else None
    if match is None:
        return None
    first, last = match.groups()
    if first:
        return _range_from(int(first), int(last) if last else None, size)
    return _range_of_the_last(int(last), size) if last else None


def _range_from(first: int, last: int | None, size: int) -> ByteRange | Unsatisfiable | None:
    if last is not None and last < first:
        return None
    if first >= size:
        return Unsatisfiable(size)
    return ByteRange(first, size if last is None else min(last + 1, size), size)


def _range_of_the_last(count: int, size: int) -> ByteRange | Unsatisfiable | None:
    if count == 0:
        return Unsatisfiable(size)
    if size == 0:
        return None  # satisfiable, but there is no Content-Range that could say so
    return ByteRange(max(0, size - count), size, size)
