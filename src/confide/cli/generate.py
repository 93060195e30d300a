"""`confide generate`: text from a shell, with its layers on a server or, as the reference, in the clear."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confide.cli import output
from confide.cli.explain import explained
from confide.cli.files import MAX_FILE_BYTES, read_file
from confide.cli.options import (
    Ca,
    Checks,
    InsecureNoTls,
    Json,
    LicenceFile,
    Patience,
    PlacementFile,
    Proxy,
    Shell,
    TrustedOwner,
    licence_key,
    require_text,
)
from confide.errors import RequestRefused
from confide.hybrid.client.padding import Padding
from confide.models.sampling import generation_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from confide.hybrid.model import HybridModel
    from confide.receipts.client_key import ClientKey

_NUMBERS = ("temperature", "top_k", "top_p")


def command(
    shell: Shell,
    prompt: Annotated[
        str | None, typer.Argument(help="The text to go on from; - reads it from standard input.")
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A UTF-8 file with the text to go on from.")] = None,
    prompt_ids: Annotated[str | None, typer.Option(help="Token ids instead of text, such as 1,2,3.")] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(
            help="Address of the layer server; repeat it for servers that have the model's layer groups between them, "
            "and for replicas."
        ),
    ] = None,
    placement: PlacementFile = None,
    clear_with: Annotated[
        Path | None, typer.Option(help="Compute in the clear with this server folder: the reference of private runs.")
    ] = None,
    simulate_with: Annotated[
        Path | None, typer.Option(help="The same, with all of the protocol's arithmetic and no server.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.", min=1)] = 64,
    temperature: Annotated[
        float | None, typer.Option(help="Sample at this temperature; greedy without, and at 0.", min=0)
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among this many likeliest tokens.", min=1)] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among tokens of this total probability.", min=0, max=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.", min=0, max=(1 << 63) - 1)] = None,
    pad_prompt: Annotated[
        int, typer.Option(help="Round the prompt up to a multiple of this, as the server sees it.", min=1)
    ] = 16,
    pad_answer: Annotated[
        str, typer.Option(help="The same for the answer, or `full` for always the longest one.", metavar="N|full")
    ] = "16",
    receipt: Annotated[
        Path | None,
        typer.Option(help="With --server: keep your own signed receipt, prompt and answer in this folder."),
    ] = None,
    owner: TrustedOwner = None,
    checks: Checks = None,
    licence_file: LicenceFile = None,
    ca: Ca = None,
    patience: Patience = 60,
    proxy: Proxy = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Generate text; it streams as the tokens come."""
    servers = placement or server or None
    if [server or None, placement, clear_with, simulate_with].count(None) != 3:
        raise typer.BadParameter("give one of --server, --placement, --clear-with and --simulate-with")
    if [prompt, prompt_file, prompt_ids].count(None) != 2:
        raise typer.BadParameter("give one of PROMPT, --prompt-file and --prompt-ids")
    if receipt is not None and servers is None:
        raise typer.BadParameter("--receipt goes with --server: without one, nothing was computed elsewhere")
    if prompt_file is not None:
        prompt = read_file(prompt_file).decode("utf-8")
    elif prompt == "-":
        prompt = sys.stdin.buffer.read(MAX_FILE_BYTES).decode("utf-8")
    require_text(prompt or "", "the prompt")
    sampling = _sampling(temperature, top_k, top_p)
    padding = Padding(pad_prompt, _answer_multiple(pad_answer))
    request = _Request(prompt, prompt_ids, max_new_tokens, sampling, seed, json)
    if servers is None:
        from confide.hybrid.simulate import load_simulated
        from confide.models.clear import load_clear
        from confide.packages.shell import shell_tokenizer

        if clear_with is not None:
            model = load_clear(shell, clear_with)
        elif simulate_with is not None:
            model = load_simulated(shell, simulate_with)
        request.run(model, shell_tokenizer(shell), None)
        return
    from confide.hybrid.model import HybridModel
    from confide.receipts.client_key import ClientKey

    key = ClientKey.open()
    private = HybridModel.from_shell(
        shell,
        server=servers,
        owner=owner,
        checks=checks,
        padding=padding,
        licence=licence_key(licence_file),
        ca=ca,
        patience=patience,
        insecure_no_tls=insecure_no_tls,
        proxy=proxy,
        progress=not json,
    )
    with private:
        answer = request.run(private.model, private.tokenizer, private)
        request.keep_receipt(key, private, shell.resolve().name, answer, receipt)


def _answer_multiple(text: str) -> int | None:
    if text == "full":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter("--pad-answer takes a number of tokens or the word full")
    return int(text)


def _sampling(temperature: float | None, top_k: int | None, top_p: float | None) -> dict[str, Any]:
    try:
        return generation_options(temperature, top_k, top_p)
    except RequestRefused as error:
        raise typer.BadParameter(f"--{(error.field or '').replace('_', '-')}: {error}") from None


