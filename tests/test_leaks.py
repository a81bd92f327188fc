"""What a test leaves behind fails it under ``--fal-strict-leaks``, with what opened it; no more."""

from __future__ import annotations

import re
import threading

import pytest

from pytest_fal import leftovers

#: A leak that is looked for stays: nobody has to wait for it to end.
IMPATIENT = """
    from pytest_fal import leftovers
    leftovers.PATIENCE = 0.05
"""
OPTIONS = ("-p", "no:randomly", "-p", "no:cacheprovider")

LEAKING = """
import asyncio, multiprocessing, os, socket, sqlite3, subprocess, sys, tempfile, threading, time
from unittest import mock

import boto3, freezegun, pytest
from moto import mock_aws

kept = []
enough = threading.Event()


def poll():
    enough.wait()


def teardown_module():
    enough.set()
    for process in kept_processes:
        process.kill()
        process.wait()

kept_processes = []


def test_thread(fal_data):
    threading.Thread(target=poll, name="poller").start()

class Poller(threading.Thread):
    def run(self): poll()

def test_thread_class(fal_data):
    Poller(name="of a class").start()

def test_thread_of_a_thread(fal_data):
    def start_another():
        threading.Thread(target=poll, name="inner").start()
    thread = threading.Thread(target=start_another)
    thread.start()
    thread.join()

def test_file(fal_data, tmp_path):
    kept.append(open(tmp_path / "a.log", "w"))

def test_file_in_data(fal_data):
    os.mkdir("/data/models")
    kept.append(open("/data/models/a.bin", "w"))

def test_raw_descriptor(fal_data):
    kept.append(os.open("/data/raw.bin", os.O_CREAT))

def test_nameless_file(fal_data):
    kept.append(tempfile.TemporaryFile())

def test_sqlite(fal_data, tmp_path):
    kept.append(sqlite3.connect(tmp_path / "a.sqlite"))

def test_listening(fal_data):
    server = socket.create_server(("127.0.0.1", 0))
    kept.append(server)
    print("listens at", server.getsockname()[1])

def test_connected(fal_data):
    kept.append(socket.create_connection(kept[-1].getsockname()))

def test_pipe(fal_data):
    kept.append(os.pipe())

def test_pair(fal_data):
    kept.append(socket.socketpair())

def test_loop(fal_data):
    kept.append(asyncio.new_event_loop())

def test_process(fal_data):
    kept_processes.append(subprocess.Popen(["sleep", "60"]))

def test_credential_in_a_command(fal_data):
    code = "import time; time.sleep(60)"
    kept_processes.append(subprocess.Popen([sys.executable, "-c", code, "--api-key=secret7"]))

def test_zombie(fal_data):
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    kept_processes.append(process)

def test_fork(fal_data):
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    process.wait = process.join
    kept_processes.append(process)

@pytest.fixture
def variables():
    os.environ["MY_COLOUR"] = "red"
    os.environ["MY_TOKEN"] = "secret8"
    os.environ["MY_DATABASE"] = "postgres://me:secret9@db.example.com/x"
    os.environ.pop("MY_OLD", None)

def test_variables(variables, fal_data): pass

@pytest.fixture
def places():
    os.chdir("/usr")
    sys.path.append("/nowhere")

def test_places(places, fal_data): pass

def test_attribute(fal_data):
    time.perf_counter = lambda: 7

def test_patch(fal_data):
    mock.patch("os.getlogin", lambda: "me").start()

def test_dictionary(fal_data):
    mock.patch.dict({}, a=1).start()

@pytest.fixture
def folder():
    made = tempfile.mkdtemp(prefix="left-by-a-test-")
    open(made + ".txt", "w").close()
    yield made
    kept.append(made)

def test_folder(folder, fal_data): pass

def test_removes_it():
    os.rmdir(kept[-1])
    os.unlink(kept[-1] + ".txt")

def test_moto(fal_data):
    kept.append(mock_aws())
    kept[-1].start()

def test_moto_ends():
    kept[-1].stop()

def test_frozen(fal_data):
    kept.append(freezegun.freeze_time("2030-01-01"))
    kept[-1].start()

def test_frozen_ends():
    kept[-1].stop()
"""

