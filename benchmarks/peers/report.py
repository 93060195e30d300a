"""The table and the plot of all sides."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.peers.layer import Layer
from benchmarks.peers.measurement import Measurement, Traffic
from benchmarks.peers.published import PUBLISHED

BARS: dict[str, Callable[[Measurement], float]] = {
    "lone token": lambda measurement: measurement.lone.seconds,
    "per token, amortised": lambda measurement: measurement.amortised_seconds,
    "online alone": lambda measurement: measurement.online_seconds,
}


def table(layer: Layer, measurements: list[Measurement]) -> Table:
    title = f"{layer.name}: int8 weights, activations of {layer.activation_bits} bits"
    result = Table(
        "side",
        "lone token",
        "amortised",
        "online",
        "up / down, lone",
        "up / down, amortised",
        "keys, once",
        "largest error",
        "cores busy",
        title=title,
    )
    for side in measurements:
        result.add_row(
            side.side,
            _time(side.lone.seconds),
            _time(side.amortised_seconds),
            _time(side.online_seconds),
            _bytes(side.lone_bytes),
            _bytes(side.amortised_bytes),
            f"{_time(side.keys_seconds)}, {_size(side.keys_bytes)}" if side.keys_bytes else "none",
            f"{side.error:.1e}" if side.error else "exact",
            f"{side.lone.cores:.1f}",
        )
    return result


def published_table() -> Table:
    """What others publish, which nobody ran here."""
    result = Table("who", "what", "their figure", "their hardware", "not comparable", "doubt", "source")
    for one in PUBLISHED:
        result.add_row(one.who, one.what, one.figure, one.hardware, one.apart, one.doubt, one.address)
    return result


def plot(sides: dict[str, list[Measurement]], path: Path) -> None:
    """Seconds per token of all sides, one panel for each layer, on a logarithmic scale."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(1, len(sides), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (layer, measurements) in zip(panels, sides.items(), strict=True):
        _bars(panel, measurements)
        panel.set_title(layer)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(BARS), frameon=False)
    figure.savefig(path, dpi=120)


def _bars(panel: Axes, measurements: list[Measurement]) -> None:
    height = 0.8 / len(BARS)
    for index, (label, seconds) in enumerate(BARS.items()):
        places = [place + (index - 1) * height for place in range(len(measurements))]
        bars = panel.barh(places, [seconds(side) for side in measurements], height, label=label)
        panel.bar_label(bars, [_time(seconds(side)) for side in measurements], padding=3, fontsize=7)
    panel.set_yticks(range(len(measurements)), [side.side for side in measurements])
    panel.set_xscale("log")
    panel.set_xlabel("seconds per token")
    panel.margins(x=0.15)
    panel.invert_yaxis()


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _bytes(traffic: Traffic) -> str:
    return f"{_size(traffic.up)} / {_size(traffic.down)}" if traffic.up else "none"


def _size(count: float) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"
