"""One measurement inside a trusted execution environment: keys for evidence, a model in memory, a signed certificate.

Nothing of the model or the dataset leaves but what the certificate says. Where the dataset is sealed, that holds for
words too: see `runs`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from confide.attest.certificates import Role
from confide.attest.configuration import EngineUsed
from confide.attest.scores import Metric, Predicate, Run, ScoreCertificate
from confide.certify.consent import Consent, require_owners
from confide.certify.runs import Attester, Clock, approvals_of, described, nothing_said, require_same, utc_now
from confide.certify.tasks import Task, read_task
from confide.enclave.boot import Fetch
from confide.enclave.egress import WaysOut
from confide.errors import InvalidTask, RunRefused
from confide.packages.sealed.adapter import SealedAdapter
from confide.packages.sealed.data import SealedData
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import SealedPackage, UnlockedPackage

if TYPE_CHECKING:
    from confide.certify.measure import Asked, Measured
    from confide.models.adapter import Adapter


def describe(
    here: Attester,
    model: str,
    dataset: str,
    metric: Metric,
    nonce: str,
    now: datetime | None = None,
    *,
    adapter: str = "",
) -> Run:
    """The run that this environment would make, for owners to approve. model, dataset, adapter: digests.

    RunRefused where the hardware measures no code, AttestationError where its evidence does not hold.
    """
    return Run(model, dataset, metric, adapter, **described(here, nonce, now))


def dataset_digest(data: SealedData | bytes) -> str:
    """SHA-256 of a dataset's file, in hexadecimal; of a sealed one as its manifest says."""
    return data.manifest.dataset if isinstance(data, SealedData) else hashlib.sha256(data).hexdigest()


def score(
    here: Attester,
    package: SealedPackage,
    data: SealedData | bytes,
    run: Run,
    fetch: Fetch,
    *,
    adapter: SealedAdapter | None = None,
    fetch_data: Fetch | None = None,
    consents: Sequence[Consent] = (),
    ways: WaysOut | None = None,
    now: Clock = utc_now,
) -> ScoreCertificate:
    """Measure and sign. data: sealed, which takes the consents of both owners, or a task file in the clear.

    adapter: to lay over the model. fetch, fetch_data: get the keys; the second those of the data and of the adapter,
    the same without. ways: out of this process; those to keys are closed once they are here.

    Raises RunRefused before any key is asked for where the run is not what this environment would do or lacks an
    approval, and what `fetch` raises.
    """
    ways, started = ways or WaysOut(), now()
    model, over = package.manifest.model_digest, adapter.manifest.adapter if adapter else ""
    require_same(run, describe(here, model, dataset_digest(data), run.metric, run.nonce, started, adapter=over))
    approvals = approvals_of(run, package, data, consents)
    if adapter is not None:
        adapter.require_base(model)
    if adapter is not None and package.manifest.weights is WeightsFormat.GGUF:
        raise InvalidTask("No adapter is laid over a GGUF model; measure its safetensors, or leave --adapter out.")
    workload = here.workload(run, ways)
    keys = {Role.MODEL: fetch(package.manifest.key, workload)}
    if isinstance(data, SealedData):
        keys[Role.DATA] = (fetch_data or fetch)(data.manifest.key, workload)
    over_key = (fetch_data or fetch)(adapter.manifest.key, workload) if adapter else None
    ways.close_keys()
    require_owners(run, consents, keys)
    unlocked = package.unlock(keys[Role.MODEL])
    with nothing_said(data):
        opened = adapter.unlock(over_key).read() if adapter and over_key else None
        made = _measured(unlocked, data.read(keys[Role.DATA]) if isinstance(data, SealedData) else data, run, opened)
    said = msgspec.structs.replace(
        workload.configuration,
        engine=made.engine,
        context=made.measured.sampling.context,
        adapters=(over,) if over else (),
        egress=ways.stated,
    )
    finished, found = now(), made.measured
    key, attested = here.certify(run, ScoreCertificate.PURPOSE, said, finished)
    predicate = Predicate(
        run,
        made.task.name,
        found.sampling,
        found.counts,
        found.score,
        started=started,
        finished=finished,
        attested=attested,
        approvals=approvals,
        prepared=made.task.prepared,
    )
    return ScoreCertificate.sign(package.manifest.name, predicate, key)


@dataclass(frozen=True)
class _Made:
    """What came out. engine: that computed."""

    task: Task
    measured: "Measured"
    engine: EngineUsed


def _measured(unlocked: UnlockedPackage, content: bytes, run: Run, adapter: "Adapter | None") -> _Made:
    from confide.certify.measure import measure

    task = read_task(content)
    if task.metric is not run.metric:
        raise RunRefused(f"The task is for {task.metric}, and the run for {run.metric}; describe the run again.")
    opened = _in_llama_cpp(unlocked, task.context) if _is_gguf(unlocked) else _in_transformers(unlocked, adapter)
    with opened as (model, engine):
        return _Made(task, measure(task, model), engine)


def _is_gguf(unlocked: UnlockedPackage) -> bool:
    return unlocked.manifest.weights is WeightsFormat.GGUF


@contextmanager
def _in_transformers(unlocked: UnlockedPackage, adapter: "Adapter | None") -> "Iterator[tuple[Asked, EngineUsed]]":
    import torch
    import transformers

    from confide.certify.measure import Asked
    from confide.packages.sealed.load import load_model, load_tokenizer

    tokenizer = load_tokenizer(unlocked)
    if tokenizer is None:
        raise InvalidTask("The model was sealed without its tokenizer, which a task's texts take; seal it with one.")
    model = load_model(unlocked, dtype=torch.float32)
    if adapter is not None:
        model = adapter.merge_into(model)
    settings = {"torch": str(torch.__version__), "dtype": "f32"}
    yield Asked.stock(model, tokenizer), EngineUsed("transformers", transformers.__version__, settings)


@contextmanager
def _in_llama_cpp(unlocked: UnlockedPackage, context: int | None) -> "Iterator[tuple[Asked, EngineUsed]]":
    """context: tokens of a window, where the task says it."""
    from confide.certify.measure import Asked
    from confide.enclave.engines.gguf_logits import GgufLogits
    from confide.evaluate.logits import require_numbers
    from confide.evaluate.windows import LONGEST_CONTEXT
    from confide.packages.sealed.memory import open_gguf

    with open_gguf(unlocked) as file, GgufLogits(Path(file.path), context or LONGEST_CONTEXT) as logits:
        model = Asked(lambda window: require_numbers(logits(window)), logits.tokenizer, logits.longest)
        yield model, EngineUsed("llama.cpp", logits.version, logits.settings)
