"""The process's environment while the emulator is active: nobody's credentials, our certificates.

An upload without a key and without a network makes the SDK delete the developer's login token, so
a key is always there, and the fal home and configuration are never the user's.
"""

from __future__ import annotations

import os
import sys
import tempfile

__all__ = ["Environment"]

FAKE_KEY = "emulated-key-id:emulated-key-secret"

_CA_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)
_REMOVED = (
    # proxies would take requests past us; urllib and the SDK read both spellings
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    # other ways to be somebody
    *("FAL_KEY_ID", "FAL_KEY_SECRET", "FAL_FORCE_AUTH_BY_USER", "FAL_PROFILE"),
    # other places to upload to, and what a runner left behind
    *("FAL_USE_LOCAL_UPLOADER", "FAL_API_SOCKET", "FAL_CDN_V3_HOST", "FAL_RUNNER_STATE"),
    *("IS_ISOLATE_AGENT", "NOMAD_ALLOC_PORT_grpc"),
    # /tmp is /tmp
    *("TMPDIR", "TEMP", "TMP"),
    "SSL_CERT_DIR",
)


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

    def enter(self, certificate: str) -> None:
        """Replace; *certificate* is a file with the CAs that clients shall trust."""
        self._saved = _variables()
        self._directory = os.getcwd()
        self._path = list(sys.path)
        self._tempdir, tempfile.tempdir = tempfile.tempdir, None
        environment = os.environ
        for name in _REMOVED:
            if name in environment:
                del environment[name]
        environment["FAL_KEY"] = FAKE_KEY
        environment["FAL_CONFIG_PATH"] = os.path.join(self.home, "config.toml")
        environment["FAL_HOME_DIR"] = self.home
        for name in _CA_VARIABLES:
            environment[name] = certificate

    def offer_uploader(self, path: str, use: bool) -> None:
        """Name our socket, whether it is used or not: the SDK's default is the host's.

        Args:
            path: of the socket of the node's uploader.
            use: whether the SDK shall upload by way of it.
        """
        os.environ["FAL_API_SOCKET"] = path
        if use:
            os.environ["FAL_USE_LOCAL_UPLOADER"] = "1"

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


def _variables() -> dict[bytes, bytes]:
    """A copy of the environment, without decoding it where the interpreter keeps it as bytes."""
    data = getattr(os.environ, "_data", None)
    return dict(os.environb) if data is None else data.copy()
