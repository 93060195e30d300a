"""A GPT-2 with encrypted attention in some of its blocks, as transformers runs it.

Three modes. clear: the stock model. simulate: the chosen heads come from the circuit in clear numbers (see `twin`).
execute: their inputs are encrypted here, evaluated by a server, and decrypted here.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.attention import cost
from confide.attention.checks import Result
from confide.attention.client import AttentionClient
from confide.attention.heads import Heads, ReplacedHeads, attention_inputs, attention_module, chosen_heads
from confide.attention.plaintexts import Plaintexts
from confide.attention.plan import Plan, compile_plan
from confide.attention.shape import MAX_TOKENS
from confide.attention.twin import twin
from confide.attention.weights import AttentionWeights
from confide.errors import OutsideCalibration, PromptTooLong, WrongMode
from confide.models.source import open_model

Evaluate = Callable[[int, bytes], bytes]
"""The server's part: the encrypted result of a layer's encrypted input. Called with the layer's number."""


class Mode(StrEnum):
    """Where the chosen heads are computed; see the module."""

    CLEAR = "clear"
    SIMULATE = "simulate"
    EXECUTE = "execute"


class OutsideCalibrationWarning(UserWarning):
    """An attention block met numbers outside the ranges that it was compiled for, and its result is not attention."""


