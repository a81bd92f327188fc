"""The files of ``/data`` over HTTP: ``/files`` of the REST host, for ``fal files`` [facts §2.3].

And its documented mirror, ``https://api.fal.ai/v1/serverless/files/...``, which can do less.
"""

from __future__ import annotations

import json
import mimetypes
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from emulator.errors import EmulatorError, RefusedRequest
from emulator.hosts.common import PathRouter, not_found, read_parts
from emulator.hosts.forms import file_in_form
from emulator.hosts.rest import answers_rest
from emulator.identity import Identities
from emulator.ledger import Exchange, masked
from emulator.network.bodies import CutShortError
from emulator.network.fault import NotConnected
from emulator.network.reply import json_reply, reply
from emulator.network.router import LetThrough, WouldBlock
from emulator.storage.file_service import FileService, StoredFile, split_path
from emulator.storage.spool import FilesError, Names, Received, discard
from emulator.storage.uploads import check_order

__all__ = ["FilesHost", "PlatformFilesHost"]

Dispatch = Callable[[httpx.Request, str], httpx.Response]

_FIELD = "file_upload"
_MOST_REDIRECTS = 10
#: Any path, with whatever is in it.
_PATH = r"(?s:(.+))"
_PLATFORM = "/v1/serverless"
#: The types of the platform's errors [§1.10].
_TYPES = {401: "authorization_error", 403: "authorization_error", 404: "not_found"}


