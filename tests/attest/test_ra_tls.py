import contextlib
import hashlib
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.evidence import Evidence, Family, qualifying_data
from confide.attest.ra_tls import (
    CONFIDE_TAG,
    DICE_EVIDENCE,
    MAX_CERTIFICATE_BYTES,
    QUOTE_TAG,
    Binding,
    PrivateKey,
    decode_evidence,
    encode_evidence,
    extract,
    make_certificate,
    open_certificate,
    verify_binding,
)
from confide.errors import InvalidCertificate, MalformedEvidence, OutsideValidity, WrongBinding

NOW = datetime.now(UTC)
TDX_HEADER = bytes.fromhex("0400020081000000") + bytes(40)
SGX_HEADER = bytes.fromhex("0300020000000000") + bytes(40)
INTEL = x509.ObjectIdentifier("1.2.840.113741.1337.6")
INTEL_DER = bytes.fromhex("06092a864886f84d8a3906")
ECDSA = bytes.fromhex("300a06082a8648ce3d040302")
ECDSA_NULL = bytes.fromhex("300c06082a8648ce3d0403020500")
GRAMINE_DER = bytes.fromhex("060b06092a864886f84d8a3906")


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def spki(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def tdx(report_data: bytes) -> Evidence:
    return Evidence(Family.TDX, TDX_HEADER + report_data)


def believed(evidence: Evidence, report_data: bytes | None = None) -> Claims:
    """Claims as a verifier would make them: here the last 64 bytes of the quote are its report data."""
    data = evidence.raw[-64:] if report_data is None else report_data
    return Claims(evidence.family, RootKind.SIMULATED, data, False, TcbStatus.UP_TO_DATE)


def make(key: PrivateKey, read: Callable[[bytes], Evidence] = tdx, binding: Binding = Binding.SPKI) -> bytes:
    return make_certificate(key, read, now=NOW, binding=binding)


def with_extension(key: ec.EllipticCurvePrivateKey, identifier: x509.ObjectIdentifier, value: bytes) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "RATLS")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
    builder = builder.add_extension(x509.UnrecognizedExtension(identifier, value), critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def spliced(certificate: bytes, at: int, old: bytes, new: bytes) -> bytes:
    """Replace one element, and correct the lengths of everything around it, which here all have two bytes."""
    grown = bytearray(certificate[:at] + new + certificate[at + len(old) :])
    start = 0
    while start < at:  # the next element that begins before the place: around it, or wholly before it
        wide = certificate[start + 1] == 0x82
        content = start + (4 if wide else 2)
        length = int.from_bytes(certificate[start + 2 : start + 4]) if wide else certificate[start + 1]
        if content + length > at:
            grown[start + 2 : start + 4] = (length + len(new) - len(old)).to_bytes(2)
        start = content if content + length > at else content + length
    return bytes(grown)


def as_gramine_writes(certificate: bytes) -> bytes:
    """Intel's identifier with tag and length inside its value, and both signature algorithms with a NULL too many."""
    certificate = spliced(certificate, certificate.index(INTEL_DER), INTEL_DER, GRAMINE_DER)
    certificate = spliced(certificate, certificate.index(ECDSA), ECDSA, ECDSA_NULL)
    return spliced(certificate, certificate.index(ECDSA), ECDSA, ECDSA_NULL)


@pytest.mark.parametrize("binding", Binding)
@pytest.mark.parametrize(
    "new_key", [lambda: ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate]
)
def test_a_certificate_is_bound_to_its_key(new_key: Callable[[], PrivateKey], binding: Binding) -> None:
    certificate = make(new_key(), binding=binding)
    evidence = extract(certificate)
    assert evidence.family is Family.TDX
    verify_binding(certificate, believed(evidence))
    with pytest.raises(WrongBinding, match="another key"):
        verify_binding(make(new_key(), binding=binding), believed(evidence))


def test_the_default_binding_is_sha512_of_the_spki(key: ec.EllipticCurvePrivateKey) -> None:
    assert extract(make(key)).raw[-64:] == hashlib.sha512(spki(key)).digest()


def test_the_interoperable_form_is_as_gramine_writes_it(key: ec.EllipticCurvePrivateKey) -> None:
    certificate = make(key, binding=Binding.CLAIMS)
    value = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_oid(DICE_EVIDENCE).value
    assert isinstance(value, x509.UnrecognizedExtension)
    assert value.value[:6].hex() == "d9ea60825870"  # tag 60000, an array of two, a quote of 112 bytes
    claims = bytes.fromhex("a16b") + b"pubkey-hash" + bytes.fromhex("582482015820") + hashlib.sha256(spki(key)).digest()
    assert value.value[6 + 112 :] == bytes.fromhex("5833") + claims
    assert extract(certificate).raw[-64:] == hashlib.sha256(claims).digest() + bytes(32)


@pytest.mark.parametrize("algorithm", [(1, "sha256"), (7, "sha384"), (8, "sha512")])
def test_accepts_each_hash_of_the_interoperable_form(
    key: ec.EllipticCurvePrivateKey, algorithm: tuple[int, str]
) -> None:
    entry = cbor2.dumps([algorithm[0], hashlib.new(algorithm[1], spki(key)).digest()])
    claims = cbor2.dumps({"pubkey-hash": entry, "nonce": b"n"})
    evidence = tdx(hashlib.sha256(claims).digest() + bytes(32))
    certificate = with_extension(key, DICE_EVIDENCE, cbor2.dumps(cbor2.CBORTag(QUOTE_TAG, [evidence.raw, claims])))
    verify_binding(certificate, believed(evidence))
    with pytest.raises(WrongBinding):
        verify_binding(certificate, believed(evidence, hashlib.sha512(spki(key)).digest()))


def test_claims_about_another_key_are_refused_though_the_quote_has_them(key: ec.EllipticCurvePrivateKey) -> None:
    claims = cbor2.dumps({"pubkey-hash": cbor2.dumps([1, bytes(32)])})
    evidence = tdx(hashlib.sha256(claims).digest() + bytes(32))
    certificate = with_extension(key, DICE_EVIDENCE, encode_evidence(evidence, claims))
    with pytest.raises(WrongBinding, match="another key"):
        verify_binding(certificate, believed(evidence))


@pytest.mark.parametrize("mangle", [lambda certificate: certificate, as_gramine_writes], ids=["intel", "gramine"])
def test_accepts_the_older_form_under_both_identifiers(
    key: ec.EllipticCurvePrivateKey, mangle: Callable[[bytes], bytes]
) -> None:
    quote = SGX_HEADER + bytes(300) + hashlib.sha256(spki(key)).digest() + bytes(32)
    certificate = mangle(with_extension(key, INTEL, quote))
    assert extract(certificate) == Evidence(Family.SGX, quote)
    verify_binding(certificate, believed(extract(certificate)))
    with pytest.raises(WrongBinding):
        verify_binding(certificate, believed(extract(certificate), bytes(64)))


def test_the_mangled_certificate_has_exactly_the_bytes_that_gramine_writes(key: ec.EllipticCurvePrivateKey) -> None:
    certificate = as_gramine_writes(with_extension(key, INTEL, SGX_HEADER + bytes(364)))
    assert GRAMINE_DER in certificate
    assert len(certificate) == 4 + int.from_bytes(certificate[2:4])


def test_a_tpm_signs_the_digest_and_a_composite_binds_by_its_first_member(
    key: ec.EllipticCurvePrivateKey,
) -> None:
    certificate = make(key, lambda data: Evidence(Family.TPM, b"attest", {"ak": b"key"}))
    tpm = believed(extract(certificate), qualifying_data(hashlib.sha512(spki(key)).digest()))
    verify_binding(certificate, tpm)
    composite = Claims(Family.COMPOSITE, RootKind.SIMULATED, b"", False, TcbStatus.UP_TO_DATE, members=(tpm,))
    verify_binding(certificate, composite)


def test_azure_binds_by_its_tpm_and_not_by_the_processor(key: ec.EllipticCurvePrivateKey) -> None:
    certificate = make(key, lambda data: Evidence(Family.AZURE, b"HCLA"))
    bound = hashlib.sha512(spki(key)).digest()

    def azure(quoted: bytes, processor: bytes) -> Claims:
        inner = Claims(Family.SNP, RootKind.SIMULATED, processor, False, TcbStatus.UNKNOWN)
        return Claims(Family.AZURE, RootKind.SIMULATED, quoted, False, TcbStatus.UNKNOWN, members=(inner,))

    verify_binding(certificate, azure(qualifying_data(bound), bytes(64)))
    for claims in (azure(bytes(32), bound), azure(bound, bound)):
        with pytest.raises(WrongBinding):
            verify_binding(certificate, claims)


def test_every_family_keeps_its_parts_and_members() -> None:
    gpu = Evidence(Family.NVIDIA, b"spdm", {"nonce": b"n"})
    composite = Evidence(Family.COMPOSITE, b"", members=(Evidence(Family.SNP, b"report", {"auxblob": b"x"}), gpu))
    assert decode_evidence(encode_evidence(composite)) == (composite, b"")


def confide(*items: object) -> bytes:
    return cbor2.dumps(cbor2.CBORTag(CONFIDE_TAG, list(items)))


@pytest.mark.parametrize(
    "extension",
    [
        b"",
        b"\xff",
        cbor2.dumps([1, 2]),
        cbor2.dumps(cbor2.CBORTag(60001, [b"report", b"claims"])),
        cbor2.dumps(cbor2.CBORTag(QUOTE_TAG, [TDX_HEADER])),
        cbor2.dumps(cbor2.CBORTag(QUOTE_TAG, [b"short", b"claims"])),
        cbor2.dumps(cbor2.CBORTag(QUOTE_TAG, [TDX_HEADER, b""])),
        confide("sgx", b"raw", {}, []),
        confide("martian", b"raw", {}, [], b""),
        confide("sgx", b"raw", {1: b"part"}, [], b""),
        confide("sgx", b"raw", {"part": "text"}, [], b""),
        confide("composite", b"", {}, [["sgx", b"", {}, []]] * 17, b""),
        confide("composite", b"", {}, [["composite", b"", {}, [["sgx", b"", {}, []]]]], b""),
        confide("sgx", b"raw", {}, [], b"") + b"\0",
        b"\x81" * 5000,
        confide("sgx", b"raw", {"part": cbor2.CBORTag(35, "(a+)+")}, [], b""),
        bytes.fromhex("da436f6e699f63736778416100a08040ff"),
        bytes.fromhex("da436f6e69856373677840a26161416161614162") + b"\x80\x40",
        bytes.fromhex("9b7fffffffffffffff"),
        bytes.fromhex("5b7fffffffffffffff00"),
    ],
)
def test_refuses_an_extension_that_is_not_evidence(extension: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        decode_evidence(extension)


@given(st.binary(max_size=300))
def test_any_extension_is_read_or_refused_as_malformed(extension: bytes) -> None:
    with contextlib.suppress(MalformedEvidence):
        decode_evidence(extension)


def test_a_certificate_without_evidence_says_so(key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(MalformedEvidence, match="carries no evidence"):
        extract(with_extension(key, x509.ObjectIdentifier("1.2.3.4"), b"x"))


def test_dates_are_those_that_the_library_reads(key: ec.EllipticCurvePrivateKey) -> None:
    for start in (NOW, datetime(1990, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2049, 12, 20, tzinfo=UTC)):
        certificate = make_certificate(key, tdx, now=start)
        opened, read = open_certificate(certificate), x509.load_der_x509_certificate(certificate)
        assert (opened.not_before, opened.not_after) == (read.not_valid_before_utc, read.not_valid_after_utc)


def test_a_certificate_is_current_from_its_first_second_to_its_last(key: ec.EllipticCurvePrivateKey) -> None:
    opened = open_certificate(make(key))
    second = timedelta(seconds=1)
    for now in (opened.not_before, opened.not_after):
        opened.require_current(now)
    for now in (opened.not_before - second, opened.not_after + second):
        with pytest.raises(OutsideValidity, match="check the clock"):
            opened.require_current(now)


@pytest.mark.parametrize(
    ("valid", "other"),
    [(b"\x17\x0d", b"\x18\x0d"), (b"Z\x17", b"+\x17"), (b"Z\x17", b"0\x17"), (b"\x17\x0d2", b"\x17\x0d:")],
)
def test_a_date_that_is_none_is_refused(key: ec.EllipticCurvePrivateKey, valid: bytes, other: bytes) -> None:
    certificate = make(key)
    assert valid in certificate
    with pytest.raises(MalformedEvidence, match="a date that is none"):
        open_certificate(certificate.replace(valid, other, 1))


def test_names_are_in_the_certificate(key: ec.EllipticCurvePrivateKey) -> None:
    made = make_certificate(key, tdx, now=NOW, names=["models.example", "192.0.2.7"])
    names = x509.load_der_x509_certificate(made).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "models.example"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "192.0.2.7"]
    with pytest.raises(InvalidCertificate, match="neither a host name nor an address"):
        make_certificate(key, tdx, now=NOW, names=["https://models.example"])


def test_a_certificate_cut_anywhere_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    certificate = make(key)
    for length in range(len(certificate)):
        with pytest.raises(MalformedEvidence):
            open_certificate(certificate[:length])


def test_sizes_are_bounded_when_made_and_when_read(key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(MalformedEvidence, match="leave event logs out"):
        make(key, lambda data: Evidence(Family.TDX, TDX_HEADER + data, {"event_log": bytes(MAX_CERTIFICATE_BYTES)}))
    with pytest.raises(MalformedEvidence, match="more than TLS carries"):
        extract(bytes(MAX_CERTIFICATE_BYTES + 1))


def test_a_handshake_ends_at_the_attested_key(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    certificate = make(key, lambda data: Evidence(Family.TDX, TDX_HEADER + bytes(60_000) + data))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    (tmp_path / "server.pem").write_text(pem + ssl.DER_cert_to_PEM_cert(certificate))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    ours, theirs = socket.socketpair()
    thread = Thread(target=lambda: server.wrap_socket(theirs, server_side=True).sendall(b"hello"), daemon=True)
    thread.start()
    with client.wrap_socket(ours) as connection:
        peer = connection.getpeercert(binary_form=True)
        assert peer is not None
        verify_binding(peer, believed(extract(peer)))
        assert connection.recv(5) == b"hello"
    thread.join(10)
