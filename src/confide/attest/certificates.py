"""What certificates of runs have in common: a run that is described first, evidence for it alone, and one signature.

A certificate is a DSSE envelope with one Ed25519 signature (https://github.com/secure-systems-lab/dsse, protocol and
envelope, version 1) over an in-toto Statement v1 (https://github.com/in-toto/attestation, spec/v1). Its predicate says
which run was made and what came out, and holds evidence made for that run alone, whose statement names the key that
signed. So it needs nothing else to be verified, years later too. Being one proves nothing: who made the run, and with
which code, is for a policy to say.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, NamedTuple, Self, TypeVar

import msgspec
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from confide.attest.check import Check, check
from confide.attest.claims import Claims
from confide.attest.configuration import Build, Hex32, Word
from confide.attest.result import AttestationResult
from confide.attest.wire import Attested, Record
from confide.errors import AttestationError

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
MAX_CERTIFICATE_BYTES: Final = 1 << 19
MAX_CERTIFICATES: Final = 16
MAX_DOCUMENT_BYTES: Final = 1 << 20

_CODE: Final = re.compile(r"mrenclave|mrsigner|mrtd|rtmr[0-3]|measurement|pcr[0-9]{1,2}")
"""The measurements of claims that are of code."""
_FIRST_YEAR, _LAST_YEAR = 2000, 2200
"""Near the ends of what a datetime holds, other time zones and periods lead beyond."""
_FAST_CLOCK: Final = timedelta(minutes=10)
"""How far the clock of a workload may be ahead."""

Instant = Annotated[datetime, msgspec.Meta(tz=True)]
DatasetName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9 ._/+\-]{0,99}\Z")]
Measurement = Annotated[
    dict[Word, Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{2}){1,64}\Z")]], msgspec.Meta(max_length=128)
]
Signature = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{128}\Z")]


class Role(StrEnum):
    """Whose approval it is."""

    MODEL = "model"
    DATA = "data"


class DescribedRun(Record, frozen=True, kw_only=True):
    """A run, said before it is made.

    harness: the Confide that makes it. measurement: of the environment's code, by family and register, as
    `measured_code` has it. nonce: of whoever orders the run.
    """

    LABEL: ClassVar[bytes]
    APPROVAL_LABEL: ClassVar[bytes]

    harness: Build
    measurement: Measurement
    nonce: Hex32

    @property
    def stated_model(self) -> str:
        """The model digest that the statement of whoever makes the run names."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """SHA-256 of a label and the run as RFC 8785 writes it, in hexadecimal."""
        return hashlib.sha256(self.LABEL + rfc8785.dumps(msgspec.to_builtins(self))).hexdigest()

    def approval(self, role: Role) -> bytes:
        """What an owner signs, Ed25519, to approve it."""
        return self.APPROVAL_LABEL + role.encode() + b"\0" + bytes.fromhex(self.digest)


class Approval(Record, frozen=True):
    """An owner's approval of a run. owner: the Ed25519 public key; it and the signature in hexadecimal."""

    role: Role
    owner: Hex32
    signature: Signature

    def approves(self, run: DescribedRun) -> bool:
        """Whether its owner signed this very run."""
        return signed_by(bytes.fromhex(self.owner), bytes.fromhex(self.signature), run.approval(self.role))


class Outcome(Record, frozen=True, kw_only=True):
    """What every predicate says besides its run and what came out. approvals: of both owners, or none.

    attested: evidence over a statement whose nonce is the run's digest, and which names the key that signed.
    """

    started: Instant
    finished: Instant
    attested: Attested
    approvals: Annotated[tuple[Approval, ...], msgspec.Meta(max_length=2)] = ()


class Testimony(NamedTuple):
    """Evidence in a certificate, and when it was made."""

    attested: Attested
    at: datetime


_Outcome = TypeVar("_Outcome", bound=Outcome)


class Subject(msgspec.Struct, frozen=True):
    """What a statement is about, by name and digests; others may add digests that are not known here."""

    name: Word
    digest: Annotated[dict[Word, Annotated[str, msgspec.Meta(max_length=256)]], msgspec.Meta(max_length=16)]


class InToto(msgspec.Struct, Generic[_Outcome], frozen=True):
    """in-toto's Statement v1. Members that are not known are left alone, as its parsing rules have it."""

    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: Annotated[tuple[Subject, ...], msgspec.Meta(min_length=1, max_length=8)]
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: _Outcome


