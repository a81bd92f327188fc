"""A runner killed at a point: of a request that it makes, or of a file that it writes."""

import os
import pathlib
import threading
import urllib.request

import fal
import pytest
from fal.toolkit import File, download_file
from fal.toolkit.utils.download_utils import DownloadError

from emulator.errors import EmulatorError
from emulator.runners.runner import RunnerError, StartupError

URL = "https://models.example.com/w.bin"
SIZE = 300_000
WEIGHTS = bytes(range(250)) * (SIZE // 250)


class Plain(fal.App):
    @fal.endpoint("/")
    def answer(self) -> dict:
        return {}


@pytest.fixture
def boot(fal_emulator):
    return lambda app=Plain: fal_emulator.runner(app, isolation="process")


def fetch():
    return download_file(URL, "/data/models")


def upload():
    return File.from_bytes(WEIGHTS, file_name="new.bin").url


def write_slowly():
    folder = pathlib.Path("/data/models")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "a.bin", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1000)


def partial_bytes(fal_data):
    return sum(os.lstat(fal_data.backing / rel).st_size for rel in fal_data.partial_files)


def test_in_the_middle_of_a_download(boot, fal_faults, fal_origin, fal_data, fal_ledger):
    fal_origin.serve(URL, content=WEIGHTS)
    fault = fal_faults.kill_runner(after=200_000, path="/w.bin")
    runner = boot()
    with pytest.raises(RunnerError) as caught:
        runner.run(fetch)
    assert str(caught.value) == (
        "runner-1 ended (killed: after 200000 bytes of the response, GET "
        "https://models.example.com/w.bin) before it answered run()"
    )
    assert runner.exit_code == -9
    assert 0 < partial_bytes(fal_data) <= 200_000
    assert len(fault.struck) == 1
    assert fal_ledger.exchanges[0].notes[0] == (
        "fault: runner killed after 200000 bytes of the response"
    )


def test_the_process_has_taken_in_all_that_came_before(boot, fal_faults, fal_origin, fal_data):
    fal_origin.serve(URL, content=WEIGHTS)
    sizes = set()
    for _ in range(3):
        fal_faults.kill_runner(after=200_000, path="/w.bin", times=1)
        with pytest.raises(RunnerError):
            boot().run(fetch)
        sizes.add(partial_bytes(fal_data))
        for rel in fal_data.partial_files:
            os.unlink(fal_data.backing / rel)
    assert len(sizes) == 1, "always the same: nobody was faster"


def test_before_anything_of_the_answer(boot, fal_faults, fal_origin, fal_data):
    fal_origin.serve(URL, content=WEIGHTS)
    fal_faults.kill_runner(path="/w.bin")
    with pytest.raises(RunnerError, match="after 0 bytes of the response"):
        boot().run(fetch)
    assert partial_bytes(fal_data) == 0


def test_after_all_of_a_body(boot, fal_faults, fal_cdn):
    fal_faults.kill_runner(after="body", of="request", method="PUT")
    with pytest.raises(RunnerError, match="after its body of the request"):
        boot().run(upload)
    assert fal_cdn.files == [], "the server has not handled it"


def test_when_the_server_has_handled_an_upload(boot, fal_faults, fal_cdn):
    fal_faults.kill_runner(method="PUT")
    with pytest.raises(RunnerError):
        boot().run(upload)
    assert [file.size for file in fal_cdn.files] == [len(WEIGHTS)]


def test_a_body_of_no_more_bytes_passes(boot, fal_faults, fal_origin, fal_data):
    fal_origin.serve(URL, content=WEIGHTS)
    fal_faults.kill_runner(after=len(WEIGHTS), path="/w.bin")
    boot().run(fetch)
    assert fal_data.read("models/w.bin") == WEIGHTS


def test_only_the_runner_that_is_named(boot, fal_faults, fal_origin):
    fal_origin.serve(URL, content=WEIGHTS)
    fal_faults.kill_runner(runner="runner-2", path="/w.bin")
    one, two = boot(), boot()
    one.run(fetch)
    with pytest.raises(RunnerError):
        two.run(fetch)
    assert (one.state, two.state) == ("IDLE", "TERMINATED")


def test_in_setup_it_is_a_startup_error(boot, fal_faults, fal_origin):
    class Loading(Plain):
        def setup(self):
            download_file(URL, "/data/models")

    fal_origin.serve(URL, content=WEIGHTS)
    fal_faults.kill_runner(after=1000, path="/w.bin", times=1)
    with pytest.raises(StartupError, match="killed: after 1000 bytes of the response"):
        boot(Loading)
    assert boot(Loading).state == "IDLE"


