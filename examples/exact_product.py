"""One encrypted layer, and nothing around it: the client gets W x exactly, whoever holds W sees uniform numbers.

The three parties are functions here. What one hands to another is all that would cross a network.
"""

import hashlib

import numpy as np
import torch

import confide.rlwe as rlwe
from confide.rlwe import GroupMatrix, HintMaker, Norms, Parameters, Profile, PublicSeed, TokenSecrets

ROWS, COLUMNS, TOKENS, GROUP = 96, 64, 4, 0


def main() -> None:
    # The owner's matrix. Its row norms say how wide activations may be and how much noise there is.
    weights = torch.randint(-127, 128, (ROWS, COLUMNS), dtype=torch.int8)
    wide = weights.long().abs()
    norms = Norms(row_l1=int(wide.sum(1).max()), row_l2=float(wide.double().norm(dim=1).max()))
    parameters = Parameters.derive(Profile.PRIVATE_WEIGHTS, norms, rows=ROWS, columns=COLUMNS)
    print(f"{parameters.name}: activations of {parameters.activation_bits} bits")

    # Once, at the owner: the hint, which every client may have, and U, which only the server may.
    public = PublicSeed(hashlib.sha256(weights.numpy().tobytes()).digest(), epoch=0)
    tiles = list(HintMaker(weights, public, owner_key=rlwe.fresh_key(), group=GROUP).rows())
    rlwe.require_noise_fits(parameters, max(tile.noise_std for tile in tiles))
    hint = np.concatenate([tile.hint for tile in tiles])
    server = GroupMatrix(weights, torch.from_numpy(np.concatenate([tile.u for tile in tiles])))
    print(f"the hint has {hint.nbytes / 1e6:.2f} MB, and comes with the model")

    # Ahead of need, at the client: a fresh secret for each token. Its public key goes to the server.
    secrets = TokenSecrets(public, TOKENS)
    pads, values = secrets.pads(GROUP, parameters), secrets.values(hint, parameters)
    ahead = server.ahead(secrets.p0)

    # Online: activations that are known only now, under the pads.
    largest = parameters.max_activation
    x = np.random.default_rng().integers(-largest, largest + 1, (TOKENS, COLUMNS), dtype=np.int32)
    planes = rlwe.mask(x, pads, parameters)
    y = rlwe.unmask(server.answer(planes, ahead), values, parameters)

    assert np.array_equal(y, x.astype(np.int64) @ weights.numpy().astype(np.int64).T)
    print(f"x begins       {x[0, :4].tolist()}\nthe server saw {planes[:, 0, 0].tolist()} for the first of them")
    print("exact: y == W x for every output")


if __name__ == "__main__":
    main()
