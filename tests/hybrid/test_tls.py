"""TLS with real certificates on loopback: who is trusted, who is refused, and what the refusal says."""

import socket
import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from confide import errors
from confide.hybrid import wire
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import Dial, websocket_url
from confide.hybrid.server.limits import Limits
from confide.hybrid.server.service import LayerService
from confide.net.tls import certificate_names, client_context, make_certificates, server_context

from .server.world import Tokens, model, serving
from .server.world import service as small_service

Server = tuple[str, LayerService]


def connect(url: str, ca: Path | None = None) -> LayerConnection:
    return LayerConnection(Dial(url, ca=ca), model().signed.release)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LayerService]:
    made = small_service(tmp_path / "state")
    yield made
    made.ledger.close()


@pytest.fixture
def server(service: LayerService) -> Iterator[Server]:
    """A server without TLS: its address and service."""
    with serving(service) as served:
        yield served.url, service


def written(folder: Path, names: list[str] | None = None, **options: object) -> Path:
    make_certificates(names or [], **options).write(folder)  # type: ignore[arg-type]
    return folder


def context_of(folder: Path) -> ssl.SSLContext:
    return server_context(folder / "server.pem", folder / "server.key")


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    return written(tmp_path / "tls")


@pytest.fixture
def secure(tmp_path: Path, certificates: Path) -> Iterator[Server]:
    """A server with TLS: its address and service."""
    service = small_service(tmp_path / "secure-state")
    with serving(service, tls=context_of(certificates)) as served:
        yield served.url, service


