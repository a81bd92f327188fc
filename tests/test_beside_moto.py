"""A user's own ``mock_aws`` and ours: one moto, whoever comes first, and each cleans up its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import boto3
import httpx
import pytest
from boto import client, closed_clients, nobodys_settings  # noqa: F401 - fixtures
from moto import mock_aws
from moto.s3.models import s3_backends

SECONDS = {"ExpiresIn": 60}


def bucket_names() -> list[str]:
    return [bucket["Name"] for bucket in client().list_buckets()["Buckets"]]


def presigned(name: str, key: str = "a") -> str:
    where = {"Bucket": name, "Key": key}
    return str(client().generate_presigned_url("get_object", where, **SECONDS))


def fill(name: str) -> None:
    s3 = client()
    s3.create_bucket(Bucket=name)
    s3.put_object(Bucket=name, Key="a", Body=name.encode())


def all_of_moto() -> list[str]:
    return [b for account in s3_backends.values() for one in account.values() for b in one.buckets]


@pytest.fixture
def users_mock() -> Iterator[None]:
    """What a user's conftest has."""
    with mock_aws():
        fill("users")
        yield
        assert "users" in all_of_moto(), "the user's buckets are the user's to remove"


# --- one moto -------------------------------------------------------------------------------------


@mock_aws
def test_a_decorated_test_has_its_buckets_over_every_client(fal_emulator: Any) -> None:
    fill("films")
    # boto3 was answered by moto's own stub, and httpx is by ours: the same buckets.
    assert fal_emulator.ledger.exchanges == []
    assert httpx.get(presigned("films")).content == b"films"
    assert len(fal_emulator.ledger.exchanges) == 1


def test_a_mock_before_ours_keeps_its_buckets(users_mock: None, fal_emulator: Any) -> None:
    assert bucket_names() == ["users"]
    assert httpx.get(presigned("users")).content == b"users"
    fill("films")
    assert bucket_names() == ["users", "films"]


def test_a_mock_after_ours_begins_empty(fal_emulator: Any, request: Any) -> None:
    fill("ours")
    request.getfixturevalue("users_mock")
    assert bucket_names() == ["users"]
    assert httpx.get(presigned("users")).content == b"users"


def test_a_mock_inside_the_test_resets_moto_as_it_always_does(fal_emulator: Any) -> None:
    fill("before")
    with mock_aws():
        assert bucket_names() == []
        fill("inside")
    assert bucket_names() == []
    fill("after")
    assert httpx.get(presigned("after")).content == b"after"


def test_nested_mocks_end_with_the_outer_one(fal_emulator: Any) -> None:
    with mock_aws():
        fill("outer")
        with mock_aws():
            fill("inner")
        assert bucket_names() == ["outer", "inner"]
        assert httpx.get(presigned("outer")).content == b"outer"
    assert bucket_names() == []


def test_r2_is_the_same_moto_though_mock_aws_does_not_know_it(
    users_mock: None, fal_emulator: Any
) -> None:
    r2 = client(endpoint_url="https://acc0.r2.cloudflarestorage.com")
    assert r2.get_object(Bucket="users", Key="a")["Body"].read() == b"users"
    assert fal_emulator.ledger.exchanges[-1].client == "wire"


def test_a_presigned_url_of_the_mock_expires_too(
    users_mock: None, fal_emulator: Any, fal_clock: Any
) -> None:
    url = presigned("users")
    fal_clock.advance(60)
    assert "Request has expired" in httpx.get(url).text


# --- who cleans up --------------------------------------------------------------------------------


@pytest.fixture(scope="class")
def shared_mock() -> Iterator[None]:
    mock = mock_aws()
    mock.start()
    fill("shared")
    yield
    mock.stop()


@pytest.fixture(scope="class")
def server() -> Iterator[None]:
    s3_backends["123456789012"]["aws"].create_bucket("of-a-server", "us-east-1")
    yield
    s3_backends["123456789012"]["aws"].reset()
    s3_backends.clear()


class TestAMockOfSeveralTests:
    """As a fixture of a module, or of the session, has it."""

    @pytest.mark.parametrize("number", range(3))
    def test_it_outlives_our_tests(self, shared_mock: None, fal_emulator: Any, number: int) -> None:
        assert "shared" in bucket_names()
        fill(f"of-test-{number}")

    def test_so_do_the_buckets_that_our_tests_made(
        self, shared_mock: None, fal_emulator: Any
    ) -> None:
        fill("more")
        fal_emulator.reset()
        assert {"shared", "more"} <= set(bucket_names())

    @pytest.mark.parametrize("number", range(2))
    def test_a_second_bucket_of_this_name_is_told_why(
        self, shared_mock: None, fal_buckets: Any, number: int
    ) -> None:
        from emulator.errors import EmulatorError

        with pytest.raises(EmulatorError) as error:
            fal_buckets.create("shared")
        assert str(error.value) == (
            "There is a bucket 'shared' already: the mock_aws() that was active before this test "
            "keeps what earlier tests made in it. Write fal_buckets['shared'] to use it, give each "
            "test a name of its own, or give each test a mock_aws() of its own: a fixture without "
            "scope=."
        )
        fal_buckets.create(f"own-{number}")
        with pytest.raises(EmulatorError, match=r"already; S3 and R2 share the names\.$"):
            fal_buckets.create(f"own-{number}")


