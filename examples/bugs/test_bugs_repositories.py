"""Bugs of repositories: what clone_repository() leaves in the /data that all runners share."""

import os
import subprocess

import fal
import pytest
from fal.toolkit import clone_repository
from gallery import bug

TOPIC = "Repositories"
SEEN = ("1.75.5", "1.83.0")

URL = "https://github.com/org/models.git"


@bug(
    "R1",
    symptom="each start of a runner takes a minute longer than the clone should",
    topic=TOPIC,
    seen=SEEN,
)
def test_a_repository_is_cloned_again_at_every_call(fal_git):
    """Without a commit, each call removes the repository and clones it again.

    Production: each runner that starts clones, though /data has the repository since the first one;
        a scale-up meets the server's limit of requests.
    Expected: what is there is kept, or brought up to date.
    Happens: only a commit tells whether what is there is right; without one it never is.
    Avoid: commit_hash=.
    """
    commit = fal_git.serve(URL, {"model.py": "SIZE = 1"})
    for _ in range(3):
        clone_repository(URL)
    fal_git.assert_cloned(URL, times=3)

    for _ in range(3):
        clone_repository(URL, commit_hash=commit)
    fal_git.assert_cloned(URL, times=4)


@bug(
    "R1",
    symptom="GitHub was down for a minute, and nothing starts since although /data has the code",
    topic=TOPIC,
    seen=SEEN,
)
@pytest.mark.parametrize("how", ["without a commit", "with force"])
def test_when_the_server_is_down_the_old_clone_is_gone(fal_git, fal_data, how):
    """A clone that fails has removed the one that was there.

    Production: an outage of the server takes down all runners that start, and the clone that those
        before them still work with.
    Expected: the old one stays until the new one is there.
    Happens: it is removed first.
    Avoid: commit_hash= without force; or clone under another name, and rename.
    """
    commit = fal_git.serve(URL, {"model.py": "SIZE = 1"})
    options = {"commit_hash": commit, "force": True} if how == "with force" else {}
    path = clone_repository(URL, **options)
    fal_git.break_down(URL)
    with pytest.raises(subprocess.CalledProcessError):
        clone_repository(URL, **options)
    assert not path.exists()
    assert fal_data.tree() == []

    fal_git.restore(URL)
    path = clone_repository(URL, commit_hash=commit)
    fal_git.break_down(URL)
    assert clone_repository(URL, commit_hash=commit) == path


@bug(
    "R2",
    symptom="the deploy with the new commit fails, only where /data has the old one",
    topic=TOPIC,
    seen=SEEN,
)
def test_a_named_clone_cannot_go_to_a_newer_short_hash(fal_git):
    """With repo_name and a short hash that is newer than the clone, the call fails for good.

    Production: the first version of an app works, each later one fails in setup(); in a fresh
        account all of them work.
    Expected: the repository is cloned again.
    Happens: git is asked for the full hash in the old clone, which does not know the commit.
    Avoid: the full hash, or no repo_name.
    """
    first = fal_git.serve(URL, {"model.py": "SIZE = 1"})
    path = clone_repository(URL, commit_hash=first[:10], repo_name="models")
    second = fal_git.serve(URL, {"model.py": "SIZE = 2"})
    with pytest.raises(subprocess.CalledProcessError, match="rev-parse"):
        clone_repository(URL, commit_hash=second[:10], repo_name="models")
    assert (path / "model.py").read_text() == "SIZE = 1"

    clone_repository(URL, commit_hash=second, repo_name="models")
    assert (path / "model.py").read_text() == "SIZE = 2"


class Painter(fal.App):
    def setup(self):
        self.path = clone_repository(URL)

    @fal.endpoint("/")
    def size(self) -> str:
        return (self.path / "model.py").read_text()


@bug(
    "N32",
    symptom="runners that nobody has deployed again answer with the new code, or half of it",
    topic=TOPIC,
    seen=SEEN,
)
def test_a_new_runner_changes_the_code_of_those_that_run(fal_runner, fal_git):
    """Without a commit, a runner that starts replaces the code under those that run.

    Production: a push to somebody's repository changes runners that have been up for days; what
        they import later does not fit what they have imported before.
    Expected: a runner keeps what it has cloned.
    Happens: all have one directory in /data, which each new runner removes and clones again.
    Avoid: commit_hash=; each commit has a directory of its own.
    """
    fal_git.serve(URL, {"model.py": "SIZE = 1"})
    old = fal_runner(Painter)
    assert old.post("/").json() == "SIZE = 1"

    fal_git.serve(URL, {"model.py": "SIZE = 2"})
    fal_runner(Painter)
    assert old.post("/").json() == "SIZE = 2"


