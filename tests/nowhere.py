"""A network that leads nowhere: loopback, and a way to everywhere on which each packet is counted.

Without any way out the kernel would refuse to send, and nobody could tell who tried. So there is a
TUN device, with the routes and the name server of an ordinary machine; what is sent there comes to
its descriptor, and goes no further.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from as_user import CannotRunError, call, mount

CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
SIOCGIFINDEX, SIOCSIFFLAGS, SIOCSIFADDR, SIOCADDRT = 0x8933, 0x8914, 0x8916, 0x890B
IFF_UP, IFF_RUNNING, RTF_UP = 0x1, 0x40, 0x1

DEVICE = b"outside"
#: Addresses that are set aside for documentation.
HERE, HERE_6, NAME_SERVER = "198.51.100.1", "2001:db8::1", "203.0.113.53"
PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}
MULTICAST_REPORTS = ipaddress.ip_address("ff02::16")  # the kernel's own


class Outside:
    """The way out of this process's network namespace, which it makes.

    Raises:
        CannotRunError: the kernel does not allow it.
    """

    def __init__(self) -> None:
        call("unshare", CLONE_NEWNET)
        try:
            self.descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(
                self.descriptor, TUNSETIFF, struct.pack("16sH22x", DEVICE, IFF_TUN | IFF_NO_PI)
            )
            self._lead_here()
        except OSError as error:
            raise CannotRunError(f"no network of its own: {error}") from None

    def _lead_here(self) -> None:
        quieten()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            address = socket.inet_aton(HERE)
            request = struct.pack("16sHH4s8x", DEVICE, socket.AF_INET, 0, address)
            fcntl.ioctl(control, SIOCSIFADDR, request)
            for name in (b"lo", DEVICE):
                fcntl.ioctl(
                    control, SIOCSIFFLAGS, struct.pack("16sH14x", name, IFF_UP | IFF_RUNNING)
                )
            fcntl.ioctl(control, SIOCADDRT, route_to_everywhere())
            index = struct.unpack_from(
                "i", fcntl.ioctl(control, SIOCGIFINDEX, struct.pack("16s16x", DEVICE)), 16
            )[0]
        with suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
            own = socket.inet_pton(socket.AF_INET6, HERE_6)
            fcntl.ioctl(control, SIOCSIFADDR, struct.pack("16sIi", own, 128, index))
            # struct in6_rtmsg: destination, source, gateway, type, two lengths, metric, ...
            route = struct.pack("48xIHHILIi", 0, 0, 0, 1, 0, RTF_UP, index)
            fcntl.ioctl(control, SIOCADDRT, route)

    def packets(self) -> Iterator[str]:
        """Where each packet since the last call was meant to go."""
        with suppress(BlockingIOError):
            while data := os.read(self.descriptor, 65_536):
                meant = destination(data)
                if meant is not None:
                    yield meant

    def close(self) -> None:
        os.close(self.descriptor)


def quieten() -> None:
    """Let the kernel itself send nothing, and let nobody wait long for an answer."""
    for name, value in (
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv6/conf/default/dad_transmits", "0"),
        (f"ipv6/conf/{DEVICE.decode()}/router_solicitations", "0"),
        (f"ipv6/conf/{DEVICE.decode()}/addr_gen_mode", "1"),
        (f"ipv6/conf/{DEVICE.decode()}/dad_transmits", "0"),
        ("ipv4/tcp_syn_retries", "1"),
    ):
        with suppress(OSError):
            Path("/proc/sys/net", name).write_text(value)


def route_to_everywhere() -> bytes:
    """A ``struct rtentry``: the default route of IPv4, by way of the device."""
    global _name  # the kernel reads it by its address
    _name = ctypes.create_string_buffer(DEVICE)
    nowhere = struct.pack("HH4s8x", socket.AF_INET, 0, bytes(4))
    return struct.pack(
        "L16s16s16sHhLPhPLLH",
        *(0, nowhere, nowhere, nowhere, RTF_UP, 0, 0, 0, 0, ctypes.addressof(_name), 0, 0, 0),
    ).ljust(120, b"\0")


def destination(packet: bytes) -> str | None:
    """Where a packet is meant to go, in words; None for what the kernel sends by itself."""
    if packet[0] >> 4 == 4:
        kind, start = packet[9], 4 * (packet[0] & 15)
        address: ipaddress.IPv4Address | ipaddress.IPv6Address
        address = ipaddress.IPv4Address(packet[16:20])
    else:
        kind, start = packet[6], 40
        address = ipaddress.IPv6Address(packet[24:40])
        if address == MULTICAST_REPORTS:
            return None
    name = PROTOCOLS.get(kind, f"protocol {kind}")
    if kind not in (6, 17):
        return f"{name} {address}"
    port = int.from_bytes(packet[start + 2 : start + 4], "big")
    where = f"{name} [{address}]:{port}" if address.version == 6 else f"{name} {address}:{port}"
    return f"{where} ({question(packet[start + 8 :])})" if (kind, port) == (17, 53) else where


def question(message: bytes) -> str:
    """The name that a query of DNS asks for."""
    labels, place = [], 12
    while place < len(message) and (length := message[place]):
        labels.append(message[place + 1 : place + 1 + length].decode("ascii", "replace"))
        place += 1 + length
    return f"looking up {'.'.join(labels)}"


def ask_there(folder: Path) -> None:
    """Have names looked up out there, and nowhere else (a daemon of the host's, say)."""
    for name, text in (
        ("resolv.conf", f"nameserver {NAME_SERVER}\noptions timeout:1 attempts:1\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ):
        place = Path("/etc", name)
        if place.exists():
            own = folder / name
            own.write_text(text)
            own.chmod(0o644)
            mount(str(own), os.path.realpath(place), None, MS_BIND)
