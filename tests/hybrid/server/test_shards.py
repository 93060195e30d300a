"""Servers that have some of a model's layer groups: what they answer, work ahead for, and bill."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from confide.errors import BudgetExhausted, DisclosureLimit, UnknownGroup
from confide.hybrid import wire
from confide.hybrid.groups import Groups
from confide.hybrid.server.service import LayerService
from confide.ledger.ledger import Ledger
from confide.ledger.usage import Account, licensed_tokens
from confide.packages.manifest import Group

from .world import Client, Served, Tokens, model, serving

HERE = Groups.parse("0,2")


def shard(ledger: Ledger, groups: Groups) -> LayerService:
    made = model()
    stored = [made.stored[index] for index in groups]
    return LayerService(made.signed, stored, ledger, groups=groups, insecure_no_licences=True)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(shard(Ledger(tmp_path / "state"), HERE)) as found:
        yield found


def test_a_shard_answers_for_its_groups_and_refuses_others(served: Served) -> None:
    with Client(served.url) as client:
        assert client.welcome is not None
        assert client.welcome.groups == ((0, 0), (2, 2))
        tokens = Tokens(3)
        for group in (2, 1, 0, 3):
            if group in HERE:
                tokens.require_exact(group, client.ask(tokens.request(group)))
                continue
            refused = client.ask(wire.Online(group, 0, 0, 3, memoryview(bytes(8))))
            assert isinstance(refused, wire.Failure)
            assert refused.code == UnknownGroup.code
            assert "0,2 of 3" in refused.message
    account = served.model.service.ledger.anonymous(served.model.service.model_digest)
    assert dict(account.answered) == {0: 3, 2: 3}


def test_a_shard_works_ahead_for_its_groups_alone(served: Served) -> None:
    made = served.model.service
    tokens = Tokens(6)
    with Client(served.url) as client:
        client.send(tokens.ahead(0))
        kept = len(tokens.p0) + 6 * sum(made.ahead_bytes.values())
        until = time.monotonic() + 60
        while served.server.room.used < kept:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert set(made.ahead_bytes) == set(HERE)
        assert served.server.room.used == kept
        for group in HERE:
            tokens.require_exact(group, client.ask(tokens.request(group, with_p0=False)))
        # Nobody here is ever asked for group 1: the block is done with.
        assert served.server.room.used == 0


def _charge(service: LayerService, account: Account, tokens: Tokens, group: int) -> None:
    service.admit(account, tokens.request(group))


def test_shards_with_one_ledger_bill_a_token_once(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "state")) as ledger:
        one, two = shard(ledger, HERE), shard(ledger, Groups.parse("1"))
        _, key = ledger.licences.create("ada", tokens=10, disclosure=None)
        account = ledger.authenticate(key, one.model_digest)
        for _ in range(2):
            tokens = Tokens(5)
            for service, group in ((one, 0), (two, 1), (one, 2)):
                _charge(service, account, tokens, group)
        assert account.used == 10
        for service, group in ((one, 0), (two, 1)):
            with pytest.raises(BudgetExhausted):
                _charge(service, account, Tokens(1), group)


def test_shards_with_ledgers_of_their_own_allow_no_more_than_one(tmp_path: Path) -> None:
    """A budget and a disclosure limit are of each layer group, and a group's answers are all in its shard's ledger."""
    groups: tuple[Group, ...] = model().signed.manifest.groups
    limit = 30.0
    for part in (HERE, Groups.parse("1")):
        with closing(Ledger(tmp_path / str(part))) as ledger:
            service = shard(ledger, part)
            _, key = ledger.licences.create("ada", tokens=10, disclosure=None)
            account = ledger.authenticate(key, service.model_digest)
            for group in part:
                _charge(service, account, Tokens(10), group)
                with pytest.raises(BudgetExhausted):
                    _charge(service, account, Tokens(1), group)
            _, key = ledger.licences.create("bob", disclosure=limit)
            account = ledger.authenticate(key, service.model_digest)
            for group in part:
                _charge(service, account, Tokens(licensed_tokens(limit, groups[group])), group)
                with pytest.raises(DisclosureLimit):
                    _charge(service, account, Tokens(1), group)
