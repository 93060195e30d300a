"""TLS that ends in here, with a certificate that carries the evidence for its own key."""

import hashlib
import os
import ssl
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from confide.attest.ra_tls import make_certificate
from confide.enclave.workload import Workload


def ra_tls_context(workload: Workload) -> ssl.SSLContext:
    """A context for a server, with a new P-256 key that the workload's statements name from now on.

    The certificate is good for 30 days. EvidenceUnavailable where none can be had.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_certificate(key, workload.reader.read, now=datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _load(context, pem + ssl.DER_cert_to_PEM_cert(certificate).encode())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    workload.tls_spki = hashlib.sha256(spki).hexdigest()
    return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """`ssl` reads keys from files only; this one is in memory and has no name."""
    descriptor = os.memfd_create("ra-tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
