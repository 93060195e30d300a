"""A private language model: the stock transformers model of a shell, with its protected layers on a layer server."""

from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from confide.hybrid.client.client import HybridClient
from confide.hybrid.client.generation import Lengths, PaddedGeneration
from confide.hybrid.client.link import PATIENCE_SECONDS
from confide.hybrid.client.padding import Padding
from confide.hybrid.client.prepare import OnProgress
from confide.hybrid.client.product import OnlineTraffic, RemoteProduct
from confide.hybrid.closing import Closing
from confide.hybrid.mode import Mode
from confide.packages.shell import load_shell, shell_tokenizer
from confide.trust.hybrid import remote_trust
from confide.trust.statement import TrustStatement


class RemoteModel(Closing):
    """A causal language model whose protected layers run on a server that sees uniform numbers only.

    `generate` is that of transformers, with KV cache, sampling, beams, batches and streamers; `model` is the stock
    model behind it, `tokenizer` the shell's, or None where it came without one.

    Every answer of the server is checked. After a wrong one `generate` goes on to the longest padded length with
    numbers that mean nothing, and only then raises IntegrityError; the server is refused from then on.

    lengths: of the last generation, its tokens and what the server saw of them.
    """

    mode = Mode.REMOTE

    def __init__(self, client: HybridClient, model: PreTrainedModel, product: RemoteProduct) -> None:
        self.client = client
        self.model = model
        self._product = product
        self.lengths: Lengths | None = None
        self.tokenizer = shell_tokenizer(client.folder)
        model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        model.register_forward_hook(self._after_forward)

    @classmethod
    def from_shell(
        cls,
        folder: Path | str,
        *,
        server: str,
        owner: str | bytes | None = None,
        packs: Path | str | None = None,
        checks: Path | str | None = None,
        padding: Padding | None = None,
        device: str = "cpu",
        licence: str = "",
        ca: Path | str | None = None,
        patience: float = PATIENCE_SECONDS,
        refill_ahead: bool = False,
        insecure_no_tls: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Self:
        """Open a shell for the layer server at an address such as wss://layers.example:8470.

        padding: what the server sees of lengths. refill_ahead: prepare the next pack in the background while the
        present one is spent, which slows generating a little. owner, checks, licence, ca, patience: see HybridClient.
        """
        client = HybridClient(
            folder,
            server,
            owner=owner,
            packs=packs,
            checks=checks,
            licence=licence,
            ca=ca,
            patience=patience,
            insecure_no_tls=insecure_no_tls,
        )
        try:
            product = client.product(on_progress, padding, refill_ahead=refill_ahead)
            model = load_shell(client.folder, product, device, {client.release.owner})
            return cls(client, model, product)
        except BaseException:
            client.close()
            raise

    @property
    def trust(self) -> TrustStatement:
        """Who can see what."""
        return remote_trust(self.client.manifest.profile)

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
        """transformers' `generate`; IntegrityError once it is over, if an answer was wrong.

        After an interruption, of the connection or by the keyboard, the same call again repeats what was sent, which
        costs no token twice, and goes on from there.
        """
        generation = PaddedGeneration(self.model, self._product)
        try:
            return generation.run(*args, **kwargs)
        finally:
            self.lengths = generation.lengths

    @property
    def padding(self) -> Padding:
        """What the server sees of lengths."""
        return self._product.padding

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' forward pass; IntegrityError when it is over, if an answer was wrong."""
        return self.model(*args, **kwargs)

    def _before_forward(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        self._product.width = next((len(given) for given in inputs if given is not None), 1)

    def _after_forward(self, *_: Any) -> None:
        if not self._product.generating:
            self._product.require_intact()

    def close(self) -> None:
        """Close the connection and give the packs up; masks taken and not used are burned."""
        self._product.close()
        self.client.close()
