"""Score certificates: how a model did on a dataset, measured inside a trusted execution environment and signed there.

A certificate is a DSSE envelope with one Ed25519 signature (https://github.com/secure-systems-lab/dsse, protocol and
envelope, version 1) over an in-toto Statement v1 (https://github.com/in-toto/attestation, spec/v1). The subject is the
sealed model, by its model digest under the name `confideModel`; the predicate says which run was made and what came
out, and holds evidence made for that run alone, whose statement names the key that signed. So it needs nothing else to
be verified, years later too. Being one proves nothing: who measured, and with which code, is for a policy to say.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import msgspec
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from confide.attest.check import Check, check
from confide.attest.claims import Claims
from confide.attest.configuration import Build, Count, Hex32, Word
from confide.attest.result import AttestationResult
from confide.attest.wire import Attested, Record
from confide.errors import MalformedScore

SCORES: Final = "scores"
"""The document of a collateral that holds the certificates of the model served, as JSON Lines."""
PURPOSE: Final = "score-certificate"
"""Under this name a statement holds the key that signs a certificate, in hexadecimal."""
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
PREDICATE_TYPE: Final = "urn:confide:score:v1"
MAX_CERTIFICATE_BYTES: Final = 1 << 19
MAX_CERTIFICATES: Final = 16
MAX_SCORES_BYTES: Final = 1 << 20

_RUN_LABEL: Final = b"confide score run 1\0"
_APPROVAL_LABEL: Final = b"confide score approval 1\0"
_CODE: Final = re.compile(r"mrenclave|mrsigner|mrtd|rtmr[0-3]|measurement|pcr[0-9]{1,2}")
"""The measurements of claims that are of code."""
_FIRST_YEAR, _LAST_YEAR = 2000, 2200
"""Near the ends of what a datetime holds, other time zones and periods lead beyond."""
_FAST_CLOCK: Final = timedelta(minutes=10)
"""How far the clock of a workload may be ahead."""

Instant = Annotated[datetime, msgspec.Meta(tz=True)]
TaskName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9 ._/+\-]{0,99}\Z")]
Measurement = Annotated[
    dict[Word, Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{2}){1,64}\Z")]], msgspec.Meta(max_length=128)
]
Signature = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{128}\Z")]


class Metric(StrEnum):
    """What is measured; `confide.certify.measure` says how."""

    PERPLEXITY = "perplexity"
    ACCURACY = "accuracy"
    AGREEMENT = "agreement"

    @property
    def less_is_better(self) -> bool:
        """Whether a lower value is the better one."""
        return self is Metric.PERPLEXITY


class Role(StrEnum):
    """Whose approval it is."""

    MODEL = "model"
    DATA = "data"


class Run(Record, frozen=True):
    """One run, said before it is made: which model is measured on which dataset, how, and by which code.

    model: the package's model digest. dataset: SHA-256 of the task file. harness: the Confide that measures.
    measurement: of the environment's code, by family and register, as `measured_code` has it. nonce: of whoever orders
    the run.
    """

    model: Hex32
    dataset: Hex32
    metric: Metric
    harness: Build
    measurement: Measurement
    nonce: Hex32

    @property
    def digest(self) -> str:
        """SHA-256 of a label and the run as RFC 8785 writes it, in hexadecimal."""
        return hashlib.sha256(_RUN_LABEL + rfc8785.dumps(msgspec.to_builtins(self))).hexdigest()

    def approval(self, role: Role) -> bytes:
        """What an owner signs, Ed25519, to approve it."""
        return _APPROVAL_LABEL + role.encode() + b"\0" + bytes.fromhex(self.digest)


class Approval(Record, frozen=True):
    """An owner's approval of a run. owner: the Ed25519 public key; it and the signature in hexadecimal."""

    role: Role
    owner: Hex32
    signature: Signature

    def approves(self, run: Run) -> bool:
        """Whether its owner signed this very run."""
        return _signed_by(bytes.fromhex(self.owner), bytes.fromhex(self.signature), run.approval(self.role))


