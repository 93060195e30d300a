"""The manifest of a graph: its services, the policy and the digest of each, who asks whom, its owners and their quorum.

One version follows another: each names the digest of the one before. A graph is known by the digest of its first
version, so nobody makes another graph of the same id. Knows no network and no file.
"""

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

import msgspec
import rfc8785

from confide.attest.configuration import GraphJoined
from confide.attest.policy import AnyPolicy, Policy
from confide.attest.policy_toml import MAX_POLICY_BYTES, any_policy_from_toml, policy_digest, to_toml
from confide.attest.policy_words import names_code
from confide.attest.requirements import Graph as OfGraph
from confide.attest.requirements import Model
from confide.channel.introduction import ServiceName
from confide.errors import InvalidGraph, InvalidPolicy
from confide.packages.manifest import Digest, Record
from confide.packages.owner import OwnerPublicKey
from confide.shallow_toml import require_shallow

MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_SERVICES: Final = 64
MAX_OWNERS: Final = 32
MAX_WAYS: Final = 256
"""From the entry to any service, counted by edges: whoever gathers evidence along them asks no more often."""
_LABEL: Final = b"confide graph 1\0"
_MAX_MARKS: Final = 4096

Title = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.\-]{1,64}\Z")]
_PolicyText = Annotated[str, msgspec.Meta(max_length=MAX_POLICY_BYTES)]
_Keys = Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_OWNERS)]
_Quorum = Annotated[int, msgspec.Meta(ge=0, le=MAX_OWNERS)]
_Names = Annotated[tuple[ServiceName, ...], msgspec.Meta(max_length=MAX_SERVICES)]


class Service(Record, frozen=True):
    """One service. policy: TOML, what its evidence has to show. digest: of its model, corpus or rules, as its statement
    has it; empty for a coordinator, which has none. asks: the services that it may ask.
    """

    policy: _PolicyText
    digest: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    asks: _Names = ()


class Manifest(Record, frozen=True):
    """One version of a graph.

    version: counts from 1. previous: the digest of the version before, empty for the first. salt: random, so that no
    digest tells who guesses right. entry: the service that users ask. owners, quorum: so many of these keys must sign
    the next version; recovery, recovery_quorum: or so many of these. coordinator: the service that vouches for all
    others where their owners show no structure, empty where everybody may see it. promise: TOML, the policy that it
    holds every service against that sees a user's data.
    """

    name: Title
    version: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
    previous: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    salt: Digest
    entry: ServiceName
    services: Annotated[dict[ServiceName, Service], msgspec.Meta(min_length=1, max_length=MAX_SERVICES)]
    owners: _Keys
    quorum: _Quorum
    recovery: _Keys = ()
    recovery_quorum: _Quorum = 0
    coordinator: Annotated[str, msgspec.Meta(max_length=63)] = ""
    promise: _PolicyText = ""

    def canonical(self) -> bytes:
        """As RFC 8785 writes it."""
        return rfc8785.dumps(msgspec.to_builtins(self))

    @property
    def digest(self) -> str:
        """SHA-256 over a label and the canonical bytes, in hexadecimal: what owners sign."""
        return hashlib.sha256(_LABEL + self.canonical()).hexdigest()


