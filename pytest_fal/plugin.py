"""Hooks, options and markers. Loaded in every pytest run of its environment, so it imports little.

What it does there when nobody uses a fixture of ours: as an ordinary user on Linux it enters a user
namespace, which is only possible now, before any thread starts. As root it does nothing.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_fal.fixtures import (  # noqa: F401 - pytest finds fixtures in the plugin's module
    fal_buckets,
    fal_cdn,
    fal_clock,
    fal_cuda_runner,
    fal_data,
    fal_emulator,
    fal_faults,
    fal_gateway,
    fal_git,
    fal_http,
    fal_kv,
    fal_ledger,
    fal_origin,
    fal_runner,
    fal_tmp,
    fal_uploader,
    fal_webhooks,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_MARKER = (
    "fal(**settings): settings of the emulated fal account for this test, any field of "
    "emulator.Settings, for example @pytest.mark.fal(account_expiration=timedelta(days=7))"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Our options and ini settings."""
    from pytest_fal import cuda, rungs

    cuda.add_options(parser)
    rungs.add_options(parser)
    parser.getgroup("fal").addoption(
        "--fal-strict-leaks",
        action="store_true",
        default=False,
        dest="fal_strict_leaks",
        help="fail a test that uses a fixture of pytest-fal and leaves a thread, descriptor, "
        "process, mount, variable, patch or temporary file behind, naming what opened it",
    )
    parser.addini(
        "fal_strict_leaks",
        "as --fal-strict-leaks: true; all: for every test; false",
        default="false",
    )
    parser.addini(
        "fal_leaks_allowed",
        "patterns (* and ?) of lines that --fal-strict-leaks is not to report",
        type="linelist",  # type: ignore[maybe-unrecognized-str-typeform]
        default=[],
    )
    parser.addini(
        "fal_user_namespace",
        "enter a user namespace at start-up when not root, so that /data and /tmp can be mounted "
        "(setuid programs do not work in it)",
        type="bool",  # type: ignore[maybe-unrecognized-str-typeform]
        default=True,
    )


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """The last moment at which nothing has started a thread yet."""
    if sys.platform == "linux":
        from pytest_fal import namespace

        with _clashes_explained():
            namespace.enter_early(early_config)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    from pytest_fal import base_directory, cuda, rungs

    config.addinivalue_line("markers", _MARKER)
    cuda.add_marker(config)
    with _clashes_explained():
        base_directory.keep_out_of_tmp(config)
        rungs.check(config)
    if config.getoption("fal_strict_leaks") or config.getini("fal_strict_leaks") != "false":
        from pytest_fal import leaks

        leaks.check_settings(config)
    if config.pluginmanager.hasplugin("xdist"):
        from pytest_fal import parallel

        config.pluginmanager.register(parallel, "fal-xdist")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """How /data and /tmp are emulated, and why not better; what of the user's is in /tmp."""
    from pytest_fal import base_directory, rungs

    with _clashes_explained():
        return [*rungs.describe(config), *base_directory.describe(config)]


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """As :func:`pytest_runtest_call`."""
    try:
        return (yield)
    finally:
        if running in item.stash:
            item.stash[running].come_to_rest()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Before pytest reads what was printed, runners come to rest; so inside of its capturing."""
    try:
        return (yield)
    finally:
        if running in item.stash:
            item.stash[running].come_to_rest()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show a failing test's exchanges and volumes."""
    if call.excinfo is None:
        return (yield)
    if running not in item.stash:
        report = yield
    else:
        from pytest_fal import report as report_module

        report_module.hide_our_frames()
        report = yield
        if report.failed:
            report_module.add_sections(item, report)
    if report.failed:
        from pytest_fal import versions

        versions.tell(report, call.excinfo.value)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Explain an ``import emulator`` in a test module that found ours, or kept ours from us."""
    report = yield
    if report.failed and "emulator" in str(report.longrepr):
        from pytest_fal import versions

        versions.tell(report, report.call.excinfo.value)
    return report


@contextmanager
def _clashes_explained() -> Iterator[None]:
    """Have pytest end with a sentence where another package of the name ``emulator`` hides ours."""
    try:
        yield
    except ImportError as error:
        from pytest_fal import clash

        if (explained := clash.explain(error)) is None:
            raise
        raise pytest.UsageError(explained) from None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the GPU tests that were skipped."""
    from pytest_fal import cuda

    cuda.terminal_summary(terminalreporter)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give back what lived through the session."""
    if "pytest_fal.session" in sys.modules:
        from pytest_fal import session

        session.close(config)
