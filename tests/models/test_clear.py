from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from confide.errors import InvalidPackage
from confide.models.clear import ClearProduct, load_clear
from confide.models.integers import ACTIVATION_BITS
from confide.models.protected import ProtectedLinear
from confide.models.quantize import quantize_weights
from confide.models.source import Source, open_model
from confide.models.split import SplitSummary, split
from confide.packages.server_package import ServerPackage
from confide.packages.shell import load_shell
from owners import OWNER


@pytest.fixture(scope="session")
def clear(halves: SplitSummary) -> PreTrainedModel:
    return load_clear(halves.client, halves.server)


@pytest.fixture
def ids(source: Source) -> Tensor:
    return torch.randint(2, source.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(3))


class DequantizedLinear(nn.Module):
    """The same integers put through floating point: (W scale) (x scale) in float64. Nothing of the code under test."""

    def __init__(self, matrix: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> None:
        super().__init__()
        self.matrix = matrix.double() * scale.double()[:, None]
        self.shift = 0 if bias is None else bias.double()
        self.limit = 2 ** (bits - 1) - 1

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True) / self.limit
        return torch.round(x / step) * step @ self.matrix.t() + self.shift


def dequantized(source: Source, halves: SplitSummary) -> PreTrainedModel:
    """The stock model in float64 with every protected layer a DequantizedLinear."""
    model = source.load_model().double()
    package = ServerPackage.open(halves.server)
    shell = load_file(halves.client / "model.safetensors")
    for index, group in enumerate(package.manifest.groups):
        parts = package.group(index).weights.split([layer.rows for layer in group.layers])
        for layer, part in zip(group.layers, parts, strict=True):
            scale, bias = shell[f"{layer.name}.weight_scale"], shell.get(f"{layer.name}.bias")
            model.set_submodule(layer.name, DequantizedLinear(part, scale, bias, group.activation_bits))
    head = model.get_output_embeddings()
    matrix, scale = quantize_weights(head.weight.float())
    model.set_output_embeddings(DequantizedLinear(matrix, scale, head.bias, ACTIVATION_BITS))
    return model


@torch.no_grad()
def test_logits_are_those_of_the_dequantized_model(
    source: Source, halves: SplitSummary, clear: PreTrainedModel, ids: Tensor
) -> None:
    reference = dequantized(source, halves)(ids).logits
    difference = (clear(ids).logits.double() - reference).abs().max() / reference.std()
    # Where float32 and float64 round an activation to neighbouring integers, a step of 2^-14 remains.
    assert difference < 1e-3


@torch.no_grad()
def test_logits_are_close_to_the_unquantized_model(source: Source, clear: PreTrainedModel, ids: Tensor) -> None:
    expected = source.load_model()(ids).logits
    difference = clear(ids).logits - expected
    relative = float(difference.square().mean().sqrt() / expected.std())
    assert 1e-5 < relative < 0.03


@settings(deadline=None, max_examples=50)
@given(tokens=st.integers(1, 5), extreme=st.booleans(), seed=st.integers(0, 50))
def test_products_are_exact(llama_halves: SplitSummary, tokens: int, extreme: bool, seed: int) -> None:
    package = ServerPackage.open(llama_halves.server)
    product = ClearProduct(package.matrices())
    limit = 2**14 - 1
    generator = torch.Generator().manual_seed(seed)
    for index, group in enumerate(package.manifest.groups[:4]):
        x = torch.randint(-limit, limit + 1, (tokens, group.columns), generator=generator).int()
        if extreme:
            x = x.sign() * limit
        y = product(index, x)
        assert y.dtype == torch.int32
        assert torch.equal(y.long(), x.long() @ package.group(index).weights.long().t())


@torch.no_grad()
def test_one_product_for_q_k_and_v(llama_halves: SplitSummary) -> None:
    asked: list[int] = []
    clear_product = ClearProduct(ServerPackage.open(llama_halves.server).matrices())

    def counting(group: int, x: Tensor) -> Tensor:
        asked.append(group)
        return clear_product(group, x)

    load_shell(llama_halves.client, counting)(torch.arange(6)[None])
    assert asked == list(range(llama_halves.groups))


