"""moto's own S3, that of a user's ``mock_aws``: asked in process, and whose buckets it has.

The only module that knows how moto takes requests and whether a mock of its own is active. It
touches moto's global state; what the CDN keeps is in a private backend of
:mod:`emulator.storage.objects`. Seen with moto 5.0.20 and 5.2.5.

A request costs 0.4 ms, against 1.5 ms through a client of boto3.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from emulator.errors import EmulatorError
from emulator.reliance import changed

__all__ = ["AUTHORISED", "Answer", "MotoS3"]

#: A header for requests of our own: moto lets those without one do less.
AUTHORISED = (
    "Authorization",
    "AWS4-HMAC-SHA256 Credential=emulated/20000101/us-east-1/s3/aws4_request",
)

_HOST = "s3.amazonaws.com"


class Answer(NamedTuple):
    """What moto says: ``body`` is empty for a HEAD, whatever ``content-length`` says."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class MotoS3:
    """The S3 that everybody in this process shares.

    While a ``mock_aws`` of the user's is active, its buckets are that mock's and nothing is taken
    from them. Otherwise they are the test's: what was not there at :meth:`begin` is gone after
    :meth:`end`.
    """

    def __init__(self) -> None:
        self._before: frozenset[str] = frozenset()
        self._noted: list[tuple[list[Any], int]] = []
        self._session: list[Any] = []
        self._was_mocked = False
        #: The buckets that the user's mock had when the test began.
        self.kept: frozenset[str] = frozenset()

    def begin(self) -> None:
        """A test begins: remember what is there, and let nobody's older credentials be used."""
        self._before = frozenset()
        self._session = []
        self._was_mocked = self.is_mocked
        self.kept = frozenset(self.names()) if self._was_mocked else frozenset()
        self._noted = _note_instances()
        if not self._was_mocked:
            self._before = frozenset(self.names())
            # What a default session of boto3 found in ~/.aws before would still sign requests.
            boto3 = sys.modules.get("boto3")
            if boto3 is not None:
                self._session = [boto3, getattr(boto3, "DEFAULT_SESSION", None)]
                boto3.DEFAULT_SESSION = None  # type: ignore[attr-defined]

    def end(self) -> bool:
        """It is over: remove the buckets it made, unless they are those of a mock.

        Returns:
            Whether a mock that was active at the beginning has ended meanwhile, and so put the
            user's own credentials back.
        """
        if self._session:
            boto3, session = self._session
            boto3.DEFAULT_SESSION = session
            self._session = []
        if self.is_mocked:
            return False
        made = [name for name in self.names() if name not in self._before]
        for name in made:
            _remove(name)
        _forget_instances(self._noted)
        self._noted = []
        return self._was_mocked

    @property
    def is_mocked(self) -> bool:
        """Whether a ``mock_aws`` of the user's is active."""
        module = sys.modules.get("moto.core.models")
        return module is not None and bool(module.MockAWS._nested_count)

    def ask(
        self,
        method: str,
        bucket: str,
        path: str,
        query: str = "",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        region: str | None = None,
    ) -> Answer:
        """Let moto answer a request.

        Args:
            method: ``"GET"`` and so on.
            bucket: empty: all of them.
            path: below the bucket, escaped as in a URL, with its slash.
            query: without its question mark.
            headers: those of the client; its ``Host`` and ``Content-Length`` are not used.
            body: as a whole, which is how moto wants it.
            region: that the client's host names; default: as its credentials do.
        """
        host = f"s3.{region}.amazonaws.com" if region else _HOST
        place = f"/{bucket}{path}" if bucket else "/"
        url = f"https://{host}{place}?{query}" if query else f"https://{host}{place}"
        sent = [(n, v) for n, v in headers if n.lower() not in ("host", "content-length")]
        sent += [("Host", host), ("Content-Length", str(len(body)))]
        try:
            status, answered, content = _dispatch(method, place, url, sent, body)
        except NotImplementedError as error:
            return Answer(501, [], str(error).encode())
        except EmulatorError:  # another version of moto
            raise
        except Exception as error:  # at what S3 would refuse, moto may stumble
            said = f"moto failed at this request ({error!r}), so it may be malformed"
            return Answer(501, [], said.encode())
        data = content.encode() if isinstance(content, str) else bytes(content or b"")
        fields = [(str(name), str(value)) for name, value in answered.items()]
        return Answer(int(status), fields, data)

    def everybody_may(self, bucket: str, action: str, resource: str) -> bool:
        """Whether a bucket's own policy allows an action, such as ``s3:PutObject``, to all."""
        for backend in _backends():
            found = backend.buckets.get(bucket)
            if found is not None:
                return (
                    str(getattr(found.get_permission(action, resource), "name", "")) == "PERMITTED"
                )
        return False

    def names(self) -> list[str]:
        """The names of all buckets."""
        return [name for backend in _backends() for name in list(backend.buckets)]

    def keys(self, bucket: str) -> list[str]:
        """The keys in a bucket, sorted as S3 lists them; KeyError when there is no such bucket."""
        for backend in _backends():
            found = backend.buckets.get(bucket)
            if found is not None:
                return sorted(k for k in list(found.keys) if hasattr(found.keys[k], "contentsize"))
        raise KeyError(bucket)


