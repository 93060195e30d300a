"""Authorities made on the spot: certificates, chains and revocation lists like the vendors', under roots of nobody."""

from base64 import encodebytes
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from .cases import NOW

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
YEAR = timedelta(days=365)


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """One key for each name, made once: making one takes long."""
    return rsa.generate_private_key(65537, 2048)


@cache
def ec_key(name: str, curve: type[ec.EllipticCurve] = ec.SECP384R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


def pss(key: Key) -> padding.PSS | None:
    return padding.PSS(padding.MGF1(hashes.SHA384()), 48) if isinstance(key, rsa.RSAPrivateKey) else None


@dataclass(frozen=True)
class Party:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: Key

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def name(self) -> x509.Name:
        return self.certificate.subject


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def party(
    name: str,
    key: Key,
    issuer: Party | None = None,
    *,
    ca: bool = True,
    signs: bool | None = None,
    lists: bool | None = None,
    path_length: int | None = None,
    serial: int = 1,
    begin: datetime = NOW - YEAR,
    end: datetime = NOW + YEAR,
    extensions: Sequence[x509.ExtensionType] = (),
    digest: hashes.HashAlgorithm | None = None,
) -> Party:
    """A certificate for `key`, signed by `issuer` or by itself.

    signs, lists: whether it may sign certificates and revocation lists; as an authority may, unless told.
    """
    usage = {
        "key_cert_sign": ca if signs is None else signs,
        "crl_sign": ca if lists is None else lists,
        "digital_signature": not ca,
    }
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    nothing = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(issuer.name if issuer else named(name))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, path_length), True)
        .add_extension(x509.KeyUsage(**usage, **nothing), True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, False)
    signer = issuer.key if issuer else key
    return Party(builder.sign(signer, digest or hashes.SHA384(), rsa_padding=pss(signer)), key)


def crl(issuer: Party, *serials: int, begin: datetime = NOW - YEAR, end: datetime = NOW + YEAR) -> bytes:
    """A revocation list (DER)."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.name).last_update(begin).next_update(end)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(begin).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA384(), rsa_padding=pss(issuer.key)).public_bytes(Encoding.DER)


def pem(*parties: Party) -> bytes:
    return b"".join(one.certificate.public_bytes(Encoding.PEM) for one in parties)


def pem_of(*ders: bytes) -> bytes:
    """PEM blocks around bytes, whatever they hold."""
    blocks = (b"-----BEGIN CERTIFICATE-----\n" + encodebytes(der) + b"-----END CERTIFICATE-----\n" for der in ders)
    return b"".join(blocks)


def opaque(oid: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
