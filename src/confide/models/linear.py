"""What counts as a linear layer: a matrix times the input, plus a bias, and nothing else."""

from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

LINEAR_TYPES = (nn.Linear, Conv1D, FalconLinear)
"""Exactly these. A subclass may compute something else, and would quietly stop doing so once it is protected."""


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear layer, None for another module."""
    if type(module) not in LINEAR_TYPES:
        return None
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else None


def linear_weights(module: nn.Module) -> Tensor:
    """The matrix of a linear layer, (outputs, inputs), without a copy."""
    weights = module.get_parameter("weight").detach()
    return weights.t() if isinstance(module, Conv1D) else weights


def forget_weights(module: nn.Module) -> None:
    """Let go of a linear layer's matrix; its bias stays."""
    module.register_parameter("weight", None)


def named_linear(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer of a model by its full name."""
    return {name: module for name, module in model.named_modules() if type(module) in LINEAR_TYPES}


def first_tied(model: nn.Module, layers: Iterable[str]) -> str | None:
    """The first of these layers whose matrix is another module's too, such as the embedding's."""
    uses = Counter(id(given) for _, given in model.named_parameters(remove_duplicate=False))
    return next((layer for layer in layers if uses[id(model.get_parameter(f"{layer}.weight"))] > 1), None)
