"""What only the GGUF engine promises: llama.cpp's answers are the model's, and nothing listens."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import xllamacpp
from tests.enclave.engines.conftest import PROMPT, Bench, answer

from confide.enclave.engines.engine import Sampling
from confide.enclave.engines.gguf_engine import GgufEngine
from confide.errors import EngineError

PROMPTS = (PROMPT, "Once upon a time there was a little girl who", "In the dark wood the wolf met")


def listeners() -> set[tuple[str, str]]:
    """Protocol and local address of every socket of this process that others could connect to."""
    inodes = set()
    for entry in os.scandir("/proc/self/fd"):
        try:
            target = os.readlink(entry.path)
        except FileNotFoundError:  # the scan's own
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6", "unix"):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            words = line.split()
            if protocol == "unix":
                if int(words[3], 16) & 0x10000 and words[6] in inodes:  # __SO_ACCEPTCON
                    found.add((protocol, words[7] if len(words) > 7 else ""))
            elif words[9] in inodes and (words[3] == "0A" or protocol.startswith("udp")):
                found.add((protocol, words[1]))
    return found


LET_GO = """
import sys
from pathlib import Path
from confide.enclave.engines.gguf_engine import GgufEngine
for _ in range(20):
    GgufEngine(Path(sys.argv[1]), "demo", context=32, threads=1, parallel=1)
"""


def test_an_engine_that_is_let_go_of_at_once_ends(gguf_file: Path) -> None:
    """llama.cpp's loop, which has a thread of its own, does not hear of an end that came before its beginning."""
    subprocess.run([sys.executable, "-c", LET_GO, str(gguf_file)], check=True, timeout=300)


def test_nothing_listens_while_it_loads_but_a_private_socket_and_nothing_after(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = listeners()
    seen: list[tuple[str, set[tuple[str, str]], int]] = []
    load = xllamacpp.Server

    def look(params: xllamacpp.CommonParams) -> xllamacpp.Server:
        server = load(params)
        (address,) = params.hostnames
        seen.append((address, listeners() - before, os.stat(Path(address).parent).st_mode & 0o777))
        return server

    monkeypatch.setattr(xllamacpp, "Server", look)
    engine = GgufEngine(gguf_file, "demo", threads=1, parallel=2)
    [(address, loading, mode)] = seen
    assert loading == {("unix", address)}
    assert mode == 0o700
    assert not listeners() - before
    assert not Path(address).parent.exists()
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError, match="No such file"):
        probe.connect(address)
    assert asyncio.run(answer(engine, PROMPT, Sampling(4, 0))).tokens == 4
    assert not listeners() - before
    asyncio.run(engine.close())
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


def test_the_test_above_would_see_a_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert ("tcp", f"0100007F:{server.getsockname()[1]:04X}") in listeners()


def test_signals_still_come_to_their_handlers(gguf_file: Path) -> None:
    caught: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        engine = GgufEngine(gguf_file, "demo", threads=1, parallel=1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM]
        assert asyncio.run(answer(engine, PROMPT, Sampling(2, 0))).tokens == 2
        asyncio.run(engine.close())
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_float16_answers_are_those_of_transformers(gguf_bench: Bench, transformers_bench: Bench) -> None:
    for prompt in PROMPTS:
        mine, theirs = (
            bench.run(lambda engine, prompt=prompt: answer(engine, prompt, Sampling(24, 0)))
            for bench in (gguf_bench, transformers_bench)
        )
        assert (mine.text, mine.tokens) == (theirs.text, theirs.tokens)


def test_embeddings_are_those_of_transformers(gguf_bench: Bench, transformers_bench: Bench) -> None:
    [mine], [theirs] = (bench.run(lambda engine: engine.embed([PROMPT])) for bench in (gguf_bench, transformers_bench))
    assert sum(x * y for x, y in zip(mine, theirs, strict=True)) > 0.999


@pytest.mark.parametrize("text", [PROMPT, "  two  spaces\n\nand \t tabs", "日本 über 12345 😀", "<|endoftext|>x"])
def test_counts_are_llama_cpps_own(gguf_bench: Bench, text: str) -> None:
    engine: Any = gguf_bench.make()
    usage = gguf_bench.server.handle_completions({"prompt": text, "max_tokens": 1})["usage"]
    assert len(asyncio.run(engine.read(text)).tokens) == usage["prompt_tokens"]


def test_a_memfd_is_a_file_too(gguf_file: Path) -> None:
    descriptor = os.memfd_create("model")
    with os.fdopen(descriptor, "wb") as memory:
        memory.write(gguf_file.read_bytes())
        memory.flush()
        engine = GgufEngine(Path(f"/proc/self/fd/{descriptor}"), "demo", threads=1, parallel=1)
        assert engine.facts.quantization == "f16"
        assert asyncio.run(answer(engine, PROMPT, Sampling(3, 0))).tokens == 3
        asyncio.run(engine.close())


def test_more_requests_than_slots_wait_and_are_answered(gguf_file: Path) -> None:
    async def five() -> list[int]:
        engine = GgufEngine(gguf_file, "demo", threads=1, parallel=2)
        answers = await asyncio.gather(*(answer(engine, PROMPT, Sampling(5, 0)) for _ in range(5)))
        await engine.close()
        with pytest.raises(EngineError, match="closed"):
            await answer(engine, PROMPT, Sampling(1))
        return [one.tokens for one in answers]

    assert asyncio.run(five()) == [5] * 5


def test_files_that_are_no_whole_model_are_refused(gguf_file: Path, tmp_path: Path) -> None:
    whole = gguf_file.read_bytes()
    for content in (b"", b"no model at all" * 100, whole[:1000], whole[: len(whole) // 2]):
        damaged = tmp_path / "damaged.gguf"
        damaged.write_bytes(content)
        with pytest.raises(EngineError):
            GgufEngine(damaged, "demo", threads=1)
    with pytest.raises(EngineError):
        GgufEngine(tmp_path / "missing.gguf", "demo")


def test_an_engine_that_was_closed_leaves_no_file_open(gguf_file: Path) -> None:
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(64)]
    try:
        before = set(os.listdir("/proc/self/fd"))
        asyncio.run(GgufEngine(gguf_file, "demo", threads=1, parallel=1).close())
        assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # the folder that is being listed
    finally:
        for descriptor in others:
            os.close(descriptor)