EXPECTED = {
    "thread": r"thread 'poller' is running test_it\.poll \(test_it\.py:\d+\); "
    r"started at test_it\.py:\d+ in test_thread",
    "thread_class": r"thread 'of a class' is running test_it\.Poller\.run \(test_it\.py:\d+\); "
    r"started at test_it\.py:\d+ in test_thread_class",
    "thread_of_a_thread": r"thread 'inner' is running .*; "
    r"started at test_it\.py:\d+ in (test_thread_of_a_thread\.)?start_another",
    "file": r"descriptor \d+ is open: /.*/a\.log; opened at test_it\.py:\d+ in test_file",
    "file_in_data": r"descriptor \d+ is open: /data/models/a\.bin; "
    r"opened at test_it\.py:\d+ in test_file_in_data",
    "raw_descriptor": r"descriptor \d+ is open: /data/raw\.bin; "
    r"opened at test_it\.py:\d+ in test_raw_descriptor",
    "nameless_file": r"descriptor \d+ is open: a file without a name; "
    r"opened at test_it\.py:\d+ in test_nameless_file",
    "sqlite": r"descriptor \d+ is open: /.*/a\.sqlite; opened at test_it\.py:\d+ in test_sqlite",
    "listening": r"descriptor \d+ is open: TCP socket listening at 127\.0\.0\.1:\d+; "
    r"opened at test_it\.py:\d+ in test_listening",
    "connected": r"descriptor \d+ is open: TCP socket 127\.0\.0\.1:\d+ -> 127\.0\.0\.1:\d+; "
    r"opened at test_it\.py:\d+ in test_connected",
    "pipe": r"descriptor \d+ is open: a pipe, its end for writing; "
    r"opened at test_it\.py:\d+ in test_pipe",
    "pair": r"descriptor \d+ is open: Unix socket, one of a pair; "
    r"opened at test_it\.py:\d+ in test_pair",
    "loop": r"descriptor \d+ is open: eventpoll; opened at test_it\.py:\d+ in test_loop",
    "process": r"process \d+ is running: sleep 60; started at test_it\.py:\d+ in test_process",
    "credential_in_a_command": r"process \d+ is running: .* --api-key=\*\*\*; "
    r"started at test_it\.py:\d+ in test_credential_in_a_command",
    "zombie": r"process \d+ has ended and nobody has waited for it; "
    r"started at test_it\.py:\d+ in test_zombie",
    "fork": r"process \d+ is running: a fork of this process; "
    r"started at test_it\.py:\d+ in test_fork",
    "variables": r"environment variable MY_COLOUR: not set -> 'red'; "
    r"set at test_it\.py:\d+ in variables",
    "places": r"the working directory is /usr, and was /.*; changed at test_it\.py:\d+ in places",
    "attribute": r"time\.perf_counter is test_it\.test_attribute\.<lambda> \(test_it\.py:\d+\), "
    r"and was time\.perf_counter; Python tells nobody who sets it",
    "patch": r"unittest\.mock: the patch of os\.getlogin by test_it\.test_patch\.<lambda> "
    r"\(test_it\.py:\d+\) is still started; started at test_it\.py:\d+ in test_patch",
    "dictionary": r"unittest\.mock: the patch of a dictionary \(dict\) is still started; "
    r"started at test_it\.py:\d+ in test_dictionary",
    "folder": r"temporary folder /.*/left-by-a-test-\w+ is still there; "
    r"made at test_it\.py:\d+ in folder",
    "moto": r"moto: mock_aws is still started; started at test_it\.py:\d+ in test_moto",
    "frozen": r"freezegun is still engaged; started at test_it\.py:\d+ in test_frozen",
}

_outputs = {}


@pytest.fixture
def leaking(request):
    """The output of the run of the tests above, one run for all, by test."""
    if not _outputs:
        pytester = request.getfixturevalue("pytester")
        pytester.makeconftest(IMPATIENT)
        pytester.makepyfile(test_it=LEAKING)
        result = pytester.runpytest_subprocess(*OPTIONS, "--fal-strict-leaks")
        parts = re.split(r"_+ ERROR at teardown of test_(\w+) _+", result.stdout.str())
        _outputs.update(zip(parts[1::2], parts[2::2], strict=True))
    return _outputs


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_leak_is_named_with_what_opened_it(leaking, kind):
    assert re.search(rf"^  {EXPECTED[kind]}$", leaking.get(kind, ""), re.MULTILINE), leaking[kind]


