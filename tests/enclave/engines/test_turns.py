"""Who gets ready first, and who has to wait for whom."""

import asyncio
from collections.abc import Generator
from contextlib import aclosing

from confide.enclave.engines.turns import FIRST_STEPS, Part, Turns


def steps(
    name: str, preparing: int, results: int, log: list[str], share: float = 0
) -> Generator[str | Part | None, None, None]:
    for step in range(preparing):
        log.append(f"{name}?")
        yield Part(share, step == preparing - 1) if share else None
    for _ in range(results):
        log.append(f"{name}!")
        yield name


def run(*jobs: tuple[str, int, int], share: float = 0) -> list[str]:
    """What was done in which order, by jobs that all came before the first step."""
    log: list[str] = []

    async def all_of_them() -> None:
        turns = Turns("test")

        def hold() -> Generator[str | Part | None, None, None]:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result()
            yield None

        async def one(job: Generator[str | Part | None, None, None]) -> None:
            async for _ in turns.run(job):
                pass

        loop = asyncio.get_running_loop()
        await asyncio.gather(one(hold()), *(one(steps(*job, log, share)) for job in jobs))
        await turns.close()

    asyncio.run(all_of_them())
    return log


def test_the_first_is_ready_first() -> None:
    log = run(("a", 4, 2), ("b", 4, 2), ("c", 4, 2))
    ready = [log.index(f"{name}!") for name in "abc"]
    assert ready == sorted(ready)
    assert log[:5] == ["a?"] * 4 + ["a!"]
    assert log.index("b!") < log.index("c?")


def test_short_preparations_share_a_round() -> None:
    log = run(("a", 1, 2), ("b", 1, 2), ("c", 1, 2), ("d", 1, 2), share=0.4)
    assert log[:6] == ["a?", "b?", "c?", "a!", "b!", "c!"]  # which come to more than one together
    assert log[6:11] == ["d?", "a!", "b!", "c!", "d!"]


def test_who_is_not_ready_gives_nothing_between() -> None:
    log = run(("a", 3, 1), ("b", 1, 1), share=1)
    assert log == ["a?", "a?", "a?", "a!", "b?", "b!"]


def test_results_go_on_while_others_prepare() -> None:
    log = run(("a", 1, 8), ("b", 6, 1))
    between = log[log.index("b?") : log.index("b!")]
    assert between.count("a!") >= between.count("b?") - 1


def test_a_long_preparation_lets_others_pass_and_goes_on_itself() -> None:
    log = run(("long", 40, 1), ("a", 4, 1), ("b", 4, 1), ("c", 4, 1))
    assert log[:FIRST_STEPS] == ["long?"] * FIRST_STEPS
    assert log.index("a!") < log.index("b!") < log.index("c!") < log.index("long!")
    meanwhile = log[FIRST_STEPS : log.index("c!")]
    assert meanwhile.count("long?") >= 12


def test_who_leaves_is_gone_before_the_next_round() -> None:
    log: list[str] = []

    async def both() -> None:
        loop, turns = asyncio.get_running_loop(), Turns("test")
        inside, left = asyncio.Event(), asyncio.Event()

        def staying() -> Generator[str | None, None, None]:
            while "closed" not in log:
                log.append("step")
                yield "goes on"

        def leaving() -> Generator[str | None, None, None]:
            try:
                yield "once"
                loop.call_soon_threadsafe(inside.set)
                asyncio.run_coroutine_threadsafe(left.wait(), loop).result(60)
                log.append("left")
                yield "twice"
            finally:
                log.append("closed")

        async def stay() -> None:
            async for _ in turns.run(staying()):
                pass

        async def leave() -> None:
            async with aclosing(turns.run(leaving())) as pieces:
                assert await anext(pieces) == "once"
                await inside.wait()
            left.set()

        await asyncio.gather(stay(), leave())
        await turns.close()

    asyncio.run(both())
    assert log.index("closed") == log.index("left") + 1