def _note_instances() -> list[tuple[list[Any], int]]:
    """The lists of what moto has made of S3, and how much is in each."""
    module = sys.modules.get("moto.core.model_instances")
    models = module.model_data["s3"].values() if module is not None else ()
    return [(tracked, len(tracked)) for tracked in map(_instances, models)]


def _backends() -> Iterator[Any]:
    """What there is of moto's S3, for each account and partition; makes nothing."""
    models = sys.modules.get("moto.s3.models")
    if models is not None:
        for account in list(models.s3_backends.values()):
            yield from list(account.values())


def _remove(name: str) -> None:
    for backend in _backends():
        bucket = backend.buckets.pop(name, None)
        if bucket is not None:
            sys.modules["moto.s3.models"].s3_backends.bucket_accounts.pop(name, None)
            for key in list(bucket.keys):
                for version in bucket.keys.getlist(key):
                    dispose = getattr(version, "dispose", None)  # a delete marker has none
                    if dispose is not None:
                        dispose()
            for upload in bucket.multiparts.values():
                upload.dispose()


def _forget_instances(noted: list[tuple[list[Any], int]]) -> None:
    """moto keeps a list of all keys and access rules there ever were, for its dashboard.

    Args:
        noted: what there was before, which stays.
    """
    before = {id(tracked): size for tracked, size in noted}
    alive: set[int] | None = None
    for tracked, _ in _note_instances():
        # A mock that began or ended meanwhile has put new lists in place.
        start = before.get(id(tracked), 0)
        for instance in tracked[start:]:
            dispose = getattr(instance, "dispose", None)
            if dispose is not None:  # replaced or deleted: closed by nobody else
                alive = _alive() if alive is None else alive
                if id(instance) not in alive:
                    dispose()
        del tracked[start:]


def _alive() -> set[int]:
    """The keys and uploads in buckets that are there, which a server of the user's may have."""
    found: set[int] = set()
    for backend in _backends():
        for bucket in list(backend.buckets.values()):
            versions = [v for key in list(bucket.keys) for v in bucket.keys.getlist(key)]
            uploads = [*bucket.multiparts.values(), *(getattr(v, "multipart", 0) for v in versions)]
            parts = [part for upload in uploads if upload for part in upload.parts.values()]
            found.update(map(id, [*versions, *uploads, *parts]))
    return found


def _instances(model: Any) -> list[Any]:
    """Those of one class; the list was renamed in 5.1."""
    name = "instances_tracked" if hasattr(model, "instances_tracked") else "instances"
    found: list[Any] = getattr(model, name, [])
    return found


@functools.cache
def _moto() -> tuple[Any, Any, Any, Any]:
    """What takes a request; importing it takes a tenth of a second, so not before one comes."""
    try:
        from botocore.awsrequest import AWSPreparedRequest
        from botocore.compat import HTTPHeaders
        from moto.s3.responses import S3Response

        for name in ("bucket_response", "ambiguous_response", "key_response"):
            getattr(S3Response, name)
    except (ImportError, AttributeError) as error:
        raise changed("moto", str(error)) from error
    try:
        from moto.core.request import normalize_request
    except ImportError:  # before 5.1 a handler took the client's own request
        normalize_request = None
    return AWSPreparedRequest, HTTPHeaders, S3Response, normalize_request


def _dispatch(
    method: str, place: str, url: str, headers: list[tuple[str, str]], body: bytes
) -> tuple[int, dict[str, Any], str | bytes]:
    prepared, header_class, responses, normalize = _moto()
    fields = header_class()
    for name, value in headers:
        fields[name] = value
    request = prepared(method, url, fields, body, False)
    if normalize is not None:
        request = normalize(request)
    # As moto's own table of URLs has it, which takes it 1 ms to go through.
    if place == "/":
        handler = responses().bucket_response
    elif "/" not in place[1:].removesuffix("/"):
        handler = responses().ambiguous_response
    else:
        handler = responses().key_response
    try:
        answer: tuple[int, dict[str, Any], str | bytes] = handler(
            request, getattr(request, "raw_url", url), request.headers
        )
    except Exception as error:
        refusal: Any = error
        # moto's errors are answers; those of werkzeug's in older versions, of its own in newer.
        if not (hasattr(error, "get_body") and hasattr(error, "code")):
            raise
        return refusal.code, dict(refusal.get_headers()), refusal.get_body()
    return answer