def test_the_key_value_cache_changes_nothing(clear: PreTrainedModel, ids: Tensor) -> None:
    with_cache = clear.generate(ids[:1], do_sample=False, min_new_tokens=16, max_new_tokens=16, pad_token_id=0)
    without = clear.generate(
        ids[:1], do_sample=False, min_new_tokens=16, max_new_tokens=16, pad_token_id=0, use_cache=False
    )
    assert with_cache.shape == (1, 28)
    assert torch.equal(with_cache, without)


def test_a_padded_batch_gives_what_each_prompt_gives(clear: PreTrainedModel, ids: Tensor) -> None:
    short = ids[1:, :5]
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.long), short], 1)
    batch = torch.cat([ids[:1], padded])
    mask = torch.ones_like(batch)
    mask[1, :7] = 0
    options = {"do_sample": False, "min_new_tokens": 8, "max_new_tokens": 8, "pad_token_id": 0}
    together = clear.generate(batch, attention_mask=mask, **options)
    alone = clear.generate(short, attention_mask=torch.ones_like(short), **options)
    # Padding changes last bits of attention, and rounding to integers makes more of them with every token.
    assert torch.equal(together[1, 12:16], alone[0, 5:9])


def test_beams_and_seeded_sampling(clear: PreTrainedModel, ids: Tensor) -> None:
    beams = clear.generate(ids, num_beams=3, do_sample=False, min_new_tokens=6, max_new_tokens=6, pad_token_id=0)
    assert beams.shape == (2, 18)

    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        result = clear.generate(ids, do_sample=True, top_k=20, min_new_tokens=12, max_new_tokens=12, pad_token_id=0)
        assert isinstance(result, Tensor)
        return result

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_folders_of_two_splits_do_not_go_together(llama_halves: SplitSummary, tiny_llama: Source, folder: Path) -> None:
    other = split(tiny_llama, folder, owner=OWNER, protect="mlp", hint=False)
    with pytest.raises(InvalidPackage, match="same split"):
        load_clear(other.client, llama_halves.server)
    with pytest.raises(InvalidPackage):
        load_clear(llama_halves.server, llama_halves.server)


@torch.no_grad()
def test_the_demo_model_keeps_its_quality(tmp_path: Path) -> None:
    """Measured on three texts: the same first choices, logits at most 0.08 apart, with a standard deviation of 2.8."""
    source = open_model("demo")
    tokenizer = source.load_tokenizer()
    assert tokenizer is not None
    halves = split(source, tmp_path, owner=OWNER, hint=False)
    ids = tokenizer("Once upon a time there was a king who had three sons.", return_tensors="pt").input_ids
    stock = source.load_model()
    ids = stock.generate(ids, do_sample=False, max_new_tokens=40)
    given, expected = load_clear(halves.client, halves.server)(ids).logits, stock(ids).logits
    assert (given - expected).abs().max() < 0.15
    assert (given.argmax(-1) == expected.argmax(-1)).double().mean() > 0.95


def test_protected_layers_stand_where_they_should(halves: SplitSummary, clear: PreTrainedModel) -> None:
    protected = [name for name, module in clear.named_modules() if isinstance(module, ProtectedLinear)]
    table = [layer.name for group in ServerPackage.open(halves.server).manifest.groups for layer in group.layers]
    assert sorted(protected) == sorted(table)


def test_the_llama_in_the_test_data_keeps_its_text(test_data: Path, tmp_path: Path) -> None:
    location = test_data / "models" / "stories260k-llama"
    if not location.is_dir():
        pytest.skip(f"{location} is not there")
    source = open_model(str(location))
    halves = split(source, tmp_path, owner=OWNER, hint=False)
    model = load_clear(halves.client, halves.server)
    start = torch.tensor([[1]])
    given = model.generate(start, do_sample=False, max_new_tokens=40)
    assert torch.equal(given, source.load_model().generate(start, do_sample=False, max_new_tokens=40))