class Version:
    """A manifest that makes sense: what the parts of a graph are held against. Who signed it, `History` says."""

    def __init__(self, manifest: Manifest) -> None:
        """InvalidGraph, with the reason, for one that contradicts itself or leaves open which code may run."""
        self.manifest = manifest
        self.digest = manifest.digest
        self._policies = {name: _policy(one.policy, f"of {name}") for name, one in manifest.services.items()}
        self.promise = _policy(manifest.promise, "that is promised") if manifest.promise else None
        _require_quorum(manifest.owners, manifest.quorum, "owners")
        if manifest.recovery or manifest.recovery_quorum:
            _require_quorum(manifest.recovery, manifest.recovery_quorum, "recovery keys")
        self._require_services()
        self._require_edges()
        self._require_one_kind()

    @cached_property
    def simulated(self) -> bool:
        """Whether its policies are for simulated hardware, which protects nothing."""
        return not isinstance(next(iter(self._policies.values())), Policy)

    @property
    def data_services(self) -> tuple[str, ...]:
        """Those that may see what a user sends: all but the coordinator."""
        return tuple(name for name in self.manifest.services if name != self.manifest.coordinator)

    def joined(self, graph: str, service: str) -> GraphJoined:
        """What the statement of a service of this version says. graph: its id. InvalidGraph where there is no such."""
        self._service(service)
        promise = policy_digest(self.promise) if self.promise and service == self.manifest.coordinator else ""
        return GraphJoined(graph, self.manifest.version, self.digest, service, promise)

    def policy(self, graph: str, service: str) -> AnyPolicy:
        """What its evidence has to show: the owners' policy, its digest, and that it is this service of it."""
        one, policy = self._service(service), self._policies[service]
        of_graph = OfGraph(graph, service, self.manifest.version, self.digest)
        named = any(isinstance(asked, Model) and asked.sha256 == one.digest for asked in policy.requirements)
        model = () if named or not one.digest else (Model(one.digest),)
        return type(policy)((*policy.requirements, *model, of_graph), policy.version, policy.exceptions)

    def asks(self, service: str) -> tuple[str, ...]:
        """Whom it may ask. InvalidGraph where there is no such service."""
        return self._service(service).asks

    def callers(self, service: str) -> tuple[str, ...]:
        """Who may ask it."""
        self._service(service)
        return tuple(name for name, one in self.manifest.services.items() if service in one.asks)

    def described(self) -> dict[str, Any]:
        """For people and programs: everything but the texts of policies, whose digests stand in their place."""
        said: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(self.manifest, services={}, promise=""))
        services = {
            name: {"digest": one.digest, "asks": list(one.asks), "policy": policy_digest(self._policies[name])}
            for name, one in self.manifest.services.items()
        }
        promise = {"promise": policy_digest(self.promise)} if self.promise else {}
        return said | {"digest": self.digest, "simulated": self.simulated, "services": services} | promise

    def _service(self, name: str) -> Service:
        found = self.manifest.services.get(name)
        if found is None:
            raise InvalidGraph(f"The graph has no service {name!r}; it has {', '.join(self.manifest.services)}.")
        return found

    def _require_services(self) -> None:
        manifest = self.manifest
        if (manifest.version == 1 and manifest.previous) or (manifest.version > 1 and not manifest.previous):
            raise InvalidGraph(
                "The first version follows none, and every other one names the one before; make it again."
            )
        self._service(manifest.entry)
        if bool(manifest.coordinator) != bool(manifest.promise):
            raise InvalidGraph("A coordinator and what it promises belong together; give both, or neither.")
        clerk = manifest.coordinator
        if clerk and (clerk == manifest.entry or self._service(clerk).asks):
            raise InvalidGraph("A coordinator sees no user's data: it is not the entry, and asks nobody.")
        for name in self.data_services:
            if not manifest.services[name].digest:
                raise InvalidGraph(f"{name} has no digest of its model, corpus or rules; give it.")

    def _require_edges(self) -> None:
        """Every service is asked by somebody, none by way of itself, and there are not too many ways."""
        for name, one in self.manifest.services.items():
            if len(set(one.asks)) != len(one.asks) or name in one.asks or self.manifest.coordinator in one.asks:
                raise InvalidGraph(f"{name} asks itself, the coordinator, or one service twice; correct its asks.")
            for asked in one.asks:
                self._service(asked)
        ways = dict.fromkeys(self.manifest.services, 0)
        waiting = {name: len(self.callers(name)) for name in self.manifest.services}
        ready = [name for name in self.data_services if not waiting[name]]
        if ready != [self.manifest.entry]:
            raise InvalidGraph(
                f"Users ask {self.manifest.entry}, so nobody else asks it, and somebody asks every other service; "
                "correct the edges, and make no circle."
            )
        ways[self.manifest.entry] = 1
        done = 0
        while ready:
            name = ready.pop()
            done += 1
            for asked in self.asks(name):
                ways[asked] += ways[name]
                waiting[asked] -= 1
                if not waiting[asked]:
                    ready.append(asked)
        if done != len(self.data_services):
            raise InvalidGraph("The edges go in a circle, so that answers could wait for each other; break it.")
        if sum(ways.values()) > MAX_WAYS:
            raise InvalidGraph(f"There are more than {MAX_WAYS} ways through the graph; draw fewer edges.")

    def _require_one_kind(self) -> None:
        policies = {**self._policies, **({"what is promised": self.promise} if self.promise else {})}
        if len({type(policy) for policy in policies.values()}) != 1:
            raise InvalidGraph("Some policies are for simulated hardware and some for real one; decide for one kind.")
        if self.simulated:
            return
        for name, policy in self._policies.items():
            if not names_code(policy):
                raise InvalidGraph(
                    f"The policy of {name} names no measured code, so any program could be that service; name "
                    "measurements (mrtd, measurement, mrenclave)."
                )


