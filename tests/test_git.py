"""Everybody else's git repositories: what fal_git serves, and how git and the SDK get at it.

git is the machine's own, and never knows: only its environment is another.
"""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import fal
import pytest
from fal.toolkit import clone_repository
from pydantic import BaseModel

from emulator.account import Emulator
from emulator.errors import EmulatorError
from emulator.network import git_entrance
from emulator.runners.runner import RunnerError
from pytest_fal import Submodule

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")

URL = "https://github.com/org/models.git"
LIBRARY = "https://gitlab.com/group/library.git"
FILES = {"model.py": "SIZE = 1\n", "weights/small.bin": b"\0\1\2"}
REPOSITORIES = Path("/data/.fal/repos")
each_isolation = pytest.mark.parametrize("isolation", ["thread", "process"])


def git(*arguments, **options):
    """What git says, in the end; errors are shown."""
    ended = run_git(*arguments, **options)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def run_git(*arguments, **options):
    command = ["git", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def refusal(*arguments, **options):
    """The first line of what git says before it fails, but for what it is doing."""
    ended = run_git(*arguments, **options)
    assert ended.returncode == 128
    return next(line for line in ended.stderr.splitlines() if not line.startswith("Cloning"))


def head(path):
    return git("-C", path, "rev-parse", "HEAD")


def files_in(path):
    return sorted(git("-C", path, "ls-files").splitlines())


@pytest.fixture
def elsewhere(tmp_path):
    """A repository of the test's own, with two branches, a tag, a link and a script."""
    path = tmp_path / "own"
    author = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.com"}
    committer = {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.com"}
    environment = {**os.environ, **author, **committer}

    def own(*arguments):
        return git("-C", path, *arguments, env=environment)

    path.mkdir()
    own("init", "--quiet", "--initial-branch=trunk")
    (path / "run.sh").write_text("#!/bin/sh\necho running\n")
    (path / "run.sh").chmod(0o755)
    (path / "link").symlink_to("run.sh")
    own("add", ".")
    own("commit", "--quiet", "-m", "First")
    own("tag", "v1")
    own("checkout", "--quiet", "-b", "next")
    own("commit", "--quiet", "--allow-empty", "-m", "Second")
    own("checkout", "--quiet", "trunk")
    return path


# --- what is served ------------------------------------------------------------------------------


def test_files_are_a_repository(fal_git, fal_tmp):
    commit = fal_git.serve(URL, FILES)
    git("clone", URL, "/tmp/models")
    assert head("/tmp/models") == commit
    assert files_in("/tmp/models") == ["model.py", "weights/small.bin"]
    assert fal_tmp.read("models/weights/small.bin") == b"\0\1\2"
    assert git("-C", "/tmp/models", "branch", "--show-current") == "main"


def test_it_is_sound_in_gits_own_eyes(fal_git):
    files = {"a/b": "1", "a.b": "2", "a-b/c/d": "3", "ü ö": "4", "a0": "5", "empty": ""}
    fal_git.serve(LIBRARY, {"lib.py": ""})
    fal_git.serve(URL, {**files, "a-c": Submodule(LIBRARY)})
    git("clone", "--mirror", URL, "/tmp/models")
    assert "error" not in git("-C", "/tmp/models", "fsck", "--strict", "--full")
    listed = git("-C", "/tmp/models", "ls-tree", "-r", "-z", "--name-only", "HEAD")
    assert set(listed.strip("\0").split("\0")) == {*files, "a-c", ".gitmodules"}


def test_git_would_have_given_it_the_same_hashes(fal_git):
    commit = fal_git.serve(URL, {"a/b": "1", "a.b": "2", "a-b/c": "3", "a0": "5"})
    git("clone", "--quiet", URL, "/tmp/models")
    git("-C", "/tmp/models", "read-tree", "HEAD")
    assert git("-C", "/tmp/models", "write-tree") == git(
        "-C", "/tmp/models", "rev-parse", f"{commit}^{{tree}}"
    )


def test_the_same_content_has_the_same_hash(fal_emulator):
    first = fal_emulator.git.serve(URL, FILES)
    fal_emulator.reset()
    assert fal_emulator.git.serve(URL, FILES) == first == "635721436b3742a66cce4b37efee80e63d5786a3"


def test_serving_again_is_the_next_commit(fal_git):
    first = fal_git.serve(URL, FILES)
    second = fal_git.serve(URL, {"model.py": "SIZE = 2\n"}, message="Twice the size")
    git("clone", URL, "/tmp/models")
    assert head("/tmp/models") == second
    assert files_in("/tmp/models") == ["model.py"]
    log = git("-C", "/tmp/models", "log", "--format=%H %s %aI")
    assert log.splitlines() == [
        f"{second} Twice the size 2025-01-01T00:01:00+00:00",
        f"{first} Commit 1 2025-01-01T00:00:00+00:00",
    ]
    assert fal_git.commits(URL) == [first, second]


def test_a_clone_fetches_the_next_commit(fal_git):
    fal_git.serve(URL, FILES)
    git("clone", URL, "/tmp/models")
    second = fal_git.serve(URL, {"model.py": "SIZE = 2\n"})
    git("-C", "/tmp/models", "pull", "--quiet")
    assert head("/tmp/models") == second


def test_branches_and_tags(fal_git):
    main = fal_git.serve(URL, FILES, tag="v1.0")
    other = fal_git.serve(URL, {"new.py": ""}, branch="next")
    listed = git("ls-remote", URL).splitlines()
    assert [line.split("\t") for line in listed] == [
        [main, "HEAD"],
        [main, "refs/heads/main"],
        [other, "refs/heads/next"],
        [main, "refs/tags/v1.0"],
    ]
    git("clone", "--branch", "v1.0", URL, "/tmp/tagged")
    assert head("/tmp/tagged") == main


def test_the_first_branch_is_what_is_cloned(fal_git):
    commit = fal_git.serve(URL, FILES, branch="trunk")
    assert fal_git.serve(URL, {}) != commit
    git("clone", URL, "/tmp/models")
    assert git("-C", "/tmp/models", "branch", "--show-current") == "trunk"


def test_a_repository_of_ones_own(fal_git, elsewhere):
    commit = fal_git.serve(URL, elsewhere)
    assert commit == head(elsewhere)
    git("clone", URL, "/tmp/models")
    assert subprocess.check_output(["/tmp/models/link"]) == b"running\n"
    branches = git("-C", "/tmp/models", "branch", "-r", "--format=%(refname:short)").split()
    assert {"origin/trunk", "origin/next"} <= set(branches)
    assert git("-C", "/tmp/models", "tag") == "v1"


def test_of_a_repository_another_branch_can_be_cloned(fal_git, elsewhere):
    commit = fal_git.serve(URL, str(elsewhere), branch="next")
    assert commit == git("-C", elsewhere, "rev-parse", "next")
    git("clone", URL, "/tmp/models")
    assert head("/tmp/models") == commit


def test_a_bare_repository(fal_git, elsewhere, tmp_path):
    git("clone", "--bare", elsewhere, tmp_path / "bare.git")
    assert fal_git.serve(URL, tmp_path / "bare.git") == head(elsewhere)


def test_a_repository_that_is_served_is_never_changed(fal_git, elsewhere):
    def state():
        return {
            path: (path.lstat().st_mtime_ns, path.lstat().st_size, path.lstat().st_mode)
            for path in elsewhere.rglob("*")
        }

    before = state()
    fal_git.serve(URL, elsewhere, branch="next")
    git("clone", URL, "/tmp/models")
    fal_git.break_down(URL)
    assert state() == before


def test_what_is_committed_later_is_served_once_it_is_served_again(fal_git, elsewhere):
    first = fal_git.serve(URL, elsewhere)
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.com")
    git("-C", elsewhere, *identity, "commit", "--quiet", "--allow-empty", "-m", "Third")
    assert git("ls-remote", URL, "HEAD").split()[0] == first
    assert fal_git.serve(URL, elsewhere) == head(elsewhere) != first
    assert git("ls-remote", URL, "HEAD").split()[0] == head(elsewhere)


# --- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/org/models",
        "https://github.com/org/models/",
        "https://github.com/org/models.git/",
        "https://GitHub.com/org/models.git",
        "https://someone:secret@github.com/org/models.git",
        "http://github.com/org/models.git",
        "ssh://git@github.com/org/models.git",
        "ssh://git@github.com:2222/org/models.git",
        "git@github.com:org/models.git",
        "github.com:org/models",
    ],
)
def test_other_ways_to_write_the_same_url(fal_git, url):
    commit = fal_git.serve(URL, FILES)
    git("clone", url, "/tmp/models")
    assert head("/tmp/models") == commit
    assert git("-C", "/tmp/models", "remote", "get-url", "origin") == url


