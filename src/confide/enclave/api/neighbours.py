"""Who may ask a service that answers its neighbours alone: workloads that showed it evidence, as it did to them.

The token of a session is a secret between the two: it is encrypted to the key that the evidence speaks for, and comes
back inside the channel to this workload's own. So whoever passes on a neighbour's evidence, which anybody can ask for,
gets nothing by it.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from threading import Lock
from typing import Final

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from confide.attest.wire import MAX_ATTESTED_BYTES, Attested
from confide.channel.introduction import (
    NONCE_PATH,
    PATH,
    SESSION,
    TOKEN_BYTES,
    UNKNOWN,
    Introduced,
    Introduction,
    decode,
    token_info,
)
from confide.channel.key_release import NonceAnswer
from confide.channel.keys import ChannelKey, ChannelPublicKey
from confide.channel.nonces import LIFETIME, Nonces
from confide.enclave.api.failures import Outlet
from confide.enclave.api.problems import problem_response
from confide.errors import AttestationError, AttestationRefused, MalformedMessage, NotANeighbour, RequestRefused
from confide.net.body import Bodies, origin_of

SESSION_SECONDS: Final = 600
"""For which evidence counts. Then it is made anew: collateral and policies have ends, too."""
_MOST: Final = 4096
"""Sessions at a time: more than nonces are given out in their lifetime, so that no flood ends anybody's."""
_BODY_SECONDS: Final = 30.0
_BODIES_BYTES: Final = 16 * MAX_ATTESTED_BYTES
_HEALTH: Final = ("/health", "/health/live")
_log = logging.getLogger(__name__)

Appraise = Callable[[Attested, str, datetime], ChannelPublicKey]
"""The channel key that evidence speaks for, made for a nonce and held against a neighbour's policy at a time. An
AttestationError where it is not to be trusted."""


class Neighbours:
    """The neighbours of one workload that may ask it, and their sessions. Safe for several threads."""

    def __init__(
        self, key: ChannelKey, callers: Mapping[str, Appraise], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """key: the workload's own. callers: who may ask, by name. clock: seconds, which nobody turns back."""
        self._key, self._callers, self._clock = key, dict(callers), clock
        self._nonces = Nonces()
        # In the channel bodies are bounded already; where TLS ends in here they are not.
        self._bodies = Bodies(MAX_ATTESTED_BYTES, _BODY_SECONDS, _BODIES_BYTES)
        self._lock = Lock()
        self._until: dict[bytes, float] = {}
        """By SHA-256 of the token, so that how long it takes to find one says nothing about another."""

    def around(self, app: ASGIApp) -> ASGIApp:
        """An application that is asked by neighbours alone, but for whether it is well."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            request, path = Request(scope, receive), scope["path"]
            if path in _HEALTH or self._knows(request.headers.get(SESSION, "")):
                await app(scope, receive, send)
                return
            if (request.method, path) == ("POST", NONCE_PATH):
                response = _answer(self._nonce(origin_of(request)))
            elif (request.method, path) == ("POST", PATH):
                async with self._bodies.read(request) as body:
                    response = _answer(await self._introduce(body))
            else:
                response = _unknown(path)
            await response(scope, receive, send)

        async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
            await Outlet(send).fill(answer, scope, receive)

        return refusing

    def _nonce(self, who: str) -> NonceAnswer:
        return NonceAnswer(self._nonces.issue(datetime.now(UTC), who), int(LIFETIME.total_seconds()))

    async def _introduce(self, body: bytes) -> Introduced:
        try:
            asked = decode(body, Introduction)
        except MalformedMessage as error:
            raise RequestRefused(str(error)) from None
        nonce = asked.attested.statement.nonce
        self._nonces.take(nonce, datetime.now(UTC))
        key = await run_in_threadpool(self._appraised, asked)
        token = os.urandom(TOKEN_BYTES)
        self._remember(token)
        return Introduced(key.encrypt(token, token_info(self._key.public.id, nonce)), SESSION_SECONDS)

    def _appraised(self, asked: Introduction) -> ChannelPublicKey:
        appraise = self._callers.get(asked.name)
        if appraise is None:
            _log.warning("Somebody who called itself %s was refused: that is no neighbour.", asked.name)
            raise NotANeighbour("No neighbour of this name may ask this service; see which edges its owners allow.")
        try:
            return appraise(asked.attested, asked.attested.statement.nonce, datetime.now(UTC))
        except AttestationError as error:
            codes = error.checks if isinstance(error, AttestationRefused) else (error.code,)
            _log.warning("Somebody who called itself %s was refused: %s", asked.name, error)
            raise NotANeighbour(
                "The evidence is not what this service's owners ask of that neighbour, which failed: "
                f"{', '.join(codes)}. Its operator's log says more.",
                codes,
            ) from None

    def _remember(self, token: bytes) -> None:
        now = self._clock()
        with self._lock:
            for digest in [digest for digest, until in self._until.items() if until <= now]:
                del self._until[digest]
            while len(self._until) >= _MOST:
                del self._until[next(iter(self._until))]
            self._until[hashlib.sha256(token).digest()] = now + SESSION_SECONDS

    def _knows(self, token: str) -> bool:
        try:
            digest = hashlib.sha256(bytes.fromhex(token)).digest()
        except ValueError:
            return False
        with self._lock:
            return self._clock() < self._until.get(digest, float("-inf"))


def _answer(message: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(message), media_type="application/json")


def _unknown(path: str) -> Response:
    error = NotANeighbour(
        "This service answers its neighbours alone, once they have shown evidence; ask the service that is for users."
    )
    response = problem_response(error, path)
    response.headers[SESSION] = UNKNOWN
    return response
