"""The last test of a session finds what the first one found: nothing gathers in between."""

from __future__ import annotations

import json

import pytest

#: Tests before the first look, which fill what is filled once, and tests between the two.
BEFORE, BETWEEN = 12, 48

TESTS = """
import fal, fal_client, httpx, pytest, requests
from fal.toolkit import File, download_file


class App(fal.App):
    @fal.endpoint("/")
    def run(self) -> dict:
        return {"url": File.from_bytes(b"12345", file_name="a.bin").url}


@pytest.mark.parametrize("number", range(COUNT))
def test_it(number, fal_emulator, fal_data, fal_tmp, fal_cdn, fal_kv, fal_uploader, fal_clock,
            fal_http, fal_origin, fal_faults, fal_buckets, fal_ledger, fal_gateway, fal_webhooks,
            fal_git, fal_runner):
    fal_clock.freeze()
    fal_origin.serve("https://example.com/a", b"a")
    download_file("https://example.com/a", target_dir="x")
    requests.get("https://example.com/a")
    httpx.get("https://example.com/a")
    fal_kv.set("db", "key", "value")
    fal_buckets.create(f"bucket-{number}", provider="s3").put("key", b"x")
    fal_runner(App).post("/", json={})
    if number % 6 == 0:
        fal_runner(App, isolation="process").post("/", json={})
        fal_git.serve(f"https://github.com/org/{number}.git", {"a": "b"})
    fal_gateway.deploy(f"me/app-{number}", App)
    fal_client.submit(f"me/app-{number}", {}, webhook_url=fal_webhooks.url).get()
    fal_clock.advance(hours=1)
""".replace("COUNT", str(BEFORE + BETWEEN + 1))

LOOKING = """
import functools, gc, json, os, sys, threading, types
from collections import Counter

NAMES = "emulator pytest_fal fal fal_client httpx httpcore respx moto starlette fastapi uvicorn"
OTHERS = "socket _socket ssl _io threading asyncio http urllib subprocess concurrent weakref queue"
WATCHED = {*NAMES.split(), *OTHERS.split()}
ended, looks = 0, []


def pytest_runtest_logfinish(nodeid):
    global ended
    ended += 1
    if ended in MOMENTS:
        looks.append(look())


def pytest_sessionfinish(session):
    with open(session.config.rootpath / "looks.json", "w") as file:
        json.dump(looks, file)


def look():
    gc.collect()
    root = next(o for o in gc.get_objects() if type(o).__name__ == "Emulator")._root
    return {
        "objects": objects(),
        "containers": containers(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "environment": len(os.environ),
        "path": len(sys.path),
        "modules": len(sys.modules),
        "files": sum(len(files) + len(folders) for _, folders, files in os.walk(root)),
    }


def objects():
    counts = Counter()
    for one in gc.get_objects():
        kind = type(one)
        is_function = kind is types.FunctionType
        module = getattr(one if is_function else kind, "__module__", None)
        if isinstance(module, str) and module.split(".")[0] in WATCHED:
            name = one.__qualname__ if is_function else kind.__qualname__
            counts[f"{module}.{name}"] += 1
    return counts


def containers():
    sizes = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in NAMES.split() and isinstance(module, types.ModuleType):
            for owner in (module, *(v for v in vars(module).values() if type(v) is type)):
                for key, value in list(vars(owner).items()):
                    if isinstance(value, (dict, list, set)):
                        sizes[f"{name}.{owner.__name__}.{key}"] = len(value)
                    elif isinstance(value, functools._lru_cache_wrapper):
                        sizes[f"{name}.{owner.__name__}.{key}"] = value.cache_info().currsize
    return sizes
""".replace("MOMENTS", str((BEFORE, BEFORE + BETWEEN)))

_looks = []


@pytest.fixture
def looks(request):
    """What there was after the first tests, and after all of them: one run for all that ask."""
    if not _looks:
        pytester = request.getfixturevalue("pytester")
        pytester.makeconftest(LOOKING)
        pytester.makepyfile(test_it=TESTS)
        result = pytester.runpytest_subprocess(
            *("-p", "no:randomly", "-p", "no:cacheprovider", "--fal-strict-leaks")
        )
        result.assert_outcomes(passed=BEFORE + BETWEEN + 1)
        _looks.extend(json.loads((pytester.path / "looks.json").read_text()))
    return _looks


@pytest.mark.parametrize("what", ["objects", "containers"])
def test_no_kind_of_thing_becomes_more_with_each_test(looks, what):
    """Fewer than one for two tests, as what runs by itself is now here and now there."""
    first, last = looks[0][what], looks[1][what]
    growth = {name: count - first.get(name, 0) for name, count in last.items()}
    more = {name for name, more in growth.items() if more >= BETWEEN / 2}
    # The last 64 of the streams that stood in for stdout are kept.
    assert more <= {"emulator.runners.output._Split"}


@pytest.mark.parametrize("what", ["descriptors", "threads", "environment", "path", "modules"])
def test_the_process_holds_what_it_held(looks, what):
    assert looks[0][what] == looks[1][what]


def test_the_directory_of_the_session_holds_what_it_held(looks):
    """But for what is being removed in the background: a test's volumes have some ten entries."""
    assert looks[1]["files"] - looks[0]["files"] < BETWEEN
