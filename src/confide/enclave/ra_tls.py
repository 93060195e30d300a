"""TLS that ends in here, with a certificate that carries the evidence for its own key, and is renewed in time."""

import asyncio
import hashlib
import logging
import os
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from confide.attest.ra_tls import LIFETIME, make_certificate
from confide.enclave.workload import Workload
from confide.errors import ConfideError

RENEW_SECONDS: Final = LIFETIME.total_seconds() / 3
RETRY_SECONDS: Final = 3600.0
_log = logging.getLogger(__name__)


class RaTls:
    """TLS for a server, with a new P-256 key that the workload's statements name from now on.

    context: shows a certificate that is good for 30 days, with evidence made for it. names: of the server, besides this
    machine's own. EvidenceUnavailable where no evidence can be had, InvalidCertificate for what is no name.
    """

    def __init__(self, workload: Workload, names: Iterable[str] = ()) -> None:
        self._workload = workload
        self._names = tuple(names)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.renew()
        spki = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        workload.tls_spki = hashlib.sha256(spki).hexdigest()

    def renew(self) -> None:
        """Show a new certificate to whoever connects from now on. The key stays, for sessions rely on it."""
        certificate = make_certificate(self._key, self._workload.reader.read, now=datetime.now(UTC), names=self._names)
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _load(self.context, pem + ssl.DER_cert_to_PEM_cert(certificate).encode())

    async def keep_current(self, every: float = RENEW_SECONDS, retry: float = RETRY_SECONDS) -> None:
        """Renew it three times in its life, and try again after an hour where no evidence can be had."""
        wait = every
        while True:
            await asyncio.sleep(wait)
            try:
                await asyncio.to_thread(self.renew)
            except (ConfideError, OSError) as error:
                _log.error("The RA-TLS certificate could not be renewed, and is tried again: %s", error)
                wait = retry
            else:
                wait = every


def ra_tls_context(workload: Workload, names: Iterable[str] = ()) -> ssl.SSLContext:
    """The context of a new `RaTls` that nobody renews."""
    return RaTls(workload, names).context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """`ssl` reads keys from files only; this one is in memory and has no name."""
    descriptor = os.memfd_create("ra-tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
