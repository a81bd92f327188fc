"""Change the pure modules in small ways, one at a time, and see whether their tests notice.

``python tests/mutation/run.py [--quick] [NAME...]``
    tries all changes of these modules (``lifecycle``; default: all, with ``--quick`` those of
    lifecycle, clock and matching) and fails where one is noticed by no test and
    ``survivors.toml`` has no reason for it, or has one that is not needed;
``python tests/mutation/run.py write [NAME...]``
    does the same and keeps the counts in ``docs/mutation.md``.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mutation_page as page
from mutants import Module, Mutant
from survivors import Survivors
from targets import ROOT, TARGETS, Target
from trial import Baseline, measure, prepare, start

__all__ = ["main"]

_AT_A_TIME = 2


@dataclass(frozen=True)
class Result:
    """What came of all changes of one module."""

    module: Module
    survived: tuple[Mutant, ...]
    #: Of one processor.
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s [--quick] [write] [NAME...]"
    )
    parser.add_argument("--quick", action="store_true", help="lifecycle, clock and matching only")
    parser.add_argument("names", nargs="*", help="modules, by name: lifecycle")
    given = parser.parse_args(arguments)
    writing = given.names[:1] == ["write"]
    names = given.names[1:] if writing else given.names
    known = {target.name: target for target in TARGETS}
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"there is no {unknown[0]}. Write some of: {', '.join(known)}")
    chosen = [t for t in TARGETS if t.name in names or (not names and (t.quick or not given.quick))]

    survivors, good = Survivors.read(), True
    rows: dict[str, page.Row] = {}
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        prepare(folder)
        for target in chosen:
            result = _try_all(target)
            wrong = list(_complaints(target, result, survivors.of(target)))
            good = good and not wrong
            total, survived = len(result.module.mutants), len(result.survived)
            rows[target.path] = page.Row.of(target, total, survived, result.seconds)
            print(
                f"{target.path}: {total} changes, {total - survived} noticed, {survived} not, "
                f"{result.seconds:.0f} s",
                *wrong, sep="\n", flush=True,
            )  # fmt: skip
    if writing and good:
        page.write({**page.read(), **rows})
    return 0 if good else 1


def _complaints(target: Target, result: Result, explained: dict[str, str]) -> Iterator[str]:
    survived = {mutant.name for mutant in result.survived}
    for mutant in result.survived:
        if mutant.name not in explained:
            yield f"\nno test notices {target.path}:{mutant.line}, and it is not explained:"
            yield f"  {mutant.name}\n{result.module.difference(mutant)}"
    for name in explained:
        if name not in survived:
            yield f"\nsurvivors.toml explains a change that is noticed, or that is none: {name}"


def _try_all(target: Target) -> Result:
    began = _processor_time()
    module = Module(target.source, str(ROOT / target.path), target.only)
    baseline = measure(target, module)
    survived = tuple(_survivors(target, module, baseline))
    return Result(module, survived, _processor_time() - began)


def _processor_time() -> float:
    """Seconds that this process and its trials have computed; other programs change little."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _survivors(target: Target, module: Module, baseline: Baseline) -> Iterator[Mutant]:
    running: dict[int, Mutant] = {}
    noticed: set[str] = set()

    def finish_one() -> None:
        child, status = os.wait()
        mutant = running.pop(child)
        code = os.waitstatus_to_exitcode(status)
        if code in (4, 5, 70):  # of pytest: misused, or no test; of ours: no trial
            raise RuntimeError(f"{target.path}: {mutant.name}: the trial did not work ({code})")
        if code:
            noticed.add(mutant.name)

    for mutant in module.mutants:
        if baseline.tests_of(mutant) == frozenset():
            continue  # nothing calls it
        if len(running) == _AT_A_TIME:
            finish_one()
        running[start(target, module, mutant, baseline)] = mutant
    while running:
        finish_one()
    yield from (mutant for mutant in module.mutants if mutant.name not in noticed)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # else sets differ from one run to the next
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    sys.exit(main())
