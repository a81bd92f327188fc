"""The names of other packages that nobody has promised us: they are there, and there are no others.

The first test that fails under a new version of a package: it says which name is gone.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from emulator import reliance
from emulator.errors import UnsupportedVersionError
from emulator.relied_on import PACKAGES, PYTHON, Name, Package

ROOT = Path(__file__).parent.parent
OURS = ("emulator", "pytest_fal")
NAMES = [pytest.param(p, n, id=f"{p.name}-{n.dotted}") for p in PACKAGES for n in p.names]
PRIVATE = re.compile(r"_[A-Za-z]\w*")

#: Names that begin with an underscore and are documented all the same.
DOCUMENTED = {"_getframe", "_exit", "_current_frames", "_replace", "_fields", "_asdict"}
#: Strings that only look like such a name.
NO_NAMES = {
    "_emulator_stands_for": "an attribute that we set ourselves",
    "_do_": "the beginning of names of our own methods",
    "_data": "the beginning of our own files' names, and of a variable's",
    "_ns": "the end of an argument's name",
    "_find": "an attribute of our own, set past our own __setattr__",
    "_pytest": "a package whose modules wait in real time",
    "_dispatch": "a method of our own",
    "_fal_emulator_start": "an attribute that we set ourselves",
    "_multicall": "a function of pluggy's, by whose name frames are left out, if it has it",
}


# --- each is there -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of packages that are imported here for the first time
@pytest.mark.parametrize(("package", "name"), NAMES)
def test_it_is_there(package: Package, name: Name) -> None:
    if not reliance.is_expected(package, name):
        pytest.skip(f"not in this version of {package.name}")
    if package.name != PYTHON:
        pytest.importorskip(name.module.split(".")[0])
    importlib.import_module(name.module)
    assert reliance.lack(name) == ""


def test_what_uvicorn_says_is_what_we_wait_for() -> None:
    import uvicorn.lifespan.on
    import uvicorn.protocols.http.h11_impl

    from emulator.runners import server_log

    said = inspect.getsource(uvicorn.lifespan.on)
    assert repr(server_log._SHUTDOWN)[1:-1] in said
    said = inspect.getsource(uvicorn.protocols.http.h11_impl)
    assert repr(server_log._IN_A_REQUEST)[1:-1] in said


def test_what_the_sdk_prints_is_what_we_leave_out() -> None:
    import fal.app

    from emulator.runners import output

    assert output._NOISE in inspect.getsource(fal.app)


def test_the_packages_are_those_that_the_matrix_tries() -> None:
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        import cells
    finally:
        del sys.path[0]
    fal = next(package for package in PACKAGES if package.name == "fal")
    known = [version for version in cells.FALS if version != cells.NEWEST]
    assert (known[0], known[-1]) == (fal.oldest, fal.newest)


def test_the_oldest_versions_are_the_lower_bounds_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()  # 3.10 has no tomllib
    bounds = dict(re.findall(r'^    "([\w.-]+?)(?:\[\w+\])?>=([\d.]+)",$', text, re.MULTILINE))
    assert "fal" in bounds
    for package in PACKAGES:
        if package.name in bounds:
            assert package.oldest.startswith(bounds[package.name]), package.name


# --- and there are no others ---------------------------------------------------------------------


def test_our_source_uses_no_others() -> None:
    listed = {part for package in PACKAGES for name in package.names for part in _parts(name)}
    sources = {path: ast.parse(path.read_text()) for path in _files()}
    ours = {name for tree in sources.values() for name in _defined(tree)}
    strangers = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, tree in sources.items()
        for line, name, is_own in _used(tree, ours)
        if name not in listed and name not in DOCUMENTED and name not in NO_NAMES and not is_own
    ]
    assert strangers == [], "emulator/relied_on.py has to list them"


def test_each_module_that_is_named_uses_what_it_is_said_to_use() -> None:
    for package in PACKAGES:
        for name in package.names:
            for file in name.used_in.split(", "):
                text = (ROOT / "emulator" / file).read_text()
                ends = name.parameters or (name.dotted.split(".")[-1],)
                for end in ends:
                    assert re.search(rf"\b{end}\b", text), f"{file} does not use {name.dotted}"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import fal._private", ["_private"]),
        ("from fal import _private", ["_private"]),
        ("thing._private = 1", ["_private"]),
        ("getattr(thing, '_private', None)", ["_private"]),
        ("sys.modules.get('fal._private')", ["_private"]),
        ("make(_private=True)", ["_private"]),
        ("'a _private b'", ["_private"]),
        ("class A(B):\n def f(self): return self._private", ["_private"]),
        ("class A:\n def f(self): self._private = 1; return self._private", []),
        ("def _private(): ...\nmodule._private()", []),
        ("thing.__dict__", []),
    ],
)
def test_what_the_search_finds(code: str, found: list[str]) -> None:
    tree = ast.parse(code)
    assert [name for _, name, is_own in _used(tree, _defined(tree)) if not is_own] == found


def _files() -> list[Path]:
    return [path for folder in OURS for path in sorted((ROOT / folder).rglob("*.py"))]


def _parts(name: Name) -> list[str]:
    return [*name.module.split("."), *name.attributes, *name.parameters]


def _defined(tree: ast.AST) -> set[str]:
    """What a module of ours calls its own things."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if _is_self(node.value):
                found.add(node.attr)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def _used(tree: ast.AST, everywhere: set[str]) -> Iterator[tuple[int, str, bool]]:
    """Private names in a module: where, which, and whether it is our own.

    A name that is also one of ours is taken for somebody else's, unless the module itself has it,
    or it is looked up on ``self`` (a base class of ours may have it).
    """
    here = _defined(tree)
    for node in ast.walk(tree):
        known = here
        if isinstance(node, ast.Attribute):
            names = [node.attr]
            known = everywhere if _is_self(node.value) else here
        elif isinstance(node, ast.keyword):
            names = [node.arg or ""]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = re.split(r"[\s.]+", node.value) if len(node.value) < 200 else []
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(one.name for one in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for one in node.names for part in one.name.split(".")]
        else:
            continue
        for name in names:
            if PRIVATE.fullmatch(name):
                yield getattr(node, "lineno", 0), name, name in known


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


