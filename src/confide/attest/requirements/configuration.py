"""Requirements on what runs, as the workload's signed statement says it: see `confide.attest.configuration`.

A statement without a configuration, or one that the hardware did not sign, satisfies none of them.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import compress, product
from typing import Final

import msgspec

from confide.attest.check import Check, check
from confide.attest.configuration import Configuration, CorpusServed, Egress, GraphJoined
from confide.attest.requirements.base import ABSENT, Requirement, Subject, one_of, period, require_hex
from confide.errors import InvalidPolicy
from confide.printable import printable

_FAST_CLOCK: Final = timedelta(minutes=10)
"""How far the clock of a workload may be ahead."""
_SHOWN: Final = 300

Seen = tuple[str, bool]
"""What a configuration says, and whether that will do."""


class NoUpstream(Requirement, frozen=True, tag="no-upstream"):
    """The attested process runs the model itself, and asks no other program for answers."""

    def sentences(self) -> Iterator[str]:
        yield "no other program that makes the answers"

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield upstream_check(subject)


class Corpus(Requirement, frozen=True, tag="corpus"):
    """Retrieval answers from this corpus, signed by this owner, at this head or a later one.

    id: which corpus, as `confide rag build` prints it. owner: a public key. A head that was met before is held against
    later ones in any case (`confide.client.corpora`); this is for whoever meets it for the first time.
    """

    id: str
    owner: str
    head_at_least: int = msgspec.field(default=1, name="head-at-least")

    def __post_init__(self) -> None:
        require_hex("id", self.id, 32)
        require_hex("owner", self.owner, 32)
        if not 1 <= self.head_at_least <= 1 << 40:
            raise InvalidPolicy(f"Heads count from 1, and the policy says {self.head_at_least}; correct it.")

    def sentences(self) -> Iterator[str]:
        yield f"the corpus {self.id[:16]}... of {self.owner[:16]}..., at head {self.head_at_least} or later"

    def checks(self, subject: Subject) -> Iterator[Check]:
        def served(value: Callable[[CorpusServed], Seen]) -> Callable[[Configuration], Seen]:
            def seen(configuration: Configuration) -> Seen:
                corpus = configuration.corpus
                return (ABSENT, False) if isinstance(corpus, msgspec.UnsetType) else value(corpus)

            return seen

        yield _configured("corpus", self.id, subject, served(lambda one: (one.corpus, one.corpus == self.id)))
        yield _configured("corpus-owner", self.owner, subject, served(lambda one: (one.owner, one.owner == self.owner)))
        least = self.head_at_least
        yield _configured(
            "corpus-head", f"at least {least}", subject, served(lambda one: (str(one.head), one.head >= least))
        )


class Graph(Requirement, frozen=True, tag="graph"):
    """It is this service of this graph, and holds its neighbours against what the graph's owners signed.

    id: which graph, as `confide graph` prints it. digest: of the one version that it may have; empty for any from
    version_at_least on.
    """

    id: str
    service: str
    version_at_least: int = msgspec.field(default=1, name="version-at-least")
    digest: str = ""

    def __post_init__(self) -> None:
        require_hex("id", self.id, 32)
        if self.digest:
            require_hex("digest", self.digest, 32)
        if not 1 <= self.version_at_least <= 1 << 40:
            raise InvalidPolicy(f"Versions count from 1, and the policy says {self.version_at_least}; correct it.")

    def sentences(self) -> Iterator[str]:
        version = f"the version {self.digest[:16]}..." if self.digest else f"version {self.version_at_least} or later"
        yield f"the service {printable(self.service)!r} of the graph {self.id[:16]}..., at {version}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        def joined(value: Callable[[GraphJoined], Seen]) -> Callable[[Configuration], Seen]:
            def seen(configuration: Configuration) -> Seen:
                graph = configuration.graph
                return (ABSENT, False) if isinstance(graph, msgspec.UnsetType) else value(graph)

            return seen

        def same(code: str, expected: str, value: Callable[[GraphJoined], str]) -> Check:
            return _configured(code, expected, subject, joined(lambda one: (value(one), value(one) == expected)))

        yield same("graph", self.id, lambda one: one.graph)
        yield same("graph-service", self.service, lambda one: one.service)
        least = self.version_at_least
        yield _configured(
            "graph-version", f"at least {least}", subject, joined(lambda one: (str(one.version), one.version >= least))
        )
        if self.digest:
            yield same("graph-digest", self.digest, lambda one: one.digest)


class NoEgress(Requirement, frozen=True, tag="no-egress"):
    """The attested process can open no connection, but to the service that releases its model key.

    allow_neighbours: nor but to services that it verifies before it tells them anything, in TOML `allow-neighbours`.
    What it asks of those follows from its measured code, and from the graph that its statement names. allow_ledger:
    nor but to a database of the operator's, which learns licences and numbers of tokens; in TOML `allow-ledger`.
    """

    allow_neighbours: bool = msgspec.field(default=False, name="allow-neighbours")
    allow_ledger: bool = msgspec.field(default=False, name="allow-ledger")

    def sentences(self) -> Iterator[str]:
        neighbours = " and to neighbours" if self.allow_neighbours else ""
        yield f"no way out but to the key service{neighbours}{' and to a ledger' if self.allow_ledger else ''}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        ways = ["key-service", *(["neighbours"] * self.allow_neighbours), *(["ledger"] * self.allow_ledger)]
        # every choice of them, in their order
        choices = (compress(ways, chosen) for chosen in product((False, True), repeat=len(ways)))
        allowed = [Egress.to(*choice) for choice in choices]

        def seen(configuration: Configuration) -> Seen:
            return configuration.egress.value, configuration.egress in allowed

        yield _configured("egress", one_of(tuple(allowed)), subject, seen)


class Engine(Requirement, frozen=True, tag="engine"):
    """One of these engines, such as transformers or llama.cpp, in one of these versions. versions: empty is any."""

    names: tuple[str, ...]
    versions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_some("names", self.names)

    def sentences(self) -> Iterator[str]:
        yield f"the engine {one_of(self.names)}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield _among("engine", self.names, subject, lambda found: found.engine.name if found.engine else "")
        if self.versions:
            yield _among(
                "engine-version", self.versions, subject, lambda found: found.engine.version if found.engine else ""
            )


class Weights(Requirement, frozen=True, tag="weights"):
    """The weights in the engine's memory have one of these digests; `confide seal` prints it."""

    sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_some("sha256", self.sha256)
        _require_digests(self.sha256)

    def sentences(self) -> Iterator[str]:
        yield "weights in memory with " + one_of(tuple(f"the digest {digest[:16]}..." for digest in self.sha256))

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield _among("weights", self.sha256, subject, lambda found: found.weights.digest if found.weights else "")


