"""`confide bench quantization`: what each type of weights saves, and what it costs in quality.

Times are those of the engines that serve. Perplexity is that of the weights as each type holds them, computed in
float32 (transformers' bf16: in bf16), over the same windows for all; see `confide.evaluate`.
"""

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.bench.answers import answering, prompt_of, time_answers
from confide.bench.cells import LLAMA_CPP, TORCH_TYPES, TRANSFORMERS, special_tokens
from confide.bench.machine import Machine
from confide.bench.results import (
    Interval,
    ModelFacts,
    NotMeasured,
    QuantizationResult,
    QuantizationRow,
    ResultFile,
    Software,
    Timing,
)
from confide.bench.statistics import Sample
from confide.enclave.engines.engine import Engine
from confide.enclave.engines.gguf_engine import GgufEngine, context_bytes
from confide.enclave.engines.transformers_engine import TransformersEngine
from confide.errors import ModelNotSupported
from confide.evaluate.dequantized import dequantized_model
from confide.evaluate.perplexity import Perplexity, WindowLoss, compare_perplexity, measure_loss
from confide.evaluate.results import Results
from confide.evaluate.run import Variant, measure_variants
from confide.evaluate.statistics import Estimate
from confide.evaluate.windows import Windows
from confide.models.ends import end_tokens
from confide.models.gguf.architectures import find_architecture
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import Source

BATCHES: Final = (1, 8)
"""Requests at once."""
REFERENCE: Final = "f32"

OnProgress = Callable[[str, int, int], None]
"""Called with what is measured, how many of its parts are, and how many there are."""
