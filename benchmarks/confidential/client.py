"""A user of both ports, through the OpenAI SDK, who asks when told to.

    python -m benchmarks.confidential.client PLAIN SEALED ROOT MODEL

Takes turns as lines of JSON, {"side": "plain" or "sealed", "tokens": how many}, and answers each with its times by the
clock that all processes of a machine share, in seconds, and the number of pieces.
"""

import json
import sys
import time
from typing import Any

import httpx
from openai import OpenAI

from confide.attest.policy import SimulatedPolicy
from confide.client.enclave import EnclaveSession
from confide.client.hop import TIMEOUT

PROMPT = "Tell me of the old king and his three sons."


def ask(client: OpenAI, model: str, tokens: int) -> dict[str, float]:
    """One streamed answer."""
    started = time.perf_counter()
    first = 0.0
    pieces = 0
    messages: Any = [{"role": "user", "content": PROMPT}]
    with client.chat.completions.create(
        model=model, messages=messages, max_tokens=tokens, temperature=0, stream=True
    ) as chunks:
        for _ in chunks:
            first = first or time.perf_counter()
            pieces += 1
    return {"started": started, "first": first, "ended": time.perf_counter(), "pieces": pieces}


def main(plain: str, sealed: str, root: str, model: str) -> None:
    http: Any = httpx.Client(timeout=TIMEOUT, trust_env=False)
    in_the_clear = OpenAI(api_key="none", base_url=f"{plain}/v1", http_client=http, max_retries=0)
    with EnclaveSession(sealed, policy=SimulatedPolicy(), simulated_root=root) as session:
        sides = {"plain": in_the_clear, "sealed": session.openai}
        print("ready", flush=True)
        for line in sys.stdin:
            turn = json.loads(line)
            print(json.dumps(ask(sides[turn["side"]], model, turn["tokens"])), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
