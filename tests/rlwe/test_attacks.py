"""Each rule of the arithmetic, and what an attacker reads once it is off.

Every test runs the same attack twice on the real code: with one rule switched off it recovers the secret exactly,
with the rule on it gets nothing.
"""

import numpy as np
import pytest
import torch
from confide.rlwe.encryption import PackSecret, ciphertext_mask, public_key_mask
from confide.rlwe.evaluation import OfflineProduct, RequestKey, _FreshZero, shares
from confide.rlwe.masks import mask, unmask
from torch import Tensor

from confide.rlwe import encryption, evaluation, online
from confide.rlwe.digits import carry_to_digit_words, digit_word_values
from confide.rlwe.random import rounded_gaussian
from confide.rlwe.ring import product, transform
from confide.rlwe.streams import Stream

from .helpers import (
    CLIENT_SEED,
    DEGREE,
    P1_SEED,
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
)

ROWS, COLUMNS = 6, 4
WEIGHTS = random_weights(ROWS, COLUMNS, seed=7)
SWITCH = pytest.mark.parametrize("rule", ["on", "off"])


def client() -> PackSecret:
    return PackSecret(CLIENT_SEED, DEGREE)


def chosen_ciphertexts(secret: PackSecret, parameters, phase_limbs: list[Tensor]) -> Tensor:
    """b = -a s + phase with the honest a and a phase that the client chooses: limbs of int64 (columns, N)."""
    a = ciphertext_mask(secret.public_seed(0), parameters, 0, parameters.columns)
    limbs = product(transform(digit_word_values(a)), -transform(secret_key())).unbind(1)
    return torch.stack(carry_to_digit_words([limb + phase for limb, phase in zip(limbs, phase_limbs, strict=True)]), 1)


# -- 1. the fresh zero -------------------------------------------------------------------------------------------


def weights_from_the_a_half(a_half: Tensor, public: Tensor) -> list[list[list[int]]]:
    """For each row of kept a halves, all pairs of weights that explain its first two coefficients."""
    known = [digit_value(row)[:2] for row in public]
    candidates = np.arange(-127, 128)
    pairs = []
    for row in a_half:
        fits = True
        for token in range(2):
            # The top 40 bits of each product; the low ones can add or take one place or two.
            first, second = (_products(column[token], candidates) for column in known)
            distance = (first[:, None] + second[None] - int(row[token]) + 2**39) % 2**40 - 2**39
            fits = fits & (np.abs(distance) <= 2)
        pairs.append((np.argwhere(fits) - 127).tolist())
    return pairs


def _products(value: int, candidates: np.ndarray) -> np.ndarray:
    return np.array([(value * int(weight) >> 56) % 2**40 for weight in candidates])


@SWITCH
def test_without_the_fresh_zero_the_a_half_gives_all_weights(rule, monkeypatch):
    """The a half of an answer is W a with an a that the client knows: linear equations in W, of 40 bits each.

    The fresh encryption of zero makes it pseudorandom.
    """
    if rule == "off":
        monkeypatch.setattr(_FreshZero, "_fill", lambda self, zeros: zeros.zero_())
    weights = random_weights(3, 2, seed=8)
    parameters, secret = parameters_of(weights), client()
    words = encrypt(secret, pack_masks(parameters), parameters)
    high, low = serve(weights, parameters, secret, words, bind(b"request"))
    found = weights_from_the_a_half(
        kept_value(high, low)[0] % 2**40, ciphertext_mask(secret.public_seed(0), parameters, 0, 2)
    )
    assert found == ([[row] for row in weights.tolist()] if rule == "off" else [[], [], []])


# -- 2. the share on every bit -----------------------------------------------------------------------------------


