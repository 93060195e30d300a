"""How long a text a model takes."""

from typing import Final

from transformers import PreTrainedConfig

from confide.errors import PromptTooLong

DEFAULT_CONTEXT: Final = 2048
"""Tokens to reckon with for a model that nothing limits."""


def longest_context(config: PreTrainedConfig) -> int | None:
    """Tokens that a model has been made for, or None where nothing limits them."""
    text = config.get_text_config()
    # MPT and BLOOM have their own names for it.
    named = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length"))
    return next((count for count in named if count), None)


def require_room(config: PreTrainedConfig, prompt: int, answer: int) -> None:
    """PromptTooLong where a prompt and an answer of so many tokens are more than the model has been made for."""
    context = longest_context(config)
    if context is None or prompt + answer <= context:
        return
    if prompt >= context:
        raise PromptTooLong(
            f"The prompt has {prompt} tokens, and the model takes {context} with its answer; shorten it."
        )
    raise PromptTooLong(
        f"The prompt has {prompt} tokens and its answer up to {answer}, and the model takes {context} together; ask "
        f"for at most {context - prompt} new tokens, or shorten the prompt."
    )
