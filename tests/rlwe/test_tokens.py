"""What a client draws for each token: keys with errors in them, and pads that nobody draws twice."""

import numpy as np
import torch

from confide.rlwe import tokens as tokens_module
from confide.rlwe.digits import value
from confide.rlwe.open_weights import open_pads
from confide.rlwe.random import ternary
from confide.rlwe.ring import product, transform
from confide.rlwe.streams import Stream
from confide.rlwe.tokens import TokenSecrets

from .helpers import DEGREE, PUBLIC, centred, random_weights


def test_a_key_is_an_rlwe_sample_with_a_fresh_error_for_each_token(monkeypatch):
    """p0 + p1 s: a centred binomial of standard deviation 3.24, which without the error would be zero."""
    key = bytes(range(32))
    monkeypatch.setattr(tokens_module, "fresh_key", lambda: key)
    secrets = TokenSecrets(PUBLIC, 3)
    p0 = value(np.moveaxis(secrets.p0, 1, -1))
    half = 1 << 23
    low = ((PUBLIC.p1() + half) & ((1 << 24) - 1)) - half
    high = (PUBLIC.p1() - low) >> 24
    secret = transform(ternary(Stream(key), 3, DEGREE))
    hidden = (product(secret, transform(high)) << 24) + product(secret, transform(low))
    errors = centred(p0 + hidden.numpy(), 48)
    assert np.abs(errors).max() <= 21
    assert abs(errors.std() - 3.24) < 0.15
    assert not np.array_equal(errors[0], errors[1])


def test_no_two_tokens_have_one_secret(monkeypatch):
    """Without errors p0 is -p1 s, and the same for the same s."""
    nothing = lambda stream, *shape: torch.zeros(shape, dtype=torch.int8)  # noqa: E731
    monkeypatch.setattr(tokens_module, "rounded_gaussian", nothing)
    keys = np.concatenate([TokenSecrets(PUBLIC, 2).p0, TokenSecrets(PUBLIC, 2).p0])
    assert len(np.unique(keys, axis=0)) == 4


def test_one_time_pads_are_drawn_anew_for_each_token_and_each_time():
    weights = random_weights(4, 16)
    drawn = np.concatenate([open_pads(weights, 3)[0], open_pads(weights, 3)[0]])
    assert len(np.unique(drawn, axis=0)) == 6
