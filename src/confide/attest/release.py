"""Releases: measurements that a build service signed with its own identity, through Sigstore.

The document `release` of a collateral is a Sigstore bundle (https://docs.sigstore.dev/about/bundle/) with a DSSE
envelope over an in-toto statement (https://in-toto.io/Statement/v1) whose predicate lists the measurements that the
release has, for each family by the names that claims have for them, in hexadecimal:

    {"_type": "https://in-toto.io/Statement/v1", "subject": [...], "predicateType": "urn:confide:measurements:v1",
     "predicate": {"measurements": [{"family": "tdx", "values": {"mrtd": "...", "rtmr1": "..."}}, ...]}}

Several entries of one family are alternatives. The signature, the certificate of Fulcio over the identity, its
timestamp in a certificate transparency log, and the entry in the transparency log with its signed checkpoint are all
verified by `sigstore`, offline, and under a trusted root that the policy holds: https://github.com/sigstore/
protobuf-specs, sigstore_trustroot.proto. Nothing is fetched, and the root that `sigstore` brings along is not used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from cryptography import x509

from confide.attest.claims import Claims
from confide.attest.evidence import Family
from confide.errors import (
    AttestationError,
    InvalidSignature,
    MalformedEvidence,
    OutsideValidity,
    UnknownRoot,
    WrongCollateral,
)

if TYPE_CHECKING:
    from sigstore.models import TrustedRoot

RELEASE: Final = "release"
"""The document's name."""

PREDICATE_TYPE: Final = "urn:confide:measurements:v1"
MAX_RELEASE_BYTES: Final = 1 << 18
MAX_ROOT_BYTES: Final = 1 << 16
"""Sigstore's own root has 10 KB."""

_IN_TOTO: Final = "application/vnd.in-toto+json"
_ISSUER: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
"""Fulcio's extension with the address of whoever vouched for the identity, as a UTF8String."""

