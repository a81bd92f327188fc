"""The names of other people's packages that nobody has promised us: the one list of them.

Private ones, and such as their documentation does not speak of. See :mod:`emulator.reliance`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PACKAGES", "PYTHON", "Name", "Package"]


@dataclass(frozen=True)
class Name:
    """A name that we rely on.

    Attributes:
        place: ``"module"``, or ``"module:name.attribute"``.
        used_in: our modules that use it, by their files from ``emulator/`` on.
        purpose: completes "by which pytest-fal ...".
        parameters: those that we give it by name.
        on_instances: it is an attribute of objects of that class, perhaps not of the class itself.
        since: the first version of the package that has it, where the oldest does not.
        until: the first version of the package that no longer has it.
        needed: False: without it something of a test may be left for the next one, but it works.
    """

    place: str
    used_in: str
    purpose: str
    parameters: tuple[str, ...] = ()
    on_instances: bool = False
    since: str = ""
    until: str = ""
    needed: bool = True

    @property
    def module(self) -> str:
        """The module that has it."""
        return self.place.partition(":")[0]

    @property
    def attributes(self) -> list[str]:
        """How it is reached from the module; nothing: it is the module."""
        return [part for part in self.place.partition(":")[2].split(".") if part]

    @property
    def dotted(self) -> str:
        """As Python's own messages name it."""
        return self.place.replace(":", ".")


@dataclass(frozen=True)
class Package:
    """A distribution, the versions that pytest-fal was tested with, and what is used of it."""

    name: str
    oldest: str
    newest: str
    names: tuple[Name, ...]


def _each(places: str, used_in: str, purpose: str, *, on_instances: bool = False) -> list[Name]:
    """Several names of one purpose: ``"module:Class a b c"``."""
    owner, *attributes = places.split()
    joint = "." if owner.partition(":")[2] else ":"
    return [
        Name(f"{owner}{joint}{attribute}", used_in, purpose, on_instances=on_instances)
        for attribute in attributes
    ]


_PROVIDERS = "fal.toolkit.file.providers.fal"
_POLICY = "fal.toolkit.file._upload_policy"
_FILE = "fal.toolkit.file.file"
_LEFT = "leaves nothing of a test to the next one"
_SPAWNS = "answers App.spawn() as the SDK does"
_UPLOADS = "waits for uploads to a caller's bucket, and ends them"

_FAL = (
    Name(
        "fal.app:App",
        "runners/thread.py",
        "makes an app on a runner in a thread",
        parameters=("_allow_init",),
    ),
    Name("fal.app:App._build_app", "runners/thread.py", "serves an app on a runner in a thread"),
    Name(
        "fal.app:App.host_kwargs",
        "fleets/options.py, sdk_apps.py",
        "reads what an app says of its scaling",
    ),
    Name("fal.app:App.app_auth", "hosts/gateway.py", "knows who may call an app"),
    Name("fal.app:App.app_name", "fleets/spawning.py", "names a spawned app"),
    Name("fal.app:App.get_health_check_config", "runners/health.py", "checks a runner's health"),
    Name("fal.app:App.current_request", "runners/thread.py", "knows whose request a line is of"),
    Name("fal.app:App.handle_exit", "runners/thread.py", "tells an app that it is to end"),
    Name("fal.app:App.spawn", "fleets/spawning.py", "stands in for App.spawn()"),
    *_each(
        "fal.app SpawnInfo AppSpawnInfo",
        "fleets/spawning.py",
        "answers App.spawn() as the SDK does",
    ),
    *_each(
        "fal.app:SpawnInfo logs stream url",
        "fleets/spawning.py",
        "answers App.spawn() as the SDK does",
        on_instances=True,
    ),
    Name("fal.app:wrap_app", "sdk_apps.py", "serves an app in a process"),
    Name("fal.api:FalServerlessHost.spawn", "fleets/spawning.py", "refuses to reach the platform"),
    Name("fal.ref:current_app", "sdk.py, sdk_apps.py", "tells the SDK which app runs"),
    Name("fal.auth.local:_FAL_HOME_DIR", "sdk.py", "keeps the SDK from your login token"),
    Name(
        "fal._version:_PYPI_CACHE_PATH",
        "sdk.py",
        "keeps the command `fal` from writing to your ~/.fal",
        needed=False,
    ),
    Name("fal.flags:REST_HOST", "sdk.py", "answers at the REST host that the SDK asks"),
    Name(f"{_FILE}:DEFAULT_REPOSITORY", "sdk.py", _LEFT, needed=False),
    Name(f"{_FILE}:BUILT_IN_REPOSITORIES", "sdk.py", _LEFT, needed=False),
    Name(f"{_FILE}:FALLBACK_REPOSITORY", "sdk.py", _LEFT, needed=False),
    *_each(
        f"{_PROVIDERS} fal_v3_token_manager fal_v2_token_manager _LIFECYCLE_PREFERENCE",
        "sdk.py",
        _LEFT,
    ),
    *_each(f"{_PROVIDERS}:FalV2TokenManager _token token_cls", "sdk.py", _LEFT, on_instances=True),
    *(
        Name(f"{_PROVIDERS}:{kind}.{limit}", "sdk.py", _LEFT, needed=False)
        for kind in ("MultipartUploadGCS", "MultipartUploadV3", "InternalMultipartUploadV3")
        for limit in (
            "MULTIPART_THRESHOLD",
            "MULTIPART_CHUNK_SIZE",
            "MULTIPART_MAX_CONCURRENCY",
        )
    ),
    *(
        Name(f"{_POLICY}:{name}", "sdk.py", _UPLOADS, since="1.80.0")
        for name in ("_inflight", "_should_retry", "UploadPolicyError")
    ),
    Name(
        "fal.toolkit.image:read_image_from_url.cache_clear",
        "sdk.py",
        "forgets the images that the SDK remembers",
        needed=False,
    ),
    Name("fal.files:FalFileSystem._cache", "sdk.py", _LEFT, needed=False),
    Name("fal.apps:_get_http_client.cache_clear", "sdk.py", _LEFT, needed=False),
    Name("fal.apps:_get_http_client.cache_info", "sdk.py", _LEFT, needed=False),
)

