"""Concrete ML's GLWE product: TFHE-rs ciphertexts times a clear matrix, as its hybrid models run it remotely.

The library's own functions for the processor, and its default parameters. The product takes the tokens of a batch one
after the other, so a batch costs each token what a lone one costs.
"""

from importlib.metadata import version

import concrete_ml_extensions
import numpy as np

from benchmarks.peers.layer import Layer
from benchmarks.peers.measurement import Measurement, Traffic, fastest, run_as_program, token_by_token

POLYNOMIAL = 2048
RESULT_BITS = 27
ROUNDS = 2


def measure(layer: Layer) -> Measurement:
    if np.abs(layer.exact()).max() >= 1 << (RESULT_BITS - 1):
        raise ValueError(f"An output of this layer does not fit the {RESULT_BITS} bits of the GLWE parameters.")
    parameters = concrete_ml_extensions.MatmulCryptoParameters.deserialize(concrete_ml_extensions.default_params())
    rows = layer.weights.shape[0]
    # Negative numbers are two's complement in 64 bits.
    weights = np.ascontiguousarray(layer.weights.T.astype(np.int64)).view(np.uint64)
    activations = layer.activations[None].astype(np.int64).view(np.uint64)
    keys = []
    key_time = fastest(lambda: keys.append(concrete_ml_extensions.cpu_create_private_key(parameters)), 1)
    secret, compression = keys[0]
    made = []

    def one_token() -> None:
        encrypted = concrete_ml_extensions.encrypt_matrix(secret, parameters, activations)
        answer = concrete_ml_extensions.cpu_matrix_multiplication(encrypted, weights, compression)
        in_last = rows % POLYNOMIAL or POLYNOMIAL
        result = concrete_ml_extensions.decrypt_matrix(answer, secret, parameters, in_last)
        made.append((encrypted, answer, result.view(np.int64)[0]))

    timing = fastest(one_token, ROUNDS)
    encrypted, answer, _ = made[0]
    return token_by_token(
        "Concrete ML, GLWE",
        f"concrete-ml-extensions {version('concrete-ml-extensions')}, default parameters",
        timing,
        Traffic(len(encrypted.serialize()), len(answer.serialize())),
        max(layer.error(result) for _, _, result in made),
        key_time.seconds,
        len(compression.serialize()),
    )


if __name__ == "__main__":
    run_as_program(measure)
