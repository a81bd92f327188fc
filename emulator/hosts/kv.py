"""``kv.fal.media``: the key-value store over HTTP [facts §5].

Keys are what the path says once it is decoded, so whoever does not quote them meets what they
become on the way: the SDK does not [study §5, K1].
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Iterable
from datetime import timedelta

import httpx

from emulator.checks import TIME
from emulator.identity import Identities
from emulator.ledger import Exchange
from emulator.network.reply import json_reply
from emulator.storage.kv import KV, KVError, refused_ttl

__all__ = ["KVHost"]

_NAME = "kv.fal.media"
_CALL = re.compile(r"/(get|set|delete)/([^/]*)/?(.*)", re.DOTALL)
_WHOLE = re.compile(r"-?[0-9]{1,12}")
_METHODS = {"get": "GET", "set": "PUT", "delete": "DELETE"}


class KVHost:
    """The store over HTTP; answers JSON, and errors as ``{"error": ...}``."""

    def __init__(self, kv: KV, identities: Identities) -> None:
        self._kv = kv
        self._identities = identities
        self._handlers: dict[str, Callable[..., httpx.Response]] = {
            "get": self._get,
            "set": self._set,
            "delete": self._delete,
        }

    def answers(self, host: str) -> bool:
        """Whether this is the store's host."""
        return host == _NAME

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        """Answer; a CDN token is needed for everything [§1.3]."""
        path = request.url.raw_path.decode("ascii").partition("?")[0]
        call = _CALL.fullmatch(path)
        try:
            if call is None or request.method != _METHODS[call[1]]:
                exchange.notes.append("the emulator does not know this call")
                raise KVError(404, f"{request.method} {path} is no call of the KV store")
            user = exchange.user = self._user(request, exchange.runner)
            # What is quoted in the name of a database is a part of it, an unquoted slash is not.
            db, key = _decoded(call[2]), _decoded(call[3])
            return self._handlers[call[1]](request, exchange, user, db, key)
        except KVError as error:
            exchange.notes.append(str(error))
            return json_reply({"error": str(error)}, error.status)

    def _get(
        self, request: httpx.Request, exchange: Exchange, user: str, db: str, key: str
    ) -> httpx.Response:
        _note_query(request, exchange, known=())
        entry = self._kv.read(user, db, key)
        if entry is None:
            # To the SDK all of these are None; the ledger tells them apart.
            exchange.notes.append(f"{db}/{key} {self._kv.why_not(user, db, key)}")
            return json_reply({"error": "not found"}, 404)
        return json_reply({"value": entry.value})

    def _set(
        self, request: httpx.Request, exchange: Exchange, user: str, db: str, key: str
    ) -> httpx.Response:
        _note_query(request, exchange, known=("ttl",))
        self._kv.write(user, db, key, request.read(), self._ttl(request), exchange.runner)
        return json_reply({"status": "ok"})

    def _delete(
        self, request: httpx.Request, exchange: Exchange, user: str, db: str, key: str
    ) -> httpx.Response:
        _note_query(request, exchange, known=())
        if self._kv.read(user, db, key) is None:
            exchange.notes.append(f"{db}/{key} {self._kv.why_not(user, db, key)}")
        self._kv.remove(user, db, key)
        return json_reply({"status": "ok"})

    def _ttl(self, request: httpx.Request) -> timedelta | None:
        written = request.url.params.get("ttl")
        if written is None:
            return None
        if not _WHOLE.fullmatch(written):
            raise KVError(self._kv.settings.kv_bad_ttl_status, refused_ttl(repr(written)))
        return timedelta(seconds=int(written))

    def _user(self, request: httpx.Request, runner: str | None) -> str:
        """Whose token it is.

        Raises:
            KVError: 401, there is none that counts.
        """
        authorization = request.headers.get("authorization")
        user = self._identities.reader(authorization, runner)
        if user is not None:
            return user
        scheme = (authorization or "").partition(" ")[0].lower()
        expired = self._identities.expired_at(authorization)
        if scheme == "key":
            problem = "an account's key is no CDN token"
        elif expired is not None:
            problem = f"the CDN token expired at {expired:{TIME}}"
        else:
            problem = "no CDN token" if authorization is None else "this is no CDN token"
        raise KVError(
            401,
            f"{problem}; POST https://rest.fal.ai/storage/auth/token?storage_type=fal-cdn-v3 "
            "gives one, to send as Authorization: Bearer",
        )


def _decoded(quoted: str) -> str:
    try:
        return urllib.parse.unquote(quoted, errors="strict")
    except UnicodeDecodeError:
        raise KVError(400, f"{quoted} is not UTF-8 once it is decoded") from None


def _note_query(request: httpx.Request, exchange: Exchange, known: Iterable[str]) -> None:
    """A question mark in a key that was not quoted begins the query, and is found here."""
    unknown = [name for name in request.url.params if name not in known]
    if unknown:
        exchange.notes.append(
            f"the query says {', '.join(map(repr, unknown))}, which means nothing here: a ? in a "
            'key has to be quoted, with urllib.parse.quote(key, safe="")'
        )
