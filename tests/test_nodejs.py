"""Programs in Node inside of the emulation: where their connections lead, and where not.

Without postponed annotations: apps here go to processes by pickle.
"""

import http.client
import os
import socket
import subprocess

import fal
import pytest
from nodejs import needs_node, node, run_node

from emulator.network import nodejs_entrance

pytestmark = needs_node

FETCH = "const answer = await fetch(%r); show([answer.status, await answer.text()]);"
#: A raw request over a socket, and all that comes back.
TALK = """
socket.on("error", (error) => show(error.code));
socket.write("GET /a HTTP/1.1\\r\\nHost: example.com\\r\\nConnection: close\\r\\n\\r\\n");
let text = "";
socket.on("data", (data) => (text += data));
socket.on("end", () => show(text.split("\\r\\n\\r\\n")[1]));
"""
#: A server of the script's own, which says which host was asked for.
SERVER = """
const server = require("http").createServer((request, answer) => answer.end(request.headers.host));
"""


@pytest.fixture
def served(fal_origin):
    return fal_origin.serve("https://example.com/a", content=b"hello")


# --- ways of connecting --------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_fetch_reaches_what_the_test_serves(fal_origin, fal_ledger, scheme):
    fal_origin.serve(f"{scheme}://example.com/a", content=b"hello")
    assert node(FETCH % f"{scheme}://example.com/a") == [200, "hello"]
    assert [(e.client, e.url) for e in fal_ledger.exchanges] == [
        ("wire", f"{scheme}://example.com/a")
    ]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_so_do_nodes_own_modules(fal_origin, scheme):
    fal_origin.serve(f"{scheme}://example.com/a", content=b"hello")
    code = f"""
    require("{scheme}").get("{scheme}://example.com/a", (answer) => {{
      answer.setEncoding("utf8").on("data", show);
    }});
    """
    assert node(code) == "hello"


@pytest.mark.parametrize(
    "connect",
    [
        'require("tls").connect({ host: "example.com", port: 443 })',
        'require("tls").connect(443, "example.com")',
        'require("tls").connect({ socket: require("net").connect(443, "example.com"), '
        'servername: "example.com" })',
    ],
)
def test_tls_sockets_are_shown_the_certificate_of_the_host(served, connect):
    assert node(f"const socket = {connect}; {TALK}") == "hello"


@pytest.mark.parametrize(
    "connect",
    [
        'connect(80, "example.com")',
        'connect("80", "example.com", () => {})',
        'connect({ port: 80, host: "example.com", family: 6, localPort: 1 })',
        'createConnection({ port: 80, host: "EXAMPLE.com." })',
    ],
)
def test_plain_sockets_are_led_to_the_wire(fal_origin, connect):
    fal_origin.serve("http://example.com/a", content=b"hello")
    assert node(f'const socket = require("net").{connect}; {TALK}') == "hello"


def test_an_address_has_its_certificate_too(fal_origin):
    fal_origin.serve("https://93.184.216.34/a", content=b"hello")
    assert node(FETCH % "https://93.184.216.34/a") == [200, "hello"]


def test_a_port_is_part_of_the_url(fal_origin):
    fal_origin.serve("https://example.com:8443/a", content=b"hello")
    assert node(FETCH % "https://example.com:8443/a") == [200, "hello"]


def test_a_websocket_asks_for_its_upgrade(fal_http):
    route = fal_http.get("https://fal.run/tester/app/realtime").respond(426)
    code = """
    const socket = new WebSocket("wss://fal.run/tester/app/realtime");
    socket.onerror = () => show("refused");
    """
    assert node(code, "--experimental-websocket") == "refused"
    assert route.calls.last.request.headers["upgrade"] == "websocket"


def test_worker_threads_and_children_are_led_there_too(served):
    code = """
    const fetched = 'fetch("https://example.com/a").then(async (a) => console.log(await a.text()))';
    const child = require("child_process").spawnSync(process.execPath, ["-e", fetched]);
    const { Worker } = require("worker_threads");
    const worker = new Worker(
      'fetch("https://example.com/a").then(async (answer) => ' +
        'require("worker_threads").parentPort.postMessage(await answer.text()))',
      { eval: true },
    );
    worker.on("message", (text) => show([String(child.stdout), text]));
    """
    assert node(code) == ["hello\n", "hello"]


def test_the_wire_speaks_no_http_2(served):
    code = """
    require("http2")
      .connect("https://example.com")
      .on("error", (error) => show(error.message));
    """
    assert node(code) == "Protocol error"