class FilesHost:
    """``/files`` of the REST host; other paths of it are somebody else's.

    Args:
        files: the volume's files.
        identities: whose key is whose.
        dispatch: how the platform fetches what is imported from a URL: request and client.
    """

    def __init__(self, files: FileService, identities: Identities, dispatch: Dispatch) -> None:
        self._files = files
        self._identities = identities
        self._dispatch = dispatch
        self._paths = PathRouter()
        add, parts = self._paths.add, rf"/files/file/multipart/{_PATH}"
        add("GET", r"/files/list(?:/(?s:(.*)))?", self._list)
        add("GET", rf"/files/file/{_PATH}", self._download)
        add("POST", rf"/files/file/local/{_PATH}", self._upload)
        add("POST", rf"/files/file/url/{_PATH}", self._import)
        add("POST", rf"{parts}/initiate", self._begin)
        add("PUT", rf"{parts}/(\w+)/([0-9]{{1,9}})", self._part)
        add("POST", rf"{parts}/(\w+)/complete", self._complete)
        add("POST", rf"{parts}/(\w+)/cancel", self._cancel)
        add("DELETE", rf"/files/file/{_PATH}", self._delete)
        add("POST", rf"/files/rename/{_PATH}", self._rename)

    def answers(self, host: str) -> bool:
        """Whether this is a REST host."""
        return answers_rest(host)

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response | None:
        """Answer; account credentials are needed for everything."""
        handler, arguments = self._paths.find(request.method, request.url.path)
        if handler is None:
            return None
        users, authorization = self._identities.users, request.headers.get("authorization")
        account = users.account(authorization, exchange.runner)
        if account is None:
            exchange.notes.append("no account key")
            return json_reply({"detail": "Authentication is required to access this API"}, 401)
        exchange.user = account.user.nickname
        if not account.user.is_owner:
            other = f"the emulator has no /data of {account.user.nickname}'s, only the account's"
            exchange.notes.append(other)
            return json_reply({"detail": other}, 403)
        try:
            return handler(request, exchange, *arguments)
        except RefusedRequest as error:
            exchange.notes.append(str(error))
            return json_reply({"detail": str(error)}, error.status)

    # --- reading ---------------------------------------------------------------------------------

    def _list(self, request: httpx.Request, exchange: Exchange, path: str | None) -> httpx.Response:
        self._may_wait(request)
        entries = self._files.entries(self._names(path or "", exchange))
        return json_reply([described(entry) for entry in entries])

    def _download(self, request: httpx.Request, exchange: Exchange, path: str) -> httpx.Response:
        self._may_wait(request)
        names = self._names(path, exchange)
        size, content = self._files.read(names)
        kind = (mimetypes.guess_type(names[-1])[0] if names else None) or "application/octet-stream"
        return reply(200, content_type=kind, stream=content, length=size)

    # --- uploading -------------------------------------------------------------------------------

    def _upload(self, request: httpx.Request, exchange: Exchange, path: str) -> httpx.Response:
        self._may_wait(request)
        names = self._names(path, exchange)
        self._files.check(names)
        received = self._file_of(request)
        wanted = request.url.params.get("unzip", "").lower() in ("true", "1")
        if not (wanted and self._files.unzip(received, names)):
            self._files.store(received, names)
        return json_reply(True)

    def _import(self, request: httpx.Request, exchange: Exchange, path: str) -> httpx.Response:
        if request.extensions.get("fal_may_block") is False:
            raise WouldBlock
        names = self._names(path, exchange)
        url = _text(request, "url")
        self._files.check(names)
        self._files.store(self._fetch(url), names)
        return json_reply(True)

    def _begin(self, request: httpx.Request, exchange: Exchange, path: str) -> httpx.Response:
        self._may_wait(request)
        upload = self._files.begin(self._names(path, exchange))
        return json_reply({"upload_id": upload.id})

    def _part(
        self, request: httpx.Request, exchange: Exchange, path: str, identifier: str, number: str
    ) -> httpx.Response:
        spool = self._files.spool
        upload = spool.upload(identifier, self._names(path, exchange))
        content = file_in_form(request.headers.get("content-type"), _body(request), _FIELD)
        part = spool.receive_part(upload, int(number), content)
        return json_reply({"part_number": int(number), "etag": part.md5})

    def _complete(
        self, request: httpx.Request, exchange: Exchange, path: str, identifier: str
    ) -> httpx.Response:
        self._may_wait(request)
        upload = self._files.spool.upload(identifier, self._names(path, exchange))
        parts = read_parts(request, "part_number")
        check_order([number for number, _ in parts], self._files.settings(), exchange.notes)
        return json_reply({"etag": self._files.complete(upload, parts).md5})

    def _cancel(
        self, request: httpx.Request, exchange: Exchange, path: str, identifier: str
    ) -> httpx.Response:
        spool = self._files.spool
        spool.forget(spool.upload(identifier, self._names(path, exchange)))
        return json_reply(True)

    def _file_of(self, request: httpx.Request) -> Received:
        kind = request.headers.get("content-type")
        return self._files.spool.receive(file_in_form(kind, _body(request), _FIELD))

    # --- changing --------------------------------------------------------------------------------

    def _delete(self, request: httpx.Request, exchange: Exchange, path: str) -> httpx.Response:
        self._may_wait(request)
        self._files.remove(self._names(path, exchange))
        return json_reply(True)

    def _rename(self, request: httpx.Request, exchange: Exchange, path: str) -> httpx.Response:
        self._may_wait(request)
        target = names_of(_text(request, "destination"))
        self._files.rename(self._names(path, exchange), target)
        return json_reply(True)

    # --- inside ----------------------------------------------------------------------------------

    def _names(self, path: str, exchange: Exchange) -> Names:
        """What a path in a URL means: after ``//`` it is absolute, else relative to ``/data``."""
        if path.startswith("/") and self._files.settings().files_double_slash == "merged":
            exchange.notes.append("a proxy has merged the slashes: the path is relative to /data")
            path = path.lstrip("/")
        return names_of(path)

    def _may_wait(self, request: httpx.Request) -> None:
        """Where ``/data`` differs between runners, the files are another process's."""
        if self._files.is_staged and request.extensions.get("fal_may_block") is False:
            raise WouldBlock

    def _fetch(self, url: str) -> Received:
        """Download from a URL as the platform does, by whatever the test serves there.

        Raises:
            FilesError: 400, it cannot be downloaded; says why.
        """
        asked = url
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                response = self._dispatch(_request_to(url), "fal")
                if "location" not in response.headers or not response.is_redirect:
                    break
                response.close()
                url = urllib.parse.urljoin(url, response.headers["location"])
            else:
                raise FilesError(400, f"cannot download {masked(asked)}: too many redirects")
            if response.status_code != 200:
                response.close()
                why = f"{masked(url)} answered {response.status_code} {response.reason_phrase}"
                raise FilesError(400, f"cannot download {masked(asked)}: {why}")
            received = self._files.spool.receive(response.iter_bytes())
            self._check_length(response, received, asked)
            return received
        except LetThrough:
            why = "only what the test serves can be imported"
            raise FilesError(400, f"cannot download {masked(asked)}: {why}") from None
        except NotConnected as failed:
            raise FilesError(400, f"cannot download {masked(asked)}: {failed.error}") from failed
        except (OSError, CutShortError, EmulatorError, httpx.HTTPError) as error:
            raise FilesError(400, f"cannot download {masked(asked)}: {error}") from error

    def _check_length(self, response: httpx.Response, received: Received, url: str) -> None:
        """What ends before its Content-Length is no file; a compressed body tells by itself."""
        promised = response.headers.get("content-length")
        if promised is None or "content-encoding" in response.headers:
            return
        if promised != str(received.size):
            discard(received)
            why = f"{received.size} of {promised} bytes came"
            raise FilesError(400, f"cannot download {masked(url)}: {why}")


