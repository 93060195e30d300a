"""Prompts in tokens: how many, from a conversation, and whether they fit. The same for every engine."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import cast

from transformers import PreTrainedTokenizerBase

from confide.enclave.engines.engine import EngineFacts, Message, Sampling
from confide.errors import EngineError, PromptTooLong
from confide.models.conversation import render


class Rendered(str):
    """A prompt that a chat template made, with all its special tokens: no more are added, as transformers has it."""


class Prompts:
    """A model's tokenizer and context, as far as prompts go. context: tokens of prompt and answer together."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        self.tokenizer = tokenizer
        self.context = context

    @property
    def template(self) -> str:
        """The chat template, empty where there is none."""
        template = self.tokenizer.chat_template or ""
        return template if isinstance(template, str) else json.dumps(template, sort_keys=True)

    def encode(self, text: str) -> list[int]:
        """A text's tokens, with those that the model wants at a text's beginning where a template has not put them."""
        own = not isinstance(text, Rendered)
        return cast(list[int], self.tokenizer(text, add_special_tokens=own, verbose=False)["input_ids"])

    def count(self, text: str) -> int:
        """How many tokens `encode` gives."""
        return len(self.encode(text))

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation as a prompt by the model's chat template.

        Without one the model just continues text, so what was said follows line by line, without roles.
        """
        if not self.tokenizer.chat_template:
            return "\n".join(message.content for message in messages)
        return Rendered(render(self.tokenizer, [asdict(message) for message in messages]))

    def render_for_others(self, messages: Sequence[Message]) -> str:
        """The same for an engine that makes tokens of texts itself, without the one that it puts first anyway."""
        return str(self.render(messages)).removeprefix(self._own_beginning())

    def require_fit(self, tokens: int, sampling: Sampling) -> None:
        """PromptTooLong for a prompt of so many tokens that leaves no room for its answer, EngineError for none."""
        if not tokens:
            raise EngineError("The prompt is empty; give the model a text to continue.")
        if tokens + sampling.max_tokens > self.context:
            raise PromptTooLong(
                f"The prompt has {tokens} tokens and its answer up to {sampling.max_tokens}, but the model's context "
                f"is {self.context}; shorten the prompt, or ask for fewer tokens."
            )

    def require_short(self, tokens: int, most: int) -> None:
        """As `require_fit`, for a text that is read and not continued."""
        if not tokens:
            raise EngineError("A text is empty; give the model some words.")
        if tokens > most:
            raise PromptTooLong(f"A text has {tokens} tokens, but the model reads {most} at most; shorten it.")

    def _own_beginning(self) -> str:
        """The token that `encode` puts first anyway: with the template's own there would be two."""
        bos = self.tokenizer.bos_token
        return bos if bos and self.encode("")[:1] == [self.tokenizer.bos_token_id] else ""


class Prompted:
    """The part of an engine that its model's tokenizer does."""

    def __init__(self, facts: EngineFacts, prompts: Prompts) -> None:
        self._facts = facts
        self._prompts = prompts

    @property
    def facts(self) -> EngineFacts:
        """What runs."""
        return self._facts

    def count(self, text: str) -> int:
        """Tokens in a text."""
        return self._prompts.count(text)

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation as a prompt."""
        return self._prompts.render_for_others(messages)