class Draft(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """What owners write, as TOML: a manifest whose policies are files beside it, and without what is computed."""

    format: Literal[1] = msgspec.field(name="confide-graph")
    name: Title
    entry: ServiceName
    services: Annotated[dict[ServiceName, Service], msgspec.Meta(min_length=1, max_length=MAX_SERVICES)]
    owners: _Keys
    quorum: _Quorum
    recovery: _Keys = ()
    recovery_quorum: _Quorum = 0
    coordinator: Annotated[str, msgspec.Meta(max_length=63)] = ""
    promise: Annotated[str, msgspec.Meta(max_length=1024)] = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """InvalidGraph for anything else."""
        if len(text) > MAX_MANIFEST_BYTES:
            raise InvalidGraph(f"A draft has at most {MAX_MANIFEST_BYTES >> 10} KiB; make it shorter.")
        require_shallow(text, "The draft", InvalidGraph, _MAX_MARKS)
        try:
            return msgspec.toml.decode(text, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidGraph(f"The draft cannot be understood: {str(error)[:300].rstrip('.')}; correct it.") from None

    def files(self) -> Iterator[str]:
        """The names of its files of policies."""
        yield from (one.policy for one in self.services.values())
        if self.promise:
            yield self.promise

    def version(self, policies: Mapping[str, str], before: Version | None = None) -> Version:
        """The version that it describes, as the first or as the one after. policies: the texts of its files."""

        def written(name: str) -> str:
            return to_toml(_policy(policies[name], name))

        services = {
            name: msgspec.structs.replace(one, policy=written(one.policy)) for name, one in self.services.items()
        }
        manifest = Manifest(
            self.name,
            before.manifest.version + 1 if before else 1,
            before.digest if before else "",
            secrets.token_hex(32),
            self.entry,
            services,
            self.owners,
            self.quorum,
            self.recovery,
            self.recovery_quorum,
            self.coordinator,
            written(self.promise) if self.promise else "",
        )
        if len(manifest.canonical()) > MAX_MANIFEST_BYTES:
            raise InvalidGraph(f"A manifest has at most {MAX_MANIFEST_BYTES >> 10} KiB; shorten its policies.")
        return Version(manifest)


def _require_quorum(keys: tuple[str, ...], quorum: int, what: str) -> None:
    if len(set(keys)) != len(keys) or not 1 <= quorum <= len(keys):
        raise InvalidGraph(
            f"{quorum} of {len(keys)} {what} is no quorum, or one of them stands there twice; correct it."
        )
    for key in keys:
        OwnerPublicKey.parse(key)


def _policy(text: str, which: str) -> AnyPolicy:
    try:
        return any_policy_from_toml(text)
    except InvalidPolicy as error:
        raise InvalidGraph(f"The policy {which} is none: {error}") from None
