"""Which tokens end an answer: every one that any of a model's files names, for all modes alike.

Tokenizer, generation settings and configuration often disagree: chat models end a turn with a token that only one of
them knows, and a model that is not stopped there goes on to speak for its user.
"""

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """The union of the tokenizer's, the generation settings' and the configuration's, in that order, each once."""
    config = model.config
    named = [
        tokenizer.eos_token_id if tokenizer is not None else None,
        model.generation_config.eos_token_id if model.generation_config is not None else None,
        getattr(config, "eos_token_id", None),
        getattr(config.get_text_config(), "eos_token_id", None),
    ]
    tokens = (token for one in named for token in (one if isinstance(one, list | tuple) else [one]))
    return tuple(dict.fromkeys(token for token in tokens if type(token) is int and token >= 0))


def end_at_all(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Have a model's `generate` end at each of its end tokens, and pad with one token where it has none for that."""
    ends = end_tokens(model, tokenizer)
    if model.generation_config is None:
        model.generation_config = GenerationConfig()
    settings = model.generation_config
    if ends:
        settings.eos_token_id = ends[0] if len(ends) == 1 else list(ends)
        if settings.pad_token_id is None:
            own = tokenizer.pad_token_id if tokenizer is not None else None
            settings.pad_token_id = own if type(own) is int else ends[0]
