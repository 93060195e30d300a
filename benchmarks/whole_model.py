"""Whole models, all block matrices protected, against the same models in stock fp32: decode, prefill, work
ahead, the first token, bytes. A prompt is measured after a pause, in which its work ahead is done, and again as soon as
the one before was answered, so that its time is mostly that of work ahead.

GPT-2-small's and Pythia-160M's shapes. Weights are random. The layer server is a process of its own on loopback. Work
ahead is timed by itself, in this process, for client and server in turn, a block of tokens each; what the pool took
for its own, beside the measurements and at low priority, stands in the detail.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedModel

from benchmarks.measure import Figure, seconds, write
from benchmarks.shapes import PYTHIA_160M, SplitModel, serving, split_shape
from confide import HybridModel
from confide.cli.demo.hybrid import server_ahead_ms
from confide.evaluate.shapes import GPT2_SMALL
from confide.evaluate.timing import TokenClock
from confide.hybrid.client.pads.pool import BLOCK_TOKENS
from confide.hybrid.client.pads.source import lattice_pads
from confide.packages.hint import Hint
from confide.packages.manifest import PackageKind
from confide.packages.signing import open_package
from confide.packages.trusted_owners import accepted_owners

PREFILL_TOKENS = 128
FIRST_PROMPT = 16
DECODE_TOKENS = 48
SEQUENCES = 8
ROUNDS = 5


def main() -> list[Figure]:
    with split_shape(GPT2_SMALL) as model, serving(model.server) as url, model.open(url) as private:
        clear = model.source.load_model()
        figures = _first_token(private)
        figures += _online("GPT-2-small shape", private, clear)
        figures.append(_batch(private, clear))
        beside = private.product.ms_ahead_per_token
        figures.append(_work_ahead("GPT-2-small shape", model, beside))
    with split_shape(PYTHIA_160M) as model, serving(model.server) as url, model.open(url) as private:
        figures += _online("Pythia-160M shape", private, model.source.load_model())
        beside = private.product.ms_ahead_per_token
        figures.append(_work_ahead("Pythia-160M shape", model, beside))
    write("whole_model", figures)
    return figures


def _first_token(private: HybridModel) -> list[Figure]:
    """Of the first generation, just after the model was opened."""
    before: list[int] = []
    clock = TokenClock(on_token=lambda token: before.append(private.traffic.bytes_ahead))
    prompt = torch.arange(1, 1 + FIRST_PROMPT)[None]
    private.generate(prompt, max_new_tokens=2, do_sample=False, streamer=clock, pad_token_id=0)
    return [
        Figure(
            f"GPT-2-small shape, first token of a {FIRST_PROMPT}-token prompt",
            clock.ms_to_first_token / 1e3,
            "s",
            0.7,
            0.2,
            "after the model was loaded",
        ),
        Figure("the same, bytes ahead of it, hint excepted", before[0] / 1e6, "MB", 1, 0.2, "payloads"),
    ]


def _online(shape: str, private: HybridModel, clear: PreTrainedModel) -> list[Figure]:
    before = private.traffic.bytes_up + private.traffic.bytes_down
    decoding = _against(decode, private, clear, ROUNDS)
    rested = _against(partial(_prefill_rested, private), private, clear, ROUNDS)
    prompts = _against(prefill, private, clear, ROUNDS)
    tokens = ROUNDS * (1 + DECODE_TOKENS) + 2 * ROUNDS * PREFILL_TOKENS
    size = (private.traffic.bytes_up + private.traffic.bytes_down - before) / tokens / 1e6
    ours, theirs, ratio = decoding
    return [
        Figure(
            f"{shape}, decode / stock fp32",
            ratio,
            "ratio",
            1.15,
            0.8,
            f"{ours * 1e3:.1f} ms against {theirs * 1e3:.1f} ms a token",
        ),
        *(
            Figure(
                f"the same, prefill of {PREFILL_TOKENS} tokens{when} / stock fp32",
                prompt_ratio,
                "ratio",
                1.8,
                1.0,
                f"{prompt * 1e3:.0f} ms against {clear_prompt * 1e3:.0f} ms",
            )
            for when, (prompt, clear_prompt, prompt_ratio) in (
                (" after a pause", rested),
                (", one after the other", prompts),
            )
        ),
        Figure("the same, bytes per token, everything", size, "MB", 0.74, 0.61, "payloads, both ways"),
    ]


def _work_ahead(shape: str, model: SplitModel, beside: float) -> Figure:
    """Of a token, all parties'. beside: milliseconds that the client's pool took for a token meanwhile."""
    manifest = open_package(model.client, PackageKind.SHELL, accepted_owners(model.owner)).manifest
    parameters = [group.parameters(manifest.profile) for group in manifest.groups]
    source = lattice_pads(manifest, Hint.open(model.client, manifest, None).rows, parameters)

    def make_block() -> None:
        secrets = source(BLOCK_TOKENS)
        for index in range(len(parameters)):
            secrets.group(index)

    client = statistics.median(seconds(make_block) for _ in range(ROUNDS)) * 1e3 / BLOCK_TOKENS
    server = server_ahead_ms(model.server)
    detail = f"the client {client:.1f} ms, the server {server:.1f} ms; the client's beside online work {beside:.1f} ms"
    return Figure(f"{shape}, work ahead, all parties, per token", client + server, "ms", 6, 3, detail)


def _batch(private: HybridModel, clear: PreTrainedModel) -> Figure:
    ours, theirs, ratio = _against(lambda model: decode(model, SEQUENCES), private, clear, ROUNDS)
    return Figure(
        f"GPT-2-small shape, decode of {SEQUENCES} sequences at once / stock fp32",
        ratio,
        "ratio",
        1.3,
        0.8,
        f"{SEQUENCES / ours:.0f} tokens/s against {SEQUENCES / theirs:.0f} tokens/s",
    )


def _against(
    measure: Callable[[PreTrainedModel], float], private: HybridModel, clear: PreTrainedModel, rounds: int
) -> tuple[float, float, float]:
    """Medians of what is measured of both models in turn, and of their ratio."""
    runs = [(measure(private.model), measure(clear)) for _ in range(rounds)]
    ours, theirs = zip(*runs, strict=True)
    return statistics.median(ours), statistics.median(theirs), statistics.median(a / b for a, b in runs)


@torch.inference_mode()
def decode(model: PreTrainedModel, sequences: int = 1) -> float:
    """Median seconds of a decoding step of so many sequences, with KV cache."""
    step = model(torch.full((sequences, 1), 11), use_cache=True)
    times = []
    for token in range(DECODE_TOKENS):
        started = time.perf_counter()
        step = model(torch.full((sequences, 1), token), past_key_values=step.past_key_values, use_cache=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _prefill_rested(private: HybridModel, model: PreTrainedModel) -> float:
    """`prefill`; of the private model once its pads are there, and the server has had time for its own part."""
    if model is private.model:
        while private.product.tokens_ready < PREFILL_TOKENS:
            time.sleep(0.05)
        time.sleep(1)
    return prefill(model)


@torch.inference_mode()
def prefill(model: PreTrainedModel) -> float:
    """Seconds of a prompt, with the logits of its last token, as `generate` asks for them."""
    prompt = torch.arange(PREFILL_TOKENS)[None]
    return seconds(lambda: model(prompt, use_cache=True, logits_to_keep=1))
