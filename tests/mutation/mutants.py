"""The small changes that are made to a module, one at a time: pure, from source to syntax trees.

Not changed is what no program sees at run time: docstrings, annotations, type aliases, ``__all__``,
that a dataclass is frozen, and what stands under ``if TYPE_CHECKING``.
"""

from __future__ import annotations

import ast
import copy
import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

__all__ = ["Module", "Mutant"]

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
_NAMES = {
    "all": "any",
    "any": "all",
    "bisect_right": "bisect_left",
    "ceil": "floor",
    "endswith": "startswith",
    "find": "rfind",
    "fullmatch": "match",
    "lower": "upper",
    "lstrip": "rstrip",
    "max": "min",
    "min": "max",
    "partition": "rpartition",
    "removeprefix": "removesuffix",
    "removesuffix": "removeprefix",
    "search": "match",
    "startswith": "endswith",
    "strip": "lstrip",
    "upper": "lower",
}
#: Whose two first arguments mean the same, or cannot be swapped without an error.
_NOT_SWAPPED = frozenset({"min", "max", "isinstance", "getattr", "TypeVar", "cast", "re.compile"})
_INVISIBLE_CALLS = frozenset({"TypeVar", "cast"})
_LONGEST_SHOWN = 60

Place = tuple[ast.AST, str, int | None]


@dataclass(frozen=True)
class Mutant:
    """One change of a module.

    ``name`` says where it is and what it is, in words that other changes of the module leave as
    they are: ``parse_range: first >= size -> first > size``.
    """

    name: str
    line: int
    #: The first line of the outermost function that it is in; None: it is run by the import.
    function: int | None
    place: Place
    after: Any


class Module:
    """A module's source, and all of its mutants.

    Args:
        source: its text.
        file_name: what its code is said to come from.
        only: the names of the top-level functions and of the methods (``Clock.on``) that count;
            empty: all.
    """

    def __init__(self, source: str, file_name: str, only: tuple[str, ...] = ()) -> None:
        self.file_name = file_name
        self._tree = ast.parse(source)
        found = _Finder().find(self._tree)
        if only:
            found = [mutant for mutant in found if _is_in(mutant.name, only)]
        self.mutants = tuple(_numbered(found))

    def code(self, mutant: Mutant | None = None) -> CodeType:
        """The module with one change, or as it is."""
        if mutant is None:
            return compile(self._tree, self.file_name, "exec")
        before = _get(mutant.place)
        _set(mutant.place, mutant.after)
        try:
            return compile(self._tree, self.file_name, "exec")
        finally:
            _set(mutant.place, before)

    def difference(self, mutant: Mutant) -> str:
        """The lines that a mutant changes, before and after."""
        old, before = ast.unparse(self._tree), _get(mutant.place)
        _set(mutant.place, mutant.after)
        new = ast.unparse(self._tree)
        _set(mutant.place, before)
        lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def _is_in(name: str, only: tuple[str, ...]) -> bool:
    scope = name.partition(": ")[0]
    return any(scope == one or scope.startswith(f"{one}.") for one in only)


def _numbered(found: list[Mutant]) -> Iterator[Mutant]:
    seen: Counter[str] = Counter()
    for mutant in found:
        seen[mutant.name] += 1
        number = seen[mutant.name]
        yield mutant if number == 1 else replace(mutant, name=f"{mutant.name} #{number}")


def _get(place: Place) -> Any:
    node, field, index = place
    value = getattr(node, field)
    return value if index is None else value[index]


def _set(place: Place, value: Any) -> None:
    node, field, index = place
    if index is None:
        setattr(node, field, value)
    else:
        getattr(node, field)[index] = value


