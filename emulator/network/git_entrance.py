"""git's way to the emulated servers: the programs that git itself runs to reach another machine.

git leaves the network to other programs, ``git-remote-https`` and ``ssh``, which it looks for first
in the directory that ``GIT_EXEC_PATH`` names. So that is a directory of ours: links to all of git's
own programs, but for those. URLs stay as they are, in git's messages and in ``.git/config``; and an
app may have a ``PATH``, a ``core.sshCommand`` and an ``insteadOf`` of its own.

What they look up, and where they write down what they were asked, are files (:class:`Places`), so
that a process of any runner finds what a test has served since that was started.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from emulator.environment import drop, names

__all__ = ["Places", "find_programs", "install", "set_variables"]

_HTTP = ("git-remote-http", "git-remote-https", "git-remote-ftp", "git-remote-ftps")

# Who the user is at other servers, which repository git is in (set where tests run from a hook of
# git's), and what else may take git somewhere else than where an app's own call takes it.
_REMOVED = names(
    *("GIT_ASKPASS", "SSH_ASKPASS", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSH_VARIANT"),
    *("GIT_CONFIG", "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_SYSTEM", "GIT_TEMPLATE_DIR"),
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE"),
    *("GIT_SHALLOW_FILE", "GIT_GRAFT_FILE", "GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE"),
    *("GIT_IMPLICIT_WORK_TREE", "GIT_INTERNAL_SUPER_PREFIX", "GIT_CEILING_DIRECTORIES"),
    *("GIT_ALLOW_PROTOCOL", "GIT_PROTOCOL", "GIT_PROTOCOL_FROM_USER", "GIT_REDIRECT_STDERR"),
    *("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_AUTHOR_DATE"),
    *("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "GIT_COMMITTER_DATE", "EMAIL"),
    *("GIT_HTTP_PROXY_AUTHMETHOD", "GIT_SSL_CERT", "GIT_SSL_KEY", "GIT_SSL_NO_VERIFY"),
)


class Places:
    """Where the files are.

    Args:
        root: a directory of the emulator's.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.programs = os.path.join(root, "programs")
        #: git's configuration where it serves.
        self.configuration = os.path.join(root, "serving.gitconfig")
        #: What belongs to one test, all below this.
        self.test = os.path.join(root, "test")
        #: What is served: a line each, "state<TAB>host/path<TAB>repository".
        self.table = os.path.join(self.test, "served")
        #: What was asked for: a file for each process that asked.
        self.log = os.path.join(self.test, "log")
        self.repositories = os.path.join(self.test, "repositories")
        #: What is ``~/.gitconfig`` on a machine.
        self.user = os.path.join(self.test, "gitconfig")


def install(places: Places) -> bool:
    """Write the programs; False: there is no git on this machine."""
    git = find_programs()
    if git is None:
        return False
    os.makedirs(places.programs)
    ours = dict.fromkeys(_HTTP, _HELPER)
    ours |= {"ssh": _SSH, "fal-git-proxy": _PROXY, "fal-pack-objects": _PACKER}
    for entry in os.listdir(git):
        if entry not in ours:
            os.symlink(os.path.join(git, entry), os.path.join(places.programs, entry))
    head = _HEAD.format(
        test=shlex.quote(places.test),
        git=shlex.quote(git),
        configuration=shlex.quote(places.configuration),
    )
    for name, text in ours.items():
        path = os.path.join(places.programs, name)
        Path(path).write_text(head + text, "utf-8")
        os.chmod(path, 0o755)
    packer = shlex.quote(os.path.join(places.programs, "fal-pack-objects"))
    quoted = packer.replace("\\", "\\\\").replace('"', '\\"')
    Path(places.configuration).write_text(_CONFIGURATION.format(packer=quoted), "utf-8")
    return True


