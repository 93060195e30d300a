"""TLS between client and layer server: the two contexts, and certificates for machines that have no public name.

There is no setting that leaves a certificate or a host name unchecked. Who needs a server without a public name makes
a small certificate authority with `make_certificates`, and gives its certificate to the clients.
"""

import ipaddress
import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from confide.disk.files import replace_file
from confide.errors import InvalidCertificate
from confide.errors.certificates import PARSE_ERRORS

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""Every certificate made here is good for these."""
_CLOCK_SKEW = timedelta(hours=1)
_HOST_NAME = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.IGNORECASE)


def client_context(ca: Path | str | None = None) -> ssl.SSLContext:
    """Trusts the system's authorities, or those in the file `ca` and nobody else."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise InvalidCertificate(
            f"{ca} is no file of certificates ({_reason(error)}); give the ca.pem that belongs to the server."
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Shows the certificate chain in one PEM file, whose private key is in the other."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password, OpenSSL would ask for one at the terminal where the key has one.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise InvalidCertificate(
            f"{certificate} and {key} are not a certificate and its unencrypted private key in PEM "
            f"({_reason(error)}); `confide tls make-local` makes such a pair."
        ) from error
    return context


def certificate_names(certificate: Path) -> list[str]:
    """The host names and addresses that the first certificate of a PEM file is for; a wildcard names none.

    InvalidCertificate where the file holds none.
    """
    try:
        leaf = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, x509.ExtensionNotFound, *PARSE_ERRORS) as error:
        raise InvalidCertificate(
            f"{certificate} holds no certificate with host names; `confide tls make-local` makes one."
        ) from error
    names = found.get_values_for_type(x509.DNSName)
    addresses = found.get_values_for_type(x509.IPAddress)
    return [*(name for name in names if "*" not in name), *map(str, addresses)]


def _reason(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return (reason or "not readable").lower().replace("_", " ")


@dataclass(frozen=True)
class LocalCertificates:
    """What a server without a public name needs, in PEM, and the authority that its clients are to trust."""

    ca: bytes
    chain: bytes
    key: bytes

    def __repr__(self) -> str:
        return "LocalCertificates(<hidden>)"

    def write(self, folder: Path) -> tuple[Path, Path, Path]:
        """Write ca.pem, server.pem and server.key, this one for its owner only; nothing is overwritten."""
        ca, chain, key = paths = (folder / "ca.pem", folder / "server.pem", folder / "server.key")
        for path in paths:
            if path.exists():
                raise InvalidCertificate(f"{path} exists and is never overwritten; delete it, or give another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(key, self.key, mode=0o600)
        replace_file(chain, self.chain)
        replace_file(ca, self.ca)
        return paths


def make_certificates(names: list[str], *, days: int = 365, now: datetime | None = None) -> LocalCertificates:
    """A new authority, and a server's certificate from it for this machine's own names and those given.

    The authority's private key is forgotten at once: nobody can ever make a second certificate that its clients
    would trust. So a renewed certificate comes with a new authority, and clients need the new ca.pem.
    """
    start = (now or datetime.now(UTC)) - _CLOCK_SKEW
    span = (start, start + _CLOCK_SKEW + timedelta(days=days))
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("Confide local authority")
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), ca_key.public_key(), span)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(ca_key, SHA256())
    )
    server = (
        _builder(_name("Confide layer server"), ca_name, key.public_key(), ca_key.public_key(), span)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(alternative_names(names), critical=False)
        .sign(ca_key, SHA256())
    )
    ca_pem = ca.public_bytes(Encoding.PEM)
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return LocalCertificates(ca_pem, server.public_bytes(Encoding.PEM) + ca_pem, key_pem)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    span: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(span[0])
        .not_valid_after(span[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def alternative_names(names: Iterable[str]) -> x509.SubjectAlternativeName:
    """For a certificate: this machine's own names and those given. InvalidCertificate for what names no host."""
    return x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys((*LOCAL_NAMES, *names))])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _HOST_NAME.fullmatch(name):
            raise InvalidCertificate(
                f"{name!r} is neither a host name nor an address; give names as clients will write them, "
                "without a scheme or a port."
            ) from None
        return x509.DNSName(name)
