"""`confide evaluate attention`: how many bits attention needs when it is computed in integers."""

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from confide.cli import measuring, output
from confide.cli.measuring import FEW_WINDOWS, Model, Out, TopK
from confide.cli.options import Json
from confide.errors import EvaluationError

if TYPE_CHECKING:
    from confide.attention.heads import Heads
    from confide.evaluate.agreement import Agreement, WindowChoices
    from confide.evaluate.results import Results, Settings
    from confide.evaluate.windows import Windows
    from confide.models.source import Source

_NAME = "attention"
_CALIBRATION_SENTENCES = 64
_CALIBRATION_SEED, _SENTENCES_SEED = 0, 1
"""Scales are found on other sentences than those that are scored."""

Found = dict[str, dict[int, dict[int, "Agreement"]]]
"""By choice of heads, by bits, by k."""


def command(
    model: Model,
    text_file: Annotated[
        Path | None,
        typer.Argument(
            help="A text in UTF-8 whose sentences are scored; sentences that the model samples, without.",
            metavar="[TEXT_FILE]",
            exists=True,
            dir_okay=False,
            readable=True,
        ),
    ] = None,
    layers: Annotated[str, typer.Option(help="Blocks whose attention is quantized, such as 0,3.")] = "0",
    heads: Annotated[
        list[str] | None,
        typer.Option(help="Heads of each, all or such as 0,2; repeatable to compare. 0 and then all, without."),
    ] = None,
    bits: Annotated[str, typer.Option(help="Bits of weights and activations: the first and the last.")] = "2:11",
    sentences: Annotated[int, typer.Option(help="How many are scored.", min=2)] = 80,
    tokens: Annotated[int, typer.Option(help="Of a sentence, at most.", min=4)] = 16,
    top_k: TopK = "1,5,10",
    out: Out = None,
    json: Json = False,
) -> None:
    """How often GPT-2's first choice of the next token stays in the top k with its attention in few-bit integers.

    The experiment of the first encrypted GPT-2 heads. Intervals are of 95%.
    """
    study = _Study(model, text_file, _numbers(layers, "--layers"), _choices(heads), bits, sentences, tokens, top_k)
    with measuring.interruptible(out):
        found = study.measure(out, quiet=json)
    study.report(found, out, as_json=json)


