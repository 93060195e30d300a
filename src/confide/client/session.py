"""What `connect` opens, whichever protection stands behind it."""

from abc import abstractmethod
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from confide.hybrid.closing import Closing
from confide.receipts.verdict import Verdict
from confide.trust.statement import TrustStatement

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

Messages = str | Sequence[dict[str, str]]
"""One thing that the user says, or messages such as {"role": "user", "content": "..."}, oldest first."""

Pieces = Generator[str, None, None]
"""An answer as it comes; closing this stops it."""


class Session(Closing):
    """A language model behind a protection. Close it, or use it in a `with` statement."""

    @property
    @abstractmethod
    def trust(self) -> TrustStatement:
        """Who can see prompt, weights and output, under which assumption."""

    @property
    @abstractmethod
    def model(self) -> str:
        """The model's name, as whoever runs it gives it."""

    @property
    @abstractmethod
    def models(self) -> list[str]:
        """All of their names, `model` first; `chat` and `generate` take one as their option model."""

    @abstractmethod
    def generate(self, text: str, **options: Any) -> str:
        """How the text goes on; options such as max_tokens, temperature, top_p and seed."""

    @overload
    def chat(self, messages: Messages, *, stream: Literal[False] = ..., **options: Any) -> str: ...
    @overload
    def chat(self, messages: Messages, *, stream: Literal[True], **options: Any) -> Pieces: ...
    def chat(self, messages: Messages, *, stream: bool = False, **options: Any) -> str | Pieces:
        """The answer to a conversation, whole or piece by piece; options as for `generate`."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return self._stream(turns, options) if stream else self._answer(turns, options)

    @abstractmethod
    def _answer(self, messages: list[dict[str, str]], options: dict[str, Any]) -> str: ...

    @abstractmethod
    def _stream(self, messages: list[dict[str, str]], options: dict[str, Any]) -> Pieces: ...

    @abstractmethod
    def receipt(self) -> Verdict:
        """Every check of the last answer's receipt. UnknownReceipt where there is none."""

    @abstractmethod
    def save_receipt(self, folder: Path | str) -> Verdict:
        """The same, kept in a folder with what verifying it later takes. FileExistsError."""

    @property
    @abstractmethod
    def openai(self) -> "OpenAI":
        """The OpenAI SDK's client, whose requests end at the model and nowhere before."""

    @property
    @abstractmethod
    def async_openai(self) -> "AsyncOpenAI":
        """The same for asyncio."""
