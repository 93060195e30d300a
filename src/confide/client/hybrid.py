"""A session with a hybrid model: the shell runs here, and a layer server multiplies numbers that mean nothing to it."""

from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final, NoReturn, Unpack

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from confide.client.options import HybridOptions
from confide.client.session import Pieces, Session
from confide.errors import UnknownModel, WrongMode
from confide.hybrid.model import HybridModel
from confide.models.sampling import generation_options
from confide.trust.statement import TrustStatement

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

DEFAULT_MAX_TOKENS: Final = 64


class HybridSession(Session):
    """A `HybridModel` of a shell and its server, with the methods that all sessions have."""

    def __init__(self, shell: Path | str, server: str, **options: Unpack[HybridOptions]) -> None:
        """shell: the folder that `confide split` wrote for clients. options: see `HybridModel.from_shell`."""
        self.hybrid = HybridModel.from_shell(shell, server=server, **options)
        self._name = Path(shell).resolve().name

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
        tokenizer: Any = self.hybrid.tokenizer
        if tokenizer is None:
            raise WrongMode("This model came without a tokenizer; use `hybrid.generate` with token ids.")
        inputs = tokenizer(text, return_tensors="pt")
        sequence = self.hybrid.generate(**inputs, **self._generation(options))[0, inputs["input_ids"].shape[1] :]
        return str(tokenizer.decode(sequence, skip_special_tokens=True))

    def _answer(self, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
        return self.hybrid.chat(messages, **self._generation(options))

    def _stream(self, messages: list[dict[str, str]], options: dict[str, Any]) -> Pieces:
        return _pieces(self.hybrid, messages, self._generation(options))

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
        """Close the connection and forget all pads; any later use raises ModelClosed."""
        self.hybrid.close()


class _Stop(StoppingCriteria):
    def __init__(self) -> None:
        self.wanted = Event()

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self.wanted.is_set(), device=input_ids.device)


def _pieces(hybrid: HybridModel, messages: list[dict[str, str]], options: dict[str, Any]) -> Pieces:
    """The answer as it comes. Generation runs in a thread, and is over, padding included, when this is."""
    tokenizer: Any = hybrid.tokenizer  # without one, `chat` says so
    streamer: Any = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop, problems = _Stop(), list[BaseException]()

    def run() -> None:
        try:
            hybrid.chat(messages, streamer=streamer, stopping_criteria=[stop], **options)
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
