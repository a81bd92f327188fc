"""Buckets of S3 and R2 (in moto) and of Google, filled and read without a client.

What an app does with them goes over HTTP; this is what a test prepares and looks at.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, get_args
from urllib.parse import quote

from emulator.checks import fail, listed
from emulator.credentials import AWS_KEY, R2_ACCOUNT, R2_KEY
from emulator.errors import EmulatorError
from emulator.storage.google import GoogleAccount, GoogleBuckets
from emulator.storage.moto_s3 import AUTHORISED, Answer, MotoS3
from emulator.storage.presigning import presigned_post, presigned_url

__all__ = ["Bucket", "Buckets", "Provider"]

Provider = Literal["s3", "r2", "gcs"]

_STEP = 0.002

_PUBLIC = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject"}],
}


class Objects(Protocol):
    """What has the objects of a provider."""

    def make(self, bucket: str, public: bool) -> None:
        """Make a bucket; EmulatorError when the name is refused."""

    def keys(self, bucket: str) -> list[str]:
        """The keys in it, sorted; KeyError when there is no such bucket."""

    def get(self, bucket: str, key: str) -> bytes:
        """The bytes of an object that is there."""

    def put(self, bucket: str, key: str, data: bytes, content_type: str | None) -> None:
        """Store an object."""

    def url(self, bucket: str, key: str) -> str:
        """Its plain URL; without a key the bucket's root."""


class Bucket:
    """A bucket, as a test sees it."""

    def __init__(
        self, name: str, provider: Provider, objects: Objects, now: Callable[[], datetime]
    ) -> None:
        #: As URLs and clients have it.
        self.name = name
        #: ``"s3"``, ``"r2"`` or ``"gcs"``.
        self.provider: Provider = provider
        self._objects = objects
        self._now = now

    def __repr__(self) -> str:
        try:
            keys = self._objects.keys(self.name)
        except KeyError:
            return f"<Bucket {self.name!r} ({self.provider}): it is gone>"
        return f"<Bucket {self.name!r} ({self.provider}): {listed(keys) or 'empty'}>"

    def __contains__(self, key: object) -> bool:
        """Whether there is an object with this key."""
        return key in self.keys

    def __iter__(self) -> Iterator[str]:
        """The keys."""
        return iter(self.keys)

    @property
    def keys(self) -> list[str]:
        """The keys of all objects, sorted.

        Raises:
            EmulatorError: the bucket has been deleted.
        """
        try:
            return self._objects.keys(self.name)
        except KeyError:
            raise EmulatorError(
                f"The bucket {self.name!r} is gone: it was deleted, or a mock_aws() that began or "
                "ended meanwhile reset moto. Create it inside the mock."
            ) from None

    def get(self, key: str) -> bytes:
        """The bytes of an object.

        Raises:
            EmulatorError: there is none; says what is there.
        """
        keys = self.keys
        if key not in keys:
            there = f"There is {listed(keys)}" if keys else "The bucket is empty"
            raise EmulatorError(f"No object {key!r} in the bucket {self.name!r}. {there}.")
        return self._objects.get(self.name, key)

    def put(self, key: str, data: bytes, content_type: str | None = None) -> str:
        """Store an object, in place of the one that had this key; its plain :meth:`url`."""
        self.keys  # noqa: B018 - raises when the bucket is gone
        self._objects.put(self.name, key, data, content_type)
        return self.url(key)

    def wait_for(self, count: int = 1, seconds: float = 5.0) -> list[str]:
        """Wait, in real time, until so many objects are there: an app may upload in the background.

        Args:
            count: of objects in the bucket, at least.
            seconds: the longest time.

        Returns:
            The keys.

        Raises:
            AssertionError: they did not come; says what there is.
        """
        __tracebackhide__ = True
        wait = threading.Event().wait
        steps = int(seconds / _STEP)
        while len(self.keys) < count and steps > 0:
            wait(_STEP)
            steps -= 1
        if len(keys := self.keys) < count:
            fail(
                f"{count} objects did not come into the bucket {self.name!r} within {seconds:g} s: "
                f"there is {listed(keys) or 'none'}. Look at fal_ledger.requests(method="
                '"POST") for what became of the uploads.'
            )
        return keys

    def url(self, key: str) -> str:
        """The plain URL of an object: readable for all only in a public bucket."""
        return self._objects.url(self.name, key)

    def presigned_url(self, key: str, expires_in: float | timedelta = 3600) -> str:
        """A URL with which anybody can read an object, for a time of at most 7 days.

        Args:
            key: the object's; it need not be there yet.
            expires_in: seconds, or a timedelta.
        """
        if self.provider == "gcs":
            raise EmulatorError(
                "presigned_url() is for S3 and R2. For Google's buckets write "
                "blob.generate_signed_url(), or make the bucket public: create(name, public=True)."
            )
        credentials = R2_KEY if self.provider == "r2" else AWS_KEY
        seconds = int(_seconds(expires_in))
        return presigned_url(self.url(key), credentials, self._now(), seconds)

    def presigned_post(
        self,
        key: str = "uploads/${filename}",
        expires_in: float | timedelta = 3600,
        conditions: Sequence[Any] | None = None,
    ) -> dict[str, Any]:
        """What a caller sends as ``x-app-fal-upload-policy``, by ``json.dumps`` [§1.13].

        It is what boto3's ``generate_presigned_post`` makes.

        Args:
            key: of the objects; the SDK wants ``${filename}`` in it, in place of which it puts a
                name of its own.
            expires_in: seconds, or a timedelta.
            conditions: further ones, such as ``["content-length-range", 0, 10_000_000]``. Default:
                any ``Content-Type``, as the SDK sends one that S3 refuses where no condition names
                it. An empty list: none.

        Raises:
            EmulatorError: the bucket is no bucket of S3; the others have no such uploads.
        """
        if self.provider != "s3":
            raise EmulatorError(
                f"{self.name!r} is a bucket of {self.provider}, and presigned POSTs are S3's: the "
                'SDK takes no other. Write fal_buckets.create(name, provider="s3").'
            )
        if conditions is None:
            conditions = [["starts-with", "$Content-Type", ""]]
        now = self._now()
        expires = now + timedelta(seconds=_seconds(expires_in))
        root = self._objects.url(self.name, "")
        return presigned_post(root, self.name, key, conditions, AWS_KEY, now, expires)


