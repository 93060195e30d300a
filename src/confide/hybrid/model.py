"""The hybrid mode's front door: one model, run in the clear, simulated, or on a layer server under encryption."""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self, cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.audit.log import note
from confide.errors import (
    InvalidPackage,
    InvalidPlacement,
    ModelMismatch,
    ServerDistrusted,
    UntrustedOwner,
    VersionMismatch,
    WrongGroups,
    WrongMode,
)
from confide.hybrid.bars import byte_bar, group_bar, token_count
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import PATIENCE_SECONDS, Dial
from confide.hybrid.client.generation import Generated, Lengths, PaddedGeneration, width_and_length
from confide.hybrid.client.links import Links
from confide.hybrid.client.padding import Padding
from confide.hybrid.client.pads.pool import PadPool
from confide.hybrid.client.pads.source import PadSource, lattice_pads, one_time_pads
from confide.hybrid.client.product import CheckedGroup, OnlineTraffic, RemoteProduct
from confide.hybrid.client.refusals import RefusalList
from confide.hybrid.closing import Closing
from confide.hybrid.groups import Groups
from confide.hybrid.local import LocalModel
from confide.hybrid.mode import Mode
from confide.hybrid.placement import Placement
from confide.models.context import longest_context
from confide.models.conversation import render
from confide.models.ends import end_at_all
from confide.models.precision import Recipe
from confide.models.source import open_model
from confide.models.split import SplitSummary
from confide.packages.checks import CHECKS_NAME, read_checks
from confide.packages.hint import Hint, OnBytes
from confide.packages.manifest import PackageKind
from confide.packages.owner import OwnerKey
from confide.packages.server_package import read_group
from confide.packages.shell import load_shell, shell_tokenizer
from confide.packages.signing import Release, SignedManifest, open_package
from confide.packages.trusted_owners import accepted_owners, other_keys
from confide.rlwe.parameters import Profile
from confide.trust.hybrid import remote_trust
from confide.trust.statement import TrustStatement

_REFUSALS: Final = (
    InvalidPackage,
    InvalidPlacement,
    ModelMismatch,
    ServerDistrusted,
    UntrustedOwner,
    VersionMismatch,
    WrongGroups,
)
"""Of a shell or a server that is not to be used; what else fails is no verdict."""


