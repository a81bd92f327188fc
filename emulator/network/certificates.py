"""The files of certificates that clients shall trust: ours alone, or the usual ones too."""

from __future__ import annotations

import os

from emulator.network.trust import Authority

__all__ = ["Certificates"]


class Certificates:
    """The certificate authority of one emulator, and its files.

    Args:
        root: a directory for them.
        pem: the authority with its key; default: a new one.
    """

    def __init__(self, root: str, pem: bytes | None) -> None:
        self.authority = Authority.create() if pem is None else Authority.from_pem(pem)
        self._alone = os.path.join(root, "ca.pem")
        self._bundle = os.path.join(root, "ca-and-system.pem")
        self.authority.write(self._alone)

    def file(self, *, with_usual_ones: bool) -> str:
        """A file of the authorities to trust; with the usual ones real hosts can be reached."""
        if not with_usual_ones:
            return self._alone
        if not os.path.exists(self._bundle):
            self.authority.write_bundle(self._bundle)
        return self._bundle

    def remove(self) -> None:
        """Remove the files."""
        for path in (self._alone, self._bundle):
            if os.path.exists(path):
                os.unlink(path)
