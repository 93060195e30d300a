"""Charts of what was measured, as PNG files."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confide.evaluate.agreement import Agreement
from confide.evaluate.perplexity import Perplexity
from confide.evaluate.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart with any colour vision: M. Okabe and K. Ito, Color Universal Design, 2008."""
_SHADED = "shaded: 95% confidence"
_WHISKERS = "whiskers: 95% confidence"
_LOG_FROM = 4
"""A chart whose values exceed the reference by more than this factor has a logarithmic axis."""


def draw_perplexity_sweep(path: Path, title: str, points: Mapping[int, Perplexity], reference: float) -> None:
    """Perplexity against weight bits, with a line for fp32's, `reference`.

    Intervals are those of the ratio to fp32: what this text says of the difference, whatever its own difficulty.
    """
    note = f"{_SHADED} of the ratio to fp32"
    with _chart(path, title, "bits of a weight", "perplexity (lower is better)", note) as axes:
        _line(axes, {bits: _in_units_of(reference, of.ratio) for bits, of in points.items()}, "quantized", _COLOURS[0])
        axes.axhline(reference, color="black", linestyle="--", linewidth=1, label=f"fp32: {reference:.2f}")
        if max(of.perplexity.value for of in points.values()) > _LOG_FROM * reference:
            _logarithmic(axes)
        axes.set_xticks(sorted(points))


def draw_agreement_sweep(path: Path, title: str, curves: Mapping[int, Mapping[int, Estimate]]) -> None:
    """Top-k agreement with fp32 against weight bits, with 95% intervals: a curve of shares for each k."""
    with _chart(path, title, "bits of a weight", "fp32's first choice is in the top k") as axes:
        for colour, (k, points) in zip(itertools.cycle(_COLOURS), curves.items(), strict=False):
            _line(axes, points, f"top {k}", colour)
        axes.axhline(1, color="black", linestyle="--", linewidth=1, label="fp32")
        _shares(axes, sorted(next(iter(curves.values()))))


def draw_window_ratios(path: Path, title: str, ratios: Sequence[float], overall: Estimate) -> None:
    """The ratio of two models' perplexities on each window, in the order of the text, and on the whole text."""
    with _chart(path, title, "window of the text", "perplexity, quantized / fp32") as axes:
        axes.plot(range(1, len(ratios) + 1), ratios, ".", color=_COLOURS[0], alpha=0.6, label="one window")
        label = f"whole text: {overall.value:.4f} ({overall.low:.4f} to {overall.high:.4f})"
        axes.axhline(overall.value, color=_COLOURS[1], linewidth=1.5, label=label)
        axes.axhspan(overall.low, overall.high, color=_COLOURS[1], alpha=0.2, linewidth=0)
        axes.axhline(1, color="black", linestyle="--", linewidth=1, label="fp32")


def draw_choices(
    path: Path, title: str, quantized: Mapping[int, Agreement], reference: Mapping[int, Agreement]
) -> None:
    """For each k, the quantized model's agreement with fp32, and the accuracies of both, with 95% intervals."""
    with _chart(path, title, "k", "share of tokens in the top k") as axes:
        agreement = {k: of.agreement for k, of in quantized.items()}
        _line(axes, agreement, "fp32's first choice, found by quantized", _COLOURS[0])
        accuracy = {k: of.accuracy for k, of in quantized.items()}
        _line(axes, accuracy, "the text's own token, found by quantized", _COLOURS[1])
        ks = sorted(reference)
        stock = [reference[k].accuracy.value for k in ks]
        axes.plot(ks, stock, color="black", linestyle="--", linewidth=1, label="the text's own token, found by fp32")
        _shares(axes, ks)


def draw_attention_bits(path: Path, title: str, curves: Mapping[str, Mapping[int, Mapping[int, Estimate]]]) -> None:
    """Top-k agreement with fp32 against the bits of attention: a panel for each choice of heads, a curve for each k."""
    with _panels(
        path, title, tuple(curves), "bits of weights and activations", "fp32's first choice is in the top k"
    ) as all_axes:
        for axes, by_k in zip(all_axes, curves.values(), strict=True):
            for colour, (k, points) in zip(itertools.cycle(_COLOURS), by_k.items(), strict=False):
                _line(axes, points, f"top {k}", colour)
            _shares(axes, sorted(next(iter(by_k.values()))))


