"""A server that is killed and replaced a thousand times under load."""

import random
import threading
import time

import numpy as np
import pytest
import torch

from confide.hybrid import wire
from confide.models.clear import load_clear
from confide.models.split import SplitSummary
from confide.rlwe.parameters import PLANES

from .conftest import Open
from .fake import FakeServer
from .test_generation import generate

KILLS = 1000


@pytest.mark.slow
def test_a_thousand_kills_change_no_text_and_use_no_secret_twice(
    parts: SplitSummary, server: FakeServer, open_shell: Open
) -> None:
    clear = load_clear(parts.client, parts.server)
    prompts = [torch.tensor([[number, 7, 2 * number, 3]]) for number in range(1, 9)]
    expected = [generate(clear, ids)[0].tolist() for ids in prompts]
    model = open_shell(parts, server, patience=60)
    kills = 0
    done, asked = threading.Event(), threading.Event()

    def kill() -> None:
        nonlocal kills
        choose = random.Random(3)
        while kills < KILLS and not done.is_set():
            asked.wait(60)  # on a busy machine it would else be killed before anybody has reached it
            asked.clear()
            time.sleep(choose.uniform(0, 0.1))
            server.stop()
            server.start()
            kills += 1

    # Everything that any server saw under one secret in one group, answered or not, is one and the same.
    sent: dict[tuple[int, int, int], bytes] = {}
    clashes: list[tuple[int, int, int]] = []

    def look(message: wire.Online) -> None:
        asked.set()
        planes = np.frombuffer(message.planes, np.int8).reshape(PLANES, message.count, -1)
        for place in range(message.count):
            key = (message.group, message.block, message.first + place)
            content = planes[:, place].tobytes()
            if sent.setdefault(key, content) != content:
                clashes.append(key)

    server.before = look
    killer = threading.Thread(target=kill)
    killer.start()
    texts = 0
    try:
        while killer.is_alive():
            assert generate(model, prompts[texts % 8])[0].tolist() == expected[texts % 8]
            texts += 1
    finally:
        done.set()
        killer.join()
    assert kills == KILLS
    assert texts > KILLS // 200
    assert len(sent) > KILLS
    assert not clashes
