"""How many bits each layer's weights and activations get: a recipe, by layer names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from confide.errors import ConfideError
from confide.models.quantize import MAX_WEIGHT_BITS, MIN_WEIGHT_BITS
from confide.rlwe.parameters import MAX_ACTIVATION_BITS, MIN_ACTIVATION_BITS


@dataclass(frozen=True)
class Precision:
    """weight_bits: 2 to 8. activation_bits: 8 to 15, at most; a layer gets fewer where its products would not fit.

    Raises ConfideError for others.
    """

    weight_bits: int = MAX_WEIGHT_BITS
    activation_bits: int = MAX_ACTIVATION_BITS

    def __post_init__(self) -> None:
        _require("Weights", self.weight_bits, MIN_WEIGHT_BITS, MAX_WEIGHT_BITS)
        _require("Activations", self.activation_bits, MIN_ACTIVATION_BITS, MAX_ACTIVATION_BITS)


@dataclass(frozen=True)
class Rule:
    """Bits for the layers whose full name the regular expression `pattern` is found in; None leaves them as they are.

    Raises ConfideError for what is no regular expression, and for bits that no layer can have.
    """

    pattern: str
    weight_bits: int | None = None
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfideError(f"{self.pattern!r} is not a regular expression ({error}); correct it.") from error
        self.applied_to(Precision())

    def names(self, layer: str) -> bool:
        """Whether it is about the layer of this full name."""
        return re.search(self.pattern, layer) is not None

    def applied_to(self, before: Precision) -> Precision:
        """What a layer of this precision gets instead."""
        weights = before.weight_bits if self.weight_bits is None else self.weight_bits
        activations = before.activation_bits if self.activation_bits is None else self.activation_bits
        return Precision(weights, activations)


@dataclass(frozen=True)
class Recipe:
    """The precision of every layer: the default, changed by each rule that names the layer, the last one last."""

    default: Precision = field(default_factory=Precision)
    rules: tuple[Rule, ...] = ()

    def precision(self, layer: str) -> Precision:
        """What the layer of this full name gets."""
        precision = self.default
        for rule in self.rules:
            precision = rule.applied_to(precision) if rule.names(layer) else precision
        return precision

    @classmethod
    def parse(cls, weight_bits: Sequence[str] = (), activation_bits: Sequence[str] = ()) -> Self:
        """A recipe from texts: `4` for every layer, `PATTERN=4` for those that a regular expression finds.

        Raises ConfideError for anything else.
        """
        rules = [_rule(text, "weight_bits") for text in weight_bits]
        rules += [_rule(text, "activation_bits") for text in activation_bits]
        return cls(rules=tuple(rules))


def _rule(text: str, which: str) -> Rule:
    pattern, _, bits = text.rpartition("=")
    if not bits.isdecimal():
        raise ConfideError(f"{text!r} is no number of bits; give one such as 4, or layers and bits such as mlp=4.")
    return Rule(pattern, **{which: int(bits)})


def _require(what: str, bits: int, least: int, most: int) -> None:
    if not least <= bits <= most:
        raise ConfideError(f"{what} of {bits} bits are not possible; choose {least} to {most}.")
