"""A file that was handed to the node's uploader, from its first byte to the CDN [§1.12]."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from emulator.schedule import Appointment
    from emulator.storage.upload_policy import UploadPolicy
    from emulator.storage.uploads import Upload

__all__ = ["Form", "NodeUpload", "State"]

State = Literal["receiving", "pending", "completed", "failed", "aborted", "lost"]


@dataclass(frozen=True)
class Form:
    """What a runner says of a file before it sends it."""

    file_name: str
    content_type: str
    #: The lifecycle preference, None when there is none.
    lifecycle: dict[str, Any] | None
    request_id: str | None
    #: Name of the runner, None for the test itself.
    runner: str | None
    #: ``FAL_APP_NAME``, as the SDK sends it.
    application: str | None
    #: Whose bucket it is for; None: fal's CDN.
    policy: UploadPolicy | None
    #: Nicknames of those whose file it will be on fal's CDN.
    owners: tuple[str, ...]
    #: Is told what is wrong with it.
    notes: list[str]
    #: All ``x-fal-*`` headers; credentials are replaced by ``***``.
    headers: dict[str, str]


@dataclass(eq=False, repr=False)
class NodeUpload:
    """An upload by way of the node. Its URL is handed out before there is anything behind it."""

    #: The node's name for it.
    id: str
    #: The file's URL, handed out before there is anything behind it.
    url: str
    form: Form
    #: ``"receiving"``: its URL is reserved; ``"pending"``: accepted, and on its way; then
    #: ``"completed"``, ``"failed"``, ``"aborted"`` by its runner or ``"lost"`` in a crash.
    state: State = "receiving"
    #: Bytes; None while they are coming in.
    size: int | None = None
    #: Why it failed, was aborted or lost.
    failure: str | None = None
    #: Virtual time at which the node had all of it.
    accepted_at: datetime | None = None
    #: Virtual time at which it was on the CDN.
    completed_at: datetime | None = None
    #: The CDN's side of it; None for a bucket of the caller's.
    on_cdn: Upload | None = field(default=None, repr=False)
    #: When it will be on the CDN, where that is known.
    due: datetime | None = None
    #: What the clock is to bring about: that, and its deadline.
    appointments: list[Appointment] = field(default_factory=list, repr=False)
    #: Whether it is being sent at this moment.
    is_moving: bool = False
    #: Real seconds that somebody has waited for it.
    waited: float = 0.0

    def __repr__(self) -> str:
        by = f" of {self.runner}" if self.runner else ""
        size = "" if self.size is None else f", {self.size} bytes"
        why = f": {self.failure}" if self.failure else ""
        return f"<NodeUpload: {self.url}{by}{size}, {self.state}{why}>"

    @property
    def file_name(self) -> str:
        """The file's name."""
        return self.form.file_name

    @property
    def content_type(self) -> str:
        """The declared type."""
        return self.form.content_type

    @property
    def lifecycle(self) -> dict[str, Any] | None:
        """The lifecycle preference that it carries, None when it carries none."""
        return self.form.lifecycle

    @property
    def request_id(self) -> str | None:
        """The request in which an app made it."""
        return self.form.request_id

    @property
    def runner(self) -> str | None:
        """Name of the runner that sent it, None for the test itself."""
        return self.form.runner

    @property
    def application(self) -> str | None:
        """``FAL_APP_NAME`` of the runner."""
        return self.form.application

    @property
    def headers(self) -> dict[str, str]:
        """The ``x-fal-*`` headers it came with, lower-case; credentials are ``***``."""
        return self.form.headers

    @property
    def is_over(self) -> bool:
        """Whether nothing happens to it any more."""
        return self.state not in ("receiving", "pending")

    @property
    def is_for_a_bucket(self) -> bool:
        """Whether it goes to a bucket of the caller's instead of the CDN [§1.13]."""
        return self.form.policy is not None

    @property
    def key(self) -> str:
        """Where the node keeps its bytes."""
        return f"node/{self.id}"
