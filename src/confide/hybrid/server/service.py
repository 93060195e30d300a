"""What the layer server does with each message, without the network: bytes in, bytes out.

One `LayerService` holds the weights and the ledger for all clients. It draws nothing at random and keeps nothing of a
request: any server with the same package answers any token.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from confide.errors import (
    LicenceRefused,
    ModelMismatch,
    ShellOutdated,
    UnknownBlock,
    UnknownGroup,
    VersionMismatch,
    WrongShape,
)
from confide.hybrid import wire
from confide.hybrid.groups import Groups
from confide.hybrid.server.ahead import Block, Keys
from confide.hybrid.server.limits import Cost
from confide.ledger.ledger import Ledger
from confide.ledger.usage import Account
from confide.packages.manifest import Group
from confide.packages.server_package import StoredGroup
from confide.packages.signing import Release, SignedManifest
from confide.rlwe.online import Ahead, GroupMatrix
from confide.rlwe.parameters import PLANES, RING_DEGREE, Parameters, Profile

P0_BYTES = PLANES * RING_DEGREE
AHEAD_BYTES = 6
"""Of work done ahead, for a token and output."""

Observer = Callable[[wire.Online], None]
"""Called with every online message before it is answered: what the server sees, for audits and tests."""


@dataclass(frozen=True)
class Admitted:
    """An online request that was checked and charged, and waits for its answer.

    planes: int8 (planes, count, columns). keys: those of all its tokens, in order; none with open weights.
    lease_is_low: whether it is time for `Ledger.renew`.
    """

    group: int
    planes: NDArray[np.int8] = field(repr=False)
    keys: list[Keys] = field(repr=False)
    lease_is_low: bool = False

    @property
    def count(self) -> int:
        """Tokens."""
        return int(self.planes.shape[1])

    @property
    def unmade(self) -> int:
        """Tokens whose keys contribute what has not been made."""
        return sum(len(part) for part in self.keys if not isinstance(part, Ahead))


class LayerService:
    """The protected layers of one model, and the record of what was answered.

    groups: those of the manifest that are answered here, all without. stored: the matrices of each, in order.
    insecure_no_licences: answer clients without a licence too; with private weights that gives the weights away in
    time.
    """

    def __init__(
        self,
        signed: SignedManifest,
        stored: Sequence[StoredGroup],
        ledger: Ledger,
        observer: Observer | None = None,
        *,
        groups: Groups | None = None,
        insecure_no_licences: bool = False,
    ) -> None:
        self.manifest = manifest = signed.manifest
        self.release = signed.release
        self.ledger = ledger
        self.model_digest = self.release.model_digest
        self.table_digest = self.release.table_digest
        self.groups = groups or Groups.of(range(len(manifest.groups)))
        self.matrices: Mapping[int, GroupMatrix] = {
            index: GroupMatrix(group.weights, group.u) for index, group in zip(self.groups, stored, strict=True)
        }
        self.private = manifest.profile is Profile.PRIVATE_WEIGHTS
        self._release_signature = bytes.fromhex(signed.signature.release)
        self._parameters = {index: manifest.groups[index].parameters(manifest.profile) for index in self.groups}
        # What owners call it, else what tells it from others.
        self._version = manifest.provenance.version or self.release.digest[:16]
        self._observer = observer
        self._licences_optional = insecure_no_licences or not self.private

    @property
    def ahead_bytes(self) -> Mapping[int, int]:
        """What work done ahead for one token takes, of each group that is here."""
        return {index: AHEAD_BYTES * parameters.rows for index, parameters in self._parameters.items()}

    def authenticate(self, hello: wire.Hello) -> Account:
        """Check that the client's version, scheme and shell are this server's, and that it has a licence."""
        if hello.version != wire.PROTOCOL_VERSION:
            raise VersionMismatch(
                f"The client speaks protocol version {hello.version} and the server {wire.PROTOCOL_VERSION}; "
                "install the same version of Confide on both sides."
            )
        if hello.scheme != wire.SCHEME:
            raise VersionMismatch(f"The server encrypts with {wire.SCHEME}; use a client that does the same.")
        asked = Release(self.release.owner, hello.model_digest, hello.table_digest, self.release.profile)
        if asked.digest in self.manifest.provenance.supersedes:
            raise ShellOutdated(
                f"The shell is of an earlier release of this model, and release {self._version} took its place; get "
                "the client folder of that release from the model's owner."
            )
        if (hello.model_digest, hello.table_digest) != (self.model_digest, self.table_digest):
            raise ModelMismatch(
                "The shell and the server's package were not made by the same split; "
                "use the client folder that was written together with this server's."
            )
        if hello.licence:
            return self.ledger.authenticate(hello.licence, self.model_digest)
        if not self._licences_optional:
            raise LicenceRefused(
                "This server answers licensed clients only; ask the model's owner for a key, and give it with "
                "--licence-file or in CONFIDE_LICENCE."
            )
        return self.ledger.anonymous(self.model_digest)

    def welcome(self, account: Account, *, bytes_in_flight: int, ahead_tokens: int) -> wire.Welcome:
        """The answer to a greeting: what the licence and the server's limits allow."""
        return wire.Welcome(
            wire.PROTOCOL_VERSION,
            self.allowance(account),
            self.release.owner.raw,
            self._release_signature,
            bytes_in_flight,
            ahead_tokens,
            self.groups.ranges,
        )

    def allowance(self, account: Account) -> wire.Allowance:
        """What an account's licence allows from here on."""
        licence = account.licence
        groups = list(enumerate(self.manifest.groups)) if self.private else []
        left = [account.answers_left(index, group) for index, group in groups]
        return wire.Allowance(
            tokens_left=account.tokens_left,
            answers_left=min((tokens for tokens in left if tokens is not None), default=None),
            disclosed=self.disclosed(account),
            disclosure=None if licence.disclosure is None or not groups else min(1e9, licence.disclosure),
            bits_disclosed=sum(account.bits_disclosed(index, group) for index, group in groups),
            expires=licence.expires,
            tokens_per_minute=licence.tokens_per_minute,
        )

    def disclosed(self, account: Account) -> float:
        """How much of what solves its most disclosed layer group an account has seen."""
        if not self.private:
            return 0.0
        shares = (account.share_disclosed(index, group) for index, group in enumerate(self.manifest.groups))
        return min(1e9, max(shares))

    def parameters(self, group: int) -> Parameters:
        """The parameters of a group; UnknownGroup where there is none, or it is another server's."""
        parameters = self._parameters.get(group)
        if parameters is None:
            raise UnknownGroup(
                f"This server has the layer groups {self.groups} of {len(self.manifest.groups)} and the request names "
                f"number {group}; ask the server that has it, with the client folder that belongs to this package."
            )
        return parameters

    def cost(self, message: wire.Online) -> Cost:
        """What an online request takes while it has no answer; no work where it names no group of this server's."""
        received = len(message.planes) + len(message.p0)
        parameters = self._parameters.get(message.group)
        if parameters is None:
            return Cost(received, 0)
        columns = parameters.columns + (RING_DEGREE if message.p0 else 0)
        return Cost(received + 4 * message.count * parameters.rows, message.count * parameters.rows * columns)

    def block(self, message: wire.Ahead) -> Block:
        """A client's tokens, whose keys contribute to answers. WrongShape where they are not whole."""
        tokens, rest = divmod(len(message.p0), P0_BYTES)
        if rest or not 1 <= tokens <= wire.MAX_BLOCK_TOKENS or not self.private:
            raise WrongShape(
                f"A block has 1 to {wire.MAX_BLOCK_TOKENS} tokens of {P0_BYTES} bytes, and none with open weights; "
                "use a Confide client."
            )
        p0 = _int8(message.p0, tokens, PLANES, RING_DEGREE).copy()  # torch wraps writable memory only
        return Block(p0, self._parameters.keys())

    def admit(self, account: Account, message: wire.Online, block: Block | None = None) -> Admitted:
        """Check an online request and charge it, with a durable lease, before any answer exists.

        block: what the client has sent under the number that the message names. Raises what `Ledger.charge` does,
        UnknownGroup, WrongShape, and UnknownBlock where it takes the message's p0 and there is none.
        """
        planes, keys = self._checked(message, block)
        if self._observer:
            self._observer(message)
        group = self._disclosed_by(message)
        lease_is_low = self.ledger.charge(account, message.group, message.count, group)
        return Admitted(message.group, planes, keys, lease_is_low)

    def ready(self, account: Account, message: wire.Online) -> bool:
        """Whether `admit` needs no word from the ledger's database; always for a group that is not here."""
        if message.group not in self._parameters:
            return True
        return self.ledger.ready(account, message.group, message.count, self._disclosed_by(message))

    def prepare(self, account: Account, message: wire.Online, block: Block | None, key_hash: bytes) -> None:
        """Have such a request `ready`, for another thread than the one that answers. Raises what `admit` does."""
        self._checked(message, block)  # before anything is leased for it
        self.ledger.require_key(account, key_hash)
        self.ledger.prepare(account, message.group, message.count, self._disclosed_by(message))

    def _disclosed_by(self, message: wire.Online) -> Group | None:
        return self.manifest.groups[message.group] if self.private else None

    def _checked(self, message: wire.Online, block: Block | None) -> tuple[NDArray[np.int8], list[Keys]]:
        parameters = self.parameters(message.group)
        if message.count * parameters.rows * 4 > wire.MAX_FRAME:
            raise WrongShape("The answer would be larger than a frame; ask for fewer tokens at a time.")
        wire.require_bytes(message.planes, parameters.planes * message.count * parameters.columns)
        planes = _int8(message.planes, parameters.planes, message.count, parameters.columns)
        return planes, self._keys(message, block)

    def _keys(self, message: wire.Online, block: Block | None) -> list[Keys]:
        if not self.private:
            wire.require_bytes(message.p0, 0)
            return []
        if message.p0:
            wire.require_bytes(message.p0, message.count * P0_BYTES)
            return [_int8(message.p0, message.count, PLANES, RING_DEGREE)]
        if block is None or message.first + message.count > block.tokens:
            raise UnknownBlock("The server does not have these tokens' p0; send the same request with it.")
        return block.keys(message.group, message.first, message.count)

    def answers(self, group: int, admitted: list[Admitted]) -> list[wire.Answer]:
        """The answers to admitted requests of one group, by one matrix product."""
        matrix = self.matrices[group]
        planes = np.concatenate([request.planes for request in admitted], axis=1)
        values = matrix.answer(planes, self._contributions(matrix, admitted))
        ends = itertools.accumulate(request.count for request in admitted)
        return [wire.Answer(wire.payload(values[start:end])) for start, end in itertools.pairwise([0, *ends])]

    def _contributions(self, matrix: GroupMatrix, admitted: list[Admitted]) -> Ahead | None:
        if not self.private:
            return None
        keys = [part for request in admitted for part in request.keys]
        unmade = [part for part in keys if not isinstance(part, Ahead)]
        made = matrix.ahead(np.concatenate(unmade)) if unmade else None
        parts, start = [], 0
        for part in keys:
            if isinstance(part, Ahead):
                parts.append(part)
            elif made is not None:
                parts.append(made[start : start + len(part)])
                start += len(part)
        return parts[0] if len(parts) == 1 else Ahead.join(parts)


def _int8(content: memoryview, *shape: int) -> NDArray[np.int8]:
    return np.frombuffer(content, np.int8).reshape(shape)
