"""Write the reference pages from the code: python docs/reference.py

Fixtures and types come from docstrings, signatures and ``#:`` comments, settings from the fields of
``emulator.Settings``, options and markers from the plugin's own hooks. The pages are kept in the
repository; a test fails when one of them is out of date, or when something public has no words.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COMMAND = "python docs/reference.py"
NOTE = f"<!-- Written by `{COMMAND}` from the code. Do not edit. -->"

#: What rooms of the emulator use of each other, which is public there and no business of a test.
INTERNAL = {
    "AppWebSocket": (
        "begin_poll call_at_end closed_here end_poll events fileno hang_up has_messages "
        "has_room is_over release runner_ended step take"
    ),
    "Appointment": "callback number",
    "Attempt": "deadline log",
    "Buckets": "reset",
    "CDN": (
        "begin complete delete deletion etag has_expired key_of outputs_of pending read "
        "readable receive receive_part replace_acl reset same_file settings signature_of "
        "unfinished upload users wait_for"
    ),
    "Call": (
        "asked_in_vain begun body caller deadline deployment dropped has_been_over_for "
        "headers is_under_way log_of low_priority opens_websocket over payloads policy "
        "response stores_payloads turn wait wait_for_news waiting_since waits_for_the_test "
        "was_left websocket"
    ),
    "Clock": (
        "around_waking before_moving files keep_appointments reset same_device shifted sleep "
        "subscribe unsubscribe volumes wake"
    ),
    "Delivery": "appointment is_quiet is_sending",
    "Deployment": "accept answer blocked_until connect queue scaling",
    "Emulator": "come_to_rest fork_server",
    "Exchange": "wants_websocket",
    "Fault": (
        "count delays ends error flaw is_due of_body on_request on_response place stage strike"
    ),
    "Faults": "active connect end holds killer reset strike strike_at",
    "Gate": (
        "break_down count delays ends error flaw hold is_due of_body on_request on_response "
        "place stage strike"
    ),
    "Gateway": (
        "after_503 be_ready call_of chance clock close come_to_rest "
        "come_to_rest_before_time_passes completed delete_payloads deployment_at end find "
        "here in_background is_in_an_app let_starts_end next_name note payload_retention "
        "reset runner_ended runner_made seed send_webhook"
    ),
    "Git": "enter reset",
    "KV": "read remove reset settings why_not write",
    "Ledger": "before_reading event open reset",
    "NodeUpload": "application appointments due form headers is_moving waited",
    "Origin": "answers handle hosts reset served_at",
    "Resolver": ("admits before_connect before_file before_lookup install lookup reset uninstall"),
    "Runner": (
        "app_class begin catch_up check_takes_requests dial hang_up is_here runs send start was_up"
    ),
    "Scaling": "holds_runners limits of redeployed",
    "Which": "fits is_of_requests of",
    "Uploader": "abort accept check_room end finish open receive reset socket wait",
    "User": "as_caller forget is_owner names",
    "Volume": "between check hide remount save uncover",
    "WebhookReceiver": "answers handle offer reset",
}

#: Types that tests meet without importing them.
BESIDES = (("Resolver", "emulator.network.resolver"), ("Which", "emulator.network.matching"))

#: What the environment of a test has while it uses a fixture of ours.
VARIABLES = {
    "FAL_KEY": "a key of the test's account, so that none of yours is used",
    "FAL_HOME_DIR, FAL_CONFIG_PATH": "a place of the test's, instead of your `~/.fal`",
    "FAL_API_SOCKET": "the socket of the node's uploader",
    "SSL_CERT_FILE, REQUESTS_CA_BUNDLE, AWS_CA_BUNDLE, CURL_CA_BUNDLE, GIT_SSL_CAINFO, "
    "NODE_EXTRA_CA_CERTS": "the session's certificate authority",
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION": "a key that opens the "
    "emulated buckets and nothing else",
    "AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE, AWS_EC2_METADATA_DISABLED, CLOUDSDK_CONFIG, "
    "NO_GCE_CHECK": "keep boto3 and Google's libraries from looking for your credentials",
    "NETRC": "keeps requests from sending the passwords that you have for hosts",
    "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA, MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "settings "
    "of these libraries",
    "GIT_EXEC_PATH, GIT_PROXY_COMMAND, GIT_CONFIG_GLOBAL, GIT_CONFIG_NOSYSTEM, GIT_CONFIG_COUNT, "
    "GIT_CONFIG_KEY_0, GIT_CONFIG_VALUE_0, GIT_TERMINAL_PROMPT": "lead git to the repositories of "
    "`fal_git`, without your configuration",
    "NODE_OPTIONS, FAL_EMULATOR_WIRE, FAL_EMULATOR_ALLOWED_HOSTS": "lead Node to the emulator",
    "grpc_proxy, no_grpc_proxy": "keep gRPC from the network",
}
#: What it has not, whatever yours has.
REMOVED = (
    "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, in either case",
    "FAL_KEY_ID, FAL_KEY_SECRET, FAL_PROFILE, FAL_FORCE_AUTH_BY_USER",
    "AWS_PROFILE, AWS_SESSION_TOKEN and whatever else makes boto3 somebody",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "TMPDIR, TEMP, TMP: `/tmp` is `/tmp`",
    "SSL_CERT_DIR",
)


# --- reading the code -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """Something public of a class: how it is written, and the words about it."""

    name: str
    signature: str
    doc: str


def public_types() -> dict[str, type]:
    """The classes that ``pytest_fal`` exports, without respx's, and those in :data:`BESIDES`."""
    import pytest_fal

    found = {name: getattr(pytest_fal, name) for name in pytest_fal.__all__}
    found |= {name: getattr(importlib.import_module(where), name) for name, where in BESIDES}
    return {name: item for name, item in found.items() if _is_ours(item)}


