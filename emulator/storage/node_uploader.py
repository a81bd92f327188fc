"""The uploader of a node: takes files from runners, and brings them to the CDN later [§1.12].

It has accepted a file, and its runner goes on with the URL, before the CDN has it. All servers of a
test share this one.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import httpx

from emulator.errors import EmulatorError
from emulator.patience import CHECK_SECONDS, wait_until
from emulator.storage.node_delivery import to_bucket, to_cdn
from emulator.storage.node_upload import Form, NodeUpload, State
from emulator.storage.uploads import UploadError

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.network.unix_server import UnixServer
    from emulator.settings import Settings
    from emulator.storage.cdn import CDN
    from emulator.storage.objects import ObjectStore

__all__ = ["NodeUpload", "Uploader"]

#: Real seconds that somebody may wait for an upload that only the test can let go.
HOLD_SECONDS = 30.0
#: Real seconds that an answer waits for a bucket, so that a test finds the file there.
BUCKET_SECONDS = 1.0
#: Real seconds that a test's end waits for a bucket.
END_SECONDS = 5.0


class Uploader:
    """The node's uploader, under the test's control.

    By itself it brings a file to the CDN as soon as it has accepted it, or after
    ``Settings.uploader_delay``. See ``docs/uploader.md``.
    """

    def __init__(
        self,
        cdn: CDN,
        store: ObjectStore,
        clock: Clock,
        ledger: Ledger,
        settings: Callable[[], Settings],
        server: UnixServer,
        send: Callable[[httpx.Request, str], httpx.Response],
        is_held: Callable[[], bool],
    ) -> None:
        self._cdn = cdn
        self._store = store
        self._clock = clock
        self._ledger = ledger
        self._settings = settings
        self._server = server
        self._send = send
        self._is_held = is_held
        self._changed = threading.Condition(threading.RLock())
        self._threads: list[threading.Thread] = []
        self._crashes = 0
        self._holds = self._drains = False
        #: Every upload of this test, in the order in which their URLs were handed out.
        self.uploads: list[NodeUpload] = []
        self._known: dict[str, NodeUpload] = {}

    def __repr__(self) -> str:
        state = "running" if self.is_running else "crashed"
        return f"<Uploader: {state}, {len(self.uploads)} uploads, {len(self.pending)} pending>"

    # --- for tests -------------------------------------------------------------------------------

    @property
    def socket(self) -> str:
        """The path of its socket, as in ``FAL_API_SOCKET``."""
        return self._server.path

    @property
    def is_running(self) -> bool:
        """Whether it can be reached; it cannot after a crash."""
        return self._server.is_reachable

    @property
    def pending(self) -> list[NodeUpload]:
        """What it has accepted and not brought to the CDN yet."""
        return [upload for upload in self.uploads if upload.state == "pending"]

    @property
    def unfinished(self) -> list[NodeUpload]:
        """The uploads whose URL leads nowhere: reserved, pending, failed, aborted or lost."""
        return [upload for upload in self.uploads if upload.state != "completed"]

    def find(self, url: str) -> NodeUpload:
        """The upload of this URL.

        Raises:
            EmulatorError: there is none.
        """
        for upload in reversed(self.uploads):
            if upload.url == url or (upload.on_cdn and self._cdn.same_file(upload.url, url)):
                return upload
        known = ", ".join(upload.url for upload in self.uploads) or "nothing"
        raise EmulatorError(
            f"{url} did not come by way of the node's uploader; it was sent {known}. Write "
            "@pytest.mark.fal(local_uploader=True), so that the SDK uses it."
        )

    def hold(self) -> None:
        """Keep what is accepted, and what will be, until :meth:`release` or :meth:`complete`."""
        self._holds = True
        self._go_on()

    def release(self) -> None:
        """Let everything go on, what comes later too."""
        self._holds = False
        self._go_on()

    def complete(self, url: str) -> None:
        """Bring one upload to the CDN now, also if it is held or has to wait.

        Raises:
            EmulatorError: it is not pending, or the uploader has crashed.
        """
        upload = self._pending(url, "complete")
        if not self.is_running:
            raise EmulatorError("The uploader has crashed. Call fal_uploader.restart() first.")
        self._deliver(upload)

    def fail(self, url: str, reason: str = "the CDN refused it") -> None:
        """Let one upload fail for good: its URL stays dead.

        Raises:
            EmulatorError: it is not pending.
        """
        self._finish(self._pending(url, "fail"), "failed", reason)

    def drain(self) -> None:
        """Refuse what is new with 429 from now on, as before a restart; go on with the rest."""
        self._drains = True
        self._say("draining")

    def crash(self, lose: bool = True) -> None:
        """Die: connections are cut, nobody listens any more, nothing goes on.

        Args:
            lose: what was accepted is lost, and forgotten. False: it is on the node's disk, and
                goes on after a :meth:`restart`. What was still coming in is lost anyway.
        """
        with self._changed:
            self._crashes += 1
            for upload in self.uploads:
                self._cancel(upload)
                if upload.state == "receiving" or (lose and upload.state == "pending"):
                    self._finish(upload, "lost", "the node's uploader crashed with its bytes")
            if lose:
                self._known.clear()
        self._say(f"crashed; {len(self.pending)} accepted uploads are left on its disk")
        self._server.go()

    def restart(self) -> None:
        """Start again after a crash, or end draining; what was kept goes on."""
        self._drains = False
        self._server.come_back()
        self._say("started")
        self._go_on()

    # --- for the host ----------------------------------------------------------------------------

    def check_room(self, size: int | None) -> None:
        """Refuse an upload that is not taken.

        Args:
            size: bytes, if that is known.

        Raises:
            UploadError: 429 when it is full or draining, 413 when the file is too large.
        """
        if self._drains:
            raise UploadError(429, "this uploader is draining")
        self._check_capacity()
        self._check_size(size)

    def accept(self, form: Form, chunks: Iterable[bytes]) -> NodeUpload:
        """Take a whole file, and bring it to the CDN now or later.

        Raises:
            UploadError: 413, it is too large.
            ConnectionError: the uploader crashed meanwhile.
        """
        identifier, crashes = secrets.token_hex(12), self._crashes
        size = self._keep(f"node/{identifier}", chunks)
        with self._changed:
            if crashes != self._crashes:
                self._store.delete(f"node/{identifier}")
                raise ConnectionResetError("the uploader crashed")
            try:
                self._check_capacity()  # others may have come in meanwhile
            except UploadError:
                self._store.delete(f"node/{identifier}")
                raise
            upload = self._open(form, identifier)
            self._take(upload, size)
        self._go_on(upload)
        return upload

    def open(self, form: Form) -> NodeUpload:
        """Hand out a URL for a file that comes later."""
        with self._changed:
            return self._open(form, secrets.token_hex(12))

    def receive(self, identifier: str, chunks: Iterable[bytes]) -> None:
        """Take the file of a URL that was handed out.

        Raises:
            UploadError: 404, 409 or 413.
            ConnectionError: the uploader crashed meanwhile.
        """
        upload = self._receiving(identifier)
        if upload.size is not None:
            raise UploadError(409, "this session has its body already")
        size = self._keep(upload.key, chunks)
        with self._changed:
            if upload.state != "receiving":
                self._store.delete(upload.key)
                raise ConnectionResetError("the uploader crashed, or the session was aborted")
            if upload.size is not None:
                raise UploadError(409, "this session has its body already")
            upload.size = size

    def finish(self, identifier: str, size: int) -> NodeUpload:
        """Accept the file of a URL that was handed out.

        Raises:
            UploadError: 404, 409 or 422.
        """
        with self._changed:
            upload = self._receiving(identifier)
            if upload.size is None:
                raise UploadError(409, "this session has no body yet")
            if upload.size != size:
                raise UploadError(422, f"size_bytes is {size}, and {upload.size} bytes came")
            self._take(upload, size)
        self._go_on(upload)
        return upload

    def abort(self, identifier: str) -> None:
        """Give up a URL that was handed out.

        Raises:
            UploadError: 404 or 409.
        """
        with self._changed:
            self._finish(self._receiving(identifier), "aborted", "its runner gave it up")

    def wait(self, identifier: str, seconds: float, check: Callable[[], object]) -> NodeUpload:
        """The upload, as soon as it is not pending any more or *seconds* of the clock are over.

        Raises:
            UploadError: 404, there is none (any more).
            ConnectionError: the uploader crashed meanwhile.
            EmulatorError: only the test could end the wait, and did not for half a minute.
        """
        upload, crashes = self._of(identifier), self._crashes
        if seconds and upload.state == "pending":
            wait_until(
                self._clock,
                self._changed,
                lambda: upload.is_over or crashes != self._crashes,
                timedelta(seconds=seconds),
                lambda: self._check_wait(upload, check),
                due=upload.due,
            )
        if crashes != self._crashes:
            raise ConnectionResetError("the uploader crashed")
        return upload

    # --- a test's end ----------------------------------------------------------------------------

    def end(self) -> None:
        """Wait for what is on its way to a bucket; nothing of it is held any more."""
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.join(END_SECONDS)
        if any(thread.is_alive() for thread in threads):
            stuck = ", ".join(upload.url for upload in self.pending)
            raise EmulatorError(
                f"The node's uploader waits for a bucket that does not answer: {stuck}. Have the "
                "route or the server that the test made for it answer before the test ends."
            )

    def reset(self) -> None:
        """Forget everything."""
        self._holds = self._drains = False
        self._server.come_back()
        self.uploads = []
        self._known.clear()

    # --- coming in -------------------------------------------------------------------------------

    def _open(self, form: Form, identifier: str) -> NodeUpload:
        if form.policy is None:
            on_cdn = self._cdn.begin(
                form.file_name,
                form.content_type,
                form.lifecycle,
                form.request_id,
                runner=form.runner,
                owners=form.owners,
                notes=form.notes,
            )
            upload = NodeUpload(identifier, on_cdn.url, form, on_cdn=on_cdn)
        else:
            upload = NodeUpload(identifier, form.policy.file_url(form.file_name), form)
        self.uploads.append(upload)
        self._known[identifier] = upload
        return upload

    def _keep(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store bytes on the node; how many there were."""

        def counted() -> Iterator[bytes]:
            size = 0
            for chunk in chunks:
                size += len(chunk)
                self._check_size(size)
                yield chunk

        return self._store.put(key, counted(), content_type="application/octet-stream").size

    def _check_capacity(self) -> None:
        capacity = self._settings().uploader_capacity
        if capacity is not None and len(self.pending) >= capacity:
            raise UploadError(429, f"this uploader is full: {capacity} uploads are pending")

    def _check_size(self, size: int | None) -> None:
        limit = self._settings().uploader_limit
        if limit is not None and size is not None and size > limit:
            raise UploadError(413, f"this uploader takes no file of more than {limit} bytes")

    def _take(self, upload: NodeUpload, size: int) -> None:
        upload.size = size
        upload.state = "pending"
        upload.accepted_at = self._clock.now()

    def _of(self, identifier: str) -> NodeUpload:
        upload = self._known.get(identifier)
        if upload is None:
            raise UploadError(404, "there is no such upload (any more)")
        return upload

    def _receiving(self, identifier: str) -> NodeUpload:
        upload = self._of(identifier)
        if upload.state != "receiving":
            raise UploadError(409, f"this session is over: {upload.state}")
        return upload

    # --- going on --------------------------------------------------------------------------------

    def _go_on(self, *uploads: NodeUpload) -> None:
        """Send what is pending, or make an appointment for it; all of it by default."""
        settings, due = self._settings(), []
        with self._changed:
            for upload in uploads or self.pending:
                self._cancel(upload)
                if not self.is_running:
                    continue
                if not self._appoint(upload, settings.uploader_deadline, self._expire):
                    self._expire(upload)
                elif not self._holds and not self._appoint(
                    upload, settings.uploader_delay, self._deliver
                ):
                    due.append(upload)
        for upload in due:
            self._deliver(upload)

    def _appoint(
        self, upload: NodeUpload, after: timedelta, what: Callable[[NodeUpload], None]
    ) -> bool:
        """Have something done so long after the upload was accepted; False: that is now."""
        assert upload.accepted_at is not None
        due = upload.accepted_at + after
        left = due - self._clock.now()
        if left <= timedelta(0):
            return False
        upload.appointments.append(self._clock.on(left, lambda: what(upload)))
        if what == self._deliver:
            self._expect(upload, due)
        return True

    def _cancel(self, upload: NodeUpload) -> None:
        for appointment in upload.appointments:
            appointment.cancel()
        upload.appointments.clear()
        self._expect(upload, None)

    def _expect(self, upload: NodeUpload, due: datetime | None) -> None:
        upload.due = due
        if upload.on_cdn is not None:
            upload.on_cdn.due = due

    def _deliver(self, upload: NodeUpload) -> None:
        with self._changed:
            if upload.state != "pending" or upload.is_moving:
                return
            upload.is_moving = True
            self._cancel(upload)
        if upload.on_cdn is not None:
            notes: list[str] = []
            self._end(upload, to_cdn(upload, self._store, self._cdn, notes))
            for note in notes:
                self._say(f"{upload.url}: {note}")
            return
        # Nobody waits for a bucket [§1.13], but where nothing holds it a test finds it there.
        thread = threading.Thread(
            target=lambda: self._end(upload, to_bucket(upload, self._store, self._send)),
            name="fal-uploader",
            daemon=True,
        )
        self._threads.append(thread)
        thread.start()
        left = BUCKET_SECONDS
        while thread.is_alive() and not self._is_held() and left > 0:
            thread.join(0.01)
            left -= 0.01

    def _end(self, upload: NodeUpload, failure: str | None) -> None:
        self._finish(upload, "failed" if failure else "completed", failure)

    def _expire(self, upload: NodeUpload) -> None:
        deadline = self._settings().uploader_deadline
        self._finish(upload, "failed", f"it was not there {deadline} after it was accepted")

    def _finish(self, upload: NodeUpload, state: State, failure: str | None = None) -> None:
        with self._changed:
            upload.is_moving = False
            if upload.is_over:
                return
            self._cancel(upload)
            upload.state, upload.failure = state, failure
            if state == "completed":
                upload.completed_at = self._clock.now()
            elif upload.on_cdn is not None:
                upload.on_cdn.failure = failure
            self._store.delete(upload.key)
            self._changed.notify_all()
        self._say(f"{upload.url} {state}{f': {failure}' if failure else ''}")

    # --- inside ----------------------------------------------------------------------------------

    def _pending(self, url: str, verb: str) -> NodeUpload:
        upload = self.find(url)
        if upload.state != "pending":
            raise EmulatorError(
                f"{url} is {upload.state}, so there is nothing to {verb}. Call "
                "fal_uploader.hold() before it is uploaded: it is pending then."
            )
        return upload

    def _check_wait(self, upload: NodeUpload, check: Callable[[], object]) -> None:
        check()
        upload.waited += CHECK_SECONDS
        if self._holds and upload.waited > HOLD_SECONDS:
            raise EmulatorError(
                f"{upload.url} is held, and somebody waited for its completion for "
                f"{HOLD_SECONDS:.0f} s of real time. Upload it in a thread of its own, and call "
                "fal_uploader.release() in the test, or let the clock do it: "
                "fal_clock.on(when, fal_uploader.release)."
            )

    def _say(self, text: str) -> None:
        self._ledger.event("uploader", text)
