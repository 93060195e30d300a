"""Each rule of the arithmetic, and what an attacker reads once it is off.

Every test runs the same attack twice on the real code: with one rule switched off it recovers the secret exactly,
with the rule on it gets nothing.
"""

import copy
import os
import pickle
import signal
from fractions import Fraction

import numpy as np
import pytest
import torch

from confide.errors import InsecureParameters
from confide.rlwe import hint as hint_module
from confide.rlwe import tokens as tokens_module
from confide.rlwe.digits import digits, value
from confide.rlwe.hint import HintMaker, u_rows
from confide.rlwe.online import GroupMatrix
from confide.rlwe.pads import mask
from confide.rlwe.parameters import Norms, Parameters, require_noise_fits
from confide.rlwe.public import PublicSeed
from confide.rlwe.random import rounded_gaussian, ternary
from confide.rlwe.ring import product, transform
from confide.rlwe.security import require_secure_ring
from confide.rlwe.streams import Stream
from confide.rlwe.tokens import TokenSecrets

from .helpers import (
    DEGREE,
    MODULUS,
    OWNER_KEY,
    PRIVATE,
    PUBLIC,
    Party,
    centred,
    clear_product,
    parameters_of,
    random_weights,
)

SWITCH = pytest.mark.parametrize("rule", ["on", "off"])
KEY = bytes(range(100, 132))
FULL = Parameters.derive(PRIVATE, Norms(40_000, 2_000.0), rows=8, columns=DEGREE)
"""Of a group whose inputs fill one polynomial."""


def inputs(tokens: int = 1, columns: int = DEGREE, seed: int = 0) -> np.ndarray:
    """int32 (tokens, columns) within what `FULL` allows."""
    largest = FULL.max_activation
    return np.random.default_rng(seed).integers(-largest, largest + 1, (tokens, columns), dtype=np.int32)


def sent(secrets: TokenSecrets, activations: np.ndarray, group: int, parameters: Parameters = FULL) -> np.ndarray:
    """What the server sees of an online request: d mod 2^48, int64 (tokens, columns)."""
    return received(np.moveaxis(mask(activations, secrets.pads(group, parameters), parameters), 0, 1))


def received(planes: np.ndarray) -> np.ndarray:
    """int8 (tokens, 6, n) -> int64 (tokens, n)."""
    return value(np.moveaxis(planes, 1, -1))


def rounded(difference: np.ndarray) -> np.ndarray:
    """What a multiple of delta with small noise is a multiple of."""
    return (centred(difference, 48) + (1 << FULL.shift - 1)) >> FULL.shift


# -- the client's secret: one stream for each purpose, one use for each group ------------------------------------


@SWITCH
def test_an_a_that_two_groups_share_gives_the_difference_of_their_inputs(rule, monkeypatch):
    if rule == "off":
        real = PublicSeed.a
        monkeypatch.setattr(PublicSeed, "a", lambda self, group, block: real(self, 0, block))
    secrets = TokenSecrets(PUBLIC, 1)
    first, second = inputs(seed=1), inputs(seed=2)
    read = rounded(sent(secrets, first, 0) - sent(secrets, second, 1))
    agreement = np.mean(read == first - second)
    assert agreement == 1 if rule == "off" else agreement < 0.01


@SWITCH
def test_a_p1_equal_to_an_a_gives_the_inputs(rule, monkeypatch):
    """p0 = -p1 s + e0 then is the very pad, up to small noise."""
    if rule == "off":
        monkeypatch.setattr(PublicSeed, "p1", lambda self: self.a(0, 0))
    secrets, activations = TokenSecrets(PUBLIC, 1), inputs()
    agreement = np.mean(rounded(sent(secrets, activations, 0) - received(secrets.p0)) == activations)
    assert agreement == 1 if rule == "off" else agreement < 0.01


def test_no_two_public_polynomials_are_equal():
    other = PublicSeed(PUBLIC.model_digest, PUBLIC.epoch + 1)
    another = PublicSeed(bytes(32), PUBLIC.epoch)
    polynomials = [seed.p1() for seed in (PUBLIC, other, another)]
    polynomials += [seed.a(group, block) for seed in (PUBLIC, other, another) for group in (0, 1) for block in (0, 1)]
    for place, left in enumerate(polynomials):
        assert all((left == right).double().mean() < 0.01 for right in polynomials[:place])


