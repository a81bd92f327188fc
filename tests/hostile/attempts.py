"""What a hostile app tries, and what comes of it: the tables of ``docs/isolation.md``.

Each attempt raises if it was stopped, and returns if it got through. They are meant for the machine
that ``no_escape.py`` makes, as root: there is a canary in the host's ``/data``, credentials are in
the home and in the environment, and packets are counted.
"""

from __future__ import annotations

import _socket
import ctypes
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECRET = "data/precious"
ELSEWHERE = ("1.1.1.1", 443)
ELSEWHERE_6 = ("2606:4700::1111", 443)
SECONDS = 0.2  # it is sent at once, and nobody answers


class StoppedError(Exception):
    """An attempt came to nothing, though nothing was raised."""


@dataclass(frozen=True)
class Attempt:
    """One of them.

    Attributes:
        what: it tries, for the table.
        why: that is stopped, or is not.
        stopped: in which isolations of runners.
        error: part of what is raised where it is stopped.
        seen: what the machine sees where it is not: ``"opened"`` or ``"packets"``.
        afterwards: told the result once the runner has ended; raises if it came to nothing.
    """

    run: Callable[[], object]
    what: str
    why: str
    stopped: tuple[str, ...] = ("thread", "process")
    error: str = ""
    seen: str = ""
    afterwards: Callable[[object], None] | None = None


ATTEMPTS: dict[str, Attempt] = {}


def stopped(what: str, why: str, error: str, **more: object) -> Callable[..., Callable[[], object]]:
    def add(run: Callable[[], object]) -> Callable[[], object]:
        ATTEMPTS[run.__name__] = Attempt(run, what, why, error=error, **more)  # type: ignore[arg-type]
        return run

    return add


def gets_through(what: str, why: str, seen: str = "") -> Callable[..., Callable[[], object]]:
    return stopped(what, why, "", stopped=(), seen=seen)


def read(path: str) -> None:
    assert Path(path).read_bytes()


