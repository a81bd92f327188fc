"""``v3.fal.media``, ``v3b.fal.media`` and the hosts before them: reading and direct uploads.

Wire facts: platform facts §1.4, §1.5, §1.11. The fallback's Google bucket is read and written the
same way, so it is served here too.
"""

from __future__ import annotations

import mimetypes
from email.utils import format_datetime

import httpx

from emulator.checks import TIME
from emulator.hosts.access import sign_by_token
from emulator.hosts.common import PathRouter, not_found, owners_of, read_lifecycle, read_parts
from emulator.identity import Identities
from emulator.ledger import Exchange
from emulator.network.reply import Body, json_reply, reply
from emulator.network.router import WouldBlock
from emulator.storage.access import why_refused
from emulator.storage.cdn import CDN
from emulator.storage.cdn_files import CDNFile
from emulator.storage.lifecycle import ByteRange, Unsatisfiable, decide, parse_range, status_of
from emulator.storage.uploads import Upload, UploadError

__all__ = ["CDNHost"]

_LEGACY = frozenset(
    {"fal.media", "v2.fal.media", "upload.fal.media", "upload.v2.fal.media", "upload.v3.fal.media"}
)
_GOOGLE, _BUCKET = "storage.googleapis.com", "/falserverless/"
_NAMES = frozenset({"v3.fal.media", "v3b.fal.media", _GOOGLE}) | _LEGACY
_CORS = ("access-control-allow-origin", "*")


