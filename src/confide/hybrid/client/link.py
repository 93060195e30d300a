"""A connection that outlives its breaks: made again after growing waits, and the exchange that broke begun anew.

Only what may be repeated goes through here: requests whose bytes hang on their pack, so that a second copy of one is
the same request again.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from confide.errors import ConnectionLost, ServerBusy, ServerSilent
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.closing import Closing

PATIENCE_SECONDS = 60.0
FIRST_WAIT = 0.05
LONGEST_WAIT = 2.0

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class Link(Closing):
    """A greeted connection whenever one is needed. One thread at a time.

    connect: makes one, and refuses a server that is not the one of before. patience: for how many seconds, in all, one
    exchange may wait for a server that is away or silent. Time in which a connection worked until it broke is not
    counted, because an offline exchange can take minutes.
    """

    def __init__(self, connect: Callable[[], LayerConnection], patience: float = PATIENCE_SECONDS) -> None:
        self._connect = connect
        self._patience = patience
        self._connection: LayerConnection | None = None

    def run(self, exchange: Callable[[LayerConnection], Result]) -> Result:
        """What `exchange` returns. While it loses its connection it is called again with a new one."""
        left = self._patience
        broken = False
        for longest_wait in _longest_waits():
            started = time.monotonic()
            try:
                result = self._attempt(exchange)
                break
            except (ConnectionLost, ServerBusy) as error:
                if isinstance(error, ServerSilent):
                    left -= time.monotonic() - started
                if left <= 0:
                    raise
                if not broken:
                    _log.warning(
                        "The layer server is away (%s); trying again for up to %.0f seconds.", error.code, left
                    )
                broken = True
            wait = min(left, random.uniform(0, longest_wait))  # noqa: S311 - so that clients do not return in step
            left -= wait
            time.sleep(wait)
        if broken:
            _log.warning("The layer server answers again.")
        return result

    def _attempt(self, exchange: Callable[[LayerConnection], Result]) -> Result:
        if self._connection is None:
            self._connection = self._connect()
        try:
            return exchange(self._connection)
        except BaseException:
            # The answer to what was sent may still be on its way, and no later exchange may take it for its own.
            self.close()
            raise

    def close(self) -> None:
        """Close the connection if there is one; another exchange would make a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _longest_waits() -> Iterator[float]:
    wait = FIRST_WAIT
    while True:
        yield wait
        wait = min(2 * wait, LONGEST_WAIT)