class TestBucketsWithoutAMock:
    """Those of moto's server in a thread, say."""

    @pytest.mark.parametrize("_", range(2))
    def test_they_are_there_after_our_tests(self, server: None, fal_emulator: Any, _: int) -> None:
        assert bucket_names() == ["of-a-server"]
        fill("films")


def tracked_by_moto() -> list[Any]:
    from moto.core.model_instances import model_data

    names = ("instances_tracked", "instances")
    return [one for m in model_data["s3"].values() for n in names for one in getattr(m, n, [])]


def test_neither_does_what_the_app_has_tidied_up_itself(fal_emulator: Any) -> None:
    before = tracked_by_moto()
    s3 = client()
    for _ in range(3):
        fill("films")
        s3.delete_object(Bucket="films", Key="a")
        s3.delete_bucket(Bucket="films")
    assert len(tracked_by_moto()) > len(before)
    fal_emulator.reset()
    assert tracked_by_moto() == before


def test_what_is_put_into_a_servers_bucket_can_be_read_after_the_test(
    server: None, fal_emulator: Any
) -> None:
    client().put_object(Bucket="of-a-server", Key="a", Body=b"x")
    client().put_object(Bucket="of-a-server", Key="a", Body=b"kept")
    tracked = len(tracked_by_moto())
    fal_emulator.reset()
    assert len(tracked_by_moto()) < tracked
    assert client().get_object(Bucket="of-a-server", Key="a")["Body"].read() == b"kept"


def test_nothing_of_ours_stays_in_moto(fal_emulator: Any) -> None:
    before = tracked_by_moto()
    fill("films")
    fal_emulator.reset()
    assert all_of_moto() == []
    assert tracked_by_moto() == before


# --- credentials ----------------------------------------------------------------------------------


def test_the_mocks_own_credentials_are_put_back(fal_emulator: Any) -> None:
    ours = os.environ["AWS_ACCESS_KEY_ID"]
    with mock_aws():
        assert os.environ["AWS_ACCESS_KEY_ID"] != ours
        fal_emulator.ledger.event("test", "a mock inside")
    assert os.environ["AWS_ACCESS_KEY_ID"] == ours


def test_credentials_that_a_test_sets_are_its_own(fal_emulator: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    fill("films")
    assert "testing" in presigned("films")
    assert httpx.get(presigned("films")).content == b"films"


def test_a_default_session_from_before_is_not_used(monkeypatch: Any, request: Any) -> None:
    session = boto3.Session(aws_access_key_id="users", aws_secret_access_key="users-secret")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    emulator = request.getfixturevalue("fal_emulator")
    url = client().generate_presigned_url("get_object", {"Bucket": "films", "Key": "a"})
    assert "users" not in url
    emulator.stop()
    assert boto3.DEFAULT_SESSION is session
    emulator.start()


# --- whole runs -----------------------------------------------------------------------------------


def test_moto_alone_is_as_it_was(pytester: Any) -> None:
    pytester.makepyfile(
        """
        import os, sys
        import boto3, pytest
        from moto import mock_aws

        @pytest.fixture(scope="session", autouse=True)
        def mock():
            with mock_aws():
                boto3.client("s3", "us-east-1").create_bucket(Bucket="of-the-session")
                yield
                found = boto3.client("s3", "us-east-1").list_buckets()["Buckets"]
                names = [bucket["Name"] for bucket in found]
                assert names == ["of-the-session", "of-our-test"]

        def test_with_ours(fal_emulator):
            boto3.client("s3").create_bucket(Bucket="of-our-test")

        def test_without_ours():
            assert os.environ["AWS_ACCESS_KEY_ID"] == "FOOBARKEY"
            names = [b["Name"] for b in boto3.client("s3", "us-east-1").list_buckets()["Buckets"]]
            assert "of-the-session" in names
            with mock_aws():
                queue = boto3.client("sqs", "us-east-1").create_queue(QueueName="q")["QueueUrl"]
                assert queue.endswith("/q")
        """
    )
    options = ("-p", "no:randomly", "-p", "no:cacheprovider")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=2)


def test_a_test_without_s3_imports_nothing_for_it(pytester: Any) -> None:
    pytester.makepyfile(
        """
        import sys
        def test_it(fal_emulator):
            assert "moto.s3.responses" not in sys.modules
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_another_version_of_moto_is_named(monkeypatch: Any) -> None:
    from emulator.errors import EmulatorError
    from emulator.storage import moto_s3

    monkeypatch.setitem(sys.modules, "moto.s3.responses", None)
    moto_s3._moto.cache_clear()
    try:
        with pytest.raises(EmulatorError, match=r"moto .* is not as it was \(.*pip install"):
            moto_s3.MotoS3().ask("GET", "", "/")
    finally:
        moto_s3._moto.cache_clear()


def test_a_mock_that_ends_inside_of_ours_leaves_no_key_of_its_own(monkeypatch: Any) -> None:
    from emulator.account import Emulator

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "users")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "users-secret")
    mock = mock_aws()
    mock.start()
    with Emulator():
        mock.stop()
    assert os.environ["AWS_ACCESS_KEY_ID"] == "users"