@pytest.fixture
def drawn_again(monkeypatch) -> np.ndarray:
    """Every `TokenSecrets` of one token draws this one secret, int8 (N,), and fresh errors."""
    monkeypatch.setattr(tokens_module, "fresh_key", lambda: KEY)
    fresh = lambda stream, *shape: rounded_gaussian(Stream(os.urandom(32)), *shape)  # noqa: E731
    monkeypatch.setattr(tokens_module, "rounded_gaussian", fresh)
    return ternary(Stream(KEY), 1, DEGREE)[0].numpy()


@SWITCH
def test_two_d_under_one_secret_give_the_difference_of_inputs(rule, drawn_again):
    secrets = TokenSecrets(PUBLIC, 1)
    first, second = inputs(seed=1), inputs(seed=2)
    before = sent(secrets, first, 0)
    if rule == "on":
        with pytest.raises(ValueError, match="have served"):
            secrets.pads(0, FULL)
        return
    after = sent(TokenSecrets(PUBLIC, 1), second, 0)
    assert np.array_equal(rounded(before - after), first - second)


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_pool_s_secrets_are_not_cloned(clone):
    with pytest.raises(TypeError, match="not copied"):
        clone(TokenSecrets(PUBLIC, 1))


def test_a_forked_pool_s_secrets_give_no_pads():
    """The child's stream of errors goes on as the parent's: the two d would not even differ in their noise."""
    secrets = TokenSecrets(PUBLIC, 1)
    child = os.fork()
    if not child:
        signal.alarm(30)  # it has none of this process's threads, and may wait for one
        try:
            secrets.pads(0, FULL)
        except ValueError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    secrets.pads(0, FULL)


# -- the secret by linear algebra, where its error is gone -------------------------------------------------------


def inverse_mod_4(polynomial: torch.Tensor) -> torch.Tensor:
    """The inverse in Z_4[X]/(X^N + 1) of a polynomial with an odd sum of coefficients.

    Mod 2, X^N + 1 is (X + 1)^N and a(X)^N = a(1) = 1, so that a^(N-1), a product of eleven squares, inverts it; one
    step of Newton's doubles the bits.
    """
    power = result = polynomial % 2
    for _ in range(10):
        power = product(transform(power), transform(power)) % 2
        result = product(transform(result), transform(power)) % 2
    correction = (-product(transform(polynomial % 4), transform(result))) % 4
    correction[0] += 2
    return product(transform(result), transform(correction)) % 4


def odd_group() -> int:
    """A group whose a can be inverted mod 2."""
    return next(group for group in range(64) if int(PUBLIC.a(group, 0).sum()) % 2)


def secret_from(product_with_a: np.ndarray, group: int) -> np.ndarray:
    """s, if this is a s exactly; of ternary coefficients two bits are enough."""
    inverse = inverse_mod_4(PUBLIC.a(group, 0))
    return centred(product(transform(torch.from_numpy(product_with_a % 4)), transform(inverse)) % 4, 2).numpy()


@pytest.fixture
def known_key(monkeypatch) -> np.ndarray:
    """The secret that the next `TokenSecrets` of one token draws: int8 (N,)."""
    monkeypatch.setattr(tokens_module, "fresh_key", lambda: KEY)
    return ternary(Stream(KEY), 1, DEGREE)[0].numpy()


@SWITCH
def test_without_an_error_the_secret_is_linear_algebra(rule, monkeypatch, known_key):
    if rule == "off":
        nothing = lambda stream, *shape: torch.zeros(shape, dtype=torch.int8)  # noqa: E731
        monkeypatch.setattr(tokens_module, "rounded_gaussian", nothing)
    group = odd_group()
    d = sent(TokenSecrets(PUBLIC, 1), np.zeros((1, DEGREE), np.int32), group)[0]
    agreement = np.mean(secret_from(-d, group) == known_key)
    assert agreement == 1 if rule == "off" else agreement < 0.45


@SWITCH
def test_one_input_under_many_errors_gives_the_secret(rule, drawn_again):
    """Retries with a fresh e average it out, and what is left is linear algebra."""
    group, activations, retries = odd_group(), np.zeros((1, DEGREE), np.int32), 1600
    secrets = TokenSecrets(PUBLIC, 1)
    total = centred(sent(secrets, activations, group)[0], 48)
    if rule == "on":
        with pytest.raises(ValueError, match="have served"):
            sent(secrets, activations, group)
        assert np.mean(secret_from(-total, group) == drawn_again) < 0.45
        return
    for _ in range(retries - 1):
        total = total + centred(sent(TokenSecrets(PUBLIC, 1), activations, group)[0], 48)
    mean = np.rint(total / retries).astype(np.int64)
    assert np.array_equal(secret_from(-mean, group), drawn_again)


