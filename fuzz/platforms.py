"""Evidence of Intel's, of TPMs and in certificates, verdicts that were frozen and tokens: what strangers send."""

from collections.abc import Callable
from datetime import UTC, datetime

from confide.attest.bundle import Bundle
from confide.attest.chain import read_certificate, read_chain, read_crl
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.families import dcap_signature
from confide.attest.families.tpm import Quote
from confide.attest.ra_tls import decode_evidence, extract, open_certificate
from confide.attest.requirements import VerifierService
from confide.attest.roots import ProductionRoots
from confide.attest.tokens import verify_token
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.errors import AttestationError, ConfideError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def dcap_quote(data: bytes) -> None:
    """A quote of Intel's without collateral, and the same with collateral of nobody's."""
    for family in (Family.SGX, Family.TDX):
        try:
            Verifier(ProductionRoots()).verify(Evidence(family, data), Collateral({"dcap": data}), NOW)
        except AttestationError:
            continue
        raise AssertionError("a quote that nobody signed was believed")
    dcap_signature.parse(data)


def tpm_quote(data: bytes) -> None:
    """A TPM's quote, and its signature."""
    parts = {"signature": data[:300], "pcrs": data[:96]}
    try:
        Verifier(ProductionRoots()).verify(Evidence(Family.TPM, data, parts), Collateral({"ak": data}), NOW)
    except AttestationError:
        Quote.parse(data)


def certificates(data: bytes) -> None:
    """A certificate, a chain and a list, as files bring them."""
    for read in (read_certificate, read_chain, read_crl):
        try:
            read(data, "peer's file")
        except ConfideError:
            continue


def ra_tls(data: bytes) -> None:
    """A certificate with evidence in it, and the extension by itself."""
    for read in (extract, open_certificate, decode_evidence):
        try:
            read(data)
        except ConfideError:
            continue


def bundle(data: bytes) -> None:
    """A frozen verdict, with a policy of a stranger's in it."""
    found = Bundle.read(data)
    if Bundle.read(found.write()) != found:
        raise AssertionError("a bundle that was written is read as another")
    _ = (found.result.gist(), found.own_policy())


def attested(data: bytes) -> None:
    """What a workload answers when it is asked for its evidence."""
    found = Attested.decode(data)
    _ = (found.evidence.thaw(), found.collateral.thaw())


def token(data: bytes) -> None:
    """A verification service's word, which nobody signed."""
    for service in ("intel-trust-authority", "azure-attestation", "trustee", "nvidia-nras"):
        wanted = VerifierService(service, "https://verifier.example", '{"keys": []}')
        try:
            verify_token(data, (wanted,), NOW)
        except ConfideError:
            continue
        raise AssertionError("a token that nobody signed was believed")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "dcap-quote": dcap_quote,
    "tpm-quote": tpm_quote,
    "certificates": certificates,
    "ra-tls": ra_tls,
    "bundle": bundle,
    "attested": attested,
    "token": token,
}
_QUOTE = bytes((4, 0, 2, 0, 0x81, 0, 0, 0)) + bytes(640)
_INTEROPERABLE = b"\xd9\xea\x60\x82\x58\x30" + _QUOTE[:48] + b"\x46claims"
_TOKEN = b"eyJhbGciOiJFUzM4NCJ9.eyJpc3MiOiJodHRwczovL3ZlcmlmaWVyLmV4YW1wbGUifQ.AAAA"
_ATTESTED = b'{"evidence": {"family": "tdx", "raw": "AAAA"}, "statement": {"nonce": "ab"}, "collateral": {}}'
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "dcap-quote": lambda: [_QUOTE, bytes((3, 0)) + bytes(432)],
    "tpm-quote": lambda: [b"\xffTCG\x80\x18" + bytes(100)],
    "certificates": lambda: [b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\x30\x82\x01\x00"],
    "ra-tls": lambda: [b"\x30\x82\x01\x00\x30\x03\x02\x01\x00", b"\xd9\xea\x60\x82\x40\x40", _INTEROPERABLE],
    "bundle": lambda: [b'{"confide-bundle": 2, "policy": "confide-policy = 1"}'],
    "attested": lambda: [_ATTESTED],
    "token": lambda: [_TOKEN, b'[["JWT", "' + _TOKEN + b'"], {}]'],
}
