"""What runs, as a workload says it in its statement: the program, the weights, and all that changes how they answer.

The hardware signs the statement, so this is as good as the measured code that wrote it. It is data about a workload,
and knows neither engines nor processes; `confide.enclave.configuration` writes it.
"""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""A SHA-256, in lower-case hexadecimal."""
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Settings = Annotated[dict[Word, Text], msgspec.Meta(max_length=128)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Part of a configuration: every field is written, also where it is empty."""


class Egress(StrEnum):
    """Where the process can open connections to: what was enforced and checked, not what was intended.

    Connections that users open to it are not meant. An upstream is another process, whose own ways out nobody states.
    Neighbours are services that it verifies before it tells them anything. A ledger is the operator's database, which
    another process asks for it.
    """

    NONE = "none"
    KEY_SERVICE = "key-service-only"
    UPSTREAM = "upstream-only"
    KEY_SERVICE_AND_UPSTREAM = "key-service-and-upstream-only"
    NEIGHBOURS = "neighbours-only"
    KEY_SERVICE_AND_NEIGHBOURS = "key-service-and-neighbours-only"
    UPSTREAM_AND_NEIGHBOURS = "upstream-and-neighbours-only"
    KEY_SERVICE_UPSTREAM_AND_NEIGHBOURS = "key-service-upstream-and-neighbours-only"
    LEDGER = "ledger-only"
    KEY_SERVICE_AND_LEDGER = "key-service-and-ledger-only"
    UPSTREAM_AND_LEDGER = "upstream-and-ledger-only"
    KEY_SERVICE_UPSTREAM_AND_LEDGER = "key-service-upstream-and-ledger-only"
    NEIGHBOURS_AND_LEDGER = "neighbours-and-ledger-only"
    KEY_SERVICE_NEIGHBOURS_AND_LEDGER = "key-service-neighbours-and-ledger-only"
    UPSTREAM_NEIGHBOURS_AND_LEDGER = "upstream-neighbours-and-ledger-only"
    KEY_SERVICE_UPSTREAM_NEIGHBOURS_AND_LEDGER = "key-service-upstream-neighbours-and-ledger-only"
    OPEN = "open"

    @classmethod
    def to(cls, *ways: str) -> "Egress":
        """The word for these, in the order of the members above."""
        *others, last = ways or ("",)
        return cls(f"{'-'.join(others)}-and-{last}-only" if others else f"{last}-only" if last else cls.NONE)


class Build(_Part, frozen=True):
    """Which Confide. digest: over its files, as `confide.enclave.configuration` computes it."""

    version: Word
    digest: Hex32


class EngineUsed(_Part, frozen=True):
    """What computes. version: of it and of what it computes with. settings: those that change what it answers."""

    name: Word
    version: Word
    settings: Settings


class WeightsHeld(_Part, frozen=True):
    """The weights in the engine's memory. digest: over their names, types, shapes and bytes.

    quantization: how most are stored, such as f32 or q8_0. dtype: what is computed in.
    """

    digest: Hex32
    quantization: Word
    dtype: Word


class SamplingDefaults(_Part, frozen=True):
    """How answers are sampled where a request does not say. max_tokens: the most that any answer has."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)]
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)]
    top_k: Count
    max_tokens: Count


class UpstreamUsed(_Part, frozen=True):
    """Another program that makes the answers. name: the model's there."""

    name: Word
    url: Word


class SelfTestRun(_Part, frozen=True):
    """The last known-answer self-test. at: RFC 3339, UTC, by the workload's clock. digest: SHA-256 of the test.

    tokens: how many had to be reproduced. For `not-run` there is no test: the other fields are empty.
    """

    outcome: Literal["passed", "failed", "not-run"]
    at: Annotated[str, msgspec.Meta(pattern=r"\A([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)?\Z")] = ""
    digest: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    tokens: Count = 0


class CorpusServed(_Part, frozen=True):
    """What retrieval answers from: see `confide.packages.sealed.corpus`.

    corpus: which. head: its number, which only grows. digest: of that head. owner: the public key that signed it.
    """

    corpus: Hex32
    head: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
    digest: Hex32
    owner: Hex32


class GraphJoined(_Part, frozen=True):
    """The graph of services that it is one of: see `confide.graph`.

    graph: which. version: its number, which only grows. digest: of that version. service: as which of them. promise: of
    a coordinator, the digest of the policy that it holds every service against that sees a user's data; else empty.
    """

    graph: Hex32
    version: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
    digest: Hex32
    service: Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9-]{0,62}\Z")]
    promise: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""


class Configuration(_Part, frozen=True):
    """Everything that changes behaviour. What is not known yet, when a key is asked for, or not there is None or empty.

    context: tokens of prompt and answer together. adapters: what is laid over the weights, by
    digest where Confide did it, else by name. template: SHA-256 of the chat template,
    which is Confide's plain one for a model without. options: of the command that serves. environment: variables that
    libraries look at, secrets by name. corpus, graph: there is no such member where none is served, or joined.
    """

    confide: Build
    engine: EngineUsed | None = None
    weights: WeightsHeld | None = None
    context: Count = 0
    adapters: Annotated[tuple[Word, ...], msgspec.Meta(max_length=64)] = ()
    template: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    sampling: SamplingDefaults | None = None
    egress: Egress = Egress.OPEN
    upstream: UpstreamUsed | None = None
    self_test: SelfTestRun = SelfTestRun("not-run")
    options: Settings = {}
    environment: Settings = {}
    corpus: CorpusServed | msgspec.UnsetType = msgspec.UNSET
    graph: GraphJoined | msgspec.UnsetType = msgspec.UNSET
