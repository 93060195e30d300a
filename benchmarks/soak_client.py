"""Users of a service, in one process: each line is a list of requests with their times, and is answered with seconds.

    python -m benchmarks.soak_client URL ROOT MODEL

Each request goes out when its time has come, and its first piece is waited for from then on, not from when it left.
"""

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

from confide.attest.policy import SimulatedPolicy
from confide.channel.encryption import CACHE_SALT
from confide.client.enclave import EnclaveSession


async def replay(session: EnclaveSession, model: str, requests: list[dict[str, Any]]) -> list[float]:
    """Seconds from each request's time to the first piece of its answer; all are read to their ends."""
    began = time.perf_counter()

    async def ask(request: dict[str, Any]) -> float:
        due, first = began + request["at"], 0.0
        await asyncio.sleep(due - time.perf_counter())
        stream = await session.async_openai.completions.create(
            model=model,
            prompt=request["prompt"],
            max_tokens=request["tokens"],
            temperature=0,
            logit_bias=request["logit_bias"],
            stream=True,
            extra_headers={CACHE_SALT: request["salt"]},
        )
        async for _ in stream:
            first = first or time.perf_counter()
        return float(first - due)

    return list(await asyncio.gather(*map(ask, requests)))


async def main(url: str, root: str, model: str) -> None:
    async with EnclaveSession(url, policy=SimulatedPolicy(), simulated_root=root) as session:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await replay(session, model, json.loads(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
