"""What runs inside a trusted execution environment share, whether they measure or train.

The environment describes a run by its own evidence; makes it only if it is what was described, and what both owners
approved; and has a key certify it that was made for this alone, which its evidence names. Where the dataset is sealed,
nothing is said behind the keys: what fails there is told without its reason.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypedDict

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.attest.appraise import Verifies
from confide.attest.certificates import Approval, DescribedRun, Measurement, Role, measured_code
from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.collateral_lookup import CollateralSource
from confide.attest.configuration import Build, Configuration
from confide.attest.evidence import Evidence
from confide.attest.reading.reader import EvidenceReader
from confide.attest.roots import ProductionRoots
from confide.attest.simulated import SimulatedTee
from confide.attest.statement import Statement
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.certify.consent import Consent, require_approved
from confide.enclave.configuration import build, own_configuration
from confide.enclave.egress import WaysOut
from confide.enclave.tee import Tee
from confide.enclave.workload import Workload
from confide.errors import RunRefused
from confide.packages.sealed.data import SealedData
from confide.packages.sealed.package import SealedPackage

Clock = Callable[[], datetime]
_PROBE: Final = bytes(64)
"""Report data of evidence that speaks for nothing, to see what measures."""
_SEALED: Final = (
    "The run failed, and one on a sealed dataset does not say at what; try the model and the dataset's file "
    "separately, in the clear."
)


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Attester:
    """The environment that makes runs. name: for people. collateral: for its evidence, and for certificates."""

    name: str
    reader: EvidenceReader
    collateral: Collateral
    verifier: Verifies

    def claims(self, evidence: Evidence, now: datetime) -> Claims:
        """What its own evidence says. AttestationError where it would not hold: then nobody could believe it."""
        return self.verifier.verify(evidence, self.collateral, now)

    def attest(self, statement: Statement, now: datetime) -> Attested:
        """Evidence for a statement, which holds; AttestationError where it does not."""
        evidence = self.reader.read(statement.digest())
        self.claims(evidence, now)
        return Attested.make(evidence, statement, self.collateral)

    def workload(self, run: DescribedRun, ways: WaysOut) -> Workload:
        """What asks for this run's keys."""
        configuration = own_configuration({"tee": self.name, "run": run.digest})
        return Workload(
            self.reader,
            lambda: self.collateral,
            model_digest=run.stated_model,
            configuration=msgspec.structs.replace(configuration, egress=ways.stated),
        )

    def certify(
        self, run: DescribedRun, purpose: str, configuration: Configuration, now: datetime
    ) -> tuple[Ed25519PrivateKey, Attested]:
        """A key made for one certificate, and evidence for the run that names it under `purpose`. Nobody keeps it."""
        key = Ed25519PrivateKey.generate()
        public = {purpose: key.public_key().public_bytes_raw().hex()}
        return key, self.attest(Statement(run.digest, run.stated_model, "", public, configuration), now)


def attester(tee: Tee, source: CollateralSource) -> Attester:
    """Of this environment. source: of collateral, which is asked now; a simulated machine is its own vendor."""
    sent = tee.collateral()
    if isinstance(tee.reader, SimulatedTee):
        return Attester(tee.name, tee.reader, sent, Verifier(tee.reader.roots()))
    found = source.find(tee.reader.read(_PROBE), sent)
    return Attester(tee.name, tee.reader, Collateral(found.documents, found.members), Verifier(ProductionRoots()))


class Described(TypedDict):
    """The fields that every described run has."""

    harness: Build
    measurement: Measurement
    nonce: str


def described(here: Attester, nonce: str, now: datetime | None = None) -> Described:
    """What a run in this environment says of the environment.

    RunRefused where the hardware measures no code, AttestationError where its evidence does not hold.
    """
    code = measured_code(here.claims(here.reader.read(_PROBE), now or utc_now()))
    if not code:
        raise RunRefused("The evidence here measures no code, so a certificate would say nothing; use another machine.")
    return {"harness": build(), "measurement": code, "nonce": nonce}


def require_same(run: DescribedRun, here: DescribedRun) -> None:
    """RunRefused unless a run is the one that there would be here."""
    for field in run.__struct_fields__:
        if getattr(run, field) != getattr(here, field):
            raise RunRefused(
                f"The run names another {field} than there is here; describe this one again, and have that approved."
            )


def approvals_of(
    run: DescribedRun, package: SealedPackage, data: SealedData | bytes, consents: Sequence[Consent]
) -> tuple[Approval, ...]:
    """The approvals that the run takes: of both owners for a sealed dataset, and none without. RunRefused."""
    if isinstance(data, SealedData):
        return require_approved(run, consents, {Role.MODEL: str(package.owner), Role.DATA: str(data.owner)})
    if consents:
        raise RunRefused("Approvals are for sealed datasets, and this one is in the clear; seal it, or leave them out.")
    return ()


@contextmanager
def nothing_said(data: SealedData | bytes) -> Iterator[None]:
    """Where the dataset is sealed, whatever fails is one sentence without a cause, and no library logs or warns."""
    if not isinstance(data, SealedData):
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception:  # noqa: BLE001 - its words could be the dataset's
        raise RunRefused(_SEALED) from None
    finally:
        logging.disable(before)


def fresh_nonce() -> str:
    """32 random bytes, in hexadecimal."""
    return os.urandom(32).hex()
