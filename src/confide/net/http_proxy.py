"""A way out through an HTTP proxy that the user asked for: CONNECT, and from there on bytes that it passes on.

The proxy learns which host is called, when, and how much is sent; TLS begins behind it. Whatever it answers is bounded,
in bytes and in time, and only its status is looked at.
"""

import re
import socket
import time
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from confide.disk.secrets import HTTP_PROXY_PASSWORD, find_secret
from confide.errors import ConnectionLost, ProtocolError, ServerSilent

MAX_ANSWER: Final = 1 << 13
"""Bytes of a proxy's answer, headers and all."""
_HOST: Final = re.compile(r"[A-Za-z0-9._:\-]{1,253}")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_DEFAULT_PORT: Final = 8080


@dataclass(frozen=True)
class HttpProxy:
    """Where a proxy is, and what it wants to see. credentials: user:password, as it is in the address."""

    host: str
    port: int
    credentials: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Of http://[user[:password]@]host:port; a user without password has that of HTTP_PROXY_PASSWORD.

        Raises ProtocolError for anything else, InvalidSettings as `find_secret` does.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or _DEFAULT_PORT
            odd = parts.path.strip("/") or parts.query or parts.fragment or not _HOST.fullmatch(host)
            if parts.scheme != "http" or odd:
                raise ValueError
            credentials = unquote(parts.netloc.rpartition("@")[0])
            credentials.encode()
        except ValueError as error:  # without the address, which may hold a password
            raise ProtocolError("A proxy is given as http://host:port, or http://user:password@host:port.") from error
        if credentials and ":" not in credentials and (password := find_secret(HTTP_PROXY_PASSWORD)):
            credentials = f"{credentials}:{password.text}"
        return cls(host, port, credentials)

    def connect(self, host: str, port: int, seconds: float) -> socket.socket:
        """A connection to a host by way of the proxy, within so many seconds.

        Raises ConnectionLost where the proxy cannot be reached or does not want to, ServerSilent where it says nothing.
        """
        deadline = time.monotonic() + seconds
        if not _HOST.fullmatch(host):
            raise ConnectionLost(f"{host!r} is no host name that a proxy could be asked for; check the address.")
        try:
            connected = socket.create_connection((self.host, self.port), timeout=seconds)
            try:
                connected.sendall(self._request(host, port))
                self._require_tunnel(_answer(connected, deadline))
            except BaseException:
                connected.close()
                raise
        except TimeoutError as error:
            raise ServerSilent(f"The proxy at {self.host}:{self.port} does not answer; try again later.") from error
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConnectionLost(f"No proxy answers at {self.host}:{self.port} ({reason}); check --proxy.") from error
        return connected

    def _request(self, host: str, port: int) -> bytes:
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
        if self.credentials:
            lines.append(f"Proxy-Authorization: Basic {b64encode(self.credentials.encode()).decode()}")
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()

    def _require_tunnel(self, answer: bytes) -> None:
        status = _STATUS.match(answer)
        if status is None:
            raise ConnectionLost(f"What answers at {self.host}:{self.port} is no HTTP proxy; check --proxy.")
        code = int(status[1])
        if code == 407:
            raise ConnectionLost(
                f"The proxy at {self.host}:{self.port} wants a name and password; give http://user:password@host:port."
            )
        if not 200 <= code < 300:
            raise ConnectionLost(
                f"The proxy at {self.host}:{self.port} does not connect to that host (status {code}); ask its operator."
            )


def _answer(connected: socket.socket, deadline: float) -> bytes:
    """The proxy's answer up to its empty line, and not a byte more: those are the host's."""
    answer = bytearray()
    while not answer.endswith(b"\r\n\r\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connected.settimeout(left)
        byte = connected.recv(1)
        if not byte or len(answer) >= MAX_ANSWER:
            break
        answer += byte
    return bytes(answer) if answer.endswith(b"\r\n\r\n") else b""
