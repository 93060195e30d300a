"""Policies of Confide's own, which say whom a key is released to: those that let in more than anybody can mean."""

from collections.abc import Iterator

from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import any_policy_from_toml
from confide.attest.policy_words import names_code
from confide.deploy.lint import rules
from confide.deploy.lint.rules import Finding
from confide.errors import InvalidManifest, InvalidPolicy


def check(text: str) -> Iterator[Finding]:
    """Faults of a policy. InvalidManifest where it is none."""
    try:
        policy = any_policy_from_toml(text)
    except InvalidPolicy as error:
        raise InvalidManifest(str(error)) from None
    if isinstance(policy, SimulatedPolicy):
        yield Finding(rules.SIMULATED_POLICY, "kind")
    if policy.exceptions.allow_debug:
        yield Finding(rules.DEBUG_ALLOWED, "allow-debug")
    if not names_code(policy):
        yield Finding(rules.POLICY_WITHOUT_CODE, "all")
