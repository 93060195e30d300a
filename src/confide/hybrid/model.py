"""A private language model: the stock transformers model of a shell, with its protected layers on a layer server."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.hybrid import wire
from confide.hybrid.connection import LayerConnection
from confide.hybrid.packs import MaskPack, PackStore
from confide.hybrid.prepare import OnProgress, Traffic, pack_traffic, prepare_pack
from confide.hybrid.product import OnlineTraffic, RemoteProduct
from confide.hybrid.supply import MaskSupply
from confide.models.package import Manifest, read_manifest
from confide.models.shell import load_shell, shell_tokenizer
from confide.rlwe.scheme import RLWE, Scheme

_log = logging.getLogger(__name__)


class HybridClient:
    """The client of one layer server for one shell: its packs, its connections, its offline phase.

    folder: the shell. packs: where mask packs lie, `packs` inside the shell by default.
    """

    def __init__(
        self,
        folder: Path | str,
        server: str,
        *,
        packs: Path | str | None = None,
        insecure_no_tls: bool = False,
        scheme: Scheme = RLWE,
    ) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        self.parameters = [group.parameters(self.manifest.profile) for group in self.manifest.groups]
        self._server = server
        self._scheme = scheme
        self._insecure_no_tls = insecure_no_tls
        with self.connect() as connection:
            self._server_seed = connection.server_seed
        self.store = PackStore(Path(packs or self.folder / "packs"), self.manifest.model_digest, self.parameters)

    def connect(self) -> LayerConnection:
        """A new greeted connection."""
        return LayerConnection(
            self._server,
            scheme=self._scheme.name,
            model_digest=bytes.fromhex(self.manifest.model_digest),
            table_digest=self.manifest.table_digest(),
            insecure_no_tls=self._insecure_no_tls,
        )

    @property
    def traffic(self) -> Traffic:
        """What preparing one pack costs."""
        return pack_traffic(self.store, self.parameters)

    @property
    def tokens_left(self) -> int:
        """Masks on disk that can still be used."""
        return sum(pack.tokens_left for pack in self._packs() if pack.prepared)

    def _packs(self) -> list[MaskPack]:
        return self.store.packs(self._server_seed)

    def ready_packs(self) -> list[MaskPack]:
        """The prepared packs with masks left, after burning what the server has answered; spent ones are deleted."""
        ready = []
        with self.connect() as connection:
            for pack in self._packs():
                if pack.prepared:
                    self._synchronise(pack, connection)
                    if pack.tokens_left:
                        ready.append(pack)
                    else:
                        self.store.discard(pack)
        return ready

    def _synchronise(self, pack: MaskPack, connection: LayerConnection) -> None:
        state = connection.request(wire.OpenPack(pack.id), wire.PackState)
        name = pack.facts.pack[:8]
        if state.groups < len(self.parameters):
            _log.warning("The server has lost its record of pack %s; its masks are burned.", name)
            pack.burn_to(pack.facts.tokens)
        elif burned := pack.burn_to(state.mark):
            _log.warning(
                "%d masks of pack %s were burned: the server has answered more than this folder knows of. "
                "If the folder is a restored copy, never use the other copy again.",
                burned,
                name,
            )

    def prepare(self, tokens: int = 1, on_progress: OnProgress | None = None) -> list[MaskPack]:
        """Prepare packs until at least `tokens` more masks are on disk; resumes an interrupted pack first."""
        made: list[MaskPack] = []
        unfinished = [pack for pack in self._packs() if not pack.prepared]
        with self.connect() as connection:
            while sum(pack.tokens_left for pack in made) < tokens:
                pack = unfinished.pop(0) if unfinished else self.store.create(self._server_seed)
                prepare_pack(self.manifest, connection, pack, self._scheme, on_progress)
                made.append(pack)
        return made

    def product(self, on_progress: OnProgress | None = None) -> RemoteProduct:
        """The integer products of the shell's model. Where masks run out, another pack is prepared."""

        def refill() -> MaskPack:
            _log.warning("No unused mask is left: preparing another pack of %d tokens.", self.traffic.tokens)
            return self.prepare(1, on_progress)[0]

        supply = MaskSupply(self.store, self.ready_packs(), len(self.parameters), refill)
        return RemoteProduct(self.connect, supply, self.parameters)

    def close(self) -> None:
        """Give the pack folder up."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HybridModel:
    """A causal language model whose protected layers run on a server that sees uniform numbers only.

    `generate` is that of transformers, with KV cache, sampling, beams, batches and streamers; `model` is the stock
    model behind it.
    """

    def __init__(self, client: HybridClient, model: PreTrainedModel, product: RemoteProduct) -> None:
        self.client = client
        self.model = model
        self._product = product

    @classmethod
    def from_shell(
        cls,
        folder: Path | str,
        *,
        server: str,
        packs: Path | str | None = None,
        device: str = "cpu",
        insecure_no_tls: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Self:
        """Open a shell for the layer server at an address such as ws://127.0.0.1:8470."""
        client = HybridClient(folder, server, packs=packs, insecure_no_tls=insecure_no_tls)
        try:
            product = client.product(on_progress)
            return cls(client, load_shell(client.folder, product, device), product)
        except BaseException:
            client.close()
            raise

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The shell's tokenizer, or None for a model that came without one."""
        return shell_tokenizer(self.client.folder)

    @property
    def traffic(self) -> OnlineTraffic:
        """Bytes and round trips since the model was opened."""
        return self._product.traffic

    def prepare(self, tokens: int = 1, on_progress: OnProgress | None = None) -> None:
        """Prepare masks for at least this many more tokens now, rather than when they run out."""
        self._product.add_packs(self.client.prepare(tokens, on_progress))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`, unchanged."""
        return self.model.generate(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' forward pass, unchanged."""
        return self.model(*args, **kwargs)

    def close(self) -> None:
        """Close the connection and give the packs up; masks taken and not used are burned."""
        self._product.close()
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
