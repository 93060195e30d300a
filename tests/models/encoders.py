"""Small embedders and re-rankers on disk, of random weights, with a tokenizer of some words."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "tide", "rises", "falls", "moon", "bread", "query", ":")
_TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONFIG = BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, pad_token_id=0, **_TINY)


def save_embedder(folder: Path, pooling: str = "mean_tokens", **settings: object) -> Path:
    """As sentence-transformers lays one out. settings: more of the pooling's."""
    torch.manual_seed(0)
    BertModel(CONFIG, add_pooling_layer=False).save_pretrained(folder)
    save_tokenizer(folder)
    describe(folder, pooling, **settings)
    return folder


def describe(folder: Path, pooling: str, **settings: object) -> None:
    """Say that a folder's model is an embedder, and how it makes a vector of a text."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {
        f"pooling_mode_{name}": name == pooling for name in ("mean_tokens", "max_tokens", "cls_token", "lasttoken")
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"include_prompt": True, **flags, **settings}))


def save_reranker(folder: Path, labels: int = 1) -> Path:
    torch.manual_seed(0)
    config = BertConfig(**{**CONFIG.to_dict(), "num_labels": labels})
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names).save_pretrained(folder)
