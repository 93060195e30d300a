"""The manifest of a package folder: what kind it is, which model it belongs to, and its layer table.

Reading it needs no tensor library, so that light clients can. Everything read is bounded and typed.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Final

import msgspec

from confide.errors import InvalidPackage
from confide.files import replace_file
from confide.rlwe.parameters import MAX_ACTIVATION_BITS, MAX_COLUMNS, MIN_ACTIVATION_BITS, Parameters, Profile

MANIFEST: Final = "manifest.json"
SHELL_KIND: Final = "hybrid-shell"
SERVER_KIND: Final = "hybrid-server"
_MAX_MANIFEST_BYTES = 16 << 20

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Rows = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One linear layer: its module's full name and its outputs."""

    name: Name
    rows: Rows


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Layers that share an input of `columns` integers. The norms stand in the server's manifest only."""

    name: Name
    layers: Annotated[tuple[Layer, ...], msgspec.Meta(min_length=1, max_length=64)]
    columns: Annotated[int, msgspec.Meta(ge=1, le=MAX_COLUMNS)]
    activation_bits: Annotated[int, msgspec.Meta(ge=MIN_ACTIVATION_BITS, le=MAX_ACTIVATION_BITS)]
    row_l1: Annotated[int, msgspec.Meta(ge=0, le=1 << 24)] | None = None
    row_l2: Annotated[float, msgspec.Meta(ge=0, le=1 << 24)] | None = None

    @property
    def rows(self) -> int:
        """Outputs of all layers together."""
        return sum(layer.rows for layer in self.layers)

    def parameters(self, profile: Profile) -> Parameters:
        """The encryption parameters; their constructor refuses insecure ones."""
        return Parameters.for_shape(
            profile,
            rows=self.rows,
            columns=self.columns,
            activation_bits=self.activation_bits,
            row_l1=self.row_l1,
            row_l2=self.row_l2,
        )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `manifest.json` says. model_digest: hexadecimal SHA-256 over all int8 matrices and their names."""

    format: Annotated[int, msgspec.Meta(ge=1, le=1)]
    kind: Annotated[str, msgspec.Meta(pattern="^(hybrid-shell|hybrid-server)$")]
    profile: Profile
    model_type: Name
    model_digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    groups: Annotated[tuple[Group, ...], msgspec.Meta(min_length=1, max_length=1 << 14)]

    def table_digest(self) -> bytes:
        """SHA-256 over what shell and server share of the layer table; equal for the two."""
        table = [
            (group.name, [(layer.name, layer.rows) for layer in group.layers], group.columns, group.activation_bits)
            for group in self.groups
        ]
        names = [group.parameters(self.profile).name for group in self.groups]
        return hashlib.sha256(msgspec.msgpack.encode((self.profile, self.model_type, table, names))).digest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`."""
    replace_file(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")


def read_manifest(folder: Path, kind: str | None = None) -> Manifest:
    """Read a package's manifest, which must be of `kind` where that is given; InvalidPackage for anything else."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise InvalidPackage(
            f"{folder} holds no {MANIFEST}; give the client or server folder that `confide split` wrote."
        ) from error
    if len(content) > _MAX_MANIFEST_BYTES:
        raise InvalidPackage(f"{path} is too large to be a manifest; split the model again.")
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidPackage(f"{path} is not a manifest of this version of Confide; split the model again.") from error
    if kind is not None and manifest.kind != kind:
        raise InvalidPackage(f"{folder} is a {manifest.kind} package and a {kind} one is needed; give the other folder.")
    return manifest