def test_no_other_test_is_blamed_and_none_for_more_than_it_did(leaking):
    assert set(leaking) == set(EXPECTED)
    several = {"fork": 3, "pipe": 2, "pair": 2, "loop": 3, "variables": 3, "places": 2, "folder": 2}
    counts = {
        name: int(re.search(r"(\d+) things? left", text)[1]) for name, text in leaking.items()
    }
    assert counts == {name: several.get(name, 1) for name in EXPECTED}


def test_the_path_and_a_temporary_file_are_named_too(leaking):
    assert "  sys.path has changed: '/nowhere' was added; Python tells" in leaking["places"]
    assert re.search(r"temporary file /.*\.txt is still there; made at", leaking["folder"])


def test_credentials_are_not_shown(leaking):
    text = "".join(leaking.values())
    assert "environment variable MY_TOKEN: not set -> ***; set at" in text
    assert "MY_DATABASE: not set -> 'postgres://db.example.com/x'; set at" in text
    shown = re.findall(r"^  .*secret\d.*$", text, re.MULTILINE)
    assert shown == []


# --- no false alarm ------------------------------------------------------------------------------

CLEAN = """
import asyncio, concurrent.futures, logging, os, subprocess, tempfile, threading
from unittest import mock

import boto3, fal, fal_client, freezegun, httpx, pytest, requests, urllib.request
from fal.toolkit import File, download_file
from moto import mock_aws


class App(fal.App):
    def setup(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(2)
        self.file = open("/tmp/open", "w")

    @fal.endpoint("/")
    def run(self) -> dict:
        list(self.pool.map(str, range(4)))
        return {"url": File.from_bytes(b"12345", file_name="a.bin").url}


@pytest.mark.parametrize("number", range(2))
def test_every_fixture(number, fal_emulator, fal_data, fal_tmp, fal_cdn, fal_clock, fal_http,
                       fal_origin, fal_faults, fal_ledger, fal_buckets, fal_git, fal_kv,
                       fal_webhooks, fal_uploader, fal_gateway, fal_runner, tmp_path, monkeypatch):
    monkeypatch.setenv("X", "1")
    monkeypatch.chdir(tmp_path)
    fal_clock.freeze()
    fal_origin.serve("https://example.com/a", b"a")
    download_file("https://example.com/a", target_dir="x")
    assert requests.get("https://example.com/a").content == b"a"
    assert httpx.get("https://example.com/a").content == b"a"
    File.from_bytes(b"1", file_name="a")
    fal_clock.advance(hours=1)
    fal_data.limit(1_000_000)
    fal_gateway.deploy("me/app", App)
    fal_client.run("me/app", {})
    fal_client.submit("me/app", {}).get()


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("number", range(2))
def test_runner(fal_runner, isolation, number):
    fal_runner(App, isolation=isolation).post("/", json={})


def test_what_is_closed(fal_data, tmp_path):
    with mock_aws(), freezegun.freeze_time("2030-01-01"), mock.patch("os.getlogin"):
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
    thread = threading.Thread(target=open(tmp_path / "x", "w").close)
    thread.start()
    thread.join()
    subprocess.run(["true"], stdout=subprocess.PIPE)
    asyncio.run(asyncio.to_thread(str))
    with tempfile.TemporaryDirectory():
        pass
    os.environ["Y"] = "1"
    os.chdir("/")


def test_a_cycle_is_no_leak(fal_data):
    class Holder: pass
    holder = Holder()
    holder.me, holder.file = holder, open("/data/x", "w")
"""


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")], ids=["alone", "xdist"])
def test_a_clean_test_passes(pytester, options):
    pytester.makepyfile(CLEAN)
    result = pytester.runpytest_subprocess(*OPTIONS, "--fal-strict-leaks", *options)
    result.assert_outcomes(passed=8)