def test_serve_takes_the_other_ways_too(fal_git):
    fal_git.serve("git@github.com:org/models", FILES)
    fal_git.assert_cloned(URL, times=0)
    git("clone", URL, "/tmp/models")
    fal_git.assert_cloned("ssh://git@github.com/org/models")


def test_an_apps_own_token_and_key_are_no_way_out(fal_git):
    fal_git.serve(URL, FILES)
    token = "url.https://token@github.com/.insteadOf=https://github.com/"
    git("-c", token, "clone", URL, "/tmp/token")
    key = {**os.environ, "GIT_SSH_COMMAND": "ssh -i /data/key -o StrictHostKeyChecking=no"}
    git("clone", "git@github.com:org/models.git", "/tmp/key", env=key)
    assert files_in("/tmp/token") == files_in("/tmp/key") == sorted(FILES)


def test_an_app_may_configure_git_for_good(fal_git):
    fal_git.serve(URL, FILES)
    git("config", "--global", "user.name", "App")
    git("config", "--global", "url.https://token@github.com/.insteadOf", "https://github.com/")
    git("clone", URL, "/tmp/models")
    assert git("-C", "/tmp/models", "config", "user.name") == "App"
    assert not os.path.isfile(os.devnull)


def test_shallow_and_partial_clones(fal_git):
    for size in range(3):
        fal_git.serve(URL, {"model.py": f"SIZE = {size}\n"})
    git("clone", "--depth", "1", URL, "/tmp/shallow")
    assert git("-C", "/tmp/shallow", "rev-list", "--count", "HEAD") == "1"
    git("clone", "--filter=blob:none", "--no-checkout", URL, "/tmp/partial")
    assert "?" in git("-C", "/tmp/partial", "rev-list", "--objects", "--missing=print", "HEAD")
    git("-C", "/tmp/partial", "checkout", "--quiet", "HEAD~1")
    assert Path("/tmp/partial/model.py").read_text() == "SIZE = 1\n"
    assert [r.operation for r in fal_git.requests] == ["clone", "clone", "fetch"]


