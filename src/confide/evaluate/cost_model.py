"""What a protected model costs, from its shapes and a machine's rates. Arithmetic only: it measures nothing.

Bytes are those that the protocol moves and writes, to the last one. Times are linear in the shapes: see GroupRate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from confide.hybrid.client.padding import Padding
from confide.hybrid.client.pads.pool import BLOCK_TOKENS
from confide.ledger.licences import DEFAULT_DISCLOSURE
from confide.rlwe.freivalds import PRIME_BITS
from confide.rlwe.parameters import ANSWER_BITS, HINT_PLANES, PLANES, RING_DEGREE

P0_BYTES = PLANES * RING_DEGREE
"""Of one token's p0, for all groups together; it travels ahead of the token."""
WEIGHT_BITS = 8
_PAD_BYTES = 8
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
    def online_bytes(self) -> int:
        """Of one token: six digits an input up, 32 bits an output down. See `wire.Online` and `wire.Answer`."""
        return PLANES * self.columns + ANSWER_BITS // 8 * self.rows

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
    def hint_bytes(self) -> int:
        """Of the hint, which the client has on disk."""
        return HINT_PLANES * RING_DEGREE * self._rows

    @property
    def server_bytes(self) -> int:
        """Of what the server has in memory: the int8 weights, and U."""
        return self.protected_weights + RING_DEGREE * self._rows

    def pool_bytes(self, tokens: int) -> int:
        """Of what the client has in memory for tokens to come: pads, values, and p0 until it is sent."""
        values = ANSWER_BITS // 8 * self._rows + _PAD_BYTES * sum(group.columns for group in self.protected)
        return tokens * (values + P0_BYTES)

    def online_bytes(self, tokens: int) -> int:
        """Payload bytes both ways for so many tokens through every protected group."""
        return tokens * sum(group.online_bytes for group in self.protected)

    @property
    def _rows(self) -> int:
        return sum(group.rows for group in self.protected)


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


def between(measured: Sequence[tuple[int, float]], number: int) -> float:
    """On the straight lines through what was measured, ascending, and beyond it; below the first, that one."""
    if number <= measured[0][0] or len(measured) == 1:
        return measured[0][1]
    later = next((index for index, (most, _) in enumerate(measured) if most >= number), len(measured) - 1)
    (few, less), (many, more) = measured[later - 1 : later + 1]
    return less + (more - less) * (number - few) / (many - few)


@dataclass(frozen=True)
class ServerRates:
    """How fast a layer server's event loop is.

    request: what a request takes of it beside the product, frames and ledger. wakeups: what loopback adds to a round
    trip, while neither side works. products: one product of so many tokens of all requests in it, by one thread,
    ascending by tokens. threads: how many times as fast torch's threads together are with a large one.
    """

    request: GroupRate
    wakeups: GroupRate
    products: tuple[tuple[int, GroupRate], ...]
    threads: float

    def product(self, group: GroupShape, tokens: int) -> float:
        """Seconds: between what was measured, and beyond it, along a straight line."""
        return between([(measured, rate.seconds(group)) for measured, rate in self.products], tokens)


@dataclass(frozen=True)
class ClientRates:
    """How fast a client is in what it does itself, for each token of a layer group.

    token: for one lone token, between an answer and the next request. prompt_token: for one among many. pads: what it
    makes ahead, in another thread.
    """

    token: GroupRate
    prompt_token: GroupRate
    pads: GroupRate


@dataclass(frozen=True)
class Rates:
    """How fast a machine is, as client and server at once, and as either.

    ahead: the work ahead of one token, both parties, in blocks. token: one lone token online, as in decoding;
    prompt_token: one token among many. uncached: what `token` takes longer, in seconds a weight, where weights come
    from memory and not from cache. kept_token, kept_prompt_token: seconds a weight, of a float32 layer that the client
    keeps, for one lone token and for one among many.
    """

    ahead: GroupRate
    token: GroupRate
    prompt_token: GroupRate
    uncached: float
    kept_token: float
    kept_prompt_token: float
    server: ServerRates
    client: ClientRates


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


def ahead_cost(cut: Cut, rates: Rates, network: Network) -> Cost:
    """The work ahead of one token: pads, the hint times its secret, and U times its p0. Most of it waits for nothing.

    Its bytes fill gaps on the network, so only the bandwidth counts.
    """
    work = sum(rates.ahead.seconds(group) for group in cut.protected)
    return Cost(work + network.seconds(0, P0_BYTES), P0_BYTES)


def from_memory(cut: Cut, rates: Rates, group: GroupShape) -> float:
    """Seconds that a group's weights take longer in a product, where all of them together fit no cache."""
    return rates.uncached * group.weights if cut.protected_weights > CACHED_WEIGHTS else 0.0


def token_cost(cut: Cut, rates: Rates, skeleton: SkeletonTimes, network: Network) -> Cost:
    """One step of decoding: one round trip for each protected group."""
    size = cut.online_bytes(1)
    work = sum(rates.token.seconds(group) + from_memory(cut, rates, group) for group in cut.protected)
    kept = rates.kept_token * sum(group.weights for group in cut.kept)
    return Cost(skeleton.token + work + kept + network.seconds(len(cut.protected), size), size)


def prompt_cost(cut: Cut, rates: Rates, skeleton: SkeletonTimes, network: Network) -> Cost:
    """The forward pass of the skeleton's prompt, rounded up as the default padding does, to its last token's logits.

    Of a prompt longer than the block that is made while the model loads, the work ahead of the rest is waited for.
    """
    padded = Padding().prompt_tokens(skeleton.tokens)
    ahead = ahead_cost(cut, rates, network)
    work, size = max(0, padded - BLOCK_TOKENS) * ahead.seconds, padded * ahead.bytes
    for group in cut.protected:
        tokens = group.prompt_tokens(padded)
        work += tokens * rates.prompt_token.seconds(group)
        size += tokens * group.online_bytes
    for group in cut.kept:
        tokens = group.prompt_tokens(skeleton.tokens)
        work += tokens * group.weights * (rates.kept_token if tokens == 1 else rates.kept_prompt_token)
    return Cost(skeleton.prompt + work + network.seconds(len(cut.protected), size), size)


@dataclass(frozen=True)
class Disclosure:
    """What answered tokens say of the weights, where these are as unpredictable as 8 bits can be.

    bits: of all protected layers together. share: of what solves the layer that is solved first. licence_tokens:
    after how many tokens a licence with the default limit ends.
    """

    bits: int
    share: float
    licence_tokens: int


def disclosure(protected: Sequence[GroupShape], tokens: int) -> Disclosure:
    """What so many tokens disclose, the licensee's check vectors included."""
    checks = PRIME_BITS * sum(group.columns for group in protected)
    return Disclosure(
        bits=tokens * ANSWER_BITS * sum(group.rows for group in protected) + checks,
        share=max((tokens * ANSWER_BITS + _check_bits(group)) / _entropy(group) for group in protected),
        licence_tokens=min(
            max(0, int((DEFAULT_DISCLOSURE * _entropy(group) - _check_bits(group)) / ANSWER_BITS))
            for group in protected
        ),
    )


def _entropy(group: GroupShape) -> float:
    """Bits of a row, at most: which ones it has is known once there are weights. See `entropy.row_entropy`."""
    return WEIGHT_BITS * group.columns


def _check_bits(group: GroupShape) -> float:
    """What one set of check vectors says of a row: its 61 bits a column are spread over all rows."""
    return PRIME_BITS * group.columns / group.rows
