"""Google Cloud Storage: the JSON API, uploads, and plain and signed URLs of objects.

After Google's public reference of the JSON and XML APIs; what an expired URL is answered with is
assumed. The bucket that fal's fallback repository writes to is served by :mod:`emulator.hosts.cdn`.
"""

from __future__ import annotations

import binascii
import json
import re
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs, unquote

import httpx

from emulator.google_clock import BackgroundRequests
from emulator.hosts.google_copies import check_generation, copy, find_bucket, find_object
from emulator.hosts.google_wire import (
    Refusal,
    answer_acl,
    answer_policy,
    decode,
    deliver,
    hashes,
    is_public,
    read_json,
    read_related,
)
from emulator.ledger import Exchange
from emulator.network.reply import Body, json_reply, reply
from emulator.storage import signatures
from emulator.storage.google import (
    HOST,
    GoogleAccount,
    GoogleBucket,
    GoogleBuckets,
    crc32c_of,
    md5_of,
)

__all__ = ["GoogleHost"]

_TOKENS = "oauth2.googleapis.com"
_LONGEST = 7 * 24 * 3600
_TOKEN_SECONDS = 3599
_API = re.compile(r"(?:/(upload|download))?/storage/v1(?:/(.*))?")
_SECONDS = re.compile(r"[0-9]{1,11}")
_BATCH = re.compile(r"/batch(?:/.*)?")
_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)")


class _Resumable:
    """An upload in chunks: where it goes, and what has come of it."""

    def __init__(self, bucket: str, resource: dict[str, Any], public: bool) -> None:
        self.bucket = bucket
        self.resource = resource
        self.public = public
        self.data = bytearray()