def test_a_single_commit_can_be_fetched_by_its_hash(fal_git):
    first = fal_git.serve(URL, FILES)
    fal_git.serve(URL, {"model.py": "SIZE = 2\n"})
    git("init", "--quiet", "/tmp/models")
    git("-C", "/tmp/models", "fetch", "--depth", "1", URL, first)
    git("-C", "/tmp/models", "checkout", "--quiet", "FETCH_HEAD")
    assert head("/tmp/models") == first


def test_local_repositories_are_left_alone(fal_git, elsewhere):
    git("clone", elsewhere, "/tmp/models")
    git("clone", f"file://{elsewhere}", "/tmp/copy")
    assert head("/tmp/models") == head("/tmp/copy") == head(elsewhere)
    assert fal_git.requests == []


# --- submodules ----------------------------------------------------------------------------------


def test_submodules_are_served_like_everything_else(fal_git):
    library = fal_git.serve(LIBRARY, {"lib.py": "ONE = 1\n"})
    fal_git.serve(URL, {**FILES, "vendor/library": Submodule(LIBRARY)})
    path = clone_repository(URL)
    assert (path / "vendor/library/lib.py").read_text() == "ONE = 1\n"
    assert head(path / "vendor/library") == library


def test_a_submodule_at_a_commit_and_with_a_relative_url(fal_git):
    other = "https://github.com/org/library.git"
    first = fal_git.serve(other, {"lib.py": "ONE = 1\n"})
    second = fal_git.serve(other, {"lib.py": "ONE = 2\n"})
    pinned = fal_git.serve(URL, {"library": Submodule("../library.git", commit=first)})
    newest = fal_git.serve(URL, {"library": Submodule("../library.git")})
    for commit, expected in ((pinned, first), (newest, second)):
        path = clone_repository(URL, commit_hash=commit)
        assert head(path / "library") == expected


def test_a_submodule_that_nobody_serves_is_refused(fal_git):
    fal_git.serve(URL, {"library": Submodule(LIBRARY, commit="1" * 40)})
    with pytest.raises(subprocess.CalledProcessError):
        clone_repository(URL)
    assert [(r.url, r.outcome) for r in fal_git.requests] == [
        (URL, "served"),
        *[(LIBRARY, "refused")] * 2,  # git tries again by itself
    ]


def test_which_commit_a_submodule_has_must_be_known(fal_git):
    with pytest.raises(EmulatorError, match=r"Submodule\('https://gitlab.*nothing is served there"):
        fal_git.serve(URL, {"library": Submodule(LIBRARY)})


# --- what is refused -----------------------------------------------------------------------------


def test_an_unknown_repository_is_refused_with_the_line_to_write(fal_git):
    assert refusal("clone", URL, "/tmp/models") == (
        f"fatal: nothing in this test serves {URL}, and tests do not reach the network. Write "
        f'fal_git.serve("{URL}", {{"README.md": "..."}}), or let the host through with '
        f'@pytest.mark.fal(allow_hosts=["github.com"]).'
    )
    fal_git.serve(LIBRARY, {})
    assert refusal("ls-remote", URL).endswith(
        '@pytest.mark.fal(allow_hosts=["github.com"]). (fal_git serves '
        "https://gitlab.com/group/library.git)"
    )


@pytest.mark.usefixtures("fal_data")
def test_a_test_without_fal_git_does_not_reach_the_network_either():
    assert refusal("clone", URL, "/tmp/models").startswith("fatal: nothing in this test serves")


@pytest.mark.parametrize(
    "url", [URL, "http://models.example.com/x", "git@github.com:org/x", "git://github.com/org/x"]
)
def test_it_is_refused_at_once(fal_git, url):
    start = time.monotonic()
    assert "test" in refusal("clone", url, "/tmp/models")
    assert time.monotonic() - start < 4  # no name server, no time-out (5 s)


def test_git_urls_are_named(fal_git):
    assert refusal("ls-remote", "git://github.com/org/models") == (
        "fatal: git:// is not answered in tests (nor by GitHub, since 2022). Write https:// "
        'instead, and fal_git.serve("https://github.com/...", {...}).'
    )


def test_nothing_can_be_pushed(fal_git):
    commit = fal_git.serve(URL, FILES)
    git("clone", URL, "/tmp/models")
    assert refusal("-C", "/tmp/models", "push", "origin", "HEAD:refs/heads/mine") == (
        f"fatal: {URL} is somebody else's: nothing can be pushed to it in a test. For another "
        f'commit of it write fal_git.serve("{URL}", {{...}}).'
    )
    assert git("ls-remote", URL) == f"{commit}\tHEAD\n{commit}\trefs/heads/main"


def test_nobody_is_asked_for_a_password(fal_git):
    assert os.environ["GIT_TERMINAL_PROMPT"] == "0"