class Quantization(Requirement, frozen=True, tag="quantization"):
    """Most weights are held in one of these types, such as f32 or q8_0."""

    allowed: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_some("allowed", self.allowed)

    def sentences(self) -> Iterator[str]:
        yield f"weights held as {one_of(self.allowed)}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield _among("quantization", self.allowed, subject, lambda found: _quantization(found))


class ContextAtLeast(Requirement, frozen=True, tag="context-at-least"):
    """Prompt and answer may have this many tokens together."""

    tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= 1 << 40:
            raise InvalidPolicy(f"A context has at least one token, and the policy says {self.tokens}; correct it.")

    def sentences(self) -> Iterator[str]:
        yield f"a context of at least {self.tokens} tokens"

    def checks(self, subject: Subject) -> Iterator[Check]:
        def seen(configuration: Configuration) -> Seen:
            return str(configuration.context), configuration.context >= self.tokens

        yield _configured("context", f"at least {self.tokens}", subject, seen)


class NoAdapters(Requirement, frozen=True, tag="no-adapters"):
    """Nothing is laid over the weights."""

    def sentences(self) -> Iterator[str]:
        yield "no adapters over the weights"

    def checks(self, subject: Subject) -> Iterator[Check]:
        def seen(configuration: Configuration) -> Seen:
            return ", ".join(configuration.adapters) or "none", not configuration.adapters

        yield _configured("adapters", "none", subject, seen)


class Template(Requirement, frozen=True, tag="template"):
    """Conversations become prompts by the chat template with one of these SHA-256."""

    sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_some("sha256", self.sha256)
        _require_digests(self.sha256)

    def sentences(self) -> Iterator[str]:
        yield "a given chat template"

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield _among("template", self.sha256, subject, lambda found: found.template)


