"""How a next token may be chosen: what of people's temperatures and thresholds engines can compute with."""

from typing import Any, Final

from confide.errors import RequestRefused

SMALLEST_TEMPERATURE: Final = 1e-5
"""Below, logits divided by it leave the numbers that engines compute with; people who ask for it mean greedy."""


def generation_options(
    temperature: float | None = None, top_k: int | None = None, top_p: float | None = None
) -> dict[str, Any]:
    """Options for transformers' `generate`: greedy without any, and below SMALLEST_TEMPERATURE.

    RequestRefused for a temperature that is negative or no number, a top_k below 1, and a top_p that is no share.
    """
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise RequestRefused("A temperature is a number from 0, which is greedy; give one such as 0.8.", "temperature")
    if top_k is not None and top_k < 1:
        raise RequestRefused("top_k counts tokens to choose among, 1 at least; give more, or none.", "top_k")
    if top_p is not None and not 0 < top_p <= 1:
        raise RequestRefused("top_p is a probability above 0 and up to 1; give one such as 0.9.", "top_p")
    if temperature is not None and temperature < SMALLEST_TEMPERATURE:
        return {"do_sample": False}
    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = {name: value for name, value in chosen.items() if value is not None}
    return {"do_sample": bool(given), **given}
