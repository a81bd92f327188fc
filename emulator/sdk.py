"""The fal SDK's process-wide state: saved, made neutral, put back.

The only module that knows where the SDK keeps it (seen: fal 1.75.5 to 1.83.0, fal_client 1.0). It
looks only at modules that are loaded already and imports none of them. What is missing in a version
is skipped: each entry only undoes what a test could have changed.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from emulator.reliance import check_loaded

__all__ = [
    "SDKState",
    "another_key",
    "end_of_upload",
]

_PROVIDERS = "fal.toolkit.file.providers.fal"
_POLICY = "fal.toolkit.file._upload_policy"
#: How long a test's end waits for uploads in the background, as the SDK's teardown does [§1.13].
DRAIN_SECONDS = 5.0
_STEP = 0.002
_FILE = "fal.toolkit.file.file"
_FILES = "fal.files"
_AGES_AGO = datetime.min.replace(tzinfo=timezone.utc)

# (module, attribute): plain values that tests and apps change.
_ATTRIBUTES = (
    ("fal.ref", "current_app"),
    (_FILE, "DEFAULT_REPOSITORY"),
    ("fal_client._headers", "_get_current_app"),
)
_MULTIPART_CLASSES = ("MultipartUploadGCS", "MultipartUploadV3", "InternalMultipartUploadV3")
_MULTIPART_LIMITS = ("MULTIPART_THRESHOLD", "MULTIPART_CHUNK_SIZE", "MULTIPART_MAX_CONCURRENCY")


class SDKState:
    """The state of the SDK from :meth:`save` to :meth:`restore`."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._loaded_before: frozenset[str] = frozenset()

    def save(self, home: str) -> None:
        """Save the state and make it neutral: no token, no current app, nobody's login.

        Args:
            home: a directory that stands in for ``~/.fal``; the SDK deletes the login token in it
                when an upload has no key and no network [study §5, U1].

        Raises:
            UnsupportedVersionError: a package is not as we know it; nothing was changed.
        """
        self._undo = []
        self._loaded_before = frozenset(name for name in _WATCHED if name in sys.modules)
        check_loaded()
        for module_name, attribute in _ATTRIBUTES:
            self._save_attribute(sys.modules.get(module_name), attribute)
        self._set("fal.ref", "current_app", None)
        self._set("fal.auth.local", "_FAL_HOME_DIR", home)
        # Where the command `fal` notes which version of it is the newest.
        self._set("fal._version", "_PYPI_CACHE_PATH", os.path.join(home, "cache", "pypi.json"))
        for manager in _token_managers():
            self._save_attribute(manager, "_token")
            _forget_token(manager)
        self._undo.append(_put_clients_aside())
        self._save_containers()
        self._save_limits()
        self._save_results()
        self._save_file_systems()
        _forget_images()
        _forget_http_client(close=False)

    def end_retries(self) -> None:
        """Let uploads to a caller's bucket that fail from now on fail for good.

        The test is over: what a gate held is reset, and nobody waits for a second attempt.
        """
        policy = sys.modules.get(_POLICY)
        if getattr(policy, "_inflight", None):
            self._save_attribute(policy, "_should_retry")
            policy._should_retry = lambda *_: False  # type: ignore[union-attr]

    def drain(self) -> list[str]:
        """Wait for uploads to a caller's bucket that run in the background, and end the others.

        Returns:
            One sentence for the uploads that did not end in time. They are ended as soon as they
            wake: without the emulation, another attempt would reach the real bucket.
        """
        threads = list(getattr(sys.modules.get(_POLICY), "_inflight", ()))
        # Not the SDK's own drain(): on a stopped clock it takes its limit for each of them.
        wait = threading.Event().wait
        for _ in range(int(DRAIN_SECONDS / _STEP)):
            if not any(thread.is_alive() for thread in threads):
                return []
            wait(_STEP)
        stuck = [thread for thread in threads if thread.is_alive()]
        for thread in stuck:
            _end_thread(thread)
        return [f"{len(stuck)} of {len(threads)} uploads to a caller's bucket were abandoned"]

    def restore(self) -> None:
        """Put everything back; what was first loaded meanwhile becomes as if loaded now."""
        _forget_images()
        _forget_endpoints()
        _forget_http_client(close=True)
        for undo in reversed(self._undo):
            undo()
        self._undo = []
        self._settle_what_was_loaded()

    def _settle_what_was_loaded(self) -> None:
        """Modules first imported inside a test took our environment for the user's."""
        new = [name for name in _WATCHED if name in sys.modules and name not in self._loaded_before]
        if new:
            check_loaded(*new)
        if "fal.auth.local" in new:
            local = sys.modules["fal.auth.local"]
            local._FAL_HOME_DIR = os.getenv("FAL_HOME_DIR", str(Path.home() / ".fal"))  # type: ignore[attr-defined]
        if "fal.ref" in new:
            sys.modules["fal.ref"].current_app = None  # type: ignore[attr-defined]
        if "fal_client" in new:
            _put_clients_aside()
        if "isolate" in new:
            _take_results(sys.modules["isolate"])
        if _FILES in new:
            _take_file_systems(sys.modules[_FILES])
        if _PROVIDERS in new:
            for manager in _token_managers():
                _forget_token(manager)
            _lifecycle_reference().set(None)

    def _set(self, module_name: str, attribute: str, value: object) -> None:
        module = sys.modules.get(module_name)
        if module is not None and hasattr(module, attribute):
            self._save_attribute(module, attribute)
            setattr(module, attribute, value)

    def _save_attribute(self, owner: Any, attribute: str) -> None:
        if owner is not None and hasattr(owner, attribute):
            value = getattr(owner, attribute)
            self._undo.append(lambda: setattr(owner, attribute, value))

    def _save_containers(self) -> None:
        file = sys.modules.get(_FILE)
        for owner, attribute in (
            (file, "BUILT_IN_REPOSITORIES"),
            (file, "FALLBACK_REPOSITORY"),
        ):
            container = getattr(owner, attribute, None)
            if isinstance(container, (dict, list)):
                self._undo.append(_refill(container))
        if _PROVIDERS in sys.modules:
            reference = _lifecycle_reference()
            value = reference.get()
            self._undo.append(lambda: reference.set(value))

    def _save_limits(self) -> None:
        providers = sys.modules.get(_PROVIDERS)
        for name in _MULTIPART_CLASSES:
            for limit in _MULTIPART_LIMITS:
                self._save_attribute(getattr(providers, name, None), limit)

    def _save_results(self) -> None:
        isolate = sys.modules.get("isolate")
        if isolate is not None:
            results = _take_results(isolate)
            self._undo.append(lambda: _put_results(isolate, results))

    def _save_file_systems(self) -> None:
        files = sys.modules.get(_FILES)
        if files is not None:
            instances = _take_file_systems(files)
            self._undo.append(lambda: _put_file_systems(files, instances))


