"""One trial: the tests of a module, run in a child process in which one thing in it is changed.

The child is a fork of a process that has imported pytest and whatever the tests import besides
this project, but nothing of this project. So a trial takes as long as the tests themselves and
some 100 milliseconds, and nothing is left of it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.abc
import importlib.util
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import hypothesis
import pytest
from mutants import Module, Mutant
from targets import ROOT, Target

__all__ = ["Baseline", "measure", "start"]

#: A test that takes so much longer than it did hangs: plus seconds, times. Of the processor's time,
#: so that a busy machine changes nothing.
_LONGER = 1.0, 5.0
#: So much have the imports.
_IMPORT_SECONDS = 20.0
#: For what hangs without doing anything.
_REAL_SECONDS = 300.0
_MEMORY = 4 << 30
_OWN = ("emulator", "pytest_fal")
#: Nobody reads why a test fails, and what it leaves to the garbage collector is gone anyway.
_INI = str(Path(__file__).parent / "pytest.ini")
_OPTIONS = ("-q", "-x", "-c", _INI, "--noconftest", "--tb=no", "--no-summary", "--assert=plain")
_LEFT_OUT = ("cacheprovider", "unraisableexception", "threadexception")


@dataclass(frozen=True)
class Baseline:
    """The tests of a module as it is."""

    #: By the first line of a function: the tests that call it.
    callers: Mapping[int, frozenset[str]]
    #: What they import of other projects.
    imported: tuple[str, ...]
    #: How long each takes: of the processor's time.
    seconds: Mapping[str, float]

    def tests_of(self, mutant: Mutant) -> frozenset[str] | None:
        """The tests that can notice a change; None: all, for what is run by the import."""
        if mutant.function is None:
            return None
        return self.callers.get(mutant.function, frozenset())


def prepare(folder: str) -> None:
    """Make this process one to fork trials from.

    Args:
        folder: where the tests are kept compiled.
    """
    sys.dont_write_bytecode, sys.pycache_prefix = False, folder
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    # The same examples each time, and no search for the smallest: one that fails is enough.
    hypothesis.settings.register_profile(
        "mutation",
        derandomize=True,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutation")


def measure(target: Target, module: Module) -> Baseline:
    """Run the tests with the module as it is.

    Raises:
        RuntimeError: they fail, so that nothing can be said of changes.
    """
    with tempfile.NamedTemporaryFile(suffix=".baseline") as kept:
        callers = _Callers(module.file_name)

        def run() -> int:
            status = _run_tests(target, module.code(), None, callers)
            imported = tuple(sorted(name for name in sys.modules if _is_foreign(name)))
            found = {line: frozenset(names) for line, names in callers.found.items()}
            baseline = Baseline(found, imported, callers.seconds)
            Path(kept.name).write_bytes(pickle.dumps(baseline))
            return status

        status = os.waitstatus_to_exitcode(os.waitpid(_fork(run, limited=False), 0)[1])
        if status != 0:
            raise RuntimeError(f"{', '.join(target.tests)}: they fail as it is ({status})")
        baseline: Baseline = pickle.loads(Path(kept.name).read_bytes())
    for name in baseline.imported:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    return baseline


def start(target: Target, module: Module, mutant: Mutant, baseline: Baseline) -> int:
    """Begin a trial; returns the number of its process, which ends with 0 if none notices."""
    plus, times = _LONGER
    limits = {test: plus + times * seconds for test, seconds in baseline.seconds.items()}
    tests = baseline.tests_of(mutant)
    run = partial(_run_tests, target, module.code(mutant), tests, _Limits(limits))
    return _fork(run, limited=True)


def _is_foreign(name: str) -> bool:
    top = name.partition(".")[0]
    return top not in (*_OWN, "__main__") and not top.startswith("test_")


def _fork(run: Callable[[], int], *, limited: bool) -> int:
    """Run it in a child, of which nothing is seen if its time is limited."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        if limited:
            signal.setitimer(signal.ITIMER_PROF, _IMPORT_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, _REAL_SECONDS)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = run()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _run_tests(
    target: Target, code: CodeType, tests: frozenset[str] | None, *plugins: object
) -> int:
    sys.meta_path.insert(0, _Finder(target.module, code, str(ROOT / target.path)))
    files = [str(ROOT / "tests" / name) for name in target.tests]
    unwanted = [part for name in _LEFT_OUT for part in ("-p", f"no:{name}")]
    arguments = [*_OPTIONS, *unwanted, "--rootdir", str(ROOT), *files]
    return int(pytest.main(arguments, [_Chosen(tests), *plugins]))


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module code of ours."""

    def __init__(self, name: str, code: CodeType, path: str) -> None:
        self._name, self._code, self._path = name, code, path

    def find_spec(self, fullname: str, *_: Any) -> Any:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, vars(module))


class _Chosen:
    """A plugin of pytest's: only some of the tests, those with many examples last."""

    def __init__(self, names: frozenset[str] | None) -> None:
        self._names = names

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "fal: settings of a test that is not run here")

    @pytest.fixture
    def fal_clock(self) -> Iterator[Any]:
        """The one fixture of the plugin's that tests of a pure module may have: just a clock."""
        from emulator.clock import Clock

        clock = Clock()
        yield clock
        clock.reset()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        chosen = [
            one
            for one in items
            if not _needs_more(one) and (self._names is None or one.nodeid in self._names)
        ]
        items[:] = sorted(chosen, key=lambda one: hasattr(one.obj, "hypothesis"))


def _needs_more(item: Any) -> bool:
    """Whether a test is about more than a module: it has fixtures of the plugin's."""
    return any(name.startswith("fal_") and name != "fal_clock" for name in item.fixturenames)


class _Limits:
    """A plugin of pytest's: a test that takes longer ends the process."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self._seconds = seconds

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_PROF, self._seconds[nodeid])


class _Callers:
    """A plugin of pytest's: which test calls which function of a file, and how long each takes."""

    def __init__(self, file_name: str) -> None:
        self._file_name = file_name
        self._test = ""
        self.seconds: dict[str, float] = {}
        self.found: dict[int, set[str]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._test, began = item.nodeid, time.process_time()
        sys.settrace(self._note)
        yield
        sys.settrace(None)
        self.seconds[item.nodeid] = time.process_time() - began

    def _note(self, frame: FrameType, *_: object) -> None:
        if frame.f_code.co_filename == self._file_name:
            self.found.setdefault(frame.f_code.co_firstlineno, set()).add(self._test)
