"""The types a GGUF file can be written in here. Light, so that the command line can name them."""

from enum import StrEnum


class GgufType(StrEnum):
    """How matrices are stored: as float16 or bfloat16, or in blocks of 32 weights with a float16 scale."""

    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q5_0 = "q5_0"
    Q4_0 = "q4_0"
