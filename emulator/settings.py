"""Every choice that the specification leaves open, with the default that makes bugs easiest to see.

The numbers in brackets are sections of the platform facts this project is built from.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["FilesystemInForce", "Settings"]

FilesystemInForce = Literal["namespace", "directory", "rewrite"]


class Settings(BaseModel):
    """Settings of one test: ``@pytest.mark.fal(account_expiration=timedelta(days=7))``."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, frozen=False)

    # --- file system -----------------------------------------------------------------------------
    filesystem: Literal["auto", "namespace", "directory", "rewrite"] = Field(
        default="auto",
        description="Rung that the test needs for /data and /tmp: real mounts, a real /data, or "
        "rewriting of Python's path calls; 'auto' takes the best there is.",
    )
    filesystem_in_force: FilesystemInForce = Field(
        default="namespace", description="The rung in force. Set by the emulator."
    )
    trusted_programs: tuple[str, ...] = Field(
        default=(),
        description="Names of programs that open nothing in /data but what they are told, 'sh' for "
        "lines of a shell. On the rung 'rewrite', on a machine with a /data of its own, they are "
        "started besides those that are known.",
    )
    data_size: int | None = Field(
        default=None, ge=4096, description="Bytes /data holds at most; None: the host's disk [§10]."
    )
    tmp_size: int | None = Field(
        default=None,
        ge=4096,
        description="Bytes a /tmp holds at most; None: the host's disk [§10].",
    )

    # --- data ------------------------------------------------------------------------------------
    data_visibility: Literal["immediate", "staged"] = Field(
        default="immediate",
        description="When other runners see what one writes to /data: at once, or, as documented, "
        "on close() on the same server and after the delays below elsewhere [§2.1, §10].",
    )
    data_datacenter_delay: timedelta = Field(
        default=timedelta(0),
        ge=timedelta(0),
        description="From close() to the other servers of the same datacenter [§2.1].",
    )
    data_global_delay: timedelta = Field(
        default=timedelta(0),
        ge=timedelta(0),
        description="From close() until the content can be read in all datacenters; until then "
        "who reads it there waits [§2.1].",
    )
    data_metadata_delay: timedelta = Field(
        default=timedelta(0),
        ge=timedelta(0),
        description="From close() until other datacenters list it; not before its own does [§2.1].",
    )
    data_locks: Literal["shared", "per_runner"] = Field(
        default="shared",
        description="flock and fcntl locks on /data: as on one disk, or without effect between "
        "runners [§10; §8, pitfall 25].",
    )
    data_metadata_latency: timedelta = Field(
        default=timedelta(0),
        ge=timedelta(0),
        description="What each name looked up, listed, created, changed or removed in /data takes.",
    )
    data_cold_read_latency: timedelta = Field(
        default=timedelta(0),
        ge=timedelta(0),
        description="What the first opening of a file takes on a server that has neither read nor "
        "written it [§8, pitfall 40].",
    )

    # --- fal files -------------------------------------------------------------------------------
    files_missing_folder: Literal["not_found", "empty"] = Field(
        default="not_found",
        description="The file API's list of a folder that is not there: 404, or an empty list "
        "[§2.3].",
    )
    files_double_slash: Literal["kept", "merged"] = Field(
        default="kept",
        description="The double slash in the file API's URLs, by which the SDK says that a path is "
        "absolute: kept, or merged by a proxy on the way, so that /data/x means /data/data/x "
        "[§2.3].",
    )

    # --- network ---------------------------------------------------------------------------------
    allow_hosts: tuple[str, ...] = Field(
        default=(),
        description="Host names and addresses that may really be reached. localhost always may.",
    )

    # --- account ---------------------------------------------------------------------------------
    nickname: str = Field(
        default="tester", description="The account's nickname; owner of its files."
    )
    users: tuple[str, ...] = Field(
        default=(),
        description="Nicknames of users that the platform knows besides the account, for access "
        "rules to name; fal_emulator.user() adds to them [§1.10].",
    )
    app_name: str = Field(default="app", description="FAL_APP_NAME of runners.")
    region: str = Field(default="us-east", description="FAL_REGION of runners [§4.8].")

    # --- runners --------------------------------------------------------------------------------
    termination_grace_period: timedelta = Field(
        default=timedelta(seconds=5),
        description="From SIGTERM to SIGKILL; an app's own wins [§4.3].",
    )
    max_concurrency: int = Field(
        default=10,
        ge=1,
        description="Runners of a deployment at most, where its app does not say it [§4.4].",
    )
    exploration_seed: int | None = Field(
        default=None,
        description="Chooses which queued call is next and which free runner gets it, in every "
        "deployment; None: in order. As fal_gateway.explore(seed).",
    )

    startup_timeout: timedelta = Field(
        default=timedelta(seconds=600),
        description="From a runner's start until its app is set up; an app's own wins [§4.4].",
    )
    request_timeout: timedelta = Field(
        default=timedelta(seconds=3600),
        description="How long a runner may take over a request; an app's own wins [§4.4].",
    )
    runner_after_503: Literal["killed", "kept"] = Field(
        default="killed",
        description="What becomes of a runner that answers 503: killed, as documented, or kept "
        "[§4.6].",
    )

    # --- gateway ---------------------------------------------------------------------------------
    queue_result_lifetime: timedelta | None = Field(
        default=timedelta(days=30),
        gt=timedelta(0),
        description="How long the result of a queued request can be fetched after its end; None: "
        "for ever [§6.3, §10].",
    )

    payload_retention: timedelta | None = Field(
        default=timedelta(days=30),
        gt=timedelta(0),
        description="How long the platform keeps the JSON of a request after its end; None: for "
        "ever [§1.15].",
    )

    # --- CDN -------------------------------------------------------------------------------------
    cdn_host: Literal["v3.fal.media", "v3b.fal.media"] = Field(
        default="v3b.fal.media",
        description="Host of the URLs that new files get; both serve all [§1.1].",
    )
    account_expiration: timedelta | None = Field(
        default=None, description="How long files live when their upload names no lifetime [§1.10]."
    )
    account_acl: dict[str, Any] | None = Field(
        default=None,
        description="initial_acl of files whose upload names none; None is public [§1.10].",
    )
    token_lifetime: timedelta = Field(
        default=timedelta(days=30), description="Lifetime of CDN tokens [§1.3]."
    )
    expired_signature: Literal["anonymous", 403] = Field(
        default="anonymous",
        description="Reading with a signed URL after its time: as without a credential, or 403 "
        "[§10].",
    )
    expired_status: Literal[404, 403, 410] = Field(
        default=404, description="Answer to reading a file after its expiry [§10]."
    )
    expiry_lag: timedelta = Field(
        default=timedelta(0),
        description="How long after its expiry a file can still be read [§1.9].",
    )
    unfinished_read: Literal["wait", "not_found"] = Field(
        default="wait",
        description="Reading a file whose upload is still running: wait, or 404 [§1.11].",
    )
    unfinished_read_limit: timedelta = Field(
        default=timedelta(seconds=10),
        description="How long such a read waits before its 404 [§10].",
    )
    malformed_lifecycle: Literal["report", "refuse"] = Field(
        default="report",
        description="Malformed lifecycle JSON or unknown keys, of an upload or a call to an app: "
        "accept and note it, or 400 [§10; §8, pitfall 7].",
    )
    invalid_expiration: Literal["refuse", "ignore"] = Field(
        default="refuse",
        description="Negative or non-numeric lifetimes: 422, or as if absent [§10].",
    )
    etag: Literal["md5-like", "md5", "absent"] = Field(
        default="md5-like",
        description="ETag of stored files: hex in quotes, another for each upload; the content's "
        "MD5; or none [§10].",
    )
    upload_url_lifetime: timedelta | None = Field(
        default=None,
        description="How long a presigned upload URL can be used; None: no limit [§10].",
    )
    upload_url_reuse: Literal["refuse", "accept"] = Field(
        default="refuse",
        description="A presigned PUT used a second time: 403, or stored again [§10].",
    )
    content_type_mismatch: Literal["report", "refuse"] = Field(
        default="report",
        description="PUT with another Content-Type than initiated: note it, or 400 [§10].",
    )
    content_check: Literal["report", "refuse", "off"] = Field(
        default="report",
        description="Content that begins like another type than the one declared: note it, 400, "
        "or do not look [§8, pitfall 18].",
    )
    unrecognised_content: Literal["accept", "rate_limit"] = Field(
        default="accept",
        description="Binary content of no known type: accept, or 429 as if v3's rate limit for it "
        "were reached; the bucket of the fallback has none [§8, pitfall 18].",
    )
    part_order: Literal["report", "any", "strict"] = Field(
        default="report",
        description="Parts completed out of order: sorted and noted, just sorted, or 400 as S3 "
        "does [§8, pitfall 36].",
    )

    # --- webhooks --------------------------------------------------------------------------------
    webhook_timeout: timedelta = Field(
        default=timedelta(seconds=15),
        gt=timedelta(0),
        description="How long a receiver may take to answer a webhook [§6.4].",
    )
    webhook_retries: tuple[timedelta, ...] = Field(
        default=tuple(timedelta(seconds=7 * (2**n - 1)) for n in range(1, 11)),
        description="When a webhook that was not taken is sent again, counted from its first "
        "delivery: 10 times within 2 hours, as documented. The spacing is assumed: 7 s, doubled "
        "each time, the last one after 1:59:21 [§6.4].",
    )
    webhook_key_padding: bool = Field(
        default=True,
        description="Whether the public keys of webhooks end with '=': fal's own sample in Python "
        "does not decode them otherwise, RFC 7515 leaves it out [§6.4].",
    )
    webhook_ip_ranges: tuple[str, ...] = Field(
        default=("192.88.99.0/24",),
        description="Where webhooks come from, as the platform API says; it is only said [§6.4].",
    )

    # --- KV --------------------------------------------------------------------------------------
    kv_lifetime: timedelta | None = Field(
        default=timedelta(days=30),
        gt=timedelta(0),
        description="How long an entry of the KV store lives when its write names no ttl; None: "
        "until deleted, as an older page says [§5].",
    )
    kv_overwrite: Literal["restarts", "keeps"] = Field(
        default="restarts",
        description="An entry set again without a ttl: its lifetime begins anew, or goes on [§10].",
    )
    kv_value_limit: int = Field(
        default=1_900_000, ge=0, description="Bytes a value has at most, in UTF-8 [§5]."
    )
    kv_too_large_status: Literal[413, 400] = Field(
        default=413, description="Answer to a value that is too large [§10]."
    )
    kv_bad_ttl_status: Literal[400, 422] = Field(
        default=400,
        description="Answer to a ttl that is no whole number of 60 to 2592000 seconds [§10].",
    )

    # --- the node's uploader ---------------------------------------------------------------------
    local_uploader: bool = Field(
        default=False,
        description="Whether the SDK hands its uploads to the node: FAL_USE_LOCAL_UPLOADER in the "
        "test and on runners [§1.12].",
    )
    uploader_delay: timedelta = Field(
        default=timedelta(0),
        ge=timedelta(0),
        description="From the node's acceptance of a file until the CDN has it [§1.12].",
    )
    uploader_deadline: timedelta = Field(
        default=timedelta(hours=1),
        gt=timedelta(0),
        description="After so long the node gives up a file that it has accepted and could not "
        "bring to the CDN; how long that is is not known [§1.12].",
    )
    uploader_limit: int | None = Field(
        default=None,
        ge=0,
        description="Bytes that the node takes at most in one file, else 413; None: any size.",
    )
    uploader_capacity: int | None = Field(
        default=None,
        ge=1,
        description="Files that the node has accepted and not brought to the CDN yet, at most, "
        "else 429; None: any number.",
    )

    @field_validator("account_acl")
    @classmethod
    def _acl_is_understood(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        from emulator.storage.lifecycle import parse_acl

        _, problems = parse_acl(value)
        if problems:
            raise ValueError("; ".join(problems))
        return value

    @property
    def needs_mounts(self) -> tuple[str, ...]:
        """The settings that only the rung ``namespace`` can fulfil, as they are written."""
        found = []
        for name in _MOUNTS_ONLY:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                found.append(f"{name}={value!r}")
        return tuple(found)


#: Sizes are file systems of their own, and so is a /data that differs between runners.
_MOUNTS_ONLY = (
    "data_size",
    "tmp_size",
    "data_visibility",
    "data_locks",
    "data_metadata_latency",
    "data_cold_read_latency",
)
