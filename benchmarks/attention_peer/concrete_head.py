"""The head as a TFHE circuit: compiled with Concrete Python, simulated, and executed where that is asked for.

Steps and tables are those of Zama's GPT-2 example. Sums are rounded to their first bits before a table is looked up,
as there, since a table of all their bits would be too large.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import reduce

import numpy as np

warnings.filterwarnings("ignore", category=UserWarning)  # concrete's own, about pkg_resources

from concrete import fhe  # noqa: E402

from benchmarks.attention_peer.head import Head  # noqa: E402

P_ERROR = 1e-3
"""The probability that a table look-up is off, mostly by one."""


def circuit_function(head: Head) -> Callable[[np.ndarray], np.ndarray]:
    """x (tokens, width), integers -> context (tokens, head width), integers."""
    levels, unit = head.levels, 1 / head.levels
    tokens = head.inputs.shape[1]
    sites = ["q", "k", "v", "scores", *(f"{step} {row}" for step in ("sum", "probabilities") for row in range(tokens))]
    rounders = {name: fhe.AutoRounder(target_msbs=head.bits + 1) for name in sites}

    def table(values: np.ndarray, name: str, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """A function of a sum's first bits, as an integer of few bits."""

        def looked_up(x: np.ndarray) -> np.ndarray:
            return np.clip(np.rint(function(x.astype(np.float64))), -levels, levels).astype(np.int64)

        return fhe.univariate(looked_up)(fhe.round_bit_pattern(values, rounders[name]))

    def projected(x: np.ndarray, role: int) -> np.ndarray:
        """Queries, keys or values, (tokens, head width)."""
        products = x @ head.projections[role]
        factor, biases = head.to_qkv[role], head.biases[role]
        # The bias is added as an integer, so that one table serves all columns.
        shifted = products + np.rint(biases / factor).astype(np.int64)
        return table(shifted, "qkv"[role], lambda value: value * factor)

    def softmax(scores: np.ndarray, row: int) -> np.ndarray:
        """Probabilities of one row, (1, row + 1)."""
        seen = scores[row : row + 1, : row + 1]
        largest = reduce(_larger, [scores[row : row + 1, at : at + 1] for at in range(row + 1)])
        shifted = seen - largest
        exponentials = fhe.univariate(lambda x: np.rint(np.exp(x * head.score) * levels).astype(np.int64))(shifted)
        total = np.sum(exponentials, axis=1, keepdims=True)
        inverse = table(total, f"sum {row}", lambda value: levels / np.maximum(value * unit, 1))
        return table(exponentials * inverse, f"probabilities {row}", lambda value: value * unit)

    def attention(x: np.ndarray) -> np.ndarray:
        queries, keys, values = (projected(x, role) for role in range(3))
        scores = table(queries @ keys.T, "scores", lambda value: value * head.to_scores)
        # The first token attends to itself alone, with all of its probability.
        contexts = (softmax(scores, row) @ values[: row + 1] for row in range(1, tokens))
        return np.concatenate((values[:1] * levels, *contexts), axis=0)

    return attention


def _larger(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The larger of two, with one table. Concrete's own maximum needs more, and does not compile for these widths."""
    return fhe.univariate(lambda x: np.maximum(x, 0))(left - right) + right


def measure(head: Head, *, execute: bool) -> dict[str, object]:
    """Compile the head and say what it would cost; with `execute`, make keys and run it on one text as well."""
    inputset = list(head.inputs)
    started = time.perf_counter()
    configuration = fhe.Configuration(
        auto_adjust_rounders=True, rounding_exactness=fhe.Exactness.APPROXIMATE, p_error=P_ERROR, fhe_simulation=True
    )
    circuit = fhe.Compiler(circuit_function(head), {"x": "encrypted"}).compile(inputset, configuration)
    found: dict[str, object] = {
        "tokens": head.inputs.shape[1],
        "bits": head.bits,
        "compile_seconds": time.perf_counter() - started,
        "bootstraps": circuit.programmable_bootstrap_count,
        "key_switches": circuit.key_switch_count,
        "complexity": circuit.complexity,
        "widest_integer_bits": circuit.graph.maximum_integer_bit_width(),
        "evaluation_key_bytes": circuit.size_of_bootstrap_keys + circuit.size_of_keyswitch_keys,
        "input_bytes": circuit.size_of_inputs,
        "output_bytes": circuit.size_of_outputs,
        "simulated_error": _error(head, circuit.simulate(inputset[0])),
    }
    return found | (_executed(head, circuit) if execute else {})


def _executed(head: Head, circuit: fhe.Circuit) -> dict[str, object]:
    started = time.perf_counter()
    circuit.keygen()
    keyed = time.perf_counter()
    result = circuit.encrypt_run_decrypt(head.inputs[0])
    return {
        "keys_seconds": keyed - started,
        "execute_seconds": time.perf_counter() - keyed,
        "executed_error": _error(head, result),
    }


def _error(head: Head, result: np.ndarray) -> float:
    """The largest difference to the head in the clear, as a fraction of its largest output."""
    expected = head.outputs[0]
    return float(np.abs(np.asarray(result) - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    print(json.dumps(measure(Head.load(sys.argv[1]), execute=sys.argv[2] == "execute")))
