"""The way of Node's processes to the wire: a script that each of them loads, by ``NODE_OPTIONS``.

Python's sockets are taken over in process; a program in Node has its own. The script,
``nodejs_preload.cjs``, leads its connections to the wire.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

__all__ = ["NODE_OPTIONS", "namespace_of", "options", "variables"]

NODE_OPTIONS = "NODE_OPTIONS"

_PRELOAD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nodejs_preload.cjs")
#: As in the script.
_FIRST_NAMESPACE = 0xF000_0000


def variables(port: int, allowed: Iterable[str]) -> dict[str, str]:
    """What Node's processes find in their environment.

    Args:
        port: the wire's, on 127.0.0.1.
        allowed: hosts that may really be reached.
    """
    return {
        NODE_OPTIONS: options(os.environ.get(NODE_OPTIONS, "")),
        "FAL_EMULATOR_WIRE": str(port),
        "FAL_EMULATOR_ALLOWED_HOSTS": ",".join(host.lower() for host in allowed),
    }


def options(given: str) -> str:
    """The value of ``NODE_OPTIONS`` with which Node loads the script, too."""
    ours = f"--require {_quoted(_PRELOAD)}"
    return given if ours in given else f"{given} {ours}".strip()


def namespace_of(address: str) -> int | None:
    """The mount namespace of a Node process that connected from this address; None: of others'."""
    first, *rest = (int(part) for part in address.split("."))
    number = rest[0] << 16 | rest[1] << 8 | rest[2]
    return _FIRST_NAMESPACE + number if first == 127 and number > 1 else None


def _quoted(path: str) -> str:
    """As Node reads it: in double quotes a backslash takes the next character as it is."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
