"""One fal account on this machine: composes volumes, network, CDN, clock and runners.

``start`` makes a fresh account and puts the emulation around the process; ``stop`` takes it away
and leaves the process as it was; what is worth keeping between the two (the certificate authority,
the wire, moto) lives from the first ``start`` to ``close``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import respx

from emulator.clock import Clock
from emulator.distributed.data import DistributedData
from emulator.environment import Environment
from emulator.errors import EmulatorError, FilesystemError
from emulator.fleets.gateway import Gateway
from emulator.fleets.spawning import Spawning
from emulator.fleets.webhooks import Webhooks
from emulator.hosts.cdn import CDNHost
from emulator.hosts.files import FilesHost, PlatformFilesHost
from emulator.hosts.gateway import GatewayHost
from emulator.hosts.git import Git
from emulator.hosts.google import GoogleHost
from emulator.hosts.kv import KVHost
from emulator.hosts.origin import Origin
from emulator.hosts.platform_api import Payloads, PlatformAPI
from emulator.hosts.queues import Queues
from emulator.hosts.rest import RestHost
from emulator.hosts.runner import RunnerHost
from emulator.hosts.s3 import S3Host
from emulator.hosts.uploader import UploaderHost
from emulator.hosts.webhooks import WebhookReceiver
from emulator.identity import Identities
from emulator.ledger import Ledger
from emulator.network.certificates import Certificates
from emulator.network.faults import Faults
from emulator.network.network import Network
from emulator.network.resolver import Resolver
from emulator.network.router import Router
from emulator.network.routes import Routes
from emulator.realtime_tokens import RealtimeTokens
from emulator.runners.killing import Killer
from emulator.runners.registry import Runners
from emulator.sdk import SDKState
from emulator.settings import Settings
from emulator.storage import ladder
from emulator.storage.buckets import Buckets
from emulator.storage.cdn import CDN
from emulator.storage.disk import Disk, remove_tree
from emulator.storage.file_service import FileService
from emulator.storage.google import GoogleAccount, GoogleBuckets
from emulator.storage.kv import KV
from emulator.storage.moto_s3 import MotoS3
from emulator.storage.node_uploader import Uploader
from emulator.storage.objects import ObjectStore
from emulator.storage.room import room_outside_tmp
from emulator.storage.volume import Volume
from emulator.subscriptions import Subscriptions
from emulator.users import User

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
        #: The settings in force.
        self.settings = settings or Settings()
        self._given = self.settings
        self._own_root = root is None
        self._root = os.path.realpath(root or _new_root())
        self._authority_pem = authority
        self._visible = tuple(visible)
        self._prepared = False
        self._undo = ExitStack()
        #: Whether a test is running on it.
        self.active = False

        #: The one clock.
        self.clock = Clock()
        #: What happened.
        self.ledger = Ledger(self.clock.now)
        #: Everybody else's servers.
        self.origin = Origin()
        #: What goes wrong on the network.
        self.faults = Faults(self.clock.sleep)
        self._routes = Routes()
        self._identities = Identities(self.clock.now, lambda: self.settings)
        self._realtime_tokens = RealtimeTokens(self.clock.now)
        #: From the first ``start`` on, which finds the rung.
        self._disk_found: Disk | None = None
        self._sdk = SDKState()
        self._subscriptions = Subscriptions()
        self._kv = KV(self.clock, self.ledger, self.settings)
        self._moto = MotoS3()
        google, account = GoogleBuckets(self.clock.now), GoogleAccount()
        self._google = GoogleHost(google, account, self.clock.now)
        #: Buckets of S3, R2 and Google.
        self.buckets = Buckets(self._moto, google, account, self.clock.now)
        self._gateway = Gateway(
            self.clock, self.ledger, self._identities, lambda: self.settings, lambda: self._runners
        )
        self._spawning = Spawning(self._gateway, lambda: self.settings)

    def __repr__(self) -> str:
        return f"<Emulator: {'running' if self.active else 'stopped'}>"

    def __enter__(self) -> Emulator:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
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
    def kv(self) -> KV:
        """The entries of the key-value store."""
        return self._kv

    @property
    def git(self) -> Git:
        """Everybody else's git repositories."""
        self._check_active("git")
        return self._git

    @property
    def uploader(self) -> Uploader:
        """The node's uploader, between runners and the CDN."""
        return self._uploader

    @property
    def http(self) -> respx.MockRouter:
        """respx's router: routes added to it answer every client."""
        return self._routes.router

    @property
    def resolver(self) -> Resolver:
        """Names and their addresses."""
        return self._network.resolver

    @property
    def owner(self) -> User:
        """The account itself, as a user: it owns the test's files, and its apps run in it."""
        return self._identities.users.owner

    def user(self, nickname: str, teams: Iterable[User | str] = ()) -> User:
        """Another user of the platform, who is known to it from now on; always the same object.

        Args:
            nickname: as access rules name the user.
            teams: users (teams are some, too) whose rights the user shares.
        """
        return self._identities.users.user(nickname, teams)

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
    def webhooks(self) -> WebhookReceiver:
        """The test's receiver of webhooks."""
        self._check_active("webhooks")
        self._gateway.be_ready()
        return self._receiver

    @property
    def fork_server(self) -> int | None:
        """The process that runners' processes are forked from; None before the first of them."""
        return self._runners.fork_server if self._prepared else None

    @property
    def directory(self) -> str | None:
        """Where the volumes of the test under way really are."""
        return None if self._disk_found is None else self._disk_found.directory

    def come_to_rest(self) -> None:
        """Give what goes on by itself a moment to come to its end, unless a gate holds something.

        Between a test's phases nobody may write to its output: Python before 3.12.4 crashes of it.
        """
        if self.active:
            self._gateway.come_to_rest(unless=lambda: self.faults.holds)
            self._webhooks.come_to_rest()

    # --- lifetime --------------------------------------------------------------------------------

    def start(self, name: str = "test", settings: Settings | None = None) -> None:
        """Make a fresh account and put the emulation around this process.

        Args:
            name: names the directory of the volumes.
            settings: of this time; default: those given to the constructor.

        Raises:
            FilesystemError: the rung that the settings need cannot be had. Nothing is changed.
        """
        if self.active:
            raise EmulatorError("This emulator runs already. Call stop() or reset() first.")
        self.settings = (settings or self._given).model_copy()
        self._climb()
        self._prepare()
        self._disk.trusted_programs = self.settings.trusted_programs
        self._disk.mount(name)
        self.data.between = self._between
        try:
            # The first time only. Its threads see what this one sees now: a side effect of a user's
            # route that writes to /data, called on one of them, must not find the host's.
            self._network.wire.start()
            self._network.api_socket.start()
            self._reset_state()
            self._limit_volumes()
            self._surround()
        except BaseException:
            self._disk.unmount(keep=False)
            raise

    def _surround(self) -> None:
        """Put everything in place; what undoes it is called in the opposite order."""
        certificate = self._certificates.file(with_usual_ones=bool(self.settings.allow_hosts))
        with ExitStack() as undo:
            undo.callback(self._sdk.restore)
            self._sdk.save(self._environment.home)
            undo.callback(self._environment.leave)
            undo.callback(self._identities.users.stop_acting)
            self._environment.enter(certificate, self.settings.allow_hosts)
            self._git.enter()
            self._environment.offer_uploader(self.uploader.socket, self.settings.local_uploader)
            wire_port = self._network.wire.address[1]
            self._environment.lead_nodejs(wire_port, self.settings.allow_hosts)
            self._network.enter(certificate, undo)
            undo.callback(self._spawning.uninstall)
            self._spawning.install()
            undo.callback(self._google.end)
            undo.callback(self._end_moto)
            self._moto.begin()
            undo.callback(self._cdn.reset, self.settings)
            undo.callback(self._kv.reset, self.settings)
            undo.callback(self.clock.reset)
            undo.callback(self._uploader.end)
            undo.callback(self._between.stop)
            undo.callback(self._files.end)
            undo.callback(self._drain)
            undo.callback(self._gateway.end)
            self._subscriptions.begin()
            undo.callback(self._subscriptions.end)
            undo.callback(self._runners.stop_all)
            undo.callback(self._gateway.close)
            undo.callback(self._webhooks.end)
            undo.callback(self._sdk.end_retries)
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
            self.ledger.before_reading = lambda: None
            self._runners.close()
            self._network.wire.stop()
            self._network.api_socket.remove()
            self._store.close()
            self._certificates.remove()
            remove_tree(self._environment.home)
            remove_tree(self._spill)
            remove_tree(os.path.join(self._root, "git"))
        if self._disk_found is not None:
            self._disk_found.close()
        if self._own_root and os.path.isdir(self._root) and not os.listdir(self._root):
            os.rmdir(self._root)

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _disk(self) -> Disk:
        if self._disk_found is None:
            raise EmulatorError("There are no volumes before the first start(). Call it first.")
        return self._disk_found

    def _climb(self) -> None:
        """Find the rung, once, and see whether the settings can do with it."""
        settings = self.settings
        if self._disk_found is None:
            choice = ladder.choose(self._given.filesystem)
            self._disk_found = ladder.make(choice, self._root)
            self._not_better = choice.why
        rung = settings.filesystem_in_force = self._disk_found.rung
        if settings.filesystem not in ("auto", rung):
            what = f"filesystem={settings.filesystem!r}"
        elif rung != "namespace" and settings.needs_mounts:
            what = f"{', '.join(settings.needs_mounts)} (mounts, filesystem='namespace')"
        else:
            return
        raise FilesystemError(
            f"The test needs {what}, and /data and /tmp are on the rung {rung!r} here. "
            f"{self._not_better or 'That one was asked for.'}"
        )

    def _prepare(self) -> None:
        """What lives from the first ``start`` to ``close``."""
        if self._prepared:
            self._check_own_files()
            return
        self._certificates = Certificates(self._root, self._authority_pem)
        home = os.path.join(self._root, "home")
        os.makedirs(home, exist_ok=True)
        self._environment = Environment(home)
        self._disk.keep_visible(self._visible)
        self._spill = os.path.join(self._root, "objects")
        os.makedirs(self._spill, exist_ok=True)
        self._store = ObjectStore(self._spill, now=self.clock.now)
        users = self._identities.users
        self._cdn = CDN(self._store, self.clock, self.ledger, self.settings, users)
        settings = lambda: self.settings  # noqa: E731
        self._between = DistributedData(self.clock, self.ledger, settings, lambda: self.data)
        self._files = FileService(lambda: self.data, settings, self._between.enter)
        self._runners = Runners(
            self._disk, self.ledger, self._identities, settings, self.clock, self._between.place
        )
        git = os.path.join(self._root, "git")
        throw_away, name_of = self._disk.throw_away, self._runners.name_of
        self._git = Git(git, self.clock, self.ledger, name_of, throw_away)
        router = Router(self.ledger, self._routes, self.faults)
        router.before_request = self.clock.keep_appointments
        self._network = Network(self._certificates.authority, router, self._runners, settings)
        self._network.api_socket.place(self._root, "api.sock")
        self._uploader = Uploader(
            self._cdn,
            self._store,
            self.clock,
            self.ledger,
            settings,
            self._network.api_socket,
            router.dispatch,
            lambda: self.faults.holds,
        )
        clock, dispatch, gateway = self.clock, router.dispatch, self._gateway
        self._webhooks = Webhooks(
            clock,
            self.ledger,
            dispatch,
            settings,
            gateway.in_background,
            lambda: self.faults.holds,
            gateway.is_in_an_app,
        )
        me = lambda: users.present.id  # noqa: E731
        self._receiver = WebhookReceiver(self._webhooks, clock, dispatch, settings, me)
        self._connect()
        self._prepared = True

    def _check_own_files(self) -> None:
        """See whether the emulator still has on the disk what it made there."""
        certificate = self._certificates.file(with_usual_ones=False)
        home, git = self._environment.home, os.path.join(self._root, "git")
        for path in (certificate, home, git, self._spill, self._disk.volumes):
            if not os.path.exists(path):
                raise EmulatorError(
                    f"{path} is gone, without which no further test can run: something has "
                    "deleted it, most likely an app that clears /tmp. What this process has in "
                    "/tmp is shown there to apps. Let it have its directory elsewhere: "
                    "pytest --basetemp=<a directory outside of /tmp>."
                )

    def _connect(self) -> None:
        """Let the parts know each other."""
        runners, settings = self._runners, lambda: self.settings
        files = FilesHost(self._files, self._identities, self._network.router.dispatch)
        platform = PlatformAPI(self._cdn)
        outside = runners.is_outside_of_requests
        rest = RestHost(self._cdn, self._identities, self._realtime_tokens, outside)
        Queues(self._gateway).offer(rest, platform)
        self._payloads = Payloads(self._cdn, self.clock.now)
        self._payloads.offer(platform)
        self._payloads.removers = [runners.has_served, self._gateway.delete_payloads]
        self._receiver.offer(rest.public, platform.public)
        self._network.router.hosts = [
            self.origin,
            files,
            PlatformFilesHost(files),
            rest,
            CDNHost(self._cdn, self._identities),
            KVHost(self._kv, self._identities),
            UploaderHost(self._uploader, self._identities, settings, outside),
            platform,
            GatewayHost(self._gateway, self._identities, self._realtime_tokens, settings),
            RunnerHost(runners.named),
            self._receiver,
            S3Host(self._moto, self.clock.now),
            self._google,
        ]
        runners.made, runners.ended = self._gateway.runner_made, self._gateway.runner_ended
        runners.connect(self._network.wire, self._network.resolver)
        self.clock.volumes = runners.backings
        self._gateway.send_webhook = self._webhooks.deliver
        held = lambda: self.faults.holds  # noqa: E731
        self.clock.before_moving = partial(self._gateway.come_to_rest_before_time_passes, held)
        self.clock.around_waking = partial(self._gateway.let_starts_end, held)
        self.faults.killer = Killer(
            runners.named,
            runners.newest_process,
            lambda: self._disk.directory,
            lambda: str(self._disk.data.backing),
        )

    def _reset_state(self) -> None:
        self._cdn.reset(self.settings)
        self._kv.reset(self.settings)
        self._uploader.reset()
        self.ledger.reset()
        self.origin.reset()
        self.faults.reset()
        self._routes.reset()
        self._identities.reset()
        self._realtime_tokens.reset()
        self._payloads.reset()
        self._network.reset()
        self._runners.reset()
        self._gateway.reset()
        self._receiver.reset()
        self._git.reset(self.settings)
        self._google.reset()
        self.buckets.reset()

    def _end_moto(self) -> None:
        if self._moto.end():
            self._environment.adopt("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

    def _drain(self) -> None:
        for sentence in self._sdk.drain():
            self.ledger.event("upload", sentence)

    def _limit_volumes(self) -> None:
        if self.settings.data_size is not None:
            self.data.limit(self.settings.data_size)
        if self.settings.tmp_size is not None:
            self.tmp.limit(self.settings.tmp_size)

    def _check_active(self, what: str) -> None:
        if not self.active:
            raise EmulatorError(f"{what} needs a running emulator. Call start() first.")


def _new_root() -> str:
    return tempfile.mkdtemp(prefix="fal-emulator-", dir=room_outside_tmp())
