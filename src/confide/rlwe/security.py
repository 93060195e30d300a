"""How large a ciphertext modulus each ring degree allows at 128-bit security."""

from confide.errors import InsecureParameters

# Largest log2 of the modulus for a ternary secret and an error of standard deviation 3.19 at 128-bit classical
# security. Source: Bossuat, Cammarota, Chillotti, Curtis, Dai, Gong, Hales, Kim, Kumar, Lee, Lu, Maple, Pedrouzo-
# Ulloa, Rohloff, Ruiz, Sardar, Yasuda: "Security Guidelines for Implementing Homomorphic Encryption", IACR
# Communications in Cryptology 1(4), 2024 (ePrint 2024/463), table 5.2.
MAX_MODULUS_BITS = {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868}

TABLE_ERROR_STD = 3.19
"""The error's standard deviation for which the table was computed; a wider error is at least as hard."""


def require_secure_ring(ring_degree: int, modulus_bits: int, error_std: float) -> None:
    """Raise InsecureParameters unless the table allows this modulus at this ring degree."""
    if ring_degree not in MAX_MODULUS_BITS:
        known = ", ".join(map(str, MAX_MODULUS_BITS))
        raise InsecureParameters(f"Ring degree {ring_degree} is not in the security table; use one of {known}.")
    if modulus_bits > MAX_MODULUS_BITS[ring_degree]:
        raise InsecureParameters(
            f"A modulus of {modulus_bits} bits at ring degree {ring_degree} is below 128-bit security; "
            f"use at most {MAX_MODULUS_BITS[ring_degree]} bits or a larger ring degree."
        )
    if error_std < TABLE_ERROR_STD:
        raise InsecureParameters(
            f"An error of standard deviation {error_std:.2f} is narrower than the {TABLE_ERROR_STD} "
            "that the security table assumes; use a wider one."
        )
