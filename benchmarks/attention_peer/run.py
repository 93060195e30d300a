"""What Concrete Python makes of one GPT-2 head: bootstraps, predicted cost, and with `execute` what it takes.

Compiling takes seconds. Executing was not tried: keys have 0.8 GB at 4 bits, 4.7 at 5 and 23 at 6.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from benchmarks.attention_peer.head import Head
from benchmarks.measure import results
from benchmarks.peers import environment
from confide.attention.quantized import HeadWeights, Magnitudes, QuantizedHeads, Quantizer

REQUIREMENTS = ("concrete-python==2.11.0", "numpy==1.26.4", "setuptools==80.9.0")
"""Concrete imports pkg_resources, which later versions of setuptools lack."""
BITS = 4
"""As in the execution that Zama's example documents. At 7 the compiler found no parameters for a smaller head."""
WIDTH, HEADS = 768, 12
_TEXTS = 100
"""So many that no score is positive in all of them: the compiler would take it for unsigned, and fail."""


def measure(tokens: int, *, bits: int = BITS, execute: bool = False) -> dict[str, Any]:
    """What the compiler, and the circuit where it is executed, say of one head of GPT-2's size on so many tokens."""
    head = random_head(WIDTH, HEADS, tokens, bits)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "head.npz")
        head.save(saved)
        arguments = (str(saved), "execute" if execute else "compile")
        found: dict[str, Any] = json.loads(
            environment.run(REQUIREMENTS, "benchmarks.attention_peer.concrete_head", *arguments)
        )
    return found


def random_head(width: int, heads: int, tokens: int, bits: int) -> Head:
    """The first of `heads` heads, with weights and inputs such as a trained model has them after its layer norm."""
    torch.manual_seed(0)
    attention = GPT2Attention(GPT2Config(n_embd=width, n_head=heads), layer_idx=0)
    torch.nn.init.normal_(attention.c_attn.weight, std=width**-0.5)
    torch.nn.init.normal_(attention.c_attn.bias, std=0.1)
    weights = HeadWeights.of(attention, [0])
    texts = list(torch.randn(_TEXTS, tokens, width))
    magnitudes = Magnitudes.calibrate(weights, texts)
    return _as_integers(weights, magnitudes, texts, bits)


def _as_integers(weights: HeadWeights, magnitudes: Magnitudes, texts: list[torch.Tensor], bits: int) -> Head:
    projection = Quantizer.covering(float(weights.projection.abs().max()), bits)
    inputs, scores, unit = (Quantizer.covering(of, bits) for of in (magnitudes.inputs, magnitudes.scores, 1.0))
    qkv = [Quantizer.covering(of, bits) for of in magnitudes.qkv]
    scales = torch.tensor([of.scale for of in qkv], dtype=torch.float64)
    context = torch.stack([QuantizedHeads(weights, magnitudes, bits)(x) for x in texts])
    return Head(
        bits=bits,
        projections=projection.quantize(weights.projection[:, 0]).long().numpy(),
        biases=(weights.bias[:, 0, 0] / scales[:, None]).numpy(),
        to_qkv=(inputs.scale * projection.scale / scales).numpy(),
        to_scores=weights.scaling * qkv[0].scale * qkv[1].scale / scores.scale,
        score=scores.scale,
        inputs=torch.stack([inputs.quantize(x) for x in texts]).long().numpy(),
        outputs=(context / (unit.scale * qkv[2].scale)).round().long().numpy(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=6, help="6 as in Zama's measurement")
    parser.add_argument("--bits", type=int, default=BITS, help="of weights and activations")
    parser.add_argument("--run-peer", action="store_true", help="make keys and execute, which may take hours")
    options = parser.parse_args()
    found = measure(options.tokens, bits=options.bits, execute=options.run_peer)
    print(json.dumps(found, indent=1))
    (results() / "attention_peer.json").write_text(json.dumps(found, indent=1) + "\n")
