"""The smallest shell that says it has a hint, for tests of how hints are fetched."""

import hashlib
from typing import Final

from confide.packages.hint import hint_bytes
from confide.packages.manifest import FORMAT, Group, Layer, Manifest, PackageKind, hint_name
from confide.rlwe.parameters import Profile

_GROUP: Final = Group("g", (Layer("l", 1),), 8, 15, 30, 64.0)
HINT_FILE: Final = hint_name(0)
HINT: Final = bytes(hint_bytes(_GROUP))
"""The content of that file."""
SHELL: Final = Manifest(
    FORMAT,
    PackageKind.SHELL,
    Profile.PRIVATE_WEIGHTS,
    "small",
    "ab" * 32,
    (_GROUP,),
    {},
    hint={HINT_FILE: hashlib.sha256(HINT).hexdigest()},
)
