"""Freivalds' check against Python's integers: exact at every extreme, and no wrong answer passes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.rlwe.freivalds import (
    MAX_LENGTH,
    MAX_VALUE,
    PRIME,
    AnswerCheck,
    check_vector,
    limb_bits,
    secret_vector,
    signed_limbs,
)

SEED = bytes(range(32))


def weights_and_check(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, AnswerCheck]:
    weights = np.random.default_rng(seed).integers(-128, 128, (rows, columns), dtype=np.int8)
    secret = secret_vector(SEED, 0, rows)
    return weights, AnswerCheck(secret, check_vector(weights, secret))


def product(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (x.astype(np.int64) @ weights.T.astype(np.int64)).astype(np.int32)


def activations(tokens: int, columns: int, bits: int = 8, seed: int = 1) -> np.ndarray:
    bound = 2 ** (bits - 1)
    return np.random.default_rng(seed).integers(-bound, bound, (tokens, columns), dtype=np.int32)


def test_the_secret_is_uniform_over_the_field_and_of_one_group() -> None:
    secret = secret_vector(SEED, 0, 1 << 16)
    assert secret.max() < PRIME
    assert len(np.unique(secret)) == len(secret)
    counts = np.bincount((secret >> np.uint64(55)).astype(np.int64), minlength=64)
    assert abs(counts - 1024).max() < 6 * 32
    assert not np.isin(secret_vector(SEED, 1, 64), secret).any()
    assert np.array_equal(secret_vector(SEED, 0, 5), secret[:5])


def test_the_secret_is_the_128_bit_words_of_its_stream_mod_p() -> None:
    from confide.rlwe.streams import Stream, derive_key

    words = Stream(derive_key(SEED, "integrity", (3).to_bytes(4, "big"))).bytes(16 * 40).tobytes()
    expected = [int.from_bytes(words[start : start + 16], "little") % PRIME for start in range(0, len(words), 16)]
    assert secret_vector(SEED, 3, 40).tolist() == expected


@pytest.mark.parametrize("shape", [(1, 1), (5, 12), (1023, 3), (1024, 3), (1025, 3), (3000, 2)])
@pytest.mark.parametrize("fill", [None, -128, 127])
def test_the_check_vector_equals_big_integers(shape: tuple[int, int], fill: int | None) -> None:
    weights = np.random.default_rng(2).integers(-128, 128, shape, dtype=np.int8)
    if fill is not None:
        weights[:] = fill
    for secret in (secret_vector(SEED, 0, shape[0]), np.full(shape[0], PRIME - 1, np.uint64)):
        expected = [
            sum(a * b for a, b in zip(secret.tolist(), column, strict=True)) % PRIME for column in weights.T.tolist()
        ]
        assert check_vector(weights, secret).tolist() == expected


@given(st.data(), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_the_verdict_is_that_of_big_integers(data: st.DataObject, rows: int, columns: int, tokens: int) -> None:
    field = st.sampled_from([0, 1, PRIME - 1, PRIME // 2, 1 << 60]) | st.integers(0, PRIME - 1)
    value = st.sampled_from([0, -1, MAX_VALUE, -MAX_VALUE]) | st.integers(-MAX_VALUE, MAX_VALUE)
    u = data.draw(st.lists(field, min_size=rows, max_size=rows))
    c = data.draw(st.lists(field, min_size=columns, max_size=columns))
    y = data.draw(st.lists(st.lists(value, min_size=rows, max_size=rows), min_size=tokens, max_size=tokens))
    x = data.draw(st.lists(st.lists(value, min_size=columns, max_size=columns), min_size=tokens, max_size=tokens))

    def dot(a: list[int], b: list[int]) -> int:
        return sum(left * right for left, right in zip(a, b, strict=True)) % PRIME

    # Zeros are right whatever u and c are, so that both verdicts occur.
    y.append([0] * rows)
    x.append([0] * columns)
    check = AnswerCheck(np.array(u, np.uint64), np.array(c, np.uint64))
    verdict = check(np.array(y, np.int32), np.array(x, np.int32))
    assert verdict.tolist() == [dot(u, yt) == dot(c, xt) for yt, xt in zip(y, x, strict=True)]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("length", [2, 3, 1 << 12, (1 << 12) + 1, 1 << 16, MAX_LENGTH])
def test_sums_are_exact_at_the_extremes(length: int, sign: int) -> None:
    # Every limb at its largest and every value too: 2^53 is not exceeded, or one unit would get lost.
    columns = length // 2
    rows = length - columns
    bits = limb_bits(length)
    largest = sum(1 << (bits * place + bits - 1) for place in range(-(-61 // bits)))
    for u in (largest % PRIME, PRIME - 1, (1 << 60) - 1):
        # With c = u in every place, x is right where it equals y.
        y = np.zeros((2, rows), np.int32)
        y[:, :columns] = sign * MAX_VALUE
        x = np.full((2, columns), sign * MAX_VALUE, np.int32)
        y[1, 0] -= sign
        check = AnswerCheck(np.full(rows, u, np.uint64), np.full(columns, u, np.uint64))
        assert check(y, x).tolist() == [True, False]


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("answer", [MAX_VALUE + 1, -MAX_VALUE - 1, (1 << 31) - 1, -(1 << 31)])
def test_answers_that_no_product_gives_are_wrong(answer: int, tokens: int) -> None:
    # u = 0 in this place: only the bound tells.
    check = AnswerCheck(np.zeros(2, np.uint64), np.zeros(1, np.uint64))
    y = np.zeros((tokens, 2), np.int32)
    assert check(y, np.zeros((tokens, 1), np.int32)).all()
    y[-1, 1] = answer
    assert check(y, np.zeros((tokens, 1), np.int32)).tolist() == [True] * (tokens - 1) + [False]
    y[-1, 1] = MAX_VALUE if answer > 0 else -MAX_VALUE
    assert check(y, np.zeros((tokens, 1), np.int32)).all()


def test_limbs_and_values_stay_below_two_to_the_53() -> None:
    for length in (2, 5, 4096, 4097, 100_000, MAX_LENGTH):
        bits = limb_bits(length)
        limbs = signed_limbs(secret_vector(SEED, 0, length), bits)
        assert length * MAX_VALUE * 2 ** (bits - 1) <= 2**53
        assert abs(limbs).max() <= 2 ** (bits - 1)
        assert limbs.shape[1] <= 8


def test_what_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="split"):
        AnswerCheck(np.zeros(MAX_LENGTH, np.uint64), np.zeros(1, np.uint64))


@pytest.mark.parametrize("tokens", [0, 1, 2, 63, 64, 65, 130])
def test_right_answers_pass_for_any_number_of_tokens(tokens: int) -> None:
    weights, check = weights_and_check(40, 24)
    x = activations(tokens, 24)
    assert check(product(weights, x), x).tolist() == [True] * tokens


def test_one_unit_in_one_place_is_caught_1000_of_1000_times() -> None:
    weights, check = weights_and_check(300, 200)
    x = activations(1000, 200)
    y = product(weights, x)
    generator = np.random.default_rng(9)
    y[np.arange(1000), generator.integers(0, 300, 1000)] += generator.choice([-1, 1], 1000).astype(np.int32)
    assert not check(y, x).any()


def test_a_single_token_that_is_wrong_is_found() -> None:
    """One token has a path of its own."""
    weights, check = weights_and_check(300, 200)
    x = activations(1, 200)
    y = product(weights, x)
    assert check(y, x).tolist() == [True]
    for row in (0, 137, 299):
        wrong = y.copy()
        wrong[0, row] += 1
        assert check(wrong, x).tolist() == [False]


def test_only_the_wrong_token_is_named() -> None:
    weights, check = weights_and_check(12, 8)
    x = activations(70, 8)
    y = product(weights, x)
    y[66, 3] ^= 1
    assert np.flatnonzero(~check(y, x)).tolist() == [66]


def test_nothing_secret_is_in_the_repr() -> None:
    assert repr(weights_and_check(3, 2)[1]) == "AnswerCheck(rows=3, <hidden>)"


@pytest.mark.parametrize("length", [2, 4096, 4097, 1 << 14, MAX_LENGTH])
@pytest.mark.parametrize("fill", ["highest", "lowest", "mixed"])
def test_one_tokens_sum_is_exact_at_the_extremes(length: int, fill: str) -> None:
    generator = np.random.default_rng(length)
    words = np.full(length, PRIME - 1, np.uint64)
    values = np.full(length, MAX_VALUE, np.int64)
    if fill == "lowest":
        values = -values
    if fill == "mixed":
        words = generator.integers(0, PRIME, length, dtype=np.uint64)
        values = generator.integers(-MAX_VALUE, MAX_VALUE + 1, length)
    # One coefficient makes the sum a multiple of the prime; a sum that is wrong by one 2^64 is none, nor by one unit.
    rest = sum(word * value for word, value in zip(words[1:].tolist(), values[1:].tolist(), strict=True))
    words[0] = -rest * pow(int(values[0]), -1, PRIME) % PRIME
    rows = length // 2
    check = AnswerCheck(words[:rows], np.uint64(PRIME) - words[rows:])
    y, x = values[None, :rows].astype(np.int32), values[None, rows:].astype(np.int32)
    assert check(y, x).tolist() == [True]
    y[0, 0] += 1 if y[0, 0] < 0 else -1
    assert check(y, x).tolist() == [False]