class GoogleHost:
    """Google's storage over HTTP.

    Args:
        store: what has the buckets.
        account: whose signatures are checked; others are taken on trust.
        now: the clock.
    """

    def __init__(
        self, store: GoogleBuckets, account: GoogleAccount, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._account = account
        self._now = now
        self._tokens: dict[str, datetime] = {}
        self._uploads: dict[str, _Resumable] = {}
        self._background = BackgroundRequests()

    def reset(self) -> None:
        """Forget buckets, tokens and uploads."""
        self._store.reset()
        self._tokens = {}
        self._uploads = {}

    def end(self) -> None:
        """The test is over."""
        self._background.resume()

    def answers(self, host: str) -> bool:
        """Whether this is one of Google's hosts for storage."""
        return host in (HOST, _TOKENS) or host.endswith(f".{HOST}")

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response | None:
        """Answer as Google does."""
        self._background.stop()  # who asks has loaded the client by now
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        try:
            if request.url.host == _TOKENS:
                return self._token(request) if path == "/token" else None
            match = _API.fullmatch(path)
            if match is not None:
                self._check_token(request)
                return self._api(request, *match.groups())
            if request.url.host == HOST and _BATCH.fullmatch(path):
                raise _not_served(request)
            return self._plain(request, path, query)
        except Refusal as refusal:
            exchange.notes.append(f"{refusal.code}: {refusal}" if refusal.code else str(refusal))
            response = refusal.response()
            if request.method == "HEAD":
                response.stream = Body(())
            return response

    # --- who asks --------------------------------------------------------------------------------

    def _token(self, request: httpx.Request) -> httpx.Response:
        """A token for a service account, in exchange for what it signed."""
        form = parse_qs(request.read().decode("ascii", "replace"))
        assertion = form.get("assertion", [""])[0]
        text, _, signature = assertion.rpartition(".")
        try:
            claims = json.loads(decode(text.partition(".")[2]))
            ours = claims["iss"] == self._account.email
            valid = not ours or self._account.has_signed(decode(signature), text.encode())
        except (ValueError, KeyError, TypeError, RecursionError):
            valid = False
        if not valid:
            answer = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
            return json_reply(answer, 400)
        token = f"emulated-{secrets.token_urlsafe(18)}"
        self._tokens[token] = self._now() + timedelta(seconds=_TOKEN_SECONDS)
        told = {"access_token": token, "expires_in": _TOKEN_SECONDS, "token_type": "Bearer"}
        return json_reply(told)

    def _check_token(self, request: httpx.Request) -> None:
        """Refuse who shows no token, or one that has expired. Others' are taken on trust."""
        if request.url.params.get("upload_id") in self._uploads:
            return  # the address of an upload is its permission
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        expires = self._tokens.get(token)
        if scheme.lower() != "bearer" or not token:
            why = "Anonymous caller does not have access to the Google Cloud Storage bucket."
            raise Refusal(401, why, "required")
        if expires is not None and self._now() >= expires:
            raise Refusal(401, "Invalid Credentials", "authError")

    # --- JSON API --------------------------------------------------------------------------------

    def _api(self, request: httpx.Request, way: str | None, rest: str | None) -> httpx.Response:
        root, bucket, part, name, verb = [*(rest or "").rstrip("/").split("/", 4), *[""] * 4][:5]
        if root != "b":
            raise _not_served(request)
        if not bucket:
            return self._buckets(request)
        found = find_bucket(self._store, bucket)
        if not part:
            return self._bucket(request, found)
        if part == "iam" and name in ("", "testPermissions"):
            return answer_policy(request, found, is_test=bool(name))
        if part != "o":
            raise _not_served(request)
        if way == "upload" and not name:
            return self._upload(request, found)
        if not name and request.method == "GET":
            return self._list(request, found)
        if not name:
            raise Refusal(405, "Method Not Allowed", "methodNotAllowed")
        name = unquote(name)
        if not verb:
            return self._object(request, found, name, media=way == "download")
        if verb.partition("/")[0] == "acl":
            return answer_acl(request, find_object(found, name))
        answer = copy(self._store, request, found, name, verb)
        if answer is None:
            raise _not_served(request)
        return answer

    def _buckets(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            items = [bucket.as_json for bucket in self._store.buckets.values()]
            return json_reply({"kind": "storage#buckets", "items": items})
        resource = read_json(request.read())
        try:
            made = self._store.create(str(resource.get("name", "")))
        except ValueError as error:
            raise Refusal(400, str(error), "invalid") from None
        except KeyError:
            why = "The requested bucket name is not available."
            raise Refusal(409, why, "conflict") from None
        made.resource = resource
        return json_reply(made.as_json)

    def _bucket(self, request: httpx.Request, bucket: GoogleBucket) -> httpx.Response:
        if request.method == "DELETE":
            if bucket.objects:
                why = "The bucket you tried to delete is not empty."
                raise Refusal(409, why, "conflict")
            del self._store.buckets[bucket.name]
            return reply(204)
        if request.method in ("PATCH", "PUT"):
            bucket.resource.update(read_json(request.read()))
        return json_reply(bucket.as_json)

    def _list(self, request: httpx.Request, bucket: GoogleBucket) -> httpx.Response:
        parameters = request.url.params
        prefix, delimiter = parameters.get("prefix", ""), parameters.get("delimiter", "")
        items, prefixes = [], set()
        for name in sorted(bucket.objects):
            if name.startswith(prefix):
                head, found, _ = name[len(prefix) :].partition(delimiter or "\0")
                if found:
                    prefixes.add(prefix + head + delimiter)
                else:
                    items.append(bucket.objects[name].as_json)
        answer = {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}
        return json_reply(answer)

    def _object(
        self, request: httpx.Request, bucket: GoogleBucket, name: str, media: bool
    ) -> httpx.Response:
        found = find_object(bucket, name)
        check_generation(request.url.params, bucket, name)
        if request.method not in ("GET", "HEAD", "PATCH", "PUT", "DELETE"):
            raise Refusal(405, "Method Not Allowed", "methodNotAllowed")
        if request.method == "DELETE":
            del bucket.objects[name]
            return reply(204)
        if request.method in ("PATCH", "PUT"):
            changes = read_json(request.read())
            found.public = is_public(changes.pop("acl", None), found.public)
            found.resource.update(changes)
        if media or request.url.params.get("alt") == "media":
            return deliver(request, found)
        return json_reply(found.as_json)

    # --- uploads ---------------------------------------------------------------------------------

    def _upload(self, request: httpx.Request, bucket: GoogleBucket) -> httpx.Response:
        parameters = request.url.params
        kind = parameters.get("uploadType")
        identifier = parameters.get("upload_id")
        if identifier is not None:
            return self._chunk(request, bucket, identifier)
        body = b"".join(request.stream)  # type: ignore[arg-type]
        public = parameters.get("predefinedAcl", "").startswith("publicRead")
        declared = request.headers.get("content-type", "")
        if kind == "multipart":
            resource, data = read_related(declared, body)
        elif kind == "resumable":
            resource, data = read_json(body), b""
            offered = request.headers.get("x-upload-content-type")
            resource.setdefault("contentType", offered)
        else:
            resource, data = {"contentType": declared}, body
        resource.setdefault("name", parameters.get("name"))
        if not resource["name"]:
            raise Refusal(400, "Required object name.", "required")
        check_generation(parameters, bucket, str(resource["name"]))
        if kind == "resumable":
            identifier = secrets.token_urlsafe(12)
            self._uploads[identifier] = _Resumable(bucket.name, resource, public)
            address = f"{request.url.copy_set_param('upload_id', identifier)}"
            return reply(200, headers=[("location", address), ("x-guploader-uploadid", identifier)])
        return self._finish(bucket, resource, data, public)

    def _chunk(
        self, request: httpx.Request, bucket: GoogleBucket, identifier: str
    ) -> httpx.Response:
        """A part of a resumable upload; 308 tells how far it has come."""
        upload = self._uploads.get(identifier)
        if upload is None or upload.bucket != bucket.name:
            raise Refusal(404, "No such upload", "notFound")
        body = b"".join(request.stream)  # type: ignore[arg-type]
        match = _RANGE.fullmatch(request.headers.get("content-range", ""))
        total: str | None = None
        if match is None:
            upload.data[:] = body
        else:
            if match[1] is not None:
                del upload.data[int(match[1]) :]
                upload.data += body
            total = match[3]
        if total is not None and (total == "*" or len(upload.data) < int(total)):
            so_far = [("range", f"bytes=0-{len(upload.data) - 1}")] if upload.data else []
            return reply(308, headers=so_far)
        check_generation(request.url.params, bucket, str(upload.resource["name"]))
        del self._uploads[identifier]
        for name, value in re.findall(r"(crc32c|md5)=([^,\s]+)", hashes(request)):
            upload.resource["crc32c" if name == "crc32c" else "md5Hash"] = value
        return self._finish(bucket, upload.resource, bytes(upload.data), upload.public)

    def _finish(
        self, bucket: GoogleBucket, resource: dict[str, Any], data: bytes, public: bool
    ) -> httpx.Response:
        public = is_public(resource.pop("acl", None), public)
        for field, kind, digest in (
            ("md5Hash", "MD5 hash", md5_of),
            ("crc32c", "CRC32C", crc32c_of),
        ):
            told = resource.get(field)
            found = digest(data) if told else None
            if found is not None and found != told:
                why = f'Provided {kind} "{told}" doesn\'t match calculated {kind} "{found}".'
                raise Refusal(400, why, "invalid")
        made = self._store.store(bucket.name, str(resource.pop("name")), data, resource, public)
        crc32c = crc32c_of(data)  # Google always tells it, and older clients insist
        return json_reply({**made.as_json, **({"crc32c": crc32c} if crc32c else {})})

    # --- plain URLs ------------------------------------------------------------------------------

    def _plain(self, request: httpx.Request, path: str, query: str) -> httpx.Response | None:
        """``/bucket/object``, or the object alone where the host names the bucket."""
        host = request.url.host
        own = host.removesuffix(f".{HOST}") if host != HOST else ""
        bucket_name, _, rest = path[1:].partition("/")
        bucket_name, rest = (own, path[1:]) if own else (bucket_name, rest)
        signed = self._check_signature(request, path, signatures.pairs_of(query))
        bucket = self._store.buckets.get(bucket_name)
        if bucket is None:
            if request.method in ("GET", "HEAD") and not signed and not _has_token(request):
                return None  # other people's: an origin of the test's, or nobody
            why = "The specified bucket does not exist."
            raise Refusal(404, why, code="NoSuchBucket")
        name = unquote(rest)
        if request.method == "PUT" and signed:
            data = b"".join(request.stream)  # type: ignore[arg-type]
            made = self._store.store(
                bucket.name, name, data, {"contentType": request.headers.get("content-type")}
            )
            return reply(200, headers=[("etag", f'"{made.md5}"')])
        if request.method not in ("GET", "HEAD"):
            raise Refusal(403, "Access denied.", code="AccessDenied")
        found = bucket.objects.get(name)
        readable = (
            signed or _has_token(request) or bucket.public or (found is not None and found.public)
        )
        if not readable:
            raise Refusal(
                403,
                "Access denied.|Anonymous caller does not have storage.objects.get access to the "
                "Google Cloud Storage object. Permission 'storage.objects.get' denied on resource "
                "(or it may not exist).",
                code="AccessDenied",
            )
        if found is None:
            why = f"The specified key does not exist.|No such object: {bucket.name}/{name}"
            raise Refusal(404, why, code="NoSuchKey")
        return deliver(request, found)

    def _check_signature(
        self, request: httpx.Request, path: str, pairs: list[tuple[str, str]]
    ) -> bool:
        """Whether the URL is signed; refuses a signature that has expired or does not fit."""
        parameters = dict(pairs)
        if "X-Goog-Signature" not in parameters:
            expires = parameters.get("Expires", "")
            if "GoogleAccessId" not in parameters or not _SECONDS.fullmatch(expires):
                return False
            self._expire(datetime.fromtimestamp(int(expires), timezone.utc))
            return True
        try:
            date = parameters["X-Goog-Date"]
            begun = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
            seconds = int(parameters["X-Goog-Expires"])
            end = begun + timedelta(seconds=min(max(seconds, 0), _LONGEST))
            email, _, scope = parameters["X-Goog-Credential"].partition("/")
            names = parameters["X-Goog-SignedHeaders"]
            signature = binascii.unhexlify(parameters["X-Goog-Signature"])
        except (KeyError, ValueError, OverflowError):
            why = "A query parameter of the signature is missing or malformed."
            raise Refusal(400, why, code="AuthenticationQueryParametersError") from None
        if not 0 <= seconds <= _LONGEST:
            why = f"X-Goog-Expires must be at most {_LONGEST} seconds."
            raise Refusal(400, why, code="InvalidArgument")
        self._expire(end)
        if email == self._account.email:
            canonical = signatures.canonical_request(
                request.method,
                path,
                [pair for pair in pairs if pair[0] != "X-Goog-Signature"],
                lambda name: str(request.headers.get(name, "")),
                names,
                request.headers.get("x-goog-content-sha256", "UNSIGNED-PAYLOAD"),
            )
            text = signatures.string_to_sign_v4("GOOG4-RSA-SHA256", date, scope, canonical)
            if not self._account.has_signed(signature, text.encode()):
                why = "Access denied.|The request signature does not match."
                raise Refusal(403, why, code="SignatureDoesNotMatch")
        return True

    def _expire(self, at: datetime) -> None:
        if self._now() >= at:
            why = f"The provided token has expired.|Request signature expired at: {at.isoformat()}"
            raise Refusal(400, why, code="ExpiredToken")


def _not_served(request: httpx.Request) -> Refusal:
    path = request.url.path
    return Refusal(501, f"{request.method} {path} is not served by the emulator", "notImplemented")


def _has_token(request: httpx.Request) -> bool:
    return bool(request.headers.get("authorization", "").lower().startswith("bearer "))