_FAL_CLIENT = (
    Name("fal_client._headers:_get_current_app", "sdk.py", _LEFT),
    Name(
        "fal_client._headers:set_get_current_app",
        "sdk_apps.py",
        "tells fal_client which app a thread is of",
    ),
    *_each("fal_client sync_client async_client", "sdk.py", "has fal_client forget its key"),
    *(
        Name(f"fal_client.client:{kind}.{name}", "sdk.py", "has fal_client forget its key")
        for kind in ("SyncClient", "AsyncClient")
        for name in ("_auth", "_client", "_token_manager")
    ),
    Name("fal_client.client:EXECUTOR", "subscriptions.py", "ends what a subscription leaves"),
)

_ISOLATE = (
    Name("isolate", "sdk.py", "finds what fal.cached() has kept"),
    *_each("isolate.logs Log LogSource LogLevel", "fleets/spawning.py", "hands on an app's lines"),
    Name("isolate.logs:LogSource.USER", "fleets/spawning.py", "hands on an app's lines"),
)

_CYGRPC = "grpc._cython.cygrpc"
_CALLS = "watch_connectivity_state check_connectivity_state"
_GRPCIO = (
    *_each(
        f"{_CYGRPC}:Channel integrated_call segregated_call {_CALLS}",
        "network/grpc_entrance.py",
        "keeps gRPC calls on this machine",
    ),
    *_each(
        f"{_CYGRPC}:AioChannel call {_CALLS}",
        "network/grpc_entrance.py",
        "keeps gRPC calls on this machine",
    ),
)

_HTTPX = "network/httpx_entrance.py"
_HTTPCORE = (
    Name("httpcore:ConnectionPool.handle_request", _HTTPX, "answers httpx"),
    Name("httpcore:AsyncConnectionPool.handle_async_request", _HTTPX, "answers httpx"),
    *(
        Name(f"httpcore:{pool}.{name}", _HTTPX, purpose, on_instances=True)
        for pool in ("ConnectionPool", "AsyncConnectionPool")
        for name, purpose in (
            ("_uds", "leaves clients of Unix sockets alone"),
            ("_ssl_context", "knows whether a client minds a bad certificate"),
        )
    ),
)

_RESPX = (
    *_each(
        "respx.models AllMockedAssertionError PassThrough ResolvedRoute",
        "network/routes.py",
        "asks your own routes",
    ),
    *_each("respx:MockRouter resolve aresolve", "network/routes.py", "asks your own routes"),
    *_each(
        "respx:Route pattern is_pass_through side_effect",
        "network/routes.py",
        "knows which hosts your own routes answer",
    ),
)

_AIOHTTP = (
    Name(
        "aiohttp.connector:_SSL_CONTEXT_VERIFIED",
        "network/aiohttp_context.py",
        "has aiohttp trust its certificates",
        since="3.10.11",
    ),
)

