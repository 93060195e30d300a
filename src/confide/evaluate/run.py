"""Measures models on a text, window by window, leaving out what has been measured before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec
from transformers import PreTrainedModel

from confide.evaluate.results import Results
from confide.evaluate.windows import Windows

Result = TypeVar("Result", bound=msgspec.Struct)

OnProgress = Callable[[str, int, int], None]
"""Called with a variant's name, how many of its windows are measured, and how many there are."""


@dataclass(frozen=True)
class Variant:
    """A model to measure, by the name that its results have. load: called once at most, and only where it is needed."""

    name: str
    load: Callable[[], PreTrainedModel]


class Measure(Protocol[Result]):
    """What is measured of a model on one window."""

    def __call__(self, model: PreTrainedModel, window: Sequence[int], reference: Result | None) -> Result:
        """reference: the result of the first variant on this window; None when the first itself is measured."""
        ...


def measure_variants(
    variants: Sequence[Variant],
    windows: Windows,
    measure: Measure[Result],
    results: Results[Result],
    progress: OnProgress | None = None,
) -> dict[str, list[Result]]:
    """Measure each variant on every window that `results` lacks, the first being the reference; results by name.

    May be interrupted at any time: what was added to `results` stays.
    """
    reference = variants[0].name
    for variant in variants:
        model: PreTrainedModel | None = None
        for number, ids in enumerate(windows.ids):
            if results.get(variant.name, number) is None:
                if model is None:
                    model = variant.load()
                compared = None if variant.name == reference else results.get(reference, number)
                results.add(variant.name, number, measure(model, ids, compared))
            if progress:
                progress(variant.name, number + 1, len(windows))
        del model  # before the next one is loaded
    return {variant.name: results.of(variant.name, len(windows)) for variant in variants}