class _Study:
    """Which heads are measured at which bits, and on which sentences."""

    def __init__(
        self,
        model: str,
        text_file: Path | None,
        layers: tuple[int, ...],
        choices: "dict[str, Heads]",
        bits: str,
        sentences: int,
        tokens: int,
        top_k: str,
    ) -> None:
        from confide.evaluate.sentences import sample_sentences
        from confide.evaluate.windows import model_context
        from confide.models.source import open_model

        output.quiet_transformers()
        self._layers, self._choices = layers, choices
        self._bits = measuring.bits_range(bits, "--bits")
        self._ks = measuring.top_k(top_k)
        self._source = open_model(model)
        tokens = model_context(self._source.config, tokens)
        stock = self._source.load_model()
        self._calibration = sample_sentences(stock, _CALIBRATION_SENTENCES, tokens, _CALIBRATION_SEED)
        if text_file is None:
            self._sentences = sample_sentences(stock, sentences, tokens, _SENTENCES_SEED)
        else:
            self._sentences = _sentences_of(text_file, self._source, sentences, tokens)
        self._text_file = text_file
        self._text = text_file.name if text_file else "its own text"

    def measure(self, out: Path | None, *, quiet: bool) -> Found:
        """Agreement with the float model, as far as it was not kept from an earlier run."""
        from confide.evaluate.agreement import MeasureChoices, compare_choices
        from confide.evaluate.attention_bits import quantized_attention_variants
        from confide.evaluate.run import measure_variants

        fp32, by_choice = quantized_attention_variants(
            self._source, self._layers, self._choices, self._bits, self._calibration
        )
        variants = [fp32, *by_choice.values()]
        names = [variant.name for variant in variants]
        with self._results(out) as results:
            with measuring.progress(names, len(self._sentences), quiet=quiet) as progress:
                choices = measure_variants(variants, self._sentences, MeasureChoices(self._ks), results, progress)
        found: Found = {name: {} for name in self._choices}
        for (name, count), variant in by_choice.items():
            found[name][count] = compare_choices(choices[variant.name], choices[fp32.name], self._ks)
        return found

    @contextmanager
    def _results(self, out: Path | None) -> "Iterator[Results[WindowChoices]]":
        from confide.evaluate.agreement import WindowChoices
        from confide.evaluate.results import Results, keep_results

        if out is None:
            yield Results(WindowChoices)
            return
        with keep_results(out / f"{_NAME}.jsonl", WindowChoices, self._settings) as results:
            yield results

    @cached_property
    def _settings(self) -> "Settings":
        """What the results depend on. EvaluationError where it cannot be told which version of the model this is."""
        from confide.evaluate.identity import evaluation_settings

        return evaluation_settings(
            self._source,
            self._sentences,
            layers=str(self._layers),
            calibration=self._calibration.digest,
            top_k=str(self._ks),
        )

    def report(self, found: Found, out: Path | None, *, as_json: bool) -> None:
        """Print what was found, and keep it and its chart in the folder for results."""
        from confide.evaluate.statistics import CONFIDENCE

        answer = {
            "measure": _NAME,
            "model": self._source.name,
            "text": self._text,
            "layers": self._layers,
            "sentences": len(self._sentences),
            "scored_tokens": self._sentences.scored_tokens,
            "confidence": CONFIDENCE,
            **measuring.provenance(self._text_file),
            "heads": {
                name: {
                    str(bits): {f"top_{k}": dataclasses.asdict(of.agreement) for k, of in by_k.items()}
                    for bits, by_k in by_bits.items()
                }
                for name, by_bits in found.items()
            },
        }
        kept = self._keep(answer, found, out)
        if as_json:
            output.result(answer)
            return
        output.console.print(self._table(found))
        scored = f"{self._sentences.scored_tokens:,} tokens in {len(self._sentences)} sentences of {self._text}"
        output.note(f"{scored}; intervals of 95%, bootstrapped over sentences.")
        if len(self._sentences) < FEW_WINDOWS:
            output.note(f"With fewer than {FEW_WINDOWS} sentences these intervals are too narrow.")
        for path in kept:
            output.console.print(f"Written: {escape(str(path))}", soft_wrap=True)

    def _keep(self, answer: dict[str, Any], found: Found, out: Path | None) -> list[Path]:
        from confide.evaluate.plots import draw_attention_bits

        if out is None:
            return []
        chart = out / f"{_NAME}.png"
        layers = f"layer{'s' if len(self._layers) > 1 else ''} {', '.join(map(str, self._layers))}"
        curves = {
            f"{name} of {layers}": {k: {bits: by_k[k].agreement for bits, by_k in by_bits.items()} for k in self._ks}
            for name, by_bits in found.items()
        }
        title = f"{Path(self._source.name).name}: attention in integers, {len(self._sentences)} sentences"
        draw_attention_bits(chart, title, curves)
        by_variant = {
            f"{name}, {bits} bits": of for name, by_bits in answer["heads"].items() for bits, of in by_bits.items()
        }
        return [*measuring.keep_results(out, _NAME, answer, by_variant, self._settings, title), chart]

    def _table(self, found: Found) -> Table:
        made = measuring.table("", "bits", *(f"top {k}, %" for k in self._ks))
        made.caption = "fp32's first choice in the top k"
        for name, by_bits in found.items():
            for bits, by_k in by_bits.items():
                first, *others = (of.agreement for of in by_k.values())
                shares = (measuring.percent(first, 1), *(f"{of.value * 100:.1f}" for of in others))
                made.add_row(name if bits == self._bits[0] else "", str(bits), *shares)
        return made


def _sentences_of(text_file: Path, source: "Source", count: int, tokens: int) -> "Windows":
    from confide.evaluate.sentences import cut_sentences

    tokenizer = source.load_tokenizer()
    if tokenizer is None:
        raise EvaluationError(f"{source.name} has no tokenizer; give a model folder that has one, or no text.")
    return cut_sentences(measuring.read_text(text_file), tokenizer, count, tokens)


def _choices(heads: list[str] | None) -> "dict[str, Heads]":
    """Heads by what tables and charts call them."""
    return dict(_choice(each) for each in heads or ["0", "all"])


def _choice(heads: str) -> "tuple[str, Heads]":
    if heads == "all":
        return "all heads", "all"
    numbers = _numbers(heads, "--heads")
    return f"head{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}", numbers


def _numbers(text: str, option: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise typer.BadParameter(f"{option} takes numbers from 0 up, separated by commas, such as 0,3")
    return tuple(sorted({int(part) for part in text.split(",")}))
