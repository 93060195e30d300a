"""Somebody in between who changes one byte: a relay that HTTP clients of a demo are sent through."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

Change = Callable[[bytes], bytes]


def flip_byte(content: bytes, at: int) -> bytes:
    """The same with one bit of one byte changed."""
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


def damage_evidence(document: bytes) -> bytes:
    """The attestation with one byte of the quote itself changed: what is around it is still well-formed."""
    import msgspec

    from confide.attest.wire import Attested

    attested = Attested.decode(document)
    raw = flip_byte(attested.evidence.raw, len(attested.evidence.raw) // 4)
    evidence = msgspec.structs.replace(attested.evidence, raw=raw)
    return msgspec.structs.replace(attested, evidence=evidence).encode()


@contextmanager
def tampering_relay(server: str, changes: dict[str, Change]) -> Iterator[str]:
    """An address on this machine that passes everything on to a server, and changes answers at some paths."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on("GET", b"")

        def do_POST(self) -> None:
            self._pass_on("POST", self.rfile.read(int(self.headers.get("content-length", 0))))

        def _pass_on(self, method: str, body: bytes) -> None:
            kind = {"content-type": self.headers.get("content-type", "application/json")}
            answer = httpx.request(method, server + self.path, content=body, headers=kind, timeout=60, trust_env=False)
            change = changes.get(self.path.partition("?")[0], bytes)
            content = change(answer.content)
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers.get("content-type", "application/json"))
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a demo has its own words."""

    relay = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=relay.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{relay.server_port}"
    finally:
        relay.shutdown()
        relay.server_close()
        thread.join()
