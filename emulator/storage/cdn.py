"""The files on the fake CDN: uploads under way, what is stored, when it expires.

Bytes live in moto's S3 (:mod:`emulator.storage.objects`), which expires nothing; the rules of
expiry and access are pure functions (:mod:`emulator.storage.lifecycle`); this is what joins them.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import secrets
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from emulator.checks import ANY, WantedUpload, fail, happened, how_uploaded, listed, name_of
from emulator.errors import EmulatorError
from emulator.patience import wait_until
from emulator.storage.access import Deletion, check_lifetime
from emulator.storage.lifecycle import (
    LIFECYCLE_HEADER,
    Acl,
    expires_at,
    is_expired,
    parse_acl,
    parse_preference,
)
from emulator.storage.media import HEAD, split_head
from emulator.storage.uploads import (
    V3_HOSTS,
    Upload,
    UploadError,
    check_content,
    check_order,
    checked,
    looks_at_content,
)
from emulator.users import dropped_rule, nickname_of, without

if TYPE_CHECKING:
    from PIL.Image import Image

    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.runners.runner import Runner
    from emulator.settings import Settings
    from emulator.storage.objects import ObjectStore
    from emulator.users import User, Users

__all__ = ["CDN", "CDNFile", "Upload", "UploadError"]


@dataclass(frozen=True)
class CDNFile:
    """A file on the CDN."""

    url: str
    file_name: str
    content_type: str
    #: Bytes.
    size: int
    #: Virtual time at which the upload was complete; lifetimes count from it.
    created_at: datetime
    #: Virtual time of its deletion, None when it stays until deleted.
    expires_at: datetime | None = None
    #: Who may read it; None is everybody.
    acl: Acl | None = None
    #: The lifecycle preference that the upload carried, None when it carried none.
    lifecycle: dict[str, Any] | None = None
    #: ``X-Fal-Request-ID`` of the upload: the request in which an app made it.
    request_id: str | None = None
    #: Name of the runner that uploaded it, None for the test itself.
    runner: str | None = None
    #: Nickname of the user whose file it is: whose key uploaded it, or, of an app's output, who
    #: called the app.
    owner: str = ""
    #: All who always read it: of an app's output the app's account too.
    owners: tuple[str, ...] = ()


#: How moments are shown to people.
TIME = "%Y-%m-%d %H:%M:%S UTC"


class CDN:
    """The account's files on the CDN, as a test sees and seeds them."""

    def __init__(
        self, store: ObjectStore, clock: Clock, ledger: Ledger, settings: Settings, users: Users
    ) -> None:
        self.settings = settings
        self.users = users
        self._store = store
        self._clock = clock
        self._ledger = ledger
        self._files: dict[str, CDNFile] = {}
        self._gone: dict[str, CDNFile] = {}
        self._deleted: dict[str, Deletion] = {}
        #: Every file as its upload left it, in their order.
        self.uploads: list[CDNFile] = []
        self._uploads: dict[str, Upload] = {}
        self._pending: dict[str, Upload] = {}
        self._changed = threading.Condition()
        clock.subscribe(self._pass_time)

    def reset(self, settings: Settings) -> None:
        """Forget all files and uploads."""
        self.settings = settings
        self._files.clear()
        self._gone.clear()
        self._deleted.clear()
        self.uploads = []
        self._uploads.clear()
        self._store.reset()
        with self._changed:
            self._pending.clear()
            self._changed.notify_all()

    def __repr__(self) -> str:
        return f"<CDN: {len(self._files)} files>"

    # --- for tests -------------------------------------------------------------------------------

    def put(
        self,
        data: bytes,
        file_name: str | None = None,
        content_type: str | None = None,
        expires_in: timedelta | float | None = None,
        acl: dict[str, Any] | str | None = None,
        owner: User | str | None = None,
    ) -> str:
        """Put a file onto the CDN, as if somebody had uploaded it.

        Args:
            expires_in: lifetime (seconds or a timedelta); None: the account's default.
            acl: ``"allow"``, ``"forbid"``, ``"hide"`` or a whole ``initial_acl``; the platform
                knows the users that it names from now on.
            owner: whose file it is; default: as whom the test acts, by default the account.

        Returns:
            Its URL.

        Raises:
            EmulatorError: *expires_in* or *acl* is nothing that an upload could ask for.
        """
        lifecycle: dict[str, Any] = {}
        if expires_in is not None:
            seconds = (
                expires_in.total_seconds() if isinstance(expires_in, timedelta) else expires_in
            )
            lifecycle["expiration_duration_seconds"] = seconds
        if acl is not None:
            lifecycle["initial_acl"] = {"default": acl} if isinstance(acl, str) else acl
        _check_lifecycle(lifecycle)
        self.users.learn(parse_acl(lifecycle.get("initial_acl"))[0])
        name = file_name or "file.bin"
        owners = (self._nickname(owner),)
        upload = self.begin(name, content_type or _guess(name), lifecycle or None, owners=owners)
        self.receive(upload, (data,))
        return upload.url

    def get(self, url: str) -> bytes:
        """The bytes of a file, whatever its access rules.

        Raises:
            EmulatorError: there is none (any more); the message says why.
        """
        self.info(url)
        if self._find_key(url) not in self._files:
            raise EmulatorError(self._why_not(url))
        return b"".join(self._store.read(self._find_key(url)))

    def info(self, url: str) -> CDNFile:
        """What is known of a file, also of one that has expired or was deleted.

        Raises:
            EmulatorError: there never was one at this URL.
        """
        self._expire_due()
        key = self._find_key(url)
        deleted = self._deleted.get(key)
        found = self._files.get(key) or self._gone.get(key)
        if deleted is not None:
            found = deleted.file
        if found is None:
            raise EmulatorError(self._why_not(url))
        return found

    @property
    def files(self) -> list[CDNFile]:
        """The files that exist now, in the order of their uploads."""
        self._expire_due()
        return list(self._files.values())

    def image(self, url: str) -> Image:
        """A file, opened with Pillow."""
        from PIL import Image

        return Image.open(io.BytesIO(self.get(url)))

    def expire(self, url: str) -> None:
        """Let a file's time be over now."""
        file, now = self.info(url), self._clock.now()
        key = self._find_key(url)
        # Over already and still readable (expiry_lag): then it is not over later, either.
        if key in self._files and (file.expires_at is None or now < file.expires_at):
            self._files[key] = replace(file, expires_at=now)
            self._expire_due()

    def expired(self, url: str) -> bool:
        """Whether a file's time is over: it was there and is not any more.

        Raises:
            EmulatorError: there never was one at this URL, or its upload is not finished.
        """
        self.info(url)
        return self._find_key(url) in self._gone

    def sign(
        self,
        url: str,
        expires_in: timedelta | float = timedelta(hours=24),
        by: User | str | None = None,
    ) -> str:
        """A signed URL of a file: whoever has it can read the file for a while [§1.10].

        Args:
            expires_in: seconds or a timedelta, 7 days at most.
            by: the user whose rights it carries, as ``POST <file>/sign`` of the CDN gives it;
                default: it counts whatever the access rules say, as one of the platform API.

        Raises:
            EmulatorError: there never was such a file, or *expires_in* is out of bounds.
        """
        lifetime = check_lifetime(expires_in)
        file = self.info(url)
        signer = file.owner if by is None else self._nickname(by)
        identity = self.users.identities.sign(self._find_key(url), signer, lifetime)
        return f"{file.url}?identity={identity}"

    def set_acl(self, url: str, acl: dict[str, Any] | str | None) -> None:
        """Change who may read a file, as its owner can: ``"hide"``, a whole ACL, None for all."""
        value = {"default": acl} if isinstance(acl, str) else acl
        _check_lifecycle({"initial_acl": value})
        parsed, _ = parse_acl(value)
        self.users.learn(parsed)
        self.get(url)
        self.replace_acl(url, parsed)

    def deleted(self, url: str) -> bool:
        """Whether a file was deleted with the payloads of its request [§1.15]."""
        self.info(url)
        return self._find_key(url) in self._deleted

    def files_of(self, owner: User | str | None = None) -> list[CDNFile]:
        """The files of a user that exist now; default: the account's."""
        name = self.users.owner.nickname if owner is None else nickname_of(owner)
        return [file for file in self.files if file.owner == name]

    def uploads_by(self, runner: Runner | str | None) -> list[CDNFile]:
        """What a runner uploaded, or with None the test itself, also if it has expired since."""
        name = name_of(runner)
        return [file for file in self.uploads if file.runner == name]

    def assert_expired(self, url: str) -> None:
        """Fail unless the file was there and its time is over."""
        __tracebackhide__ = True
        file = self.readable(url)
        if file is not None:
            fail(f"{url} has not expired: {self._until(file)}")
        if not self.has_expired(url):
            fail(self._why_not(url))

    def assert_alive(self, url: str) -> None:
        """Fail unless the file is there, whoever may read it."""
        __tracebackhide__ = True
        if self.readable(url) is None:
            gone = self._gone.get(self._find_key(url))
            origin = (
                f"; it was uploaded at {gone.created_at:{TIME}} {how_uploaded(gone)}"
                if gone
                else ""
            )
            fail(f"{self._why_not(url)}{origin}")

    def assert_uploaded(
        self,
        url: str | None = None,
        *,
        by: Runner | str | None = ANY,
        lifecycle: dict[str, Any] | None = ANY,
        request_id: str | None = ANY,
        times: int | None = None,
    ) -> None:
        """Fail unless such a file was uploaded: ``assert_uploaded(by=runner, lifecycle=None)``.

        Args:
            url: where it is or was.
            by: the runner or its name that uploaded it; None: the test itself.
            lifecycle: the preference that its upload carried; None: it carried none.
            request_id: the request in which it was uploaded; None: in none.
            times: how many of them, exactly; default: at least one.
        """
        __tracebackhide__ = True
        wanted = WantedUpload(url, name_of(by), lifecycle, request_id)
        there = [file for file in self.uploads if url is None or self.same_file(url, file.url)]
        found = [file for file in there if wanted.fits(file)]
        if not found if times is None else len(found) != times:
            evidence = listed(
                [f"{file.url} {how_uploaded(file)}" for file in found or self.uploads]
            )
            fail(
                f"{wanted} {happened('uploaded', len(found), times)}: "
                f"{'' if found else 'there was '}{evidence or 'nothing'}"
            )

    # --- for the hosts ---------------------------------------------------------------------------

    def begin(
        self,
        file_name: str,
        content_type: str,
        lifecycle: dict[str, Any] | None = None,
        request_id: str | None = None,
        host: str | None = None,
        runner: str | None = None,
        owners: tuple[str, ...] = (),
        notes: list[str] | None = None,
    ) -> Upload:
        """Start an upload: its unique URL is chosen now.

        Args:
            owners: nicknames of those whose file it will be, the one first that it is made for;
                default: as whom the test acts.
            notes: is told of access rules that are dropped.
        """
        identifier = secrets.token_urlsafe(16)[:21].replace("-", "0")
        base = host or self.settings.cdn_host
        name = urllib.parse.quote(file_name.replace("/", "_"), safe="._-()+@~")
        prefix = "falserverless" if base == "storage.googleapis.com" else "files/b"
        upload = Upload(
            id=secrets.token_hex(12),
            url=f"https://{base}/{prefix}/{secrets.token_hex(4)}/{identifier}_{name}",
            file_name=file_name,
            content_type=content_type,
            started=self._clock.now(),
            signature=secrets.token_hex(16),
            lifecycle=lifecycle,
            request_id=request_id,
            runner=runner,
            owners=owners or (self._nickname(None),),
        )
        if upload.is_to_v3:
            written, _ = parse_acl((lifecycle or {}).get("initial_acl"))
            upload.unknown = tuple(self.users.unknown_in(written))
            if notes is not None:
                notes.extend(map(dropped_rule, upload.unknown))
        self._uploads[upload.id] = upload
        self._pending[self._find_key(upload.url)] = upload
        return upload

    def upload(self, identifier: str, signature: str | None) -> Upload:
        """The upload that a presigned URL names.

        Raises:
            UploadError: 403, as the URL is unknown, forged, used or too old.
        """
        found = self._uploads.get(identifier)
        if found is None or found.signature != signature:
            raise UploadError(403, "this upload URL is not valid")
        lifetime = self.settings.upload_url_lifetime
        if lifetime is not None and self._clock.now() > found.started + lifetime:
            raise UploadError(403, f"this upload URL was valid for {lifetime}")
        if found.done and self.settings.upload_url_reuse == "refuse":
            raise UploadError(403, "this upload URL has been used")
        return found

    @classmethod
    def same_file(cls, one: str, other: str) -> bool:
        """Whether two URLs name the same file."""
        return cls._find_key(one) == cls._find_key(other)

    def signature_of(self, identifier: str) -> str | None:
        """What a caller who is authorised otherwise need not present."""
        found = self._uploads.get(identifier)
        return found.signature if found is not None else None

    def receive(
        self, upload: Upload, chunks: Iterable[bytes], notes: list[str] | None = None
    ) -> CDNFile:
        """Store the bytes of a single-shot upload.

        Args:
            notes: is told what is wrong with them; None: whatever they are is right.

        Raises:
            UploadError: 400 or 429 by the settings for content.
        """
        key = self._find_key(upload.url)
        if notes is not None and looks_at_content(self.settings):
            chunks = checked(upload, iter(chunks), self.settings, notes)
        stored = self._store.put(key, chunks, content_type=upload.content_type)
        return self._finish(upload, stored.size)

    def receive_part(self, upload: Upload, number: int, chunks: Iterable[bytes]) -> str:
        """Store one part of a multipart upload; a part sent again replaces the first. Its ETag.

        Raises:
            UploadError: 400, parts are counted from 1.
        """
        if number < 1:
            raise UploadError(400, f"there is no part {number}: parts are counted from 1")
        key = f"parts/{upload.id}/{number}/{secrets.token_hex(4)}"
        self._store.put(key, chunks, content_type="application/octet-stream")
        etag = self._store.etag(key)
        replaced = upload.parts.get(number)
        upload.parts[number] = (key, etag)
        if replaced is not None:
            self._store.delete(replaced[0])
        return etag

    def complete(
        self, upload: Upload, parts: Sequence[tuple[int, str]], notes: list[str]
    ) -> CDNFile:
        """Join the parts named (number and ETag) into the file.

        Args:
            notes: is told what is wrong with them.

        Raises:
            UploadError: 400 for no parts, a missing part, one named twice or a wrong ETag; 400 or
                429 by the settings for their order and content.
        """
        keys = upload.keys_of(parts)
        check_order([number for number, _ in parts], self.settings, notes)
        if looks_at_content(self.settings):
            joined = itertools.chain.from_iterable(self._store.read(key, 0, HEAD) for key in keys)
            check_content(upload, split_head(joined)[0], self.settings, notes)
        key = self._find_key(upload.url)
        stored = self._store.join(key, keys, content_type=upload.content_type)
        upload.parts.clear()  # the store has let go of them
        return self._finish(upload, stored.size)

    def wait_for(
        self, url: str, limit: timedelta, check: Callable[[], object] = lambda: None
    ) -> bool:
        """Wait until an upload under way to *url* is finished; False when *limit* passed first.

        On a stopped clock nobody waits longer than other threads need to finish what they do: then
        the clock moves on by *limit*.

        Args:
            check: called now and then; what it raises ends the wait.
        """
        key = self._find_key(url)
        upload = self._pending.get(key)
        return wait_until(
            self._clock,
            self._changed,
            lambda: key not in self._pending,
            limit,
            check,
            due=upload.due if upload is not None else None,
            hopeless=upload is not None and upload.failure is not None,
        )

    def pending(self, url: str) -> bool:
        """Whether an upload to *url* has begun and is not finished."""
        return self._find_key(url) in self._pending

    def unfinished(self, url: str) -> str:
        """What there is to say of an upload that is not finished."""
        upload = self._pending.get(self._find_key(url))
        why = upload.failure if upload is not None else None
        failure = f", and never will be: {why}" if why else ""
        return f"upload has begun and is not finished{failure}"

    def readable(self, url: str) -> CDNFile | None:
        """The file at *url* if it is there and its time is not over."""
        self._expire_due()
        return self._files.get(self._find_key(url))

    def key_of(self, url: str) -> str:
        """The one name of a file, whichever of the CDN's hosts its URL names."""
        return self._find_key(url)

    def deletion(self, url: str) -> Deletion | None:
        """How the file at *url* was deleted; None: it was not."""
        return self._deleted.get(self._find_key(url))

    def replace_acl(self, url: str, acl: Acl | None) -> None:
        """Change who may read a file that is there."""
        key = self._find_key(url)
        with self._changed:
            if key in self._files:
                self._files[key] = replace(self._files[key], acl=acl)

    def outputs_of(self, request_id: str, owner: str) -> list[CDNFile]:
        """The files of this owner, expired ones included, that were uploaded in a request."""
        return [
            file for file in self.uploads if file.request_id == request_id and owner in file.owners
        ]

    def delete(self, url: str, why: str) -> bool:
        """Delete a file for good; False: it was not there any more."""
        self._expire_due()
        key = self._find_key(url)
        with self._changed:
            file = self._files.pop(key, None)
        if file is None:
            return False
        self._deleted[key] = Deletion(file, self._clock.now(), why)
        self._store.delete(key)
        self._ledger.event("deleted", f"{file.url}, {why}")
        return True

    def has_expired(self, url: str) -> bool:
        """Whether there was a file at *url* whose time is over."""
        return self._find_key(url) in self._gone

    def read(self, url: str, start: int = 0, end: int | None = None) -> Iterable[bytes]:
        """The bytes of a stored file."""
        return self._store.read(self._find_key(url), start, end)

    def etag(self, url: str) -> str | None:
        """The ETag of a stored file, None where the setting leaves it out."""
        key = self._find_key(url)
        if self.settings.etag == "md5":
            return self._store.etag(key)
        if self.settings.etag == "absent":
            return None
        # Another for each upload, without the 100 ms that hashing 64 MB takes.
        stamp = f"{key} {self._files[key].created_at.isoformat()}"
        return f'"{hashlib.md5(stamp.encode(), usedforsecurity=False).hexdigest()}"'

    # --- inside ----------------------------------------------------------------------------------

    def _finish(self, upload: Upload, size: int) -> CDNFile:
        now = self._clock.now()
        owner = self.users.user(upload.owners[0])
        default = owner.account_expiration
        acl: Acl | None = None
        if upload.is_to_v3:
            acl, _ = parse_acl((upload.lifecycle or {}).get("initial_acl", owner.account_acl))
            acl = without(acl, upload.unknown)
        file = CDNFile(
            url=upload.url,
            file_name=upload.file_name,
            content_type=upload.content_type,
            size=size,
            created_at=now,
            expires_at=expires_at(
                now, upload.lifecycle, default.total_seconds() if default is not None else None
            ),
            acl=acl,
            lifecycle=upload.lifecycle,
            request_id=upload.request_id,
            runner=upload.runner,
            owner=owner.nickname,
            owners=upload.owners,
        )
        key = self._find_key(upload.url)
        with self._changed:
            self._files[key] = file
            self.uploads.append(file)
            self._pending.pop(key, None)
            upload.done = True
            self._changed.notify_all()
        return file

    def _pass_time(self, old: datetime, new: datetime) -> None:
        """The clock jumped: what was over before or is now is deleted, also if nobody looked."""
        self._expire_due(max(old, new))

    def _expire_due(self, now: datetime | None = None) -> None:
        """Delete what is over, for good: moving the clock back does not bring it back."""
        now, lag = now or self._clock.now(), self.settings.expiry_lag
        over = [k for k, f in list(self._files.items()) if is_expired(f.expires_at, now, lag)]
        for key in over:
            file = self._files.pop(key, None)
            if file is not None:
                self._gone[key] = file
                self._store.delete(key)
                self._ledger.event("expired", f"{file.url}, at {file.expires_at:{TIME}}")

    @staticmethod
    def _find_key(url: str) -> str:
        """One key for a file, whichever host name of the CDN and whichever quoting the URL has."""
        parts = urllib.parse.urlsplit(url)
        host = "cdn" if parts.hostname in V3_HOSTS else parts.hostname
        return f"{host}{urllib.parse.unquote(parts.path)}"

    def _nickname(self, owner: User | str | None) -> str:
        """Of the owner that a test names; None: as whom it acts."""
        user = self.users.present if owner is None else self.users.user(nickname_of(owner))
        return user.nickname

    def _until(self, file: CDNFile) -> str:
        """How long a file stays, and why."""
        if file.expires_at is None:
            default = self.users.user(file.owner).account_expiration
            how = how_uploaded(file)
            return f"it never does; it was uploaded {how}, and account_expiration is {default}"
        last = file.expires_at + self.settings.expiry_lag
        return f"it can be read until {last:{TIME}}, and it is {self._clock.now():{TIME}}"

    def _why_not(self, url: str) -> str:
        key = self._find_key(url)
        if key in self._gone:
            return f"{url} is not there any more: it expired at {self._gone[key].expires_at:{TIME}}"
        if key in self._deleted:
            return f"{url} is not there any more: it was {self._deleted[key]}"
        if key in self._pending:
            return f"{url} is not there yet: its {self.unfinished(url)}"
        known = ", ".join(file.url for file in self._files.values()) or "nothing"
        return f"there never was a file at {url}; on the CDN is {known}"


def _check_lifecycle(lifecycle: dict[str, Any]) -> None:
    """Refuse what a test can only have written by mistake."""
    parsed = parse_preference({LIFECYCLE_HEADER: json.dumps(lifecycle)})
    problems = [*parsed.problems, *([parsed.error[1]] if parsed.error is not None else [])]
    if problems:
        raise EmulatorError(
            f"fal_cdn.put() cannot do this: {'; '.join(problems)}. Write for example "
            f'fal_cdn.put(data, expires_in=timedelta(hours=1), acl="hide").'
        )


def _guess(file_name: str) -> str:
    import mimetypes

    return mimetypes.guess_type(file_name)[0] or "application/octet-stream"
