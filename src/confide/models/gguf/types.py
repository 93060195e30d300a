"""The types a GGUF file can be written in here. Light, so that the command line can name them."""

from enum import StrEnum


class GgufType(StrEnum):
    """How matrices are stored: as float16 or bfloat16, or in blocks that share a float16 scale.

    The blocks of q*_0 are 32 weights, and those of the K types 256 with finer scales inside. `_m` mixes two or three
    of these.
    """

    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q6_K = "q6_k"
    Q5_K_M = "q5_k_m"
    Q5_0 = "q5_0"
    Q4_K_M = "q4_k_m"
    Q4_0 = "q4_0"
