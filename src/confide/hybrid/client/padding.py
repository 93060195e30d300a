"""Lengths as the server sees them: rounded up, so that it does not see where a text ends."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Padding:
    """Prompts and answers are rounded up to multiples of these, in tokens; 1 is no padding.

    answer: None goes on to the longest answer that was asked for, every time.

    What remains visible: the rounded lengths, the width of a batch, timing, which layers. After a wrong answer a run
    goes on to the longest answer, rounded; the server learns that one bit unless `answer` is None, and in any case
    once the client stays away.
    """

    prompt: int = 16
    answer: int | None = 16

    def __post_init__(self) -> None:
        if self.prompt < 1 or (self.answer is not None and self.answer < 1):
            raise ValueError("Lengths are rounded up to multiples of at least 1 token.")

    def prompt_tokens(self, tokens: int) -> int:
        """What a prompt of this length looks like."""
        return _round_up(tokens, self.prompt)

    def answer_tokens(self, tokens: int, most: int) -> int:
        """What an answer looks like that has this many tokens and could have had `most`."""
        return self.longest(most) if self.answer is None else _round_up(tokens, self.answer)

    def longest(self, most: int) -> int:
        """What the longest answer looks like; that of a run which failed."""
        return _round_up(most, self.answer or 1)


NO_PADDING = Padding(1, 1)
"""Every length is visible."""


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