def test_a_private_product_over_tls(secure: Server, certificates: Path) -> None:
    with connect(secure[0], certificates / "ca.pem") as connection:
        tokens = Tokens(40)
        for group in range(3):
            tokens.require_exact(group, connection.request(tokens.request(group), wire.Answer))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_newest_tls_is_spoken(
    secure: Server, certificates: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped: list[ssl.SSLSocket] = []
    wrap = ssl.SSLContext.wrap_socket

    def noted(context: ssl.SSLContext, *plain: Any, **options: Any) -> ssl.SSLSocket:
        wrapped.append(wrap(context, *plain, **options))
        return wrapped[-1]

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", noted)
    with connect(secure[0].replace("127.0.0.1", host), certificates / "ca.pem"):
        assert [socket.version() for socket in wrapped] == ["TLSv1.3"]


def test_old_tls_is_refused(certificates: Path) -> None:
    for context in (client_context(), client_context(certificates / "ca.pem"), context_of(certificates)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("trust", ["system", "another"])
def test_an_unknown_authority_is_refused(secure: Server, tmp_path: Path, trust: str) -> None:
    ca = None if trust == "system" else written(tmp_path / "other") / "ca.pem"
    with pytest.raises(errors.UntrustedCertificate, match=r"--ca.*\.$"):
        connect(secure[0], ca)


@pytest.fixture
def everything_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every host name leads to this machine."""
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **options: real("127.0.0.1", *rest, **options))


@pytest.mark.usefixtures("everything_is_here")
@pytest.mark.parametrize("host", ["layers.example", "192.0.2.1", "localhost.example"])
def test_a_wrong_host_name_is_refused(secure: Server, certificates: Path, host: str) -> None:
    with pytest.raises(errors.UntrustedCertificate, match=f"{host}.*mismatch.*make a new one"):
        connect(secure[0].replace("127.0.0.1", host), certificates / "ca.pem")


@pytest.mark.usefixtures("everything_is_here")
@pytest.mark.parametrize("host", ["layers.example", "192.0.2.1", "a.models.example"])
def test_names_and_addresses_can_be_added(tmp_path: Path, service: LayerService, host: str) -> None:
    folder = written(tmp_path / "tls", ["192.0.2.1", "layers.example", "*.models.example", "localhost"])
    with serving(service, tls=context_of(folder)) as served:
        connect(served.url.replace("127.0.0.1", host), folder / "ca.pem").close()
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "layers.example", "*.models.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "192.0.2.1"]


@pytest.mark.parametrize("days_ago", [40, -40])
def test_a_certificate_out_of_its_time_is_refused(tmp_path: Path, service: LayerService, days_ago: int) -> None:
    folder = written(tmp_path / "tls", days=30, now=datetime.now(UTC) - timedelta(days=days_ago))
    with serving(service, tls=context_of(folder)) as served:
        with pytest.raises(errors.UntrustedCertificate, match=r"expired|not yet valid"):
            connect(served.url, folder / "ca.pem")


def test_a_plain_client_is_told_of_tls(secure: Server) -> None:
    with pytest.raises(errors.ConnectionLost, match="wss://"):
        connect(secure[0].replace("wss", "ws"))


def test_a_plain_server_is_never_taken_for_a_secure_one(service: LayerService) -> None:
    with serving(service, Limits(greeting_seconds=0.2)) as served, pytest.raises(errors.ConnectionLost, match="TLS"):
        connect(served.url.replace("ws", "wss"))


def test_a_server_that_goes_while_an_answer_is_due(secure: Server, certificates: Path) -> None:
    with connect(secure[0], certificates / "ca.pem") as connection:
        connection.send(wire.Answer(memoryview(b"")))  # type: ignore[arg-type]  # no client sends answers
        with pytest.raises(errors.MalformedMessage):
            connection.receive(wire.Answer)
        with pytest.raises(errors.ConnectionLost, match="broke"):
            connection.receive(wire.Answer)


def test_the_certificates_stand_up_to_strict_checks(certificates: Path, secure: Server) -> None:
    """Python 3.13 checks like this by default."""
    dial = Dial(secure[0], ca=certificates / "ca.pem")
    dial.trust.verify_flags |= ssl.VERIFY_X509_STRICT
    LayerConnection(dial, model().signed.release).close()


def test_the_authority_signs_nothing_else(certificates: Path) -> None:
    ca = x509.load_pem_x509_certificate((certificates / "ca.pem").read_bytes())
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert sorted(path.name for path in certificates.iterdir()) == ["ca.pem", "server.key", "server.pem"]


def test_the_key_is_its_owners_and_stays_out_of_sight(certificates: Path) -> None:
    assert stat.S_IMODE((certificates / "server.key").stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(make_certificates([]))


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server.key"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(errors.InvalidCertificate, match="never overwritten"):
        written(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


@pytest.mark.parametrize("name", ["", "wss://host", "host:8470", "two words", "-x", "x..y", "é.example"])
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidCertificate, match="host name"):
        make_certificates([name])


@pytest.mark.parametrize("broken", ["missing", "empty", "nonsense", "folder", "key"])
def test_a_broken_authority_file_is_one_clear_error(tmp_path: Path, certificates: Path, broken: str) -> None:
    path = _broken(tmp_path / "broken", broken, (certificates / "server.key").read_bytes())
    with pytest.raises(errors.InvalidCertificate, match=r"broken.*ca\.pem"):
        client_context(path)


@pytest.mark.parametrize("part", ["server.pem", "server.key"])
@pytest.mark.parametrize("broken", ["missing", "empty", "nonsense", "folder", "other", "locked"])
def test_broken_server_files_are_one_clear_error(tmp_path: Path, certificates: Path, part: str, broken: str) -> None:
    other = (written(tmp_path / "other") / part).read_bytes()
    if broken == "locked":
        other = _locked((certificates / "server.key").read_bytes())
    path = certificates / part
    path.unlink()
    _broken(path, broken, other)
    with pytest.raises(errors.InvalidCertificate, match="make-local"):
        context_of(certificates)


def _broken(path: Path, how: str, other: bytes) -> Path:
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        path.write_bytes({"empty": b"", "nonsense": b"-----BEGIN nonsense"}.get(how, other))
    return path


def _locked(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    locked = form.BestAvailableEncryption(b"password")
    loaded = form.load_pem_private_key(key, None)
    return loaded.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("host:1", "ws://host:1/v1/layers"),
        ("http://host:1", "ws://host:1/v1/layers"),
        ("wss://host", "wss://host/v1/layers"),
        ("https://host:1/", "wss://host:1/v1/layers"),
        ("wss://host:1/chat-7b.v2/", "wss://host:1/chat-7b.v2/v1/layers"),
        ("host:1/v1/layers", "ws://host:1/v1/layers"),
        ("host:1/chat/v1/layers", "ws://host:1/chat/v1/layers"),
    ],
)
def test_addresses(given: str, meant: str) -> None:
    assert websocket_url(given) == meant


def test_a_public_name_needs_tls() -> None:
    with pytest.raises(errors.InsecureConnection, match=r"wss://.*make-local"):
        connect("layers.example:8470")


def test_a_certificate_says_what_it_is_for(tmp_path: Path) -> None:
    _, chain, key = make_certificates(["box.example", "*.box.example", "192.0.2.1"]).write(tmp_path)
    assert certificate_names(chain) == ["localhost", "box.example", "127.0.0.1", "::1", "192.0.2.1"]
    for path in (key, tmp_path / "none.pem"):
        with pytest.raises(errors.InvalidCertificate, match="make-local"):
            certificate_names(path)
