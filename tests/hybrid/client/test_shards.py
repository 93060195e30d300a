"""A model whose layer groups are at several servers: one text, no secret twice, and no server that has what it says."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from confide.errors import (
    BudgetExhausted,
    ConfideError,
    ConnectionLost,
    IntegrityError,
    InvalidPlacement,
    MalformedMessage,
    ServerDistrusted,
    UnknownGroup,
    WrongGroups,
)
from confide.hybrid import wire
from confide.hybrid.client.refusals import RefusalList
from confide.hybrid.groups import Groups
from confide.hybrid.model import HybridModel
from confide.hybrid.placement import Placement
from confide.hybrid.server.server import load_services
from confide.models.clear import load_clear
from confide.models.split import SplitSummary
from confide.packages.manifest import read_manifest
from confide.packages.server_package import group_file
from confide.rlwe.parameters import PLANES
from owners import OWNER

from .fake import FakeServer, FromFrame, serving
from .test_generation import generate as generate_text

FIRST, LAST = Groups.parse("0,3"), Groups.parse("1-2")
"""Two shards of the tiny GPT-2's four layer groups; the one is asked between the other's."""

NEW = 8
"""Tokens of a text: 16 steps, as they are padded."""

Serve = Callable[..., FakeServer]
Open = Callable[..., HybridModel]


def generate(model: object, *prompt: torch.Tensor) -> torch.Tensor:
    return generate_text(model, *prompt, max_new_tokens=NEW)


@pytest.fixture
def serve(parts: SplitSummary) -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda groups=None: stack.enter_context(serving(parts.server, groups))


@pytest.fixture
def open_on(parts: SplitSummary) -> Iterator[Open]:
    """Opens the shell on servers, or on their addresses or a placement."""
    with ExitStack() as stack:

        def open_one(*servers: FakeServer, **options: object) -> HybridModel:
            arguments = {"server": [one.url for one in servers], "owner": OWNER.public.raw} | options
            model = HybridModel.from_shell(parts.client, patience=20, progress=False, **arguments)  # type: ignore[arg-type]
            return stack.enter_context(model)

        yield open_one


@pytest.fixture(scope="module")
def expected(parts: SplitSummary) -> list[int]:
    result: list[int] = generate(load_clear(parts.client, parts.server))[0].tolist()
    return result


def placed(folder: Path, parts: SplitSummary, *servers: tuple[str, Groups]) -> Path:
    path = folder / "placement.toml"
    path.write_bytes(Placement(read_manifest(parts.client).model_digest, servers).write())
    return path


def require_each_secret_once(*servers: FakeServer) -> None:
    """Also where they put together what they saw: of one secret, in one group, there is one and the same ciphertext."""
    sent: dict[tuple[int, int, int], bytes] = {}
    for frame in (frame for server in servers for frame in server.frames):
        planes = np.frombuffer(frame.planes, np.int8).reshape(PLANES, frame.count, -1)
        for place in range(frame.count):
            key = (frame.group, frame.block, frame.first + place)
            assert sent.setdefault(key, planes[:, place].tobytes()) == planes[:, place].tobytes()


def test_two_servers_are_one_model(serve: Serve, open_on: Open, expected: list[int]) -> None:
    one, two = serve(FIRST), serve(LAST)
    model = open_on(one, two)
    until = time.monotonic() + 60
    while model.product.tokens_ready < 128:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert generate(model)[0].tolist() == expected
    for server in (one, two):
        assert {frame.group for frame in server.frames} == set(server.held)
        # p0 has come once for all of a server's groups, ahead of them.
        assert not any(len(frame.p0) for frame in server.frames)
    shared = set(one.blocks) & set(two.blocks)
    assert shared, "one secret serves both, and each gets the same of it"
    require_each_secret_once(one, two)
    assert generate(model)[0].tolist() == expected


@pytest.mark.parametrize("frame", [1, 13])
def test_a_shards_replica_takes_over_in_the_middle_of_a_text(
    serve: Serve, open_on: Open, expected: list[int], frame: int
) -> None:
    """The one that is in use is killed for good; the other shard goes on, and nothing of the pool is used again."""
    replicas, other = (serve(LAST), serve(LAST)), serve(FIRST)
    killed: list[FakeServer] = []
    left = frame

    def before(server: FakeServer) -> Callable[[wire.Online], None]:
        def count(message: wire.Online) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                killed.append(server)
                asked.append((message.group, message.block, message.first, bytes(message.planes)))
                threading.Thread(target=server.stop).start()
                raise ConnectionAbortedError

        return count

    asked: list[tuple[int, int, int, bytes]] = []
    for server in replicas:
        server.before = before(server)
    model = open_on(*replicas, other)
    assert generate(model)[0].tolist() == expected
    (gone,) = killed
    (heir,) = [server for server in replicas if server is not gone]
    assert heir.frames
    first = heir.frames[0]
    assert (first.group, first.block, first.first, bytes(first.planes)) == asked[0]
    assert len(first.p0) == 12288 * first.count
    # Of what was made ahead nothing is used after that, at the other shard either.
    later = [one.block for one in (*heir.frames[1:], *other.frames[-4:])]
    assert min(later) > first.block
    require_each_secret_once(*replicas, other)


def test_one_that_is_away_at_first_stands_in_later(serve: Serve, open_on: Open, expected: list[int]) -> None:
    away, first, last = serve(LAST), serve(FIRST), serve(LAST)
    away.stop()
    model = open_on(away, first, last)
    away.start()
    last.stop()
    assert generate(model)[0].tolist() == expected
    assert {frame.group for frame in away.frames} == set(LAST)


def test_a_shard_whose_only_server_is_away_is_named(serve: Serve, open_on: Open) -> None:
    first, last = serve(FIRST), serve(LAST)
    last.stop()
    with pytest.raises(ConnectionLost, match=last.url):
        open_on(first, last)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (["0,3", "1"], "layer groups 2 of"),
        (["0-2"], "layer groups 3 of"),
        (["1-3"], "layer groups 0 of"),
        (["0-2", "2-3"], "group 2 is at servers"),
        (["0-3", "1-2"], "group 1 is at servers"),
    ],
    ids=["a gap", "the end", "the beginning", "an overlap", "one within another"],
)
def test_gaps_and_overlaps_are_refused(serve: Serve, open_on: Open, groups: list[str], says: str) -> None:
    servers = [serve(Groups.parse(text)) for text in groups]
    with pytest.raises(InvalidPlacement, match=says):
        open_on(*servers)
    assert not any(server.frames or server.blocks for server in servers)


@pytest.mark.parametrize(
    ("claims", "error"),
    [
        (((1, 4),), WrongGroups),
        (((1, 2), (65535, 65535)), WrongGroups),
        (((2, 1),), MalformedMessage),
        (((1, 1), (2, 2)), MalformedMessage),
        (((1, 2), (1, 2)), MalformedMessage),
    ],
    ids=["beyond", "far beyond", "backwards", "touching", "twice"],
)
def test_a_greeting_that_cannot_be_true_is_refused(
    serve: Serve, open_on: Open, claims: tuple[tuple[int, int], ...], error: type[ConfideError]
) -> None:
    first, last = serve(FIRST), serve(LAST)
    last.claims = claims
    with pytest.raises(error):
        open_on(first, last)
    assert not [*first.blocks, *last.blocks, *last.frames]


def test_a_server_that_does_not_have_what_it_claims_is_found_out(serve: Serve, open_on: Open) -> None:
    first, last = serve(FIRST), serve(Groups.parse("1"))
    last.claims = LAST.ranges
    model = open_on(first, last)
    with pytest.raises(UnknownGroup):
        generate(model)


def test_a_placement_says_who_is_asked_for_what(
    serve: Serve, open_on: Open, parts: SplitSummary, expected: list[int], tmp_path: Path
) -> None:
    """Whatever else they have; and replicas that it names are greeted once they are needed."""
    all_of_it, last, spare = serve(), serve(LAST), serve(LAST)
    spare.stop()
    path = placed(tmp_path, parts, (all_of_it.url, FIRST), (last.url, LAST), (spare.url, LAST))
    model = open_on(server=path)
    assert generate(model)[0].tolist() == expected
    assert {frame.group for frame in all_of_it.frames} == set(FIRST)
    spare.start()
    last.stop()
    assert generate(model)[0].tolist() == expected
    assert spare.frames


def test_a_server_without_what_the_placement_asks_of_it_is_refused(
    serve: Serve, open_on: Open, parts: SplitSummary, tmp_path: Path
) -> None:
    first, less = serve(FIRST), serve(Groups.parse("2"))
    with pytest.raises(WrongGroups, match="is to answer for 1-2"):
        open_on(server=placed(tmp_path, parts, (first.url, FIRST), (less.url, LAST)))
    assert not less.blocks


def test_a_replica_that_is_refused_leaves_the_text_to_the_others(
    serve: Serve, open_on: Open, parts: SplitSummary, expected: list[int], tmp_path: Path
) -> None:
    first, less, last = serve(FIRST), serve(Groups.parse("2")), serve(LAST)
    path = placed(tmp_path, parts, (first.url, FIRST), (less.url, LAST), (last.url, LAST))
    assert generate(open_on(server=path))[0].tolist() == expected
    assert not less.frames
    assert not less.blocks


def test_a_placement_of_another_model_is_refused(serve: Serve, open_on: Open, tmp_path: Path) -> None:
    path = tmp_path / "placement.toml"
    path.write_bytes(Placement("ab" * 32, ((serve().url, Groups.parse("0-3")),)).write())
    with pytest.raises(InvalidPlacement, match="another model"):
        open_on(server=path)


def test_an_address_given_twice_is_refused(serve: Serve, open_on: Open) -> None:
    server = serve()
    with pytest.raises(InvalidPlacement, match="twice"):
        open_on(server, server)


def test_whoever_gave_a_wrong_answer_is_blamed(serve: Serve, open_on: Open) -> None:
    first, last = serve(FIRST), serve(LAST)
    model = open_on(first, last)
    last.tamper = FromFrame(3)
    with pytest.raises(IntegrityError):
        generate(model)
    (entry,) = RefusalList().entries()
    assert entry.server.startswith(last.url)
    with pytest.raises(ServerDistrusted, match=last.url):
        open_on(first, last)


def test_each_servers_word_on_the_licence_counts(serve: Serve, open_on: Open) -> None:
    first, last = serve(FIRST), serve(LAST)
    last.allowance = wire.Allowance(tokens_left=10, disclosed=0.4)
    model = open_on(first, last)
    assert model.product.disclosed == 0.4
    with pytest.raises(BudgetExhausted):
        generate(model, torch.arange(1, 20)[None])
    assert not [*first.frames, *last.frames]


def test_only_the_files_of_its_groups_are_read(parts: SplitSummary, tmp_path: Path) -> None:
    package = tmp_path / "server"
    shutil.copytree(parts.server, package)
    for index in FIRST:
        os.unlink(group_file(package, index))
    services = load_services({"small": package}, tmp_path / "state", groups=LAST, insecure_no_licences=True)
    service = services["small"]
    try:
        assert set(service.matrices) == set(LAST)
        account = service.ledger.anonymous(service.model_digest)
        for group in (*FIRST, 4, 65535):
            message = wire.Online(group, 0, 0, 1, memoryview(bytes(8)))
            assert service.cost(message).work == 0
            assert service.ready(account, message)
            with pytest.raises(UnknownGroup, match="has the layer groups 1-2 of 4"):
                service.admit(account, message)
        assert account.used == 0
    finally:
        service.ledger.close()
    with pytest.raises(UnknownGroup, match="0-3 and not 3-4"):
        load_services({"small": package}, tmp_path / "other", groups=Groups.parse("3-4"))
    assert not (tmp_path / "other").exists()
