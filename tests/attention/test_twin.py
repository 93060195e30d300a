"""The circuit in the clear: what it computes, within its levels, and how the client finds out that it did not."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from confide.attention import cost, layout, reference
from confide.attention.circuit import Circuit
from confide.attention.plaintexts import Plaintexts
from confide.attention.plan import compile_plan
from confide.attention.shape import AttentionShape
from confide.attention.twin import ClearBackend, ClearVector, twin
from confide.attention.weights import AttentionWeights
from confide.errors import EvaluationError, InvalidActivation, ModelMismatch, ModelNotSupported, OutsideCalibration

from .blocks import block

SHAPES = [
    pytest.param(16, 2, 8, 4, id="powers-of-two"),
    pytest.param(10, 3, 4, 3, id="padded-everywhere"),
    pytest.param(64, 1, 8, 4, id="one-head-of-many"),
    pytest.param(12, 4, 3, 8, id="more-tokens-than-dims"),
    pytest.param(3, 1, 1, 2, id="smallest"),
]


@pytest.mark.parametrize(("width", "heads", "head_width", "tokens"), SHAPES)
def test_the_twin_is_attention(width, heads, head_width, tokens):
    it = block(width, heads, head_width, tokens)
    for length in range(1, tokens + 1):
        x = it.input(length)
        result = twin(x, it.plaintexts)
        assert result.in_range
        assert np.abs(result.context - reference.attention(x, it.weights)).max() < 2e-3


@pytest.mark.parametrize(("width", "heads", "head_width", "tokens"), SHAPES)
def test_the_circuit_uses_every_level_and_no_more(width, heads, head_width, tokens):
    it = block(width, heads, head_width, tokens)
    packed = layout.pack_input(it.input(), it.plan.shape)
    levels = it.plan.parameters.levels
    context, checks = Circuit(ClearBackend(), it.plaintexts).evaluate(ClearVector(packed, levels))
    assert context.level == checks.level == 0
    with pytest.raises(ValueError, match="level"):
        Circuit(ClearBackend(), it.plaintexts).evaluate(ClearVector(packed, levels - 1))


def test_what_lies_outside_the_mask_does_not_matter():
    it = block()
    x = it.input()
    changed = x.copy()
    changed[-1] = it.input(1)
    before, after = (twin(v, it.plaintexts).context for v in (x, changed))
    assert np.abs(before[:-1] - after[:-1]).max() < 1e-9
    assert np.abs(before[-1] - after[-1]).max() > 1e-2


def test_twin_reproduces_a_gpt2_module():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_head=4, n_positions=16, attn_implementation="eager")
    module = GPT2Attention(config, layer_idx=0).double().eval()
    module.c_proj = nn.Identity()
    nn.init.normal_(module.c_attn.weight, std=0.08)
    nn.init.normal_(module.c_attn.bias, std=0.1)
    weights = AttentionWeights.from_gpt2(module)
    texts = [np.random.default_rng(n).standard_normal((6, 32)) for n in range(50)]
    plaintexts = Plaintexts(weights, compile_plan(weights, weights.shape(6), texts))
    x = texts[7]
    mask = torch.full((6, 6), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        expected = module(torch.from_numpy(x)[None], attention_mask=mask)[0][0].numpy()
    assert np.abs(reference.attention(x, weights) - expected).max() < 1e-9
    assert np.abs(twin(x, plaintexts).context - expected).max() < 2e-3
    one = AttentionWeights.from_gpt2(module, [2])
    assert np.abs(reference.attention(x, one) - expected[:, 16:24]).max() < 1e-9


@pytest.mark.parametrize("heads", [[], [4], [0, 0]])
def test_heads_must_exist(heads):
    module = GPT2Attention(GPT2Config(n_embd=32, n_head=4), layer_idx=0)
    with pytest.raises(ModelNotSupported):
        AttentionWeights.from_gpt2(module, heads)


def test_a_score_outside_its_range_is_found_and_measured():
    it = block()
    x = it.input()
    assert twin(x, it.plaintexts).in_range
    result = twin(4 * x, it.plaintexts)
    assert result.largest_score > 1
    assert not result.in_range
    with pytest.raises(OutsideCalibration, match="compile again"):
        result.require_in_range()
    scores = reference.scores(4 * x, it.weights.with_centred_keys(np.array(it.plan.ranges.key_centre)))
    centre, half = (np.array(v)[:, None, None] for v in (it.plan.ranges.centre, it.plan.ranges.half_range))
    places = np.abs((scores - centre) / half)[:, 1:]
    assert result.largest_score == pytest.approx(places[np.isfinite(places)].max(), rel=1e-9)


def test_inputs_are_checked():
    it = block()
    for x in (np.zeros((5, 16)), np.zeros((4, 15)), np.zeros((0, 16)), np.full((4, 16), np.nan)):
        with pytest.raises(InvalidActivation):
            twin(x, it.plaintexts)


def test_shapes_are_limited():
    for sizes in ((16, 2, 8, 17), (16, 2, 8, 1), (1024, 16, 64, 8), (16, 0, 8, 4)):
        with pytest.raises(ModelNotSupported):
            AttentionShape(*sizes)


def test_a_plan_is_for_its_weights():
    with pytest.raises(ModelMismatch):
        Plaintexts(block(heads=1).weights, block().plan)


def test_calibration_wants_texts_of_full_length():
    it = block()
    with pytest.raises(EvaluationError, match="longer texts"):
        compile_plan(it.weights, it.plan.shape, [it.input(3)])


def test_the_full_block_in_one_ciphertext_at_a_cost_that_is_printed():
    it = block(768, 12, 64, 16, calibration=8)
    counted = cost.count(it.plan)
    assert it.plan.shape.slots == it.plan.parameters.slots == 16384
    # Every product of a projection's diagonals, of the masks and of the exponential's coefficients.
    assert counted.plain_products >= 3 * 512 + 2 * 8
    assert counted.rotations < 200
    assert len(counted.rotation_steps) <= 9
    assert f"{counted.rotations}" in str(counted)
