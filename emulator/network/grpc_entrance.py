"""gRPC: no call leaves this machine.

grpcio resolves names and connects in C, past Python's ``socket``. So its channels to other machines
are made without an address, and what is called on them is refused with the line to write. Programs
that have a grpcio of their own find ``grpc_proxy`` in their environment: a port of the loopback on
which nobody listens.

The only module that touches grpcio's private parts (seen: 1.85). Imports next to nothing: every
runner's process needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from emulator.errors import UnknownHostError
from emulator.network.resolver import is_local

__all__ = ["GrpcEntrance", "environment"]

_CYGRPC = "grpc._cython.cygrpc"
#: Nobody listens there: the port of tcpmux, which nothing has used for decades.
_NOWHERE = "127.0.0.1:1"
_ALLOWED = "no_grpc_proxy"
_LOCAL = ("localhost", "127.0.0.1", "::1")
_ON_THIS_MACHINE = frozenset({"unix", "unix-abstract", "vsock"})
#: What calls somebody, of synchronous and of asyncio's channels.
_CALLS = (
    *("integrated_call", "segregated_call", "call"),
    *("watch_connectivity_state", "check_connectivity_state"),
)


def environment(allow_hosts: Iterable[str]) -> dict[str, str]:
    """The variables that keep grpcio on this machine, but for these hosts."""
    allowed = ",".join((*_LOCAL, *allow_hosts))
    return {"grpc_proxy": f"http://{_NOWHERE}", _ALLOWED: allowed}


class GrpcEntrance:
    """Refuses calls to other machines while installed.

    Args:
        report: told of every refusal.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._real: dict[str, Any] = {}

    def install(self) -> None:
        """Take over the channels that are made from now on, if grpcio is loaded."""
        cygrpc = sys.modules.get(_CYGRPC)
        for name in ("Channel", "AioChannel"):
            real = getattr(cygrpc, name, None)
            if real is not None:
                self._real[name] = real
                setattr(cygrpc, name, self._standing_in_for(real))

    def uninstall(self) -> None:
        """Give grpcio's own channels back."""
        for name, real in self._real.items():
            setattr(sys.modules[_CYGRPC], name, real)
        self._real = {}

    def _standing_in_for(self, real: Any) -> Callable[..., Any]:
        def refuse(target: str, host: str) -> None:
            self._report(f"a gRPC call to {target}: nothing in this test answers for it")
            raise UnknownHostError(
                f"a gRPC call to {target}: gRPC is not emulated, and tests do not reach the "
                "network. Deploy an app with "
                'fal_gateway.deploy("owner/app", MyApp) or MyApp.spawn(), or let the host through '
                f'with @pytest.mark.fal(allow_hosts=["{host}"]).'
            )

        def channel(target: bytes, *arguments: Any) -> Any:
            text = target.decode()
            host = next((one for one in _hosts_of(text) if not _is_allowed(one)), None)
            if host is None:
                return real(target, *arguments)
            return _refusing(real, lambda: refuse(text, host))(_NOWHERE.encode(), *arguments)

        return channel


def _refusing(real: Any, refuse: Callable[[], None]) -> Any:
    """A kind of channel on which every call is refused."""

    def refused(*_: object, **__: object) -> None:
        refuse()

    return type(real.__name__, (real,), {name: refused for name in _CALLS if hasattr(real, name)})


def _hosts_of(target: str) -> list[str]:
    """The hosts of a channel's target, which may be a name, a URI, or several addresses."""
    scheme, colon, rest = target.partition(":")
    if scheme in _ON_THIS_MACHINE:
        return []
    if not colon or rest.isdigit() or scheme not in ("dns", "ipv4", "ipv6", "xds"):
        rest = target
    addresses = rest.rpartition("/")[2].split(",")
    return [urlsplit(f"//{address}").hostname or address for address in addresses]


def _is_allowed(host: str) -> bool:
    return is_local(host) or host in os.environ.get(_ALLOWED, "").split(",")
