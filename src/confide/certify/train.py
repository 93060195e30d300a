"""One training inside a trusted execution environment: a sealed base and sealed data in, a sealed adapter out.

Nothing of the base or the dataset leaves but what the certificate says, and the adapter under its owner's key. Where
the dataset is sealed, that holds for words too: see `runs`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Protocol

import msgspec

from confide.attest.certificates import Role
from confide.attest.configuration import Configuration, Count, EngineUsed
from confide.attest.training import (
    ADAPTER_FILES,
    CHECKPOINT_PURPOSE,
    Amount,
    Lora,
    Passed,
    TrainingCertificate,
    TrainingPredicate,
    TrainingRun,
    adapter_digest,
)
from confide.attest.wire import Record
from confide.certify.checkpoint import Checkpoints, Process
from confide.certify.consent import Consent, require_owners
from confide.certify.corpus import read_corpus
from confide.certify.dataset_checks import AnyCheck, passed
from confide.certify.dataset_checks import described as described_check
from confide.certify.runs import Attester, Clock, approvals_of, described, nothing_said, require_same, utc_now
from confide.certify.score import dataset_digest
from confide.enclave.boot import Fetch
from confide.enclave.egress import WaysOut
from confide.errors import InvalidCorpus, SelfTestMissing
from confide.extras import named_extras
from confide.packages.sealed.adapter import seal_adapter
from confide.packages.sealed.data import SealedData
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.known_answers import KnownAnswers
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import SealedPackage, UnlockedPackage
from confide.shallow_toml import require_shallow

if TYPE_CHECKING:
    from confide.models.adapter import Adapter


class Examine(Protocol):
    """Has a model answer under an adapter."""

    def __call__(self, unlocked: UnlockedPackage, *, adapter: "Adapter") -> KnownAnswers | None:
        """What it is certain of. SelfTestMissing where that is too little to test with."""
        ...


MAX_RECIPE_BYTES: Final = 1 << 16
_MAX_MARKS: Final = 2000
CHECKPOINT_STEPS: Final = 50


class Recipe(Record, frozen=True):
    """How to train, as a person writes it. seed: of everything that is drawn. checks: of the dataset."""

    format: Literal[1] = msgspec.field(name="confide-training")
    seed: Count = 0
    lora: Lora = Lora()
    checks: Annotated[tuple[AnyCheck, ...], msgspec.Meta(max_length=32)] = msgspec.field(default=(), name="check")


def read_recipe(text: str) -> Recipe:
    """A recipe from TOML. InvalidCorpus for anything else."""
    if len(text) > MAX_RECIPE_BYTES:
        raise InvalidCorpus(f"A recipe has at most {MAX_RECIPE_BYTES >> 10} KiB; shorten its lists.")
    require_shallow(text, "The recipe", InvalidCorpus, _MAX_MARKS)
    try:
        return msgspec.toml.decode(text, type=Recipe)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidCorpus(f"The recipe cannot be understood: {str(error)[:300]}. Correct that place.") from None


def describe_training(
    here: Attester, base: str, dataset: str, key: str, recipe: Recipe, nonce: str, now: datetime | None = None
) -> TrainingRun:
    """The run that this environment would make, for owners to approve. base, dataset: digests. key: the adapter's id.

    RunRefused where the hardware measures no code, AttestationError where its evidence does not hold.
    """
    checks = tuple(map(described_check, recipe.checks))
    return TrainingRun(base, dataset, key, recipe.lora, recipe.seed, checks, **described(here, nonce, now))


@dataclass(frozen=True)
class Trained:
    """An adapter in memory. files: its two, by their names. key: that it is to be sealed with.

    known_answers: None where nobody asked, or where the model is certain of too little.
    """

    certificate: TrainingCertificate
    files: dict[str, bytes] = field(repr=False)
    key: ModelKey
    known_answers: KnownAnswers | None = None

    def seal(self, out: Path) -> None:
        """Into this folder. ConfideError where it exists."""
        seal_adapter(self.files, self.certificate, out, key=self.key, known_answers=self.known_answers)


def train(
    here: Attester,
    package: SealedPackage,
    data: SealedData | bytes,
    run: TrainingRun,
    fetch: Fetch,
    *,
    fetch_data: Fetch | None = None,
    consents: Sequence[Consent] = (),
    ways: WaysOut | None = None,
    examine: Examine | None = None,
    checkpoint: Path | None = None,
    every: int = CHECKPOINT_STEPS,
    now: Clock = utc_now,
) -> Trained:
    """Train and sign. data: sealed, which takes the consents of both owners, or a corpus file in the clear.

    fetch, fetch_data: get the keys; the second those of the data and of the adapter, the same without. ways: out of
    this process; those to keys are closed once they are here. examine: has the model answer under the adapter, for
    whoever serves it; see `confide.enclave.boot.examine`. checkpoint: a file for what a process that is killed leaves,
    `every` so many steps; what an earlier one of this run left there is taken up.

    Raises TrainingFailed where the training comes to nothing or what was left is of another run; RunRefused before any
    key is asked for where the run is not what this environment would do or lacks an
    approval, and what `fetch` raises; NotInstalled without peft.
    """
    with named_extras():
        import peft  # noqa: F401 - before keys are asked for
    ways, started, fetch_data = ways or WaysOut(), now(), fetch_data or fetch
    here_run = TrainingRun(
        package.manifest.model_digest,
        dataset_digest(data),
        run.key,
        run.lora,
        run.seed,
        run.checks,
        **described(here, run.nonce, started),
    )
    require_same(run, here_run)
    approvals = approvals_of(run, package, data, consents)
    if package.manifest.weights is not WeightsFormat.SAFETENSORS:
        raise InvalidCorpus("Nothing is trained over a GGUF model; seal its safetensors.")
    workload = here.workload(run, ways)
    keys = {Role.MODEL: fetch(package.manifest.key, workload)}
    if isinstance(data, SealedData):
        keys[Role.DATA] = fetch_data(data.manifest.key, workload)
    adapter_key = fetch_data(run.key, workload)
    ways.close_keys()
    require_owners(run, consents, keys)
    unlocked = package.unlock(keys[Role.MODEL])
    process = None
    if checkpoint is not None:
        process = _process(here, Checkpoints(checkpoint, run, adapter_key), workload.configuration, ways, started)
    with nothing_said(data):
        content = data.read(keys[Role.DATA]) if isinstance(data, SealedData) else data
        made = _trained(unlocked, content, run, process, every)
        known = _examined(unlocked, made.files, examine) if examine else None
    said = msgspec.structs.replace(
        workload.configuration, engine=made.engine, context=run.lora.context, egress=ways.stated
    )
    finished = now()
    key, attested = here.certify(run, TrainingCertificate.PURPOSE, said, finished)
    predicate = TrainingPredicate(
        run,
        made.corpus,
        made.amount,
        adapter_digest(made.files),
        made.passed,
        process.earlier if process else (),
        started=process.earlier[0].started if process and process.earlier else started,
        finished=finished,
        attested=attested,
        approvals=approvals,
    )
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in made.files.items()}
    return Trained(
        TrainingCertificate.sign(package.manifest.name, predicate, digests, key), made.files, adapter_key, known
    )


@dataclass(frozen=True)
class _Made:
    """What came out. corpus: its name. engine: that computed."""

    corpus: str
    passed: tuple[Passed, ...]
    amount: Amount
    files: dict[str, bytes]
    engine: EngineUsed


def _examined(unlocked: UnlockedPackage, files: dict[str, bytes], examine: Examine) -> KnownAnswers | None:
    from confide.models.adapter import adapter_of

    try:
        return examine(unlocked, adapter=adapter_of(unlocked.package.folder, *(files[name] for name in ADAPTER_FILES)))
    except SelfTestMissing:
        return None


def _process(
    here: Attester, checkpoints: Checkpoints, before: Configuration, ways: WaysOut, started: datetime
) -> Process:
    """This process, with a key of its own for what it leaves. TrainingFailed for what no process of the run left."""
    said = msgspec.structs.replace(before, egress=ways.stated)
    signer, attested = here.certify(checkpoints.run, CHECKPOINT_PURPOSE, said, started)
    return Process(checkpoints, signer, attested, started, checkpoints.read())


def _trained(unlocked: UnlockedPackage, content: bytes, run: TrainingRun, process: Process | None, every: int) -> _Made:
    import torch
    import transformers

    from confide.certify.lora import VERSION, Training
    from confide.evaluate.windows import cut_texts, model_context
    from confide.packages.sealed.load import load_model, load_tokenizer

    corpus = read_corpus(content)
    checks = passed(run.checks, corpus)
    tokenizer = load_tokenizer(unlocked)
    if tokenizer is None:
        raise InvalidCorpus("The model was sealed without its tokenizer, which texts take; seal it with one.")
    model = load_model(unlocked, dtype=torch.float32)
    context = model_context(model.config, run.lora.context)
    windows = cut_texts([one.text for one in corpus.texts], tokenizer, context)
    training = Training(model, windows.ids, run.lora, run.seed)
    if process is not None and process.left is not None:
        training.resume(process.left.state, process.left.steps)
    while training.done < training.steps:
        training.step()
        if process is not None and training.done % every == 0:
            process.leave(training.done, training.state())
    settings = {"dtype": "f32", "transformers": transformers.__version__, "threads": str(torch.get_num_threads())}
    amount = Amount(len(corpus.texts), training.tokens, training.steps)
    return _Made(corpus.name, checks, amount, training.files(), EngineUsed("peft", VERSION, settings))
