"""The account's files on the CDN, as a test sees and seeds them."""

from __future__ import annotations

import io
import json
import urllib.parse
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from emulator.checks import ANY, TIME, WantedUpload, fail, happened, how_uploaded, listed, name_of
from emulator.errors import EmulatorError
from emulator.storage.access import check_lifetime
from emulator.storage.cdn_files import CDNFile, CDNFiles
from emulator.storage.lifecycle import (
    LIFECYCLE_HEADER,
    parse_acl,
    parse_preference,
)
from emulator.storage.uploads import V3_HOSTS
from emulator.users import nickname_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from emulator.runners.runner import Runner
    from emulator.users import User

__all__ = ["CDN", "CDNFile"]


class CDN(CDNFiles):
    """The account's files on the CDN."""

    def __repr__(self) -> str:
        return f"<CDN: {len(self._files)} files>"

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
        _check_lifecycle("put", lifecycle)
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
        _check_lifecycle("set_acl", {"initial_acl": value})
        parsed, _ = parse_acl(value)
        self.users.learn(parsed)
        file = self.readable(url)
        if file is None:
            raise EmulatorError(self._why_not(url))
        if urllib.parse.urlsplit(file.url).hostname not in V3_HOSTS:
            raise EmulatorError(
                f"{url} has no access rules: only files on the v3 CDN do, and those of the "
                "fallback are public."
            )
        self.replace_acl(url, parsed)

    def deleted(self, url: str) -> bool:
        """Whether a file was deleted with the payloads of its request [§1.15]."""
        self.info(url)
        return self._find_key(url) in self._deleted

    def files_of(self, owner: User | str | None = None) -> list[CDNFile]:
        """The files of a user that exist now; default: the account's."""
        user = self.users.owner if owner is None else self.users.user(nickname_of(owner))
        name = user.nickname
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

    # --- inside ----------------------------------------------------------------------------------

    def _until(self, file: CDNFile) -> str:
        """How long a file stays, and why."""
        if file.expires_at is None:
            default = self.users.user(file.owner).account_expiration
            how = how_uploaded(file)
            return f"it never does; it was uploaded {how}, and account_expiration is {default}"
        last = file.expires_at + self.settings.expiry_lag
        return f"it can be read until {last:{TIME}}, and it is {self._clock.now():{TIME}}"


def _check_lifecycle(method: str, lifecycle: dict[str, Any]) -> None:
    """Refuse what a test can only have written by mistake."""
    parsed = parse_preference({LIFECYCLE_HEADER: json.dumps(lifecycle)})
    problems = [*parsed.problems, *([parsed.error[1]] if parsed.error is not None else [])]
    if problems:
        example = {
            "put": 'put(data, expires_in=timedelta(hours=1), acl="hide")',
            "set_acl": 'set_acl(url, "hide")',
        }
        raise EmulatorError(
            f"fal_cdn.{method}() cannot do this: {'; '.join(problems)}. Write for example "
            f"fal_cdn.{example[method]}."
        )


def _guess(file_name: str) -> str:
    import mimetypes

    return mimetypes.guess_type(file_name)[0] or "application/octet-stream"