def end_of_upload() -> type[BaseException] | None:
    """What ends this thread without a word, if it uploads to a caller's bucket; else None."""
    inflight = getattr(sys.modules.get(_POLICY), "_inflight", ())
    return _upload_abandoned() if threading.current_thread() in inflight else None


def _upload_abandoned() -> type[BaseException]:
    """The one kind of error that the SDK's threads keep to themselves."""
    failed: Any = sys.modules[_POLICY].UploadPolicyError

    class UploadAbandoned(failed):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("The upload was abandoned: its runner, or its test, is over.")

    return UploadAbandoned


def _end_thread(thread: threading.Thread) -> None:
    """Have an upload's thread end by itself, once it runs Python code again."""
    if thread.ident is not None:
        end = ctypes.pythonapi.PyThreadState_SetAsyncExc
        end(ctypes.c_ulong(thread.ident), ctypes.py_object(_upload_abandoned()))


_WATCHED = ("fal.auth.local", "fal.ref", "fal_client", "isolate", _FILES, _PROVIDERS)


def _token_managers() -> Iterator[Any]:
    providers = sys.modules.get(_PROVIDERS)
    for name in ("fal_v3_token_manager", "fal_v2_token_manager"):
        manager = getattr(providers, name, None)
        if hasattr(manager, "_token"):
            yield manager


def _forget_token(manager: Any) -> None:
    """An expired token: the next use asks for a new one, as in a new process."""
    manager._token = manager.token_cls(
        token="", token_type="", base_upload_url="", expires_at=_AGES_AGO
    )


