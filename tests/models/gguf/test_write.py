"""GGUF files: what llama.cpp makes of them is what transformers makes of the model."""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from confide.enclave.engines.engine import Sampling
from confide.enclave.engines.gguf_engine import GgufEngine
from confide.errors import ConfideError, ModelNotSupported
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import GgufSummary, write_gguf
from confide.models.source import DEMO_FOLDER, Source, open_model

TEXT = "The old king called his three sons and said, I will give thee a good horse, but thou must not look back."


@pytest.fixture(scope="module")
def demo() -> Source:
    return open_model("demo")


@pytest.fixture(scope="module")
def files(demo: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[[GgufType], GgufSummary]:
    """The demo model in a type, written once."""
    folder = tmp_path_factory.mktemp("gguf")
    return cache(lambda type: write_gguf(demo, folder / f"{type}.gguf", type))


def llama_cpp(file: Path, prompts: Sequence[str], tokens: int) -> list[str]:
    """Greedy continuations by llama.cpp."""

    async def main() -> list[str]:
        engine = GgufEngine(file, "model", threads=1, parallel=1)
        try:
            return [
                "".join([piece.text async for piece in engine.generate(prompt, Sampling(tokens, 0))])
                for prompt in prompts
            ]
        finally:
            await engine.close()

    return asyncio.run(main())


def stock(source: Source, prompts: Sequence[str], tokens: int) -> list[str]:
    """The same by transformers in float32."""
    model, tokenizer = source.load_model(), source.load_tokenizer()
    assert tokenizer is not None
    continuations = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        whole = model.generate(ids, max_new_tokens=tokens, do_sample=False)[0]
        before = tokenizer.decode(ids[0], skip_special_tokens=True)
        continuations.append(tokenizer.decode(whole, skip_special_tokens=True).removeprefix(before))
    return continuations


def next_tokens(source: Source) -> dict[str, str]:
    """Ever longer prompts, and the next token that transformers chooses after each."""
    words = TEXT.split()
    prompts = [" ".join(words[:length]) for length in range(1, len(words))]
    return dict(zip(prompts, stock(source, prompts, 1), strict=True))


def agreement(expected: dict[str, str], file: Path) -> float:
    """The share of next tokens that llama.cpp chooses as expected."""
    chosen = llama_cpp(file, list(expected), 1)
    return sum(mine == theirs for mine, theirs in zip(chosen, expected.values(), strict=True)) / len(expected)


@pytest.mark.slow  # the types have quicker tests, one by one
def test_few_bits_still_choose_the_same_next_tokens(demo: Source, files: Callable[[GgufType], GgufSummary]) -> None:
    expected = next_tokens(demo)
    assert agreement(expected, files(GgufType.F16).path) == 1
    assert agreement(expected, files(GgufType.Q8_0).path) >= 0.95
    assert agreement(expected, files(GgufType.Q6_K).path) >= 0.95
    assert agreement(expected, files(GgufType.Q5_K_M).path) >= 0.9
    assert agreement(expected, files(GgufType.Q5_0).path) >= 0.8
    assert agreement(expected, files(GgufType.Q4_K_M).path) >= 0.8
    assert agreement(expected, files(GgufType.Q4_0).path) >= 0.7


def test_sizes_are_those_of_the_types(files: Callable[[GgufType], GgufSummary]) -> None:
    blocks, embedding, positions = 6 * 12 * 256 * 256, 4096 * 256, 512 * 256
    vectors = 6 * (4 * 256 + 3 * 256 + 256 + 4 * 256 + 256) + 2 * 256
    bits = {
        GgufType.F16: (16, 16),
        GgufType.Q8_0: (8.5, 8.5),
        GgufType.Q6_K: (6.5625, 6.5625),
        GgufType.Q5_0: (5.5, 8.5),
        GgufType.Q4_0: (4.5, 8.5),
    }
    overheads = set()
    for type, (matrix, embedded) in bits.items():
        payload = (blocks * matrix + embedding * embedded) / 8 + 4 * (positions + vectors)
        summary = files(type)
        assert summary.size == summary.path.stat().st_size
        assert summary.parameters == blocks + embedding + positions + vectors
        overheads.add(round((summary.size - payload) / 1024))
    assert len(overheads) == 1
    assert 0 < overheads.pop() < 300


def test_metadata_says_what_is_inside(files: Callable[[GgufType], GgufSummary]) -> None:
    reader = GGUFReader(files(GgufType.Q4_0).path)
    facts = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.ggml.")}
    assert facts["general.architecture"] == "gpt2"
    assert facts["general.file_type"] == 2
    assert facts["gpt2.context_length"] == 512
    assert facts["gpt2.embedding_length"] == 256
    assert facts["gpt2.attention.head_count"] == 4
    assert facts["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert kinds["blk.0.attn_qkv.weight"] == GGMLQuantizationType.Q4_0
    assert kinds["token_embd.weight"] == GGMLQuantizationType.Q8_0
    assert kinds["position_embd.weight"] == kinds["blk.0.attn_norm.weight"] == GGMLQuantizationType.F32
    assert files(GgufType.Q4_0).wider == {}


def test_a_calibration_text_moves_the_errors_to_where_they_matter_least(
    demo: Source, files: Callable[[GgufType], GgufSummary], tmp_path: Path
) -> None:
    tokenizer, model = demo.load_tokenizer(), demo.load_model()
    assert tokenizer is not None
    ids = tokenizer(TEXT * 8, return_tensors="pt").input_ids
    calibrated = write_gguf(demo, tmp_path / "calibrated.gguf", GgufType.Q4_K_M, texts=[ids])
    read = list[torch.Tensor]()
    layer = model.get_submodule("transformer.h.2.mlp.c_fc")
    layer.register_forward_pre_hook(lambda _, args: read.append(args[0].detach()))
    model(ids)
    costs = read[0].reshape(-1, 256).square().mean(0).numpy()
    weights = layer.get_parameter("weight").detach().T.numpy()

    def error(file: Path) -> float:
        written = next(one for one in GGUFReader(file).tensors if one.name == "blk.2.ffn_up.weight")
        assert written.tensor_type is GGMLQuantizationType.Q4_K
        return float(((dequantize(written.data, written.tensor_type) - weights) ** 2 * costs).mean())

    assert error(calibrated.path) < 0.95 * error(files(GgufType.Q4_K_M).path)
    for type in (GgufType.F16, GgufType.BF16, GgufType.Q8_0):
        with pytest.raises(ConfideError, match="--calibrate"):
            write_gguf(demo, tmp_path / "model.gguf", type, texts=[ids])


LLAMA_SHAPE = {
    "vocab_size": 4100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ROPES = [
    {"rope_type": "default", "rope_theta": 5000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
]


def save(model: PreTrainedModel, folder: Path) -> Source:
    """A model of random weights that float16 holds exactly, with the demo's tokenizer."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            parameter.copy_(parameter.half().float())
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        copy(DEMO_FOLDER / name, folder)
    return open_model(str(folder))


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_llama_with_every_rope_biases_grouped_queries_and_a_head_of_its_own(
    rope: dict[str, object], tmp_path: Path
) -> None:
    config = LlamaConfig(**LLAMA_SHAPE, max_position_embeddings=256, tie_word_embeddings=False, rope_parameters=rope)
    source = save(LlamaForCausalLM(config), tmp_path / "model")
    summary = write_gguf(source, tmp_path / "model.gguf", GgufType.F16)
    # The model is random, so two tokens may come out all but equal: nearly always the same is the most to ask for.
    assert agreement(next_tokens(source), summary.path) >= 0.9


def stories(test_data: Path, folder: Path) -> Source:
    """The trained Llama of the test data, with a SentencePiece tokenizer made from its pieces and scores."""
    original = test_data / "models" / "stories260k-llama"
    if not original.is_dir():
        pytest.skip(f"{original} is not there")
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        copy(original / name, folder)
    read = json.loads((original / "pieces.json").read_text())
    pieces = ["<unk>", "<s>", "</s>", *(piece.replace(" ", "\u2581") for piece in read["pieces"][3:])]
    pieces[3:259] = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    by_score = sorted(range(259, len(pieces)), key=lambda index: -read["scores"][index])
    merges = [
        (pieces[index][:cut], pieces[index][cut:])
        for index in by_score
        for cut in range(1, len(pieces[index]))
        if pieces[index][:cut] in vocabulary and pieces[index][cut:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in pieces[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return open_model(str(folder))


def test_a_trained_llama_with_sentencepiece_tells_the_same_story(test_data: Path, tmp_path: Path) -> None:
    source = stories(test_data, tmp_path / "model")
    prompts = ["Once upon a time, there was a", "Lily and Ben saw a über 日 cat", "One day"]
    f16 = write_gguf(source, tmp_path / "f16.gguf", GgufType.F16)
    assert llama_cpp(f16.path, prompts, 40) == stock(source, prompts, 40)
    tokenizer, counter = source.load_tokenizer(), GgufEngine(f16.path, "stories", threads=1, parallel=1)
    assert tokenizer is not None

    async def counted() -> list[int]:
        counts = [len((await counter.read(prompt)).tokens) for prompt in prompts]
        await counter.close()
        return counts

    assert asyncio.run(counted()) == [len(tokenizer(prompt).input_ids) for prompt in prompts]
    q8 = write_gguf(source, tmp_path / "q8_0.gguf", GgufType.Q8_0)
    assert all("ffn_down" in name for name in q8.wider)  # 172 wide: no whole number of blocks
    assert len(q8.wider) == 5
    assert set(q8.wider.values()) == {"f16"}
    assert agreement(next_tokens(source), q8.path) >= 0.9


def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path: Path) -> None:
    shape = {"vocab_size": 4096, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 2}
    for config, model in (
        (GPT2Config(**shape, activation_function="relu"), GPT2LMHeadModel),
        (GPT2Config(**shape, scale_attn_by_inverse_layer_idx=True), GPT2LMHeadModel),
        (LlamaConfig(**LLAMA_SHAPE, hidden_act="gelu"), LlamaForCausalLM),
        (LlamaConfig(**LLAMA_SHAPE | {"vocab_size": 4000}), LlamaForCausalLM),  # fewer rows than tokens
        (LlamaConfig(**LLAMA_SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0}), LlamaForCausalLM),
    ):
        source = save(model(config), tmp_path / "model")
        with pytest.raises(ModelNotSupported):
            write_gguf(source, tmp_path / "model.gguf", GgufType.F16)
    assert not (tmp_path / "model.gguf").exists()


def test_unknown_architectures_and_models_without_tokenizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    with pytest.raises(ModelNotSupported, match="bloom"):
        write_gguf(open_model(str(tmp_path)), tmp_path / "model.gguf", GgufType.F16)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelNotSupported, match="tokenizer"):
        write_gguf(open_model(str(tmp_path)), tmp_path / "model.gguf", GgufType.F16)


def test_a_file_appears_whole_or_not_at_all(demo: Source, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        assert not (tmp_path / "model.gguf").exists()
        if done == total // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        write_gguf(demo, tmp_path / "model.gguf", GgufType.Q8_0, interrupt)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfideError, match="cannot be written"):
        write_gguf(demo, tmp_path / "missing" / "model.gguf", GgufType.Q8_0)


def test_a_run_that_was_stopped_is_gone_on_with(demo: Source, tmp_path: Path) -> None:
    out, kept = tmp_path / "model.gguf", tmp_path / ".model.gguf.tensors"
    made: list[int] = []

    def counted(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            made.append(1)
            yield work(item)

    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(demo, out, GgufType.Q8_0, stop, mapped=counted, keep=True)
    assert not out.exists()
    first = len(made)
    parts = sorted(kept.iterdir())
    content = bytearray(parts[0].read_bytes())
    content[40] ^= 1
    parts[0].write_bytes(content)  # which is made again, as what is short is
    parts[1].write_bytes(parts[1].read_bytes()[:-1])
    summary = write_gguf(demo, out, GgufType.Q8_0, mapped=counted, keep=True)
    assert len(made) == summary.tensors + 2 + (first - len(parts))
    assert not kept.exists()
    plain = write_gguf(demo, tmp_path / "plain.gguf", GgufType.Q8_0)
    assert out.read_bytes() == plain.path.read_bytes()


@pytest.mark.parametrize(("type", "value", "stored"), [(GgufType.F16, 70_000.0, "f32"), (GgufType.Q8_0, 4e-6, "f16")])
def test_a_matrix_that_its_type_has_no_room_for_is_written_wider_and_named(
    type: GgufType, value: float, stored: str, tmp_path: Path
) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=4096, n_positions=32, n_embd=32, n_layer=1, n_head=1))
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[:, 5] = value  # one row of the file's matrix
    model.save_pretrained(tmp_path)
    copy(DEMO_FOLDER / "tokenizer.json", tmp_path)
    summary = write_gguf(open_model(str(tmp_path)), tmp_path / "model.gguf", type)
    assert summary.wider == {"blk.0.ffn_up.weight": stored}
    written = next(one for one in GGUFReader(summary.path).tensors if one.name == "blk.0.ffn_up.weight")
    assert written.tensor_type.name.lower() == stored
    assert dequantize(written.data, written.tensor_type)[5] == pytest.approx([value] * 32, rel=0.01)
