"""The layer table of a package folder: what `manifest.json` may hold, how it is read and what both sides compare.

Everything in it is public to both sides. Needs neither torch nor transformers: a tool that only looks reads it in
milliseconds.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from io import BufferedReader
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Final, Literal, NoReturn

import msgspec

from confide.disk.files import FileTooLarge, read_bounded
from confide.errors import InsecureParameters, InvalidPackage
from confide.rlwe.parameters import MAX_ACTIVATION_BITS, MAX_COLUMNS, MIN_ACTIVATION_BITS, Parameters, Profile

FORMAT: Final = 3
MANIFEST_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 16 << 20
MAX_GROUPS: Final = 1 << 16
MAX_GROUP_LAYERS: Final = 64
MAX_ROWS: Final = 1 << 20
MAX_SUPERSEDED: Final = 256
MAX_FILES: Final = MAX_GROUPS + (1 << 10)
HINT_FOLDER: Final = "hint"
MASK_TENSOR: Final = "u"
"""In a server's file of a group, beside its layers' matrices: U of `rlwe.hint`."""
_CODE: Final = frozenset({".py", ".pyc", ".pyd", ".pyi", ".so", ".pth", ".dll", ".dylib"})

Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.\-]{1,256}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
FileName = Annotated[str, msgspec.Meta(pattern=r"\A([A-Za-z0-9_][A-Za-z0-9_. \-]{0,127}(/(?!\Z)|\Z)){1,4}\Z")]
"""A path inside the package: no part begins with a dot, so none leads out of it."""
Rows = Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS)]
Columns = Annotated[int, msgspec.Meta(ge=1, le=MAX_COLUMNS)]
ActivationBits = Annotated[int, msgspec.Meta(ge=MIN_ACTIVATION_BITS, le=MAX_ACTIVATION_BITS)]
PlaintextBits = Annotated[int, msgspec.Meta(ge=27, le=32)]
EntropyBits = Annotated[float, msgspec.Meta(ge=1, le=8 * MAX_COLUMNS)]
FirstColumn = Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]
Version = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.+\-]{0,64}\Z")]
Epoch = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class PackageKind(StrEnum):
    """What a package folder holds."""

    SHELL = "hybrid-shell"
    SERVER = "hybrid-server"
    SEALED = "sealed-model"
    DATA = "sealed-data"
    CORPUS = "sealed-corpus"
    ADAPTER = "sealed-adapter"
    GUARD = "guard"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a package's JSON files are made of: nothing in them is unknown, nothing changes."""


class _Kind(msgspec.Struct, frozen=True):
    """The one field that the manifests of all kinds share."""

    kind: PackageKind


def read_kind(folder: Path | str) -> PackageKind:
    """What a folder says it is; who says so is not checked. InvalidPackage where it is no package."""
    path = Path(folder) / MANIFEST_NAME
    try:
        return msgspec.json.decode(read_package_file(path, MAX_MANIFEST_BYTES), type=_Kind).kind
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidPackage(
            f"{path} does not say what kind of package this is; give a folder that `confide split` or `confide seal` "
            "made."
        ) from error


def safe_name(name: str) -> str:
    """A name of the characters that a manifest may hold."""
    return re.sub(r"[^A-Za-z0-9_.\-]", "-", name)[:256] or "unnamed"


def group_name(index: int) -> str:
    """The path, in a server's package, of the matrices of the group of this index."""
    return f"group-{index:05d}.safetensors"


def hint_name(index: int) -> str:
    """The path, in a shell, of the hint of the group of this index."""
    return f"{HINT_FOLDER}/group-{index:05d}.bin"


class Layer(Record, frozen=True):
    """A protected layer: its module name, and how many outputs it has."""

    name: Name
    rows: Rows


