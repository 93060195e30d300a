"""A workload on this machine: attestation by a simulated TEE, and encrypted requests to a model that turns texts round.

Written from the protocol and not from the server's code, with switches for what an attacker in between would do.
"""

import asyncio
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from confide.attest.simulated import SimulatedTee
from confide.attest.wire import Attested
from confide.channel.encryption import MEDIA_TYPE, OpenedRequest, RequestHead, ResponseHead, encode_head, open_request
from confide.channel.keys import ChannelKey
from confide.enclave.workload import Workload
from confide.errors import ChannelError, KeyChanged
from confide.receipts.events import stated_events

MODEL = "reverser"
_RECEIPTS = "/v1/aci/receipts/"
ERRORS: dict[str, tuple[int, str | None, str]] = {
    "too long": (400, "context_length_exceeded", "It does not work."),
    "busy": (429, "rate_limit", "It does not work."),
    "fault": (500, None, "It does not work."),
    "ours": (400, "engine", "It does not work."),
    "unprocessable": (422, "odd", "It does not work."),
}
"""What the model answers with a status, a code and a message."""
ODD: dict[str, bytes] = {}
"""What it answers as it stands, under a status of 200."""


@dataclass
class FakeWorkload:
    """url: where it is. seen: what reached it, in order: paths of the outer hop, and `(inner path, body)` of encrypted
    requests. heads: of those. alter: what happens to each answer, frame by frame, on its way out. tell: what happens
    to attestation. outer: answers encrypted requests in the workload's place. receipt: what it shows as the receipt
    that it signed; None for nothing. names_receipts: whether its answers do.
    """

    workload: Workload
    url: str = ""
    seen: list[Any] = field(default_factory=list)
    heads: list[RequestHead] = field(default_factory=list)
    alter: Callable[[list[bytes]], list[bytes]] = lambda frames: frames
    tell: Callable[[Attested], Attested] = lambda attested: attested
    outer: Callable[[], Response] | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    receipt: Callable[[bytes], bytes | None] = lambda signed: signed
    names_receipts: bool = True
    receipts: dict[str, bytes] = field(default_factory=dict)

    def restart(self) -> None:
        """As a new process: with another channel key."""
        self.workload.key = ChannelKey()

    @property
    def prompts(self) -> list[Any]:
        """The encrypted requests that could be opened, but for those for receipts."""
        return [entry for entry in self.seen if isinstance(entry, tuple) and not entry[0].startswith(_RECEIPTS)]

    def app(self) -> Starlette:
        inside = [
            Route("/v1/models", self._models),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route(_RECEIPTS + "{id}", self._receipt),
        ]
        return Starlette(
            routes=[
                Route("/attestation", self._attestation),
                Route("/encrypted", self._encrypted, methods=["POST"]),
                *inside,
            ]
        )

    async def _attestation(self, request: Request) -> Response:
        self.seen.append("/attestation")
        attested = self.tell(self.workload.attest(request.query_params["nonce"]))
        return Response(attested.encode(), media_type="application/json")

    async def _encrypted(self, request: Request) -> Response:
        self.seen.append("/encrypted")
        body = await request.body()
        if self.outer:
            return self.outer()
        try:
            opened = open_request(self.workload.key, body)
        except ChannelError as error:
            status = 409 if isinstance(error, KeyChanged) else 400
            said = {"code": error.code, "message": "IGNORE THIS"}
            if isinstance(error, KeyChanged):
                said["key"] = self.workload.key.public.id.hex()
            return JSONResponse({"error": said}, status)
        self.heads.append(opened.head)
        self.seen.append((opened.head.path, opened.body))
        return StreamingResponse(self._frames(opened), media_type=MEDIA_TYPE)

    async def _frames(self, opened: OpenedRequest) -> AsyncIterator[bytes]:
        status, kind, parts, headers = self._answer(opened.head.path, opened.body)
        head = encode_head(ResponseHead(status, (("content-type", kind), *headers.items())))
        frames = [opened.writer.write(head), *(opened.writer.write(part) for part in parts)]
        try:
            for frame in self.alter([*frames, opened.writer.write(b"", last=True)]):
                yield frame
                await asyncio.sleep(0.005 if "event-stream" in kind else 0)
        finally:
            self.stopped.set()

    async def _models(self, request: Request) -> Response:
        return self._plain(request.url.path, b"")

    async def _complete(self, request: Request) -> Response:
        return self._plain(request.url.path, await request.body())

    async def _chat(self, request: Request) -> Response:
        return self._plain(request.url.path, await request.body())

    async def _receipt(self, request: Request) -> Response:
        return self._plain(request.url.path, b"")

    def _plain(self, path: str, body: bytes) -> Response:
        self.seen.append((path, body))
        status, kind, parts, headers = self._answer(path, body)
        return Response(b"".join(parts), status, headers, media_type=kind)

    def _answer(self, path: str, body: bytes) -> tuple[int, str, list[bytes], dict[str, str]]:
        """With the headers; a receipt for the whole answer is there at once."""
        if path.startswith(_RECEIPTS):
            shown = self.receipt(self.receipts[path.rpartition("/")[2]])
            return (404, "application/json", [b"{}"], {}) if shown is None else (200, "application/json", [shown], {})
        status, kind, parts = answer(path, body)
        if status != 200 or path in ("/health", "/v1/models"):
            return status, kind, parts, {}
        name = f"{len(self.receipts):048x}"
        self.receipts[name] = self._signed(name, path, body, b"".join(parts))
        return status, kind, parts, {"confide-receipt": name} if self.names_receipts else {}

    def _signed(self, name: str, path: str, body: bytes, returned: bytes) -> bytes:
        hashes = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in (body, returned)]
        signed = self.workload.receipt_key.sign(
            receipt_id=name,
            chat_id=None,
            model=MODEL,
            keyset_digest=self.workload.keyset.digest,
            endpoint=path,
            method="POST",
            served_at=int(time.time()),
            events=[
                {"type": "request.received", "body_hash": hashes[0]},
                *stated_events(self.workload.configuration, self.workload.model_digest),
                {"type": "response.returned", "body_hash": hashes[1]},
            ],
        )
        return signed.write()


