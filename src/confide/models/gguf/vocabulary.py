"""A fast tokenizer in the two forms that llama.cpp knows: byte-level BPE, and SentencePiece BPE with byte fallback."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from confide.errors import ModelNotSupported

_SPLITS: Final = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": name
    for digits, name in ((r"\p{N}{1,3}", "llama-bpe"), (r"\p{N}", "qwen2"))
}
"""By the expression that cuts a text: what llama.cpp calls it. They differ in how many digits stay together."""
_SPACE: Final = "\u2581"
"""How SentencePiece writes a space."""
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_UNREACHABLE: Final = -1e9


def write_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase | None, rows: int) -> None:
    """Write a tokenizer as metadata. rows: of the embedding; those past the tokenizer's tokens become unused ones.

    Raises ModelNotSupported where there is no tokenizer, or none of a form that llama.cpp computes alike.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelNotSupported("A GGUF file needs the tokenizer inside; put the model's tokenizer.json beside it.")
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    if description["model"]["type"] != "BPE":
        raise ModelNotSupported(_other(f"its tokenizer is of the type {description['model']['type']}"))
    if description["model"]["byte_fallback"]:
        _write_sentencepiece(writer, tokenizer, description, rows)
    else:
        _write_byte_level(writer, description, rows)
    _write_special(writer, tokenizer)


def write_ends(writer: GGUFWriter, ends: Sequence[int]) -> None:
    """Write the tokens that end an answer, for which there are three places: end of text, of turn and of message.

    ModelNotSupported for more of them.
    """
    places = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    if len(ends) > len(places):
        raise ModelNotSupported(_other(f"{len(ends)} tokens end its answers, and the file has {len(places)} places"))
    for place, token in zip(places, ends, strict=False):
        place(token)


def _write_byte_level(writer: GGUFWriter, description: dict[str, Any], rows: int) -> None:
    tokens, types = _tokens(description, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(description))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in _merges(description)])


def _write_sentencepiece(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, description: dict[str, Any], rows: int
) -> None:
    """llama.cpp joins the pair with the best score of what comes out, which is the order of the merges."""
    pre = description["pre_tokenizer"]
    if pre and pre["type"] != "Metaspace":
        raise ModelNotSupported(_other(f"its tokenizer splits text by {pre['type']}"))
    tokens, types = _tokens(description, rows)
    rank: dict[str, int] = {}
    for left, right in _merges(description):
        rank.setdefault(left + right, len(rank))
    unknown = description["model"]["unk_token"]
    for index, token in enumerate(tokens):
        if _BYTE.fullmatch(token):
            types[index] = TokenType.BYTE
        elif token == unknown:
            types[index] = TokenType.UNKNOWN
    first = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(rank[token]) if token in rank else _UNREACHABLE for token in tokens])
    writer.add_token_types(types)
    writer.add_add_space_prefix(first.startswith(_SPACE))
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)


def _write_special(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    added = tokenizer("")["input_ids"]
    writer.add_add_bos_token(added[:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(added[1:] == [tokenizer.eos_token_id])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _tokens(description: dict[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    """Every row's token and its type, in order."""
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [TokenType.UNUSED] * rows
    added = description["added_tokens"]
    highest = max([*description["model"]["vocab"].values(), *(token["id"] for token in added)])
    if highest >= rows:
        raise ModelNotSupported(
            f"The tokenizer's token {highest} has no row in an embedding of {rows}; use the tokenizer that was made "
            "for this model."
        )
    for text, index in description["model"]["vocab"].items():
        tokens[index], types[index] = text, TokenType.NORMAL
    for token in added:
        index = token["id"]
        tokens[index] = token["content"]
        types[index] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    return tokens, types


def _merges(description: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of tokens to join, first those that come first. Older files write a pair as one text."""
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in description["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _pre_tokenizer(description: dict[str, Any]) -> str:
    """llama.cpp's name for how a text is cut before BPE. It composes no characters (NFC), as few texts need it."""
    if description["normalizer"] in (None, {"type": "NFC"}):
        match description["pre_tokenizer"]:
            case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}:
                return "gpt-2"
            case {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
                ],
            } if pattern in _SPLITS:
                return _SPLITS[pattern]
    raise ModelNotSupported(_other("its tokenizer cuts text in another way than those of GPT-2, Llama 3 and Qwen 2"))


def _other(reason: str) -> str:
    return f"This model cannot be written as GGUF here, because {reason}; use llama.cpp's convert_hf_to_gguf.py."
