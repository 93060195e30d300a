"""How much later answers begin because of all that stands around the engine, where requests come as they come.

    python -m benchmarks soak
    python -m benchmarks.soak --trace AzureLLMInferenceTrace_conv.csv --requests 400

A trace is replayed on the bare engine, and by a client in a process of its own on the attested and encrypted service
around that same engine; part by part, so that a busy moment of the machine falls on both. A request is sent when the
trace says so, however many are still being answered. Its times are multiplied so that the engine is busy for half of
them: a trace of other machines would leave this one idle, or drown it.
"""

import argparse
import asyncio
import hashlib
import json
import secrets
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

from benchmarks.confidential.run import gpt2_small
from benchmarks.measure import Figure, write
from confide.attest.simulated import SimulatedTee
from confide.bench.answers import answering, no_conversations, prompt_of, time_answers
from confide.cli.output import quiet_transformers
from confide.disk.files import read_bounded
from confide.enclave.api.answer import Serving
from confide.enclave.api.public import public_app
from confide.enclave.api.server import Server, bind, configuration
from confide.enclave.engines.engine import Engine, Prompt, Sampling
from confide.enclave.engines.transformers_engine import TransformersEngine
from confide.enclave.workload import Workload
from confide.errors import BenchmarkError
from confide.evaluate.trace import MAX_BYTES, Arrival, read_trace, synthetic_trace, write_trace
from confide.models.ends import end_tokens
from confide.models.source import open_model

LOAD: Final = 0.5
"""Of the time that the trace takes, for which the engine alone is busy with it."""
PARTS: Final = 4
SEED: Final = 7
REQUESTS: Final = 240


@dataclass(frozen=True)
class Request:
    """What a client sends. at: seconds after its part began."""

    at: float
    prompt: str
    tokens: int
    logit_bias: dict[str, float]
    salt: str


def main(trace: Sequence[Arrival] | None = None, requests: int = REQUESTS) -> list[Figure]:
    arrivals = list(trace or synthetic_trace(SEED, requests))[:requests]
    with tempfile.TemporaryDirectory() as folder, no_conversations():
        figures = uvloop.run(_measured(Path(folder), arrivals))
    write("soak", figures)
    return figures


async def _measured(folder: Path, arrivals: list[Arrival]) -> list[Figure]:
    source = open_model(str(gpt2_small(folder)))
    model, tokenizer = source.load_model(), source.load_tokenizer()
    assert tokenizer is not None
    engine = TransformersEngine(model, tokenizer, source.name)
    ends = end_tokens(model, tokenizer)
    fitting = [one for one in arrivals if one.context + one.generated <= engine.facts.context]
    if len(fitting) < PARTS:
        raise BenchmarkError(
            f"{len(fitting)} requests of the trace fit the model's context; give more with --requests."
        )
    stretch = await _stretch(engine, fitting, ends)
    bare: list[float] = []
    service: list[float] = []
    async with _served(engine, folder) as client:
        for number, part in enumerate(_parts(fitting)):
            requests = [await _request(engine, one, part[0].at, stretch, ends) for one in part]
            for side in ("bare", "service") if number % 2 else ("service", "bare"):
                if side == "bare":
                    bare += await _replay_bare(engine, requests, ends)
                else:
                    service += await _replay_service(client, requests)
    p99, p50 = (np.percentile(service, share) / np.percentile(bare, share) for share in (99, 50))
    digest = hashlib.sha256(write_trace(arrivals)).hexdigest()
    detail = (
        f"p99 {np.percentile(service, 99):.2f} s against {np.percentile(bare, 99):.2f} s, p50 "
        f"{np.percentile(service, 50):.2f} s against {np.percentile(bare, 50):.2f} s ({p50:.2f}); {len(bare)} "
        f"requests, {len(arrivals) - len(fitting)} too long for the model, {stretch:.2f} times the times of the trace "
        f"{digest[:16]}"
    )
    what = "GPT-2-small shape, requests of a trace: first token's p99, service / bare engine"
    return [Figure(what, float(p99), "ratio", 2, 1.2, detail)]


