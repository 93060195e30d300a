"""What attestation and encryption cost: the same engine asked in the clear, and attested and sealed, in one run.

One server process has both ports, see `server`; each client is a process of its own that asks both in turn, see
`client`. Streamed chat completions of the OpenAI SDK. GPT-2-small's shape with random weights is a model of ordinary
cost per token; the demo model in llama.cpp is so quick that everything around it shows.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from benchmarks.measure import Figure, write
from benchmarks.shapes import announced_by
from confide.attest.simulated import SimulatedTee
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import DEMO_FOLDER, DEMO_NAME, open_model
from confide.packages.owner import OwnerKey
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.write import seal_model

CLIENTS = (1, 8)
TOKENS = 64
FIRST_TOKENS = 2
"""Answers for the time to the first token are this long, so that there can be many."""


@dataclass(frozen=True)
class Rounds:
    """Pairs of turns, by the number of clients: whole answers, and short ones for the first token."""

    whole: dict[int, int]
    first: dict[int, int]


@dataclass(frozen=True)
class Turn:
    """What all clients found, asking the same side at once."""

    throughput: float
    first: float

    @classmethod
    def of(cls, answers: list[dict[str, float]]) -> Self:
        """throughput: pieces a second, first question to last answer. first: the median client's seconds."""
        seconds = max(answer["ended"] for answer in answers) - min(answer["started"] for answer in answers)
        pieces = sum(answer["pieces"] for answer in answers)
        return cls(pieces / seconds, statistics.median(answer["first"] - answer["started"] for answer in answers))


def main() -> list[Figure]:
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for name, source, rounds in (
            ("GPT-2-small shape", gpt2_small(Path(folder)), Rounds({1: 8, 8: 4}, {1: 40, 8: 15})),
            ("demo model in llama.cpp", _demo_gguf(Path(folder)), Rounds({1: 30, 8: 20}, {1: 60, 8: 25})),
        ):
            with _served(source, Path(tempfile.mkdtemp(dir=folder))) as (urls, root):
                for count in CLIENTS:
                    figures += _measure(name, urls, root, count, rounds)
    write("confidential", figures)
    return figures


def _measure(name: str, urls: dict[str, str], root: Path, count: int, rounds: Rounds) -> list[Figure]:
    with ExitStack() as stack:
        clients = [stack.enter_context(_client(urls, root)) for _ in range(count)]
        for side in ("plain", "sealed"):
            _turn(clients, side, TOKENS)
        first = _pairs(clients, FIRST_TOKENS, rounds.first[count])
        whole = _pairs(clients, TOKENS, rounds.whole[count])
    who = f"{name}, {count} client{'s' if count > 1 else ''}"
    return [_loss(who, whole), _delay(who, first)]


def _pairs(clients: list[subprocess.Popen[str]], tokens: int, rounds: int) -> list[tuple[Turn, Turn]]:
    """Turns in the clear and sealed; whichever comes first comes second the next time."""
    pairs = []
    for index in range(rounds):
        order = ("plain", "sealed") if index % 2 else ("sealed", "plain")
        turns = {side: _turn(clients, side, tokens) for side in order}
        pairs.append((turns["plain"], turns["sealed"]))
    return pairs


def _loss(who: str, pairs: list[tuple[Turn, Turn]]) -> Figure:
    plain = statistics.median(clear.throughput for clear, _ in pairs)
    sealed = statistics.median(other.throughput for _, other in pairs)
    losses = [100 * (1 - other.throughput / clear.throughput) for clear, other in pairs]
    detail = f"{sealed:,.1f} against {plain:,.1f} tokens a second; {_spread(losses)} %"
    what = f"{who}: throughput lost to attestation and encryption"
    return Figure(what, statistics.median(losses), "%", 3, 1, detail)


def _delay(who: str, pairs: list[tuple[Turn, Turn]]) -> Figure:
    plain = statistics.median(clear.first for clear, _ in pairs)
    sealed = statistics.median(other.first for _, other in pairs)
    delays = [(other.first - clear.first) * 1e3 for clear, other in pairs]
    detail = f"{sealed * 1e3:.1f} against {plain * 1e3:.1f} ms; {_spread(delays)} ms"
    return Figure(f"{who}: first token later by", statistics.median(delays), "ms", 5, 1, detail)


def _spread(differences: list[float]) -> str:
    """Where the middle half of the pairs lies: wide on a machine with other work, where the median says little."""
    low, _, high = statistics.quantiles(differences, n=4)
    return f"half of {len(differences)} pairs from {low:.1f} to {high:.1f}"


def _turn(clients: list[subprocess.Popen[str]], side: str, tokens: int) -> Turn:
    for client in clients:
        assert client.stdin is not None
        client.stdin.write(json.dumps({"side": side, "tokens": tokens}) + "\n")
        client.stdin.flush()
    return Turn.of([json.loads(_line(client)) for client in clients])


@contextmanager
def _client(urls: dict[str, str], root: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.confidential.client", urls["plain"], urls["sealed"], str(root)]
    process = subprocess.Popen([*command, urls["model"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert _line(process) == "ready\n"
        yield process
    finally:
        process.terminate()
        process.wait()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "A client ended."
    return line


@contextmanager
def _served(source: Path, folder: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """The addresses of a model that is sealed first, and the root certificate of its simulated environment."""
    key = ModelKey.generate()
    seal_model(contents_of(str(source)), folder / "package", key=key, owner=OwnerKey.generate())
    key.write(folder / "model.key")
    SimulatedTee.create(folder / "tee")
    command = [sys.executable, "-m", "benchmarks.confidential.server", str(folder / "package")]
    with announced_by([*command, str(folder / "model.key"), str(folder / "tee")]) as urls:
        yield urls, folder / "tee" / "root.pem"


def gpt2_small(folder: Path) -> Path:
    """Random weights with the demo's tokenizer; no token ends an answer early."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "gpt2-small")
    tokenizer.save_pretrained(folder / "gpt2-small")
    return folder / "gpt2-small"


def _demo_gguf(folder: Path) -> Path:
    file = folder / "demo.gguf"
    write_gguf(open_model(DEMO_NAME), file, GgufType.Q8_0, lambda _done, _total: None)
    return file
