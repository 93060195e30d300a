"""`confide demo`: private generation end to end, on this machine, with the server as a process of its own."""

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from confide.cli import output
from confide.cli.demo.process import serving
from confide.cli.options import Json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT = "The old king called his three sons and said,"


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; `confide demo --json` prints it."""

    prompt: str
    text: str
    tokens: int
    identical_to_clear: bool
    agreement_with_fp32: float
    private_ms_per_token: float
    clear_fp32_ms_per_token: float
    offline_ms_per_token: float
    online_bytes_per_token: float
    offline_bytes_per_token: float
    uniformity_p_value: float
    protected_parameters: int
    protected_share: float


def command(
    context: typer.Context,
    prompt: Annotated[str, typer.Option(help="The text to go on from.")] = PROMPT,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.", min=1, max=400)] = 64,
    json: Json = False,
) -> None:
    """Generate with a model whose every transformer matrix lives on a server that never sees the prompt."""
    if context.invoked_subcommand is not None:
        return
    with tempfile.TemporaryDirectory(prefix="confide-demo-") as folder:
        result = _Demo(Path(folder), prompt, max_new_tokens, show=not json).run()
    if json:
        output.result(asdict(result))


class _Demo:
    def __init__(self, folder: Path, prompt: str, max_new_tokens: int, *, show: bool) -> None:
        self._folder = folder
        self._prompt = prompt
        self._max_new_tokens = max_new_tokens
        self._show = show
        self._record = folder / "seen-by-the-server"

    def run(self) -> DemoResult:
        from confide.hybrid.server.ledger.licences import licence_book
        from confide.models.source import open_model
        from confide.models.split import split
        from confide.packages.owner import OwnerKey

        output.quiet_transformers()
        self._title("1  A model cut in two")
        source = open_model("demo")
        owner = OwnerKey.generate()
        summary = split(source, self._folder, owner=owner)
        self._say(
            f"Every matrix of the transformer blocks, [bold]{summary.protected_share:.0%}[/] of "
            f"{summary.total_parameters:,} parameters, goes to the server as int8.\n"
            f"Embeddings, norms, attention and sampling stay with the client. Encryption: {summary.parameter_names[0]}."
        )
        with licence_book(summary.server / "state") as book:
            _, key = book.create("demo", disclosure=None)  # here the licensee is the owner
        arguments = ("serve", str(summary.server), "--port", "0", "--record", str(self._record))
        with serving(*arguments) as server:
            private = self._private(summary.client, server["url"], str(owner.public), key)
        self._title("3  The same model in the clear")
        clear, fp32 = self._compare(summary, source.load_model(), private)
        seen = self._what_the_server_saw()
        result = DemoResult(
            prompt=self._prompt,
            text=private["text"],
            tokens=len(private["ids"]) - private["prompt_tokens"],
            identical_to_clear=clear,
            agreement_with_fp32=fp32["agreement"],
            private_ms_per_token=private["ms_per_token"],
            clear_fp32_ms_per_token=fp32["ms_per_token"],
            offline_ms_per_token=private["offline_ms_per_token"],
            online_bytes_per_token=private["online_bytes_per_token"],
            offline_bytes_per_token=private["offline_bytes_per_token"],
            uniformity_p_value=seen,
            protected_parameters=summary.protected_parameters,
            protected_share=summary.protected_share,
        )
        self._table(result)
        return result

    # -- the three runs --------------------------------------------------------------------------------------

    def _private(self, shell: Path, url: str, owner: str, licence: str) -> dict[str, Any]:
        from confide.hybrid.model import HybridModel

        self._title("2  Private generation")
        with HybridModel.from_shell(shell, server=url, owner=owner, licence=licence) as model:
            traffic = model.client.traffic
            self._say(
                f"The server is another process, at {url}. Offline phase: {traffic.tokens:,} one-time pads, encrypted, "
                "multiplied by the server's weights."
            )
            started = time.perf_counter()
            with output.preparing(quiet=not self._show) as progress:
                model.prepare(1, progress)
            seconds = time.perf_counter() - started
            self._say(
                f"Prepared in {seconds:.1f} s, before any word of the prompt was known. Now online; each layer is one "
                "round trip with masked integers:\n"
            )
            run = self._generate(model, model.tokenizer, stream=True)
            online = model.traffic.bytes_up + model.traffic.bytes_down
            lengths = model.lengths
        # As many tokens as went forward, padding included; the last one is never fed back.
        forwarded = lengths.visible_prompt + lengths.visible_answer - 1 if lengths else 0
        return run | {
            "offline_ms_per_token": seconds * 1e3 / traffic.tokens,
            "offline_bytes_per_token": (traffic.bytes_up + traffic.bytes_down) / traffic.tokens,
            "online_bytes_per_token": online / forwarded,
        }

    def _generate(self, model: Any, tokenizer: "PreTrainedTokenizerBase | None", *, stream: bool) -> dict[str, Any]:
        from transformers import TextStreamer

        from confide.evaluate.timing import TokenClock

        if tokenizer is None:
            raise RuntimeError("The demo model has its tokenizer in the package.")
        inputs = tokenizer(self._prompt, return_tensors="pt")
        clock = TokenClock(TextStreamer(tokenizer) if stream and self._show else None)
        ids = model.generate(
            **inputs,
            max_new_tokens=self._max_new_tokens,
            min_new_tokens=min(48, self._max_new_tokens),
            do_sample=False,
            streamer=clock,
            pad_token_id=0,
        )[0].tolist()
        return {
            "ids": ids,
            "prompt_tokens": inputs["input_ids"].shape[1],
            "text": tokenizer.decode(ids, skip_special_tokens=True),
            "ms_per_token": clock.ms_per_token,
        }

    def _compare(self, summary: Any, fp32: "PreTrainedModel", private: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        from confide.evaluate.agreement import top1_agreement
        from confide.models.clear import load_clear
        from confide.packages.shell import shell_tokenizer

        tokenizer = shell_tokenizer(summary.client)
        clear = self._generate(load_clear(summary.client, summary.server), tokenizer, stream=False)
        original = self._generate(fp32, tokenizer, stream=False)
        identical = clear["ids"] == private["ids"]
        original["agreement"] = top1_agreement(fp32, private["ids"], private["prompt_tokens"])
        if self._show:
            verdict = "[bold green]token for token identical[/]" if identical else "[bold red]different[/]"
            output.console.print(Panel(Text(clear["text"]), title=f"int8 in the clear: {verdict}", border_style="dim"))
            title = f"the fp32 original: agrees on {original['agreement']:.0%} of the next tokens"
            output.console.print(Panel(Text(original["text"]), title=title, border_style="dim"))
        return identical, original

    def _what_the_server_saw(self) -> float:
        import numpy as np

        from confide.evaluate.uniformity import uniformity_p_value
        from confide.hybrid.server.record import read_record
        from confide.rlwe.parameters import PLAINTEXT_BITS

        self._title("4  What the server saw")
        seen = [np.frombuffer(message.masked, np.int32) for message in read_record(self._record)]
        p_value = uniformity_p_value(seen, PLAINTEXT_BITS)
        first = ", ".join(f"{value:,}" for value in seen[-1][:6])
        self._say(
            f"Of the last token, at one layer: {first}, …\n"
            f"All {sum(map(len, seen)):,} numbers it received, as {PLAINTEXT_BITS}-bit integers: chi-square test of "
            f"uniformity, p = {p_value:.3f}\n"
            "[dim](An illustration, not a proof. The proof is that each is an activation under a one-time pad.)[/]"
        )
        return p_value

    # -- showing ---------------------------------------------------------------------------------------------

    def _title(self, text: str) -> None:
        if self._show:
            output.console.print(f"\n[bold cyan]{text}[/]")

    def _say(self, text: str) -> None:
        if self._show:
            output.console.print(text)

    def _table(self, result: DemoResult) -> None:
        if not self._show:
            return
        self._title("5  What it costs, on this machine")
        table = Table(show_edge=False, pad_edge=False)
        table.add_column("per token")
        for heading in ("private, online", "clear fp32", "private, offline"):
            table.add_column(heading, justify="right")
        table.add_row(
            "time",
            f"{result.private_ms_per_token:.1f} ms",
            f"{result.clear_fp32_ms_per_token:.1f} ms",
            f"{result.offline_ms_per_token:.2f} ms",
        )
        table.add_row(
            "network",
            f"{result.online_bytes_per_token / 1e3:,.0f} kB",
            "none",
            f"{result.offline_bytes_per_token / 1e3:,.0f} kB",
        )
        output.console.print(table)