class _Signature(msgspec.Struct, frozen=True):
    sig: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
    keyid: Annotated[str, msgspec.Meta(max_length=256)] = ""


class _Envelope(msgspec.Struct, frozen=True):
    payload: bytes
    payload_type: Literal["application/vnd.in-toto+json"] = msgspec.field(name="payloadType")
    signatures: Annotated[tuple[_Signature, ...], msgspec.Meta(min_length=1, max_length=1)]


class _Typed(msgspec.Struct, frozen=True):
    predicate_type: str = msgspec.field(name="predicateType")


@dataclass(frozen=True)
class Certificate(Generic[_Outcome]):
    """A certificate as it says itself, and nothing about whether that is true: see `certificate_checks`.

    name: of what it is about. payload: what is signed. signature: 64 bytes.
    """

    WORD: ClassVar[str]
    """What its checks and errors call it."""
    PURPOSE: ClassVar[str]
    """Under this name a statement holds the key that signs it, in hexadecimal."""
    MALFORMED: ClassVar[type[AttestationError]]
    PREDICATE_TYPE: ClassVar[str]
    PREDICATE: ClassVar[type[Outcome]]

    name: str
    predicate: _Outcome
    payload: bytes
    signature: bytes

    @property
    def run(self) -> DescribedRun:
        """The run that was made."""
        raise NotImplementedError

    @property
    def testimonies(self) -> tuple[Testimony, ...]:
        """All evidence in it, in order; the last names the key that signed."""
        return (Testimony(self.predicate.attested, self.predicate.finished),)

    @property
    def about(self) -> Mapping[str, str]:
        """What it is about, by the names that whoever verifies it may know it under."""
        raise NotImplementedError

    @classmethod
    def read(cls, data: bytes) -> Self:
        """From a file's bytes. The class's error for anything else, and for one that contradicts itself."""
        if len(data) > MAX_CERTIFICATE_BYTES:
            raise cls.MALFORMED(
                f"A {cls.WORD} certificate has at most {MAX_CERTIFICATE_BYTES >> 10} KiB; this is none, get the file "
                "again."
            )
        try:
            envelope = msgspec.json.decode(data, type=_Envelope)
            statement = msgspec.json.decode(envelope.payload, type=InToto[cls.PREDICATE])  # type: ignore[name-defined]
            if statement.predicate_type != cls.PREDICATE_TYPE:
                raise ValueError("another kind")
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise cls.MALFORMED(f"This is no {cls.WORD} certificate, or it was damaged; get the file again.") from None
        certificate = cls._of(statement, envelope.payload, envelope.signatures[0].sig)
        certificate._require_possible()
        return certificate

    @classmethod
    def _of(cls, statement: InToto[_Outcome], payload: bytes, signature: bytes) -> Self:
        """The certificate that a statement is. The class's error where it contradicts itself."""
        raise NotImplementedError

    @classmethod
    def _signed(cls, subjects: tuple[Subject, ...], predicate: _Outcome, key: Ed25519PrivateKey) -> Self:
        """A new one, by the key that the predicate's evidence names."""
        statement = InToto("https://in-toto.io/Statement/v1", subjects, cls.PREDICATE_TYPE, predicate)
        payload = msgspec.json.encode(statement)
        return cls._of(statement, payload, key.sign(pre_authentication(PAYLOAD_TYPE, payload)))

    @classmethod
    def read_lines(cls, document: bytes) -> tuple[Self, ...]:
        """The certificates in a document, one to a line. The class's error where any of them is none."""
        if len(document) > MAX_DOCUMENT_BYTES or document.rstrip(b"\n").count(b"\n") >= MAX_CERTIFICATES:
            raise cls.MALFORMED(
                f"At most {MAX_CERTIFICATES} certificates come with a model, of {MAX_DOCUMENT_BYTES >> 20} MiB; show "
                "fewer."
            )
        return tuple(cls.read(line) for line in document.split(b"\n") if line.strip())

    @classmethod
    def write_lines(cls, certificates: Iterable[Self]) -> bytes:
        """The document of these. The class's error where they are too many."""
        document = b"".join(one.write() for one in certificates)
        cls.read_lines(document)
        return document

    def write(self) -> bytes:
        """The envelope as a file of one line."""
        signature = _Signature(self.signature, hashlib.sha256(self._key).hexdigest())
        return msgspec.json.encode(_Envelope(self.payload, "application/vnd.in-toto+json", (signature,))) + b"\n"

    @property
    def _key(self) -> bytes:
        return key_bytes(self.predicate.attested.statement.channel_keys.get(self.PURPOSE, ""))

    def _require_possible(self) -> None:
        """The class's error for times at which arithmetic ends."""
        times = (self.predicate.started, *(at for _, at in self.testimonies))
        if not all(_FIRST_YEAR <= at.year <= _LAST_YEAR for at in times):
            raise self.MALFORMED("The certificate is of a time when there were no such machines; get the file again.")

    def is_signed(self) -> bool:
        """Whether the key that the evidence's statement names made the signature."""
        return signed_by(self._key, self.signature, pre_authentication(PAYLOAD_TYPE, self.payload))

    def approved_by(self, role: Role) -> str | None:
        """The key of the owner who approved the run in this role, if anybody did and the signature holds."""
        found = (one.owner for one in self.predicate.approvals if one.role is role and one.approves(self.run))
        return next(found, None)


