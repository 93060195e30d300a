"""Runs: what is measured is what was said before, both owners have approved it, and nothing but the score leaves."""

import logging
import math
import os
import shutil
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import msgspec
import pytest
import torch
from tests.certify.certificates import MODEL_KEY as KEY
from tests.certify.test_tasks import HEADERS, task_file
from tests.owners import OWNER, STRANGER, owner_key

from confide.attest.certificates import Role
from confide.attest.claims import Claims
from confide.attest.collateral import Collateral, Provenance
from confide.attest.collateral_lookup import SentCollateral
from confide.attest.configuration import Build, Egress
from confide.attest.evidence import Evidence
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import ConfideVersion, NoEgress, Tdx
from confide.attest.scores import Metric, Run, ScoreCertificate
from confide.attest.simulated import SimulatedTee
from confide.attest.verifier import Verifier
from confide.certify import score as scoring
from confide.certify.consent import (
    MAX_RUN_BYTES,
    Consent,
    consent_to,
    read_consent,
    read_run,
    write_consent,
    write_run,
)
from confide.certify.runs import Attester, attester, fresh_nonce
from confide.certify.score import dataset_digest, describe, score
from confide.certify.verify import verify_certificate
from confide.enclave.configuration import build
from confide.enclave.egress import WaysOut
from confide.enclave.engines.gguf_logits import GgufLogits
from confide.enclave.tee import Tee
from confide.enclave.workload import Workload
from confide.errors import (
    ConfideError,
    DamagedFile,
    EvaluationError,
    InvalidPackage,
    InvalidTask,
    OutsideValidity,
    RunRefused,
    SubstitutedContent,
    SurplusFile,
    UntrustedOwner,
    WrongModelKey,
)
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import open_model
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.data import SealedData, seal_data
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import write_signed
from confide.packages.sealed.package import SealedPackage
from confide.packages.sealed.write import seal_model

DATA_KEY, OTHER_KEY = (ModelKey(letter * 32) for letter in (b"d", b"o"))
WORDS = "It was the best of times, it was the worst of times, it was the age of wisdom. "
TASK = task_file({**HEADERS[Metric.PERPLEXITY], "context": 32}, {"text": WORDS * 6})
DATA_OWNER = STRANGER


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SealedData:
    out = tmp_path_factory.mktemp("sealed") / "data"
    seal_data(TASK, out, key=DATA_KEY, owner=DATA_OWNER)
    return SealedData.open(out, {DATA_OWNER.public})


@pytest.fixture
def run(here: Attester, package: SealedPackage) -> Run:
    return describe(here, package.manifest.model_digest, dataset_digest(TASK), Metric.PERPLEXITY, fresh_nonce())


def consents(run: Run) -> tuple[Consent, Consent]:
    return consent_to(run, Role.MODEL, OWNER, KEY), consent_to(run, Role.DATA, DATA_OWNER, DATA_KEY)


class Keys:
    """An owner's key service, which releases to everybody and notes to whom."""

    def __init__(self, key: ModelKey) -> None:
        self.key, self.asked = key, list[Workload]()

    def __call__(self, identity: str, workload: Workload) -> ModelKey:
        assert identity == self.key.id
        self.asked.append(workload)
        return self.key