class CDNHost:
    """The CDN over HTTP."""

    def __init__(self, cdn: CDN, identities: Identities) -> None:
        self._cdn = cdn
        self._identities = identities
        self._paths = PathRouter()
        self._paths.add("POST", r"/files/upload", self._upload)
        self._paths.add("POST", r"/files/upload/multipart", self._upload_multipart)
        self._paths.add("PUT", r"/.+/multipart/(\w+)/([0-9]{1,9})", self._part)
        self._paths.add("POST", r"/.+/multipart/(\w+)/complete", self._complete)
        self._paths.add("POST", r"/.+/sign", self._sign)
        self._paths.add("PUT", r"/.+", self._presigned_put)
        self._paths.add("GET", r"/.+", self._read)
        self._paths.add("HEAD", r"/.+", self._read)
        self._paths.add("OPTIONS", r"/.*", self._preflight)

    def answers(self, host: str) -> bool:
        """Whether this is one of the CDN's hosts."""
        return host in _NAMES

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response | None:
        """Answer; None for other people's buckets."""
        if request.url.host == _GOOGLE and not request.url.path.startswith(_BUCKET):
            return None
        response = self._handle(request, exchange)
        if request.method == "HEAD":
            response.stream = Body(())
        return response

    def _handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        handler, arguments = self._paths.find(request.method, request.url.path)
        if handler is None:
            exchange.notes.append("the emulator does not know this call")
            return not_found(request)
        try:
            return handler(request, exchange, *arguments)
        except UploadError as error:
            exchange.notes.append(str(error))
            return json_reply({"detail": str(error)}, error.status, [_CORS])

    # --- reading ---------------------------------------------------------------------------------

    def _read(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        cdn = self._cdn
        url = _address(request)
        if cdn.pending(url):
            self._await_upload(request, url)
        file = cdn.readable(url)
        if file is None:
            return self._missing(url, exchange)
        refused = self._refusal(request, file, exchange)
        if refused is not None:
            return _error(refused)
        return self._deliver(request, file)

    def _refusal(self, request: httpx.Request, file: CDNFile, exchange: Exchange) -> int | None:
        """The status for a reader who may not have the file; None: who may."""
        signatures = request.url.params.get_list("identity")
        key = self._cdn.key_of(file.url)
        reader = self._identities.reader_of(key, _auth(request), signatures, exchange.runner)
        exchange.user = reader.shown
        if reader.is_late and reader.shown is None and self._cdn.settings.expired_signature == 403:
            exchange.notes.extend(reader.problems)
            return 403
        decision = decide(file.acl, reader.names, reader.owns(file))
        if decision == "allow":
            return None
        exchange.notes.append(why_refused(decision, file.acl, reader))
        exchange.notes.extend(reader.problems)
        return status_of(decision)

    def _sign(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        url = _address(request).removesuffix("/sign")
        token = self._identities.token(_auth(request), exchange.runner)
        if token is None:
            raise UploadError(401, "a valid CDN token is needed to sign a URL")
        file = self._cdn.readable(url)
        if file is None:
            return self._missing(url, exchange)
        refused = self._refusal(request, file, exchange)
        if refused is not None:  # it would be a link to nothing
            return _error(refused)
        signed = sign_by_token(self._cdn, file, token, request)
        return reply(200, signed, content_type="text/plain; charset=utf-8", headers=[_CORS])

    def _await_upload(self, request: httpx.Request, url: str) -> None:
        settings = self._cdn.settings
        if settings.unfinished_read == "not_found":
            return
        if request.extensions.get("fal_may_block") is False:
            raise WouldBlock
        # Over a socket, a client that has given up ends the wait.
        wait = request.extensions.get("fal_wait", lambda _seconds: None)
        self._cdn.wait_for(url, settings.unfinished_read_limit, lambda: wait(0))

    def _missing(self, url: str, exchange: Exchange) -> httpx.Response:
        """All of these look alike to the SDK; the ledger tells them apart [§8, pitfall 11]."""
        if self._cdn.has_expired(url):
            exchange.notes.append(f"the file expired at {self._cdn.info(url).expires_at:{TIME}}")
            return _error(self._cdn.settings.expired_status)
        deletion = self._cdn.deletion(url)
        if deletion is not None:
            exchange.notes.append(f"the file was {deletion}")
        elif self._cdn.pending(url):
            exchange.notes.append(f"the file's {self._cdn.unfinished(url)}")
        else:
            exchange.notes.append("no file was ever uploaded to this URL")
        return _error(404)

    def _deliver(self, request: httpx.Request, file: CDNFile) -> httpx.Response:
        etag = self._cdn.etag(file.url)
        modified = format_datetime(file.created_at, usegmt=True)
        headers = [
            ("content-type", file.content_type),
            ("accept-ranges", "bytes"),
            ("last-modified", modified),
            _CORS,
        ]
        if etag is not None:
            headers.append(("etag", etag))
            if _names(request.headers.get("if-none-match"), etag):
                return reply(304, headers=headers)
        # The rest of another version is worth nothing: then the whole is sent (RFC 9110, 13.1.5).
        resumes = request.headers.get("if-range", etag) in (etag, modified)
        wanted = parse_range(request.headers.get("range"), file.size) if resumes else None
        if isinstance(wanted, Unsatisfiable):
            return reply(416, headers=[*headers, ("content-range", wanted.content_range)])
        start, end, status = 0, file.size, 200
        if isinstance(wanted, ByteRange):
            start, end, status = wanted.start, wanted.end, 206
            headers.append(("content-range", wanted.content_range))
        stream = self._cdn.read(file.url, start, end)
        return reply(status, headers=headers, stream=stream, length=end - start)

    def _preflight(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        allowed = [("access-control-allow-methods", "*"), ("access-control-allow-headers", "*")]
        return reply(204, headers=[_CORS, *allowed])

    # --- presigned uploads -----------------------------------------------------------------------

    def _presigned_put(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        parameters = request.url.params
        upload = self._cdn.upload(parameters.get("upload_id", ""), parameters.get("signature"))
        if not self._cdn.same_file(upload.url, _address(request)):
            raise UploadError(403, "this upload URL is not valid")
        self._check_type(request, upload, exchange)
        self._cdn.receive(upload, request.stream, exchange.notes)  # type: ignore[arg-type]
        return reply(200, headers=[_CORS])

    def _check_type(self, request: httpx.Request, upload: Upload, exchange: Exchange) -> None:
        declared = request.headers.get("content-type", upload.content_type)
        if declared != upload.content_type:
            problem = f"Content-Type {declared!r}, but {upload.content_type!r} was initiated"
            if self._cdn.settings.content_type_mismatch == "refuse":
                raise UploadError(400, problem)
            exchange.notes.append(f"{problem}: the initiated type is kept")

    def _part(
        self, request: httpx.Request, exchange: Exchange, identifier: str, number: str
    ) -> httpx.Response:
        upload = self._authorised(request, exchange, identifier)
        etag = self._cdn.receive_part(upload, int(number), request.stream)  # type: ignore[arg-type]
        # Python reads the header, JavaScript the body [§1.4].
        body = {"partNumber": int(number), "etag": etag}
        return json_reply(body, headers=[("etag", etag), _CORS])

    def _complete(
        self, request: httpx.Request, exchange: Exchange, identifier: str
    ) -> httpx.Response:
        upload = self._authorised(request, exchange, identifier)
        file = self._cdn.complete(upload, read_parts(request, "partNumber"), exchange.notes)
        return json_reply({"access_url": file.url}, headers=[_CORS])

    # --- direct uploads --------------------------------------------------------------------------

    def _upload(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        upload = self._begin(request, exchange)
        file = self._cdn.receive(upload, request.stream, exchange.notes)  # type: ignore[arg-type]
        return json_reply({"access_url": file.url}, headers=[_CORS])

    def _upload_multipart(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        upload = self._begin(request, exchange)
        answer = {"access_url": upload.url, "uploadId": upload.id}
        return json_reply(answer, headers=[_CORS])

    def _begin(self, request: httpx.Request, exchange: Exchange) -> Upload:
        host = request.url.host
        headers = request.headers
        legacy = host in _LEGACY
        uploader = self._reader(request, exchange)
        if uploader is None and legacy:  # it took the account's key itself
            account = self._identities.users.account(_auth(request), exchange.runner)
            uploader = account.user.nickname if account is not None else None
        if uploader is None:
            raise UploadError(401, "a valid CDN token is needed to upload here")
        content_type = headers.get("content-type", "application/octet-stream")
        return self._cdn.begin(
            headers.get("x-fal-file-name") or _default_name(content_type),
            content_type,
            read_lifecycle(request, exchange, self._cdn.settings),
            headers.get("x-fal-request-id"),
            host=host.removeprefix("upload.") if legacy else None,
            runner=exchange.runner,
            owners=owners_of(request, exchange, uploader, self._identities),
            notes=exchange.notes,
        )

    def _authorised(self, request: httpx.Request, exchange: Exchange, identifier: str) -> Upload:
        """An upload, by the signature in its URL or by a CDN token."""
        signature = request.url.params.get("signature")
        if signature is None:
            if not self._reader(request, exchange):
                raise UploadError(401, "a signed URL or a valid CDN token is needed to upload here")
            signature = self._cdn.signature_of(identifier)
        upload = self._cdn.upload(identifier, signature)
        if not self._cdn.same_file(upload.url, _address(request).rpartition("/multipart/")[0]):
            raise UploadError(403, "this upload URL is not valid")
        return upload

    def _reader(self, request: httpx.Request, exchange: Exchange) -> str | None:
        return self._identities.reader(_auth(request), exchange.runner)


def _auth(request: httpx.Request) -> str | None:
    value: str | None = request.headers.get("authorization")
    return value


def _address(request: httpx.Request) -> str:
    """The URL without its query, quoted as the client did."""
    path = request.url.raw_path.decode("ascii").partition("?")[0]
    return f"https://{request.url.host}{path}"


def _names(if_none_match: str | None, etag: str) -> bool:
    """Whether the header has this tag; compared weakly, as RFC 9110, 13.1.2 wants it."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in tags or "*" in tags


def _error(status: int) -> httpx.Response:
    details = {403: "Forbidden", 404: "Not Found", 410: "Gone"}
    return json_reply({"detail": details[status]}, status, [_CORS])


def _default_name(content_type: str) -> str:
    media_type = content_type.partition(";")[0].strip()
    return f"upload{mimetypes.guess_extension(media_type) or '.bin'}"
