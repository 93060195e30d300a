"""Results survive an interruption at any byte, and are never mixed with others'."""

from pathlib import Path

import pytest

from confide.errors import EvaluationError
from confide.evaluate.perplexity import WindowLoss
from confide.evaluate.results import Results, keep_results

SETTINGS = {"model": "a" * 64, "context": "512"}
ONE, TWO = WindowLoss(0.1 + 0.2, 3, "d1"), WindowLoss(1e-17, 4, "d2")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two results."""
    path = tmp_path / "out" / "perplexity.jsonl"
    with keep_results(path, WindowLoss, SETTINGS) as results:
        results.add("fp32", 0, ONE)
        results.add("quantized", 0, TWO)
    return path


def test_results_come_back_to_the_last_bit(path: Path) -> None:
    with keep_results(path, WindowLoss, dict(SETTINGS)) as results:
        assert results.of("fp32", 1) == [ONE]
        assert results.get("quantized", 0) == TWO
        assert results.get("quantized", 1) is None


def test_a_file_cut_at_any_byte_loses_one_result_at_most(path: Path) -> None:
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with keep_results(path, WindowLoss, SETTINGS) as results:
            assert (results.get("fp32", 0) == ONE) == (size >= len(lines[0] + lines[1]))
            results.add("fp32", 1, TWO)
        with keep_results(path, WindowLoss, SETTINGS) as results:
            assert results.get("fp32", 1) == TWO


@pytest.mark.parametrize(("name", "value"), [("model", "b" * 64), ("context", "256")])
def test_other_settings_are_refused_by_name(path: Path, name: str, value: str) -> None:
    before = path.read_bytes()
    with (
        pytest.raises(EvaluationError, match=f"another {name}"),
        keep_results(path, WindowLoss, SETTINGS | {name: value}),
    ):
        pass
    assert path.read_bytes() == before


def test_a_setting_that_was_not_there_is_another(path: Path) -> None:
    with (
        pytest.raises(EvaluationError, match="another top k"),
        keep_results(path, WindowLoss, SETTINGS | {"top k": "5"}),
    ):
        pass


@pytest.mark.parametrize("line", [b"{}\n", b'{"variant":"fp32","window":0,"result":{"nll":"x"}}\n', b"\xff\n"])
def test_a_damaged_file_is_refused(path: Path, line: bytes) -> None:
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(EvaluationError, match="damaged"), keep_results(path, WindowLoss, SETTINGS):
        pass


def test_one_process_at_a_time(path: Path) -> None:
    with keep_results(path, WindowLoss, SETTINGS):
        with pytest.raises(EvaluationError, match="Another process"), keep_results(path, WindowLoss, SETTINGS):
            pass


def test_results_that_are_missing_are_not_made_up() -> None:
    results: Results[WindowLoss] = Results(WindowLoss)
    results.add("fp32", 1, ONE)
    with pytest.raises(KeyError):
        results.of("fp32", 2)


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EvaluationError, match="cannot be written to"):
        with keep_results(tmp_path / "file" / "state.jsonl", WindowLoss, SETTINGS):
            pass
