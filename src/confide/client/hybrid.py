"""A session with a hybrid model: the shell runs here, and a layer server multiplies numbers that mean nothing to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final, NoReturn, Unpack

import msgspec
import torch
from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from confide.client.options import HybridOptions
from confide.client.own_receipts import OwnReceipts, save_own_receipt, stock_sampling
from confide.client.session import Pieces, Session
from confide.errors import UnknownModel, UnknownReceipt, WrongMode
from confide.hybrid.conversations import KeptConversations
from confide.hybrid.model import HybridModel
from confide.models.context import DEFAULT_CONTEXT, longest_context
from confide.models.sampling import generation_options
from confide.receipts.client import ClientReceipt, ClientReceiptResult, verify_client_receipt
from confide.receipts.client_key import ClientKey
from confide.receipts.documents import digest_of
from confide.trust.statement import TrustStatement

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

DEFAULT_MAX_TOKENS: Final = 64


@dataclass(frozen=True)
class _Kept:
    receipt: ClientReceipt
    request: bytes
    response: bytes


def _request(asked: dict[str, Any], options: dict[str, Any]) -> bytes:
    """A question's bytes, for its receipt: there is no HTTP here, so that they are these by definition."""
    given = {name: value for name, value in options.items() if value is not None}
    return msgspec.json.encode({**asked, **given}, order="sorted", enc_hook=float)


