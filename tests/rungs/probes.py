"""Fidelity probes: what an app may do with ``/data`` and ``/tmp``, tried on one rung.

``python tests/rungs/probes.py RUNG`` tries all of them and prints one JSON object: by the name of
the probe, what came of it. ``tests/test_rungs.py`` says what has to come of it.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent.parent), str(Path(__file__).parent.parent)]

from emulator import Emulator, Settings  # noqa: E402
from emulator.errors import FilesystemError, HostPathError  # noqa: E402
from emulator.storage.volume import Volume  # noqa: E402

#: What may come of a probe.
WORKS = "works"
LED = "works; the program sees where the volume really is"
REFUSED = "refused, with the reason"
UNSEEN = "**not led**: it meets the host's path"

Probe = Callable[[Emulator], str]
PROBES: dict[str, tuple[str, Probe]] = {}


def probe(statement: str) -> Callable[[Probe], Probe]:
    def register(function: Probe) -> Probe:
        PROBES[function.__name__] = (statement, function)
        return function

    return register


def main(rung: str) -> None:
    outcomes = {}
    for name, (_, function) in PROBES.items():
        with Emulator(Settings(filesystem=rung)) as fal:  # type: ignore[arg-type]
            try:
                outcomes[name] = function(fal)
            except (HostPathError, FilesystemError) as error:
                outcomes[name] = REFUSED if "namespace" in str(error) else repr(error)
            except Exception as error:
                outcomes[name] = repr(error)
    print(json.dumps(outcomes))


def run(fal: Emulator, app: type, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return fal.runner(app, **options).run(function, *args)


def failing(function: Callable[..., Any], *args: Any) -> OSError:
    """The error that a call has to raise."""
    try:
        function(*args)
    except OSError as error:
        return error
    raise AssertionError("it did not fail")


def make_app() -> type:
    import fal

    class Empty(fal.App):
        @fal.endpoint("/")
        def ask(self) -> str:
            return "here"

    return Empty


# --- Python's own calls ---------------------------------------------------------------------------


@probe("Python reads, writes, renames and removes files")
def files(fal: Emulator) -> str:
    path = Path("/data/models/a.bin")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    with open("/data/models/a.bin", "ab") as file:
        file.write(b"!")
        assert file.name == "/data/models/a.bin"
    os.replace("/data/models/a.bin", "/data/models/b.bin")
    assert os.path.getsize("/data/models/b.bin") == 8
    assert fal.data.read("models/b.bin") == b"weights!"
    os.unlink("/data/models/b.bin")
    error = failing(open, "/data/models/b.bin")
    assert (error.errno, error.filename) == (errno.ENOENT, "/data/models/b.bin")
    return WORKS


@probe("Python lists, walks, copies and removes whole trees")
def trees(fal: Emulator) -> str:
    for name in ("a/1", "a/2", "a/b/3"):
        fal.data.write(f"tree/{name}", name)
    assert [path for path, _, _ in os.walk("/data/tree")] == [
        "/data/tree",
        "/data/tree/a",
        "/data/tree/a/b",
    ]
    assert sorted(glob.glob("/data/tree/a/*")) == [f"/data/tree/a/{name}" for name in "12b"]
    assert sorted(map(str, Path("/data").rglob("3"))) == ["/data/tree/a/b/3"]
    assert {entry.path for entry in os.scandir("/data/tree")} == {"/data/tree/a"}
    shutil.copytree("/data/tree", "/tmp/copy")
    shutil.rmtree("/data/tree")
    assert fal.data.tree() == []
    assert fal.tmp.tree() == ["copy/a/1", "copy/a/2", "copy/a/b/3"]
    return WORKS


@probe("links, relative and absolute, and paths with `..`")
def links(fal: Emulator) -> str:
    fal.data.write("a/file", "x")
    os.symlink("/data/a", "/data/absolute")
    os.symlink("../a/file", "/data/a/relative")
    os.symlink("../data/a/file", "/tmp/over")
    assert os.readlink("/data/absolute") == "/data/a"
    assert os.path.realpath("/data/absolute/relative") == "/data/a/file"
    for path in ("/data/absolute/file", "/data/a/relative", "/tmp/over", "/data/b/../a/file"):
        if ".." in path:
            os.mkdir("/data/b")
        assert Path(path).read_text() == "x", path
    os.link("/data/a/file", "/data/hard")
    assert os.path.samefile("/data/hard", "/data/a/file")
    return WORKS


@probe("the working directory in a volume, and `/data` in `/`")
def working_directory(fal: Emulator) -> str:
    before = os.getcwd()
    os.chdir("/data")
    try:
        Path("here").write_text("x")
        assert os.getcwd() == str(Path.cwd()) == "/data"
        assert os.path.abspath("here") == "/data/here"
        assert os.listdir() == ["here"]
        assert Path("../data/here").read_text() == "x"
        assert "data" in os.listdir("/")
    finally:
        os.chdir(before)
    assert fal.data.tree() == ["here"]
    return WORKS


@probe("a rename from one volume to another fails with EXDEV")
def cross_device(fal: Emulator) -> str:
    Path("/tmp/file").write_text("x")
    error = failing(os.rename, "/tmp/file", "/data/file")
    assert error.errno == errno.EXDEV
    assert (error.filename, error.filename2) == ("/tmp/file", "/data/file")
    shutil.move("/tmp/file", "/data/file")
    assert fal.data.read("file") == b"x"
    return WORKS


@probe("times of files follow the clock")
def file_times(fal: Emulator) -> str:
    fal.clock.freeze()
    Path("/data/old").write_text("x")
    fal.clock.advance(timedelta(days=3))
    Path("/data/new").write_text("x")
    times = [Path(f"/data/{name}").stat().st_mtime for name in ("old", "new")]
    entries = {entry.name: entry.stat().st_mtime for entry in os.scandir("/data")}
    assert round(times[1] - times[0]) == 3 * 86400
    assert (entries["old"], entries["new"]) == (times[0], times[1])
    return WORKS


# --- what the kernel alone can do -----------------------------------------------------------------


@probe("a full disk: `limit()`, `data_size`")
def disk_full(fal: Emulator) -> str:
    fal.data.limit(1 << 20)
    assert failing(Path("/data/big").write_bytes, bytes(2 << 20)).errno == errno.ENOSPC
    return WORKS


@probe("a volume that is read-only: `read_only()`")
def read_only(fal: Emulator) -> str:
    with fal.data.read_only():
        assert failing(Path("/data/file").write_text, "x").errno == errno.EROFS
    return WORKS


@probe("a `/data` that differs between runners: `data_visibility`, `data_locks`, latencies")
def differing_data(fal: Emulator) -> str:
    rung = fal.settings.filesystem_in_force
    fal.stop()
    fal.start(settings=Settings(filesystem=rung, data_visibility="staged"))
    return str(run(fal, make_app(), _write_and_say))


def _write_and_say() -> str:
    Path("/data/file").write_text("x")
    return WORKS


# --- programs -------------------------------------------------------------------------------------


@probe("a program that is given a path of `/data`")
def program(fal: Emulator) -> str:
    return _give(fal.data, "/data")


@probe("a program that is given a path of `/tmp`")
def program_tmp(fal: Emulator) -> str:
    return _give(fal.tmp, "/tmp")


def _give(volume: Volume, path: str) -> str:
    volume.write("file", "x")
    subprocess.run(["cp", f"{path}/file", f"{path}/copy"], check=True)
    assert volume.read("copy") == b"x"
    seen = subprocess.check_output(["echo", f"{path}/file"], text=True).strip()
    return WORKS if seen == f"{path}/file" else LED


@probe("a line for a shell that has a path of `/data` in it")
def shell(fal: Emulator) -> str:
    fal.data.write("file", "x")
    assert subprocess.check_output("cat /data/file", shell=True) == b"x"
    return WORKS


@probe("a line for a shell that has a path of `/tmp` in it")
def shell_tmp(fal: Emulator) -> str:
    fal.tmp.write("file", "x")
    assert subprocess.check_output("cat /tmp/file", shell=True) == b"x"
    return WORKS


@probe("a program that knows a path of `/data` by itself")
def script(fal: Emulator) -> str:
    return _know(fal.data, "/data/file")


@probe("a program that knows a path of `/tmp` by itself")
def script_tmp(fal: Emulator) -> str:
    return _know(fal.tmp, "/tmp/file")


def _know(volume: Volume, path: str) -> str:
    volume.write("file", "x")
    program = volume.write("script", f"#!/bin/sh\nexec cat {path}\n")
    (volume.backing / "script").chmod(0o755)
    ended = subprocess.run([str(program)], capture_output=True, text=True)
    return WORKS if ended.stdout == "x" else UNSEEN


@probe("another Python, and a worker of multiprocessing")
def python(fal: Emulator) -> str:
    fal.data.write("file", "x")
    code = "import pathlib; print(pathlib.Path('/data/file').read_text())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "x\n"
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(Path.read_text, (Path("/data/file"),)) == "x"
    return WORKS


@probe("`git clone` into a volume")
def git(fal: Emulator) -> str:
    fal.git.serve("https://github.com/org/repo.git", {"model.py": "x = 1\n"})
    url = "https://github.com/org/repo.git"
    subprocess.run(["git", "clone", "-q", url, "/data/repo"], check=True)
    assert fal.data.read("repo/model.py") == b"x = 1\n"
    return WORKS


# --- native code ----------------------------------------------------------------------------------


@probe("native code that is known to open files: sqlite, numpy, safetensors")
def native(fal: Emulator) -> str:
    import numpy
    from safetensors.numpy import load_file, save_file

    with sqlite3.connect("/tmp/a.db") as database:
        database.execute("create table t (a)")
    database.close()
    assert "a.db" in fal.tmp.tree()
    numpy.arange(4, dtype="u1").tofile("/data/array")
    assert numpy.memmap("/data/array", dtype="u1", mode="r").sum() == 6
    save_file({"a": numpy.ones(2)}, "/data/model.safetensors")
    assert load_file("/data/model.safetensors")["a"].sum() == 2
    return WORKS


@probe("any other native code, which calls the C library itself")
def unknown_native(fal: Emulator) -> str:
    fal.data.write("file", "x")
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.open(b"/data/file", os.O_RDONLY)
    if descriptor < 0:
        return UNSEEN
    os.close(descriptor)
    return WORKS


@probe("modules and shared libraries that lie in a volume")
def modules(fal: Emulator) -> str:
    fal.data.write("repo/fal_probe_module.py", "from pathlib import Path\nHERE = __file__\n")
    sys.path.insert(0, "/data/repo")
    try:
        import fal_probe_module

        assert fal_probe_module.HERE == "/data/repo/fal_probe_module.py"
    finally:
        sys.path.remove("/data/repo")
        sys.modules.pop("fal_probe_module", None)
    import _struct

    shutil.copy(_struct.__file__, "/data/library.so")
    ctypes.CDLL("/data/library.so")
    return WORKS


@probe("a socket file in a volume")
def socket_file(fal: Emulator) -> str:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("/tmp/server.sock")
        server.listen()
        client.connect("/tmp/server.sock")
    assert fal.tmp.tree() == ["server.sock"]
    return WORKS


# --- runners --------------------------------------------------------------------------------------


@probe("a `/tmp` of its own for each runner, its threads and programs")
def private_tmp(fal: Emulator) -> str:
    app = make_app()
    one, two = fal.runner(app), fal.runner(app)
    one.run(_leave_traces)
    assert one.tmp.tree() == ["from-a-program", "from-a-thread", "from-python"]
    assert two.tmp.tree() == fal.tmp.tree() == []
    assert not two.run(os.path.exists, "/tmp/from-python")
    one.stop()
    assert one.tmp.tree() == []
    return WORKS


def _leave_traces() -> None:
    import threading

    Path("/tmp/from-python").touch()
    thread = threading.Thread(target=Path("/tmp/from-a-thread").touch)
    thread.start()
    thread.join()
    subprocess.run(["touch", "/tmp/from-a-program"], check=True)


@probe('runners in processes: `isolation="process"`')
def processes(fal: Emulator) -> str:
    fal.data.write("file", "x")
    runner = fal.runner(make_app(), isolation="process")
    assert runner.run(_read_and_write) == "x"
    assert runner.tmp.tree() == ["mine"]
    assert fal.tmp.tree() == []
    assert runner.get("/").status_code in (200, 405)
    return WORKS


def _read_and_write() -> str:
    Path("/tmp/mine").touch()
    return Path("/data/file").read_text()


@probe("a pretended GPU: the runner's own `nvidia-smi`")
def pretended_gpu(fal: Emulator) -> str:
    app = make_app()
    with_gpu, without = fal.runner(app, gpu="H100"), fal.runner(app)
    assert "H100" in with_gpu.run(_nvidia_smi)
    assert without.run(shutil.which, "nvidia-smi") is None
    return WORKS


def _nvidia_smi() -> str:
    return subprocess.check_output(["nvidia-smi", "-L"], text=True)


@probe("the toolkit: downloads, uploads, clones, `fal files`")
def toolkit(fal: Emulator) -> str:
    from fal.toolkit import File, clone_repository, download_file

    fal.origin.serve("https://example.com/model.bin", b"weights")
    fal.git.serve("https://github.com/org/repo.git", {"model.py": "x = 1\n"})
    assert download_file("https://example.com/model.bin", target_dir="models").is_file()
    assert (clone_repository("https://github.com/org/repo.git") / "model.py").is_file()
    assert fal.cdn.get(File.from_path("/data/models/model.bin").url) == b"weights"
    return WORKS


if __name__ == "__main__":
    main(sys.argv[1])
