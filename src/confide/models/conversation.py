"""A conversation as a prompt, by the chat template that its model brings along.

A template is a program of the model's maker. It refuses conversations of its own accord, and fails at those that its
maker did not think of.
"""

from collections.abc import Sequence
from typing import Any, Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from confide.errors import ConversationRefused
from confide.printable import printable

_LONGEST: Final = 300


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()
) -> str:
    """The prompt for the answer to a conversation, with all its special tokens. tools: in OpenAI's form.

    ConversationRefused with the template's own sentence where it refuses, and where it fails.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # what a template does wrong is as various as programs
        if type(error) is TemplateError:  # what `raise_exception` raises, and nothing below it
            reason = printable(str(error)[:_LONGEST]).rstrip(". ")
            raise ConversationRefused(f"The model's chat template refuses this conversation: {reason}.") from error
        raise ConversationRefused(
            f"The model's chat template fails at this conversation ({type(error).__name__}); try turns of user and "
            "assistant in alternation, or another model."
        ) from error
    if not isinstance(text, str):
        raise ConversationRefused("The model's chat template gives no text; use another model.")
    return text
