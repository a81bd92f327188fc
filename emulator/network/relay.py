"""What passes between a client's websocket and an app's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emulator.network.websocket import ABNORMAL, End, poll

__all__ = ["Relayed", "relay"]

#: So many messages pass one way before it is looked at the other.
_AT_ONCE = 16


@dataclass
class Relayed:
    """What has passed between a client and an app, and who ended it how."""

    from_client: int = 0
    from_app: int = 0
    by: str = ""
    code: int = ABNORMAL
    reason: str = ""

    def __str__(self) -> str:
        why = f" {self.reason}" if self.reason else ""
        how = "without a word" if self.code == ABNORMAL else f"with {self.code}{why}"
        return (
            f"websocket: {_count(self.from_client)} from the client, {_count(self.from_app)} from "
            f"the app; the {self.by} ended it {how}"
        )


def _count(number: int) -> str:
    return f"{number} message" if number == 1 else f"{number} messages"


def relay(client: End, app: End, over: Callable[[Relayed], None] = lambda _passed: None) -> Relayed:
    """Pass on what comes, until one of both ends it, and end the other in the same way.

    Args:
        client: the client's end.
        app: from ``runner.connect``.
        over: told how it ended, before anybody else hears of it.
    """
    passed = Relayed()
    try:
        ended = _pass_until_an_end(client, app, passed)
        passed.by = "app" if ended is app else "client"
        passed.code, passed.reason = ended.code or ABNORMAL, ended.reason
        over(passed)
    finally:  # whatever was raised: neither is left waiting for the other
        try:
            app.close(passed.code, passed.reason)
        finally:
            client.close(passed.code, passed.reason)
    return passed


def _pass_until_an_end(client: End, app: End, passed: Relayed) -> End:
    """Pass on what comes until one of both has ended; that one."""
    while True:
        client.step()
        app.step()
        up, down = _pass(client, app), _pass(app, client)
        passed.from_client += up
        passed.from_app += down
        if app.is_over:
            return app
        if client.is_over:
            return client
        if not up and not down:
            poll(None, client, app)


def _pass(source: End, target: End) -> int:
    """Pass on some of what has come, so that one who says a lot does not keep the other waiting."""
    count = 0
    while count < _AT_ONCE and target.has_room and (message := source.take()) is not None:
        target.send(message)
        count += 1
    return count