def draw_overheads(path: Path, title: str, y: str, groups: Mapping[str, Mapping[str, Estimate]]) -> None:
    """Bars of shares for each group, such as a type of weights on so many cores: one for each machine, by its name."""
    machines = list(dict.fromkeys(machine for of in groups.values() for machine in of))
    width = 0.8 / len(machines)
    with _chart(path, title, "", y, _WHISKERS) as axes:
        for index, (machine, colour) in enumerate(zip(machines, itertools.cycle(_COLOURS), strict=False)):
            at = [(place, of[machine]) for place, of in enumerate(groups.values()) if machine in of]
            places = [place + (index - (len(machines) - 1) / 2) * width for place, _ in at]
            spread = [[one.value - one.low for _, one in at], [one.high - one.value for _, one in at]]
            values = [one.value for _, one in at]
            axes.bar(places, values, width, yerr=spread, color=colour, label=machine, capsize=3, alpha=0.85)
        axes.axhline(0, color="black", linewidth=1)
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.set_xticks(range(len(groups)), [name.replace(", ", "\n") for name in groups], fontsize="small")


def draw_quantizations(
    path: Path, title: str, points: Mapping[str, tuple[Estimate, Estimate]], reference: float
) -> None:
    """Perplexity against milliseconds per token for each type of weights; points: the time, and the ratio to fp32.

    Intervals of perplexity are those of the ratio, as in `draw_perplexity_sweep`. reference: fp32's perplexity.
    """
    note = f"{_WHISKERS}, of perplexity that of the ratio to fp32"
    marks = itertools.product("osD^", _COLOURS)
    with _chart(path, title, "ms per token, one request alone", "perplexity (lower is better)", note) as axes:
        for (name, (time, ratio)), (marker, colour) in zip(points.items(), marks, strict=False):
            quality = _in_units_of(reference, ratio)
            axes.errorbar(
                time.value,
                quality.value,
                xerr=[[time.value - time.low], [time.high - time.value]],
                yerr=[[quality.value - quality.low], [quality.high - quality.value]],
                fmt=marker,
                color=colour,
                label=name,
                capsize=2,
            )


def _in_units_of(unit: float, of: Estimate) -> Estimate:
    return Estimate(unit * of.value, unit * of.low, unit * of.high)


def _line(axes: "Axes", points: Mapping[int, Estimate], label: str, colour: str) -> None:
    xs = sorted(points)
    axes.plot(xs, [points[x].value for x in xs], "o-", color=colour, label=label, markersize=5)
    lows, highs = [points[x].low for x in xs], [points[x].high for x in xs]
    axes.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)


def _shares(axes: "Axes", xs: Sequence[int]) -> None:
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_xticks(xs)


def _logarithmic(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


@contextmanager
def _chart(path: Path, title: str, x: str, y: str, note: str = _SHADED) -> Iterator["Axes"]:
    with _panels(path, "", (title,), x, y, note) as (axes,):
        yield axes


@contextmanager
def _panels(
    path: Path, title: str, panels: Sequence[str], x: str, y: str, note: str = _SHADED
) -> Iterator[Sequence["Axes"]]:
    """Charts side by side with one scale and one legend; panels: their titles."""
    # Imported here, since it takes a while, and without pyplot, which would want a display and keep global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 5 * len(panels), 4.5), layout="constrained")
    all_axes: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    yield all_axes
    for axes, name in zip(all_axes, panels, strict=True):
        axes.set(title=name, xlabel=x)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel(y)
    figure.suptitle(title)
    # Below the chart, where it covers no point.
    figure.legend(
        *all_axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2 if len(panels) == 1 else 3,
        frameon=False,
        fontsize="small",
        title=note,
        title_fontsize="small",
    )
    figure.savefig(path, format="png")
