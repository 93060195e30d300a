"""How many of a server run, what takes the place of one that is not well, and how a change is brought out."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from confide.cluster.configuration import Server
from confide.cluster.controller import Controller
from confide.errors import MachineError

LAYERS = Server("layers", ("a",), least=1, most=4, load=10, quiet_seconds=60)


class Scene:
    """Replicas that do as a test says, and a clock that it sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.made: list[Fake] = []
        self.fails: list[Exception] = []
        self.gate: asyncio.Event | None = None
        self.controller = Controller(self.launch, lambda: self.now, look_seconds=0.05)

    def launch(self, server: Server) -> "Fake":
        made = Fake(self, server, len(self.made))
        self.made.append(made)
        return made

    async def settle(self, steps: int = 8) -> None:
        for _ in range(steps):
            await self.controller.step()
            await asyncio.sleep(0)

    @property
    def up(self) -> list["Fake"]:
        return [one for one in self.made if one.started and not one.stopped]

    @property
    def state(self) -> str:
        return self.controller.states().get("layers", "gone")


class Fake:
    def __init__(self, scene: Scene, server: Server, number: int) -> None:
        self.scene, self.server, self.number = scene, server, number
        self.load = 0.0
        self.ill: Exception | None = None
        self.started = self.stopped = False

    async def start(self) -> str:
        if self.scene.gate is not None:
            await self.scene.gate.wait()
        if self.scene.fails:
            raise self.scene.fails.pop(0)
        self.started = True
        return f"ws://{self.number}"

    async def look(self) -> float:
        if self.ill:
            raise self.ill
        return self.load

    async def stop(self) -> None:
        self.stopped = True


def played(play: Callable[[Scene], Any]) -> None:
    asyncio.run(play(Scene()))


def test_one_is_started_and_said_to_run() -> None:
    async def play(scene: Scene) -> None:
        scene.controller.want([LAYERS])
        assert (scene.state, scene.controller.running()) == ("starting", [])
        await scene.settle()
        assert scene.state == "running"
        assert scene.controller.running() == [{"server": "layers", "url": "ws://0", "load": 0.0}]
        await scene.settle()
        assert len(scene.made) == 1

    played(play)


def test_there_are_as_many_as_there_is_work_for_within_bounds() -> None:
    async def play(scene: Scene) -> None:
        scene.controller.want([LAYERS])
        await scene.settle()
        scene.made[0].load = 25
        await scene.settle()
        assert len(scene.up) == 3
        scene.made[0].load = 1000
        await scene.settle()
        assert len(scene.up) == 4

    played(play)


def test_there_are_fewer_only_after_a_quiet_while_and_one_after_the_other() -> None:
    async def play(scene: Scene) -> None:
        scene.controller.want([LAYERS])
        await scene.settle()
        scene.made[0].load = 25
        await scene.settle()
        scene.made[0].load = 0
        scene.made[2].load = 1
        await scene.settle()
        assert len(scene.up) == 3
        scene.now = 59
        await scene.settle()
        assert len(scene.up) == 3
        scene.made[0].load = 25  # work again: the while begins anew
        await scene.settle()
        scene.made[0].load = 0
        await scene.settle()
        scene.now = 118
        await scene.settle()
        assert len(scene.up) == 3
        scene.now = 119
        await scene.settle(1)
        assert len(scene.up) == 2
        await scene.settle()
        assert [one.number for one in scene.up] == [2]  # the busiest stays

    played(play)


def test_one_that_is_not_well_is_ended_and_replaced() -> None:
    async def play(scene: Scene) -> None:
        scene.controller.want([LAYERS])
        await scene.settle()
        scene.made[0].ill = MachineError("The server ended with -9.")
        await scene.settle(1)
        assert scene.made[0].stopped
        assert scene.state == "failed: The server ended with -9."
        await scene.settle()
        assert ([one.number for one in scene.up], scene.state) == ([1], "running")

    played(play)


def test_what_does_not_start_is_tried_again_later_and_later() -> None:
    async def play(scene: Scene) -> None:
        scene.fails = [MachineError("No package there."), RuntimeError("secret words"), MachineError("x")]
        scene.controller.want([LAYERS])
        await scene.settle()
        assert (len(scene.made), scene.state) == (1, "failed: No package there.")
        assert scene.made[0].stopped
        for now, made in ((4.9, 1), (5, 2), (14.9, 2), (15, 3), (34.9, 3), (35, 4)):
            scene.now = now
            await scene.settle()
            assert len(scene.made) == made, now
            if made == 2:
                assert scene.state == "failed: RuntimeError"  # not its words, which may hold anything
        assert scene.state == "running"

    played(play)


def test_a_change_is_brought_out_one_by_one_with_never_fewer_than_needed() -> None:
    async def play(scene: Scene) -> None:
        before = Server("layers", ("a",), least=3, load=10)
        after = Server("layers", ("b",), least=3, load=10)
        scene.controller.want([before])
        await scene.settle(12)
        assert [one.server for one in scene.up] == [before] * 3
        scene.controller.want([after])
        seen = []
        for _ in range(30):
            await scene.settle(1)
            seen.append(len(scene.up))
        assert [one.server for one in scene.up] == [after] * 3
        assert min(seen) == 3
        assert max(seen) == 4
        assert scene.state == "running"

    played(play)


def test_a_change_that_does_not_start_leaves_what_runs() -> None:
    async def play(scene: Scene) -> None:
        scene.controller.want([LAYERS])
        await scene.settle()
        scene.fails = [MachineError("broken")] * 9
        scene.controller.want([Server("layers", ("b",))])
        await scene.settle()
        assert [one.server for one in scene.up] == [LAYERS]
        assert scene.state == "failed: broken"

    played(play)


def test_what_is_not_wanted_any_more_is_ended() -> None:
    async def play(scene: Scene) -> None:
        scene.controller.want([LAYERS, Server("other", ("x",))])
        await scene.settle()
        scene.controller.want([Server("other", ("x",))])
        await scene.settle()
        assert [one.server.name for one in scene.up] == ["other"]
        assert list(scene.controller.states()) == ["other"]
        await scene.controller.stop()
        assert (scene.up, scene.controller.states()) == ([], {})

    played(play)


def test_one_that_is_starting_is_waited_for_and_ended() -> None:
    async def play(scene: Scene) -> None:
        scene.gate = asyncio.Event()
        scene.controller.want([LAYERS])
        await scene.settle()
        stopping = asyncio.create_task(scene.controller.stop())
        await asyncio.sleep(0)
        scene.gate.set()
        await stopping
        assert scene.made[0].stopped

    played(play)


@pytest.mark.parametrize("silent", ["start", "look"])
def test_what_says_nothing_is_given_up(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(scene: Scene) -> None:
        async def never(_: object = None) -> float:
            await asyncio.sleep(9999)
            return 0.0

        scene.controller.want([Server("layers", ("a",), start_seconds=0.01)])
        if silent == "start":
            monkeypatch.setattr(Fake, "start", never)
        else:
            await scene.settle()
            monkeypatch.setattr(Fake, "look", never)
        await scene.controller.step()
        await asyncio.sleep(0.1)
        await scene.controller.step()
        assert scene.state == "failed: TimeoutError"
        assert all(one.stopped for one in scene.made[:1])

    played(play)