def _is_ours(item: type) -> bool:
    return item.__module__.startswith(("emulator", "pytest_fal"))


def members_of(cls: type) -> list[Member]:
    """The public members of a class in the order of the code; those it inherits come last."""
    found: dict[str, Member] = {}
    inner = INTERNAL.get(cls.__name__, "").split()
    for base in cls.__mro__:
        if not _is_ours(base) or base.__name__ == "Settings":
            continue
        for member in _written_in(base):
            if member.name not in inner and not member.name.startswith("_"):
                known = found.get(member.name)
                if known is None or not known.doc:
                    found[member.name] = member
    return list(found.values())


def _written_in(cls: type) -> Iterator[Member]:
    """What one class itself defines: attributes first, as the code has them, then the rest."""
    for member in _as_written(cls):
        yield Member(member.name, _spelt_out(member.signature, cls.__module__), member.doc)


def _spelt_out(signature: str, module: str) -> str:
    """With the values that a name for a ``Literal`` stands for, without what only mypy reads."""
    for name, values in (_literals("emulator") | _literals(module)).items():
        signature = re.sub(rf"(?<=[:>|] ){name}\b", values, signature)
    return signature.replace(": Unpack[Matchers]", "")


@cache
def _literals(module: str) -> dict[str, str]:
    """By name the values that stand in a module; of a package, in all of its modules."""
    file = Path(sys.modules[module].__file__ or "")
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return {
        name: " ".join(values.split()).replace("[ ", "[").replace(", ]", "]")
        for file in files
        for name, values in re.findall(_LITERAL, file.read_text("utf-8"), re.MULTILINE)
    }


_LITERAL = r"^(\w+) = (Literal\[[^]]+\])"


def _as_written(cls: type) -> Iterator[Member]:
    lines, _ = inspect.getsourcelines(cls)
    tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
    assert isinstance(tree, ast.ClassDef)
    told = attributes_in(inspect.getdoc(cls) or "")
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            doc = _comment(lines, node) or told.get(name, "")
            yield Member(name, f"{name}: {ast.unparse(node.annotation)}", doc)
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            yield from _assigned(node, lines, told)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:1] != "_":
            yield _function(node)