@pytest.mark.parametrize("env", ["{}", "{ FOO: '1' }", "{ NODE_OPTIONS: '--no-warnings' }"])
@pytest.mark.parametrize(
    "start",
    [
        'spawn(process.execPath, ["-e", SCRIPT], { env, stdio: "inherit" })',
        'execFile(process.execPath, ["-e", SCRIPT], { env }, (_, t) => console.log(t.trim()))',
        'process.stdout.write(spawnSync(process.execPath, ["-e", SCRIPT], { env }).stdout)',
        'process.stdout.write(execFileSync(process.execPath, ["-e", SCRIPT], { env }))',
        "process.stdout.write(execSync(`'${process.execPath}' -e '${SCRIPT}'`, { env }))",
        "new Worker(SCRIPT, { env, eval: true })",
    ],
)
def test_so_are_those_with_an_environment_of_their_own(served, start, env):
    script = 'fetch("https://example.com/a").then(async (a) => console.log(await a.text()))'
    done = run_node(
        "const { spawn, execFile, spawnSync, execFileSync, execSync } = require('child_process');"
        f"const {{ Worker }} = require('worker_threads'); const SCRIPT = `{script}`;"
        f"const env = {env}; {start};"
    )
    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_the_environment_that_a_program_gives_its_child_is_kept(fal_http):
    show = 'console.log(process.env.FOO, process.env.HOME, process.env.NODE_OPTIONS.split(" ")[0])'
    done = run_node(
        f"require('child_process').spawn(process.execPath, ['-e', `{show}`], "
        "{ env: { FOO: 'a=b', NODE_OPTIONS: '--no-warnings' }, stdio: 'inherit' })"
    )
    assert done.stdout == "a=b undefined --no-warnings\n"


def test_an_unknown_host_is_refused_with_the_line_to_write(fal_ledger):
    status, text = node(FETCH % "https://unknown.example/a")
    assert status == 502
    assert text == (
        "GET https://unknown.example/a: nothing answers for unknown.example in this test, and "
        "tests do not reach the network. Serve a file with "
        'fal_origin.serve("https://unknown.example/a", content=b"..."), answer with '
        'fal_http.get("https://unknown.example/a").respond(200), or let the host through with '
        '@pytest.mark.fal(allow_hosts=["unknown.example"]).'
    )
    assert fal_ledger.exchanges[0].status == 502


# --- what is local, and what is let through ------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "app.localhost", "[::1]"])
def test_this_machine_is_let_alone(fal_emulator, host):
    listen = "::1" if host == "[::1]" else "0.0.0.0"
    code = f"""{SERVER}
    server.listen(0, "{listen}", async () => {{
      const lookup = (name, options, found) => found(null, [{{ address: "127.0.0.1", family: 4 }}]);
      const options = {{ host: "{host.strip("[]")}", port: server.address().port, agent: false }};
      if (options.host === "app.localhost") options.lookup = lookup;
      require("http").get(options, (answer) => {{
        show(answer.statusCode);
        server.close();
      }});
    }});
    """
    assert node(code) == 200


@pytest.mark.fal(filesystem="namespace")
def test_a_socket_file_is_let_alone(fal_emulator):
    code = f"""{SERVER}
    server.listen("/tmp/server.sock", () => {{
      require("http").get({{ socketPath: "/tmp/server.sock", agent: false }}, (answer) => {{
        show(answer.statusCode);
        server.close();
      }});
    }});
    """
    assert node(code) == 200


@pytest.mark.fal(allow_hosts=["Real.example"])
def test_a_host_that_is_let_through_is_really_connected_to(fal_ledger):
    code = f"""{SERVER}
    server.listen(0, "127.0.0.1", () => {{
      const lookup = (name, options, found) => found(null, [{{ address: "127.0.0.1", family: 4 }}]);
      const host = "real.example", port = server.address().port;
      require("http").get({{ host, port, lookup, agent: false }}, (answer) => {{
        show(answer.statusCode);
        server.close();
      }});
    }});
    """
    assert node(code) == 200
    assert fal_ledger.exchanges == []


def test_a_route_that_lets_through_tells_what_to_write_instead(fal_http):
    fal_http.get("https://real.example/a").pass_through()
    assert node(FETCH % "https://real.example/a") == [
        502,
        "GET https://real.example/a: a route of fal_http lets it through, of which programs in "
        'Node know nothing. Write @pytest.mark.fal(allow_hosts=["real.example"]).',
    ]


def test_proxies_of_the_developer_do_not_interfere(monkeypatch, request):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NODE_USE_ENV_PROXY", "1")
    request.getfixturevalue("fal_origin").serve("https://example.com/a", content=b"hello")
    assert node(FETCH % "https://example.com/a") == [200, "hello"]


# --- names ---------------------------------------------------------------------------------------

ADDRESS = {"address": "192.88.99.1", "family": 4}


@pytest.mark.parametrize(
    ("looked_up", "found"),
    [
        ('dns.lookup("example.com", (...found) => show(found))', [None, "192.88.99.1", 4]),
        ('dns.lookup("example.com", { all: true }, (...found) => show(found))', [None, [ADDRESS]]),
        ('show(await dns.promises.lookup("example.com"))', ADDRESS),
        ('show(await dns.promises.lookup("example.com", { all: true }))', [ADDRESS]),
        ('show(await require("dns/promises").lookup("example.com"))', ADDRESS),
        ('show(await dns.promises.lookup("127.0.0.1"))', {"address": "127.0.0.1", "family": 4}),
        ('dns.lookup("127.0.0.1", 4, (...found) => show(found))', [None, "127.0.0.1", 4]),
        (
            'try { dns.lookup("example.com") } catch (error) { show(error.code) }',
            "ERR_INVALID_ARG_TYPE",
        ),
    ],
)
def test_a_name_has_an_address_that_a_guard_takes_for_public(fal_emulator, looked_up, found):
    assert node(f'const dns = require("dns"); {looked_up}') == found


