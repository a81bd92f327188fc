"""The certificate authority of a session: every TLS name that the wire answers is signed by it.

The authority lives in memory. Its certificate may be written to a file for clients to trust; its
key and the keys of the leaves never are. Leaves are issued when a name is first asked for.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import certifi
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from emulator.errors import EmulatorError

__all__ = ["Authority", "FlawedHandshake", "ServerSide", "name_asked_for"]

ServerSide = ssl.SSLSocket | ssl.SSLObject

_UNNAMED = "localhost"
_CACHED_NAMES = 512
_ORGANIZATION = "pytest-fal emulator"
_VALID_FROM = datetime.datetime(2000, 1, 1)
_VALID_UNTIL = datetime.datetime(3000, 1, 1)
_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----", re.DOTALL)
# OpenSSL's compiled-in file is often absent (Debian's and Red Hat's packages use these instead).
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


class FlawedHandshake(Exception):  # noqa: N818 - an order, not an error
    """Raised by a listener's ``choose``: present a certificate with this flaw.

    ``"expired"``, ``"wrong_host"``, ``"untrusted"``; or ``"handshake"``: present none, and alert.
    """

    def __init__(self, name: str, flaw: str) -> None:
        """Take down whose certificate is to be flawed."""
        super().__init__(f"{name}: {flaw}")
        self.name = name
        self.flaw = flaw


class Authority:
    """A certificate authority that issues server certificates for any name, on demand.

    Safe to use from several threads. The leaves share one EC key, which is made with the object.
    """

    def __init__(self, authority: trustme.CA) -> None:
        """Take over a trustme authority; use ``create`` or ``from_pem`` instead."""
        self.certificate_pem: bytes = authority.cert_pem.bytes()
        self._key_pem: bytes = authority.private_key_pem.bytes()
        self._certificate = x509.load_pem_x509_certificate(self.certificate_pem)
        self._key = _elliptic_key(self._key_pem)
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._lock = threading.Lock()
        self._context_of = lru_cache(maxsize=_CACHED_NAMES)(self._new_context)

    @classmethod
    def create(cls) -> Authority:
        """Make a new authority with a new key."""
        return cls(trustme.CA(organization_name=_ORGANIZATION))

    @classmethod
    def from_pem(cls, cert_and_key_pem: bytes) -> Authority:
        """Rebuild the authority whose ``pem`` another process sent.

        Raises EmulatorError when the certificate or the key is missing.
        """
        blocks = {match[1]: match[0] for match in _PEM_BLOCK.finditer(cert_and_key_pem)}
        certificate = blocks.pop(b"CERTIFICATE", None)
        if certificate is None or len(blocks) != 1:
            raise EmulatorError(
                "This is not an authority: one CERTIFICATE and one private key are needed, "
                f"and there were {len(blocks)} keys and "
                f"{'no' if certificate is None else 'a'} certificate. "
                "Pass what Authority.pem gave: Authority.from_pem(authority.pem)"
            )
        return cls(trustme.CA.from_pem(certificate, next(iter(blocks.values()))))

    @property
    def pem(self) -> bytes:
        """The certificate and its private key, to hand to another process; never write it."""
        return self.certificate_pem + self._key_pem

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate alone, for ``SSL_CERT_FILE`` and its cousins."""
        Path(path).write_bytes(self.certificate_pem)

    def write_bundle(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate and the usual authorities, for tests that reach real hosts.

        The usual ones are those of ``SSL_CERT_FILE`` as it stands, of the system and of certifi.
        """
        blocks = dict.fromkeys(_certificates(self.certificate_pem))
        for bundle in _usual_bundles():
            blocks.update(dict.fromkeys(_certificates(bundle.read_bytes())))
        Path(path).write_bytes(b"\n".join(blocks) + b"\n")

    def server_context(self, name: str) -> ssl.SSLContext:
        """The context that proves to be ``name``, a host name or an IP literal.

        Raises ValueError for what can be neither.
        """
        with self._lock:
            return self._context_of(name.lower().rstrip("."))

    def flawed_context(self, name: str, flaw: str) -> ssl.SSLContext:
        """A context that fails to prove to be ``name``, for one reason and no other."""
        if flaw == "wrong_host":
            return self.server_context("another-host.invalid")
        if flaw == "untrusted":
            return Authority.create().server_context(name)
        return self._new_context(name, until=_VALID_FROM + datetime.timedelta(days=365))

    def listener_context(
        self, choose: Callable[[ServerSide, str | None], str | None] | None = None
    ) -> ssl.SSLContext:
        """The context for a socket that answers every name.

        ``choose`` is told the TLS socket and the name that the client asked for (None when it
        sent none, as clients of an IP address do) and returns the name to be; ``localhost`` if
        it returns None.
        """

        def switch(side: ServerSide, asked: str | None, _context: object) -> int | None:
            try:
                name = choose(side, asked) if choose else asked
                side.context = self.server_context(name or _UNNAMED)
            except FlawedHandshake as order:
                if order.flaw == "handshake":
                    return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
                side.context = self.flawed_context(order.name, order.flaw)
            except ValueError:  # not a name: the client gets an alert, and pytest no traceback
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            return None

        context = self._new_context(_UNNAMED)
        context.sni_callback = switch
        return context

    def _new_context(self, name: str, until: datetime.datetime = _VALID_UNTIL) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A ticket written after the handshake makes a client that leaves at once look like an
        # error, and nothing here resumes a session.
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        _load_chain(context, self._issue(name, until) + self._leaf_key_pem())
        return context

    def _issue(self, name: str, until: datetime.datetime) -> bytes:
        # trustme refuses names with an underscore, which buckets and containers have.
        issuer_key_id = self._certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        )
        public_key = self._leaf_key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANIZATION)]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .not_valid_before(_VALID_FROM)
            .not_valid_after(until)
            .serial_number(x509.random_serial_number())
            .add_extension(x509.SubjectAlternativeName([_general_name(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key_id.value),
                critical=False,
            )
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _leaf_key_pem(self) -> bytes:
        return self._leaf_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def name_asked_for(hello: bytes) -> bytes | None:
    """The server's name in a client's first message, as far as that has come; None: there is none.

    RFC 8446, 4.1.2 has the message, RFC 6066, 3 the name.
    """

    def number(at: int, size: int) -> int:
        return int.from_bytes(hello[at : at + size], "big")

    at = 43  # behind the heads of record and message, the version and the random bytes
    at += 1 + number(at, 1)  # session
    at += 2 + number(at, 2)  # ciphers
    at += 1 + number(at, 1) + 2  # compression, and the length of what follows
    while at + 9 <= len(hello):
        if number(at, 2) == 0:
            return hello[at + 9 : at + 9 + number(at + 7, 2)]
        at += 4 + number(at + 2, 2)
    return None


def _elliptic_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EmulatorError(
            f"The authority's key is a {type(key).__name__}, and only EC keys are used here. "
            "Make the authority with Authority.create()."
        )
    return key


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name if name.isascii() else name.encode("idna").decode("ascii"))


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    """Give a context its certificate and key, which the ssl module takes only from a path."""
    if sys.platform == "linux" and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("pytest-fal-leaf")
        try:
            os.write(descriptor, pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    else:
        _load_chain_from_disk(context, pem)


def _load_chain_from_disk(context: ssl.SSLContext, pem: bytes) -> None:
    descriptor, path = tempfile.mkstemp(prefix="pytest-fal-")  # mode 0600
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(path)
    finally:
        os.close(descriptor)
        Path(path).unlink()


def _certificates(pem: bytes) -> list[bytes]:
    return [match[0] for match in _PEM_BLOCK.finditer(pem) if match[1] == b"CERTIFICATE"]


def _usual_bundles() -> list[Path]:
    candidates = [os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().openssl_cafile]
    candidates += [*_SYSTEM_BUNDLES, certifi.where()]
    return [path for path in map(Path, filter(None, candidates)) if path.is_file()]