@bug(
    "N33",
    symptom="the clone has the files of another repository",
    topic=TOPIC,
    seen=SEEN,
)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://github.com/alice/models.git", "https://github.com/bob/models.git"),
        ("https://github.com/org/models-v1.0", "https://github.com/org/models-v1.5"),
    ],
)
def test_repositories_of_one_name_replace_each_other(fal_git, one, other):
    """Two repositories whose names are equal, or up to the last dot, have one directory.

    Production: of two apps, or two models of one app, the one that was cloned first has the
        other's files.
    Expected: a directory for each URL.
    Happens: the directory has the last part of the URL as its name, without what looks like a
        suffix.
    Avoid: commit_hash=, or a repo_name= for each.
    """
    fal_git.serve(one, {"README.md": "one"})
    fal_git.serve(other, {"README.md": "other"})
    path = clone_repository(one)
    assert clone_repository(other) == path
    assert (path / "README.md").read_text() == "other"

    assert clone_repository(one, repo_name="one") != clone_repository(other, repo_name="other")


@bug(
    "N34",
    symptom="the token of our private repository is in the logs",
    topic=TOPIC,
    seen=SEEN,
)
def test_the_token_of_a_private_repository_is_printed_and_stored(fal_git, fal_data, capfd):
    """A token in the URL is in the log, and in the /data that all of the account's apps read.

    Production: whoever may see the logs, or runs any app of the account, can read all that the
        token opens.
    Expected: neither.
    Happens: the URL is printed as it is, and git keeps it in the clone's configuration.
    Avoid: clone without a token in the URL: GIT_CONFIG_COUNT, GIT_CONFIG_KEY_0 and
        GIT_CONFIG_VALUE_0 in the environment can say "url.https://<token>@github.com/.insteadOf".
    """
    fal_git.serve(URL, {"model.py": ""})
    clone_repository("https://some-token@github.com/org/models.git")
    assert "some-token" in capfd.readouterr().out
    assert b"some-token" in fal_data.read(".fal/repos/models/.git/config")

    number = int(os.environ.get("GIT_CONFIG_COUNT", "0"))
    os.environ["GIT_CONFIG_COUNT"] = str(number + 1)
    os.environ[f"GIT_CONFIG_KEY_{number}"] = "url.https://some-token@github.com/.insteadOf"
    os.environ[f"GIT_CONFIG_VALUE_{number}"] = "https://github.com/"
    clone_repository(URL)
    printed = capfd.readouterr()
    assert "some-token" not in printed.out + printed.err
    assert b"some-token" not in fal_data.read(".fal/repos/models/.git/config")


@bug(
    "N35",
    symptom="the code of a pinned commit is not what that commit has",
    topic=TOPIC,
    seen=SEEN,
)
def test_a_changed_file_of_a_pinned_clone_stays_changed(fal_git, fal_data):
    """A pinned clone is not looked at: what one runner changes in it, all others run.

    Production: a patch that one version of an app applied to the clone, or a file it has lost, is
        there for all later runners, whatever they pin.
    Expected: the files of the commit.
    Happens: only the clone's HEAD is compared.
    Avoid: copy the clone to /tmp before changing it, or `git status --porcelain` and force=True.
    """
    commit = fal_git.serve(URL, {"model.py": "SIZE = 1", "util.py": ""})
    path = clone_repository(URL, commit_hash=commit)
    fal_data.write(f".fal/repos/{path.name}/model.py", b"SIZE = 3")
    (path / "util.py").unlink()
    clone_repository(URL, commit_hash=commit)
    assert (path / "model.py").read_text() == "SIZE = 3"
    assert not (path / "util.py").exists()

    clone_repository(URL, commit_hash=commit, force=True)
    assert (path / "model.py").read_text() == "SIZE = 1"


@bug(
    "N36",
    symptom="we pin a branch, and never get its new commits",
    topic=TOPIC,
    seen=SEEN,
)
def test_a_branch_given_as_the_commit_never_moves(fal_git):
    """A branch or tag is taken for commit_hash, and stays where it was at the first clone.

    Production: a fix on the branch arrives in fresh accounts only.
    Expected: an error, or the branch as it is now.
    Happens: it is compared with the clone's own copy of the branch, which is always right.
    Avoid: hashes; git ls-remote tells that of a branch.
    """
    fal_git.serve(URL, {"model.py": "SIZE = 1"}, branch="main")
    fal_git.serve(URL, {"model.py": "SIZE = 2"}, branch="production")
    path = clone_repository(URL, commit_hash="production")
    fixed = fal_git.serve(URL, {"model.py": "SIZE = 3"}, branch="production")
    clone_repository(URL, commit_hash="production")
    assert (path / "model.py").read_text() == "SIZE = 2"

    listed = subprocess.check_output(["git", "ls-remote", URL, "production"], text=True)
    assert listed.split()[0] == fixed
    assert (clone_repository(URL, commit_hash=fixed) / "model.py").read_text() == "SIZE = 3"
