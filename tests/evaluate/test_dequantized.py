"""A file's weights come back to their places, whatever order the file has them in."""

from pathlib import Path
from shutil import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from confide.errors import EvaluationError
from confide.evaluate.dequantized import dequantized_model
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import DEMO_FOLDER, Source, open_model

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 4100}
LLAMA = LlamaConfig(**SHAPE, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Whose queries and keys llama.cpp has in another order."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(LLAMA).save_pretrained(folder)
    copy(DEMO_FOLDER / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return open_model(str(folder))


QUICK = (("llama", GgufType.Q8_0), ("demo", GgufType.Q4_0))
REST = [
    pytest.param(name, type, marks=pytest.mark.slow)
    for name in ("llama", "demo")
    for type in GgufType
    if (name, type) not in QUICK
]


@pytest.mark.parametrize(("name", "type"), [*QUICK, *REST])
def test_every_matrix_is_the_models_as_near_as_its_type_holds_it(
    name: str, type: GgufType, llama: Source, tmp_path: Path
) -> None:
    source = llama if name == "llama" else open_model("demo")
    found = dequantized_model(source, write_gguf(source, tmp_path / "model.gguf", type).path)
    stock = dict(source.load_model().named_parameters())
    changed = 0
    for key, parameter in found.named_parameters():
        off = (parameter - stock[key]).abs().max() / stock[key].abs().max()
        # An offset of half a step: in 16 bits of a weight's own, and in 4 of the largest in its block.
        assert off < (0.01 if type in (GgufType.F16, GgufType.BF16, GgufType.Q8_0) else 0.15), key
        changed += bool(off)
    assert changed or type in (GgufType.F16, GgufType.BF16)


def test_a_file_of_another_model_is_refused(llama: Source, tmp_path: Path) -> None:
    file = write_gguf(open_model("demo"), tmp_path / "demo.gguf", GgufType.F16).path
    with pytest.raises(EvaluationError, match="has no weights for"):
        dequantized_model(llama, file)
