"""TLS that ends at somebody else's proxy: what nginx logs at its most talkative, and what it passes on."""

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from confide.attest.simulated import SimulatedTee
from confide.enclave.api.answer import Serving
from confide.enclave.api.public import public_app
from confide.enclave.workload import Workload
from confide.net.tls import client_context, make_certificates

from ..encrypted_client import asking, attested_key
from ..fake_engine import FakeEngine
from ..nginx import nginx
from ..serving import Relay, eventually, serving

SECRET = "xyzzy"
PROMPT = f"the word is {SECRET} " * 5
CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log debug;
events {{}}
http {{
    log_format all escape=none '$request $status $request_body $http_content_type $sent_http_content_type';
    access_log {folder}/access.log all;
    client_body_temp_path {folder}/body;
    client_body_in_single_buffer on;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.key;
        location / {{
            proxy_pass http://127.0.0.1:{target};
            proxy_http_version 1.1;
            proxy_buffering off;
        }}
    }}
}}
"""


@dataclass
class Proxied:
    """A server behind nginx. relay: what went between the two. folder: nginx's files."""

    client: httpx.Client
    tee: SimulatedTee
    engine: FakeEngine
    relay: Relay
    folder: Path

    def read(self) -> bytes:
        """All that whoever runs nginx can read."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.name != "server.key"]
        return bytes(self.relay.seen) + b"".join(path.read_bytes() for path in files)


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Proxied]:
    tee, engine, folder = SimulatedTee.create(tmp_path / "tee"), FakeEngine(), tmp_path / "nginx"
    ca, _, _ = make_certificates([]).write(folder)
    with serving(public_app(Workload(tee, tee.collateral), Serving(engine))) as url:
        with Relay(urlsplit(url).port or 0) as relay, nginx(folder, CONFIGURATION, target=relay.port) as port:
            address = f"https://127.0.0.1:{port}"
            with httpx.Client(base_url=address, verify=client_context(ca)) as client:
                yield Proxied(client, tee, engine, relay, folder)


def test_a_proxy_sees_nothing(proxied: Proxied) -> None:
    key = attested_key(proxied.client, proxied.tee)
    body = {"model": "echo", "messages": [{"role": "user", "content": PROMPT}]}
    for stream in (True, False):
        with asking(proxied.client, key, "/v1/chat/completions", body | {"stream": stream}) as (head, frames):
            assert head.status == 200
            answer = b"".join(frames)
        assert answer.count(SECRET.encode()) == 5
    eventually(lambda: b"POST /encrypted HTTP/1.1 200" in proxied.read())
    read = proxied.read()
    assert b"application/vnd.confide.encrypted" in read
    for words in (SECRET, "the word is", "You said", "completions", "assistant", "echo"):
        for form in (words, json.dumps(words)[1:-1], base64.b64encode(words.encode()).decode().rstrip("=")):
            assert form.encode() not in read


def test_the_search_finds_what_is_in_the_clear(proxied: Proxied) -> None:
    assert proxied.client.post("/generate", json={"query": SECRET}).status_code == 403
    eventually(lambda: SECRET.encode() in (proxied.folder / "access.log").read_bytes())
    assert SECRET.encode() in proxied.relay.seen


def test_a_stream_arrives_piece_by_piece(proxied: Proxied) -> None:
    key = attested_key(proxied.client, proxied.tee)
    proxied.engine.pause = 0.2
    arrived = []
    body = {"prompt": base64.b64encode(b"one two three four").decode()}
    with asking(proxied.client, key, "/chat", body) as (_, frames):
        for _frame in frames:
            arrived.append(time.monotonic())
    assert len(arrived) >= 7
    assert arrived[-1] - arrived[0] > 0.6


def test_a_client_that_leaves_the_proxy_stops_the_engine(proxied: Proxied) -> None:
    key = attested_key(proxied.client, proxied.tee)
    proxied.engine.pause = 0.05
    with asking(proxied.client, key, "/chat", {"prompt": base64.b64encode(b"word " * 400).decode()}) as (_, frames):
        next(frames)
        assert proxied.engine.running == 1
    eventually(lambda: proxied.engine.running == 0)
    assert proxied.engine.stopped == 1
