"""Two versions that are both allowed for a time: one policy, whose end is in it and takes nobody to come about.

What both policies ask for stays as it is, and of the rest one or the other: that of the old one until a moment, which
whoever appraises looks up on their own clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from confide.attest.policy import AnyPolicy
from confide.attest.requirements import AllOf, AnyOf, AnyRequirement, NotAfter
from confide.errors import InvalidPolicy


@dataclass(frozen=True)
class Transition:
    """From an old policy to a new one. until: the last moment at which the old one is enough, in whole seconds."""

    old: AnyPolicy
    new: AnyPolicy
    until: datetime

    def policy(self) -> AnyPolicy:
        """Satisfied by what satisfies the new one, and until then by what satisfies the old one.

        InvalidPolicy where one policy cannot say that, since its exceptions and the services whose word it takes count
        for all of it; and where the new one asks for nothing more, so that the old version would be allowed for good.
        """
        old, new = self.old, self.new
        if type(old) is not type(new) or old.exceptions != new.exceptions or {*old.services()} != {*new.services()}:
            raise InvalidPolicy(
                "Old and new policy differ in their kind, their exceptions or their verification services, which count "
                "for a whole policy; change those alone first, with `confide keys change`."
            )
        both = tuple(one for one in new.requirements if one in old.requirements)
        of_new, of_old = _without(new.requirements, both), _without(old.requirements, both)
        if not of_new:
            raise InvalidPolicy(
                "The new policy asks for nothing that the old one does not, so the old version would be allowed for "
                "good; name what is new, such as a measurement."
            )
        either = AnyOf((AllOf(of_new), AllOf((NotAfter.at(self.until), *of_old))))
        return replace(new, requirements=(*both, either))

    @classmethod
    def read(cls, policy: AnyPolicy) -> Self | None:
        """What `policy` was made from, in another order perhaps; None where it is no such policy."""
        match policy.requirements:
            case (*both, AnyOf(of=(AllOf(of=new), AllOf(of=(NotAfter() as until, *old))))):
                before = replace(policy, requirements=(*both, *old))
                return cls(before, replace(policy, requirements=(*both, *new)), until.moment)
            case _:
                return None


def ask_the_same(one: AnyPolicy, other: AnyPolicy) -> bool:
    """Whether two policies are equal but for the order of what they ask for, and for the name of their version."""
    return (
        type(one) is type(other)
        and one.exceptions == other.exceptions
        and not _without(one.requirements, other.requirements)
        and not _without(other.requirements, one.requirements)
    )


def _without(some: Sequence[AnyRequirement], others: Sequence[AnyRequirement]) -> tuple[AnyRequirement, ...]:
    """In a list and not in a set: a requirement with a map in it has no hash."""
    return tuple(one for one in some if one not in others)
