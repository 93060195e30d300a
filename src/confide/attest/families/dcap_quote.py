"""The layout of DCAP quotes: SGX v3, TDX v4 and v5. Everything is little-endian; nothing here is believed yet.

Source: Intel SGX ECDSA Quote Library API, appendix A.4; Intel TDX DCAP Quoting Library API, appendix A.3. Both at
https://download.01.org/intel-sgx/latest/dcap-latest/linux/docs/. Field names are those of `dcap_qvl`.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from confide.attest.evidence import Family
from confide.errors import MalformedEvidence

MAX_QUOTE_BYTES: Final = 1 << 16
"""Real quotes have about 5 kB; attesters may pad."""

HEADER_BYTES: Final = 48
ECDSA_P256_KEY_TYPE: Final = 2
SGX_TEE, TDX_TEE = 0x00, 0x81
PCK_CHAIN, QE_REPORT_DATA = 5, 6

Layout = tuple[tuple[str, int], ...]

SGX_REPORT: Final[Layout] = (
    ("cpu_svn", 16),
    ("misc_select", 4),
    ("reserved1", 28),
    ("attributes", 16),
    ("mr_enclave", 32),
    ("reserved2", 32),
    ("mr_signer", 32),
    ("reserved3", 96),
    ("isv_prod_id", 2),
    ("isv_svn", 2),
    ("reserved4", 60),
    ("report_data", 64),
)
TD_REPORT_10: Final[Layout] = (
    ("tee_tcb_svn", 16),
    ("mr_seam", 48),
    ("mr_signer_seam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mr_td", 48),
    ("mr_config_id", 48),
    ("mr_owner", 48),
    ("mr_owner_config", 48),
    ("rt_mr0", 48),
    ("rt_mr1", 48),
    ("rt_mr2", 48),
    ("rt_mr3", 48),
    ("report_data", 64),
)
TD_REPORT_15: Final[Layout] = (*TD_REPORT_10, ("tee_tcb_svn2", 16), ("mr_service_td", 48))

_TD_BODIES: Final[Mapping[int, Layout]] = {2: TD_REPORT_10, 3: TD_REPORT_15}
"""Body types of quote v5 for TDX."""


def size_of(layout: Layout) -> int:
    """Bytes of a structure."""
    return sum(size for _, size in layout)


class Reader:
    """Takes bytes off the front. Every read past the end is MalformedEvidence."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > len(self._data) - self.at:
            raise MalformedEvidence(f"The evidence ends at byte {len(self._data)}, inside a field; fetch it again.")
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, size: int) -> int:
        """The next little-endian number of 1 to 8 bytes."""
        return int.from_bytes(self.take(size), "little")

    def fields(self, layout: Layout) -> dict[str, bytes]:
        """The next structure, field by field."""
        return {name: self.take(size) for name, size in layout}

    def peek(self, count: int) -> bytes:
        """The next `count` bytes, or fewer at the end, without taking them."""
        return self._data[self.at : self.at + count]

    @property
    def rest(self) -> bytes:
        """What was not taken yet."""
        return self._data[self.at :]


@dataclass(frozen=True)
class Quote:
    """A quote in its parts.

    signed: the bytes under `signature` (r and s, 64 bytes), made with `attestation_key` (x and y, 64 bytes). qe_report:
    384 bytes of the quoting enclave, under `qe_signature` by the PCK certificate; it binds the key and `qe_auth`.
    chain: the PCK certificate and its issuers, PEM. end: where the quote ends; padding may follow.
    """

    family: Family
    version: int
    report: Mapping[str, bytes]
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_signature: bytes
    qe_auth: bytes
    chain: bytes
    end: int

    @classmethod
    def parse(cls, raw: bytes) -> "Quote":
        """Take a quote apart. MalformedEvidence for anything that is not a whole quote of a known kind."""
        if len(raw) > MAX_QUOTE_BYTES:
            raise MalformedEvidence(f"The quote has {len(raw)} bytes; no quote is longer than {MAX_QUOTE_BYTES}.")
        reader = Reader(raw)
        version, family, layout = _kind(reader)
        report = reader.fields(layout)
        signed = raw[: reader.at]
        auth = Reader(reader.take(reader.number(4)))
        signature, key = auth.take(64), auth.take(64)
        qe = _certification(auth, QE_REPORT_DATA) if version > 3 else auth
        qe_report, qe_signature, qe_auth = qe.take(384), qe.take(64), qe.take(qe.number(2))
        chain = _certification(qe, PCK_CHAIN).rest
        return cls(family, version, report, signed, signature, key, qe_report, qe_signature, qe_auth, chain, reader.at)


def _kind(reader: Reader) -> tuple[int, Family, Layout]:
    header = reader.take(HEADER_BYTES)
    version, key_type, tee = struct.unpack_from("<HHI", header)
    if key_type != ECDSA_P256_KEY_TYPE:
        raise MalformedEvidence(f"The quote's key is of type {key_type}; only ECDSA P-256, type 2, is in use.")
    if (version, tee) == (3, SGX_TEE):
        return version, Family.SGX, SGX_REPORT
    if (version, tee) == (4, TDX_TEE):
        return version, Family.TDX, TD_REPORT_10
    if (version, tee) == (5, TDX_TEE):
        return version, Family.TDX, _td_body(reader)
    raise MalformedEvidence(f"Version {version} for TEE type {tee:#x} is not a quote of SGX v3 or of TDX v4 or v5.")


def _td_body(reader: Reader) -> Layout:
    body_type, size = reader.number(2), reader.number(4)
    layout = _TD_BODIES.get(body_type, ())
    if not layout or size != size_of(layout):
        raise MalformedEvidence(f"A v5 quote with body type {body_type} of {size} bytes is not known here.")
    return layout


def _certification(reader: Reader, wanted: int) -> Reader:
    kind = reader.number(2)
    if kind != wanted:
        raise MalformedEvidence(f"The quote is certified by data of type {kind}, where type {wanted} is expected.")
    return Reader(reader.take(reader.number(4)))
