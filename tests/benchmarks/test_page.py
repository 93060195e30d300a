"""docs/benchmarks.md is what its tool makes of the results, and no result is left out or called what it is not."""

import json
from pathlib import Path

import pytest
from benchmarks.measure import Figure
from benchmarks.peers.published import PUBLISHED
from tests.bench.made import quantization_result, tee_result
from tools.benchmarks_page import NO_FIGURES, PAGE, RESULTS, page, read_kept

from confide.bench.machine import Arm
from confide.bench.results import ResultFile
from confide.errors import InvalidResult


def test_the_page_is_what_the_tool_makes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tools.benchmarks_page"


def test_every_kept_figure_has_its_row() -> None:
    made = page().splitlines()
    for path in RESULTS.glob("*/*.json"):
        found = json.loads(path.read_text())
        assert (path.name in NO_FIGURES) == ("figures" not in found and "digest" not in found), path
        for figure in found.get("figures", ()):
            start = f"| {figure['what']} | {figure['value']:,.2f} "
            where = found["machine"]["processor"]
            end = f"| {figure['reached']} | {found['measured']} | {where} | {figure['detail']} |"
            assert any(line.startswith(start) and line.endswith(end) for line in made)


def document(**changes: object) -> bytes:
    figure = {"what": "a", "value": 2.0, "unit": "s", "reach": 3.0, "moonshot": 1.0, "detail": "", "reached": "yes"}
    figure |= {"higher_is_better": False} | changes
    return json.dumps({"machine": {"processor": "A CPU"}, "measured": "2026-11-29", "figures": [figure]}).encode()


def test_an_aim_that_was_not_reached_is_not_called_reached() -> None:
    read_kept("a.json", document())
    for changes in ({"value": 4.0}, {"reached": "moonshot"}, {"higher_is_better": True}):
        with pytest.raises(InvalidResult, match="a reached"):
            read_kept("a.json", document(**changes))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[" * 100_000, document(value="2"), document().replace(b"2026-11-29", b"today")],
    ids=["empty", "nothing", "deep", "text", "no-day"],
)
def test_what_is_no_result_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidResult):
        read_kept("a.json", content)


def test_results_of_the_command_are_in_the_page_and_changed_ones_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "a-cpu"
    path = ResultFile.make(tee_result(Arm.VM)).write(folder)
    ResultFile.make(quantization_result()).write(folder)
    made = page(tmp_path)
    assert "| vm | throughput, transformers bf16, 2 cores | 25." in made
    assert (
        "| llama.cpp | q8_0 | 6.0 | 3.1 | 2 | 1.5 | 1.5 | 1.5 | 1.50 (1.25, 2.00) | 1.5000 (1.2500, 2.0000) |" in made
    )
    path.write_bytes(path.read_bytes().replace(b"A Fine CPU", b"A Fast CPU"))
    with pytest.raises(InvalidResult, match="were changed"):
        page(tmp_path)


def test_figures_know_which_aim_they_reached() -> None:
    assert Figure("a", 1.0, "s", 3.0, 1.0, "").reached == "moonshot"
    assert Figure("a", 1.0, "s", 3.0, 1.0, "", higher_is_better=True).reached == "moonshot"
    assert Figure("a", 2.0, "s", 1.0, 3.0, "", higher_is_better=True).reached == "yes"


def test_peers_have_a_source_and_say_what_is_not_comparable() -> None:
    for peer in PUBLISHED:
        assert peer.address.startswith("https://")
        assert all((peer.who, peer.what, peer.figure, peer.hardware, peer.source, peer.apart))
    assert len({peer.who for peer in PUBLISHED}) == len(PUBLISHED)
