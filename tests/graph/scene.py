"""A graph that runs in this process: guard, model and retrieval, each behind a server of its own, in simulated TEEs."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from tests.enclave.fake_engine import FakeEngine
from tests.enclave.serving import serving

from confide.attest.simulated import SimulatedTee
from confide.client.coordinating import Coordinator
from confide.client.joining import Joined, join
from confide.enclave.api.answer import Serving
from confide.enclave.api.coordinator import Coordinating, coordinator_app
from confide.enclave.api.guard import Guarding, guard_app
from confide.enclave.api.limits import Limits
from confide.enclave.api.public import public_app
from confide.enclave.api.vector_stores import Retrieval, retrieval_app
from confide.enclave.corpus import load_corpus
from confide.enclave.workload import Workload
from confide.graph.history import History
from confide.packages.guard import GuardPackage, sign_rules
from confide.packages.sealed.corpus import Chunk, SealedCorpus, seal_corpus
from confide.packages.sealed.key import ModelKey

from .graphs import ALICE

KEY = ModelKey(b"k" * 32)
RULES = """
confide-guard = 1
name = "desk"
refusal = "The desk does not talk about that."
phrases = ["open sesame", "dynamit*"]
"""
CHUNK = "The tide rises twice a day."
LIMITS = Limits(attestations_per_second=1000)


@dataclass
class Packages:
    """What the three services have. model: the digest that its package would have."""

    guard: GuardPackage
    corpus: SealedCorpus
    model: str = "22" * 32

    @classmethod
    def make(cls, folder: Path, rules: str = RULES, chunk: str = CHUNK) -> "Packages":
        sign_rules(rules, folder / "guard", ALICE)
        seal_corpus((Chunk("tide.md", None, chunk),), folder / "corpus", name="sea", key=KEY, owner=ALICE)
        return cls(GuardPackage.open(folder / "guard"), SealedCorpus.open(folder / "corpus"))

    @property
    def digests(self) -> Mapping[str, str]:
        return {"guard": self.guard.manifest.digest, "model": self.model, "retrieval": self.corpus.manifest.digest}


@dataclass
class Running:
    """urls: of the services, by name. workloads, joined: likewise. engine: the model's, which turns texts round."""

    urls: dict[str, str] = field(default_factory=dict)
    workloads: dict[str, Workload] = field(default_factory=dict)
    joined: dict[str, Joined] = field(default_factory=dict)
    engine: FakeEngine = field(default_factory=FakeEngine)


@contextmanager
def running(tee: SimulatedTee, root: bytes, history: History, packages: Packages) -> Iterator[Running]:
    """The services of a graph, the last one first, so that each can be told where its neighbours are."""
    scene = Running()

    def service(name: str, digest: str) -> Workload:
        workload = scene.workloads[name] = Workload(tee, tee.collateral, model_digest=digest)
        urls = {asked: scene.urls[asked] for asked in history.current.asks(name)}
        scene.joined[name] = join(history, name, workload, root=root, urls=urls)
        return workload

    with ExitStack() as stack:
        workload = service("retrieval", "")
        index = load_corpus(packages.corpus, workload, lambda key, workload: KEY)
        retrieval, joined = Retrieval(packages.corpus.manifest, index, limits=LIMITS), scene.joined["retrieval"]
        app = retrieval_app(workload, retrieval, neighbours=joined.neighbours, graph=joined.shown)
        scene.urls["retrieval"] = stack.enter_context(serving(app))

        workload = service("model", packages.model)
        joined = scene.joined["model"]
        made = Serving(scene.engine, limits=LIMITS)
        app = public_app(workload, made, neighbours=joined.neighbours, graph=joined.shown)
        scene.urls["model"] = stack.enter_context(serving(app))

        workload = service("guard", packages.guard.manifest.digest)
        joined = scene.joined["guard"]
        guarding = Guarding(packages.guard, joined.edges["model"].client(), limits=LIMITS)
        app = guard_app(workload, guarding, neighbours=joined.neighbours, graph=joined.shown)
        scene.urls["guard"] = stack.enter_context(serving(app))

        if name := history.current.manifest.coordinator:
            workload = scene.workloads[name] = Workload(tee, tee.collateral)
            coordinator = Coordinator(history, workload, root=root, urls=dict(scene.urls))
            stack.callback(coordinator.close)
            app = coordinator_app(workload, Coordinating(coordinator.vouch, limits=LIMITS))
            scene.urls[name] = stack.enter_context(serving(app))
        yield scene


def restated(workload: Workload, **graph: object) -> None:
    """Have a workload say something else of its place in the graph."""
    joined = msgspec.structs.replace(workload.configuration.graph, **graph)  # type: ignore[type-var]
    workload.configuration = msgspec.structs.replace(workload.configuration, graph=joined)