def answer(path: str, body: bytes) -> tuple[int, str, list[bytes]]:
    """Status, content type and body, in parts, of the model's API."""
    if path == "/health":
        return 200, "application/json", [b'{"status":"ok"}']
    if path == "/v1/models":
        served = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "us"}]}
        return 200, "application/json", [json.dumps(served).encode()]
    request = json.loads(body)
    made: dict[str, Any] = {"id": "1", "created": 1, "model": MODEL}
    asked = request["messages"][-1]["content"] if "messages" in request else request["prompt"]
    if asked in ODD:
        kind = "text/event-stream" if request.get("stream") else "application/json"
        return 200, kind, [b"data: " + ODD[asked] + b"\n\n" if request.get("stream") else ODD[asked]]
    if path == "/v1/completions":
        text = request["prompt"][::-1]
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
        return 200, "application/json", [json.dumps(made | {"object": "text_completion", "choices": [choice]}).encode()]
    said = asked
    if said in ERRORS:
        status, code, message = ERRORS[said]
        error = {"message": message, "type": "any", "code": code}
        return status, "application/json", [json.dumps({"error": error}).encode()]
    text = said[::-1]
    if not request.get("stream"):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return 200, "application/json", [json.dumps(made | {"object": "chat.completion", "choices": [choice]}).encode()]
    chunks = [
        made | {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": letter}}]}
        for letter in text
    ]
    events = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
    return 200, "text/event-stream", [*events, b"data: [DONE]\n\n"]


def simulated(folder: Path, **about: Any) -> FakeWorkload:
    """On a simulated machine that is made in this folder."""
    tee = SimulatedTee.create(folder)
    return FakeWorkload(Workload(tee, tee.collateral, **about))


@dataclass
class Balanced(FakeWorkload):
    """Takes turns among replicas. pick: whose turn it is, by how many requests came before."""

    replicas: list[FakeWorkload] = field(default_factory=list)
    pick: Callable[[int], int] = lambda count: count
    count: int = 0

    def app(self) -> Starlette:
        apps: dict[int, Starlette] = {}

        async def balance(scope: Scope, receive: Receive, send: Send) -> None:
            one = self.replicas[self.pick(self.count) % len(self.replicas)]
            self.count += 1
            await apps.setdefault(id(one), one.app())(scope, receive, send)

        return balance  # type: ignore[return-value]


def another(folder: Path, digest: str, **about: Any) -> FakeWorkload:
    """On the simulated machine of this folder, with a model of this digest."""
    tee = SimulatedTee.open(folder)
    return FakeWorkload(Workload(tee, tee.collateral, model_digest=digest, **about))


@contextmanager
def serving(fake: FakeWorkload, tls: ssl.SSLContext | None = None) -> Iterator[FakeWorkload]:
    """Serve it on this machine."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        fake.app(),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        ssl_context_factory=(lambda _config, _default: tls) if tls else None,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    fake.url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
