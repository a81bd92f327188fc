"""Which versions are tried together, and with which tests: for `.ci/matrix` and `noxfile.py`."""

from __future__ import annotations

from typing import NamedTuple

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
#: What `pip install --upgrade fal` gives; the last of the others until there is a newer one.
NEWEST = "newest"
#: Each from where the SDK changed something that shows in `docs/conformance.md` or the gallery.
FALS = ("1.75.5", "1.77.1", "1.79.1", "1.80.1", "1.81.4", "1.82.1", "1.83.0", NEWEST)


class Cell(NamedTuple):
    """One version of Python with one of fal, and whether more tests are run there."""

    python: str
    fal: str
    wide: bool = False

    def __str__(self) -> str:
        return f"Python {self.python}, fal {self.fal}"


#: What `.ci/run` tries: each Python and each fal at least once, the oldest and the newest fal on
#: the oldest and the newest Python, and what lies between in a diagonal.
COVERING = (
    Cell("3.10", NEWEST),
    Cell("3.10", "1.75.5", wide=True),
    Cell("3.11", "1.81.4"),
    Cell("3.11", "1.77.1"),
    Cell("3.12", "1.82.1", wide=True),
    Cell("3.12", "1.79.1"),
    Cell("3.13", NEWEST, wide=True),
    Cell("3.13", "1.83.0"),
    Cell("3.13", "1.80.1"),
    Cell("3.13", "1.75.5"),
)
ALL = tuple(Cell(python, fal) for python in PYTHONS for fal in reversed(FALS))

#: What a version of the SDK can break; about a minute on two idle cores.
_NARROW = """
    tests/conformance tests/test_private_names.py tests/test_runner.py tests/test_runners_alike.py
    tests/test_cdn_uploads.py tests/test_cdn_expiry.py tests/test_safety.py tests/test_faults.py
    tests/test_kv.py tests/test_access_control.py tests/test_fal_files.py
    tests/test_upload_policy.py tests/test_local_uploader.py tests/test_app_client.py
    tests/test_fal_apps.py tests/test_fal_client.py tests/test_stand_ins.py tests/test_undeploy.py
    tests/test_grpc.py tests/test_queue.py examples/bugs
"""
#: And what a version of Python can: threads, sockets, files, the clock, processes.
_WIDE = """
    tests/test_clients.py tests/test_clock.py tests/test_file_times.py tests/test_volumes.py
    tests/test_runner_life.py tests/test_process_runner.py tests/test_deployments.py
    tests/test_data_between_runners.py tests/test_data_between_processes.py tests/test_s3.py
    tests/test_google_storage.py tests/test_beside_moto.py tests/test_repositories.py
    tests/test_git.py tests/test_inductor_caches.py tests/test_chained_apps.py
    tests/test_gateway_streams.py tests/test_gateway_realtime.py tests/test_streams.py
    tests/test_websockets.py tests/test_webhooks.py tests/test_queue_webhooks.py
    tests/test_callers_that_leave.py tests/test_gateway_encodings.py tests/test_plugin.py examples
"""


def tests(wide: bool) -> list[str]:
    """The files and folders with which pytest is called."""
    narrow = _NARROW.split()
    return [*narrow[:-1], *_WIDE.split()] if wide else narrow