def test_a_leak_fails_on_a_worker_too(pytester):
    pytester.makepyfile(
        test_it="""
        kept = []
        def test_it(fal_data): kept.append(open(__file__))
        def test_that(fal_data): pass
        """
    )
    result = pytester.runpytest_subprocess(*OPTIONS, "--fal-strict-leaks", "-p", "xdist", "-n", "2")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.re_match_lines(
        [r"  descriptor \d+ is open: /.*; opened at test_it.py:2 in test_it"]
    )


TOLERATED = """
import asyncio, concurrent.futures, http.server, logging, os, random, socket, sys, threading

import aiohttp, httpx, pytest, requests

kept = []
POOL = concurrent.futures.ThreadPoolExecutor(2)
SESSION = requests.Session()
CLIENT = httpx.Client()


def test_a_pool_of_threads_that_a_module_keeps(fal_data):
    list(POOL.map(str, range(9)))

def test_a_pool_of_connections_that_a_module_keeps(fal_origin):
    fal_origin.serve("https://example.com/a", b"a")
    SESSION.get("https://example.com/a")
    CLIENT.get("https://example.com/a")

def test_what_a_module_opens_while_it_is_imported(fal_data, tmp_path, monkeypatch):
    (tmp_path / "opens.py").write_text(
        "import os, threading, socket; os.environ['SET_BY_IMPORT'] = '1'; FILE = open(__file__);"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import opens

def test_what_a_log_handler_opens_when_it_writes(fal_data):
    LOG.warning("hello")

HANDLER = logging.FileHandler(os.path.join(os.path.dirname(__file__), "a.log"), delay=True)
LOG = logging.getLogger("mine")
LOG.addHandler(HANDLER)

def test_a_log_that_is_begun_anew(fal_data):
    HANDLER.close()
    kept.append(os.open("/dev/null", os.O_RDONLY))
    HANDLER.stream = HANDLER._open()
    os.close(kept.pop())

def test_the_loop_of_the_thread(fal_data):
    asyncio.set_event_loop(asyncio.new_event_loop())

def test_a_device_that_is_opened_once(fal_data):
    kept.append(open("/dev/urandom", "rb"))

@pytest.fixture(scope="session")
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            self.send_response(204)
            self.end_headers()
        def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address
    server.shutdown()
    server.server_close()
    thread.join()

def test_a_server_of_the_session_and_what_it_opens(server, fal_data):
    kept.append(requests.Session())
    kept[-1].get("http://%s:%s" % server)

@pytest.fixture(scope="module")
def wide():
    file = open(__file__)
    mine = threading.Event()
    thread = threading.Thread(target=mine.wait)
    thread.start()
    yield
    mine.set()
    thread.join()
    file.close()

def test_a_fixture_of_a_wider_scope_that_is_asked_for_late(request, fal_data):
    request.getfixturevalue("wide")

class TestClass:
    @classmethod
    def setup_class(cls): cls.file = open(__file__)
    @classmethod
    def teardown_class(cls): cls.file.close()
    def setup_method(self): self.mine = open(__file__)
    def teardown_method(self): self.mine.close()
    def test_it(self, fal_data): pass
"""


def test_what_is_nobodys_fault_is_tolerated(pytester):
    pytester.makeconftest(IMPATIENT)
    pytester.makepyfile(TOLERATED)
    result = pytester.runpytest_subprocess(*OPTIONS, "--fal-strict-leaks")
    result.assert_outcomes(passed=10)


def test_a_fixture_of_a_wider_scope_is_not_blamed_whoever_is_first(pytester):
    pytester.makepyfile(
        """
        import os, pytest, tempfile

        @pytest.fixture(scope="module", params=[1, 2])
        def wide(request):
            os.environ["WIDE"] = str(request.param)
            file = open(__file__)
            with tempfile.TemporaryDirectory():
                yield
            file.close()
            del os.environ["WIDE"]

        def test_one(fal_data, wide): pass
        def test_two(wide, fal_data): pass
        """
    )
    result = pytester.runpytest_subprocess(*OPTIONS, "--fal-strict-leaks")
    result.assert_outcomes(passed=4)


