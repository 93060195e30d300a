"""What a GGUF model says of the next token at each position of a text, by llama.cpp, which serves it too.

xllamacpp's server gives no probabilities of tokens that it did not choose, but the library that it brings exports
llama.cpp's public C interface (llama.h), which is called here through ctypes. That is nothing xllamacpp promises, so
what is asked of a context is compared with what it is, and a batch with what it has to look like.
"""

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import torch
import xllamacpp
from torch import Tensor

from confide.enclave.engines.gguf_engine import GRAIN, read_gguf, tokenizer_of
from confide.errors import EngineError

_TOGETHER: Final = 256
"""Tokens that are computed at a time, and whose logits llama.cpp holds."""
_WORDS: Final = 256
"""More than either struct of parameters has; whoever is given more by value reads what is its own."""
N_CTX, N_BATCH, N_UBATCH = 0, 1, 2  # struct llama_context_params begins with these
_Log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class _Parameters(ctypes.Structure):
    """struct llama_model_params or llama_context_params, as its defaults fill it."""

    _fields_ = (("words", c_uint32 * _WORDS),)


class _Batch(ctypes.Structure):
    """struct llama_batch."""

    _fields_ = (
        ("tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


_CALLS: Final = {
    "llama_log_set": (None, [_Log, c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_Parameters, []),
    "llama_context_default_params": (_Parameters, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, _Parameters]),
    "llama_init_from_model": (c_void_p, [c_void_p, _Parameters]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_n_batch": (c_uint32, [c_void_p]),
    "llama_n_ubatch": (c_uint32, [c_void_p]),
    "llama_n_seq_max": (c_uint32, [c_void_p]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_batch_init": (_Batch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (c_int32, [c_void_p, _Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_free": (None, [c_void_p]),
    "llama_model_free": (None, [c_void_p]),
}


_say_nothing: Final = _Log(lambda _level, _text, _data: None)
"""What llama.cpp logs tells of the model."""


class GgufLogits:
    """A GGUF file, which may be a memfd's path under /proc/self/fd, loaded to be asked for its logits. To be closed.

    longest: tokens that the model was made for. version, settings: of what computes, as a statement has them.
    """

    def __init__(self, path: Path, context: int | None = None) -> None:
        """context: tokens of a window at most, no more than the model's own. EngineError where it cannot be loaded."""
        file = read_gguf(path)
        self.tokenizer, self.longest = tokenizer_of(path, file), file.context
        self._library = find_library()
        threads = len(os.sched_getaffinity(0))
        self.version = f"xllamacpp {xllamacpp.__version__}"
        self.settings = {"dtype": file.quantization, "threads": str(threads), "cpu": xllamacpp.get_system_info()}
        self._model = self._context = None
        self._room = self._vocabulary = 0
        self._batch = _Batch()
        try:
            self._load(path, min(context or file.context, file.context), threads)
        except BaseException:
            self.close()
            raise

    def __call__(self, window: Sequence[int]) -> Tensor:
        """window: L token ids -> logits float32 (L - 1, vocabulary) for its second token to its last.

        EngineError where llama.cpp does not compute them. They may be no numbers.
        """
        if not 1 < len(window) <= self._room or not all(0 <= token < self._vocabulary for token in window):
            raise EngineError("A window has tokens that the model has not, or more than it has room for; cut it.")
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        parts = [self._part(window, start) for start in range(0, len(window) - 1, _TOGETHER)]
        return torch.from_numpy(np.concatenate(parts))

    def close(self) -> None:
        """Let go of the model."""
        if self._batch.token:
            self._library.llama_batch_free(self._batch)
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._batch, self._context, self._model = _Batch(), None, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, path: Path, context: int, threads: int) -> None:
        library = self._library
        self._model = library.llama_model_load_from_file(os.fsencode(path), library.llama_model_default_params())
        if not self._model:
            raise EngineError("llama.cpp cannot load the model; see whether it is served, and seal a sound one.")
        self._vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        self._room = -(-context // GRAIN) * GRAIN
        parameters = library.llama_context_default_params()
        parameters.words[N_CTX] = self._room
        parameters.words[N_BATCH] = parameters.words[N_UBATCH] = _TOGETHER
        self._context = library.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise EngineError(f"llama.cpp has no room for {self._room} tokens of context; use a smaller one.")
        sizes = (library.llama_n_ctx, library.llama_n_batch, library.llama_n_ubatch, library.llama_n_seq_max)
        if [size(self._context) for size in sizes] != [self._room, _TOGETHER, _TOGETHER, 1]:
            raise _other_library()
        library.llama_set_n_threads(self._context, threads, threads)
        self._batch = library.llama_batch_init(_TOGETHER, 0, 1)
        arrays = (self._batch.token, self._batch.pos, self._batch.n_seq_id, self._batch.seq_id, self._batch.logits)
        if self._batch.tokens or self._batch.embd or not all(map(bool, arrays)):
            self._batch = _Batch()  # nothing of it can be freed
            raise _other_library()

    def _part(self, window: Sequence[int], start: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
        """The logits of the window's tokens from `start` on but for its last, which nothing follows."""
        part = window[start : min(start + _TOGETHER, len(window) - 1)]
        batch = self._batch
        batch.tokens = len(part)
        for place, token in enumerate(part):
            batch.token[place], batch.pos[place] = token, start + place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        if self._library.llama_decode(self._context, batch):
            raise EngineError("llama.cpp does not compute this text; see whether the model is served.")
        held = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(held, (len(part), self._vocabulary)).copy()


@cache
def find_library() -> ctypes.CDLL:
    """xllamacpp's, which says nothing from now on. EngineError where it lacks a function."""
    try:
        library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
        for name, (result, arguments) in _CALLS.items():
            call = getattr(library, name)
            call.restype, call.argtypes = result, arguments
    except (OSError, AttributeError):
        raise _other_library() from None
    library.llama_log_set(_say_nothing, None)
    library.llama_backend_init()
    return library


def _other_library() -> EngineError:
    return EngineError(
        "The installed xllamacpp does not give logits as Confide asks for them; install the version that Confide's "
        "constraints.txt names."
    )
