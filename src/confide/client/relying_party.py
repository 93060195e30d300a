"""Who decides whether a workload is trusted: the roots, the user's policy, and where collateral comes from."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.serialization import Encoding

from confide.attest.appraise import verified
from confide.attest.bundle import Bundle, freeze
from confide.attest.chain import read_certificate
from confide.attest.check import check
from confide.attest.claims import Claims
from confide.attest.collateral import Collateral, Provenance
from confide.attest.collateral_cache import CollateralCache
from confide.attest.collateral_lookup import CollateralSource, VendorCollateral
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import AnyPolicy, Policy, SimulatedPolicy
from confide.attest.policy import appraise as appraise_claims
from confide.attest.policy_toml import policy_from_toml, simulated_policy_from_toml
from confide.attest.requirements import Fresh
from confide.attest.result import AttestationResult
from confide.attest.roots import ProductionRoots, SimulatedRoots
from confide.attest.statement import Statement
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.channel.keys import KEY_PURPOSE, ChannelPublicKey
from confide.client.collateral_fetch import fetcher
from confide.disk.home import make_home
from confide.errors import AttestationError, AttestationRefused, ChannelRefused, InvalidPolicy


@dataclass(frozen=True)
class Verified:
    """A workload that the policy accepts. collateral: what its evidence was verified with.

    policy: what was asked, the nonce included. url: where it answered.
    """

    key: ChannelPublicKey
    statement: Statement
    result: AttestationResult
    evidence: Evidence
    collateral: Collateral
    policy: AnyPolicy
    url: str = ""


@dataclass(frozen=True)
class RelyingParty:
    """The user, as RFC 9334 calls whoever acts on a verdict."""

    verifier: Verifier
    policy: AnyPolicy
    source: CollateralSource

    @classmethod
    def configure(
        cls,
        policy: AnyPolicy | Path | str | None = None,
        simulated_root: Path | str | None = None,
        attestation_keys: Iterable[str] = (),
        *,
        offline: bool = False,
    ) -> Self:
        """Under the vendors' roots, or under a simulated root (a PEM file) and nothing else.

        policy: itself or a TOML file; without one, what every policy asks for. It has to be of the
        roots' kind, InvalidPolicy otherwise. attestation_keys: see ProductionRoots. offline: ask no vendor, take the
        collateral that a workload sends or the cache has, and show how old it is.
        """
        if simulated_root is None:
            return cls.under(None, _production(policy), attestation_keys, offline=offline)
        root = read_certificate(_read(simulated_root), "simulated root").public_bytes(Encoding.DER)
        return cls.under(root, _simulated(policy), attestation_keys)

    @classmethod
    def under(
        cls, root: bytes | None, policy: AnyPolicy, attestation_keys: Iterable[str] = (), *, offline: bool = False
    ) -> Self:
        """The same under a simulated root in DER, or None for the vendors', with a policy of that kind."""
        enrolled = frozenset(attestation_keys)
        if root is None:
            return cls(Verifier(ProductionRoots(enrolled)), policy, vendor_collateral(offline=offline))
        return cls(Verifier(SimulatedRoots(dict.fromkeys(Family, root), enrolled)), policy, _SimulatedVendor())

    def another(self, policy: AnyPolicy | Path | str) -> AnyPolicy:
        """Another policy of the same kind, itself or a TOML file. InvalidPolicy for one of the other kind."""
        return _production(policy) if isinstance(self.policy, Policy) else _simulated(policy)

    def appraise(self, attested: Attested, nonce: str, now: datetime, url: str = "") -> Verified:
        """AttestationRefused, with every check that failed, unless the hardware signed a statement made for this nonce.

        Beyond what the policy asks for, that statement must hold a channel key. url: where the workload answered.
        """
        evidence, statement = attested.evidence.thaw(), attested.statement
        policy = replace(self.policy, requirements=(*self.policy.requirements, Fresh(nonce)))
        try:
            collateral = self.source.find(evidence, attested.collateral.thaw())
        except AttestationError as error:
            raise refused(appraise_claims(error, policy, now, family=evidence.family)) from error
        result = self.verifier.appraise(evidence, collateral, policy, now, statement=statement)
        key = _channel_key(statement)
        seen = key.id.hex() if key else "none"
        bound = check("channel-key", "a key to encrypt to, in the statement", seen, key is not None)
        result = replace(result, checks=(*result.checks, bound))
        if result.claims is not None:
            self.source.learn(result.claims, collateral.provenance)
        if key is None or not result.trusted:
            raise refused(result)
        return Verified(key, statement, result, evidence, collateral, policy, url)

    def freeze(self, verified: Verified) -> Bundle:
        """What was verified, and with what, to be verified again years later."""
        at, said = verified.result.at, verified.statement
        return freeze(self.verifier, verified.evidence, verified.collateral, verified.policy, at, statement=said)

    def verify(self, evidence: Evidence, collateral: Collateral, now: datetime) -> Claims:
        """The claims of evidence that holds under the same roots, or of a token by a service that the policy names.

        Whatever else the policy says is not looked at.
        """
        return verified(self.verifier, evidence, collateral, self.policy, now)


def refused(result: AttestationResult) -> AttestationRefused:
    """The error for a verdict that is not `trusted`."""
    failed = ((check.code, check.expected, check.seen.rstrip(".")) for check in result.failures)
    reasons = "; ".join(f"{code}: expected {expected}, saw {seen}" for code, expected, seen in failed)
    codes = tuple(check.code for check in result.failures)
    return AttestationRefused(
        f"The workload is not trusted, and no prompt is sent to it. Failed: {reasons}. Ask its operator, or correct "
        "the policy if that is what is wrong.",
        codes,
    )


def vendor_collateral(*, offline: bool = False) -> VendorCollateral:
    """The vendors, or offline nobody, with the cache in this person's folder."""
    return VendorCollateral(CollateralCache(make_home() / "collateral", None if offline else fetcher()), offline)


class _SimulatedVendor:
    """A simulated machine is its own vendor, and serves its collateral to nobody: what it sends is all there is."""

    def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
        return sent

    def learn(self, claims: Claims, provenance: Provenance) -> None:
        pass


def _channel_key(statement: Statement) -> ChannelPublicKey | None:
    try:
        return ChannelPublicKey.parse(statement.channel_keys.get(KEY_PURPOSE, ""))
    except ChannelRefused:
        return None


def _production(policy: AnyPolicy | Path | str | None) -> Policy:
    if policy is None or isinstance(policy, Policy):
        return policy or Policy()
    if isinstance(policy, SimulatedPolicy):
        raise InvalidPolicy("A simulated policy needs the simulated root that it trusts; give simulated_root as well.")
    return policy_from_toml(_text(policy))


def _simulated(policy: AnyPolicy | Path | str | None) -> SimulatedPolicy:
    if policy is None or isinstance(policy, SimulatedPolicy):
        return policy or SimulatedPolicy()
    if isinstance(policy, Policy):
        raise InvalidPolicy(
            "A policy for production trusts no simulated root; leave simulated_root out, or use a SimulatedPolicy."
        )
    return simulated_policy_from_toml(_text(policy))


def _text(path: Path | str) -> str:
    try:
        return _read(path).decode()
    except UnicodeDecodeError:
        raise InvalidPolicy(f"{path} is no text; a policy is a TOML file.") from None


def _read(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidPolicy(f"{path} cannot be read ({error.strerror}); name the right file.") from error
