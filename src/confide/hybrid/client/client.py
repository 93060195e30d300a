"""One shell's dealings with its layer server: connections, the offline phase, and the packs that are ready."""

import logging
from pathlib import Path

from confide.errors import ServerChanged, UnusablePack
from confide.hybrid import wire
from confide.hybrid.client.connection import OFFLINE_SECONDS, ONLINE_SECONDS, LayerConnection
from confide.hybrid.client.link import PATIENCE_SECONDS, Link
from confide.hybrid.client.packs import MaskPack, PackStore
from confide.hybrid.client.padding import Padding
from confide.hybrid.client.prepare import OnProgress, Traffic, pack_traffic, prepare_pack
from confide.hybrid.client.product import CheckedGroup, RemoteProduct
from confide.hybrid.client.refill import BackgroundRefill, RefillOrder
from confide.hybrid.client.refusals import Breach, RefusalList
from confide.hybrid.client.supply import MaskSupply
from confide.hybrid.closing import Closing
from confide.net.tls import client_context
from confide.packages.checks import CHECKS_NAME, read_checks
from confide.packages.manifest import PackageKind
from confide.packages.owner import OwnerPublicKey
from confide.packages.signing import open_package
from confide.packages.trusted import trusted_owners
from confide.rlwe.scheme import RLWE, Scheme

_log = logging.getLogger(__name__)


