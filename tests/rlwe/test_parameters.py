"""Parameters: what they derive, what they refuse, and their noise against a computation of the test's own."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InsecureParameters
from confide.rlwe import parameters as module
from confide.rlwe.parameters import MAX_COLUMNS, Parameters, Profile
from confide.rlwe.security import MAX_MODULUS_BITS, require_secure_ring

from .helpers import OPEN, PRIVATE

BOTH = pytest.mark.parametrize("profile", list(Profile))


def derive(profile=PRIVATE, rows=768, columns=768, row_l1=40_000, row_l2=2_000.0) -> Parameters:
    return Parameters.derive(profile, rows=rows, columns=columns, row_l1=row_l1, row_l2=row_l2)


# -- what they derive --------------------------------------------------------------------------------------------


def test_names():
    assert derive(PRIVATE).name == "n4096_q96_t30_keep40"
    assert derive(OPEN).name == "n4096_q64_t30_keep40"


@BOTH
def test_sizes(profile):
    parameters = derive(profile)
    assert parameters.tokens == parameters.ring_degree == 4096
    assert (parameters.words, parameters.planes) == ((3, 12) if profile is PRIVATE else (2, 8))
    assert parameters.kept_planes == 5
    assert parameters.max_activation == 2 ** (parameters.activation_bits - 1) - 1


@given(st.integers(0, (2**29 - 1) // 127))
def test_activations_are_as_wide_as_can_never_wrap(row_l1):
    parameters = derive(row_l1=row_l1)
    assert row_l1 * parameters.max_activation < 2**29
    wider = 2**parameters.activation_bits - 1
    assert parameters.activation_bits == 15 or row_l1 * wider >= 2**29


@pytest.mark.parametrize("bits", range(8, 15))
def test_the_activation_width_changes_exactly_at_the_bound(bits):
    largest = (2**29 - 1) // (2 ** (bits - 1) - 1)
    assert derive(row_l1=largest).activation_bits == bits
    if bits > 8:
        assert derive(row_l1=largest + 1).activation_bits == bits - 1


@pytest.mark.parametrize("row_l1", [(2**29 - 1) // 127 + 1, 2**29, 2**40])
def test_rows_too_long_for_8_bit_activations_are_refused(row_l1):
    with pytest.raises(InsecureParameters, match="too long"):
        derive(row_l1=row_l1)


@given(st.sampled_from(list(Profile)), st.integers(8, 15), st.integers(1, 8192), st.integers(1, 8192))
def test_a_client_gets_parameters_from_shape_and_width(profile, bits, rows, columns):
    parameters = Parameters.for_shape(profile, rows=rows, columns=columns, activation_bits=bits)
    assert parameters.activation_bits == bits
    assert parameters.row_l1 * parameters.max_activation < 2**29
    assert parameters.row_l1 <= 127 * columns


@BOTH
def test_the_client_s_view_is_the_worst_case_of_the_owner_s(profile):
    owner = derive(profile, row_l1=127 * 768, row_l2=127 * math.sqrt(768))
    client = Parameters.for_shape(profile, rows=768, columns=768, activation_bits=owner.activation_bits)
    assert client == replace(owner, row_l1=client.row_l1, row_l2=client.row_l2)
    assert client.noise_std >= derive(profile).noise_std
    assert client.log2_failure <= -64


# -- the noise, recomputed ---------------------------------------------------------------------------------------


@given(st.floats(1, 30_000), st.sampled_from([1, 100, 50_000]))
def test_private_noise(row_l2, rows):
    parameters = derive(PRIVATE, rows=rows, row_l2=row_l2)
    error = 42 / 4  # variance of the weight of 42 bits
    noise = error * row_l2**2 + 2 * 4096 * error * (2 / 3)  # W e, and u e_pk + e1 s
    drown = 4 * (2.0**60) ** 2 / 12
    kept = (drown + noise) / 2.0**112 + 1 / 12 + 4096 / 12
    assert parameters.noise_std == pytest.approx(math.sqrt(noise))
    assert parameters.drowning_ratio == pytest.approx(math.sqrt(drown / noise))
    assert parameters.switched_noise_std == pytest.approx(math.sqrt(kept))
    assert parameters.noise_budget == 512 - 128
    log2_tail = 1 - 384**2 / (2 * kept) * math.log2(math.e)
    assert parameters.log2_failure == pytest.approx(log2_tail + math.log2(rows * 4096))


@given(st.floats(1, 30_000), st.sampled_from([1, 100, 50_000]))
def test_open_noise(row_l2, rows):
    parameters = derive(OPEN, rows=rows, row_l2=row_l2)
    noise = 42 / 4 * row_l2**2
    kept = noise / 2.0**48 + 4097 / 12
    assert parameters.noise_std == pytest.approx(math.sqrt(noise))
    assert parameters.drowning_std == parameters.drowning_ratio == 0
    assert parameters.switched_noise_std == pytest.approx(math.sqrt(kept))
    log2_tail = 1 - 384**2 / (2 * kept) * math.log2(math.e)
    assert parameters.log2_failure == pytest.approx(log2_tail + math.log2(rows * 4096))


def test_the_design_s_figures():
    widest = derive(PRIVATE, columns=3072, row_l1=390_144, row_l2=127 * math.sqrt(3072))
    assert math.log2(widest.drowning_std) == pytest.approx(59.2, abs=0.05)
    assert math.log2(widest.drowning_ratio) > 43
    assert widest.switched_noise_std == pytest.approx(20.7, abs=0.1)
    assert widest.log2_failure < -200


# -- what they refuse --------------------------------------------------------------------------------------------


def test_the_security_table():
    # Bossuat et al. 2024, table 5.2: ternary secret, standard deviation 3.19, 128 bits, classical.
    assert MAX_MODULUS_BITS == {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868}


@pytest.mark.parametrize(("degree", "most"), MAX_MODULUS_BITS.items())
def test_the_table_s_bound_is_sharp(degree, most):
    require_secure_ring(degree, most, 3.19)
    with pytest.raises(InsecureParameters, match=f"at most {most} bits"):
        require_secure_ring(degree, most + 1, 3.19)


def test_a_narrow_error_is_refused():
    with pytest.raises(InsecureParameters, match="narrower"):
        require_secure_ring(4096, 96, 3.18)


@BOTH
def test_a_modulus_above_the_table_is_refused(profile):
    with pytest.raises(InsecureParameters, match="below 128-bit security"):
        replace(derive(profile), modulus_bits=128)


@pytest.mark.parametrize("degree", [0, 512, 4095, 65536])
def test_a_ring_degree_outside_the_table_is_refused(degree):
    with pytest.raises(InsecureParameters, match="not in the security table"):
        replace(derive(), ring_degree=degree)


@pytest.mark.parametrize("degree", [1024, 2048])
def test_a_ring_too_small_for_the_modulus_is_refused(degree):
    with pytest.raises(InsecureParameters, match="below 128-bit security"):
        replace(derive(), ring_degree=degree)


def test_a_narrow_error_distribution_is_refused_by_the_constructor(monkeypatch):
    monkeypatch.setattr(module, "ERROR_STD", 3.0)
    with pytest.raises(InsecureParameters, match="narrower"):
        derive()


@pytest.mark.parametrize("bits", [0, 40, 52])
def test_too_little_drowning_is_refused(bits):
    with pytest.raises(InsecureParameters, match="drowning"):
        replace(derive(), drowning_bits=bits)


def test_the_drowning_bound_is_sharp():
    parameters = derive()
    least = next(bits for bits in range(61) if _drowning_ratio(parameters, bits) >= 2.0**40)
    assert replace(parameters, drowning_bits=least).drowning_ratio >= 2.0**40
    with pytest.raises(InsecureParameters, match=r"2\^40"):
        replace(parameters, drowning_bits=least - 1)


def _drowning_ratio(parameters: Parameters, bits: int) -> float:
    return 2.0**bits * math.sqrt(1 / 3) / parameters.noise_std


def test_weights_that_drowning_cannot_hide_are_refused():
    with pytest.raises(InsecureParameters, match="drowning"):
        derive(row_l2=1e7)


def test_open_weights_need_no_drowning():
    assert derive(OPEN).drowning_bits == 0


def test_a_failure_probability_above_the_bound_is_refused():
    with pytest.raises(InsecureParameters, match=r"2\^-64"):
        replace(derive(), plaintext_bits=31)


def test_open_weights_are_refused_for_their_failure_probability():
    with pytest.raises(InsecureParameters, match=r"2\^-64"):
        derive(OPEN, row_l2=40 * 2.0**24)


@given(st.integers(8, 15), st.integers(0, 2**29))
def test_a_product_that_could_wrap_is_refused(bits, beyond):
    longest = (2**29 - 1) // (2 ** (bits - 1) - 1)
    assert replace(derive(), row_l1=longest, activation_bits=bits).activation_bits == bits
    with pytest.raises(InsecureParameters, match="wrap around"):
        replace(derive(), row_l1=longest + 1 + beyond, activation_bits=bits)


@pytest.mark.parametrize("bits", [0, 7, 16, 32])
def test_activation_widths_out_of_range_are_refused(bits):
    with pytest.raises(InsecureParameters, match="Activations of"):
        replace(derive(row_l1=1), activation_bits=bits)


@pytest.mark.parametrize("columns", [-1, 0, MAX_COLUMNS + 1])
def test_columns_out_of_range_are_refused(columns):
    with pytest.raises(InsecureParameters, match="columns"):
        replace(derive(), columns=columns)


def test_the_most_columns_are_accepted():
    assert 127 * 128 * MAX_COLUMNS < 2**30
    assert derive(columns=MAX_COLUMNS).columns == 1 << 16


@pytest.mark.parametrize("rows", [0, -3])
def test_no_rows_are_refused(rows):
    with pytest.raises(InsecureParameters, match="outside"):
        replace(derive(), rows=rows)


@pytest.mark.parametrize("change", [{"modulus_bits": 95}, {"kept_bits": 48}, {"kept_bits": 32}, {"modulus_bits": 32}])
def test_odd_moduli_are_refused(change):
    with pytest.raises(InsecureParameters, match="whole 32-bit words"):
        replace(derive(), **change)


@pytest.mark.parametrize("bits", [32, 40])
def test_a_plaintext_modulus_without_room_is_refused(bits):
    with pytest.raises(InsecureParameters, match="plaintext modulus"):
        replace(derive(), plaintext_bits=bits)
