"""A model of GPT-2-small's shape, all block matrices protected: decode, prefill, offline and bytes against stock fp32.

Weights are random; 12 layers, 768 wide. The layer server is a process of its own on loopback.
"""

import statistics
import time

import torch
from transformers import PreTrainedModel

from benchmarks.gpt2 import serving, split_gpt2
from benchmarks.measure import Figure, seconds, write
from confide import HybridModel

PREFILL_TOKENS = 128
DECODE_TOKENS = 48
ROUNDS = 5


def main() -> list[Figure]:
    with split_gpt2() as model, serving(model.server) as url, model.open(url) as private:
        figures = _measure(private, model.source.load_model())
    write("whole_model", figures)
    return figures


def _measure(private: HybridModel, clear: PreTrainedModel) -> list[Figure]:
    traffic = private.client.traffic
    private.prepare(1)  # the first pack warms both processes up
    offline = seconds(lambda: private.prepare(1)) / traffic.tokens
    before = private.traffic.bytes_up + private.traffic.bytes_down
    runs = [(decode(private.model), decode(clear)) for _ in range(ROUNDS)]
    prefills = [(prefill(private.model), prefill(clear)) for _ in range(2 * ROUNDS)]
    tokens = ROUNDS * (1 + DECODE_TOKENS) + 2 * ROUNDS * PREFILL_TOKENS
    online_bytes = (private.traffic.bytes_up + private.traffic.bytes_down - before) / tokens
    decoding = [statistics.median(side) for side in zip(*runs, strict=True)]
    prefill = [statistics.median(side) for side in zip(*prefills, strict=True)]
    return [
        Figure(
            "GPT-2-small shape, decode / stock fp32",
            statistics.median(ours / theirs for ours, theirs in runs),
            "ratio",
            1.3,
            0.8,
            f"{decoding[0] * 1e3:.1f} ms against {decoding[1] * 1e3:.1f} ms a token",
        ),
        Figure(
            "the same, prefill of 128 tokens / stock fp32",
            statistics.median(ours / theirs for ours, theirs in prefills),
            "ratio",
            1.2,
            0.6,
            f"{prefill[0] * 1e3:.0f} ms against {prefill[1] * 1e3:.0f} ms",
        ),
        Figure("the same, offline per token, all parties", offline * 1e3, "ms", 12, 7, "over loopback, disk included"),
        Figure("bytes per token, online", online_bytes / 1e6, "MB", 0.68, 0.55, "payloads, both ways"),
        Figure(
            "bytes per token, offline",
            (traffic.bytes_up + traffic.bytes_down) / traffic.tokens / 1e6,
            "MB",
            1.7,
            1.2,
            "payloads, both ways",
        ),
    ]


@torch.inference_mode()
def decode(model: PreTrainedModel) -> float:
    """Median seconds of a decoding step, with KV cache."""
    step = model(torch.tensor([[11]]), use_cache=True)
    times = []
    for token in range(DECODE_TOKENS):
        started = time.perf_counter()
        step = model(torch.tensor([[token]]), past_key_values=step.past_key_values, use_cache=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@torch.inference_mode()
def prefill(model: PreTrainedModel) -> float:
    """Seconds of a prompt, with the logits of its last token, as `generate` asks for them."""
    prompt = torch.arange(PREFILL_TOKENS)[None]
    return seconds(lambda: model(prompt, use_cache=True, logits_to_keep=1))
