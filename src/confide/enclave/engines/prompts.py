"""Prompts in tokens: how many, from a conversation, and whether they fit. The same for every engine."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from confide.enclave.engines.engine import EngineFacts, Message, Prompt, Sampling
from confide.enclave.engines.tools import Tool, ToolCall
from confide.errors import PromptRefused, PromptTooLong, RequestRefused
from confide.models.conversation import render, template_of, warn_of_plain_template

BYTES_PER_TOKEN: Final = 16
"""A text with more bytes than this for each token of the context is not even tokenized. Languages and programs have
two to six."""


class Rendered(str):
    """A prompt that a chat template made, with all its special tokens: no more are added, as transformers has it."""


class Prompts:
    """A model's tokenizer and context, as far as prompts go. context: tokens of prompt and answer together.

    by_text: for an engine that makes tokens of texts itself, and puts its own token first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int, *, by_text: bool) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self._by_text = by_text

    @property
    def template(self) -> str:
        """The chat template, or the plain one in its place."""
        return template_of(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """A text's tokens, with those that the model wants at a text's beginning where a template has not put them."""
        own = not isinstance(text, Rendered)
        if not self.tokenizer.is_fast:
            return cast(list[int], self.tokenizer(text, add_special_tokens=own, verbose=False)["input_ids"])
        # The same as above; but other threads go on meanwhile, which they do not in `encode`, and offsets, masks and
        # strings, of which a long text has many, are not made.
        decoder = cast(PreTrainedTokenizerFast, self.tokenizer).backend_tokenizer
        [encoding] = decoder.encode_batch_fast([str(text)], add_special_tokens=own)
        return encoding.ids

    def read(self, asked: str | Sequence[Message], tools: Sequence[Tool] = ()) -> Prompt:
        """As `Engine.read`. Takes a while for a long text."""
        if isinstance(asked, str):
            text = asked
        else:
            said = [message.content for message in asked]
            self._require_readable("".join(said + [call.arguments for message in asked for call in message.calls]))
            text = self.render(asked, tools)
        self._require_readable(text)
        return Prompt(text, self.encode(text))

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """A conversation as a prompt by the model's chat template, or the plain one.

        RequestRefused where the prompt then does not tell of all tools: most templates leave out what they do not know.
        """
        text = render(self.tokenizer, _turns(messages), list(map(_described, tools)))
        if tools and not (self.tokenizer.chat_template and all(tool.name in text for tool in tools)):
            raise RequestRefused(
                "`tools` are not offered with this model, whose chat template tells it of none; leave them out, or "
                "require a call by `tool_choice`.",
                "tools",
            )
        if not self.tokenizer.chat_template:
            return text
        return text.removeprefix(self._own_beginning()) if self._by_text else Rendered(text)

    def require_fit(self, tokens: int, sampling: Sampling) -> None:
        """PromptTooLong for a prompt of so many tokens that leaves no room for its answer, PromptRefused for none."""
        if not tokens:
            raise PromptRefused("The prompt is empty; give the model a text to continue.")
        if tokens + sampling.max_tokens > self.context:
            raise PromptTooLong(
                f"The prompt has {tokens} tokens and its answer up to {sampling.max_tokens}, but the model's context "
                f"is {self.context}; shorten the prompt, or ask for fewer tokens."
            )

    def require_short(self, tokens: int, most: int) -> None:
        """As `require_fit`, for a text that is read and not continued."""
        if not tokens:
            raise PromptRefused("A text is empty; give the model some words.")
        if tokens > most:
            raise PromptTooLong(f"A text has {tokens} tokens, but the model reads {most} at most; shorten it.")

    def require_known(self, tokens: Iterable[int], vocabulary: int) -> None:
        """RequestRefused where a logit bias is for none of the model's tokens."""
        if any(token >= vocabulary for token in tokens):
            raise RequestRefused(
                f"`logit_bias` names a token that the model has not; its tokens are below {vocabulary}.", "logit_bias"
            )

    def _require_readable(self, text: str) -> None:
        most = self.context * BYTES_PER_TOKEN
        size = len(text) if len(text) > most else len(text.encode(errors="surrogatepass"))
        if size > most:
            raise PromptTooLong(
                f"The text has more than {most} bytes, and the model's context is {self.context} tokens; shorten it."
            )

    def _own_beginning(self) -> str:
        """The token that `encode` puts first anyway: with the template's own there would be two."""
        bos = self.tokenizer.bos_token
        return bos if bos and self.encode("")[:1] == [self.tokenizer.bos_token_id] else ""


class Prompted:
    """The part of an engine that its model's tokenizer does."""

    def __init__(self, facts: EngineFacts, prompts: Prompts) -> None:
        self._facts = facts
        self._prompts = prompts
        warn_of_plain_template(prompts.tokenizer, facts.model)
        self._reader = ThreadPoolExecutor(1, "reading prompts")

    @property
    def facts(self) -> EngineFacts:
        """What runs."""
        return self._facts

    async def read(self, asked: str | Sequence[Message], tools: Sequence[Tool] = ()) -> Prompt:
        """A text or a conversation as a prompt, read in a thread of its own: in one, since tokenizers keep settings."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._prompts.read, asked, tools)

    async def _as_prompt(self, prompt: str | Prompt) -> Prompt:
        return prompt if isinstance(prompt, Prompt) else await self.read(prompt)


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as chat templates take them: arguments are objects in these, and a result names its function."""
    names = {call.id: call.name for message in messages for call in message.calls}
    turns = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.calls:
            turn["tool_calls"] = list(map(_call, message.calls))
        if message.call_id:
            turn |= {"tool_call_id": message.call_id, "name": names.get(message.call_id, "")}
        turns.append(turn)
    return turns


def _call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        raise RequestRefused(
            "The arguments of a call are not JSON; send them as the model wrote them.", "messages"
        ) from None
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _described(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}
