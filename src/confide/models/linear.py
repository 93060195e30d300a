"""Linear layers, whichever of the two ways transformers has of writing them."""

from torch import nn
from transformers.pytorch_utils import Conv1D


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear layer, None for another module."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else None
