"""What the API needs of whatever runs the model, and nothing more."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, Protocol

from confide.enclave.engines.forms import Form
from confide.enclave.engines.tools import CallPart, Tool, ToolCall
from confide.models.sampling import SMALLEST_TEMPERATURE

FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]
PARALLEL: Final = 16
"""Requests that are computed at once, where each takes memory of its own."""


class Dtype(StrEnum):
    """What a model of safetensors is computed in. int8: its linear layers in integers, see `models.integers`."""

    F32 = "f32"
    BF16 = "bf16"
    INT8 = "int8"


@dataclass(frozen=True)
class EngineFacts:
    """What runs. model: its name in the API. quantization: such as f32 or q8_0. context: tokens at most.

    version: of the engine and what it computes with. dtype: what is computed in. template: the chat template in use.
    adapters: their names. settings: what else changes answers. parallel: requests computed at once; more have to wait.
    cannot: fields of the API that this engine has no means for; whoever asks for one is refused by its name.
    rounded: whether weights were rounded when they were loaded, so that their digest is not that of the sealed model.
    """

    model: str
    engine: str
    quantization: str
    context: int
    version: str = "unknown"
    dtype: str = "unknown"
    template: str = ""
    adapters: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    parallel: int = PARALLEL
    cannot: frozenset[str] = frozenset()
    rounded: bool = False


@dataclass(frozen=True)
class EngineSettings:
    """How to run a model, whatever runs it; what is None is for the engine to choose.

    name: the model's in the API. context: tokens of one request at most, and no more than the model was made for.
    parallel: requests that are computed at once, where each takes memory of its own. threads: of the processor.
    dtype: of a model of safetensors; the types of a GGUF file are its own.
    """

    name: str | None = None
    context: int | None = None
    parallel: int = PARALLEL
    threads: int | None = None
    dtype: Dtype | None = None


@dataclass(frozen=True)
class Sampling:
    """How to generate. stop: texts at which the answer ends, which it does not contain.

    temperature: 0 is greedy, and so is all below SMALLEST_TEMPERATURE. presence_penalty: taken from the logit of each
    token that the answer has already, frequency_penalty: as often as it has it. logit_bias: added, by token. All three
    come before the temperature, then top_k, top_p, and min_p, the least share of the most probable one's probability.
    logprobs: how many of the most probable tokens are told beside each one chosen; None for no probabilities at all.
    form: what the whole answer must be like, for engines whose facts do not say that they cannot. markers: special
    tokens of these names are given as text. salt: a secret of whoever asks, under which an engine may keep what it has
    read of the prompt and find it again; without, it does neither.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    form: Form | None = None
    markers: tuple[str, ...] = ()
    salt: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.temperature < SMALLEST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)


@dataclass(frozen=True)
class Message:
    """A turn of a conversation. calls: an assistant's, of tools. call_id: of the call whose result a tool's turn is."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""


@dataclass(frozen=True)
class Prompt:
    """A text to go on with, as the model's tokenizer reads it. tokens: their ids."""

    text: str = field(repr=False)
    tokens: Sequence[int] = field(repr=False)


@dataclass(frozen=True)
class Chance:
    """A token, and the natural logarithm of its probability: the model's own, before anything that Sampling names.

    raw: its bytes, None where an engine tells text alone. text: like OpenAI's, "bytes:\\xe2" for a part of a character.
    """

    text: str = field(repr=False)
    logprob: float
    raw: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, content: bytes, logprob: float) -> "Chance":
        """By its bytes."""
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
        return cls(text, logprob, content)


@dataclass(frozen=True)
class Chosen:
    """A token of an answer, and the most probable ones in its place, itself among them or not."""

    token: Chance
    top: tuple[Chance, ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next part of an answer. text: may be empty. tokens: how many it stands for. finish: in the last one only.

    chosen: the tokens whose text is told by now, where `Sampling.logprobs` asks for them; not those that end an answer.
    cached: in one piece at most, tokens of the prompt that had been read for an earlier answer. calls: of tools; no
    engine makes these, they are read from its texts (`confide.enclave.api.calls`). stop: in the last one, the stop text
    that ended the answer, empty where an engine does not know which of several; None for any other end.
    One without text, tokens and finish says no more than that work on the answer goes on. padding: it stands for a
    token behind the end, and is handed on like any other, so that nobody sees the end by what happens next.
    """

    text: str
    tokens: int
    finish: FinishReason | None = None
    padding: bool = False
    chosen: tuple[Chosen, ...] = ()
    cached: int = 0
    calls: tuple[CallPart, ...] = ()
    stop: str | None = None

    @property
    def empty(self) -> bool:
        """Whether it says no more than that."""
        return not (self.text or self.tokens or self.finish or self.padding or self.chosen or self.calls)


class Engine(Protocol):
    """A loaded model. Methods are called from one event loop, many at once; none of them blocks it.

    A prompt that does not fit, with its answer, raises PromptTooLong before the first piece. Whoever comes first is
    answered first, as far as that can be known; nobody waits for the whole of somebody else's answer or long prompt.
    """

    @property
    def facts(self) -> EngineFacts:
        """What runs."""
        ...

    async def read(self, asked: str | Sequence[Message], tools: Sequence[Tool] = ()) -> Prompt:
        """A text, or a conversation: by the model's chat template, or the plain one where it has none.

        tools: that the model is told of. RequestRefused where its template knows no tools.

        PromptTooLong, without reading it, for one of more bytes than any text has that fits.
        """
        ...

    def generate(self, prompt: str | Prompt, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """An answer, piece by piece. Closing the generator stops the work at the next token."""
        ...

    async def embed(self, texts: Sequence[str | Prompt]) -> list[list[float]]:
        """An embedding of each text. EngineError where the model gives none."""
        ...

    def weights_digest(self) -> str:
        """SHA-256, in hexadecimal, over the weights as they are in memory now; empty where they are elsewhere.

        Takes as long as reading them all, and may be called from any thread.
        """
        ...

    async def margins(self, prompt: str, tokens: int) -> list[float]:
        """How certain the greedy answer is: of each of its tokens, by how much its logit exceeds the next best one's.

        So many tokens at most, and none from the one on that would end it. EngineError where that cannot be known.
        """
        ...

    async def close(self) -> None:
        """Let go of the model."""
        ...