def test_at_a_gate_by_hand(boot, fal_faults, fal_origin, fal_data):
    fal_origin.serve(URL, content=WEIGHTS)
    gate = fal_faults.gate(after=100_000, path="/w.bin")
    runner, errors = boot(), []

    def call():
        try:
            runner.run(fetch)
        except RunnerError as error:
            errors.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    gate.wait()
    runner.kill()
    thread.join()
    assert errors == ["runner-1 ended (killed: by the test) before it answered run()"]
    assert "models/w.bin" not in fal_data.tree()


# --- at a file -----------------------------------------------------------------------------------


def test_when_a_file_is_there(boot, fal_faults, fal_data):
    fault = fal_faults.kill_runner(file="/data/models/*.bin", times=1)
    with pytest.raises(RunnerError, match=r"killed: at the file /data/models/a\.bin"):
        boot().run(write_slowly)
    assert fal_data.tree() == ["models/a.bin"]
    assert fault.count == 1


def test_when_a_file_has_so_many_bytes(boot, fal_faults, fal_data):
    fal_faults.kill_runner(file="/data/models/*.bin", after=50_000, times=1)
    with pytest.raises(RunnerError):
        boot().run(write_slowly)
    assert fal_data.size >= 50_000


def test_when_a_file_is_moved_to_its_place(boot, fal_faults, fal_data):
    def move():
        pathlib.Path("/data/a.tmp").write_bytes(b"whole")
        os.rename("/data/a.tmp", "/data/a.bin")
        threading.Event().wait()

    fal_faults.kill_runner(file="/data/a.bin", times=1)
    with pytest.raises(RunnerError):
        boot().run(move)
    assert fal_data.read("a.bin") == b"whole"


def test_a_file_in_tmp_costs_the_runner_whose_it_is(boot, fal_faults):
    def write():
        pathlib.Path("/tmp/scratch").write_bytes(b"x")
        threading.Event().wait()

    fal_faults.kill_runner(file="/tmp/scratch", times=1)
    one, two = boot(), boot()
    with pytest.raises(RunnerError, match="at the file /tmp/scratch"):
        one.run(write)
    assert two.state == "IDLE"


def test_a_file_that_is_there_already_strikes_at_once(boot, fal_faults, fal_data):
    fal_data.write("a.bin", b"x")
    runner = boot()
    fal_faults.kill_runner(file="/data/a.bin", times=1)
    with pytest.raises(RunnerError):
        runner.post("/")


# --- what makes no sense -------------------------------------------------------------------------


def test_a_runner_in_a_thread_cannot_be_killed_at_a_point(
    fal_runner, fal_faults, fal_origin, fal_ledger
):
    fal_origin.serve(URL, content=WEIGHTS)
    fal_faults.kill_runner(path="/w.bin")
    with pytest.raises(DownloadError):  # the SDK hides why; the report has it
        fal_runner(Plain).run(fetch)
    assert fal_ledger.exchanges[0].notes[-1] == (
        "kill_runner() cannot kill runner-1, a thread, at a point. Boot the app in a process: "
        'fal_runner(MyApp, isolation="process").'
    )


def test_the_test_itself_cannot_be_killed(fal_faults, fal_origin):
    fal_origin.serve(URL, content=WEIGHTS)
    fal_faults.kill_runner(path="/w.bin")
    with pytest.raises(EmulatorError, match="cannot kill the test itself, which is no runner"):
        urllib.request.urlopen(URL)


@pytest.mark.parametrize("path", ["models/a.bin", "/etc/passwd", "/data"])
def test_a_file_outside_of_the_volumes_is_refused(fal_faults, path):
    with pytest.raises(EmulatorError) as caught:
        fal_faults.kill_runner(file=path)
    assert str(caught.value) == (
        f"kill_runner(file={path!r}) takes a path in /data or /tmp as an app has it, for example "
        'file="/data/models/*.bin".'
    )


def test_a_matcher_of_requests_beside_a_file_is_refused(fal_faults):
    with pytest.raises(EmulatorError) as caught:
        fal_faults.kill_runner(file="/data/*", method="PUT")
    assert str(caught.value) == (
        "kill_runner(file=...) strikes at a file, not at a request: leave method out, and write "
        'for example kill_runner(file="/data/models/*", runner="runner-2").'
    )
