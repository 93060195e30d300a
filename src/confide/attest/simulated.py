"""The simulated TEE: a machine of files that makes real-format TDX quotes under a root of its own.

Its evidence goes through the very same verification as Intel's and differs in the root alone. Anybody who can read the
folder can make any quote, so what it proves is nothing: it is for development and tests.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from confide.attest.chain import read_certificate
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.families.dcap_quote import (
    ECDSA_P256_KEY_TYPE,
    PCK_CHAIN,
    QE_REPORT_DATA,
    SGX_REPORT,
    TD_REPORT_10,
    TDX_TEE,
    Layout,
)
from confide.attest.families.dcap_words import NAMES
from confide.attest.roots import SimulatedRoots
from confide.attest.simulated_vendor import (
    ISSUERS,
    QE_SIGNER,
    SVN,
    Key,
    Listing,
    make_certificates,
    make_collateral,
    pem,
    sign,
)
from confide.disk.files import create_file, replace_file
from confide.errors import AttestationError, MalformedEvidence
from confide.errors.certificates import PARSE_ERRORS

_KEYS: Final = (*ISSUERS, "attestation")
_QE_AUTH: Final = b"SIMULATED" + bytes(23)
_INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

_README: Final = """\
# SIMULATED

# THIS IS NOT A TRUSTED EXECUTION ENVIRONMENT

This folder is a SIMULATED machine, made by `confide tee simulate init`. It protects NOTHING: whoever can read the
`.key` files can make any evidence they like. It is for development and tests, and no production policy accepts it.

- `root.pem` is the simulated root. Never add it to anything that guards real data.
- `*.key` are private keys. They have no value, and still nobody else should have them.
"""


@dataclass(frozen=True)
class SimulatedTee:
    """A simulated machine. keys: of the root, the PCK authority, the TCB signer, the machine, and its quotes."""

    keys: Mapping[str, Key]
    certificates: Mapping[str, x509.Certificate]

    @classmethod
    def create(cls, folder: Path | str, now: datetime | None = None) -> "SimulatedTee":
        """Make one in a new or empty folder. AttestationError where there is something already."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise AttestationError(f"{folder} is not empty; name a new folder for the simulated TEE.")
        keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in _KEYS}
        tee = cls(keys, make_certificates(keys, now or datetime.now(UTC)))
        replace_file(folder / "README.md", _README.encode())
        for name, key in keys.items():
            create_file(folder / f"{name}.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        for name in tee.certificates:
            replace_file(folder / f"{name}.pem", pem(tee.certificates, name).encode())
        return tee

    @classmethod
    def open(cls, folder: Path | str) -> "SimulatedTee":
        """The one that `create` made. AttestationError if a file is missing or unreadable."""
        folder = Path(folder)
        try:
            keys = {name: _read_key(folder / f"{name}.key") for name in _KEYS}
            certificates = {
                name: read_certificate((folder / f"{name}.pem").read_bytes(), "certificate") for name in ISSUERS
            }
        except (OSError, MalformedEvidence, *PARSE_ERRORS) as problem:
            raise AttestationError(
                f"{folder} holds no simulated TEE; make one with `confide tee simulate init`."
            ) from problem
        return cls(keys, certificates)

    def quote(
        self,
        report_data: bytes,
        *,
        measurements: Mapping[str, bytes] = MappingProxyType({}),
        debug: bool = False,
        parts: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Evidence:
        """A TDX quote of version 4 over 64 bytes of report data.

        measurements: by the names that claims have, such as mrtd and rtmr0, 48 bytes each; zeros for those not given,
        and a fixed mrtd. ValueError for a wrong size or an unknown name.
        """
        report = self._report(report_data, measurements, debug)
        header = struct.pack("<HHIHH", 4, ECDSA_P256_KEY_TYPE, TDX_TEE, 0, 0) + _INTEL_QE_VENDOR + bytes(20)
        auth = self._auth(header + report)
        return Evidence(Family.TDX, header + report + _sized(auth), parts)

    @property
    def name(self) -> str:
        """What a human calls this source of evidence."""
        return "simulated"

    def read(self, report_data: bytes) -> Evidence:
        """Evidence as any reader of real hardware gives it; see `quote`."""
        return self.quote(report_data)

    def collateral(self, listing: Listing | None = None) -> Collateral:
        """What the simulated vendor publishes, by default from now on for 30 days."""
        return make_collateral(self.keys, self.certificates, listing or Listing())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root certificate, in hexadecimal."""
        return self.certificates["root"].fingerprint(hashes.SHA256()).hex()

    def roots(self) -> SimulatedRoots:
        """The root that this machine's evidence ends in."""
        return SimulatedRoots({Family.TDX: self.certificates["root"].public_bytes(Encoding.DER)})

    def _report(self, report_data: bytes, measurements: Mapping[str, bytes], debug: bool) -> bytes:
        fields = {
            "tee_tcb_svn": bytes([SVN] * 16),
            "mr_td": hashlib.sha384(b"SIMULATED").digest(),
            "td_attributes": bytes([debug, 0, 0, 0x10, 0, 0, 0, 0]),
            "report_data": report_data,
        }
        theirs = {ours: field for field, ours in NAMES.items()}
        given = {theirs.get(name, name): value for name, value in measurements.items()}
        return _packed(TD_REPORT_10, fields | given)

    def _auth(self, signed: bytes) -> bytes:
        key = self.keys["attestation"]
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        qe_report = _packed(SGX_REPORT, _qe_fields(hashlib.sha256(point + _QE_AUTH).digest()))
        chain = pem(self.certificates, "pck", "pck_ca", "root").encode()
        certification = (
            qe_report
            + sign(self.keys["pck"], qe_report)
            + struct.pack("<H", len(_QE_AUTH))
            + _QE_AUTH
            + struct.pack("<H", PCK_CHAIN)
            + _sized(chain)
        )
        return sign(key, signed) + point + struct.pack("<H", QE_REPORT_DATA) + _sized(certification)


def _read_key(path: Path) -> Key:
    key = load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} holds another kind of key.")
    return key


def _qe_fields(binding: bytes) -> dict[str, bytes]:
    return {
        "attributes": b"\x11" + bytes(15),
        "mr_signer": QE_SIGNER,
        "isv_prod_id": struct.pack("<H", 2),
        "isv_svn": struct.pack("<H", SVN),
        "report_data": binding + bytes(32),
    }


def _packed(layout: Layout, fields: Mapping[str, bytes]) -> bytes:
    """The structure with these fields, and zeros for the others."""
    sizes = dict(layout)
    for name, value in fields.items():
        if len(value) != sizes.get(name):
            raise ValueError(f"{name} has {len(value)} bytes, where the report has {sizes.get(name, 'no such field')}.")
    return b"".join(fields.get(name, bytes(size)) for name, size in layout)


def _sized(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content
