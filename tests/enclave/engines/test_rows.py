"""Requests that are decoded in one pass: each gets what it gets alone, whoever comes, goes or fails beside it."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from tests.families import FAMILIES, GROUPED, UNLISTED, randomise
from transformers import AutoModelForCausalLM, FalconH1Config, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from confide.enclave.engines.rows import ROOM, Batching, RoomyLayer, Row, Rows
from confide.errors import EngineFault

PROMPTS = ([5, 9, 33], [7] * 9, [2, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50])
STEPS = 6
ALONE = {
    "falcon-7b": Batching.ATTENTION,
    "falcon-rw": Batching.ATTENTION,
    "falcon-40b": Batching.ATTENTION,
    "falcon-11b": Batching.ATTENTION,
    "mpt": Batching.ATTENTION,
    "mistral": Batching.CACHE,
    "gemma2": Batching.CACHE,
    "gemma3_text": Batching.CACHE,
}
"""What this version of transformers makes of each; every other family is computed together."""


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(1)
    return randomise(AutoModelForCausalLM.from_config(copy.deepcopy(config))).eval()


def read(rows: Rows, prompt: Sequence[int]) -> Row:
    row = rows.row(len(prompt))
    row.read(prompt)
    return row


def greedy(row: Row, steps: int = STEPS) -> tuple[list[int], torch.Tensor]:
    """An answer that is computed alone, and the logits behind it."""
    tokens = []
    for _ in range(steps):
        tokens.append(int(row.logits.argmax()))
        row.read(tokens[-1:])
    return tokens, row.logits


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return model_of(FAMILIES["gpt2"])


@pytest.fixture(scope="module")
def gpt2(model: PreTrainedModel) -> Rows:
    return Rows(model)


@pytest.mark.parametrize("family", [*FAMILIES, "opt"])
def test_rows_together_get_what_each_gets_alone(family: str) -> None:
    model = model_of(FAMILIES.get(family, UNLISTED))
    rows = Rows(model)
    assert rows.batching is ALONE.get(family, Batching.TOGETHER)
    alone = [greedy(read(rows, prompt)) for prompt in PROMPTS]
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    together = [read(rows, prompt) for prompt in PROMPTS]
    answers: list[list[int]] = [[] for _ in PROMPTS]
    before = len(passes)
    for _ in range(STEPS):
        for row, answer in zip(together, answers, strict=True):
            answer.append(int(row.logits.argmax()))
        for row, answer in zip(together, answers, strict=True):
            row.follow(answer[-1:])
    ends = [row.logits for row in together]
    assert len(passes) - before == STEPS * (1 if rows.batching is Batching.TOGETHER else len(PROMPTS))
    for answer, end, (expected, logits) in zip(answers, ends, alone, strict=True):
        assert answer == expected
        assert torch.allclose(end, logits, rtol=1e-4, atol=1e-4)


def together(rows: Rows, prompts: Sequence[Sequence[int]], token: int = 3) -> list[torch.Tensor]:
    """Logits behind a token of each, in one pass."""
    made = [read(rows, prompt) for prompt in prompts]
    for row in made:
        row.follow([token])
    return [row.logits for row in made]


@pytest.mark.parametrize("family", [*FAMILIES, "opt"])
def test_prompts_are_read_in_parts_beside_others(family: str) -> None:
    """A long one in parts, one that has read some, one that has read nothing, and one that decodes."""
    model = model_of(FAMILIES.get(family, UNLISTED))
    rows = Rows(model)
    assert rows.batching is ALONE.get(family, Batching.TOGETHER)
    prompts = [[3, 9, *range(20, 40)], [7, 11, 12, 13], [5, 6, 7, 8, 9], [41, 42, 43]]
    alone = [greedy(read(rows, prompt), 3) for prompt in prompts]
    made = [read(rows, prompts[0][:5]), read(rows, prompts[1][:2]), rows.row(), read(rows, prompts[3][:2])]
    for row, tokens in zip(made, (prompts[0][5:12], prompts[1][2:], prompts[2], prompts[3][2:]), strict=True):
        row.follow(tokens)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert made[0].logits.isfinite().all()
    made[0].follow(prompts[0][12:])
    assert made[0].logits.isfinite().all()
    assert rows.batching is not Batching.TOGETHER or len(passes) == 2
    answers: list[list[int]] = [[] for _ in prompts]
    for _ in range(3):
        for row, answer in zip(made, answers, strict=True):
            answer.append(int(row.logits.argmax()))
            row.follow(answer[-1:])
    assert answers == [expected for expected, _ in alone]
    for row, prompt, (_, logits) in zip(made, prompts, alone, strict=True):
        assert torch.allclose(row.logits, logits, rtol=1e-4, atol=1e-4)
        assert row.tokens == len(prompt) + 3


def test_what_others_say_changes_not_a_bit(gpt2: Rows) -> None:
    first, _ = together(gpt2, [PROMPTS[0], PROMPTS[1]])
    again, other = together(gpt2, [PROMPTS[0], [11, 60, 8, 1, 1, 30, 31, 32, 33]])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rows_come_and_go_at_any_token(model: PreTrainedModel, gpt2: Rows) -> None:
    alone = [greedy(read(gpt2, prompt), 9)[0] for prompt in PROMPTS]
    first, second = read(gpt2, PROMPTS[0]), read(gpt2, PROMPTS[1])
    late = None
    answers: list[list[int]] = [[], [], []]
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _module, _inputs, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    for step in range(9):
        present = [(0, first), *([(1, second)] if step < 5 else []), *([(2, late)] if late is not None else [])]
        for index, row in present:
            answers[index].append(int(row.logits.argmax()))
            row.follow(answers[index][-1:])
        if step == 2:
            late = read(gpt2, PROMPTS[2])
        if step == 4:
            second.leave()
    hook.remove()
    assert answers == [alone[0], alone[1][:5], alone[2][:6]]
    assert sizes == [2, 2, len(PROMPTS[2]), 2, 3, 2, 2, 2, 2]  # the late one's prompt before the third pass
    assert second.tokens == len(PROMPTS[1]) + 4


@pytest.mark.parametrize("where", ["transformer.wte", "transformer.h.1.mlp"])
def test_a_row_that_fails_fails_by_itself(where: str, model: PreTrainedModel, gpt2: Rows) -> None:
    """Also where caches have grown by half of the pass that fails."""
    expected = together(gpt2, PROMPTS)
    rows = [read(gpt2, prompt) for prompt in PROMPTS]
    bad = read(gpt2, PROMPTS[0])
    for row in (*rows, bad):
        row.follow([3])

    def fail(*_: object) -> None:
        if len(passes) in (1, 5):  # all of them, and then the last of each by itself
            raise MemoryError

    passes: list[None] = []
    hooks = [
        model.register_forward_pre_hook(lambda *_: passes.append(None)),
        model.get_submodule(where).register_forward_pre_hook(fail),
    ]
    with pytest.raises(EngineFault, match="MemoryError"):
        _ = bad.logits
    logits = [row.logits for row in rows]
    for hook in hooks:
        hook.remove()
    assert len(passes) == 5
    for row, one, other, prompt in zip(rows, logits, expected, PROMPTS, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
        assert row.tokens == len(prompt) + 1


def test_a_row_without_numbers_ends_and_the_others_go_on() -> None:
    model = model_of(FAMILIES["llama"])
    with torch.no_grad():
        model.get_input_embeddings().weight[13] = torch.nan
    rows = Rows(model)
    good, bad = read(rows, PROMPTS[0]), read(rows, PROMPTS[1])
    good.follow([3])
    bad.follow([13])
    assert good.logits.isfinite().all()
    with pytest.raises(EngineFault, match="no number"):
        _ = bad.logits


def dynamic(**more: object) -> PreTrainedConfig:
    config = copy.deepcopy(FAMILIES["llama"])
    config.rope_parameters = {"rope_theta": 10000.0, **more}
    return config


@pytest.mark.parametrize(
    ("config", "batching"),
    [
        (dynamic(rope_type="dynamic", factor=2.0), Batching.POSITIONS),
        (
            dynamic(
                rope_type="longrope",
                short_factor=[1.0] * 4,
                long_factor=[2.0] * 4,
                factor=2.0,
                original_max_position_embeddings=16,
            ),
            Batching.POSITIONS,
        ),
        (dynamic(rope_type="linear", factor=2.0), Batching.TOGETHER),
        (FalconH1Config(**GROUPED, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8), Batching.CACHE),
    ],
    ids=["dynamic", "longrope", "linear", "hybrid"],
)
def test_models_whose_rows_hang_together_are_computed_one_by_one(config: PreTrainedConfig, batching: Batching) -> None:
    model = model_of(config)
    assert Rows(model).batching is batching
    if batching is not Batching.TOGETHER:
        assert model.config._attn_implementation == "sdpa"


def test_who_asks_for_another_attention_gets_it() -> None:
    model = model_of(FAMILIES["llama"])
    model.set_attn_implementation("eager")
    assert Rows(model).batching is Batching.ATTENTION
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("mixes", [lambda x: x + x.mean(1), lambda x: x.flip(1)], ids=["mean", "swap"])
def test_a_model_that_mixes_rows_is_found_out(mixes: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = model_of(FAMILIES["llama"])

    def mix(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return mixes(output) if output.shape[1] == 8 else output  # of the trial's pass: no row reads so many by itself

    model.get_submodule("model.layers.0.mlp").register_forward_hook(mix)
    assert Rows(model).batching is Batching.TRIAL
    assert model.config._attn_implementation == "sdpa"


def test_a_model_without_numbers_is_not_believed() -> None:
    model = model_of(FAMILIES["llama"])
    with torch.no_grad():
        model.get_output_embeddings().weight[:] = torch.nan
    assert Rows(model).batching is not Batching.TOGETHER


def test_a_roomy_layer_holds_what_a_plain_one_does_and_moves_it_seldom() -> None:
    roomy, plain = RoomyLayer(room=5), DynamicLayer()
    generator = torch.Generator().manual_seed(3)
    moved = set()
    for count in [7, 1, 1, ROOM - 9, 1, 1, 2 * ROOM, 1]:
        keys, values = (torch.randn(1, 2, count, width, generator=generator) for width in (4, 6))
        kept = copy.copy(roomy)
        before = None if kept.keys is None else kept.keys.clone()
        for one, other in zip(roomy.update(keys, values), plain.update(keys, values), strict=True):
            assert torch.equal(one, other)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert before is None or torch.equal(kept.keys, before)
        moved.add(roomy.keys.data_ptr())
    assert len(moved) == 3
    once = RoomyLayer(room=3 * ROOM)
    places = {once.update(keys[:, :, :200], values[:, :, :200])[0].data_ptr() for _ in range(3)}
    assert len(places) == 1