class _Request:
    def __init__(
        self,
        prompt: str | None,
        prompt_ids: str | None,
        max_new_tokens: int,
        sampling: dict[str, Any],
        seed: int | None,
        json: bool,
    ) -> None:
        self._prompt = prompt
        self._prompt_ids = prompt_ids
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._seed = seed
        self._json = json

    def run(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", private: Any) -> bytes:
        """The answer, as a receipt has it: its text, or its token ids without a tokenizer."""
        import torch

        from confide.evaluate.timing import TokenClock
        from confide.models.context import require_room
        from confide.models.ends import end_at_all

        end_at_all(model, tokenizer)
        ids = self._ids(tokenizer, int(model.config.vocab_size))
        require_room(model.config, ids.shape[1], self._max_new_tokens)
        if self._seed is not None:
            torch.manual_seed(self._seed)
        streams = tokenizer is not None and not self._json
        clock = TokenClock(output.text_streamer(tokenizer) if streams and tokenizer is not None else None)
        generate: Any = (private or model).generate
        sequence = generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self._max_new_tokens,
            streamer=clock,
            **self._sampling,
        )[0].tolist()
        generated = sequence[ids.shape[1] :]
        ids_text = ",".join(map(str, generated))
        answer = (str(tokenizer.decode(generated, skip_special_tokens=True)) if tokenizer else ids_text).encode()
        online = private.traffic.bytes_up + private.traffic.bytes_down if private else 0
        lengths = private.lengths if private else None
        if self._json:
            output.result(
                {
                    "text": tokenizer.decode(sequence, skip_special_tokens=True) if tokenizer else None,
                    "token_ids": sequence,
                    "generated_tokens": len(generated),
                    "ms_to_first_token": clock.ms_to_first_token,
                    "ms_per_token": clock.ms_per_token,
                    "online_bytes": online,
                    "lengths": asdict(lengths) if lengths else None,
                }
            )
            return answer
        if tokenizer is None:
            output.console.print(",".join(map(str, sequence)))
        traffic = ""
        if lengths:
            traffic = (
                f", {output.megabytes(online)} online; the server saw {lengths.visible_prompt} tokens for the prompt's "
                f"{lengths.prompt} and {lengths.visible_answer} for the answer's {lengths.answer}"
            )
        output.note(f"{len(generated)} tokens, {clock.ms_per_token:.1f} ms each{traffic}")
        return answer

    def keep_receipt(
        self, key: "ClientKey", private: "HybridModel", name: str, answer: bytes, folder: Path | None
    ) -> None:
        """Make this client's own receipt for the answer; keep it in a folder, if there is one."""
        import msgspec

        from confide.client.own_receipts import OwnReceipts, save_own_receipt, stock_sampling
        from confide.receipts.documents import digest_of

        used = {name: value for name, value in self._sampling.items() if name in _NUMBERS}
        asked = {"prompt": self._prompt, "prompt_ids": self._prompt_ids, "seed": self._seed, **used}
        asked["max_tokens"] = self._max_new_tokens
        given = {name: value for name, value in asked.items() if value is not None}
        request = msgspec.json.encode(given, order="sorted")
        greedy = not self._sampling["do_sample"]
        defaults = stock_sampling(private, greedy=greedy, max_tokens=self._max_new_tokens)
        own = OwnReceipts(key, private, name, defaults)
        made = private.generated
        receipt = own.make(own.question("generate", request), digest_of(answer), [made] if made else [])
        if folder is None:
            return
        try:
            save_own_receipt(folder, receipt, request, answer)
        except OSError as error:
            raise explained(error) from error
        output.note(
            f"Kept in {folder}: receipt.json, and request and response in the clear. Later: confide receipt verify "
            f"receipt.json --client-key {receipt.fields.public_key} --request request --response response"
        )

    def _ids(self, tokenizer: "PreTrainedTokenizerBase | None", vocabulary: int) -> Any:
        import torch

        if self._prompt_ids is None:
            if tokenizer is None:
                raise typer.BadParameter("this model has no tokenizer; give --prompt-ids")
            ids = tokenizer(self._prompt)["input_ids"]
            _require_ids(ids, vocabulary)
        else:
            ids = parse_ids(self._prompt_ids, vocabulary)
        return torch.tensor([ids])


def parse_ids(text: str, vocabulary: int) -> list[int]:
    """The token ids of `--prompt-ids`, each below `vocabulary`; BadParameter if they are not that."""
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter("--prompt-ids takes numbers separated by commas") from None
    _require_ids(ids, vocabulary)
    return ids


def _require_ids(ids: list[int], vocabulary: int) -> None:
    if not ids or not all(0 <= token < vocabulary for token in ids):
        raise typer.BadParameter(f"the prompt must be at least one token, each below {vocabulary}")