# --- what is said when one is gone ---------------------------------------------------------------


def run(code: str, *arguments: str) -> str:
    """What a Python of its own prints, to which the test may do anything."""
    program = textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip()


PYTEST_FAL = (
    "Install a newer pytest-fal (pip install --upgrade pytest-fal), or what it knows: pip install"
)


def test_the_beginning_of_a_test_says_which_name_is_gone_and_what_to_install() -> None:
    said = run(
        """
        import fal.ref
        from emulator.errors import UnsupportedVersionError
        from emulator.sdk import SDKState
        del fal.ref.current_app
        try:
            SDKState().save("/nowhere")
        except UnsupportedVersionError as error:
            print(error)
        """
    )
    assert said == (
        f"fal {metadata.version('fal')} has no fal.ref.current_app, by which pytest-fal tells the "
        "SDK which app runs (emulator/sdk.py, sdk_apps.py). This version of pytest-fal was tested "
        f'with 1.75.5 to 1.83.0. {PYTEST_FAL} "fal==1.83.0"'
    )


def test_a_parameter_that_is_gone_is_named() -> None:
    said = run(
        """
        import fal.app
        from emulator.errors import UnsupportedVersionError
        from emulator.sdk import SDKState
        fal.app.App.__init__ = lambda self: None
        try:
            SDKState().save("/nowhere")
        except UnsupportedVersionError as error:
            print(error)
        """
    )
    assert "has a fal.app.App without the parameter _allow_init, by which" in said


def test_a_package_without_what_we_import_of_it_is_explained() -> None:
    said = run(
        """
        import respx.models
        del respx.models.AllMockedAssertionError
        from emulator.errors import UnsupportedVersionError
        try:
            from emulator import Emulator
        except UnsupportedVersionError as error:
            print(error)
        """
    )
    assert said.startswith(
        f"respx {metadata.version('respx')} is not as it was (cannot import name "
        "'AllMockedAssertionError' from 'respx.models'"
    )
    assert said.endswith(f'{PYTEST_FAL} "respx==0.23.1"')


def test_what_only_leaves_something_behind_stops_nobody() -> None:
    said = run(
        """
        import fal.toolkit.file.file
        from emulator.sdk import SDKState
        del fal.toolkit.file.file.FALLBACK_REPOSITORY
        SDKState().save("/nowhere")
        print("saved")
        """
    )
    assert said == "saved"


def test_a_name_that_an_older_version_never_had_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = Name("json:nothing", "sdk.py", "does something", since="2.0")
    package = Package("json", "1.0", "3.0", (name,))
    for installed, is_expected in (("1.9", False), ("2.0", True), ("2.0rc1", True), ("4", True)):
        monkeypatch.setattr(reliance, "_installed", lambda _, installed=installed: installed)
        assert reliance.is_expected(package, name) is is_expected
    gone = Name("json:nothing", "sdk.py", "does something", until="2.0")
    assert not reliance.is_expected(package, gone)


def test_errors_of_other_packages_are_none_of_ours() -> None:
    for error in (
        ValueError("x"),
        ImportError("no module", name="their_code"),
        AttributeError("x"),
    ):
        assert reliance.explain(error) is None


def test_an_attribute_of_the_sdk_that_is_not_listed_is_explained_too() -> None:
    import fal.app

    with pytest.raises(AttributeError) as caught:
        _ = fal.app.App.nothing_of_the_kind
    explained = reliance.explain(caught.value)
    assert isinstance(explained, UnsupportedVersionError)
    assert "is not as it was (type object 'App' has no attribute" in str(explained)


def a_newer_fal(tmp_path: Path) -> Path:
    """A directory in which pip would have put the metadata of another fal."""
    folder = tmp_path / "fal-99.0.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: fal\nVersion: 99.0.0\n")
    return tmp_path


def test_a_newer_version_than_was_tested_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not [one for one in reliance.newer_packages() if one.startswith("fal ")]
    monkeypatch.syspath_prepend(str(a_newer_fal(tmp_path)))
    assert reliance.newer_packages(["fal"]) == [
        "fal 99.0.0 is newer than 1.83.0, the newest that this version of pytest-fal was tested "
        "with"
    ]


def test_a_failing_test_tells_that_fal_is_newer(
    pytester: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(a_newer_fal(tmp_path / "newer")))
    pytester.makepyfile("def test_it(fal_data):\n    assert not 'this'")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(
        ["*- fal: versions -*", "fal 99.0.0 is newer than 1.83.0, the newest that *"]
    )


def test_a_missing_name_is_a_sentence_in_the_report_and_no_trace(pytester: Any) -> None:
    pytester.makeconftest("import fal.ref\ndel fal.ref.current_app")
    pytester.makepyfile("def test_it(fal_emulator): ...")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    text = result.stdout.str()
    assert "has no fal.ref.current_app, by which pytest-fal tells the SDK which app runs" in text
    assert "Traceback" not in text
    assert "sdk.py:" not in text
