"""Who gets ready first, and who has to wait for whom."""

import asyncio
from collections.abc import Iterator

from confide.enclave.engines.turns import FIRST_STEPS, Turns


def steps(name: str, preparing: int, results: int, log: list[str]) -> Iterator[str | None]:
    for _ in range(preparing):
        log.append(f"{name}?")
        yield None
    for _ in range(results):
        log.append(f"{name}!")
        yield name


def run(*jobs: tuple[str, int, int]) -> list[str]:
    """What was done in which order, by jobs that all came before the first step."""
    log: list[str] = []

    async def all_of_them() -> None:
        turns = Turns("test")

        def hold() -> Iterator[str | None]:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result()
            yield None

        async def one(job: Iterator[str | None]) -> None:
            async for _ in turns.run(job):
                pass

        loop = asyncio.get_running_loop()
        await asyncio.gather(one(hold()), *(one(steps(*job, log)) for job in jobs))
        await turns.close()

    asyncio.run(all_of_them())
    return log


def test_the_first_is_ready_first() -> None:
    log = run(("a", 4, 2), ("b", 4, 2), ("c", 4, 2))
    ready = [log.index(f"{name}!") for name in "abc"]
    assert ready == sorted(ready)
    assert log[:5] == ["a?"] * 4 + ["a!"]
    assert log.index("b!") < log.index("c?")


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
