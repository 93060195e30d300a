"""Confide: private language models on machines nobody has to trust."""

from typing import TYPE_CHECKING

from confide.errors import ConfideError
from confide.extras import named_extras
from confide.version import VERSION

if TYPE_CHECKING:
    from confide.client.connect import connect
    from confide.hybrid.model import HybridModel

__all__ = ["ConfideError", "HybridModel", "connect"]
__version__ = VERSION


def __getattr__(name: str) -> object:
    # transformers takes seconds to import, and the command line's help should not wait for it.
    if name == "HybridModel":
        with named_extras():
            from confide.hybrid.model import HybridModel

        return HybridModel
    if name == "connect":
        from confide.client.connect import connect

        return connect
    raise AttributeError(f"module 'confide' has no attribute {name!r}")