_CDN = "keeps the CDN's objects"
_S3 = "answers as S3 does"
_IN_BOTH = "storage/objects.py, storage/moto_s3.py"
_MOTO = (
    *_each("moto.s3.models:S3Backend get_object", "storage/objects.py", _CDN),
    *_each("moto.s3.models:S3Backend buckets", "storage/objects.py", _CDN, on_instances=True),
    *_each("moto.s3.models:FakeBucket keys", "storage/objects.py", _CDN, on_instances=True),
    *_each(
        "moto.s3.models:FakeBucket multiparts get_permission",
        "storage/moto_s3.py",
        _S3,
        on_instances=True,
    ),
    *_each("moto.s3.utils:_VersionedKeyStore setlist pop clear", "storage/objects.py", _CDN),
    *_each("moto.s3.utils:_VersionedKeyStore getlist", "storage/moto_s3.py", _S3),
    *_each(
        "moto.s3.models:FakeKey name last_modified contentsize size lock metadata set_metadata "
        "etag dispose disposed _etag _value_buffer",
        "storage/objects.py",
        _CDN,
        on_instances=True,
    ),
    Name("moto.s3.models:s3_backends.bucket_accounts", _IN_BOTH, _S3),
    Name("moto.core.model_instances:model_data", _IN_BOTH, _CDN),
    Name("moto.core.models:MockAWS._nested_count", "storage/moto_s3.py", "sees your own mock_aws"),
    *_each(
        "moto.s3.responses:S3Response bucket_response ambiguous_response key_response",
        "storage/moto_s3.py",
        _S3,
    ),
    Name("moto.core.request:normalize_request", "storage/moto_s3.py", _S3, since="5.1.0"),
)

_BOTOCORE = (
    Name("botocore.awsrequest:AWSPreparedRequest", "storage/moto_s3.py", _S3),
    Name("botocore.compat:HTTPHeaders", "storage/moto_s3.py", _S3),
)
_BOTO3 = (
    Name("boto3:DEFAULT_SESSION", "storage/moto_s3.py", "keeps boto3 from your own credentials"),
)

_GOOGLES_CLOCK = "gives Google's libraries the clock"
_GOOGLE = (
    *_each(
        "google.cloud.storage _helpers _signing blob bucket client",
        "google_clock.py",
        _GOOGLES_CLOCK,
    ),
    *(
        Name(
            f"google.cloud.storage._bucket_metadata_cache:BucketMetadataCache.{name}",
            "google_clock.py",
            "stops requests that nothing waits for",
            since="3.17.0",
            needed=False,
        )
        for name in ("check_and_evict", "evict")
    ),
    *(
        Name(f"google.cloud.storage.{place}", "google_clock.py", _GOOGLES_CLOCK)
        for place in ("bucket:_NOW", "client:_NOW", "_signing:NOW")
    ),
)

_CLOCK = "shows the emulated clock to the app"
_FREEZEGUN = (
    *_each(
        "freezegun.api call_stack_inspection_limit freeze_factories freeze_time ignore_lists "
        "tick_flags tz_offsets",
        "timepatch.py",
        _CLOCK,
    ),
    *_each(
        "freezegun.api:_freeze_time ignore modules_at_start",
        "timepatch.py",
        _CLOCK,
        on_instances=True,
    ),
)

_CLOUDPICKLE = tuple(
    _each(
        "cloudpickle.cloudpickle _PICKLE_BY_VALUE_MODULES _DYNAMIC_CLASS_TRACKER_BY_CLASS "
        "_DYNAMIC_CLASS_TRACKER_BY_ID _code_reduce",
        "runners/pickling.py",
        "tells classes apart between processes",
    )
)

_UVICORN = (
    Name("uvicorn.server:asyncio", "runners/server_log.py", "hurries a server that is to end"),
)

_COVERAGE = (
    Name("coverage:Coverage.current", "runners/measuring.py", "measures runners in processes"),
    *_each(
        "coverage.config:CoverageConfig branch source source_pkgs run_include run_omit data_file "
        "config_file",
        "runners/measuring.py",
        "measures runners in processes",
        on_instances=True,
    ),
)

_LEAKS = "finds what a test leaves behind"
_FASTAPI = (
    Name("fastapi.routing:_endpoint_context_cache", "sdk.py", _LEFT, needed=False, since="0.136.0"),
)
_PYTEST = (
    Name(
        "_pytest.fixtures:FixtureRequest._pyfuncitem",
        "../pytest_fal/leaks.py",
        _LEAKS,
        on_instances=True,
    ),
)

