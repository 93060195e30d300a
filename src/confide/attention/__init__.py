"""A transformer's attention block evaluated on CKKS ciphertexts alone, without round trips."""

from typing import TYPE_CHECKING, Final

from confide.lazy import public_names

if TYPE_CHECKING:
    from confide.attention.gpt2 import EncryptedAttentionGPT2
    from confide.attention.server import AttentionServer

_MODULES: Final = {
    "AttentionServer": "server",
    "EncryptedAttentionGPT2": "gpt2",
}

__all__ = [
    "AttentionServer",
    "EncryptedAttentionGPT2",
]
__getattr__ = public_names(__name__, _MODULES)
