"""The client's half: its ciphertexts and its decryption against Python integers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.rlwe.encryption import TILE_ROWS, PackSecret, ciphertext_mask, expand_public, public_key_mask
from confide.rlwe.parameters import ERROR_STD, Parameters, Profile
from confide.rlwe.scheme import RLWE

from .helpers import (
    CLIENT_SEED,
    DEGREE,
    P1_SEED,
    PRIVATE,
    centred,
    digit_value,
    exact_phase,
    exchange,
    negacyclic,
    random_weights,
    secret_key,
)

BOTH = pytest.mark.parametrize("profile", list(Profile))
T = 1 << 30


def parameters_for(columns: int, profile: Profile = PRIVATE) -> Parameters:
    return Parameters.for_shape(profile, rows=8, columns=columns, activation_bits=12)


def random_masks(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, T, (rows, DEGREE), dtype=torch.int32, generator=generator)


def noise_of(a: torch.Tensor, b: torch.Tensor, message: list[int], bits: int) -> np.ndarray:
    """b + a s - message, mod 2^bits and centred, in Python integers."""
    shared = negacyclic(digit_value(a), secret_key().tolist())
    phases = zip(digit_value(b), shared, message, strict=True)
    return np.array([centred(value + product - plain, bits) for value, product, plain in phases])


@BOTH
def test_a_ciphertext_holds_its_message_and_a_small_error(profile):
    parameters = parameters_for(3, profile)
    masks = random_masks(3)
    masks[0], masks[1] = 0, T - 1
    secret = PackSecret(CLIENT_SEED, DEGREE)
    words = secret.encrypt_rows(masks, parameters, 5, 0)
    halves = ciphertext_mask(secret.public_seed(5), parameters, 0, 3)
    step = 1 << (parameters.modulus_bits - 30)
    noise = [
        noise_of(a, b, [step * value for value in row.tolist()], parameters.modulus_bits)
        for a, b, row in zip(halves, words, masks, strict=True)
    ]
    assert np.abs(noise).max() <= 21
    assert np.std(noise) == pytest.approx(ERROR_STD, rel=0.05)
    assert len({row.tobytes() for row in map(np.array, noise)}) == 3


@BOTH
def test_the_public_key_is_an_encryption_of_zero(profile):
    parameters = parameters_for(1, profile)
    p0 = PackSecret(CLIENT_SEED, DEGREE).public_key(P1_SEED, parameters)
    noise = noise_of(public_key_mask(P1_SEED, parameters), p0, [0] * DEGREE, parameters.modulus_bits)
    assert np.abs(noise).max() <= 21
    assert noise.std() == pytest.approx(ERROR_STD, rel=0.06)


@settings(max_examples=6)
@given(st.lists(st.integers(1, TILE_ROWS + 3), min_size=1, max_size=3), st.sampled_from(list(Profile)))
def test_encryption_does_not_depend_on_how_rows_are_split(counts, profile):
    parameters = parameters_for(sum(counts), profile)
    masks = random_masks(sum(counts))
    whole = PackSecret(CLIENT_SEED, DEGREE).encrypt_rows(masks, parameters, 2, 0)
    first = 0
    for count in counts:
        part = PackSecret(CLIENT_SEED, DEGREE).encrypt_rows(masks[first : first + count], parameters, 2, first)
        assert torch.equal(part, whole[first : first + count])
        first += count


@BOTH
def test_public_polynomials_do_not_depend_on_how_rows_are_split(profile):
    parameters = parameters_for(9, profile)
    whole = expand_public(P1_SEED, "a", parameters, 0, 9)
    assert torch.equal(expand_public(P1_SEED, "a", parameters, 4, 5), whole[4:])
    assert whole.shape == (9, parameters.words, DEGREE)


def test_public_polynomials_are_uniform_and_separate():
    parameters = parameters_for(2)
    a, p1 = ciphertext_mask(P1_SEED, parameters, 0, 2), public_key_mask(P1_SEED, parameters)
    assert not torch.equal(a[0], p1)
    assert not torch.equal(a[0], a[1])
    counts = torch.bincount(a.view(torch.uint8).flatten().long(), minlength=256).double()
    expected = counts.sum() / 256
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 6 * math.sqrt(2 * 255)


def test_the_same_secret_encrypts_to_the_same_bytes():
    parameters, masks = parameters_for(4), random_masks(4)
    first, again = (PackSecret(CLIENT_SEED, DEGREE).encrypt_rows(masks, parameters, 1, 0) for _ in range(2))
    assert torch.equal(first, again)
    p0, p0_again = (PackSecret(CLIENT_SEED, DEGREE).public_key(P1_SEED, parameters) for _ in range(2))
    assert torch.equal(p0, p0_again)


def test_secrets_and_groups_separate():
    parameters, masks = parameters_for(2), random_masks(2)
    secret, other = PackSecret(CLIENT_SEED, DEGREE), PackSecret(bytes(32), DEGREE)
    words = [
        secret.encrypt_rows(masks, parameters, 0, 0),
        secret.encrypt_rows(masks, parameters, 1, 0),
        secret.encrypt_rows(masks, parameters, 256, 0),
        other.encrypt_rows(masks, parameters, 0, 0),
    ]
    for place, left in enumerate(words):
        for right in words[place + 1 :]:
            assert (left == right).double().mean() < 1e-3
    seeds = {secret.public_seed(group) for group in (0, 1, 256, 2**32 - 1)} | {other.public_seed(0)}
    assert len(seeds) == 5


@BOTH
def test_decryption_is_exact_to_the_last_bit(profile):
    weights = random_weights(TILE_ROWS + 3, 5)
    done = exchange(weights, profile)
    phase = exact_phase(done.high, done.low, secret_key())
    assert torch.equal(torch.from_numpy(done.values.T.copy()), ((phase - 128) >> 8).to(torch.int32))


def test_decryption_is_exact_for_the_most_extreme_answer():
    # Nothing forces a server to send uniform halves; one in step with s has the largest phase there is.
    key = secret_key()
    high = torch.stack([torch.where(key < 0, -(2**31), 2**31 - 1)] * 2).int()[:, None]
    low = torch.full((2, 1, DEGREE), 255, dtype=torch.uint8)
    values = PackSecret(CLIENT_SEED, DEGREE).decrypt_rows(high, low)
    assert not ((values - ((exact_phase(high, low, key) - 128) >> 8)) % 2**32).any()


def test_secrets_hide_themselves():
    secret = PackSecret(CLIENT_SEED, DEGREE)
    for text in (repr(secret), str(secret), f"{secret}", repr([secret])):
        assert "hidden" in text
        assert CLIENT_SEED.hex() not in text
        assert repr(CLIENT_SEED)[2:20] not in text
        assert "tensor" not in text


def test_the_scheme_names_these_halves():
    assert RLWE.name == "rlwe-1"
    assert isinstance(RLWE.client(CLIENT_SEED, DEGREE), PackSecret)