def _assigned(init: ast.FunctionDef, lines: list[str], told: dict[str, str]) -> Iterator[Member]:
    given = {arg.arg: arg.annotation for arg in (*init.args.args, *init.args.kwonlyargs)}
    for node in ast.walk(init):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        for target in targets:
            if not isinstance(target, ast.Attribute) or ast.unparse(target.value) != "self":
                continue
            kind = getattr(node, "annotation", None)
            if kind is None and isinstance(node.value, ast.Name):
                kind = given.get(node.value.id)
            elif kind is None and isinstance(node.value, ast.Call):
                kind = node.value.func if ast.unparse(node.value.func)[0].isupper() else None
            written = f"{target.attr}: {ast.unparse(kind)}" if kind is not None else target.attr
            doc = _comment(lines, node) or told.get(target.attr, "")
            yield Member(target.attr, written, doc)


def _comment(lines: list[str], node: ast.stmt) -> str:
    """The ``#:`` comment above a line, or behind it."""
    behind = re.search(r"#: (.*)$", lines[(node.end_lineno or node.lineno) - 1])
    if behind:
        return behind.group(1).strip()
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.strip().startswith("#:"):
            break
        above.insert(0, line.strip()[2:].strip())
    return "\n".join(above)


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Member:
    decorators = {ast.unparse(item) for item in node.decorator_list}
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    doc = ast.get_docstring(node) or ""
    if "property" in decorators:
        return Member(node.name, f"{node.name}:{returns.removeprefix(' ->')}", doc)
    arguments = ", ".join(_arguments(node.args))
    shown = "" if returns == " -> None" else returns
    shown = "" if "contextmanager" in decorators else shown
    return Member(node.name, f"{node.name}({arguments}){shown}", doc)


def _arguments(args: ast.arguments) -> Iterator[str]:
    """As they are written in a ``def``, without ``self``; ``ast.unparse`` crowds the defaults."""
    plain = args.posonlyargs + args.args
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    for arg, value in zip(plain, defaults, strict=True):
        if arg.arg != "self":
            yield _argument(arg, value)
    if args.vararg:
        yield f"*{_argument(args.vararg, None)}"
    elif args.kwonlyargs:
        yield "*"
    yield from map(_argument, args.kwonlyargs, args.kw_defaults)
    if args.kwarg:
        yield f"**{_argument(args.kwarg, None)}"


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(arg.annotation)}" if arg.annotation else ""
    equals = " = " if kind else "="
    return f"{arg.arg}{kind}" + (f"{equals}{ast.unparse(default)}" if default is not None else "")


def attributes_in(doc: str) -> dict[str, str]:
    """What a docstring's sections "Attributes" and "Args" say of each."""
    sections = re.findall(r"^(?:Attributes|Args):\n((?:    .*\n?|\n)+)", doc, re.MULTILINE)
    return {name: text for section in sections for name, text in _entries(section)}


def _entries(section: str) -> Iterator[tuple[str, str]]:
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(section).strip()):
        name, _, text = entry.partition(":")
        yield name.strip(), " ".join(text.split())


# --- writing Markdown -----------------------------------------------------------------------------


def markdown(doc: str) -> str:
    """A docstring as Markdown: roles and double backticks as code, sections as lists."""
    doc = re.sub(r"\s*\[§[^\]]*\]", "", inspect.cleandoc(doc))
    doc = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", doc)
    doc = re.sub(r"``(.+?)``", r"`\1`", doc, flags=re.DOTALL)
    parts: list[str] = []
    for paragraph in re.split(r"\n\n+(?=\S)", doc):
        section = re.match(r"(Args|Returns|Raises|Yields|Attributes):\n", paragraph)
        if not section:
            parts.append(" ".join(paragraph.split()))
        elif section.group(1) in ("Returns", "Yields"):
            parts.append("*Returns:* " + " ".join(paragraph[section.end() :].split()))
        elif section.group(1) == "Attributes":
            continue  # they are members
        else:
            rows = [f"- `{name}`: {text}" for name, text in _entries(paragraph[section.end() :])]
            title = "*Arguments:*" if section.group(1) == "Args" else "*Raises:*"
            parts.append("\n".join([title, "", *rows]))
    return "\n\n".join(parts)


