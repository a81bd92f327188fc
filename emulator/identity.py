"""Who asks: account keys, CDN tokens and signed URLs, and when they stop to count [facts §1.3]."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from emulator.checks import TIME
from emulator.settings import Settings
from emulator.users import Users

if TYPE_CHECKING:
    from emulator.storage.cdn_files import CDNFile

__all__ = ["CDNToken", "Identities", "Reader"]

_KEY = (
    "an account key is not accepted for reading: send a CDN token, "
    "as fal_emulator.owner.headers has it"
)


@dataclass(frozen=True)
class CDNToken:
    """A bearer token for the CDN and the key-value store."""

    token: str
    user: str
    expires_at: datetime
    #: Further identities: users, teams, ids of requests.
    also: tuple[str, ...] = ()
    #: Whose it is where a runner uses it; None: the same user's. The SDK keeps the token that it
    #: got with its key, for the test and for runners in threads alike.
    on_runners: str | None = None

    def __repr__(self) -> str:
        return f"CDNToken(user={self.user!r}, expires_at={self.expires_at!r})"


@dataclass(frozen=True)
class _Signature:
    """What the ``identity`` of a signed URL stands for."""

    file: str
    token: CDNToken


@dataclass(frozen=True)
class Reader:
    """Who reads a file, by all credentials of a request together."""

    #: Nicknames, ids, teams, and the requests whose outputs it may read.
    names: frozenset[str] = frozenset()
    #: The nicknames, to show; None: nobody.
    shown: str | None = None
    #: Has a signed URL whose time is over.
    is_late: bool = False
    #: The credentials that do not count, and why.
    problems: tuple[str, ...] = ()

    def owns(self, file: CDNFile) -> bool:
        """Whether the file is this reader's, or the output of a request that the token names."""
        return file.request_id in self.names or not self.names.isdisjoint(file.owners)


class Identities:
    """Issues and checks tokens and signatures, and knows the users.

    Args:
        now: the clock.
        settings: of the account.
    """

    def __init__(
        self, now: Callable[[], datetime], settings: Callable[[], Settings] = Settings
    ) -> None:
        self._now = now
        self._tokens: dict[str, CDNToken] = {}
        self._signatures: dict[str, _Signature] = {}
        self.users = Users(self, settings)

    def reset(self) -> None:
        """Forget all tokens, signatures and users."""
        self._tokens.clear()
        self._signatures.clear()
        self.users.reset()

    def issue(
        self,
        user: str,
        lifetime: timedelta,
        also: Iterable[str] = (),
        on_runners: str | None = None,
    ) -> CDNToken:
        """A new token for a user, whom the platform knows from now on.

        Args:
            also: further identities that it carries.
            on_runners: whose it is where a runner uses it; default: the same user's.
        """
        token = self._new(self.users.user(user).nickname, lifetime, also)
        token = replace(token, on_runners=on_runners)
        self._tokens[token.token] = token
        return token

    def _new(self, user: str, lifetime: timedelta, also: Iterable[str]) -> CDNToken:
        name = f"emulated-{secrets.token_urlsafe(18)}"
        return CDNToken(name, user, self._now() + lifetime, tuple(also))

    def sign(self, file: str, signer: CDNToken | str, lifetime: timedelta) -> str:
        """The ``identity`` that lets anybody read a file for a while.

        Args:
            file: its key on the CDN.
            signer: the token whose identities it carries, or a user's nickname: with that of the
                file's owner it counts whatever the access rules say.
        """
        user, also = (signer, ()) if isinstance(signer, str) else (signer.user, signer.also)
        token = self._new(user, lifetime, also)
        self._signatures[token.token] = _Signature(file, token)
        return token.token

    # --- checking --------------------------------------------------------------------------------

    def token(self, authorization: str | None, runner: str | None = None) -> CDNToken | None:
        """The CDN token that an ``Authorization: Bearer`` header carries, while it is valid.

        Args:
            authorization: the header.
            runner: what sent it.
        """
        scheme, _, value = (authorization or "").partition(" ")
        found = self.valid(value.strip()) if scheme.lower() == "bearer" else None
        if found is None or runner is None or found.on_runners is None:
            return found
        return replace(found, user=found.on_runners)

    def valid(self, token: str | None) -> CDNToken | None:
        """A CDN token, as ``X-Fal-CDN-Token`` carries it, while it is valid."""
        found = self._tokens.get(token or "")
        return found if found is not None and self._now() < found.expires_at else None

    def reader(self, authorization: str | None, runner: str | None = None) -> str | None:
        """The user that a CDN ``Authorization: Bearer`` header names, while the token is valid."""
        token = self.token(authorization, runner)
        return token.user if token is not None else None

    def is_token(self, authorization: str | None) -> bool:
        """Whether a header carries a CDN token, valid or not."""
        return (authorization or "").partition(" ")[2].strip() in self._tokens

    def expired_at(self, authorization: str | None) -> datetime | None:
        """When the token of such a header stopped to count; None: it does, or never was one."""
        scheme, _, value = (authorization or "").partition(" ")
        token = self._tokens.get(value.strip()) if scheme.lower() == "bearer" else None
        return token.expires_at if token is not None and self._now() >= token.expires_at else None

    @staticmethod
    def is_account(authorization: str | None) -> bool:
        """Whether a header carries an account's key (``Key id:secret``) or login (``Bearer``)."""
        scheme, _, value = (authorization or "").partition(" ")
        if scheme.lower() == "key":
            return ":" in value
        return scheme.lower() == "bearer" and bool(value.strip())

    def reader_of(
        self,
        file: str,
        authorization: str | None,
        signatures: Collection[str],
        runner: str | None = None,
    ) -> Reader:
        """Who reads a file.

        Args:
            file: its key on the CDN.
            authorization: the header.
            signatures: the values of ``identity`` in the URL.
            runner: what reads.
        """
        problems: list[str] = []
        tokens: list[CDNToken] = []
        bearer = self.token(authorization, runner)
        if bearer is not None:
            tokens.append(bearer)
        elif authorization:
            problems.append(self._why_no_token(authorization))
        is_late = False
        for value in signatures:
            signature = self._signatures.get(value)
            if signature is None:
                problems.append("the URL's signature (identity=) is none that was ever given")
            elif signature.file != file:
                problems.append("the URL's signature (identity=) is for another file")
            elif self._now() >= signature.token.expires_at:
                is_late = True
                late = f"{signature.token.expires_at:{TIME}}"
                problems.append(f"the signed URL was valid until {late}")
            else:
                tokens.append(signature.token)
        return Reader(
            names=frozenset(name for token in tokens for name in self._names_of(token)),
            shown=" and ".join(dict.fromkeys(token.user for token in tokens)) or None,
            is_late=is_late,
            problems=tuple(problems),
        )

    def _names_of(self, token: CDNToken) -> Iterable[str]:
        for user in (token.user, *token.also):
            yield from self.users.names_of(user)

    def _why_no_token(self, authorization: str) -> str:
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "key":
            return _KEY
        token = self._tokens.get(value.strip())
        if token is None:
            return "the bearer token is no CDN token"
        return f"the CDN token of {token.user} was valid until {token.expires_at:{TIME}}"
