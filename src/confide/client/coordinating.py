"""A coordinator's work: every service of a graph is appraised under its owners' policy and under what is promised."""

import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from ssl import SSLContext
from types import MappingProxyType
from typing import Final

import httpx
import msgspec

from confide.attest.policy_toml import to_toml
from confide.client.attested import NONCE_BYTES, fetch_attestation
from confide.client.hop import TIMEOUT, server_address, tls_context
from confide.client.joining import party_of
from confide.client.relying_party import RelyingParty, Verified
from confide.enclave.connector import Connector
from confide.enclave.connector_http import through
from confide.enclave.workload import Workload
from confide.errors import PASSING, ConfideError, EngineUnavailable, InvalidGraph, NeighbourRefused
from confide.graph.history import History
from confide.graph.verdict import SignedVerdict, Verdict, VerdictKey

_FORMAT: Final = 1
_log = logging.getLogger(__name__)


class Coordinator:
    """Verifies all services of a graph's newest version on demand. Safe for several threads.

    promise: what each has to satisfy besides its owners' policy.
    """

    def __init__(
        self,
        history: History,
        workload: Workload,
        *,
        root: bytes | None,
        urls: Mapping[str, str],
        connectors: Mapping[str, Connector] = MappingProxyType({}),
        ca: Path | str | None = None,
        insecure_no_tls: bool = False,
    ) -> None:
        """The workload's statement says from now on which graph it coordinates, and names the key that signs.

        urls: where each service is that sees data, by name. Everything else: as for `join`. InvalidGraph, also where an
        address is missing or the graph has no coordinator.
        """
        version = history.current
        if version.promise is None:
            raise InvalidGraph("The graph has no coordinator, and shows itself to everybody; serve its services alone.")
        if set(version.data_services) != set(urls):
            raise InvalidGraph(
                f"A coordinator verifies {', '.join(version.data_services)}; give the address of each, and no other."
            )
        joined = version.joined(history.id, version.manifest.coordinator)
        workload.configuration = msgspec.structs.replace(workload.configuration, graph=joined)
        self._key = workload.verdict_key = VerdictKey()
        self.promise = version.promise
        self._version, self._joined = version, joined
        self._services: dict[str, tuple[str, httpx.Client, RelyingParty]] = {}
        for name, given in urls.items():
            url = server_address(given, insecure_no_tls=insecure_no_tls)
            tls, connector = tls_context(url, ca), connectors.get(name)
            context = tls if isinstance(tls, SSLContext) else None
            transport = through(connector, context) if connector else None
            http = httpx.Client(verify=tls, timeout=TIMEOUT, trust_env=False, transport=transport)
            self._services[name] = url, http, party_of(history, name, root)

    def vouch(self, nonce: str) -> SignedVerdict:
        """That every service meets its owners' policy and the promise, now. nonce: 32 bytes in hexadecimal.

        NeighbourRefused where one does not, EngineUnavailable where one is away: which of them, the log says alone.
        """
        checked = datetime.now(UTC).replace(microsecond=0)
        verified = {name: self._verified(name) for name in self._services}
        entry = verified[self._version.manifest.entry].key.id.hex()
        promise, joined = to_toml(self.promise), self._joined
        verdict = Verdict(_FORMAT, nonce, joined.graph, joined.version, joined.digest, promise, entry, checked)
        return self._key.sign(verdict)

    def _verified(self, name: str) -> Verified:
        url, http, party = self._services[name]
        nonce = secrets.token_hex(NONCE_BYTES)
        try:
            attested, now = fetch_attestation(http, url, nonce), datetime.now(UTC)
            replace(party, policy=self.promise).appraise(attested, nonce, now, url)
            return party.appraise(attested, nonce, now, url)
        except PASSING as error:
            _log.warning("%s is away: %s", name, error)
            raise EngineUnavailable("A service of this graph is away; try again in a moment.") from None
        except ConfideError as error:
            _log.warning("%s is refused: %s", name, error)
            raise NeighbourRefused(
                "A service of this graph is not what it has to be, and nobody vouches for it; ask the operator."
            ) from None

    def close(self) -> None:
        """Close its connections."""
        for _, http, _ in self._services.values():
            http.close()
