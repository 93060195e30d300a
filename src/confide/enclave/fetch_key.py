"""The workload's side: fetch a model key from its owner's broker, with evidence that is made for the occasion."""

import ssl
import time
from collections.abc import Callable
from typing import Final, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from confide.channel.key_release import (
    MAX_ANSWER_BYTES,
    NONCE_PATH,
    RELEASE_PATH,
    NonceAnswer,
    Refusal,
    RefusalAnswer,
    ReleaseAnswer,
    ReleaseRequest,
    wrapping_info,
)
from confide.enclave.connector import Connector
from confide.enclave.connector_http import through
from confide.enclave.workload import Workload
from confide.errors import (
    BROKER_CODES,
    CollateralUnavailable,
    ConfideError,
    ConnectionLost,
    InsecureConnection,
    KeyRefused,
    NonceRefused,
    ProtocolError,
    ServerBusy,
    ServerFault,
    error_class,
)
from confide.net.loopback import is_loopback
from confide.net.patience import asked_for, pause
from confide.packages.sealed.key import KEY_BYTES, ModelKey
from confide.printable import printable, quoted

ATTEMPTS: Final = 6
SECONDS: Final = 30.0
_Answer = TypeVar("_Answer", NonceAnswer, ReleaseAnswer)


def fetch_key(
    url: str,
    key: str,
    workload: Workload,
    *,
    tls: ssl.SSLContext | None = None,
    connector: Connector | None = None,
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> ModelKey:
    """The model key with this id, from the broker at an https address, or at http on this machine.

    workload: its evidence must satisfy the key's policy, and its `model_digest` must be set. tls: to trust other
    authorities than the system's. connector: opens the connection, where this process cannot.
    Tries again, with growing pauses, where the broker cannot be reached or is busy, and where the nonce expired
    meanwhile. KeyRefused names the checks that failed; UnknownModelKey; InsecureConnection; ProtocolError where what
    was released is another key.
    """
    _require_secure(url)
    tls = tls or httpx.create_ssl_context(trust_env=False)
    transport = through(connector, tls) if connector else None
    with httpx.Client(base_url=url, verify=tls, timeout=SECONDS, trust_env=False, transport=transport) as client:
        for attempt in range(1, attempts + 1):
            try:
                return _fetch(client, key, workload)
            except ConfideError as error:
                if attempt == attempts or not _passes(error):
                    raise
                waited_for = error
            sleep(pause(attempt, waited_for.retry_seconds if isinstance(waited_for, ServerBusy) else 0.0))
    raise ValueError("fetch_key needs at least one attempt.")


def _fetch(client: httpx.Client, key: str, workload: Workload) -> ModelKey:
    nonce = _ask(client, NONCE_PATH, b"", NonceAnswer).nonce
    request = ReleaseRequest(key, workload.attest(nonce))
    answer = _ask(client, RELEASE_PATH, msgspec.json.encode(request), ReleaseAnswer)
    raw = workload.key.decrypt(answer.wrapped, wrapping_info(key, nonce))
    if len(raw) != KEY_BYTES or ModelKey(raw).id != key:
        raise ProtocolError(f"The broker released another key than {key}; do not use it, and ask the model's owner.")
    return ModelKey(raw)


def _ask(client: httpx.Client, path: str, body: bytes, kind: type[_Answer]) -> _Answer:
    headers = {"Content-Type": "application/json"}
    try:
        with client.stream("POST", path, content=body, headers=headers) as response:
            content = _bounded(response)
    except httpx.HTTPError as error:
        raise ConnectionLost(
            f"The key broker at {client.base_url} could not be asked ({type(error).__name__}); check its address and "
            "its certificate."
        ) from error
    try:
        if response.status_code == httpx.codes.OK:
            return msgspec.json.decode(content, type=kind)
        refusal = msgspec.json.decode(content, type=RefusalAnswer).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _no_broker(response) from None
    raise _reported(refusal, response.headers.get("retry-after"))


def _reported(refusal: Refusal, retry_after: str | None) -> ConfideError:
    words = f"The key broker says: {quoted(refusal.message)}"
    kind = error_class(refusal.code, BROKER_CODES)
    if kind is None:
        return ProtocolError(
            f"The key broker reported {quoted(refusal.code)}, which no broker has to. {words}; ask the model's owner "
            "which version of Confide it runs."
        )
    if kind is ServerBusy:
        return ServerBusy(words, asked_for(retry_after) or 1.0)
    return KeyRefused(words, tuple(map(printable, refusal.checks))) if kind is KeyRefused else kind(words)


def _bounded(response: httpx.Response) -> bytes:
    content = bytearray()
    for part in response.iter_bytes():
        content += part
        if len(content) > MAX_ANSWER_BYTES:
            raise ProtocolError("The key broker answered with more than any answer of its has; check the address.")
    return bytes(content)


def _no_broker(response: httpx.Response) -> ConfideError:
    message = f"What answered with status {response.status_code} is no key broker; check the address."
    return ConnectionLost(message) if response.is_server_error else ProtocolError(message)


def _passes(error: ConfideError) -> bool:
    """Whether another try, with another nonce, can go better."""
    if isinstance(error, KeyRefused):
        return error.checks == (CollateralUnavailable.code,)
    return isinstance(error, ConnectionLost | ServerBusy | NonceRefused | ServerFault)


def _require_secure(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise InsecureConnection(f"{url} is not an https address; only a broker on this machine is asked without TLS.")
