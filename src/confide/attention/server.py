"""The server's side of encrypted attention: weights and evaluation keys, never a secret key."""

import os
from pathlib import Path

from confide.attention.circuit import Circuit, Progress
from confide.attention.ckks import CkksContext, to_bytes
from confide.attention.keys import EvaluationKeys
from confide.attention.message import EncryptedResult
from confide.attention.plaintexts import Plaintexts
from confide.attention.plan import Plan
from confide.attention.seal import SealBackend
from confide.attention.weights import AttentionWeights
from confide.errors import MalformedMessage


class AttentionServer:
    """Evaluates one block under one client's evaluation keys. It forks workers: keep threads out of its process."""

    def __init__(self, plan: Plan, weights: AttentionWeights, keys: Path, workers: int | None = None) -> None:
        """`keys` is the folder that the client wrote; `workers` processes compute, one a core unless told otherwise.

        Raises ModelMismatch where the plan is for other weights, InvalidPackage where the keys are not for the plan.
        """
        self._plaintexts = Plaintexts(weights, plan)
        self._ckks = CkksContext.create(plan.parameters)
        loaded = EvaluationKeys.load(self._ckks, keys)
        cores = len(os.sched_getaffinity(0)) if workers is None else workers
        self._backend = SealBackend(self._ckks, loaded.relinearisation, loaded.galois, cores)

    def evaluate(self, message: bytes, progress: Progress = lambda stage, done, total: None) -> bytes:
        """The encrypted result for an encrypted input; `progress` hears of every stage. Raises MalformedMessage."""
        ciphertext = self._ckks.load_ciphertext(message)
        if self._ckks.level(ciphertext) != self._ckks.parameters.levels or ciphertext.size() != 2:
            raise MalformedMessage("The encrypted input is not at the plan's top level; encrypt it with this plan.")
        outputs = Circuit(self._backend, self._plaintexts, progress).evaluate(ciphertext)
        return EncryptedResult(to_bytes(outputs.context), to_bytes(outputs.checks)).to_bytes()
