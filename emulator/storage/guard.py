"""Which programs are started on a machine with a ``/data`` of its own, where paths are rewritten.

A program that knows a path of ``/data`` by itself, from a configuration or in a script, would meet
the host's. Nobody can see that from outside, so only programs are started that open what they are
told and nothing else, and those that a test's settings name.

Imports next to nothing: a Python that the app starts needs it before anything else.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

from emulator.errors import HostPathError
from emulator.storage.audit import ONLY_PYTHON, REAL_MOUNTS
from emulator.storage.places import Place

__all__ = ["KNOWN", "check"]

_PROGRAMS = {
    "files": "basename cat chmod cksum cmp cp cut date dd df diff dirname du echo expr false file "
    "getconf grep head hostname id install ln ls md5sum mkdir mkfifo mktemp mv nproc printf pwd "
    "readlink realpath rm rmdir sha1sum sha256sum sha512sum sleep sort split stat sync tail tar "
    "tee touch tr true truncate uname uniq wc which whoami",
    "archives": "7z bunzip2 bzip2 gunzip gzip unxz unzip xz zip zstd",
    "media": "exiftool ffmpeg ffprobe identify magick mediainfo sox soxi",
    "downloads": "aria2c curl git git-lfs wget",
    "the machine, at which libraries look as they are imported": "free kill ldconfig ldd "
    "lsb_release lscpu lspci nvidia-smi ps sysctl uptime",
    "compilers, as triton and torch start them": "ar as c++ cc clang clang++ cuobjdump g++ gcc ld "
    "ld.gold ld.lld nm nvcc nvdisasm objcopy objdump ptxas ranlib strip",
}
#: Programs that open what they are told. Shells, interpreters, ``make``, ``find``, ``xargs``,
#: ``env`` and others that run what somebody wrote are not among them.
KNOWN = frozenset(name for names in _PROGRAMS.values() for name in names.split())
_VERSION = re.compile(r"-\d+(\.\d+)*")
_MACHINE = re.compile(r"[a-z0-9_]+-(\w+-)?linux-gnu-")


def check(place: Place, program: str, words: Sequence[str], directory: str, shown: str) -> None:
    """Look at a program that is about to be started.

    Args:
        place: who starts it.
        program: its name or path; for a shell's line ``sh``.
        words: its arguments, as the app wrote them.
        directory: where it is started, as the app calls it.
        shown: the whole line as a message has it.

    Raises:
        HostPathError: it may reach the host's own ``/data``.
    """
    program = posixpath.basename(program)
    if not place.guarded or program in place.trusted:
        return
    if _usual(program) not in KNOWN:
        raise _unsafe(place, shown, "the program may know a path there by itself", program)
    for path in (part for word in words for part in (word, word.partition("=")[2])):
        full = posixpath.normpath(posixpath.join(directory, path)).replace("//", "/")
        if path and full == "/":
            raise _unsafe(place, shown, "/ is above it", program)
        if not path.startswith("/") and place.area(full) != place.area(directory):
            raise _unsafe(place, shown, f"{path!r} leads from {directory} to {full}", program)


def _usual(program: str) -> str:
    """A program's name without its version and the machine that it compiles for."""
    return _VERSION.sub("", _MACHINE.sub("", program))


def _unsafe(place: Place, shown: str, why: str, program: str) -> HostPathError:
    area = place.guarded[0]
    return HostPathError(
        f"starting {shown!r} is not safe, as this machine has a {area} of its own, and {why}: "
        f"{ONLY_PYTHON} If it opens nothing in {area} but what it is told, write "
        f'@pytest.mark.fal(trusted_programs=["{program}"]). Otherwise run {REAL_MOUNTS}'
    )
