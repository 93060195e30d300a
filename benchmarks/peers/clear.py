"""The layer in the clear: `nn.Linear` on the same integers in a floating-point type, one token at a time."""

import torch

from benchmarks.peers.layer import Layer
from benchmarks.peers.measurement import Measurement, Traffic, median, token_by_token

ROUNDS = 300


@torch.inference_mode()
def measure(layer: Layer, dtype: torch.dtype) -> Measurement:
    rows, columns = layer.weights.shape
    linear = torch.nn.Linear(columns, rows, bias=False, dtype=dtype)
    linear.weight.copy_(torch.from_numpy(layer.weights))
    activations = torch.from_numpy(layer.activations).to(dtype)[None]
    timing = median(lambda: linear(activations), ROUNDS)
    error = layer.error(linear(activations)[0].double().numpy())
    name = str(dtype).removeprefix("torch.")
    return token_by_token(f"{name} in the clear", f"torch {torch.__version__}", timing, Traffic(0, 0), error, 0.0, 0)
