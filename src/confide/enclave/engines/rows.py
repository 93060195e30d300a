"""What a model reads for several requests, parts of prompts and next tokens, in one pass.

A pass reads the weights once, however many rows are in it, and that is where the time of decoding goes. Linear layers
see the tokens of all rows, one after the other. Attention sees one row after the other, each with a cache of its own
length: so there is no padding, rows come and go at every token, and no row's keys are ever laid beside another's.

Not every model can be computed so; which can is found out by what it does, see `Batching`.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from enum import StrEnum
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from confide.errors import EngineFault

ROOM: Final = 256
"""Tokens by which a cache grows, so that most steps copy nothing of it."""
_ATTENTION: Final = "confide-rows"
_TRIAL: Final = ((3, 1), (7, 2), (0, 5))
"""Tokens that rows have read when it is tried whether they can go on together, and how many they then read."""
_CLOSE: Final = 0.1
"""Of how far two rows' logits are apart, the most by which a trial's may differ. Rounding to bfloat16 stays below,
and a row at another's position or with another's keys far above."""


class Batching(StrEnum):
    """Whether rows are computed together, and why not.

    CACHE: they slide over a window, or hold other than keys and values. ATTENTION: it is not the one that torch has.
    POSITIONS: what a position is encoded as hangs on the longest row. TRIAL: rows got other logits than each alone.
    """

    TOGETHER = "together"
    CACHE = "alone-cache"
    ATTENTION = "alone-attention"
    POSITIONS = "alone-positions"
    TRIAL = "alone-trial"


class RoomyLayer(DynamicLayer):
    """A layer of one row's cache with room behind its end: adding a token copies that token alone.

    `keys` and `values` are views of what is filled, (1, heads, tokens, width). room: tokens to make room for at first.
    """

    def __init__(self, room: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._filled: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values, (1, heads, more tokens, width); all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        filled = self._filled
        if filled is None or end > filled[0].shape[-2]:
            room = -(-max(end, self._room) // ROOM) * ROOM
            keys, values = (one.new_empty((*one.shape[:-2], room, one.shape[-1])) for one in (key_states, value_states))
            if filled is not None:
                keys[..., :start, :], values[..., :start, :] = (one[..., :start, :] for one in filled)
            filled = self._filled = keys, values
        keys, values = filled
        keys[..., start:end, :], values[..., start:end, :] = key_states, value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values


class Row:
    """What is read of one request. cache: None where the model makes one of its own kind at the first token."""

    def __init__(self, rows: "Rows", cache: DynamicCache | None) -> None:
        self.cache: Any = cache
        self._rows = rows
        self._outcome: Tensor | EngineFault = torch.empty(0)

    @property
    def tokens(self) -> int:
        """How many are read."""
        return 0 if self.cache is None else int(self.cache.get_seq_length())

    @property
    def logits(self) -> Tensor:
        """Of the next token, float32 of shape [vocabulary]. EngineFault where the model fails, or gives no numbers."""
        self._rows.catch_up(self)
        if isinstance(self._outcome, EngineFault):
            raise self._outcome
        return self._outcome

    def read(self, tokens: Sequence[int]) -> None:
        """Read on, in a pass of its own. EngineFault where the model fails."""
        self.take(self._rows.read_alone(self, tokens))

    def follow(self, tokens: Sequence[int]) -> None:
        """Have tokens read with those of the other rows, once one of them asks for its logits."""
        self._rows.add(self, tokens)

    def take(self, outcome: Tensor | EngineFault) -> None:
        """What came of reading."""
        if isinstance(outcome, Tensor) and not torch.stack(outcome.aminmax()).isfinite().all():
            # argmax would take a NaN for the best of tokens
            outcome = EngineFault(
                "The model computes what is no number, so it has no answer; its operator must restart it."
            )
        self._outcome = outcome

    def leave(self) -> None:
        """Have nothing more read."""
        self._rows.remove(self)


class Rows:
    """A model in evaluation mode, and the rows that it computes; for one thread.

    batching: whether rows are computed together, found out by a few passes over a few tokens when this is made. A model
    that can be is set to an attention function of this module, which for everybody else is torch's.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        # Logits of a prompt's other tokens would be a third of the work for a small model, and nobody looks at them.
        self._keeps_some = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._due: dict[Row, Sequence[int]] = {}
        self._plain = self._makes_plain_caches()
        self.batching = self._find_batching()

    def row(self, room: int = 0) -> Row:
        """One that has read nothing. room: tokens that its cache makes room for at first."""
        if not self._plain:
            return Row(self, None)
        cache = DynamicCache(config=self._model.config)
        cache.layers = [RoomyLayer(room) for _ in cache.layers]
        return Row(self, cache)

    def read_alone(self, row: Row, tokens: Sequence[int]) -> Tensor:
        """The logits behind them. EngineFault where the model fails."""
        with torch.inference_mode(), explained():
            ids = torch.tensor([tokens], device=self._model.device)
            only_last = {"logits_to_keep": 1} if self._keeps_some else {}
            output = self._model(input_ids=ids, past_key_values=row.cache, use_cache=True, **only_last)
            row.cache = output.past_key_values
            logits: Tensor = output.logits[0, -1].float().cpu()
            return logits

    def add(self, row: Row, tokens: Sequence[int]) -> None:
        """To be read in the next pass."""
        self._due[row] = tokens

    def remove(self, row: Row) -> None:
        """Not to be read after all."""
        self._due.pop(row, None)

    def catch_up(self, row: Row) -> None:
        """Read what is due, of all rows, if this one waits for that."""
        if row not in self._due:
            return
        if self.batching is not Batching.TOGETHER:
            row.read(self._due.pop(row))
            return
        due, self._due = self._due, {}
        if len(due) > 1:
            before = [_layers(one) for one in due]
            try:
                logits = self._read_together(due)
            except EngineFault:  # which may be one row's doing, so each is tried by itself
                for one, layers in zip(due, before, strict=True):
                    one.cache.layers = layers
            else:
                for one, outcome in zip(due, logits, strict=True):
                    one.take(outcome)
                return
        for one, tokens in due.items():
            try:
                one.read(tokens)
            except EngineFault as fault:
                one.take(fault)

    def _read_together(self, due: Mapping[Row, Sequence[int]]) -> Tensor:
        """The logits behind the tokens of each row, [rows, vocabulary]."""
        counts = [len(tokens) for tokens in due.values()]
        ids = [token for tokens in due.values() for token in tokens]
        places = [place for row, tokens in due.items() for place in range(row.tokens, row.tokens + len(tokens))]
        last = torch.tensor(counts, device=self._model.device).cumsum(0) - 1
        with torch.inference_mode(), explained():
            output = self._model(
                input_ids=torch.tensor([ids], device=self._model.device),
                position_ids=torch.tensor([places], device=self._model.device),
                use_cache=False,
                row_caches=[row.cache for row in due],
                row_tokens=counts,
                **({"logits_to_keep": last} if self._keeps_some else {}),
            )
            logits: Tensor = output.logits[0] if self._keeps_some else output.logits[0, last]
            return logits.float().cpu()

    def _makes_plain_caches(self) -> bool:
        """Whether the model, left to itself, keeps all keys and all values, and nothing else."""
        row = Row(self, None)
        try:
            row.read([0])
        except EngineFault:
            return False
        return type(row.cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in row.cache.layers)

    def _find_batching(self) -> Batching:
        if not self._plain:
            return Batching.CACHE
        before = self._model.config._attn_implementation
        if before not in ("sdpa", _ATTENTION) or not self._model.is_backend_compatible():
            return Batching.ATTENTION
        if any(_hangs_on_length(getattr(module, "rope_type", None)) for module in self._model.modules()):
            return Batching.POSITIONS
        self._model.set_attn_implementation(_ATTENTION)
        if self._passes_trial():
            return Batching.TOGETHER
        self._model.set_attn_implementation(before)
        return Batching.TRIAL

    def _passes_trial(self) -> bool:
        """Whether rows of different lengths get the logits together that each gets alone."""
        due, alone = {}, []
        try:
            for length, more in _TRIAL:
                row, tokens = self.row(), range(more)
                if length:
                    row.read(range(length))
                before = _layers(row)
                row.read(tokens)
                alone.append(row.logits)
                row.cache.layers = before
                due[row] = tokens
            together = self._read_together(due)
        except EngineFault:
            return False
        apart = (alone[0] - alone[1]).abs().max()
        return bool((torch.stack(alone) - together).abs().max() <= _CLOSE * apart)


