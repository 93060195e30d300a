"""transformers' `generate`, its lengths padded, and kept going to the padded length after a wrong answer.

When `generate` is over, forward passes go on: on the same KV cache, with the same batch, so that to the server they
look like any other step, while their results go nowhere.
"""

import copy
import inspect
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from confide.errors import ConfideError
from confide.hybrid.client.product import RemoteProduct
from confide.models.context import longest_context

_UNLIMITED = 1 << 30
DEFAULT_NEW_TOKENS = 20
"""What transformers generates where nothing says how much."""


@dataclass(frozen=True)
class Lengths:
    """Of one generation, for each sequence: tokens of prompt and answer, and what the server saw of them."""

    prompt: int
    visible_prompt: int
    answer: int
    visible_answer: int


class _Breach(StoppingCriteria):
    """Stops once an answer was wrong."""

    def __init__(self, product: RemoteProduct) -> None:
        self._product = product

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self._product.breach is not None, device=input_ids.device)


class _Verified(BaseStreamer):
    """Hands on what came before a wrong answer, and nothing after it; ends only once the server cannot tell."""

    def __init__(self, inner: BaseStreamer, product: RemoteProduct) -> None:
        self._inner = inner
        self._product = product

    def put(self, value: Tensor) -> None:
        if self._product.breach is None:
            self._inner.put(value)

    def end(self) -> None:
        if self._product.breach is None:
            self._inner.end()

    def finish(self) -> None:
        """The end of a text that broke off: whoever waits for it must not wait for ever."""
        if self._product.breach is not None:
            self._inner.end()


class _Steps:
    """Watches a generation's forward passes: how many there were, and the last one's cache and batch."""

    def __init__(self) -> None:
        self.count = 0
        self.prompt = 0
        self.ids = torch.zeros(1, 1, dtype=torch.long)
        self.cache: Any = None

    def __call__(self, _: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        given = keywords.get("input_ids")
        given = keywords.get("inputs_embeds") if given is None else given
        given = arguments[0] if given is None else given
        shape = given.shape[:2]
        self.prompt = self.prompt or shape[1]
        self.ids = torch.zeros(shape, dtype=torch.long, device=given.device)
        self.cache = output.get("past_key_values")
        self.count += 1


class PaddedGeneration:
    """One call of `generate` on a shell's model."""

    def __init__(self, model: PreTrainedModel, product: RemoteProduct) -> None:
        self._model = model
        self._product = product
        self._steps = _Steps()
        self._most = 0

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What `generate` returns; IntegrityError, after the longest padded length, if an answer was wrong."""
        model: Any = self._model  # its stubs do not say that it generates
        options = inspect.signature(model.generate).bind_partial(*args).arguments | kwargs
        self._most = _longest_answer(model, options)
        options["stopping_criteria"] = [*(options.get("stopping_criteria") or []), _Breach(self._product)]
        with ExitStack() as last:
            last.callback(self._product.require_intact)
            if options.get("streamer") is not None:
                streamer = options["streamer"] = _Verified(options["streamer"], self._product)
                last.callback(streamer.finish)
            with self._product.generation(last_only=_head(model)):
                result = self._generate(options)
                self._pad(keep_cache=options.get("past_key_values") is not None or not isinstance(result, Tensor))
        return result

    def _generate(self, options: dict[str, Any]) -> Any:
        model: Any = self._model
        try:
            with model.register_forward_hook(self._steps, with_kwargs=True):
                return model.generate(**options)
        except Exception as error:
            # A caller's own processor may choke on what a failed run gives it; the server must not see that either.
            if self._product.breach is None or isinstance(error, ConfideError):
                raise
            return None

    @property
    def lengths(self) -> Lengths:
        """What was asked for and what the server saw."""
        prompt, answer = self._steps.prompt, self._steps.count
        return Lengths(prompt, self._product.padding.prompt_tokens(prompt), answer, self._visible_answer())

    def _visible_answer(self) -> int:
        padding = self._product.padding
        if self._product.breach is not None:
            return padding.longest(self._most)
        return padding.answer_tokens(self._steps.count, self._most)

    @torch.inference_mode()
    def _pad(self, *, keep_cache: bool) -> None:
        """Go on to the padded length. The n-th token of an answer comes out of the n-th forward pass."""
        missing = self._visible_answer() - self._steps.count
        cache = self._steps.cache
        if cache is not None and not isinstance(cache, DynamicCache):
            cache = DynamicCache(config=self._model.config)  # the other kinds have a fixed size, which is used up
        elif keep_cache and missing > 0:
            cache = copy.deepcopy(cache)  # takes a moment, which a server with a clock may notice
        with self._product.idling():
            for step in range(1, missing + 1):
                self._idle_step(cache, step)

    def _idle_step(self, cache: DynamicCache | None, step: int) -> None:
        """A forward pass of decoding, at the position it would have, as far as the model has positions."""
        ids = self._steps.ids
        positions = longest_context(self._model.config) or _UNLIMITED
        if cache is None:
            # Without a cache each step is the whole text again.
            ids = ids[:, :1].expand(-1, min(ids.shape[1] + step, positions))
            self._model(input_ids=ids, use_cache=False, logits_to_keep=1)
        else:
            _leave_room(cache, positions)
            ids = ids[:, :1]
            places = torch.full_like(ids, min(cache.get_seq_length(), positions - 1))
            self._model(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _leave_room(cache: DynamicCache, positions: int) -> None:
    """Room for one more token in a full context: some models, such as MPT, fail beyond it.

    A cache that slides never fills up, and cannot be shortened either.
    """
    over = cache.get_seq_length() - (positions - 1)
    if over > 0 and not any(cache.is_sliding):
        cache.crop(-over)


def _head(model: Any) -> str | None:
    """The output head's name, where `generate` has it compute the next token's logits and no others."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return None
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def _longest_answer(model: Any, options: dict[str, Any]) -> int:
    """The most tokens that `generate` could add, by the rules of transformers."""
    sources = [options, vars(options.get("generation_config") or GenerationConfig()), vars(model.generation_config)]

    def setting(name: str) -> int | None:
        return next((source[name] for source in sources if source.get(name) is not None), None)

    if (new := setting("max_new_tokens")) is not None:
        return new
    given = next((options[name] for name in ("input_ids", "inputs") if options.get(name) is not None), None)
    prompt = 1 if given is None else given.shape[1]
    if (longest := setting("max_length")) is None:
        longest = prompt + DEFAULT_NEW_TOKENS
        longest = min(longest, longest_context(model.config) or _UNLIMITED)
    return longest - prompt
