"""A model as one GGUF file, one tensor at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor, nn

from confide.disk.files import name_file
from confide.errors import ConfideError
from confide.models.ends import end_tokens
from confide.models.gguf.architectures import find_architecture
from confide.models.gguf.types import GgufType
from confide.models.gguf.vocabulary import write_ends, write_vocabulary
from confide.models.source import Source

OnProgress = Callable[[int, int], object]
"""Called with the tensors written so far, and how many there are."""


@dataclass(frozen=True)
class GgufSummary:
    """What was written. size: of the file in bytes. wider: matrices that got more bits than asked for."""

    path: Path
    type: GgufType
    tensors: int
    parameters: int
    size: int
    wider: tuple[str, ...]


_KEPT_F32: Final = ("position_embd.weight", "rope_freqs.weight")
_WHOLE: Final = (GgufType.F16, GgufType.BF16)
"""Types of single weights, not of blocks."""
_NUMPY: Final = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
_BLOCK: Final = 32
_LEVELS: Final = {
    GGMLQuantizationType.F16: 1,
    GGMLQuantizationType.Q8_0: 127,
    GGMLQuantizationType.Q5_0: 16,
    GGMLQuantizationType.Q4_0: 8,
}
_TOLERATED: Final = (1 / 4, 1 / 100)
"""How far the scale of a block may be off, and a float16 that is the largest of 32 weights."""
_HEADS: Final = ("token_embd.weight", "output.weight")


def write_gguf(source: Source, out: Path, type: GgufType, progress: OnProgress | None = None) -> GgufSummary:
    """Write a model of a known architecture with its tokenizer for llama.cpp; `out` appears when all of it is there.

    Vectors and positions stay float32. Embedding and head, to which few bits do the most harm, have 8 at least. A
    matrix whose rows are no whole blocks stays float16, and one that has weights too large or too small for its type
    gets a wider one. Raises ModelNotSupported for other models, ConfideError where
    `out` cannot be written.
    """
    architecture = find_architecture(source.config)
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[architecture.arch])
    writer.add_name(Path(source.name).name)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{type.name}"])
    if type not in _WHOLE:
        writer.add_quantization_version(GGML_QUANT_VERSION)
    architecture.write_facts(writer, source.config)
    tokenizer = source.load_tokenizer()
    write_vocabulary(writer, tokenizer, source.config.vocab_size)
    model = source.load_model()
    write_ends(writer, end_tokens(model, tokenizer))
    tensors = dict(architecture.tensors(model))
    storage = {name: _storage(name, tensor, type) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        _announce(writer, name, tensor, storage[name])
    _write(writer, tensors, storage, out, progress or (lambda *_: None))
    return GgufSummary(
        path=out,
        type=type,
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        size=out.stat().st_size,
        wider=tuple(
            name for name, kind in storage.items() if kind.name != type.name and _is_matrix(name, tensors[name])
        ),
    )


def _storage(name: str, tensor: Tensor, type: GgufType) -> GGMLQuantizationType:
    if not _is_matrix(name, tensor):
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[type.name]
    wide = (GGMLQuantizationType.F16, GGMLQuantizationType.F32)
    if name in _HEADS and type not in _WHOLE:
        kind = GGMLQuantizationType.Q8_0
    return next(one for one in (kind, *wide) if _holds(tensor, one))


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.ndim > 1 and name not in _KEPT_F32


def _holds(tensor: Tensor, kind: GGMLQuantizationType) -> bool:
    """Whether a type has room for the largest and the smallest blocks of a matrix.

    A float16 ends at 65,504, and below 1e-7 there is none but zero. It is each weight, or else the scale of a block,
    which is the largest weight of the block over the levels that the type has.
    """
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.BF16):
        return True
    block, _ = GGML_QUANT_SIZES[kind]
    if kind is not GGMLQuantizationType.F16 and tensor.shape[-1] % block:
        return False
    flat = tensor.detach().float().reshape(-1)
    blocks = nn.functional.pad(flat, (0, -len(flat) % _BLOCK)).reshape(-1, _BLOCK)
    largest = blocks.abs().amax(1) / _LEVELS[kind]
    stored = largest.half().float()
    off = (stored - largest).abs()
    return bool((off <= _TOLERATED[kind is GGMLQuantizationType.F16] * largest).all())


def _announce(writer: GGUFWriter, name: str, tensor: Tensor, kind: GGMLQuantizationType) -> None:
    """Enter a tensor into the file's table, before any is written."""
    shape = tuple(tensor.shape)
    if kind in _NUMPY:
        dtype = np.dtype(_NUMPY[kind])
        writer.add_tensor_info(name, shape, dtype, tensor.numel() * dtype.itemsize)
    else:
        stored = quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)


def _write(
    writer: GGUFWriter,
    tensors: dict[str, Tensor],
    storage: dict[str, GGMLQuantizationType],
    out: Path,
    progress: OnProgress,
) -> None:
    draft = out.with_name(f".{out.name}.draft")
    try:
        writer.write_header_to_file(draft)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (name, tensor) in enumerate(tensors.items(), 1):
            writer.write_tensor_data(_stored(tensor, storage[name]))
            progress(done, len(tensors))
        writer.flush()
        name_file(draft, out)
    except OSError as error:
        raise ConfideError(
            f"{out} cannot be written ({error.strerror}); make room, or choose another place."
        ) from error
    finally:
        writer.close()
        draft.unlink(missing_ok=True)


def _stored(tensor: Tensor, kind: GGMLQuantizationType) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    values = tensor.float().contiguous().numpy()
    return values.astype(_NUMPY[kind], copy=False) if kind in _NUMPY else quantize(values, kind)