def weights_from_the_low_byte(low_phase: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """The weight that best explains each row's low kept byte, and how well (1 is perfectly).

    low_phase: (rows, N), about multiplier_k W mod 256.
    """
    candidates = torch.arange(-127, 128)[:, None]
    angles = (low_phase[:, None] - candidates * multipliers).double() * (2 * torch.pi / 256)
    score, best = angles.cos().mean(-1).max(-1)
    return best - 127, score


def top_only(self, first: int, high: Tensor, low: Tensor) -> None:
    """The share of an earlier design: the top 32 of the 40 bits."""
    high += self._top[first : first + high.shape[0]]


@SWITCH
def test_with_bits_of_the_b_half_unmasked_a_chosen_b_reads_the_weights(rule, monkeypatch):
    """A client may send any b, so it plants small multiples where the bits without a share are.

    They come back multiplied by W. With a share on every bit the low byte is uniform.
    """
    if rule == "off":
        monkeypatch.setattr(evaluation._Share, "add", top_only)
    parameters, secret = parameters_of(WEIGHTS), client()
    columns = torch.arange(DEGREE) % COLUMNS  # token k asks for column k mod COLUMNS
    multipliers = torch.randint(1, 128, (DEGREE,), generator=torch.Generator().manual_seed(4))
    planted = torch.where(columns == torch.arange(COLUMNS)[:, None], multipliers, 0) << 24  # in units of 2^56
    words = chosen_ciphertexts(secret, parameters, [torch.zeros_like(planted), planted, torch.zeros_like(planted)])
    high, low = serve(WEIGHTS, parameters, secret, words, bind(words.numpy().tobytes()))
    phase = exact_phase(high, low, secret_key()) & 0xFF
    found = [weights_from_the_low_byte(phase[:, columns == i], multipliers[columns == i]) for i in range(COLUMNS)]
    recovered = torch.stack([weights for weights, _ in found], 1)
    scores = torch.stack([score for _, score in found])
    if rule == "off":
        assert torch.equal(recovered, WEIGHTS.long())
        assert scores.min() > 0.7
    else:
        assert (recovered == WEIGHTS).double().mean() < 0.2
        assert scores.max() < 0.25


# -- 3. drowning and the modulus switch --------------------------------------------------------------------------


def unswitched_noise(weights: Tensor, secret: PackSecret, words: Tensor, request: RequestKey) -> Tensor:
    """What a client would decrypt besides (q/t) W r if the low planes travelled too: int64 (rows, N).

    All of it lies below 2^62, so the halves are taken mod 2^64, where (q/t) W r vanishes.
    """
    parameters = parameters_of(weights)
    server = OfflineProduct(weights, parameters)
    server.add_rows(0, words)
    server._expand_masks(secret.public_seed(0))
    p0 = secret.public_key(P1_SEED, parameters)
    zeros = _FreshZero(parameters, P1_SEED, p0, request, torch.device("cpu")).next_rows(len(weights))
    halves = []
    for planes, zero in zip(server._planes, zeros, strict=True):
        total = zero[0].long() % 2**32 + (zero[1].long() << 32)
        for place in range(8):
            total += (weights.long() @ planes[place].long()) << 8 * place
        halves.append(total)
    a, b = halves
    key = transform(secret_key())
    lower, upper = product(transform(a & 0xFFFFFFFF), key), product(transform(a >> 32), key)
    return b + lower + (upper << 32)


def least_squares(noise: Tensor, errors: Tensor) -> Tensor:
    """W from noise = W e + something independent."""
    return torch.linalg.lstsq(errors.double().t(), noise.double().t()).solution.t()


def chosen_errors(parameters) -> Tensor:
    """Errors of +-2^12, nothing beside the drowning noise: int64 (columns, N)."""
    signs = torch.randint(0, 2, (parameters.columns, DEGREE), generator=torch.Generator().manual_seed(5))
    return (2 * signs - 1) << 12


def encryptions_of_errors(secret: PackSecret, parameters, errors: Tensor) -> Tensor:
    """Ciphertexts of zero masks with the errors that the client chose."""
    nothing = torch.zeros_like(errors)
    return chosen_ciphertexts(secret, parameters, [errors, nothing, nothing])


def without_drowning(stream: Stream, bits: int, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


@SWITCH
def test_without_drowning_the_decryption_noise_gives_the_weights(rule, monkeypatch):
    """The noise of an answer is W e + u e_pk + e1 s, and the client knows its e: least squares over a pack give W.

    Drowning noise makes every estimate useless, even on what a server without a modulus switch would send.
    """
    if rule == "off":
        monkeypatch.setattr(evaluation, "drowning", without_drowning)
    parameters, secret = parameters_of(WEIGHTS), client()
    errors = chosen_errors(parameters)
    words = encryptions_of_errors(secret, parameters, errors)
    noise = unswitched_noise(WEIGHTS, secret, words, bind(b"request"))
    estimate = least_squares(noise, errors)
    if rule == "off":
        assert torch.equal(estimate.round().long(), WEIGHTS.long())
    else:
        assert estimate.abs().median() > 2.0**38
        assert noise.double().std() > 2.0**59


@SWITCH
def test_without_the_modulus_switch_the_low_bits_would_give_the_weights(rule, monkeypatch):
    """Online the share cancels, so that a client sees the noise of all the places it was sent.

    40 of 96 bits are sent and 32 of those unmasked: then W e is out of sight even where there is no drowning.
    """
    monkeypatch.setattr(evaluation, "drowning", without_drowning)
    parameters, secret = parameters_of(WEIGHTS), client()
    errors = chosen_errors(parameters)
    words = encryptions_of_errors(secret, parameters, errors)
    request = bind(words.numpy().tobytes())
    if rule == "off":
        noise = unswitched_noise(WEIGHTS, secret, words, request)
    else:
        high, low = serve(WEIGHTS, parameters, secret, words, request)
        # The masks are zero, so that what the share leaves is all noise, in units of 2^64.
        noise = (secret.decrypt_rows(high, low) - shares(request, ROWS, 0, DEGREE).t()).double() * 2.0**64
    matches = (least_squares(noise, errors).round() == WEIGHTS).double().mean()
    assert matches == 1 if rule == "off" else matches < 0.1


# -- 4. randomness bound to the request --------------------------------------------------------------------------


@SWITCH
def test_two_requests_under_one_randomness_subtract_to_the_weights(rule):
    """If u, the errors and the share are the same for two requests, their answers differ by W (b - b').

    A client that plants 2^64 in token i of row i then reads column i of W. Bound to the request's digest, the
    difference is uniform.
    """
    parameters, secret = parameters_of(WEIGHTS), client()
    words = encrypt(secret, pack_masks(parameters), parameters)
    other = words.clone()
    for i in range(COLUMNS):
        other[i, 2, i] += 1
    digests = [sent.numpy().tobytes() if rule == "on" else b"always the same" for sent in (words, other)]
    (first, first_low), (second, second_low) = (
        serve(WEIGHTS, parameters, secret, sent, bind(digest))
        for sent, digest in zip((words, other), digests, strict=True)
    )
    difference = (second - first)[1, :, :COLUMNS]
    if rule == "off":
        assert torch.equal(difference, WEIGHTS.int())
        assert torch.equal(first_low, second_low)
    else:
        assert (difference.abs() > 1 << 16).all()


# -- 5. seeds, never polynomials ---------------------------------------------------------------------------------


def constant_polynomial(exponent: int, words: int) -> Tensor:
    """2^exponent as digit words (words, N)."""
    limbs = torch.zeros(words, DEGREE, dtype=torch.int64)
    limbs[exponent // 32, 0] = 1 << exponent % 32
    return torch.stack(carry_to_digit_words(list(limbs)))


def key_from_public_key(p0: Tensor) -> Tensor:
    """s, if p0 is -2^64 s + e."""
    return torch.tensor([max(-1, min(1, -((centred(value, 96) + 2**63) >> 64))) for value in digit_value(p0)])


@SWITCH
def test_a_server_that_chose_p1_as_a_polynomial_would_read_the_secret_key(rule, monkeypatch):
    """With p1 = 2^64 the public key is -2^64 s + e, and the server reads s from it, and with s all masks.

    Expanded from a seed, p1 hides s as in any RLWE sample.
    """
    parameters, secret = parameters_of(WEIGHTS), client()
    if rule == "off":
        monkeypatch.setattr(encryption, "public_key_mask", lambda seed, parameters: constant_polynomial(64, 3))
    agreement = (key_from_public_key(secret.public_key(P1_SEED, parameters)) == secret_key()).double().mean()
    assert agreement == 1 if rule == "off" else agreement < 0.45


@SWITCH
def test_a_server_that_chose_a_as_a_polynomial_would_read_the_masks(rule, monkeypatch):
    """With a = 0 a mask's ciphertext is (q/t) r + e: the mask in the clear. Hence a comes from the client's seed."""
    parameters, secret = parameters_of(WEIGHTS), client()
    if rule == "off":
        zero = lambda seed, parameters, first, rows: torch.zeros(rows, 3, DEGREE, dtype=torch.int32)  # noqa: E731
        monkeypatch.setattr(encryption, "ciphertext_mask", zero)
    masks = pack_masks(parameters)
    words = encrypt(secret, masks, parameters)
    read = np.array([[((value + 2**65) >> 66) % 2**30 for value in digit_value(row)] for row in words]).T
    agreement = (read == masks).mean()
    assert agreement == 1 if rule == "off" else agreement < 1e-3


def blinding_from_the_a_half(a_half: Tensor) -> Tensor:
    """u, if the a half is W a + 2^94 u + e1 with a tiny W a."""
    return ((a_half + (1 << 37)) >> 38).clamp(-1, 1)


@SWITCH
def test_a_client_that_chose_p1_and_a_as_polynomials_would_read_the_blinding(rule, monkeypatch):
    """With a = 0 and p1 = 2^94 the a half is 2^94 u + e1: the client reads u and strips the fresh zero off.

    So the server expands both from seeds too.
    """
    parameters, secret = parameters_of(WEIGHTS), client()
    words = encrypt(secret, pack_masks(parameters), parameters)
    request = bind(b"request")
    if rule == "off":
        zero = lambda seed, parameters, first, rows: torch.zeros(rows, 3, DEGREE, dtype=torch.int32)  # noqa: E731
        monkeypatch.setattr(evaluation, "ciphertext_mask", zero)
        monkeypatch.setattr(evaluation, "public_key_mask", lambda seed, parameters: constant_polynomial(94, 3))
    high, low = serve(WEIGHTS, parameters, secret, words, request)
    blinding = evaluation.ternary(request.stream("u"), ROWS, DEGREE)
    agreement = (blinding_from_the_a_half(kept_value(high, low)[0]) == blinding).double().mean()
    assert agreement == 1 if rule == "off" else agreement < 0.45


# -- 6. everything random once -----------------------------------------------------------------------------------


@SWITCH
def test_a_reused_a_gives_the_difference_of_masks(rule, monkeypatch):
    """Two ciphertexts with one a subtract to (q/t) (r - r') + e - e', which the server rounds to r - r'.

    Each group and each pack has an a of its own.
    """
    if rule == "off":
        monkeypatch.setattr(PackSecret, "public_seed", lambda self, group: bytes(32))
    parameters, secret = parameters_of(WEIGHTS), client()
    masks = [pack_masks(parameters), pack_masks(parameters, key=bytes(32))]
    words = [encrypt(secret, pads, parameters, group) for group, pads in enumerate(masks)]
    pairs = zip(*[[digit_value(row) for row in sent] for sent in words], strict=True)
    read = np.array([[((x - y + 2**65) >> 66) % 2**30 for x, y in zip(*pair, strict=True)] for pair in pairs]).T
    agreement = (read == (masks[0] - masks[1]) % 2**30).mean()
    assert agreement == 1 if rule == "off" else agreement < 1e-3


def inverse_mod_4(polynomial: list[int]) -> list[int]:
    """The inverse in Z_4[X]/(X^N + 1) of a polynomial whose coefficients have an odd sum."""
    inverted, power = [1] + [0] * (DEGREE - 1), [value % 2 for value in polynomial]
    for _ in range(12):  # mod 2, its N-th power is 1, so that its inverse is the power 1 + 2 + 4 + ... + N/2
        inverted = [value % 2 for value in negacyclic(inverted, power)]
        power = [value % 2 for value in negacyclic(power, power)]
    correction = [-value for value in negacyclic([value % 4 for value in polynomial], inverted)]
    correction[0] += 2
    return [value % 4 for value in negacyclic(inverted, [value % 4 for value in correction])]


def key_from_two_public_keys(p1: tuple[Tensor, Tensor], p0: tuple[Tensor, Tensor]) -> Tensor:
    """s, if p0 - p0' = -(p1 - p1') s without any error."""
    masks, keys = ([x - y for x, y in zip(*map(digit_value, pair), strict=True)] for pair in (p1, p0))
    quotient = negacyclic([-value % 4 for value in keys], inverse_mod_4(masks))
    return torch.tensor([centred(value, 2) for value in quotient])


def p1_seeds(parameters) -> tuple[bytes, bytes]:
    """Two seeds whose p1 differ by something invertible; a server tries a few."""
    for number in range(100):
        other = number.to_bytes(32, "big")
        difference = public_key_mask(P1_SEED, parameters)[0] - public_key_mask(other, parameters)[0]
        if int((difference & 1).sum()) % 2:
            return P1_SEED, other
    raise AssertionError("no seed found")


@SWITCH
def test_one_error_under_two_p1_gives_the_secret_key(rule, monkeypatch):
    """-p1 s + e and -p1' s + e subtract to a multiple of s without any error, and a division gives s and all masks.

    A server gets there by naming another seed when an interrupted preparation is resumed. So e depends on p1.
    """
    if rule == "off":
        once = rounded_gaussian(Stream(bytes(32)), DEGREE)
        monkeypatch.setattr(encryption, "rounded_gaussian", lambda stream, *shape: once.clone())
    parameters, secret = parameters_of(WEIGHTS), client()
    seeds = p1_seeds(parameters)
    p1 = tuple(public_key_mask(seed, parameters) for seed in seeds)
    p0 = tuple(secret.public_key(seed, parameters) for seed in seeds)
    agreement = (key_from_two_public_keys(p1, p0) == secret_key()).double().mean()
    assert agreement == 1 if rule == "off" else agreement < 0.45


@SWITCH
def test_one_error_in_two_groups_gives_the_secret_key(rule, monkeypatch):
    """Ciphertexts of two groups with the same errors subtract to -(a - a') s + (q/t) (r - r'), exactly.

    Below q/t nothing hides s any more. So every group's errors have a stream of their own.
    """
    if rule == "off":
        same = lambda stream, *shape: rounded_gaussian(Stream(bytes(32)), *shape)  # noqa: E731
        monkeypatch.setattr(encryption, "rounded_gaussian", same)
    parameters, secret = parameters_of(WEIGHTS), client()
    a = [ciphertext_mask(secret.public_seed(group), parameters, 0, COLUMNS) for group in (0, 1)]
    b = [encrypt(secret, pack_masks(parameters), parameters, group) for group in (0, 1)]
    odd = [row for row in range(COLUMNS) if int(((a[0][row, 0] - a[1][row, 0]) & 1).sum()) % 2]
    key = key_from_two_public_keys((a[0][odd[0]], a[1][odd[0]]), (b[0][odd[0]], b[1][odd[0]]))
    agreement = (key == secret_key()).double().mean()
    assert agreement == 1 if rule == "off" else agreement < 0.45


@SWITCH
def test_a_reused_mask_gives_the_difference_of_activations(rule):
    """d - d' = x - x' if both hide under one mask, to the last bit. A mask index therefore serves once."""
    done = exchange(WEIGHTS)
    generator = np.random.default_rng(0)
    largest = done.parameters.max_activation
    first, second = (generator.integers(-largest, largest + 1, COLUMNS, dtype=np.int32) for _ in range(2))
    tokens = (9, 9) if rule == "off" else (9, 10)
    sent = [mask(x, done.masks[token], done.parameters) for x, token in zip((first, second), tokens, strict=True)]
    read = centred(sent[0].astype(np.int64) - sent[1], 30)
    if rule == "off":
        assert np.array_equal(read, first - second)
    else:
        assert (np.abs(read - (first - second)) > 2 * largest).all()


@SWITCH
def test_two_answers_under_one_share_give_a_product_with_the_weights(rule):
    """z - z' = 4 W (d - d') if both hide under one share: with d - d' = e_i a column of W for no token at all.

    A second d for an index is therefore refused; the next index has another share.
    """
    done = exchange(WEIGHTS)
    columns = []
    for i in range(COLUMNS):
        base = torch.from_numpy(done.masks[5:6].copy())
        other = base.clone()
        other[0, i] += 1
        tokens = (5, 5) if rule == "off" else (5, 6 + i)
        answers = [
            online.answer(WEIGHTS, d, done.share(token), done.parameters)
            for d, token in zip((base, other), tokens, strict=True)
        ]
        columns.append((answers[1] - answers[0])[0])
    difference = torch.stack(columns, 1)
    if rule == "off":
        assert torch.equal(difference >> 2, WEIGHTS.int())
    else:
        assert (difference.abs() > 1 << 12).all()


# -- 7. a failed check tells the server nothing ------------------------------------------------------------------


def add_to_kept(high: Tensor, low: Tensor, amount: Tensor) -> None:
    """Add int64 amounts to one row's 40 kept bits in place."""
    total = kept_value(high, low) + amount
    low.copy_(total & 0xFF)
    high.copy_(centred(total >> 8, 32))


def kept_multiple(words: Tensor, exponent: int) -> Tensor:
    """The top 40 of 96 bits of 2^exponent times digit words (words, N): int64."""
    return torch.tensor([((value << exponent) % 2**96 >> 56) for value in digit_value(words)])


@SWITCH
def test_a_reported_failure_would_tell_the_parity_of_an_activation(rule):
    """A server that answers with W + 2^29 e_i in one row, offline and online, makes that row wrong iff x_i is odd.

    Whoever tells it that the check failed tells it the parity of x_i. What the server has without the report, d, says
    nothing: so a client keeps sending uniform values after a failure, and reports it at home only.
    """
    column, tokens = 2, 400
    parameters, secret = parameters_of(WEIGHTS), client()
    masks = pack_masks(parameters)
    words = encrypt(secret, masks, parameters)
    request = bind(words.numpy().tobytes())
    high, low = serve(WEIGHTS, parameters, secret, words, request)
    a = ciphertext_mask(secret.public_seed(0), parameters, column, 1)[0]
    for half, extra in enumerate((a, words[column])):
        add_to_kept(high[half, 0], low[half, 0], kept_multiple(extra, 29))
    values = secret.decrypt_rows(high, low).t().contiguous().numpy()[:tokens]

    largest = parameters.max_activation
    x = np.random.default_rng(1).integers(-largest, largest + 1, (tokens, COLUMNS), dtype=np.int32)
    d = mask(x, masks[:tokens], parameters)
    answers = online.answer(WEIGHTS, torch.from_numpy(d), shares(request, ROWS, 0, tokens), parameters).numpy()
    answers[:, 0] += d[:, column] << 31
    products = unmask(answers, values, parameters)

    expected = clear_product(WEIGHTS, x)
    assert np.array_equal(products[:, 1:], expected[:, 1:])
    failed = products[:, 0] != expected[:, 0]
    guess = failed if rule == "off" else d[:, column] % 2 == 1
    agreement = (guess == (x[:, column] % 2 == 1)).mean()
    assert agreement == 1 if rule == "off" else abs(agreement - 0.5) < 0.15
