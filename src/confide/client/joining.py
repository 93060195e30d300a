"""How a workload becomes a service of a graph: whom it lets in, whom it asks, and what its statement says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from confide.attest.collateral import Collateral
from confide.attest.collateral_lookup import CollateralSource
from confide.attest.statement import DIGEST_BYTES
from confide.client.edge import Edge, callers
from confide.client.relying_party import RelyingParty
from confide.enclave.api.graph import Shown
from confide.enclave.api.neighbours import Neighbours
from confide.enclave.connector import Connector
from confide.enclave.tee import Tee
from confide.enclave.workload import Workload
from confide.errors import InvalidGraph
from confide.graph.history import History


@dataclass(frozen=True)
class Joined:
    """neighbours: who may ask it; None where users do. edges: to those that it asks, by name. shown: to everybody."""

    neighbours: Neighbours | None
    edges: Mapping[str, Edge]
    shown: Shown | None


def party_of(history: History, service: str, root: bytes | None) -> RelyingParty:
    """Who judges a service of the newest version, and asks no vendor: whoever judges may have no way out.

    root: the simulated one in DER; None for the vendors'. InvalidGraph where the graph is for the other kind.
    """
    version = history.current
    if version.simulated != (root is not None):
        kinds = ("simulated hardware", "real hardware")
        ours, theirs = kinds if version.simulated else kinds[::-1]
        raise InvalidGraph(f"The graph is for {ours}, and this is for {theirs}; use a graph of the right kind.")
    return RelyingParty.under(root, version.policy(history.id, service), offline=True)


def stapled(tee: Tee, source: CollateralSource) -> Callable[[], Collateral]:
    """What a service of a graph sends along with its evidence: neighbours without ways out can ask no vendor.

    Found once, while this process can still ask: it serves until the first of it expires, and is then restarted.
    CollateralUnavailable, WrongCollateral where there is none.
    """
    if tee.simulated:  # it is its own vendor
        return tee.collateral
    found = source.find(tee.reader.read(bytes(DIGEST_BYTES)), tee.collateral())
    return lambda: found


def join(
    history: History,
    service: str,
    workload: Workload,
    *,
    root: bytes | None,
    urls: Mapping[str, str],
    connectors: Mapping[str, Connector] = MappingProxyType({}),
    ca: Path | str | None = None,
    insecure_no_tls: bool = False,
) -> Joined:
    """Have the workload's statement say that it is this service, before it asks for a key, and find its neighbours.

    urls: where each service is that it asks, by name. connectors: to them, where this process has no other way out.
    root: as for `party_of`; ca, insecure_no_tls: as for `Edge`. InvalidGraph, also where an address is missing.
    """
    version = history.current
    asks, joined = version.asks(service), version.joined(history.id, service)
    if set(asks) != set(urls):
        raise InvalidGraph(
            f"{service} asks {' and '.join(asks) or 'nobody'} in this graph; give the address of each, and no other."
        )
    workload.configuration = msgspec.structs.replace(workload.configuration, graph=joined)
    edges = {
        name: Edge(
            urls[name],
            workload,
            party_of(history, name, root),
            name=service,
            ca=ca,
            connector=connectors.get(name),
            insecure_no_tls=insecure_no_tls,
        )
        for name in asks
    }
    is_entry = service == version.manifest.entry
    asking = {name: party_of(history, name, root) for name in version.callers(service)}
    neighbours = None if is_entry else Neighbours(workload.key, callers(asking))
    hidden = bool(version.manifest.coordinator)
    shown = None if hidden else Shown(service, history.content, {name: edge.gathered for name, edge in edges.items()})
    return Joined(neighbours, edges, shown)