class PlatformFilesHost:
    """``api.fal.ai/v1/serverless/files``: list, download, upload and import of the same files.

    Args:
        files: who answers the same calls at the REST host.
    """

    def __init__(self, files: FilesHost) -> None:
        self._files = files

    def answers(self, host: str) -> bool:
        """Whether this is the host of the Platform APIs."""
        return host == "api.fal.ai"

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response | None:
        """Answer; None for all paths but those of files."""
        path = request.url.raw_path.decode("ascii")
        if not path.startswith((f"{_PLATFORM}/files/", f"{_PLATFORM}/files?")):
            return None
        same = httpx.Request(
            request.method,
            request.url.copy_with(raw_path=path.removeprefix(_PLATFORM).encode("ascii")),
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        has_it = request.method == "GET" or (
            request.method == "POST"
            and path.startswith((f"{_PLATFORM}/files/file/local/", f"{_PLATFORM}/files/file/url/"))
        )
        response = self._files.handle(same, exchange) if has_it else None
        if response is None:
            exchange.notes.append("the Platform API has no such call")
            response = not_found(request)
        if response.status_code >= 400:
            return _platform_error(response)
        if path.startswith(f"{_PLATFORM}/files/list"):
            return _relative(response)
        return response


def described(entry: StoredFile) -> dict[str, Any]:
    """A file or folder as the API tells it, with its path as apps have it."""
    return {
        "path": "/".join(("/data", *entry.names)),
        "name": entry.names[-1] if entry.names else "data",
        "created_time": entry.created.isoformat(),
        "updated_time": entry.updated.isoformat(),
        "is_file": entry.is_file,
        "size": entry.size,
    }


def names_of(path: str) -> Names:
    """The names of a path below ``/data``, absolute or relative to it.

    Raises:
        FilesError: 400, it is outside.
    """
    names = split_path(path)
    if not path.startswith("/"):
        return names
    if names[:1] != ("data",):
        raise FilesError(400, f"{path} is not below /data")
    return names[1:]


def _platform_error(response: httpx.Response) -> httpx.Response:
    """The same error in the form of the Platform APIs."""
    status = response.status_code
    detail = json.loads(b"".join(_body(response)))["detail"]
    kind = _TYPES.get(status, "validation_error" if status < 500 else "server_error")
    return json_reply({"error": {"type": kind, "message": detail}}, status)


def _relative(response: httpx.Response) -> httpx.Response:
    """The same list, its paths relative to ``/data`` as the Platform API documents them."""
    entries = json.loads(b"".join(_body(response)))
    return json_reply([{**one, "path": one["path"].removeprefix("/data/")} for one in entries])


def _body(message: httpx.Request | httpx.Response) -> Iterator[bytes]:
    return iter(message.stream)  # type: ignore[arg-type]


def _request_to(url: str) -> httpx.Request:
    try:
        request = httpx.Request("GET", url, headers={"accept": "*/*", "user-agent": "fal-files"})
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise FilesError(422, f"{url!r} is no URL: {error}") from error
    if request.url.scheme not in ("http", "https") or not request.url.host:
        raise FilesError(422, f"{url!r} is no http or https URL")
    return request


def _text(request: httpx.Request, key: str) -> str:
    """A text in the request's JSON object."""
    try:
        value = json.loads(request.read() or b"{}")[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        value = None
    if not isinstance(value, str) or not value:
        raise FilesError(422, f'the body must be {{"{key}": "..."}}')
    return value