class Score(Record, frozen=True):
    """A value and its confidence interval, to six significant digits. interval: how it is computed, in words."""

    value: float
    low: float
    high: float
    confidence: float
    interval: Word


class Sampling(Record, frozen=True):
    """How the model was asked, in words, and the seed of whatever is drawn. context: tokens at most."""

    method: Word
    context: Count
    seed: Count


class Counts(Record, frozen=True):
    """How much was measured: items of the task, and what was scored of them."""

    items: Count
    scored: Count
    unit: Literal["tokens", "items"]


class Predicate(Record, frozen=True):
    """What a certificate says. task: its name, by the dataset's author. approvals: of both owners, or none.

    attested: evidence over a statement whose nonce is the run's digest, and which names the key that signed.
    """

    run: Run
    task: TaskName
    started: Instant
    finished: Instant
    sampling: Sampling
    counts: Counts
    score: Score
    attested: Attested
    approvals: Annotated[tuple[Approval, ...], msgspec.Meta(max_length=2)] = ()


class _Digest(msgspec.Struct, frozen=True):
    model: Hex32 = msgspec.field(name="confideModel")


class _Subject(msgspec.Struct, frozen=True):
    name: Word
    digest: _Digest


class _Statement(msgspec.Struct, frozen=True):
    """in-toto's. Members that are not known are left alone, as its parsing rules have it."""

    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: Annotated[tuple[_Subject, ...], msgspec.Meta(min_length=1, max_length=1)]
    predicate_type: Literal["urn:confide:score:v1"] = msgspec.field(name="predicateType")
    predicate: Predicate


class _Signature(msgspec.Struct, frozen=True):
    sig: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
    keyid: Annotated[str, msgspec.Meta(max_length=256)] = ""


class _Envelope(msgspec.Struct, frozen=True):
    payload: bytes
    payload_type: Literal["application/vnd.in-toto+json"] = msgspec.field(name="payloadType")
    signatures: Annotated[tuple[_Signature, ...], msgspec.Meta(min_length=1, max_length=1)]


@dataclass(frozen=True)
class ScoreCertificate:
    """A certificate as it says itself, and nothing about whether that is true: see `score_checks`.

    name: of the model, by whoever sealed it. payload: what is signed. signature: 64 bytes.
    """

    name: str
    predicate: Predicate
    payload: bytes
    signature: bytes

    @classmethod
    def read(cls, data: bytes) -> "ScoreCertificate":
        """From a file's bytes. MalformedScore for anything else, and for one that contradicts itself."""
        if len(data) > MAX_CERTIFICATE_BYTES:
            raise MalformedScore(
                f"A score certificate has at most {MAX_CERTIFICATE_BYTES >> 10} KiB; this is none, get the file again."
            )
        try:
            envelope = msgspec.json.decode(data, type=_Envelope)
            statement = msgspec.json.decode(envelope.payload, type=_Statement)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise MalformedScore("This is no score certificate, or it was damaged; get the file again.") from None
        (subject,) = statement.subject
        if subject.digest.model != statement.predicate.run.model:
            raise MalformedScore("The certificate's subject is another model than its run's; get the file again.")
        times = (statement.predicate.started, statement.predicate.finished)
        if not all(_FIRST_YEAR <= at.year <= _LAST_YEAR for at in times):
            raise MalformedScore("The certificate is of a time when there were no such machines; get the file again.")
        return cls(subject.name, statement.predicate, envelope.payload, envelope.signatures[0].sig)

    @classmethod
    def sign(cls, name: str, predicate: Predicate, key: Ed25519PrivateKey) -> "ScoreCertificate":
        """By the key that the predicate's evidence names. name: the model's."""
        subject = _Subject(name, _Digest(predicate.run.model))
        payload = msgspec.json.encode(
            _Statement("https://in-toto.io/Statement/v1", (subject,), "urn:confide:score:v1", predicate)
        )
        return cls(name, predicate, payload, key.sign(pre_authentication(PAYLOAD_TYPE, payload)))

    def write(self) -> bytes:
        """The envelope as a file of one line."""
        signature = _Signature(self.signature, hashlib.sha256(self._key).hexdigest())
        return msgspec.json.encode(_Envelope(self.payload, "application/vnd.in-toto+json", (signature,))) + b"\n"

    @property
    def _key(self) -> bytes:
        return _bytes(self.predicate.attested.statement.channel_keys.get(PURPOSE, ""))

    def is_signed(self) -> bool:
        """Whether the key that the evidence's statement names made the signature."""
        return _signed_by(self._key, self.signature, pre_authentication(PAYLOAD_TYPE, self.payload))

    def approved_by(self, role: Role) -> str | None:
        """The key of the owner who approved the run in this role, if anybody did and the signature holds."""
        found = (one.owner for one in self.predicate.approvals if one.role is role and one.approves(self.predicate.run))
        return next(found, None)


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE signature is over: PAE of the protocol."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def read_scores(document: bytes) -> tuple[ScoreCertificate, ...]:
    """The certificates in a document, one to a line. MalformedScore where any of them is none."""
    if len(document) > MAX_SCORES_BYTES or document.rstrip(b"\n").count(b"\n") >= MAX_CERTIFICATES:
        raise MalformedScore(
            f"At most {MAX_CERTIFICATES} certificates come with a model, of {MAX_SCORES_BYTES >> 20} MiB; show fewer."
        )
    return tuple(ScoreCertificate.read(line) for line in document.split(b"\n") if line.strip())