def _shown(node: ast.AST) -> str:
    """A node in few words; of a statement its first line."""
    text = ast.unparse(node).splitlines()[0]
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _name_of(function: ast.expr) -> str:
    """``min`` of ``min``, ``strip`` of ``a.b.strip``."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


class _Finder:
    """Goes through a module and notes what can be changed."""

    def __init__(self) -> None:
        self._found: list[Mutant] = []
        self._scope: list[str] = []
        self._function: int | None = None

    def find(self, tree: ast.Module) -> list[Mutant]:
        self._visit_children(tree)
        return self._found

    def _visit_children(self, node: ast.AST) -> None:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "type_comment", "ctx", "decorator_list"):
                continue
            if isinstance(value, list):
                for index, child in enumerate(value):
                    if isinstance(child, ast.AST):
                        self._visit(child, (node, field, index))
            elif isinstance(value, ast.AST):
                self._visit(value, (node, field, None))

    def _visit(self, node: ast.AST, place: Place) -> None:
        if _is_invisible(node) or _is_type_of_cast(place):
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self._visit_definition(node)
            return
        for after in _changes(node, place):
            where = f" in {_shown(place[0])}" if isinstance(node, ast.Constant) else ""
            self._note(node, place, after, f"{_shown(node)} -> {_shown(after)}{where}")
        for inner, after, told in _changes_inside(node):
            self._note(node, inner, after, told)
        self._visit_children(node)

    def _visit_definition(self, node: Any) -> None:
        outer = self._function
        self._scope.append(node.name)
        for index, decorator in enumerate(node.decorator_list):
            self._visit(decorator, (node, "decorator_list", index))
        if not isinstance(node, ast.ClassDef):
            self._visit(node.args, (node, "args", None))  # defaults are computed by the import
            first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
            self._function = outer or first
        for index, statement in enumerate(node.body):
            self._visit(statement, (node, "body", index))
        self._function = outer
        self._scope.pop()

    def _note(self, node: Any, place: Place, after: Any, told: str) -> None:
        for one in after if isinstance(after, list) else [after]:
            if isinstance(one, ast.AST):
                ast.copy_location(one, node)
                ast.fix_missing_locations(one)
        name = f"{'.'.join(self._scope) or 'module'}: {told}"
        self._found.append(Mutant(name, getattr(node, "lineno", 0), self._function, place, after))


def _is_invisible(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.keyword) and node.arg == "frozen":
        return True  # whoever would change one is told by mypy
    if isinstance(node, ast.If) and _name_of(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.AnnAssign) and _name_of(node.annotation) == "TypeAlias":
        return True
    if isinstance(node, ast.Assign):
        value, targets = node.value, [_name_of(target) for target in node.targets]
        alias = isinstance(value, ast.Subscript) and _name_of(value.value) in (
            "Callable", "Iterable", "Literal",
        )  # fmt: skip
        return alias or targets == ["__all__"] or _is_typing_call(value)
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert))


def _is_type_of_cast(place: Place) -> bool:
    node, field, index = place
    return (
        isinstance(node, ast.Call)
        and _name_of(node.func) == "cast"
        and (field, index)
        == (
            "args",
            0,
        )
    )


def _is_typing_call(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and _name_of(value.func) in _INVISIBLE_CALLS


def _changes(node: ast.AST, place: Place) -> Iterator[Any]:
    """What may stand in a node's place."""
    match node:
        case ast.Compare(left, [operator], [right]):
            for other in _COMPARISONS[type(operator)]:
                yield ast.Compare(left, [other()], [right])
        case ast.Compare(left, operators, rights):
            for index, operator in enumerate(operators):
                other = _COMPARISONS[type(operator)][0]
                changed = [*operators[:index], other(), *operators[index + 1 :]]
                yield ast.Compare(left, changed, rights)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
            for index in range(len(values)):
                rest = [*values[:index], *values[index + 1 :]]
                yield ast.BoolOp(operator, rest) if len(rest) > 1 else rest[0]
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.BinOp(left, operator, right):
            yield ast.BinOp(left, _ARITHMETIC[type(operator)](), right)
        case ast.AugAssign(target, operator, value):
            yield ast.AugAssign(target, _ARITHMETIC[type(operator)](), value)
            yield ast.Assign([target], value, lineno=0)
            yield ast.Pass()
        case ast.Constant(value):
            yield from _constants(value)
        case ast.IfExp(_, body, orelse):
            yield body
            yield orelse
        case ast.Return(value):
            if value is not None and not isinstance(value, ast.Constant):
                yield ast.Return(ast.Constant(None))
            if place[1] == "body" and isinstance(place[0], (ast.If, ast.For, ast.While)):
                yield ast.Pass()
        case ast.Raise() | ast.Delete():
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Pass()
        case ast.Expr(ast.Call() | ast.YieldFrom() | ast.Yield()):
            yield ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Call():
            yield from _calls(node)
        case ast.Lambda(arguments, body) if not isinstance(body, ast.Constant):
            yield ast.Lambda(arguments, ast.Constant(None))


