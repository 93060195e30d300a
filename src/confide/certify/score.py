"""One run inside a trusted execution environment: keys for evidence, a measurement in memory, and a signed certificate.

Nothing of the model or the dataset leaves but what the certificate says. Where the dataset is sealed, that holds for
words too: what fails behind the keys is told without its reason, and nothing is logged or warned of.
"""

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.attest.appraise import Verifies
from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.collateral_lookup import CollateralSource
from confide.attest.configuration import Configuration, EngineUsed
from confide.attest.evidence import Evidence
from confide.attest.reading.reader import EvidenceReader
from confide.attest.roots import ProductionRoots
from confide.attest.scores import PURPOSE, Approval, Metric, Predicate, Role, Run, ScoreCertificate, measured_code
from confide.attest.simulated import SimulatedTee
from confide.attest.statement import Statement
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.certify.consent import Consent, require_approved, require_owners
from confide.certify.tasks import read_task
from confide.enclave.boot import Fetch
from confide.enclave.configuration import build, own_configuration
from confide.enclave.egress import WaysOut
from confide.enclave.tee import Tee
from confide.enclave.workload import Workload
from confide.errors import InvalidTask, RunRefused
from confide.packages.sealed.data import SealedData
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import SealedPackage, UnlockedPackage

if TYPE_CHECKING:
    from confide.certify.measure import Measured

_PROBE: Final = bytes(64)
"""Report data of evidence that speaks for nothing, to see what measures."""
_SEALED: Final = (
    "The measurement failed, and a run on a sealed dataset does not say at what; try the model and the task file "
    "separately, in the clear."
)


@dataclass(frozen=True)
class Measurer:
    """The environment that measures. name: for people. collateral: for its evidence, and for the certificate."""

    name: str
    reader: EvidenceReader
    collateral: Collateral
    verifier: Verifies

    def claims(self, evidence: Evidence, now: datetime) -> Claims:
        """What its own evidence says. AttestationError where it would not hold: then nobody could believe it."""
        return self.verifier.verify(evidence, self.collateral, now)


def measurer(tee: Tee, source: CollateralSource) -> Measurer:
    """Of this environment. source: of collateral, which is asked now; a simulated machine is its own vendor."""
    sent = tee.collateral()
    if isinstance(tee.reader, SimulatedTee):
        return Measurer(tee.name, tee.reader, sent, Verifier(tee.reader.roots()))
    found = source.find(tee.reader.read(_PROBE), sent)
    return Measurer(tee.name, tee.reader, Collateral(found.documents, found.members), Verifier(ProductionRoots()))


def describe(here: Measurer, model: str, dataset: str, metric: Metric, nonce: str, now: datetime | None = None) -> Run:
    """The run that this environment would make, for owners to approve. model, dataset: digests.

    RunRefused where the hardware measures no code, AttestationError where its evidence does not hold.
    """
    code = measured_code(here.claims(here.reader.read(_PROBE), now or datetime.now(UTC)))
    if not code:
        raise RunRefused("The evidence here measures no code, so a certificate would say nothing; use another machine.")
    return Run(model, dataset, metric, build(), code, nonce)


def dataset_digest(data: SealedData | bytes) -> str:
    """SHA-256 of a dataset's file, in hexadecimal; of a sealed one as its manifest says."""
    return data.manifest.dataset if isinstance(data, SealedData) else hashlib.sha256(data).hexdigest()


