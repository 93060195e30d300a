"""Holds a workload's evidence against the conditions of a key. Pure, but for collateral that has to be fetched.

Whatever a policy says, the hardware must have signed the statement that holds the broker's nonce, the digest of the
key's model, and the channel key. A key with a policy for production is judged under the vendors' roots, and by a type
of policy that asks for them: simulated evidence never gets it.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime

from confide.attest.appraise import Verifies, appraise
from confide.attest.check import Check, check
from confide.attest.collateral import Collateral
from confide.attest.collateral_lookup import CollateralSource, SentCollateral
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import AnyPolicy
from confide.attest.policy import appraise as appraise_claims
from confide.attest.requirements import Fresh, Model
from confide.attest.result import AttestationResult
from confide.attest.roots import ProductionRoots, SimulatedRoots
from confide.attest.statement import Statement
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.broker.store import Conditions
from confide.channel.keys import KEY_PURPOSE, ChannelPublicKey
from confide.errors import AttestationError, ChannelRefused


@dataclass(frozen=True)
class Appraiser:
    """Judges workloads for one owner.

    production: verifies under the vendors' roots. source: where collateral comes from.
    demands: a policy that every workload must satisfy besides that of the key; where the two are not of one kind, no
    evidence satisfies both.
    """

    production: Verifies = field(default_factory=lambda: Verifier(ProductionRoots()))
    source: CollateralSource = field(default_factory=SentCollateral)
    demands: AnyPolicy | None = None

    def appraise(self, attested: Attested, conditions: Conditions, nonce: str, now: datetime) -> AttestationResult:
        """The verdict, with every check of both policies. Nothing is raised for evidence that does not hold."""
        evidence, statement = attested.evidence.thaw(), attested.statement
        asked = of_the_model(conditions)
        own = replace(asked, requirements=(*asked.requirements, Fresh(nonce)))
        try:
            collateral = self._collateral(attested, evidence, conditions)
        except AttestationError as error:
            return appraise_claims(error, own, now, family=evidence.family)
        verifier = self._verifier(conditions)
        results = [
            appraise(verifier, evidence, collateral, policy, now, statement=statement)
            for policy in (own, self.demands)
            if policy is not None
        ]
        if results[0].claims is not None and conditions.simulated_root is None:
            self.source.learn(results[0].claims, collateral.provenance)
        checks = dict.fromkeys(one for result in results for one in result.checks)
        return replace(results[0], checks=(*checks, _channel_key_check(statement)))

    def _collateral(self, attested: Attested, evidence: Evidence, conditions: Conditions) -> Collateral:
        sent = attested.collateral.thaw()
        if conditions.simulated_root is not None:  # a simulated machine is its own vendor
            return sent
        return self.source.find(evidence, sent)

    def _verifier(self, conditions: Conditions) -> Verifies:
        if conditions.simulated_root is None:
            return self.production
        return Verifier(SimulatedRoots(dict.fromkeys(Family, conditions.simulated_root)))


def of_the_model(conditions: Conditions) -> AnyPolicy:
    """The policy, with the key's model. Only a policy that names that itself can let an upstream run it."""
    policy, digest = conditions.policy, conditions.model_digest
    named = any(isinstance(one, Model) and one.sha256 == digest for one in policy.requirements)
    return policy if named else replace(policy, requirements=(*policy.requirements, Model(digest)))


def channel_key(statement: Statement) -> ChannelPublicKey:
    """What model keys are wrapped to. ChannelRefused where the statement names none."""
    return ChannelPublicKey.parse(statement.channel_keys.get(KEY_PURPOSE, ""))


def _channel_key_check(statement: Statement) -> Check:
    expected = "a key to encrypt to, in the statement"
    try:
        return check("channel-key", expected, channel_key(statement).id.hex(), ok=True)
    except ChannelRefused:
        return check("channel-key", expected, "none", ok=False)
