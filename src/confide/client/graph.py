"""Verifying a graph of services as a whole: each under its owners' policy, by evidence for one nonce, and a verdict.

The user knows a graph by its id. Its log says what the newest version asks of each service and that its owners decided
so; each service's statement says that it is that service, and its measured code then tells nothing to any that is not a
neighbour. Versions that were met are remembered, so that an older one is refused.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import msgspec

from confide.attest.configuration import GraphJoined
from confide.attest.policy import AnyPolicy
from confide.attest.policy_toml import any_policy_from_toml, policy_digest
from confide.attest.policy_words import asked
from confide.attest.wire import Attested
from confide.client.attested import NONCE_BYTES, appraised, verify_workload
from confide.client.hop import TIMEOUT, fetch, read_bounded, server_address
from confide.client.met import Met, require_newest
from confide.client.relying_party import RelyingParty, Verified
from confide.client.standing import Standing
from confide.client.transport import EncryptedTransport
from confide.errors import AttestationError, AttestationRefused, GraphRefused, InvalidGraph, NeighbourRefused, WrongMode
from confide.graph.evidence import EVIDENCE_PATH, LOG_PATH, MAX_GATHERED_BYTES, Gathered
from confide.graph.history import MAX_LOG_BYTES, History
from confide.graph.verdict import MAX_VERDICT_BYTES, PURPOSE, SignedVerdict
from confide.graph.verdict import PATH as VERDICT_PATH
from confide.trust.enclave import ENCRYPTED, enclave_trust
from confide.trust.graph import coordinated_trust, graph_trust
from confide.trust.statement import TrustStatement

_INSIDE: Final = "http://coordinator.invalid"
"""Stands for the coordinator above the channel; the name is never looked up."""
_ID: Final = re.compile(r"[0-9a-f]{64}")
_WHAT: Final = "graphs"
FILE_NAME: Final = f"{_WHAT}.json"


@dataclass(frozen=True)
class ServiceVerdict:
    """Of one service: what was verified, or what is wrong with it."""

    verified: Verified | None
    error: AttestationError | None


@dataclass(frozen=True)
class GraphVerdict:
    """Of a whole graph: one for each service, by name. history: its log."""

    history: History
    services: Mapping[str, ServiceVerdict]

    @property
    def trusted(self) -> bool:
        """Whether every service is what it has to be."""
        return not self.refused

    @property
    def refused(self) -> Mapping[str, AttestationError]:
        """What is wrong, by the names of the services that are not."""
        return {name: one.error for name, one in self.services.items() if one.error is not None}

    @property
    def simulated(self) -> bool:
        """Whether its policies are for simulated hardware: then it proves nothing."""
        return self.history.current.simulated

    @property
    def entry(self) -> Verified:
        """What a user's questions are encrypted to. AttestationRefused, naming services, unless all are trusted."""
        verified = self.services[self.history.current.manifest.entry].verified
        if self.refused or verified is None:
            reasons = " ".join(f"{name}: {error}" for name, error in self.refused.items())
            codes = [code for error in self.refused.values() for code in _codes(error)]
            raise AttestationRefused(
                f"The graph is not trusted, and nothing is sent into it, because of {' and '.join(self.refused)}. "
                f"{reasons}",
                tuple(dict.fromkeys(codes)),
            )
        return verified


def _codes(error: AttestationError) -> tuple[str, ...]:
    return error.checks if isinstance(error, AttestationRefused) else (error.code,)