_ADVICE: Final = "get the bundle of the release from its builder again"
Hexadecimal = Annotated[str, msgspec.Meta(pattern="^(?:[0-9a-f]{2}){1,64}$")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


@dataclass(frozen=True)
class Signer:
    """Whose signature counts. identity: exactly as in the certificate, or its beginning and then `*`.

    issuer: who vouched for that identity. trusted_root: Sigstore's, in JSON.
    """

    identity: str
    issuer: str
    trusted_root: str


class Measured(msgspec.Struct, frozen=True):
    """What one kind of machine measures in a release."""

    family: Family
    values: Annotated[dict[Name, Hexadecimal], msgspec.Meta(min_length=1, max_length=64)]

    def fits(self, claims: Claims) -> bool:
        """Whether verified claims of this family have all of these measurements."""
        return all(claims.measurements.get(name) == bytes.fromhex(value) for name, value in self.values.items())


class _Predicate(msgspec.Struct):
    measurements: Annotated[tuple[Measured, ...], msgspec.Meta(min_length=1, max_length=256)]


class _Statement(msgspec.Struct):
    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: msgspec.Raw = msgspec.Raw()


@dataclass(frozen=True)
class Release:
    """Verified: who signed it, not before when, and what it measures."""

    identity: str
    signed: datetime
    measurements: tuple[Measured, ...]

    def of(self, family: Family) -> tuple[Measured, ...]:
        """The alternatives for one family; none where the release is not for it."""
        return tuple(one for one in self.measurements if one.family is family)


def verify_release(document: bytes, signer: Signer, now: datetime) -> Release:
    """What a bundle says, once everything about its signature holds.

    MalformedEvidence if it is none, InvalidSignature if it does not hold, UnknownRoot if somebody else signed it,
    OutsideValidity if it is from after `now`, WrongCollateral where `sigstore` is not installed.
    """
    if len(document) > MAX_RELEASE_BYTES:
        raise MalformedEvidence(f"A release has at most {MAX_RELEASE_BYTES >> 10} KiB; {_ADVICE}.")
    try:
        from sigstore.errors import Error, VerificationError
        from sigstore.models import Bundle
        from sigstore.verify import Verifier
    except ImportError:
        raise WrongCollateral("Releases are verified with `sigstore`; install confide[sigstore].") from None
    root = _trusted_root(signer.trusted_root)
    errors = (Error, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
    try:
        bundle = Bundle.from_json(document)
    except errors as error:
        raise MalformedEvidence(f"The release is no Sigstore bundle ({type(error).__name__}); {_ADVICE}.") from None
    identity = _Identity(signer)
    try:
        kind, payload = Verifier(trusted_root=root).verify_dsse(bundle, identity)
    except AttestationError:
        raise
    except (VerificationError, *errors) as error:
        reason = str(error)[:200] if isinstance(error, VerificationError) else type(error).__name__
        raise InvalidSignature(f"The release's signature does not hold ({reason!a}); {_ADVICE}.") from None
    if kind != _IN_TOTO:
        raise MalformedEvidence(f"The release is signed, and is no in-toto statement; {_ADVICE}.")
    # It was signed while the certificate was valid, which is ten minutes: so not before its beginning.
    signed = bundle.signing_certificate.not_valid_before_utc
    if now < signed:
        raise OutsideValidity(f"The release was signed on {signed:%Y-%m-%d %H:%M}, which is later; check the time.")
    return Release(identity.found, signed, parse_measurements(payload))


class _Identity:
    """For `sigstore`, which asks it about the certificate; it keeps the name that fitted."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.found = ""

    def verify(self, certificate: x509.Certificate) -> None:
        """UnknownRoot unless the certificate is the signer's."""
        names = _names(certificate)
        issuer = _issuer(certificate)
        fitting = [name for name in names if fits(self._signer.identity, name)]
        if issuer != self._signer.issuer or not fitting:
            raise UnknownRoot(
                f"The release is signed by {ascii(', '.join(names))[:200]} of {ascii(issuer)[:100]}, not by "
                f"{self._signer.identity} of {self._signer.issuer}; get the release from there, or correct the policy."
            )
        self.found = fitting[0]


def fits(identity: str, name: str) -> bool:
    """Whether a name is the identity, or begins as it does up to its `*`."""
    return name.startswith(identity[:-1]) if identity.endswith("*") else name == identity


def read_trusted_root(text: str) -> Mapping[str, Any]:
    """The JSON of a trusted root, looked at from outside only; ValueError if it is none."""
    if len(text) > MAX_ROOT_BYTES:
        raise ValueError("too large")
    try:
        root = msgspec.json.decode(text, type=dict[str, Any])
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not str(root.get("mediaType", "")).startswith("application/vnd.dev.sigstore.trustedroot"):
        raise ValueError("no trusted root")
    return root


def _trusted_root(text: str) -> "TrustedRoot":
    from sigstore.errors import Error
    from sigstore.models import TrustedRoot
    from sigstore_models.trustroot.v1 import TrustedRoot as Contents

    try:
        return TrustedRoot(Contents.from_json(text))
    except (Error, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise WrongCollateral(
            f"The policy's trusted root cannot be read ({type(error).__name__}); put in Sigstore's trusted_root.json."
        ) from None


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    kinds = (x509.UniformResourceIdentifier, x509.RFC822Name)
    return [name for kind in kinds for name in names.get_values_for_type(kind)]


def _issuer(certificate: x509.Certificate) -> str:
    try:
        value = certificate.extensions.get_extension_for_oid(_ISSUER).value.public_bytes()
    except x509.ExtensionNotFound:
        return ""
    if value[:1] != b"\x0c" or len(value) < 2 or value[1] != len(value) - 2 or value[1] > 0x7F:
        return ""
    return value[2:].decode("utf-8", "replace")


def parse_measurements(payload: bytes) -> tuple[Measured, ...]:
    try:
        statement = msgspec.json.decode(payload, type=_Statement)
        if statement.predicate_type != PREDICATE_TYPE:
            raise MalformedEvidence(
                f"The release is a statement of another kind, {ascii(statement.predicate_type)[:100]}; have its "
                f"builder sign one of {PREDICATE_TYPE}."
            )
        return msgspec.json.decode(statement.predicate, type=_Predicate).measurements
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedEvidence(f"The release's measurements cannot be read ({error}); {_ADVICE}.") from None
