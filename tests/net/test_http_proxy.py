"""The way out through an HTTP proxy: asked for and never found in the environment, bounded, and TLS goes through it."""

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ConfideError, ConnectionLost, InsecureConnection, ProtocolError, UntrustedCertificate
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import Dial
from confide.net.http_proxy import MAX_ANSWER, HttpProxy
from confide.net.tls import make_certificates, server_context
from hybrid.server.world import model, service, serving


@contextmanager
def proxy(answer: Callable[[bytes], bytes] | bytes, target: int | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy at an address, and what it was asked. target: the port on this machine that it connects to."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    request += connection.recv(1)
                asked.append(request)
                connection.sendall(answer(request) if callable(answer) else answer)
                if target is not None:
                    with socket.create_connection(("127.0.0.1", target)) as other:
                        back = threading.Thread(target=pump, args=(other, connection), daemon=True)
                        back.start()
                        pump(connection, other)

        threading.Thread(target=run, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


FINE = b"HTTP/1.1 200 Connection established\r\nVia: somebody\r\n\r\n"


def test_tls_goes_through_a_proxy_which_sees_a_name_only(tmp_path: Path) -> None:
    ca, chain, key = make_certificates(["layers.example"]).write(tmp_path)
    release = model().signed.release
    with serving(service(tmp_path / "state"), tls=server_context(chain, key)) as served:
        port = int(served.url.rpartition(":")[2])
        with proxy(FINE, port) as (url, asked):
            address = url.replace("//", "//ada:p%40ss@")
            # The name is looked up by the proxy, and the certificate must be of that name.
            LayerConnection(Dial("wss://layers.example:8470", ca=ca, proxy=address), release).close()
            with pytest.raises(UntrustedCertificate):
                LayerConnection(Dial("wss://other.example:8470", ca=ca, proxy=address), release)
    assert asked[0] == (
        b"CONNECT layers.example:8470 HTTP/1.1\r\nHost: layers.example:8470\r\n"
        b"Proxy-Authorization: Basic " + base64.b64encode(b"ada:p@ss") + b"\r\n\r\n"
    )


def test_a_plain_connection_through_a_proxy_leaves_this_machine() -> None:
    for server in ("ws://127.0.0.1:1", "localhost:1"):
        with pytest.raises(InsecureConnection):
            Dial(server, proxy="http://127.0.0.1:2")
        assert Dial(server, proxy="http://127.0.0.1:2", insecure_no_tls=True).http_proxy
    assert Dial("ws://127.0.0.1:1").http_proxy is None


def test_bytes_behind_the_answer_are_the_hosts() -> None:
    with proxy(FINE + b"hello") as (url, _), HttpProxy.parse(url).connect("host", 1, 5) as connected:
        assert connected.recv(5) == b"hello"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "is no HTTP proxy"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "is no HTTP proxy"),
        (b"HTTP/1.1 200 fine\r\n" + b"x" * MAX_ANSWER, "is no HTTP proxy"),
        (b"HTTP/1.1 407 \x1b[2J\r\n\r\n", "name and password"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere\r\n\r\n", "status 302"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "status 403"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "status 101"),
        (b"HTTP/2 200 fine\r\n\r\n", "is no HTTP proxy"),
    ],
)
def test_what_a_proxy_may_answer(answer: bytes, said: str) -> None:
    with proxy(answer) as (url, _), pytest.raises(ConnectionLost, match=said) as caught:
        HttpProxy.parse(url).connect("host", 1, 5)
    assert "\x1b" not in str(caught.value)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=60))
def test_any_answer_is_a_tunnel_or_an_error(answer: bytes) -> None:
    with proxy(answer) as (url, _):
        try:
            HttpProxy.parse(url).connect("host", 1, 5).close()
        except ConfideError as error:
            assert str(error).isprintable()  # noqa: PT017


def test_a_proxy_that_drips_does_not_keep_anybody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                while True:
                    connection.sendall(b"H")
                    threading.Event().wait(0.05)

        threading.Thread(target=drip, daemon=True).start()
        with pytest.raises(ConfideError, match="does not answer"):
            HttpProxy("127.0.0.1", listener.getsockname()[1]).connect("host", 1, 0.5)


@pytest.mark.parametrize("host", ["a\r\nX: y", "a b", "", "ü", "a/b", "x" * 300])
def test_a_host_is_a_host(host: str) -> None:
    with pytest.raises(ConnectionLost, match="no host name"):
        HttpProxy("127.0.0.1", 1).connect(host, 1, 1)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:1", "https://a:1", "socks5://a:1", "http://a:1/x", "http://:1", "http://a:x", "http://s3cret@"],
)
def test_what_is_no_proxy_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ProtocolError, match="http://host:port") as caught:
        HttpProxy.parse(url)
    assert "s3cret" not in str(caught.value)


def test_a_password_is_in_no_representation() -> None:
    dial = Dial("wss://a:1", proxy="http://ada:s3cret@proxy:1")
    assert "s3cret" not in repr(dial) + repr(dial.http_proxy)


def test_a_user_without_password_has_that_of_its_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_HTTP_PROXY_PASSWORD", "hush")
    assert HttpProxy.parse("http://me@gate:1").credentials == "me:hush"
    assert HttpProxy.parse("http://me:other@gate:1").credentials == "me:other"
    assert HttpProxy.parse("http://gate:1").credentials == ""
    assert "hush" not in repr(HttpProxy.parse("http://me@gate:1"))
