"""The client's secret key, and the evaluation keys that a server needs and may have."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenseal import sealapi as seal

from confide.attention.ckks import CkksContext
from confide.errors import InvalidPackage

RELINEARISATION_FILE = "relinearisation.keys"
GALOIS_FILE = "galois.keys"

_GENERATOR = 3
"""SEAL rotates by k slots with the automorphism X -> X^(3^k)."""


@dataclass(frozen=True, eq=False)
class SecretKey:
    """A CKKS secret key. It never leaves the client: there is no way here to write it."""

    ckks: CkksContext
    _generator: Any = field(repr=False)

    @classmethod
    def generate(cls, ckks: CkksContext) -> "SecretKey":
        """A new one, from SEAL's generator, which the operating system seeds."""
        return cls(ckks, seal.KeyGenerator(ckks.context))

    def encryptor(self) -> Any:
        """For symmetric encryption: half of such a ciphertext is a seed."""
        return seal.Encryptor(self.ckks.context, self._generator.secret_key())

    def decryptor(self) -> Any:
        """SEAL's decryptor."""
        return seal.Decryptor(self.ckks.context, self._generator.secret_key())

    def save_evaluation_keys(self, rotations: frozenset[int], folder: Path) -> int:
        """Writes keys for relinearisation, conjugation and these rotations into the folder; returns their bytes."""
        degree = self.ckks.parameters.ring_degree
        elements = [pow(_GENERATOR, steps % (degree // 2), 2 * degree) for steps in sorted(rotations)]
        folder.mkdir(parents=True, exist_ok=True)
        # One after the other: together they would double the memory that this takes.
        self._generator.create_relin_keys().save(str(folder / RELINEARISATION_FILE))
        self._generator.create_galois_keys([*elements, 2 * degree - 1]).save(str(folder / GALOIS_FILE))
        return sum((folder / name).stat().st_size for name in (RELINEARISATION_FILE, GALOIS_FILE))


@dataclass(frozen=True, eq=False)
class EvaluationKeys:
    """What a server computes with. Nothing here decrypts."""

    relinearisation: Any = field(repr=False)
    galois: Any = field(repr=False)

    @classmethod
    def load(cls, ckks: CkksContext, folder: Path) -> "EvaluationKeys":
        """Those that `save_evaluation_keys` wrote. Raises InvalidPackage."""
        relinearisation, galois = seal.RelinKeys(), seal.GaloisKeys()
        for keys, name in ((relinearisation, RELINEARISATION_FILE), (galois, GALOIS_FILE)):
            try:
                keys.load(ckks.context, str(folder / name))
            except (RuntimeError, ValueError) as error:
                raise InvalidPackage(
                    f"{name} in {folder} holds no evaluation keys for this plan; let the client write them again."
                ) from error
        return cls(relinearisation, galois)