_PATHS = "leads Python's path calls to the volumes"
_STANDARD_LIBRARY = (
    Name("_imp:create_dynamic", "storage/natives.py", _PATHS),
    Name("ctypes:_dlopen", "storage/natives.py", _PATHS),
    Name("pathlib._abc", "storage/rewrite.py", _PATHS, since="3.13.0", until="3.14.0"),
    Name("pathlib._local", "storage/rewrite.py", _PATHS, since="3.13.0", until="3.14.0"),
    Name("threading:_DummyThread", "../pytest_fal/leftovers.py", _LEAKS),
    *_each(
        "threading:Thread _args _target", "../pytest_fal/leftovers.py", _LEAKS, on_instances=True
    ),
    Name(
        "concurrent.futures.thread:ThreadPoolExecutor._idle_semaphore",
        "../pytest_fal/leftovers.py",
        _LEAKS,
        on_instances=True,
    ),
    *_each(
        "asyncio.selector_events:BaseSelectorEventLoop _selector _ssock _csock",
        "../pytest_fal/descriptors.py",
        _LEAKS,
        on_instances=True,
    ),
    Name(
        "asyncio.events:BaseDefaultEventLoopPolicy._Local._loop",
        "../pytest_fal/descriptors.py",
        _LEAKS,
        until="3.14.0",
    ),
    Name(
        "asyncio.events:BaseDefaultEventLoopPolicy._local",
        "../pytest_fal/descriptors.py",
        _LEAKS,
        on_instances=True,
        until="3.14.0",
    ),
    Name(
        "asyncio.events:_get_event_loop_policy",
        "../pytest_fal/descriptors.py",
        _LEAKS,
        since="3.14.0",
    ),
    Name("urllib.request:_opener", "../pytest_fal/leftovers.py", _LEAKS),
    *_each(
        "unittest.mock:_patch _active_patches",
        "../pytest_fal/mocking.py",
        _LEAKS,
    ),
    Name("unittest.mock:_patch", "../pytest_fal/openers.py", _LEAKS),
    Name("unittest.mock:_patch_dict", "../pytest_fal/openers.py", _LEAKS),
    Name("_socket", "network/resolver.py", "takes over name look-ups and connections"),
    *_each(
        "concurrent.futures.thread:ThreadPoolExecutor _threads _max_workers _thread_name_prefix",
        "subscriptions.py",
        "ends what a subscription leaves",
        on_instances=True,
    ),
    Name(
        "http.client:HTTPResponse._close_conn",
        "network/urllib_entrance.py",
        "answers urllib",
    ),
    Name(
        "subprocess:_args_from_interpreter_flags",
        "runners/forkserver.py",
        "starts runners in processes",
    ),
    Name(
        "pathlib:_NormalAccessor",
        "timepatch.py",
        "shows file times to the app",
        until="3.11.0",
    ),
)

PYTHON = "Python"
PACKAGES = (
    Package("fal", "1.75.5", "1.83.0", _FAL),
    Package("fal-client", "1.0.0", "1.0.3", _FAL_CLIENT),
    Package("isolate", "0.23.1", "0.26.12", _ISOLATE),
    Package("grpcio", "1.64.0", "1.85.3", _GRPCIO),
    Package("httpcore", "1.0.0", "1.0.9", _HTTPCORE),
    Package("respx", "0.22.0", "0.23.1", _RESPX),
    Package("aiohttp", "3.10.11", "3.14.5", _AIOHTTP),
    Package("moto", "5.0.20", "5.2.5", _MOTO),
    Package("botocore", "1.35.0", "1.44.8", _BOTOCORE),
    Package("boto3", "1.35.0", "1.44.8", _BOTO3),
    Package("google-cloud-storage", "2.16.0", "3.17.1", _GOOGLE),
    Package("freezegun", "1.5.0", "1.5.5", _FREEZEGUN),
    Package("cloudpickle", "3.0.0", "3.1.3", _CLOUDPICKLE),
    Package("uvicorn", "0.29.0", "0.54.0", _UVICORN),
    Package("coverage", "7.4.0", "7.17.4", _COVERAGE),
    Package("fastapi", "0.112.4", "0.136.3", _FASTAPI),
    Package("pytest", "7.4.0", "9.2.0", _PYTEST),
    Package(PYTHON, "3.10", "3.13", _STANDARD_LIBRARY),
)