@pytest.mark.parametrize("std", [0.0, 0.82, 3.0])
def test_narrow_errors_are_refused(std):
    """Ternary ones are solved by linearisation: Arora and Ge, 2011."""
    with pytest.raises(InsecureParameters, match="narrower"):
        require_secure_ring(DEGREE, 48, std)


# -- the weights: U and the hint's error -------------------------------------------------------------------------


def reduced(basis: list[list[int]]) -> list[list[int]]:
    """A basis LLL-reduced with delta 3/4, in exact fractions: enough for a toy's dimensions."""
    dot = lambda u, v: sum(a * b for a, b in zip(u, v, strict=True))  # noqa: E731
    basis = [list(row) for row in basis]
    k = 1

    def orthogonal() -> tuple[list[list[Fraction]], list[list[Fraction]]]:
        stars: list[list[Fraction]] = []
        factors: list[list[Fraction]] = []
        for row in basis:
            star, mu = [Fraction(x) for x in row], []
            for other in stars:
                factor = dot(row, other) / dot(other, other)
                mu.append(factor)
                star = [a - factor * b for a, b in zip(star, other, strict=True)]
            stars.append(star)
            factors.append(mu)
        return stars, factors

    stars, factors = orthogonal()
    while k < len(basis):
        for j in range(k - 1, -1, -1):
            nearest = round(factors[k][j])
            if nearest:
                basis[k] = [a - nearest * b for a, b in zip(basis[k], basis[j], strict=True)]
                for i in range(j):
                    factors[k][i] -= nearest * factors[j][i]
                factors[k][j] -= nearest
        lower = (Fraction(3, 4) - factors[k][k - 1] ** 2) * dot(stars[k - 1], stars[k - 1])
        if dot(stars[k], stars[k]) >= lower:
            k += 1
        else:
            basis[k - 1], basis[k] = basis[k], basis[k - 1]
            stars, factors = orthogonal()
            k = max(k - 1, 1)
    return basis


