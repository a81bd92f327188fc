"""``rest.fal.ai`` and ``rest.alpha.fal.ai``: tokens and the start of uploads [§1.3-§1.6, §6.5]."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx

from emulator.errors import RefusedRequest
from emulator.hosts.access import FileAccess
from emulator.hosts.common import (
    LOST_CONTEXT,
    Handler,
    PathRouter,
    not_found,
    owners_of,
    read_lifecycle,
    read_parts,
)
from emulator.identity import Identities
from emulator.ledger import Exchange
from emulator.network.reply import json_reply
from emulator.realtime_tokens import RealtimeTokens
from emulator.sdk import rest_host
from emulator.storage.cdn import CDN
from emulator.storage.lifecycle import rewrite_file_name
from emulator.storage.uploads import Upload, UploadError

__all__ = ["RestHost", "answers_rest"]

_NAMES = frozenset({"rest.fal.ai", "rest.alpha.fal.ai"})
#: What fal's clients ask for.
_REALTIME_SECONDS = 120
_STORAGE_TYPES = {"fal-cdn-v3": None, "fal-cdn": None, "gcs": "storage.googleapis.com"}


class RestHost:
    """The account's REST API, as far as files need it; other parts add their calls.

    Args:
        cdn: where files go.
        identities: whose token is whose.
        tokens: of websockets.
        is_outside_of_requests: whether what a runner sends without a request's id should have one.
    """

    def __init__(
        self,
        cdn: CDN,
        identities: Identities,
        tokens: RealtimeTokens,
        is_outside_of_requests: Callable[[str | None], bool] = lambda _runner: False,
    ) -> None:
        self._cdn = cdn
        self._identities = identities
        self._tokens = tokens
        self._is_outside_of_requests = is_outside_of_requests
        #: Calls that need no credentials.
        self.public = PathRouter()
        self._paths = PathRouter()
        self._paths.add("POST", r"/storage/auth/token", self._token)
        self._paths.add("POST", r"/storage/upload/initiate", self._initiate)
        self._paths.add("POST", r"/storage/upload/initiate-multipart", self._initiate_multipart)
        self._paths.add("POST", r"/storage/upload/gcs/(\w+)/complete", self._complete_gcs)
        self._paths.add("POST", r"/storage/upload/gcs/(\w+)/([0-9]{1,9})", self._initiate_part_gcs)
        self._paths.add("POST", r"/tokens/?", self._realtime_token)
        self._paths.add("POST", r"/tokens/realtime/?", self._documented_realtime_token)
        FileAccess(cdn).offer(self._paths.add, "/storage")

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        """Offer a call; *pattern* is a regular expression for the whole path."""
        self._paths.add(method, pattern, handler)

    def answers(self, host: str) -> bool:
        """Whether this is a REST host: fal's own names, or the one the SDK was configured with."""
        return answers_rest(host)

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        """Answer; account credentials are needed for everything that is not public."""
        handler, arguments = self.public.find(request.method, request.url.path)
        if handler is not None:
            return handler(request, exchange, *arguments)
        handler, arguments = self._paths.find(request.method, request.url.path)
        if handler is None:
            exchange.notes.append("the emulator does not know this call")
            return not_found(request)
        users, authorization = self._identities.users, request.headers.get("authorization")
        account = users.account(authorization, exchange.runner)
        if account is None:
            exchange.notes.append("no account key")
            return json_reply({"detail": "Authentication is required to access this API"}, 401)
        exchange.user = account.user.nickname
        request.extensions["fal_account"] = account
        try:
            response: httpx.Response = handler(request, exchange, *arguments)
            return response
        except RefusedRequest as error:
            exchange.notes.append(str(error))
            return json_reply({"detail": str(error)}, error.status)

    def _token(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        settings = self._cdn.settings
        lifetime = settings.token_lifetime
        seconds = _json(request).get("expiration_seconds")
        if isinstance(seconds, (int, float)) and 0 < seconds < lifetime.total_seconds():
            lifetime = timedelta(seconds=seconds)
        # Who has the key here, and whose it is on a runner.
        users, authorization = self._identities.users, request.headers.get("authorization")
        accounts = [users.account(authorization, runner) for runner in (None, "a runner")]
        here, there = (one.user.nickname for one in accounts if one is not None)
        token = self._identities.issue(here, lifetime, on_runners=there)
        old_cdn = request.url.params.get("storage_type") == "fal-cdn"
        return json_reply(
            {
                "token": token.token,
                "token_type": "Bearer",
                "base_url": "https://v2.fal.media" if old_cdn else "https://v3.fal.media",
                # With an offset and without Z, which Python 3.10 cannot read [study §1c].
                "expires_at": token.expires_at.isoformat(),
            }
        )

    def _realtime_token(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        """As fal_client and fal-js ask for one."""
        return json_reply(self._issue(request, exchange, "token_expiration"))

    def _documented_realtime_token(
        self, request: httpx.Request, exchange: Exchange
    ) -> httpx.Response:
        return json_reply({"token": self._issue(request, exchange, "duration")})

    def _issue(self, request: httpx.Request, exchange: Exchange, lifetime: str) -> str:
        data = _json(request)
        apps, seconds = data.get("allowed_apps"), data.get(lifetime, _REALTIME_SECONDS)
        is_list = isinstance(apps, list) and all(isinstance(app, str) and app for app in apps)
        if not apps or not is_list:
            raise RefusedRequest(422, 'allowed_apps has to be a list of apps: ["my-app"]')
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
            raise RefusedRequest(422, f"{lifetime} has to be a number of seconds above 0")
        try:
            ends = timedelta(seconds=seconds)
            return self._tokens.issue(exchange.user or "", apps, ends)
        except OverflowError:
            raise RefusedRequest(422, f"{lifetime} is too long") from None

    def _begin(self, request: httpx.Request, exchange: Exchange) -> Upload:
        storage_type = request.url.params.get("storage_type", "fal-cdn-v3")
        if storage_type not in _STORAGE_TYPES:
            raise UploadError(422, f"unknown storage_type {storage_type!r}")
        data = _json(request)
        request_id = request.headers.get("x-fal-request-id")
        if request_id is None and self._is_outside_of_requests(exchange.runner):
            exchange.notes.append(LOST_CONTEXT)
        lifecycle = read_lifecycle(request, exchange, self._cdn.settings)
        return self._cdn.begin(
            rewrite_file_name(str(data.get("file_name") or "upload.bin")),
            str(data.get("content_type") or "application/octet-stream"),
            lifecycle,
            request_id,
            host=_STORAGE_TYPES[storage_type],
            runner=exchange.runner,
            owners=owners_of(request, exchange, exchange.user or "", self._identities),
            notes=exchange.notes,
        )

    def _initiate(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        upload = self._begin(request, exchange)
        return json_reply({"file_url": upload.url, "upload_url": _single_url(upload)})

    def _initiate_multipart(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        upload = self._begin(request, exchange)
        if request.url.params.get("storage_type") == "gcs":
            # The client appends "/<part>" to the whole URL, so it has no query [facts §1.6].
            url = f"https://{request.url.host}/storage/upload/gcs/{upload.id}"
        else:
            url = f"{upload.url}/multipart/{upload.id}?signature={upload.signature}"
        return json_reply({"file_url": upload.url, "upload_url": url})

    def _initiate_part_gcs(
        self, request: httpx.Request, exchange: Exchange, identifier: str, number: str
    ) -> httpx.Response:
        upload = self._own(identifier)
        url = f"{upload.url}/multipart/{upload.id}/{number}?signature={upload.signature}"
        return json_reply({"upload_url": url})

    def _complete_gcs(
        self, request: httpx.Request, exchange: Exchange, identifier: str
    ) -> httpx.Response:
        upload = self._own(identifier)
        file = self._cdn.complete(upload, read_parts(request, "part_number"), exchange.notes)
        return json_reply({"file_url": file.url})

    def _own(self, identifier: str) -> Upload:
        signature = self._cdn.signature_of(identifier)
        return self._cdn.upload(identifier, signature)


def answers_rest(host: str) -> bool:
    """Whether this is a REST host: fal's own names, or the one the SDK was configured with."""
    return host in _NAMES or host == rest_host()


def _single_url(upload: Upload) -> str:
    return f"{upload.url}?upload_id={upload.id}&signature={upload.signature}"


def _json(request: httpx.Request) -> dict[str, Any]:
    try:
        data = json.loads(request.read() or b"{}")
    except (ValueError, RecursionError):
        raise UploadError(422, "the body is not JSON") from None
    if not isinstance(data, dict):
        raise UploadError(422, "the body is no JSON object")
    return data
