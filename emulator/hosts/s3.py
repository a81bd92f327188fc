"""The endpoints of Amazon S3 and Cloudflare R2, answered by moto's S3 in this process.

What moto does not do is done here, before it: presigned URLs that expire, signatures that are
checked, forms (POST) that have to fit their policy. S3 and R2 share one namespace of buckets.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import NamedTuple
from urllib.parse import quote, unquote, urlencode
from xml.sax.saxutils import escape

import httpx

from emulator.credentials import BUCKET_KEYS
from emulator.ledger import Exchange
from emulator.network.reply import Body, reply
from emulator.storage import signatures
from emulator.storage.moto_s3 import AUTHORISED, Answer, MotoS3
from emulator.storage.post_policy import S3Error, UploadForm, check_policy, read_form

__all__ = ["Place", "S3Host", "place_of"]

#: A presigned URL of version 4 lives this long at most.
LONGEST = 7 * 24 * 3600
#: How far a client's clock may be ahead.
SKEW = timedelta(minutes=15)

_AMAZON = re.compile(
    r"(?:(?P<bucket>.+)\.)?s3(?:-(?:accelerate|fips|external-1))?(?:[.-]dualstack)?"
    r"(?:[.-](?P<region>[a-z]{2}(?:-[a-z]+)+-\d))?\.amazonaws\.com(?:\.cn)?"
)
_CLOUDFLARE = ".r2.cloudflarestorage.com"
_JURISDICTIONS = ("eu", "fedramp")
_STREAMED = "STREAMING-"
#: What a bucket's policy may allow to everybody, by method and whether there is a key.
_ACTIONS = {
    ("GET", False): "s3:ListBucket",
    ("HEAD", False): "s3:ListBucket",
    ("PUT", True): "s3:PutObject",
    ("DELETE", True): "s3:DeleteObject",
}
_SECONDS = re.compile(r"[0-9]{1,11}")
_CHUNK = re.compile(rb"([0-9a-fA-F]+)(?:;[^\r\n]*)?\r\n")


class Place(NamedTuple):
    """What a host and path mean: ``path`` is below the bucket, escaped; "" for the bucket itself.

    ``region`` is None where the host names none.
    """

    bucket: str
    path: str
    region: str | None


def place_of(host: str, path: str) -> Place | None:
    """Where a URL of S3 or R2 leads; None for other hosts."""
    match = _AMAZON.fullmatch(host)
    if match is not None:
        bucket, region = match["bucket"] or "", match["region"]
    elif host.endswith(_CLOUDFLARE):
        labels = host.removesuffix(_CLOUDFLARE).split(".")
        if labels[-1] in _JURISDICTIONS and len(labels) > 1:
            labels.pop()
        bucket, region = ".".join(labels[:-1]), "us-east-1"
    else:
        return None
    if not bucket:
        bucket, slash, rest = path[1:].partition("/")
        path = slash + rest
    return Place(bucket, path, region)


class S3Host:
    """S3 and R2 over HTTP.

    Args:
        moto: what has the buckets.
        now: the clock.
    """

    def __init__(self, moto: MotoS3, now: Callable[[], datetime]) -> None:
        self._moto = moto
        self._now = now

    def answers(self, host: str) -> bool:
        """Whether this is an endpoint of S3 or R2."""
        return place_of(host, "/") is not None

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response | None:
        """Answer as S3 does; None for the public files of other people's buckets."""
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        place = place_of(request.url.host, path)
        assert place is not None
        if _is_anonymous(request, query) and place.bucket not in self._moto.names():
            return None
        try:
            if _is_form(request):
                return self._post(request, place)
            self._check_permission(request, place, query)
            self._check_signature(request, place, path, query)
            return self._ask(request, place, query)
        except S3Error as error:
            exchange.notes.append(str(error))
            return _refusal(error, request.method)

    # --- requests --------------------------------------------------------------------------------

    def _check_permission(self, request: httpx.Request, place: Place, query: str) -> None:
        """Refuse what nobody has signed and the bucket's policy does not allow to everybody.

        Who may read an object is moto's to decide.
        """
        key = unquote(place.path[1:])
        reads_object = bool(key) and request.method in ("GET", "HEAD")
        if _is_signed(request, query) or reads_object or request.method == "OPTIONS":
            return
        action = _ACTIONS.get((request.method, bool(key)))
        if any(signatures.is_subresource(name) for name, _ in signatures.pairs_of(query)):
            action = None  # those are other actions
        resource = f"arn:aws:s3:::{place.bucket}{'/' if key else ''}{key}"
        if not action or not self._moto.everybody_may(place.bucket, action, resource):
            raise S3Error(403, "AccessDenied", "Access Denied")

    def _ask(self, request: httpx.Request, place: Place, query: str) -> httpx.Response:
        body = b"".join(request.stream)  # type: ignore[arg-type]
        _check_digest(request, body)
        headers = request.headers.multi_items()
        if request.headers.get("x-amz-content-sha256", "").startswith(_STREAMED):
            body, headers = _unwrap(body, headers)
        if request.method == "POST" and "uploadId=" in query:
            _check_order(body)
        answer = self._moto.ask(
            request.method, place.bucket, place.path, query, headers, body, place.region
        )
        if answer.status == 403 and not answer.body:
            raise S3Error(403, "AccessDenied", "Access Denied")
        if answer.status == 501:
            raise S3Error(501, "NotImplemented", f"moto says: {answer.body.decode()}")
        return _reply(answer, request.method)

    def _check_signature(self, request: httpx.Request, place: Place, path: str, query: str) -> None:
        """Refuse what has expired, and what was signed with an emulated key and does not fit."""
        pairs = signatures.pairs_of(query)
        parameters = dict(pairs)
        authorization = request.headers.get("authorization", "")
        if "X-Amz-Signature" in parameters:
            self._check_expiry(parameters)
            credential, given = parameters["X-Amz-Credential"], parameters["X-Amz-Signature"]
            signed = parameters.get("X-Amz-SignedHeaders", "host")
            date, payload = parameters["X-Amz-Date"], "UNSIGNED-PAYLOAD"
            pairs = [pair for pair in pairs if pair[0] != "X-Amz-Signature"]
        elif authorization.startswith("AWS4-HMAC-SHA256"):
            told = dict(re.findall(r"(\w+)=([^,\s]+)", authorization))
            credential, given = told.get("Credential", ""), told.get("Signature", "")
            signed = told.get("SignedHeaders", "host")
            date = request.headers.get("x-amz-date", "")
            payload = request.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
        elif {"Signature", "AWSAccessKeyId"} & parameters.keys():
            self._check_version_2_query(request, place, pairs)
            return
        else:
            _check_version_2(request, place, pairs, authorization)
            return
        identifier, _, scope = credential.partition("/")
        secret = BUCKET_KEYS.get(identifier)
        if secret is not None:
            canonical = signatures.canonical_request(
                request.method, path, pairs, lambda n: _header(request, n), signed, payload
            )
            text = signatures.string_to_sign_v4("AWS4-HMAC-SHA256", date, scope, canonical)
            _compare(signatures.signature_v4(secret, scope, text), given)

    def _check_expiry(self, parameters: dict[str, str]) -> None:
        try:
            begun = datetime.strptime(parameters["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
            seconds = int(parameters["X-Amz-Expires"])
            parameters["X-Amz-Credential"]
        except (KeyError, ValueError):
            raise S3Error(
                400,
                "AuthorizationQueryParametersError",
                "Query-string authentication version 4 requires the X-Amz-Algorithm, "
                "X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and "
                "X-Amz-Expires parameters.",
            ) from None
        if seconds > LONGEST:
            raise S3Error(
                400,
                "AuthorizationQueryParametersError",
                "X-Amz-Expires must be less than a week (in seconds); that is, the given "
                f"X-Amz-Expires must be less than {LONGEST} seconds",
            )
        if seconds < 0:
            raise S3Error(
                400,
                "AuthorizationQueryParametersError",
                "X-Amz-Expires must be non-negative",
            )
        begun = begun.replace(tzinfo=timezone.utc)
        if begun > self._now() + SKEW:
            raise S3Error(403, "AccessDenied", "Request is not yet valid")
        self._expire(begun + timedelta(seconds=seconds), **{"X-Amz-Expires": seconds})

    def _expire(self, at: datetime, **more: object) -> None:
        now = self._now()
        if now >= at:
            raise S3Error(
                403, "AccessDenied", "Request has expired",
                **more, Expires=f"{at:%Y-%m-%dT%H:%M:%SZ}", ServerTime=f"{now:%Y-%m-%dT%H:%M:%SZ}",
            )  # fmt: skip

    def _check_version_2_query(
        self, request: httpx.Request, place: Place, pairs: list[tuple[str, str]]
    ) -> None:
        parameters = dict(pairs)
        date = parameters.get("Expires", "")
        if not {"Signature", "Expires", "AWSAccessKeyId"} <= parameters.keys():
            raise S3Error(
                403,
                "AccessDenied",
                "Query-string authentication requires the Signature, Expires and AWSAccessKeyId "
                "parameters",
            )
        if not _SECONDS.fullmatch(date):
            why = f"Invalid date (should be seconds since epoch): {date}"
            raise S3Error(403, "AccessDenied", why)
        self._expire(datetime.fromtimestamp(int(date), timezone.utc))
        secret = BUCKET_KEYS.get(parameters.get("AWSAccessKeyId", ""))
        if secret is not None:
            resource = f"/{place.bucket}{place.path or '/'}"
            headers = request.headers.multi_items()
            # A presigned URL may say these itself.
            headers += [(name, value) for name, value in pairs if name.startswith("x-amz-")]
            expected = signatures.signature_v2(
                secret, request.method, resource, pairs, headers, date
            )
            _compare(expected, parameters["Signature"])

    # --- forms -----------------------------------------------------------------------------------

    def _post(self, request: httpx.Request, place: Place) -> httpx.Response:
        if request.url.host.endswith(_CLOUDFLARE):
            why = "R2 takes no forms: an upload to it is a PUT, which can be presigned."
            raise S3Error(501, "NotImplemented", why)
        if place.path not in ("", "/"):
            raise S3Error(
                405, "MethodNotAllowed",
                "The specified method is not allowed against this resource.",
                Method="POST", ResourceType="OBJECT",
            )  # fmt: skip
        body = b"".join(request.stream)  # type: ignore[arg-type]
        form = read_form(request.headers["content-type"], body)
        del body
        policy = form.fields.get("policy")
        if policy is None:
            raise S3Error(403, "AccessDenied", "Access Denied")
        _check_form_signature(form.fields, policy)
        check_policy(policy, form, place.bucket, self._now())
        key = form.fields["key"]
        answer = self._moto.ask(
            "PUT", place.bucket, f"/{quote(key)}", "", _headers_of(form), form.data, place.region
        )
        if answer.status != 200:
            return _reply(answer, "POST")
        etag = dict(answer.headers).get("ETag", "")
        return _success(request.url, place, form, key, etag)


def _is_signed(request: httpx.Request, query: str) -> bool:
    """Whether somebody has signed it, or says so: another check."""
    names = {name for name, _ in signatures.pairs_of(query)}
    signed = names & {"X-Amz-Signature", "Signature", "AWSAccessKeyId"}
    return "authorization" in request.headers or bool(signed)


def _is_anonymous(request: httpx.Request, query: str) -> bool:
    """Whether it only reads, as anybody could: then it may be meant for an origin of the test's."""
    return request.method in ("GET", "HEAD") and not _is_signed(request, query)


def _check_digest(request: httpx.Request, body: bytes) -> None:
    """Refuse a body that is not the one whose hash is among the headers."""
    told = request.headers.get("x-amz-content-sha256", "")
    if not told or told == "UNSIGNED-PAYLOAD" or told.startswith(_STREAMED):
        return
    found = hashlib.sha256(body).hexdigest()
    if found != told.lower():
        raise S3Error(
            400, "XAmzContentSHA256Mismatch",
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
            ClientComputedContentSHA256=told, S3ComputedContentSHA256=found,
        )  # fmt: skip


def _check_version_2(
    request: httpx.Request, place: Place, pairs: list[tuple[str, str]], authorization: str
) -> None:
    """Check an ``Authorization`` of version 2; refuse one of no kind that S3 knows."""
    scheme, _, rest = authorization.partition(" ")
    if not authorization or scheme.startswith("AWS4-"):
        return  # asymmetric ones are taken on trust
    if scheme != "AWS":
        raise S3Error(
            400, "InvalidArgument", "Unsupported Authorization Type",
            ArgumentName="Authorization", ArgumentValue=scheme,
        )  # fmt: skip
    identifier, _, given = rest.strip().rpartition(":")
    secret = BUCKET_KEYS.get(identifier)
    if secret is None:
        return
    headers = request.headers.multi_items()
    date = "" if "x-amz-date" in request.headers else request.headers.get("date", "")
    # A bucket in the path may stand there without a slash.
    expected = [
        signatures.signature_v2(secret, request.method, resource, pairs, headers, date)
        for resource in dict.fromkeys(
            (f"/{place.bucket}{place.path or '/'}", f"/{place.bucket}{place.path}")
        )
    ]
    _compare(given if given in expected else expected[0], given)


def _is_form(request: httpx.Request) -> bool:
    kind = request.headers.get("content-type", "")
    return request.method == "POST" and kind.lower().startswith("multipart/form-data")


def _check_form_signature(fields: dict[str, str], policy: str) -> None:
    """Check the signature of a policy, if it is made with an emulated key; there has to be one."""
    credential = fields.get("x-amz-credential")
    given = fields.get("signature" if credential is None else "x-amz-signature", "")
    if not given or (credential is None and "awsaccesskeyid" not in fields):
        raise S3Error(403, "AccessDenied", "Access Denied")
    if credential is not None:
        identifier, _, scope = credential.partition("/")
        secret = BUCKET_KEYS.get(identifier)
        if secret is not None:
            _compare(signatures.signature_v4(secret, scope, policy), given)
        return
    secret = BUCKET_KEYS.get(fields.get("awsaccesskeyid", ""))
    if secret is not None:
        _compare(signatures.policy_signature_v2(secret, policy), given)


def _headers_of(form: UploadForm) -> list[tuple[str, str]]:
    """The fields of a form that say something about its object, as headers of a PUT."""
    names = ("cache-control", "content-disposition", "content-encoding", "content-type", "expires")
    headers = [
        (name, value)
        for name, value in form.fields.items()
        if name in names
        or name.startswith("x-amz-meta-")
        or name in ("x-amz-storage-class", "x-amz-server-side-encryption")
    ]
    if "acl" in form.fields:
        headers.append(("x-amz-acl", form.fields["acl"]))
    # The policy was its authorisation; moto asks for one where there is an object already.
    return [*headers, AUTHORISED]


def _success(url: httpx.URL, place: Place, form: UploadForm, key: str, etag: str) -> httpx.Response:
    fields = form.fields
    redirect = fields.get("success_action_redirect") or fields.get("redirect")
    root = f"https://{url.host}{url.path if place.path == '' else '/'}".rstrip("/")
    headers = [("etag", etag), ("location", f"{root}/{quote(key, safe='')}")]
    if redirect and httpx.URL(redirect).host:
        query = urlencode({"bucket": place.bucket, "key": key, "etag": etag})
        target = f"{redirect}{'&' if '?' in redirect else '?'}{query}"
        return reply(303, headers=[("etag", etag), ("location", target)])
    status = fields.get("success_action_status")
    if status == "201":
        elements = {"Location": headers[1][1], "Bucket": place.bucket, "Key": key, "ETag": etag}
        return reply(201, _xml("PostResponse", elements), content_type=_XML, headers=headers)
    return reply(200 if status == "200" else 204, headers=headers)


# --- the wire ------------------------------------------------------------------------------------

_XML = "application/xml"


def _header(request: httpx.Request, name: str) -> str:
    """A header as the client signed it; a port that goes without saying is not in its Host."""
    value: str = request.headers.get(name, "")
    return value.removesuffix(":443") if name == "host" else value


def _compare(expected: str, given: str) -> None:
    if expected != given:
        raise S3Error(
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. Check "
            "your key and signing method.",
        )


def _check_order(body: bytes) -> None:
    """Refuse parts in another order than that of their numbers; moto means to, and does not."""
    numbers = [int(n) for n in re.findall(rb"<PartNumber>\s*(\d{1,9})\s*</PartNumber>", body)]
    if numbers != sorted(set(numbers)):
        raise S3Error(
            400,
            "InvalidPartOrder",
            "The list of parts was not in ascending order. The parts list must be specified in "
            "order by part number.",
        )


def _unwrap(body: bytes, headers: list[tuple[str, str]]) -> tuple[bytes, list[tuple[str, str]]]:
    """Take the frames off an ``aws-chunked`` body; its trailers become headers.

    moto does so too, with a copy of everything for each chunk.
    """
    chunks: list[bytes] = []
    position = 0
    while (match := _CHUNK.match(body, position)) is not None:
        size = int(match[1], 16)
        chunks.append(body[match.end() : match.end() + size])
        position = match.end() + size + (2 if size else 0)
        if not size:
            break
    told = [line.partition(b":") for line in body[position:].split(b"\r\n") if b":" in line]
    kept = [
        (name, value)
        for name, value in headers
        if name not in ("x-amz-content-sha256", "x-amz-trailer", "x-amz-decoded-content-length")
        and (name, value) != ("content-encoding", "aws-chunked")
    ]
    kept = [
        (name, value.removesuffix(",aws-chunked") if name == "content-encoding" else value)
        for name, value in kept
    ]
    trailers = [(n.decode("latin-1").strip(), v.decode("latin-1").strip()) for n, _, v in told]
    return b"".join(chunks), kept + [pair for pair in trailers if pair[0].startswith("x-amz-check")]


def _reply(answer: Answer, method: str) -> httpx.Response:
    """moto's answer; a HEAD has the length of what it does not have."""
    fields = [(n.lower().encode(), v.encode()) for n, v in answer.headers]
    if method == "HEAD" or answer.status in (204, 304):
        return httpx.Response(answer.status, headers=fields, stream=Body(()))
    fields = [pair for pair in fields if pair[0] != b"content-length"]
    fields.append((b"content-length", b"%d" % len(answer.body)))
    return httpx.Response(answer.status, headers=fields, stream=Body((answer.body,)))


def _refusal(error: S3Error, method: str) -> httpx.Response:
    elements = {"Code": error.code, "Message": error.message, **error.more}
    identifier = uuid.uuid4().hex[:16].upper()
    body = _xml("Error", {**elements, "RequestId": identifier, "HostId": "emulated"})
    headers = [("x-amz-request-id", identifier)]
    return reply(
        error.status, b"" if method == "HEAD" else body, content_type=_XML, headers=headers
    )


def _xml(root: str, elements: Mapping[str, object]) -> str:
    inner = "".join(f"<{n}>{escape(str(v))}</{n}>" for n, v in elements.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}>{inner}</{root}>'
