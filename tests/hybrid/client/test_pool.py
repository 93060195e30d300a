"""The pool: every pad once, nothing on disk, nothing left after anything may have happened to it."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from confide.errors import ConnectionLost, ModelClosed
from confide.hybrid.client.pads import pool as pool_module
from confide.hybrid.client.pads.pool import FIRST_TOKENS, Block, PadPool
from confide.hybrid.client.pads.source import Pads
from confide.hybrid.model import HybridModel
from confide.models.split import SplitSummary
from confide.rlwe.parameters import PLANES, RING_DEGREE, Parameters, Profile

from .conftest import Open
from .fake import FakeServer
from .test_generation import PROMPT, generate

SHAPES = [Parameters(Profile.PRIVATE_WEIGHTS, rows, columns, 30, 12) for rows, columns in ((12, 8), (5, 12), (3, 4))]


class Counting:
    """A source whose pads are numbers that never come twice."""

    next = 0

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    @property
    def p0(self) -> NDArray[np.int8]:
        return np.zeros((self.tokens, PLANES, RING_DEGREE), np.int8)

    def group(self, index: int) -> Pads:
        parameters = SHAPES[index]
        start, Counting.next = Counting.next, Counting.next + self.tokens
        numbers = np.arange(start, start + self.tokens)[:, None]
        return Pads(
            np.broadcast_to(numbers, (self.tokens, parameters.columns)).astype(np.int64),
            np.broadcast_to(numbers, (self.tokens, parameters.rows)).astype(np.int32),
        )


@pytest.fixture
def pool() -> Iterator[PadPool]:
    made = PadPool(Counting, SHAPES)
    yield made
    made.close()


def test_every_pad_is_handed_out_once(pool: PadPool) -> None:
    seen: set[int] = set()
    generator = np.random.default_rng(1)
    for _ in range(300):
        if generator.random() < 0.3:
            pool.next_pass()
        taken = pool.take(int(generator.integers(3)), int(generator.integers(1, 90)))
        numbers = set(taken.pads.pads[:, 0].tolist())
        assert len(numbers) == taken.count
        assert not numbers & seen
        seen |= numbers


def test_a_block_gives_no_more_than_it_has() -> None:
    block = Block(0, None, [Counting(4).group(0)])
    assert block.take(0, 9).count == 4
    with pytest.raises(RuntimeError):
        block.take(0, 1)


def test_the_next_pass_begins_at_the_same_token_in_every_group(pool: PadPool) -> None:
    pool.take(0, 10)
    pool.take(1, 1)
    pool.next_pass()
    assert {pool.take(group, 1).first for group in range(3)} == {10}


def test_more_is_made_before_the_last_block_is_spent(pool: PadPool) -> None:
    deadline = time.monotonic() + 60
    for _ in range(3 * pool.block_tokens):
        pool.next_pass()
        while pool.tokens_ready < pool.block_tokens:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.002)  # so that the thread sees that there is enough, and waits
        pool.take(0, 1)


def test_what_is_dropped_is_never_used(pool: PadPool) -> None:
    first = pool.take(0, 1).pads.pads[0, 0]
    pool.drop()
    after = pool.take(0, 1)
    assert after.block > 0
    assert after.pads.pads[0, 0] >= first + len(SHAPES) * FIRST_TOKENS


def test_a_block_that_was_being_made_is_dropped_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Counting):
        def group(self, index: int) -> Pads:
            if index == 2 and not go_on.is_set():
                entered.set()
                go_on.wait(60)
            return super().group(index)

    with PadPool(Slow, SHAPES) as pool:
        assert entered.wait(60)
        before = Counting.next
        pool.drop()
        go_on.set()
        assert pool.take(0, 1).pads.pads[0, 0] > before


def test_after_sleep_the_pool_is_made_anew(pool: PadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pool.take(0, 1).block
    now = pool_module.slept_seconds()
    monkeypatch.setattr(pool_module, "slept_seconds", lambda: now + 5)
    after = pool.take(0, 1).block
    assert after > before
    assert pool.take(0, 1).block == after


def test_the_child_of_a_fork_has_no_pads(pool: PadPool) -> None:
    pool.take(0, 1)
    child = os.fork()
    if not child:
        signal.alarm(30)  # it has none of this process's threads, and may wait for one
        code = 1
        try:
            if not pool.tokens_ready:
                pool.take(0, 1)
        except ModelClosed:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.take(0, 1).count == 1


def test_a_closed_pool_gives_nothing(pool: PadPool) -> None:
    pool.close()
    with pytest.raises(ModelClosed):
        pool.take(0, 1)


def test_what_goes_wrong_in_the_thread_is_raised_where_pads_are_taken() -> None:
    class Broken(Counting):
        def group(self, index: int) -> Pads:
            raise MemoryError("no room")

    with PadPool(Broken, SHAPES) as pool:
        for _ in range(2):
            with pytest.raises(MemoryError):
                pool.take(0, 1)


def test_blocks_grow_and_are_small_again_after_a_drop(pool: PadPool) -> None:
    sizes: dict[int, int] = {}
    while len(sizes) < 6:
        taken = pool.take(0, 1)
        sizes[taken.block] = sizes.get(taken.block, 0) + 1
        if len(sizes) == 5 and taken.first == 0:
            pool.drop()
    assert list(sizes.values())[:4] == [16, 32, 64, 128]
    pool.drop()
    pool.take(0, 200)
    assert pool.take(1, 200).count == FIRST_TOKENS


def test_blocks_are_announced_in_order_and_as_they_are_needed(pool: PadPool) -> None:
    announced: list[Block] = []
    for _ in range(300):
        pool.take(0, 1)
        announced += pool.announcements(0, 1 << 20)
        ahead = sum(block.tokens - block.used() for block in announced)
        assert ahead <= pool.block_tokens // 2 + pool.block_tokens
    assert [block.number for block in announced] == list(range(len(announced)))
    assert len(announced) > 3


def test_no_more_is_announced_than_a_server_keeps(pool: PadPool) -> None:
    pool.take(0, 1)
    assert not pool.announcements(0, FIRST_TOKENS - 1)
    assert [block.tokens for block in pool.announcements(0, FIRST_TOKENS)] == [FIRST_TOKENS]


def test_little_memory_makes_small_blocks() -> None:
    with PadPool(Counting, SHAPES, memory=4000) as pool:
        assert 1 <= pool.block_tokens < 16
        assert sum(pool.take(0, 100).count for _ in range(10)) >= 10


def test_secrets_are_not_in_any_repr(pool: PadPool) -> None:
    taken = pool.take(0, 3)
    assert "array" not in repr(taken) + repr(taken.pads) + repr(Block(0, None, [taken.pads]))


# -- of a whole model ------------------------------------------------------------------------------------------


def test_no_secret_serves_a_group_twice(model: HybridModel, server: FakeServer) -> None:
    for prompt in (PROMPT, PROMPT[:, :1], PROMPT.repeat(1, 8)):
        generate(model, prompt)
        generate(model, prompt, do_sample=True, num_return_sequences=3)
        model(prompt)
    used = Counter(
        (frame.group, frame.block, frame.first + token) for frame in server.frames for token in range(frame.count)
    )
    assert len(used) > 1000
    assert max(used.values()) == 1
    # And no secret has two numbers.
    assert len({p0 for _, p0 in server.blocks}) == len({number for number, _ in server.blocks}) == len(server.blocks)


def test_a_break_drops_the_pool(model: HybridModel, server: FakeServer) -> None:
    generate(model)
    last = max(frame.block for frame in server.frames)
    server.stop()
    server.start()
    generate(model)
    later = [frame for frame in server.frames if frame.block > last]
    # What was under way is the same bytes again; everything after it comes out of new blocks.
    assert len(later) >= 60
    assert all(frame.block > last for frame in server.frames[-len(later) :])


_writes: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _writes is not None and event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _writes.append(str(path))


sys.addaudithook(_watch)


def test_nothing_is_ever_written(
    parts: SplitSummary, server: FakeServer, open_shell: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    global _writes
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in parts.client.rglob("*")}
    _writes = []
    try:
        (tmp_path / "canary").write_bytes(b"")
        model = open_shell(parts, server)
        generate(model)
        server.stop()
        server.start()
        generate(model)
        model.close()
    finally:
        seen, _writes = _writes, None
    assert [path for path in seen if "/dev/null" not in path] == [str(tmp_path / "canary")]
    assert {path: path.stat().st_mtime_ns for path in parts.client.rglob("*")} == before
    assert list(tmp_path.iterdir()) == [tmp_path / "canary"]


def test_the_thread_waits_for_others() -> None:
    priorities: list[int] = []

    class Looking(Counting):
        def group(self, index: int) -> Pads:
            priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return super().group(index)

    with PadPool(Looking, SHAPES) as pool:
        pool.take(0, 1)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert sys.platform != "linux" or own == 19 or min(priorities) > own


def test_pads_are_ready_before_anything_is_asked(model: HybridModel, server: FakeServer) -> None:
    until = time.monotonic() + 20
    while not server.blocks and time.monotonic() < until:
        time.sleep(0.01)
    assert server.blocks
    assert not server.frames
    generate(model, max_new_tokens=1)
    assert not server.frames[0].p0


def test_a_server_that_is_gone_for_good_is_an_error(parts: SplitSummary, server: FakeServer, open_shell: Open) -> None:
    model = open_shell(parts, server, patience=0.2)
    server.stop()
    with pytest.raises(ConnectionLost):
        generate(model)
    assert torch.is_grad_enabled()
