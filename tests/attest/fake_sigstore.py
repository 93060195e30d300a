"""A Sigstore of one's own: Fulcio, its transparency log, and Rekor with one entry, all with keys made here."""

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

IDENTITY = "https://github.com/owner/model/.github/workflows/release.yml@refs/tags/v1.0"
ISSUER = "https://token.actions.githubusercontent.com"
SIGNED = datetime.fromisoformat("2026-02-01T12:00:00+00:00")
IN_TOTO = "application/vnd.in-toto+json"
Key = ec.EllipticCurvePrivateKey


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def spki(of: Key) -> bytes:
    return of.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(of: Key) -> bytes:
    return hashlib.sha256(spki(of)).digest()


def sign(by: Key, data: bytes) -> bytes:
    return by.sign(data, ec.ECDSA(hashes.SHA256()))


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def usage(**used: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    every = (*names, "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: used.get(name, False) for name in every})


@dataclass(frozen=True)
class FakeSigstore:
    """Its keys. Each `Signing` says what is signed, by whom, and what is wrong with it."""

    fulcio: Key = field(default_factory=key)
    ct: Key = field(default_factory=key)
    rekor: Key = field(default_factory=key)

    @cached_property
    def root(self) -> x509.Certificate:
        public = self.fulcio.public_key()
        builder = x509.CertificateBuilder(named("fulcio"), named("fulcio"), public, 1)
        return (
            builder.not_valid_before(SIGNED - timedelta(days=900))
            .not_valid_after(SIGNED + timedelta(days=900))
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .add_extension(usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self.fulcio, hashes.SHA256())
        )

    def trusted_root(self) -> str:
        """As Sigstore publishes its own."""
        start = {"start": "2024-01-01T00:00:00Z"}

        def log(of: Key, url: str) -> dict[str, Any]:
            public = {"rawBytes": b64(spki(of)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": start}
            return {
                "baseUrl": url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": public,
                "logId": {"keyId": b64(key_id(of))},
            }

        authority = {
            "subject": {"organization": "nobody", "commonName": "fulcio"},
            "uri": "https://fulcio.invalid",
            "certChain": {"certificates": [{"rawBytes": b64(self.root.public_bytes(Encoding.DER))}]},
            "validFor": start,
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self.rekor, "https://rekor.invalid")],
                "certificateAuthorities": [authority],
                "ctlogs": [log(self.ct, "https://ct.invalid")],
                "timestampAuthorities": [],
            }
        )

    def certificate(self, signing: "Signing", signer: Key) -> x509.Certificate:
        """Over the identity, with the timestamp of the transparency log in it."""
        builder = x509.CertificateBuilder(named("fulcio"), x509.Name([]), signer.public_key(), 7)
        begin = signing.at - timedelta(minutes=1)
        builder = builder.not_valid_before(begin).not_valid_after(begin + timedelta(minutes=10))
        issuer = signing.issuer.encode()
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.fulcio.public_key())
        for extension, critical in (
            (usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage([signing.purpose]), False),
            (x509.SubjectKeyIdentifier.from_public_key(signer.public_key()), False),
            (authority, False),
            (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(signing.identity)]), True),
            (opaque("1.3.6.1.4.1.57264.1.8", b"\x0c" + bytes([len(issuer)]) + issuer), False),
        ):
            builder = builder.add_extension(extension, critical)
        if signing.logged:
            tbs = builder.sign(self.fulcio, hashes.SHA256()).tbs_certificate_bytes
            builder = builder.add_extension(self.timestamp(tbs, signing), critical=False)
        return builder.sign(self.fulcio, hashes.SHA256())

    def timestamp(self, tbs: bytes, signing: "Signing") -> x509.UnrecognizedExtension:
        """RFC 6962, 3.2 and 3.3: a list of one SCT for a precertificate."""
        milliseconds = int(signing.at.timestamp() * 1000)
        entry = key_id(self.fulcio) + len(tbs).to_bytes(3, "big") + tbs
        signature = sign(self.ct, struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + bytes(2))
        sct = b"\0" + key_id(self.ct) + struct.pack("!QH", milliseconds, 0) + b"\4\3"
        sct += len(signature).to_bytes(2, "big") + signature
        listed = (len(sct) + 2).to_bytes(2, "big") + len(sct).to_bytes(2, "big") + sct
        size = bytes([len(listed)]) if len(listed) < 128 else b"\x81" + bytes([len(listed)])
        return opaque("1.3.6.1.4.1.11129.2.4.2", b"\4" + size + listed)

    def bundle(self, signing: "Signing") -> dict[str, Any]:
        """A bundle, version 0.3, as JSON."""
        signer = key()
        certificate = self.certificate(signing, signer)
        pae = f"DSSEv1 {len(signing.kind)} {signing.kind} {len(signing.payload)} ".encode() + signing.payload
        signature = sign(signing.thief or signer, pae)
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": b64(certificate.public_bytes(Encoding.DER))},
                "tlogEntries": [self.entry(signing, certificate, signature)],
            },
            "dsseEnvelope": {
                "payload": b64(signing.payload),
                "payloadType": signing.kind,
                "signatures": [{"sig": b64(signature)}],
            },
        }

    def entry(self, signing: "Signing", certificate: x509.Certificate, signature: bytes) -> dict[str, Any]:
        """The only entry of a log, with its inclusion proof, its signed checkpoint and the log's promise."""
        verifier = b64(certificate.public_bytes(Encoding.PEM))
        body = rfc8785.dumps(
            {
                "apiVersion": "0.0.1",
                "kind": "dsse",
                "spec": {
                    "envelopeHash": {"algorithm": "sha256", "value": "00" * 32},
                    "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(signing.recorded).hexdigest()},
                    "signatures": [{"signature": b64(signature), "verifier": verifier}],
                },
            }
        )
        root = hashlib.sha256(b"\0" + body).digest()
        seconds = int((signing.at + signing.entered).timestamp())
        note = f"rekor.invalid - 1\n1\n{b64(root)}\n"
        signed_note = b64(key_id(self.rekor)[:4] + sign(self.rekor, note.encode()))
        promised = rfc8785.dumps(
            {"body": b64(body), "integratedTime": seconds, "logID": key_id(self.rekor).hex(), "logIndex": 0}
        )
        return {
            "logIndex": "0",
            "logId": {"keyId": b64(key_id(self.rekor))},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(seconds),
            "inclusionPromise": {"signedEntryTimestamp": b64(sign(self.rekor, promised))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": b64(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n\u2014 rekor.invalid {signed_note}\n"},
            },
            "canonicalizedBody": b64(body),
        }

    def release(self, signing: "Signing") -> bytes:
        return json.dumps(self.bundle(signing)).encode()


def opaque(oid: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)


def statement(*measurements: dict[str, Any], **changes: Any) -> bytes:
    """An in-toto statement of a release."""
    content = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "image", "digest": {"sha256": "00" * 32}}],
        "predicateType": "urn:confide:measurements:v1",
        "predicate": {"measurements": list(measurements)},
    }
    return json.dumps(content | changes).encode()


@dataclass(frozen=True)
class Signing:
    """What is signed, as it should be unless told. recorded: what the log has. entered: how long after the signing."""

    payload: bytes
    identity: str = IDENTITY
    issuer: str = ISSUER
    at: datetime = SIGNED
    kind: str = IN_TOTO
    purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING
    logged: bool = True
    entered: timedelta = timedelta()
    thief: Key | None = None
    instead: bytes | None = None

    @property
    def recorded(self) -> bytes:
        return self.payload if self.instead is None else self.instead

    def but(self, **changes: Any) -> "Signing":
        return replace(self, **changes)
