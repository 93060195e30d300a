"""What was predicted of a machine, what was not and why, and the policy that demands what was."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from confide.attest.defaults import NO_EXCEPTIONS, Exceptions
from confide.attest.policy import Policy
from confide.attest.requirements import AnyRequirement
from confide.deploy.predict.events import BootEvent, as_json


@dataclass(frozen=True)
class Prediction:
    """Measurements of a machine, by the names that `confide attest explain` has for them.

    unpredicted: why, by the name of what is missing. assumptions: sentences about the host and its software, on which
    the values rest. requirement: what a policy asks for; None where nothing could be predicted that names a machine.
    """

    measurements: Mapping[str, bytes]
    unpredicted: Mapping[str, str]
    assumptions: tuple[str, ...] = ()
    events: tuple[BootEvent, ...] = ()
    requirement: AnyRequirement | None = field(default=None)

    def policy(self, *further: AnyRequirement, exceptions: Exceptions = NO_EXCEPTIONS) -> Policy:
        """A policy that asks for these measurements, and for more."""
        named = () if self.requirement is None else (self.requirement,)
        return Policy.all_of(*named, *further, exceptions=exceptions)

    def as_json(self) -> dict[str, object]:
        """For `expected.json`."""
        return {
            "measurements": {name: value.hex() for name, value in sorted(self.measurements.items())},
            "unpredicted": dict(sorted(self.unpredicted.items())),
            "assumptions": list(self.assumptions),
            "events": as_json(self.events),
        }
