"""HTTP through a `Connector`: httpx's transports, with connections that another process opens."""

import asyncio
import select
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

from confide.enclave.connector import Connector


def through(connector: Connector, tls: ssl.SSLContext | None = None) -> httpx.HTTPTransport:
    """For `httpx.Client`. Whatever host a request names, it goes where the connector leads; TLS checks that name."""
    transport = httpx.HTTPTransport()
    # httpx has no parameter for this. A test asks through it, and would notice if the attribute had another name.
    transport._pool = httpcore.ConnectionPool(ssl_context=tls, network_backend=_Backend(connector))
    return transport


def async_through(connector: Connector, most: int, tls: ssl.SSLContext | None = None) -> httpx.AsyncHTTPTransport:
    """The same for `httpx.AsyncClient`. most: connections at a time."""
    transport = httpx.AsyncHTTPTransport()
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=tls, max_connections=most, network_backend=_AsyncBackend(connector)
    )
    return transport


class _Backend(httpcore.NetworkBackend):
    def __init__(self, connector: Connector) -> None:
        self._connector = connector

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        with _mapped(httpcore.ConnectError):
            return _Stream(self._connector.connect())


class _Stream(httpcore.NetworkStream):
    """A socket, as httpcore wants it."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped():
            self._socket.settimeout(timeout)
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _mapped():
            self._socket.settimeout(timeout)
            self._socket.sendall(buffer)

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        with _mapped(httpcore.ConnectError):
            self._socket.settimeout(timeout)
            return _Stream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return bool(select.select([self._socket], [], [], 0)[0])
        return self._socket if info == "ssl_object" and isinstance(self._socket, ssl.SSLSocket) else None


class _AsyncBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, connector: Connector) -> None:
        self._connector = connector

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _mapped(httpcore.ConnectError):
            opened = await asyncio.to_thread(self._connector.connect)
            opened.setblocking(False)
            return _AsyncStream(*await asyncio.open_connection(sock=opened))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _AsyncStream(httpcore.AsyncNetworkStream):
    """asyncio's streams, as httpcore wants them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped():
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _mapped():
            self._writer.write(buffer)
            async with asyncio.timeout(timeout):
                await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        with _mapped(httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._reader.at_eof() or self._writer.is_closing()
        return self._writer.get_extra_info(info) if info == "ssl_object" else None


@contextmanager
def _mapped(broken: type[Exception] = httpcore.ReadError) -> Iterator[None]:
    """What a socket raises, as httpcore's own errors."""
    try:
        yield
    except TimeoutError as error:
        raise httpcore.ReadTimeout(str(error)) from error
    except OSError as error:
        raise broken(str(error)) from error
