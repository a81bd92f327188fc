"""Access rules, signatures and account settings over HTTP [facts §1.10].

The same calls stand at the REST host and at the platform API; each has its own form of errors.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypeGuard

import httpx

from emulator.errors import RefusedRequest
from emulator.identity import CDNToken
from emulator.ledger import Exchange
from emulator.network.reply import json_reply
from emulator.storage.access import LONGEST_SIGNATURE
from emulator.storage.cdn import CDN
from emulator.storage.cdn_files import CDNFile
from emulator.storage.lifecycle import Acl, parse_acl
from emulator.storage.uploads import V3_HOSTS, UploadError
from emulator.users import Account, dropped_rule, without

__all__ = ["APIError", "ErrorType", "FileAccess", "account_of", "sign_by_token"]

#: As the platform API names what went wrong.
ErrorType: TypeAlias = Literal[
    "authorization_error",
    "validation_error",
    "not_found",
    "rate_limited",
    "server_error",
    "not_implemented",
]
_EXPIRATION, _ACL = "expiration_duration_seconds", "initial_acl"
_DEFAULT_SIGNATURE = timedelta(hours=24)


class APIError(RefusedRequest):
    """A call that is refused.

    Attributes:
        type: what the platform API calls it.
    """

    def __init__(self, status: int, type: ErrorType, message: str) -> None:
        super().__init__(status, message)
        self.type = type


def account_of(request: httpx.Request) -> Account:
    """Whose key a request carries; its host has looked."""
    account: Account = request.extensions["fal_account"]
    return account


def demand(request: httpx.Request, permission: str) -> None:
    """Refuse a key that is not allowed this.

    Raises:
        APIError: 403, naming the permission.
    """
    if not account_of(request).may(permission):
        message = f"this API key has not the permission {permission}"
        raise APIError(403, "authorization_error", message)


def read_object(request: httpx.Request) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
        APIError: 400, it is none.
    """
    try:
        body = json.loads(request.read() or b"{}")
    except (ValueError, RecursionError):
        raise APIError(400, "validation_error", "the body is not JSON") from None
    if not isinstance(body, dict):
        raise APIError(400, "validation_error", "the body is no JSON object")
    return body


