"""One encrypted layer, and nothing around it: the client gets W x exactly, whoever holds W sees uniform numbers.

The two sides are functions here. What the client hands to the server, and back, is all that would cross a network.
"""

import hashlib

import numpy as np
import torch
from confide.rlwe.encryption import PackSecret
from confide.rlwe.evaluation import OfflineProduct, RequestKey, shares

from confide.rlwe import masks, online
from confide.rlwe.parameters import Parameters, Profile
from confide.rlwe.streams import fresh_key

ROWS, COLUMNS, TOKEN = 96, 64, 7


def main() -> None:
    # The server's matrix. Its row norms say how wide activations may be and how much noise there is.
    weights = torch.randint(-127, 128, (ROWS, COLUMNS), dtype=torch.int8)
    row_l1 = int(weights.long().abs().sum(1).max())
    row_l2 = float(weights.double().norm(dim=1).max())
    parameters = Parameters.derive(Profile.PRIVATE_WEIGHTS, rows=ROWS, columns=COLUMNS, row_l1=row_l1, row_l2=row_l2)
    print(f"{parameters.name}: {parameters.tokens} tokens a pack, activations of {parameters.activation_bits} bits")
    print(f"a pack decrypts wrongly with probability below 2^{parameters.log2_failure:.0f}")

    # Offline, at the client: one-time pads for a whole pack, encrypted under a secret of its own.
    pads = masks.uniform_masks(fresh_key(), parameters, parameters.tokens)  # (tokens, columns)
    secret = PackSecret(fresh_key(), parameters.ring_degree)
    p1_seed = fresh_key()  # in the protocol both sides make it together
    public_key = secret.public_key(p1_seed, parameters)
    encrypted = secret.encrypt_rows(torch.from_numpy(pads.T.copy()), parameters, 0, 0)

    # Offline, at the server: the product on ciphertexts, its randomness bound to the whole request.
    request = RequestKey.bind(fresh_key(), hashlib.sha256(encrypted.numpy().tobytes()).digest())
    product = OfflineProduct(weights, parameters)
    product.add_rows(0, encrypted)
    blocks = list(product.answer(secret.public_seed(0), p1_seed, public_key, request))

    # Offline, at the client again: what will unmask the answers.
    values = torch.cat([secret.decrypt_rows(high, low) for _, high, low in blocks]).t().contiguous().numpy()

    # Online: one token's activations, known only now, under that token's pad.
    largest = parameters.max_activation
    x = np.random.default_rng().integers(-largest, largest + 1, (1, COLUMNS), dtype=np.int32)
    masked = masks.mask(x, pads[[TOKEN]], parameters)
    answer = online.answer(weights, torch.from_numpy(masked), shares(request, ROWS, TOKEN, 1), parameters)
    y = masks.unmask(answer.numpy(), values[[TOKEN]], parameters)

    assert np.array_equal(y[0], weights.numpy().astype(np.int64) @ x[0])
    print(f"x begins       {x[0, :4].tolist()}\nthe server saw {masked[0, :4].tolist()}")
    print("exact: y == W x for every output")


if __name__ == "__main__":
    main()
