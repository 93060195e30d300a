"""TLS that ends in the workload: connections to anybody else carry no request."""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificate
from tests.client.workload import MODEL, FakeWorkload, serving, simulated

import confide
from confide.attest.evidence import Evidence, Family
from confide.attest.ra_tls import LIFETIME, make_certificate
from confide.attest.simulated import SimulatedTee
from confide.client.enclave import EnclaveSession
from confide.errors import (
    AttestationError,
    ConfideError,
    KeyChanged,
    MalformedEvidence,
    OutsideValidity,
    UnknownRoot,
    WrongBinding,
)
from confide.net.tls import make_certificates


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass
class Server:
    """A workload whose TLS ends in it, as far as it says so. context: what shows its certificate."""

    fake: FakeWorkload
    folder: Path
    context: ssl.SSLContext
    key: ec.EllipticCurvePrivateKey

    def show(self, certificate: bytes, key: ec.EllipticCurvePrivateKey) -> None:
        """Present this certificate (DER) to whoever connects from now on."""
        pem = load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = self.folder / "shown.pem"
        path.write_bytes(pem + private)
        self.context.load_cert_chain(path)

    def connect(self) -> EnclaveSession:
        session = confide.connect(self.fake.url, simulated_root=self.folder / "tee" / "root.pem", ra_tls=True)
        assert isinstance(session, EnclaveSession)
        return session


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with ra_tls_server(tmp_path) as running:
        yield running


@contextmanager
def ra_tls_server(folder: Path) -> Iterator[Server]:
    key = ec.generate_private_key(ec.SECP256R1())
    fake = simulated(folder / "tee", tls_spki=sha256(spki(key)).hexdigest())
    server = Server(fake, folder, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), key)
    server.show(make_certificate(key, fake.workload.reader.read, now=datetime.now(UTC)), key)
    with serving(fake, server.context):
        yield server


def test_requests_go_straight_into_attested_tls(server: Server) -> None:
    with server.connect() as session:
        assert session.chat("hello") == "olleh"
        assert list(session.chat("hello", stream=True))
        assert "TLS" not in str(session.trust)  # simulated, so nothing is protected by anything
    assert server.fake.seen[:2] == ["/attestation", ("/v1/models", b"")]
    assert "/encrypted" not in server.fake.seen


def test_the_same_with_asyncio(server: Server) -> None:
    async def ask() -> str:
        async with server.connect() as session:
            return (await session.async_openai.completions.create(model=MODEL, prompt="hello")).choices[0].text

    assert asyncio.run(ask()) == "olleh"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_new_version_is_verified_and_asked(server: Server, asynchronous: bool) -> None:
    async def ask_async(session: EnclaveSession) -> str:
        async with session:
            return (await session.async_openai.completions.create(model=MODEL, prompt="abc")).choices[0].text

    with server.connect() as session:
        certificate, key = somebody_else(server)
        server.show(certificate, key)
        server.fake.restart()
        server.fake.workload.tls_spki = sha256(spki(key)).hexdigest()
        server.fake.seen.clear()
        assert (asyncio.run(ask_async(session)) if asynchronous else session.chat("abc")) == "cba"
    assert server.fake.seen[0] == "/attestation"


def somebody_else(server: Server) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """Another workload of the same machine."""
    key = ec.generate_private_key(ec.SECP256R1())
    return make_certificate(key, server.fake.workload.reader.read, now=datetime.now(UTC)), key


def no_evidence(_: Server) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """An ordinary web server."""
    made = make_certificates([])
    key = load_pem_private_key(made.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return load_pem_x509_certificate(made.chain).public_bytes(Encoding.DER), key


def borrowed_evidence(server: Server) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """The machine's evidence, which speaks for another key."""
    key = ec.generate_private_key(ec.SECP256R1())
    evidence = server.fake.workload.reader.read(bytes(64))
    return make_certificate(key, lambda _: evidence, now=datetime.now(UTC)), key


def another_root(server: Server) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """A machine under a root that nobody here trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    tee = SimulatedTee.create(server.folder / "other")
    return make_certificate(key, tee.read, now=datetime.now(UTC)), key


def out_of_date(server: Server) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """The workload's own key, with a certificate and evidence of a month ago."""
    return make_certificate(server.key, server.fake.workload.reader.read, now=datetime.now(UTC) - LIFETIME), server.key


def of_tomorrow(server: Server) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """The same of a machine whose clock is wrong, or ours is."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    return make_certificate(server.key, server.fake.workload.reader.read, now=tomorrow), server.key


def a_services_token(_: Server) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """Somebody whose certificate carries a verification service's token, of which the policy names none."""
    key = ec.generate_private_key(ec.SECP256R1())
    token = Evidence(Family.TOKEN, b"eyJhbGciOiJub25lIn0.e30.")
    return make_certificate(key, lambda _: token, now=datetime.now(UTC)), key


def evidence_in_pieces(server: Server) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """Somebody whose certificate carries a composite of a token and of nothing."""
    key = ec.generate_private_key(ec.SECP256R1())
    members = (Evidence(Family.TOKEN, b"eyJhbGciOiJub25lIn0.e30."), Evidence(Family.NITRO, b""))
    return make_certificate(key, lambda _: Evidence(Family.COMPOSITE, b"", members=members), now=datetime.now(UTC)), key


IMPOSTORS: dict[str, tuple[Callable[[Server], tuple[bytes, Any]], type[ConfideError]]] = {
    "another workload": (somebody_else, KeyChanged),
    "no evidence": (no_evidence, MalformedEvidence),
    "evidence for another key": (borrowed_evidence, WrongBinding),
    "an old certificate": (out_of_date, OutsideValidity),
    "a certificate of tomorrow": (of_tomorrow, OutsideValidity),
    "another root": (another_root, AttestationError),
    "a service's token": (a_services_token, UnknownRoot),
    "evidence in pieces": (evidence_in_pieces, MalformedEvidence),
}


@pytest.mark.parametrize("impostor", IMPOSTORS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_impostor_is_sent_nothing(server: Server, impostor: str, asynchronous: bool) -> None:
    make, error = IMPOSTORS[impostor]

    async def ask_async(session: EnclaveSession) -> None:
        async with session:
            await session.async_openai.completions.create(model=MODEL, prompt="a secret")

    def ask(session: EnclaveSession) -> None:
        if asynchronous:
            asyncio.run(ask_async(session))
        else:
            session.generate("a secret")

    with server.connect() as session:
        server.show(*make(server))
        with pytest.raises(error):
            ask(session)
    assert set(server.fake.seen) == {"/attestation"}


def test_tls_that_ends_elsewhere_is_refused(server: Server) -> None:
    server.fake.workload.tls_spki = ""
    with server.connect() as session, pytest.raises(WrongBinding, match="without ra_tls"):
        session.chat("a secret")
    assert server.fake.seen == ["/attestation"]
