"""What a workload is to those outside: its channel key, and evidence that speaks for it on demand."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from confide.attest.collateral import Collateral
from confide.attest.configuration import Configuration
from confide.attest.reading.reader import EvidenceReader
from confide.attest.release import RELEASE
from confide.attest.statement import Statement
from confide.attest.wire import Attested
from confide.channel.keys import KEY_PURPOSE, ChannelKey
from confide.enclave.configuration import own_configuration

TLS_PURPOSE: Final = "tls"
"""Under this name a statement holds the SHA-256 of a TLS key's SPKI, in hexadecimal, where TLS ends in here too."""


@dataclass
class Workload:
    """This process, as attestation sees it.

    reader: where its evidence comes from. collateral: what it can send along for checking that, if anything.
    model_digest: of the model it serves, empty until that is known. configuration: what runs, as far as that is known.
    release: a bundle that says whose build this is, see `attest.release`; it is sent along and not looked at.
    """

    reader: EvidenceReader
    collateral: Callable[[], Collateral] = Collateral
    key: ChannelKey = field(default_factory=ChannelKey)
    model_digest: str = ""
    policy_version: str = ""
    tls_spki: str = ""
    configuration: Configuration = field(default_factory=own_configuration)
    release: bytes | None = None

    def attest(self, nonce: str) -> Attested:
        """Fresh evidence for a nonce in hexadecimal. EvidenceUnavailable where it cannot be had."""
        keys = {KEY_PURPOSE: self.key.public.raw.hex()} | ({TLS_PURPOSE: self.tls_spki} if self.tls_spki else {})
        statement = Statement(nonce, self.model_digest, self.policy_version, keys, self.configuration)
        collateral = self.collateral()
        if self.release is not None:
            collateral = replace(collateral, documents={**collateral.documents, RELEASE: self.release})
        return Attested.make(self.reader.read(statement.digest()), statement, collateral)