def test_secrets_in_urls_are_shown_nowhere(fal_git, fal_ledger):
    url = "https://someone:secret@github.com/org/models.git?token=secret"
    assert "secret" not in refusal("ls-remote", url)
    fal_git.serve(URL, FILES)
    git("ls-remote", url)
    assert "secret" not in f"{fal_git.requests} {fal_ledger.events} {fal_ledger.problems}"


# --- the origin vanishes -------------------------------------------------------------------------


def test_a_server_that_is_gone(fal_git):
    fal_git.serve(URL, FILES)
    git("clone", URL, "/tmp/models")
    fal_git.break_down(URL)
    gone = f"fatal: unable to access '{URL}/': Could not resolve host: github.com"
    assert refusal("clone", URL, "/tmp/again") == gone
    assert refusal("-C", "/tmp/models", "fetch") == gone
    assert refusal("ls-remote", "git@github.com:org/models.git") == (
        "ssh: Could not resolve hostname github.com: Name or service not known"
    )
    fal_git.restore(URL)
    git("-C", "/tmp/models", "fetch")


def test_only_that_repository_is_gone(fal_git):
    fal_git.serve(URL, FILES)
    fal_git.serve(LIBRARY, FILES)
    fal_git.break_down(URL)
    git("clone", LIBRARY, "/tmp/library")


def test_a_new_commit_of_what_is_gone_is_served_when_it_is_back(fal_git):
    fal_git.serve(URL, FILES)
    fal_git.break_down(URL)
    second = fal_git.serve(URL, {})
    assert refusal("ls-remote", URL).startswith("fatal: unable to access")
    fal_git.restore(URL)
    assert git("ls-remote", URL, "HEAD").split()[0] == second


@pytest.mark.parametrize("after", [0, 100, 5_000, 150_000])
def test_a_server_that_breaks_down_in_the_middle(fal_git, fal_data, after):
    fal_git.serve(URL, {"weights.bin": os.urandom(200_000)})
    fal_git.break_down(URL, after=after)
    with pytest.raises(subprocess.CalledProcessError):
        clone_repository(URL)
    assert fal_data.tree() == []
    assert [r.outcome for r in fal_git.requests] == ["broken"]
    fal_git.restore(URL)
    assert (clone_repository(URL) / "weights.bin").stat().st_size == 200_000


def test_what_is_not_served_cannot_break_down(fal_git):
    fal_git.serve(LIBRARY, {})
    for method in (fal_git.break_down, fal_git.restore, fal_git.commits):
        with pytest.raises(EmulatorError) as raised:
            method(URL)
        assert str(raised.value) == (
            f"{method.__name__}({URL!r}): nothing is served there; fal_git serves {LIBRARY}. Write "
            f'fal_git.serve("{URL}", {{"README.md": "..."}}) first.'
        )


# --- the SDK's clone_repository ------------------------------------------------------------------


def test_clone_repository(fal_git, fal_data):
    commit = fal_git.serve(URL, FILES)
    path = clone_repository(URL)
    assert path == REPOSITORIES / "models"
    assert head(path) == commit
    assert fal_data.read(".fal/repos/models/model.py") == b"SIZE = 1\n"


def test_a_pinned_commit_is_cloned_once(fal_git):
    first = fal_git.serve(URL, FILES)
    fal_git.serve(URL, {"model.py": "SIZE = 2\n"})
    for _ in range(3):
        path = clone_repository(URL, commit_hash=first)
    assert path == REPOSITORIES / f"models-{first[:8]}"
    assert (path / "model.py").read_text() == "SIZE = 1\n"
    fal_git.assert_cloned(URL, times=1)


def test_a_short_hash_is_enough(fal_git):
    first = fal_git.serve(URL, FILES)
    fal_git.serve(URL, {})
    path = clone_repository(URL, commit_hash=first[:8])
    assert clone_repository(URL, commit_hash=first[:12]) == path
    assert head(path) == first
    fal_git.assert_cloned(URL, times=1)


def test_force_clones_again(fal_git):
    commit = fal_git.serve(URL, FILES)
    path = clone_repository(URL, commit_hash=commit)
    (path / "model.py").write_text("broken")
    clone_repository(URL, commit_hash=commit, force=True)
    assert (path / "model.py").read_text() == "SIZE = 1\n"
    fal_git.assert_cloned(URL, times=2)


def test_a_directory_and_a_name_of_ones_own(fal_git, fal_tmp):
    fal_git.serve(URL, FILES)
    path = clone_repository(URL, target_dir="/tmp/here", repo_name="mine")
    assert path == Path("/tmp/here/mine")
    assert fal_tmp.read("here/mine/model.py") == b"SIZE = 1\n"


def test_include_to_path_is_undone_with_the_test(fal_emulator):
    fal_emulator.git.serve(URL, {"served_model.py": "SIZE = 1\n"})
    path = clone_repository(URL, include_to_path=True)
    assert sys.path[0] == str(path)
    import served_model

    assert served_model.SIZE == 1
    del sys.modules["served_model"]
    fal_emulator.reset()
    assert str(path) not in sys.path