class EncryptedAttentionGPT2:
    """A GPT-2 whose attention, in some layers and heads, can be computed on ciphertexts.

        model = EncryptedAttentionGPT2.from_pretrained("demo", layers=[0])
        print(model.compile(texts))                # token ids to calibrate on
        model.mode = "simulate"
        model.generate(**inputs, max_new_tokens=4)
        model.save_evaluation_keys(folder)         # for a server, see `AttentionServer`
        model.evaluate = lambda layer, message: servers[layer].evaluate(message)
        model.mode = "execute"

    Texts have no padding, no KV cache, and no more tokens than it was compiled for, prompt and answer together; in
    mode clear none of that holds. `strict`: results outside the calibrated ranges raise OutsideCalibration; if not,
    they are used as long as they are finite, with an OutsideCalibrationWarning.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int] = (0,),
        heads: Heads = "all",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """model: a GPT2LMHeadModel, which is changed while the mode is not clear. Raises ModelNotSupported."""
        self.model, self.tokenizer = model, tokenizer
        self.strict = True
        self.evaluate: Evaluate | None = None
        self._modules = {layer: attention_module(model, layer) for layer in layers}
        self._heads = chosen_heads(model.config, heads)
        self._weights = {
            layer: AttentionWeights.from_gpt2(module, self._heads) for layer, module in self._modules.items()
        }
        self._plans: dict[int, Plan] = {}
        self._clients: dict[int, AttentionClient] = {}
        self._mode = Mode.CLEAR
        self._undo: list[Callable[[], None]] = []

    @classmethod
    def from_pretrained(cls, model: str | Path, layers: Sequence[int] = (0,), heads: Heads = "all") -> Self:
        """model: a local folder, a hub id, or `demo`. Raises ModelNotSupported for what is not a GPT-2."""
        source = open_model(str(model))
        return cls(source.load_model(), layers, heads, source.load_tokenizer())

    @property
    def plans(self) -> Mapping[int, Plan]:
        """By layer, what `compile` made. The server needs its layer's plan; nothing in it is secret from it."""
        return self._plans

    @property
    def weights(self) -> Mapping[int, AttentionWeights]:
        """By layer, what the server computes with."""
        return self._weights

    def compile(self, texts: Sequence[Sequence[int]], tokens: int = MAX_TOKENS) -> str:
        """Calibrate ranges, choose polynomials and parameters for texts of up to `tokens` tokens; returns the costs.

        texts: token ids of texts such as will come, some of them `tokens` long; some dozens at least. Keys of an
        earlier compilation are gone. Raises EvaluationError where texts are too short or ranges too wide for any
        parameters.
        """
        self.mode = Mode.CLEAR
        inputs = attention_inputs(self.model, self._modules, [text[:tokens] for text in texts])
        self._plans = {
            layer: compile_plan(weights, weights.shape(tokens), [x.double().numpy() for x in inputs[layer]])
            for layer, weights in self._weights.items()
        }
        self._clients = {}
        return "\n".join(f"layer {layer}\n{cost.count(plan)}" for layer, plan in self._plans.items())

    def save_evaluation_keys(self, folder: Path) -> int:
        """Make new keys, and write what a server needs into `folder`/LAYER for each layer; returns the bytes.

        Secret keys stay in this object. Raises WrongMode before `compile`.
        """
        self._require_plans()
        self._clients = {layer: AttentionClient(plan) for layer, plan in self._plans.items()}
        return sum(client.save_evaluation_keys(folder / str(layer)) for layer, client in self._clients.items())

    @property
    def mode(self) -> Mode:
        """Where the chosen heads are computed."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        """Raises WrongMode for one that needs `compile`, keys or a server first."""
        chosen = Mode(mode)
        compute = self._computation(chosen)
        while self._undo:
            self._undo.pop()()
        self._mode = chosen
        if compute is None:
            return
        for layer, module in self._modules.items():
            self._undo.append(ReplacedHeads(module, self._heads, functools.partial(compute, layer)).remove)
        self._undo.append(self.model.register_forward_pre_hook(_require_no_padding, with_kwargs=True).remove)

    def generate(self, input_ids: Tensor, max_new_tokens: int, **options: Any) -> Any:
        """transformers' `generate`, without a KV cache where attention is not in the clear.

        input_ids: int64 (texts, tokens), without padding. Raises PromptTooLong where prompt and answer would be longer
        than what was compiled for, OutsideCalibration (see `strict`), and whatever `evaluate` raises.
        """
        if self._mode is not Mode.CLEAR:
            # The last token is not read again.
            self._require_length(input_ids.shape[1] + max_new_tokens - 1)
            options["use_cache"] = False
        return cast(Any, self.model).generate(input_ids, max_new_tokens=max_new_tokens, **options)

    def _computation(self, mode: Mode) -> Callable[[int, Tensor], Tensor] | None:
        if mode is Mode.CLEAR:
            return None
        self._require_plans()
        if mode is Mode.SIMULATE:
            plaintexts = {layer: Plaintexts(self._weights[layer], plan) for layer, plan in self._plans.items()}
            return lambda layer, x: self._context(layer, twin(self._numbers(x), plaintexts[layer]))
        if not self._clients or self.evaluate is None:
            raise WrongMode("Execution needs keys and a server: call `save_evaluation_keys`, and set `evaluate`.")
        return lambda layer, x: self._context(layer, self._executed(layer, self._numbers(x)))

    def _executed(self, layer: int, x: Any) -> Result:
        client, evaluate = self._clients[layer], self.evaluate
        if evaluate is None:
            raise WrongMode("There is no server any more; set `evaluate`.")
        return client.decrypt(evaluate(layer, client.encrypt(x)), len(x))

    def _numbers(self, x: Tensor) -> Any:
        self._require_length(len(x))
        return x.detach().double().cpu().numpy()

    def _context(self, layer: int, result: Result) -> Tensor:
        context = torch.from_numpy(result.context).float()  # what the model computes in
        try:
            result.require_in_range()
        except OutsideCalibration as error:
            if self.strict or not context.isfinite().all():
                raise
            warnings.warn(f"layer {layer}: {error}", OutsideCalibrationWarning, stacklevel=2)
        return context

    def _require_plans(self) -> None:
        if not self._plans:
            raise WrongMode("This model is not compiled yet; call `compile` with some texts first.")

    def _require_length(self, tokens: int) -> None:
        longest = min(plan.shape.tokens for plan in self._plans.values())
        if tokens > longest:
            raise PromptTooLong(
                f"Encrypted attention was compiled for {longest} tokens, prompt and answer together, and this takes "
                f"{tokens}; shorten either, or compile for more, up to {MAX_TOKENS}."
            )


def _require_no_padding(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    mask = options.get("attention_mask")
    if isinstance(mask, Tensor) and not bool(mask.bool().all()):
        raise WrongMode("Encrypted attention takes no padding; give texts of one length, or one at a time.")
