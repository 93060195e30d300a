"""The server's half: the offline product, the fresh zero and the share against Python integers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from confide.rlwe import evaluation
from confide.rlwe.digits import words_to_planes
from confide.rlwe.encryption import PackSecret, public_key_mask
from confide.rlwe.evaluation import OfflineProduct, RequestKey, _FreshZero, _Share, _switched_product, shares
from confide.rlwe.parameters import Parameters, Profile
from confide.rlwe.random import drowning, rounded_gaussian, ternary
from confide.rlwe.scheme import RLWE
from confide.rlwe.streams import Stream, derive_key

from .helpers import (
    CLIENT_SEED,
    DEGREE,
    OPEN,
    P1_SEED,
    PRIVATE,
    SERVER_KEY,
    bind,
    centred,
    clear_product,
    digit_value,
    encrypt,
    exact_phase,
    exchange,
    kept_value,
    negacyclic,
    pack_masks,
    parameters_of,
    random_weights,
    secret_key,
    serve,
    word_value,
)

BOTH = pytest.mark.parametrize("profile", list(Profile))
CPU = torch.device("cpu")
REQUEST = bind(b"a request")


def random_words(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


def whole_share(request: RequestKey, rows: int, tokens: int = DEGREE) -> torch.Tensor:
    """All 40 bits of the share of a one-block pack: int64 (rows, tokens)."""
    low = torch.from_numpy(request.stream("share, low byte").bytes(rows * tokens)).view(rows, tokens)
    return (shares(request, rows, 0, tokens).t().long() << 8) + low.long()


# -- W times digit planes, rounded -------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 20), st.sampled_from([1, 5, 64]), st.booleans(), st.integers(0, 2**32))
def test_the_switched_product_is_the_rounded_product(rows, columns, degree, private, seed):
    weights = random_weights(rows, columns, seed)
    parameters = parameters_of(weights, PRIVATE if private else OPEN)
    words = random_words(columns, parameters.words, degree, seed=seed)
    zero = random_words(parameters.words, rows, degree, seed=seed + 1) if private else None
    _check_switched_product(weights, words, zero, parameters)


@pytest.mark.parametrize("weight", [127, -127])
@pytest.mark.parametrize("byte", [0x80, 0x7F, 0xFF, 0x00])
@pytest.mark.parametrize("zero_byte", [0x00, 0x7F, 0x80, 0xFF])
def test_extreme_carries_of_the_switched_product(weight, byte, zero_byte):
    weights = torch.full((2, 33), weight, dtype=torch.int8)
    words = torch.full((33, 3, 4, 4), byte, dtype=torch.uint8).view(torch.int32)[..., 0]
    zero = torch.full((3, 2, 4, 4), zero_byte, dtype=torch.uint8).view(torch.int32)[..., 0]
    _check_switched_product(weights, words.contiguous(), zero.contiguous(), parameters_of(weights))


def test_a_block_of_many_tiles(monkeypatch):
    monkeypatch.setattr(evaluation, "BLOCK_COLUMNS", 16)
    weights = random_weights(3, 5)
    words, zero = random_words(5, 3, 48), random_words(3, 3, 48, seed=1)
    _check_switched_product(weights, words, zero, parameters_of(weights))


def _check_switched_product(weights, words, zero, parameters):
    planes = torch.empty(parameters.planes, words.shape[0], words.shape[2], dtype=torch.int8)
    words_to_planes(words, planes)
    high, low = _switched_product(weights, planes, zero, parameters)
    inputs = np.array([digit_value(row) for row in words], dtype=object)
    exact = weights.numpy().astype(object) @ inputs
    if zero is not None:
        exact = exact + np.array([word_value(row) for row in zero.transpose(0, 1)], dtype=object)
    drop = parameters.modulus_bits - 40
    expected = ((exact + (1 << (drop - 1))) >> drop) % 2**40
    assert (kept_value(high, low).numpy().astype(object) % 2**40 == expected).all()


# -- the fresh zero ----------------------------------------------------------------------------------------------


def test_the_fresh_zero_is_u_p1_plus_e1_and_u_p0_plus_e2():
    parameters = parameters_of(random_weights(2, 3))
    p0 = PackSecret(CLIENT_SEED, DEGREE).public_key(P1_SEED, parameters)
    zero_a, zero_b = _FreshZero(parameters, P1_SEED, p0, REQUEST, CPU).next_rows(2)
    u = ternary(REQUEST.stream("u"), 2, DEGREE).tolist()
    e1 = rounded_gaussian(REQUEST.stream("e1"), 2, DEGREE).tolist()
    e2 = drowning(REQUEST.stream("e2"), 60, 2, DEGREE).tolist()
    p1 = public_key_mask(P1_SEED, parameters)
    for row in range(2):
        for zero, key, error in ((zero_a, p1, e1), (zero_b, p0, e2)):
            product = negacyclic(u[row], digit_value(key))
            expected = [(value + noise) % 2**96 for value, noise in zip(product, error[row], strict=True)]
            assert word_value(zero[:, row].contiguous()) == expected


def test_the_fresh_zero_decrypts_to_the_drowning_noise():
    parameters = parameters_of(random_weights(1, 3))
    p0 = PackSecret(CLIENT_SEED, DEGREE).public_key(P1_SEED, parameters)
    zero_a, zero_b = _FreshZero(parameters, P1_SEED, p0, REQUEST, CPU).next_rows(1)
    shared = negacyclic(word_value(zero_a[:, 0].contiguous()), secret_key().tolist())
    phase = [centred(a + b, 96) for a, b in zip(shared, word_value(zero_b[:, 0].contiguous()), strict=True)]
    drowned = drowning(REQUEST.stream("e2"), 60, DEGREE).tolist()
    rest = np.array([value - noise for value, noise in zip(phase, drowned, strict=True)], dtype=float)
    expected = math.sqrt(2 * 42 / 4 * DEGREE * 2 / 3)  # u e_pk + e1 s
    assert rest.std() == pytest.approx(expected, rel=0.1)


def test_open_weights_draw_nothing(monkeypatch):
    monkeypatch.setattr(evaluation, "_FreshZero", None)
    monkeypatch.setattr(evaluation, "_Share", None)
    done = exchange(random_weights(3, 4), OPEN)
    assert done.values.shape == (DEGREE, 3)


# -- the share ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 13), st.integers(0, DEGREE - 1), st.integers(1, 20))
def test_any_tokens_shares_can_be_read_alone(rows, first, count):
    whole = shares(REQUEST, rows, 0, DEGREE)
    count = min(count, DEGREE - first)
    assert torch.equal(shares(REQUEST, rows, first, count), whole[first : first + count])


@given(st.integers(1, 10), st.integers(0, 2**32))
def test_adding_the_share_is_addition_mod_40_bits(rows, seed):
    parameters = Parameters.for_shape(PRIVATE, rows=rows, columns=4, activation_bits=12)
    high = random_words(rows, DEGREE, seed=seed)
    low = (random_words(rows, DEGREE, seed=seed + 1) & 0xFF).to(torch.uint8)
    low[0, :4] = torch.tensor([0, 255, 128, 127])
    before = kept_value(high, low)
    _Share(parameters, REQUEST, CPU).add(0, high, low)
    assert not ((kept_value(high, low) - before - whole_share(REQUEST, rows)) % 2**40).any()


@BOTH
def test_the_answer_is_the_product_the_share_and_a_small_noise(profile):
    weights = random_weights(8, 70)
    weights[0], weights[1] = 127, -127
    done = exchange(weights, profile)
    noise = answer_noise(done)
    assert noise.abs().max() < done.parameters.noise_budget / 2
    assert float(noise.double().mean()) == pytest.approx(0, abs=1)


def answer_noise(done) -> torch.Tensor:
    """What is left of the decrypted answer without (q'/t) W r and the share: int64 (rows, N)."""
    phase = exact_phase(done.high, done.low, secret_key())
    clear = torch.from_numpy(clear_product(done.weights, done.masks)).t() << 10
    share = whole_share(done.request, done.parameters.rows) if done.parameters.profile is PRIVATE else 0
    return centred(phase - clear - share, 40)


@BOTH
def test_the_noise_of_a_pack_is_what_the_parameters_say(profile):
    done = exchange(random_weights(30, 40), profile)
    noise = answer_noise(done).double()
    predicted = done.parameters.switched_noise_std  # for a key without zeros
    nonzero = int((secret_key() != 0).sum())
    exact = math.sqrt(predicted**2 - (DEGREE - nonzero) / 12)
    assert float(noise.std()) == pytest.approx(exact, rel=0.02)
    assert float(noise.std()) < predicted
    assert noise.abs().max() < 6.5 * predicted  # 120 000 samples
    assert done.parameters.noise_budget > 18 * predicted


# -- what an answer depends on -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def request_of_one_group():
    weights = random_weights(40, 5)
    parameters = parameters_of(weights)
    secret = PackSecret(CLIENT_SEED, DEGREE)
    return weights, parameters, secret, encrypt(secret, pack_masks(parameters), parameters)


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_the_same_request_gets_the_same_bytes(request_of_one_group):
    first, again = (serve(*request_of_one_group, bind(b"same")) for _ in range(2))
    assert same(first, again)


def test_another_digest_gets_independent_bytes(request_of_one_group):
    first, other = serve(*request_of_one_group, bind(b"one")), serve(*request_of_one_group, bind(b"two"))
    assert (first[0] == other[0]).double().mean() < 1e-4
    assert (first[1] == other[1]).double().mean() == pytest.approx(1 / 256, rel=0.1)


def test_another_server_key_gets_independent_bytes(request_of_one_group):
    request = RequestKey.bind(bytes(32), bytes(32))
    other = RequestKey.bind(SERVER_KEY, bytes(32))
    first, second = serve(*request_of_one_group, request), serve(*request_of_one_group, other)
    assert (first[0] == second[0]).double().mean() < 1e-4


def test_the_answer_looks_uniform_to_whoever_lacks_the_secret(request_of_one_group):
    high, low = serve(*request_of_one_group, REQUEST)
    for octets in (low, high.view(torch.uint8)):
        counts = torch.bincount(octets.flatten().long(), minlength=256).double()
        expected = counts.sum() / 256
        assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 6 * math.sqrt(2 * 255)


def test_blocks_of_rows_change_nothing(request_of_one_group, monkeypatch):
    whole = serve(*request_of_one_group, REQUEST)
    monkeypatch.setattr(evaluation, "BLOCK_ROWS", 32)
    assert same(serve(*request_of_one_group, REQUEST), whole)


def test_planes_in_a_file_change_nothing(request_of_one_group, monkeypatch):
    whole = serve(*request_of_one_group, REQUEST)
    monkeypatch.setattr(evaluation, "MEMORY_LIMIT", 1000)
    assert same(serve(*request_of_one_group, REQUEST), whole)


def test_the_fallback_kernel_changes_nothing(request_of_one_group, monkeypatch):
    whole = serve(*request_of_one_group, REQUEST)
    monkeypatch.setenv("CONFIDE_GEMM", "fp32")
    assert same(serve(*request_of_one_group, REQUEST), whole)


def test_rows_may_come_in_any_pieces(request_of_one_group):
    weights, parameters, secret, words = request_of_one_group
    pieces = RLWE.server(weights, parameters)
    assert isinstance(pieces, OfflineProduct)
    for first, last in ((0, 2), (2, 3), (3, 5)):
        pieces.add_rows(first, words[first:last])
    p0 = secret.public_key(P1_SEED, parameters)
    ((first_row, high, low),) = pieces.answer(secret.public_seed(0), P1_SEED, p0, REQUEST)
    assert first_row == 0
    assert same((high, low), serve(*request_of_one_group, REQUEST))


# -- request keys ------------------------------------------------------------------------------------------------


def test_streams_of_a_request_are_separate():
    starts = {REQUEST.stream(label).bytes(32).tobytes() for label in ("u", "e1", "e2", "share, low byte")}
    starts.add(REQUEST.share_stream(0).bytes(32).tobytes())
    assert len(starts) == 5
    assert REQUEST.share_stream(100).bytes(8).tobytes() == REQUEST.share_stream(0).bytes(108)[100:].tobytes()


def test_a_request_key_is_derived_from_key_and_digest():
    digest = bytes(range(32))
    bound = RequestKey.bind(SERVER_KEY, digest)
    assert bound.key == derive_key(SERVER_KEY, "request", digest)
    expected = Stream(derive_key(bound.key, "u")).bytes(16).tobytes()
    assert bound.stream("u").bytes(16).tobytes() == expected
    assert bound == RequestKey.bind(SERVER_KEY, digest)
    assert bound != RequestKey.bind(SERVER_KEY, digest[::-1])


def test_a_request_key_hides_itself():
    for text in (repr(REQUEST), str(REQUEST), f"{REQUEST}", repr([REQUEST])):
        assert text.strip("[]") == "RequestKey(<hidden>)"


def test_shares_are_pinned():
    request = RequestKey.bind(SERVER_KEY, bytes(32))
    assert shares(request, 3, 7, 2).tolist() == [
        [253018082, -747222868, 307245529],
        [1126148078, -1568546839, -21580230],
    ]
    assert request.stream("share, low byte").bytes(4).tolist() == [25, 158, 22, 91]
