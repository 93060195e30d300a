"""Models that read a text as a whole: embedders make a vector of it, and re-rankers score it for a question.

They come as folders, on disk or in memory (`confide.packages.sealed.memory`): embedders as sentence-transformers lays
them out, re-rankers as transformers saves a classifier of one class. Code that a model brings along is never run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from confide.disk.files import read_bounded
from confide.errors import EngineFault, ModelNotSupported
from confide.models.context import longest_context
from confide.models.finite import require_finite
from confide.models.source import load_tokenizer, require_unquantized
from confide.packages.sealed.contents import CONFIG, TOKENIZER, TOKENIZER_PARTS, WEIGHTS_INDEX, weight_files
from confide.printable import printable

LONGEST: Final = 512
"""Tokens of a text that are read at most; a chunk has some 400."""
_BATCH: Final = 32
_MAX_SETTINGS: Final = 1 << 20
_MODULES: Final = "modules.json"
_PROMPTS: Final = "config_sentence_transformers.json"
_LENGTH: Final = "sentence_bert_config.json"
_FLAG: Final = "pooling_mode_"
_CLASSIFIER: Final = "ForSequenceClassification"

Pooling = Literal["mean", "first", "last"]
_POOLINGS: Final[dict[str, Pooling]] = {
    **dict.fromkeys(("mean", "mean_tokens"), "mean"),
    **dict.fromkeys(("cls", "cls_token"), "first"),
    "lasttoken": "last",
}
"""By sentence-transformers' names: which token's state is a text's, or the mean over all."""


class _Module(msgspec.Struct, frozen=True):
    type: str
    path: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_]{0,64}\Z")] = ""


class _Prompts(msgspec.Struct, frozen=True):
    prompts: dict[str, str] = {}


class _Length(msgspec.Struct, frozen=True):
    max_seq_length: Annotated[int, msgspec.Meta(ge=2)] | None = None


_Settings = TypeVar("_Settings")


@dataclass(frozen=True)
class _Embedding:
    """How a folder's model makes a vector of a text. question, document: what is put before it."""

    files: tuple[str, ...]
    pooling: Pooling
    question: str
    document: str
    longest: int


