"""Whether a model's weights are numbers. One that is not makes every answer garbage, and no engine says so."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from confide.errors import ModelNotSupported

PART = 1 << 22
"""Values that are looked at at a time."""


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """ModelNotSupported with the name of the first tensor that holds an infinity or what is no number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not all(map(_is_finite, _parts(tensor))):
            raise ModelNotSupported(
                f"The weights of {name.removesuffix('.weight')} are not all finite; get an undamaged copy of the model."
            )


def _parts(tensor: Tensor) -> Iterable[Tensor]:
    flat = tensor.detach().reshape(-1)
    return (flat[start : start + PART] for start in range(0, len(flat), PART))


def _is_finite(part: Tensor) -> bool:
    part = part.float() if part.element_size() == 1 else part  # torch computes little with 8 bits
    least, most = torch.aminmax(part)
    return bool(torch.isfinite(least) & torch.isfinite(most))