def in_another_program(*command: str) -> str:
    """The output of a program that has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise StoppedError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return done.stdout


# --- files ---------------------------------------------------------------------------------------

OWN_DATA = "`/data` is the test's own in its namespace, and the host's is not mounted there at all"
OWN_TMP = "`/tmp` is the runner's own; of the host's there is what pytest itself needs"
NO_FILE = "No such file or directory"


@stopped("open a file of the host's `/data`", OWN_DATA, NO_FILE)
def opens_data():
    read(f"/{SECRET}")


@stopped(
    "go up from `/data` and `/tmp` (`..`, also from a descriptor) and down again", OWN_DATA, NO_FILE
)
def goes_up():
    for volume in ("/data", "/tmp"):
        folder = os.open(volume, os.O_PATH)
        try:
            up = os.open("../../..", os.O_PATH, dir_fd=folder)
            try:
                os.close(os.open(SECRET, os.O_RDONLY, dir_fd=up))
            finally:
                os.close(up)
        finally:
            os.close(folder)


@stopped("walk `/`, but for `/proc`, looking for it", OWN_DATA, "not found")
def walks():
    for folder, folders, names in os.walk("/"):
        if "precious" in names:
            read(f"{folder}/precious")
            return
        if folder.count("/") > 2:
            folders.clear()
        folders[:] = [name for name in folders if folder != "/" or name not in ("proc", "sys")]
    raise StoppedError("not found")


@stopped("unmount `/data`, to see what is below it", OWN_DATA, NO_FILE)
def unmounts_data():
    while ctypes.CDLL(None).umount2(b"/data", 2) == 0:
        pass
    read(f"/{SECRET}")


@stopped("leave by `chroot` and `..`", "the namespace's root is the emulation's", NO_FILE)
def leaves_by_chroot():
    up = "os.mkdir('/tmp/x'); os.chroot('/tmp/x'); os.chdir('../' * 40); os.chroot('.')"
    in_another_program(sys.executable, "-c", f"import os; {up}; open('/{SECRET}').read()")


@stopped("open another program's file in `/tmp`", OWN_TMP, "not found")
def opens_a_file_in_tmp():
    # Not Path.rglob, which fails where a folder goes: volumes of earlier tests are being removed.
    for folder, _, names in os.walk("/tmp"):
        if "of-another-program" in names:
            read(f"{folder}/of-another-program")
            return
    raise StoppedError("not found")


@stopped(
    "write to `/`",
    "the root is a file system in memory, the emulation's own (it stays there for later tests)",
    "not there",
)
def writes_to_the_root():
    Path("/written").write_text("x")
    if not os.path.exists(f"/proc/{os.getppid()}/root/written"):
        raise StoppedError("it is not there")


@stopped(
    "find credentials of fal, Amazon or Google in its environment",
    "nobody's stand there",
    "KeyError",
)
def looks_at_the_environment():
    names = ("FAL_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    if not any("lark" in os.environ.get(name, "") for name in names):
        raise StoppedError("KeyError")


@gets_through(
    "find other credentials in its environment (`HF_TOKEN`)", "an app's test may need them"
)
def looks_at_the_rest_of_the_environment():
    assert "lark" in os.environ["HF_TOKEN"]


@gets_through(
    "read the environment with which pytest, or what started it, began: `/proc/*/environ`",
    "the kernel shows it to the same user",
)
def looks_at_the_parents_environment():
    number, found = os.getpid(), b""
    while number > 1:
        found += Path(f"/proc/{number}/environ").read_bytes()
        number = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"FAL_KEY=lark" in found


@gets_through(
    "read files of your home (`~/.netrc`, `~/.ssh`, `~/.fal/auth0_token`)",
    "everything but `/data`, `/tmp` and `/` is the host's",
    "opened",
)
def opens_the_home():
    read(os.path.expanduser("~/.fal/auth0_token"))


@gets_through(
    "write to your home, or as root to `/etc`",
    "everything but `/data`, `/tmp` and `/` is the host's",
    "opened",
)
def writes_to_the_home():
    with open("/etc/passwd", "a"):
        Path(os.path.expanduser("~/written")).write_text("x")


@gets_through(
    "let the SDK run without our environment (`env -i HOME=~ fal ...`)",
    "what stands in for your login is in the environment",
    "opened",
)
def empties_the_environment():
    asks = "from fal.auth import key_credentials; print(key_credentials())"
    home = f"HOME={os.path.expanduser('~')}"
    assert "lark" in in_another_program("env", "-i", home, sys.executable, "-c", asks)


@gets_through(
    "open `/data` by way of a process outside, `/proc/<parent>/root/data`",
    "root may look at every process, a user at pytest's own",
    "opened",
)
def opens_another_process_root():
    read(f"/proc/{os.getppid()}/root/{SECRET}")


@gets_through(
    "as root: go back to the host's mounts (`nsenter`)", "root may join every namespace", "opened"
)
def joins_another_namespace():
    in_another_program("nsenter", "-t", str(os.getppid()), "-m", "cat", f"/{SECRET}")


@stopped(
    "open `/data` by a descriptor that is open: `/proc/self/fd`",
    "pytest keeps one of the host's root, to come back to; a runner's process has none",
    NO_FILE,
    stopped=("process",),
    seen="opened",
)
def opens_by_a_descriptor():
    for number in os.listdir("/proc/self/fd"):
        if os.path.exists(f"/proc/self/fd/{number}/{SECRET}"):
            read(f"/proc/self/fd/{number}/{SECRET}")
            return
    raise StoppedError(NO_FILE)


# --- processes -----------------------------------------------------------------------------------


def is_running(process: object) -> None:
    if (
        not Path(f"/proc/{process}/cmdline").exists()
        or not Path(f"/proc/{process}/cmdline").read_bytes()
    ):
        raise StoppedError("it has ended")


DAEMON = """
import os, sys
os.fork() and sys.exit()
os.setsid()
print(os.getpid(), flush=True)
os.close(1)
os.close(2)
os.execvp("sleep", ["sleep", "60"])
"""


@stopped(
    "start a daemon that outlives its runner",
    "what has a process's mounts ends with it; a thread's programs do not, as pytest's do not",
    "it has ended",
    stopped=("process",),
    afterwards=is_running,
)
def starts_a_daemon():
    return int(in_another_program(sys.executable, "-c", DAEMON))


@gets_through(
    "start one in a mount namespace of its own (`unshare -m`)",
    "it does not count as the runner's then",
)
def starts_a_daemon_of_its_own():
    return int(in_another_program("unshare", "-m", sys.executable, "-c", DAEMON))


@gets_through("kill the process that started it", "it is the same user")
def kills_its_parent():
    os.kill(os.getppid(), 0)


# --- the network ---------------------------------------------------------------------------------

REFUSED = "nothing answers for"
NOT_PYTHONS = (
    "only Python's `socket` is taken over, in pytest's process and in those forked from it"
)


def connect(
    address: tuple[str, int], family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
) -> None:
    with socket.socket(family, kind) as sock:
        sock.settimeout(SECONDS)
        sock.connect(address)


@stopped(
    "connect to an address, `1.1.1.1:443`", "refused, with the line that would allow it", REFUSED
)
def connects():
    connect(ELSEWHERE)


@stopped("connect to one of IPv6", "refused, likewise", REFUSED)
def connects_by_ipv6():
    connect(ELSEWHERE_6, socket.AF_INET6)


@stopped("ask a cloud's metadata service, `169.254.169.254`", "refused, likewise", REFUSED)
def asks_the_metadata_service():
    connect(("169.254.169.254", 80))


@stopped(
    "connect to an address that emulated names have, `192.88.99.99`",
    "it is the emulation that answers, with 502",
    "502",
)
def connects_to_an_emulated_address():
    with socket.create_connection(("192.88.99.99", 80), SECONDS) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: 192.88.99.99\r\n\r\n")
        if (answer := sock.recv(100)).startswith(b"HTTP/1.1 502"):
            raise StoppedError(answer.decode())


@stopped("look up a name", "refused, before anybody is asked", REFUSED)
def looks_up_a_name():
    socket.getaddrinfo("example.com", 443)


@stopped("look up the name of an address", "the emulation knows no name for it", "")
def looks_up_an_address():
    if socket.getnameinfo(ELSEWHERE, 0)[0] == ELSEWHERE[0]:
        socket.gethostbyaddr(ELSEWHERE[0])


@stopped("connect a datagram socket", "refused", REFUSED)
def connects_by_udp():
    connect(ELSEWHERE, kind=socket.SOCK_DGRAM)


@stopped("send a datagram (`sendto`)", "refused", REFUSED)
def sends_a_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ELSEWHERE)


@stopped("send one with `sendmsg`", "refused", REFUSED)
def sends_a_message():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.sendmsg([b"x"], [], 0, ELSEWHERE_6)


@stopped("as root: ping, from a raw socket", "refused", REFUSED)
def pings():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.sendto(b"\x08\x00\xf7\xff\x00\x00\x00\x00", (ELSEWHERE[0], 0))


@stopped("connect from a forked process (`multiprocessing`)", "it has what its parent has", REFUSED)
def connects_from_a_fork():
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = multiprocessing.get_context("fork").Process(target=_tell, args=(sender,))
        child.start()
    answer = receiver.recv()
    child.join()
    if answer:
        raise StoppedError(answer)


def _tell(sender):
    try:
        connects()
    except Exception as error:
        sender.send(str(error))
    else:
        sender.send("")


@gets_through(
    "put the original functions back into `socket`",
    "they are there, as for all of Python",
    "packets",
)
def puts_socket_back():
    ours = socket.socket.connect
    socket.socket.connect = _socket.socket.connect
    try:
        _attempt(lambda: connect(ELSEWHERE))
    finally:
        socket.socket.connect = ours


@gets_through("use the class below, `_socket.socket`", "a class in C cannot be changed", "packets")
def uses_the_class_below():
    sock = _socket.socket()
    try:
        sock.settimeout(SECONDS)
        _attempt(lambda: sock.connect(ELSEWHERE))
    finally:
        sock.close()


@gets_through(
    "connect by C: `ctypes`, `libcurl`, `uvloop`, any extension with sockets of its own",
    NOT_PYTHONS,
    "packets",
)
def connects_by_ctypes():
    libc = ctypes.CDLL(None, use_errno=True)
    sock = libc.socket(socket.AF_INET, socket.SOCK_DGRAM, 0)
    try:
        where = (
            struct.pack("=H", socket.AF_INET)
            + struct.pack("!H", 9)
            + socket.inet_aton(ELSEWHERE[0])
        )
        assert libc.sendto(sock, b"x", 1, 0, where.ljust(16, b"\0"), 16) == 1
    finally:
        os.close(sock)


@gets_through("start a program that connects: `curl`", NOT_PYTHONS, "packets")
def starts_curl():
    subprocess.run(["curl", "-s", "-m", "1", f"http://{ELSEWHERE[0]}/"], check=False)


@gets_through(
    "start another Python (`python -c`, `multiprocessing` with spawn)", NOT_PYTHONS, "packets"
)
def starts_another_python():
    sends = f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', {ELSEWHERE!r})"
    in_another_program(sys.executable, "-c", sends)


@gets_through(
    "as root: send frames, past the addresses (`AF_PACKET`)",
    "only the addresses of IP are looked at",
    "packets",
)
def sends_frames():
    packet = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, bytes(4), b"\1\1\1\1")
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
        sock.sendto(packet + struct.pack("!HHHH", 9, 9, 8, 0), ("outside", 0x0800))


@gets_through(
    "connect to a Unix socket, of Docker's daemon, say, or an abstract one",
    "they do not leave the machine",
)
def connects_to_a_unix_socket():
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(f"\0hostile-{os.getpid()}")
        server.listen()
        client.connect(server.getsockname())


def _attempt(action: Callable[[], object]) -> None:
    """Whether it is answered is no matter: it is sent."""
    try:
        action()
    except TimeoutError:
        return
