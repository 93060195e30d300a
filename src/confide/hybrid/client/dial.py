"""How a client reaches its layer server: the address, and what goes with it."""

import re
import ssl
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from websockets.exceptions import InvalidURI
from websockets.uri import WebSocketURI, parse_uri

from confide.errors import InsecureConnection, ProtocolError
from confide.hybrid.groups import Groups
from confide.hybrid.wire import PATH
from confide.net.http_proxy import HttpProxy
from confide.net.loopback import is_loopback
from confide.net.tls import client_context

PATIENCE_SECONDS: Final = 60.0
SILENCE_SECONDS: Final = 30.0
_NAME: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.\-]{0,63})?")
_SCHEMES: Final = {"ws": "ws", "http": "ws", "wss": "wss", "https": "wss"}


def websocket_url(url: str) -> str:
    """The endpoint's URL, for ws(s)://, http(s):// or a bare host:port, which is plain; ProtocolError otherwise.

    A path is the name of one of a server's models.
    """
    try:
        parts = urlsplit(url if "://" in url else f"ws://{url}")
        name = parts.path.removesuffix(PATH).strip("/")
        if parts.query or parts.fragment or not _NAME.fullmatch(name):
            raise ValueError
        endpoint = f"{_SCHEMES[parts.scheme]}://{parts.netloc}{'/' if name else ''}{name}{PATH}"
        parse_uri(endpoint)
    except (KeyError, ValueError, InvalidURI) as error:
        raise ProtocolError(
            f"{url!r} is not the address of a layer server; write wss://host:port or ws://host:port, and /name behind "
            "it where it has several models."
        ) from error
    return endpoint


def authority(url: str) -> str:
    """Who answers at an endpoint's URL, whatever model is asked for there."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()


@dataclass(frozen=True)
class Dial:
    """Everything about a connection but the model that it is for.

    server: an address such as wss://layers.example:8470. licence: the bearer key that the model's owner gave, where the
    server wants one. ca: file of the authorities to trust at a wss:// address, instead of the system's. patience:
    seconds that a running generation waits for a server that is away; the first contact does not wait. silence: seconds
    that may pass without a single byte. proxy: an HTTP proxy to go through, http://host:port or
    http://user:password@host:port; without it none is used, whatever the environment says. groups: the layer groups
    that are asked of this server; those that it says it has without. Raises ProtocolError for what is no address, and
    InsecureConnection where it is plain and on another machine, unless `insecure_no_tls` is set; InvalidCertificate for
    a `ca` that holds none.
    """

    server: str
    licence: str = field(default="", repr=False)
    ca: Path | str | None = None
    patience: float = PATIENCE_SECONDS
    silence: float = SILENCE_SECONDS
    insecure_no_tls: bool = False
    proxy: str | None = field(default=None, repr=False)
    groups: Groups | None = None

    def __post_init__(self) -> None:
        # Behind a proxy this machine's own addresses are the proxy's.
        here = self.http_proxy is None and is_loopback(self.uri.host)
        if not self.uri.secure and not here and not self.insecure_no_tls:
            raise InsecureConnection(
                f"{self.uri.host} is another machine and the connection would be plain; use a wss:// address of a "
                "server with TLS (`confide tls make-local` makes it a certificate), or a tunnel to a loopback port."
            )
        if self.ca is not None:
            _ = self.trust  # read at once: a wrong file is not to be found at a reconnection

    @property
    def url(self) -> str:
        """The endpoint's address, the same however it was written."""
        return websocket_url(self.server)

    @property
    def uri(self) -> WebSocketURI:
        """The same, in parts."""
        return parse_uri(self.url)

    @cached_property
    def http_proxy(self) -> HttpProxy | None:
        """The proxy to go through."""
        return None if self.proxy is None else HttpProxy.parse(self.proxy)

    @cached_property
    def trust(self) -> ssl.SSLContext:
        """What a certificate and host name are checked against."""
        return client_context(self.ca)
