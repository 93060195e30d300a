"""How long a text a model takes."""

from transformers import PreTrainedConfig


def longest_context(config: PreTrainedConfig) -> int | None:
    """Tokens that a model has been made for, or None where nothing limits them."""
    text = config.get_text_config()
    # MPT has its own name for it.
    named = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((count for count in named if count), None)
