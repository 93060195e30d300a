"""Our side: the private-weights profile, a whole mask pack and then one token, with both parties in this process."""

import numpy as np
import torch
from confide.hybrid.client.prepare import group_traffic

from benchmarks.both_parties import Pack, prepare, private_weights, product
from benchmarks.peers.layer import Layer
from benchmarks.peers.measurement import Measurement, Timing, Traffic, median, timed
from confide.rlwe.packed import PackedMatrix
from confide.rlwe.parameters import ANSWER_BITS

PACKS, TOKENS = 3, 300


@torch.inference_mode()
def measure(layer: Layer) -> Measurement:
    weights = torch.from_numpy(layer.weights)
    activations = layer.activations[None]
    parameters = private_weights(weights)
    packs: list[Pack] = []
    offline = sorted(
        (timed(lambda: packs.append(prepare(weights, parameters))) for _ in range(PACKS)), key=lambda t: t.seconds
    )[PACKS // 2]
    tokens = iter(range(parameters.tokens))
    results: list[np.ndarray] = []
    packed = PackedMatrix.where_faster(weights)
    online = median(lambda: results.append(product(packed, activations, packs[-1], next(tokens), parameters)), TOKENS)

    lone = offline.seconds + online.seconds
    up, down = group_traffic(parameters)
    online_up, online_down = 4 * parameters.columns, ANSWER_BITS // 8 * parameters.rows
    return Measurement(
        side="Confide, private weights",
        detail=f"{parameters.name}, packs of {parameters.tokens} tokens",
        lone=Timing(lone, offline.cores),
        amortised_seconds=offline.seconds / parameters.tokens + online.seconds,
        online_seconds=online.seconds,
        lone_bytes=Traffic(up + online_up, down + online_down),
        amortised_bytes=Traffic(up / parameters.tokens + online_up, down / parameters.tokens + online_down),
        error=max(layer.error(result[0]) for result in results),
        keys_seconds=0.0,
        keys_bytes=0,
    )
