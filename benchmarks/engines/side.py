"""One side of the comparison, in a process of its own, with all cores. The first line that it prints is JSON.

    python benchmarks/engines/side.py KIND FOLDER CONTEXT

transformers, gguf: our engines behind our API, in the clear. llama.cpp: its own server, of the same build, with its own
defaults but for the slots, and keeping no prompts. These print where they serve. generate: stock transformers, in
whichever type answers sooner here; it takes lines of JSON, {"prompt": how many tokens, "answer": how many, "batch": how
many}, and answers each with its seconds.

It is no module of `benchmarks`, which sets for how long threads of OpenMP spin: that is for whoever starts this to say.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch
import uvloop
import xllamacpp

from confide.cli.output import quiet_transformers
from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.server import Server, bind, configuration
from confide.enclave.engines.dtypes import TORCH_DTYPES, fastest_dtype
from confide.enclave.engines.engine import Engine
from confide.enclave.engines.gguf_engine import GgufEngine
from confide.enclave.engines.transformers_engine import TransformersEngine
from confide.models.source import open_model

MODEL: Final = "shape"
GGUF: Final = "model.gguf"
PARALLEL: Final = 8
TRIAL: Final = (8, 3, 1)
"""Prompt, answer and batch by which stock transformers' type is chosen."""


def announce(dtype: str, url: str = "") -> None:
    print(json.dumps({"url": url, "dtype": dtype}), flush=True)


async def serve(engine: Engine) -> None:
    """Our API over an engine."""
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = Server(configuration(api_app(Serving(engine)), tls=None), lambda: announce(engine.facts.dtype, url))
    await server.serve([listener])
    await engine.close()


def our_transformers(folder: Path, context: int) -> Engine:
    source = open_model(str(folder))
    model, tokenizer = source.load_model(), source.load_tokenizer()
    assert tokenizer is not None
    torch.nn.Module.to(model, TORCH_DTYPES[fastest_dtype(model)])  # in place
    return TransformersEngine(model, tokenizer, MODEL, context, parallel=PARALLEL)


def their_server(folder: Path, context: int) -> None:
    """llama.cpp's server until a signal ends it."""
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / GGUF)
    params.n_parallel, params.n_ctx = PARALLEL, PARALLEL * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    params.cache_prompt, params.cache_ram_mib = False, 0
    params.verbosity = -1
    server = xllamacpp.Server(params)
    announce("f16", server.listening_address)
    signal.sigwait({signal.SIGTERM})
    os._exit(0)  # its threads do not end by themselves


def stock_generate(folder: Path) -> None:
    model: Any = open_model(str(folder)).load_model()
    seconds = {}
    for dtype in TORCH_DTYPES:
        model = model.to(TORCH_DTYPES[dtype])
        seconds[dtype] = min(generated(model, *TRIAL) for _ in range(2))
    best = min(seconds, key=seconds.__getitem__)
    model = model.to(TORCH_DTYPES[best])
    announce(best.value)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(generated(model, asked["prompt"], asked["answer"], asked["batch"])), flush=True)


@torch.inference_mode()
def generated(model: Any, prompt: int, answer: int, batch: int) -> float:
    """Seconds of greedy answers to random prompts, computed together."""
    ids = torch.randint(0, 1000, (batch, prompt))
    started = time.perf_counter()
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=answer,
        min_new_tokens=answer,
        pad_token_id=0,
    )
    assert made.shape == (batch, prompt + answer)
    return time.perf_counter() - started


def main(kind: str, folder: Path, context: int) -> None:
    if kind == "generate":
        stock_generate(folder)
    elif kind == "llama.cpp":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # also for the threads that it starts
        their_server(folder, context)
    elif kind == "gguf":
        uvloop.run(serve(GgufEngine(folder / GGUF, MODEL, context=context, parallel=PARALLEL)))
    else:
        uvloop.run(serve(our_transformers(folder, context)))


if __name__ == "__main__":
    quiet_transformers()
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