class Nobody(Keys):
    """One that nobody may ask."""

    def __init__(self) -> None:
        super().__init__(KEY)

    def __call__(self, identity: str, workload: Workload) -> NoReturn:
        raise AssertionError("a key was asked for")


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_a_blind_run_is_certified(here: Attester, tee: SimulatedTee, package: SealedPackage, data: SealedData) -> None:
    model = package.manifest.model_digest
    run = describe(here, model, dataset_digest(data), Metric.PERPLEXITY, fresh_nonce())
    approved = [read_consent(write_consent(one)) for one in consents(read_run(write_run(run)))]
    keys, data_keys, ways = Keys(KEY), Keys(DATA_KEY), WaysOut(closed=True)
    made = score(here, package, data, run, keys, fetch_data=data_keys, consents=approved, ways=ways)
    certificate = ScoreCertificate.read(made.write())

    policy = SimulatedPolicy(
        (Tdx(mrtd=run.measurement["tdx mrtd"]), ConfideVersion(sha256=(build().digest,)), NoEgress())
    )
    now = datetime.now(UTC)
    wanted: dict[str, Any] = {"model": model, "dataset": dataset_digest(TASK), "nonce": run.nonce}
    assert verify_certificate(certificate, Verifier(tee.roots()), policy, now, **wanted).verified
    predicate = certificate.predicate
    assert (certificate.name, predicate.task, predicate.run) == ("demo", "a book", run)
    assert certificate.approved_by(Role.MODEL) == str(OWNER.public)
    assert certificate.approved_by(Role.DATA) == str(DATA_OWNER.public)
    assert 1 < predicate.score.low <= predicate.score.value <= predicate.score.high < 1e4
    assert predicate.started <= predicate.finished <= now
    said = predicate.attested.statement.configuration
    assert said is not None
    assert said.engine is not None
    assert (said.engine.name, said.egress, said.options["run"]) == ("transformers", Egress.NONE, run.digest)
    # No word of the dataset, no key, and no channel that somebody could connect to.
    for secret in (b"best of times", b"wisdom", KEY.raw, DATA_KEY.raw):
        assert secret not in certificate.payload
    assert set(predicate.attested.statement.channel_keys) == {"score-certificate"}

    # Owners are asked with evidence that names the model and the run.
    for service in (keys, data_keys):
        (workload,) = service.asked
        statement = workload.attest("00" * 32).statement
        assert statement.model_digest == model
        assert statement.configuration is not None
        assert statement.configuration.options == {"tee": "simulated", "run": run.digest}

    # The same run on the file in the clear comes to the same.
    clear = score(here, package, TASK, run, Keys(KEY))
    assert clear.predicate.score == predicate.score
    assert clear.predicate.approvals == ()
    assert clear.payload != made.payload


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> SealedPackage:
    folder = tmp_path_factory.mktemp("gguf")
    file = write_gguf(open_model("demo"), folder / "demo.gguf", GgufType.F16).path
    seal_model(contents_of(str(file)), folder / "package", key=KEY, owner=OWNER)
    return SealedPackage.open(folder / "package")


def scored(here: Attester, package: SealedPackage, metric: Metric, task: bytes) -> ScoreCertificate:
    run = describe(here, package.manifest.model_digest, dataset_digest(task), metric, fresh_nonce())
    return score(here, package, task, run, Keys(KEY))


_QUESTION = {"prompt": "It was the best of", "choices": [" times, it was the worst", " x! x! x!"], "answer": 0}
_CONTINUED = {"prompt": WORDS, "reference": WORDS}
_TASKS = {
    Metric.PERPLEXITY: TASK,
    Metric.ACCURACY: task_file(HEADERS[Metric.ACCURACY], _QUESTION, {**_QUESTION, "answer": 1}),
    Metric.AGREEMENT: task_file(HEADERS[Metric.AGREEMENT], _CONTINUED, _CONTINUED),
}