@dataclass(frozen=True)
class GraphParty:
    """Who relies on a graph. graph: its id. party: with a policy of the user's, which each service has to meet too."""

    graph: str
    party: RelyingParty

    def verify(self, http: httpx.Client, url: str) -> GraphVerdict:
        """Ask the entry for the log and for evidence of all services, for a fresh nonce, and appraise each of them now.

        A service that gave none, or is not what it has to be, is refused by name. Raises GraphRefused where the log is
        another graph's, an older one's than was met or not as its owners signed it, and InvalidGraph for no log.
        """
        history = History.read(fetch(http, url + LOG_PATH, {}, MAX_LOG_BYTES), self.graph)
        if history.current.manifest.coordinator:
            raise GraphRefused("The owners of this graph do not show it; give the address of its coordinator as well.")
        nonce = secrets.token_hex(NONCE_BYTES)
        gathered = Gathered.decode(fetch(http, url + EVIDENCE_PATH, {"nonce": nonce}, MAX_GATHERED_BYTES))
        return self.appraise(history, gathered, nonce, url)

    def appraise(self, history: History, gathered: Gathered, nonce: str, url: str = "") -> GraphVerdict:
        """The verdict on evidence for this nonce. GraphRefused where a newer version was met before."""
        services = {
            name: self._judged(history, name, gathered.services.get(name), nonce, url)
            for name in history.current.data_services
        }
        verdict = GraphVerdict(history, services)
        if verdict.trusted:
            require_met(
                history.current.joined(history.id, history.current.manifest.entry), simulated=history.current.simulated
            )
        return verdict

    def _judged(self, history: History, name: str, attested: Attested | None, nonce: str, url: str) -> ServiceVerdict:
        try:
            if attested is None:
                raise AttestationRefused(
                    "No evidence of it came; see that it runs, and that whoever asks it reaches it.", ("evidence",)
                )
            owners = replace(self.party, policy=self._owners_policy(history, name))
            self.party.appraise(attested, nonce, datetime.now(UTC), url)
            return ServiceVerdict(appraised(owners, url, attested, nonce), None)
        except AttestationError as error:
            return ServiceVerdict(None, error)

    def _owners_policy(self, history: History, name: str) -> AnyPolicy:
        policy = history.current.policy(history.id, name)
        if type(policy) is not type(self.party.policy):
            raise InvalidGraph("The graph is for the other kind of hardware, simulated or real, than you trust.")
        return policy


@dataclass(frozen=True)
class Coordinated:
    """A graph that is not shown, as its coordinator vouches for it. coordinator, entry: what was verified of the two.

    promise: what the coordinator held every service against.
    """

    coordinator: Verified
    entry: Verified
    promise: AnyPolicy
    verdict: SignedVerdict


@dataclass(frozen=True)
class CoordinatedParty:
    """Who relies on a graph that is not shown. graph: its id. party: with a policy for the coordinator.

    url: where the coordinator is. promise: what it has to promise; None takes what it does.
    """

    graph: str
    party: RelyingParty
    url: str
    promise: AnyPolicy | None = None

    def verify(self, http: httpx.Client, url: str) -> Coordinated:
        """Verify the coordinator, have it vouch for a fresh nonce, and verify that whoever is here is the entry.

        AttestationRefused; GraphRefused where the coordinator is another graph's, promises something else, or vouches
        for another entry; NeighbourRefused where a service behind it is refused.
        """
        clerk = verify_workload(http, self.url, self.party)
        joined = _joined(clerk)
        if joined is None or joined.graph != self.graph or not joined.promise:
            raise GraphRefused("What was verified coordinates another graph, or none; check its address and the id.")
        nonce = secrets.token_hex(NONCE_BYTES)
        signed = self._vouched(http, clerk, nonce)
        signed.require_signed(clerk.statement.channel_keys.get(PURPOSE, ""))
        verdict = signed.verdict
        said = (verdict.nonce, verdict.graph, verdict.version, verdict.digest)
        if said != (nonce, joined.graph, joined.version, joined.digest):
            raise GraphRefused("The coordinator's verdict is not for this question, or another graph's; ask it again.")
        promise = any_policy_from_toml(verdict.promise)
        if policy_digest(promise) != joined.promise:
            raise GraphRefused("The coordinator promises something else than its evidence says; do not believe it.")
        if self.promise is not None and policy_digest(self.promise) != joined.promise:
            raise GraphRefused("The coordinator promises another policy than yours; see what it promises, and decide.")
        if type(promise) is not type(self.party.policy):
            raise GraphRefused("What is promised is for the other kind of hardware, simulated or real, than you trust.")
        entry = verify_workload(http, url, replace(self.party, policy=promise))
        theirs = _joined(entry)
        if entry.key.id.hex() != verdict.entry or theirs is None or theirs.digest != joined.digest:
            raise GraphRefused(
                "The coordinator vouches for a graph whose entry is another service than the one at this address; "
                "check both addresses, and try again if it was restarted a moment ago."
            )
        require_met(joined, simulated=clerk.result.simulated)
        return Coordinated(clerk, entry, promise, signed)

    def _vouched(self, http: httpx.Client, clerk: Verified, nonce: str) -> SignedVerdict:
        transport = EncryptedTransport(http, Standing(lambda _: clerk, [self.url]))
        inside = httpx.Client(transport=transport, timeout=TIMEOUT)  # the outer client is the caller's to close
        with inside.stream("GET", _INSIDE + VERDICT_PATH, params={"nonce": nonce}) as response:
            content = read_bounded(response, MAX_VERDICT_BYTES)
        if response.status_code != httpx.codes.OK:
            raise NeighbourRefused(
                f"The coordinator does not vouch for the graph (status {response.status_code}): a service is away, or "
                "not what it has to be. Try again, or ask its operator, whose log says which."
            )
        return SignedVerdict.decode(content)


