"""Runners in processes: how the app gets there, what it shares with the test, how it ends."""

import gc
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import datetime, timedelta, timezone
from time import sleep

import fal
import httpx
import pytest
from fal.ref import get_current_app
from fal.toolkit import File, download_file
from fastapi import WebSocket

from emulator.errors import EmulatorError, UnknownHostError
from emulator.runners.runner import RunnerError, StartupError
from pytest_fal.leftovers import Snapshot

counter = [0]


class Plain(fal.App):
    @fal.endpoint("/")
    def answer(self) -> dict:
        counter[0] += 1
        return {"pid": os.getpid(), "count": counter[0], "time": time.time()}


@pytest.fixture
def boot(fal_emulator):
    return lambda app=Plain, **options: fal_emulator.runner(app, isolation="process", **options)


# --- a process of its own ------------------------------------------------------------------------


def test_it_is_another_process_and_the_test_knows_its_id(boot):
    runner = boot()
    assert runner.post("/").json()["pid"] == runner.pid != os.getpid()


def test_several_at_once_each_have_the_port_8080_and_globals_of_their_own(boot):
    one, two = boot(), boot()
    one.post("/")
    assert one.post("/").json()["count"] == 2
    assert two.post("/").json()["count"] == 1
    assert one.port != two.port


def test_runners_in_processes_can_have_different_values_of_a_variable(boot):
    one, two = boot(env={"MODE": "a"}), boot(env={"MODE": "b"})
    assert [r.run(lambda: os.environ["MODE"]) for r in (one, two)] == ["a", "b"]
    assert "MODE" not in os.environ


def test_the_app_itself_finds_its_server_on_8080(boot):
    def ask():
        return urllib.request.urlopen("http://127.0.0.1:8080/health").read()

    assert boot().run(ask) == b'{"version":"unknown"}'


def test_its_server_listens_on_the_loopback_only(boot):
    runner = boot()
    with open("/proc/net/tcp") as file:
        listening = [line.split()[1] for line in file if line.split()[3] == "0A"]
    assert f"0100007F:{runner.port:04X}" in listening
    assert f"00000000:{runner.port:04X}" not in listening


class Failing(fal.App):
    @fal.endpoint("/")
    def fail(self) -> str:
        raise ValueError("no")


def test_a_request_right_after_an_exception_is_no_end_of_the_runner(boot):
    runner = boot(Failing)
    answers = [runner.post("/", json={}).status_code for _ in range(60)]
    assert answers == [500] * 60


def test_metrics_are_served_on_9090_as_on_the_platform(boot):
    def ask():
        return urllib.request.urlopen("http://127.0.0.1:9090/metrics").read()

    assert b"fal_app_info" in boot().run(ask)


def test_an_app_under_a_clients_own_port(boot):
    assert httpx.post(f"http://127.0.0.1:{boot().port}/").status_code == 200


def test_curl_reaches_it(boot):
    url = f"http://127.0.0.1:{boot().port}/health"
    done = subprocess.run(["curl", "-s", url], capture_output=True, check=True)
    assert done.stdout == b'{"version":"unknown"}'


# --- how the app gets there ----------------------------------------------------------------------


def test_a_class_of_a_test_goes_by_value_with_what_it_refers_to(boot):
    greeting = ["hello"]

    class Local(fal.App):
        @fal.endpoint("/")
        def answer(self) -> dict:
            return {"said": greeting}

    assert boot(Local).post("/").json() == {"said": ["hello"]}


def test_pickling_an_app_leaves_the_sdks_settings_and_the_class_alone(boot):
    import cloudpickle

    before = set(cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES)
    options = dict(Plain.host_kwargs)
    boot()
    assert before == cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES
    assert options == Plain.host_kwargs


def test_an_app_that_cannot_be_pickled_is_refused_with_a_way_out(boot):
    generator = (number for number in ())

    class Unpicklable(fal.App):
        @fal.endpoint("/")
        def answer(self) -> dict:
            return {"numbers": list(generator)}

    with pytest.raises(EmulatorError) as caught:
        boot(Unpicklable)
    assert str(caught.value).startswith(
        "Unpicklable cannot be pickled, as `fal run` and `fal deploy` do to send it to the platform"
    )
    assert 'load="import"' in str(caught.value)