@contextmanager
def explained() -> Iterator[None]:
    """What goes wrong inside a model becomes an EngineFault: one request's trouble, and not its fault."""
    try:
        yield
    except Exception as error:
        raise EngineFault(
            f"The model failed with {type(error).__name__}; less memory in use, or fewer requests at once, may help."
        ) from error


def _layers(row: Row) -> list[RoomyLayer]:
    """A row's cache as it is now: what is added to it later changes nothing of this."""
    return [copy(layer) for layer in row.cache.layers]


def _hangs_on_length(rope_type: object) -> bool:
    """Of a rotary embedding, or of each of its layers' types: whether its frequencies change with the length."""
    kinds = rope_type.values() if isinstance(rope_type, dict) else [rope_type]
    return any(kind == "longrope" or "dynamic" in str(kind) for kind in kinds)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_caches: Sequence[DynamicCache] = (),
    row_tokens: Sequence[int] = (),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """torch's, in the shapes of transformers; with caches, of so many tokens of each row over all that it has read."""
    if not row_caches:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    index: Any = module.layer_idx
    parts = (one.split(list(row_tokens), dim=2) for one in (query, key, value))
    outputs = []
    for cache, asked, *added in zip(row_caches, *parts, strict=True):
        keys, values = cache.layers[index].update(*added)
        outputs.append(sdpa_attention_forward(module, asked, keys, values, _mask(asked, keys), **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def _mask(asked: Tensor, keys: Tensor) -> Tensor | None:
    """Which keys the last tokens of a row see: None where torch knows, for a lone token and for a row's first ones."""
    count, total = asked.shape[-2], keys.shape[-2]
    if count in (1, total):
        return None
    return torch.ones(count, total, dtype=torch.bool, device=asked.device).tril(total - count)


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
