"""Tokens by which browsers open websockets of apps: real JWTs, on the emulated clock [§6.5]."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from emulator.checks import TIME
from emulator.errors import RefusedRequest

__all__ = ["RealtimeTokenError", "RealtimeTokens"]

_ALGORITHM = "HS256"


class RealtimeTokenError(RefusedRequest):
    """A token that does not count, and why."""

    def __init__(self, why: str) -> None:
        super().__init__(401, why)


class RealtimeTokens:
    """Issues them, and knows them again.

    Args:
        now: the clock.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self._secret = secrets.token_hex(32)

    def issue(self, user: str, apps: Sequence[str], lifetime: timedelta) -> str:
        """A token by which somebody who has no key may connect to apps.

        Args:
            user: the nickname of the user who asks for it, and pays for the calls.
            apps: aliases, as fal_client sends them, or ``"owner/app"``.
            lifetime: how long it counts.
        """
        import jwt

        now = self._now()
        claims = {
            "sub": user,
            "allowed_apps": list(apps),
            "iat": now.timestamp(),
            "exp": (now + lifetime).timestamp(),
            "jti": secrets.token_hex(8),
        }
        return jwt.encode(claims, self._secret, _ALGORITHM)

    def check(self, token: str, app: str) -> str:
        """The nickname of the user whose token it is.

        Args:
            token: as ``fal_jwt_token=`` has it.
            app: the app that is called: its alias, or ``"owner/app"``.

        Raises:
            RealtimeTokenError: it does not count here, or not any more.
        """
        claims = self._claims(token)
        end = datetime.fromtimestamp(claims["exp"], timezone.utc)
        if self._now() >= end:
            raise RealtimeTokenError(f"the realtime token was valid until {end:{TIME}}")
        allowed: list[str] = claims["allowed_apps"]
        if not any(_is_same(app, one) for one in allowed):
            raise RealtimeTokenError(f"the realtime token is for {', '.join(allowed)}, not {app}")
        user: str = claims["sub"]
        return user

    def _claims(self, token: str) -> dict[str, Any]:
        import jwt

        # When it ends is looked at by the emulated clock, which PyJWT may not see.
        options: Any = {"verify_exp": False, "verify_iat": False}
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._secret, algorithms=[_ALGORITHM], options=options
            )
        except jwt.InvalidTokenError:
            raise RealtimeTokenError("the realtime token is none that was ever given") from None
        return claims


def _is_same(app: str, other: str) -> bool:
    """Whether two names are of one app; an alias alone is of any owner's."""
    one, two = _parts(app), _parts(other)
    return one[-1] == two[-1] and (len(one) != len(two) or one == two)


def _parts(app: str) -> list[str]:
    """Owner, if it is told, and alias; what follows is a path of the app's."""
    return app.strip("/").split("/")[:2]
