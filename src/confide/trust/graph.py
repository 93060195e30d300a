"""The trust statement of a graph of services: what is said of each, as one."""

from collections.abc import Mapping, Sequence

from confide.trust.statement import Exposure, TrustStatement

_WORKLOAD = "the attested workload"


def graph_trust(each: Mapping[str, TrustStatement], quorum: str) -> TrustStatement:
    """Of a graph whose services were all verified. each: what is said of them, by name. quorum: who may change it.

    Who can see something at any of them can see it, and all that they rest on has to hold.
    """
    leaks = {leak: None for one in each.values() for leak in one.leaks}
    return TrustStatement(
        next(iter(each.values())).protection,
        _of_all({name: one.prompt for name, one in each.items()}),
        _of_all({name: one.weights for name, one in each.items()}),
        _of_all({name: one.output for name, one in each.items()}),
        (*leaks, f"the graph is what its owners say: {quorum} can change it, for who connects after that"),
    )


def coordinated_trust(coordinator: TrustStatement, entry: TrustStatement, promise: Sequence[str]) -> TrustStatement:
    """Of a graph that is not shown. coordinator: of what vouches for it. entry: of the service that is asked.

    promise: what every service satisfies that sees a user's data, as sentences after "asks for".
    """
    vouched = f"each of them was verified by the attested coordinator ({coordinator.prompt.assumption})"
    hidden = "services that are not shown"

    def seen(one: Exposure) -> Exposure:
        return Exposure((*one.seen_by, hidden), one.hidden_from, f"{one.assumption}; {vouched}")

    leaks = dict.fromkeys((*entry.leaks, *coordinator.leaks))
    return TrustStatement(
        entry.protection,
        seen(entry.prompt),
        seen(entry.weights),
        seen(entry.output),
        (*leaks, f"which services see your data is not shown; the coordinator asks of each for {'; '.join(promise)}"),
    )


def _of_all(each: Mapping[str, Exposure]) -> Exposure:
    readers = {
        f"{reader} {name}" if reader == _WORKLOAD else reader: None
        for name, one in each.items()
        for reader in one.seen_by
    }
    first = next(iter(each.values()))
    hidden = [who for who in first.hidden_from if all(who in one.hidden_from for one in each.values())]
    return Exposure(
        tuple(readers), tuple(hidden), "; and ".join(dict.fromkeys(one.assumption for one in each.values()))
    )