class Embedder:
    """Vectors of Euclidean length 1, float32. Safe for several threads. dimensions: of each vector."""

    def __init__(self, reading: "_Reading", embedding: _Embedding) -> None:
        self._reading, self._embedding = reading, embedding
        self.dimensions = len(self.of_question("a"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The embedder of a folder. ModelNotSupported, with what is wrong, where there is none."""
        embedding = _embedding(folder)
        return cls(_Reading(folder, AutoModel, embedding.longest), embedding)

    def require_dimensions(self, wanted: int) -> None:
        """ModelNotSupported unless its vectors have so many."""
        if self.dimensions != wanted:
            raise ModelNotSupported(
                f"The embedding model makes vectors of {self.dimensions} numbers, and those of the chunks have "
                f"{wanted}; build the corpus again."
            )

    def of_question(self, text: str) -> NDArray[np.float32]:
        """The vector of a question, shape [dimensions]. EngineFault where the model fails."""
        vector: NDArray[np.float32] = self._vectors([self._embedding.question + text])[0]
        return vector

    def cosines(self, question: str, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of a question with each of these vectors of length 1, shape [rows]. EngineFault where the model fails."""
        # By the library that the model runs in: threads of numpy's, which wait for more on every core, would have made
        # the next question's model take five times as long.
        cosines: NDArray[np.float32]
        cosines = torch.mv(torch.from_numpy(vectors), torch.from_numpy(self.of_question(question))).numpy()
        return cosines

    def of_documents(
        self,
        texts: Sequence[str],
        on_text: Callable[[int], None] = lambda count: None,
        batches: Callable[[Iterable[list[str]]], Iterator[NDArray[np.float32]]] | None = None,
    ) -> NDArray[np.float32]:
        """The vectors of texts, shape [texts, dimensions]. on_text: told how many are done. EngineFault.

        batches: what gives the vectors of each of several batches, in place of this one's `of_batch`.
        """
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # alike in length, and little is padded
        places = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        asked = ([texts[place] for place in batch] for batch in places)
        done = 0
        for batch, found in zip(places, batches(asked) if batches else map(self.of_batch, asked), strict=True):
            vectors[batch] = found
            done += len(batch)
            on_text(done)
        return vectors

    def of_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of a few texts alike in length, as `of_documents`."""
        return self._vectors([self._embedding.document + text for text in texts])

    def _vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        states, mask = self._reading.states(texts)
        pooled: NDArray[np.float32]
        pooled = torch.nn.functional.normalize(_pooled(states, mask, self._embedding.pooling), dim=1).numpy()
        if not np.isfinite(pooled).all() or not pooled.any(axis=1).all():
            raise EngineFault("The embedding model computes what is no vector; its operator must restart it.")
        return pooled


class Reranker:
    """How well texts answer a question, by a model that reads both together. Safe for several threads."""

    def __init__(self, reading: "_Reading") -> None:
        self._reading = reading

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The re-ranker of a folder. ModelNotSupported, with what is wrong, where there is none."""
        config = _config(folder)
        if not any(name.endswith(_CLASSIFIER) for name in config.architectures or ()):
            raise ModelNotSupported(
                f"{folder} holds a {_words(config)}, which is no re-ranker: one is saved as ...{_CLASSIFIER}. Give a "
                "cross-encoder."
            )
        if config.num_labels != 1:
            raise ModelNotSupported(
                f"{folder} sorts texts into {config.num_labels} classes, and a re-ranker has one score; give a "
                "cross-encoder that was made for ranking."
            )
        return cls(_Reading(folder, AutoModelForSequenceClassification, LONGEST))

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """Between 0 and 1, of each text. EngineFault where the model fails."""
        scores: list[float] = []
        for start in range(0, len(texts), _BATCH):
            logits = self._reading.logits([(question, text) for text in texts[start : start + _BATCH]])
            scores += torch.sigmoid(logits[:, 0].double()).tolist()
        if not np.isfinite(scores).all():
            raise EngineFault("The re-ranker computes what is no number; its operator must restart it.")
        return scores


def embedder_files(folder: Path) -> dict[str, Path]:
    """What `Embedder.load` reads of a folder, by its names in it. ModelNotSupported as there."""
    return _files(folder, (*_embedding(folder).files, _PROMPTS, _LENGTH))


def reranker_files(folder: Path) -> dict[str, Path]:
    """The same for a re-ranker."""
    return _files(folder, ())


class _Reading:
    """A model and its tokenizer, which reads texts in batches."""

    def __init__(self, folder: Path, architecture: Any, longest: int) -> None:
        config = _config(folder)
        self._model = _load(folder, architecture, config)
        tokenizer = load_tokenizer(folder)
        if tokenizer is None or not tokenizer.is_fast:
            raise ModelNotSupported(f"{folder} has no fast tokenizer ({TOKENIZER}); save the model with one.")
        own = longest_context(config) or LONGEST
        # Set once: transformers sets it anew for each text, while another thread may be reading with it.
        self._tokenizer = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
        self._tokenizer.enable_truncation(min(longest, own, int(tokenizer.model_max_length), LONGEST))
        self._tokenizer.enable_padding(pad_id=tokenizer.pad_token_id or 0, pad_token=str(tokenizer.pad_token))
        self._with_types = "token_type_ids" in tokenizer.model_input_names

    def states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The last hidden states, shape [texts, tokens, width], and which tokens are no padding, [texts, tokens]."""
        output, mask = self._run(texts)
        return output.last_hidden_state.float(), mask

    def logits(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Shape [pairs, classes]."""
        return cast(Tensor, self._run(pairs)[0].logits.float())

    def _run(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> tuple[Any, Tensor]:
        read = self._tokenizer.encode_batch(list(texts))
        mask = torch.tensor([one.attention_mask for one in read])
        inputs = {"input_ids": torch.tensor([one.ids for one in read]), "attention_mask": mask}
        if self._with_types:
            inputs["token_type_ids"] = torch.tensor([one.type_ids for one in read])
        try:
            with torch.inference_mode():
                return self._model(**inputs), mask
        except Exception as error:
            raise EngineFault(
                f"The model failed with {type(error).__name__}; less memory in use, or fewer requests at once, may "
                "help."
            ) from error


def _pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "mean":
        return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    last = (mask * torch.arange(mask.shape[1])).argmax(1)
    return states[torch.arange(len(states)), last if pooling == "last" else torch.zeros_like(last)]


def _embedding(folder: Path) -> _Embedding:
    modules = _read(folder, _MODULES, list[_Module])
    kinds = [module.type.rpartition(".")[2] for module in modules or ()]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]) or not modules:
        found = f"is made of {', '.join(kinds)}" if kinds else f"has no {_MODULES}"
        raise ModelNotSupported(
            f"{folder} is no embedding model that is known here: it {printable(found)[:300]}. Give a folder that "
            "sentence-transformers saved, of a transformer and its pooling."
        )
    if modules[0].path or not modules[1].path:
        raise ModelNotSupported(f"{folder} has its parts in unusual places; save it with sentence-transformers again.")
    where = f"{modules[1].path}/{CONFIG}"
    pooling, with_prompt = _pooling(folder, where)
    prompts = (_read(folder, _PROMPTS, _Prompts) or _Prompts()).prompts
    question, document = prompts.get("query", ""), prompts.get("document", prompts.get("passage", ""))
    if not with_prompt and (question or document):
        raise ModelNotSupported(f"{folder} leaves its prompts out of the pooling, which is not known here.")
    length = (_read(folder, _LENGTH, _Length) or _Length()).max_seq_length
    return _Embedding((_MODULES, where), pooling, question, document, length or LONGEST)


def _pooling(folder: Path, where: str) -> tuple[Pooling, bool]:
    """Which, and whether a prompt is part of what is pooled."""
    settings = _read(folder, where, dict[str, Any]) or {}
    flags = [name.removeprefix(_FLAG) for name, value in settings.items() if name.startswith(_FLAG) and value is True]
    chosen = [str(settings["pooling_mode"])] if "pooling_mode" in settings else flags
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        said = printable(" and ".join(chosen))[:100] or "nothing"
        raise ModelNotSupported(
            f"{folder} makes a vector of a text by {said}, and known here is one of {', '.join(_POOLINGS)}; give a "
            "model that does it so."
        )
    return _POOLINGS[chosen[0]], settings.get("include_prompt") is not False


def _files(folder: Path, settings: Sequence[str]) -> dict[str, Path]:
    names = [name for name in (CONFIG, *settings, *TOKENIZER_PARTS, WEIGHTS_INDEX) if (folder / name).is_file()]
    return {name: folder / name for name in (*names, *weight_files(folder))}


def _config(folder: Path) -> PreTrainedConfig:
    try:
        config = cast(PreTrainedConfig, AutoConfig.from_pretrained(str(folder), trust_remote_code=False))
    except Exception as error:  # transformers checks little, and raises what it stumbles over
        raise ModelNotSupported(
            f"{folder} holds no model that transformers knows without running code of the model's own "
            f"({type(error).__name__}); give a folder with its {CONFIG}."
        ) from error
    if config.is_encoder_decoder:
        raise ModelNotSupported(f"{folder} holds a {_words(config)}, which writes texts; give an encoder.")
    require_unquantized(config, str(folder))
    return config


def _load(folder: Path, architecture: Any, config: PreTrainedConfig) -> PreTrainedModel:
    config.use_cache = False
    try:
        loaded: Any = architecture.from_pretrained(
            str(folder),
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelNotSupported(
            f"transformers cannot load {folder} ({type(error).__name__}); see that its files are there and whole."
        ) from error
    model, report = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
    # What pools for a classifier is not used here, and often left out.
    if missing := sorted(name for name in report["missing_keys"] if not _is_unused(name, architecture)):
        raise ModelNotSupported(
            f"{folder} is no whole model: {missing[0]} and {len(missing) - 1} more weights are missing; save it again."
        )
    require_finite(model.state_dict())
    model.requires_grad_(False)
    model.eval()
    return model


def _is_unused(name: str, architecture: Any) -> bool:
    return architecture is AutoModel and name.startswith("pooler.")


def _read(folder: Path, name: str, kind: type[_Settings]) -> _Settings | None:
    """The settings of a file, None where there is none."""
    try:
        return msgspec.json.decode(read_bounded(folder / name, _MAX_SETTINGS), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ModelNotSupported(f"{folder / name} is not what sentence-transformers writes; save it again.") from error


def _words(config: PreTrainedConfig) -> str:
    names = [str(name) for name in config.architectures or ()] or [config.model_type]
    return printable(" and ".join(names))[:100]
