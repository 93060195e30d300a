"""Tokenizers of both kinds that models have, and a model that says what it is told to, whatever it was asked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

POSITIONS = 64


def byte_level(*special: str) -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it: the special tokens, then one for each byte, then two longer ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *letters, "he", "\u0120t"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "e"), ("\u0120", "t")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def byte_fallback(*special: str) -> Tokenizer:
    """As Llama 2 and Mistral have it: letters, and a token for each byte of what has none."""
    special = ("<unk>", "<s>", "</s>", *special)
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz.", "\u2581a"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    made = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[("\u2581", "a")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def fast(tokenizer: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    """In transformers' form."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def saying(script: Sequence[int], prompt_tokens: int, vocabulary: int, end: int) -> GPT2LMHeadModel:
    """A model whose token after `prompt_tokens` tokens, of whatever kind, is the script's first, and so on.

    It sees positions alone: each has a direction of its own, which the head turns into a token.
    """
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=POSITIONS,
        n_embd=POSITIONS,
        n_layer=1,
        n_head=1,
        bos_token_id=end,
        eos_token_id=end,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.transformer.wpe.weight.copy_(10 * torch.eye(POSITIONS))
        for norm in (model.transformer.h[0].ln_1, model.transformer.h[0].ln_2, model.transformer.ln_f):
            norm.weight.fill_(1)
        for place, token in enumerate([*script, *[end] * (POSITIONS - prompt_tokens + 1 - len(script))]):
            model.lm_head.weight[token, prompt_tokens - 1 + place] = 10
    return model


def save(model: GPT2LMHeadModel, tokenizer: Tokenizer, folder: Path, **settings: Any) -> Path:
    """As a checkpoint, its tokenizer's settings as they are given."""
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | settings))
    return folder
