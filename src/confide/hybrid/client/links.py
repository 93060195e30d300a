"""A model's servers as one: shards that have its layer groups between them, each with replicas that stand in for it.

Any server with the owner's release may answer the next request, so another replica takes over as the same one would
that is back: `Link` makes its connection anew, here to whoever of the shard answers, and the same bytes are sent again.
What a server says that it has is believed as far as asking it; the answers themselves are checked.
"""

import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from confide.errors import ConfideError, ConnectionLost, InvalidPlacement, ServerBusy, WrongGroups
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import Dial
from confide.hybrid.client.link import Link
from confide.hybrid.closing import Closing
from confide.hybrid.groups import Groups, require_partition
from confide.hybrid.placement import MAX_SERVERS

Connect = Callable[[Dial], LayerConnection]

_log = logging.getLogger(__name__)


class _Replicas:
    """The servers of one shard. groups: what each of them must have. total: layer groups of the model.

    first: a connection to the first of them that was made already.
    """

    def __init__(
        self, dials: Sequence[Dial], groups: Groups, total: int, connect: Connect, first: LayerConnection | None
    ) -> None:
        self._dials = deque(dials)
        self._groups = groups
        self._total = total
        self._greet = connect
        self._first = first
        if first is not None:
            self._dials.rotate(-1)

    def connect(self) -> LayerConnection:
        """A connection to one that answers; whoever had the last one is asked last.

        Where none is left, ConnectionLost or ServerBusy if waiting may help, else what the first one was refused for.
        """
        first, self._first = self._first, None
        if first is not None:
            return first
        problems: list[ConfideError] = []
        for dial in list(self._dials):
            self._dials.rotate(-1)
            try:
                return self._greeted(dial)
            except ConfideError as error:
                problems.append(error)
                if not isinstance(error, ConnectionLost | ServerBusy):
                    _log.warning("The layer server at %s is not used: %s.", dial.url, error.code)
        raise next((error for error in problems if isinstance(error, ConnectionLost | ServerBusy)), problems[0])

    def _greeted(self, dial: Dial) -> LayerConnection:
        connection = self._greet(dial)
        try:
            require_groups(connection, self._groups, self._total)
        except BaseException:
            connection.close()
            raise
        return connection


def require_groups(connection: LayerConnection, wanted: Groups | None, total: int) -> None:
    """WrongGroups where a server has not said that it has those wanted, or says it of some that the model has not."""
    has = connection.groups
    if has.last >= total:
        raise WrongGroups(
            f"The server at {connection.url} says that it has layer groups up to {has.last}, and this model has "
            f"{total}; ask its operator what it serves."
        )
    if wanted is not None and not has.cover(wanted):
        raise WrongGroups(
            f"The server at {connection.url} has the layer groups {has} and is to answer for {wanted}; start it with "
            f"`confide serve SERVER --groups {wanted}`, or correct the placement."
        )


class Links(Closing):
    """The links to a model's servers, one for each shard. One thread at a time; `close` may come from any.

    dials: those with the same groups are replicas of a shard. One that names no groups is asked for them; if it is
    away, it is a replica of every shard that it turns out to have. total: layer groups of the model. connect: makes a
    greeted connection. on_break: called whenever one is given up.

    Every shard is greeted once, and is not waited for. Raises InvalidPlacement where the shards leave a gap or
    overlap, WrongGroups for a server that has not what it was said to have, and what `connect` raises where a shard has
    no other replica.
    """

    def __init__(
        self, dials: Sequence[Dial], total: int, connect: Connect, on_break: Callable[[], object] = lambda: None
    ) -> None:
        if not 1 <= len(dials) <= MAX_SERVERS:
            raise InvalidPlacement(f"A model has 1 to {MAX_SERVERS} servers, not {len(dials)}; give their addresses.")
        if len({dial.url for dial in dials}) < len(dials):
            raise InvalidPlacement("An address is given twice, and stands for one server; leave the second out.")
        self.shards: list[Groups] = []
        self._links: list[Link] = []
        made: dict[Dial, LayerConnection] = {}
        try:
            known, unknown = _asked_for_groups(dials, total, connect, made)
            by_groups: dict[Groups, list[Dial]] = {}
            for dial, groups in known:
                by_groups.setdefault(groups, []).append(dial)
            require_partition(by_groups, total)
            for groups, replicas in by_groups.items():
                random.shuffle(replicas)  # so that clients share themselves out
                first = made.pop(replicas[0], None)
                shard = _Replicas([*replicas, *unknown], groups, total, connect, first)
                self.shards.append(groups)
                self._links.append(Link(shard.connect, replicas[0].patience, on_break))
                self._links[-1].open()
        except BaseException:
            self.close()
            raise
        finally:
            for connection in made.values():
                connection.close()
        self._of_group = {group: index for index, groups in enumerate(self.shards) for group in groups}

    def of(self, group: int) -> tuple[int, Link]:
        """The shard that answers for a layer group, by number, and the link to it."""
        shard = self._of_group[group]
        return shard, self._links[shard]

    @property
    def connected(self) -> list[tuple[int, LayerConnection]]:
        """The connections that there are, by the numbers of their shards."""
        found = ((shard, link.connected) for shard, link in enumerate(self._links))
        return [(shard, connection) for shard, connection in found if connection is not None]

    @property
    def away(self) -> ConfideError | None:
        """Why the last exchange had to wait for a server, until one has succeeded."""
        return next((link.away for link in self._links if link.away is not None), None)

    def require_server(self) -> None:
        """A server of every shard is there; else what it says, or ConnectionLost."""
        for link in self._links:
            link.require_server()

    def drop(self, shard: int) -> None:
        """Give the connection to a shard up, if there is one."""
        self._links[shard].drop()

    def require_open(self) -> None:
        """ModelClosed once this is closed."""
        for link in self._links:
            link.require_open()

    def shut(self) -> None:
        """Let no further exchange begin; one that is under way ends."""
        for link in self._links:
            link.shut()

    def close(self) -> None:
        """Close the connections for good."""
        for link in self._links:
            link.close()


def _asked_for_groups(
    dials: Iterable[Dial], total: int, connect: Connect, made: dict[Dial, LayerConnection]
) -> tuple[list[tuple[Dial, Groups]], list[Dial]]:
    """Dials with their groups, and those of servers that are away and named none. made: gets the connections."""
    known: list[tuple[Dial, Groups]] = []
    unknown: list[Dial] = []
    problem: ConfideError | None = None
    for dial in dials:
        if dial.groups is not None:
            known.append((dial, dial.groups))
            continue
        try:
            made[dial] = connection = connect(dial)
        except (ConnectionLost, ServerBusy) as error:
            unknown.append(dial)
            problem = problem or error
            continue
        require_groups(connection, None, total)
        known.append((dial, connection.groups))
    if problem is not None:
        try:
            require_partition({groups for _, groups in known}, total)
        except InvalidPlacement:
            raise problem from None  # whoever is away may have the rest
    return known, unknown
