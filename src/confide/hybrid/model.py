"""The hybrid mode's front door: one model, run in the clear, simulated, or on a layer server under encryption."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.errors import WrongMode
from confide.hybrid.bars import group_bar, preparation_bar, token_count
from confide.hybrid.client.client import HybridClient
from confide.hybrid.client.generation import Lengths
from confide.hybrid.client.padding import Padding
from confide.hybrid.client.prepare import OnProgress
from confide.hybrid.client.product import OnlineTraffic
from confide.hybrid.client.remote import RemoteModel
from confide.hybrid.closing import Closing
from confide.hybrid.local import LocalModel
from confide.hybrid.mode import Mode
from confide.models.precision import Recipe
from confide.models.source import open_model
from confide.models.split import SplitSummary
from confide.packages.owner import OwnerKey
from confide.rlwe.parameters import Profile
from confide.trust.statement import TrustStatement


class HybridModel(Closing):
    """A causal language model whose protected layers are, or can be, computed by a server that sees uniform numbers.

        model = HybridModel("gpt2", protect="all")      # quantized, in the clear
        model.calibrate(texts)                          # where a recipe gives layers less than 8 bits
        model.mode = "simulate"                         # the protocol's arithmetic, the same integers
        model.split("out", owner=OwnerKey.generate())   # two folders, one for the server
        private = HybridModel.from_shell("out/client", server="wss://layers.example:8470")

    `generate` is that of transformers, with KV cache, sampling, beams, batches and streamers. `model` is the stock
    model behind it, `tokenizer` its tokenizer, or None where it came without one.

    model: a hub id, a folder, `demo`, or a stock model that is already loaded, which is changed. protect: see
    `ModelLayers.select`. recipe: bits by layer. progress: show bars, in terminals and notebooks.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        *,
        protect: str = "all",
        recipe: Recipe | None = None,
        profile: Profile = Profile.PRIVATE_WEIGHTS,
        tokenizer: PreTrainedTokenizerBase | None = None,
        progress: bool = True,
    ) -> None:
        if isinstance(model, str | Path):
            source = open_model(str(model))
            model, tokenizer = source.load_model(), tokenizer or source.load_tokenizer()
        self._progress = progress
        bar = group_bar("quantizing") if progress else None
        self._running: LocalModel | RemoteModel = LocalModel(model, tokenizer, protect, recipe, profile, bar)

    @classmethod
    def from_shell(
        cls,
        folder: Path | str,
        *,
        server: str,
        progress: bool = True,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Self:
        """Open a shell for the layer server at an address such as wss://layers.example:8470.

        on_progress: instead of the bar that `progress` shows while masks are prepared. options: see
        `RemoteModel.from_shell`.
        """
        on_progress = on_progress or (preparation_bar() if progress else None)
        model = cls.__new__(cls)
        model._progress = progress
        model._running = RemoteModel.from_shell(folder, server=server, on_progress=on_progress, **options)
        return model

    @property
    def mode(self) -> Mode:
        """Where the products are computed. A model that is here can be switched between clear and simulate."""
        return self._running.mode

    @mode.setter
    def mode(self, mode: str) -> None:
        chosen = Mode(mode)
        if chosen is not self.mode:
            self._local("switched").mode = chosen

    @property
    def model(self) -> PreTrainedModel:
        """The stock model, its protected layers without matrices."""
        return self._running.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer."""
        return self._running.tokenizer

    @property
    def trust(self) -> TrustStatement:
        """Who can see prompt, weights and output."""
        return self._running.trust

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`. On a server: IntegrityError once it is over, if an answer was wrong.

        After an interruption, of the connection or by the keyboard, the same call again repeats what was sent, which
        costs no token twice, and goes on from there.
        """
        return self._running.generate(*args, **kwargs)

    def chat(self, messages: list[dict[str, str]], **options: Any) -> str:
        """The answer to a conversation, by the tokenizer's chat template; options are those of `generate`.

        messages: such as [{"role": "user", "content": "..."}]. WrongMode where there is no template.
        """
        tokenizer = self.tokenizer
        if tokenizer is None or tokenizer.chat_template is None:
            raise WrongMode("This model has no chat template; use generate, or a model that was trained to chat.")
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        given = cast(dict[str, Tensor], inputs)
        sequence = self.generate(**given, **options)[0, given["input_ids"].shape[1] :]
        return str(tokenizer.decode(sequence, skip_special_tokens=True))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' forward pass. On a server: IntegrityError when it is over, if an answer was wrong."""
        return self._running(*args, **kwargs)

    def calibrate(self, inputs: Iterable[str | Tensor]) -> None:
        """Have layers of less than 8 bits rounded by what they read on typical inputs; see `LocalModel.calibrate`."""
        self._local("calibrated").calibrate(inputs, token_count() if self._progress else None)

    def split(self, out: Path | str, owner: OwnerKey) -> SplitSummary:
        """Write out/client and out/server, signed by the owner; see `write_split`."""
        return self._local("split").split(out, owner)

    def _local(self, what: str) -> LocalModel:
        if isinstance(self._running, LocalModel):
            return self._running
        raise WrongMode(f"The matrices of this model are on its server, so it cannot be {what}; open the model itself.")

    @property
    def _remote(self) -> RemoteModel:
        if isinstance(self._running, RemoteModel):
            return self._running
        raise WrongMode(f"In the mode {self.mode} there is no server; open the client folder with from_shell.")

    @property
    def client(self) -> HybridClient:
        """Everything about the server: packs, connections, the offline phase."""
        return self._remote.client

    @property
    def traffic(self) -> OnlineTraffic:
        """Bytes and round trips since the model was opened."""
        return self._remote.traffic

    @property
    def tokens_left(self) -> int:
        """Masks that are ready."""
        return self._remote.tokens_left

    @property
    def padding(self) -> Padding:
        """What the server sees of lengths."""
        return self._remote.padding

    @property
    def lengths(self) -> Lengths | None:
        """Of the last generation: its tokens, and what the server saw of them."""
        return self._remote.lengths

    def prepare(self, tokens: int = 1, on_progress: OnProgress | None = None) -> None:
        """Prepare masks for at least this many more tokens now, rather than when they run out."""
        self._remote.prepare(tokens, on_progress)

    def close(self) -> None:
        """Close the connection and give the packs up; masks taken and not used are burned."""
        if isinstance(self._running, RemoteModel):
            self._running.close()
