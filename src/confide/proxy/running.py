"""The proxy that runs in the background: where it is, and how its user stops it.

`proxy.json` in the user's Confide folder, for that user's eyes only, names the address and a token that stops it. A
process number would be another process's by the time it is used.
"""

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Meta

from confide.disk.files import create_file, open_own, replace_file
from confide.disk.home import home, make_home
from confide.errors import ProxyNotRunning

FILE_NAME: Final = "proxy.json"
PAGE_TOKEN_NAME: Final = "proxy-page.token"  # noqa: S105 - a file
_MAX_BYTES: Final = 1 << 20
_SECONDS: Final = 5.0
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_AWAY: Final = "No proxy of yours is running; start one with `confide proxy`."


class Running(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """url: of the proxy. token: stops it. certificate: file of its chain, if it has TLS. here: where this machine asks
    it, if not there; the certificate is for the name in the url.
    """

    url: Annotated[str, Meta(pattern=r"\Ahttps?://")]
    token: str
    certificate: str = ""
    here: str = ""

    def __repr__(self) -> str:
        return f"Running({self.url!r}, <hidden>)"


def new_token() -> str:
    """A secret for `Running`."""
    return secrets.token_urlsafe(32)


def page_token() -> str:
    """The secret in the address of this user's page. It stays the same, so that a page goes on when a proxy comes back.

    ProxyNotRunning where somebody else could have written it.
    """
    path = make_home() / PAGE_TOKEN_NAME
    with contextlib.suppress(FileExistsError):
        create_file(path, new_token().encode())
    token = _own(path).decode("ascii", "replace")
    if not _TOKEN.fullmatch(token):
        raise ProxyNotRunning(f"{path} holds no token; remove it, and start the proxy again.")
    return token


def remember(running: Running) -> Path:
    """Write it down; the file's path."""
    path = make_home() / FILE_NAME
    replace_file(path, msgspec.json.encode(running), mode=0o600)
    return path


def forget(running: Running) -> None:
    """Remove the file, unless another proxy has written it since."""
    try:
        if recall() == running:
            (home() / FILE_NAME).unlink(missing_ok=True)
    except (ProxyNotRunning, OSError):
        return


def recall() -> Running:
    """What was written down. ProxyNotRunning where nothing was, or somebody else could have written it."""
    try:
        return msgspec.json.decode(_own(home() / FILE_NAME), type=Running)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProxyNotRunning(_AWAY) from error


def _own(path: Path) -> bytes:
    """A file of this user's alone. OSError, ProxyNotRunning."""
    try:
        with os.fdopen(open_own(path), "rb") as file:
            return file.read(_MAX_BYTES)
    except PermissionError:
        raise ProxyNotRunning(f"{path} is not yours alone; remove it, and start the proxy again.") from None


def ask(running: Running, path: str, *, method: str = "GET") -> dict[str, Any]:
    """What the proxy answers. ProxyNotRunning where nothing answers as one would."""
    from confide.net.tls import client_context

    verify = client_context(running.certificate) if running.certificate else False
    headers = {"authorization": f"Bearer {running.token}"}
    place = running.here or running.url
    named = {"sni_hostname": urlsplit(running.url).hostname} if running.certificate else {}
    try:
        with httpx.Client(verify=verify, timeout=_SECONDS, trust_env=False) as http:
            response = http.request(method, place + path, headers=headers, follow_redirects=False, extensions=named)
            return msgspec.json.decode(response.content[:_MAX_BYTES], type=dict[str, Any])
    except (httpx.HTTPError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProxyNotRunning(_AWAY) from error