class Buckets:
    """The test's buckets. While nothing is asked of it, it costs nothing.

    Args:
        moto: what has S3's and R2's.
        google: what has Google's.
        account: the service account of Google's.
        now: the clock.
    """

    def __init__(
        self,
        moto: MotoS3,
        google: GoogleBuckets,
        account: GoogleAccount,
        now: Callable[[], datetime],
    ) -> None:
        self._moto = moto
        self._google = google
        self._account = account
        self._now = now
        self._providers: dict[str, Provider] = {}

    def __repr__(self) -> str:
        found = self.all
        return f"<Buckets: {listed([bucket.name for bucket in found]) or 'none'}>"

    def reset(self) -> None:
        """Forget what was created here; the buckets themselves are removed by who has them."""
        self._providers.clear()

    def create(self, name: str, provider: Provider = "s3", *, public: bool = False) -> Bucket:
        """Make a bucket.

        Args:
            name: 3 to 63 lower-case letters, digits, dots and hyphens.
            provider: ``"s3"``, ``"r2"`` or ``"gcs"``. S3 and R2 share one namespace.
            public: whether everybody may read its objects without a signature (S3, Google).

        Raises:
            EmulatorError: the name is taken or refused, or R2's bucket is to be public.
        """
        objects = self._objects(provider)
        objects.make(name, public)
        self._providers[name] = provider
        return Bucket(name, provider, objects, self._now)

    def __getitem__(self, name: str) -> Bucket:
        """A bucket by its name, whoever made it.

        Raises:
            EmulatorError: there is none; says which there are.
        """
        for bucket in self.all:
            if bucket.name == name:
                return bucket
        there = listed([bucket.name for bucket in self.all]) or "none"
        raise EmulatorError(
            f"There is no bucket {name!r}; there is {there}. Write fal_buckets.create({name!r}), "
            "or create it with a client."
        )

    @property
    def all(self) -> list[Bucket]:
        """All buckets there are now, those made by clients of S3 and Google included."""
        moto = [(name, self._providers.get(name, "s3")) for name in self._moto.names()]
        google = [(name, "gcs") for name in self._google.names()]
        return [
            Bucket(name, provider, self._objects(provider), self._now)  # type: ignore[arg-type]
            for name, provider in moto + google
        ]

    @property
    def secrets(self) -> dict[str, str]:
        """What an app finds in its environment: ``fal_runner(App, env=fal_buckets.secrets)``.

        ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``, ``R2_CREDS_JSON``, and
        ``GCLOUD_SA_JSON``, with a key of its own that is made when first asked for.
        """
        identifier, secret = R2_KEY
        r2 = {"ACCOUNT_ID": R2_ACCOUNT, "ACCESS_KEY_ID": identifier, "SECRET_ACCESS_KEY": secret}
        return {
            "AWS_ACCESS_KEY_ID": AWS_KEY[0],
            "AWS_SECRET_ACCESS_KEY": AWS_KEY[1],
            "R2_CREDS_JSON": json.dumps(r2),
            "GCLOUD_SA_JSON": json.dumps(self._account.info),
        }

    def _objects(self, provider: str) -> Objects:
        if provider not in get_args(Provider):
            raise EmulatorError(
                f'There is no provider {provider!r}. Write provider="s3", "r2" or "gcs".'
            )
        return self._google if provider == "gcs" else _InMoto(self._moto, provider)