def _put_clients_aside() -> Callable[[], None]:
    """Take from fal_client's own two clients what they remember of the present key (credentials,
    token, connections); what is returned gives it back.
    """
    fal_client = sys.modules.get("fal_client")
    clients = [getattr(fal_client, name, None) for name in ("sync_client", "async_client")]
    taken = [(vars(one), _take_clients_memory(vars(one))) for one in clients if one is not None]

    def give_back() -> None:
        for attributes, memory in taken:
            _take_clients_memory(attributes)
            attributes.update(memory)

    return give_back


def _take_clients_memory(attributes: dict[str, Any]) -> dict[str, Any]:
    names = ("_auth", "_client", "_token_manager")
    return {name: attributes.pop(name) for name in names if name in attributes}


def another_key(key: str) -> Callable[[], None]:
    """Let SDK and fal_client use this FAL_KEY: what they remember of the present one is put aside.

    It is the whole process's, threads included.

    Returns:
        What gives everything back.
    """
    before = os.environ.get("FAL_KEY")
    tokens = [(manager, manager._token) for manager in _token_managers()]
    clients = _put_clients_aside()
    files = sys.modules.get(_FILES)
    systems = _take_file_systems(files) if files is not None else {}
    for manager, _ in tokens:
        _forget_token(manager)
    os.environ["FAL_KEY"] = key

    def give_back() -> None:
        if before is None:
            os.environ.pop("FAL_KEY", None)
        else:
            os.environ["FAL_KEY"] = before
        for manager in _token_managers():  # also one that was first loaded meanwhile
            _forget_token(manager)
        for manager, token in tokens:
            manager._token = token
        _put_clients_aside()
        clients()
        if _FILES in sys.modules:
            _put_file_systems(sys.modules[_FILES], systems)

    return give_back


def _take_results(isolate: Any) -> Any:
    """What ``fal.cached`` has kept so far, taken away: the next call computes it, as in a new
    process. It makes its place in isolate's module when it is first called [study §4].
    """
    return vars(isolate).pop("__cached_functions__", None)


def _put_results(isolate: Any, results: Any) -> None:
    vars(isolate).pop("__cached_functions__", None)
    if results is not None:
        vars(isolate)["__cached_functions__"] = results


def _take_file_systems(files: Any) -> dict[str, Any]:
    """The file systems of ``fal files`` made so far, taken away: fsspec hands out the same one for
    the same arguments, with its client, its key and what it remembers of folders [study §4].
    """
    cache = getattr(files.FalFileSystem, "_cache", None)
    if not isinstance(cache, dict):
        return {}
    taken = cache.copy()
    cache.clear()
    return taken


def _put_file_systems(files: Any, instances: dict[str, Any]) -> None:
    _take_file_systems(files)
    if instances:
        files.FalFileSystem._cache.update(instances)


def _lifecycle_reference() -> Any:
    return sys.modules[_PROVIDERS]._LIFECYCLE_PREFERENCE


def _forget_endpoints() -> None:
    """FastAPI (seen: 0.136) notes where each endpoint stands, by an id that others get after it.

    Each runner has endpoints of its own, so that grew with every test.
    """
    noted = getattr(sys.modules.get("fastapi.routing"), "_endpoint_context_cache", None)
    if isinstance(noted, dict):
        noted.clear()


def _forget_images() -> None:
    """``read_image_from_url`` remembers 64 URLs and returns the same mutable image [§5, F11]."""
    for name in ("fal.toolkit.image.image", "fal.toolkit.image"):
        function = getattr(sys.modules.get(name), "read_image_from_url", None)
        clear = getattr(function, "cache_clear", None)
        if clear is not None:
            clear()


def _forget_http_client(close: bool) -> None:
    """``fal.apps`` keeps one client, which trusts the CAs and has the proxies of when it was made.

    Args:
        close: it is the test's own; the user's may be in use.
    """
    get: Any = getattr(sys.modules.get("fal.apps"), "_get_http_client", None)
    if hasattr(get, "cache_info") and get.cache_info().currsize:
        if close:
            get().close()
        get.cache_clear()


def _refill(container: Any) -> Callable[[], None]:
    saved = container.copy()

    def undo() -> None:
        if isinstance(container, dict):
            if container != saved:
                container.clear()
                container.update(saved)
        elif container != saved:
            container[:] = saved

    return undo


def rest_host() -> str | None:
    """The REST host that the loaded SDK was configured with; None when it is not loaded."""
    host = getattr(sys.modules.get("fal.flags"), "REST_HOST", None)
    return host if isinstance(host, str) else None
