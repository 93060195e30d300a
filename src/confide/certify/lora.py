"""Training a LoRA adapter over a loaded model, a step at a time, which can be left off anywhere and taken up again.

What is drawn in a step, its windows and its dropout, follows from the run's seed and the number of the step alone. So a
run that was killed and resumed comes to the same adapter as one that was not, on the same machine. It is a loop of its
own, and not transformers' Trainer, which does as environment variables say and keeps its checkpoints as plain files.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import peft
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from confide.attest.training import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Lora
from confide.errors import TrainingFailed

VERSION: Final = f"peft {peft.__version__}, torch {torch.__version__}"
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")
_BETAS: Final = (0.9, 0.999)
_EPSILON: Final = 1e-8
_ALL: Final = "all-linear"
_STEP_LABEL: Final = b"confide training step 1\0"


class Training:
    """One training. It changes the model that it is given.

    model: in float32, without gradients. windows: token ids, of 2 tokens each at least. done: steps so far.
    """

    def __init__(self, model: PreTrainedModel, windows: Sequence[Sequence[int]], lora: Lora, seed: int) -> None:
        """TrainingFailed where the model has no modules of the names that `lora.targets` has."""
        self._windows, self._lora, self._seed = windows, lora, seed
        self._per_epoch = -(-len(windows) // lora.batch)
        self.steps, self.done = lora.epochs * self._per_epoch, 0
        torch.manual_seed(self._drawn(b"weights"))
        self._model, self._config = _with_lora(model, lora)
        self._parameters = {
            name: parameter for name, parameter in self._model.named_parameters() if parameter.requires_grad
        }
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lora.learning_rate, _BETAS, _EPSILON, lora.weight_decay
        )
        self._model.train()

    @property
    def tokens(self) -> int:
        """Tokens whose likelihood is raised in a pass over the data: all of each window but the first."""
        return sum(len(window) - 1 for window in self._windows)

    def step(self) -> None:
        """One step of the optimizer. TrainingFailed where the loss is not finite."""
        windows = list(self._batch())
        scored = sum(len(window) - 1 for window in windows)
        torch.manual_seed(self._drawn(b"step", self.done))
        self._optimizer.zero_grad()
        for window in windows:
            loss = window_loss(self._model, window) / scored
            if not torch.isfinite(loss):
                raise TrainingFailed("The training does not converge: its loss is not finite. Lower the learning rate.")
            loss.backward()
        nn.utils.clip_grad_norm_(self._parameters.values(), self._lora.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = self._lora.learning_rate * self._rate()
        self._optimizer.step()
        self.done += 1

    def state(self) -> bytes:
        """Everything that `resume` needs, as safetensors."""
        tensors = {f"weights.{name}": parameter.detach() for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for moment in _MOMENTS:
                held = self._optimizer.state[parameter].get(moment)
                tensors[f"{moment}.{name}"] = torch.zeros_like(parameter) if held is None else held
        return save(tensors)

    def resume(self, state: bytes, done: int) -> None:
        """Go on where a training of the same run, after so many steps, was left off. TrainingFailed for another's."""
        try:
            tensors = load(state)
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(tensors[f"weights.{name}"])
                    self._optimizer.state[parameter] = {
                        "step": torch.tensor(float(done)),
                        **{moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS},
                    }
        except (SafetensorError, KeyError, RuntimeError):
            raise TrainingFailed("What was left of the run is of another training; start it anew.") from None
        if not 0 <= done <= self.steps:
            raise TrainingFailed("What was left of the run has more steps than it has; start it anew.")
        self.done = done

    def files(self) -> dict[str, bytes]:
        """The adapter's two files, as peft reads them: equal trainings have equal bytes."""
        tensors = get_peft_model_state_dict(self._model, save_embedding_layers=False)
        weights = save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})
        config = json.dumps(self._config, indent=2, sort_keys=True).encode() + b"\n"
        return {ADAPTER_CONFIG: config, ADAPTER_WEIGHTS: weights}

    def _batch(self) -> Iterator[Sequence[int]]:
        """The windows of the next step: each epoch takes all of them, in an order of its own."""
        epoch, place = divmod(self.done, self._per_epoch)
        generator = torch.Generator().manual_seed(self._drawn(b"order", epoch))
        order = torch.randperm(len(self._windows), generator=generator).tolist()
        for index in order[place * self._lora.batch : (place + 1) * self._lora.batch]:
            yield self._windows[index]

    def _rate(self) -> float:
        """The share of the learning rate for the next step."""
        rising = max(1, round(self._lora.warmup * self.steps))
        return min((self.done + 1) / rising, (self.steps - self.done) / max(1, self.steps - rising))

    def _drawn(self, what: bytes, number: int = 0) -> int:
        """A seed of its own for each thing that is drawn."""
        drawn = hashlib.sha256(_STEP_LABEL + b"%b %d %d" % (what, number, self._seed)).digest()
        return int.from_bytes(drawn[:8], "big") >> 1


def _with_lora(model: PreTrainedModel, lora: Lora) -> tuple[nn.Module, dict[str, Any]]:
    """The model with matrices to train, and the configuration by which peft finds their places again."""
    targets: Any = list(lora.targets) or _ALL
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    settings: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "bias": "none"}
    config = LoraConfig(**settings, task_type="CAUSAL_LM", target_modules=targets, fan_in_fan_out=transposed)
    try:
        with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # between these two libraries
            wrapped = get_peft_model(model, config)
    except ValueError:
        raise TrainingFailed("The model has no modules of the names in the recipe's targets; correct them.") from None
    named = sorted(cast(set[str], config.target_modules))
    return wrapped, {
        **settings,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "target_modules": named,
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "base_model_name_or_path": None,
    }


def window_loss(model: nn.Module, window: Sequence[int]) -> Tensor:
    """The sum over a window of the negative log-likelihood of each token after those before it, in nats."""
    ids = torch.tensor([window], device=next(model.parameters()).device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