class ConfideVersion(Requirement, frozen=True, tag="confide-version"):
    """Confide itself: one of these versions, and its files have one of these digests. Empty: any; not both."""

    versions: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_some("versions or sha256", self.versions + self.sha256)
        _require_digests(self.sha256)

    def sentences(self) -> Iterator[str]:
        yield "a given Confide: " + one_of((*self.versions, *(f"digest {digest[:16]}..." for digest in self.sha256)))

    def checks(self, subject: Subject) -> Iterator[Check]:
        if self.versions:
            yield _among("confide-version", self.versions, subject, lambda found: found.confide.version)
        if self.sha256:
            yield _among("confide-digest", self.sha256, subject, lambda found: found.confide.digest)


class SelfTest(Requirement, frozen=True, tag="self-test"):
    """The engine gave the known answers of the sealed model, not longer ago than this, by the workload's clock."""

    within: str = "2h"

    def __post_init__(self) -> None:
        period(self.within)

    def sentences(self) -> Iterator[str]:
        yield f"known answers given within {self.within}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        def seen(configuration: Configuration) -> Seen:
            run = configuration.self_test
            if not run.at:
                return run.outcome, False
            try:
                age = subject.now - datetime.fromisoformat(run.at).astimezone(UTC)
            except ValueError:
                return f"{run.outcome}, at no time", False
            passed = run.outcome == "passed" and run.tokens > 0 and -_FAST_CLOCK <= age <= period(self.within)
            return f"{run.outcome} at {run.at}, {run.tokens} tokens", passed

        yield _configured("self-test", f"passed within {self.within}", subject, seen)


class Options(Requirement, frozen=True, tag="options"):
    """The command that serves was given no other options than these, by their names, and with these values."""

    allowed: dict[str, str]

    def sentences(self) -> Iterator[str]:
        yield "no other options than " + (", ".join(sorted(self.allowed)) or "none")

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield _only("options", self.allowed, subject, lambda found: found.options)


class Environment(Requirement, frozen=True, tag="environment"):
    """No other variables change how libraries behave than these, and these have no other values."""

    allowed: dict[str, str]

    def sentences(self) -> Iterator[str]:
        yield "no other environment variables than " + (", ".join(sorted(self.allowed)) or "none")

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield _only("environment", self.allowed, subject, lambda found: found.environment)


def upstream_check(subject: Subject, allowed: str = "") -> Check:
    """That no other program makes the answers, or only one that serves the model under this name."""

    def seen(configuration: Configuration) -> Seen:
        upstream = configuration.upstream
        if upstream is None:
            return "none", True
        return f"{upstream.name} at {upstream.url}", bool(allowed) and upstream.name == allowed

    return _configured("upstream", f"none, or {allowed}" if allowed else "none", subject, seen)


def _configured(code: str, expected: str, subject: Subject, judge: Callable[[Configuration], Seen]) -> Check:
    if subject.statement is None:
        return check(code, expected, "no statement", ok=False)
    statement = subject.signed_statement
    if statement is None:
        return check(code, expected, "a statement that the hardware did not sign", ok=False)
    if statement.configuration is None:
        return check(code, expected, "a statement that does not say what runs", ok=False)
    seen, ok = judge(statement.configuration)
    return check(code, expected, _shown(seen), ok)


def _among(code: str, allowed: tuple[str, ...], subject: Subject, value: Callable[[Configuration], str]) -> Check:
    def seen(configuration: Configuration) -> Seen:
        found = value(configuration)
        return found or ABSENT, bool(found) and found in allowed

    return _configured(code, one_of(allowed), subject, seen)


def _only(
    code: str, allowed: Mapping[str, str], subject: Subject, value: Callable[[Configuration], Mapping[str, str]]
) -> Check:
    def seen(configuration: Configuration) -> Seen:
        found = value(configuration)
        odd = [f"{name}={content}" for name, content in sorted(found.items()) if allowed.get(name) != content]
        return ", ".join(odd) or "nothing else", not odd

    words = ", ".join(f"{name}={content}" for name, content in sorted(allowed.items()))
    return _configured(code, f"only {words}" if words else "none", subject, seen)


def _quantization(configuration: Configuration) -> str:
    return configuration.weights.quantization if configuration.weights else ""


def _require_some(name: str, values: tuple[str, ...]) -> None:
    if not values or not all(values):
        raise InvalidPolicy(f"{name} names what is allowed, and nothing would be; give at least one, and none empty.")


def _require_digests(values: tuple[str, ...]) -> None:
    for digest in values:
        require_hex("sha256", digest, 32)


def _shown(text: str) -> str:
    """A workload's words: printable, and not too many."""
    words = printable(text)
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."
