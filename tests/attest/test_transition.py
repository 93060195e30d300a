"""Two versions allowed for a time: what holds when, and what one policy cannot say."""

from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from tests.attest.made_up import MRTD as MRTD_BYTES
from tests.attest.made_up import NOW, tdx_claims
from tests.attest.test_policy import POLICIES

from confide.attest.claims import Claims
from confide.attest.defaults import Exceptions
from confide.attest.policy import AnyPolicy, Policy, SimulatedPolicy, appraise
from confide.attest.policy_toml import any_policy_from_toml, to_toml
from confide.attest.policy_words import names_code
from confide.attest.requirements import FmspcIn, NoAdvisory, Tdx, VerifierService
from confide.attest.transition import Transition, ask_the_same
from confide.errors import InvalidPolicy

MRTD, OTHER = MRTD_BYTES.hex(), "00" * 48
UNTIL = NOW.replace(microsecond=0)
SHARED = NoAdvisory(("INTEL-SA-00002",))
OLD, NEW = Policy.all_of(SHARED, Tdx(mrtd=MRTD)), Policy.all_of(Tdx(mrtd=OTHER), SHARED, version="2")


def machine(mrtd: str, **changes: Any) -> Claims:
    return tdx_claims(measurements={"mrtd": bytes.fromhex(mrtd)}, **changes)


def trusted(policy: AnyPolicy, mrtd: str, seconds: int) -> bool:
    return appraise(machine(mrtd), policy, UNTIL + timedelta(seconds=seconds)).trusted


def test_the_old_version_is_allowed_until_then_and_the_new_one_for_good() -> None:
    policy = Transition(OLD, NEW, UNTIL).policy()
    assert [trusted(policy, MRTD, seconds) for seconds in (-60, 0, 1, 60)] == [True, True, False, False]
    assert [trusted(policy, OTHER, seconds) for seconds in (-60, 1, 60)] == [True, True, True]
    assert not trusted(policy, "11" * 48, -60)
    affected = machine(OTHER, advisories=("INTEL-SA-00002",))
    assert not appraise(affected, policy, UNTIL).trusted  # what both ask for is asked of both
    assert names_code(policy)
    assert not names_code(Transition(Policy.all_of(SHARED), NEW, UNTIL).policy())


def test_it_is_read_from_the_policy_again() -> None:
    made = Transition(OLD, NEW, UNTIL)
    read = Transition.read(any_policy_from_toml(to_toml(made.policy())))
    assert read is not None
    assert ask_the_same(read.old, OLD)
    assert ask_the_same(read.new, NEW)
    assert (read.until, read.new.version) == (UNTIL, "2")
    assert Transition.read(OLD) is None
    assert Transition.read(Policy()) is None


@settings(max_examples=20)
@given(POLICIES, POLICIES)
def test_of_any_two_policies_one_is_made_that_says_which_they_were_or_none_is(old: AnyPolicy, new: AnyPolicy) -> None:
    try:
        policy = Transition(old, new, UNTIL).policy()
    except InvalidPolicy:
        return
    read = Transition.read(policy)
    assert read is not None
    assert ask_the_same(read.new, new)
    assert ask_the_same(read.old, old)


def test_order_and_version_are_no_difference() -> None:
    first, second, third = SHARED, Tdx(mrtd=MRTD), FmspcIn(("00" * 6,))
    for order in permutations((first, second, third)):
        assert ask_the_same(Policy.all_of(*order, version="1"), Policy.all_of(first, second, third))
    for other in (
        Policy.all_of(first, second),
        Policy.all_of(first, second, third, Tdx()),
        SimulatedPolicy.all_of(first, second, third),
        Policy.all_of(first, second, third, exceptions=Exceptions(grace="1d")),
    ):
        assert not ask_the_same(Policy.all_of(first, second, third), other)
        assert not ask_the_same(other, Policy.all_of(first, second, third))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (OLD, SimulatedPolicy(NEW.requirements), "differ"),
        (OLD, Policy(NEW.requirements, exceptions=Exceptions(grace="1d")), "differ"),
        (Policy((*OLD.requirements, VerifierService("trustee", "issuer", "keys"))), NEW, "differ"),
        (OLD, OLD, "for good"),
        (OLD, Policy.all_of(SHARED), "for good"),
        (OLD, Policy(), "for good"),
    ],
    ids=["kind", "exceptions", "services", "the same", "less", "nothing"],
)
def test_what_one_policy_cannot_say_is_refused(old: AnyPolicy, new: AnyPolicy, words: str) -> None:
    """Exceptions and services count for a whole policy: those of one version would be the other's as well."""
    with pytest.raises(InvalidPolicy, match=words):
        Transition(old, new, UNTIL).policy()
