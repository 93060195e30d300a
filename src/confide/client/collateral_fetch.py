"""Fetching collateral over HTTP, for `confide.attest.collateral_cache`, which opens no socket itself.

One GET, or POST of an OCSP request, for each call, with a bound on each wait and on the size; no redirect is followed.
Collateral is signed and public, so a plain connection is no danger to its content; it is still refused except to this
machine, since it would tell others which platforms are being verified.
"""

import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from confide.attest.collateral_cache import MAX_BODY_BYTES, Fetcher, Response
from confide.errors import ConnectionLost, InsecureConnection, MalformedEvidence

SECONDS: Final = 20.0
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def fetcher(tls: ssl.SSLContext | None = None, seconds: float = SECONDS) -> Fetcher:
    """A `Fetcher`. tls: for a cache of one's own with a private authority; the system's authorities otherwise."""
    context = tls or ssl.create_default_context()

    def fetch(url: str, body: bytes = b"") -> Response:
        connection, target = _connection(url, context, seconds)
        try:
            headers = {"User-Agent": "confide", "Accept": "*/*"}
            if body:
                connection.request("POST", target, body, headers | {"Content-Type": "application/ocsp-request"})
            else:
                connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            content = answer.read(MAX_BODY_BYTES + 1)
            if len(content) > MAX_BODY_BYTES:
                raise MalformedEvidence(f"{url} answered with more than {MAX_BODY_BYTES} bytes; check the address.")
            if answer.length:  # read() with a limit does not complain about a body that ends too early
                raise ConnectionLost(f"The connection to {connection.host} broke in the middle; try again later.")
            return Response(answer.status, content, {name.lower(): value for name, value in answer.getheaders()})
        except (OSError, HTTPException) as error:
            raise ConnectionLost(f"{connection.host} could not be asked ({error}); check the network.") from error
        finally:
            connection.close()

    return fetch


def _connection(url: str, context: ssl.SSLContext, seconds: float) -> tuple[HTTPConnection, str]:
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "https" and parts.hostname:
        return HTTPSConnection(parts.hostname, parts.port, timeout=seconds, context=context), target
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return HTTPConnection(parts.hostname, parts.port, timeout=seconds), target
    raise InsecureConnection(
        f"{url} is not an https address; collateral is fetched in the open from this machine only."
    )
