"""Evidence of rented machines and collateral in files: what anybody may send to whoever appraises it."""

import functools
import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.evidence_files import read_collateral, read_evidence
from confide.attest.families.azure import HclReport
from confide.attest.families.eventlog import replay
from confide.attest.families.nitro import Document
from confide.attest.families.snp import Report
from confide.attest.roots import ProductionRoots
from confide.attest.verifier import Verifier
from confide.errors import ConfideError

from .script import Script

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def evidence(data: bytes) -> None:
    """A file of evidence, whatever it is; what was understood goes to its verifier, and is never believed."""
    read, beside = read_evidence(data)
    _refused(read, beside)
    if read_evidence(read.raw, read.family)[0].raw != read.raw and read.family is not Family.TPM:
        raise AssertionError("evidence in its plain form was read as another")


def collateral(data: bytes) -> None:
    """Files of collateral, told by content."""
    script = Script(data)
    files: list[bytes] = []
    while len(files) < 6 and (content := script.chunk(2)):
        files.append(content)
    read_collateral(files or [data[2:]])


def snp_report(data: bytes) -> None:
    """A report of SEV-SNP."""
    report = Report.parse(data)
    _ = (report.product, report.signer)


def hcl_report(data: bytes) -> None:
    """An HCL report of Azure's, with a quote of nobody's."""
    hcl = HclReport.parse(data)
    _ = hcl.report_data()
    parts = {"quote": data[:200], "signature": data[:80], "pcrs": data[:64], "td_quote": data}
    _refused(Evidence(Family.AZURE, data, parts), Collateral())


def runtime_data(data: bytes) -> None:
    """Azure's runtime data, as a paravisor of somebody's own may have them signed."""
    from confide.attest.families import azure

    runtime = azure.parse_runtime_data(data)
    key = azure.attestation_key(runtime)
    azure.runtime_identity(runtime, key)


def nitro_document(data: bytes) -> None:
    """A document of a Nitro enclave."""
    Document.parse(data)
    _refused(Evidence(Family.NITRO, data), Collateral())


def event_log(data: bytes) -> None:
    """An event log of TDX."""
    for event in replay(data).events:
        _ = (event.name, event.words)


def _refused(read: Evidence, beside: Collateral) -> None:
    """Nothing that a fuzzer makes is genuine."""
    if read.family is Family.TOKEN:
        return
    try:
        Verifier(ProductionRoots()).verify(read, beside, NOW)
    except ConfideError:
        return
    raise AssertionError("evidence that nobody attested was believed")


# -- seeds: made here, and genuine in nothing but their shape -------------------------------------------------------


def _report(version: int = 5) -> bytes:
    raw = bytearray(1184)
    raw[:4] = version.to_bytes(4, "little")
    raw[0x34] = 1
    raw[0x188:0x18A] = bytes((0x1A, 2))
    return bytes(raw)


def _runtime() -> bytes:
    key = {"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB", "n": "v" * 342}
    return json.dumps({"keys": [key], "vm-configuration": {"secure-boot": True}, "user-data": "00"}).encode()


def _hcl(kind: int = 2) -> bytes:
    runtime = _runtime()
    numbers = struct.pack("<IIIII", len(runtime) + 20, 1, kind, 1, len(runtime))
    return b"HCLA" + struct.pack("<7I", 2, 2436, 2, 0, 0, 0, 0) + _report(3) + numbers + runtime


@functools.cache
def _document() -> bytes:
    import cbor2

    payload = {
        "module_id": "i-1-enc1",
        "digest": "SHA384",
        "timestamp": 1_700_000_000_000,
        "pcrs": {index: bytes(48) for index in range(3)},
        "certificate": b"\x30\x03\x02\x01\x00",
        "cabundle": [b"\x30\x03\x02\x01\x00"],
        "user_data": b"data",
        "nonce": None,
    }
    return cbor2.dumps([cbor2.dumps({1: -35}), {}, cbor2.dumps(payload), bytes(96)])


def _log() -> bytes:
    head = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, 0x000C, 48, 0)
    event = struct.pack("<IIIH48sI", 1, 13, 1, 0x000C, b"digest", 4) + b"grub"
    return struct.pack("<II20sI", 0, 3, b"", len(head)) + head + event + bytes(8)


def _evidence_seeds() -> list[bytes]:
    quoted = {"message": "ff54", "signature": "00" * 256, "pcrs": ["00" * 32]}
    azure = {"version": 1, "tpm_quote": quoted, "hcl_report": "SENMQQ", "td_quote": "AAAA"}
    trustee = {"quote": "BAACAIEAAAA" + "A" * 80, "cc_eventlog": "AAAA"}
    fields = {
        "attestation_report": {"version": 3, "report_data": [0] * 64, "signature": {"r": [0] * 72, "s": [0] * 72}}
    }
    return [
        _report(),
        _report(2) + bytes(24),
        bytes(4) + (1184).to_bytes(4, "little") + bytes(24) + _report(3),
        _hcl(),
        _document(),
        _document().hex().encode(),
        *(json.dumps(one).encode() for one in (azure, trustee, fields)),
    ]


def _collateral_seeds() -> list[bytes]:
    pem = b"-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----\n"
    signed = b'{"tcbInfo": {"a": 1}, "signature": "00"}'
    files = (pem, b"30030201", b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n", signed, b'{"tcb_info": 1}')
    together = b"".join(len(file).to_bytes(2, "little") + file for file in files)
    return [together, *(bytes(2) + file for file in files), bytes(2) + pem.replace(b" ", b"%20").replace(b"\n", b"%0A")]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "evidence": evidence,
    "collateral": collateral,
    "snp-report": snp_report,
    "hcl-report": hcl_report,
    "runtime-data": runtime_data,
    "nitro-document": nitro_document,
    "event-log": event_log,
}
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "evidence": _evidence_seeds,
    "collateral": _collateral_seeds,
    "snp-report": lambda: [_report(version) for version in (2, 3, 4, 5)],
    "hcl-report": lambda: [_hcl(2), _hcl(4)],
    "runtime-data": lambda: [_runtime(), b"{}"],
    "nitro-document": lambda: [_document()],
    "event-log": lambda: [_log()],
}
