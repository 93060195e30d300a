"""What the layer server does with each message, without the network: bytes in, bytes out.

One `LayerService` holds the weights and the ledger for all clients; one `Session` follows one client's connection.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from cryptography.hazmat.primitives.poly1305 import Poly1305
from numpy.typing import NDArray
from torch import Tensor

from confide.errors import (
    LicenceRefused,
    MalformedMessage,
    ModelMismatch,
    ProtocolError,
    UnknownGroup,
    VersionMismatch,
    WrongShape,
)
from confide.hybrid import wire
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger.journal import Entry
from confide.hybrid.server.ledger.usage import Account, Answerable, solving_tokens
from confide.packages.signing import SignedManifest
from confide.rlwe import online
from confide.rlwe.evaluation import RequestKey, shares
from confide.rlwe.packed import PackedMatrix
from confide.rlwe.parameters import Parameters, Profile
from confide.rlwe.scheme import Scheme, ServerHalf
from confide.rlwe.streams import derive_key

FRAME_ROWS = 128
"""Output rows in one frame of the offline answer: 10 bytes x 4096 x 128 is 5 MiB."""

SHARE_TOKENS = 16
"""Tokens whose shares are made at a time while decoding."""
SHARE_BLOCKS = 4096
"""Blocks of shares kept: at most 16 x 4 bytes an output each."""

Observer = Callable[[wire.Online], None]
"""Called with every online message before it is answered: what the server sees, for audits and tests."""


@dataclass(frozen=True)
class Admitted:
    """An online request that was checked and spent, and waits for its answer. masked: int32 (count, columns)."""

    pack: bytes
    first: int
    masked: NDArray[np.int32] = field(repr=False)


class LayerService:
    """The protected layers of one model, their parameters, and the record of what was answered.

    weights: one int8 matrix (rows, columns) per group of the manifest, in order. insecure_no_licences: answer clients
    without a licence too; with private weights that gives the weights away in time.
    """

    def __init__(
        self,
        signed: SignedManifest,
        weights: list[Tensor],
        ledger: Ledger,
        scheme: Scheme,
        observer: Observer | None = None,
        *,
        insecure_no_licences: bool = False,
    ) -> None:
        self.manifest = manifest = signed.manifest
        self.release = signed.release
        self.ledger = ledger
        self.scheme = scheme
        self.model_digest = self.release.model_digest
        self.table_digest = self.release.table_digest
        self._release_signature = bytes.fromhex(signed.signature.release)
        self._weights = weights
        self._online_weights = [PackedMatrix.where_faster(matrix) for matrix in weights]
        self._parameters = [group.parameters(manifest.profile) for group in manifest.groups]
        self._answerable = [_answerable(parameters) for parameters in self._parameters]
        self._observer = observer
        self._licences_optional = insecure_no_licences or manifest.profile is Profile.OPEN_WEIGHTS
        self._requests: dict[tuple[bytes, int], RequestKey] = {}
        self._shares: dict[tuple[bytes, int], tuple[int, Tensor]] = {}
        # Retries are recognised by a tag, also after a restart. Nobody sees the tags, so a polynomial hash cannot be
        # made to collide although its key serves many messages.
        self._tag_key = derive_key(ledger.server_key, "retry tags")

    def welcome(self, hello: wire.Hello) -> tuple[Account, wire.Welcome]:
        """Check that the client's version, scheme and shell are this server's, and that it has a licence."""
        if hello.version != wire.PROTOCOL_VERSION:
            raise VersionMismatch(
                f"The client speaks protocol version {hello.version} and the server {wire.PROTOCOL_VERSION}; "
                "install the same version of Confide on both sides."
            )
        if hello.scheme != self.scheme.name:
            raise VersionMismatch(f"The server encrypts with {self.scheme.name}; use a client that does the same.")
        if (hello.model_digest, hello.table_digest) != (self.model_digest, self.table_digest):
            raise ModelMismatch(
                "The shell and the server's package were not made by the same split; "
                "use the client folder that was written together with this server's."
            )
        account = self._account(hello.licence)
        welcome = wire.Welcome(
            wire.PROTOCOL_VERSION,
            self.ledger.server_seed,
            account.tokens_left,
            self.release.owner.raw,
            self._release_signature,
        )
        return account, welcome

    def _account(self, key: str) -> Account:
        if key:
            return self.ledger.authenticate(key)
        if not self._licences_optional:
            raise LicenceRefused(
                "This server answers licensed clients only; ask the model's owner for a key, and give it with "
                "--licence or in CONFIDE_LICENCE."
            )
        return self.ledger.anonymous()

    def pack_state(self, account: Account, message: wire.OpenPack) -> wire.PackState:
        """What the ledger knows of a pack; an unknown pack has no groups."""
        groups = self.ledger.prepared_groups(account, message.pack)
        mark = self.ledger.mark(account, message.pack) if groups else 0
        return wire.PackState(message.pack, mark, groups)

    def group(self, index: int) -> tuple[Tensor, Parameters]:
        """The weights and parameters of a group; UnknownGroup where there is none."""
        if index >= len(self._weights):
            raise UnknownGroup(
                f"The model has {len(self._weights)} protected layer groups and the request names number {index}; "
                "use the client folder that belongs to this server's package."
            )
        return self._weights[index], self._parameters[index]

    def work(self, message: wire.Online) -> int:
        """Weights times tokens that an online message asks for; 0 where it names no group."""
        if message.group >= len(self._weights):
            return 0
        return message.count * self._weights[message.group].numel()

    def admit(self, account: Account, message: wire.Online) -> Admitted:
        """Check an online request and spend its indexes, durably, before any answer exists.

        Raises what `Ledger.spend` does, UnknownGroup and WrongShape.
        """
        _, parameters = self.group(message.group)
        if message.first + message.count > parameters.tokens:
            raise WrongShape(f"A pack has {parameters.tokens} mask indexes; ask for indexes below that.")
        wire.require_bytes(message.masked, message.count * parameters.columns * 4)
        self._request(message.pack, message.group)
        if self._observer:
            self._observer(message)
        tag = Poly1305.generate_tag(self._tag_key, message.masked)
        entry = Entry(message.pack, message.group, message.first, message.count, tag)
        self.ledger.spend(account, entry, self._answerable[message.group])
        masked = np.frombuffer(message.masked, np.int32).reshape(message.count, -1)
        return Admitted(message.pack, message.first, masked)

    def answers(self, group: int, admitted: list[Admitted]) -> list[wire.Answer]:
        """The answers to admitted requests of one group, by one matrix product."""
        parameters = self._parameters[group]
        # A copy also of a single one, because torch only wraps writable memory.
        masked = torch.from_numpy(np.concatenate([request.masked for request in admitted]))
        share = self._shares_of(group, admitted, parameters)
        values = online.answer(self._online_weights[group], masked, share, parameters).numpy()
        ends = list(itertools.accumulate(len(request.masked) for request in admitted))
        return [wire.Answer(wire.payload(values[start:end])) for start, end in itertools.pairwise([0, *ends])]

    def answer(self, account: Account, message: wire.Online) -> wire.Answer:
        """Check, spend and answer one online request."""
        return self.answers(message.group, [self.admit(account, message)])[0]

    def _shares_of(self, group: int, admitted: list[Admitted], parameters: Parameters) -> Tensor | None:
        if parameters.profile is Profile.OPEN_WEIGHTS:
            return None
        found = [self._share(group, request, parameters) for request in admitted]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _share(self, group: int, request: Admitted, parameters: Parameters) -> Tensor:
        """The shares of the tokens asked for; while decoding, those of the next tokens are made along with them."""
        bound = self._request(request.pack, group)
        first, count = request.first, len(request.masked)
        if count >= SHARE_TOKENS:
            return shares(bound, parameters.rows, first, count)
        key = (request.pack, group)
        start, block = self._shares.get(key, (0, None))
        offset = first - start
        if block is None or not 0 <= offset <= len(block) - count:
            tokens = min(SHARE_TOKENS, parameters.tokens - first)
            start, block, offset = first, shares(bound, parameters.rows, first, tokens), 0
            if len(self._shares) >= SHARE_BLOCKS:
                self._shares.clear()
            self._shares[key] = (start, block)
        return block[offset : offset + count]

    def _request(self, pack: bytes, group: int) -> RequestKey:
        known = self._requests.get((pack, group))
        if known is None:
            if len(self._requests) > 1 << 16:
                self._requests.clear()
            known = RequestKey.bind(self.ledger.server_key, self.ledger.request_digest(pack, group))
            self._requests[pack, group] = known
        return known


class OfflineRequest:
    """One group's offline request while its rows arrive, and its answer."""

    def __init__(self, service: LayerService, account: Account, begin: wire.OfflineBegin) -> None:
        weights, self._parameters = service.group(begin.group)
        self._service = service
        self._account = account
        self._begin = begin
        wire.require_bytes(begin.public_key, self._parameters.planes * self._parameters.ring_degree)
        self._digest = wire.RequestDigest(
            service.model_digest, service.table_digest, account.licence.id, service.ledger.server_seed, begin
        )
        self._product: ServerHalf = service.scheme.server(weights, self._parameters)
        self._received = 0

    def add_rows(self, message: wire.OfflineRows) -> None:
        """Take the next rows."""
        row_bytes = self._parameters.planes * self._parameters.ring_degree
        rows, rest = divmod(len(message.words), row_bytes)
        if rest or not rows or message.first_row != self._received or self._received + rows > self._parameters.columns:
            raise WrongShape("Encrypted masks must come in whole rows, in order; prepare the pack again.")
        self._digest.add_rows(message.words)
        words = np.frombuffer(message.words, np.int32).copy()
        shape = (rows, self._parameters.words, self._parameters.ring_degree)
        self._product.add_rows(self._received, torch.from_numpy(words.reshape(shape)))
        self._received += rows

    @property
    def complete(self) -> bool:
        """Whether all rows are here."""
        return self._received == self._parameters.columns

    def answer(self) -> Iterator[wire.OfflineBlock]:
        """The answer in frames. The request's digest is durable before the first one exists."""
        digest = self._digest.digest()
        begin = self._begin
        ledger = self._service.ledger
        ledger.bind_request(self._account, begin.pack, begin.group, digest)
        request = RequestKey.bind(ledger.server_key, digest)
        shape = (self._parameters.words, self._parameters.ring_degree)
        p0 = torch.from_numpy(np.frombuffer(begin.public_key, np.int32).reshape(shape).copy())
        seed = wire.p1_seed(ledger.server_seed, begin.client_nonce, begin.pack)
        for first, high, low in self._product.answer(begin.mask_seed, seed, p0, request):
            for start in range(0, high.shape[1], FRAME_ROWS):
                rows = slice(start, start + FRAME_ROWS)
                yield wire.OfflineBlock(first + start, _contiguous(high[:, rows]), _contiguous(low[:, rows]))


