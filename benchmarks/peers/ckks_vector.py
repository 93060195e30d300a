"""TenSEAL's CKKS product as the library offers it: `CKKSVector.mm` with a clear matrix, the diagonal method.

128-bit security, ring degree 8192, one prime of 60 bits and no rescaling: the fastest parameters whose error stays
below 10^-5 of the largest output. TenSEAL encodes the matrix anew for each product.
"""

from importlib.metadata import version

import numpy as np
import tenseal

from benchmarks.peers.layer import Layer
from benchmarks.peers.measurement import Measurement, Traffic, fastest, run_as_program, token_by_token

DEGREE = 8192
PRIMES = [60, 60]
SCALE = 2.0**26
ROUNDS = 3


def measure(layer: Layer) -> Measurement:
    contexts = []
    key_time = fastest(lambda: contexts.append(_context()), 1)
    context = contexts[0]
    unit = float(np.abs(layer.activations).max())
    blocks = [(block.T / 127).tolist() for block in _split(layer.weights, DEGREE // 2)]
    made = []

    def one_token() -> None:
        encrypted = tenseal.ckks_vector(context, (layer.activations / unit).tolist())
        answers = [encrypted.mm(block) for block in blocks]
        result = np.concatenate([answer.decrypt() for answer in answers]) * (unit * 127)
        made.append((encrypted, answers, result))

    timing = fastest(one_token, ROUNDS)
    encrypted, answers, _ = made[0]
    public = context.serialize(save_public_key=False, save_secret_key=False, save_galois_keys=True)
    return token_by_token(
        "TenSEAL, CKKSVector.mm",
        f"tenseal {version('tenseal')}, CKKS, degree {DEGREE}, primes of {PRIMES} bits",
        timing,
        Traffic(len(encrypted.serialize()), sum(len(answer.serialize()) for answer in answers)),
        max(layer.error(result) for _, _, result in made),
        key_time.seconds,
        len(public),
    )


def _context() -> tenseal.Context:
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        DEGREE,
        coeff_mod_bit_sizes=PRIMES,
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.auto_rescale = False
    context.global_scale = SCALE
    context.generate_galois_keys()
    return context


def _split(weights: np.ndarray, slots: int) -> list[np.ndarray]:
    """Blocks of rows that one product takes: its outputs and the rotations must fit the slots."""
    columns = weights.shape[1]
    fitting = slots if slots % columns == 0 else slots - columns
    return np.array_split(weights, -(-weights.shape[0] // fitting))


if __name__ == "__main__":
    run_as_program(measure)