def weights_from_a_hint(row: np.ndarray, columns: int, samples: int = 2) -> list[int]:
    """Small w with row = w~ a + something small, by lattice reduction of a few coefficients: int64 (N,) of 48 bits."""
    a = PUBLIC.a(0, 0).numpy()
    matrix = np.stack([_row_form_of_shift(a, column) for column in range(columns)])[:, :samples]
    scale = 128  # the size of the error beside that of weights
    target = [int(value) for value in row[:samples]]
    basis = [[int(x) for x in line] + [scale * (i == j) for j in range(columns)] + [0] for i, line in enumerate(matrix)]
    basis += [[MODULUS * (i == j) for j in range(samples)] + [0] * (columns + 1) for i in range(samples)]
    basis.append(target + [0] * columns + [scale * 128])
    for vector in reduced(basis):
        if abs(vector[-1]) == scale * 128:
            sign = -1 if vector[-1] > 0 else 1
            return [sign * entry // scale for entry in vector[samples:-1]]
    return []


def _row_form_of_shift(a: np.ndarray, column: int) -> np.ndarray:
    """What weight 1 in one column adds to a row: int64 (N,). Row form r of a polynomial g: r . s = (g s)_0."""
    unit = torch.zeros(DEGREE, dtype=torch.int64)
    unit[column] = 1
    if column:
        unit[column], unit[DEGREE - column] = 0, -1
    halves = [torch.from_numpy(part) for part in (a & 0xFFFFFF, a >> 24)]
    low, high = (product(transform(unit), transform(half)) for half in halves)
    polynomial = (low + (high << 24)).numpy() % MODULUS
    return np.concatenate([polynomial[:1], -polynomial[:0:-1]]) % MODULUS


def kept(maker: HintMaker) -> np.ndarray:
    """The first row of a hint in 48 bits: int64 (N,)."""
    tile = next(iter(maker.rows()))
    bits = tile.hint.shape[1] * 8
    return (value(np.moveaxis(tile.hint, 1, -1))[0] << (48 - bits)) % MODULUS


@SWITCH
def test_without_u_lattice_reduction_gives_the_weights(rule, monkeypatch):
    if rule == "off":
        monkeypatch.setattr(hint_module, "u_rows", lambda key, first, rows: np.zeros((rows, DEGREE), np.int8))
    weights = random_weights(1, 3, seed=3)
    found = weights_from_a_hint(kept(HintMaker(weights, PUBLIC, OWNER_KEY, 0)), 3)
    assert (found == weights[0].tolist()) is (rule == "off")


@SWITCH
def test_one_u_for_two_matrices_gives_their_difference(rule, monkeypatch):
    """Hints of W and W' under one U and one a subtract to a hint of W - W' without U. U's key hangs on the weights."""
    if rule == "off":
        monkeypatch.setattr(hint_module, "u_rows", lambda key, first, rows: u_rows(KEY, first, rows))
    makers = [HintMaker(random_weights(1, 3, seed), PUBLIC, OWNER_KEY, 0) for seed in (4, 5)]
    first, second = (kept(maker) for maker in makers)
    found = weights_from_a_hint((first - second) % MODULUS, 3)
    difference = (random_weights(1, 3, 4).int() - random_weights(1, 3, 5).int())[0].tolist()
    assert (found == difference) is (rule == "off")


@pytest.mark.parametrize("change", ["group", "epoch", "model", "weights", "shape", "owner"])
def test_u_hangs_on_everything_that_a_hint_is_of(change):
    weights = random_weights(2, 6)
    public, key, group = PUBLIC, OWNER_KEY, 0
    before = HintMaker(weights, public, key, group).u()
    if change == "group":
        group = 1
    elif change == "epoch":
        public = PublicSeed(PUBLIC.model_digest, PUBLIC.epoch + 1)
    elif change == "model":
        public = PublicSeed(bytes(32), PUBLIC.epoch)
    elif change == "weights":
        weights = weights.clone()
        weights[1, 5] += 1
    elif change == "shape":
        weights = weights.view(3, 4)
    else:
        key = KEY
    after = HintMaker(weights, public, key, group).u()
    assert np.mean(before == after[:2]) < 0.05
    assert np.array_equal(HintMaker(random_weights(2, 6), PUBLIC, OWNER_KEY, 0).u(), before)


@SWITCH
def test_u_without_an_error_is_recognised_by_its_size(rule, monkeypatch):
    """(h - w~ a) / p1 is U for the right w and uniform for any other: all weights of a short row are tried.

    With e1 it is U + e1 / p1, which is uniform for every w.
    """
    public = next(seed for seed in (PublicSeed(bytes([i] * 32), 0) for i in range(64)) if int(seed.p1().sum()) % 2)
    monkeypatch.setattr(hint_module, "HINT_PLANES", 6)
    if rule == "off":
        nothing = lambda key, first, rows: torch.zeros(rows, DEGREE, dtype=torch.int64)  # noqa: E731
        monkeypatch.setattr(hint_module, "error_rows", nothing)
    weights = torch.tensor([[93]], dtype=torch.int8)
    row = kept(HintMaker(weights, public, OWNER_KEY, 0))
    # An inverse mod 2^48 would show U's size. Mod 4, which is all that this test inverts, what would show is compared
    # with what the owner drew.
    u = HintMaker(weights, public, OWNER_KEY, 0).u()[0]
    h = np.concatenate([row[:1], -row[:0:-1]])
    turned = np.concatenate([u[:1], -u[:0:-1].astype(np.int64)]) % 4
    inverse = inverse_mod_4(public.p1())
    found = []
    for candidate in range(-127, 128):
        rest = (h - candidate * public.a(0, 0).numpy()) % 4
        read = product(transform(torch.from_numpy(rest)), transform(inverse)).numpy() % 4
        if np.mean(read == turned) > 0.9:
            found.append(candidate)
    assert (93 in found) is (rule == "off")


def read_by_false_keys(u: torch.Tensor, base: int, places: int, tokens: int) -> np.ndarray:
    """U, int64 (rows, N), from its server's answers to p0 that hold powers of a base, 2^16 being one unit: balanced
    digits.
    """
    p0 = np.zeros((tokens, DEGREE), np.int64)
    for column in range(min(DEGREE, tokens * places)):
        p0[column // places, column] = base ** (column % places) << 16
    planes = np.ascontiguousarray(np.moveaxis(digits(p0, 6), -1, 1))
    server = GroupMatrix(random_weights(4, 4), u)
    nothing = np.zeros((6, tokens, 4), np.int8)
    answers = server.answer(nothing, server.ahead(planes)).astype(np.int64) % 2**32
    half = sum(base // 2 * base**place for place in range(places))
    shifted = (answers + half) % 2**32
    found = [(shifted // base**place) % base - base // 2 for place in range(places)]
    return np.stack(found, -1).transpose(1, 0, 2).reshape(answers.shape[1], -1)[:, :DEGREE]


@SWITCH
def test_a_ternary_u_is_read_by_a_false_key_in_103_tokens(rule):
    """20 entries an answer. Of six bits five fit, so that it takes 384 tokens or more, and n / 4 give W itself."""
    generator = torch.Generator().manual_seed(0)
    low, high = (-1, 2) if rule == "off" else (-32, 32)
    u = torch.randint(low, high, (4, DEGREE), dtype=torch.int8, generator=generator)
    found = read_by_false_keys(u, 3, 20, 103)
    agreement = np.mean(found == u.numpy())
    assert agreement == 1 if rule == "off" else agreement < 0.1


def test_the_u_that_owners_draw_has_six_bits():
    u = HintMaker(random_weights(100, 3), PUBLIC, OWNER_KEY, 0).u()
    counts = np.bincount(u.flatten().astype(np.int64) + 32, minlength=64)
    assert len(counts) == 64
    assert ((counts - u.size / 64) ** 2 / (u.size / 64)).sum() < 63 + 8 * (2 * 63) ** 0.5


def test_six_bits_are_read_by_false_keys_in_410_tokens():
    """What the meter must count with: a false key is an answer like any other."""
    u = torch.randint(-32, 32, (4, DEGREE), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    found = read_by_false_keys(u, 64, 5, 410)
    assert np.array_equal(found, u.numpy())


@pytest.mark.parametrize("answer_bits", [32, 40])
def test_answers_of_40_bits_would_give_u_by_their_noise(answer_bits):
    """The client knows e0 and everything else, so that answers are linear equations in U with their rounding as noise.

    Here 2048 - 32 entries of e0 are zero, to keep the equations small: so few unknowns favour the attacker. Counted as
    32 bits, answers of 40 would have said more than the meter thinks.
    """
    tokens, unknown, rows = 20_000, 32, 4
    generator = np.random.default_rng(3)
    u = generator.integers(-32, 32, (rows, unknown))
    e0 = np.bitwise_count(generator.integers(0, 1 << 42, (tokens, unknown), dtype=np.uint64)).astype(np.int64) - 21
    known = generator.integers(0, MODULUS, (tokens, rows))  # delta W x - v, uniform and known to the client
    exact = (known + e0 @ u.T) % MODULUS
    dropped = 48 - answer_bits
    answers = (exact + (1 << dropped - 1) >> dropped) << dropped
    noise = centred(answers - known, 48).astype(np.float64)
    estimate = np.linalg.lstsq(e0.astype(np.float64), noise, rcond=None)[0].T
    agreement = np.mean(np.rint(estimate) == u)
    assert agreement > 0.97 if answer_bits == 40 else agreement < 0.1


# -- exactness beyond the rule -----------------------------------------------------------------------------------


@SWITCH
def test_a_plaintext_modulus_beyond_the_rule_gives_wrong_answers(rule, monkeypatch):
    """14,336 uniform columns need t = 2^28; with 2^30 one answer in some thousands is wrong."""
    monkeypatch.setattr(tokens_module, "fresh_key", lambda: KEY)
    weights, tokens = random_weights(40, 14336), 500 if rule == "off" else 50
    parameters = parameters_of(weights, most_activation_bits=9)
    assert parameters.plaintext_bits == 28
    if rule == "off":
        parameters = Parameters(PRIVATE, 40, 14336, 30, 9)
    party = Party.of(weights, tokens, parameters)
    activations = np.random.default_rng(6).integers(-100, 101, (tokens, 14336), dtype=np.int32)
    wrong = np.count_nonzero(party.exchange(activations) != clear_product(weights, activations))
    if rule == "off":
        assert wrong > 0
        with pytest.raises(InsecureParameters, match="wrong too often"):
            require_noise_fits(parameters, party.noise_std)
    else:
        assert wrong == 0
        require_noise_fits(parameters, party.noise_std)