def set_variables(places: Places) -> None:
    """Have git in this process's environment use the programs, and nothing of the user's."""
    drop(_REMOVED)
    count = os.environ.get("GIT_CONFIG_COUNT", "")
    for number in range(int(count) if count.isdigit() else 0):
        os.environ.pop(f"GIT_CONFIG_KEY_{number}", None)
        os.environ.pop(f"GIT_CONFIG_VALUE_{number}", None)
    os.environ.update(
        {
            "GIT_EXEC_PATH": places.programs,
            "GIT_PROXY_COMMAND": os.path.join(places.programs, "fal-git-proxy"),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_NOSYSTEM": "1",
            # A file, and one that can be written: `git config --global` replaces what it names.
            "GIT_CONFIG_GLOBAL": places.user,
            # Where root runs the tests of a checkout that belongs to somebody else, git refuses to
            # look at it unless the user's own configuration says this.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
    )


@lru_cache(maxsize=1)
def find_programs() -> str | None:
    """The directory of git's own programs; None: there is no git."""
    git = shutil.which("git")
    if git is None:
        return None
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(git)))
    places = [os.path.join(prefix, name, "git-core") for name in ("lib", "libexec")]
    for place in (os.environ.get("GIT_EXEC_PATH"), *places):
        if place and _holds(place, "git-remote-https") and not _holds(place, "fal-pack-objects"):
            return place
    found = subprocess.run([git, "--exec-path"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _holds(folder: str, name: str) -> bool:
    return os.path.exists(os.path.join(folder, name))


# What the user's configuration says does not count here. Any commit may be asked for, as GitHub
# allows it; who asks for nothing but a list of branches gets no pack.
_CONFIGURATION = """\
[safe]
	directory = *
[uploadpack]
	allowFilter = true
	allowAnySHA1InWant = true
	packObjectsHook = "{packer}"
"""

# What all programs have in common. POSIX sh: it has to run wherever git does.
_HEAD = r"""#!/bin/sh
# Stands in for one of git's own programs in tests: see emulator/network/git_entrance.py.
test={test}
git={git}
configuration={configuration}
tab='	'

locate() {{  # host, path: sets key, shown, state, repository
    host=${{1##*@}}
    case $host in *[[:upper:]]*) host=$(printf %s "$host" | tr '[:upper:]' '[:lower:]') ;; esac
    path=${{2%%[?#]*}}
    while :; do case $path in /*) path=${{path#/}} ;; */) path=${{path%/}} ;; *) break ;; esac; done
    shown="https://$host/$path"
    key="$host/${{path%.git}}"
    state='' repository='' others='' allowed=''
    case $host in localhost | localhost:* | 127.* | '[::1]'*) allowed=yes ;; esac
    [ -f "$test/served" ] || return 0
    while IFS=$tab read -r its_state its_key its_repository; do
        case $its_state in
        allowed) [ "$its_key" = "${{host%:*}}" ] && allowed=yes ;;
        *)
            others="$others${{others:+, }}https://$its_key.git"
            [ "$its_key" != "$key" ] || {{ state=$its_state repository=$its_repository; }}
            ;;
        esac
    done <"$test/served"
}}

note() {{  # not for the next test, where this one is over
    [ ! -e "$test/log/$$" ] || printf '%s\n' "$*" >>"$test/log/$$"
}}

ask() {{  # what for: writes down who asks for what
    if [ -n "$FAL_EMULATOR_RUNNER" ]; then namespace="mnt:[${{FAL_EMULATOR_RUNNER%%@*}}]"
    else namespace=$(readlink /proc/self/ns/mnt 2>/dev/null) || namespace=-; fi
    printf '%s\n' "$1$tab$namespace$tab$shown" >>"$test/log/$$"
}}

refuse() {{  # in the words of git, with the line to write
    ask list
    note refused
    more=${{others:+ (fal_git serves $others)}}
    printf '%s\n' "fatal: nothing in this test serves $shown, and tests do not reach the network. \
Write fal_git.serve(\"$shown\", {{\"README.md\": \"...\"}}), or let the host through with \
@pytest.mark.fal(allow_hosts=[\"$host\"]).$more" >&2
    exit 128
}}

refuse_push() {{
    ask push
    note refused
    printf '%s\n' "fatal: $shown is somebody else's: nothing can be pushed to it in a test. For \
another commit of it write fal_git.serve(\"$shown\", {{...}})." >&2
    exit 128
}}

answer() {{  # be the server
    ask list
    FAL_GIT_LOG="$test/log/$$"
    export FAL_GIT_LOG
    unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_PREFIX GIT_COMMON_DIR GIT_OBJECT_DIRECTORY
    unset GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_SHALLOW_FILE GIT_NAMESPACE GIT_QUARANTINE_PATH
    unset GIT_CONFIG_COUNT GIT_CONFIG_PARAMETERS GIT_CONFIG GIT_GRAFT_FILE GIT_IMPLICIT_WORK_TREE
    GIT_CONFIG_GLOBAL=$configuration
    export GIT_CONFIG_GLOBAL
    case $state in
    up) git upload-pack "$repository" ;;
    *)
        # It is ended when that much has gone: it would wait for what the client says next.
        pid="$test/pid-$$"
        sh -c 'echo $$ >"$1"; exec git upload-pack "$2"' - "$pid" "$repository" 2>/dev/null | {{
            dd bs=4096 iflag=count_bytes count="${{state#after:}}" 2>/dev/null
            until [ -s "$pid" ]; do sleep 0.01; done
            kill "$(cat "$pid")" 2>/dev/null
        }}
        note broken
        echo 'error: RPC failed; curl 18 transfer closed with outstanding read data remaining' >&2
        ;;
    esac
    note end
}}

"""

# A remote helper: gitremote-helpers(7). Its arguments are the remote's name and its URL. It fails
# once it is asked to connect, not before: git would die of writing to it.
_HELPER = r"""
rest=${2#*://}
locate "${rest%%/*}" "/${rest#*/}"
[ -n "$state" ] || [ -z "$allowed" ] || exec "$git/${0##*/}" "$@"
while read -r command service; do
    case $command in
    capabilities) printf 'connect\n\n' ;;
    connect)
        [ -n "$state" ] || refuse
        if [ "$state" = down ]; then
            ask list
            note broken
            cannot="fatal: unable to access '${2%%://*}://$host/$path/'"
            printf '%s\n' "$cannot: Could not resolve host: $host" >&2
            exit 128
        fi
        [ "$service" = git-upload-pack ] || refuse_push
        printf '\n'
        answer
        exit 0
        ;;
    *) exit 1 ;;
    esac
done
"""

# Called as "ssh [options] host command".
_SSH = r"""
[ "$1" != -G ] || exit 0
host='' command=''
for argument; do host=$command command=$argument; done
eval "set -- $command"
service=$1
locate "$host" "/$2"
if [ -z "$state" ]; then
    if [ -n "$allowed" ]; then
        echo "fatal: in a test, git goes to hosts that are let through by https only: $shown" >&2
        exit 128
    fi
    refuse
fi
[ "$service" = git-upload-pack ] || refuse_push
if [ "$state" = down ]; then
    ask list
    note broken
    echo "ssh: Could not resolve hostname $host: Name or service not known" >&2
    exit 255
fi
answer
"""

# Called as "fal-git-proxy host port", for git://, of which only the host is known here.
_PROXY = r"""
dd bs=4096 count=1 >/dev/null 2>&1 # what git writes first
printf '%s\n' "fatal: git:// is not answered in tests (nor by GitHub, since 2022). Write https:// \
instead, and fal_git.serve(\"https://$1/...\", {...})." >&2
exit 128
"""

# Called in place of "git pack-objects" once somebody wants something. What he wants comes on stdin,
# and after "--not" what he has; in a partial clone he wants files later, which is no other clone.
_PACKER = r"""
input='' wants='' has='' after_not=''
while read -r line; do
    input="$input$line
"
    case $line in
    --not) after_not=yes ;;
    '' | --*) ;;
    *) if [ -n "$after_not" ]; then has=$line; else wants=$line; fi ;;
    esac
done
what=clone
case " $* " in
*' --filter='*) case $(git cat-file -t "$wants") in blob | tree) what=fetch ;; esac ;;
esac
[ -z "$has" ] || what=fetch
[ ! -e "$FAL_GIT_LOG" ] || echo "$what" >>"$FAL_GIT_LOG"
printf %s "$input" | "$@"
"""
