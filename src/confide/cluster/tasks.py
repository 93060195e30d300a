"""Variants of a model measured as Ray tasks, one for each, on as many machines as the cluster has.

A task gets the model's place, and finds its folder there: it has to be at the same path on every machine. What a task
has measured is kept as it comes, so that an interrupted run goes on where it was.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from confide.errors import EvaluationError
from confide.evaluate.results import Results
from confide.evaluate.run import Measure, OnProgress, Result, Variant
from confide.evaluate.windows import Windows
from confide.extras import named_extras

with named_extras():
    import ray

Missing = Sequence[tuple[int, Sequence[int], Any]]
"""Windows to measure: number, token ids, and the reference's result; None for the reference itself."""


def measure_on_ray(
    variants: Sequence[Variant],
    windows: Windows,
    measure: Measure[Result],
    results: Results[Result],
    progress: OnProgress,
    cpus: float = 1.0,
) -> dict[str, list[Result]]:
    """As `evaluate.run.measure_variants`, with this process in a Ray cluster. cpus: what a task takes of its machine.

    EvaluationError where a task fails.
    """
    reference, *others = variants
    turn = Lock()

    def measured(variant: Variant) -> None:
        missing = _missing(variant, reference, windows, results)
        done = len(windows) - len(missing)
        progress(variant.name, done, len(windows))
        if not missing:
            return
        task = ray.remote(_measured).options(num_cpus=cpus, num_returns="streaming", max_retries=2)
        parts = task.remote(variant, missing, measure)
        try:
            for part in parts:
                number, result = ray.get(part)
                with turn:
                    if results.get(variant.name, number) is None:  # a task that began anew gives some again
                        results.add(variant.name, number, result)
                        done += 1
                progress(variant.name, done, len(windows))
        except ray.exceptions.RayError as error:
            raise EvaluationError(
                f"A task of the cluster failed ({type(error).__name__}) for {variant.name}. See that the model lies at "
                "the same path on every machine, and run the command again: what was measured is kept."
            ) from error
        finally:
            ray.cancel(parts, force=True)

    measured(reference)  # the others are compared with it
    with ThreadPoolExecutor(max(1, len(others)), "variants") as pool:
        list(pool.map(measured, others))
    return {variant.name: results.of(variant.name, len(windows)) for variant in variants}


def _missing(variant: Variant, reference: Variant, windows: Windows, results: Results[Any]) -> Missing:
    return [
        (number, ids, None if variant is reference else results.get(reference.name, number))
        for number, ids in enumerate(windows.ids)
        if results.get(variant.name, number) is None
    ]


def _measured(variant: Variant, missing: Missing, measure: Measure[Any]) -> Iterator[tuple[int, Any]]:
    """In the task."""
    model = variant.load()
    for number, ids, compared in missing:
        yield number, measure(model, ids, compared)
