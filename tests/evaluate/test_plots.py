"""Charts show what they were given: where lines lie, and what the axes say."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from confide.evaluate import plots
from confide.evaluate.agreement import Agreement
from confide.evaluate.perplexity import Perplexity
from confide.evaluate.statistics import Estimate


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn."""
    made: list[Figure] = []

    class Noted(Figure):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Noted)
    return made


def around(value: float) -> Estimate:
    return Estimate(value, value - 0.01, value + 0.01)


def lines(figure: Figure) -> dict[str, list[float]]:
    return {str(line.get_label()): list(line.get_ydata()) for line in figure.axes[0].lines}  # type: ignore[arg-type]


def perplexity(ratio: float) -> Perplexity:
    return Perplexity(Estimate(50 * ratio, 40, 60), around(ratio))


def test_a_perplexity_sweep(tmp_path: Path, figures: list[Figure]) -> None:
    path = tmp_path / "sweep.png"
    plots.draw_perplexity_sweep(path, "a title", {8: perplexity(1), 2: perplexity(1.3), 4: perplexity(1.1)}, 50)
    axes = figures[0].axes[0]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert lines(figures[0])["quantized"] == pytest.approx([65, 55, 50])
    assert lines(figures[0])["fp32: 50.00"] == [50, 50]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_yscale()) == ("a title", "bits of a weight", "linear")
    assert "perplexity" in axes.get_ylabel()
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == pytest.approx((49.5, 65.5))


def test_perplexities_far_apart_are_on_a_logarithmic_axis(tmp_path: Path, figures: list[Figure]) -> None:
    plots.draw_perplexity_sweep(tmp_path / "sweep.png", "", {2: perplexity(900), 8: perplexity(1)}, 50)
    assert figures[0].axes[0].get_yscale() == "log"


def test_an_agreement_sweep(tmp_path: Path, figures: list[Figure]) -> None:
    curves = {1: {2: around(0.5), 8: around(0.9)}, 5: {2: around(0.7), 8: around(0.95)}}
    plots.draw_agreement_sweep(tmp_path / "sweep.png", "", curves)
    drawn = lines(figures[0])
    assert (drawn["top 1"], drawn["top 5"], drawn["fp32"]) == ([0.5, 0.9], [0.7, 0.95], [1, 1])


def test_ratios_of_windows(tmp_path: Path, figures: list[Figure]) -> None:
    plots.draw_window_ratios(tmp_path / "ratios.png", "", [1.0, 1.02, 0.99], around(1.003))
    drawn = lines(figures[0])
    assert drawn["one window"] == [1.0, 1.02, 0.99]
    assert drawn["whole text: 1.0030 (0.9930 to 1.0130)"] == [1.003, 1.003]


def test_choices(tmp_path: Path, figures: list[Figure]) -> None:
    quantized = {k: Agreement(around(0.9), around(0.1 * k), around(0)) for k in (1, 5)}
    reference = {k: Agreement(around(1), around(0.11 * k), around(0)) for k in (1, 5)}
    plots.draw_choices(tmp_path / "choices.png", "", quantized, reference)
    assert list(lines(figures[0]).values()) == [pytest.approx(each) for each in ([0.9, 0.9], [0.1, 0.5], [0.11, 0.55])]


def test_bits_of_attention_have_a_panel_for_each_choice_of_heads(tmp_path: Path, figures: list[Figure]) -> None:
    one, every = {1: {2: around(0.6), 7: around(0.98)}}, {1: {2: around(0.4), 7: around(0.8)}}
    plots.draw_attention_bits(tmp_path / "bits.png", "a title", {"one head": one, "all heads": every})
    assert figures[0].get_suptitle() == "a title"
    assert [axes.get_title() for axes in figures[0].axes] == ["one head", "all heads"]
    assert [list(axes.lines[0].get_ydata()) for axes in figures[0].axes] == [[0.6, 0.98], [0.4, 0.8]]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["top 1"]