def test_a_commit_that_is_not_there(fal_git, fal_data):
    fal_git.serve(URL, FILES)
    with pytest.raises(subprocess.CalledProcessError):
        clone_repository(URL, commit_hash="0" * 40)
    assert fal_data.tree() == []


# --- on runners ----------------------------------------------------------------------------------


class Wanted(BaseModel):
    url: str
    commit: str | None = None


class Cloner(fal.App):
    @fal.endpoint("/")
    def clone(self, wanted: Wanted) -> dict:
        path = clone_repository(wanted.url, commit_hash=wanted.commit)
        return {"path": str(path), "files": sorted(os.listdir(path))}


@each_isolation
def test_an_app_clones(fal_runner, fal_git, isolation):
    commit = fal_git.serve(URL, FILES)
    runner = fal_runner(Cloner, isolation=isolation)
    answer = runner.post("/", json={"url": URL, "commit": commit})
    assert answer.json() == {
        "path": f"/data/.fal/repos/models-{commit[:8]}",
        "files": [".git", "model.py", "weights"],
    }
    assert [(r.operation, r.runner) for r in fal_git.requests] == [("clone", "runner-1")]


@each_isolation
def test_what_is_served_after_a_runner_has_started(fal_runner, fal_git, isolation):
    runner = fal_runner(Cloner, isolation=isolation)
    assert runner.post("/", json={"url": URL}).status_code == 500
    commit = fal_git.serve(URL, FILES)
    assert runner.post("/", json={"url": URL, "commit": commit}).status_code == 200
    fal_git.break_down(URL)
    assert runner.post("/", json={"url": URL}).status_code == 500
    assert [r.outcome for r in fal_git.requests] == ["refused", "served", "broken"]


@each_isolation
def test_a_path_of_the_apps_own_and_a_pretended_gpu(fal_runner, fal_git, isolation):
    fal_git.serve(URL, FILES)
    environment = {"PATH": f"/data/bin:{os.environ['PATH']}"}
    runner = fal_runner(Cloner, isolation=isolation, gpu="H100", env=environment)
    assert runner.post("/", json={"url": URL}).status_code == 200
    assert "H100" in runner.run(subprocess.check_output, ["nvidia-smi"], text=True)


@each_isolation
def test_two_runners_clone_at_once(fal_runner, fal_git, fal_data, isolation):
    commit = fal_git.serve(URL, {f"{number}.py": "" for number in range(50)})
    runners = [fal_runner(Cloner, isolation=isolation) for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(r.post, "/", json={"url": URL, "commit": commit}) for r in runners]
    assert [job.result().status_code for job in jobs] == [200, 200, 200]
    assert os.listdir(fal_data.backing / ".fal/repos") == [f"models-{commit[:8]}"]
    assert {r.runner for r in fal_git.requests} == {"runner-1", "runner-2", "runner-3"}
    assert git("-C", REPOSITORIES / f"models-{commit[:8]}", "status", "--porcelain") == ""


def test_a_lost_race_leaves_the_winners_clone(fal_git, fal_data, monkeypatch, capfd):
    commit = fal_git.serve(URL, FILES)
    target = REPOSITORIES / f"models-{commit[:8]}"
    rename = os.rename

    def overtaken(source, destination):
        monkeypatch.setattr(os, "rename", rename)
        winner = clone_repository(URL, commit_hash=commit)
        (winner / "mark").write_text("first")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", overtaken)
    assert clone_repository(URL, commit_hash=commit) == target
    assert (target / "mark").read_text() == "first"
    assert f"{target} already exists, skipping rename" in capfd.readouterr().out
    assert os.listdir(REPOSITORIES) == [target.name]


@pytest.mark.parametrize(
    "file", [".git/HEAD", ".git/objects/pack/*", ".git/refs/heads/*", ".git/index*", "model.py"]
)
def test_a_runner_killed_in_a_clone_leaves_none_that_is_taken_for_whole(
    fal_runner, fal_git, fal_faults, file
):
    commit = fal_git.serve(URL, {**FILES, "large.bin": os.urandom(100_000)})
    fal_faults.kill_runner(file=f"/data/.fal/repos/*.tmp/{file}", times=1)
    runner = fal_runner(Cloner, isolation="process")
    with pytest.raises(RunnerError):
        runner.post("/", json={"url": URL, "commit": commit})
    assert [path.suffix for path in REPOSITORIES.iterdir()] == [".tmp"]

    heir = fal_runner(Cloner, isolation="process")
    path = heir.post("/", json={"url": URL, "commit": commit}).json()["path"]
    assert git("-C", path, "status", "--porcelain") == ""
    assert head(path) == commit


@pytest.mark.fal(filesystem="namespace")
def test_a_clone_on_a_full_disk(fal_git, fal_data):
    commit = fal_git.serve(URL, {"weights.bin": os.urandom(2_000_000)})
    fal_data.limit(1_000_000)
    with pytest.raises(subprocess.CalledProcessError):
        clone_repository(URL, commit_hash=commit)
    assert fal_data.tree() == []


# --- time ----------------------------------------------------------------------------------------


def test_git_does_not_mind_the_clock(fal_git, fal_clock):
    fal_clock.freeze(datetime(2030, 1, 1, tzinfo=timezone.utc))
    commit = fal_git.serve(URL, FILES)
    path = clone_repository(URL, commit_hash=commit)
    fal_clock.advance(days=30)
    assert git("-C", path, "status", "--porcelain") == ""
    assert clone_repository(URL, commit_hash=commit) == path
    fal_git.assert_cloned(URL, times=1)