def test_an_app_can_be_imported_by_the_process(boot, tmp_path, monkeypatch):
    (tmp_path / "my_app.py").write_text(
        "import fal\n"
        "class MyApp(fal.App):\n"
        "    @fal.endpoint('/')\n"
        "    def answer(self) -> dict:\n"
        "        return {'module': __name__, 'file': __file__}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_app

    try:
        answer = boot(my_app.MyApp, load="import").post("/").json()
    finally:
        del sys.modules["my_app"]
    assert answer == {"module": "my_app", "file": str(tmp_path / "my_app.py")}


def test_what_no_process_can_import_is_refused(boot):
    class Local(fal.App):
        @fal.endpoint("/")
        def answer(self) -> dict:
            return {}

    with pytest.raises(EmulatorError) as caught:
        boot(Local, load="import")
    assert str(caught.value) == (
        'load="import": Local is defined inside a function or script (test_process_runner:'
        "test_what_no_process_can_import_is_refused.<locals>.Local), where no process can import "
        'it from. Move it to a module, or write load="pickle".'
    )


def test_another_way_to_load_is_refused(boot):
    with pytest.raises(EmulatorError, match=re.escape('load="pickle" or load="import"')):
        boot(load="copy")


# --- functions of the test's ---------------------------------------------------------------------


class Answer:
    def __init__(self, value):
        self.value = value

    def doubled(self):
        return self.value * 2


class OddError(Exception):
    pass


def test_a_result_is_of_the_tests_own_class(boot):
    before = Answer.doubled
    answer = boot().run(lambda: Answer(21))
    assert type(answer) is Answer
    assert answer.doubled() == 42
    assert Answer.doubled is before


def test_an_exception_is_of_the_tests_own_class(boot):
    def fail():
        raise OddError("odd")

    with pytest.raises(OddError, match="odd"):
        boot().run(fail)


def test_a_result_of_the_sdks_leaves_the_sdks_classes_alone(boot):
    before = File.from_bytes.__func__
    file = boot().run(lambda: File.from_bytes(b"x", file_name="x.bin"))
    assert type(file) is File
    assert File.from_bytes.__func__ is before


def test_what_cannot_be_sent_says_so(boot):
    runner = boot()
    generator = (number for number in ())
    with pytest.raises(RunnerError) as caught:
        runner.run(lambda: list(generator))
    assert "cannot be sent to the process of runner-1" in str(caught.value)


def test_a_result_that_cannot_be_pickled_says_so(boot):
    with pytest.raises(Exception, match="pickle"):
        boot().run(lambda: (number for number in ()))


def test_the_current_app_is_the_app_while_a_function_runs(boot):
    class Named(Plain):
        name = "mine"

    assert boot(Named).run(lambda: get_current_app().name) == "mine"


# --- the network ---------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_the_line_to_write(boot, fal_ledger):
    def ask():
        httpx.get("https://nowhere.example.com/x")

    with pytest.raises(httpx.ConnectError) as caught:
        boot().run(ask)
    assert "fal_origin.serve" in str(caught.value)
    assert any("nowhere.example.com" in problem for problem in fal_ledger.problems)


def test_a_literal_address_is_refused(boot):
    def ask():
        import socket

        socket.create_connection(("203.0.113.7", 80), timeout=1)

    with pytest.raises(UnknownHostError):
        boot().run(ask)


def test_a_download_is_served_over_tls_and_named_after_its_runner(boot, fal_origin, fal_ledger):
    fal_origin.serve("https://models.example.com/w.bin", content=b"weights")
    runner = boot()

    def fetch():
        return download_file("https://models.example.com/w.bin", "/data/models").read_bytes()

    assert runner.run(fetch) == b"weights"
    (exchange,) = fal_ledger.requests(host="models.example.com")
    assert (exchange.runner, exchange.client) == ("runner-1", "wire")


def test_a_users_own_route_answers_a_process(boot, fal_http):
    fal_http.get("https://api.example.com/x").respond(json={"mine": True})
    assert boot().run(lambda: httpx.get("https://api.example.com/x").json()) == {"mine": True}


def test_a_time_out_strikes_a_process_without_waiting(boot, fal_faults, fal_origin):
    fal_origin.serve("https://models.example.com/w.bin", content=b"weights")
    fal_faults.timeout(path="/w.bin")

    def ask():
        urllib.request.urlopen("https://models.example.com/w.bin", timeout=3600)

    with pytest.raises(TimeoutError):
        boot().run(ask)


def test_faults_strike_the_runner_they_are_for(boot, fal_faults, fal_origin):
    fal_origin.serve("https://models.example.com/w.bin", content=b"weights")
    one, two = boot(), boot()
    fal_faults.dns_failure(host="models.example.com", runner=two)

    def ask():
        return httpx.get("https://models.example.com/w.bin").content

    assert one.run(ask) == b"weights"
    with pytest.raises(httpx.ConnectError, match="Name or service not known"):
        two.run(ask)


def test_a_gate_holds_a_process(boot, fal_faults, fal_origin):
    fal_origin.serve("https://models.example.com/w.bin", content=b"weights")
    gate = fal_faults.gate(path="/w.bin")
    runner, answers = boot(), []

    def ask():
        return httpx.get("https://models.example.com/w.bin").content

    thread = threading.Thread(target=lambda: answers.append(runner.run(ask)))
    thread.start()
    assert gate.wait().runner == "runner-1"
    assert answers == []
    gate.open()
    thread.join()
    assert answers == [b"weights"]


@pytest.mark.parametrize("client", ["urllib3", "aiohttp"])
def test_other_clients_are_served_too(boot, fal_origin, client):
    fal_origin.serve("https://models.example.com/w.bin", content=b"weights")

    def ask_urllib3():
        import urllib3

        return urllib3.PoolManager().request("GET", "https://models.example.com/w.bin").data

    async def ask_aiohttp():
        import aiohttp

        async with aiohttp.ClientSession() as session:
            async with session.get("https://models.example.com/w.bin") as response:
                return await response.read()

    assert boot().run(ask_urllib3 if client == "urllib3" else ask_aiohttp) == b"weights"


# --- the clock -----------------------------------------------------------------------------------


def test_a_moved_clock_is_moved_for_a_process_at_once(boot, fal_clock):
    runner = boot()
    fal_clock.freeze()
    for days in (1, 30, -5):
        fal_clock.move_to(fal_clock.now() + timedelta(days=days))
        assert runner.post("/").json()["time"] == pytest.approx(fal_clock.now().timestamp())
    fal_clock.resume()
    assert abs(runner.post("/").json()["time"] - time.time()) < 10


class ByName(fal.App):
    """Has taken over names from modules; they come by pickle, into globals that are no module's."""

    @fal.endpoint("/")
    def now(self) -> float:
        return datetime.now(timezone.utc).timestamp()

    @fal.endpoint("/sleep")
    def sleep(self) -> None:
        sleep(600)


def test_names_that_an_app_has_imported_mean_the_clock_too(boot, fal_clock):
    runner = boot(ByName)
    fal_clock.advance(days=30)
    assert runner.post("/").json() == pytest.approx(fal_clock.now().timestamp(), abs=5)
    fal_clock.freeze()
    assert runner.post("/").json() == pytest.approx(fal_clock.now().timestamp())
    start = fal_clock.now()
    runner.post("/sleep")
    assert (fal_clock.now() - start).total_seconds() == 600


class Frozen(ByName):
    def setup(self):
        gc.freeze()  # as apps do that fork workers


def test_an_app_that_freezes_its_objects_follows_the_clock(boot, fal_clock):
    runner = boot(Frozen)
    fal_clock.advance(days=30)
    assert runner.post("/").json() == pytest.approx(fal_clock.now().timestamp(), abs=5)


def test_a_process_that_boots_on_a_stopped_clock_sees_it_from_the_start(boot, fal_clock):
    class Early(fal.App):
        def setup(self):
            self.at = time.time()

        @fal.endpoint("/")
        def answer(self) -> dict:
            return {"at": self.at}

    fal_clock.freeze()
    fal_clock.advance(days=100)
    assert boot(Early).post("/").json()["at"] == pytest.approx(fal_clock.now().timestamp())


def test_an_app_that_refers_to_the_sdks_console_boots_on_a_stopped_clock(pytester):
    """It goes by value with what it names of the SDK, whose console has kept the real time.

    In a process of its own: with all of the SDK loaded, such an app cannot be pickled at all.
    """
    pytester.makepyfile(
        """
        import fal

        class Refusing(fal.App):
            @fal.endpoint("/")
            def refuse(self) -> dict:
                raise fal.exceptions.AppException("no", 418)

        def test_it(fal_runner, fal_clock):
            fal_clock.freeze()
            assert fal_runner(Refusing, isolation="process").post("/").status_code == 418
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_a_sleep_in_a_process_moves_the_stopped_clock(boot, fal_clock):
    async def doze():
        import asyncio

        await asyncio.sleep(3600)

    runner = boot()
    fal_clock.freeze()
    start = fal_clock.now()
    runner.run(lambda: time.sleep(100))
    runner.run(doze)
    assert (fal_clock.now() - start).total_seconds() == 3700


def test_a_sleep_in_a_process_keeps_the_tests_appointments(boot, fal_clock):
    fal_clock.freeze()
    called = []
    fal_clock.on(60, lambda: called.append(fal_clock.now()))
    start = fal_clock.now()
    boot().run(lambda: time.sleep(100))
    assert [(moment - start).total_seconds() for moment in called] == [60]


def test_file_times_follow_the_clock_in_a_process(boot, fal_clock, fal_data):
    runner = boot()
    fal_data.write("old", b"1")
    fal_clock.freeze()
    fal_clock.advance(days=3)
    runner.run(lambda: pathlib.Path("/data/new").write_text("2"))

    def times():
        return [os.stat(f"/data/{name}").st_mtime for name in ("old", "new")]

    old, new = runner.run(times)
    assert round((new - old) / 86400) == 3
    assert times() == [old, new]


def test_times_that_were_set_by_hand_are_the_same_in_both(boot, fal_clock, fal_data):
    runner = boot()
    fal_clock.freeze()
    fal_clock.advance(days=100)
    fal_data.write("aged", b"1")
    fal_data.age("aged", timedelta(days=50))  # a time it never showed
    assert runner.run(lambda: os.stat("/data/aged").st_mtime) == os.stat("/data/aged").st_mtime

    def touch(moment):
        pathlib.Path("/data/touched").touch()
        os.utime("/data/touched", (moment, moment))

    moment = fal_clock.now().timestamp() - 20 * 86400
    runner.run(touch, moment)
    assert os.stat("/data/touched").st_mtime == pytest.approx(moment)


def test_functions_that_a_moved_clock_replaces_can_be_sent(boot, fal_clock, fal_data):
    runner = boot()
    fal_clock.freeze()
    fal_clock.advance(days=9)
    fal_data.write("a", b"1")
    moment = (fal_clock.now() - timedelta(days=3)).timestamp()
    runner.run(os.utime, "/data/a", (moment, moment))
    assert runner.run(os.stat, "/data/a").st_mtime == os.stat("/data/a").st_mtime
    assert os.stat("/data/a").st_mtime == pytest.approx(moment)
    assert runner.run(time.time) == pytest.approx(fal_clock.now().timestamp())


# --- its end -------------------------------------------------------------------------------------


class Crashing(fal.App):
    @fal.endpoint("/segfault")
    def segfault(self) -> dict:
        os.kill(os.getpid(), signal.SIGSEGV)
        return {}

    @fal.endpoint("/exit")
    def exit(self) -> dict:
        print("about to leave")
        os._exit(3)

    @fal.endpoint("/spawn")
    def spawn(self) -> list[int]:
        # Many, as a signal takes a moment to be obeyed.
        sleeps = [subprocess.Popen(["sleep", "1000"], start_new_session=True) for _ in range(30)]
        return [sleep.pid for sleep in sleeps]

    def teardown(self):
        pathlib.Path("/data/teardown").touch()


@pytest.mark.parametrize(
    ("path", "code", "how"), [("/segfault", -11, "by SIGSEGV"), ("/exit", 3, "with exit code 3")]
)
def test_a_crash_loses_the_request_and_says_how_it_ended(boot, fal_ledger, path, code, how):
    runner = boot(Crashing)
    with pytest.raises(RunnerError) as caught:
        runner.post(path)
    assert str(caught.value) == (
        f"runner-1 ended (crashed: its process ended {how}) before it answered POST {path}"
    )
    assert (runner.state, runner.exit_code) == ("TERMINATED", code)
    assert f"runner-1 crashed: its process ended {how}" in [e.text for e in fal_ledger.events]


def test_what_was_printed_before_a_crash_is_in_the_output(boot):
    runner = boot(Crashing)
    with pytest.raises(RunnerError):
        runner.post("/exit")
    assert "about to leave" in runner.output


def test_a_crash_between_requests_is_noticed_by_the_next_one(boot):
    runner = boot(Crashing)
    os.kill(runner.pid, signal.SIGKILL)
    with pytest.raises(RunnerError, match="by SIGKILL"):
        runner.post("/exit")


def test_what_the_app_started_ends_with_it(boot):
    runner = boot(Crashing)
    pids = runner.post("/spawn").json()
    runner.kill()
    assert [pid for pid in pids if _lives(pid)] == []


def test_a_crash_in_setup_is_a_startup_error_with_what_was_printed(boot):
    class Crashes(fal.App):
        def setup(self):
            print("loading the model")
            os._exit(7)

        @fal.endpoint("/")
        def answer(self) -> dict:
            return {}

    with pytest.raises(StartupError) as caught:
        boot(Crashes)
    assert str(caught.value) == (
        "runner-1 did not come up: Crashes ended before its setup() was over (crashed: its process "
        "ended with exit code 7). The last that it printed:\nloading the model"
    )


def test_sigterm_from_outside_shuts_it_down_in_order(boot, fal_data):
    runner = boot(Crashing)
    os.kill(runner.pid, signal.SIGTERM)
    while runner.state != "TERMINATED":
        pass
    assert fal_data.tree() == ["teardown"]


@pytest.mark.fal(termination_grace_period=0.2)
def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period(boot):
    class Stubborn(fal.App):
        @fal.endpoint("/")
        def answer(self) -> dict:
            return {}

        def teardown(self):
            threading.Event().wait()

    runner = boot(Stubborn)
    runner.stop()
    assert runner.end == "killed: not ended 0.2 s after SIGTERM"
    assert runner.exit_code == -signal.SIGKILL


def test_a_stopped_runner_ends_by_sigterm_as_uvicorn_leaves_it(boot):
    runner = boot()
    runner.stop()
    assert (runner.end, runner.exit_code) == (None, -signal.SIGTERM)


def test_the_fork_server_is_started_again_if_it_was_lost(boot, fal_emulator):
    runner = boot()
    os.kill(fal_emulator.fork_server, signal.SIGKILL)
    while runner.state != "TERMINATED":
        pass
    assert boot().post("/").status_code == 200


def test_nothing_of_200_runners_is_left(boot, fal_emulator):
    boot().stop()
    before = Snapshot.take()
    for _ in range(199):
        boot().stop()
    assert before.leaks_since() == []
    pid = fal_emulator.fork_server
    assert pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""


# --- what a person sees --------------------------------------------------------------------------


APP = """
import fal

class Printing(fal.App):
    @fal.endpoint("/")
    def answer(self) -> dict:
        print("in the process")
        return {"twice": twice(21)}


def twice(number):
    if number < 0:
        return 0
    return 2 * number
"""


def test_a_failing_test_shows_what_the_app_printed(pytester):
    pytester.makepyfile(
        APP
        + """
def test_it(fal_runner):
    assert fal_runner(Printing, isolation="process").post("/").json() == {"twice": 43}
"""
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Captured stdout call*", "*in the process*"])
    assert "Started server process" not in result.stdout.str()


@pytest.mark.parametrize("load", ["pickle", "import"])
def test_the_code_in_a_process_is_measured(pytester, load):
    pytester.makepyfile(
        printing=APP,
        test_it=f"""
from printing import Printing

def test_it(fal_runner):
    runner = fal_runner(Printing, isolation="process", load="{load}")
    assert runner.post("/").json() == {{"twice": 42}}
""",
    )
    result = pytester.runpytest_subprocess(
        "-p", "no:randomly", "--cov=printing", "--cov-report=term-missing"
    )
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r"printing\.py\s+10\s+1\s+90%\s+12"])


def test_it_works_in_parallel(pytester):
    pytester.makepyfile(
        APP
        + """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_it(fal_runner, number):
    assert fal_runner(Printing, isolation="process").post("/").json() == {"twice": 42}
"""
    )
    result = pytester.runpytest_subprocess("-p", "xdist", "-n", "2")
    result.assert_outcomes(passed=4)


def test_nothing_is_left_when_pytest_is_killed(pytester):
    pytester.makepyfile(
        APP
        + """
import os, signal

def test_it(fal_runner, fal_emulator):
    runner = fal_runner(Printing, isolation="process")
    with open("pids", "w") as file:
        file.write(f"{runner.pid} {fal_emulator.fork_server}")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    pids = (pytester.path / "pids").read_text().split()
    deadline = time.monotonic() + 10
    while any(_lives(pid) for pid in pids) and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert [pid for pid in pids if _lives(pid)] == []


def _lives(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- processes that it forks ---------------------------------------------------------------------


class Pooling(fal.App):
    def setup(self):
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        context = multiprocessing.get_context("fork")
        self.pool = ProcessPoolExecutor(2, mp_context=context)

    @fal.endpoint("/")
    def fetch(self) -> dict:
        return self.pool.submit(fetched).result(timeout=30)

    @fal.endpoint("/time")
    def time(self) -> dict:
        return self.pool.submit(told).result(timeout=30)

    def teardown(self):
        self.pool.shutdown()


def fetched():
    return {"pid": os.getpid(), "got": httpx.get("https://models.example.com/w").text}


def told():
    return {"time": time.time()}


def test_a_worker_that_the_app_forks_reaches_what_the_app_does(boot, fal_origin, fal_ledger):
    fal_origin.serve("https://models.example.com/w", content=b"weights")
    runner = boot(Pooling, load="import")  # a pool takes no functions of a pickled app
    answer = runner.post("/").json()
    assert answer["got"] == "weights"
    assert answer["pid"] not in (runner.pid, os.getpid())
    assert [e.runner for e in fal_ledger.requests(host="models.example.com")] == ["runner-1"]


def test_a_worker_that_the_app_forks_follows_the_clock(boot, fal_clock):
    runner = boot(Pooling, load="import")
    runner.post("/time")
    fal_clock.freeze()
    fal_clock.advance(days=5)
    assert runner.post("/time").json()["time"] == pytest.approx(fal_clock.now().timestamp())


def test_a_traceback_shows_the_lines_of_a_pickled_app(boot):
    class Failing(fal.App):
        @fal.endpoint("/")
        def fail(self) -> dict:
            raise KeyError("lost")  # this line

    runner = boot(Failing)
    runner.post("/")
    assert 'raise KeyError(\\"lost\\")  # this line' in runner.output


def test_a_process_knows_nothing_of_an_app_that_runs_in_the_tests_own(boot, fal_emulator):
    fal_emulator.runner(Crashing)
    assert boot().post("/").status_code == 200


# --- websockets ----------------------------------------------------------------------------------


class Talking(fal.App):
    @fal.endpoint("/talk", is_websocket=True)
    async def talk(self, websocket: WebSocket) -> None:
        await websocket.accept()
        name = await websocket.receive_text()
        await websocket.send_text((await File.from_bytes_async(b"x", file_name=name)).url)
        await websocket.close()


def test_an_upload_from_a_websocket_has_lost_its_requests_context(boot, fal_ledger, fal_cdn):
    from websockets.sync.client import connect

    runner = boot(Talking)
    headers = {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 60}'}
    with connect(f"ws://127.0.0.1:{runner.port}/talk", additional_headers=headers) as client:
        client.send("a.txt")
        url = client.recv()
    assert fal_cdn.info(url).expires_at is None
    notes = [note for exchange in fal_ledger.exchanges for note in exchange.notes]
    assert [note.partition(":")[0] for note in notes] == ["the request's context was lost"]


def test_an_exception_comes_with_its_traceback(boot):
    class Broken(fal.App):
        def setup(self):
            raise OddError("no weights")  # this line

        @fal.endpoint("/")
        def answer(self) -> dict:
            return {}

    def fail():
        raise OddError("odd")  # and this

    with pytest.raises(OddError) as caught:
        boot(Broken)
    assert "this line" in str(caught.traceback[-1].statement)
    with pytest.raises(OddError) as caught:
        boot().run(fail)
    assert "and this" in str(caught.traceback[-1].statement)
