"""Our side: the private-weights profile, a block of tokens ahead and then one token, both parties in this process."""

import numpy as np
import torch

from benchmarks.both_parties import BLOCK_TOKENS, Block, BothParties
from benchmarks.peers.layer import Layer
from benchmarks.peers.measurement import Measurement, Timing, Traffic, median, timed
from confide.rlwe.parameters import ANSWER_BITS, PLANES, RING_DEGREE

BLOCKS, TOKENS = 7, 300


@torch.inference_mode()
def measure(layer: Layer) -> Measurement:
    weights = torch.from_numpy(layer.weights)
    activations = layer.activations[None]
    parties = BothParties(weights)
    parameters = parties.parameters
    blocks: list[Block] = [parties.block()]  # warms up
    lone_ahead = timed(lambda: parties.block(1))
    ahead = sorted((timed(lambda: blocks.append(parties.block())) for _ in range(BLOCKS)), key=lambda t: t.seconds)[
        BLOCKS // 2
    ]
    pads = ((block, token) for block in blocks for token in range(BLOCK_TOKENS))
    results: list[np.ndarray] = []
    online = median(lambda: results.append(parties.product(activations, *next(pads))), TOKENS)

    up = PLANES * (parameters.columns + RING_DEGREE)
    traffic = Traffic(up, ANSWER_BITS // 8 * parameters.rows)
    return Measurement(
        side="Confide, private weights",
        detail=f"{parameters.name}, blocks of {BLOCK_TOKENS} tokens",
        lone=Timing(lone_ahead.seconds + online.seconds, lone_ahead.cores),
        amortised_seconds=ahead.seconds / BLOCK_TOKENS + online.seconds,
        online_seconds=online.seconds,
        lone_bytes=traffic,
        amortised_bytes=traffic,
        error=max(layer.error(result[0]) for result in results),
        keys_seconds=0.0,
        keys_bytes=parties.hint_bytes,
    )
