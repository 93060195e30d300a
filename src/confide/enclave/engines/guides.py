"""Answers held to their forms, by llguidance: a mask of tokens at every step, or a check of the text as it comes.

llguidance refuses schemas that it has no means for, and stops at limits. llama.cpp has the same library inside, and
answers freely, without a word, where it cannot compile a grammar or goes beyond a limit; so what it gives is held
against the form here, with less patience than it has.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from confide.enclave.engines.forms import Form

if TYPE_CHECKING:
    from torch import Tensor

COMPILE_SECONDS: Final = 0.25
"""Of the processor's time, in which a schema compiles or is refused: llama.cpp stands still while it does the same."""
LIMITS: Final = LLParserLimits(max_lexer_states=1 << 15, verbose_errors=False)
"""Of one answer: 32 MB or so. A step has llguidance's own limits, which end it after some hundredths of a second."""
_SILENT: Final = 0
_BYTES: Final = tuple(bytes([byte]) for byte in range(256))
_NO_TEXT: Final = b"\xff<special>"
"""Begins with the byte by which llguidance knows special tokens."""


class Guides:
    """What one model needs to be held to forms. Made once it is wanted; schemas are compiled one after the other."""

    def __init__(self, content: Callable[[int], bytes], vocabulary: int, specials: Iterable[int], ends: Sequence[int]):
        """content: the bytes of a token below `vocabulary`. specials: tokens that are no text. ends: its end tokens."""
        self._content, self._vocabulary = content, vocabulary
        self._specials, self._ends = sorted({*specials, *ends}), list(ends)
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="compiling forms")
        self._known: LLTokenizer | None = None

    async def guide(self, form: Form) -> "Guide":
        """For one answer. RequestRefused for a schema that does not compile, or not soon enough."""
        return await asyncio.get_running_loop().run_in_executor(self._compiling, self._guide, form)

    def close(self) -> None:
        """End the thread."""
        self._compiling.shutdown(wait=False)

    def _guide(self, form: Form) -> "Guide":
        if self._known is None:
            self._known = self._tokenizer()
        begun = time.thread_time()
        matcher = LLMatcher(self._known, form.grammar, log_level=_SILENT, limits=LIMITS)
        if matcher.is_error() or time.thread_time() - begun > COMPILE_SECONDS:
            raise form.refused()
        return Guide(self._known, matcher, form, self._vocabulary)

    def _tokenizer(self) -> LLTokenizer:
        """The model's tokens, then the bytes that are none of these, so that any text can be read, and an end token."""
        specials = set(self._specials)
        tokens = [_NO_TEXT if token in specials else self._content(token) for token in range(self._vocabulary)]
        known = set(tokens)
        tokens += [byte for byte in _BYTES if byte not in known]
        end = len(tokens)
        named = _Tokens([*tokens, _NO_TEXT], end, [*specials, end])
        return LLTokenizer(TokenizerWrapper(named), eos_token=[*self._ends, end])


class _Tokens:
    """A vocabulary in the form that llguidance asks for."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end: int, specials: list[int]) -> None:
        self.tokens, self.eos_token_id, self.special_token_ids = tokens, end, specials
        self._single = {token[0]: index for index, token in enumerate(tokens) if len(token) == 1}

    def __call__(self, text: bytes) -> list[int]:
        """Byte by byte, and not as the model's own tokenizer reads a text; nothing here asks for that."""
        return [self._single[byte] for byte in text]


class Guide:
    """Which tokens may come next in one answer; or whether a text may. One thread at a time."""

    def __init__(self, tokenizer: LLTokenizer, matcher: LLMatcher, form: Form, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._matcher = matcher
        self._form = form
        self._vocabulary = vocabulary
        self._mask = allocate_token_bitmask(1, tokenizer.vocab_size)

    def __call__(self, logits: "Tensor") -> "Tensor":
        """logits: float32 of shape [vocabulary]; -inf for what may not. RequestRefused for a form that is too much."""
        import torch  # whoever has logits has it; an image for llama.cpp does not

        self._compute()
        allowed = np.unpackbits(self._mask[0].view(np.uint8), bitorder="little")[: len(logits)]
        if not allowed.any():  # the model has no token for what must come
            raise self._form.refused()
        return logits.masked_fill(torch.from_numpy(allowed) == 0, -torch.inf)

    def add(self, token: int) -> None:
        """The answer has this token now."""
        if not self._matcher.consume_token(token):
            raise self._form.refused()

    def read(self, text: str, *, ended: bool) -> None:
        """The answer goes on with this text, by whatever tokens. RequestRefused where it does not keep to its form.

        ended: the model ended it there. The mask that the engine computed for the next token is computed here too:
        where that takes more than the limits, the answer is given up.
        """
        if not self._matcher.consume_tokens(self._tokenizer.greedy_tokenize(text)):
            raise self._form.refused()
        if ended and not self._matcher.is_accepting():
            raise self._form.refused()
        if text and not self._matcher.is_stopped():
            self._compute()

    def _compute(self) -> None:
        fill_next_token_bitmask(self._matcher, self._mask)
        if self._matcher.is_error():
            raise self._form.refused()

    @property
    def over(self) -> bool:
        """Whether the answer can only end here."""
        return bool(self._matcher.is_stopped())
