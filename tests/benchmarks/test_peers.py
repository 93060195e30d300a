"""What the comparison with other libraries is built from; the libraries themselves are not installed here."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks.both_parties import BLOCK_TOKENS, BothParties
from benchmarks.peers import clear, environment, measurement, ours, report
from benchmarks.peers.layer import Layer
from benchmarks.peers.measurement import Measurement, Timing, Traffic, fastest, median

ROWS, COLUMNS = 24, 40


@pytest.fixture(scope="module")
def layer() -> Layer:
    random = np.random.default_rng(1)
    weights = random.integers(-127, 128, (ROWS, COLUMNS), dtype=np.int8)
    return Layer(weights, random.integers(-8191, 8192, COLUMNS, dtype=np.int32))


def _example() -> Measurement:
    return Measurement("ours", "detail", Timing(2.0, 1.5), 0.25, 0.125, Traffic(8, 4), Traffic(2, 1), 0.0, 3.0, 7)


def test_a_layer_survives_its_file_and_knows_its_product(layer: Layer, tmp_path: Path) -> None:
    layer.save(tmp_path / "layer.npz")
    loaded = Layer.load(tmp_path / "layer.npz")
    by_hand = [
        sum(int(w) * int(x) for w, x in zip(row, layer.activations, strict=True)) for row in layer.weights.tolist()
    ]
    assert loaded.exact().tolist() == by_hand
    assert (loaded.name, loaded.activation_bits) == ("1x40 by 40x24", 14)


def test_an_error_is_a_fraction_of_the_largest_output(layer: Layer) -> None:
    result = layer.exact().astype(np.float64)
    assert layer.error(result) == 0
    result[3] += np.abs(result).max() / 4
    assert layer.error(result) == pytest.approx(0.25)


def test_a_result_of_the_wrong_shape_is_no_result(layer: Layer) -> None:
    with pytest.raises(ValueError, match="shape"):
        layer.error(layer.exact()[:1])


def test_both_parties_in_one_process_are_exact_for_every_token(layer: Layer) -> None:
    parties = BothParties(torch.from_numpy(layer.weights))
    block = parties.block()
    for token in (0, 1, BLOCK_TOKENS - 1):
        assert (parties.product(layer.activations[None], block, token)[0] == layer.exact()).all()


def test_a_block_shows_none_of_its_secrets(layer: Layer) -> None:
    assert "array" not in repr(BothParties(torch.from_numpy(layer.weights)).block(1))


def test_our_side_counts_a_block_of_its_own_for_a_lone_token(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "BLOCKS", 1)
    monkeypatch.setattr(ours, "TOKENS", 3)
    measured = ours.measure(layer)
    assert measured.error == 0
    assert measured.lone.seconds > measured.online_seconds
    # The bytes of docs/protocol.md: 6 an input, 6 for each coefficient of the token's key, and 4 an output.
    assert measured.amortised_bytes == measured.lone_bytes == Traffic(6 * (COLUMNS + 2048), 4 * ROWS)
    assert measured.keys_bytes == ROWS * 5 * 2048


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float32, 0, 1e-6), (torch.bfloat16, 1e-6, 0.1)])
def test_the_clear_layer_is_as_exact_as_its_type(layer: Layer, dtype: torch.dtype, least: float, most: float) -> None:
    assert least <= clear.measure(layer, dtype).error < most


def test_a_measurement_survives_the_way_between_programs() -> None:
    assert Measurement.from_json(json.dumps(asdict(_example()))) == _example()


def test_the_fastest_and_the_middle_round_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(wall=0.0)
    fake = SimpleNamespace(perf_counter=lambda: clock.wall, process_time=lambda: clock.wall * 1.5)
    monkeypatch.setattr(measurement, "time", fake)

    def taking(*seconds: float) -> Callable[[], None]:
        rounds = iter(seconds)

        def call() -> None:
            clock.wall += next(rounds)

        return call

    shortest, middle = fastest(taking(3, 1, 2), 3), median(taking(9, 3, 1, 2), 3)
    assert (shortest.seconds, middle.seconds) == (1, 2)
    assert shortest.cores == middle.cores == 1.5


def test_the_plot_is_drawn_and_its_axis_is_logarithmic(tmp_path: Path) -> None:
    report.plot({"a layer": [_example()], "another": [_example()]}, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_a_python_without_the_peers_wheels_is_told_which_to_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "NEWEST_PYTHON", (3, 10))
    with pytest.raises(RuntimeError, match=r"make PYTHON=python3\.10"):
        environment.measure("glwe", tmp_path / "layer.npz")