class _InMoto:
    """Objects of S3 and R2."""

    def __init__(self, moto: MotoS3, provider: str) -> None:
        self._moto = moto
        self._provider = provider

    def make(self, bucket: str, public: bool) -> None:
        if public and self._provider == "r2":
            raise EmulatorError(
                "No bucket of R2 is public under its S3 endpoint: files for everybody have a "
                f'domain of their own. Write fal_buckets.create({bucket!r}, provider="r2") and '
                "bucket.presigned_url(key), or serve the public file: "
                'fal_origin.serve("https://files.example/a.mp4", content=...).'
            )
        if bucket in self._moto.names() and bucket in self._moto.kept and self._moto.is_mocked:
            raise EmulatorError(
                f"There is a bucket {bucket!r} already: the mock_aws() that was active before this "
                "test keeps what earlier tests made in it. Write "
                f"fal_buckets[{bucket!r}] to use it, give each test a name of its own, or give "
                "each test a mock_aws() of its own: a fixture without scope=."
            )
        if bucket in self._moto.names():
            raise EmulatorError(f"There is a bucket {bucket!r} already; S3 and R2 share the names.")
        _check(self._ask("PUT", bucket, ""), f"create the bucket {bucket!r}")
        if public:
            policy = json.loads(json.dumps(_PUBLIC))
            policy["Statement"][0]["Resource"] = f"arn:aws:s3:::{bucket}/*"
            body = json.dumps(policy).encode()
            _check(self._ask("PUT", bucket, "", "policy", body), f"make {bucket!r} public")

    def keys(self, bucket: str) -> list[str]:
        return self._moto.keys(bucket)

    def get(self, bucket: str, key: str) -> bytes:
        return _check(self._ask("GET", bucket, f"/{quote(key)}"), f"read {key!r}").body

    def put(self, bucket: str, key: str, data: bytes, content_type: str | None) -> None:
        headers = [("Content-Type", content_type)] if content_type else []
        path = f"/{quote(key)}"
        answer = self._moto.ask("PUT", bucket, path, "", [*headers, AUTHORISED], bytes(data))
        _check(answer, f"store {key!r}")

    def url(self, bucket: str, key: str) -> str:
        path = quote(key, safe="/~")
        if self._provider == "r2":
            return f"https://{R2_ACCOUNT}.r2.cloudflarestorage.com/{bucket}/{path}"
        # A certificate for all buckets does not fit a dot in one's name.
        if "." in bucket:
            return f"https://s3.amazonaws.com/{bucket}{'/' if key else ''}{path}"
        return f"https://{bucket}.s3.amazonaws.com/{path}"

    def _ask(
        self, method: str, bucket: str, path: str, query: str = "", body: bytes = b""
    ) -> Answer:
        return self._moto.ask(method, bucket, path, query, [AUTHORISED], body)


def _check(answer: Answer, what: str) -> Answer:
    if answer.status >= 300:
        text = answer.body.decode("utf-8", "replace")
        why = text.partition("<Message>")[2].partition("</Message>")[0] or text
        why = why.removeprefix("<![CDATA[").removesuffix("]]>")
        raise EmulatorError(f"S3 does not {what}: {why}")
    return answer


def _seconds(duration: float | timedelta) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration
