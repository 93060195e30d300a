"""transformers' `generate`, its lengths padded: the loop runs on to the padded length, with its stop recorded.

What stops a text is noted and not obeyed. The steps after it are those before it, on the same cache, with the same
sampling; their tokens are taken off at the end. So it is after a wrong answer, and up to the longest padded length.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

from confide.errors import ConfideError, PromptTooLong, WrongMode
from confide.hybrid.client.product import OnlineTraffic, RemoteProduct
from confide.models.context import longest_context, require_room

_REFUSED: Final = {
    "assistant_model": "a draft model",
    "assistant_tokenizer": "a draft model",
    "prompt_lookup_num_tokens": "prompt look-up",
    "assistant_early_exit": "early exit",
    "use_mtp": "multi-token prediction",
    "custom_generate": "a decoding loop of one's own",
    "penalty_alpha": "contrastive search",
    "dola_layers": "DoLa decoding",
    "constraints": "constrained beams",
    "force_words_ids": "constrained beams",
    "cache_implementation": "another cache than the dynamic one",
    "prefill_chunk_size": "a prompt in chunks",
    "synced_gpus": "generation on several machines",
}
"""Options of `generate` whose steps have shapes or numbers that depend on the text, or that padding cannot follow."""


@dataclass(frozen=True)
class Lengths:
    """Of one generation, for each sequence: tokens of prompt and answer, and what the server saw of them."""

    prompt: int
    visible_prompt: int
    answer: int
    visible_answer: int


@dataclass(frozen=True)
class Generated:
    """One generation, and what it took. Every answer in it was right."""

    lengths: Lengths
    traffic: OnlineTraffic


class _Course(StoppingCriteria):
    """The one stopping criterion of a private generation: records what `inner` says, and stops at a padded length.

    max_length: tokens of the longest text. most: of the longest answer. steps: tokens generated so far. end: how many
    there will be, once that is known. ends: of each sequence, the tokens up to its recorded stop; 0 before it.
    """

    def __init__(self, inner: StoppingCriteriaList, product: RemoteProduct, config: GenerationConfig) -> None:
        self._inner = inner
        self._product = product
        self.max_length: int = config.max_length
        self.pad: Tensor | None = config._pad_token_tensor
        self.pads_after_end = any(hasattr(criterion, "eos_token_id") for criterion in inner)
        self.steps = 0
        self.most = 0
        self.end = 0
        self.ends = torch.zeros(0, dtype=torch.long)
        self._random: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if not self.steps:
            self.most = self.max_length - (input_ids.shape[1] - 1)
            self.ends = torch.zeros(len(input_ids), dtype=torch.long)
        self.steps += 1
        stopped = self._inner(input_ids, scores, **kwargs).cpu() | (self.steps >= self.most)
        self.ends = torch.where((self.ends == 0) & stopped, self.steps, self.ends)
        state = torch.get_rng_state()
        if not self.end:
            self._random = state
            if self._product.breach is not None:
                self.end = self._product.padding.longest(self.most)
            elif bool(self.ends.all()):
                self.end = self._product.padding.answer_tokens(self.answer, self.most)
        done = bool(self.end) and self.steps >= self.end
        return torch.full((len(input_ids),), done, device=input_ids.device)

    @property
    def answer(self) -> int:
        """Tokens of the longest sequence's answer, so far or up to its recorded stop."""
        return int(self.ends.max()) if len(self.ends) and bool(self.ends.all()) else self.steps

    @property
    def stopped(self) -> bool:
        """Whether every sequence has come to its recorded stop."""
        return bool(len(self.ends)) and bool(self.ends.all())

    def restore_randomness(self) -> None:
        """Leave the random numbers where a loop that obeys its stop leaves them."""
        if self._random is not None:
            torch.set_rng_state(self._random)


class PaddedStreamer(BaseStreamer, ABC):
    """A streamer that does as much for the tokens behind the end of a text as for those before it."""

    @abstractmethod
    def put_padding(self, value: Tensor) -> None:
        """A token behind the end: to be dealt with like any, and shown to nobody."""


