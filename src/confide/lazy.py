"""Public names of a package, imported at their first use: transformers and torch take seconds to import, and neither
the command line's help nor a client that needs no tensor library should wait for them.
"""

import importlib
import sys
from collections.abc import Callable, Mapping

from confide.extras import named_extras


def public_names(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """A package's `__getattr__` (PEP 562). modules: where in the package each of its public names is defined."""

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with named_extras():
            value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
