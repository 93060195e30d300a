"""The known-answer self-test: real engines pass it, and every way to compute garbage that was thought of does not."""

import asyncio
import copy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tests.enclave.engines.conftest import Bench
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from confide.attest.configuration import Egress
from confide.attest.simulated import SimulatedTee
from confide.enclave.configuration import configuration_with, own_configuration
from confide.enclave.engines.engine import Engine, Sampling
from confide.enclave.engines.gguf_engine import GgufEngine
from confide.enclave.engines.transformers_engine import TransformersEngine
from confide.enclave.self_test import LEAST, MARGIN, SelfTest, make_known_answers
from confide.enclave.workload import Workload
from confide.errors import EngineError, SelfTestFailed, SelfTestMissing
from confide.models.integers import quantize_layers
from confide.models.source import open_model
from confide.packages.sealed.known_answers import KnownAnswers

AT = datetime(2026, 2, 19, 12, tzinfo=UTC)


def self_test(engine: Engine, known: KnownAnswers, tee: SimulatedTee) -> SelfTest:
    workload = Workload(tee, configuration=configuration_with(own_configuration(), engine, Egress.NONE))
    return SelfTest(engine, known, workload, now=lambda: AT)


@pytest.fixture(scope="session")
def tee(tmp_path_factory: pytest.TempPathFactory) -> SimulatedTee:
    return SimulatedTee.create(tmp_path_factory.mktemp("self-test") / "tee")


@pytest.fixture(scope="session")
def known(transformers_bench: Bench) -> KnownAnswers:
    return transformers_bench.run(make_known_answers)


@pytest.fixture(scope="session")
def gguf_known(gguf_bench: Bench) -> KnownAnswers:
    return gguf_bench.run(make_known_answers)


def outcome(test: SelfTest) -> str:
    """Of one run: what the statement then says."""
    try:
        asyncio.run(test.run())
    except SelfTestFailed:
        assert test.failure is not None
        with pytest.raises(SelfTestFailed):
            test.require_passed()
        assert test.workload.configuration.self_test.outcome == "failed"
    else:
        test.require_passed()
    return test.workload.configuration.self_test.outcome


@pytest.mark.parametrize("engine", ["transformers", "gguf"])
def test_an_engine_gives_the_answers_it_gave(engine: str, request: pytest.FixtureRequest, tee: SimulatedTee) -> None:
    bench: Bench = request.getfixturevalue(f"{engine}_bench")
    known: KnownAnswers = request.getfixturevalue("known" if engine == "transformers" else "gguf_known")
    assert known.tokens >= LEAST
    assert all(answer.margin >= MARGIN for answer in known.answers)
    assert KnownAnswers.decode(known.encode()) == known

    async def twice(engine: Engine) -> SelfTest:
        test = self_test(engine, known, tee)
        await test.run()
        await test.run()  # reads the weights again
        return test

    test = bench.run(twice)
    run = test.workload.configuration.self_test
    assert (run.outcome, run.at, run.tokens) == ("passed", "2026-02-19T12:00:00Z", known.tokens)
    weights = test.workload.configuration.weights
    assert weights is not None
    assert weights.digest == known.weights
    assert test.workload.attest("ab" * 32).statement.configuration == test.workload.configuration


@pytest.mark.parametrize("engine", ["gguf", "upstream"])
def test_another_engine_with_other_kernels_gives_them_too(
    engine: str, request: pytest.FixtureRequest, known: KnownAnswers, tee: SimulatedTee
) -> None:
    bench: Bench = request.getfixturevalue(f"{engine}_bench")

    async def run(engine: Engine) -> str:
        test = self_test(engine, known, tee)
        await test.run()
        return test.workload.configuration.self_test.outcome

    assert bench.run(run) == "passed"


# -- garbage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(demo_model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(demo_model)


def engine_of(model: PreTrainedModel) -> TransformersEngine:
    return TransformersEngine(model, open_model("demo").load_tokenizer(), "demo")


def foreign(known: KnownAnswers) -> KnownAnswers:
    """Made by another version of the engine: the digest of the weights is then not compared."""
    return msgspec.structs.replace(known, version="0.0.1")


def _swap_blocks(model: PreTrainedModel) -> None:
    blocks = model.transformer.h
    blocks[0], blocks[1] = blocks[1], blocks[0]