class HybridModel(Closing):
    """A causal language model whose protected layers are, or can be, computed by a server that sees uniform numbers.

        model = HybridModel("gpt2", protect="all")      # quantized, in the clear
        model.calibrate(texts)                          # where a recipe gives layers less than 8 bits
        model.mode = "simulate"                         # the protocol's arithmetic, the same integers
        model.split("out", owner=OwnerKey.generate())   # two folders, one for the server
        private = HybridModel.from_shell("out/client", server="wss://layers.example:8470")

    `generate` is that of transformers, with KV cache, sampling, batches and streamers. `model` is the stock model
    behind it, whose own `generate` is the same on a server; `tokenizer` its tokenizer, or None where it came without
    one.

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
        end_at_all(model, tokenizer)
        self._progress = progress
        bar = group_bar("quantizing") if progress else None
        self._running: LocalModel | _Remote = LocalModel(model, tokenizer, protect, recipe, profile, bar)

    @classmethod
    def from_shell(
        cls,
        folder: Path | str,
        *,
        server: str | Path | Sequence[str],
        owner: str | bytes | None = None,
        checks: Path | str | None = None,
        licence: str = "",
        ca: Path | str | None = None,
        patience: float = PATIENCE_SECONDS,
        insecure_no_tls: bool = False,
        proxy: str | None = None,
        padding: Padding | None = None,
        device: str = "cpu",
        progress: bool = True,
    ) -> Self:
        """Open a shell for the layer server at an address such as wss://layers.example:8470.

        server: the address. Several are servers that have the model's layer groups between them, those with the same
        ones as replicas; each is asked what it has, or the file that `confide plan --machines` wrote says it (a Path).
        owner: the public key that must have signed the shell and the server's release; without it, any of the
        `trusted_owners`, and where one key took another's place, either. checks: the check vectors, `checks.msgpack` in
        the shell by default. padding: what the server sees of lengths. licence, ca, patience, insecure_no_tls,
        proxy: see `Dial`.

        Raises InvalidPlacement where servers leave layer groups out or overlap, WrongGroups for one that has not what
        it is asked for, UntrustedOwner for the shell or the check vectors of another owner, InvalidPackage without
        check vectors, for no answer is believed unchecked, StaleHint where the hint is not the shell's, and
        ServerDistrusted where one of the servers gave a wrong answer before.

        Where this user keeps an audit log, the verdict stands in it before anything follows.
        """
        placement: Placement | None = None
        placed: Sequence[tuple[str, Groups | None]]
        if isinstance(server, Path):
            placement = Placement.read(server)
            placed = placement.servers
        else:
            placed = [(address, None) for address in ([server] if isinstance(server, str) else server)]
        dials = [
            Dial(address, licence, ca, patience, insecure_no_tls=insecure_no_tls, proxy=proxy, groups=groups)
            for address, groups in placed
        ]
        peer = ", ".join(dial.url for dial in dials)
        try:
            opened = cls._dialled(Path(folder), dials, placement, owner, checks, padding, device, progress=progress)
        except _REFUSALS as error:
            note("refused", mode="hybrid", peer=peer, failed=(error.code,))
            raise
        try:
            note("connected", mode="hybrid", peer=peer, model=opened.release.model_digest.hex())
        except BaseException:
            opened.close()
            raise
        return opened

    @classmethod
    def _dialled(
        cls,
        folder: Path,
        dials: Sequence[Dial],
        placement: Placement | None,
        owner: str | bytes | None,
        checks: Path | str | None,
        padding: Padding | None,
        device: str,
        *,
        progress: bool,
    ) -> Self:
        shell = open_package(folder, PackageKind.SHELL, accepted_owners(owner))
        signer = shell.release.owner
        same_owner = other_keys(signer) if owner is None else set()
        vectors = read_checks(Path(checks or folder / CHECKS_NAME), shell.manifest, signer, same_owner)
        answer_checks = vectors.answer_checks(shell.manifest.groups)
        refused = RefusalList()
        digest = shell.manifest.model_digest
        for dial in dials:
            refused.require_trusted(dial.server, digest)
        if placement is not None:
            placement.require_model(shell.manifest)
        parameters = [group.parameters(shell.manifest.profile) for group in shell.manifest.groups]
        source = _pad_source(folder, shell, byte_bar("verifying the hint") if progress else None)
        pool = PadPool(source, parameters)  # begins its first block at once, while the model is loaded
        groups = list(map(CheckedGroup, shell.manifest.groups, parameters, answer_checks))
        with ExitStack() as stack:
            stack.callback(pool.close)
            links = Links(dials, len(groups), lambda dial: LayerConnection(dial, shell.release, same_owner), pool.drop)
            product = RemoteProduct(
                links, pool, groups, padding or Padding(), lambda server, breach: refused.add(server, digest, breach)
            )
            stack.callback(product.close)
            pool.on_block = product.announce_idle
            loaded = load_shell(folder, product, device, {signer})
            model = cls.__new__(cls)
            model._progress = progress
            tokenizer = shell_tokenizer(folder)
            end_at_all(loaded, tokenizer)
            model._running = _Remote(loaded, tokenizer, product, shell.release, dials)
            setattr(loaded, "generate", model.generate)  # noqa: B010 - its stubs have no such attribute
            stack.pop_all()
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

        There it runs on to the padded length, and refuses with WrongMode whatever makes its course depend on the text,
        such as beams, draft models and prompt look-up. ModelClosed once the model is closed.
        """
        return self._running.generate(*args, **kwargs)

    def chat(self, messages: list[dict[str, str]], **options: Any) -> str:
        """The answer to a conversation, by the tokenizer's chat template or a plain one; options as for `generate`.

        messages: such as [{"role": "user", "content": "..."}]. WrongMode where there is no tokenizer,
        ConversationRefused where the template refuses.
        """
        inputs = self.prompt(messages)
        sequence = self.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        return str(self._require_tokenizer().decode(sequence, skip_special_tokens=True))

    def prompt(self, messages: str | list[dict[str, str]]) -> dict[str, Tensor]:
        """What `generate` takes for a text, or for a conversation by the tokenizer's chat template or a plain one.

        input_ids and attention_mask, both (1, tokens). Raises what `chat` raises.
        """
        tokenizer = self._require_tokenizer()
        if isinstance(messages, str):
            return cast(dict[str, Tensor], dict(tokenizer(messages, return_tensors="pt")))
        text = render(tokenizer, messages)
        inputs = tokenizer(text, add_special_tokens=not tokenizer.chat_template, return_tensors="pt")
        return cast(dict[str, Tensor], dict(inputs))

    def _require_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise WrongMode("This model came without a tokenizer; use generate, with token ids.")
        return self.tokenizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' forward pass. On a server: IntegrityError when it is over, if an answer was wrong."""
        return self.model(*args, **kwargs)

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
    def _remote(self) -> "_Remote":
        if isinstance(self._running, _Remote):
            return self._running
        raise WrongMode(f"In the mode {self.mode} there is no server; open the client folder with from_shell.")

    @property
    def product(self) -> RemoteProduct:
        """The integer products on the server: traffic, padding, and what is ready ahead."""
        return self._remote.product

    @property
    def traffic(self) -> OnlineTraffic:
        """Bytes and round trips since the model was opened."""
        return self._remote.product.traffic

    @property
    def padding(self) -> Padding:
        """What the server sees of lengths."""
        return self._remote.product.padding

    @property
    def lengths(self) -> Lengths | None:
        """Of the last generation: its tokens, and what the server saw of them."""
        return self._remote.lengths

    @property
    def generated(self) -> Generated | None:
        """The calling thread's last generation that came to its end with every answer right."""
        return getattr(self._remote.of_thread, "generated", None)

    @property
    def release(self) -> Release:
        """The model's, by its owner."""
        return self._remote.release

    @property
    def dials(self) -> Sequence[Dial]:
        """How the servers are reached."""
        return self._remote.dials

    def close(self) -> None:
        """Close the connection and forget all pads. Whatever is asked of the model after that raises ModelClosed."""
        if isinstance(self._running, _Remote):
            self._running.product.close()


