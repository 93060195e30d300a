"""The client's side of encrypted attention: encrypt an input, decrypt a result and see whether it can be trusted.

CKKS is approximate, so what it decrypts to says something of the secret key (Li and Micciancio 2021, IND-CPA-D).
Results stay with the client: nothing here sends them, or the checks made on them, back to a server.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tenseal import sealapi as seal

from confide.attention import cost, layout
from confide.attention.checks import Result
from confide.attention.ckks import CkksContext, to_bytes
from confide.attention.keys import SecretKey
from confide.attention.message import EncryptedResult
from confide.attention.plan import Plan
from confide.errors import InvalidActivation


class AttentionClient:
    """Holds the secret key for one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._ckks = CkksContext.create(plan.parameters)
        self._secret = SecretKey.generate(self._ckks)

    def save_evaluation_keys(self, folder: Path) -> int:
        """Writes what the server needs into the folder, for every evaluation to come; returns its bytes."""
        return self._secret.save_evaluation_keys(cost.count(self.plan).rotation_steps, folder)

    def encrypt(self, x: NDArray[np.float64]) -> bytes:
        """One ciphertext of inputs (tokens, width), as they come out of the layer norm. Raises InvalidActivation."""
        norm = float(np.linalg.norm(x, axis=-1).max(initial=0))
        if norm > self.plan.largest_norm:
            raise InvalidActivation(
                f"A token's input has norm {norm:.0f}; above {self.plan.largest_norm:.0f} scores could leave the "
                "modulus unseen. Look at the model, or at the layer norm before this block."
            )
        packed = layout.pack_input(x, self.plan.shape)
        top = self.plan.parameters.levels
        plaintext = self._ckks.encode(packed, top, self._ckks.scales[top])
        return to_bytes(self._secret.encryptor().encrypt_symmetric(plaintext))

    def decrypt(self, message: bytes, tokens: int) -> Result:
        """The result for an input of this many tokens. Ask it whether the calibrated ranges held.

        Raises MalformedMessage where the message is not an evaluation's result.
        """
        encrypted = EncryptedResult.from_bytes(message)
        return Result.from_slots(self._slots(encrypted.context), self._slots(encrypted.checks), tokens, self.plan)

    def _slots(self, message: bytes) -> NDArray[np.complex128]:
        plaintext = seal.Plaintext()
        self._secret.decryptor().decrypt(self._ckks.load_ciphertext(message), plaintext)
        return np.array(self._ckks.encoder.decode_complex(plaintext))[: self.plan.shape.slots]
