"""Requirements on what the workload says of itself, and on whose word that is."""

import hmac
from collections.abc import Callable, Iterator

import msgspec

from confide.attest.check import Check, check
from confide.attest.requirements.base import ABSENT, Requirement, Subject, hexadecimal, require_hex
from confide.attest.requirements.configuration import upstream_check
from confide.attest.statement import DIGEST_BYTES, Statement, same_report_data
from confide.errors import InvalidPolicy


class ReportData(Requirement, frozen=True, tag="report-data"):
    """The workload put in exactly these 64 bytes: the digest of a statement."""

    digest: str

    def __post_init__(self) -> None:
        require_hex("digest", self.digest, DIGEST_BYTES)

    def sentences(self) -> Iterator[str]:
        yield f"report data of {self.digest[:16]}..."

    def checks(self, subject: Subject) -> Iterator[Check]:
        claims = subject.speaker
        same = same_report_data(bytes.fromhex(self.digest), claims.report_data, claims.family)
        yield check("report-data", self.digest, hexadecimal(claims.report_data), same)


class Fresh(Requirement, frozen=True, tag="fresh"):
    """The evidence was made for this nonce, in hexadecimal: in the signed statement, or else in report_data itself."""

    nonce: str

    def __post_init__(self) -> None:
        require_hex("nonce", self.nonce)
        if not 16 <= len(self.nonce) // 2 <= DIGEST_BYTES:
            raise InvalidPolicy("A nonce has 16 to 64 bytes, so that none is guessed or used twice; make a new one.")

    def sentences(self) -> Iterator[str]:
        yield "evidence made for a given nonce"

    def checks(self, subject: Subject) -> Iterator[Check]:
        if subject.statement is not None:
            yield _stated("nonce", self.nonce, subject, lambda statement: statement.nonce)
            return
        nonce, seen = bytes.fromhex(self.nonce), subject.speaker.report_data
        same = hmac.compare_digest(nonce.ljust(len(seen), b"\0"), seen)
        yield check("nonce", self.nonce, hexadecimal(seen), same)


class Model(Requirement, frozen=True, tag="model"):
    """The workload's signed statement names this model, by the SHA-256 of its package, and says that it runs it itself.

    allow_upstream: the name under which another program may run it instead, in TOML `allow-upstream`. What that program
    is then must follow from the measurements: it says its name itself.
    """

    sha256: str
    allow_upstream: str = msgspec.field(default="", name="allow-upstream")

    def __post_init__(self) -> None:
        require_hex("sha256", self.sha256, 32)

    def sentences(self) -> Iterator[str]:
        upstream = f", or of the upstream {self.allow_upstream!r} in its place" if self.allow_upstream else ""
        yield f"a signed statement of the model {self.sha256[:16]}...{upstream}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield _stated("model", self.sha256, subject, lambda statement: statement.model_digest)
        if subject.signed_statement is not None:  # otherwise the check above has failed, and has said why
            yield upstream_check(subject, self.allow_upstream)


class PolicyVersion(Requirement, frozen=True, tag="policy-version"):
    """The workload's signed statement was made for this version of the policy."""

    version: str

    def __post_init__(self) -> None:
        if not self.version:
            raise InvalidPolicy("policy-version names a version; write one, or leave the requirement out.")

    def sentences(self) -> Iterator[str]:
        yield f"a signed statement of the policy version {self.version!r}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield _stated("policy-version", self.version, subject, lambda statement: statement.policy_version)


def _stated(code: str, expected: str, subject: Subject, value: Callable[[Statement], str]) -> Check:
    if subject.statement is None:
        return check(code, expected, "no statement", ok=False)
    statement = subject.signed_statement
    if statement is None:
        return check(code, expected, "a statement that the hardware did not sign", ok=False)
    seen = value(statement)
    return check(code, expected, seen or ABSENT, hmac.compare_digest(seen.encode(), expected.encode()))