def test_requests_have_the_clocks_time(fal_git, fal_clock):
    start = datetime(2030, 1, 1, tzinfo=timezone.utc)
    fal_clock.freeze(start)
    fal_git.serve(URL, FILES)
    for _ in range(2):
        git("ls-remote", URL)
        fal_clock.advance(days=1)
    git("ls-remote", URL)
    assert [r.at - start for r in fal_git.requests] == [timedelta(days=d) for d in range(3)]


def test_events_are_in_the_order_of_time(fal_git, fal_clock, fal_ledger, fal_runner):
    fal_clock.freeze()
    fal_git.serve(URL, FILES)
    git("ls-remote", URL)
    fal_clock.advance(days=1)
    fal_runner(Cloner)
    git("clone", URL, "/tmp/models")
    kinds = [event.kind for event in fal_ledger.events]
    assert kinds == ["git", *["runner"] * (len(kinds) - 2), "git"]


# --- what is known of it -------------------------------------------------------------------------


def test_requests(fal_git):
    fal_git.serve(URL, FILES)
    git("ls-remote", URL)
    git("clone", URL, "/tmp/models")
    fal_git.serve(URL, {})
    git("-C", "/tmp/models", "fetch")
    git("-C", "/tmp/models", "fetch")
    run_git("-C", "/tmp/models", "push", "--force", "origin", "HEAD:main")
    run_git("clone", LIBRARY, "/tmp/library")
    assert list(map(str, fal_git.requests)) == [
        f"list of {URL}: served",
        f"clone of {URL}: served",
        f"fetch of {URL}: served",
        f"list of {URL}: served",
        f"push of {URL}: refused",
        f"list of {LIBRARY}: refused",
    ]


def test_the_ledger_tells_it(fal_runner, fal_git, fal_ledger):
    fal_git.serve(URL, FILES)
    fal_runner(Cloner).post("/", json={"url": URL})
    run_git("-C", REPOSITORIES / "models", "push", "origin", "HEAD:mine")
    run_git("ls-remote", LIBRARY)
    fal_git.break_down(URL)
    run_git("ls-remote", URL)
    told = [f"{e.kind}: {e.text}" for e in fal_ledger.events if e.kind in ("git", "refused")]
    assert told == [
        f"git: cloned {URL} by runner-1",
        f"refused: git pushed to {URL}: nobody can in a test",
        f"refused: git asked for {LIBRARY}: nothing in this test serves it",
        f"git: looked at {URL}, which broke down",
    ]
    assert fal_ledger.problems == told[1:3]


def test_assert_cloned(fal_git):
    with pytest.raises(AssertionError) as raised:
        fal_git.assert_cloned(URL)
    assert str(raised.value) == (
        f"{URL} was never cloned, expected at least once: nobody asked for it"
    )
    fal_git.serve(URL, FILES)
    git("clone", URL, "/tmp/models")
    git("-C", "/tmp/models", "fetch")
    fal_git.assert_cloned(URL)
    fal_git.assert_cloned(URL, times=1)
    with pytest.raises(AssertionError) as raised:
        fal_git.assert_cloned(URL, times=2)
    assert str(raised.value) == (
        f"{URL} was cloned once, expected twice: clone served, list served"
    )


