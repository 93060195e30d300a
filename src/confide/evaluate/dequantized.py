"""A GGUF file's weights in the stock model, so that what its few bits cost in quality is measured as all else is.

Only matrices are taken from the file: vectors are float32 there. What llama.cpp rounds besides, of activations in its
products, is not in this.
"""

from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, get_tensor_name_map
from gguf.quants import dequantize
from torch import Tensor
from transformers import PreTrainedModel

from confide.errors import EvaluationError
from confide.models.gguf.architectures import find_architecture
from confide.models.source import Source


def dequantized_model(source: Source, file: Path) -> PreTrainedModel:
    """The stock model in float32 with the weights of a file that `write_gguf` made of it.

    Raises ModelNotSupported as that does, and EvaluationError where a matrix cannot be put back in its place.
    """
    architecture = find_architecture(source.config)
    model = source.load_model()
    names = get_tensor_name_map(architecture.arch, model.config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if parameter.ndim < 2 or known is None:
                continue
            places = _places(lambda weight, name=name: architecture.convert(name, weight, model.config), parameter)
            if known not in stored or (found := _values(stored[known])).numel() != places.numel():
                raise EvaluationError(f"{file} has no weights for {name}; write the file from this model again.")
            parameter.view(-1)[places] = found
    return model


def _places(convert: Any, parameter: Tensor) -> Tensor:
    """Where each weight of the file belongs in the parameter, both flat: what becomes of the places themselves."""
    own = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
    places = convert(own).reshape(-1).long()
    if not torch.equal(places.sort().values, own.reshape(-1).long()):
        raise EvaluationError("The file's weights are not the model's in another order; their quality is not measured.")
    return places  # type: ignore[no-any-return]


def _values(tensor: Any) -> Tensor:
    """In float32, flat."""
    return torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32).reshape(-1)
