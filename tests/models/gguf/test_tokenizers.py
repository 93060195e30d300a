"""Tokenizers of every family: llama.cpp makes the same tokens of a text as transformers."""

import asyncio
import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.models.gguf.llama_cpp import LlamaTokenizer, tokenizer_of
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from confide.enclave.engines.gguf_engine import GgufEngine
from confide.errors import EngineError, ModelNotSupported
from confide.models.gguf.types import GgufType
from confide.models.gguf.vocabulary import name_for, write_vocabulary
from confide.models.gguf.write import write_gguf
from confide.models.source import Source, open_model

DOCS = Path(__file__).parents[3] / "docs"
SCRIPTS = (
    "Ἐν ἀρχῇ ἦν ὁ Λόγος. В начале было Слово. 太初有道，道與神同在。はじめに言があった。 في البدء كان الكلمة ١٢٣٤ "
)
ROWS = 1000
WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA_3 = WORD + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPACE = "\u2581"
RUNS = [character * count for character in ("\n", SPACE) for count in range(2, 9)]


def corpus() -> Iterator[str]:
    yield SCRIPTS * 20
    yield (DOCS / "how-to.md").read_text()[:60_000]


def changed(tokenizer: Tokenizer, **model: object) -> Tokenizer:
    """With other settings of its BPE."""
    description = json.loads(tokenizer.to_str())
    description["model"] |= model
    return Tokenizer.from_str(json.dumps(description))


def byte_level(cut: pre_tokenizers.PreTokenizer, *, nfc: bool = False, whole: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"]
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return with_token(tokenizer, "\u0120xyzzy")  # which no merges lead to


def with_token(tokenizer: Tokenizer, token: str) -> Tokenizer:
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    return changed(tokenizer, vocab=vocabulary | {token: len(vocabulary)})


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def neox() -> Tokenizer:
    """As GPT-NeoX, Pythia and MPT have it: composed characters, and runs of spaces as tokens of their own."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), nfc=True)
    tokenizer.add_special_tokens([AddedToken("<|padding|>", normalized=False)])
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in range(24, 1, -1)])
    return tokenizer


def phi2() -> Tokenizer:
    """As Phi-1 and Phi-2 have it: GPT-2's, and runs of spaces and of tabs as tokens of their own."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    runs = [" " * count for count in range(31, 1, -1)] + ["\t" * count for count in range(9, 1, -1)]
    tokenizer.add_tokens([AddedToken(run, normalized=True) for run in runs])
    return tokenizer


def falcon() -> Tokenizer:
    return byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
    )


