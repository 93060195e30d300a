"""What a protected model costs, from its shapes and a machine's rates. Arithmetic only: it measures nothing.

Bytes are those that the protocol moves and writes, to the last one. Times are linear in the shapes: see GroupRate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from confide.hybrid import wire
from confide.hybrid.client.packs import BLOCK_TOKENS
from confide.hybrid.client.padding import Padding
from confide.hybrid.client.prepare import Traffic, pack_traffic
from confide.hybrid.server.ledger.licences import DEFAULT_DISCLOSURE
from confide.hybrid.server.ledger.usage import CHECK_VECTOR_TOKENS, licensed_tokens, solving_tokens
from confide.rlwe.parameters import ANSWER_BITS, MIN_ACTIVATION_BITS, Parameters, Profile

CACHED_WEIGHTS = 8 << 20
"""Above this many int8 weights, a server reads them from memory for every token: they push each other out of cache."""


@dataclass(frozen=True)
class GroupShape:
    """A layer group: layers that share an input, whose stacked matrix is (rows, columns).

    head: it is the language-modelling head, which a prompt asks for the logits of its last token only.
    """

    rows: int
    columns: int
    head: bool = False

    @property
    def weights(self) -> int:
        """Entries of the matrix."""
        return self.rows * self.columns

    @property
    def parameters(self) -> Parameters:
        """Its encryption with private weights. No cost depends on the activations' width, so any will do."""
        return Parameters.for_shape(
            Profile.PRIVATE_WEIGHTS, rows=self.rows, columns=self.columns, activation_bits=MIN_ACTIVATION_BITS
        )

    def prompt_tokens(self, prompt: int) -> int:
        """Tokens that a prompt of this length, padding included, sends through it: of a head's, nothing is padded."""
        return 1 if self.head else prompt


@dataclass(frozen=True)
class Cut:
    """A model's linear layers, cut in two: those at the server, at least one, and those that the client keeps."""

    protected: tuple[GroupShape, ...]
    kept: tuple[GroupShape, ...]

    @property
    def protected_weights(self) -> int:
        """Parameters that only the server holds."""
        return sum(group.weights for group in self.protected)

    @property
    def pack(self) -> Traffic:
        """Bytes of one pack, on the wire and on disk."""
        return pack_traffic([group.parameters for group in self.protected])

    def online_bytes(self, tokens: int) -> int:
        """Payload bytes both ways for so many tokens through every protected group."""
        return tokens * sum(_online_bytes(group) for group in self.protected)


@dataclass(frozen=True)
class GroupRate:
    """Seconds for a layer group: fixed + per_row m + per_column n + per_weight m n, where its matrix is (m, n)."""

    fixed: float
    per_row: float
    per_column: float
    per_weight: float

    def seconds(self, group: GroupShape) -> float:
        """The time of one group."""
        linear = self.fixed + self.per_row * group.rows + self.per_column * group.columns
        return linear + self.per_weight * group.weights


@dataclass(frozen=True)
class Rates:
    """How fast a machine is, as client and server at once.

    pack: the offline phase of a group, both parties, loopback and disk. token: one lone token online, as in decoding;
    prompt_token: one token among many. uncached: what `token` takes longer, in seconds a weight, where weights come
    from memory and not from cache. masks: seconds to take masks, whose keys are erased durably first; once a prompt,
    and once in a block of lone tokens. kept_token, kept_prompt_token: seconds a weight, of a float32 layer that the
    client keeps, for one lone token and for one among many.
    """

    pack: GroupRate
    token: GroupRate
    prompt_token: GroupRate
    uncached: float
    masks: float
    kept_token: float
    kept_prompt_token: float


@dataclass(frozen=True)
class SkeletonTimes:
    """Seconds of everything in a model that is no linear layer: for one lone token, and for a prompt of `tokens`."""

    token: float
    prompt: float
    tokens: int


@dataclass(frozen=True)
class Network:
    """What lies between client and server beyond one machine's loopback: seconds a round trip, bytes a second."""

    round_trip: float = 0.0
    bandwidth: float = math.inf

    def seconds(self, round_trips: int, size: int) -> float:
        """The time of round trips that carry so many bytes together, one after the other."""
        return round_trips * self.round_trip + size / self.bandwidth


@dataclass(frozen=True)
class Cost:
    """Seconds, and bytes over the wire, both ways."""

    seconds: float
    bytes: int


def pack_cost(cut: Cut, rates: Rates, network: Network) -> Cost:
    """The offline phase of one pack: one exchange for each protected group."""
    traffic = cut.pack
    size = traffic.bytes_up + traffic.bytes_down
    work = sum(rates.pack.seconds(group) for group in cut.protected)
    return Cost(work + network.seconds(len(cut.protected), size), size)


def token_cost(cut: Cut, rates: Rates, skeleton: SkeletonTimes, network: Network) -> Cost:
    """One step of decoding: one round trip for each protected group."""
    size = cut.online_bytes(1)
    work = rates.masks / BLOCK_TOKENS + sum(rates.token.seconds(group) for group in cut.protected)
    if cut.protected_weights > CACHED_WEIGHTS:
        work += rates.uncached * cut.protected_weights
    kept = rates.kept_token * sum(group.weights for group in cut.kept)
    return Cost(skeleton.token + work + kept + network.seconds(len(cut.protected), size), size)


def prompt_cost(cut: Cut, rates: Rates, skeleton: SkeletonTimes, network: Network) -> Cost:
    """The forward pass of the skeleton's prompt, rounded up as the default padding does, to its last token's logits."""
    work, size, trips = rates.masks, 0, 0
    for group in cut.protected:
        tokens = group.prompt_tokens(Padding().prompt_tokens(skeleton.tokens))
        work += tokens * rates.prompt_token.seconds(group)
        size += tokens * _online_bytes(group)
        # The parts of a prompt are on their way together, as far as the server may owe their answers.
        trips += -(-4 * tokens * group.parameters.rows // wire.MAX_OWED)
    for group in cut.kept:
        tokens = group.prompt_tokens(skeleton.tokens)
        work += tokens * group.weights * (rates.kept_token if tokens == 1 else rates.kept_prompt_token)
    return Cost(skeleton.prompt + work + network.seconds(trips, size), size)


@dataclass(frozen=True)
class Disclosure:
    """What answered tokens say of the weights, as the ledger counts it.

    bits: of all protected layers together. share: of what solves the layer with the fewest inputs. licence_tokens:
    after how many tokens a licence with the default limit ends.
    """

    bits: int
    share: float
    licence_tokens: int


def disclosure(protected: Sequence[GroupShape], tokens: int) -> Disclosure:
    """What so many tokens disclose, the licensee's check vectors included."""
    narrowest = min(group.columns for group in protected)
    counted = tokens + CHECK_VECTOR_TOKENS
    return Disclosure(
        bits=counted * ANSWER_BITS * sum(group.rows for group in protected),
        share=counted / solving_tokens(narrowest),
        licence_tokens=licensed_tokens(DEFAULT_DISCLOSURE, narrowest),
    )


def _online_bytes(group: GroupShape) -> int:
    """4 bytes an input up, 4 bytes an output down: see `wire.Online` and `wire.Answer`."""
    return 4 * (group.rows + group.columns)
