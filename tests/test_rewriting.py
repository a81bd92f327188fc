"""The rungs without namespaces: paths that lead elsewhere, and what is refused."""

from __future__ import annotations

import asyncio
import builtins
import ctypes
import errno
import glob
import importlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fal
import pytest

from emulator import Emulator, Settings
from emulator.errors import EmulatorError, FilesystemError, HostPathError
from emulator.storage import commands, places
from emulator.storage.natives import KNOWN
from emulator.storage.places import Place

PLACE = Place(
    1,
    (("/data", "/back/data"), ("/tmp", "/back/tmp")),
    kept=("/tmp/project",),
)


class Empty(fal.App):
    @fal.endpoint("/")
    def ask(self) -> str:
        return "here"


@pytest.fixture
def rewritten(tmp_path):
    """An emulator on the last rung, whatever this run is on."""
    (tmp_path / "own").mkdir()
    visible = [str(tmp_path)]
    settings = Settings(filesystem="rewrite", trusted_programs=("sh",))
    emulator = Emulator(settings, root=tmp_path / "own", visible=visible)
    emulator.start()
    yield emulator
    if emulator.active:
        emulator.stop()
    emulator.close()


# --- what a path means ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("/data", "/back/data"),
        ("/data/", "/back/data/"),
        ("/data/a/b", "/back/data/a/b"),
        ("/data//a/./b", "/back/data//a/./b"),
        ("/data/a/../b", "/back/data/a/../b"),
        ("//data/a", "/back/data/a"),
        ("/home/../data/a/", "/back/data/a/"),
        ("/tmp/../data/a", "/back/data/a"),
        ("/tmp/x", "/back/tmp/x"),
        ("/data/../tmp/x", "/back/tmp/x"),
        ("/data/../etc", None),
        ("/database", None),
        ("/tmpfile", None),
        ("/var/data/x", None),
        ("/", None),
        ("/tmp/project", None),
        ("/tmp/project/a", None),
        ("/tmp/a/../project/a", None),
        ("/tmp/projects", "/back/tmp/projects"),
    ],
)
def test_where_a_path_leads(path, real):
    assert PLACE.real(path) == real


@pytest.mark.parametrize(
    ("real", "shown"),
    [
        ("/back/data", "/data"),
        ("/back/data/a", "/data/a"),
        ("/back/database", None),
        ("/elsewhere", None),
    ],
)
def test_what_an_app_calls_a_real_path(real, shown):
    assert PLACE.shown(real) == shown


def test_a_program_is_told_a_place_and_nothing_is_lost():
    place = Place(7, PLACE.areas, PLACE.kept, guarded=("/data",), trusted=("sh",))
    assert Place.told(place.variables("/home")[places.PLACE]) == place


# --- Python's calls -------------------------------------------------------------------------------


