"""`python -m fuzz`: run targets under atheris, one after another, each in a process of its own."""

import argparse
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

CRASHES = Path(__file__).parent / "crashes"
MAX_INPUT = 1 << 12
RSS_LIMIT_MB = 3072
"""Of the whole process, in which torch alone takes several hundred."""
INPUT_SECONDS = 10


def main() -> int:
    """Exit status 1 where a target found something; the input is kept in fuzz/crashes."""
    options = _options()
    if options.one:
        _fuzz(options.one, options.seconds, options.keep)
        return 0
    from fuzz.targets import targets

    names = options.targets or list(targets())
    if unknown := set(names) - set(targets()):
        sys.exit(f"There is no target {min(unknown)}; there are {', '.join(targets())}.")
    if options.seed:
        _write_seeds(names)
        return 0
    return max(_run(name, options.seconds, options.keep) for name in names)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz the decoders of outside bytes.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them by default")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--keep", action="store_true", help="add inputs that reach new code to the corpus")
    parser.add_argument("--seed", action="store_true", help="write the seeds to the corpus and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def _write_seeds(names: list[str]) -> None:
    from fuzz.targets import CORPUS, seeds

    for name in names:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed in seeds()[name]():
            (folder / hashlib.sha1(seed, usedforsecurity=False).hexdigest()[:16]).write_bytes(seed)


def _run(name: str, seconds: int, keep: bool) -> int:
    command = [sys.executable, "-m", "fuzz", "--one", name, "--seconds", str(seconds)]
    from fuzz.bench import memory

    # Under atheris a process ends without tidying up.
    with tempfile.TemporaryDirectory(prefix="confide-fuzz-", dir=memory()) as folder:
        environment = os.environ | {"TMPDIR": folder}
        ran = subprocess.run(
            command + ["--keep"] * keep, env=environment, stderr=subprocess.PIPE, text=True, errors="replace"
        )
    speed = [line.split()[-1] for line in ran.stderr.splitlines() if "average_exec_per_sec" in line]
    print(f"{name}: {'found something' if ran.returncode else 'clean'}, {speed[0] if speed else '?'} inputs a second")
    if ran.returncode:
        print("\n".join(ran.stderr.splitlines()[-40:]))
    return int(ran.returncode != 0)


def _fuzz(name: str, seconds: int, keep: bool) -> None:
    import atheris

    with atheris.instrument_imports(include=["confide", "websockets"]):
        from fuzz.targets import CORPUS, corpus, targets

        target = targets()[name]
    logging.disable()
    warnings.simplefilter("ignore")
    target(corpus(name)[0])  # what is imported or made at first use takes its time here
    CRASHES.mkdir(exist_ok=True)
    folders = [str(CORPUS / name)]
    if not keep:
        folders.insert(0, tempfile.mkdtemp(prefix="confide-corpus-"))
    limits = [f"-max_len={MAX_INPUT}", f"-rss_limit_mb={RSS_LIMIT_MB}", f"-timeout={INPUT_SECONDS}"]
    goal = [f"-max_total_time={seconds}", "-print_final_stats=1", f"-artifact_prefix={CRASHES / name}-"]
    atheris.Setup([sys.argv[0], *limits, *goal, *folders], target)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
