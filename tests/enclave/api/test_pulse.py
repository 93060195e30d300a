"""When an engine is taken for dead, and when not."""

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from confide.enclave.api.pulse import Pulse
from confide.enclave.engines.engine import Piece
from confide.errors import AnswerTimedOut, EngineUnavailable

from ..fake_engine import FakeEngine


async def after(*pauses: float) -> AsyncGenerator[Piece, None]:
    for pause in pauses:
        await asyncio.sleep(pause)
        yield Piece("a", 1)


def test_who_waits_while_others_are_served_is_not_given_up() -> None:
    async def run() -> float:
        pulse, served = Pulse(), after(*[0.05] * 12)

        async def others() -> None:
            for _ in range(12):
                await pulse.next(served, 0.3)

        going_on = asyncio.create_task(others())
        started = time.monotonic()
        assert (await pulse.next(after(0.5), 0.3)).text == "a"
        waited = time.monotonic() - started
        await going_on
        with pytest.raises(AnswerTimedOut):
            await pulse.next(after(5), 0.2)
        return waited

    assert asyncio.run(run()) > 0.4


def test_work_that_goes_on_without_a_token_is_a_sign_of_life() -> None:
    async def reading() -> AsyncGenerator[Piece, None]:
        for _ in range(5):
            await asyncio.sleep(0.1)
            yield Piece("", 0)

    async def run() -> None:
        pulse, long = Pulse(), reading()

        async def read() -> None:
            for _ in range(5):
                await pulse.next(long, 0.3)

        going_on = asyncio.create_task(read())
        await pulse.next(after(0.45), 0.3)
        await going_on

    asyncio.run(run())


def test_a_silent_engine_is_asked_for_a_token_and_may_recover() -> None:
    async def run() -> None:
        engine, pulse = FakeEngine(), Pulse(period=0.2)
        watching = asyncio.create_task(pulse.keep_watching(engine, 1))
        await asyncio.sleep(0.5)
        assert 1 <= len(engine.asked) <= 4
        pulse.require()
        engine.generate = dead  # type: ignore[assignment, method-assign]
        await asyncio.sleep(0.5)
        with pytest.raises(EngineUnavailable, match="away"):
            pulse.require()
        del engine.generate  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)
        pulse.require()
        watching.cancel()

    async def dead(*_: object) -> AsyncGenerator[Piece, None]:
        raise EngineUnavailable("The engine is away; start it.")
        yield

    asyncio.run(run())


def test_an_engine_that_makes_tokens_is_left_alone() -> None:
    async def run() -> None:
        engine, pulse = FakeEngine(), Pulse(period=0.3)
        watching = asyncio.create_task(pulse.keep_watching(engine, 1))
        busy = after(*[0.05] * 12)
        for _ in range(12):
            await pulse.next(busy, 1)
        assert engine.asked == []
        watching.cancel()

    asyncio.run(run())
