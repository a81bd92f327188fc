"""``uploader.fal``: what the SDK says to the node's uploader over ``FAL_API_SOCKET`` [§1.12]."""

from __future__ import annotations

import json
import math
import urllib.parse
from collections.abc import Callable

import httpx

from emulator.errors import EmulatorError
from emulator.hosts.common import (
    LOST_CONTEXT,
    PathRouter,
    not_found,
    owners_of,
    read_lifecycle,
)
from emulator.identity import Identities
from emulator.ledger import Exchange
from emulator.network.network import NODE
from emulator.network.reply import json_reply, reply
from emulator.settings import Settings
from emulator.storage.lifecycle import rewrite_file_name
from emulator.storage.node_upload import Form, NodeUpload
from emulator.storage.node_uploader import Uploader
from emulator.storage.upload_policy import POLICY_HEADER, parse_policy
from emulator.storage.uploads import UploadError

__all__ = ["UploaderHost"]

#: Seconds; the SDK asks for one minute.
_LONGEST_WAIT = 86_400.0


class UploaderHost:
    """The node's uploader over HTTP.

    Args:
        uploader: does the work.
        identities: whose key is whose.
        settings: the account's.
        is_outside_of_requests: whether what a runner sends without a request's id should have one.
    """

    def __init__(
        self,
        uploader: Uploader,
        identities: Identities,
        settings: Callable[[], Settings],
        is_outside_of_requests: Callable[[str | None], bool] = lambda _runner: False,
    ) -> None:
        self._uploader = uploader
        self._identities = identities
        self._settings = settings
        self._is_outside_of_requests = is_outside_of_requests
        self._paths = PathRouter()
        self._paths.add("POST", r"/v1/uploads", self._upload)
        self._paths.add("GET", r"/v1/uploads/(\w+)", self._status)
        self._paths.add("POST", r"/v1/upload-sessions", self._open)
        self._paths.add("PUT", r"/v1/upload-sessions/(\w+)/body", self._receive)
        self._paths.add("POST", r"/v1/upload-sessions/(\w+)/finish", self._finish)
        self._paths.add("DELETE", r"/v1/upload-sessions/(\w+)", self._abort)

    def answers(self, host: str) -> bool:
        """Whether this is its name, under which only its socket file can be reached."""
        return host == NODE

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response | None:
        """Answer; None to who did not come over the socket file."""
        peer = request.extensions.get("fal_peer")
        if peer is None or peer.port:
            return None
        if not self._uploader.is_running:  # it connected a moment before the crash
            raise ConnectionResetError("the uploader crashed")
        handler, arguments = self._paths.find(request.method, request.url.path)
        if handler is None:
            exchange.notes.append("the emulator does not know this call")
            return not_found(request)
        try:
            return handler(request, exchange, *arguments)
        except UploadError as error:
            exchange.notes.append(str(error))
            return json_reply({"detail": str(error)}, error.status)

    def _upload(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        form = self._form(request, exchange)
        length = request.headers.get("content-length", "")
        self._uploader.check_room(int(length) if length.isdigit() else None)
        upload = self._uploader.accept(form, request.stream)  # type: ignore[arg-type]
        return _receipt(upload, 202, "accepted_local")

    def _open(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        form = self._form(request, exchange)
        self._uploader.check_room(None)
        # Which header asks for signing is not known, so nobody is taken to have asked.
        return _receipt(self._uploader.open(form), 201, "receiving", cdn_signing_requested=False)

    def _receive(
        self, request: httpx.Request, exchange: Exchange, identifier: str
    ) -> httpx.Response:
        self._uploader.receive(identifier, request.stream)  # type: ignore[arg-type]
        return reply(204)

    def _finish(
        self, request: httpx.Request, exchange: Exchange, identifier: str
    ) -> httpx.Response:
        try:
            size = json.loads(request.read())["size_bytes"]
        except (ValueError, KeyError, TypeError, RecursionError):
            size = None
        if not isinstance(size, int) or isinstance(size, bool):
            raise UploadError(422, 'the body must be {"size_bytes": 123}')
        return _receipt(self._uploader.finish(identifier, size), 202, "accepted_local")

    def _abort(self, request: httpx.Request, exchange: Exchange, identifier: str) -> httpx.Response:
        self._uploader.abort(identifier)
        return json_reply({"state": "aborted", "upload_id": identifier}, 202)

    def _status(
        self, request: httpx.Request, exchange: Exchange, identifier: str
    ) -> httpx.Response:
        wait = request.extensions.get("fal_wait", lambda _seconds: None)
        try:
            upload = self._uploader.wait(identifier, _seconds(request), lambda: wait(0))
        except EmulatorError as error:
            exchange.notes.append(str(error))
            return json_reply({"detail": str(error)}, 500)
        failure = {"failure": upload.failure} if upload.failure else {}
        return _receipt(upload, 200, upload.state, **failure)

    def _form(self, request: httpx.Request, exchange: Exchange) -> Form:
        """What the headers say; a file for a bucket of the caller's carries no credentials."""
        headers = request.headers
        policy = parse_policy(headers[POLICY_HEADER]) if POLICY_HEADER in headers else None
        owners: tuple[str, ...] = ()
        if policy is None:
            authorization = headers.get("authorization")
            account = self._identities.users.account(authorization, exchange.runner)
            if account is None:
                raise UploadError(401, "an account key is needed to upload to the CDN")
            owners = owners_of(request, exchange, account.user.nickname, self._identities)
        name = headers.get("x-fal-file-name", "").strip()
        if not name:
            raise UploadError(422, "X-Fal-File-Name is missing")
        request_id = headers.get("x-fal-request-id")
        if request_id is None and self._is_outside_of_requests(exchange.runner):
            exchange.notes.append(LOST_CONTEXT)
        try:
            lifecycle = read_lifecycle(request, exchange, self._settings())
        except UploadError as error:
            raise UploadError(422, str(error)) from None
        shown = exchange.request_headers
        return Form(
            file_name=urllib.parse.unquote(name) if policy else rewrite_file_name(name),
            content_type=headers.get("content-type", "application/octet-stream"),
            lifecycle=lifecycle,
            request_id=request_id,
            runner=exchange.runner,
            application=headers.get("x-fal-application"),
            policy=policy,
            owners=owners,
            notes=exchange.notes,
            headers={name: shown[name] for name in shown if name.startswith("x-fal-")},
        )


def _receipt(
    upload: NodeUpload, status: int, state: str, **more: str | bool | None
) -> httpx.Response:
    answer = {"state": state, "upload_id": upload.id, "file_url": upload.url, **more}
    return json_reply(answer, status)


def _seconds(request: httpx.Request) -> float:
    """How long a status request is ready to wait."""
    text = request.url.params.get("wait", "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UploadError(422, f"wait is a number of seconds, not {text!r}")
    return min(seconds, _LONGEST_WAIT)
