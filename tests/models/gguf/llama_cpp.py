"""llama.cpp's own tokenizer, by the functions of its C interface, llama.h."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xllamacpp


class _Parameters(ctypes.Structure):
    """llama_model_params, of which no field is touched. It is smaller than this, which does no harm: a caller of so
    large a structure hands over its address or a copy, and what is past its end is never read."""

    _fields_ = (("content", ctypes.c_char * 1024),)


class LlamaTokenizer:
    def __init__(self, library: ctypes.CDLL, model: ctypes.c_void_p) -> None:
        self._tokenize = library.llama_tokenize
        self._tokenize.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int32,
            ctypes.c_void_p,
            ctypes.c_int32,
            ctypes.c_bool,
            ctypes.c_bool,
        ]
        library.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
        library.llama_model_get_vocab.restype = ctypes.c_void_p
        self._vocabulary = library.llama_model_get_vocab(model)

    def encode(self, text: str) -> list[int]:
        """A text's tokens with those the model wants at its beginning, special tokens in it taken as such."""
        content = text.encode()
        tokens = (ctypes.c_int32 * (len(content) + 16))()
        count = self._tokenize(self._vocabulary, content, len(content), tokens, len(tokens), True, True)
        assert count >= 0
        return tokens[:count]


@contextmanager
def tokenizer_of(file: Path) -> Iterator[LlamaTokenizer]:
    """The tokenizer of a GGUF file, as llama.cpp reads it."""
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    library.llama_model_default_params.restype = _Parameters
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _Parameters]
    library.llama_model_load_from_file.restype = ctypes.c_void_p
    library.llama_model_free.argtypes = [ctypes.c_void_p]
    model = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
    assert model, "llama.cpp cannot load the file"
    try:
        yield LlamaTokenizer(library, model)
    finally:
        library.llama_model_free(model)
