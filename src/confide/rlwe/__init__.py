"""Exact homomorphic linear algebra on integers. Knows no language model, no network and no file."""

from typing import TYPE_CHECKING, Final

from confide.lazy import public_names

if TYPE_CHECKING:
    from confide.rlwe.freivalds import AnswerCheck, check_vector, secret_vector
    from confide.rlwe.hint import HintMaker, HintTile
    from confide.rlwe.online import Ahead, GroupMatrix
    from confide.rlwe.open_weights import open_pads
    from confide.rlwe.pads import mask, unmask
    from confide.rlwe.parameters import Norms, Parameters, Profile, require_noise_fits
    from confide.rlwe.public import PublicSeed
    from confide.rlwe.streams import fresh_key
    from confide.rlwe.tokens import TokenSecrets

_MODULES: Final = {
    "Ahead": "online",
    "AnswerCheck": "freivalds",
    "GroupMatrix": "online",
    "HintMaker": "hint",
    "HintTile": "hint",
    "Norms": "parameters",
    "Parameters": "parameters",
    "Profile": "parameters",
    "PublicSeed": "public",
    "TokenSecrets": "tokens",
    "check_vector": "freivalds",
    "fresh_key": "streams",
    "mask": "pads",
    "open_pads": "open_weights",
    "require_noise_fits": "parameters",
    "secret_vector": "freivalds",
    "unmask": "pads",
}

__all__ = [
    "Ahead",
    "AnswerCheck",
    "GroupMatrix",
    "HintMaker",
    "HintTile",
    "Norms",
    "Parameters",
    "Profile",
    "PublicSeed",
    "TokenSecrets",
    "check_vector",
    "fresh_key",
    "mask",
    "open_pads",
    "require_noise_fits",
    "secret_vector",
    "unmask",
]
__getattr__ = public_names(__name__, _MODULES)