class Group(Record, frozen=True):
    """Layers that share an input; their matrices are stacked in this order. Of `columns` values, all or a part.

    first_column: more than 0 in a group that goes on where the one before it ends, with the same layers: for rows that
    no plaintext modulus has room for together. The products of such groups are added.
    plaintext_bits: of the group's encryption, as the norms of its rows allow. entropy_bits: of the row that has the
    least, see `entropy.row_entropy`: after so many bits of answers its weights could be solved for.
    """

    name: Name
    layers: Annotated[tuple[Layer, ...], msgspec.Meta(min_length=1, max_length=MAX_GROUP_LAYERS)]
    columns: Columns
    activation_bits: ActivationBits
    plaintext_bits: PlaintextBits
    entropy_bits: EntropyBits
    first_column: FirstColumn = 0

    @property
    def rows(self) -> int:
        """Outputs of all its layers together."""
        return sum(layer.rows for layer in self.layers)

    def parameters(self, profile: Profile) -> Parameters:
        """The group's encryption parameters.

        Raises InsecureParameters, though never for a group that came through `read_manifest` with this profile.
        """
        return Parameters(
            profile=profile,
            rows=self.rows,
            columns=self.columns,
            plaintext_bits=self.plaintext_bits,
            activation_bits=self.activation_bits,
        )


class Provenance(Record, frozen=True):
    """Where a release comes from, as its owner says.

    version: what people call it. supersedes: the releases whose place it takes, see `Release.digest`. adapter: SHA-256
    of the adapter that was merged into the model's weights, over names and content of its files; empty without one.
    """

    version: Version = ""
    supersedes: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_SUPERSEDED)] = ()
    adapter: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""


UNNAMED: Final = Provenance()


class Manifest(Record, frozen=True):
    """A package's layer table. `model_digest` names the int8 weights: see ModelDigest.

    files: SHA-256 of every file that belongs to the package, but for this one and the signature over it. epoch: of the
    public polynomials, raised to have others. hint: SHA-256 of every hint file, by `hint_name`; empty where none was
    made. The hint itself may lie elsewhere.
    """

    format: Literal[3]
    kind: PackageKind
    profile: Profile
    model_type: Name
    model_digest: Digest
    groups: Annotated[tuple[Group, ...], msgspec.Meta(min_length=1, max_length=MAX_GROUPS)]
    files: Annotated[dict[FileName, Digest], msgspec.Meta(max_length=MAX_FILES)]
    epoch: Epoch = 0
    hint: Annotated[dict[FileName, Digest], msgspec.Meta(max_length=MAX_GROUPS)] = {}
    provenance: Provenance = UNNAMED

    def table_digest(self) -> bytes:
        """SHA-256 over what a shell and its server's package must agree on: equal for the two, 32 bytes."""
        table = [
            [
                group.name,
                [[layer.name, layer.rows] for layer in group.layers],
                group.first_column,
                group.columns,
                group.activation_bits,
                group.plaintext_bits,
                group.entropy_bits,
                group.parameters(self.profile).name,
            ]
            for group in self.groups
        ]
        content = msgspec.json.encode(["confide layer table 3", self.profile, self.epoch, table])
        return hashlib.sha256(content).digest()

    def for_shell(self) -> "Manifest":
        """The table of the client's half, for a server's; its files are yet to come."""
        return msgspec.structs.replace(self, kind=PackageKind.SHELL, files={})

    def require_counterpart(self, other: "Manifest") -> None:
        """Raise InvalidPackage unless `other` is the other half of the same split."""
        same_model = self.model_digest == other.model_digest and self.table_digest() == other.table_digest()
        if self.kind is other.kind or not same_model:
            raise InvalidPackage(
                "The two folders were not made by the same split; use the client and the server folder of one."
            )


class ModelDigest:
    """SHA-256 over names, shapes and bytes of int8 matrices, in the layer table's order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"confide int8 matrices 1\0")

    def add(self, name: str, rows: int, columns: int, content: memoryview, first_column: int = 0) -> None:
        """Take in one layer's matrix, or a part of it from a column on, row by row: rows * columns bytes."""
        # The JSON list ends itself and the shape says how many bytes follow, so no two models read alike.
        self._hash.update(msgspec.json.encode([name, rows, columns, first_column]))
        self._hash.update(content)

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return self._hash.hexdigest()


