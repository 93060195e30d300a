"""An owner with a key, a broker for it, and a workload on a simulated machine."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from confide.attest.collateral import Collateral
from confide.attest.policy import AnyPolicy, SimulatedPolicy
from confide.attest.simulated import SimulatedTee
from confide.attest.simulated_vendor import Listing
from confide.broker.broker import Broker
from confide.broker.log import Line, LogReader
from confide.broker.store import Conditions, KeyStore, StoredKey
from confide.channel.key_release import ReleaseAnswer, ReleaseRequest, wrapping_info
from confide.enclave.workload import Workload
from confide.packages.sealed.key import ModelKey

KEY = ModelKey(bytes(range(32)))
MODEL = "ab" * 32
PASSPHRASE = "correct horse"
NOW = datetime.now(UTC)


def root_of(tee: SimulatedTee) -> bytes:
    return tee.certificates["root"].public_bytes(Encoding.DER)


def collateral_of(tee: SimulatedTee) -> Collateral:
    return tee.collateral(Listing(NOW))


def simulated(tee: SimulatedTee, policy: AnyPolicy | None = None) -> Conditions:
    return Conditions(MODEL, policy or SimulatedPolicy(), root_of(tee))


@dataclass
class Scene:
    """A broker with one key, and a workload on a simulated machine. now: the broker's clock."""

    folder: Path
    store: KeyStore
    broker: Broker
    workload: Workload
    now: datetime = field(default_factory=lambda: NOW)

    def request(self, nonce: str | None = None, key: str = KEY.id) -> ReleaseRequest:
        nonce = self.broker.nonce(self.now).nonce if nonce is None else nonce
        return ReleaseRequest(key, self.workload.attest(nonce))

    def release(self, request: ReleaseRequest) -> ReleaseAnswer:
        return self.broker.release(request, self.now, "192.0.2.1")

    def open(self, request: ReleaseRequest, answer: ReleaseAnswer) -> ModelKey:
        info = wrapping_info(request.key, request.attested.statement.nonce)
        return ModelKey(self.workload.key.decrypt(answer.wrapped, info))

    def bind(self, conditions: Conditions) -> StoredKey:
        """Bind the key to other conditions."""
        self.store.remove(KEY.id)
        return self.store.add(KEY, conditions, self.now)

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @property
    def logged(self) -> list[Line]:
        return list(LogReader(self.broker.log.path))
