"""Names and connections: every socket of this process goes to the loopback wire, or nowhere.

Emulated names resolve to addresses in 192.88.99.0/24: globally routable in Python's eyes, which the
SDK's download guard insists on, deprecated and unused since RFC 7526. Connections to them are taken
to the wire before the kernel sees them; all others but loopback are refused.
"""

from __future__ import annotations

import _socket
import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from emulator.errors import UnknownHostError
from emulator.network.peer import Peer, unknown_host

__all__ = ["Resolver", "UnknownNameError", "is_local"]

_EMULATED = ipaddress.ip_network("192.88.99.0/24")
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_HOST_NOT_FOUND = 1  # netdb.h
_LOOK_UPS = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo")
_METHODS = ("connect", "connect_ex", "sendto", "sendmsg")
_LOOPBACK_NAMES = frozenset({"localhost", "ip6-localhost", "localhost.localdomain", ""})


class Line(Protocol):
    """Where emulated connections go: the wire, or the way to it from another process."""

    @property
    def address(self) -> tuple[str, int]:
        """Where to connect to."""

    def expect(self, local_port: int, peer: Peer) -> None:
        """Say where the connection of that local port was meant to go."""


class UnknownNameError(UnknownHostError, socket.gaierror):
    """A host name that nothing in the test answers for, as a failure to resolve it."""


def is_local(host: str) -> bool:
    """Whether a host name or address is this machine's loopback (always allowed)."""
    if host in _LOOPBACK_NAMES or host.endswith(".localhost"):
        return True
    if host[:1].isdigit() or ":" in host:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        return address.is_loopback or address.is_unspecified
    return False


