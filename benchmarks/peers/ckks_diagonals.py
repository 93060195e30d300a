"""The CKKS product at its best on one core: diagonals in baby steps and giant steps, over TenSEAL's SEAL bindings.

Halevi and Shoup's diagonal method needs a rotation for each column; with baby steps b and giant steps g it needs
about two square roots of that:

    W x = sum_g rotate( sum_b rotate(diagonal_(gB+b), -gB) * rotate(x, b), gB )

The diagonals are encoded once, outside the times, because the weights do not change. The bindings hold Python's lock,
so this is one core; a server would give each core tokens of its own.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tenseal import sealapi

from benchmarks.peers.layer import Layer
from benchmarks.peers.measurement import Measurement, Traffic, fastest, run_as_program, token_by_token

DEGREE = 8192
SLOTS = DEGREE // 2
PRIMES = [60, 40, 60]
INPUT_SCALE, WEIGHT_SCALE = 2.0**40, 2.0**30
GENERATOR = 3
"""Of the rotations: step k is the automorphism X -> X^(3^k mod 2N) in SEAL."""
ROUNDS = 3


class Scheme:
    """Keys and coders of one client, and the evaluator that the server would have."""

    def __init__(self, steps: list[int]) -> None:
        parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(DEGREE)
        parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(DEGREE, PRIMES))
        context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not context.parameters_set():
            raise ValueError("SEAL refuses these parameters at 128 bits of security.")
        generator = sealapi.KeyGenerator(context)
        secret = generator.secret_key()
        self.rotations = sealapi.GaloisKeys()
        generator.create_galois_keys([pow(GENERATOR, step, 2 * DEGREE) for step in steps], self.rotations)
        self.encoder = sealapi.CKKSEncoder(context)
        self.encryptor = sealapi.Encryptor(context, secret)
        self.decryptor = sealapi.Decryptor(context, secret)
        self.evaluator = sealapi.Evaluator(context)

    def encode(self, values: np.ndarray, scale: float) -> sealapi.Plaintext:
        plaintext = sealapi.Plaintext()
        self.encoder.encode(values.tolist(), scale, plaintext)
        return plaintext

    def decode(self, ciphertext: sealapi.Ciphertext) -> np.ndarray:
        plaintext = sealapi.Plaintext()
        self.decryptor.decrypt(ciphertext, plaintext)
        return np.array(self.encoder.decode_double(plaintext))


class Steps:
    """Columns, padded to a power of two, as baby steps times giant steps; both near their square root."""

    def __init__(self, columns: int) -> None:
        power = (columns - 1).bit_length()
        self.columns = 1 << power
        self.baby = 1 << -(-power // 2)
        self.giant = self.columns // self.baby

    @property
    def rotations(self) -> list[int]:
        return [*range(1, self.baby), *range(self.baby, self.columns, self.baby)]


def measure(layer: Layer) -> Measurement:
    steps = Steps(layer.weights.shape[1])
    schemes = []
    key_time = fastest(lambda: schemes.append(Scheme(steps.rotations)), 1)
    scheme = schemes[0]
    diagonals = _diagonals(layer.weights / 127, steps, scheme)
    unit = float(np.abs(layer.activations).max())
    inputs = np.zeros(steps.columns)
    inputs[: layer.activations.size] = layer.activations / unit
    inputs = np.tile(inputs, SLOTS // steps.columns)
    made = []

    def one_token() -> None:
        encrypted = sealapi.Ciphertext()
        scheme.encryptor.encrypt_symmetric(scheme.encode(inputs, INPUT_SCALE), encrypted)
        answers = _product(encrypted, diagonals, steps, scheme)
        result = np.concatenate([scheme.decode(answer) for answer in answers])
        made.append((answers, result[: layer.weights.shape[0]] * (unit * 127)))

    timing = fastest(one_token, ROUNDS)
    up = _saved(scheme.encryptor.encrypt_symmetric(scheme.encode(inputs, INPUT_SCALE)))
    return token_by_token(
        "CKKS, baby and giant steps",
        f"SEAL through tenseal {version('tenseal')}, degree {DEGREE}, primes of {PRIMES} bits",
        timing,
        Traffic(up, sum(_saved(answer) for answer in made[0][0])),
        max(layer.error(result) for _, result in made),
        key_time.seconds,
        _saved(scheme.rotations),
    )


def _diagonals(weights: np.ndarray, steps: Steps, scheme: Scheme) -> list[list[sealapi.Plaintext]]:
    """For each block of outputs that fills the slots, its diagonals, each rotated back by its giant step."""
    slot = np.arange(SLOTS)
    blocks = []
    for first in range(0, weights.shape[0], SLOTS):
        part = weights[first : first + SLOTS]
        block = np.zeros((SLOTS, steps.columns))
        block[: part.shape[0], : part.shape[1]] = part
        rotated = (np.roll(block[slot, (slot + k) % steps.columns], k - k % steps.baby) for k in range(steps.columns))
        blocks.append([scheme.encode(diagonal, WEIGHT_SCALE) for diagonal in rotated])
    return blocks


def _product(
    encrypted: sealapi.Ciphertext, blocks: list[list[sealapi.Plaintext]], steps: Steps, scheme: Scheme
) -> list[sealapi.Ciphertext]:
    babies = [encrypted]
    for step in range(1, steps.baby):
        rotated = sealapi.Ciphertext()
        scheme.evaluator.rotate_vector(encrypted, step, scheme.rotations, rotated)
        babies.append(rotated)
    answers = []
    for diagonals in blocks:
        total = _inner(babies, diagonals[: steps.baby], scheme)
        for first in range(steps.baby, steps.columns, steps.baby):
            part = _inner(babies, diagonals[first : first + steps.baby], scheme)
            scheme.evaluator.rotate_vector_inplace(part, first, scheme.rotations)
            scheme.evaluator.add_inplace(total, part)
        scheme.evaluator.rescale_to_next_inplace(total)
        answers.append(total)
    return answers


def _inner(babies: list[sealapi.Ciphertext], diagonals: list[sealapi.Plaintext], scheme: Scheme) -> sealapi.Ciphertext:
    """The sum of baby steps times diagonals."""
    total, term = sealapi.Ciphertext(), sealapi.Ciphertext()
    scheme.evaluator.multiply_plain(babies[0], diagonals[0], total)
    for baby, diagonal in zip(babies[1:], diagonals[1:], strict=True):
        scheme.evaluator.multiply_plain(baby, diagonal, term)
        scheme.evaluator.add_inplace(total, term)
    return total


def _saved(thing: Any) -> int:
    """Bytes of a ciphertext or of keys in SEAL's own serialisation, which the bindings write to files only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "thing")
        thing.save(str(path))
        return path.stat().st_size


if __name__ == "__main__":
    run_as_program(measure)
