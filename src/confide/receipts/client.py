"""A client's own receipt for an answer of the hybrid mode: what it asked for, computed with, and checked.

No server signs anything there. So this is a statement of the client about its own work, signed by the client's key, and
says so: it shows that the client kept its word towards itself, and nothing about a server beyond the checks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final

import msgspec

from confide.attest.check import Check, check, skipped
from confide.attest.configuration import SamplingDefaults
from confide.receipts.client_key import ClientKey, signed_by
from confide.receipts.documents import (
    Digest,
    Document,
    Instant,
    Word,
    canonical,
    digest_of,
    read_document,
    read_fields,
)
from confide.receipts.events import sampling_event
from confide.receipts.receipt import MAX_RECEIPT_BYTES
from confide.receipts.verdict import Verdict

CLIENT_VERSION: Final = "confide-client/1"
STATEMENT: Final = "The client's own statement about its own work. No server has signed any of this."
_LABEL: Final = b"confide client receipt 1"
_CLAUSE: Final = "confide client receipts 1"
"""What is asked of these receipts: docs/receipts.md."""
_REQUIRED: Final = frozenset({"client-version", "client-statement", "client-signature", "client-key", "client-answers"})
_MOST_GENERATIONS: Final = 128
MAX_SERVER: Final = 2048
"""Characters of the servers' addresses."""

Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Amount = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing in these receipts is without a meaning."""


class ModelUsed(_Part, frozen=True):
    """name: what the client calls it. digest, owner: as the package says that the owner's signature is under."""

    name: Word
    digest: Hex32
    owner: Hex32


class ProtocolUsed(_Part, frozen=True):
    """The encryption. table_digest: of the layer table with each group's parameters. check_bits: a wrong answer passes
    the client's check with a probability of two to minus so many.
    """

    scheme: Word
    version: Amount
    profile: Word
    table_digest: Hex32
    layer_groups: Amount
    ring_degree: Amount
    modulus_bits: Amount
    answer_bits: Amount
    check_bits: Amount


class Generation(_Part, frozen=True):
    """One run of the model. Lengths in tokens, visible ones as the server saw them; bytes of payload.

    answers: of layer groups for a token, each checked, and right.
    """

    prompt: Amount
    visible_prompt: Amount
    answer: Amount
    visible_answer: Amount
    bytes_up: Amount
    bytes_down: Amount
    round_trips: Amount
    answers: Amount


class SamplingUsed(_Part, frozen=True):
    """digest: of the numbers, as `events.sampling_event` has it. defaults: where the request does not say."""

    digest: Digest
    defaults: SamplingDefaults


class Link(_Part, frozen=True):
    """A receipt's place among those of one process, its session. previous: the digest of the one before."""

    session: Word
    sequence: Annotated[int, msgspec.Meta(ge=1, le=(1 << 53) - 1)]
    previous: Digest | None


class ClientReceiptFields(_Part, frozen=True, kw_only=True):
    """server: its address, or those of a model's servers. licence: SHA-256 of the key, as the
    ledger of whoever gave it has it. disclosed_bits: at most, of the weights.

    request_hash, response_hash: of the bodies byte by byte. public_key: the client's.
    """

    api_version: Word
    statement: Word
    receipt_id: Word
    made_at: Instant
    endpoint: Word
    server: Annotated[str, msgspec.Meta(max_length=MAX_SERVER)]
    model: ModelUsed
    protocol: ProtocolUsed
    licence: Digest | None
    generations: Annotated[tuple[Generation, ...], msgspec.Meta(max_length=_MOST_GENERATIONS)]
    disclosed_bits: Amount
    sampling: SamplingUsed | None
    request_hash: Digest
    response_hash: Digest
    chain: Link
    public_key: Hex32
    signature: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{128})?\Z")] = ""


@dataclass(frozen=True)
class ClientReceipt:
    """One as its document says it, and nothing about whether that is true: see `verify_client_receipt`."""

    document: Document
    fields: ClientReceiptFields

    @classmethod
    def of(cls, document: Document) -> "ClientReceipt":
        """From a document that was read. MalformedReceipt."""
        return cls(document, read_fields(document, "client receipt", ClientReceiptFields))

    @classmethod
    def read(cls, data: bytes) -> "ClientReceipt":
        """From JSON in any layout. MalformedReceipt for anything else."""
        return cls.of(read_document(data, "client receipt", MAX_RECEIPT_BYTES))

    @classmethod
    def sign(cls, key: ClientKey, fields: ClientReceiptFields) -> "ClientReceipt":
        """With the key's signature over everything else."""
        unsigned = cls.of(msgspec.to_builtins(fields))
        return cls.of({**unsigned.document, "signature": key.sign(_LABEL, unsigned.signed)})

    def write(self) -> bytes:
        """As a file for people to read, too."""
        return msgspec.json.format(canonical(self.document, "client receipt")) + b"\n"

    @cached_property
    def signed(self) -> bytes:
        """What the signature is over, behind its label."""
        said = {name: value for name, value in self.document.items() if name != "signature"}
        return canonical(said, "client receipt")

    @cached_property
    def digest(self) -> str:
        """Of all of it, signature included: what the next receipt names."""
        return digest_of(canonical(self.document, "client receipt"))


