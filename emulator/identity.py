"""Who asks: account keys and CDN tokens, and when tokens stop to count [platform facts §1.3]."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["AWS_KEY", "BUCKET_KEYS", "R2_ACCOUNT", "R2_KEY", "CDNToken", "Identities"]

#: The keys (id, secret) of the test's own buckets; shaped like real ones, and nobody's.
AWS_KEY = ("AKIAEMULATEDBYPYTEST", "emulated/secret+of+the+emulated+S3+bucket")
R2_KEY = ("e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0", "emulated-secret-of-the-emulated-r2-bucket")
R2_ACCOUNT = "emulated0account0of0r2"
#: The keys whose signatures are checked; others are taken on trust, as moto does.
BUCKET_KEYS = dict((AWS_KEY, R2_KEY))


@dataclass(frozen=True)
class CDNToken:
    """A bearer token for the CDN and the key-value store."""

    token: str
    user: str
    expires_at: datetime

    def __repr__(self) -> str:
        return f"CDNToken(user={self.user!r}, expires_at={self.expires_at!r})"


class Identities:
    """Issues and checks tokens.

    Args:
        now: the clock.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._tokens: dict[str, CDNToken] = {}

    def reset(self) -> None:
        """Forget all tokens."""
        self._tokens.clear()

    def issue(self, user: str, lifetime: timedelta) -> CDNToken:
        """A new token for a user."""
        token = CDNToken(f"emulated-{secrets.token_urlsafe(18)}", user, self._now() + lifetime)
        self._tokens[token.token] = token
        return token

    def reader(self, authorization: str | None) -> str | None:
        """The user that a CDN ``Authorization: Bearer`` header names, while the token is valid."""
        scheme, _, value = (authorization or "").partition(" ")
        token = self._tokens.get(value.strip()) if scheme.lower() == "bearer" else None
        return token.user if token is not None and self._now() < token.expires_at else None

    @staticmethod
    def is_account(authorization: str | None) -> bool:
        """Whether a header carries an account's key (``Key id:secret``) or login (``Bearer``)."""
        scheme, _, value = (authorization or "").partition(" ")
        if scheme.lower() == "key":
            return ":" in value
        return scheme.lower() == "bearer" and bool(value.strip())
