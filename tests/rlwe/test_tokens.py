"""What a client draws for each token: keys with errors in them, and pads that nobody draws twice."""

import numpy as np
import torch

from confide.rlwe.digits import value
from confide.rlwe.open_weights import open_pads
from confide.rlwe.ring import product, transform
from confide.rlwe.tokens import TokenSecrets

from .helpers import PUBLIC, centred, random_weights


def test_a_key_is_an_rlwe_sample_with_a_fresh_error_for_each_token():
    """p0 + p1 s: a centred binomial of standard deviation 3.24, which without the error would be zero."""
    secrets = TokenSecrets(PUBLIC, 3)
    p0 = value(np.moveaxis(secrets.p0, 1, -1))
    half = 1 << 23
    low = ((PUBLIC.p1() + half) & ((1 << 24) - 1)) - half
    high = (PUBLIC.p1() - low) >> 24
    secret = transform(secrets._secret)
    hidden = (product(secret, transform(high)) << 24) + product(secret, transform(low))
    errors = centred(p0 + hidden.numpy(), 48)
    assert np.abs(errors).max() <= 21
    assert abs(errors.std() - 3.24) < 0.15
    assert not np.array_equal(errors[0], errors[1])


def test_no_two_tokens_have_one_secret():
    first, second = TokenSecrets(PUBLIC, 2), TokenSecrets(PUBLIC, 2)
    drawn = torch.cat([first._secret, second._secret]).numpy()
    assert len(np.unique(drawn, axis=0)) == 4


def test_one_time_pads_are_drawn_anew_for_each_token_and_each_time():
    weights = random_weights(4, 16)
    drawn = np.concatenate([open_pads(weights, 3)[0], open_pads(weights, 3)[0]])
    assert len(np.unique(drawn, axis=0)) == 6
