"""One shell's dealings with its layer server: connections, the offline phase, and the packs that are ready."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

from confide.errors import InvalidPackage, UnusablePack
from confide.hybrid import wire
from confide.hybrid.connection import LayerConnection
from confide.hybrid.distrust import Breach, RefusalList
from confide.hybrid.packs import MaskPack, PackStore
from confide.hybrid.padding import Padding
from confide.hybrid.prepare import OnProgress, Traffic, pack_traffic, prepare_pack
from confide.hybrid.product import CheckedGroup, RemoteProduct
from confide.hybrid.supply import MaskSupply
from confide.models.checks import CHECKS_NAME, read_checks
from confide.models.package import Manifest, PackageKind, read_manifest
from confide.rlwe.scheme import RLWE, Scheme

_log = logging.getLogger(__name__)


def _read_shell_manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.kind is not PackageKind.SHELL:
        raise InvalidPackage(f"{folder} is a server's package; give the client folder of the same split.")
    return manifest


class HybridClient:
    """The client of one layer server for one shell: its packs, its connections, its offline phase.

    folder: the shell. packs: where mask packs lie, `packs` inside the shell by default. checks: the check vectors,
    `checks.msgpack` in the shell by default. InvalidPackage without them: no answer is believed unchecked.
    ServerDistrusted where this server gave a wrong answer before.
    """

    def __init__(
        self,
        folder: Path | str,
        server: str,
        *,
        packs: Path | str | None = None,
        checks: Path | str | None = None,
        insecure_no_tls: bool = False,
        scheme: Scheme = RLWE,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = _read_shell_manifest(self.folder)
        self.parameters = [group.parameters(self.manifest.profile) for group in self.manifest.groups]
        self._server = server
        self._scheme = scheme
        self._insecure_no_tls = insecure_no_tls
        self._checks = read_checks(Path(checks or self.folder / CHECKS_NAME), self.manifest)
        packs = Path(packs or self.folder / "packs")
        self._refused = RefusalList(packs)
        self._refused.require_trusted(self.manifest.model_digest, server=server)
        with self.connect() as connection:
            self._server_seed = connection.server_seed
        self._require_trusted()
        self.store = PackStore(packs, self.manifest.model_digest, self.parameters)

    def _require_trusted(self) -> None:
        self._refused.require_trusted(self.manifest.model_digest, seed=self._server_seed)

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
        self._require_trusted()
        made: list[MaskPack] = []
        unfinished = [pack for pack in self._packs() if not pack.prepared]
        with self.connect() as connection:
            while sum(pack.tokens_left for pack in made) < tokens:
                pack = unfinished.pop(0) if unfinished else self.store.create(self._server_seed)
                try:
                    prepare_pack(self.manifest, connection, pack, self._scheme, on_progress)
                except UnusablePack as error:
                    _log.warning("Pack %s is discarded: %s", pack.facts.pack[:8], error)
                    self.store.discard(pack)
                    continue
                made.append(pack)
        return made

    def product(self, on_progress: OnProgress | None = None, padding: Padding | None = None) -> RemoteProduct:
        """The integer products of the shell's model. Where masks run out, another pack is prepared."""

        self._require_trusted()

        def refill() -> MaskPack:
            _log.warning("No unused mask is left: preparing another pack of %d tokens.", self.traffic.tokens)
            return self.prepare(1, on_progress)[0]

        supply = MaskSupply(self.store, self.ready_packs(), len(self.parameters), refill)
        checks = self._checks.answer_checks(self.manifest.groups)
        groups = list(map(CheckedGroup, self.manifest.groups, self.parameters, checks))
        return RemoteProduct(self.connect, supply, groups, padding or Padding(), self.distrust)

    def distrust(self, breach: Breach) -> None:
        """Refuse this server from now on, durably, and burn every pack that was made with it."""
        self._refused.add(self._server, self._server_seed, self.manifest.model_digest, breach)
        for pack in self._packs():
            self.store.discard(pack)

    def close(self) -> None:
        """Give the pack folder up."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
