"""Owner keys for tests: the same in every process that a test starts."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.packages.manifest import read_manifest
from confide.packages.owner import OwnerKey
from confide.packages.signing import sign_package


def owner_key(number: int) -> OwnerKey:
    return OwnerKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


OWNER, STRANGER = owner_key(1), owner_key(2)


def sign_again(folder: Path, owner: OwnerKey = OWNER) -> None:
    """Have the owner sign a package as it lies there, so that what is wrong with it is found by others."""
    sign_package(folder, read_manifest(folder), owner)