def joined(groups: Sequence[Group]) -> Iterator[tuple[int, tuple[Group, ...]]]:
    """Groups that are parts of one matrix, together: the index of the first in the layer table, and all of them."""
    start = 0
    for end in range(1, len(groups) + 1):
        if end == len(groups) or not groups[end].first_column:
            yield start, tuple(groups[start:end])
            start = end


def _fit_together(parts: Sequence[Group]) -> bool:
    """Whether groups are the parts of one matrix, each beginning where the last ends."""
    ends = accumulate((part.columns for part in parts), initial=0)
    return all(
        part.first_column == end and part.layers == parts[0].layers and part.activation_bits == parts[0].activation_bits
        for part, end in zip(parts, ends, strict=False)
    )


def write_manifest(folder: Path, manifest: Manifest) -> bytes:
    """Write a package's layer table; the bytes are what its owner signs."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (folder / MANIFEST_NAME).write_bytes(content)
    return content


def read_manifest(folder: Path | str) -> Manifest:
    """A package's layer table, whoever wrote it. Raises InvalidPackage for whatever is wrong with it."""
    path = Path(folder) / MANIFEST_NAME
    return parse_manifest(path, read_package_file(path, MAX_MANIFEST_BYTES))


def parse_manifest(path: Path, content: bytes) -> Manifest:
    """The layer table in the content of the file `path`. Raises InvalidPackage for whatever is wrong with it."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        _refuse(path, str(error), error)
    _check(path, manifest)
    return manifest


def open_file(path: Path) -> BufferedReader:
    """A package's file. OSError also for a pipe or a device, which may never end."""
    _require_file(path)
    return path.open("rb")


def read_package_file(path: Path, limit: int) -> bytes:
    """The bytes of a package's file. InvalidPackage where it is missing or larger than `limit`."""
    try:
        _require_file(path)
        return read_bounded(path, limit)
    except FileTooLarge as error:
        raise InvalidPackage(
            f"{path} is larger than its {limit:,} bytes at most; run `confide split` again."
        ) from error
    except OSError as error:
        raise InvalidPackage(
            f"{path} cannot be read; give a folder that `confide split` or `confide seal` made."
        ) from error


def _require_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a file")


def _check(path: Path, manifest: Manifest) -> None:
    if manifest.kind not in (PackageKind.SHELL, PackageKind.SERVER):
        _refuse(path, "what is sealed has none")
    names = [group.name for group in manifest.groups]
    layers = [layer.name for _, (first, *_) in joined(manifest.groups) for layer in first.layers]
    if len(set(names)) < len(names) or len(set(layers)) < len(layers):
        _refuse(path, "a group or layer is named twice")
    if not all(_fit_together(parts) for _, parts in joined(manifest.groups)):
        _refuse(path, "the parts of a group do not fit together")
    if MASK_TENSOR in layers:
        _refuse(path, f"no layer may be named {MASK_TENSOR}")
    if manifest.hint and manifest.hint.keys() != set(map(hint_name, range(len(manifest.groups)))):
        _refuse(path, "its hint is not that of its groups")
    if manifest.hint and manifest.profile is Profile.OPEN_WEIGHTS:
        _refuse(path, "open weights have no hint")
    if manifest.kind is PackageKind.SHELL and (code := sorted(filter(_is_code, manifest.files))):
        _refuse(path, f"a shell holds no code, and {code[0]} is")
    for group in manifest.groups:
        try:
            group.parameters(manifest.profile)
        except InsecureParameters as error:
            _refuse(path, f"group {group.name}: {error}", error)


def _is_code(name: str) -> bool:
    return Path(name).suffix.lower() in _CODE


def _refuse(path: Path, reason: str, cause: BaseException | None = None) -> NoReturn:
    # What a damaged file says about itself goes to a terminal: printable and short.
    reason = re.sub(r"[^\x20-\x7e]", "?", reason)[:300].rstrip(". ")
    raise InvalidPackage(f"{path} is not a valid layer table: {reason}. Run `confide split` again.") from cause
