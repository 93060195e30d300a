"""What a service shows of its graph to everybody: the log, and evidence of itself and of all behind it for one nonce.

So a user who reaches the entry alone can verify every service. What neighbours say is handed on and not looked at: it
is for whoever chose the nonce.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from confide.attest.wire import Attested
from confide.errors import ConfideError
from confide.graph.evidence import Gathered

_SECONDS: Final = 60.0
"""For neighbours to gather theirs; clients wait for two minutes."""
_log = logging.getLogger(__name__)

Ask = Callable[[str], Awaitable[bytes]]
"""What a neighbour gathers for a nonce in hexadecimal. A ConfideError where it does not."""


@dataclass(frozen=True)
class Shown:
    """name: of this service. log: of the graph. neighbours: those that it asks, by name."""

    name: str
    log: bytes
    neighbours: Mapping[str, Ask]

    async def gather(self, nonce: str, own: Attested) -> bytes:
        """With its own evidence, and without that of services which gave none."""
        theirs = await asyncio.gather(*(self._ask(name, ask, nonce) for name, ask in self.neighbours.items()))
        services = {name: attested for one in theirs for name, attested in one.services.items()}
        return Gathered({**services, self.name: own}).encode()

    async def _ask(self, name: str, ask: Ask, nonce: str) -> Gathered:
        try:
            async with asyncio.timeout(_SECONDS):
                return Gathered.decode(await ask(nonce))
        except (ConfideError, TimeoutError) as error:
            _log.warning("%s gave no evidence to hand on: %s", name, error)
            return Gathered({})
