"""What the parameters of protocol 3 cost to attack, by two estimates.

`python tools/security_estimate.py` computes the core-SVP estimate of the primal attack here, with no library.
`python tools/security_estimate.py --lattice-estimator` builds an environment of its own beside it, clones the lattice
estimator of Albrecht, Player and Scott into it, and runs all of its attacks. That needs git, a network and Sage, which
has no wheel: `conda create -n sage -c conda-forge sage`, and then `--sage "conda run -n sage sage"`.

The estimate here: BKZ with blocks of b has the root Hermite factor ((pi b)^(1/b) b / (2 pi e))^(1 / (2 (b - 1))); it
finds the unusually short vector where sigma sqrt(b) <= delta^(2 b - d - 1) vol^(1 / d) (Alkim, Ducas, Poeppelmann,
Schwabe: "Post-quantum key exchange - a new hope", 2016, section 6.3), in Bai and Galbraith's lattice, whose short
vector's secret part is scaled to its error's size. One call for the shortest vector in b dimensions costs 2^(0.292 b),
and 2^(0.265 b) by quantum search. That counts one call and no polynomial factor, so it is below what the estimator's
default cost model gives for the same attack.
"""

import argparse
import math
import os
import shlex
import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path

ESTIMATOR = "https://github.com/malb/lattice-estimator"
BLOCKS = range(60, 1500)


@dataclass(frozen=True)
class Problem:
    """Learning with errors: standard deviations of secret and error, and how many samples there are at most."""

    name: str
    dimension: int
    modulus_bits: int
    secret_std: float
    error_std: float
    samples: int


ERROR = math.sqrt(42 / 4)
HINT_ERROR = math.sqrt(42 / 4 + 256**2 / 12)
TERNARY = math.sqrt(2 / 3)
SIX_BITS = math.sqrt((2 * 32**2 + 1) / 6)
UNIFORM_INT8 = 127 / math.sqrt(3)

PROBLEMS = [
    Problem("a token's secret s: N = 2048, ternary", 2048, 48, TERNARY, ERROR, 1 << 20),
    Problem("U of six bits, with e1 and the hint's rounding", 2048, 48, SIX_BITS, HINT_ERROR, 2048),
    Problem("W once U is known, n = 1,536 (uniform int8)", 1536, 48, UNIFORM_INT8, HINT_ERROR, 2048),
    Problem("W once U is known, n = 1,536 (Gaussian, std 35)", 1536, 48, 35.0, HINT_ERROR, 2048),
    Problem("W once U is known, n = 1,024 (uniform int8)", 1024, 48, UNIFORM_INT8, HINT_ERROR, 2048),
    Problem("W once U is known, n = 768 (uniform int8)", 768, 48, UNIFORM_INT8, HINT_ERROR, 2048),
    Problem("U if it were ternary", 2048, 48, TERNARY, HINT_ERROR, 2048),
]


def log2_delta(block: int) -> float:
    """log2 of BKZ's root Hermite factor."""
    return math.log2((math.pi * block) ** (1 / block) * block / (2 * math.pi * math.e)) / (2 * (block - 1))


def primal_block(problem: Problem) -> tuple[int, int]:
    """The smallest block size that solves the problem, and the samples that it takes."""
    scale = math.log2(problem.error_std / problem.secret_std)
    for block in BLOCKS:
        delta = log2_delta(block)
        short = math.log2(problem.error_std) + math.log2(block) / 2
        for samples in range(problem.dimension // 2, min(problem.samples, 4 * problem.dimension) + 1, 8):
            total = samples + problem.dimension + 1
            volume = (samples * problem.modulus_bits + problem.dimension * scale) / total
            if short <= (2 * block - total - 1) * delta + volume:
                return block, samples
    raise ValueError(f"No block below {BLOCKS.stop} solves: {problem.name}.")


def estimate() -> None:
    """Print the table of core-SVP estimates."""
    print("| problem | block | samples | core-SVP, classical | quantum |\n| --- | --- | --- | --- | --- |")
    for problem in PROBLEMS:
        block, samples = primal_block(problem)
        print(f"| {problem.name} | {block} | {samples} | 2^{0.292 * block:.0f} | 2^{0.265 * block:.0f} |")


def run_lattice_estimator(folder: Path, sage: str) -> None:
    """Install the lattice estimator in an environment of its own and run every attack on every problem."""
    venv.create(folder, with_pip=True)
    checkout = folder / "lattice-estimator"
    if not checkout.exists():
        subprocess.run(["git", "clone", "--depth", "1", ESTIMATOR, str(checkout)], check=True)
    script = [
        "from estimator import LWE, ND",
        "from sage.all import oo",
        *(
            f"print({problem.name!r}); LWE.estimate(LWE.Parameters(n={problem.dimension}, q=2^{problem.modulus_bits}, "
            f"Xs=ND.DiscreteGaussian({problem.secret_std}), Xe=ND.DiscreteGaussian({problem.error_std}), "
            f"m={'oo' if problem.samples > 1 << 16 else problem.samples}))".replace("^", "**")
            for problem in PROBLEMS
        ),
    ]
    (folder / "run.py").write_text("\n".join(script) + "\n", encoding="utf-8")
    subprocess.run(
        [*shlex.split(sage), "-python", str(folder / "run.py")],
        cwd=checkout,
        check=True,
        env={**os.environ, "PYTHONPATH": "."},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lattice-estimator", action="store_true", help="run the lattice estimator too (needs Sage)")
    parser.add_argument("--sage", default="sage", help="how Sage is started")
    parser.add_argument("--folder", type=Path, default=Path("build/security-estimate"), help="where it is installed")
    arguments = parser.parse_args()
    estimate()
    if arguments.lattice_estimator:
        run_lattice_estimator(arguments.folder, arguments.sage)


if __name__ == "__main__":
    main()
