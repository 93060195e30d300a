"""What a workload is to those outside: its keys, and evidence that speaks for them on demand."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from confide.attest.collateral import Collateral
from confide.attest.configuration import Configuration
from confide.attest.reading.reader import EvidenceReader
from confide.attest.release import RELEASE
from confide.attest.scores import SCORES
from confide.attest.statement import Statement
from confide.attest.training import TRAINING
from confide.attest.wire import Attested
from confide.channel.keys import KEY_PURPOSE, ChannelKey
from confide.enclave.configuration import own_configuration
from confide.graph.verdict import PURPOSE as VERDICT_PURPOSE
from confide.graph.verdict import VerdictKey
from confide.receipts.keyset import PURPOSE as KEYSET_PURPOSE
from confide.receipts.keyset import Keyset, make_keyset, report_data
from confide.receipts.receipt import ReceiptKey
from confide.receipts.report import write_report

TLS_PURPOSE: Final = "tls"
"""Under this name a statement holds the SHA-256 of a TLS key's SPKI, in hexadecimal, where TLS ends in here too."""
_KEYSET_SECONDS: Final = 365 * 86_400
"""For which receipts of one process are believed; by then it should have been replaced by a newer one."""


@dataclass
class Workload:
    """This process, as attestation sees it.

    reader: where its evidence comes from. collateral: what it can send along for checking that, if anything.
    model_digest: of the model it serves, empty until that is known. configuration: what runs, as far as that is known.
    release: a bundle that says whose build this is, see `attest.release`; scores, training: certificates of the model
    and of what lies over it, see `attest.scores` and `attest.training`; all are sent along and not looked at.
    receipt_key: signs receipts; verdict_key: what a coordinator says of its graph. keyset_until: when nobody need
    believe the former any more, in seconds since 1970.
    """

    reader: EvidenceReader
    collateral: Callable[[], Collateral] = Collateral
    key: ChannelKey = field(default_factory=ChannelKey)
    model_digest: str = ""
    policy_version: str = ""
    tls_spki: str = ""
    configuration: Configuration = field(default_factory=own_configuration)
    release: bytes | None = None
    scores: bytes | None = None
    training: bytes | None = None
    receipt_key: ReceiptKey = field(default_factory=ReceiptKey)
    verdict_key: VerdictKey | None = None
    keyset_until: int = field(default_factory=lambda: int(time.time()) + _KEYSET_SECONDS)

    @property
    def keyset(self) -> Keyset:
        """The keys that receipts, and TLS where it ends here, are known by."""
        return make_keyset(self.receipt_key.id, self.receipt_key.public, self.keyset_until, self.tls_spki)

    def attest(self, nonce: str) -> Attested:
        """Fresh evidence for a nonce in hexadecimal. EvidenceUnavailable where it cannot be had."""
        keys = {KEY_PURPOSE: self.key.public.raw.hex(), KEYSET_PURPOSE: self.keyset.canonical.hex()}
        if self.tls_spki:
            keys[TLS_PURPOSE] = self.tls_spki
        if self.verdict_key:
            keys[VERDICT_PURPOSE] = self.verdict_key.public.hex()
        statement = Statement(nonce, self.model_digest, self.policy_version, keys, self.configuration)
        return Attested.make(self.reader.read(statement.digest()), statement, self._collateral())

    def report(self, nonce: str | None) -> bytes:
        """Fresh evidence in ACI's form, which binds the keyset alone. nonce: 32 bytes in hexadecimal, or none."""
        keyset = self.keyset
        data = report_data(keyset.digest, nonce)
        return write_report(keyset, data, self.reader.read(data), self._collateral())

    def _collateral(self) -> Collateral:
        collateral = self.collateral()
        own = {RELEASE: self.release, SCORES: self.scores, TRAINING: self.training}
        along = {name: document for name, document in own.items() if document is not None}
        return replace(collateral, documents={**collateral.documents, **along}) if along else collateral
