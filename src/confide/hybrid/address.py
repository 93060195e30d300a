"""Addresses of layer servers, and which of them are this machine's own."""

import ipaddress
from urllib.parse import urlsplit

from confide.errors import ProtocolError
from confide.hybrid.wire import PATH


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def websocket_url(url: str) -> str:
    """ws://host:port/v1/layers for ws://, http:// or a bare host:port; ProtocolError for anything else."""
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    if parts.scheme not in ("ws", "http") or not parts.hostname:
        raise ProtocolError(f"{url!r} is not the address of a layer server; write ws://host:port.")
    return f"ws://{parts.netloc}{PATH}"