class _Remote:
    """A shell's model on a layer server. lengths: of its last generation. of_thread: each thread's last whole one."""

    mode = Mode.REMOTE

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        product: RemoteProduct,
        release: Release,
        dials: Sequence[Dial],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.product = product
        self.release = release
        self.dials = dials
        self.trust = remote_trust(release.profile)
        self.lengths: Lengths | None = None
        self.of_thread = threading.local()
        model.forward = _guarded(model.forward, product, longest_context(model.config))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        generation = PaddedGeneration(self.model, self.product)
        try:
            result = generation.run(*args, **kwargs)
        finally:
            self.lengths = generation.lengths
        if generation.traffic is not None:
            self.of_thread.generated = Generated(generation.lengths, generation.traffic)
        return result


def _guarded(forward: Callable[..., Any], product: RemoteProduct, positions: int | None) -> Callable[..., Any]:
    """A model's forward pass, one at a time; padding that leads beyond the model's positions stays at the last one."""

    @functools.wraps(forward)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        places = kwargs.get("position_ids")
        if positions is not None and places is not None and product.generating:
            kwargs["position_ids"] = places.clamp(max=positions - 1)
        with product.forward(width_and_length(args, kwargs)[0]):
            return forward(*args, **kwargs)

    return guarded


def _pad_source(folder: Path, shell: SignedManifest, on_hint: OnBytes | None) -> PadSource:
    manifest = shell.manifest
    parameters = [group.parameters(manifest.profile) for group in manifest.groups]
    if manifest.profile is Profile.OPEN_WEIGHTS:
        weights = [read_group(folder, manifest, index).weights for index in range(len(manifest.groups))]
        return one_time_pads(weights.__getitem__)
    return lattice_pads(manifest, Hint.open(folder, manifest, on_hint).rows, parameters)
