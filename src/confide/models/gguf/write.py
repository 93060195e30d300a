"""A model as one GGUF file, one tensor at a time."""

import hashlib
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Final

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from confide.disk.files import name_file, replace_file
from confide.errors import ConfideError
from confide.mapped import Mapped, one_by_one
from confide.models.calibration import collect_squares, cut
from confide.models.ends import end_tokens
from confide.models.gguf.architectures import Architecture, find_architecture
from confide.models.gguf.ggml import Floats, quantize_blocks
from confide.models.gguf.mixture import WHOLE, Mixture, is_matrix
from confide.models.gguf.types import GgufType
from confide.models.gguf.vocabulary import name_for, write_ends, write_vocabulary
from confide.models.linear import named_linear
from confide.models.source import Source

OnProgress = Callable[[int, int], object]
"""Called with the tensors written so far, and how many there are."""


@dataclass(frozen=True)
class GgufSummary:
    """What was written.

    size: of the file in bytes. context: tokens of prompt and answer that it is for. wider: the types of the matrices
    that got more bits than the mixture has for them.
    """

    path: Path
    type: GgufType
    tensors: int
    parameters: int
    size: int
    context: int
    wider: dict[str, str]


_Asked = tuple[Tensor, GGMLQuantizationType, Floats | None]
"""A tensor of the model, its type in the file, and what errors in its columns cost, where that is known."""
_Content = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
_SHA256_BYTES: Final = 32
_NUMPY: Final = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
_READ_ONLY: Final = (GGMLQuantizationType.Q6_K, GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q4_K)
"""What the `gguf` library does not write."""
_WEIGHED: Final = (GgufType.Q6_K, GgufType.Q5_K_M, GgufType.Q5_0, GgufType.Q4_K_M, GgufType.Q4_0)
"""Types whose scales ggml chooses by what errors cost."""


def write_gguf(
    source: Source,
    out: Path,
    type: GgufType,
    progress: OnProgress | None = None,
    texts: Sequence[Tensor] = (),
    mapped: Mapped = one_by_one,
    keep: bool = False,
) -> GgufSummary:
    """Write a model of a known architecture with its tokenizer for llama.cpp; `out` appears when all of it is there.

    See `Mixture` for which tensor gets which type. texts: token ids, int64 (..., tokens), on which the model is run to
    learn how much an error in each column of its matrices costs. mapped: what makes tensors of the file of the model's.
    keep: what is made in a folder beside `out` until all of it is, so that a run that was stopped is gone on with.
    Raises ModelNotSupported for other models, ConfideError where `out` cannot be written and where texts are given for
    a type that makes no use of them, NotInstalled where the type needs xllamacpp.
    """
    if texts and type not in _WEIGHED:
        raise ConfideError(
            f"A text has nothing to tell about {type}, which rounds all weights alike; leave --calibrate out, or "
            f"choose {', '.join(_WEIGHED)}."
        )
    architecture = find_architecture(source.config)
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[architecture.arch])
    tokenizer = source.load_tokenizer()
    writer.add_name(name_for(tokenizer, Path(source.name).name))
    writer.add_file_type(LlamaFileType[f"MOSTLY_{type.name}"])
    if type not in WHOLE:
        writer.add_quantization_version(GGML_QUANT_VERSION)
    architecture.write_facts(writer, source.config)
    write_vocabulary(writer, tokenizer, source.config.vocab_size)
    model = source.load_model()
    write_ends(writer, end_tokens(model, tokenizer))
    tensors = dict(architecture.tensors(model))
    importance = _importance(model, architecture, texts) if texts else {}
    mixture = Mixture(
        type=type,
        arch=architecture.arch,
        layers=model.config.num_hidden_layers,
        shared=_shares_heads(model.config),
        names=tensors.keys(),
    )
    storage = {name: mixture.stored(name, tensor) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        _announce(writer, name, tensor, storage[name])
    asked = [(tensor, storage[name], importance.get(name)) for name, tensor in tensors.items()]
    made = out.with_name(f".{out.name}.tensors")
    contents = _kept(asked, made, mapped) if keep else mapped(_stored, asked)
    _write(writer, contents, len(tensors), out, progress or (lambda *_: None))
    shutil.rmtree(made, ignore_errors=True)
    return GgufSummary(
        path=out,
        type=type,
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        size=out.stat().st_size,
        context=architecture.context(source.config),
        wider={
            name: kind.name.lower()
            for name, kind in storage.items()
            if is_matrix(name, tensors[name]) and kind is not mixture.planned(name, tensors[name].shape[-1])
        },
    )


def _shares_heads(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "num_key_value_heads", config.num_attention_heads) != config.num_attention_heads)


def _importance(model: PreTrainedModel, architecture: Architecture, texts: Sequence[Tensor]) -> dict[str, Floats]:
    """By the file's names of matrices: the mean squares of what each column is multiplied by, 1 on average.

    None is less than a millionth, so that no column is free. Head and embedding have none, as in llama.cpp's imatrix.
    """
    head = model.get_output_embeddings()
    layers = {layer: module for layer, module in named_linear(model).items() if module is not head}
    squares = collect_squares(model, layers, cut(model, texts))
    names = architecture.names(model)
    return {
        names[f"{layer}.weight"]: (mean / mean.mean().clamp_min(1e-30)).clamp_min(1e-6).numpy()
        for layer, mean in squares.items()
    }


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
    contents: Iterable[_Content],
    count: int,
    out: Path,
    progress: OnProgress,
) -> None:
    draft = out.with_name(f".{out.name}.draft")
    try:
        writer.write_header_to_file(draft)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, content in enumerate(contents, 1):
            writer.write_tensor_data(content)
            progress(done, count)
        writer.flush()
        name_file(draft, out)
    except OSError as error:
        raise ConfideError(
            f"{out} cannot be written ({error.strerror}); make room, or choose another place."
        ) from error
    finally:
        writer.close()
        draft.unlink(missing_ok=True)


def _kept(asked: Sequence[_Asked], folder: Path, mapped: Mapped) -> Iterator[_Content]:
    """The tensors in their types, each found in the folder, or made and put there: by what it is made of."""
    folder.mkdir(exist_ok=True)
    paths = [folder / _digest(one) for one in asked]
    missing = [not _whole(path) for path in paths]
    made = mapped(_stored, compress(asked, missing))
    for path, new in zip(paths, missing, strict=True):
        if new:
            content = io.BytesIO()
            np.save(content, next(made), allow_pickle=False)
            packed = content.getvalue()
            replace_file(path, hashlib.sha256(packed).digest() + packed)
        yield np.load(io.BytesIO(path.read_bytes()[_SHA256_BYTES:]), allow_pickle=False)


def _digest(asked: _Asked) -> str:
    tensor, kind, importance = asked
    hashed = hashlib.sha256(f"{kind.name} {tensor.dtype} {tuple(tensor.shape)} {importance is None}\n".encode())
    hashed.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    if importance is not None:
        hashed.update(np.ascontiguousarray(importance).data)
    return hashed.hexdigest()


def _whole(path: Path) -> bool:
    """Whether it is a file as it was written."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    return hashlib.sha256(content[_SHA256_BYTES:]).digest() == content[:_SHA256_BYTES]


def _stored(asked: _Asked) -> _Content:
    """A tensor as the file has it."""
    tensor, kind, importance = asked
    values = tensor.float().contiguous().numpy()
    if kind in _NUMPY:
        return values.astype(_NUMPY[kind], copy=False)
    if kind in _READ_ONLY or importance is not None:
        return quantize_blocks(values, kind, importance)
    return quantize(values, kind)