class _Muted(BaseStreamer):
    """Hands on the tokens before the recorded stop and before a wrong answer, and goes through the motions after.

    It ends only when the loop does: what waits for the end would tell the server.
    """

    def __init__(self, inner: BaseStreamer, product: RemoteProduct, course: Callable[[], _Course | None]) -> None:
        self._inner = inner
        self._product = product
        self._course = course
        self._given = -1  # the first thing that is put is the prompt
        self._shadow: BaseStreamer | None = None
        if isinstance(inner, TextStreamer):
            # Decoding text takes time. A twin that keeps its text to itself takes as long.
            shadow = self._shadow = copy.copy(inner)
            shadow.token_cache = []
            shadow.next_tokens_are_prompt = False
            shadow.on_finalized_text = _nowhere  # type: ignore[method-assign]

    def put(self, value: Tensor) -> None:
        self._given += 1
        course = self._course()
        ended = course is not None and course.stopped and self._given > course.answer
        if self._product.breach is None and not ended:
            self._inner.put(value)
        elif isinstance(self._inner, PaddedStreamer):
            self._inner.put_padding(value)
        elif self._shadow is not None:
            self._shadow.put(value)

    def end(self) -> None:
        pass

    def finish(self) -> None:
        """The end of the text, or of one that broke off: whoever waits for it must not wait for ever."""
        self._inner.end()


def _nowhere(text: str, stream_end: bool = False) -> None:
    pass


