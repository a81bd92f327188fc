"""The process's environment while the emulator is active: nobody's credentials, our certificates.

An upload without a key and without a network makes the SDK delete the developer's login token, so
a key is always there, and the fal home and configuration are never the user's.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from urllib.parse import urlsplit

from emulator.credentials import AWS_KEY, FAL_KEY
from emulator.network import grpc_entrance, nodejs_entrance
from emulator.network.resolver import is_local

__all__ = ["Environment", "drop", "names"]


def names(*written: str) -> frozenset[bytes]:
    """Names of variables, for :func:`drop`."""
    return frozenset(map(os.fsencode, written))


def drop(unwanted: frozenset[bytes]) -> None:
    """Remove variables, those of them that there are; to ask for each costs a microsecond."""
    data = getattr(os.environ, "_data", None)
    for name in unwanted & (os.environb.keys() if data is None else data.keys()):
        del os.environ[os.fsdecode(name)]


_CA_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)
_REMOVED = names(
    # proxies would take requests past us; urllib and the SDK read both spellings
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    # other ways to be somebody
    *("FAL_KEY_ID", "FAL_KEY_SECRET", "FAL_FORCE_AUTH_BY_USER", "FAL_PROFILE"),
    # other places to upload to, and what a runner left behind
    *("FAL_USE_LOCAL_UPLOADER", "FAL_API_SOCKET", "FAL_CDN_V3_HOST", "FAL_RUNNER_STATE"),
    *("IS_ISOLATE_AGENT", "NOMAD_ALLOC_PORT_grpc"),
    # whose buckets: other keys, other ways to be somebody at Amazon and Google
    *("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_CREDENTIAL_EXPIRATION"),
    *("AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
    *("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "GOOGLE_APPLICATION_CREDENTIALS"),
    # /tmp is /tmp
    *("TMPDIR", "TEMP", "TMP"),
    "SSL_CERT_DIR",
)
#: What boto3 and Google's libraries find instead of the user's: a key of nobody, no files.
_NOBODY = {
    "AWS_ACCESS_KEY_ID": AWS_KEY[0],
    "AWS_SECRET_ACCESS_KEY": AWS_KEY[1],
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "CLOUDSDK_CONFIG": os.devnull,
    "NO_GCE_CHECK": "true",
    # requests sends what ~/.netrc has for a host to whoever answers for it
    "NETRC": os.devnull,
    # google-cloud-storage 3.17 asks for the bucket of each request, in a thread that may outlive it
    "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "true",
}


class Environment:
    """Replaces what tests must not see; restores the whole environment, cwd and ``sys.path``.

    Args:
        home: a directory that stands in for ``~/.fal``.
    """

    def __init__(self, home: str) -> None:
        self.home = home
        self._saved: dict[bytes, bytes] | None = None
        self._directory = ""
        self._path: list[str] = []
        self._tempdir: str | None = None

    def enter(self, certificate: str, allow_hosts: Iterable[str] = ()) -> None:
        """Replace.

        Args:
            certificate: a file with the CAs that clients shall trust.
            allow_hosts: hosts that may really be reached.
        """
        self._saved = _variables()
        self._directory = os.getcwd()
        self._path = list(sys.path)
        self._tempdir, tempfile.tempdir = tempfile.tempdir, None
        environment = os.environ
        drop(_REMOVED | _remote_endpoints(self._saved))
        environment["FAL_KEY"] = FAL_KEY
        environment["FAL_CONFIG_PATH"] = os.path.join(self.home, "config.toml")
        environment["FAL_HOME_DIR"] = self.home
        for name in _CA_VARIABLES:
            environment[name] = certificate
        environment.update(_NOBODY)
        environment.update(grpc_entrance.environment(allow_hosts))
        environment.setdefault("AWS_DEFAULT_REGION", "us-east-1")
        # moto puts objects of 5 MB into files in /tmp, which are the app's, and its limit.
        environment.setdefault("MOTO_S3_DEFAULT_KEY_BUFFER_SIZE", str(1 << 30))

    def adopt(self, *names: str) -> None:
        """Leave some variables as they are now: what set them before has put them back since."""
        if self._saved is not None:
            current = _variables()
            for name in map(os.fsencode, names):
                self._saved.pop(name, None)
                if name in current:
                    self._saved[name] = current[name]

    def offer_uploader(self, path: str, use: bool) -> None:
        """Name our socket, whether it is used or not: the SDK's default is the host's.

        Args:
            path: of the socket of the node's uploader.
            use: whether the SDK shall upload by way of it.
        """
        os.environ["FAL_API_SOCKET"] = path
        if use:
            os.environ["FAL_USE_LOCAL_UPLOADER"] = "1"

    def lead_nodejs(self, wire_port: int, allowed: Iterable[str]) -> None:
        """Let programs in Node reach the wire, and these hosts for real."""
        os.environ.update(nodejs_entrance.variables(wire_port, allowed))

    def leave(self) -> None:
        """Restore."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        current = _variables()
        for name in current.keys() - saved.keys():
            del os.environ[os.fsdecode(name)]
        for name, value in saved.items() - current.items():
            os.environ[os.fsdecode(name)] = os.fsdecode(value)
        if sys.path != self._path:
            sys.path[:] = self._path
        tempfile.tempdir = self._tempdir
        if os.path.isdir(self._directory) and os.getcwd() != self._directory:
            os.chdir(self._directory)


def _remote_endpoints(variables: dict[bytes, bytes]) -> frozenset[bytes]:
    """The variables that name another endpoint of Amazon's or Google's than one on this machine."""
    return frozenset(
        name
        for name, value in variables.items()
        if name.startswith(b"AWS_ENDPOINT_URL") or name == b"STORAGE_EMULATOR_HOST"
        if not _is_on_this_machine(os.fsdecode(value))
    )


def _is_on_this_machine(endpoint: str) -> bool:
    """Whether a URL, or a host with or without its port, is one of loopback's."""
    try:
        host = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").hostname
    except ValueError:
        return False
    return bool(host) and is_local(str(host))


def _variables() -> dict[bytes, bytes]:
    """A copy of the environment, without decoding it where the interpreter keeps it as bytes."""
    data = getattr(os.environ, "_data", None)
    return dict(os.environb) if data is None else data.copy()
