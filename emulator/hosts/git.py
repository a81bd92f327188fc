"""Everybody else's git servers: repositories that a test serves at any URL, for the real git."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emulator.checks import fail, happened, listed
from emulator.errors import EmulatorError
from emulator.network.git_entrance import Places, install, set_variables
from emulator.network.git_requests import GitRequest, Requests
from emulator.storage.git_repository import Link, Repository

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.settings import Settings

__all__ = ["Git", "GitRequest", "Submodule"]

_SCHEMES = ("https", "http", "ssh", "git+ssh", "git")
_EXAMPLE = 'fal_git.serve("https://github.com/org/repo.git", {"model.py": "..."})'


@dataclass(frozen=True)
class Submodule:
    """Another repository at this place of one: ``{"vendor/lib": Submodule(url)}``.

    Args:
        url: what ``.gitmodules`` says; absolute, or relative to the repository's own URL.
        commit: its hash; default: the newest that is served there.
    """

    url: str
    commit: str | None = None


@dataclass(eq=False)
class _Served:
    """A repository at a URL."""

    url: str
    path: str
    #: What the programs that answer are told: ``up``, ``down``, or ``after:`` so many bytes.
    state: str = "up"
    #: None: it is a copy of one that the test has.
    made: Repository | None = None
    branch: str = "main"
    #: Its last state at this point.
    tip: str = ""


class Git:
    """Serves repositories at URLs of the test's choosing.

    Args:
        root: a directory of the emulator's, not there yet.
        clock: the clock.
        ledger: gets an event for each request.
        name_of: the name of the runner whose mount namespace has a number.
        throw_away: removes a directory, in the background.
    """

    def __init__(
        self,
        root: str,
        clock: Clock,
        ledger: Ledger,
        name_of: Callable[[int | None], str | None],
        throw_away: Callable[[str], None],
    ) -> None:
        self._places = Places(root)
        self._throw_away = throw_away
        self._lock = threading.RLock()
        self._served: dict[str, _Served] = {}
        self._allowed: tuple[str, ...] = ()
        self._count = 0
        os.makedirs(root)
        self._is_here = install(self._places)
        os.makedirs(self._places.log)
        self._requests = Requests(self._places.log, clock, ledger, name_of)

    def __repr__(self) -> str:
        return f"<Git: {len(self._served)} repositories served>"

    def reset(self, settings: Settings) -> None:
        """Serve nothing, and forget what was asked for."""
        self._served.clear()
        self._requests.reset()
        places = self._places
        if os.listdir(places.test) != ["log"] or os.listdir(places.log):
            self._count += 1
            old = f"{places.root}/old-{self._count}"
            os.rename(places.test, old)
            self._throw_away(old)
            os.makedirs(places.log)
        self._allowed = settings.allow_hosts
        if self._allowed:
            self._write_table()

    def enter(self) -> None:
        """Have git in this process's environment come here, without anything of the user's."""
        if self._is_here:
            set_variables(self._places)

    # --- serving ---------------------------------------------------------------------------------

    def serve(
        self,
        url: str,
        content: Mapping[str, str | bytes | Submodule] | str | os.PathLike[str],
        *,
        branch: str | None = None,
        message: str | None = None,
        tag: str | None = None,
    ) -> str:
        """Serve a repository; or, at a URL that is served, its next commit.

        The same content in another test has the same hashes.

        Args:
            url: what the app clones, over https or ssh. With and without ``.git`` are the same.
            content: all files of the commit, by path; or where a repository is, with all its
                branches and tags. That is copied, and never changed.
            branch: what gets the commit; default: ``"main"``. The first one is what is cloned. Of
                a repository: what is cloned, default: what its HEAD names.
            message: of the commit; default: its number.
            tag: a name for the commit.

        Returns:
            The commit's hash, 40 hexadecimal digits; of a repository, its newest.

        Raises:
            EmulatorError: there is no git, or what is to be served makes no sense.
        """
        key = _key(url)
        self._check_there_is_git()
        _check_name("branch", branch)
        _check_name("tag", tag)
        with self._lock:
            if isinstance(content, Mapping):
                commit = self._serve_files(key, url, content, branch, message)
                made = self._served[key].made
                if tag is not None and made is not None:
                    made.tag(tag, commit)
            else:
                if message is not None or tag is not None:
                    raise EmulatorError(
                        "serve() of a repository takes its commits and tags as they are; leave out "
                        "message and tag, or give it a dictionary of files."
                    )
                commit = self._serve_copy(key, url, os.fspath(content), branch)
            self._write_table()
        return commit

    def break_down(self, url: str, *, after: int | None = None) -> None:
        """Let the server of a repository vanish: whoever fetches it fails, at once.

        Args:
            url: where it is served.
            after: so many bytes into the answer; default: its name does not resolve.

        Raises:
            EmulatorError: nothing is served there.
        """
        self._set_state(url, "down" if after is None else f"after:{after}", "break_down")

    def restore(self, url: str) -> None:
        """Let it be back.

        Raises:
            EmulatorError: nothing is served there.
        """
        self._set_state(url, "up", "restore")

    def commits(self, url: str) -> list[str]:
        """The hashes of what is cloned there, the first commit first.

        Raises:
            EmulatorError: nothing is served there.
        """
        served = self._find(url, "commits")
        return self._run("rev-list", "--reverse", "HEAD", at=served.path).split()

    # --- what was asked for ----------------------------------------------------------------------

    @property
    def requests(self) -> list[GitRequest]:
        """What git has asked for, in order, whether or not it was served."""
        return self._requests.all

    def assert_cloned(self, url: str, times: int | None = None) -> None:
        """Fail unless a repository was cloned so often, from nothing; by default at least once."""
        __tracebackhide__ = True
        key = _key(url)
        asked = [request for request in self.requests if _key(request.url) == key]
        found = sum((one.operation, one.outcome) == ("clone", "served") for one in asked)
        if not found if times is None else found != times:
            evidence = listed([f"{one.operation} {one.outcome}{one.by}" for one in asked])
            fail(f"{url} {happened('cloned', found, times)}: {evidence or 'nobody asked for it'}")

    # --- inside ----------------------------------------------------------------------------------

    def _check_there_is_git(self) -> None:
        if not self._is_here or shutil.which("git") is None:
            raise EmulatorError(
                "fal_git serves to the real git, and there is none on this machine. Install it (in "
                "Debian's images: apt-get install git), or skip the test: "
                '@pytest.mark.skipif(shutil.which("git") is None, reason="needs git").'
            )

    def _find(self, url: str, method: str) -> _Served:
        served = self._served.get(_key(url))
        if served is None:
            there = listed([one.url for one in self._served.values()]) or "nothing"
            raise EmulatorError(
                f"{method}({_shown(url)!r}): nothing is served there; fal_git serves {there}. "
                f'Write fal_git.serve("{_shown(url)}", {{"README.md": "..."}}) first.'
            )
        return served

    def _set_state(self, url: str, state: str, method: str) -> None:
        with self._lock:
            self._find(url, method).state = state
            self._write_table()

    def _new_place(self) -> str:
        self._count += 1
        return os.path.join(self._places.repositories, f"{self._count}.git")

    def _serve_files(
        self,
        key: str,
        url: str,
        content: Mapping[str, str | bytes | Submodule],
        branch: str | None,
        message: str | None,
    ) -> str:
        files = self._files(content, url)
        served = self._served.get(key)
        if served is None or served.made is None:
            path = self._new_place()
            made = Repository(path, branch or "main")
            served = self._served[key] = _Served(
                _shown(url), path, made=made, branch=branch or "main"
            )
        assert served.made is not None
        parent = served.tip or None
        name = branch or served.branch
        commit = served.made.commit(files, name, parent, message)
        if name == served.branch:
            served.tip = commit
        return commit

    def _files(
        self, content: Mapping[str, str | bytes | Submodule], url: str
    ) -> dict[str, bytes | Link]:
        files: dict[str, bytes | Link] = {}
        modules = ""
        for given, value in content.items():
            path = _checked(str(given), content)
            if isinstance(value, Submodule):
                if not re.fullmatch(r"[0-9a-f]{40}", value.commit or "0" * 40):
                    raise EmulatorError(
                        f"serve(): {value.commit!r} is no commit of a submodule. Write all 40 "
                        "digits of its hash, as serve() of it returned them, or leave it out."
                    )
                files[path] = Link(value.commit or self._newest(value.url, url))
                modules += f'[submodule "{path}"]\n\tpath = {path}\n\turl = {value.url}\n'
            elif isinstance(value, (str, bytes)):
                files[path] = value.encode() if isinstance(value, str) else value
            else:
                raise EmulatorError(
                    f"serve(): {path!r} is given as {value!r}. Files are text or bytes, submodules "
                    f"pytest_fal.Submodule(url); for links and executable files serve a repository."
                )
        if modules:
            files.setdefault(".gitmodules", modules.encode())
        return files

    def _newest(self, url: str, of: str) -> str:
        """The commit that a submodule has where it is not told which."""
        if url.startswith(("./", "../")):
            scheme, _, place = of.partition("://")
            url = f"{scheme}://{os.path.normpath(os.path.join(place, url))}"
        return self._find(url, "Submodule").tip

    def _serve_copy(self, key: str, url: str, source: str, branch: str | None) -> str:
        path = self._new_place()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            self._run("clone", "--quiet", "--bare", "--", os.path.abspath(source), path)
            if branch is not None:
                self._run("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}", at=path)
                self._run("symbolic-ref", "HEAD", f"refs/heads/{branch}", at=path)
            tip = self._run("rev-parse", "--verify", "HEAD", at=path).strip()
        except subprocess.CalledProcessError as error:
            what = f" with a branch {branch}" if branch is not None else ""
            said = error.stderr.strip().splitlines()[-1:] or ["it has no such branch"]
            raise EmulatorError(
                f"serve({url!r}): {source} is no repository{what} that has a commit ({said[0]}). "
                f"Commit something there, or serve a dictionary of files: {_EXAMPLE}."
            ) from None
        before = self._served.get(key)
        state = "up" if before is None else before.state
        self._served[key] = _Served(_shown(url), path, state=state, tip=tip)
        return tip

    def _run(self, *arguments: str, at: str | None = None) -> str:
        """Call git; what it printed."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("GIT_")
        }
        environment |= {
            "GIT_CONFIG_GLOBAL": self._places.configuration,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }
        return subprocess.run(
            ["git", *arguments],
            cwd=at or "/",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def _write_table(self) -> None:
        """Say what is served; who asks at the same moment finds the old or the new one."""
        lines = [f"allowed\t{host}\t-\n" for host in self._allowed]
        lines += [f"{one.state}\t{key}\t{one.path}\n" for key, one in self._served.items()]
        new = f"{self._places.table}.new"
        Path(new).write_text("".join(lines), "utf-8")
        os.rename(new, self._places.table)


def _key(url: str) -> str:
    """What a URL names, however it is reached: "host/path", as the programs of git_entrance do."""
    scheme, separator, rest = url.partition("://")
    if separator:
        host, slash, path = rest.partition("/")
    else:  # as git@github.com:org/repo.git
        scheme = "ssh"
        host, slash, path = url.partition(":")
    host = host.rpartition("@")[2].lower()
    if scheme.endswith("ssh"):
        host = host.partition(":")[0]
    path = re.split(r"[?#]", path)[0].strip("/")
    if scheme not in _SCHEMES or not slash or not host or not path or re.search(r"\s", host + path):
        raise EmulatorError(
            f"{url!r} is no URL of a repository. Write the one that the app clones, for example "
            f"{_EXAMPLE}."
        )
    return f"{host}/{path.removesuffix('.git')}"


def _shown(url: str) -> str:
    """A URL without credentials."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" if separator else url


def _check_name(kind: str, name: str | None) -> None:
    """Refuse what git does not take as a branch or tag (git-check-ref-format(1))."""
    if name is None:
        return
    parts = name.split("/")
    wrong = re.search(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{", name) or name in ("", "@")
    if wrong or any(not p or p.startswith((".", "-")) or p.endswith((".", ".lock")) for p in parts):
        raise EmulatorError(
            f'serve(): {name!r} is no name that git takes for a {kind}. Write for example "v1.0".'
        )


def _checked(path: str, content: Mapping[str, object]) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
        raise EmulatorError(
            f"serve(): {path!r} is no path in a repository. Write it relative to its root, for "
            f"example {_EXAMPLE}."
        )
    for end in range(1, len(parts)):
        if "/".join(parts[:end]) in content:
            raise EmulatorError(
                f"serve(): {'/'.join(parts[:end])!r} cannot be both a file and the directory "
                f"of {path!r}. Leave one of them out."
            )
    return path