def test_the_address_of_a_name_leads_to_the_wire(fal_origin):
    fal_origin.serve("http://example.com/a", content=b"hello")
    code = """
    const { address } = await require("dns").promises.lookup("example.com");
    const socket = require("net").connect(80, address);
    """
    assert node(code + TALK) == "hello"


# --- the environment -----------------------------------------------------------------------------


def test_the_developers_options_are_kept(monkeypatch, request):
    monkeypatch.setenv("NODE_OPTIONS", "--title=mine")
    request.getfixturevalue("fal_origin").serve("https://example.com/a", content=b"hello")
    code = 'show([process.title, (await fetch("https://example.com/a")).status])'
    assert node(code) == ["mine", 200]


@pytest.mark.parametrize("folder", ["with blanks", 'with "quotes"', "with \\ backslashes"])
def test_the_script_may_lie_anywhere(monkeypatch, tmp_path, folder):
    script = tmp_path / folder / "a b.cjs"
    script.parent.mkdir()
    script.write_text("globalThis.loaded = true")
    monkeypatch.setattr(nodejs_entrance, "_PRELOAD", str(script))
    options = nodejs_entrance.options("--title=mine")
    assert node("show([process.title, loaded])", env={"NODE_OPTIONS": options}) == ["mine", True]


def test_the_script_is_named_once():
    once = nodejs_entrance.options("")
    assert nodejs_entrance.options(once) == once


def test_half_an_environment_is_refused(fal_emulator):
    done = run_node("", env={"FAL_EMULATOR_WIRE": ""})
    assert done.returncode == 1
    assert (
        "Error: NODE_OPTIONS has pytest-fal's preload script, but FAL_EMULATOR_WIRE is not set, so "
        "this process would reach the real network. Start it with the whole environment: "
        'subprocess.run(["node", ...], env={**os.environ, "MINE": "1"})' in done.stderr
    )


# --- faults --------------------------------------------------------------------------------------

FAILS = "await fetch('https://example.com/a').catch((error) => show(error.cause.code));"


def test_an_expired_certificate_is_refused(served, fal_faults):
    fal_faults.tls_failure("expired", host="example.com")
    assert node(FAILS) == "CERT_HAS_EXPIRED"


def test_a_connection_is_reset(served, fal_faults):
    fal_faults.drop(after=0, host="example.com")
    assert node(FAILS) == "ECONNRESET"


# --- on runners ----------------------------------------------------------------------------------


class Fetcher(fal.App):
    @fal.endpoint("/")
    def fetch(self, url: str) -> dict:
        code = (
            "fetch(process.argv[1]).then(async (a) => console.log(process.title, await a.text()))"
        )
        done = subprocess.run(["node", "-e", code, url], capture_output=True, text=True, check=True)
        return {"printed": done.stdout}


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_an_app_may_run_node(served, fal_runner, fal_ledger, isolation):
    runner = fal_runner(Fetcher, isolation=isolation, env={"NODE_OPTIONS": "--title=mine"})
    answer = runner.post("/", params={"url": "https://example.com/a"})
    assert answer.json() == {"printed": "mine hello\n"}
    assert [exchange.runner for exchange in fal_ledger.exchanges] == [runner.name]


def test_of_two_runners_the_ledger_names_the_right_one(served, fal_runner, fal_ledger):
    runners = [fal_runner(Fetcher) for _ in range(2)]
    for runner in reversed(runners):
        runner.post("/", params={"url": "https://example.com/a"})
    assert [exchange.runner for exchange in fal_ledger.exchanges] == ["runner-2", "runner-1"]


def test_a_node_of_the_tests_own_is_on_no_runner(served, fal_runner, fal_ledger):
    fal_runner(Fetcher)
    node(FETCH % "https://example.com/a")
    assert [exchange.runner for exchange in fal_ledger.exchanges] == [None]


def test_a_python_client_may_have_an_address_as_nodes_have(fal_origin, fal_faults):
    fal_origin.serve("http://example.com/a", content=b"hello")
    fault = fal_faults.status(418, address=socket.gethostbyname("example.com"))
    connection = http.client.HTTPConnection("example.com", source_address=("127.0.0.2", 0))
    connection.request("GET", "/a")
    assert connection.getresponse().status == 418
    connection.close()
    assert len(fault.struck) == 1


def test_the_script_comes_with_the_package():
    folder = os.path.dirname(nodejs_entrance.__file__)
    assert os.path.exists(os.path.join(folder, "nodejs_preload.cjs"))
