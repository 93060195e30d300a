"""TPM quotes by nobody's TPM."""

from hashlib import sha256

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import SimulatedRoots

from .authorities import Key, ec_key, rsa_key
from .cases import Case

NONCE = b"a client's nonce"
SHA256, SHA384 = 0x000B, 0x000C
RSASSA, RSAPSS, ECDSA = 0x0014, 0x0016, 0x0018
PCRS = bytes(range(32)) + bytes(32)
SELECTION = ((SHA256, b"\x81\x00\x00"),)
"""PCR 0 and 7."""


def sized(data: bytes, size: int = 2) -> bytes:
    return len(data).to_bytes(size, "big") + data


def quote(pcrs: bytes = PCRS, selection: tuple[tuple[int, bytes], ...] = SELECTION, digest: str = "sha256") -> bytes:
    """A TPMS_ATTEST over these PCRs' values."""
    hashed = hashes.Hash({"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}[digest])
    hashed.update(pcrs)
    banks = b"".join(bank.to_bytes(2, "big") + sized(bitmap, 1) for bank, bitmap in selection)
    head = bytes.fromhex("ff5443478018") + sized(b"signer") + sized(NONCE) + bytes(17) + bytes(range(8))
    return head + len(selection).to_bytes(4, "big") + banks + sized(hashed.finalize())


def signature(message: bytes, key: Key, scheme: int | None = None, hash_id: int = SHA256) -> bytes:
    """A TPMT_SIGNATURE."""
    digest = {SHA256: hashes.SHA256(), SHA384: hashes.SHA384()}[hash_id]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.key_size + 7) // 8
        numbers = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
        body = b"".join(sized(number.to_bytes(size, "big")) for number in numbers)
        scheme = ECDSA if scheme is None else scheme
    else:
        scheme = RSASSA if scheme is None else scheme
        pss = padding.PSS(padding.MGF1(digest), padding.PSS.MAX_LENGTH)
        body = sized(key.sign(message, pss if scheme == RSAPSS else padding.PKCS1v15(), digest))
    return scheme.to_bytes(2, "big") + hash_id.to_bytes(2, "big") + body


def public(key: Key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def enrolled(*keys: bytes) -> frozenset[str]:
    return frozenset(sha256(key).hexdigest() for key in keys)


def tpm_case(
    message: bytes | None = None, key: Key | None = None, pcrs: bytes = PCRS, scheme: int | None = None, **options: int
) -> Case:
    """A quote that verifies under an enrolled key."""
    key = key or ec_key("ak", ec.SECP256R1)
    message = quote(pcrs) if message is None else message
    parts = {"signature": signature(message, key, scheme, **options), "pcrs": pcrs}
    roots = SimulatedRoots(attestation_keys=enrolled(public(key)))
    return Case(Evidence(Family.TPM, message, parts), Collateral({"ak": public(key)}), roots)


def rsa_ak() -> rsa.RSAPrivateKey:
    return rsa_key("ak")
