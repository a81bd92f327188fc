"""One fal account on this machine: composes volumes, network, CDN, clock and runners.

``start`` makes a fresh account and puts the emulation around the process; ``stop`` takes it away
and leaves the process as it was; what is worth keeping between the two (the certificate authority,
the wire, moto) lives from the first ``start`` to ``close``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import respx

from emulator.clock import Clock
from emulator.distributed.data import DistributedData
from emulator.environment import Environment
from emulator.errors import EmulatorError, UnknownHostError
from emulator.fleets.gateway import Gateway
from emulator.hosts.cdn import CDNHost
from emulator.hosts.origin import Origin
from emulator.hosts.rest import RestHost
from emulator.hosts.runner import RunnerHost
from emulator.identity import Identities
from emulator.ledger import Exchange, Ledger
from emulator.network.aiohttp_context import AiohttpContext
from emulator.network.bodies import CutShortError
from emulator.network.fault import Fault, Stage
from emulator.network.faults import Faults
from emulator.network.httpx_entrance import HttpxEntrance
from emulator.network.matching import Connection
from emulator.network.peer import Peer
from emulator.network.reply import Body
from emulator.network.resolver import Resolver, is_local
from emulator.network.router import Router
from emulator.network.routes import Routes
from emulator.network.trust import Authority
from emulator.network.urllib_entrance import UrllibEntrance
from emulator.network.wire import Abort, Stall, Wire
from emulator.runners.killing import Killer
from emulator.runners.registry import Runners
from emulator.sdk import SDKState
from emulator.settings import Settings
from emulator.storage.cdn import CDN
from emulator.storage.disk import Disk, remove_tree
from emulator.storage.objects import ObjectStore
from emulator.storage.volume import Volume

if TYPE_CHECKING:
    from emulator.runners.runner import Runner

__all__ = ["Emulator"]


class Emulator:
    """The fake fal platform of one account.

    Use it as a context manager, or ``start`` and ``stop`` it for each test and ``close`` it in the
    end. All of that happens in one thread; what the process does meanwhile in others is emulated
    too, as long as they were started after the first ``start``.

    Args:
        settings: the choices of the account; see :class:`Settings`.
        root: an empty directory for volumes; default: a temporary one, removed by ``close``.
        authority: the certificate authority in PEM, with its key; default: a new one.
        visible: paths below ``/tmp`` that this process needs although ``/tmp`` is mounted over.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
        authority: bytes | None = None,
        visible: Iterable[str] = (),
    ) -> None:
        self.settings = settings or Settings()
        self._given = self.settings
        self._own_root = root is None
        self._root = os.path.realpath(root or tempfile.mkdtemp(prefix="fal-emulator-"))
        self._authority_pem = authority
        self._visible = tuple(visible)
        self._prepared = False
        self._undo = ExitStack()
        self.active = False

        self.clock = Clock()
        self.ledger = Ledger(self.clock.now)
        self.origin = Origin()
        self.faults = Faults(self.clock.sleep)
        self._routes = Routes()
        self._identities = Identities(self.clock.now)
        self._router = Router(self.ledger, self._routes, self.faults)
        self._disk = Disk(self._root)
        self._sdk = SDKState()
        self._gateway = Gateway(
            self.clock, self.ledger, self._identities, lambda: self.settings, lambda: self._runners
        )

    def __repr__(self) -> str:
        return f"<Emulator: {'running' if self.active else 'stopped'}>"

    def __enter__(self) -> Emulator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.close()

    # --- what a test works with ------------------------------------------------------------------

    @property
    def data(self) -> Volume:
        """``/data``: shared by all runners, kept until deleted."""
        return self._disk.data

    @property
    def tmp(self) -> Volume:
        """``/tmp`` as the test itself has it; each runner has another."""
        return self._disk.tmp

    @property
    def cdn(self) -> CDN:
        """The files on the CDN."""
        return self._cdn

    @property
    def http(self) -> respx.MockRouter:
        """respx's router: routes added to it answer every client."""
        return self._routes.router

    @property
    def resolver(self) -> Resolver:
        """Names and their addresses."""
        return self._resolver

    def runner(
        self,
        app: type,
        *,
        isolation: str = "thread",
        gpu: str | bool | None = None,
        env: Mapping[str, str] | None = None,
        load: str = "pickle",
        server: str | None = None,
        datacenter: str | None = None,
    ) -> Runner:
        """Boot an app on a new runner, as the platform does, and wait until it is set up.

        Args:
            app: a subclass of ``fal.App``.
            isolation: ``"thread"``: a thread of this process with mounts of its own, in
                milliseconds. ``"process"``: a process, for crashes, signals, CUDA, and several apps
                with an environment each.
            gpu: a machine type, such as ``"H100"``, whose GPUs the runner pretends to have; True:
                the app's own. It gets their ``nvidia-smi`` [§4.9].
            env: environment variables (secrets) of the app.
            load: how a process gets the app: ``"pickle"``, as ``fal deploy`` sends it; or
                ``"import"``, from its module.
            server: the server it is on, where a setting lets runners see different things in
                /data; default: one of its own.
            datacenter: where that server is; default: ``Settings.region``.

        Raises:
            EmulatorError: the arguments make no sense; says what to write.
            BaseException: whatever the app's ``setup`` raised.
        """
        self._check_active("runner()")
        placement = server, datacenter
        return self._runners.boot(app, isolation, gpu, dict(env or {}), load, placement)

    @property
    def runners(self) -> list[Runner]:
        """All runners of this test, those that ended included."""
        return self._runners.all

    @property
    def gateway(self) -> Gateway:
        """Deployments, and the ways to call them."""
        self._check_active("gateway")
        return self._gateway

    @property
    def fork_server(self) -> int | None:
        """The process that runners' processes are forked from; None before the first of them."""
        return self._runners.fork_server if self._prepared else None

    @property
    def directory(self) -> str | None:
        """Where the volumes of the test under way really are."""
        return self._disk.directory

    def come_to_rest(self) -> None:
        """Give what goes on by itself a moment to come to its end, unless a gate holds something.

        Between the phases of a test its output is read, from streams that must not be written to
        meanwhile: Python before 3.12.4 crashes of that.
        """
        if self.active:
            self._gateway.come_to_rest(unless=lambda: self.faults.holds)

    # --- lifetime --------------------------------------------------------------------------------

    def start(self, name: str = "test", settings: Settings | None = None) -> None:
        """Make a fresh account and put the emulation around this process.

        Args:
            name: names the directory of the volumes.
            settings: of this time; default: those given to the constructor.

        Raises:
            NamespaceRefusedError: the kernel does not allow private mounts. Nothing is changed.
        """
        if self.active:
            raise EmulatorError("This emulator runs already. Call stop() or reset() first.")
        self.settings = (settings or self._given).model_copy()
        self._prepare()
        self._disk.mount(name)
        self.data.between = self._between
        try:
            # The first time only. Its threads see what this one sees now: a side effect of a user's
            # route that writes to /data, called on one of them, must not find the host's.
            self._wire.start()
            self._reset_state()
            self._limit_volumes()
            self._surround()
        except BaseException:
            self._disk.unmount(keep=False)
            raise

    def _surround(self) -> None:
        """Put everything in place; what undoes it is called in the opposite order."""
        certificate = self._certificate()
        with ExitStack() as undo:
            undo.callback(self._sdk.restore)
            self._sdk.save(self._environment.home)
            undo.callback(self._environment.leave)
            self._environment.enter(certificate)
            for entrance in (self._httpx, self._urllib, self._resolver):
                undo.callback(entrance.uninstall)
                entrance.install()
            undo.callback(self._aiohttp.uninstall)
            self._aiohttp.install(certificate)
            undo.callback(self._wire.close_connections)
            undo.callback(self._cdn.reset, self.settings)
            undo.callback(self.clock.reset)
            undo.callback(self._between.stop)
            undo.callback(self._sdk.drain)
            undo.callback(self._gateway.end)
            undo.callback(self._runners.stop_all)
            undo.callback(self._gateway.close)
            # First of all: what a gate holds would keep runners and connections from ending.
            undo.callback(self.faults.end)
            self._undo = undo.pop_all()
        self.active = True

    def stop(self, keep: bool = False) -> str | None:
        """Shut down the runners and leave the process as it was before ``start``.

        Args:
            keep: keep the volumes.

        Returns:
            Where the volumes were kept.
        """
        self.active = False
        try:
            self._undo.close()
        finally:
            kept = self._disk.unmount(keep)
        return kept

    def reset(self, settings: Settings | None = None) -> None:
        """Start again with a fresh account."""
        self.stop()
        self.start(settings=settings)

    def close(self) -> None:
        """Give back what lives longer than one ``start``: threads, descriptors, files."""
        if self.active:
            self.stop()
        if self._prepared:
            self._prepared = False
            self._runners.close()
            self._wire.stop()
            self._store.close()
            for path in (self._bundle, self._certificate_file):
                if os.path.exists(path):
                    os.unlink(path)
            remove_tree(self._environment.home)
            os.rmdir(self._spill)
        self._disk.close()
        if self._own_root and os.path.isdir(self._root) and not os.listdir(self._root):
            os.rmdir(self._root)

    # --- inside ----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """What lives from the first ``start`` to ``close``."""
        if self._prepared:
            return
        pem = self._authority_pem
        self._authority = Authority.create() if pem is None else Authority.from_pem(pem)
        self._certificate_file = os.path.join(self._root, "ca.pem")
        self._bundle = os.path.join(self._root, "ca-and-system.pem")
        self._authority.write(self._certificate_file)
        home = os.path.join(self._root, "home")
        os.makedirs(home, exist_ok=True)
        self._environment = Environment(home)
        self._disk.keep_visible(self._visible)
        self._wire = Wire(self._answer_wire, self._authority)
        self._spill = os.path.join(self._root, "objects")
        os.makedirs(self._spill, exist_ok=True)
        self._store = ObjectStore(self._spill, now=self.clock.now)
        self._cdn = CDN(self._store, self.clock, self.ledger, self.settings)
        settings = lambda: self.settings  # noqa: E731
        self._between = DistributedData(self.clock, self.ledger, settings, lambda: self.data)
        self._runners = Runners(
            self._disk, self.ledger, self._identities, settings, self.clock, self._between.place
        )
        self._runners.ended = self._gateway.runner_ended
        self._connect_network()
        self._prepared = True

    def _connect_network(self) -> None:
        router = self._router
        router.hosts = [
            self.origin,
            RestHost(self._cdn, self._identities, self._runners.is_outside_of_requests),
            CDNHost(self._cdn, self._identities),
            RunnerHost(self._runners.named),
        ]
        router.lets_through = self._lets_through
        self._resolver = Resolver(
            self._wire,
            router.answers,
            self._lets_through,
            self._report_refusal,
            self._runners.number_here,
        )
        self._resolver.before_lookup = self._strike_lookup
        self._resolver.before_connect = self._strike_connection
        self._wire.flaw_of = self._strike_handshake
        router.addresses = self._resolver.addresses
        self._runners.connect(self._wire, self._resolver)
        router.before_request = self.clock.keep_appointments
        self._httpx = HttpxEntrance(self._answer_with("httpx"), router.passes)
        self._urllib = UrllibEntrance(self._answer_with("urllib"), router.passes)
        self._aiohttp = AiohttpContext()
        self.clock.volumes = self._runners.backings
        self.faults.killer = Killer(
            self._runners.named, self._runners.newest_process, lambda: self._disk.directory
        )

    def _reset_state(self) -> None:
        self._cdn.reset(self.settings)
        self.ledger.reset()
        self.origin.reset()
        self.faults.reset()
        self._routes.reset()
        self._identities.reset()
        self._resolver.reset()
        self._runners.reset()
        self._gateway.reset()
        self._wire.errors.clear()

    def _limit_volumes(self) -> None:
        if self.settings.data_size is not None:
            self.data.limit(self.settings.data_size)
        if self.settings.tmp_size is not None:
            self.tmp.limit(self.settings.tmp_size)

    def _certificate(self) -> str:
        """The file of trusted CAs; with the usual ones only where real hosts are let through."""
        if not self.settings.allow_hosts:
            return self._certificate_file
        if not os.path.exists(self._bundle):
            self._authority.write_bundle(self._bundle)
        return self._bundle

    def _lets_through(self, host: str) -> bool:
        allowed = self.settings.allow_hosts
        return is_local(host) or host in allowed or self._routes.passes_through(host)

    def _answer_with(self, client: str) -> Callable[[httpx.Request], httpx.Response]:
        def answer(request: httpx.Request) -> httpx.Response:
            return self._router.dispatch(request, client, self._runners.name_here())

        return answer

    def _answer_wire(self, request: httpx.Request) -> httpx.Response:
        peer = request.extensions.get("fal_peer")
        runner = self._runners.name_of(peer.runner) if peer is not None else None
        try:
            response = self._router.dispatch(request, "wire", runner)
        except UnknownHostError:
            raise
        except TimeoutError as error:
            raise Stall from error
        except OSError as error:
            raise Abort(reset=True) from error
        if self.faults.active:
            response.stream = Body(_aborting(response.stream))  # type: ignore[arg-type]
        return response

    def _strike_lookup(self, host: str) -> None:
        fault = self._strike_socket("lookup", "LOOKUP", host, None, 0, self._runners.name_here())
        if fault is not None:
            raise fault.error()

    def _strike_connection(self, host: str, address: str, port: int) -> None:
        runner = self._runners.name_here()
        fault = self._strike_socket("connect", "CONNECT", host, address, port, runner)
        if fault is not None:
            raise fault.error()

    def _strike_handshake(self, host: str, peer: Peer | None) -> str | None:
        address, port = (peer.address, peer.port) if peer else (None, 0)
        runner = self._runners.name_of(peer.runner) if peer else None
        fault = self._strike_socket("handshake", "CONNECT", host, address, port, runner)
        return fault.flaw if fault else None

    def _strike_socket(
        self,
        stage: Stage,
        method: str,
        host: str,
        address: str | None,
        port: int,
        runner: str | None,
    ) -> Fault | None:
        """What strikes a socket that has not sent a request yet."""
        if not self.faults.active:
            return None

        def exchange() -> Exchange:
            url = f"https://{host}:{port}/" if port else f"https://{host}/"
            opened = self.ledger.open("wire", method, url, (), runner)
            opened.address = address
            return opened

        return self.faults.strike_at(stage, Connection(host, address, runner), exchange)

    def _report_refusal(self, text: str) -> None:
        served = ", ".join(self.origin.hosts)
        self.ledger.event("refused", f"{text} (fal_origin serves {served})" if served else text)

    def _check_active(self, what: str) -> None:
        if not self.active:
            raise EmulatorError(f"{what} needs a running emulator. Call start() first.")


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