def test_a_clone_that_goes_on(fal_git, tmp_path):
    fal_git.serve(URL, FILES)
    helper = os.path.join(os.environ["GIT_EXEC_PATH"], "git-remote-https")
    pipe = subprocess.PIPE
    with subprocess.Popen([helper, "origin", URL], stdin=pipe, stdout=pipe) as client:
        client.stdin.write(b"connect git-upload-pack\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"\n"
        assert client.stdout.read(4)  # the list of branches has begun
        assert [r.outcome for r in fal_git.requests] == ["running"]
        client.stdin.close()
    client.wait()
    assert [r.outcome for r in fal_git.requests] == ["served"]


def test_a_failing_tests_report_tells_it(pytester):
    pytester.makepyfile(
        """
        import subprocess

        def test_it(fal_git):
            fal_git.serve("https://github.com/org/a", {"model.py": "1"})
            for name in "ab":
                url = f"https://github.com/org/{name}"
                subprocess.run(["git", "clone", "-q", url, f"/data/{name}"], check=True)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    lines = result.outlines
    at = next(number for number, line in enumerate(lines) if "fal: events" in line)
    assert [line.partition(" ")[2] for line in lines[at + 1 : at + 3]] == [
        "git: cloned https://github.com/org/a",
        "refused: git asked for https://github.com/org/b: nothing in this test serves it",
    ]
    tree = [line.split("  ")[0] for line in lines if line.startswith("/data/")]
    assert tree == ["/data/a/.git/", "/data/a/model.py"]


def test_everything_is_forgotten_with_the_test(fal_emulator):
    fal_emulator.git.serve(URL, FILES)
    git("config", "--global", "user.name", "App")
    git("ls-remote", URL)
    fal_emulator.reset()
    assert refusal("ls-remote", URL).startswith("fatal: nothing in this test serves")
    assert len(fal_emulator.git.requests) == 1
    assert run_git("config", "user.name", cwd="/").returncode == 1
    assert repr(fal_emulator.git) == "<Git: 0 repositories served>"


# --- nothing of the user's -----------------------------------------------------------------------


def test_nothing_of_the_users_is_used_or_changed(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    config = home / ".gitconfig"
    config.write_text(
        "[user]\n\tname = Me\n"
        f'[url "file://{tmp_path}/mirror/"]\n\tinsteadOf = https://github.com/\n'
        f'[credential]\n\thelper = "!touch {tmp_path}/asked"\n'
        f'[core]\n\tsshCommand = "touch {tmp_path}/asked"\n'
    )
    before = config.read_text(), config.stat().st_mtime_ns
    mine = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "user.email",
        "GIT_CONFIG_VALUE_0": "me@example.com",
        "GIT_CONFIG_KEY_1": "core.askPass",
        "GIT_CONFIG_VALUE_1": f"touch {tmp_path}/asked",
        "GIT_SSH_COMMAND": f"touch {tmp_path}/asked",
        "GIT_ASKPASS": f"{tmp_path}/asked",
        "GIT_DIR": str(tmp_path / "hook.git"),
        "GIT_ALLOW_PROTOCOL": "file",
    }
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    with Emulator(visible=[str(tmp_path)]) as emulator:
        commit = emulator.git.serve(URL, FILES)
        git("clone", URL, "/tmp/models")
        git("clone", "git@github.com:org/models.git", "/tmp/ssh")
        assert head("/tmp/models") == head("/tmp/ssh") == commit
        assert run_git("config", "user.name", cwd="/").stdout == ""
        assert run_git("config", "user.email", cwd="/").stdout == ""
        refusal("ls-remote", LIBRARY)
        git("config", "--global", "user.name", "App")
    assert not (tmp_path / "asked").exists()
    assert (config.read_text(), config.stat().st_mtime_ns) == before
    assert {name: os.environ[name] for name in mine} == mine
    assert "GIT_EXEC_PATH" not in os.environ


def test_a_checkout_of_somebody_elses_can_be_looked_at(fal_git, elsewhere):
    """Where root runs tests in a checkout that is not his, as containers of CI do."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in (elsewhere, *elsewhere.rglob("*")):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    assert head(elsewhere) == fal_git.serve(URL, elsewhere)


def test_hosts_that_are_let_through_get_the_real_program(tmp_path, monkeypatch):
    """The real network is not here to be reached, so git's own program is a stand-in's."""
    real = tmp_path / "git-core"
    shutil.copytree(git_entrance.find_programs(), real, symlinks=True)
    (real / "git-remote-https").unlink()
    (real / "git-remote-https").write_text(
        '#!/bin/sh\nread first\necho "for real: $*" >&2\nexit 128\n'
    )
    (real / "git-remote-https").chmod(0o755)
    monkeypatch.setattr(git_entrance, "find_programs", lambda: str(real))
    from emulator.settings import Settings

    settings = Settings(allow_hosts=("github.com",))
    with Emulator(settings, visible=[str(tmp_path)]) as emulator:
        there = "https://github.com/org/real.git"
        assert refusal("ls-remote", there) == f"for real: {there} {there}"
        assert refusal("ls-remote", LIBRARY).startswith("fatal: nothing in this test serves")
        assert refusal("ls-remote", "git@github.com:org/real") == (
            "fatal: in a test, git goes to hosts that are let through by https only: "
            "https://github.com/org/real"
        )
        emulator.git.serve(there, FILES)
        git("clone", there, "/tmp/models")
        local = "https://localhost:8443/org/repo.git"
        assert refusal("ls-remote", local) == f"for real: {local} {local}"


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["models", "/data/models", "file:///data/models", "https://github.com", "ftp://a/b", ""]
)
def test_serve_takes_urls(fal_git, url):
    with pytest.raises(EmulatorError) as raised:
        fal_git.serve(url, FILES)
    assert str(raised.value) == (
        f"{url!r} is no URL of a repository. Write the one that the app clones, for example "
        'fal_git.serve("https://github.com/org/repo.git", {"model.py": "..."}).'
    )


@pytest.mark.parametrize("path", ["", "/model.py", "../model.py", "a//b", "a/", ".git/config"])
def test_serve_takes_paths_in_the_repository(fal_git, path):
    with pytest.raises(EmulatorError, match=f"serve.*: {path!r} is no path in a repository"):
        fal_git.serve(URL, {path: ""})


def test_a_file_is_no_directory(fal_git):
    with pytest.raises(EmulatorError, match="'a' cannot be both a file and the directory of 'a/b'"):
        fal_git.serve(URL, {"a": "", "a/b": ""})


def test_a_file_is_text_or_bytes(fal_git):
    with pytest.raises(EmulatorError, match=r"'a' is given as 5\. Files are text or bytes"):
        fal_git.serve(URL, {"a": 5})


def test_what_is_no_repository_cannot_be_served(fal_git, tmp_path, elsewhere):
    (tmp_path / "folder").mkdir()
    with pytest.raises(EmulatorError) as raised:
        fal_git.serve(URL, tmp_path / "folder")
    assert str(raised.value) == (
        f"serve({URL!r}): {tmp_path}/folder is no repository that has a commit (fatal: repository "
        f"'{tmp_path}/folder' does not exist). Commit something there, or serve a dictionary of "
        'files: fal_git.serve("https://github.com/org/repo.git", {"model.py": "..."}).'
    )
    with pytest.raises(EmulatorError, match="is no repository with a branch other that has a comm"):
        fal_git.serve(URL, elsewhere, branch="other")
    with pytest.raises(EmulatorError, match="leave out message and tag"):
        fal_git.serve(URL, elsewhere, tag="v2")


def test_a_machine_without_git_is_told(monkeypatch):
    monkeypatch.setattr(git_entrance, "find_programs", lambda: None)
    with Emulator() as emulator:
        assert "GIT_EXEC_PATH" not in os.environ
        with pytest.raises(EmulatorError, match=r"there is none on this machine\. Install it"):
            emulator.git.serve(URL, FILES)


def test_it_needs_a_running_emulator(tmp_path):
    with pytest.raises(EmulatorError, match="git needs a running emulator"):
        _ = Emulator(root=tmp_path).git


# --- what is written down -------------------------------------------------------------------------


def test_who_is_about_to_write_down_what_it_asks_is_none_yet(fal_git, fal_emulator):
    log = fal_emulator._git._places.log
    begun = os.path.join(log, str(os.getpid()))  # a program that is alive, and between two steps
    open(begun, "w").close()
    assert fal_git.requests == []
    fal_emulator.clock.advance(1)
    os.unlink(begun)


def test_what_a_clone_of_an_earlier_test_writes_is_nobodys(fal_git, fal_emulator):
    log = fal_emulator._git._places.log
    with open(os.path.join(log, "4000001"), "w") as file:  # of a process that there is not
        file.write("end\n")
    assert fal_git.requests == []
    assert fal_emulator.ledger.events == []


def test_a_clone_that_outlives_its_test_leaves_no_trace_in_the_next(fal_emulator, fal_clock):
    git_ = fal_emulator.git
    git_.serve(URL, {"large.bin": os.urandom(8_000_000)})
    left = subprocess.Popen(
        ["git", "clone", "--quiet", URL, "/tmp/models"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not git_.requests:
        pass
    fal_emulator.reset()
    left.wait()
    assert git_.requests == []
    assert [event for event in fal_emulator.ledger.events if event.kind == "git"] == []


def test_the_ledger_can_be_read_after_all_is_over(tmp_path):
    emulator = Emulator(root=tmp_path)
    with emulator:
        emulator.git.serve(URL, FILES)
    assert emulator.ledger.events == []


def test_credentials_of_a_served_url_are_not_shown(fal_git):
    fal_git.serve("https://user:s3cret@github.com/org/models.git", FILES)
    with pytest.raises(EmulatorError) as caught:
        fal_git.break_down("https://user:other@github.com/org/library.git")
    assert str(caught.value) == (
        "break_down('https://github.com/org/library.git'): nothing is served there; fal_git serves "
        'https://github.com/org/models.git. Write fal_git.serve("https://github.com/org/library'
        '.git", {"README.md": "..."}) first.'
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branch": "my branch"}, "serve(): 'my branch' is no name that git takes for a branch."),
        ({"branch": "../../x"}, "serve(): '../../x' is no name that git takes for a branch."),
        ({"branch": "a.lock"}, "serve(): 'a.lock' is no name that git takes for a branch."),
        ({"tag": "v1..2"}, "serve(): 'v1..2' is no name that git takes for a tag."),
        ({"tag": ""}, "serve(): '' is no name that git takes for a tag."),
    ],
)
def test_a_name_that_git_does_not_take_is_refused(fal_git, options, message):
    with pytest.raises(EmulatorError) as caught:
        fal_git.serve(URL, FILES, **options)
    assert str(caught.value) == f'{message} Write for example "v1.0".'


def test_a_branch_is_no_folder_of_another(fal_git):
    fal_git.serve(URL, FILES, branch="a")
    with pytest.raises(EmulatorError) as caught:
        fal_git.serve(URL, FILES, branch="a/b")
    assert str(caught.value) == (
        "A repository cannot have branches 'a' and 'a/b': to git one is a folder of the other. "
        "Give one of them another name."
    )
    fal_git.serve(URL, FILES, branch="ab")


@pytest.mark.parametrize("commit", ["v1", "abc123", "g" * 40])
def test_a_submodules_commit_is_a_whole_hash(fal_git, commit):
    fal_git.serve(LIBRARY, {"lib.py": ""})
    with pytest.raises(EmulatorError) as caught:
        fal_git.serve(URL, {"lib": Submodule(LIBRARY, commit)})
    assert str(caught.value) == (
        f"serve(): {commit!r} is no commit of a submodule. Write all 40 digits of its hash, as "
        "serve() of it returned them, or leave it out."
    )


def test_what_is_served_anew_while_it_is_down_stays_down(fal_git, elsewhere):
    fal_git.serve(URL, elsewhere)
    fal_git.break_down(URL)
    fal_git.serve(URL, elsewhere)
    assert "Could not resolve host" in run_git("clone", URL, "/tmp/models").stderr