def _contiguous(block: Tensor) -> memoryview:
    return wire.payload(block.cpu().numpy())


class Session:
    """One client's conversation: greets first, then asks."""

    def __init__(self, service: LayerService) -> None:
        self._service = service
        self._account: Account | None = None

    @property
    def account(self) -> Account:
        """Whose licence the client has. ProtocolError before the greeting."""
        if self._account is None:
            raise ProtocolError("The first message must be a greeting; connect with a Confide client.")
        return self._account

    @property
    def greeted(self) -> bool:
        """Whether the client has said who it is."""
        return self._account is not None

    def handle(self, message: wire.FromClient) -> wire.FromServer:
        """The reply to a greeting, an online request or a question about a pack."""
        match message:
            case wire.Hello():
                self._account, welcome = self._service.welcome(message)
                return welcome
            case wire.Online():
                return self._service.answer(self.account, message)
            case wire.OpenPack():
                return self._service.pack_state(self.account, message)
            case _:
                _ = self.account
                raise MalformedMessage("Encrypted masks came outside an offline request; prepare the pack again.")

    def begin_offline(self, begin: wire.OfflineBegin) -> OfflineRequest:
        """The offline request that a message begins."""
        return OfflineRequest(self._service, self.account, begin)


def _answerable(parameters: Parameters) -> Answerable:
    secret = parameters.profile is Profile.PRIVATE_WEIGHTS
    return Answerable(parameters.tokens, solving_tokens(parameters.columns) if secret else math.inf)