class FileAccess:
    """Reads and changes access rules and account settings, and signs URLs."""

    def __init__(self, cdn: CDN) -> None:
        self._cdn = cdn

    def offer(
        self, add: Callable[[str, str, Callable[..., httpx.Response]], None], at: str
    ) -> None:
        """Add the calls to a table of paths, below *at*."""
        add("GET", f"{at}/files/acl", self._get_acl)
        add("PUT", f"{at}/files/acl", self._put_acl)
        add("GET", f"{at}/settings", self._get_settings)
        add("PUT", f"{at}/settings", self._put_settings)

    # --- access rules ----------------------------------------------------------------------------

    def _get_acl(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        demand(request, "assets:read")
        return json_reply((self._own_file(request).acl or Acl()).to_json())

    def _put_acl(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        demand(request, "assets:write")
        file = self._own_file(request)
        acl = self._read_acl(read_object(request), exchange)
        self._cdn.replace_acl(file.url, acl)
        return json_reply(acl.to_json())

    def _own_file(self, request: httpx.Request) -> CDNFile:
        """The file on v3 that ``url=`` names, if it is the caller's."""
        url = request.url.params.get("url", "")
        try:
            parts = urllib.parse.urlsplit(url)
        except ValueError:
            parts = urllib.parse.urlsplit("")
        if parts.scheme != "https" or parts.hostname is None:
            raise APIError(400, "validation_error", "url has to be the URL of a file on the CDN")
        if parts.query or parts.fragment:
            raise APIError(400, "validation_error", "url must not have a query")
        if parts.hostname not in V3_HOSTS:
            message = f"files at {parts.hostname} have no access rules: only those on the v3 CDN do"
            raise APIError(400, "validation_error", message)
        file = self._cdn.readable(url)
        if file is None:
            raise APIError(404, "not_found", f"there is no file at {url}")
        account = account_of(request).user.nickname
        if account not in file.owners:
            message = f"only its owner may do this: the file is {file.owner}'s, not {account}'s"
            raise APIError(403, "authorization_error", message)
        return file

    def _read_acl(self, body: object, exchange: Exchange) -> Acl:
        """The rules of a body, without those for users that the platform does not know."""
        acl, problems = parse_acl(body)
        if isinstance(body, dict) and "default" not in body:
            problems = ("default is missing: allow, forbid or hide", *problems)
        if problems or acl is None:
            raise APIError(400, "validation_error", "; ".join(problems))
        unknown = self._cdn.users.unknown_in(acl)
        exchange.notes.extend(map(dropped_rule, unknown))
        return without(acl, unknown) or acl

    # --- settings of the account -----------------------------------------------------------------

    def _get_settings(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        demand(request, "account:settings:read")
        return json_reply(_settings(account_of(request)))

    def _put_settings(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        demand(request, "account:settings:write")
        body = read_object(request)
        seconds, rules = body.get(_EXPIRATION), body.get(_ACL)
        lifetime = None if seconds is None else _whole_seconds(seconds)
        acl = None if rules is None else self._read_acl(rules, exchange).to_json()
        for key in body.keys() - {_EXPIRATION, _ACL}:
            exchange.notes.append(
                f"unknown key {key!r} was ignored; what is not sent becomes the system's default"
            )
        user = account_of(request).user
        user.account_expiration, user.account_acl = lifetime, acl
        return json_reply(_settings(account_of(request)))

    # --- signatures ------------------------------------------------------------------------------

    def sign(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        """``POST /storage/files/sign`` of the platform API: reads whatever the rules say."""
        demand(request, "assets:read")
        file = self._own_file(request)
        seconds = read_object(request).get("expiration_seconds")
        longest = int(LONGEST_SIGNATURE.total_seconds())
        if not _is_whole(seconds) or not 1 <= seconds <= longest:
            message = f"expiration_seconds has to be a whole number from 1 to {longest}"
            raise APIError(400, "validation_error", message)
        return json_reply({"signed_url": self._cdn.sign(file.url, timedelta(seconds=seconds))})


def sign_by_token(cdn: CDN, file: CDNFile, token: CDNToken, request: httpx.Request) -> str:
    """A URL of a file, signed with the identities of a CDN token: ``POST <file>/sign``.

    Raises:
        UploadError: 422, the body asks for what there is not.
    """
    try:
        body = read_object(request)
    except APIError as error:
        raise UploadError(422, str(error)) from None
    longest = LONGEST_SIGNATURE.total_seconds()
    seconds = body.get("duration", _DEFAULT_SIGNATURE.total_seconds())
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise UploadError(422, f"duration has to be a number of seconds, not {seconds!r}")
    if not 0 < seconds <= longest:
        raise UploadError(422, f"duration has to be more than 0 and at most {longest:.0f} seconds")
    if body.get("scope", ["read"]) != ["read"]:
        raise UploadError(422, 'scope has to be ["read"]')
    identity = cdn.users.identities.sign(cdn.key_of(file.url), token, timedelta(seconds=seconds))
    return f"{file.url}?identity={identity}"


def _settings(account: Account) -> dict[str, Any]:
    lifetime, acl = account.user.account_expiration, parse_acl(account.user.account_acl)[0]
    seconds = None if lifetime is None else lifetime.total_seconds()
    return {
        _EXPIRATION: int(seconds) if seconds is not None and seconds.is_integer() else seconds,
        _ACL: None if acl is None else acl.to_json(),
    }


def _whole_seconds(seconds: object) -> timedelta:
    if not _is_whole(seconds) or seconds < 1:
        message = f"{_EXPIRATION} has to be a whole number of seconds >= 1, or null"
        raise APIError(400, "validation_error", message)
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        return timedelta.max


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
