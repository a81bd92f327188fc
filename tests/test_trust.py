from __future__ import annotations

import ssl
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import certifi
import pytest

from emulator.errors import EmulatorError
from emulator.network.trust import Authority, ServerSide, _load_chain_from_disk


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


def client_of(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate_pem.decode())


def handshake(
    client: ssl.SSLContext, server: ssl.SSLContext, name: str | None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after a TLS handshake in memory; what the client makes of it is raised."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=name)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                if side is near:
                    raise
    return near, far


def names_in(side: ssl.SSLObject) -> list[str]:
    certificate = side.getpeercert()
    assert certificate is not None
    return [str(pair[1]) for pair in certificate["subjectAltName"]]


class TestLeaves:
    @pytest.mark.parametrize(
        "name",
        ["v3.fal.media", "192.88.99.7", "::1", "my_bucket.s3.amazonaws.com", "xn--caf-dma.fr"],
    )
    def test_a_strict_client_accepts_the_name(self, authority: Authority, name: str) -> None:
        client = client_of(authority)
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        near, _ = handshake(client, authority.server_context(name), name)
        assert near.version() == "TLSv1.3"

    def test_a_client_that_wants_another_name_refuses(self, authority: Authority) -> None:
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            handshake(client_of(authority), authority.server_context("a.example"), "b.example")

    def test_a_client_without_the_authority_refuses(self, authority: Authority) -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(ssl.create_default_context(), authority.server_context("a.fr"), "a.fr")

    def test_international_names_are_encoded(self, authority: Authority) -> None:
        handshake(client_of(authority), authority.server_context("café.fr"), "xn--caf-dma.fr")

    def test_what_is_no_name_is_refused(self, authority: Authority) -> None:
        with pytest.raises(ValueError):
            authority.server_context("é..é")

    def test_one_context_a_name(self, authority: Authority) -> None:
        first = authority.server_context("one.example")
        assert authority.server_context("ONE.example.") is first
        assert authority.server_context("two.example") is not first

    def test_threads_get_the_same_context(self, authority: Authority) -> None:
        with ThreadPoolExecutor(16) as pool:
            contexts = set(pool.map(authority.server_context, ["threads.example"] * 64))
        assert len(contexts) == 1

    def test_http_1_1_and_nothing_else_is_offered(self, authority: Authority) -> None:
        client = client_of(authority)
        client.set_alpn_protocols(["h2", "http/1.1"])
        near, _ = handshake(client, authority.server_context("a.fr"), "a.fr")
        assert near.selected_alpn_protocol() == "http/1.1"

    def test_no_tickets_and_no_old_tls(self, authority: Authority) -> None:
        context = authority.server_context("a.fr")
        assert context.num_tickets == 0
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


class TestKeysStayInMemory:
    @pytest.mark.skipif(sys.platform != "linux", reason="memfd_create is Linux's")
    def test_no_file_is_needed(
        self, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
        context = authority.server_context("memory.example")
        handshake(client_of(authority), context, "memory.example")

    def test_the_fallback_file_is_gone_at_once(
        self, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr("emulator.network.trust._load_chain", _load_chain_from_disk)
        context = authority.server_context("disk.example")
        assert list(tmp_path.iterdir()) == []
        handshake(client_of(authority), context, "disk.example")

    def test_write_holds_the_certificate_alone(self, authority: Authority, tmp_path: Path) -> None:
        authority.write(tmp_path / "ca.pem")
        assert (tmp_path / "ca.pem").read_bytes() == authority.certificate_pem
        assert b"PRIVATE KEY" not in authority.certificate_pem

    def test_a_written_certificate_is_trusted(self, authority: Authority, tmp_path: Path) -> None:
        authority.write(tmp_path / "ca.pem")
        client = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        handshake(client, authority.server_context("a.fr"), "a.fr")


class TestBundle:
    def test_has_our_authority_and_the_usual_ones(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        authority.write_bundle(tmp_path / "bundle.pem")
        ours = ssl.create_default_context(cafile=tmp_path / "bundle.pem")
        usual = ssl.create_default_context(cafile=certifi.where())
        found = ours.get_ca_certs(binary_form=True)
        assert ssl.PEM_cert_to_DER_cert(authority.certificate_pem.decode()) in found
        assert set(usual.get_ca_certs(binary_form=True)) <= set(found)
        assert b"PRIVATE KEY" not in (tmp_path / "bundle.pem").read_bytes()

    def test_has_the_authorities_that_the_user_names(
        self, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        company = Authority.create()
        company.write(tmp_path / "company.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "company.pem"))
        authority.write_bundle(tmp_path / "bundle.pem")
        assert company.certificate_pem.strip() in (tmp_path / "bundle.pem").read_bytes()

    def test_holds_each_certificate_once(self, authority: Authority, tmp_path: Path) -> None:
        authority.write_bundle(tmp_path / "bundle.pem")
        blocks = (tmp_path / "bundle.pem").read_text().split("-----END CERTIFICATE-----\n")
        assert len(blocks) == len(set(blocks))


class TestOtherProcesses:
    def test_a_copy_is_trusted_as_the_original(self, authority: Authority) -> None:
        copy = Authority.from_pem(authority.pem)
        assert copy.pem == authority.pem
        handshake(client_of(authority), copy.server_context("a.fr"), "a.fr")

    def test_a_certificate_alone_is_refused(self, authority: Authority) -> None:
        with pytest.raises(EmulatorError) as caught:
            Authority.from_pem(authority.certificate_pem)
        assert str(caught.value) == (
            "This is not an authority: one CERTIFICATE and one private key are needed, and there "
            "were 0 keys and a certificate. Pass what Authority.pem gave: "
            "Authority.from_pem(authority.pem)"
        )


class TestListenerContext:
    def test_is_whatever_the_client_asks_for(self, authority: Authority) -> None:
        listener = authority.listener_context()
        for name in ("rest.fal.ai", "v3.fal.media"):
            near, _ = handshake(client_of(authority), listener, name)
            assert names_in(near) == [name]

    def test_is_localhost_for_a_client_that_asks_for_nothing(self, authority: Authority) -> None:
        client = client_of(authority)
        client.check_hostname = False
        near, _ = handshake(client, authority.listener_context(), None)
        assert names_in(near) == ["localhost"]

    @pytest.mark.parametrize("asked", ["v3.fal.media", None])
    def test_lets_a_function_choose(self, authority: Authority, asked: str | None) -> None:
        heard: list[tuple[ServerSide, str | None]] = []

        def choose(side: ServerSide, name: str | None) -> str:
            heard.append((side, name))
            return "chosen.example"

        client = client_of(authority)
        client.check_hostname = False
        near, far = handshake(client, authority.listener_context(choose), asked)
        assert names_in(near) == ["chosen.example"]
        assert heard == [(far, asked)]

    def test_alerts_a_client_when_there_can_be_no_certificate(self, authority: Authority) -> None:
        listener = authority.listener_context(lambda _side, _name: "é..é")
        with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
            handshake(client_of(authority), listener, "a.fr")
