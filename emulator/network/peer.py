"""Who is meant by a connection, and what is said of one that nobody answers.

Imports next to nothing: every runner's process needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

from emulator.errors import UnknownHostError

__all__ = ["Peer", "unknown_host"]


@dataclass(frozen=True)
class Peer:
    """What a client thought it was connecting to, and the runner it connected from.

    A program in Node tells the runner alone: then there is no address, and the port is 0.
    """

    address: str | None
    port: int
    runner: int | None = None


def unknown_host(
    host: str, what: str, url: str | None = None, verb: str = "GET"
) -> UnknownHostError:
    """The error for a host, and if known a URL, that nothing in the test answers."""
    shown = url or f"https://{host}/"
    known = verb.lower() in ("get", "post", "put", "patch", "delete", "head", "options")
    method = verb.lower() if known else "get"
    return UnknownHostError(
        f"{what}: nothing answers for {host} in this test, and tests do not reach the network. "
        f'Serve a file with fal_origin.serve("{shown}", content=b"..."), answer with '
        f'fal_http.{method}("{shown}").respond(200), or let the host through with '
        f'@pytest.mark.fal(allow_hosts=["{host}"]).'
    )