class HybridSession(Session):
    """A `HybridModel` of a shell and its server, with the methods that all sessions have."""

    def __init__(self, shell: Path | str, server: str | Path | Sequence[str], **options: Unpack[HybridOptions]) -> None:
        """shell: the folder that `confide split` wrote for clients. server, options: see `HybridModel.from_shell`."""
        key = ClientKey.open()
        self.hybrid = HybridModel.from_shell(shell, server=server, **options)
        self._name = Path(shell).resolve().name
        sampling = stock_sampling(self.hybrid, greedy=True, max_tokens=DEFAULT_MAX_TOKENS)
        self._receipts = OwnReceipts(key, self.hybrid, self._name, msgspec.structs.replace(sampling, top_p=1.0))
        self._last: _Kept | None = None
        config = self.hybrid.model.config
        self._conversations = KeptConversations(config, 4 * (longest_context(config) or DEFAULT_CONTEXT))

    @property
    def trust(self) -> TrustStatement:
        """Who can see prompt, weights and output, under which assumption."""
        return self.hybrid.trust

    @property
    def model(self) -> str:
        """The name of the shell's folder."""
        return self._name

    @property
    def models(self) -> list[str]:
        """The one name."""
        return [self._name]

    def generate(self, text: str, **options: Any) -> str:
        """How the text goes on. options: max_tokens, temperature, top_p and seed; greedy without a temperature."""
        asked = _request({"prompt": text}, options)
        answer = self._continued(text, **self._generation(options))
        self._keep("generate", asked, answer)
        return answer

    def _answer(self, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
        asked = _request({"messages": messages}, options)
        answer = self._continued(messages, **self._generation(options))
        self._keep("chat", asked, answer)
        return answer

    def _stream(self, messages: list[dict[str, str]], options: dict[str, Any]) -> Pieces:
        asked, generation = _request({"messages": messages}, options), self._generation(options)

        def run(**streamed: Any) -> None:
            answer = self._continued(messages, **streamed, **generation)
            self._keep("chat", asked, answer)

        return _pieces(self.hybrid, run)

    def _continued(self, prompt: str | list[dict[str, str]], **generation: Any) -> str:
        """How it goes on. What it has in common with what came before is neither read again nor sent."""
        inputs = self.hybrid.prompt(prompt)
        (tokens,) = inputs["input_ids"].tolist()
        cache = self._conversations.take(tokens)
        result = self.hybrid.generate(**inputs, **generation, past_key_values=cache, return_dict_in_generate=True)
        (sequence,) = result.sequences.tolist()
        self._conversations.put(sequence, result.past_key_values)
        tokenizer: Any = self.hybrid.tokenizer
        return str(tokenizer.decode(sequence[len(tokens) :], skip_special_tokens=True))

    def _keep(self, endpoint: str, asked: bytes, answer: str) -> None:
        """Make the receipt of an answer that this thread has just had made."""
        made, response = self.hybrid.generated, answer.encode("utf-8", "replace")
        question = self._receipts.question(endpoint, asked)
        receipt = self._receipts.make(question, digest_of(response), [made] if made else [])
        self._last = _Kept(receipt, asked, response)

    def receipt(self) -> ClientReceiptResult:
        """Every check of this client's own receipt for the last answer: what was asked, computed with and checked.

        No server has signed any of it. UnknownReceipt before there is a whole answer.
        """
        kept = self._kept()
        return verify_client_receipt(
            kept.receipt, client_key=self._receipts.public_key, request=kept.request, response=kept.response
        )

    def save_receipt(self, folder: Path | str) -> ClientReceiptResult:
        """The same, kept in a folder for `confide receipt verify`: receipt.json, and request and response in the clear.

        FileExistsError where there are such files already.
        """
        kept, result = self._kept(), self.receipt()
        save_own_receipt(Path(folder), kept.receipt, kept.request, kept.response)
        return result

    def _kept(self) -> "_Kept":
        if self._last is None:
            raise UnknownReceipt("No whole answer has come yet; ask something first.")
        return self._last

    def _generation(self, options: dict[str, Any]) -> dict[str, Any]:
        """OpenAI's names of options as transformers' own. TypeError for those that there are none for."""
        given = {name: value for name, value in options.items() if value is not None}
        if given.pop("model", self._name) != self._name:
            raise UnknownModel(f"This shell is of one model, {self._name}; leave the name out.")
        limit, seed = given.pop("max_tokens", DEFAULT_MAX_TOKENS), given.pop("seed", None)
        temperature, top_p = given.pop("temperature", 0), given.pop("top_p", 1)
        if given:
            raise TypeError(f"The hybrid mode has no {', '.join(given)}; use `hybrid.generate` for all of its options.")
        if seed is not None:
            torch.manual_seed(seed)
        return {"max_new_tokens": limit, **generation_options(temperature, top_p=top_p)}

    @property
    def openai(self) -> "OpenAI":
        """Raises: the model runs in this process, and there is no HTTP to speak to it."""
        self._no_http()

    @property
    def async_openai(self) -> "AsyncOpenAI":
        """Raises, as `openai` does."""
        self._no_http()

    def _no_http(self) -> NoReturn:
        raise WrongMode("In the hybrid mode the model runs in this process; use generate and chat of the session.")

    def close(self) -> None:
        """Close the connection and forget pads and conversations; any later use raises ModelClosed."""
        self._conversations.clear()
        self.hybrid.close()


class _Stop(StoppingCriteria):
    def __init__(self) -> None:
        self.wanted = Event()

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self.wanted.is_set(), device=input_ids.device)


def _pieces(hybrid: HybridModel, answer: Callable[..., None]) -> Pieces:
    """The answer as it comes. Generation runs in a thread, and is over, padding included, when this is.

    answer: takes the streamer and stopping criteria.
    """
    tokenizer: Any = hybrid.tokenizer  # without one, `chat` says so
    streamer: Any = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop, problems = _Stop(), list[BaseException]()

    def run() -> None:
        try:
            answer(streamer=streamer, stopping_criteria=[stop])
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where the pieces are read
            problems.append(error)
        finally:
            streamer.on_finalized_text("", stream_end=True)

    thread = Thread(target=run, name="confide-chat")
    thread.start()
    try:
        yield from filter(None, streamer)
    finally:
        stop.wanted.set()
        thread.join()
    if problems:
        raise problems[0]