def predicate_type(data: bytes) -> str:
    """What a certificate's file says that it is about; empty where it says nothing that can be read."""
    try:
        return msgspec.json.decode(msgspec.json.decode(data, type=_Envelope).payload, type=_Typed).predicate_type
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE signature is over: PAE of the protocol."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def measured_code(claims: Claims) -> dict[str, str]:
    """The measurements of code in verified claims, such as `tdx mrtd`, in hexadecimal."""
    return {
        f"{one.family.value} {name}": value.hex()
        for one in claims.everyone()
        for name, value in sorted(one.measurements.items())
        if _CODE.fullmatch(name)
    }


AnyCertificate = Certificate[Any]


def certificate_checks(
    certificate: AnyCertificate, evidence: Sequence[AttestationResult], now: datetime
) -> Iterator[Check]:
    """What holds of a certificate besides its evidence. evidence: the verdict on each piece, in order, which has to be
    for the run.

    now: when this is asked; the evidence is appraised for when it was made.
    """
    predicate, run, word = certificate.predicate, certificate.run, certificate.WORD
    signed = certificate.is_signed()
    yield check(f"{word}-signature", "by the key in the attested statement", "holds" if signed else "fails", signed)
    for (attested, _), verdict in zip(certificate.testimonies, evidence, strict=True):
        said = attested.statement.configuration
        harness = None if said is None else said.confide
        seen = "none stated" if harness is None else _build(harness)
        yield check(f"{word}-harness", _build(run.harness), f"attested: {seen}", run.harness == harness)
        measured = {} if verdict.claims is None else measured_code(verdict.claims)
        same = bool(measured) and measured == run.measurement
        yield check(f"{word}-measurement", _words(run.measurement), f"attested: {_words(measured)}", same)
    yield _approvals(certificate)
    at = f"{_time(predicate.started)} to {_time(predicate.finished)}"
    in_order = predicate.started <= predicate.finished <= now + _FAST_CLOCK
    yield check(f"{word}-time", f"begun, ended, and then {_time(now)}", at, in_order)


def _approvals(certificate: AnyCertificate) -> Check:
    approvals, code = certificate.predicate.approvals, f"{certificate.WORD}-approvals"
    if not approvals:
        return check(code, "none, or both owners' of this run", "none: not a blind run", ok=True)
    ok = all(certificate.approved_by(role) for role in Role)
    seen = ", ".join(f"{one.role}: {one.owner[:16]}... {_holds(one, certificate.run)}" for one in approvals)
    return check(code, "none, or both owners' of this run", seen, ok)


def _holds(approval: Approval, run: DescribedRun) -> str:
    return "holds" if approval.approves(run) else "is not for this run"


def _build(build: Build) -> str:
    return f"Confide {build.version}, {build.digest[:16]}..."


def _words(measurement: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:16]}..." for name, value in measurement.items()) or "none"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S%z}"


def key_bytes(digits: str) -> bytes:
    """A key in hexadecimal, as statements hold it; empty for what is none."""
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def signed_by(key: bytes, signature: bytes, signed: bytes) -> bool:
    """Whether an Ed25519 key signed these bytes. What is no key signed nothing."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True