def sentencepiece(first: list[str]) -> models.BPE:
    """Pieces in the order of their scores, and the merges that transformers makes of such: all pairs for each."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always")
    trained.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=500))
    characters = sorted(piece for piece in trained.get_vocab() if len(piece) == 1)
    longer = sorted((piece for piece in trained.get_vocab() if len(piece) > 1), key=trained.get_vocab().__getitem__)
    pieces = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *RUNS, *longer, *characters, "\n"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in (*RUNS, *longer)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    return models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def gemma() -> Tokenizer:
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = Tokenizer(sentencepiece(first))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in first])
    return tokenizer


def phi3(keeping: tuple[str, ...] = ("<unk>", "<s>", "<|endoftext|>")) -> Tokenizer:
    first = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]
    tokenizer = Tokenizer(sentencepiece(first))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.add_special_tokens([AddedToken(one, normalized=False, rstrip=one not in keeping) for one in first])
    return tokenizer


@dataclass(frozen=True)
class Kind:
    make: Callable[[], Tokenizer]
    special: str = "<|endoftext|>"
    own: str = "TokenizersBackend"


KINDS = {
    "gpt-2": Kind(lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))),
    "llama-3": Kind(lambda: byte_level(split(LLAMA_3), whole=True)),
    "phi-4": Kind(lambda: byte_level(split(LLAMA_3))),
    "qwen2": Kind(lambda: byte_level(split(LLAMA_3.replace("{1,3}", "")), nfc=True)),
    "neox-mpt": Kind(neox, own="GPTNeoXTokenizer"),
    "phi-2": Kind(phi2, own="CodeGenTokenizer"),
    "falcon": Kind(falcon),
    "gemma": Kind(gemma, "<start_of_turn>", "GemmaTokenizer"),
    "gemma-equal-scores": Kind(lambda: merged(gemma(), by_length), "<start_of_turn>"),
    "phi-3": Kind(phi3, "<|user|>"),
}


def saved(tokenizer: Tokenizer, folder: Path, own: str = "TokenizersBackend") -> Source:
    """A Llama of no use with a tokenizer."""
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, bos_token_id=None, eos_token_id=0, **shape)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": own}))
    return open_model(str(folder))


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LlamaTokenizer, PreTrainedTokenizerBase, str]]:
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp("tokenizer")
    source = saved(kind.make(), folder / "model", kind.own)
    theirs = source.load_tokenizer()
    assert theirs is not None
    with tokenizer_of(write_gguf(source, folder / "model.gguf", GgufType.F16).path) as mine:
        yield mine, theirs, kind.special


ASSIGNED = [
    character for character in map(chr, range(0x110000)) if unicodedata.category(character) not in ("Cn", "Cs", "Co")
]
WORDS = st.sampled_from(
    [
        "The King's 3 sons",
        "don't",
        " 100 2024",
        "12345 67",
        "$x^2 = <y>",
        "\n\n\n",
        "   ",
        "\t",
        "  \n ",
        "\r\n",
        "日本語",
    ]
)


def composed(text: str) -> str:
    """llama.cpp composes no characters, and transformers may."""
    return unicodedata.normalize("NFC", text)


@given(st.lists(WORDS | st.text(st.sampled_from(ASSIGNED), max_size=4), max_size=8).map("".join).map(composed))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_tokens_for_any_text(pair: tuple[LlamaTokenizer, PreTrainedTokenizerBase, str], text: str) -> None:
    mine, theirs, _ = pair
    assert mine.encode(text) == theirs(text)["input_ids"]


def test_the_same_tokens_for_real_text_and_for_characters_of_all_scripts(
    pair: tuple[LlamaTokenizer, PreTrainedTokenizerBase, str],
) -> None:
    mine, theirs, special = pair
    texts = [(DOCS / "serving.md").read_text(), SCRIPTS]
    texts += ["the xyzzy xyzzys", f"{special}\nHello {special} there{special}", f"  two{special}  spaces"]
    characters = [character for character in ASSIGNED[::17] if composed(character) == character]
    for start in range(0, len(characters), 100):
        texts.append(" ".join(f"a{character} {character}1" for character in characters[start : start + 100]))
    for text in map(composed, texts):
        assert mine.encode(text) == theirs(text)["input_ids"]


def test_of_llamas_prefix_only_a_space_at_the_beginning_and_special_tokens_make_a_difference(tmp_path: Path) -> None:
    """As docs/serving.md says it."""
    tokenizer = phi3(keeping=("<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"))
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)
    source = saved(tokenizer, tmp_path / "model")
    space = tokenizer.token_to_id(SPACE)
    with tokenizer_of(write_gguf(source, tmp_path / "model.gguf", GgufType.F16).path) as mine:
        for text in ((DOCS / "serving.md").read_text(), SCRIPTS):
            assert mine.encode(text) == tokenizer.encode(text).ids
        assert mine.encode(" =") == [tokenizer.token_to_id(2 * SPACE), *tokenizer.encode("=").ids[1:]]
        assert tokenizer.encode("<|user|>=").ids == [token for token in mine.encode("<|user|>=") if token != space]
        assert mine.encode("<|user|>=").count(space) == 1


def test_whoever_serves_the_file_counts_with_the_models_own_tokenizer(tmp_path: Path) -> None:
    """Of GPT-NeoX too, which transformers does not read from a GGUF file. A damaged description is refused."""
    source = saved(neox(), tmp_path / "model", "GPTNeoXTokenizer")
    file = write_gguf(source, tmp_path / "model.gguf", GgufType.F16).path
    tokenizer = source.load_tokenizer()
    assert tokenizer is not None
    engine = GgufEngine(file, "model", threads=1, parallel=1)

    async def read(text: str) -> list[int]:
        return list((await engine.read(text)).tokens)

    for text in (SCRIPTS, "two  spaces", "<|endoftext|> e\u0301"):
        assert asyncio.run(read(text)) == tokenizer(text)["input_ids"]
    asyncio.run(engine.close())
    content = file.read_bytes()
    assert content.count(b'"type":"BPE"') == 1
    file.write_bytes(content.replace(b'"type":"BPE"', b'"type":"XYZ"'))
    with pytest.raises(EngineError, match="description of its tokenizer is damaged"):
        GgufEngine(file, "model", threads=1, parallel=1)


def described(tokenizer: Tokenizer) -> None:
    """Write it as the tokenizer of some model, to nowhere."""
    writer = GGUFWriter(None, "llama")
    write_vocabulary(writer, PreTrainedTokenizerFast(tokenizer_object=tokenizer), ROWS)


def merged(tokenizer: Tokenizer, change: Callable[[list[list[str]]], list[list[str]]]) -> Tokenizer:
    return changed(tokenizer, merges=change(json.loads(tokenizer.to_str())["model"]["merges"]))


def normalized(tokenizer: Tokenizer, normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer.normalizer = normalizer
    return tokenizer


def cut(tokenizer: Tokenizer, cut: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer.pre_tokenizer = cut
    return tokenizer


def with_pair_across_digits() -> Tokenizer:
    tokenizer = json.loads(falcon().to_str())
    tokenizer["model"]["vocab"]["\u01201"] = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["merges"].append(["\u0120", "1"])
    return Tokenizer.from_str(json.dumps(tokenizer))


OTHERS: dict[str, Callable[[], Tokenizer]] = {
    "unigram": lambda: Tokenizer(models.Unigram([("a", 0.0)])),
    "gpt-2-whole-words": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), whole=True),
    "gpt-2-prefix": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "gpt-2-lower": lambda: normalized(KINDS["gpt-2"].make(), normalizers.Lowercase()),
    "chance": lambda: changed(KINDS["gpt-2"].make(), dropout=0.1),
    "other-cut": lambda: byte_level(split(r"\p{L}+|\P{L}+")),
    "falcon-digits": with_pair_across_digits,
    "gemma-folded": lambda: normalized(
        gemma(), normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", SPACE)])
    ),
    "gemma-long-token": lambda: with_token(gemma(), "=" * 600),
    "gemma-runs-come-again": lambda: merged(gemma(), lambda merges: [*merges[1:], merges[0]]),
    "gemma-whole-words": lambda: changed(gemma(), ignore_merges=True),
    "gemma-missing-pair": lambda: merged(gemma(), lambda merges: merges[:-1]),
    "gemma-other-order": lambda: merged(gemma(), lambda merges: merges[::2] + merges[1::2]),
    "gemma-runs-from-the-right": lambda: merged(gemma(), lambda merges: sorted(merges, key=run_order)),
    "metaspace-across": lambda: cut(normalized(gemma(), normalizers.Sequence([])), pre_tokenizers.Metaspace(SPACE)),
}


def by_length(merges: list[list[str]]) -> list[list[str]]:
    """As transformers orders the ways to pieces that share a score, which the runs do in Gemma's models."""
    runs = [merge for merge in merges if "".join(merge) in RUNS]
    for character in ("\n", SPACE):
        yielded = [merge for merge in runs if character in merge[0]]
        merges = [
            *sorted(yielded, key=lambda merge: (-len(merge[0]), -len(merge[1]))),
            *(merge for merge in merges if merge not in yielded),
        ]
    return merges


