"""The next pack is ready before the present one is spent, and nothing is left behind by whoever prepares it."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from confide.hybrid.client.client import HybridClient
from confide.hybrid.client.refill import BackgroundRefill, RefillOrder
from confide.rlwe.scheme import RLWE
from owners import OWNER

from .small import activations, exact, running, small_service, small_weights

KEY = "confide-a-key-that-must-not-show"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with running(small_service(tmp_path / "state", RLWE)) as address:
        yield address


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_pack_is_ready_before_the_last_one_is_spent(shell: Path, url: str) -> None:
    with HybridClient(shell, url, owner=OWNER.public.raw) as client:
        client.prepare(1)
        product = client.product(refill_ahead=True)

        def multiply(tokens: int) -> None:
            for group, weights in enumerate(small_weights()):
                x = activations(client.parameters[group], tokens)
                assert torch.equal(product(group, x), exact(weights, x))

        multiply(20)
        refill = client._refill
        assert refill is not None
        assert refill.running
        wait_for(lambda: not refill.running)
        multiply(4000)
        assert product.tokens_left > 4096
        multiply(200)
        assert len(list((shell / "packs" / "ahead").glob("pack-*"))) <= 1
        product.close()


def test_who_needs_it_now_waits_for_it(shell: Path, url: str) -> None:
    with HybridClient(shell, url, owner=OWNER.public.raw) as client:
        client.prepare(1)
        product = client.product(refill_ahead=True)
        x = activations(client.parameters[0], 4090)
        product(0, x)
        assert client._refill is not None
        assert client._refill.running
        assert torch.equal(product(0, x), exact(small_weights()[0], x))
        product.close()


def test_what_an_earlier_run_prepared_is_used(shell: Path, url: str) -> None:
    with HybridClient(shell, url, owner=OWNER.public.raw, packs=shell / "packs" / "ahead") as ahead:
        ahead.prepare(1)
    with HybridClient(shell, url, owner=OWNER.public.raw) as client:
        assert sum(pack.tokens_left for pack in client.ready_packs()) == 4096


def order(shell: Path, url: str) -> RefillOrder:
    return RefillOrder(
        folder=str(shell),
        server=url,
        packs=str(shell / "packs" / "ahead"),
        checks=str(shell / "checks.msgpack"),
        owner=str(OWNER.public),
        licence=KEY,
        ca=None,
        patience=0.0,
        insecure_no_tls=False,
    )


def test_the_licence_key_does_not_show(shell: Path, url: str) -> None:
    assert KEY not in repr(order(shell, url))
    refill = BackgroundRefill(order(shell, url))
    refill.start()
    assert refill._process is not None
    for name in ("cmdline", "environ"):
        assert KEY.encode() not in Path(f"/proc/{refill._process.pid}/{name}").read_bytes()
    refill.close()
    assert not refill.running


def test_it_ends_with_the_process_that_wanted_it(shell: Path) -> None:
    code = (
        "import sys, time, msgspec; from confide.hybrid.client.refill import BackgroundRefill, RefillOrder\n"
        "refill = BackgroundRefill(msgspec.json.decode(sys.argv[1].encode(), type=RefillOrder)); refill.start()\n"
        "print(refill._process.pid, flush=True); time.sleep(60)"
    )
    import msgspec

    wanted = msgspec.json.encode(order(shell, "ws://127.0.0.1:9")).decode()
    parent = subprocess.Popen([sys.executable, "-c", code, wanted], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not _alive(child), 20)


def _alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text() and os.kill(process, 0) is None
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_packs_in_use_are_not_taken_over(shell: Path, url: str) -> None:
    ahead = shell / "packs" / "ahead"
    with HybridClient(shell, url, owner=OWNER.public.raw, packs=ahead) as other:
        other.prepare(1)
    with HybridClient(shell, url, owner=OWNER.public.raw) as client, (ahead / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert client.ready_packs() == []
