"""A hybrid model before it is split: quantized here, and run here, in the clear or simulated."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.errors import WrongMode
from confide.hybrid.mode import Mode
from confide.hybrid.simulate import SimulatedProduct
from confide.models.calibration import Moments, OnTokens
from confide.models.clear import ClearProduct
from confide.models.precision import Recipe
from confide.models.quantized import OnProgress, QuantizedModel, calibrate
from confide.models.roles import find_layers
from confide.models.split import SplitSummary, write_split
from confide.packages.hint_writer import OnHint
from confide.packages.owner import OwnerKey
from confide.rlwe.parameters import Profile
from confide.trust.hybrid import local_trust
from confide.trust.statement import TrustStatement


class LocalModel:
    """A stock model that is quantized when it is first run or split, and can be calibrated until then.

    The model that is given is changed by that. Raises what `find_layers` and `ModelLayers.select` raise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        protect: str,
        recipe: Recipe | None,
        profile: Profile,
        on_progress: OnProgress | None,
    ) -> None:
        self.tokenizer = tokenizer
        self._model = model
        self._chosen = find_layers(model.config).select(protect)
        self._recipe = recipe or Recipe()
        self._profile = profile
        self._on_progress = on_progress
        self._moments: Moments | None = None
        self._quantized: QuantizedModel | None = None
        self._mode = Mode.CLEAR

    @property
    def model(self) -> PreTrainedModel:
        """The stock model, its protected layers quantized."""
        return self._quantize().model

    @property
    def mode(self) -> Mode:
        """clear or simulate."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode is Mode.REMOTE:
            raise WrongMode(
                "This model has no layer server yet: `split` it, have `confide serve` serve the server folder, and "
                "open the client folder with HybridModel.from_shell."
            )
        self._mode = mode
        if self._quantized is not None:
            self._use(self._quantized)

    def calibrate(self, inputs: Iterable[str | Tensor], progress: OnTokens | None = None) -> None:
        """Have layers of less than 8 bits rounded by what they read on typical inputs; see `calibration.collect`.

        inputs: texts, or token ids int64 (texts, tokens). WrongMode once the model is quantized, and without a
        tokenizer for texts; ConfideError where no layer has less than 8 bits.
        """
        if self._quantized is not None:
            raise WrongMode("This model is quantized already; calibrate before it first runs, or open it again.")
        self._moments = calibrate(self._model, self._chosen, self._recipe, map(self._ids, inputs), progress)

    def _ids(self, given: str | Tensor) -> Tensor:
        if isinstance(given, Tensor):
            return given
        if self.tokenizer is None:
            raise WrongMode("This model has no tokenizer; calibrate with token ids instead of texts.")
        return cast(Tensor, self.tokenizer(given, return_tensors="pt")["input_ids"])

    def _quantize(self) -> QuantizedModel:
        if self._quantized is None:
            quantized = QuantizedModel.quantize(
                self._model,
                self._chosen,
                recipe=self._recipe,
                profile=self._profile,
                moments=self._moments,
                progress=self._on_progress,
            )
            self._use(quantized)
            self._quantized = quantized
        return self._quantized

    def _use(self, quantized: QuantizedModel) -> None:
        simulated = self._mode is Mode.SIMULATE
        quantized.use(SimulatedProduct.of(quantized) if simulated else ClearProduct(quantized.matrices))

    def split(
        self, out: Path | str, owner: OwnerKey, *, hint: bool = True, on_hint: OnHint | None = None
    ) -> SplitSummary:
        """Write the two halves to a folder; see `write_split`."""
        return write_split(self._quantize(), self.tokenizer, out, owner=owner, hint=hint, on_hint=on_hint)

    @property
    def trust(self) -> TrustStatement:
        """Who can see what: nothing is protected here."""
        return local_trust()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`."""
        model: Any = self.model  # its stubs do not say that it generates
        return model.generate(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' forward pass."""
        return self.model(*args, **kwargs)
