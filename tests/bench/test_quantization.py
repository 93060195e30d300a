"""Every type of weights that an engine here has, measured once and kept."""

import json
from pathlib import Path

import msgspec
import pytest
import torch
from tests.bench.made import MACHINE, quantization_result, tee_result

from confide.bench import quantization
from confide.bench.machine import Arm
from confide.bench.quantization import Request, measure_quantizations
from confide.bench.results import Interval, ResultFile
from confide.cli import bench
from confide.enclave.engines.gguf_engine import context_bytes
from confide.errors import BenchmarkError, InvalidResult, PromptTooLong
from confide.evaluate.plots import draw_overheads, draw_quantizations
from confide.evaluate.statistics import Estimate
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import open_model

TEXT = "The Rabbit said nothing, and the old king called his three sons. " * 8


@pytest.fixture(scope="module")
def asked() -> Request:
    return Request(open_model("demo"), TEXT, 4, 3, 1, 0, 1, context=32, max_windows=2)


def committed() -> str:
    return "0c" * 20


def test_types_are_measured_once_and_kept(asked: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)  # what engines that run in this process leave; results of other numbers are not mixed
    monkeypatch.setattr(quantization, "TORCH_DTYPES", {"f32": torch.float32})
    monkeypatch.setattr(quantization, "GgufType", [GgufType.Q4_0])
    monkeypatch.setattr(quantization, "BATCHES", (1, 2))
    steps: list[tuple[str, int, int]] = []
    file = measure_quantizations(
        asked, MACHINE, tmp_path, progress=lambda *step: steps.append(step), committed=committed
    )
    f32, q4 = file.result.rows
    assert [(row.engine, row.quantization) for row in (f32, q4)] == [("transformers", "f32"), ("llama.cpp", "q4_0")]
    assert f32.size == 4 * 5_918_720
    assert q4.size < f32.size / 4
    # Keys and values of six layers, 256 wide, for each token: in float32 and in float16.
    assert (f32.context_memory, q4.context_memory) == (32 * 12288, 32 * 6144)
    assert (f32.ratio.value, f32.ratio.low, f32.ratio.high) == (1.0, 1.0, 1.0)
    assert f32.perplexity.low < f32.perplexity.value < f32.perplexity.high
    assert q4.ratio.value == pytest.approx(1, abs=0.1)
    assert q4.ratio.value != 1
    assert set(f32.tokens_per_second) == {"1", "2"}
    assert ("llama.cpp q4_0, 2 at once", 1, 1) in steps
    # All is kept: no engine is opened and no model loaded to be measured again.
    monkeypatch.setattr(quantization, "time_answers", None)
    monkeypatch.setattr(quantization, "measure_loss", None)
    again = measure_quantizations(asked, MACHINE, tmp_path, committed=committed)
    assert again.result.rows == file.result.rows


def test_what_llama_cpp_keeps_of_a_token_is_read_from_the_file(tmp_path: Path) -> None:
    assert context_bytes(write_gguf(open_model("demo"), tmp_path / "demo.gguf", GgufType.Q4_0).path) == 6144


def test_a_text_that_does_not_fit_is_refused_before_anything_is_written(asked: Request, tmp_path: Path) -> None:
    with pytest.raises(PromptTooLong):
        measure_quantizations(Request(asked.source, TEXT, 500, 20, 1, 0, 1), MACHINE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_plots_are_drawn(tmp_path: Path) -> None:
    one = Estimate(0.1, 0.05, 0.2)
    draw_overheads(tmp_path / "a.png", "demo", "lost", {"bf16, 1 core": {"tdx": one, "vm": one}, "int8": {"vm": one}})
    draw_quantizations(tmp_path / "b.png", "demo", {str(index): (one, one) for index in range(9)}, 66.0)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))


def test_the_table_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    made = quantization_result()
    large = Interval(4964.09, 4666.19, 15281.07)
    row = msgspec.structs.replace(
        made.rows[0], engine="transformers", size=412_700_000, first_ms=large, ms_per_token=large, perplexity=large
    )
    bench.show_quantizations(msgspec.structs.replace(made, rows=(row, made.rows[0])))
    shown = capsys.readouterr().out
    assert "1.50 (1.25, 2.00)" in shown
    assert "4,964 (4,666, 15,281)" in shown
    assert "…" not in shown


def test_two_files_are_compared_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        ResultFile.make(tee_result(arm, slower)).write(tmp_path)
        for arm, slower in ((Arm.BARE, 1.0), (Arm.SIMULATED, 1.5))
    ]
    bench.compare(files, tmp_path / "figures", json=True)
    said = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in said["rows"]] == ["bare", "simulated"] * 2
    assert said["rows"][3]["overhead"]["value"] == pytest.approx(0.5, abs=0.02)
    assert [Path(path).name for path in said["files"]] == ["throughput.png", "latency.png"]
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in said["files"])
    bench.compare(files)
    shown = capsys.readouterr()
    assert "latency, llama.cpp int8, 2 cores" in shown.out
    assert "…" not in shown.out
    assert "protects nothing" in shown.err


def test_what_was_measured_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bench.show_tee(tee_result(Arm.VM))
    shown = capsys.readouterr()
    assert "transformers bf16, 2 cores" in shown.out
    assert "…" not in shown.out
    assert "This machine: vm" in shown.err


def test_files_that_are_no_measured_machine_are_refused_at_the_command_line(tmp_path: Path) -> None:
    whole = ResultFile.make(tee_result()).write(tmp_path)
    claimed = ResultFile.make(tee_result(Arm.TDX)).write(tmp_path)
    other = ResultFile.make(quantization_result()).write(tmp_path)
    for path, kind, why in (
        (claimed, InvalidResult, "no evidence"),
        (other, BenchmarkError, "no result of `confide bench tee`"),
        (tmp_path / "absent", InvalidResult, "cannot be read"),
    ):
        with pytest.raises(kind, match=why):
            bench.compare([whole, path])
