"""What is read after somebody was asked or believed: vendors' services, hosts, tools, and signers of anything."""

import json
import struct
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from tests.attest.fake_sigstore import statement
from tests.attest.families.authorities import Key, crl
from tests.attest.families.forged_nvidia import BLOCKS, DEVICE, ROOT
from tests.attest.families.forged_rim import answer, manifest, response
from tests.attest.families.forged_snp import ARK, snp_case
from tests.attest.families.forged_tpm import PCRS, quote, signature

from confide.attest.amd import Product
from confide.attest.collateral_cache import Document, Response
from confide.attest.collateral_nvidia import rim_document
from confide.attest.collateral_sources import (
    AmdPlatform,
    IntelPlatform,
    amd_collateral,
    certificate_table,
    intel_collateral,
)
from confide.attest.evidence import Family
from confide.attest.families.nvidia_rim import reference_chain
from confide.attest.families.tpm import verify_quote
from confide.attest.ocsp import response_end
from confide.attest.reading.tpm import parse_registers
from confide.attest.release import parse_measurements
from confide.errors import ConfideError

from .script import Script

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = (0, 7)


class _Vendor:
    """Answers with the next piece of a script, in the place of a cache and of the network behind it."""

    def __init__(self, data: bytes) -> None:
        self._script = Script(data)

    def get(self, url: str, ends: Callable[[Response], datetime | None], **_: object) -> Document:
        found = Response(200, self._script.chunk(2), {name: _header(self._script.chunk(2)) for name in _HEADERS})
        return Document(url, found, NOW, ends(found))


_HEADERS = ("sgx-pck-crl-issuer-chain", "tcb-info-issuer-chain", "sgx-enclave-identity-issuer-chain")


def _header(data: bytes) -> str:
    return data.decode("latin-1")


def vendor_answers(data: bytes) -> None:
    """Intel's and AMD's services, at whose addresses anybody may be."""
    questions: tuple[Callable[[Any], object], ...] = (
        lambda vendor: intel_collateral(vendor, IntelPlatform("00" * 6, "platform", Family.TDX)),
        lambda vendor: amd_collateral(vendor, AmdPlatform(Product.TURIN, bytes(64), bytes(8))),
        lambda vendor: amd_collateral(vendor, AmdPlatform(Product.MILAN, bytes(64), bytes(8)), vlek=b""),
    )
    for ask in questions:
        try:
            ask(_Vendor(data))
        except ConfideError:
            continue


def gpu_services(data: bytes) -> None:
    """NVIDIA's services of manifests and of certificates' status."""
    for read in (
        response_end,
        lambda body: reference_chain(body, "manifest"),
        lambda body: rim_document(Response(200, body)),
    ):
        try:
            read(data)
        except ConfideError:
            continue


def host_table(data: bytes) -> None:
    """The host's table of certificates: what it names lies inside it."""
    if sum(map(len, certificate_table(data).values())) > 64 * len(data):
        raise AssertionError("more was found in a table than its entries can name")


def _key() -> Key:
    """The same in every process, so that kept inputs stay signed."""
    return ec.derive_private_key(7, ec.SECP256R1())


def tpm_signature(data: bytes) -> None:
    """The signature and the registers beside a quote, by a key that is trusted: accepted is what was signed."""
    script = Script(data)
    given, message = script.chunk(2), script.chunk(2)
    _, registers = verify_quote(message, given, script.rest(), _key().public_key())
    if b"".join(registers.values()) != PCRS:
        raise AssertionError("registers were taken that the TPM did not sign")


def tpm_registers(data: bytes) -> None:
    """What tpm2_pcrread prints."""
    if len(parse_registers(data, ASKED)) != 32 * len(ASKED):
        raise AssertionError("a register of another length")


def release_statement(data: bytes) -> None:
    """What a builder signs, who may sign anything."""
    parse_measurements(data)


def _pieces(*pieces: bytes) -> bytes:
    return b"".join(len(piece).to_bytes(2, "little") + piece for piece in pieces)


def _intel_seed() -> bytes:
    """Four answers, each with the three headers that a chain may come in."""
    lists, chain = crl(ARK), b"-----BEGIN CERTIFICATE-----%0AAAAA"
    tcb = b'{"tcbInfo": {"nextUpdate": "2026-02-01T00:00:00Z"}, "signature": "00"}'
    identity = tcb.replace(b"tcbInfo", b"enclaveIdentity")
    first = (lists, chain, b"", b"", lists.hex().encode(), b"", b"", b"")
    return _pieces(*first, tcb, b"", chain, b"", identity, b"", b"", chain)


def _amd_seed() -> bytes:
    documents = snp_case().collateral.documents
    return _pieces(documents["chain"], b"", b"", b"", crl(ARK), b"", b"", b"", documents["vcek"], b"", b"", b"")


def _table() -> bytes:
    entries = [uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd"), uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")]
    head = b"".join(struct.pack("<16sII", one.bytes, 72 + 4 * at, 4) for at, one in enumerate(entries))
    return head + bytes(24) + b"vcekark."


def _signature_seed() -> bytes:
    message = quote()
    return _pieces(signature(message, _key()), message) + PCRS


def _registers() -> bytes:
    return b"  sha256:\n    0 : 0x" + b"AB" * 32 + b"\n    7 : 0x" + b"CD" * 32 + b"\n"


TARGETS: dict[str, Callable[[bytes], None]] = {
    "vendor-answers": vendor_answers,
    "gpu-services": gpu_services,
    "host-table": host_table,
    "tpm-signature": tpm_signature,
    "tpm-registers": tpm_registers,
    "release-statement": release_statement,
}
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "vendor-answers": lambda: [_intel_seed(), _amd_seed()],
    "gpu-services": lambda: [
        response(DEVICE, ROOT),
        manifest(BLOCKS, "550.1"),
        json.dumps(answer(manifest(BLOCKS, "550.1"))).encode(),
    ],
    "host-table": lambda: [_table()],
    "tpm-signature": lambda: [_signature_seed()],
    "tpm-registers": lambda: [_registers()],
    "release-statement": lambda: [statement({"family": "tdx", "values": {"mrtd": "ab" * 48}})],
}
