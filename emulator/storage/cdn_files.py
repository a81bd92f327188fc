"""The files on the fake CDN: uploads under way, what is stored, when it expires.

Bytes live in moto's S3 (:mod:`emulator.storage.objects`), which expires nothing; the rules of
expiry and access are pure functions (:mod:`emulator.storage.lifecycle`); this is what joins them.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from emulator.checks import TIME
from emulator.patience import wait_until
from emulator.storage.access import Deletion
from emulator.storage.lifecycle import (
    Acl,
    expires_at,
    is_expired,
    parse_acl,
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
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.settings import Settings
    from emulator.storage.objects import ObjectStore
    from emulator.users import User, Users

__all__ = ["CDNFile", "CDNFiles"]


@dataclass(frozen=True)
class CDNFile:
    """A file on the CDN."""

    #: Where it is, without a signature.
    url: str
    #: As it was uploaded.
    file_name: str
    #: The declared one.
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


class CDNFiles:
    """The files, as the CDN's hosts work with them."""

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
        key = self._find_key(found.url)
        if key in self._deleted or key in self._gone:
            raise UploadError(403, "the file of this upload URL is gone for good")
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