async def _stretch(engine: Engine, arrivals: Sequence[Arrival], ends: Sequence[int]) -> float:
    """By how much times are multiplied: from two lengths of prompts and of answers to what all of them take."""
    short, long = Arrival(0, 64, 4), Arrival(0, 320, 20)
    seconds = {}
    for one in (short, short, long):  # the first one warms up
        prompt = await prompt_of(engine, one.context)
        seconds[one] = await time_answers(engine, prompt, answering(one.generated, ends), 1)
    by_prompt = (seconds[long].first - seconds[short].first) / (long.context - short.context)
    by_token = seconds[long].seconds_per_token
    busy = sum(by_prompt * one.context + by_token * one.generated for one in arrivals)
    return busy / LOAD / max(arrivals[-1].at - arrivals[0].at, 1e-6)


def _parts(arrivals: list[Arrival]) -> list[list[Arrival]]:
    size = -(-len(arrivals) // PARTS)
    return [arrivals[start : start + size] for start in range(0, len(arrivals), size)]


async def _request(engine: Engine, one: Arrival, start: float, stretch: float, ends: Sequence[int]) -> Request:
    """With a salt of its own: prompts are one word over and over, and would all be found in each other's."""
    prompt = await prompt_of(engine, one.context)
    bias = {str(token): value for token, value in answering(one.generated, ends).logit_bias.items()}
    return Request((one.at - start) * stretch, prompt.text, one.generated, bias, secrets.token_hex(32))


async def _replay_bare(engine: Engine, requests: Sequence[Request], ends: Sequence[int]) -> list[float]:
    """Seconds from each request's time to its first token, with nothing around the engine."""
    began = time.perf_counter()

    async def ask(request: Request) -> float:
        due = began + request.at
        await asyncio.sleep(due - time.perf_counter())
        prompt = await engine.read(request.prompt)
        sampling = replace(answering(request.tokens, ends), salt=bytes.fromhex(request.salt))
        return await _first(engine, prompt, sampling) - due

    return list(await asyncio.gather(*map(ask, requests)))


async def _first(engine: Engine, prompt: Prompt, sampling: Sampling) -> float:
    first = 0.0
    async with aclosing(engine.generate(prompt, sampling)) as pieces:
        async for piece in pieces:
            first = first or (time.perf_counter() if piece.tokens else 0.0)
    return first


@asynccontextmanager
async def _served(engine: Engine, folder: Path) -> AsyncIterator[Process]:
    """The service around an engine, and a client of it."""
    tee = SimulatedTee.create(folder / "tee")
    app = public_app(Workload(tee, tee.collateral), Serving(engine))
    ready = asyncio.Event()
    server = Server(configuration(app, tls=None), ready.set)
    listener = bind("127.0.0.1", 0)
    serving = asyncio.create_task(server.serve([listener]))
    await ready.wait()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    command = ("-m", "benchmarks.soak_client", url, str(folder / "tee" / "root.pem"), engine.facts.model)
    client = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=PIPE, stdout=PIPE, limit=MAX_BYTES)
    try:
        yield client
    finally:
        client.terminate()
        await client.wait()
        server.should_exit = True
        await serving


async def _replay_service(client: Process, requests: Sequence[Request]) -> list[float]:
    """The same through the service, by the clock of whoever asks."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(json.dumps([asdict(one) for one in requests]).encode() + b"\n")
    await client.stdin.drain()
    line = await client.stdout.readline()
    assert line, "The client ended."
    seconds: list[float] = json.loads(line)
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A trace on the service and on the bare engine.")
    parser.add_argument("--trace", type=Path, help="in the format of Azure's; one is made up without")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of the trace, from its start")
    given = parser.parse_args()
    quiet_transformers()
    for figure in main(given.trace and read_trace(read_bounded(given.trace, MAX_BYTES)), given.requests):
        print(f"{figure.what}: {figure.value:.2f} {figure.unit}\n{figure.detail}")
