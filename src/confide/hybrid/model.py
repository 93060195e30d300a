"""A private language model: the stock transformers model of a shell, with its protected layers on a layer server."""

from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from confide.hybrid.client import HybridClient
from confide.hybrid.closing import Closing
from confide.hybrid.link import PATIENCE_SECONDS
from confide.hybrid.prepare import OnProgress
from confide.hybrid.product import OnlineTraffic, RemoteProduct
from confide.models.shell import load_shell, shell_tokenizer


class HybridModel(Closing):
    """A causal language model whose protected layers run on a server that sees uniform numbers only.

    `generate` is that of transformers, with KV cache, sampling, beams, batches and streamers; `model` is the stock
    model behind it, `tokenizer` the shell's, or None where it came without one.
    """

    def __init__(self, client: HybridClient, model: PreTrainedModel, product: RemoteProduct) -> None:
        self.client = client
        self.model = model
        self._product = product
        self.tokenizer = shell_tokenizer(client.folder)

    @classmethod
    def from_shell(
        cls,
        folder: Path | str,
        *,
        server: str,
        owner: str | bytes | None = None,
        packs: Path | str | None = None,
        device: str = "cpu",
        licence: str = "",
        ca: Path | str | None = None,
        patience: float = PATIENCE_SECONDS,
        insecure_no_tls: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Self:
        """Open a shell for the layer server at an address such as wss://layers.example:8470.

        owner, licence, ca, patience: see HybridClient.
        """
        client = HybridClient(
            folder,
            server,
            owner=owner,
            packs=packs,
            licence=licence,
            ca=ca,
            patience=patience,
            insecure_no_tls=insecure_no_tls,
        )
        try:
            product = client.product(on_progress)
            model = load_shell(client.folder, product, device, {client.release.owner})
            return cls(client, model, product)
        except BaseException:
            client.close()
            raise

    @property
    def traffic(self) -> OnlineTraffic:
        """Bytes and round trips since the model was opened."""
        return self._product.traffic

    @property
    def tokens_left(self) -> int:
        """Masks that are ready."""
        return self._product.tokens_left

    def prepare(self, tokens: int = 1, on_progress: OnProgress | None = None) -> None:
        """Prepare masks for at least this many more tokens now, rather than when they run out."""
        self._product.add_packs(self.client.prepare(tokens, on_progress))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`, unchanged.

        After an interruption, of the connection or by the keyboard, the same call again repeats what was sent, which
        costs no token twice, and goes on from there.
        """
        model: Any = self.model  # its stubs do not say that it generates
        with self._product.run():
            return model.generate(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' forward pass, unchanged."""
        return self.model.forward(*args, **kwargs)

    def close(self) -> None:
        """Close the connection and give the packs up; masks taken and not used are burned."""
        self._product.close()
        self.client.close()
