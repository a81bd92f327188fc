"""Browser uploads to S3 (POST): the form, the policy that allows it, and whether it fits; pure.

Source: Amazon S3, "Browser-based uploads using POST": policies, conditions, form fields, errors.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

__all__ = ["S3Error", "UploadForm", "check_policy", "expiration_of", "read_form"]


class S3Error(Exception):
    """A refusal in S3's own words.

    Args:
        status: HTTP status.
        code: as in ``<Code>``.
        message: as in ``<Message>``.
        more: other elements, by name.
    """

    def __init__(self, status: int, code: str, message: str, **more: object) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.more = more


@dataclass
class UploadForm:
    """A form: fields before the file, with names in lower case, and the file.

    ``key`` and other values have their ``${filename}`` filled in.
    """

    fields: dict[str, str]
    file_name: str
    content_type: str | None
    data: bytes


#: Need no condition; neither do names that begin with "x-ignore-".
_FREE = frozenset(
    ("x-amz-signature", "x-amz-security-token", "signature", "awsaccesskeyid", "policy", "bucket")
)
_DISPOSITION = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def read_form(content_type: str, body: bytes) -> UploadForm:
    """Take a form apart. What comes after the file is not looked at, as S3 says.

    Raises:
        S3Error: it is malformed, or has no key or no file.
    """
    boundary = re.search(r'boundary="?([^";,]+)"?', content_type)
    if not content_type.lower().startswith("multipart/form-data") or boundary is None:
        raise S3Error(
            412,
            "PreconditionFailed",
            "At least one of the pre-conditions you specified did not hold",
            Condition="Bucket POST must be of the enclosure-type multipart/form-data",
        )
    delimiter = b"\r\n--" + boundary[1].encode()
    # The first one begins the body, where no line ends before it.
    position = len(delimiter) - 2 if body.startswith(delimiter[2:]) else _end_of(body, delimiter, 0)
    fields: dict[str, str] = {}
    while body[position : position + 2] == b"\r\n":
        head_end = body.find(b"\r\n\r\n", position)
        end = body.find(delimiter, head_end + 2)
        if head_end < 0 or end < 0:
            raise _malformed()
        name, file_name, kind = _read_part_head(body[position:head_end])
        content = body[head_end + 4 : end]
        if name.lower() == "file":
            return _with_file(fields, file_name or "", kind, content)
        if name.lower() not in fields:
            fields[name.lower()] = content.decode("utf-8", "replace")
        position = end + len(delimiter)
    if body[position : position + 2] != b"--":
        raise _malformed()
    raise S3Error(
        400, "InvalidArgument", "POST requires exactly one file upload per request.",
        ArgumentName="file", ArgumentValue="0",
    )  # fmt: skip


def check_policy(policy: str, form: UploadForm, bucket: str, now: datetime) -> None:
    """Check a form against its policy, given in base64.

    Raises:
        S3Error: it has expired, a condition does not hold, or a field has none.
    """
    document = _read_policy(policy)
    if now >= expiration_of(document):
        raise _denied("Policy expired.")
    values = {**form.fields, "bucket": bucket}
    covered: set[str] = set()
    conditions = document.get("conditions") or []
    if not isinstance(conditions, list):
        raise _invalid("Invalid 'conditions' value: must be a List.")
    for condition in conditions:
        covered |= _check(condition, values, len(form.data))
    extra = sorted(
        name
        for name in form.fields
        if name not in covered and name not in _FREE and not name.startswith("x-ignore-")
    )
    if extra:
        raise _denied(f"Extra input fields: {', '.join(extra)}")


def expiration_of(document: dict[str, Any]) -> datetime:
    """When a policy expires.

    Raises:
        S3Error: it does not say so.
    """
    try:
        moment = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", document["expiration"]))
    except KeyError:
        raise _invalid("Policy missing expiration.") from None
    except (TypeError, ValueError):
        given = document["expiration"]
        raise _invalid(f"Invalid 'expiration' value: '{given}'") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _read_policy(policy: str) -> dict[str, Any]:
    try:
        document = json.loads(base64.b64decode(policy, validate=True))
    except (ValueError, RecursionError):
        raise _invalid("Invalid JSON.") from None
    if not isinstance(document, dict):
        raise _invalid("Invalid JSON.")
    return document


def _check(condition: Any, values: dict[str, str], size: int) -> set[str]:
    """The fields that a condition covers, if it holds."""
    if isinstance(condition, dict):
        names: set[str] = set()
        for name, wanted in condition.items():
            names |= _compare("eq", f"${name}", str(wanted), values)
        return names
    if not isinstance(condition, Sequence) or isinstance(condition, str) or len(condition) != 3:
        raise _invalid(f"Invalid Condition: {json.dumps(condition)}")
    kind, name, wanted = condition
    if str(kind).lower() == "content-length-range":
        try:
            least, most = int(name), int(wanted)
        except (TypeError, ValueError, OverflowError):
            raise _invalid(f"Invalid Condition: {json.dumps(condition)}") from None
        _check_size(size, least, most)
        return set()
    return _compare(str(kind).lower(), str(name), str(wanted), values)


def _compare(kind: str, dollar: str, wanted: str, values: dict[str, str]) -> set[str]:
    name = dollar.removeprefix("$").lower()
    if kind not in ("eq", "starts-with"):
        raise _invalid(f"Invalid Condition: {json.dumps([kind, dollar, wanted])}")
    # A field that is not in the form is empty.
    given = values.get(name, "")
    holds = given == wanted if kind == "eq" else given.startswith(wanted)
    if kind == "starts-with" and name == "content-type" and "," in given:
        holds = all(one.lstrip().startswith(wanted) for one in given.split(","))
    if not holds:
        raise _denied(f"Policy Condition failed: {json.dumps([kind, dollar, wanted])}")
    return {name}


def _check_size(size: int, least: int, most: int) -> None:
    if size < least:
        raise S3Error(
            400, "EntityTooSmall",
            "Your proposed upload is smaller than the minimum allowed size",
            ProposedSize=size, MinSizeAllowed=least,
        )  # fmt: skip
    if size > most:
        raise S3Error(
            400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size",
            ProposedSize=size, MaxSizeAllowed=most,
        )  # fmt: skip


def _with_file(
    fields: dict[str, str], file_name: str, kind: str | None, content: bytes
) -> UploadForm:
    base_name = re.split(r"[/\\]", file_name)[-1]
    filled = {
        name: value if name == "policy" else value.replace("${filename}", base_name)
        for name, value in fields.items()
    }
    if not filled.get("key"):
        raise S3Error(
            400, "InvalidArgument",
            "Bucket POST must contain a field named 'key'.  If it is specified, please check the "
            "order of the fields.",
            ArgumentName="key", ArgumentValue="",
        )  # fmt: skip
    return UploadForm(filled, base_name, kind, content)


def _read_part_head(head: bytes) -> tuple[str, str | None, str | None]:
    """The name of a part, that of its file, and its content type."""
    disposition, kind = "", None
    for line in head.decode("utf-8", "replace").split("\r\n"):
        field, _, value = line.partition(":")
        if field.lower() == "content-disposition":
            disposition = value
        elif field.lower() == "content-type":
            kind = value.strip()
    given = {name.lower(): value for name, value in _DISPOSITION.findall(disposition)}
    if "name" not in given:
        raise _malformed()
    return _plain(given["name"]), _plain(given.get("filename")), kind


def _plain(value: Any) -> Any:
    """Undo what clients do to quotes and line ends in a name (WHATWG: multipart/form-data)."""
    if value is None:
        return None
    return value.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n").replace('\\"', '"')


def _end_of(body: bytes, delimiter: bytes, start: int) -> int:
    found = body.find(delimiter, start)
    if found < 0:
        raise _malformed()
    return found + len(delimiter)


def _malformed() -> S3Error:
    return S3Error(
        400,
        "MalformedPOSTRequest",
        "The body of your POST request is not well-formed multipart/form-data.",
    )


def _denied(why: str) -> S3Error:
    return S3Error(403, "AccessDenied", f"Invalid according to Policy: {why}")


def _invalid(why: str) -> S3Error:
    return S3Error(400, "InvalidPolicyDocument", f"Invalid Policy: {why}")