class Resolver:
    """Replaces name resolution and connecting in Python's ``socket`` while installed.

    Args:
        wire: where emulated connections really go.
        answers: whether something in the test answers for a host name.
        lets_through: whether a host is the real one: loopback, or let through by the test.
        report: told of every refusal.
        runner: the name of the runner that the calling thread is on.
    """

    def __init__(
        self,
        wire: Line,
        answers: Callable[[str], bool],
        lets_through: Callable[[str], bool],
        report: Callable[[str], None],
        runner: Callable[[], int | None],
    ) -> None:
        self._wire = wire
        self._answers = answers
        self._lets_through = lets_through
        self._report = report
        self._runner = runner
        self._chosen: dict[str, tuple[str, ...]] = {}
        self._address_of: dict[str, str] = {}
        self._name_of: dict[str, str] = {}
        self._real_addresses: set[str] = set()
        # Kept after uninstall: a module that was imported meanwhile may hold our functions.
        self._real: dict[str, Any] = {}
        self._installed = False
        #: Asked before each connection to an emulated name; may raise an ``OSError``.
        self.before_connect: Callable[[str, str, int], None] = lambda _name, _address, _port: None
        #: Asked before each look-up of an emulated name; may raise a ``socket.gaierror``.
        self.before_lookup: Callable[[str], None] = lambda _name: None
        #: Told of each connection to a socket file, before it is made.
        self.before_file: Callable[[socket.socket, Any], None] = lambda _sock, _path: None

    def reset(self) -> None:
        """Forget the addresses that the test chose."""
        if self._chosen:
            self._name_of.clear()
            for name, address in self._address_of.items():
                self._name_of.setdefault(address, name)
            self._chosen.clear()
        self._real_addresses.clear()

    def set(self, name: str, *addresses: str) -> None:
        """Let *name* resolve to these addresses, in this order (for example a private one).

        Raises:
            ValueError: one of them is no IP address.
        """
        for address in addresses:
            ipaddress.ip_address(address)
            self._name_of[address] = name.lower()
        self._chosen[name.lower()] = addresses

    def addresses(self, name: str) -> tuple[str, ...]:
        """The addresses of an emulated name; none for a literal address or a real host."""
        name = name.lower().rstrip(".")
        if _is_address(name) or (name not in self._chosen and self._lets_through(name)):
            return ()
        return self._chosen.get(name) or (self._allot(name),)

    # --- what stands in for socket's functions ---------------------------------------------------

    def install(self) -> None:
        """Take over ``socket``'s name resolution and connecting."""
        self._real = {
            **{name: getattr(socket, name) for name in _LOOK_UPS},
            **{name: getattr(socket.socket, name) for name in _METHODS},
        }
        self._installed = True
        connect = self._real["connect"]
        connect_ex = self._real["connect_ex"]
        sendto, sendmsg = self._real["sendto"], self._real["sendmsg"]

        def patched_connect(sock: socket.socket, address: Any) -> None:
            self._connect(connect, sock, address)

        def patched_connect_ex(sock: socket.socket, address: Any) -> int:
            try:
                return int(self._connect(connect_ex, sock, address) or 0)
            except UnknownHostError:
                raise
            except OSError as error:
                return error.errno or 111

        def patched_sendto(sock: socket.socket, data: Any, *rest: Any) -> int:
            self._check_datagram(sock, rest[-1] if rest else None)
            return int(sendto(sock, data, *rest))

        def patched_sendmsg(
            sock: socket.socket,
            buffers: Iterable[Any],
            ancdata: Iterable[Any] = (),
            flags: int = 0,
            address: Any = None,
        ) -> int:
            self._check_datagram(sock, address)
            return int(sendmsg(sock, buffers, ancdata, flags, address))

        socket.getaddrinfo = self._getaddrinfo
        socket.gethostbyname = self._gethostbyname
        socket.gethostbyname_ex = self._gethostbyname_ex
        socket.gethostbyaddr = self._gethostbyaddr
        socket.getnameinfo = self._getnameinfo
        socket.socket.connect = patched_connect  # type: ignore[method-assign,assignment]
        socket.socket.connect_ex = patched_connect_ex  # type: ignore[method-assign,assignment]
        socket.socket.sendto = patched_sendto  # type: ignore[method-assign,assignment]
        socket.socket.sendmsg = patched_sendmsg  # type: ignore[method-assign,assignment]

    def uninstall(self) -> None:
        """Give them back."""
        if not self._installed:
            return
        self._installed = False
        real = self._real
        for name in _LOOK_UPS:
            setattr(socket, name, real[name])
        for name in _METHODS:
            if real[name] is getattr(_socket.socket, name):
                delattr(socket.socket, name)  # it was inherited from the C class
            else:
                setattr(socket.socket, name, real[name])

    def _getaddrinfo(
        self,
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        real = self._real["getaddrinfo"]
        name = _text(host)
        if name is None or _is_address(name):
            return list(real(host, port, family, type, proto, flags))
        addresses = self.lookup(name)
        if addresses is None:
            found = list(real(host, port, family, type, proto, flags))
            self._real_addresses.update(str(info[4][0]) for info in found)
            return found
        return self._numeric(addresses, port, family, type, proto, flags)

    def _numeric(self, addresses: Iterable[str], port: Any, family: int, *rest: int) -> list[Any]:
        """Entries for literal addresses, those of another family left out."""
        real = self._real["getaddrinfo"]
        found: list[Any] = []
        failure: socket.gaierror | None = None
        for address in addresses:
            try:
                found += real(address, port, family, *rest)
            except socket.gaierror as error:
                failure = error
        if not found and failure is not None:
            raise failure
        return found

    def _gethostbyname(self, host: Any) -> str:
        name = _text(host) or ""
        addresses = None if _is_address(name) else self.lookup(name)
        return str(self._real["gethostbyname"](host)) if addresses is None else addresses[0]

    def _gethostbyname_ex(self, host: Any) -> Any:
        name = _text(host) or ""
        addresses = None if _is_address(name) else self.lookup(name)
        return (
            self._real["gethostbyname_ex"](host) if addresses is None else (name, [], [*addresses])
        )

    def _gethostbyaddr(self, host: Any) -> Any:
        address = _text(host) or ""
        if address == socket.gethostname():  # getfqdn(), which mail and logs ask
            return address, [], ["127.0.0.1"]
        if not _is_address(address):
            address = self._gethostbyname(host)
        if self._is_real(address):
            return self._real["gethostbyaddr"](host)
        name = self._name_of.get(address)
        if name is None:
            raise socket.herror(_HOST_NOT_FOUND, f"nothing in this test has the address {address}")
        return name, [], [address]

    def _getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        address = str(sockaddr[0])
        if not _is_address(address) or self._is_real(address):
            return self._real["getnameinfo"](sockaddr, flags)  # type: ignore[no-any-return]
        name = self._name_of.get(address)
        if flags & socket.NI_NAMEREQD and name is None:
            raise socket.gaierror(socket.EAI_NONAME, f"nothing in this test has {address}")
        numeric = (flags | socket.NI_NUMERICHOST) & ~socket.NI_NAMEREQD
        host, service = self._real["getnameinfo"](sockaddr, numeric)
        return host if name is None or flags & socket.NI_NUMERICHOST else name, service

    def _is_real(self, address: str) -> bool:
        return not self._installed or address in self._real_addresses or self._lets_through(address)

    def lookup(self, name: str) -> tuple[str, ...] | None:
        """The emulated addresses of a name; None: ask the real resolver.

        Raises:
            UnknownNameError: nothing answers for it.
            socket.gaierror: what a fault raises.
        """
        name = name.lower().rstrip(".")
        if not self._installed:
            return None
        if name not in self._chosen and self._lets_through(name):
            return None
        self.before_lookup(name)
        if name in self._chosen:
            return self._chosen[name]
        if not self._answers(name):
            message = str(unknown_host(name, f"looking up {name}"))
            self._report(f"looking up {name}: nothing in this test answers for it")
            raise UnknownNameError(socket.EAI_NONAME, message)
        return (self._allot(name),)

    def _allot(self, name: str) -> str:
        if name not in self._address_of:
            # 254 names have an address each; more share them, which only names can tell apart.
            address = str(_EMULATED[1 + len(self._address_of) % 254])
            self._address_of[name] = address
            self._name_of.setdefault(address, name)
        return self._address_of[name]

    def _connect(self, real: Callable[[Any, Any], Any], sock: socket.socket, address: Any) -> Any:
        if not self._installed or sock.family not in _INTERNET:
            if self._installed and sock.family == socket.AF_UNIX:
                self.before_file(sock, address)
            return real(sock, address)
        host, port = _text(address[0]) or "", address[1]
        if not _is_address(host):
            family, kind = sock.family, sock.type
            host = str(self._getaddrinfo(host, port, family, kind)[0][4][0])
        if not is_local(host) and self.admits(host, port, sock.type):
            return self._connect_to_wire(real, sock, host, port)
        return self._connect_for_real(real, sock, (host, *address[1:]))

    def admits(self, host: str, port: int, kind: int) -> bool:
        """Whether a connection to this address goes to the wire; False: it is let through.

        Raises:
            UnknownHostError: nothing answers there.
            OSError: what a fault raises.
        """
        if host in self._real_addresses or self._lets_through(host):
            return False
        if not self._is_emulated(host) or kind != socket.SOCK_STREAM:
            self._report(f"connecting to {host}:{port}: nothing in this test answers for it")
            raise unknown_host(host, f"connecting to {host}:{port}", f"https://{host}:{port}/")
        self.before_connect(self._name_of.get(host, host), host, port)
        return True

    def _check_datagram(self, sock: socket.socket, address: Any) -> None:
        """Refuse one to elsewhere: nothing in a test answers them."""
        if address is None or not self._installed or sock.family not in _INTERNET:
            return
        host, port = _text(address[0]) or "", address[1]
        if not _is_address(host):
            host = str(self._getaddrinfo(host, port, sock.family, sock.type)[0][4][0])
        if not is_local(host):
            self.admits(host, port, socket.SOCK_DGRAM)

    def _connect_for_real(
        self, real: Callable[[Any, Any], Any], sock: socket.socket, address: Any
    ) -> Any:
        return real(sock, address)

    def _connect_to_wire(
        self, real: Callable[[Any, Any], Any], sock: socket.socket, host: str, port: int
    ) -> Any:
        target: Any = self._wire.address
        if sock.family == socket.AF_INET6:
            target = (f"::ffff:{target[0]}", target[1], 0, 0)
        try:
            return real(sock, target)
        finally:
            # Also for a connection still under way (non-blocking): its local port is chosen.
            self._wire.expect(sock.getsockname()[1], Peer(host, port, self._runner()))

    def _is_emulated(self, address: str) -> bool:
        if address in self._name_of or self._answers(address):
            return True
        return address.startswith("192.88.99.")


def _text(host: Any) -> str | None:
    if isinstance(host, (bytes, bytearray)):
        return bytes(host).decode("idna") if host else ""
    return host if host is None else str(host)


def _is_address(host: str) -> bool:
    if not (host[:1].isdigit() or ":" in host):
        return False
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
