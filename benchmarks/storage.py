"""Buckets, the KV store and git on the emulator, and the nearest thing without it."""

from __future__ import annotations

import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import trustme
from bare import BareServer, get_to_file
from measure import Row, Table, compare, seconds_of
from moto import mock_aws

from emulator import Emulator

MEGABYTE = 1_000_000
URL = "https://github.com/org/repo.git"
KEYS = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}

EXPLANATION = """\
boto3 on ours goes over TLS to the emulator's server, as every client may; the alternative is moto's
`mock_aws`, which answers boto3 within its own call, without a connection and without expiry. A
fresh bucket is what a test pays that wants one. A cloned repository has 20 files; the alternative
clones it from a path. The KV store's alternative is a bare GET over TLS."""


def measure(quick: bool) -> Table:
    """Compare."""
    table = Table("Buckets, KV store, git", EXPLANATION)
    rounds = 5 if quick else 20
    emulator = Emulator()
    emulator.start()
    emulator.stop()
    table.rows = [
        compare("a fresh bucket", rounds, *_fresh(emulator)),
        _s3(emulator, "boto3 put and get of 1 kB", 1_000, 20, rounds),
        _s3(emulator, "boto3 put and get of 64 MB", 64 * MEGABYTE, 1, 3 if quick else 7),
        _kv(emulator, rounds),
        _git(emulator, 3 if quick else 9),
    ]
    emulator.close()
    return table


def _fresh(emulator: Emulator) -> tuple[Callable[[], float], Callable[[], float]]:
    def ours() -> float:
        start = time.perf_counter()
        emulator.start()
        emulator.buckets.create("films").put("a", b"x")
        emulator.stop()
        return time.perf_counter() - start

    def alternative() -> float:
        start = time.perf_counter()
        with mock_aws():
            client = boto3.client("s3", **KEYS)
            client.create_bucket(Bucket="films")
            client.put_object(Bucket="films", Key="a", Body=b"x")
        return time.perf_counter() - start

    return ours, alternative


def _s3(emulator: Emulator, what: str, size: int, times: int, rounds: int) -> Row:
    data = os.urandom(size)

    def move(client: Any) -> None:
        client.put_object(Bucket="films", Key="a", Body=data)
        assert len(client.get_object(Bucket="films", Key="a")["Body"].read()) == size

    def sample() -> float:
        client = boto3.client("s3", **KEYS)
        client.create_bucket(Bucket="films")
        move(client)
        return seconds_of(lambda: move(client), times)

    def ours() -> float:
        emulator.start()
        try:
            return sample()
        finally:
            emulator.stop()

    def alternative() -> float:
        with mock_aws():
            return sample()

    return compare(what, rounds, ours, alternative, size / MEGABYTE if size >= MEGABYTE else None)


def _kv(emulator: Emulator, rounds: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(f"{folder}/ca.pem")
        server = BareServer(b'{"value": "x"}', authority)
        context = ssl.create_default_context(cafile=f"{folder}/ca.pem")

        def ours() -> float:
            from fal.toolkit import KVStore

            emulator.start()
            try:
                store = KVStore("jobs")
                store.set("a", "x")
                return seconds_of(lambda: store.get("a"), 20)
            finally:
                emulator.stop()

        def alternative() -> float:
            target = Path(folder) / "value"
            return seconds_of(lambda: get_to_file(server.port, context, target), 20)

        return compare("KVStore.get / GET over TLS", rounds, ours, alternative)


def _git(emulator: Emulator, rounds: int) -> Row:
    files = {f"folder/{number}.py": f"# {number}\n" * 50 for number in range(20)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "repo"
        for name, text in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text)
        for command in (
            ["init", "--quiet"],
            ["add", "."],
            ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "a"],
        ):
            subprocess.run(["git", "-C", str(path), *command], check=True)

        def ours() -> float:
            emulator.start()
            try:
                emulator.git.serve(URL, files)
                return seconds_of(lambda: _clone(URL, "/tmp/clone"))
            finally:
                emulator.stop()

        def alternative() -> float:
            with tempfile.TemporaryDirectory() as target:
                return seconds_of(lambda: _clone(str(path), f"{target}/clone"))

        return compare("git clone / of a path", rounds, ours, alternative)


def _clone(url: str, target: str) -> None:
    subprocess.run(["git", "clone", "--quiet", "--no-local", url, target], check=True)
