"""The head that the peer compiles is the one of the quantized study; the compiler itself is not installed here."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.attention_peer.head import Head
from benchmarks.attention_peer.run import random_head
from numpy.typing import NDArray


@pytest.fixture(scope="module")
def head() -> Head:
    return random_head(24, 3, 5, 6)


def computed(head: Head, x: NDArray[np.int64]) -> NDArray[np.int64]:
    """A text's outputs from nothing but the head's integers and factors."""
    q, k, v = (
        clipped(head, (x @ projection) * factor + bias)
        for projection, factor, bias in zip(head.projections, head.to_qkv, head.biases, strict=True)
    )
    scores = clipped(head, (q @ k.T) * head.to_scores)
    rows = [softmax(head, row[: at + 1]) @ v[: at + 1] for at, row in enumerate(scores)]
    return np.stack(rows)


def softmax(head: Head, scores: NDArray[np.int64]) -> NDArray[np.int64]:
    exponentials = clipped(head, np.exp((scores - scores.max()) * head.score) * head.levels)
    inverse = clipped(head, head.levels**2 / exponentials.sum())
    return clipped(head, exponentials * inverse / head.levels)


def clipped(head: Head, values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.clip(np.rint(values), -head.levels, head.levels).astype(np.int64)


def test_the_heads_integers_give_its_outputs(head: Head) -> None:
    expected = np.stack([computed(head, x) for x in head.inputs])
    assert np.array_equal(expected, head.outputs)
    assert np.abs(head.outputs).max() > head.levels
    assert np.abs(head.inputs).max() == np.abs(head.projections).max() == head.levels == 31


def test_scores_have_both_signs_everywhere(head: Head) -> None:
    """Or the compiler would take some for unsigned."""
    q, k, _ = ((head.inputs @ p) * f + b for p, f, b in zip(head.projections, head.to_qkv, head.biases, strict=True))
    scores = q @ k.swapaxes(1, 2)
    assert (scores.min(0) < 0).all()
    assert (scores.max(0) > 0).all()


def test_a_head_survives_its_file(head: Head, tmp_path: Path) -> None:
    head.save(tmp_path / "head.npz")
    loaded = Head.load(tmp_path / "head.npz")
    assert (loaded.bits, loaded.levels, loaded.score) == (6, 31, head.score)
    assert np.array_equal(loaded.outputs, head.outputs)
    assert np.array_equal(loaded.biases, head.biases)
