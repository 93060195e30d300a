"""The vendor behind a simulated TEE: its root, its certificates and the collateral that it signs.

Formats: Intel SGX PCK Certificate and CRL Profile Specification 1.5 (the SGX extension, 1.2.840.113741.1.13.1) and
Intel's Provisioning Certification Service API, version 4 (TCB info version 3, QE identity version 2), both at
https://api.portal.trustedservices.intel.com.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from confide.attest.collateral import Collateral

FMSPC: Final = b"\x00SIM\x00\x00"
PPID: Final = b"SIMULATED-PPID-0"
PCEID: Final = bytes(2)
QE_SIGNER: Final = b"SIMULATED quoting enclave signer"
SVN: Final = 1
"""The security version of everything simulated."""

ISSUERS: Final[Mapping[str, str]] = {"root": "root", "pck_ca": "root", "tcb": "root", "pck": "pck_ca"}
"""Who issues what: the root, the PCK authority, the signer of TCB lists and the machine's PCK certificate."""

_SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"
_LIFETIME: Final = timedelta(days=30 * 365)

Key = ec.EllipticCurvePrivateKey
Certificates = Mapping[str, x509.Certificate]


@dataclass(frozen=True)
class Listing:
    """What the simulated vendor publishes. The defaults make the simulated machine up to date, for `days` from `at`.

    revoked: of `pck` and `pck_ca`. least: the lowest security version that has a level, above 1 for none that fits.
    evaluation: the tcbEvaluationDataNumber. newer: the date of one more level, which the simulated machine lacks.
    """

    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    days: int = 30
    status: str = "UpToDate"
    advisories: tuple[str, ...] = ()
    fmspc: bytes = FMSPC
    least: int = SVN
    revoked: frozenset[str] = frozenset()
    evaluation: int = 1
    newer: datetime | None = None

    @property
    def until(self) -> datetime:
        """When the next update is due."""
        return self.at + timedelta(days=self.days)


def sign(key: Key, message: bytes) -> bytes:
    """ECDSA P-256 with SHA-256 as Intel writes it: r and s, 32 bytes each, big-endian."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def make_certificates(keys: Mapping[str, Key], now: datetime) -> dict[str, x509.Certificate]:
    """A certificate for each of ISSUERS, good for 30 years."""
    return {name: _certificate(name, issuer, keys, now) for name, issuer in ISSUERS.items()}


def _certificate(name: str, issuer: str, keys: Mapping[str, Key], now: datetime) -> x509.Certificate:
    authority = name in ISSUERS.values()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(keys[name].public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(_usage(authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[name].public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[issuer].public_key()), critical=False)
    )
    if name == "pck":
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX_EXTENSION), _sgx_extension())
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(keys[issuer], hashes.SHA256())


def _name(name: str) -> x509.Name:
    words = {
        "root": "SIMULATED Root CA",
        "pck_ca": "SIMULATED PCK Platform CA",
        "tcb": "SIMULATED TCB Signing",
        "pck": "SIMULATED PCK Certificate",
    }
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, words[name])])


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _sgx_extension() -> bytes:
    svns = [_entry(f"2.{n}", _der(0x02, bytes([SVN]))) for n in range(1, 18)]
    tcb = _der(0x30, b"".join(svns) + _entry("2.18", _der(0x04, bytes([SVN]) * 16)))
    entries = [
        _entry("1", _der(0x04, PPID)),
        _entry("2", tcb),
        _entry("3", _der(0x04, PCEID)),
        _entry("4", _der(0x04, FMSPC)),
        _entry("5", _der(0x0A, b"\x00")),
    ]
    return _der(0x30, b"".join(entries))


def _entry(arc: str, value: bytes) -> bytes:
    """A DER pair of an OID below the extension's and a value."""
    first, second, *rest = (int(number) for number in f"{_SGX_EXTENSION}.{arc}".split("."))
    return _der(0x30, _der(0x06, bytes([40 * first + second]) + b"".join(map(_base128, rest))) + value)


