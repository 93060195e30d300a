"""One block of Llama-1B's shape, private and in stock fp32, and what follows from it for the whole model.

The whole model is not run: its time is that of its blocks, each like the one that was measured, and of its head, which
stays with the client and is timed by itself. Weights are random.
"""

import copy
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from benchmarks.measure import Figure, seconds, write
from benchmarks.shapes import serving, split_shape
from benchmarks.whole_model import PREFILL_TOKENS, decode, prefill
from confide import HybridModel
from confide.evaluate.shapes import LLAMA_1B

ROUNDS = 5
SMALL_VOCABULARY = 1024


def main() -> list[Figure]:
    one_block = copy.deepcopy(LLAMA_1B)
    one_block.num_hidden_layers, one_block.vocab_size = 1, SMALL_VOCABULARY
    with split_shape(one_block) as model, serving(model.server) as url, model.open(url) as private:
        figures = _measure(private, model.source.load_model())
    write("large_layers", figures)
    return figures


def _measure(private: HybridModel, clear: PreTrainedModel) -> list[Figure]:
    head = _head_seconds()
    figures = []
    for what, run in (("decode", decode), (f"prefill of {PREFILL_TOKENS} tokens", prefill)):
        runs = [(_block_seconds(private.model, run), _block_seconds(clear, run)) for _ in range(ROUNDS)]
        block, clear_block = (statistics.median(side) for side in zip(*runs, strict=True))
        figures.append(_figure(f"one block of Llama-1B's shape, {what} / stock fp32", block, clear_block))
        whole, clear_whole = (LLAMA_1B.num_hidden_layers * one + head for one in (block, clear_block))
        figures.append(_figure(f"all of Llama-1B, extrapolated, {what} / stock fp32", whole, clear_whole))
    return figures


def _figure(what: str, ours: float, theirs: float) -> Figure:
    reach, moonshot = (1.2, 0.6) if "prefill" in what else (0.45, 0.3)
    detail = f"{ours * 1e3:.1f} ms against {theirs * 1e3:.1f} ms"
    return Figure(what, ours / theirs, "ratio", reach, moonshot, detail)


def _block_seconds(model: PreTrainedModel, run) -> float:  # type: ignore[no-untyped-def]
    """Median seconds inside the block while a step or prompt runs."""
    with _timed_block(model) as times:
        run(model)
    return statistics.median(times)


@contextmanager
def _timed_block(model: PreTrainedModel) -> Iterator[list[float]]:
    block = model.model.layers[0]
    times: list[float] = []
    forward = block.forward

    def timed(*arguments: object, **keywords: object) -> object:
        results: list[object] = []
        times.append(seconds(lambda: results.append(forward(*arguments, **keywords))))
        return results[0]

    block.forward = timed
    try:
        yield times
    finally:
        block.forward = forward


def _head_seconds() -> float:
    """Median seconds of the logits of one token: the same for a step and for a prompt, on either side."""
    head = torch.nn.Linear(LLAMA_1B.hidden_size, LLAMA_1B.vocab_size, bias=False)
    x = torch.randn(1, LLAMA_1B.hidden_size)
    with torch.inference_mode():
        return statistics.median(seconds(lambda: head(x)) for _ in range(ROUNDS))
