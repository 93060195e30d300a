"""A text cut into the windows that a model is scored on.

Windows do not overlap, and what comes first in each is not scored, since nothing precedes it: the text's own token, or
the token that begins a text where the model's tokenizer sets one (Llama and Gemma do, and are lost without it).
Scores of overlapping windows would be somewhat better for every model alike, and cost several times as much.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from confide.errors import EvaluationError
from confide.models.context import longest_context

LONGEST_CONTEXT = 2048
"""The longest window unless a longer one is asked for: the length that papers on quantization report."""


@dataclass(frozen=True)
class Windows:
    """Token ids of every window, in the order of the text.

    Each has `context` tokens but the last, which has 2 or more. Of a window of L tokens, L - 1 are scored.
    """

    context: int
    ids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scored_tokens(self) -> int:
        """Tokens that are scored, over all windows."""
        return sum(len(window) - 1 for window in self.ids)

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids and where windows begin."""
        return hashlib.sha256(repr(self.ids).encode()).hexdigest()


def cut_windows(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    *,
    max_windows: int | None = None,
    max_tokens: int | None = None,
) -> Windows:
    """The first windows of a text: at most `max_windows`, over its first `max_tokens` tokens.

    Raises EvaluationError where that leaves fewer than two, of which no interval could be computed.
    """
    return _enough(_cut(text, tokenizer, context, max_tokens)[:max_windows], context)


def cut_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, context: int) -> Windows:
    """The windows of several texts, none of which reaches from one into the next. Raises EvaluationError as above."""
    return _enough([part for text in texts for part in _cut(text, tokenizer, context)], context)


def _cut(
    text: str, tokenizer: PreTrainedTokenizerBase, context: int, max_tokens: int | None = None
) -> list[tuple[int, ...]]:
    # verbose=False: that the text is longer than the model's context is just why it is cut.
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:max_tokens]
    start = start_of_text(tokenizer)
    stride = context - len(start)
    parts = [(*start, *tokens[first : first + stride]) for first in range(0, len(tokens), stride)]
    return [part for part in parts if len(part) > 1]


def _enough(parts: Sequence[tuple[int, ...]], context: int) -> Windows:
    if len(parts) < 2:
        raise EvaluationError(
            f"That is {len(parts)} window of up to {context} tokens, and an interval needs two or better twenty; "
            "use a longer text, a smaller --context, or more --windows or --max-tokens."
        )
    return Windows(context, tuple(parts))


def model_context(config: PreTrainedConfig, asked: int | None = None) -> int:
    """Tokens in a window: as `asked`, or the model's longest up to LONGEST_CONTEXT.

    Raises EvaluationError where the model cannot take as many as asked.
    """
    return window_context(longest_context(config), asked)


def window_context(longest: int | None, asked: int | None = None) -> int:
    """The same for a model that takes `longest` tokens, or as many as anybody likes."""
    if asked is None:
        return min(longest or LONGEST_CONTEXT, LONGEST_CONTEXT)
    if longest is not None and asked > longest:
        raise EvaluationError(f"The model takes {longest} tokens at most; use a --context up to that.")
    return asked


def start_of_text(tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    """The token that the tokenizer puts before every text, if it does."""
    first = tokenizer("")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []
