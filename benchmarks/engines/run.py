"""How fast our engines are beside llama.cpp's own server and stock transformers: 1 and 8 answers at once, in one run.

    python -m benchmarks engines
    python -m benchmarks.engines.run --shape small

Each side is a process of its own, see `side`; one is asked at a time, in turn. The three servers are asked in the same
way: greedy completions, streamed, with the tokens that each says it made. Stock transformers is called without one.
Weights are random, and none of the tokens that end an answer is ever the best. Prompts are not kept from one answer to
the next on any side. The two large shapes take 14 GB of memory for the four of them, and 6 GB on disk.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedConfig

from benchmarks.engines.side import GGUF, MODEL
from benchmarks.measure import Figure, write
from confide.cli.output import quiet_transformers
from confide.errors import BenchmarkError
from confide.evaluate.shapes import GPT2_SMALL, LLAMA_1B
from confide.models.ends import end_tokens
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import DEMO_FOLDER, open_model

OURS: Final = {"transformers": "transformers engine", "gguf": "llama.cpp engine"}
THEIRS: Final = {"llama.cpp": "llama.cpp's server", "generate": "stock transformers"}
BATCHES: Final = (1, 8)
CONTEXT: Final = 256
_WORD: Final = " the"
_SECONDS: Final = 600.0
_SPIN: Final = "GOMP_SPINCOUNT"
"""Which the `confide` command sets, and `benchmarks` for all of its questions."""


@dataclass(frozen=True)
class Shape:
    """A model and what is asked of it. prompt, answer: tokens. rounds: of which medians are taken, after one more."""

    name: str
    config: PreTrainedConfig
    prompt: int
    answer: int
    rounds: int


SHAPES: Final = {
    "gpt2-small": Shape("GPT-2-small shape", GPT2_SMALL, prompt=64, answer=32, rounds=3),
    "llama-1b": Shape("Llama-1B shape", LLAMA_1B, prompt=16, answer=12, rounds=2),
    "small": Shape(
        "a small Llama",
        LlamaConfig(
            vocab_size=16384,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=2,
            intermediate_size=512,
            tie_word_embeddings=True,
        ),
        prompt=64,
        answer=64,
        rounds=3,
    ),
}
"""The last is for trying the benchmark out: with so little to compute, all that stands around it shows."""


class Side:
    """A process that answers."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        said = json.loads(self._line())
        self.dtype: str = said["dtype"]
        self._url: str = said["url"]

    def throughput(self, shape: Shape, batch: int) -> float:
        """Tokens a second of so many answers at once, from the question to the last token."""
        if self._url:
            seconds = asyncio.run(self._ask(shape, batch))
        else:
            assert self._process.stdin is not None
            asked = {"prompt": shape.prompt, "answer": shape.answer, "batch": batch}
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            seconds = json.loads(self._line())
        return batch * shape.answer / seconds

    async def _ask(self, shape: Shape, batch: int) -> float:
        async with httpx.AsyncClient(base_url=self._url, timeout=_SECONDS, trust_env=False) as client:
            started = time.perf_counter()
            usages = await asyncio.gather(*(_usage(client, shape) for _ in range(batch)))
            seconds = time.perf_counter() - started
        for usage in usages:
            if (usage["prompt_tokens"], usage["completion_tokens"]) != (shape.prompt, shape.answer):
                raise BenchmarkError(f"A side made other tokens than asked for, {usage}; choose another prompt.")
        return seconds

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("A side ended; there may be too little memory for all four.")
        return line


async def _usage(client: httpx.AsyncClient, shape: Shape) -> dict[str, int]:
    """Of one streamed answer."""
    asked = {
        "model": MODEL,
        "prompt": _WORD * shape.prompt,
        "max_tokens": shape.answer,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    async with client.stream("POST", "/v1/completions", json=asked) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                usage = json.loads(line.removeprefix("data: ")).get("usage") or usage
    return usage


def main(names: Sequence[str] = ("gpt2-small", "llama-1b")) -> list[Figure]:
    load = os.getloadavg()[0]
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            figures += _measured(SHAPES[name], Path(folder) / name)
    if "small" not in names:
        write("engines", figures, load_before=load, torch_threads=torch.get_num_threads())
    return figures


def _measured(shape: Shape, folder: Path) -> list[Figure]:
    _make(shape, folder)
    with ExitStack() as stack:
        sides = {kind: stack.enter_context(_side(kind, folder)) for kind in (*OURS, *THEIRS)}
        return [figure for batch in BATCHES for figure in _figures(shape, batch, sides)]


def _figures(shape: Shape, batch: int, sides: Mapping[str, Side]) -> Iterator[Figure]:
    rounds: list[dict[str, float]] = []
    for number in range(1 + shape.rounds):
        turns = list(sides.items())
        rounds.append({kind: side.throughput(shape, batch) for kind, side in turns[number % 4 :] + turns[: number % 4]})
    medians = {kind: statistics.median(one[kind] for one in rounds[1:]) for kind in sides}  # the first one warms up
    fastest = max(THEIRS, key=medians.__getitem__)
    others = ", ".join(f"{name} {medians[kind]:,.1f} in {sides[kind].dtype}" for kind, name in THEIRS.items())
    ours = max(OURS, key=medians.__getitem__)
    for kind, name in [*OURS.items(), (ours, "the faster of the two")]:
        detail = f"{medians[kind]:,.1f} tokens a second in {sides[kind].dtype}; {others}"
        what = f"{shape.name}, {batch} at once: {name} / the faster of llama.cpp's server and stock transformers"
        yield Figure(what, medians[kind] / medians[fastest], "ratio", 0.95, 1.1, detail, higher_is_better=True)


def _make(shape: Shape, folder: Path) -> None:
    """The shape with random weights, as safetensors in float16 and as GGUF, with the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape.config, dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[list(end_tokens(model, tokenizer))] = 0  # which is the head's as well
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    write_gguf(open_model(str(folder)), folder / GGUF, GgufType.F16)


@contextmanager
def _side(kind: str, folder: Path) -> Iterator[Side]:
    command = [sys.executable, str(Path(__file__).with_name("side.py")), kind, str(folder), str(CONTEXT)]
    spinning = {} if kind in THEIRS else {_SPIN: os.environ[_SPIN]}  # theirs as whoever knows nothing of it runs them
    environment = {name: value for name, value in os.environ.items() if name != _SPIN} | spinning
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield Side(process)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Our engines beside llama.cpp's server and stock transformers.")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="one or more; the two with aims without")
    given = parser.parse_args()
    quiet_transformers()
    for figure in main(given.shape or ("gpt2-small", "llama-1b")):
        print(f"{figure.what}: {figure.value:.2f} {figure.unit}   {figure.reached}\n{figure.detail}")
