"""Where connections go: to the address given, whatever the environment names as a proxy, and whoever says elsewhere."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest
from tests.enclave.engines.test_upstream import ask as ask_upstream
from tests.enclave.key_release.scene import KEY
from tests.net.recording_proxy import proxy_in_environment

import confide
from confide.attest.simulated import SimulatedTee
from confide.client.collateral_fetch import fetcher
from confide.client.hint_fetch import fetch_hint
from confide.client.package_fetch import fetch_package
from confide.enclave.fetch_key import fetch_key
from confide.enclave.workload import Workload
from confide.errors import ConfideError
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import Dial
from confide.hybrid.wire import PATH
from confide.net.tls import make_certificates, server_context
from confide.packages.owner import OwnerKey
from confide.packages.signing import Release
from confide.rlwe.parameters import Profile
from hints import SHELL


@dataclass
class Server:
    """Answers everything the same way. asked: the paths."""

    url: str = ""
    status: int = 200
    elsewhere: str = ""
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving(**about: object) -> Iterator[Server]:
    made = Server(**about)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            made.asked.append(self.path)
            self.send_response(made.status)
            if made.elsewhere:
                self.send_header("Location", made.elsewhere)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=partial(server.serve_forever, 0.01), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    tee = SimulatedTee.create(tmp_path_factory.mktemp("tee") / "tee")
    return Workload(tee, tee.collateral, model_digest="ab" * 32)


def fetch(url: str, _: Workload) -> None:
    with TemporaryDirectory() as shell:
        fetch_hint(Path(shell), SHELL, url)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a storage that is not there; without, they would be asked for on the network."""
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)


def fetch_objects(url: str, _: Workload) -> None:
    with TemporaryDirectory() as folder:
        fetch_package("s3://bucket/one", Path(folder) / "out", endpoint=url)


WAYS: dict[str, Callable[[str, Workload], object]] = {
    "attestation": lambda url, _: confide.connect(url),
    "hint": fetch,
    "object storage": fetch_objects,
    "model key": lambda url, workload: fetch_key(url, KEY.id, workload, attempts=1),
    "upstream": lambda url, _: ask_upstream(url + "/v1"),
    "collateral": lambda url, _: fetcher(seconds=5)(url + "/crl"),
    "OCSP": lambda url, _: fetcher(seconds=5)(url + "/ocsp", b"question"),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_proxy_of_the_environment_sees_anything(
    way: str, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server, proxy_in_environment(monkeypatch) as asked:
        with contextlib.suppress(ConfideError):
            WAYS[way](server.url, workload)
    assert server.asked
    assert asked == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"object storage"}))  # S3 sends clients to a bucket's region
def test_nobody_is_followed_elsewhere(way: str, status: int, workload: Workload) -> None:
    with serving() as other, serving(status=status, elsewhere=f"{other.url}/elsewhere") as server:
        with contextlib.suppress(ConfideError):
            WAYS[way](server.url, workload)
        assert server.asked
        assert other.asked == []


def test_a_layer_connection_takes_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    release = Release(OwnerKey.generate().public, bytes(32), bytes(32), Profile.PRIVATE_WEIGHTS)
    with serving() as server, proxy_in_environment(monkeypatch) as asked:
        with pytest.raises(ConfideError):
            LayerConnection(Dial(server.url), release)
    assert server.asked == [PATH]
    assert asked == []


def test_no_authority_of_the_environment_is_trusted_with_a_key(
    tmp_path: Path, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workload's environment is its host's: SSL_CERT_FILE would let the host answer as the broker."""
    ca, chain, key = make_certificates([]).write(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))

    async def main() -> None:
        async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(never, "127.0.0.1", 0, ssl=server_context(chain, key)) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(ConfideError, match="could not be asked") as caught:
                await asyncio.to_thread(fetch_key, f"https://127.0.0.1:{port}", KEY.id, workload, attempts=1)
            assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.__cause__)

    asyncio.run(main())
