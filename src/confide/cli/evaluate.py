"""`confide evaluate`: what quantization costs in quality, and that the protocol costs nothing on top."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from confide.cli import evaluate_attention, measuring, output
from confide.cli.calibration import calibration_texts
from confide.cli.measuring import Model, Out, TopK
from confide.cli.on_ray import on_cluster
from confide.cli.options import ActivationBits, Calibrate, Json, Protect, WeightBits
from confide.errors import EvaluationError

if TYPE_CHECKING:
    from confide.evaluate.results import Results, Settings
    from confide.evaluate.run import Measure, Variant
    from confide.evaluate.statistics import Estimate

Result = TypeVar("Result", bound=Any)

DIFFERS = 1
"""What the command exits with when the simulated run was not identical."""

app = typer.Typer(
    name="evaluate", help="Measure a quantized model on a text, against the stock one.", no_args_is_help=True
)
app.command("attention")(evaluate_attention.command)

TextFile = Annotated[
    Path, typer.Argument(help="A text in UTF-8.", metavar="TEXT_FILE", exists=True, dir_okay=False, readable=True)
]
Context = Annotated[int | None, typer.Option(help="Tokens in a window; the model's, up to 2048, without.", min=2)]
MaxWindows = Annotated[int | None, typer.Option("--windows", help="Use only so many windows, from the start.", min=2)]
MaxTokens = Annotated[int | None, typer.Option(help="Use only so many tokens, from the start.", min=2)]
SweepBits = Annotated[
    str | None, typer.Option(help="Measure at each number of weight bits instead, and draw it.", metavar="2:8")
]

OnRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="With --sweep-bits: measure each as a task of this Ray cluster, auto for the one on this machine. The "
        "model lies at the same path on all of its machines.",
        metavar="ADDRESS",
    ),
]


@dataclass(frozen=True)
class _Request:
    """The options that both measures share."""

    model: str
    text_file: Path
    protect: str
    weight_bits: list[str] | None
    activation_bits: list[str] | None
    calibrate: Path | None
    context: int | None
    windows: int | None
    max_tokens: int | None
    sweep_bits: str | None
    ray: str | None
    out: Path | None
    json: bool


@app.command("perplexity")
def perplexity(
    model: Model,
    text_file: TextFile,
    protect: Protect = "all",
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    calibrate: Calibrate = None,
    context: Context = None,
    windows: MaxWindows = None,
    max_tokens: MaxTokens = None,
    sweep_bits: SweepBits = None,
    ray: OnRay = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Perplexity of a text: of the stock model, the quantized one, and the quantized one through the protocol.

    Windows of the text do not overlap, and the first token of each is not scored. Intervals are of 95%.
    """
    from confide.evaluate import plots
    from confide.evaluate.perplexity import WindowLoss, compare_perplexity, measure_loss, window_ratios
    from confide.evaluate.variants import CLEAR, FP32

    request = _Request(
        model,
        text_file,
        protect,
        weight_bits,
        activation_bits,
        calibrate,
        context,
        windows,
        max_tokens,
        sweep_bits,
        ray,
        out,
        json,
    )
    run = _Evaluation("perplexity", request)
    losses = run.measure(measure_loss, WindowLoss)
    found = {name: compare_perplexity(each, losses[FP32]) for name, each in losses.items()}
    table = measuring.table("", "perplexity", "ratio to fp32")
    for name, of in found.items():
        table.add_row(name, _number(of.perplexity), "" if name == FP32 else _ratio(of.ratio))

    def draw(path: Path) -> None:
        if run.sweep:
            points = {bits: found[name] for bits, name in run.sweep.items()}
            plots.draw_perplexity_sweep(path, run.title, points, found[FP32].perplexity.value)
        else:
            ratios = window_ratios(losses[CLEAR], losses[FP32])
            plots.draw_window_ratios(path, run.title, ratios, found[CLEAR].ratio)

    run.report({name: dataclasses.asdict(of) for name, of in found.items()}, table, draw)