@pytest.mark.parametrize(
    "metric", [Metric.PERPLEXITY, *(pytest.param(one, marks=pytest.mark.slow) for one in list(Metric)[1:])]
)
def test_a_gguf_model_is_measured_by_what_serves_it(
    here: Attester, package: SealedPackage, gguf: SealedPackage, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And comes near to what transformers makes of the same weights in float32."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # llama.cpp's threads spin where others compute
    found, stock = (scored(here, one, metric, _TASKS[metric]).predicate for one in (gguf, package))
    assert found.score.value == pytest.approx(stock.score.value, rel=0.01)
    assert (found.counts, found.sampling) == (stock.counts, stock.sampling)
    said = found.attested.statement.configuration
    assert said is not None
    assert said.engine is not None
    assert (said.engine.name, said.engine.settings["dtype"]) == ("llama.cpp", "f16")
    assert said.engine.version.startswith("xllamacpp ")


def test_a_gguf_model_that_computes_no_numbers_has_no_score(
    here: Attester, gguf: SealedPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GgufLogits, "__call__", lambda _, window: torch.full((len(window) - 1, 8), math.nan))
    with pytest.raises(EvaluationError, match="not all finite"):
        scored(here, gguf, Metric.PERPLEXITY, TASK)


def test_no_adapter_is_measured_over_a_gguf_model(here: Attester, gguf: SealedPackage) -> None:
    class Adapter:
        manifest = SimpleNamespace(adapter="ad" * 32)

        def require_base(self, digest: str) -> None:
            assert digest == gguf.manifest.model_digest

    digests = (gguf.manifest.model_digest, dataset_digest(TASK))
    run = describe(here, *digests, Metric.PERPLEXITY, fresh_nonce(), adapter="ad" * 32)
    with pytest.raises(InvalidTask, match="No adapter"):
        score(here, gguf, TASK, run, Nobody(), adapter=Adapter())  # type: ignore[arg-type]


def test_keys_are_closed_before_anything_is_opened(
    here: Attester, package: SealedPackage, data: SealedData, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = WaysOut(closed=True)
    closed: list[str] = []
    monkeypatch.setattr(ways, "close_keys", lambda: closed.append("keys"))

    def opened(*_: object) -> NoReturn:
        assert closed == ["keys"]
        raise InvalidTask("Enough.")

    monkeypatch.setattr(scoring, "read_task", opened)
    with pytest.raises(InvalidTask, match="Enough"):
        score(here, package, TASK, run, Keys(KEY), ways=ways)


def test_the_way_to_a_second_key_service_is_stated_and_closed() -> None:
    closed: list[str] = []

    class Way:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)

    ways = WaysOut(other_keys=Way("data"), closed=True)  # type: ignore[arg-type]
    assert ways.stated is Egress.KEY_SERVICE
    ways.keys = Way("model")  # type: ignore[assignment]
    ways.close_keys()
    assert (closed, ways.stated) == (["model", "data"], Egress.NONE)


# -- what is refused before a key is asked for -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"model": "11" * 32},
        {"dataset": "11" * 32},
        {"harness": Build("0.1.0", "11" * 32)},
        {"measurement": {"tdx mrtd": "11" * 48}},
    ],
    ids=["other weights", "other data", "changed harness", "other machine"],
)
def test_another_run_than_the_one_that_was_said(
    here: Attester, package: SealedPackage, data: SealedData, run: Run, change: Mapping[str, Any]
) -> None:
    other = msgspec.structs.replace(run, **change)
    with pytest.raises(RunRefused, match=f"another {next(iter(change))}"):
        score(here, package, data, other, Nobody(), consents=consents(other))
    with pytest.raises(RunRefused, match=f"another {next(iter(change))}"):
        score(here, package, TASK, other, Nobody())


def test_both_owners_have_to_approve_this_very_run(
    here: Attester, package: SealedPackage, data: SealedData, run: Run
) -> None:
    model, own = consents(run)
    earlier = msgspec.structs.replace(run, nonce=fresh_nonce())
    replayed = consents(earlier)
    relabelled = msgspec.structs.replace(replayed[1], run=run.digest)
    for some in (
        (),
        (model,),
        (own,),
        (model, model),
        (model, own, own),
        replayed,
        (model, replayed[1]),
        (model, relabelled),
        (model, consent_to(run, Role.DATA, owner_key(3), DATA_KEY)),
        (consent_to(run, Role.MODEL, DATA_OWNER, KEY), own),
    ):
        with pytest.raises(RunRefused):
            score(here, package, data, run, Nobody(), fetch_data=Nobody(), consents=some)


def test_approvals_are_for_sealed_data(here: Attester, package: SealedPackage, run: Run) -> None:
    with pytest.raises(RunRefused, match="in the clear"):
        score(here, package, TASK, run, Nobody(), consents=consents(run))


def test_evidence_that_would_not_hold_certifies_nothing(tee: SimulatedTee) -> None:
    class Expired:
        def verify(self, evidence: Evidence, collateral: Collateral, now: datetime) -> Claims:
            raise OutsideValidity("Long ago.")

    with pytest.raises(OutsideValidity):
        describe(Attester("tdx", tee, tee.collateral(), Expired()), "ab" * 32, "cd" * 32, Metric.ACCURACY, "00" * 32)


# -- who is an owner ---------------------------------------------------------------------------------------------------