@dataclass(frozen=True)
class Package:
    """What a shell that the verifier has opened, and whose owner they accept, says itself."""

    digest: str
    owner: str
    table_digest: str


@dataclass(frozen=True, kw_only=True)
class ClientReceiptResult(Verdict):
    """The verdict on a client's own receipt."""

    receipt: ClientReceipt

    def verdict(self) -> str:
        """In one line, which says whose word this is."""
        return f"The client's own statement, {super().verdict()}"


def is_client_receipt(document: Document) -> bool:
    """Whether it says so."""
    return document.get("api_version") == CLIENT_VERSION


def verify_client_receipt(
    receipt: ClientReceipt,
    *,
    client_key: str | None = None,
    request: bytes | None = None,
    response: bytes | None = None,
    package: Package | None = None,
    previous: ClientReceipt | None = None,
) -> ClientReceiptResult:
    """Every check. client_key: the public key, in hexadecimal, that the verifier knows the client by.

    request, response: the exact bytes. package: of the model. previous: the receipt before this one.
    """
    checks = (
        *_signed(receipt, client_key),
        _body("client-request", "request", receipt.fields.request_hash, request),
        _body("client-response", "response", receipt.fields.response_hash, response),
        _answers(receipt),
        _model(receipt, package),
        *_sampling(receipt, request),
        _chain(receipt, previous),
        skipped(
            "client-server",
            "a server's word for any of this",
            "in the hybrid mode a server signs nothing; what the client checked is all there is",
            _CLAUSE,
        ),
    )
    return ClientReceiptResult(receipt=receipt, checks=checks, required=_REQUIRED)


def _signed(receipt: ClientReceipt, client_key: str | None) -> Iterator[Check]:
    fields = receipt.fields
    version, statement = fields.api_version, fields.statement
    yield check("client-version", CLIENT_VERSION, version, version == CLIENT_VERSION, _CLAUSE)
    yield check("client-statement", STATEMENT, statement, statement == STATEMENT, _CLAUSE)
    holds = signed_by(fields.public_key, _LABEL, receipt.signed, fields.signature)
    seen = f"ed25519, {'holds' if holds else 'does not hold'}"
    yield check("client-signature", f"a signature by {fields.public_key}", seen, holds, _CLAUSE)
    if client_key is None:
        yield skipped("client-key", fields.public_key, "nobody said which key is the client's", _CLAUSE)
    else:
        yield check("client-key", client_key, fields.public_key, client_key == fields.public_key, _CLAUSE)


def _body(code: str, name: str, said: str, body: bytes | None) -> Check:
    if body is None:
        return skipped(code, said, f"the {name} was not given", _CLAUSE)
    digest = digest_of(body)
    return check(code, said, digest, said == digest, _CLAUSE)


def _answers(receipt: ClientReceipt) -> Check:
    """That there were answers, and that each was checked: the server is asked for every group at least once."""
    fields = receipt.fields
    made, groups = fields.generations, fields.protocol.layer_groups
    whole = bool(made) and bool(groups) and all(one.answers >= groups for one in made)
    seen = f"{sum(one.answers for one in made)} answers in {len(made)} generations, all right"
    return check("client-answers", f"every answer checked, of {groups} layer groups", seen, whole, _CLAUSE)


def _model(receipt: ClientReceipt, package: Package | None) -> Check:
    fields = receipt.fields
    said = f"model {fields.model.digest}, owner {fields.model.owner}, layer table {fields.protocol.table_digest}"
    if package is None:
        return skipped("client-model", said, "the client's folder of the model was not given", _CLAUSE)
    found = f"model {package.digest}, owner {package.owner}, layer table {package.table_digest}"
    return check("client-model", found, said, said == found, _CLAUSE)


def _sampling(receipt: ClientReceipt, request: bytes | None) -> Iterator[Check]:
    used = receipt.fields.sampling
    if used is None:
        return
    if request is None:
        yield skipped("client-sampling", used.digest, "the request was not given", _CLAUSE)
        return
    event = sampling_event(request, used.defaults)
    expected = event["digest"] if event else "none"
    yield check("client-sampling", expected, used.digest, used.digest == expected, _CLAUSE)


def _chain(receipt: ClientReceipt, previous: ClientReceipt | None) -> Check:
    chain = receipt.fields.chain
    said = f"session {chain.session}, sequence {chain.sequence}, previous {chain.previous or 'none'}"
    if previous is None:
        if chain.sequence == 1:
            return check("client-chain", "the first of its session", said, chain.previous is None, _CLAUSE)
        return skipped("client-chain", said, "the receipt before this one was not given", _CLAUSE)
    before = previous.fields.chain
    expected = f"session {before.session}, sequence {before.sequence + 1}, previous {previous.digest}"
    return check("client-chain", expected, said, said == expected, _CLAUSE)
