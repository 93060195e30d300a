"""Events of our own in a receipt: what the answer was made with, as far as its workload's statement says the same.

ACI leaves other events to services (7.4); whoever does not know these ignores them, and the signature holds.
"""

import re
from typing import Annotated, Any, Final

import msgspec

from confide.attest.configuration import Configuration, CorpusServed, SamplingDefaults
from confide.errors import MalformedReceipt
from confide.receipts.documents import canonical, digest_of
from confide.receipts.receipt import Event

MODEL: Final = "confide.model"
BUILD: Final = "confide.build"
ENGINE: Final = "confide.engine"
WEIGHTS: Final = "confide.weights"
ADAPTERS: Final = "confide.adapters"
CORPUS: Final = "confide.corpus"
SAMPLING: Final = "confide.sampling"
CHAIN: Final = "confide.chain"
SOURCES: Final = "confide.sources"
"""The chunks that a model was given to go by, and the corpus that they are from."""
COLLECTION: Final = "confide.collection"
"""The head of a user's own collection that was asked or changed, or that it was deleted."""
STATED: Final = (MODEL, BUILD, ENGINE, WEIGHTS, ADAPTERS, CORPUS)
"""Those that a statement says, too, where there is such a thing."""
_DATA: Final = re.compile(rb"(?:\A|\n)data: ([^\n]*)")
_CONFIDE: Final = b'"confide"'
_SAFE: Final = 2**53

_Number = int | float | None


class _Sampling(msgspec.Struct, frozen=True):
    """What a request may say of sampling, in numbers."""

    temperature: _Number = None
    top_p: _Number = None
    top_k: _Number = None
    min_p: _Number = None
    seed: _Number = None
    n: _Number = None
    best_of: _Number = None
    max_tokens: _Number = None
    max_completion_tokens: _Number = None
    max_output_tokens: _Number = None
    frequency_penalty: _Number = None
    presence_penalty: _Number = None


def stated_events(configuration: Configuration, model_digest: str) -> list[Event]:
    """What a statement says that a receipt repeats: weights as they are in memory, quantization, engine, program."""
    events: list[Event] = []
    if model_digest:
        events.append({"type": MODEL, "digest": model_digest})
    events.append({"type": BUILD, "version": configuration.confide.version, "digest": configuration.confide.digest})
    if engine := configuration.engine:
        events.append({"type": ENGINE, "name": engine.name, "version": engine.version})
    if weights := configuration.weights:
        held = {"digest": weights.digest, "quantization": weights.quantization, "dtype": weights.dtype}
        events.append({"type": WEIGHTS, **held})
    if configuration.adapters:
        events.append({"type": ADAPTERS, "names": list(configuration.adapters)})
    if isinstance(configuration.corpus, CorpusServed):
        events.append({"type": CORPUS, **msgspec.to_builtins(configuration.corpus)})
    return events


class _Cited(msgspec.Struct, frozen=True):
    digest: Annotated[str, msgspec.Meta(max_length=64)]


class _Rag(msgspec.Struct, frozen=True):
    corpus: CorpusServed
    sources: list[_Cited]


class _Confide(msgspec.Struct, frozen=True):
    rag: _Rag | None = None


class _Response(msgspec.Struct, frozen=True):
    confide: _Confide | None = None


class _Answer(_Response, frozen=True):
    """response: what the events of a stream are about, in the newer API."""

    response: _Response | None = None


def sources_event(answer: bytes) -> Event | None:
    """The chunks that an answer cites, and their corpus: a body as it came, of a stream too. None for one without."""
    if _CONFIDE not in answer:
        return None
    for part in _DATA.findall(answer) or [answer]:
        if _CONFIDE not in part:
            continue
        try:
            said = msgspec.json.decode(part, type=_Answer)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
        confide = said.confide or (said.response.confide if said.response else None)
        if confide is not None and confide.rag is not None:
            chunks = [source.digest for source in confide.rag.sources]
            return {"type": SOURCES, **msgspec.to_builtins(confide.rag.corpus), "chunks": chunks}
    return None


def source_corpus(event: Event) -> CorpusServed:
    """The corpus of an event of the kind SOURCES. MalformedReceipt where it names none."""
    try:
        return msgspec.convert({name: event.get(name) for name in CorpusServed.__struct_fields__}, CorpusServed)
    except msgspec.MsgspecError:
        raise MalformedReceipt("The receipt names sources of no corpus; ask the workload's operator.") from None


def collection_event(served: CorpusServed | None, collection: str) -> Event:
    """served: the head that a request was answered by. collection: its id; of one that was deleted there is no more."""
    if served is None:
        return {"type": COLLECTION, "corpus": collection, "deleted": True}
    return {"type": COLLECTION, **msgspec.to_builtins(served)}


def sampling_event(request: bytes, defaults: SamplingDefaults) -> Event | None:
    """The digest of the numbers that an answer was sampled with: the request's, and elsewhere the workload's.

    Over the canonical form of an object of them, without those that neither says; integers beyond 2^53 as text. None
    for a request that says no numbers where some belong.
    """
    try:
        asked = msgspec.to_builtins(msgspec.json.decode(request, type=_Sampling))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    for other_name in ("max_completion_tokens", "max_output_tokens"):
        limit = asked.pop(other_name)
        if limit is not None:
            asked["max_tokens"] = limit
    used: dict[str, Any] = msgspec.to_builtins(defaults)
    used |= {name: value for name, value in asked.items() if value is not None}
    written = {
        name: str(value) if isinstance(value, int) and abs(value) > _SAFE else value for name, value in used.items()
    }
    try:
        return {"type": SAMPLING, "digest": digest_of(canonical(written))}
    except MalformedReceipt:  # infinities, which no engine takes
        return None


def chain_event(sequence: int, previous: str | None) -> Event:
    """A receipt's place among all of its workload's. previous: the digest of the one before; None for the first."""
    return {"type": CHAIN, "sequence": sequence, "previous": previous}