def _base128(number: int) -> bytes:
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(number & 0x7F | 0x80)
    return bytes(reversed(digits))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


def make_collateral(keys: Mapping[str, Key], certificates: Certificates, listing: Listing) -> Collateral:
    """The collateral of the simulated machine, in the JSON of QuoteCollateralV3."""
    signer = pem(certificates, "tcb", "root")
    tcb_info, qe_identity = _document(_tcb_info(listing)), _document(_qe_identity(listing))
    content = {
        "pck_crl_issuer_chain": pem(certificates, "pck_ca", "root"),
        "root_ca_crl": _revoked("root", keys, certificates, listing),
        "pck_crl": _revoked("pck_ca", keys, certificates, listing),
        "tcb_info_issuer_chain": signer,
        "tcb_info": tcb_info,
        "tcb_info_signature": sign(keys["tcb"], tcb_info.encode()).hex(),
        "qe_identity_issuer_chain": signer,
        "qe_identity": qe_identity,
        "qe_identity_signature": sign(keys["tcb"], qe_identity.encode()).hex(),
    }
    return Collateral({"dcap": json.dumps(content).encode()})


def pem(certificates: Certificates, *names: str) -> str:
    """The named certificates as one PEM text."""
    return "".join(certificates[name].public_bytes(Encoding.PEM).decode() for name in names)


def _revoked(issuer: str, keys: Mapping[str, Key], certificates: Certificates, listing: Listing) -> str:
    """The issuer's revocation list, in hexadecimal DER."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(certificates[issuer].subject)
        .last_update(listing.at)
        .next_update(listing.until)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[issuer].public_key()), critical=False)
    )
    for name in listing.revoked:
        if ISSUERS[name] == issuer:
            entry = x509.RevokedCertificateBuilder().serial_number(certificates[name].serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(listing.at).build())
    return builder.sign(keys[issuer], hashes.SHA256()).public_bytes(Encoding.DER).hex()


def _document(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))


def _dates(listing: Listing) -> dict[str, Any]:
    dates = {"issueDate": _text(listing.at), "nextUpdate": _text(listing.until)}
    return dates | {"tcbEvaluationDataNumber": listing.evaluation}


def _text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _level(tcb: Mapping[str, Any], listing: Listing, status: str) -> dict[str, Any]:
    level = {"tcb": tcb, "tcbDate": _text(listing.at), "tcbStatus": status}
    return level | ({"advisoryIDs": list(listing.advisories)} if listing.advisories else {})


def _tcb_info(listing: Listing) -> dict[str, Any]:
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    components = [{"svn": listing.least}] * 16
    platform = {"sgxtcbcomponents": components, "pcesvn": SVN, "tdxtcbcomponents": components}
    levels = [_level(platform, listing, listing.status)]
    if listing.newer is not None:
        newer = _level(platform | {"pcesvn": SVN + 1}, listing, "UpToDate")
        levels.insert(0, newer | {"tcbDate": _text(listing.newer)})
    return {
        "id": "TDX",
        "version": 3,
        **_dates(listing),
        "fmspc": listing.fmspc.hex().upper(),
        "pceId": PCEID.hex(),
        "tcbType": 0,
        "tdxModule": module,
        "tdxModuleIdentities": [
            {"id": "TDX_01", **module, "tcbLevels": [_level({"isvsvn": SVN}, listing, "UpToDate")]},
        ],
        "tcbLevels": levels,
    }


def _qe_identity(listing: Listing) -> dict[str, Any]:
    return {
        "id": "TD_QE",
        "version": 2,
        **_dates(listing),
        "miscselect": "00" * 4,
        "miscselectMask": "FF" * 4,
        "attributes": "11" + "00" * 15,
        "attributesMask": "FB" + "FF" * 7 + "00" * 8,
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": 2,
        "tcbLevels": [_level({"isvsvn": SVN}, listing, "UpToDate")],
    }
