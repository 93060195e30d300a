"""A fast tokenizer in the two forms that llama.cpp knows: byte-level BPE, and SentencePiece BPE with byte fallback."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from gguf import GGUFWriter, Keys, TokenType
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from confide.errors import ModelNotSupported

_CUTS: Final = {
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        whole,
    ): name
    for digits, whole, name in (
        (r"\p{N}{1,3}", True, "llama-bpe"),
        (r"\p{N}{1,3}", False, "dbrx"),
        (r"\p{N}", False, "qwen2"),
    )
}
"""By the expression that cuts a text, and whether a word that is a token is taken without merging: llama.cpp's name."""
_FALCON: Final = [
    {"type": "Punctuation", "behavior": "Contiguous"},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    {"type": "Digits", "individual_digits": False},
    {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
]
_SPACE: Final = "\u2581"
"""How SentencePiece writes a space."""
_SPACES: Final = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREFIX: Final = {"type": "Prepend", "prepend": _SPACE}
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_UNREACHABLE: Final = -1e9
_LONGEST: Final = 512
"""Characters of a token; those of known models have up to 32."""
_PHI3: Final = re.compile(r"phi-?3", re.IGNORECASE)
_NAMED: Final = re.compile(r"phi-?3|modern-bert", re.IGNORECASE)
"""What in a model's name changes how llama.cpp's src/llama-vocab.cpp reads text after special tokens."""
_PHI3_KEEPS: Final = frozenset(("<unk>", "<s>", "<|endoftext|>"))
"""Of a model that is named Phi-3, the special tokens after which it keeps white space; it drops it after all others."""


def write_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase | None, rows: int) -> None:
    """Write a tokenizer as metadata. rows: of the embedding; those past the tokenizer's tokens become unused ones.

    The tokenizer's own description comes along, so that whoever serves the file counts tokens with the same one.
    Raises ModelNotSupported where there is no tokenizer, or none of a form that llama.cpp computes alike.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelNotSupported("A GGUF file needs the tokenizer inside; put the model's tokenizer.json beside it.")
    text = tokenizer.backend_tokenizer.to_str()
    description = json.loads(text)
    if description["model"]["type"] != "BPE":
        raise ModelNotSupported(_other(f"its tokenizer is of the type {description['model']['type']}"))
    _require_plain(description["model"])
    writer.add_string(Keys.Tokenizer.HF_JSON, text)
    if description["model"]["byte_fallback"]:
        _write_sentencepiece(writer, tokenizer, description, rows)
    else:
        _write_byte_level(writer, description, rows)
    _write_special(writer, tokenizer)


def name_for(tokenizer: PreTrainedTokenizerBase | None, name: str) -> str:
    """A model's name as the file has it, by which llama.cpp decides whether special tokens swallow white space.

    ModelNotSupported for a tokenizer whose tokens do so in another way than Phi-3's.
    """
    added = tokenizer.added_tokens_decoder.values() if tokenizer is not None else ()
    if any(token.lstrip or token.single_word for token in added):
        raise ModelNotSupported(_other("a special token of it depends on what stands before it"))
    if not any(token.rstrip for token in added):
        return "model" if _NAMED.search(name) else name
    contents = {token.content for token in added}
    if not contents >= _PHI3_KEEPS | {"</s>"} or any(token.rstrip == (token.content in _PHI3_KEEPS) for token in added):
        raise ModelNotSupported(_other("special tokens of it swallow white space in another way than those of Phi-3"))
    return name if _PHI3.search(name) else f"phi-3 {name}"


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
    prefixed = _is_prefixed(description)
    tokens, types = _tokens(description, rows)
    rank = _ranks(description)
    unknown = description["model"]["unk_token"]
    for index, token in enumerate(tokens):
        if _BYTE.fullmatch(token):
            types[index] = TokenType.BYTE
        elif token == unknown:
            types[index] = TokenType.UNKNOWN
    if any(f"<0x{byte:02X}>" not in description["model"]["vocab"] for byte in range(256)):
        raise ModelNotSupported(_other("its tokenizer has no token for some bytes"))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(rank[token]) if token in rank else _UNREACHABLE for token in tokens])
    writer.add_token_types(types)
    writer.add_add_space_prefix(prefixed)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)


def _is_prefixed(description: dict[str, Any]) -> bool:
    """Whether a text gets a space in front. ModelNotSupported for a text that is changed or cut in another way."""
    match description["normalizer"], description["pre_tokenizer"]:
        case {"type": "Sequence", "normalizers": [first, second]}, None if (first, second) == (_PREFIX, _SPACES):
            return True
        case normalizer, None if normalizer == _SPACES:
            return False
        case (
            normalizer,
            {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        ) if normalizer == _SPACES:  # cuts nothing: no spaces are left
            return False
        case None, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}:
            if split and any(_SPACE in (left + right)[1:] for left, right in _merges(description)):
                raise ModelNotSupported(_other("its tokenizer cuts text at spaces and has tokens across them"))
            return bool(scheme != "never")
    raise ModelNotSupported(_other("its tokenizer cuts or changes text in another way than SentencePiece"))


def _ranks(description: dict[str, Any]) -> dict[str, int]:
    """By what comes out of a merge: its rank.

    llama.cpp joins whatever two tokens make a third, and knows one rank for all ways to it. ModelNotSupported where
    that is not what the merges say: where a pair is missing, or the ways to a token do not follow each other. Runs of
    one character may have theirs mixed, if they come with the longest left side first: then both grow from the left.
    """
    merges = _merges(description)
    vocabulary = description["model"]["vocab"].keys()
    if max(map(len, vocabulary)) > _LONGEST:
        raise ModelNotSupported(_other(f"its tokenizer has tokens of more than {_LONGEST} characters"))
    rank: dict[str, int] = {}
    newest, last, falling = "", ("", ""), False
    for left, right in merges:
        made, before = left + right, "".join(last)
        if before[:1] == made[:1] and len({*made, *before}) == 1:
            falling = falling and (len(left), len(right)) < tuple(map(len, last))
        else:
            falling = len({*made}) == 1
        if made not in rank:
            rank[made], newest = len(rank), made
        elif made != newest and not (falling and len({*made, *newest}) == 1 and made[1:] in vocabulary):
            raise ModelNotSupported(_other("its tokenizer's merges have no scores that would give their order"))
        last = left, right
    known = set(merges)
    for token in vocabulary - {added["content"] for added in description["added_tokens"]}:
        ways = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        if any(left in vocabulary and right in vocabulary and (left, right) not in known for left, right in ways):
            raise ModelNotSupported(_other("its tokenizer does not join all pairs of tokens that make another"))
    return rank


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
    whole = description["model"]["ignore_merges"]
    if description["normalizer"] in (None, {"type": "NFC"}):
        match description["pre_tokenizer"]:
            case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False} if not whole:
                return "gpt-2"
            case {"type": "Sequence", "pretokenizers": steps} if steps == _FALCON and not whole:
                _require_digits_apart(description)
                return "falcon"
            case {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
                ],
            } if (pattern, whole) in _CUTS:
                return _CUTS[pattern, whole]
    raise ModelNotSupported(
        _other("its tokenizer cuts text in another way than those of GPT-2, Llama 3, Phi-4, Qwen 2 and Falcon")
    )


def _require_digits_apart(description: dict[str, Any]) -> None:
    """Falcon's cuts digits from all else, llama.cpp only where three stand together: no token may have both."""
    for left, right in _merges(description):
        if len({character.isnumeric() for character in left + right}) > 1:
            raise ModelNotSupported(_other("its tokenizer cuts text at digits and has tokens across them"))


def _require_plain(model: dict[str, Any]) -> None:
    """BPE without what llama.cpp does not know: chance, and marks at a word's beginning or end."""
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[name]:
            raise ModelNotSupported(_other(f"its tokenizer has a {name}"))
    if model["byte_fallback"] and model["ignore_merges"]:
        raise ModelNotSupported(_other("its tokenizer takes words whole"))


def _other(reason: str) -> str:
    return f"This model cannot be written as GGUF here, because {reason}; use llama.cpp's convert_hf_to_gguf.py."
