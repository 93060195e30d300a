"""A client that computes products on random activations until it is killed. Run as a script: SHELL URL SECONDS."""

import random
import sys
import time
from pathlib import Path

import torch

from .small import activations, exact, small_weights, twin_client


def main(shell: Path, url: str, seconds: float) -> None:
    weights = small_weights()
    with twin_client(shell, url) as client:
        product = client.product()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for group, matrix in enumerate(weights):
                x = activations(client.parameters[group], random.choice((1, 1, 1, 2, 20)), seed=random.getrandbits(60))
                if not torch.equal(product(group, x), exact(matrix, x)):
                    sys.exit("a product was wrong")
        product.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
