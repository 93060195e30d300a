"""Receipts, and the documents that they are verified with."""

import contextlib
import json
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.receipts import vectors
from tests.receipts.test_client import FIELDS

from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.configuration import SamplingDefaults
from confide.attest.evidence import Evidence
from confide.attest.policy import Policy
from confide.audit.entries import (
    PURPOSE,
    Checkpoint,
    Entry,
    Retired,
    is_signed,
    read_entry,
    read_statement,
    sign,
    write_statement,
)
from confide.disk.chained import next_line, read_line
from confide.errors import MalformedEvidence
from confide.receipts.client import ClientReceipt, verify_client_receipt
from confide.receipts.client_key import ClientKey, parse_key
from confide.receipts.documents import canonical
from confide.receipts.events import sampling_event, source_corpus, sources_event
from confide.receipts.keyset import Keyset
from confide.receipts.receipt import Receipt
from confide.receipts.report import Report
from confide.receipts.session import AttestedSession
from confide.receipts.verify import Grounds, no_grounds, verify_receipt
from confide.receipts.verify_report import verify_report

_FUZZ_KEY = ClientKey(Ed25519PrivateKey.from_private_bytes(vectors.SEED))
_KEYSET = Keyset.of(vectors.KEYSET)
_SOURCES = json.dumps(
    {
        "id": "chatcmpl-1",
        "confide": {
            "rag": {
                "corpus": {"corpus": "0" * 64, "head": 1, "digest": "1" * 64, "owner": "2" * 64},
                "sources": [{"file_id": "file-0", "filename": "tide.pdf", "digest": "3" * 64, "score": 1}],
            }
        },
    }
).encode()
_GROUNDS = Grounds(_KEYSET, no_grounds().checks, pinned=_KEYSET.digest)


class _Nobody:
    """Verifies nothing."""

    def verify(self, evidence: Evidence, collateral: Collateral, now: datetime) -> Claims:
        raise MalformedEvidence("This is no evidence.")


def receipt(data: bytes) -> None:
    """A receipt under a key that signed one of the seeds: nothing else is verified."""
    read = Receipt.read(data)
    result = verify_receipt(read, _GROUNDS, request=data, response=data, previous=read)
    if Receipt.read(read.write()).signed != read.signed:
        raise AssertionError("what was written is signed as something else")
    if verify_receipt(read, _GROUNDS).verified and canonical(read.document) != canonical(vectors.RECEIPT):
        raise AssertionError("a receipt that nobody signed is verified")
    result.verdict()


def sources(data: bytes) -> None:
    """An answer that cites its sources, whole or a stream, of whatever made it."""
    event = sources_event(data)
    if event is not None and source_corpus(event).corpus != event["corpus"]:
        raise AssertionError("the corpus is another one")


def keyset(data: bytes) -> None:
    """A keyset has one canonical form."""
    read = Keyset.read(data)
    if Keyset.read(read.canonical).digest != read.digest:
        raise AssertionError("the canonical form is another keyset")


def report(data: bytes) -> None:
    """An attestation report, whose evidence nobody's root is over."""
    result = verify_report(Report.read(data), _Nobody(), Policy(), datetime(2026, 1, 1, tzinfo=UTC), nonce="00" * 32)
    if result.verified:
        raise AssertionError("a report without evidence that holds is verified")
    result.verdict()


def session(data: bytes) -> None:
    """An aggregator's session, by itself and with a receipt that names another one."""
    read = AttestedSession.read(data)
    verify_receipt(Receipt.of(vectors.RECEIPT), _GROUNDS, session=read)


def sampling(data: bytes) -> None:
    """A request, of which only numbers are read."""
    event = sampling_event(data, SamplingDefaults(1.0, 0.95, 40, 8192))
    if event and not event["digest"].startswith("sha256:"):
        raise AssertionError("this is no digest")


def client_receipt(data: bytes) -> None:
    """A client's own receipt, which no key here has signed."""
    read = ClientReceipt.read(data)
    if ClientReceipt.read(read.write()).digest != read.digest:
        raise AssertionError("what was written is another receipt")
    result = verify_client_receipt(read, client_key="00" * 32, request=data, response=data, previous=read)
    if result.verified:
        raise AssertionError("a receipt that nobody signed is verified")
    result.verdict()