def relying_on(
    graph: str,
    party: RelyingParty,
    coordinator: str = "",
    promise: AnyPolicy | Path | str | None = None,
    *,
    insecure_no_tls: bool = False,
) -> GraphParty | CoordinatedParty:
    """Who relies on the graph of this id: as it is shown, or as its coordinator vouches for it.

    coordinator, promise: see EnclaveSession. WrongMode for an id that is none, and for a promise without coordinator.
    """
    if not _ID.fullmatch(graph):
        raise WrongMode("A graph's id is 64 hexadecimal digits; give the one that its owners published.")
    if coordinator:
        url = server_address(coordinator, insecure_no_tls=insecure_no_tls)
        return CoordinatedParty(graph, party, url, None if promise is None else party.another(promise))
    if promise is not None:
        raise WrongMode("A promise is a coordinator's; give its address as well, or leave the promise out.")
    return GraphParty(graph, party)


def _joined(verified: Verified) -> GraphJoined | None:
    configuration = verified.statement.configuration
    graph = configuration.graph if configuration is not None else None
    return graph if isinstance(graph, GraphJoined) else None


def trust_of(verdict: GraphVerdict | Coordinated) -> TrustStatement:
    """Who can see what of a graph that is trusted, under which assumption."""
    if isinstance(verdict, Coordinated):
        clerk, entry = (_trust(one) for one in (verdict.coordinator, verdict.entry))
        return coordinated_trust(clerk, entry, tuple(asked(verdict.promise)))
    manifest = verdict.history.current.manifest
    each = {name: _trust(one.verified) for name, one in verdict.services.items() if one.verified is not None}
    return graph_trust(each, f"{manifest.quorum} of {len(manifest.owners)} owners")


def _trust(verified: Verified) -> TrustStatement:
    return enclave_trust(verified.result, ENCRYPTED, verified.statement.configuration)


def require_met(joined: GraphJoined, *, simulated: bool) -> None:
    """Remember a version of verified evidence. GraphRefused where a newer one, or another of its number, was met."""
    met = msgspec.structs.replace(joined, service="any", promise="")

    def older(before: GraphJoined) -> GraphRefused:
        if before.version > joined.version:
            return GraphRefused(
                f"The graph {joined.graph[:16]}... is at version {joined.version}, and you have met version "
                f"{before.version}: it was rolled back. Ask its operator for the newest, or its owners which that is."
            )
        return GraphRefused(
            f"Version {joined.version} of the graph {joined.graph[:16]}... is not the one that you met before: its "
            "owners signed two. Ask them which of them holds."
        )

    require_newest(Met[GraphJoined], _WHAT, joined.graph, met, lambda one: one.version, older, simulated=simulated)