def _about(cls: type) -> str:
    """The words about a class; how it is made is told only of what a test makes by itself."""
    doc = inspect.getdoc(cls) or ""
    return markdown(doc if cls.__name__ == "Emulator" else re.sub(_ARGUMENTS, "", doc))


_ARGUMENTS = r"(?:^|\n\n)Args:\n(?:    .*\n?|\n)+"


def _entry(member: Member, of: str = "") -> str:
    doc = member.doc[:1].upper() + member.doc[1:]
    signature = member.signature.replace("'", '"')
    return f"- `{of}{signature}`\n\n{textwrap.indent(markdown(doc), '  ')}\n"


def _page(name: str, title: str, *parts: str) -> tuple[str, str]:
    return name, "\n".join([f"# {title}\n", NOTE + "\n", *parts]).rstrip() + "\n"


# --- the pages ------------------------------------------------------------------------------------


_BEFORE = {
    "fal_faults": "*Members*; `**which` are the keywords of [Which](types.md#which), such as "
    '`path="/weights.bin", times=1`:\n',
}
_AFTER = {
    "fal_runner": "It returns a [Runner](types.md#runner).\n",
    "fal_cuda_runner": "What a test needs of its device stands in [its marker](options.md#markers)."
    "\n",
}


def fixtures_page() -> tuple[str, str]:
    """Each fixture, with the members of what it gives."""
    parts = [
        "Every fixture stands on `fal_emulator`, lives as long as its test and begins empty. A "
        "test that uses none of them is left as it was. Types of ours that members return are "
        "described with [the types](types.md); all of them can be imported from `pytest_fal`, "
        "for annotations.\n"
    ]
    for name, doc, gives in fixtures():
        parts.append(f"## {name}\n\n{markdown(doc)}\n")
        if gives == "respx.MockRouter":
            parts.append(
                "It is a [respx](https://lundberg.github.io/respx/) router: see its documentation "
                "for `get`, `post`, `route` and the rest.\n"
            )
        elif gives == "RunnerFactory":
            factory = _call_of(public_types()["RunnerFactory"])
            parts.append(
                _entry(Member(name, factory.signature.replace("__call__", name), factory.doc))
            )
            if name == "fal_runner":
                parts.append("It returns a [Runner](types.md#runner).\n")
            else:
                parts.append(
                    "What a test asks of its device stands in [its marker](options.md#markers).\n"
                )
        else:
            cls = public_types()[gives]
            if name == "fal_tmp":
                parts.append("The members are those of [fal_data](#fal_data).\n")
                continue
            parts.append(f"Its type is `{gives}`. {_about(cls)}\n")
            parts.append(_BEFORE.get(name, "*Members:*\n"))
            parts += [_entry(member, ".") for member in members_of(cls)]
    return _page("fixtures.md", "Fixtures", *parts)


def fixtures() -> list[tuple[str, str, str]]:
    """Name, docstring and annotated type of each fixture, in the order of the code."""
    source = Path(importlib.import_module("pytest_fal.fixtures").__file__ or "").read_text("utf-8")
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("fal_"):
            gives = ast.unparse(node.returns) if node.returns else ""
            gives = re.sub(r"^Generator\[(\w+), .*$", r"\1", gives)
            found.append((node.name, ast.get_docstring(node) or "", gives))
    return found


def _call_of(cls: type) -> Member:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    call = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "__call__")
    return _function(call)


def types_page() -> tuple[str, str]:
    """The types that no fixture is, but that their members return."""
    shown = {gives for _, _, gives in fixtures()} | {"Settings", "RunnerFactory"}
    parts = [
        "What the members of [the fixtures](fixtures.md) return. Import a name from `pytest_fal` "
        "to write it into an annotation (`Resolver` and `Which` need none). "
        "[Settings](settings.md) and [errors](errors.md) have pages of their own.\n"
    ]
    for name, cls in sorted(public_types().items()):
        if name not in shown and not issubclass(cls, Exception):
            parts.append(f"## {name}\n\n{_about(cls)}\n")
            parts += [_entry(member, ".") for member in members_of(cls)]
    return _page("types.md", "Types", *parts)


