"""The mutation tester: the changes that it makes, its list of reasons, and docs/mutation.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

MUTATION = Path(__file__).parent / "mutation"


@pytest.fixture(scope="module")
def tester() -> SimpleNamespace:
    """The modules of the command, found as Python finds those beside a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(MUTATION))
        import mutants
        import mutation_page as page
        import survivors
        import targets
    return SimpleNamespace(
        Module=mutants.Module,
        Survivors=survivors.Survivors,
        TARGETS=targets.TARGETS,
        ROOT=targets.ROOT,
        page=page,
    )


# --- the changes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("a < b", ["a < b -> a <= b", "a < b -> a >= b"]),
        ("a is b", ["a is b -> a is not b"]),
        ("a < b <= c", ["a < b <= c -> a <= b <= c", "a < b <= c -> a < b < c"]),
        ("a and b", ["a and b -> a or b", "a and b -> b", "a and b -> a"]),
        ("not a", ["not a -> a"]),
        ("a + b", ["a + b -> a - b"]),
        ("a = 1", ["1 -> 2 in a = 1", "1 -> 0 in a = 1"]),
        ("a = True", ["True -> False in a = True"]),
        ("a = 'b'", ["'b' -> 'XXbXX' in a = 'b'"]),
        ("a = b if c else d", ["b if c else d -> b", "b if c else d -> d", "c -> not c"]),
        ("a += b", ["a += b -> a -= b", "a += b -> a = b", "a += b -> pass"]),
        ("a.b = c", ["a.b = c -> pass"]),
        ("a[b] = c", ["a[b] = c -> pass"]),
        ("del a[b]", ["del a[b] -> pass"]),
        ("a = b[c:d]", ["[c:] -> [:]", "[:d] -> [:]"]),
        ("a()", ["a() -> pass"]),
        ("a = min(b, c)", ["min(b, c) -> max(b, c)"]),
        ("a = f(b, c)", ["f(b, c) -> f(c, b)"]),
        ("a = f(b=c)", ["f(b=c) -> f()"]),
        ("a = b.strip()", ["b.strip() -> b.lstrip()", "b.strip() -> b"]),
        ("a = [b for b in c if d]", ["without if d"]),
        ("for a in b: break", ["break -> continue"]),
        ("for a in b: continue", ["continue -> pass"]),
        ("def f(): return a", ["return a -> return None"]),
        ("def f(a=b): raise a", ["raise a -> pass"]),
        ("def f():\n if a: return", ["a -> not a", "return -> pass"]),
        ("try: pass\nexcept (A, B): pass", ["except A -> not caught", "except B -> not caught"]),
    ],
)
def test_a_change(tester: SimpleNamespace, source: str, changes: list[str]) -> None:
    made = tester.Module(source, "a.py").mutants
    assert [mutant.name.partition(": ")[2] for mutant in made] == changes


@pytest.mark.parametrize(
    "source",
    [
        '"""Of a module."""',
        "import a",
        "from a import b",
        "a: int",
        "def f(a: int) -> str: ...",
        "__all__ = ['a']",
        "A = Literal['a']",
        "a = cast('int', b)",
        "A: TypeAlias = Literal['a']",
        "T = TypeVar('T')",
        "@dataclass(frozen=True)\nclass A: pass",
        "if TYPE_CHECKING:\n    a = 1",
        "assert a",
    ],
)
def test_what_nobody_sees_is_not_changed(tester: SimpleNamespace, source: str) -> None:
    assert tester.Module(source, "a.py").mutants == ()


def test_each_change_is_made_alone(tester: SimpleNamespace) -> None:
    module = tester.Module("a = 1\nb = 1", "a.py")
    found = []
    for mutant in (*module.mutants, None):
        names: dict[str, int] = {}
        exec(module.code(mutant), names)
        found.append((names["a"], names["b"]))
    assert found == [(2, 1), (0, 1), (1, 2), (1, 0), (1, 1)]


def test_a_change_is_named_by_where_it_is_and_shown(tester: SimpleNamespace) -> None:
    source = "class A:\n    def f(self):\n        return b < c\n\n    x = [0, 0]"
    mutants = tester.Module(source, "a.py").mutants
    assert [mutant.name for mutant in mutants] == [
        "A.f: return b < c -> return None",
        "A.f: b < c -> b <= c",
        "A.f: b < c -> b >= c",
        "A: 0 -> 1 in [0, 0]",
        "A: 0 -> -1 in [0, 0]",
        "A: 0 -> 1 in [0, 0] #2",
        "A: 0 -> -1 in [0, 0] #2",
    ]
    assert [mutant.function for mutant in mutants] == [2, 2, 2, None, None, None, None]
    shown = tester.Module(source, "a.py")
    assert shown.difference(shown.mutants[1]) == ("-        return b < c\n+        return b <= c")


def test_only_some_functions_may_count(tester: SimpleNamespace) -> None:
    source = "class A:\n    def f(self): return b\n    def g(self): return b\ndef h(): return b"
    names = [m.name for m in tester.Module(source, "a.py", ("A.g", "h")).mutants]
    assert names == ["A.g: return b -> return None", "h: return b -> return None"]


# --- the command ----------------------------------------------------------------------------------


def test_an_unknown_module_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(MUTATION / "run.py"), "lifecicle"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "there is no lifecicle. Write some of: lifecycle, timeline" in done.stderr


# --- the reasons and the page ---------------------------------------------------------------------


def test_what_is_explained_is_a_change_that_is_made(tester: SimpleNamespace) -> None:
    survivors = tester.Survivors.read()
    targets = {target.path: target for target in tester.TARGETS}
    assert set(survivors.tables) <= set(targets)
    for path in survivors.tables:
        target = targets[path]
        made = {m.name for m in tester.Module(target.source, path, target.only).mutants}
        explained = survivors.of(target)
        assert set(explained) <= made
        assert all(explained.values())


def test_the_page_is_about_the_modules_as_they_are(tester: SimpleNamespace) -> None:
    rows = tester.page.read()
    assert [*rows] == [target.path for target in tester.TARGETS]
    changed = [t.name for t in tester.TARGETS if rows[t.path].code != tester.page.hash_of(t)]
    assert not changed, (
        f"docs/mutation.md is about earlier code. Write: python tests/mutation/run.py write "
        f"{' '.join(changed)}"
    )


def test_the_page_says_what_the_reasons_say(tester: SimpleNamespace) -> None:
    survivors, rows = tester.Survivors.read(), tester.page.read()
    for target in tester.TARGETS:
        assert rows[target.path].explained == len(survivors.of(target)), target.name
