"""Microsoft SEAL's CKKS context for a plan's parameters, and how its objects become bytes.

All arithmetic is SEAL's, through TenSEAL's bindings. They save and load by path only; here that is memory.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tenseal import sealapi as seal

from confide.attention.parameters import CkksParameters
from confide.errors import InsecureParameters, MalformedMessage


@dataclass(frozen=True, eq=False)
class CkksContext:
    """SEAL's context and encoder, with the scale that a ciphertext has at each level.

    Rescaling a product divides its scale by a prime that is near the scale but not equal to it. The scales are such
    that a product of two ciphertexts of one level has the scale of the next: scale[l - 1] = scale[l]^2 / prime[l].
    Computed upwards, from level 0, the deviations halve at each step (downwards they would double).
    """

    parameters: CkksParameters
    context: Any
    encoder: Any
    level_ids: tuple[Any, ...]
    primes: tuple[int, ...]
    scales: tuple[float, ...]

    @classmethod
    def create(cls, parameters: CkksParameters) -> "CkksContext":
        """SEAL's own check of security, besides that of the parameters, must pass too. Raises InsecureParameters."""
        degree = parameters.ring_degree
        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(degree)
        chosen.set_coeff_modulus(seal.CoeffModulus.Create(degree, list(parameters.prime_bits)))
        context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
        if not context.parameters_set():
            raise InsecureParameters(f"SEAL refuses these parameters: {context.parameters_error_message()}.")
        level_ids: list[Any] = []
        data = context.first_context_data()
        primes = tuple(prime.value() for prime in data.parms().coeff_modulus())
        while data is not None:
            level_ids.insert(0, data.parms_id())
            data = data.next_context_data()
        scales = [float(2**parameters.scale_bits)]
        for prime in primes[1:]:
            scales.append((scales[-1] * prime) ** 0.5)
        return cls(parameters, context, seal.CKKSEncoder(context), tuple(level_ids), primes, tuple(scales))

    def level(self, ciphertext: Any) -> int:
        """The ciphertext's level."""
        return int(ciphertext.coeff_modulus_size()) - 1

    def encode(self, values: NDArray[np.complex128] | complex, level: int, scale: float) -> Any:
        """A plaintext of slots that repeat these values, or of one number in every slot."""
        plaintext = seal.Plaintext()
        if isinstance(values, np.ndarray):
            real = values if values.imag.any() else values.real
            repeated: Any = real.tolist() * (self.parameters.slots // len(values))
        else:
            repeated = values
        self.encoder.encode(repeated, self.level_ids[level], scale, plaintext)
        return plaintext

    def load_ciphertext(self, message: bytes) -> Any:
        """Raises MalformedMessage where this is no ciphertext of these parameters."""
        ciphertext = seal.Ciphertext()
        with _memory() as (path, descriptor):
            _write_all(descriptor, message)
            try:
                ciphertext.load(self.context, path)
            except (RuntimeError, ValueError) as error:
                raise MalformedMessage(
                    "This is not a ciphertext of the plan's parameters; compile both sides with one plan."
                ) from error
        return ciphertext


def to_bytes(saved: Any) -> bytes:
    """What SEAL saves of an object."""
    with _memory() as (path, descriptor):
        saved.save(path)
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, size, 0)


@contextmanager
def _memory() -> Iterator[tuple[str, int]]:
    """A file that never touches a disk and leaves nothing behind, as path and descriptor."""
    descriptor = os.memfd_create("confide", os.MFD_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}", descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, message: bytes) -> None:
    view = memoryview(message)
    while view:
        view = view[os.write(descriptor, view) :]
