"""A cleartext twin of the encryption scheme: the same interface, nothing hidden, milliseconds instead of seconds.

The a halves are ignored and the b halves hold (q/t) r in the clear, so the server's answer is 2^10 W r + share
exactly. It lives here, among the tests, and nowhere else.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from confide.rlwe.digits import carry_to_digit_words, digit_word_values
from confide.rlwe.evaluation import RequestKey, shares
from confide.rlwe.parameters import ANSWER_BITS, Parameters, Profile
from confide.rlwe.scheme import Scheme
from confide.rlwe.streams import derive_key


class TwinClient:
    def __init__(self, seed: bytes, ring_degree: int) -> None:
        self._seed = seed

    def public_seed(self, group: int) -> bytes:
        return derive_key(self._seed, "ciphertext seed", group.to_bytes(4, "big"))

    def public_key(self, p1_seed: bytes, parameters: Parameters) -> Tensor:
        return torch.zeros(parameters.words, parameters.ring_degree, dtype=torch.int32)

    def encrypt_rows(self, masks: Tensor, parameters: Parameters, group: int, first_row: int) -> Tensor:
        limbs = [torch.zeros(masks.shape, dtype=torch.int64) for _ in range(parameters.words)]
        limbs[-1] += masks.long() << (ANSWER_BITS - parameters.plaintext_bits)
        return torch.stack(carry_to_digit_words(limbs), dim=1)

    def decrypt_rows(self, high: Tensor, low: Tensor) -> Tensor:
        return high[1].clone()


class TwinServer:
    def __init__(self, weights: Tensor, parameters: Parameters) -> None:
        self._weights = weights
        self._parameters = parameters
        self._masks = torch.zeros(parameters.columns, parameters.ring_degree, dtype=torch.int64)

    def add_rows(self, first_row: int, words: Tensor) -> None:
        self._masks[first_row : first_row + words.shape[0]] = digit_word_values(words[:, -1]).long()

    def answer(
        self, mask_seed: bytes, p1_seed: bytes, p0: Tensor, request: RequestKey
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        parameters = self._parameters
        total = (self._weights.double() @ self._masks.double()).long()
        if parameters.profile is Profile.PRIVATE_WEIGHTS:
            total += shares(request, parameters.rows, 0, parameters.tokens).t()
        high = torch.stack([torch.zeros_like(total), total]).to(torch.int32)
        yield 0, high, torch.zeros(high.shape, dtype=torch.uint8)


TWIN = Scheme("insecure-cleartext-twin", TwinClient, TwinServer)
