"""Nothing of the user's is read or touched, and a test without our fixtures is left as it was."""

from __future__ import annotations

import os
import sys
import tempfile
import urllib.request

import fal.toolkit.file  # noqa: F401 - what is first loaded inside of a test has no state before it
import pytest

from pytest_fal.leftovers import Snapshot, attributes


def test_the_account_key_is_a_fake_one(fal_emulator):
    from fal.auth import key_credentials

    assert os.environ["FAL_KEY"] == "emulated-key-id:emulated-key-secret"
    assert key_credentials() == ("emulated-key-id", "emulated-key-secret")


def test_an_upload_without_key_and_network_does_not_delete_the_login_token(pytester, monkeypatch):
    home = pytester.mkdir("home")
    (home / ".fal").mkdir()
    token = home / ".fal" / "auth0_token"
    token.write_text("the developer's login")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("FAL_KEY", raising=False)
    pytester.makepyfile(
        """
        import pytest
        from fal.toolkit import File

        def test_it(fal_emulator, monkeypatch):
            monkeypatch.delenv("FAL_KEY")
            with pytest.raises(Exception):
                File.from_bytes(b"x", file_name="x")
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    assert token.read_text() == "the developer's login"


def test_the_configuration_file_of_the_user_is_not_read(pytester, monkeypatch):
    monkeypatch.delenv("FAL_CONFIG_PATH")
    home = pytester.mkdir("home")
    (home / ".fal").mkdir()
    (home / ".fal" / "config.toml").write_text('[default]\nkey = "users:secret"\n')
    monkeypatch.setenv("HOME", str(home))
    pytester.makepyfile(
        """
        def test_it(fal_emulator):
            import fal.flags
            from fal.config import Config
            assert Config().get("key") is None
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_key_of_the_user_never_reaches_a_request(pytester, monkeypatch):
    monkeypatch.setenv("FAL_KEY", "users-id:users-secret")
    pytester.makepyfile(
        """
        import os
        from fal.toolkit import File

        def test_it(fal_http, fal_emulator):
            route = fal_http.post("https://rest.alpha.fal.ai/storage/upload/initiate")
            route.respond(json={"file_url": "https://a/f", "upload_url": "https://a/u"})
            fal_http.put("https://a/u")
            File.from_bytes(b"x", file_name="x")
            assert "users" not in route.calls.last.request.headers["authorization"]

        def test_and_it_is_back_afterwards():
            assert os.environ["FAL_KEY"] == "users-id:users-secret"
        """
    )
    pytester.runpytest_subprocess("-p", "no:randomly").assert_outcomes(passed=2)


@pytest.fixture
def untouched():
    """The state before any fixture of ours."""
    return Snapshot.take(), attributes()


def test_every_patched_attribute_is_back_after_a_test(untouched, request):
    _, before = untouched
    emulator = request.getfixturevalue("fal_emulator")
    emulator.clock.freeze()
    during = attributes()
    emulator.stop()
    assert {name for name in before if before[name] is not during[name]} >= {
        "time.time",
        "time.sleep",
        "asyncio.sleep",
        "os.stat",
        "datetime.datetime",
        "socket.getaddrinfo",
        "socket.socket.connect",
        "httpcore.ConnectionPool.handle_request",
        "httpcore.AsyncConnectionPool.handle_async_request",
        "urllib.request._opener",
    }
    after = attributes()
    assert {name: after[name] for name in before} == before  # a test may load further modules
    emulator.start()


def test_a_test_may_change_environment_path_and_directory(untouched, request, tmp_path):
    before, _ = untouched
    emulator = request.getfixturevalue("fal_emulator")
    os.environ["SET_BY_A_TEST"] = "1"
    os.environ.pop("PATH")
    sys.path.insert(0, "/nowhere")
    os.chdir(tmp_path)
    emulator.stop()
    assert before.leaks_since(allowed=lambda leak: leak.kind in ("descriptor", "mount")) == []
    emulator.start()


def test_an_opener_that_the_user_installed_comes_back(request):
    mine = urllib.request.build_opener()
    urllib.request.install_opener(mine)
    emulator = request.getfixturevalue("fal_emulator")
    assert urllib.request._opener is not mine
    emulator.stop()
    found = urllib.request._opener
    urllib.request.install_opener(None)
    assert found is mine
    emulator.start()


def test_temporary_files_go_to_the_emulated_tmp_whatever_tmpdir_says(
    fal_tmp, monkeypatch, tmp_path
):
    assert "TMPDIR" not in os.environ
    with tempfile.NamedTemporaryFile(delete=False) as file:
        assert file.name.startswith("/tmp/")
    assert fal_tmp.tree() == [os.path.basename(file.name)]


# --- the SDK's process-wide state [sdk-study §4] -------------------------------------------------


def test_cdn_tokens_do_not_outlive_a_test(fal_emulator):
    from fal.toolkit.file.providers.fal import fal_v3_token_manager

    first = fal_v3_token_manager.get_token().token
    fal_emulator.reset()
    assert fal_v3_token_manager.get_token().token != first


def test_the_image_cache_does_not_outlive_a_test(fal_emulator):
    from fal.toolkit.image import read_image_from_url
    from PIL import Image

    def serve(color):
        import io

        blob = io.BytesIO()
        Image.new("RGB", (1, 1), color).save(blob, "png")
        fal_emulator.origin.serve("https://example.com/i.png", blob.getvalue())

    serve("red")
    assert read_image_from_url("https://example.com/i.png").getpixel((0, 0)) == (255, 0, 0)
    fal_emulator.reset()
    serve("blue")
    assert read_image_from_url("https://example.com/i.png").getpixel((0, 0)) == (0, 0, 255)


def test_repositories_and_limits_that_a_test_changes_are_restored(fal_emulator):
    from fal.toolkit.file import file
    from fal.toolkit.file.providers.fal import MultipartUploadV3

    threshold = MultipartUploadV3.MULTIPART_THRESHOLD
    fallback = file.FALLBACK_REPOSITORY.copy()
    file.FALLBACK_REPOSITORY.append("r2")
    file.BUILT_IN_REPOSITORIES["mine"] = object
    MultipartUploadV3.MULTIPART_THRESHOLD = 1
    fal_emulator.reset()
    assert fallback == file.FALLBACK_REPOSITORY
    assert "mine" not in file.BUILT_IN_REPOSITORIES
    assert threshold == MultipartUploadV3.MULTIPART_THRESHOLD


def test_results_of_fal_cached_do_not_outlive_a_test(fal_emulator):
    import fal

    @fal.cached
    def load():
        return object()

    first = load()
    assert load() is first
    fal_emulator.reset()
    assert load() is not first


def test_the_current_app_of_a_test_does_not_outlive_it(fal_emulator):
    import fal.ref

    fal.ref.set_current_app(object())
    fal_emulator.reset()
    assert fal.ref.get_current_app() is None


def test_state_of_before_comes_back_even_where_a_test_asked_for_neutral(request):
    import fal.ref

    app = object()
    fal.ref.current_app = app
    emulator = request.getfixturevalue("fal_emulator")
    assert fal.ref.get_current_app() is None
    emulator.stop()
    found, fal.ref.current_app = fal.ref.current_app, None
    assert found is app
    emulator.start()


def test_the_command_fal_does_not_note_versions_in_the_users_home(pytester, monkeypatch):
    home = pytester.mkdir("home")
    monkeypatch.setenv("HOME", str(home))
    pytester.makepyfile(
        """
        import fal
        from fal._version import get_latest_version

        def test_it(fal_emulator):
            get_latest_version()
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
    assert not (home / ".fal").exists()


def test_the_sdk_imported_inside_a_test_does_not_keep_our_home(pytester):
    pytester.makepyfile(
        """
        import sys, pathlib

        def test_one(fal_emulator):
            assert "fal" not in sys.modules
            import fal.toolkit
            from fal.auth import local
            assert local._FAL_HOME_DIR != str(pathlib.Path.home() / ".fal")

        def test_two():
            from fal.auth import local
            assert local._FAL_HOME_DIR == str(pathlib.Path.home() / ".fal")
        """
    )
    pytester.runpytest_subprocess("-p", "no:randomly").assert_outcomes(passed=2)


def test_nothing_of_the_users_netrc_is_sent(pytester, monkeypatch):
    home = pytester.mkdir("home")
    (home / ".netrc").write_text("default login users-name password users-password\n")
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    pytester.makepyfile(
        """
        import requests

        def test_it(fal_http):
            route = fal_http.get("https://example.com/").respond(200)
            requests.get("https://example.com/")
            assert "authorization" not in route.calls.last.request.headers
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.parametrize("client", ["boto3", "google"])
def test_nobodys_keys_of_amazon_or_google_are_used(pytester, monkeypatch, client):
    if client == "google":
        pytest.importorskip("google.auth", reason="google-auth is not installed")
    home = pytester.mkdir("home")
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = CANARY\naws_secret_access_key = CANARY\n"
        "[work]\naws_access_key_id = CANARY\naws_secret_access_key = CANARY\n"
    )
    (home / ".aws" / "config").write_text("[default]\nregion = canary-region-1\n")
    google = home / ".config" / "gcloud" / "application_default_credentials.json"
    google.parent.mkdir(parents=True)
    google.write_text(
        '{"type": "authorized_user", "client_id": "CANARY", "client_secret": "CANARY", '
        '"refresh_token": "CANARY"}'
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "CANARY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "CANARY")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "CANARY")
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://canary.example")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "https://canary.example")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2001-01-01T00:00:00Z")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google))
    pytester.makepyfile(
        test_boto3="""
        import os
        import boto3

        def test_it(fal_emulator):
            assert "CANARY" not in repr(os.environ).upper()
            assert "AWS_CREDENTIAL_EXPIRATION" not in os.environ
            s3 = boto3.client("s3")
            s3.create_bucket(Bucket="films")
            url = s3.generate_presigned_url("get_object", {"Bucket": "films", "Key": "a"})
            assert "CANARY" not in url
            found = s3._request_signer._credentials.get_frozen_credentials()
            assert found.access_key == "AKIAEMULATEDBYPYTEST" and found.token is None
            assert "canary" not in s3.meta.endpoint_url and "canary" not in s3.meta.region_name
            s3.close()
            sent = [e.url + repr(e.request_headers) for e in fal_emulator.ledger.exchanges]
            assert sent and "CANARY" not in repr(sent)

        def test_they_are_back():
            assert os.environ["AWS_PROFILE"] == "work"
            assert os.environ["AWS_ACCESS_KEY_ID"] == "CANARY"
        """,
        test_google="""
        import google.auth
        import pytest
        from google.auth.exceptions import DefaultCredentialsError

        def test_it(fal_emulator):
            with pytest.raises(DefaultCredentialsError):
                google.auth.default()
            assert fal_emulator.ledger.exchanges == []
        """,
    )
    outcome = pytester.runpytest_subprocess("-p", "no:randomly", f"test_{client}.py")
    outcome.assert_outcomes(passed=2 if client == "boto3" else 1)


@pytest.mark.parametrize(
    "name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST"]
)
@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("http://localhost:4566", True),
        ("http://127.0.0.1:9000", True),
        ("http://[::1]:9000/", True),
        ("localhost:9023", True),
        ("https://localhost.example", False),
        ("minio:9000", False),
        ("http://[", False),
        ("", False),
    ],
)
def test_an_endpoint_on_this_machine_stays(monkeypatch, request, name, value, kept):
    monkeypatch.setenv(name, value)
    emulator = request.getfixturevalue("fal_emulator")
    assert os.environ.get(name) == (value if kept else None)
    emulator.stop()
    assert os.environ[name] == value
    emulator.start()