def test_errors_name_the_path_as_it_was_given(rewritten):
    for call, path in (
        (os.stat, "/data/none"),
        (os.listdir, Path("/data/none")),
        (os.scandir, b"/data/none"),
        (os.chdir, "/data/none"),
        (os.readlink, "/data/none"),
        (os.open, "/data/none"),
        (open, "/data/none"),
        (io.open, "/data/none"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            call(path, os.O_RDONLY) if call is os.open else call(path)
        assert caught.value.filename == os.fspath(path), call
    with pytest.raises(FileNotFoundError) as caught:
        os.rename("/data/none", "/data/other")
    assert (caught.value.filename, caught.value.filename2) == ("/data/none", "/data/other")
    with pytest.raises(FileNotFoundError):
        os.rename("/data/none", "/tmp/other")


def test_an_open_file_has_the_name_that_it_was_opened_by(rewritten):
    with open("/data/file", "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        assert file.name == "/data/file"
    assert rewritten.data.tree() == ["file"]
    assert os.stat("/data/file").st_mode & 0o777 == 0o600
    with pytest.raises(IsADirectoryError):
        open("/data")  # noqa: SIM115


def test_bytes_are_answered_with_bytes(rewritten):
    rewritten.data.write("folder/file", b"x")
    assert os.listdir(b"/data") == [b"folder"]
    assert [entry.path for entry in os.scandir(b"/data")] == [b"/data/folder"]
    os.symlink(b"/data/folder", b"/data/link")
    assert os.readlink(b"/data/link") == b"/data/folder"
    assert b"data" in os.listdir(b"/")


def test_a_keyword_is_a_path_as_well(rewritten):
    os.mkdir(path="/data/folder")
    assert os.listdir(path="/data") == ["folder"]
    os.rename(src="/data/folder", dst="/data/other")
    assert os.listdir("/data") == ["other"]


def test_descriptors_and_directories_of_descriptors_are_left_alone(rewritten):
    rewritten.data.write("folder/file", b"x")
    directory = os.open("/data/folder", os.O_RDONLY)
    try:
        assert os.listdir(directory) == ["file"]
        assert os.stat("file", dir_fd=directory).st_size == 1
        os.rename("file", "new", src_dir_fd=directory, dst_dir_fd=directory)
        os.unlink("new", dir_fd=directory)
    finally:
        os.close(directory)
    assert rewritten.data.tree() == []


def test_what_is_no_path_gets_python_s_own_words(rewritten):
    with pytest.raises(TypeError, match=r"stat: path should be string, bytes, os.PathLike or int"):
        os.stat(None)
    with pytest.raises(TypeError, match=r"expected str, bytes or os.PathLike object, not float"):
        open(1.5)  # noqa: SIM115


def test_a_relative_path_out_of_a_volume_is_the_host_s(rewritten, monkeypatch):
    rewritten.data.write("folder/file", b"x")
    monkeypatch.chdir("/data/folder")
    assert os.path.samefile("../..", "/")
    assert os.path.samefile("../../etc", "/etc")
    assert Path("../folder/file").read_bytes() == b"x"
    monkeypatch.chdir("/")
    assert Path("data/folder/file").read_bytes() == b"x"


def test_temporary_files_are_the_app_s(rewritten):
    with tempfile.NamedTemporaryFile() as file:
        assert file.name.startswith("/tmp/")
        assert rewritten.tmp.tree() == [os.path.basename(file.name)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "file").touch()
        assert len(rewritten.tmp.tree()) == 1
    assert rewritten.tmp.tree() == []


EARLY = """
from os import stat, listdir as names
from builtins import open as my_open
"""


def test_functions_that_a_module_has_taken_are_led_and_given_back(tmp_path, monkeypatch):
    module = types.ModuleType("taken_early")
    exec(EARLY, module.__dict__)
    monkeypatch.setitem(sys.modules, "taken_early", module)
    with Emulator(Settings(filesystem="rewrite")) as own:
        own.data.write("file", b"x")
        assert module.stat("/data/file").st_size == 1
        assert module.names("/data") == ["file"]
        with module.my_open("/data/file") as file:
            assert file.read() == "x"
    assert (module.stat, module.names, module.my_open) == (os.stat, os.listdir, open)


def _functions() -> dict[str, object]:
    owners = (os, io, builtins, sys.modules["posix"], sys.modules["_io"], subprocess.Popen)
    found = {
        (owner.__name__, name): value for owner in owners for name, value in vars(owner).items()
    }
    found["start", ""] = threading.Thread.start
    found["bind", ""] = __import__("socket").socket.bind
    found["globber", ""] = vars(getattr(glob, "_StringGlobber", object))
    found["accessor", ""] = vars(getattr(pathlib, "_NormalAccessor", object))
    return {
        key: dict(value) if "er" in key[0] and not key[1] else value for key, value in found.items()
    }


def test_everything_is_put_back(tmp_path):
    before = _functions()
    meta_path = list(sys.meta_path)
    defaults = vars(tempfile._TemporaryFileCloser)
    closing = {name: getattr(value, "__defaults__", None) for name, value in defaults.items()}
    with Emulator(Settings(filesystem="rewrite")):
        assert os.stat is not before["os", "stat"]
        assert _functions() != before
    assert _functions() == before
    assert sys.meta_path == meta_path
    assert {n: getattr(v, "__defaults__", None) for n, v in defaults.items()} == closing


def test_emulators_nest(rewritten, tmp_path):
    rewritten.data.write("x", b"outer")
    (tmp_path / "inner").mkdir()
    with Emulator(Settings(filesystem="rewrite"), root=tmp_path / "inner") as inner:
        assert inner.data.tree() == []
        inner.data.write("x", b"inner")
        assert Path("/data/x").read_bytes() == b"inner"
    assert Path("/data/x").read_bytes() == b"outer"


def test_the_working_directory_may_be_gone(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with Emulator(Settings(filesystem="rewrite")) as own:
        own.data.write("x", b"x")
        assert Path("/data/x").read_bytes() == b"x"


def test_a_failing_test_s_volumes_are_kept(rewritten):
    Path("/data/file").write_text("x")
    kept = rewritten.stop(keep=True)
    assert Path(kept, "data", "file").read_text() == "x"


# --- who is where ---------------------------------------------------------------------------------


def test_every_thread_is_where_its_starter_is(rewritten):
    class Own(threading.Thread):
        def run(self) -> None:
            Path("/tmp/of-a-subclass").touch()

    def leave_traces() -> None:
        own = Own()
        own.start()
        own.join()
        assert "run" not in vars(own)
        timer = threading.Timer(0, Path("/tmp/of-a-timer").touch)
        timer.start()
        timer.join()
        with ThreadPoolExecutor() as pool:
            pool.submit(Path("/tmp/of-a-pool").touch).result()
            pool.submit(
                lambda: asyncio.run(asyncio.to_thread(Path("/tmp/of-asyncio").touch))
            ).result()

    runner = rewritten.runner(Empty)
    runner.run(leave_traces)
    assert runner.tmp.tree() == ["of-a-pool", "of-a-subclass", "of-a-timer", "of-asyncio"]
    leave_traces()
    assert rewritten.tmp.tree() == runner.tmp.tree()


def test_a_current_app_and_a_caller_are_those_of_the_thread(rewritten):
    def ask() -> object:
        from fal.toolkit import File

        File.from_bytes(b"x")
        return fal.ref.get_current_app().__class__

    one, two = rewritten.runner(Empty), rewritten.runner(Empty)
    assert one.run(ask) is Empty
    assert two.run(ask) is Empty
    assert [e.runner for e in rewritten.ledger.requests(method="PUT")] == ["runner-1", "runner-2"]


def test_what_a_runner_s_process_started_ends_with_it(rewritten):
    def start() -> list[int]:
        program = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        forked = os.fork()
        if forked == 0:
            import time

            time.sleep(1000)
            os._exit(0)
        return [program.pid, forked]

    runner = rewritten.runner(Empty, isolation="process")
    pids = runner.run(start)
    runner.stop()
    assert [pid for pid in pids if _is_running(pid)] == []


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "led"),
    [
        (["cat", "/data/a", "b"], ["cat", "/back/data/a", "b"]),
        (["x", "--out=/tmp/a", "file=/data/b"], ["x", "--out=/back/tmp/a", "file=/back/data/b"]),
        (["curl", "-d", "@/data/a"], ["curl", "-d", "@/back/data/a"]),
        (["x", "file:///data/a"], ["x", "file:///back/data/a"]),
        ([b"cat", b"/data/a"], [b"cat", b"/back/data/a"]),
        (["/data/bin/tool"], ["/back/data/bin/tool"]),
        (["cat", "/tmp/project/a", "/var/data"], ["cat", "/tmp/project/a", "/var/data"]),
        (["x", "https://example.com/data/a"], ["x", "https://example.com/data/a"]),
        (["python3.11", "-c", "open('/data/a')"], ["python3.11", "-c", "open('/data/a')"]),
        ("ls", "ls"),
    ],
)
def test_a_command_line(given, led):
    assert commands.arguments(PLACE, given) == led


@pytest.mark.parametrize(
    ("given", "shell", "mentioned"),
    [
        ("cat /data/a", True, "/data/a"),
        ("ls;cd /tmp", True, "/tmp"),
        (["sh", "-c", "cat '/data/a b'"], False, "/data/a"),
        (["awk", '{print > "/tmp/x"}'], False, "/tmp/x"),
        (["python3", "-I", "-c", "open('/data/a')"], False, "/data/a"),
        (["convert", "x.png", "png:/data/a"], False, "/data/a"),
    ],
)
def test_a_command_line_that_cannot_be_led(given, shell, mentioned):
    with pytest.raises(HostPathError) as refused:
        commands.arguments(PLACE, given, shell)
    assert f"would reach the host's own {mentioned}: " in str(refused.value)
    assert '@pytest.mark.fal(filesystem="namespace")' in str(refused.value)


def test_a_program_gets_real_paths_in_its_variables():
    given = {"HF_HOME": "/data/.cache", "PATH": "/tmp/bin:/usr/bin", "TEXT": "see /data/a"}
    led = commands.environment(PLACE, given, python=False)
    assert (led["HF_HOME"], led["PATH"]) == ("/back/data/.cache", "/back/tmp/bin:/usr/bin")
    assert (led["TEXT"], led["TMPDIR"]) == ("see /data/a", "/back/tmp")
    python = commands.environment(PLACE, given, python=True)
    assert python["HF_HOME"] == "/data/.cache"
    assert Place.told(python[places.PLACE]) == PLACE


GUARDED = Place(1, PLACE.areas, guarded=("/data",), trusted=("mine", "sh"))


@pytest.mark.parametrize(
    ("given", "directory"),
    [
        (["git", "clone", "u", "/data/r"], "/"),
        (["/usr/bin/x86_64-linux-gnu-gcc-12", "-o", "/data/a.so", "a.c"], "/tmp/build"),
        (["ffmpeg", "-i", "in.mp4", "/data/out.mp4"], "/data"),
        (["nvidia-smi", "--query-gpu=name"], "/"),
        (["cp", "../a", "sub/b"], "/data/models"),
        ("uname", "/"),
        (["/opt/mine", "../x"], "/data"),
        ([sys.executable, "-c", "open('/data/a')"], "/"),
    ],
)
def test_where_the_host_has_a_data_known_programs_are_started(given, directory):
    commands.arguments(GUARDED, given, directory=directory)


@pytest.mark.parametrize(
    ("given", "directory", "why"),
    [
        (["make"], "/home", "the program may know a path there by itself"),
        (["find", "/data"], "/home", "the program may know a path there by itself"),
        (["rm", "-rf", "/"], "/home", "/ is above it"),
        (["tar", "-c", "--directory=/", "x"], "/home", "/ is above it"),
        (["rm", "-rf", "data"], "/", "'data' leads from / to /data"),
        (["rm", "-rf", "../data/x"], "/home", "'../data/x' leads from /home to /data/x"),
        (["cp", "a", "--target-directory=../data"], "/home", "'../data' leads from /home to /data"),
        (["dd", "if=a", "of=../data"], "/home", "'../data' leads from /home to /data"),
        (["cp", "../etc/x", "y"], "/data", "'../etc/x' leads from /data to /etc/x"),
    ],
)
def test_where_the_host_has_a_data_nothing_is_started_that_could_find_it(given, directory, why):
    with pytest.raises(HostPathError) as refused:
        commands.arguments(GUARDED, given, directory=directory)
    said = str(refused.value)
    assert f"is not safe, as this machine has a /data of its own, and {why}: " in said
    assert f'write @pytest.mark.fal(trusted_programs=["{given[0]}"])' in said
    commands.arguments(PLACE, given, directory=directory)  # there is none


def test_a_shell_on_a_machine_with_a_data_is_started_if_it_is_trusted():
    commands.arguments(GUARDED, "ls | wc -l", shell=True)
    with pytest.raises(HostPathError, match="would reach the host's own /data/a"):
        commands.arguments(GUARDED, "ls /data/a", shell=True)
    careful = Place(1, PLACE.areas, guarded=("/data",))
    with pytest.raises(HostPathError, match=r'trusted_programs=\["sh"\]'):
        commands.arguments(careful, "ls | wc -l", shell=True)


def test_a_python_keeps_its_sitecustomize(rewritten, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.mine = 1")
    rewritten.data.write("file", b"x")
    code = "import os; print(mine, open('/data/file').read(), os.environ.get('PYTHONPATH'))"
    printed = subprocess.check_output(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True
    )
    assert printed.split() == ["1", "x", str(tmp_path)]
    code = "import os, sitecustomize; print(os.environ.get('PYTHONPATH'))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["None"]


def test_a_script_for_python_is_led_as_python_is(rewritten, tmp_path):
    script = tmp_path / "tool"
    script.write_text(f"#!{sys.executable}\nprint(open('/data/file').read())\n")
    script.chmod(0o755)
    rewritten.data.write("file", b"x")
    assert subprocess.check_output([script], text=True) == "x\n"


def test_every_way_to_start_a_program(rewritten):
    rewritten.data.write("file", b"x")
    pid = os.posix_spawn("/bin/cp", ["cp", "/data/file", "/data/one"], os.environ)
    os.waitpid(pid, 0)
    child = os.fork()
    if child == 0:
        os.execv("/bin/cp", ["cp", "/data/file", "/data/two"])
    os.waitpid(child, 0)
    subprocess.call(["cp", "file", "three"], cwd="/data")
    os.system("true")
    with pytest.raises(HostPathError):
        os.system("cp /data/file /data/four")

    async def copy() -> None:
        process = await asyncio.create_subprocess_exec("cp", "/data/file", "/data/five")
        await process.wait()

    asyncio.run(copy())
    assert rewritten.data.tree() == ["file", "five", "one", "three", "two"]


# --- native code ----------------------------------------------------------------------------------

NATIVE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)

def imread(path, flags=0):
    "Reads a file as OpenCV does: with the C library."
    descriptor = libc.open(os.fsencode(path), os.O_RDONLY)
    if descriptor < 0:
        return None
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)

class VideoCapture:
    def __init__(self, path):
        self.content = imread(path)
    @staticmethod
    def fourcc():
        return 4
"""


def test_known_native_code_is_handed_real_paths(rewritten, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    (tmp_path / "cv2.py").write_text(NATIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    rewritten.data.write("picture", b"pixels")
    cv2 = importlib.import_module("cv2")
    assert cv2.imread("/data/picture") == b"pixels"
    assert cv2.imread(Path("/data/picture"), flags=1) == b"pixels"
    assert cv2.VideoCapture("/data/picture").content == b"pixels"
    assert isinstance(cv2.VideoCapture("/data/picture"), cv2.VideoCapture)
    assert cv2.VideoCapture.fourcc() == 4
    rewritten.stop()
    assert cv2.imread("/data/picture") is None
    assert type(cv2.VideoCapture("/data/picture")) is cv2.VideoCapture
    del sys.modules["cv2"]


def test_the_names_of_known_native_code_are_there():
    """Of those modules that are installed here."""
    missing = []
    for module, names in KNOWN.items():
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        for name in names:
            owner = found
            for step in name.split("."):
                owner = getattr(owner, step, None)
            if owner is None:
                missing.append(f"{module}.{name}")
    assert missing == []


def test_what_was_kept_from_before_is_refused(rewritten):
    rewritten.data.write("only-here", b"x")
    kept = places.outside
    with kept():
        real = os.stat  # looked up here, it is the substitute, which goes by its thread
        assert not os.path.exists("/data/only-here")
    assert real("/data").st_mode
    genuine = io.FileIO
    with pytest.raises(HostPathError) as refused:
        genuine("/data/file", "w")
    assert str(refused.value).startswith("open('/data/file') would reach the host's own /data/file")


def test_a_shared_library_that_is_led(rewritten):
    import _struct

    Path("/data/library.so").write_bytes(Path(_struct.__file__).read_bytes())
    assert ctypes.CDLL("/data/library.so")._name == "/data/library.so"


@pytest.mark.skipif(sys.platform != "linux", reason="by way of /proc/self/fd")
def test_a_socket_file_whose_real_path_is_too_long(rewritten):
    import socket

    folder = Path("/tmp", "x" * 40)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(folder / "socket"))
        server.listen()
        client.connect(str(folder / "socket"))
    assert rewritten.tmp.tree() == [f"{folder.name}/socket"]


# --- what cannot be had ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data", "tmp"])
def test_limits_are_refused(rewritten, name):
    volume = getattr(rewritten, name)
    with pytest.raises(FilesystemError, match=r"none on the rung 'rewrite'.*filesystem="):
        volume.limit(1 << 20)
    with pytest.raises(FilesystemError), volume.read_only():
        pass


def test_settings_that_are_mounts_are_refused(tmp_path):
    own = Emulator(Settings(filesystem="rewrite"))
    with pytest.raises(FilesystemError, match=r"The test needs data_size=4096 \(mounts, "):
        own.start(settings=Settings(filesystem="rewrite", data_size=4096))
    assert not own.active
    own.start()
    with pytest.raises(EmulatorError):
        own.start()
    own.stop()
    with pytest.raises(FilesystemError, match=r"needs filesystem='namespace', .* asked for"):
        own.start(settings=Settings(filesystem="namespace"))
    own.close()


def test_a_block_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(FilesystemError, match="data_size"):
        with Emulator(Settings(filesystem="rewrite", data_size=4096)):
            pass
    assert os.listdir(tmp_path) == []


def test_another_error_number_stays(rewritten):
    Path("/data/file").touch()
    with pytest.raises(OSError) as caught:
        os.listdir("/data/file")
    assert caught.value.errno == errno.ENOTDIR
