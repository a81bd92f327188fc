"""All clients' ways to the router, and what strikes a socket on the way there."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import httpx

from emulator.errors import UnknownHostError
from emulator.network.aiohttp_context import AiohttpContext
from emulator.network.bodies import CutShortError
from emulator.network.fault import Fault, Stage
from emulator.network.grpc_entrance import GrpcEntrance
from emulator.network.httpx_entrance import HttpxEntrance
from emulator.network.matching import Connection
from emulator.network.peer import Peer
from emulator.network.reply import Body, reply
from emulator.network.resolver import Resolver, is_local
from emulator.network.router import LetThrough
from emulator.network.unix_server import UnixServer
from emulator.network.urllib_entrance import UrllibEntrance
from emulator.network.wire import Abort, ClientGoneError, Stall, Wire

if TYPE_CHECKING:
    from emulator.ledger import Exchange, Ledger
    from emulator.network.router import Router
    from emulator.network.trust import Authority
    from emulator.settings import Settings

__all__ = ["NODE", "Callers", "Network"]

#: The name of what a runner reaches over ``FAL_API_SOCKET``.
NODE = "uploader.fal"


class Callers(Protocol):
    """Who calls: runners, known by the mounts of their threads."""

    def number_of_process(self, process: int) -> int | None:
        """The number of the runner that a process is on."""

    def number_here(self) -> int | None:
        """The number of the runner that the calling thread is on."""

    def name_here(self) -> str | None:
        """Its name."""

    def name_of(self, number: int | None) -> str | None:
        """The name of a runner."""


class Network:
    """The network as this process sees it while the emulation is around it.

    Args:
        authority: signs the certificates of all hosts.
        router: decides who answers a request.
        callers: whose request it is.
        settings: the account's, as they are now.
    """

    def __init__(
        self,
        authority: Authority,
        router: Router,
        callers: Callers,
        settings: Callable[[], Settings],
    ) -> None:
        self.router = router
        self.wire = Wire(self._answer_wire, authority)
        self.api_socket = UnixServer(
            self._answer_wire, NODE, callers.number_here, callers.number_of_process
        )
        for server in (self.wire, self.api_socket):
            server.errors = _Told(router.ledger)
            server.on_refusal = self._report_refusal
        self._callers = callers
        self._settings = settings
        self.resolver = Resolver(
            self.wire, router.answers, self._lets_through, self._report, callers.number_here
        )
        self.resolver.before_lookup = self._strike_lookup
        self.resolver.before_connect = self._strike_connection
        self.resolver.before_file = self.api_socket.name_client
        self.wire.flaw_of = self._strike_handshake
        router.lets_through = self._lets_through
        router.addresses = self.resolver.addresses
        self._httpx = HttpxEntrance(self._answer_with("httpx"), router.passes)
        self._urllib = UrllibEntrance(self._answer_with("urllib"), router.passes)
        self._grpc = GrpcEntrance(self._report)
        self._aiohttp = AiohttpContext()

    def reset(self) -> None:
        """Forget names, addresses and errors."""
        self.resolver.reset()
        self.wire.errors.clear()
        self.api_socket.errors.clear()

    def enter(self, certificate: str, undo: ExitStack) -> None:
        """Take over all clients; *undo* gives them back.

        Args:
            certificate: a file with the CAs that clients shall trust.
            undo: what is called, in the opposite order, in the end.
        """
        for entrance in (self._httpx, self._urllib, self._grpc, self.resolver):
            undo.callback(entrance.uninstall)
            entrance.install()
        undo.callback(self._aiohttp.uninstall)
        self._aiohttp.install(certificate)
        undo.callback(self.wire.close_connections)
        undo.callback(self.api_socket.close_connections)

    def _lets_through(self, host: str) -> bool:
        allowed = self._settings().allow_hosts
        return is_local(host) or host in allowed or self.router.routes.passes_through(host)

    def _report(self, text: str) -> None:
        served = [place for host in self.router.hosts for place in getattr(host, "hosts", ())]
        more = f" (fal_origin serves {', '.join(served)})" if served else ""
        self.router.ledger.event("refused", f"{text}{more}")

    def _report_refusal(self, peer: Peer | None, why: str) -> None:
        runner = self._callers.name_of(peer.runner) if peer is not None else None
        by = f" by {runner}" if runner else ""
        self.router.ledger.event("refused", f"what a socket{by} sent is no HTTP request: {why}")

    # --- requests --------------------------------------------------------------------------------

    def _answer_with(self, client: str) -> Callable[[httpx.Request], httpx.Response]:
        def answer(request: httpx.Request) -> httpx.Response:
            return self.router.dispatch(request, client, self._callers.name_here())

        return answer

    def _answer_wire(self, request: httpx.Request) -> httpx.Response:
        peer = request.extensions.get("fal_peer")
        runner = self._callers.name_of(peer.runner) if peer is not None else None
        try:
            response = self.router.dispatch(request, "wire", runner)
        except (UnknownHostError, ClientGoneError):
            raise
        except LetThrough:  # of Python's clients none that is let through comes here
            return reply(502, _not_from_here(request), content_type="text/plain; charset=utf-8")
        except TimeoutError as error:
            raise Stall from error
        except OSError as error:
            raise Abort(reset=True) from error
        if self.router.faults.active or response.extensions.get("fal_may_wait"):
            stream = response.stream
            response.stream = Body(_aborting(stream), inner=stream)  # type: ignore[arg-type]
        return response

    # --- sockets that have not sent a request yet -------------------------------------------------

    def _strike_lookup(self, host: str) -> None:
        fault = self._strike("lookup", "LOOKUP", host, None, 0, self._callers.name_here())
        if fault is not None:
            raise fault.error()

    def _strike_connection(self, host: str, address: str, port: int) -> None:
        runner = self._callers.name_here()
        fault = self._strike("connect", "CONNECT", host, address, port, runner)
        if fault is not None:
            raise fault.error()

    def _strike_handshake(self, host: str, peer: Peer | None) -> str | None:
        address, port = (peer.address, peer.port) if peer else (None, 0)
        runner = self._callers.name_of(peer.runner) if peer else None
        fault = self._strike("handshake", "CONNECT", host, address, port, runner)
        return fault.flaw if fault else None

    def _strike(
        self,
        stage: Stage,
        method: str,
        host: str,
        address: str | None,
        port: int,
        runner: str | None,
    ) -> Fault | None:
        faults = self.router.faults
        if not faults.active:
            return None

        def exchange() -> Exchange:
            url = f"https://{host}:{port}/" if port else f"https://{host}/"
            opened = self.router.ledger.open("wire", method, url, (), runner)
            opened.address = address
            return opened

        return faults.strike_at(stage, Connection(host, address, runner), exchange)


def _not_from_here(request: httpx.Request) -> str:
    host = request.url.host
    return (
        f"{request.method} {request.url}: a route of fal_http lets it through, of which programs "
        f'in Node know nothing. Write @pytest.mark.fal(allow_hosts=["{host}"]).'
    )


class _Told(list[BaseException]):
    """What went wrong in answering clients behind a socket; the ledger is told at once."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def append(self, error: BaseException) -> None:
        super().append(error)
        place = traceback.extract_tb(error.__traceback__)[-1:]
        where = "".join(f" at {one.filename}:{one.lineno}" for one in place)
        self._ledger.event("error", f"{error!r}{where}, while a client over a socket was answered")


def _aborting(stream: Iterator[bytes]) -> Iterator[bytes]:
    """On the wire, what strikes a body is what the client's socket sees."""
    try:
        yield from stream
    except TimeoutError as error:
        raise Stall from error
    except CutShortError as error:
        raise Abort from error
    except ConnectionResetError as error:
        raise Abort(reset=True) from error
