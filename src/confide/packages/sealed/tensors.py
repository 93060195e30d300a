"""Safetensors files straight into tensors: each is allocated, then decrypted into.

The layout is that of https://huggingface.co/docs/safetensors: the header's length (8 bytes, little-endian), the header
(JSON), then the tensors without gaps.
"""

import math
import struct
from pathlib import Path
from typing import Annotated, Final

import msgspec
import torch
from torch import Tensor

from confide.errors import InvalidPackage
from confide.packages.sealed.package import UnlockedPackage
from confide.packages.sealed.reader import OnChunk, SealedReader
from confide.packages.sealed.regions import Regions

_LENGTH: Final = struct.Struct("<Q")
_MAX_HEADER: Final = 100_000_000  # the format's own limit
_METADATA: Final = "__metadata__"

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor in a header. data_offsets: its first byte and the one after its last, counted from the header's end."""

    dtype: str
    shape: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=16)]
    data_offsets: tuple[_Count, _Count]

    @property
    def bytes(self) -> int:
        """How many it takes."""
        return self.data_offsets[1] - self.data_offsets[0]


Layout = dict[str, TensorEntry]
"""Tensors by name, in the order in which they lie in the file."""


def header_length(start: bytes) -> int:
    """Bytes before the first tensor, from a file's first 8 bytes. ValueError for an impossible one."""
    (length,) = _LENGTH.unpack(start)
    if length > _MAX_HEADER:
        raise ValueError(f"a header of {length} bytes is too long")
    return _LENGTH.size + int(length)


def parse_layout(header: bytes, data_bytes: int) -> Layout:
    """The tensors of a header. ValueError unless they fill the bytes after it without gap or overlap."""
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop(_METADATA, None)
        tensors = {name: msgspec.json.decode(entry, type=TensorEntry) for name, entry in entries.items()}
    except RecursionError:
        raise ValueError("the header is nested too deep") from None
    layout = dict(sorted(tensors.items(), key=lambda item: item[1].data_offsets))
    place = 0
    for name, entry in layout.items():
        if entry.dtype not in DTYPES:
            raise ValueError(f"the type {entry.dtype} of {name} is not supported")
        if entry.data_offsets[0] != place or entry.bytes != math.prod(entry.shape) * DTYPES[entry.dtype].itemsize:
            raise ValueError(f"the tensor {name} does not lie where it should")
        place = entry.data_offsets[1]
    if place != data_bytes:
        raise ValueError("the tensors do not fill the file")
    return layout


def file_layout(path: Path) -> Layout:
    """The tensors of a plain file. OSError and ValueError where it has none."""
    with path.open("rb") as file:
        length = header_length(file.read(_LENGTH.size))
        return parse_layout(file.read(length - _LENGTH.size), path.stat().st_size - length)


def allocate(layout: Layout) -> tuple[dict[str, Tensor], list[memoryview]]:
    """Uninitialised tensors on the CPU, and writable views of their bytes in the same order."""
    flat = {name: torch.empty(entry.bytes, dtype=torch.uint8) for name, entry in layout.items()}
    views = [tensor.numpy().data for tensor in flat.values()]
    return {name: flat[name].view(DTYPES[entry.dtype]).view(entry.shape) for name, entry in layout.items()}, views


def read_tensors(package: UnlockedPackage, on_chunk: OnChunk | None = None) -> dict[str, Tensor]:
    """Every tensor of a sealed safetensors model by its name, on the CPU, in its own type.

    Raises InvalidPackage where a file is not what its owner signed, or is no safetensors file.
    """
    tensors: dict[str, Tensor] = {}
    for name in package.manifest.weight_files():
        try:
            found = _read_file(package.file(name), on_chunk)
        except (ValueError, struct.error) as error:
            raise InvalidPackage(f"{name} is not a sound safetensors file: {error}; seal the model again.") from error
        if twice := tensors.keys() & found.keys():
            raise InvalidPackage(f"The tensor {min(twice)} is in two files of the model; seal a sound one.")
        tensors |= found
    return tensors


def _read_file(reader: SealedReader, on_chunk: OnChunk | None) -> dict[str, Tensor]:
    length = header_length(reader.head(_LENGTH.size))
    early = reader.head(length)
    tensors, views = allocate(parse_layout(early[_LENGTH.size :], reader.size - length))
    header = bytearray(length)
    reader.read_into(Regions([memoryview(header), *views]), on_chunk)
    if header != early:
        raise ValueError("it changed while it was read")
    return tensors