class HybridClient(Closing):
    """The client of one layer server for one shell: its packs, its connections, its offline phase.

    folder: the shell. packs: where mask packs lie, `packs` inside the shell by default. owner: the public key that
    must have signed the shell; without it, any of the `trusted_owners`. licence: the bearer key that the model's owner
    gave, where the server wants one. checks: the check vectors, `checks.msgpack` in the shell by default. ca: file of
    the authorities to trust at a wss:// address, instead of the system's. patience: seconds that preparing and
    generating wait for a server that is away; the first contact does not wait.

    Raises UntrustedOwner for the shell of another owner, InvalidPackage without check vectors, for no answer is
    believed unchecked, and ServerDistrusted where this server gave a wrong answer before.
    """

    def __init__(
        self,
        folder: Path | str,
        server: str,
        *,
        owner: str | bytes | None = None,
        packs: Path | str | None = None,
        checks: Path | str | None = None,
        licence: str = "",
        ca: Path | str | None = None,
        patience: float = PATIENCE_SECONDS,
        insecure_no_tls: bool = False,
        scheme: Scheme = RLWE,
    ) -> None:
        self.folder = Path(folder)
        trusted = trusted_owners() if owner is None else {OwnerPublicKey.parse(owner)}
        signed = open_package(self.folder, PackageKind.SHELL, trusted)
        self.manifest = signed.manifest
        self.release = signed.release
        self.parameters = [group.parameters(self.manifest.profile) for group in self.manifest.groups]
        self._server = server
        self._scheme = scheme
        self._licence = licence
        self._ca = ca
        self._trust = client_context(ca)
        self._refill: BackgroundRefill | None = None
        self._patience = patience
        self._insecure_no_tls = insecure_no_tls
        self._checks_path = Path(checks or self.folder / CHECKS_NAME)
        self._checks = read_checks(self._checks_path, self.manifest)
        packs = Path(packs or self.folder / "packs")
        self._refused = RefusalList(packs)
        self._refused.require_trusted(self.manifest.model_digest, server=server)
        with self._greet(ONLINE_SECONDS) as connection:
            self._server_seed = connection.server_seed
        self._require_trusted()
        self.store = PackStore(packs, self.manifest.model_digest, self.parameters)

    def _require_trusted(self) -> None:
        self._refused.require_trusted(self.manifest.model_digest, seed=self._server_seed)

    def connect(self, silence: float = ONLINE_SECONDS) -> LayerConnection:
        """A new greeted connection to the server of before; ServerChanged where another one answers."""
        connection = self._greet(silence)
        if connection.server_seed != self._server_seed:
            connection.close()
            raise ServerChanged(
                "The server has changed its seed since this client connected: its state is new or was restored, and "
                "the packs made with it are worthless; open the client again to make new ones."
            )
        return connection

    def _greet(self, silence: float) -> LayerConnection:
        return LayerConnection(
            self._server,
            scheme=self._scheme.name,
            release=self.release,
            licence=self._licence,
            trust=self._trust,
            silence=silence,
            insecure_no_tls=self._insecure_no_tls,
        )

    @property
    def traffic(self) -> Traffic:
        """What preparing one pack costs."""
        return pack_traffic(self.parameters)

    @property
    def tokens_left(self) -> int:
        """Masks on disk that can still be used."""
        return sum(pack.tokens_left for pack in self._packs() if pack.prepared)

    def _packs(self) -> list[MaskPack]:
        return self.store.packs(self._server_seed)

    def ready_packs(self) -> list[MaskPack]:
        """The prepared packs with masks left, after burning what the server has answered; spent ones are deleted."""
        ready = []
        self.store.adopt(self._ahead, self._server_seed)
        with self.connect() as connection:
            for pack in self._packs():
                if pack.prepared:
                    self._synchronise(pack, connection)
                    if pack.tokens_left:
                        ready.append(pack)
                    else:
                        self.store.discard(pack)
        if not ready and (foreign := self.store.foreign_packs(self._server_seed)):
            _log.warning(
                "%d packs in %s are of no use with this server: they were made with another one, or with this one "
                "before its ledger was restored. New masks will be prepared; delete the old ones if there is no other "
                "server.",
                foreign,
                self.store.folder,
            )
        return ready

    def _synchronise(self, pack: MaskPack, connection: LayerConnection) -> None:
        state = connection.request(wire.OpenPack(pack.id), wire.PackState)
        name = pack.facts.pack[:8]
        if state.groups < len(self.parameters):
            _log.warning("The server has lost its record of pack %s; its masks are burned.", name)
            pack.burn_to(pack.facts.tokens)
        elif state.mark < pack.answered_to:
            _log.warning(
                "The server's record of pack %s is older than this client's: it ends at mask %d, and the server has "
                "answered up to %d. Its state was put back from a copy, so the masks are burned; its operator should "
                "run `confide ledger restore`.",
                name,
                state.mark,
                pack.answered_to,
            )
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
        with Link(lambda: self.connect(OFFLINE_SECONDS), self._patience) as link:
            while sum(pack.tokens_left for pack in made) < tokens:
                pack = unfinished.pop(0) if unfinished else self.store.create(self._server_seed)
                try:
                    prepare_pack(self.manifest, link, pack, self._scheme, on_progress)
                except UnusablePack as error:
                    _log.warning("Pack %s is discarded: %s", pack.facts.pack[:8], error)
                    self.store.discard(pack)
                    continue
                made.append(pack)
        return made

    def product(
        self, on_progress: OnProgress | None = None, padding: Padding | None = None, *, refill_ahead: bool = False
    ) -> RemoteProduct:
        """The integer products of the shell's model. Where masks run out, another pack is prepared.

        refill_ahead: prepare the next pack in the background as soon as less than a pack is left.
        """
        self._require_trusted()
        if refill_ahead:
            self._refill = BackgroundRefill(self._refill_order())

        def refill() -> list[MaskPack]:
            if self._refill is not None and self._refill.wait():
                return self.store.adopt(self._ahead, self._server_seed)
            _log.warning("No unused mask is left: preparing another pack of %d tokens.", self.traffic.tokens)
            return self.prepare(1, on_progress)

        supply = MaskSupply(self.store, self.ready_packs(), len(self.parameters), refill, self._refill_early)
        checks = self._checks.answer_checks(self.manifest.groups)
        groups = list(map(CheckedGroup, self.manifest.groups, self.parameters, checks))
        link = Link(self.connect, self._patience)
        return RemoteProduct(link, supply, groups, padding or Padding(), self.distrust)

    def _refill_early(self, tokens_left: int) -> list[MaskPack]:
        """Keep a pack ahead: what has become ready in the background, and the order for the next."""
        if self._refill is None or tokens_left >= self.parameters[0].tokens:
            return []
        if self._refill.finished():
            return self.store.adopt(self._ahead, self._server_seed)
        self._refill.start()
        return []

    @property
    def _ahead(self) -> Path:
        return self.store.folder / "ahead"

    def _refill_order(self) -> RefillOrder:
        return RefillOrder(
            folder=str(self.folder.absolute()),
            server=self._server,
            packs=str(self._ahead.absolute()),
            checks=str(self._checks_path.absolute()),
            owner=str(self.release.owner),
            licence=self._licence,
            ca=None if self._ca is None else str(Path(self._ca).absolute()),
            patience=self._patience,
            insecure_no_tls=self._insecure_no_tls,
        )

    def distrust(self, breach: Breach) -> None:
        """Refuse this server from now on, durably, and burn every pack that was made with it."""
        self._refused.add(self._server, self._server_seed, self.manifest.model_digest, breach)
        if self._refill is not None:
            self._refill.close()
        self.store.adopt(self._ahead, self._server_seed, unfinished=True)
        for pack in self._packs():
            self.store.discard(pack)

    def close(self) -> None:
        """Give the pack folder up; a pack that is being prepared in the background stays unfinished."""
        if self._refill is not None:
            self._refill.close()
        self.store.close()
