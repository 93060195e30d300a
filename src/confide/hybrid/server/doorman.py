"""What stands between the network and a connection until the client is greeted: it lets only so many bytes in.

A frame is kept until it is whole, and whoever has shown no licence must not make the server keep megabytes.
"""

import asyncio
from typing import cast

from confide.hybrid import wire


class Doorman(asyncio.BufferedProtocol):
    """Stands in for a transport's protocol, for at most `wire.MAX_GREETING` bytes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._inner = cast(asyncio.BufferedProtocol, transport.get_protocol())
        self._left = wire.MAX_GREETING
        transport.set_protocol(self)

    def leave(self) -> None:
        """The client is greeted, or will not be."""
        if self._transport.get_protocol() is self:
            self._transport.set_protocol(self._inner)

    def get_buffer(self, sizehint: int) -> memoryview:
        """No more room than what may still come."""
        return memoryview(self._inner.get_buffer(sizehint))[: max(1, self._left)]

    def buffer_updated(self, nbytes: int) -> None:
        """Pass it on, and hang up where it was too much for a greeting."""
        self._left -= nbytes
        self._inner.buffer_updated(nbytes)
        if self._left <= 0 and self._transport.get_protocol() is self:
            self._transport.abort()

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._inner.resume_writing()
