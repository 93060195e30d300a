"""Fetching collateral over HTTP, for `confide.attest.collateral_cache`, which opens no socket itself.

One GET, or POST of an OCSP request, for each call, with a bound on each wait and on the size; no redirect is followed.
Collateral is signed and public, so a plain connection is no danger to its content; it is still refused except to this
machine, since it would tell others which platforms are being verified.
"""

import ssl
from typing import Final

import httpx

from confide.attest.collateral_cache import MAX_BODY_BYTES, Fetcher, Response
from confide.errors import ConnectionLost, InsecureConnection, MalformedEvidence
from confide.net.loopback import is_loopback

SECONDS: Final = 20.0
_HEADERS: Final = {"User-Agent": "confide", "Accept": "*/*", "Accept-Encoding": "identity"}
_OCSP: Final = {"Content-Type": "application/ocsp-request"}


def fetcher(tls: ssl.SSLContext | None = None, seconds: float = SECONDS) -> Fetcher:
    """A `Fetcher`. tls: for a cache of one's own with a private authority; the system's authorities otherwise."""
    context = tls or ssl.create_default_context()

    def fetch(url: str, body: bytes = b"") -> Response:
        asked = _address(url)
        method, headers = ("POST", _HEADERS | _OCSP) if body else ("GET", _HEADERS)
        try:
            with (
                httpx.Client(verify=context, timeout=seconds, trust_env=False) as http,
                http.stream(method, asked, content=body or None, headers=headers, follow_redirects=False) as answer,
            ):
                return Response(answer.status_code, _bounded(answer, url), dict(answer.headers))
        except httpx.RemoteProtocolError as error:
            raise ConnectionLost(f"The connection to {asked.host} broke in the middle; try again later.") from error
        except httpx.HTTPError as error:
            raise ConnectionLost(f"{asked.host} could not be asked ({error}); check the network.") from error

    return fetch


def _bounded(answer: httpx.Response, url: str) -> bytes:
    content = bytearray()
    for part in answer.iter_raw():
        content += part
        if len(content) > MAX_BODY_BYTES:
            raise MalformedEvidence(f"{url} answered with more than {MAX_BODY_BYTES} bytes; check the address.")
    return bytes(content)


def _address(url: str) -> httpx.URL:
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        parts = httpx.URL("")
    if parts.host and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.host))):
        return parts
    raise InsecureConnection(
        f"{url} is not an https address; collateral is fetched in the open from this machine only."
    )
