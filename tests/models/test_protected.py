import weakref

import pytest
import torch
from torch import Tensor

from confide.errors import InvalidActivation
from confide.models.protected import ProtectedLinear, SharedProduct
from confide.packages.manifest import Group, Layer

ROWS = [5, 3, 4]
COLUMNS = 8


class RecordingProduct:
    """W x by plain integers, and what it was asked."""

    def __init__(self) -> None:
        self.weights = torch.randint(-127, 128, (sum(ROWS), COLUMNS), generator=torch.Generator().manual_seed(1))
        self.asked: list[Tensor] = []

    def __call__(self, group: int, x: Tensor) -> Tensor:
        assert group == 7
        assert x.dtype == torch.int32
        assert x.ndim == 2
        self.asked.append(x)
        return (x.long() @ self.weights.t()).int()


@pytest.fixture
def product() -> RecordingProduct:
    return RecordingProduct()


@pytest.fixture
def layers(product: RecordingProduct) -> list[ProtectedLinear]:
    lines = tuple(Layer(f"layer.{position}", rows) for position, rows in enumerate(ROWS))
    shared = SharedProduct(product, 7, [Group("layers", lines, COLUMNS, 14, 30, 64.0)])
    made = []
    for position, rows in enumerate(ROWS):
        bias = None if position == 1 else torch.nn.Parameter(torch.randn(rows))
        layer = ProtectedLinear(shared, position, rows, bias, "cpu")
        layer.weight_scale.copy_(torch.rand(rows) + 0.01)
        made.append(layer.requires_grad_(False))
    return made


def expected(product: RecordingProduct, layers: list[ProtectedLinear], position: int, x: Tensor) -> Tensor:
    """What a float layer with the dequantized matrix makes of x, in float64."""
    start = sum(ROWS[:position])
    layer = layers[position]
    weights = product.weights[start : start + ROWS[position]].double() * layer.weight_scale.double()[:, None]
    bias = 0 if layer.bias is None else layer.bias.double()
    return x.double() @ weights.t() + bias


def assert_right(product: RecordingProduct, layers: list[ProtectedLinear], position: int, x: Tensor) -> None:
    given = layers[position](x)
    assert given.dtype == torch.float32
    assert given.is_contiguous()
    reference = expected(product, layers, position, x)
    assert given.shape == reference.shape
    # Half a unit of each activation, of which the largest is 8191, times the weights.
    bound = 0.51 * float(x.abs().max()) / 8191 * 127 * COLUMNS * float(layers[position].weight_scale.max()) + 1e-4
    assert (given.double() - reference).abs().max() <= bound


@pytest.mark.parametrize("shape", [(COLUMNS,), (1, COLUMNS), (3, COLUMNS), (2, 3, COLUMNS), (1, 1, COLUMNS)])
def test_siblings_ask_once(product: RecordingProduct, layers: list[ProtectedLinear], shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for position in range(3):
        assert_right(product, layers, position, x)
    assert len(product.asked) == 1


def test_a_new_input_asks_again(product: RecordingProduct, layers: list[ProtectedLinear]) -> None:
    for _ in range(4):
        x = torch.randn(2, COLUMNS)  # may lie where the last one lay
        for position in (1, 2, 0):
            assert_right(product, layers, position, x)
        del x
    assert len(product.asked) == 4


def test_nothing_is_kept_once_all_siblings_had_theirs(layers: list[ProtectedLinear]) -> None:
    x = torch.randn(2, COLUMNS)
    for layer in layers:
        layer(x)
    kept = weakref.ref(x)
    del x
    assert kept() is None


def test_a_reused_buffer_is_a_new_input(product: RecordingProduct, layers: list[ProtectedLinear]) -> None:
    x = torch.randn(2, COLUMNS)
    for layer in layers:
        layer(x)
    x.mul_(-3)  # the same tensor with other values, as a caller with fixed buffers has it
    for position in range(3):
        assert_right(product, layers, position, x)
    assert len(product.asked) == 2


def test_a_caller_may_run_some_siblings_only(product: RecordingProduct, layers: list[ProtectedLinear]) -> None:
    one, two = torch.randn(2, COLUMNS), torch.randn(2, COLUMNS)
    for position, x in [(0, one), (0, two), (1, one), (1, two), (0, two), (0, two), (2, two)]:
        assert_right(product, layers, position, x)


def test_an_equal_tensor_is_not_the_same(product: RecordingProduct, layers: list[ProtectedLinear]) -> None:
    x = torch.randn(2, COLUMNS)
    layers[0](x)
    layers[1](x.clone())
    assert len(product.asked) == 2


def test_a_failed_product_leaves_nothing_behind(layers: list[ProtectedLinear], product: RecordingProduct) -> None:
    with pytest.raises(InvalidActivation):
        layers[0](torch.full((1, COLUMNS), torch.nan))
    assert product.asked == []
    assert_right(product, layers, 1, torch.randn(1, COLUMNS))