def _zero_matrix(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.zero_()


def _shuffle_vocabulary(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.transformer.wte.weight.copy_(model.transformer.wte.weight.roll(1, 0))


def _not_a_number(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.transformer.h[-1].mlp.c_proj.bias[7] = float("nan")


def _infinite(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.transformer.ln_f.bias[7] = float("inf")


DAMAGES = [_swap_blocks, _zero_matrix, _shuffle_vocabulary, _not_a_number, _infinite]


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_corrupted_in_memory_change_the_answers(
    damage: Callable[[PreTrainedModel], None], model: PreTrainedModel, known: KnownAnswers, tee: SimulatedTee
) -> None:
    damage(model)
    assert outcome(self_test(engine_of(model), foreign(known), tee)) == "failed"


def test_one_bit_that_flips_while_it_serves_is_found(
    model: PreTrainedModel, known: KnownAnswers, tee: SimulatedTee
) -> None:
    test = self_test(engine_of(model), known, tee)
    assert outcome(test) == "passed"
    bits = model.transformer.h[0].mlp.c_fc.weight.view(torch.int32)
    bits[3, 5] ^= 1
    assert outcome(test) == "failed"
    assert "have changed" in str(test.failure)
    bits[3, 5] ^= 1
    with pytest.raises(SelfTestFailed):  # what has failed once is not trusted again
        test.require_passed()


def test_other_weights_than_those_that_were_sealed(
    model: PreTrainedModel, known: KnownAnswers, tee: SimulatedTee
) -> None:
    model.transformer.h[0].mlp.c_fc.weight.view(torch.int32)[3, 5] ^= 1
    test = self_test(engine_of(model), known, tee)
    assert outcome(test) == "failed"
    assert "not those of the sealed model" in str(test.failure)


def test_what_is_no_number_is_no_answer(model: PreTrainedModel) -> None:
    _not_a_number(model)
    engine = engine_of(model)

    async def ask(sampling: Sampling) -> None:
        async for _ in engine.generate("The old king", sampling):
            pass

    for sampling in (Sampling(4, temperature=0), Sampling(4)):
        with pytest.raises(EngineError, match="no number"):
            asyncio.run(ask(sampling))


def _in_bf16(model: PreTrainedModel) -> None:
    model.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("rounding", "held"), [(_in_bf16, ("bf16", "bf16")), (quantize_layers, ("int8", "f32"))], ids=["bf16", "int8"]
)
def test_a_type_of_fewer_bits_gives_the_same_answers_and_says_so_where_not(
    rounding: Callable[[PreTrainedModel], None],
    held: tuple[str, str],
    model: PreTrainedModel,
    known: KnownAnswers,
    tee: SimulatedTee,
) -> None:
    rounding(model)
    engine = engine_of(model)
    assert engine.facts.rounded
    test = self_test(engine, known, tee)
    weights = test.workload.configuration.weights
    assert weights is not None
    assert (weights.quantization, weights.dtype) == held
    assert weights.digest != known.weights
    assert outcome(test) == "passed"
    matrix = next(one for name, one in model.state_dict().items() if name.endswith("h.0.mlp.c_fc.weight"))
    matrix.view(torch.int8)[3, 5] ^= 1
    assert outcome(test) == "failed"  # also of rounded ones no bit may flip
    _shuffle_vocabulary(model)
    other = self_test(engine_of(model), known, tee)
    assert outcome(other) == "failed"
    assert "--dtype f32" in str(other.failure)


KERNELS = {
    "layer_norm": lambda original: lambda x, *rest, **named: x,
    "scaled_dot_product_attention": lambda original: lambda q, k, v, *rest, **named: v.flip(-1),
    "embedding": lambda original: lambda *rest, **named: original(*rest, **named).flip(-1),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_wrong_kernel_is_found(
    kernel: str, monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel, known: KnownAnswers, tee: SimulatedTee
) -> None:
    test = self_test(engine_of(model), known, tee)
    assert outcome(test) == "passed"
    wrong = KERNELS[kernel](getattr(torch.nn.functional, kernel))
    monkeypatch.setattr(torch.nn.functional, kernel, wrong)
    assert outcome(test) == "failed"


def test_a_damaged_gguf_model_is_found(
    gguf_file: Path, gguf_known: KnownAnswers, tmp_path: Path, tee: SimulatedTee
) -> None:
    tensor = next(one for one in GGUFReader(gguf_file).tensors if one.name == "blk.0.ffn_up.weight")
    content = bytearray(gguf_file.read_bytes())
    place = slice(int(tensor.data_offset), int(tensor.data_offset) + int(tensor.n_bytes))
    content[place] = np.frombuffer(content[place], np.float16)[::-1].tobytes()  # numbers still, in another order
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    engine = GgufEngine(damaged, "demo", threads=1, parallel=1)
    assert engine.weights_digest() != gguf_known.weights
    test = self_test(engine, foreign(gguf_known), tee)
    assert outcome(test) == "failed"
    assert "another answer" in str(test.failure)
    asyncio.run(engine.close())
    with pytest.raises(EngineError):  # what is not mapped any more is not read
        engine.weights_digest()


# -- what cannot be tested -----------------------------------------------------------------------------------------


def test_a_model_that_is_certain_of_nothing_cannot_be_tested() -> None:
    tokenizer = open_model("demo").load_tokenizer()
    torch.manual_seed(1)
    random = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=128))
    engine = TransformersEngine(random.eval(), tokenizer, "random")
    with pytest.raises(SelfTestMissing, match="--prompts"):
        asyncio.run(make_known_answers(engine))


def test_a_prompt_that_does_not_fit_is_left_out(transformers_bench: Bench, known: KnownAnswers) -> None:
    prompts = ["word " * 600, *(answer.prompt for answer in known.answers)]
    again = transformers_bench.run(lambda engine: make_known_answers(engine, prompts))
    assert again.answers
    assert all(answer in known.answers for answer in again.answers)