def client_key(data: bytes) -> None:
    """A client's key file."""
    with contextlib.suppress(ValueError):
        parse_key(data)


def audit_line(data: bytes) -> None:
    """A line of a chained log, and the entry in it."""
    line = read_line(data)
    if line is None:
        return
    if line.write() != data:
        raise AssertionError("a line is other bytes than it was read from")
    entry = read_entry(line.entry)
    if entry is not None and read_entry(entry.write()) != entry:
        raise AssertionError("what was written is another entry")


def audit_statement(data: bytes) -> None:
    """A signed statement beside an audit log, which no key here has signed."""
    for kind in (Checkpoint, Retired):
        read = read_statement(data, kind)
        if read is None:
            continue
        if read_statement(write_statement(read), kind) != read:
            raise AssertionError("what was written is another statement")
        if is_signed(read) and read.public_key != _FUZZ_KEY.public:
            raise AssertionError("a statement that nobody signed is signed")


def _audit_line() -> list[bytes]:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    made = (
        Entry(at=at, event="started", log="11" * 32, segment=1),
        Entry(at=at, event="refused", mode="enclave", peer="https://models.example", failed=("tcb-status",)),
    )
    return [next_line(PURPOSE, "00" * 32, entry.write()).write() for entry in made]


def _audit_statement() -> list[bytes]:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    log, head, key = "11" * 32, "22" * 32, "00" * 32
    counted = Checkpoint(log=log, entries=3, head=head, at=at, public_key=key, segment=1, bytes=900)
    retired = Retired(log=log, entries=3, head=head, at=at, public_key=key, segment=1)
    return [write_statement(sign(counted, _FUZZ_KEY)), write_statement(sign(retired, _FUZZ_KEY))]


def _client_receipt() -> list[bytes]:
    return [
        ClientReceipt.sign(_FUZZ_KEY, FIELDS).write(),
    ]


def _report() -> list[bytes]:
    said = {"tee_type": "tdx", "workload_keyset": vectors.KEYSET, "report_data": vectors.REPORT_DATA}
    forms = (
        {"quote": "04" * 64},
        {"confide": {"evidence": {"family": "tdx", "raw": "BAAC"}, "collateral": {"documents": {"dcap": "e30="}}}},
    )
    return [
        json.dumps(
            {
                "api_version": "aci/1",
                "workload_keyset_digest": vectors.KEYSET_DIGEST,
                "attestation": said | {"evidence": evidence},
                "service_capabilities": {"serving": "direct"},
            }
        ).encode()
        for evidence in forms
    ]


def _receipts() -> list[bytes]:
    own = [
        {"type": "request.received", "body_hash": vectors.REQUEST_HASH},
        {"type": "confide.weights", "digest": "11" * 32, "quantization": "f32", "dtype": "f32"},
        {"type": "confide.chain", "sequence": 2, "previous": vectors.REQUEST_HASH},
        {"type": "response.returned", "body_hash": vectors.RESPONSE_HASH},
    ]
    return [json.dumps(vectors.RECEIPT).encode(), json.dumps(vectors.RECEIPT | {"event_log": own}).encode()]


TARGETS = {
    "receipt": receipt,
    "keyset": keyset,
    "report": report,
    "session": session,
    "sampling": sampling,
    "sources": sources,
    "client-receipt": client_receipt,
    "client-key": client_key,
    "audit-line": audit_line,
    "audit-statement": audit_statement,
}
SEEDS = {
    "receipt": _receipts,
    "client-receipt": _client_receipt,
    "audit-line": _audit_line,
    "audit-statement": _audit_statement,
    "client-key": lambda: [b"confide client key 1\n" + b"02" * 32 + b"\n"],
    "keyset": lambda: [json.dumps(vectors.KEYSET).encode()],
    "report": _report,
    "session": lambda: [json.dumps(vectors.SESSION).encode()],
    "sampling": lambda: [vectors.REQUEST, b'{"temperature": 0.5, "seed": 18446744073709551615, "max_tokens": 9}'],
    "sources": lambda: [
        _SOURCES,
        b'{"response":%s}' % _SOURCES,
        b": padding\n\ndata: %s  \n\ndata: [DONE]\n\n" % _SOURCES,
    ],
}