def errors_page() -> tuple[str, str]:
    """Errors and warnings."""
    from emulator import errors

    ours = {name: getattr(errors, name) for name in errors.__all__ if name != "RefusedRequest"}
    exported = {n: c for n, c in public_types().items() if issubclass(c, Exception)}
    parts = [
        "An error of the emulator's says what happened, why, and the line to write. Those that can "
        "be imported from `pytest_fal` are told there as such; the others are in "
        "`emulator.errors`.\n",
        "What an app raises on a runner is none of these: it comes to the test as it is, or as the "
        "answer that the SDK makes of it.\n",
    ]
    for name, cls in sorted((ours | exported).items()):
        bases = ", ".join(f"`{base.__name__}`" for base in cls.__bases__)
        module = "pytest_fal" if name in exported else cls.__module__
        kind = "warning" if issubclass(cls, Warning) else "error"
        parts.append(
            f"## {name}\n\nA{'n' if kind == 'error' else ''} {kind}, a kind of {bases}. "
            f"`from {module} import {name}`\n\n{_about(cls)}\n"
        )
        parts += [
            _entry(member, ".") for member in members_of(cls) if not member.name.startswith("fal_")
        ]
    return _page("errors.md", "Errors and warnings", *parts)


def settings_page() -> tuple[str, str]:
    """Every field of Settings under the headings of its module."""
    from emulator.settings import Settings

    source = inspect.getsource(sys.modules[Settings.__module__])
    parts = [
        "Settings of one test go into its marker, or into the marker of its class or module "
        "(`pytestmark`); of several, the one closest to the test wins:\n",
        "```python\n"
        "from datetime import timedelta\n\n"
        "import pytest\n\n\n"
        "@pytest.mark.fal(account_expiration=timedelta(days=7))\n"
        "def test_files_of_this_account_live_a_week(fal_cdn, fal_clock, fal_emulator):\n"
        '    url = fal_cdn.put(b"hello")\n'
        "    fal_clock.advance(days=7)\n"
        "    fal_cdn.assert_expired(url)\n"
        "    assert fal_emulator.settings.account_expiration == timedelta(days=7)\n"
        "```\n",
        "Without pytest they are arguments of the emulator: "
        "`Emulator(Settings(account_expiration=timedelta(days=7)))`. A name that is none, or a "
        "value that cannot be, is an error when the test is set up.\n",
        "Where fal's documentation and SDK are silent, the default is the value that makes bugs "
        "easiest to see.\n",
    ]
    for line in source.splitlines():
        heading = re.match(r"    # --- (.+?) -+$", line)
        name = re.match(r"    (\w+): .+ = ", line)
        if heading:
            parts.append(f"## {heading.group(1)[:1].upper()}{heading.group(1)[1:]}\n")
        elif name and name.group(1) in Settings.model_fields:
            field = Settings.model_fields[name.group(1)]
            kind = str(Settings.__annotations__[name.group(1)]).replace("'", '"')
            default = _default(field.get_default(call_default_factory=True))
            text = markdown(field.description or "")
            parts.append(f"- `{name.group(1)}`: `{kind}` = `{default}`\n\n  {text}\n")
    return _page("settings.md", "Settings", *parts)


def _default(value: Any) -> str:
    from datetime import timedelta

    if isinstance(value, timedelta):
        days, seconds = value.days, value.total_seconds()
        if not value:
            return "timedelta(0)"
        if not seconds % 86400:
            return f"timedelta(days={days})"
        unit = "hours" if not seconds % 3600 else "seconds"
        return f"timedelta({unit}={seconds / 3600 if unit == 'hours' else seconds:g})"
    if isinstance(value, tuple) and len(value) > 2:
        return f"({_default(value[0])}, ..., {_default(value[-1])})"
    return repr(value).replace("'", '"')


