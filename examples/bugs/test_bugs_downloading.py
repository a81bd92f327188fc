"""Bugs of ``download_file``: what it takes for cached, what it gives up on, what it writes."""

from __future__ import annotations

import contextlib
import gc
import gzip
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fal.toolkit import File, download_file, download_model_weights
from fal.toolkit.file.providers.fal import MultipartUploadV3
from fal.toolkit.utils.download_utils import DownloadError
from gallery import bug

TOPIC = "Downloading files"
URL = "https://example.com/model.bin"


# --- what it takes for cached --------------------------------------------------------------------


@bug(
    *("D3", "P20"),
    symptom="every start downloads my model again, although it is in /data",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_cached_file_is_transferred_again(fal_origin):
    """A file that is there already is downloaded again, and thrown away.

    Production: each start takes as long as the first, and the model's host sends a bill.
    Expected: the second call finds the file and transfers nothing, as the documentation says.
    Happens: the whole body is fetched to a temporary file; only then are name and size compared,
        and the new bytes deleted.
    Avoid: look for the file before calling, or use download_model_weights, which does.
    """
    model = fal_origin.serve(URL, size=1_000_000)
    path = download_file(URL, "models")
    download_file(URL, "models")
    assert model.bytes_sent == 2_000_000

    if not path.exists():
        download_file(URL, "models")
    assert model.bytes_sent == 2_000_000


@bug(
    *("D3", "P20"),
    symptom="my app does not start any more: no space left, but nothing new is downloaded",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.fal(filesystem="namespace")
def test_a_cached_file_needs_room_for_a_second_copy(fal_origin, fal_data):
    """A cached file cannot be had on a full disk.

    Production: the app started for months; since /data is nearly full its setup fails.
    Expected: what is there needs no room.
    Happens: a second copy is written beside it first, and does not fit.
    Avoid: look for the file before calling, or use download_model_weights.
    """
    fal_origin.serve(URL, size=1_000_000)
    download_file(URL, "models")
    fal_data.limit(1_500_000)
    with pytest.raises(DownloadError, match="All validated addresses failed"):
        download_file(URL, "models")


@bug(
    *("D3", "P20"),
    symptom="OSError: Read-only file system, from code that only reads its model",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.fal(filesystem="namespace")
def test_a_cached_file_needs_a_writable_disk(fal_origin, fal_data):
    """A cached file cannot be had from a read-only volume, and the error is another one.

    Production: a runner that mounts /data read-only does not start.
    Expected: the cached file; or a DownloadError, which is what the function says it raises.
    Happens: the temporary file is made before anything is looked at, outside of what turns errors
        into a DownloadError.
    Avoid: look for the file before calling.
    """
    fal_origin.serve(URL, b"weights")
    path = download_file(URL, "models")
    with fal_data.read_only():
        with pytest.raises(OSError, match="Read-only file system"):
            download_file(URL, "models")
        assert path.read_bytes() == b"weights"


@bug(
    "D4",
    symptom="my app does not start while the model's host is down, although the model is in /data",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_cached_file_needs_its_origin(fal_origin, fal_faults):
    """A file that is there already cannot be had while its origin is down.

    Production: somebody else's outage becomes yours: no new runner starts.
    Expected: the cached file.
    Happens: an error that speaks of the remote file's properties.
    Avoid: look for the file before calling, or use download_model_weights.
    """
    fal_origin.serve(URL, b"weights")
    path = download_file(URL, "models")
    fal_faults.status(503)
    with pytest.raises(DownloadError, match=f"^Failed to get remote file properties for {URL}$"):
        download_file(URL, "models")
    assert path.read_bytes() == b"weights"


@bug(
    *("D5", "P19"),
    symptom="I replaced the file at the URL, and runners still have the old one",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_changed_file_of_equal_size_is_not_taken(fal_origin):
    """New content of the same size is downloaded, and the old file kept.

    Production: a corrected model, config or LUT never arrives; files of fixed size are common.
    Expected: the new content, which has just been fetched.
    Happens: name and size are compared, nothing else.
    Avoid: force=True, or a version in the URL.
    """
    file = fal_origin.serve(URL, b"version 1")
    download_file(URL, "models")
    file.update(b"version 2")
    assert download_file(URL, "models").read_bytes() == b"version 1"

    assert download_file(URL, "models", force=True).read_bytes() == b"version 2"


@bug(
    *("D6", "P19"),
    symptom="two different URLs give me the same file",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_two_urls_with_one_name_share_one_file(fal_origin):
    """Of two URLs that differ only in their query, the second gives the first one's file.

    Production: one customer gets another customer's LoRA.
    Expected: a file for each URL.
    Happens: only the last part of the path names the file, and with equal sizes it counts as
        cached.
    Avoid: a directory of its own for each URL.
    """
    fal_origin.serve("https://example.com/download?id=1", b"first!")
    fal_origin.serve("https://example.com/download?id=2", b"second")
    download_file("https://example.com/download?id=1", "loras")
    path = download_file("https://example.com/download?id=2", "loras")
    assert path.read_bytes() == b"first!"

    path = download_file("https://example.com/download?id=2", "loras/2")
    assert path.read_bytes() == b"second"


# --- what it gives up on -------------------------------------------------------------------------


@bug(
    "D10",
    symptom="my runners fail to start now and then, with one 503 of the model's host in the log",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_nothing_is_tried_again(fal_origin, fal_faults):
    """One passing error of the origin fails the download.

    Production: a single 503 fails setup(), and with it the runner.
    Expected: a few attempts, as uploads get.
    Happens: a DownloadError at once.
    Avoid: try again yourself.
    """
    fal_origin.serve(URL, b"weights")
    fal_faults.status(503, times=1)
    with pytest.raises(DownloadError):
        download_file(URL, "models")

    assert download_file(URL, "models").read_bytes() == b"weights"


@bug(
    "D10",
    symptom="a download on a full disk takes three times as long to fail, and blames the network",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.fal(filesystem="namespace")
def test_a_full_disk_is_tried_again_at_every_address(fal_emulator, fal_origin, fal_data):
    """A full disk is taken for a bad server: the file is downloaded again from each address.

    Production: many gigabytes of traffic, and then an error about addresses.
    Expected: one attempt, and "No space left on device".
    Happens: one attempt for each address of the host, each until the disk is full; what was wrong
        is only in the cause of the error's cause.
    Avoid: follow __cause__ before you believe the message.
    """
    model = fal_origin.serve(URL, size=1_000_000)
    fal_emulator.resolver.set("example.com", "192.88.99.201", "192.88.99.202", "192.88.99.203")
    fal_data.limit(100_000)
    with pytest.raises(DownloadError, match=r"^All validated addresses failed$") as failure:
        download_file(URL, "models")
    assert len(model.requests) == 3
    assert "No space left on device" in str(failure.value.__cause__.__cause__)


@bug(
    "D13",
    symptom="a link that works in the browser is refused: URL can't contain control characters",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.parametrize("name", ["my model.bin", "modèle.bin"])
def test_a_url_is_not_quoted(fal_origin, name):
    """A URL with a space or a letter beyond ASCII cannot be downloaded; quoted, its name stays so.

    Production: inputs that users name themselves fail.
    Expected: what browsers do.
    Happens: a DownloadError; and with the URL quoted, a file that is called my%20model.bin.
    Avoid: quote the URL, and rename the file.
    """
    from urllib.parse import quote

    fal_origin.serve(f"https://example.com/{name}", b"weights")
    with pytest.raises(DownloadError, match=r"^Failed to download"):
        download_file(f"https://example.com/{name}", "models")

    path = download_file(f"https://example.com/{quote(name)}", "models")
    assert path.name == quote(name)


@bug(
    "D14",
    symptom="Failed to download, without a reason, only for files of this one server",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.parametrize("name", ["..", ".", "x" * 256])
def test_a_servers_file_name_can_fail_the_download(fal_origin, name):
    """A file name in the response that cannot be one on disk fails the download.

    Production: signed links of storage services carry names that users chose, of any length.
    Expected: a name made up from the URL.
    Happens: the file is downloaded, and then cannot be moved to its place.
    Avoid: fetch such links yourself, for example with httpx, to a name of yours.
    """
    file = fal_origin.serve(URL, b"weights", file_name=name)
    with pytest.raises(DownloadError, match=r"^Failed to download") as failure:
        download_file(URL, "models")
    assert isinstance(failure.value.__cause__, OSError)
    assert file.bytes_sent == len(b"weights")


@bug(
    "D16",
    symptom="with HTTP_PROXY set my tests fail with a RuntimeWarning from every download",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_proxy_is_ignored_with_a_warning(fal_origin, monkeypatch):
    """Where a proxy is configured, downloads go past it and warn; as an error that fails them.

    Production: where only the proxy gets out nothing can be downloaded; with -W error nowhere.
    Expected: the proxy is used, as urllib, requests and httpx do.
    Happens: a warning a download, and a direct connection.
    Avoid: filter this warning; there is no way to use the proxy.
    """
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    fal_origin.serve(URL, b"weights")
    with pytest.raises(DownloadError) as failure:
        download_file(URL, "models")
    assert isinstance(failure.value.__cause__, RuntimeWarning)

    with pytest.warns(RuntimeWarning, match="are not honored"):
        assert download_file(URL, "models").read_bytes() == b"weights"


# --- what it does not say ------------------------------------------------------------------------


@bug(
    "N2",
    symptom="my model is sometimes too short, and no download failed",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_body_without_a_length_is_whole_wherever_it_ends(fal_origin, fal_faults):
    """Where the server tells no length, a download that was cut short passes for a whole file.

    Production: a connection that breaks leaves a truncated model, with simple servers that make
        their answers as they send them; download_model_weights keeps it for good.
    Expected: an error, as for any other server.
    Happens: a body with neither a Content-Length nor chunks ends with its connection, so what has
        come by then is the file. HTTP knows no better.
    Avoid: a server that tells the length; or compare with a size or a hash that you know.
    """
    fal_origin.serve(URL, size=3_000_000, content_length="absent")
    fal_faults.truncate(after=1_000_000, times=2)
    assert download_file(URL, "models").stat().st_size == 1_000_000
    assert download_model_weights(URL).stat().st_size == 1_000_000
    assert download_model_weights(URL).stat().st_size == 1_000_000  # nothing is cut any more

    fal_origin.serve(URL, size=3_000_000)
    fal_faults.truncate(after=1_000_000, times=1)
    with pytest.raises(DownloadError):
        download_file(URL, "models")


@bug(
    "N7",
    symptom="my runner hangs at its start, and the log does not say in what",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_download_says_nothing_until_it_is_over(fal_origin, fal_faults, capsys):
    """While a file is downloaded nothing is printed; "Downloading ..." comes once all is there.

    Production: minutes of silence, which look like a deadlock; of a download that never ends, not
        even its URL is in the log.
    Expected: a line before, and one each 64 MB, as fal printed them until 1.75.4.
    Happens: one line, after the last byte.
    Avoid: print a line of your own before.
    """
    fal_origin.serve(URL, size=3_000_000)
    gate = fal_faults.gate(after=2_000_000)
    with ThreadPoolExecutor() as pool:
        download = pool.submit(download_file, URL, "models")
        gate.wait()
        assert capsys.readouterr().out == ""
        gate.open()
        download.result()
    assert capsys.readouterr().out == f"Downloading {URL} to /data/models/model.bin\n"


# --- what it sends -------------------------------------------------------------------------------


@bug(
    "D11",
    symptom="the server refuses me although I send the User-Agent it wants",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_two_user_agents_are_sent(fal_origin):
    """A user-agent header in another spelling is sent beside the SDK's own, not instead of it.

    Production: servers look at the first, at the last, or answer 400.
    Expected: header names do not depend on case, so yours replaces the default.
    Happens: both are sent.
    Avoid: write it "User-Agent".
    """
    file = fal_origin.serve(URL, b"weights")
    download_file(URL, "models", request_headers={"user-agent": "mine"})
    assert file.requests[-1].request_headers["user-agent"].endswith("Firefox/21.0, mine")

    download_file(URL, "models", request_headers={"User-Agent": "mine"})
    assert file.requests[-1].request_headers["user-agent"] == "mine"


@bug(
    "D12",
    symptom="my API key turned up in the log of somebody else's server",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_key_follows_redirects_to_other_hosts(fal_origin):
    """A secret in a header of its own name is sent on to wherever the server redirects.

    Production: most model hosts redirect to a storage host, which then has your key.
    Expected: credentials stay with the host they were meant for.
    Happens: Authorization and Cookie do, X-Api-Key and the like do not.
    Avoid: send secrets as Authorization; or follow the redirect yourself.
    """
    storage = fal_origin.serve("https://storage.example.net/model.bin", b"weights")
    fal_origin.serve(URL, redirect_to=storage.url)
    download_file(URL, "models", request_headers={"X-Api-Key": "secret", "Authorization": "secret"})
    assert "x-api-key" in storage.requests[0].request_headers
    assert "authorization" not in storage.requests[0].request_headers


# --- what it writes ------------------------------------------------------------------------------


@bug(
    "D9",
    symptom="my config is garbage: it begins with 1f 8b",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_compressed_response_is_stored_as_it_is(fal_origin):
    """What a server compresses on the way is stored compressed.

    Production: JSON and text of servers that always compress cannot be read.
    Expected: the file itself; compression is the transport's affair.
    Happens: the bytes of the wire, under the file's name.
    Avoid: look at the first two bytes, or fetch such files with httpx.
    """
    url = "https://example.com/config.json"
    fal_origin.serve(url, b'{"steps": 4}', gzip=True)
    path = download_file(url, "configs")
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    assert gzip.decompress(path.read_bytes()) == b'{"steps": 4}'


@bug(
    *("D15", "P27"),
    symptom="PermissionError: my worker cannot read the model that setup() downloaded",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_downloaded_files_are_private(fal_origin):
    """Downloaded files can be read by their owner only, on the volume that all runners share.

    Production: a subprocess or a container that runs as another user cannot open them.
    Expected: the mode that open() gives files, by the umask.
    Happens: 0600, the mode of temporary files.
    Avoid: chmod after the download.
    """
    fal_origin.serve(URL, b"weights")
    path: Path = download_file(URL, "models")
    assert path.stat().st_mode & 0o777 == 0o600

    path.chmod(0o644)
    assert path.stat().st_mode & 0o777 == 0o644


@bug(
    "P34",
    symptom="ValueError: File has not been downloaded, but it is my endpoint's input",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_as_bytes_downloads_nothing(fal_cdn, fal_tmp, monkeypatch):
    """as_bytes() has the bytes of a file only if this process made it from not too many of them.

    Production: works in the first test with File.from_bytes, fails for every input, and for outputs
        of more than 100 MiB.
    Expected: the file's bytes, as the documentation shows it.
    Happens: a ValueError.
    Avoid: download the URL.
    """
    input = File(url=fal_cdn.put(b"a document", "document.txt"))
    with pytest.raises(ValueError, match=r"^File has not been downloaded$"):
        input.as_bytes()

    monkeypatch.setattr(MultipartUploadV3, "MULTIPART_THRESHOLD", 10)  # instead of 100 MiB
    output = File.from_path(fal_tmp.write("large.bin", b"eleven bytes"))
    with pytest.raises(ValueError, match=r"^File has not been downloaded$"):
        output.as_bytes()

    assert download_file(input.url, "/tmp/inputs").read_bytes() == b"a document"


@bug(
    "N9",
    symptom="ResourceWarning: unclosed socket, in a test that downloads nothing",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_broken_download_leaves_its_socket_to_the_garbage_collector(fal_origin, fal_faults):
    """A download that breaks off in a body without a length does not close its connection.

    Production: connections stay open until the garbage is collected.
    Expected: what download_file opens it closes, whether it fails or not.
    Happens: the response of such a body owns the socket, and only the connection is closed.
        Warnings that are errors fail whichever test is running when the garbage is collected.
    Avoid: in tests, collect it where it comes up, with the warning ignored.
    """
    url = "http://example.com/model.bin"
    fal_origin.serve(url, size=1000, content_length="absent")
    fal_faults.drop(after=500)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(10):  # one in some sixty leaves none behind, it was not found out why
            with contextlib.suppress(DownloadError):
                download_file(url, "models")
            gc.collect()
            if caught:
                break
    assert any(str(warning.message).startswith("unclosed <") for warning in caught)
