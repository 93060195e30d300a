"""Verifying a graph of services as a whole: each under its owners' policy, by evidence for one nonce, and a verdict.

The user knows a graph by its id. Its log says what the newest version asks of each service and that its owners decided
so; each service's statement says that it is that service, and its measured code then tells nothing to any that is not a
neighbour. Versions that were met are remembered, so that an older one is refused.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import httpx
import msgspec

from confide.attest.configuration import GraphJoined
from confide.attest.policy import AnyPolicy
from confide.attest.wire import Attested
from confide.client.attested import NONCE_BYTES, appraised
from confide.client.hop import MAX_REFUSAL_BYTES, read_bounded, refusal, sending
from confide.client.met import Met, require_newest
from confide.client.relying_party import RelyingParty, Verified
from confide.errors import AttestationError, AttestationRefused, GraphRefused, InvalidGraph
from confide.graph.evidence import EVIDENCE_PATH, LOG_PATH, MAX_GATHERED_BYTES, Gathered
from confide.graph.history import MAX_LOG_BYTES, History

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
    """Who relies on a graph. graph: its id. party: the user's own policy, which every service has to satisfy besides."""

    graph: str
    party: RelyingParty

    def verify(self, http: httpx.Client, url: str) -> GraphVerdict:
        """Ask the entry for the log and for evidence of all services, for a fresh nonce, and appraise each of them now.

        A service that gave none, or is not what it has to be, is refused by name. Raises GraphRefused where the log is
        another graph's, an older one's than was met or not as its owners signed it, and InvalidGraph for no log.
        """
        history = History.read(_fetched(http, url + LOG_PATH, {}, MAX_LOG_BYTES), self.graph)
        if history.current.manifest.coordinator:
            raise GraphRefused("The owners of this graph do not show it; give the address of its coordinator as well.")
        nonce = secrets.token_hex(NONCE_BYTES)
        gathered = Gathered.decode(_fetched(http, url + EVIDENCE_PATH, {"nonce": nonce}, MAX_GATHERED_BYTES))
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


def _fetched(http: httpx.Client, url: str, params: Mapping[str, str], most: int) -> bytes:
    request = http.build_request("GET", url, params=dict(params))
    with sending():
        response = http.send(request, stream=True, follow_redirects=False)
    try:
        if response.status_code != httpx.codes.OK:
            body = read_bounded(response, MAX_REFUSAL_BYTES)
            raise refusal(response.status_code, body, response.headers.get("retry-after"))
        return read_bounded(response, most)
    finally:
        response.close()