def test_whoever_signs_the_ciphertext_of_others_is_not_their_owner(
    here: Attester, package: SealedPackage, data: SealedData, run: Run, tmp_path: Path
) -> None:
    """A host signs the model's manifest and approves as its owner; what it lacks is the key."""
    write_signed(Path(shutil.copytree(package.folder, tmp_path / "stolen")), package.manifest, owner_key(9))
    thief = SealedPackage.open(tmp_path / "stolen")
    assert thief.owner == owner_key(9).public
    mine = consent_to(run, Role.MODEL, owner_key(9), OTHER_KEY)
    with pytest.raises(RunRefused, match="not its owner"):
        score(here, thief, data, run, Keys(KEY), fetch_data=Keys(DATA_KEY), consents=(mine, consents(run)[1]))
    borrowed = msgspec.structs.replace(mine, proof=consents(run)[0].proof)
    with pytest.raises(RunRefused, match="not its owner"):
        score(here, thief, data, run, Keys(KEY), fetch_data=Keys(DATA_KEY), consents=(borrowed, consents(run)[1]))


def test_what_only_the_holder_of_a_key_can_say() -> None:
    assert KEY.vouch(b"a") == KEY.vouch(b"a")
    assert len({KEY.vouch(b"a"), KEY.vouch(b"b"), DATA_KEY.vouch(b"a"), KEY.file_key(b"", 0, "a"), KEY.raw}) == 5


# -- what leaves where something fails ---------------------------------------------------------------------------------


def test_what_fails_behind_the_keys_is_told_without_a_word_of_it(
    here: Attester,
    package: SealedPackage,
    data: SealedData,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    def fails(content: bytes) -> NoReturn:
        logging.getLogger("transformers").critical("%s", content)
        warnings.warn(content.decode(), stacklevel=1)
        raise KeyError(content)

    monkeypatch.setattr(scoring, "read_task", fails)
    with pytest.raises(RunRefused) as caught:
        score(here, package, data, run, Keys(KEY), fetch_data=Keys(DATA_KEY), consents=consents(run))
    assert "best of times" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert not caplog.records
    assert not recwarn.list
    logging.getLogger("transformers").critical("heard again")
    assert len(caplog.records) == 1


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff", b" " * (MAX_RUN_BYTES + 1)], ids=range(5))
def test_other_files_are_no_runs_and_no_consents(content: bytes) -> None:
    for read in (read_run, read_consent):
        with pytest.raises(RunRefused):
            read(content)


def test_a_sealed_dataset_is_what_its_owner_signed(data: SealedData, tmp_path: Path) -> None:
    assert data.read(DATA_KEY) == TASK
    with pytest.raises(WrongModelKey):
        data.read(KEY)
    with pytest.raises(UntrustedOwner):
        SealedData.open(data.folder, {OWNER.public})
    with pytest.raises(ConfideError, match="exists already"):
        seal_data(TASK, data.folder, key=DATA_KEY, owner=DATA_OWNER)
    assert b"best of times" not in b"".join(path.read_bytes() for path in data.folder.iterdir())

    def copy(name: str) -> Path:
        return Path(shutil.copytree(data.folder, tmp_path / name))

    (copy("surplus") / "more.jsonl").touch()
    with pytest.raises(SurplusFile):
        SealedData.open(tmp_path / "surplus")
    ciphertext = copy("damaged") / "task.jsonl.sealed"
    ciphertext.write_bytes(ciphertext.read_bytes()[:-1] + b"\0")
    with pytest.raises(DamagedFile):
        SealedData.open(tmp_path / "damaged").read(DATA_KEY)
    manifest = copy("changed") / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(data.manifest.dataset.encode(), b"11" * 32))
    with pytest.raises(InvalidPackage, match="changed after"):
        SealedData.open(tmp_path / "changed")


def test_a_dataset_under_another_s_digest(data: SealedData) -> None:
    lies = msgspec.structs.replace(data.manifest, dataset="11" * 32)
    with pytest.raises(SubstitutedContent):
        SealedData(data.folder, lies, data.owner).read(DATA_KEY)


def test_real_machines_ask_for_their_collateral(tee: SimulatedTee) -> None:
    """A reader that is no simulated one, and a source that has what its evidence takes."""

    class Reader:
        name = "tdx"

        def read(self, report_data: bytes) -> Evidence:
            return tee.read(report_data)

    class Vendor(SentCollateral):
        def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
            assert evidence.raw
            return Collateral({"dcap": b"fetched"}, provenance=Provenance(fetched=datetime.now(UTC)))

    found = attester(Tee("tdx", Reader()), Vendor())
    assert (found.name, found.collateral) == ("tdx", Collateral({"dcap": b"fetched"}))
    assert isinstance(found.verifier, Verifier)
    assert found.verifier.roots.kind.value == "production"