@app.command("agreement")
def agreement(
    model: Model,
    text_file: TextFile,
    top_k: TopK = "1,5,10",
    protect: Protect = "all",
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    calibrate: Calibrate = None,
    context: Context = None,
    windows: MaxWindows = None,
    max_tokens: MaxTokens = None,
    sweep_bits: SweepBits = None,
    ray: OnRay = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """How often the stock model's first choice of the next token is among the quantized one's first k.

    Windows of the text do not overlap, and the first token of each is not scored. Intervals are of 95%.
    """
    from confide.evaluate import plots
    from confide.evaluate.agreement import MeasureChoices, WindowChoices, compare_choices
    from confide.evaluate.variants import CLEAR, FP32

    ks = measuring.top_k(top_k)
    request = _Request(
        model,
        text_file,
        protect,
        weight_bits,
        activation_bits,
        calibrate,
        context,
        windows,
        max_tokens,
        sweep_bits,
        ray,
        out,
        json,
    )
    run = _Evaluation("agreement", request, top_k=",".join(map(str, ks)))
    choices = run.measure(MeasureChoices(ks), WindowChoices)
    found = {name: compare_choices(each, choices[FP32], ks) for name, each in choices.items()}
    table = measuring.table("", "k", "agreement, %", "accuracy, %", "less fp32's")
    table.caption = "agreement: fp32's first choice in the top k; accuracy: the text's own token"
    for name, by_k in found.items():
        for k, of in by_k.items():
            compared = ("", "") if name == FP32 else (measuring.percent(of.agreement, 2), _change(of.accuracy_change))
            table.add_row(
                name if k == ks[0] else "", str(k), compared[0], measuring.percent(of.accuracy, 1), compared[1]
            )

    def draw(path: Path) -> None:
        if run.sweep:
            curves = {k: {bits: found[name][k].agreement for bits, name in run.sweep.items()} for k in ks}
            plots.draw_agreement_sweep(path, run.title, curves)
        else:
            plots.draw_choices(path, run.title, found[CLEAR], found[FP32])

    as_values = {name: {f"top_{k}": dataclasses.asdict(of) for k, of in by_k.items()} for name, by_k in found.items()}
    run.report(as_values, table, draw)


class _Evaluation:
    """One run of a command: which models are measured on which windows, and where results go.

    sweep: weight bits, and the name of the variant that has them; empty without --sweep-bits.
    """

    def __init__(self, measure: str, request: _Request, **options: str) -> None:
        from confide.evaluate.windows import cut_windows, model_context
        from confide.models.source import open_model

        output.quiet_transformers()
        self._measure = measure
        self._request = request
        self._options = options
        self._identical: bool | None = None
        bits = _sweep_range(request)
        self._source = open_model(request.model)
        tokenizer = self._source.load_tokenizer()
        if tokenizer is None:
            raise EvaluationError(f"{request.model} has no tokenizer; give a model folder that has one.")
        self.windows = cut_windows(
            measuring.read_text(request.text_file),
            tokenizer,
            model_context(self._source.config, request.context),
            max_windows=request.windows,
            max_tokens=request.max_tokens,
        )
        self._texts = calibration_texts(self._source, request.calibrate)
        self._variants, self.sweep = self._choose_variants(bits)
        self._name = f"{measure}-sweep" if bits else measure
        self.title = f"{Path(request.model).name} on {request.text_file.name}, {self.windows.scored_tokens:,} tokens"

    def _choose_variants(self, bits: list[int]) -> "tuple[list[Variant], dict[int, str]]":
        from confide.evaluate.variants import compared_variants, swept_variants
        from confide.models.precision import Recipe

        activation_bits = self._request.activation_bits or []
        if not bits:
            recipe = Recipe.parse(self._request.weight_bits or [], activation_bits)
            return compared_variants(self._source, self._request.protect, recipe, self._texts), {}
        recipes = {each: Recipe.parse([str(each)], activation_bits) for each in bits}
        fp32, swept = swept_variants(self._source, self._request.protect, recipes, self._texts)
        return [fp32, *swept.values()], {each: variant.name for each, variant in swept.items()}

    def measure(self, measure: "Measure[Result]", kind: type[Result]) -> dict[str, list[Result]]:
        """The results of every variant, by its name, as far as they were not kept from an earlier run."""
        from confide.evaluate.variants import CLEAR, SIMULATED

        names = [variant.name for variant in self._variants]
        with measuring.interruptible(self._request.out), self._results(kind) as results:
            with measuring.progress(names, len(self.windows), quiet=self._request.json) as progress:
                with self._measuring() as measured_by:
                    measured = measured_by(self._variants, self.windows, measure, results, progress)
        if not self.sweep:
            self._identical = measured[SIMULATED] == measured[CLEAR]
        return measured

    @contextmanager
    def _measuring(self) -> "Iterator[Callable[..., dict[str, list[Any]]]]":
        """What measures variants: here, or on a Ray cluster."""
        if self._request.ray is None:
            from confide.evaluate.run import measure_variants

            yield measure_variants
            return
        with on_cluster(self._request.ray):
            from confide.cluster.tasks import measure_on_ray

            yield measure_on_ray

    @contextmanager
    def _results(self, kind: type[Result]) -> "Iterator[Results[Result]]":
        from confide.evaluate.results import Results, keep_results

        out = self._request.out
        if out is None:
            yield Results(kind)
            return
        with keep_results(out / f"{self._name}.jsonl", kind, self._settings) as results:
            yield results

    @cached_property
    def _settings(self) -> "Settings":
        """What the results depend on. EvaluationError where it cannot be told which version of the model this is."""
        from confide.evaluate.identity import evaluation_settings

        return evaluation_settings(
            self._source,
            self.windows,
            protected_layers=self._request.protect,
            weight_bits=self._request.sweep_bits or " ".join(self._request.weight_bits or ["default"]),
            activation_bits=" ".join(self._request.activation_bits or ["default"]),
            calibration=measuring.file_digest(self._request.calibrate),
            **self._options,
        )

    def report(self, found: Mapping[str, Any], table: Table, draw: Callable[[Path], None]) -> None:
        """Print what was found, keep it and its chart in the folder for results, and fail if simulation differed."""
        from confide.evaluate.statistics import CONFIDENCE

        answer = {
            "measure": self._measure,
            "model": self._request.model,
            "windows": len(self.windows),
            "context": self.windows.context,
            "scored_tokens": self.windows.scored_tokens,
            "confidence": CONFIDENCE,
            **measuring.provenance(self._request.text_file),
            "protect": self._request.protect,
            "weight_bits": self._request.sweep_bits or self._request.weight_bits,
            "activation_bits": self._request.activation_bits,
            "models": found,
            **({} if self._identical is None else {"identical": self._identical}),
        }
        kept = self._keep(answer, draw)
        if self._request.json:
            output.result(answer)
        else:
            self._show(table, kept)
        if self._identical is False:
            raise typer.Exit(DIFFERS)

    def _keep(self, answer: dict[str, Any], draw: Callable[[Path], None]) -> list[Path]:
        out = self._request.out
        if out is None:
            return []
        kept = measuring.keep_results(out, self._name, answer, answer["models"], self._settings, self.title)
        chart = out / f"{self._name}.png"
        draw(chart)
        return [*kept, chart]

    def _show(self, table: Table, kept: list[Path]) -> None:
        output.console.print(table)
        windows = f"{len(self.windows)} windows of up to {self.windows.context} tokens"
        output.note(f"{self.windows.scored_tokens:,} tokens in {windows}; intervals of 95%, bootstrapped over windows.")
        if len(self.windows) < measuring.FEW_WINDOWS:
            output.note(
                f"With fewer than {measuring.FEW_WINDOWS} windows these intervals are too narrow; use a longer text."
            )
        if self._identical:
            output.console.print("Simulated and quantized are [bold green]identical[/]: every bit of every logit.")
        elif self._identical is False:
            output.console.print("Simulated and quantized [bold red]differ[/]: please report this, with the command.")
        for path in kept:
            output.console.print(f"Written: {escape(str(path))}", soft_wrap=True)


def _sweep_range(request: _Request) -> list[int]:
    """The weight bits to sweep over; none without --sweep-bits."""
    if request.sweep_bits is None:
        if request.ray is not None:
            raise typer.BadParameter("--ray goes with --sweep-bits, whose models are measured beside each other")
        return []
    if request.weight_bits:
        raise typer.BadParameter("give either --weight-bits or --sweep-bits")
    if request.out is None:
        raise typer.BadParameter("--sweep-bits draws a chart: give a folder for it with --out")
    return measuring.bits_range(request.sweep_bits, "--sweep-bits")


def _number(of: "Estimate") -> str:
    return f"{of.value:,.2f} ({of.low:,.2f}, {of.high:,.2f})"


def _ratio(of: "Estimate") -> str:
    return f"{of.value:.4f} ({of.low:.4f}, {of.high:.4f})"


def _change(of: "Estimate") -> str:
    return f"{of.value * 100:+.2f} ({of.low * 100:+.2f}, {of.high * 100:+.2f})"