def run_order(merge: list[str]) -> tuple[int, int]:
    """The newlines' first, those that grow to the left before those that grow to the right."""
    left, right = merge
    return (0, len(left) - len(right)) if {*left, *right} == {"\n"} else (1, 0)


@pytest.mark.parametrize("case", OTHERS)
def test_a_tokenizer_that_llama_cpp_would_compute_otherwise_is_refused(case: str) -> None:
    with pytest.raises(ModelNotSupported, match="its tokenizer"):
        described(OTHERS[case]())


@pytest.mark.parametrize("case", [case for case, kind in KINDS.items() if kind.make is not phi3])
def test_a_model_of_another_tokenizer_is_not_called_phi_3(case: str) -> None:
    """For then llama.cpp would drop white space after its special tokens, or fail to load it."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS[case].make())
    assert name_for(tokenizer, "My-Phi3-clone") == name_for(tokenizer, "PHI-3") == "model"
    assert name_for(tokenizer, "phi-2") == "phi-2"


def test_special_tokens_that_swallow_white_space_are_phi_3s_or_refused() -> None:
    def named(tokenizer: Tokenizer) -> str:
        return name_for(PreTrainedTokenizerFast(tokenizer_object=tokenizer), "mini")

    assert named(phi3()) == "phi-3 mini"
    with pytest.raises(ModelNotSupported, match="white space"):
        named(phi3(keeping=("<unk>", "<s>", "<|endoftext|>", "<|user|>")))
    for flag in ({"rstrip": True}, {"lstrip": True}, {"single_word": True}):
        other = gemma()
        other.add_special_tokens([AddedToken("<2en>", normalized=False, **flag)])
        with pytest.raises(ModelNotSupported, match="special token"):
            named(other)
