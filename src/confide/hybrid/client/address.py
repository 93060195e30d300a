"""Addresses of layer servers."""

from urllib.parse import urlsplit

from websockets.exceptions import InvalidURI
from websockets.uri import parse_uri

from confide.errors import ProtocolError
from confide.hybrid.wire import PATH

_SCHEMES = {"ws": "ws", "http": "ws", "wss": "wss", "https": "wss"}


def websocket_url(url: str) -> str:
    """The endpoint's URL, for ws(s)://, http(s):// or a bare host:port, which is plain; ProtocolError otherwise."""
    try:
        parts = urlsplit(url if "://" in url else f"ws://{url}")
        endpoint = f"{_SCHEMES[parts.scheme]}://{parts.netloc}{PATH}"
        parse_uri(endpoint)
    except (KeyError, ValueError, InvalidURI) as error:
        raise ProtocolError(
            f"{url!r} is not the address of a layer server; write wss://host:port or ws://host:port."
        ) from error
    return endpoint