def _constants(value: object) -> Iterator[ast.expr]:
    match value:
        case bool():
            yield ast.Constant(not value)
        case int() | float():
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case str():
            yield ast.Constant(f"XX{value}XX")
        case bytes():
            yield ast.Constant(b"XX" + value + b"XX")


def _calls(node: ast.Call) -> Iterator[ast.expr]:
    name = _name_of(node.func)
    if name in _NAMES:
        yield ast.Call(_renamed(node.func, _NAMES[name]), node.args, node.keywords)
    swapped = node.args[1::-1]
    if len(swapped) == 2 and name not in _NOT_SWAPPED and ast.unparse(node.func) != "re.compile":
        same = ast.dump(swapped[0]) == ast.dump(swapped[1])
        if not same and not any(isinstance(one, ast.Starred) for one in swapped):
            yield ast.Call(node.func, [*swapped, *node.args[2:]], node.keywords)
    if name == "get" and len(node.args) == 2:
        yield ast.Call(node.func, node.args[:1], node.keywords)
    if name in ("strip", "lower", "upper", "lstrip", "rstrip") and not node.args:
        yield node.func.value  # type: ignore[attr-defined]
    for index, keyword in enumerate(node.keywords):
        if isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool):
            continue  # to turn it round says as much
        rest = [*node.keywords[:index], *node.keywords[index + 1 :]]
        yield ast.Call(node.func, node.args, rest)


def _renamed(function: ast.expr, name: str) -> ast.expr:
    changed = copy.copy(function)
    if isinstance(changed, ast.Attribute):
        changed.attr = name
    else:
        assert isinstance(changed, ast.Name)
        changed.id = name
    return changed


def _changes_inside(node: ast.AST) -> Iterator[tuple[Place, Any, str]]:
    """What may be changed in a node that stays: where, what may be there, and in words."""
    match node:
        case ast.If(test) | ast.While(test) | ast.IfExp(test):
            told_already = ast.Compare, ast.BoolOp, ast.Constant
            if not isinstance(test, told_already) and not _is_not(test):
                shown = _shown(test)
                yield (node, "test", None), ast.UnaryOp(ast.Not(), test), f"{shown} -> not {shown}"
        case ast.comprehension(_, _, conditions):
            for index, condition in enumerate(conditions):
                rest = [*conditions[:index], *conditions[index + 1 :]]
                yield (node, "ifs", None), rest, f"without if {_shown(condition)}"
        case ast.ExceptHandler(ast.Tuple(types)):
            for index, one in enumerate(types):
                rest = ast.Tuple([*types[:index], *types[index + 1 :]], ast.Load())
                yield (node, "type", None), rest, f"except {_shown(one)} -> not caught"
        case ast.Slice(lower, upper):
            if lower is not None:
                yield (node, "lower", None), None, f"[{_shown(lower)}:] -> [:]"
            if upper is not None:
                yield (node, "upper", None), None, f"[:{_shown(upper)}] -> [:]"


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
