"""`confide demo`: private generation end to end, on this machine, with the server as a process of its own."""

import tempfile
import time
from collections.abc import Callable
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
    """What the demo found; `confide demo --json` prints it.

    bytes_per_token: everything that crosses the network for a token. bytes_before_first_token: what crosses it
    ahead of the prompt, which protocol 2 called its offline phase. work_ahead_ms_per_token: of client and
    server, before a token is known.
    """

    prompt: str
    text: str
    tokens: int
    identical_to_clear: bool
    agreement_with_fp32: float
    private_ms_per_token: float
    clear_fp32_ms_per_token: float
    seconds_to_first_token: float
    work_ahead_ms_per_token: float
    bytes_per_token: float
    bytes_before_first_token: int
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
        from confide.ledger.licences import licence_book
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
            seconds_to_first_token=private["seconds_to_first_token"],
            work_ahead_ms_per_token=private["client_ahead_ms"] + server_ahead_ms(summary.server),
            bytes_per_token=private["bytes_per_token"],
            bytes_before_first_token=private["bytes_before_first_token"],
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
        with HybridModel.from_shell(shell, server=url, owner=owner, licence=licence, progress=False) as model:
            self._say(
                f"The server is another process, at {url}. Nothing has to be prepared: secrets for the next tokens are "
                "made in memory, meanwhile, and each serves once. Each layer is one round trip with encrypted "
                "integers:\n"
            )
            before_first: list[int] = []

            def note(token: int) -> None:
                if token == 1:
                    before_first.append(model.traffic.bytes_ahead)

            run = self._generate(model, model.tokenizer, stream=True, on_token=note)
            traffic, lengths = model.traffic, model.lengths
            client_ahead = model.product.ms_ahead_per_token
        # As many tokens as went forward, padding included; the last one is never fed back.
        forwarded = lengths.visible_prompt + lengths.visible_answer - 1 if lengths else 1
        online = traffic.bytes_up - traffic.bytes_ahead + traffic.bytes_down
        return run | {
            "seconds_to_first_token": run["ms_to_first_token"] / 1e3,
            "client_ahead_ms": client_ahead,
            "bytes_per_token": online / forwarded + traffic.bytes_ahead / max(traffic.tokens_ahead, 1),
            "bytes_before_first_token": before_first[0],
        }

    def _generate(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase | None",
        *,
        stream: bool,
        on_token: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        from confide.evaluate.timing import TokenClock

        if tokenizer is None:
            raise RuntimeError("The demo model has its tokenizer in the package.")
        inputs = tokenizer(self._prompt, return_tensors="pt")
        clock = TokenClock(output.text_streamer(tokenizer) if stream and self._show else None, on_token)
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
            "ms_to_first_token": clock.ms_to_first_token,
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

        self._title("4  What the server saw")
        seen = [np.frombuffer(message.planes, np.uint8) for message in read_record(self._record)]
        # Two bytes at a time; those of an odd number of them end one short.
        p_value = uniformity_p_value((part[: len(part) // 2 * 2].view(np.uint16) for part in seen), 16)
        first = " ".join(f"{value:02x}" for value in seen[-1][:16])
        self._say(
            f"Of the last token, at one layer: {first} …\n"
            f"All {sum(map(len, seen)):,} bytes of activations that it received: chi-square test of uniformity, "
            f"p = {p_value:.3f}\n"
            "[dim](An illustration, not a proof. The proof is that each is an activation under ring-LWE with a secret "
            "of its own.)[/]"
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
        for heading in ("private", "clear fp32", "ahead, client and server"):
            table.add_column(heading, justify="right")
        table.add_row(
            "time",
            f"{result.private_ms_per_token:.1f} ms",
            f"{result.clear_fp32_ms_per_token:.1f} ms",
            f"{result.work_ahead_ms_per_token:.2f} ms",
        )
        table.add_row("network", output.megabytes(result.bytes_per_token), "none", "")
        output.console.print(table)
        output.note(
            f"The first token came after {result.seconds_to_first_token:.2f} s and "
            f"{output.megabytes(result.bytes_before_first_token)} ahead of the prompt."
        )


def server_ahead_ms(package: Path) -> float:
    """What a server like this one computes of a token before it is known: measured here, one block of tokens."""
    import numpy as np

    from confide.hybrid.client.pads.pool import BLOCK_TOKENS
    from confide.packages.server_package import ServerPackage
    from confide.rlwe.online import GroupMatrix
    from confide.rlwe.parameters import PLANES, RING_DEGREE

    matrices = [GroupMatrix(group.weights, group.u) for group in ServerPackage.open(package).load()]
    p0 = np.random.default_rng(0).integers(-128, 128, (BLOCK_TOKENS, PLANES, RING_DEGREE), dtype=np.int8)
    for _ in range(2):  # the first run is for the kernels to be chosen
        started = time.perf_counter()
        for matrix in matrices:
            matrix.ahead(p0)
        seconds = time.perf_counter() - started
    return seconds * 1e3 / BLOCK_TOKENS