class _Recorder:
    """Stands for pytest's parser and config, and keeps what the plugin registers."""

    def __init__(self) -> None:
        self.options: list[tuple[str, str]] = []
        self.settings: list[tuple[str, str, Any]] = []
        self.markers: list[str] = []
        self.pluginmanager = self

    def getgroup(self, name: str, *args: object, **kwargs: object) -> _Recorder:
        return self

    def addoption(self, *names: str, help: str = "", **kwargs: object) -> None:
        self.options.append((", ".join(names), help))

    def addini(self, name: str, help: str, default: object = None, **kwargs: object) -> None:
        self.settings.append((name, help, default))

    def addinivalue_line(self, name: str, line: str) -> None:
        self.markers.append(line)

    def hasplugin(self, name: str) -> bool:
        return False

    def getoption(self, name: str, default: object = None) -> None:
        return None

    def add_cleanup(self, action: Callable[[], None]) -> None:
        action()

    def getini(self, name: str) -> object:
        return next(default for known, _, default in self.settings if known == name)


def options_page() -> tuple[str, str]:
    """Markers, command-line options, ini settings and environment variables."""
    from pytest_fal import plugin

    seen = _Recorder()
    plugin.pytest_addoption(seen)  # type: ignore[arg-type]
    plugin.pytest_configure(seen)  # type: ignore[arg-type]
    parts = ["## Markers\n"]
    for line in seen.markers:
        written, _, text = line.partition(": ")
        parts.append(f"- `@pytest.mark.{written}`\n\n  {_sentence(text)}\n")
    parts += [
        "The fields are [the settings](settings.md). Markers of a class or a module hold for its "
        "tests, and the closest to the test wins, argument by argument.\n",
        "## Command-line options\n",
        *(f"- `{names}`\n\n  {_sentence(text)}\n" for names, text in seen.options),
        "`-p no:fal` turns the plugin off for one run.\n",
        "## Settings in pytest's configuration\n",
        *(
            f"- `{name}` = `{str(default).lower()}`\n\n  {_sentence(text)}\n"
            for name, text, default in seen.settings
        ),
        "Where a plugin has started threads by the time that pytest loads plugins, "
        "`addopts = -p pytest_fal.namespace` loads this part before it.\n",
        "## Environment variables of a test\n",
        "While a test uses a fixture of ours its environment has these; they are put back after "
        "it. Runners have what fal gives them besides.\n",
        *(f"- {_names(names)}: {text}" for names, text in VARIABLES.items()),
        "\nThese are taken out:\n",
        *(f"- {_names(names)}" for names in REMOVED),
    ]
    return _page("options.md", "Markers, options and environment", *parts)


def _names(text: str) -> str:
    """With the names of variables as code."""
    return re.sub(r"\b([A-Za-z]+_[A-Za-z_0-9]+|NETRC|TMPDIR|TEMP|TMP)\b", r"`\1`", text)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def pages() -> dict[str, str]:
    """The pages by file name."""
    made = (fixtures_page, types_page, settings_page, options_page, errors_page)
    return dict(page() for page in made)


def wordless() -> list[str]:
    """What is public and has no words about it."""
    silent = [name for name, doc, _ in fixtures() if not doc]
    for name, cls in public_types().items():
        silent += [name] if not inspect.getdoc(cls) else []
        silent += [f"{name}.{member.name}" for member in members_of(cls) if not member.doc]
    return silent


def unknown_internals() -> list[str]:
    """Names in INTERNAL that no class has any more."""
    gone = []
    for name, cls in public_types().items():
        there = {m.name for base in cls.__mro__ if _is_ours(base) for m in _written_in(base)}
        gone += [f"{name}.{x}" for x in INTERNAL.get(name, "").split() if x not in there]
    return gone + [name for name in INTERNAL if name not in public_types()]


if __name__ == "__main__":
    for file, text in pages().items():
        (HERE / file).write_text(text, "utf-8")
