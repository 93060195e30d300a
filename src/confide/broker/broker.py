"""Who gets a model key: a request and a time in, the wrapped key or a typed refusal out. Knows no socket.

Each decision is in the log, on the disk, before anybody hears of it.
"""

import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

import msgspec
import rfc8785

from confide.attest.check import Check, check
from confide.attest.defaults import COLLATERAL
from confide.attest.policy_toml import policy_digest
from confide.broker.appraisal import Appraiser, channel_key
from confide.broker.log import AuditLog, Entry
from confide.broker.store import KeyStore
from confide.channel.key_release import NonceAnswer, ReleaseAnswer, ReleaseRequest, wrapping_info
from confide.channel.nonces import LIFETIME, Nonces
from confide.errors import KeyRefused, UnknownModelKey

_MAX_WORDS: Final = 512
"""What the log keeps of each side of a check: a list of what is allowed can be long."""


@dataclass(frozen=True)
class Broker:
    """One owner's keys, log, and judgement. Safe for several threads. Others may share keys and log, and no nonces."""

    store: KeyStore
    log: AuditLog
    appraiser: Appraiser = field(default_factory=Appraiser)
    nonces: Nonces = field(default_factory=Nonces)

    def nonce(self, now: datetime, who: str = "") -> NonceAnswer:
        """A nonce to make evidence for. who: it is given to. ServerBusy where too many were given out lately."""
        return NonceAnswer(self.nonces.issue(now, who), int(LIFETIME.total_seconds()))

    def release(self, request: ReleaseRequest, now: datetime, peer: str = "") -> ReleaseAnswer:
        """The key, wrapped to the workload's channel key. peer: the address that asks, for the log.

        NonceRefused where the evidence is not for a nonce of this broker's, which uses it up; UnknownModelKey;
        KeyRefused with the checks that failed. KeyStoreError, AuditLogUnavailable and AuditLogCorrupted where
        something is wrong on this side: then, too, no key leaves.
        """
        attested, nonce = request.attested, request.attested.statement.nonce
        self.nonces.take(nonce, now)
        entry = _entry(request, now, peer)
        try:
            stored = self.store.get(request.key)
        except UnknownModelKey:
            failed = check(UnknownModelKey.code, "a key that is kept here", request.key, ok=False)
            self.log.append(msgspec.structs.replace(entry, failed=(failed,)))
            raise
        self.log.take_left(now)  # a change of this key's policy stands before what was decided under it
        policy = policy_digest(stored.conditions.policy)
        entry = msgspec.structs.replace(entry, model=stored.conditions.model_digest, policy=policy)
        result = self.appraiser.appraise(attested, stored.conditions, nonce, now)
        entry = msgspec.structs.replace(entry, simulated=result.simulated, collateral=_collateral(result.checks))
        if not result.trusted:
            self.log.append(msgspec.structs.replace(entry, failed=tuple(map(_shortened, result.failures))))
            raise _refusal(stored.key.id, result.failures)
        wrapped = channel_key(attested.statement).encrypt(stored.key.raw, wrapping_info(stored.key.id, nonce))
        self.log.append(msgspec.structs.replace(entry, event="released"))
        return ReleaseAnswer(stored.key.id, wrapped)


def _entry(request: ReleaseRequest, now: datetime, peer: str) -> Entry:
    """The line for a refusal, until more is known."""
    attested, statement = request.attested, request.attested.statement
    return Entry(
        now,
        "refused",
        key=request.key,
        family=attested.evidence.family.value,
        nonce=statement.nonce,
        statement=statement.digest().hex(),
        evidence=hashlib.sha256(rfc8785.dumps(msgspec.to_builtins(attested.evidence))).hexdigest(),
        peer=peer,
    )


def _collateral(checks: tuple[Check, ...]) -> str:
    """What was found of the collateral; empty where evidence was refused before that."""
    return next((one.seen for one in checks if one.code == COLLATERAL), "")


def _shortened(failed: Check) -> Check:
    return replace(failed, expected=failed.expected[:_MAX_WORDS], seen=failed.seen[:_MAX_WORDS])


def _refusal(key: str, failures: tuple[Check, ...]) -> KeyRefused:
    codes = tuple(dict.fromkeys(check.code for check in failures))
    return KeyRefused(
        f"Key {key} is not released to this workload, which failed: {', '.join(codes)}. "
        "The owner's log says what was expected and seen (`confide keys log show`).",
        codes,
    )
