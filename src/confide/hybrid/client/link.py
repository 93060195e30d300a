"""A connection that outlives its breaks: made again after growing waits, and the exchange that broke begun anew.

Only what may be repeated goes through here: requests whose bytes are made once, so that a second copy of one is the
same request again.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from confide.errors import ConfideError, ConnectionLost, ModelClosed, ServerBusy, ServerSilent
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import PATIENCE_SECONDS
from confide.hybrid.closing import Closing

FIRST_WAIT: Final = 0.05
LONGEST_WAIT: Final = 2.0

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class Link(Closing):
    """A greeted connection whenever one is needed. One thread at a time; `close` may come from any.

    connect: makes one. patience: for how many seconds, in all, one exchange may wait for a server that is away or
    silent. on_break: called whenever a connection is given up. Once it is closed, every exchange raises ModelClosed.
    """

    def __init__(
        self,
        connect: Callable[[], LayerConnection],
        patience: float = PATIENCE_SECONDS,
        on_break: Callable[[], object] = lambda: None,
    ) -> None:
        self._connect = connect
        self._patience = patience
        self._on_break = on_break
        self._connection: LayerConnection | None = None
        self._closed = threading.Event()
        self.away: ConfideError | None = None
        """Why the last exchange had to wait for the server, until one has succeeded."""

    def open(self) -> LayerConnection:
        """The connection that there is, made now if there is none; it is not tried again. For the first contact."""
        self.require_open()
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def require_server(self) -> None:
        """The server is there, and is greeted again where it has hung up; else what it says, or ConnectionLost."""
        if (connection := self.connected) is not None:
            try:
                connection.ping()
            except ConfideError:
                self.drop()
        self.open()
        self.away = None

    @property
    def connected(self) -> LayerConnection | None:
        """The connection, if there is one."""
        return None if self._closed.is_set() else self._connection

    def run(self, exchange: Callable[[LayerConnection], Result]) -> Result:
        """What `exchange` returns. While it loses its connection it is called again with a new one."""
        left = self._patience
        broken = False
        for longest_wait in _longest_waits():
            self.require_open()
            started = time.monotonic()
            try:
                result = self._attempt(exchange)
                self.away = None
                break
            except (ConnectionLost, ServerBusy) as error:
                self.away = error
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
            self._closed.wait(wait)
        if broken:
            _log.warning("The layer server answers again.")
        return result

    def _attempt(self, exchange: Callable[[LayerConnection], Result]) -> Result:
        try:
            return exchange(self.open())
        except BaseException:
            # The answer to what was sent may still be on its way, and no later exchange may take it for its own.
            self.drop()
            raise

    def drop(self) -> None:
        """Give the connection up, if there is one; the next exchange makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._on_break()

    def require_open(self) -> None:
        """ModelClosed once this is closed."""
        if self._closed.is_set():
            raise ModelClosed("This model is closed, and nothing is sent any more; open it again with from_shell.")

    def shut(self) -> None:
        """Let no further exchange begin; one that is under way ends."""
        self._closed.set()

    def close(self) -> None:
        """Close the connection for good."""
        self.shut()
        self.drop()


def _longest_waits() -> Iterator[float]:
    wait = FIRST_WAIT
    while True:
        yield wait
        wait = min(2 * wait, LONGEST_WAIT)