def score(
    here: Measurer,
    package: SealedPackage,
    data: SealedData | bytes,
    run: Run,
    fetch: Fetch,
    *,
    fetch_data: Fetch | None = None,
    consents: Sequence[Consent] = (),
    ways: WaysOut | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ScoreCertificate:
    """Measure and sign. data: sealed, which takes the consents of both owners, or a task file in the clear.

    fetch, fetch_data: get the keys; the second from the owner of the data, the same without. ways: out of this process;
    those to keys are closed once they are here.

    Raises RunRefused before any key is asked for where the run is not what this environment would do or lacks an
    approval, and what `fetch` raises.
    """
    ways, started = ways or WaysOut(), now()
    model = package.manifest.model_digest
    _require_same(run, describe(here, model, dataset_digest(data), run.metric, run.nonce, started))
    approvals = _approvals(run, package, data, consents)
    if package.manifest.weights is not WeightsFormat.SAFETENSORS:
        raise InvalidTask("A GGUF model is not measured yet; seal its safetensors, or wait for it.")
    configuration = own_configuration({"tee": here.name, "run": run.digest})
    workload = Workload(
        here.reader,
        lambda: here.collateral,
        model_digest=run.model,
        configuration=msgspec.structs.replace(configuration, egress=ways.stated),
    )
    keys = {Role.MODEL: fetch(package.manifest.key, workload)}
    if isinstance(data, SealedData):
        keys[Role.DATA] = (fetch_data or fetch)(data.manifest.key, workload)
    ways.close_keys()
    require_owners(run, consents, keys)
    unlocked = package.unlock(keys[Role.MODEL])
    if isinstance(data, SealedData):
        with _nothing_said():
            made = _measured(unlocked, data.read(keys[Role.DATA]), run)
    else:
        made = _measured(unlocked, data, run)
    said = msgspec.structs.replace(
        workload.configuration, engine=made.engine, context=made.measured.sampling.context, egress=ways.stated
    )
    return _certificate(here, package.manifest.name, run, made, said, approvals, started, now())


@dataclass(frozen=True)
class _Made:
    """What came out. task: its name. engine: that computed."""

    task: str
    measured: "Measured"
    engine: EngineUsed


def _measured(unlocked: UnlockedPackage, content: bytes, run: Run) -> _Made:
    import torch
    import transformers

    from confide.certify.measure import measure
    from confide.packages.sealed.load import load_model, load_tokenizer

    task = read_task(content)
    if task.metric is not run.metric:
        raise RunRefused(f"The task is for {task.metric}, and the run for {run.metric}; describe the run again.")
    tokenizer = load_tokenizer(unlocked)
    if tokenizer is None:
        raise InvalidTask("The model was sealed without its tokenizer, which a task's texts take; seal it with one.")
    model = load_model(unlocked, dtype=torch.float32)
    engine = EngineUsed("transformers", transformers.__version__, {"torch": str(torch.__version__), "dtype": "f32"})
    return _Made(task.name, measure(task, model, tokenizer), engine)


def _require_same(run: Run, here: Run) -> None:
    for field in Run.__struct_fields__:
        if getattr(run, field) != getattr(here, field):
            raise RunRefused(
                f"The run names another {field} than there is here; describe this one with `confide certify run`, and "
                "have that approved."
            )


def _approvals(
    run: Run, package: SealedPackage, data: SealedData | bytes, consents: Sequence[Consent]
) -> tuple[Approval, ...]:
    if isinstance(data, SealedData):
        return require_approved(run, consents, {Role.MODEL: str(package.owner), Role.DATA: str(data.owner)})
    if consents:
        raise RunRefused("Approvals are for sealed datasets, and this one is in the clear; seal it, or leave them out.")
    return ()


@contextmanager
def _nothing_said() -> Iterator[None]:
    """Whatever fails is one sentence without a cause, and no library logs or warns."""
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


def _certificate(
    here: Measurer,
    name: str,
    run: Run,
    made: "_Made",
    configuration: Configuration,
    approvals: tuple[Approval, ...],
    started: datetime,
    finished: datetime,
) -> ScoreCertificate:
    """Signed by a key that was made for this certificate, which its evidence names; nobody keeps it."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw().hex()
    statement = Statement(run.digest, run.model, channel_keys={PURPOSE: public}, configuration=configuration)
    evidence = here.reader.read(statement.digest())
    here.claims(evidence, finished)
    attested = Attested.make(evidence, statement, here.collateral)
    found = made.measured
    predicate = Predicate(
        run, made.task, started, finished, found.sampling, found.counts, found.score, attested, approvals
    )
    return ScoreCertificate.sign(name, predicate, key)


def fresh_nonce() -> str:
    """32 random bytes, in hexadecimal."""
    return os.urandom(32).hex()
