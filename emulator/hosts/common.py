"""What the hosts share: paths to handlers, the lifecycle header, lists of uploaded parts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx

from emulator.identity import Identities
from emulator.ledger import Exchange
from emulator.network.reply import json_reply
from emulator.settings import Settings
from emulator.storage.lifecycle import parse_preference
from emulator.storage.uploads import UploadError

__all__ = [
    "LOST_CONTEXT",
    "PathRouter",
    "not_found",
    "owners_of",
    "read_lifecycle",
    "read_parts",
]

#: What is noted of an upload that should have a request, and has none [§1.9].
LOST_CONTEXT = (
    "the request's context was lost: this upload has no request id, no token and no lifecycle "
    "preference of the caller's. The SDK has them in the endpoint and asyncio.to_thread, not in "
    "threads of the app's own, executors, websockets, nor where an app that came by pickle imports "
    "the toolkit in a method"
)

Handler = Callable[..., httpx.Response]


class PathRouter:
    """Finds the handler of a method and path."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        """Add a handler; it is called with the request, the exchange and the pattern's groups."""
        self._routes.append((method, re.compile(pattern), handler))

    def find(self, method: str, path: str) -> tuple[Handler | None, tuple[str, ...]]:
        """The handler and the groups of the path."""
        for wanted, pattern, handler in self._routes:
            if wanted == method:
                match = pattern.fullmatch(path)
                if match is not None:
                    return handler, match.groups()
        return None, ()


def not_found(request: httpx.Request) -> httpx.Response:
    """404 with a JSON body, as fal's services answer."""
    return json_reply({"detail": f"Path {request.url.path} not found"}, 404)


def read_lifecycle(
    request: httpx.Request, exchange: Exchange, settings: Settings
) -> dict[str, Any] | None:
    """The lifecycle preference of an upload, in either spelling of its header [facts §1.9].

    Raises:
        UploadError: the preference is refused, by the platform or by a setting.
    """
    parsed = parse_preference(
        request.headers,
        malformed_lifecycle=settings.malformed_lifecycle,
        invalid_expiration=settings.invalid_expiration,
    )
    exchange.notes.extend(parsed.problems)
    if parsed.error is not None:
        raise UploadError(*parsed.error)
    return parsed.preference


def owners_of(
    request: httpx.Request, exchange: Exchange, uploader: str, identities: Identities
) -> tuple[str, ...]:
    """Whose file an upload will be, by nickname: the caller's whose ``X-Fal-CDN-Token`` an app
    forwards, and the uploader's [facts §4.7].

    Args:
        uploader: the nickname of whose key or token it is.
    """
    exchange.user = uploader
    text = request.headers.get("x-fal-cdn-token")
    token = identities.valid(text)
    if token is None:
        if text is not None:
            exchange.notes.append(
                "X-Fal-CDN-Token is not valid (any more), so the file is not its caller's"
            )
        return (uploader,)
    return tuple(dict.fromkeys((token.user, uploader)))


def read_parts(request: httpx.Request, number_key: str) -> list[tuple[int, str]]:
    """The part numbers and ETags of a completion call.

    Raises:
        UploadError: 400, the body is malformed.
    """
    try:
        parts = json.loads(request.read() or b"{}")["parts"]
        return [(int(part[number_key]), str(part["etag"])) for part in parts]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise UploadError(
            400, f'the body must be {{"parts": [{{"{number_key}": 1, "etag": "..."}}]}}'
        ) from None
