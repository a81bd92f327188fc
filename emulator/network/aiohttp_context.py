"""aiohttp makes its TLS context once, when it is imported: ours stands in while installed.

The only module that touches aiohttp (seen: 3.10.11 to 3.14).
"""

from __future__ import annotations

import ssl
import sys
from typing import Any

__all__ = ["AiohttpContext"]

_MODULE = "aiohttp.connector"
_ATTRIBUTE = "_SSL_CONTEXT_VERIFIED"


class AiohttpContext:
    """Lets aiohttp trust the emulator's authority while installed."""

    def __init__(self) -> None:
        self._saved: Any = None
        self._contexts: dict[str, ssl.SSLContext] = {}

    def install(self, certificate: str) -> None:
        """Put a context that trusts the CAs in this file into aiohttp, if that is loaded."""
        connector = sys.modules.get(_MODULE)
        self._saved = getattr(connector, _ATTRIBUTE, None)
        if self._saved is not None:
            if certificate not in self._contexts:
                self._contexts[certificate] = ssl.create_default_context(cafile=certificate)
            setattr(connector, _ATTRIBUTE, self._contexts[certificate])

    def uninstall(self) -> None:
        """Give back aiohttp's own; one that was made meanwhile is made anew."""
        connector = sys.modules.get(_MODULE)
        saved, self._saved = self._saved, None
        if connector is None or not hasattr(connector, _ATTRIBUTE):
            return
        if saved is None:
            saved = ssl.create_default_context()
            saved.set_alpn_protocols(("http/1.1",))
        setattr(connector, _ATTRIBUTE, saved)