class PaddedGeneration:
    """One call of `generate` on a shell's model. traffic: what it took, once it is over."""

    def __init__(self, model: PreTrainedModel, product: RemoteProduct) -> None:
        self._model = model
        self._product = product
        self._course: _Course | None = None
        self._prompt = 0
        self._trimmed: DynamicCache | None = None
        self.traffic: OnlineTraffic | None = None

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What `generate` returns; IntegrityError, after the longest padded length, if an answer was wrong.

        WrongMode, before anything is sent, for decoding that would show the server something of the text.
        """
        model: Any = self._model  # its stubs do not say that it generates
        generate = type(model).generate
        options = dict(inspect.signature(generate).bind_partial(model, *args).arguments) | kwargs
        del options["self"]
        self._require_constant(options)
        with ExitStack() as last:
            last.callback(self._product.require_intact)
            if options.get("streamer") is not None:
                streamer = options["streamer"] = _Muted(options["streamer"], self._product, lambda: self._course)
                last.callback(streamer.finish)
            with self._product.generation(last_only=_head(model)), self._watched(), self._measured():
                try:
                    result = generate(model, **options)
                except Exception as error:
                    # A caller's own processor may choke on what a failed run gives it.
                    if self._product.breach is None or isinstance(error, ConfideError):
                        raise
                    result = None
        if self._course is None or result is None:
            return result
        self._course.restore_randomness()
        self._trim_cache(options.get("past_key_values"), self._course)
        return self._trim(result, self._course)

    def _require_constant(self, options: dict[str, Any]) -> None:
        sources = [options, vars(options.get("generation_config") or GenerationConfig()), vars(self._config)]

        def setting(name: str) -> Any:
            return next((source[name] for source in sources if source.get(name) is not None), None)

        for name, what in _REFUSED.items():
            if setting(name) not in (None, False, "dynamic"):
                raise WrongMode(
                    f"{name} asks for {what}, and the server would see from the shapes of its steps what the text is "
                    "like; leave it out."
                )
        if (setting("num_beams") or 1) > 1:
            raise WrongMode(
                "Beams end when the text lets them, and the server would see that; use num_beams=1, greedily or with "
                "do_sample=True."
            )
        cache = options.get("past_key_values")
        if cache is not None and (not isinstance(cache, DynamicCache) or any(cache.is_sliding)):
            raise WrongMode(
                "Padding can be taken off a DynamicCache that does not slide, and off no other; leave past_key_values "
                "out."
            )

    @property
    def _config(self) -> GenerationConfig:
        config = self._model.generation_config
        return config if isinstance(config, GenerationConfig) else GenerationConfig()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """While it lasts, the model's loop gets the one criterion, and its first pass is measured."""
        model: Any = self._model
        original = model._get_stopping_criteria

        def criteria(generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> StoppingCriteriaList:
            inner = original(generation_config, *args, **kwargs)
            self._course = _Course(inner, self._product, generation_config)
            return StoppingCriteriaList([self._course])

        def first_pass(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._prompt:
                self._prompt = width_and_length(args, kwargs)[1]
                if self._course is not None:
                    self._begin(args, kwargs, self._course)

        model._get_stopping_criteria = criteria
        try:
            with model.register_forward_pre_hook(first_pass, with_kwargs=True):
                yield
        finally:
            del model._get_stopping_criteria

    @contextmanager
    def _measured(self) -> Iterator[None]:
        before = copy.copy(self._product.traffic)
        try:
            yield
        finally:
            self.traffic = self._product.traffic.since(before)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], course: _Course) -> None:
        """Before the first frame: whether the padded text fits, and how much will be needed."""
        width, prompt = width_and_length(args, kwargs)
        padding = self._product.padding
        cache = kwargs.get("past_key_values")
        before = 0 if cache is None else int(cache.get_seq_length())
        ids = kwargs.get("input_ids")
        most = course.max_length - (before + prompt if ids is not None else 0)
        if ids is not None:
            require_room(self._model.config, before + prompt, most)
        longest = padding.longest(max(most, 1))
        positions = longest_context(self._model.config)
        if positions is not None and before + prompt + max(most, 1) > positions + 1:
            raise PromptTooLong(
                f"The prompt has {before + prompt} tokens and its answer up to {most}, but the model's context is "
                f"{positions}; shorten the prompt, or ask for fewer tokens. Nothing was sent."
            )
        places = "position_ids" in inspect.signature(self._model.forward).parameters
        if positions is not None and not places and before + prompt + longest - 1 > positions:
            raise WrongMode(
                f"Prompt and padded answer would have {before + prompt + longest - 1} tokens, and this model takes "
                f"{positions}; ask for fewer new tokens."
            )
        # The last token of an answer is not computed with.
        self._product.require_allowed(width * (padding.prompt_tokens(prompt) + longest - 1))
        self._product.want(width * (padding.prompt_tokens(prompt) + longest))

    @property
    def lengths(self) -> Lengths:
        """What was asked for and what the server saw."""
        course = self._course
        answer, seen = (0, 0) if course is None else (course.answer, course.steps)
        return Lengths(self._prompt, self._product.padding.prompt_tokens(self._prompt), answer, seen)

    def _trim(self, result: Any, course: _Course) -> Any:
        """What the loop returns, without the steps after the recorded stop."""
        if isinstance(result, Tensor):
            return self._trim_sequences(result, course)
        result.sequences = self._trim_sequences(result.sequences, course)
        for name, value in list(result.items()):
            if isinstance(value, tuple) and len(value) == course.steps:
                setattr(result, name, value[: course.answer])
        result.past_key_values = self._trim_cache(result.get("past_key_values"), course)
        return result

    def _trim_cache(self, cache: Any, course: _Course) -> DynamicCache | None:
        """The cache as of the recorded stop; None where padding cannot be taken off it."""
        surplus = course.steps - course.answer
        if not isinstance(cache, DynamicCache) or (surplus and any(cache.is_sliding)):
            return None
        if surplus and cache is not self._trimmed:
            cache.crop(-surplus)
        self._trimmed = cache
        return cache

    def _trim_sequences(self, sequences: Tensor, course: _Course) -> Tensor:
        prompt = sequences.shape[1] - course.steps
        kept = sequences[:, : prompt + course.answer]
        if course.pads_after_end and course.pad is not None:
            places = torch.arange(kept.shape[1] - prompt) >= course.ends[:, None]
            kept = kept.clone()
            kept[:, prompt:] = torch.where(places.to(kept.device), course.pad.to(kept.device), kept[:, prompt:])
        return kept


def width_and_length(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Sequences and tokens of a forward pass, from its arguments."""
    candidates = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1])
    given = next((value for value in candidates if value is not None), None)
    return (1, 1) if given is None else (int(given.shape[0]), int(given.shape[1]))


def _head(model: Any) -> str | None:
    """The output head's name, where `generate` has it compute the next token's logits and no others."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return None
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)