def write_scores(certificates: Iterable[ScoreCertificate]) -> bytes:
    """The document of these. MalformedScore where they are too many."""
    document = b"".join(one.write() for one in certificates)
    read_scores(document)
    return document


def measured_code(claims: Claims) -> dict[str, str]:
    """The measurements of code in verified claims, such as `tdx mrtd`, in hexadecimal."""
    return {
        f"{one.family.value} {name}": value.hex()
        for one in claims.everyone()
        for name, value in sorted(one.measurements.items())
        if _CODE.fullmatch(name)
    }


def score_checks(certificate: ScoreCertificate, evidence: AttestationResult, now: datetime) -> Iterator[Check]:
    """What holds of a certificate besides its evidence. evidence: the verdict on that, which has to be for the run.

    now: when this is asked; the evidence is appraised for when it was made.
    """
    predicate, said = certificate.predicate, certificate.predicate.attested.statement.configuration
    run, harness = predicate.run, None if said is None else said.confide
    signed = certificate.is_signed()
    yield check("score-signature", "by the key in the attested statement", "holds" if signed else "fails", signed)
    seen = "none stated" if harness is None else _build(harness)
    yield check("score-harness", _build(run.harness), f"attested: {seen}", run.harness == harness)
    measured = {} if evidence.claims is None else measured_code(evidence.claims)
    same = bool(measured) and measured == run.measurement
    yield check("score-measurement", _words(run.measurement), f"attested: {_words(measured)}", same)
    yield _approvals(certificate)
    at = f"{_time(predicate.started)} to {_time(predicate.finished)}"
    in_order = predicate.started <= predicate.finished <= now + _FAST_CLOCK
    yield check("score-time", f"begun, ended, and then {_time(now)}", at, in_order)


def _approvals(certificate: ScoreCertificate) -> Check:
    approvals = certificate.predicate.approvals
    if not approvals:
        return check("score-approvals", "none, or both owners' of this run", "none: not a blind run", ok=True)
    ok = all(certificate.approved_by(role) for role in Role)
    seen = ", ".join(f"{one.role}: {one.owner[:16]}... {_holds(one, certificate)}" for one in approvals)
    return check("score-approvals", "none, or both owners' of this run", seen, ok)


def _holds(approval: Approval, certificate: ScoreCertificate) -> str:
    return "holds" if approval.approves(certificate.predicate.run) else "is not for this run"


def _build(build: Build) -> str:
    return f"Confide {build.version}, {build.digest[:16]}..."


def _words(measurement: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:16]}..." for name, value in measurement.items()) or "none"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S%z}"


def _bytes(digits: str) -> bytes:
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def _signed_by(key: bytes, signature: bytes, signed: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True
