"""A conversation as a prompt, by the chat template that its model brings along, or by a plain one.

A template is a program of the model's maker. It refuses conversations of its own accord, and fails at those that its
maker did not think of.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any, Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from confide.errors import ConversationRefused
from confide.printable import printable

PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For a model without a template of its own: each turn a paragraph that begins with who speaks."""
_LONGEST: Final = 300

_log = logging.getLogger(__name__)


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template that `render` goes by; of several, all of them as JSON."""
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def warn_of_plain_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Tell whoever runs a model that it was not trained on what its conversations will look like."""
    if not tokenizer.chat_template:
        _log.warning(
            "%s has no chat template: conversations become prompts by a plain one, of paragraphs such as `User: ...`. "
            "It may go on speaking for the user; give it its own template, or use one that was trained to chat.",
            printable(name),
        )


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()
) -> str:
    """The prompt for the answer to a conversation, with all its special tokens. tools: in OpenAI's form.

    Without a template of the model's own it is `PLAIN_TEMPLATE`'s, which has none of them: a tokenizer then adds its
    own, as to any text. ConversationRefused with the template's own sentence where it refuses, and where it fails.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) or None,
            chat_template=None if tokenizer.chat_template else PLAIN_TEMPLATE,
            tokenize=False,
            add_generation_prompt=True,
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