def test_a_fixture_of_the_tests_own_is_blamed(pytester):
    pytester.makepyfile(
        test_it="""
        import pytest
        kept = []

        @pytest.fixture
        def narrow(): kept.append(open(__file__))

        def test_one(narrow, fal_data): pass
        """
    )
    result = pytester.runpytest_subprocess(*OPTIONS, "--fal-strict-leaks")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.re_match_lines([r"  descriptor .*; opened at test_it\.py:5 in narrow"])


def test_pytests_own_folders_are_no_leak_wherever_they_are(pytester, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(pytester.path))  # where its --basetemp is, too
    pytester.makepyfile("def test_it(fal_data, tmp_path): pass")
    result = pytester.runpytest_subprocess(*OPTIONS, "--fal-strict-leaks")
    result.assert_outcomes(passed=1)


# --- which tests ---------------------------------------------------------------------------------

LEAKS = """
    import pytest
    kept = []

    def test_of_ours(fal_data): kept.append(open(__file__))

    @pytest.fixture
    def indirect(fal_data): pass

    @pytest.mark.usefixtures("indirect")
    def test_indirect(): kept.append(open(__file__))

    def test_late(request):
        request.getfixturevalue("fal_emulator")
        kept.append(open(__file__))

    def test_without(): kept.append(open(__file__))

    @pytest.mark.xfail(strict=True)
    def test_that_fails_anyway(fal_data):
        kept.append(open(__file__))
        raise ValueError
"""


@pytest.mark.parametrize(
    ("setting", "options", "errors"),
    [
        ("", (), 0),
        ("", ("--fal-strict-leaks",), 3),
        ("fal_strict_leaks = true", (), 3),
        ("fal_strict_leaks = all", (), 4),
        ("fal_strict_leaks = false", (), 0),
        ("fal_strict_leaks = true\nfal_leaks_allowed = descriptor * in test_*", (), 0),
        ("fal_strict_leaks = true\nfal_leaks_allowed = *in test_late\n   *in test_no*", (), 2),
    ],
)
def test_which_tests_are_watched(pytester, setting, options, errors):
    pytester.makeini(f"[pytest]\n{setting}\n")
    pytester.makeconftest(IMPATIENT)
    pytester.makepyfile(LEAKS)
    result = pytester.runpytest_subprocess(*OPTIONS, *options)
    result.assert_outcomes(passed=4, xfailed=1, errors=errors)


def test_a_setting_that_makes_no_sense_says_what_to_write(pytester):
    pytester.makeini("[pytest]\nfal_strict_leaks = maybe\n")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "fal_strict_leaks = 'maybe' in the configuration file: it is true" in result.stderr.str()


def test_nothing_is_replaced_or_imported_without_the_option(pytester):
    pytester.makepyfile(
        """
        import os, sys, threading

        def test_it(fal_data, request):
            assert "pytest_fal.openers" not in sys.modules
            assert "pytest_fal.leaks" not in sys.modules
            assert not hasattr(threading.Thread.start, "__wrapped__")
            assert "_fal_strict_leaks" not in request.fixturenames
        """
    )
    pytester.runpytest_subprocess(*OPTIONS).assert_outcomes(passed=1)


def test_what_is_replaced_for_it_comes_back(pytester):
    pytester.makepyfile(
        """
        import os, threading
        def test_it(fal_data):
            assert threading.Thread.start.__wrapped__
        """
    )
    program = pytester.makepyfile(
        run="""
        import os, threading, pytest
        before = threading.Thread.start, os.pipe
        assert pytest.main(["-q", "-p", "no:cacheprovider", "--fal-strict-leaks"]) == 0
        assert (threading.Thread.start, os.pipe) == before
        """
    )
    assert pytester.runpython(program).ret == 0


def test_the_hook_that_older_pytests_set_in_each_phase_is_nobodys(monkeypatch):
    hook = type("Hook", (), {"__module__": "_pytest.threadexception", "take": lambda *_: None})
    monkeypatch.setattr(threading, "excepthook", hook().take)
    before = leftovers.attributes()
    monkeypatch.setattr(threading, "excepthook", hook().take)
    assert leftovers.attributes() == before
    monkeypatch.setattr(threading, "excepthook", print)
    assert leftovers.attributes() != before
