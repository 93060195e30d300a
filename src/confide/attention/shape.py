"""The sizes of an attention block, and how its numbers lie in the slots of a ciphertext."""

from dataclasses import dataclass
from functools import cached_property

from confide.errors import ModelNotSupported

MAX_TOKENS = 16
MAX_WIDTH = 768


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of the block: inputs (tokens, width), outputs (tokens, heads * head_width).

    A slot holds one number of one token. Tokens are innermost: slot = position * token_slots + token. Of the input a
    position holds two features as one complex number; of queries, keys and values position = dim * head_slots + head.
    Heads lie inside dims, so that rotating by whole dims is cyclic in every head: a sum over a head's dims needs no
    mask, and its result lies in all of them.
    """

    width: int
    heads: int
    head_width: int
    tokens: int

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.head_width) < 1 or self.tokens < 2:
            raise ModelNotSupported("An attention block needs at least one feature, one head and two tokens.")
        if self.tokens > MAX_TOKENS:
            raise ModelNotSupported(
                f"Encrypted attention takes up to {MAX_TOKENS} tokens, not {self.tokens}; shorten the context."
            )
        if max(self.width, self.heads * self.head_width) > MAX_WIDTH:
            raise ModelNotSupported(
                f"Encrypted attention takes blocks up to {MAX_WIDTH} wide, not {self.width}; choose a smaller model "
                "or fewer heads."
            )

    @cached_property
    def token_slots(self) -> int:
        """Tokens, padded to a power of two."""
        return _power_of_two(self.tokens)

    @cached_property
    def head_slots(self) -> int:
        """Heads, padded to a power of two."""
        return _power_of_two(self.heads)

    @cached_property
    def dim_slots(self) -> int:
        """A head's dims, padded to a power of two; at least one for every distance between tokens."""
        return max(_power_of_two(self.head_width), self.token_slots)

    @property
    def dim_step(self) -> int:
        """Slots from one dim to the next."""
        return self.head_slots * self.token_slots

    @cached_property
    def output_positions(self) -> int:
        """Positions of queries, keys, values and outputs."""
        return self.dim_slots * self.head_slots

    @cached_property
    def input_positions(self) -> int:
        """Positions of the input: pairs of features, padded to a power of two."""
        return max(2, _power_of_two((self.width + 1) // 2))

    @property
    def positions(self) -> int:
        """Positions of the vectors that the circuit works on. A ciphertext repeats them to its end."""
        return max(self.input_positions, self.output_positions)

    @property
    def slots(self) -> int:
        """Slots that one period of a vector takes."""
        return self.positions * self.token_slots

    @property
    def half_distances(self) -> int:
        """Distances delta < half_distances are real parts, delta + half_distances imaginary parts."""
        return self.token_slots // 2


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
