"""The gate of a local address: web pages of others must not reach it, whatever names they give it.

A page can have a browser send requests to this machine, and with a name of its own that resolves to 127.0.0.1 even
read the answers (DNS rebinding). So the Host header must be one of this address, a page's Origin must be this address
itself, and no answer allows another origin anything. The one page that may, the proxy's own, shows a token: it came
with the page's address, which only the proxy's user was told.
"""

import hmac
from collections.abc import Callable, Iterable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from confide.enclave.api.problems import problem_response
from confide.errors import RequestRefused, WrongKey
from confide.net.body import bearer
from confide.net.loopback import is_everywhere, is_loopback

_KEY_HEADERS: Final = (b"authorization", b"x-api-key")
_LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """ASGI middleware. hosts: what Host may say, in lower case. secure: whether the address has TLS.

    keys: one of them must be shown as a bearer token; without any, whoever reaches the address may ask, but for
    browsers. page: the token that those must show in its place; a page of nobody is let in where it is empty. open_to:
    whether a path is open to everybody, because there is nothing of anybody's.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str],
        keys: Iterable[str],
        *,
        secure: bool,
        page: str = "",
        open_to: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._origins = frozenset(f"{'https' if secure else 'http'}://{host}" for host in self._hosts)
        self._keys = [key.encode() for key in keys]
        self._page = page.encode()
        self._open_to = open_to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = self._refusal(headers, scope["path"])
        if error is None:
            await self._app(self._without_own_key(scope, headers), receive, send)
            return
        response = problem_response(error, scope["path"], 401 if isinstance(error, WrongKey) else 403)
        await response(scope, receive, send)

    def _without_own_key(self, scope: Scope, headers: Headers) -> Scope:
        """A key of the proxy's is for the proxy: what is passed on with questions is another one, of a licence."""
        if not scope["path"].startswith("/v1/") or not self._shows(bearer(headers).encode()):
            return scope
        return {**scope, "headers": [one for one in scope["headers"] if one[0] not in _KEY_HEADERS]}

    def _shows(self, shown: bytes) -> bool:
        return any(hmac.compare_digest(shown, key) for key in self._keys)

    def _refusal(self, headers: Headers, path: str) -> RequestRefused | None:
        if headers.getlist("host")[1:] or headers.get("host", "").lower() not in self._hosts:
            return RequestRefused("This address has another name; use the one that `confide proxy` printed.")
        origins = headers.getlist("origin")
        if any(origin.lower() not in self._origins for origin in origins):
            return RequestRefused("Web pages of others may not use this address; open the one that it serves itself.")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return RequestRefused("Web pages of others may not use this address; open the one that it serves itself.")
        if self._open_to(path):
            return None
        shown = bearer(headers).encode()
        if self._page and hmac.compare_digest(shown, self._page):
            return None
        if _of_a_browser(headers):
            return WrongKey(
                "A browser is only answered with this proxy's page; `confide proxy status` shows its address."
            )
        if self._keys and path != "/health" and not self._shows(shown):
            return WrongKey(
                "This proxy wants its key; give it to your program as its API key, in OPENAI_API_KEY for example."
            )
        return None


def _of_a_browser(headers: Headers) -> bool:
    """Whether a page asks, or somebody who types an address. Programs send none of these; those that send what a
    browser sends where no page asks are programs still.
    """
    return (
        "origin" in headers
        or headers.get("sec-fetch-site", "none") != "none"
        or headers.get("sec-fetch-mode") == "navigate"
    )


def as_host(name: str) -> str:
    """A name or address as it stands in URLs."""
    return f"[{name}]" if ":" in name else name


def hosts_of(host: str, port: int, names: Iterable[str] = ()) -> set[str]:
    """What Host may say at this address: its names, and where it is on loopback all of this machine's own. Ports 80 and
    443 are left out by browsers.
    """
    known = {as_host(name).lower() for name in (host, *names)}
    if is_loopback(host) or is_everywhere(host):
        known.update(_LOOPBACK_NAMES)
    return {f"{name}:{port}" for name in known} | (known if port in (80, 443) else set())
