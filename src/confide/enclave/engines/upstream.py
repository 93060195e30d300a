"""Any OpenAI-compatible server in the same trusted execution environment, such as vLLM.

It is reached on a loopback address alone: prompts go to it in the clear. Its own tokenizer and context are not part of
the OpenAI protocol, so both are given here. What it keeps of prompts is told apart by a salt (vLLM, SGLang), or it
keeps nothing (llama.cpp); a server that knows neither word shares what it keeps among all who ask.
"""

import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Final

import httpx
import msgspec
from httpx_sse import EventSource, SSEError
from transformers import PreTrainedTokenizerBase

from confide.enclave.connector import Connector
from confide.enclave.connector_http import async_through
from confide.enclave.engines.engine import Chance, Chosen, EngineFacts, FinishReason, Piece, Prompt, Sampling
from confide.enclave.engines.prompts import Prompted, Prompts
from confide.errors import (
    AnswerTimedOut,
    EngineError,
    EngineFault,
    EngineUnavailable,
    InsecureConnection,
    PromptRefused,
    RequestRefused,
)
from confide.net.loopback import is_loopback
from confide.printable import printable

CONNECT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 120.0
"""A server that sends nothing for so long is given up."""
CONNECTIONS: Final = 1024
_DONE: Final = "[DONE]"
_SALT_LABEL: Final = b"confide upstream salt 1\0"
_REFUSALS: Final[Mapping[int, type[EngineError]]] = {
    400: PromptRefused,
    413: PromptRefused,
    422: PromptRefused,
    429: EngineUnavailable,
    503: EngineUnavailable,
}
"""What a status of the server's means. Any other is its own fault."""


class _Logprobs(msgspec.Struct):
    """OpenAI's form for completions."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    """stop_reason: vLLM's, the stop text or token that ended an answer."""

    text: str = ""
    finish_reason: str | None = None
    stop_reason: Any = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Chunk(msgspec.Struct):
    """What is read of a chunk of a streamed completion."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Embedding(msgspec.Struct):
    index: int
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


class UpstreamEngine(Prompted):
    """The Engine of a server at `url`, such as http://127.0.0.1:8000/v1.

    model: its name there, facts.model where it is not given.
    facts.context and tokenizer must be those the server uses. api_key: where it wants one.
    connector: opens the connections, where this process cannot.
    insecure_remote: allow another machine, which then reads every prompt. Raises InsecureConnection without it.
    """

    def __init__(
        self,
        url: str,
        facts: EngineFacts,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model: str | None = None,
        api_key: str | None = None,
        connector: Connector | None = None,
        insecure_remote: bool = False,
    ) -> None:
        if not insecure_remote and not is_loopback(httpx.URL(url).host):
            raise InsecureConnection(
                f"{url} is not inside this trusted execution environment, and prompts would go there in the clear; "
                "give the loopback address of a server in here."
            )
        cannot = facts.cannot | {"response_format"}  # servers that do not know it ignore it
        super().__init__(replace(facts, cannot=cannot), Prompts(tokenizer, facts.context, by_text=True))
        self._model = model or facts.model
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=CONNECTIONS),
            trust_env=False,  # no proxy from the environment gets to see a prompt
            transport=async_through(connector, CONNECTIONS) if connector else None,
        )

    async def generate(self, prompt: str | Prompt, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """An answer as the server gives it. A piece of text stands for a token, until the last says how many they were.

        Closing the generator closes the connection, by which such servers stop. Raises PromptTooLong, and EngineError
        where the server is away, refuses, or breaks off.
        """
        prompt = await self._as_prompt(prompt)
        self._prompts.require_fit(len(prompt.tokens), sampling)
        self._prompts.require_known(sampling.logit_bias, len(self._prompts.tokenizer))
        added = self._prompts.tokenizer.added_tokens_decoder.values()
        if any(token.special and str(token) in sampling.markers for token in added):
            raise RequestRefused(
                "`tools` are not offered here: the model marks its calls by special tokens, which its server does not "
                "show. Leave them out.",
                "tools",
            )
        finish: FinishReason | None = None
        stop: str | None = None
        tokens: int | None = None
        told = 0
        async with self._stream("completions", self._request(prompt.text, sampling)) as chunks:
            async for chunk in chunks:
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
                for choice in chunk.choices:
                    finish = _finish(choice) or finish
                    stop = choice.stop_reason if choice.stop_reason in sampling.stop else stop
                    chosen = () if sampling.logprobs is None else _chosen(choice, sampling.logprobs)
                    if choice.text or chosen:
                        told += 1
                        yield Piece(choice.text, 1, chosen=chosen)
        if finish is None or tokens is None:
            raise EngineFault(
                "The model's server ended its answer without a finish reason or usage; use one that knows "
                "stream_options.include_usage, as vLLM and llama.cpp do, and see that it runs."
            )
        yield Piece("", max(0, tokens - told), finish, stop=stop)

    async def embed(self, texts: Sequence[str | Prompt]) -> list[list[float]]:
        """Embeddings as the server gives them."""
        prompts = [await self._as_prompt(text) for text in texts]
        for prompt in prompts:
            self._prompts.require_short(len(prompt.tokens), self._prompts.context)
        request = {"model": self._facts.model, "input": [prompt.text for prompt in prompts]}
        with _explained():
            response = await self._http.post("embeddings", json=request)
            response.raise_for_status()
            rows = msgspec.json.decode(response.content, type=_Embeddings).data
        return [row.embedding for row in sorted(rows, key=lambda row: row.index)]

    def weights_digest(self) -> str:
        """Empty: they are in another process."""
        return ""

    async def margins(self, prompt: str, tokens: int) -> list[float]:
        """Refused: a model that is served by others is sealed from its files."""
        raise EngineError("How certain another server is cannot be known; seal the model from its files.")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _request(self, prompt: str, sampling: Sampling) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Without a salt of the request's, what is kept of it is nobody's. Servers of other kinds ignore both words.
            "cache_salt": hashlib.sha256(_SALT_LABEL + (sampling.salt or secrets.token_bytes(32))).hexdigest(),
            "cache_prompt": False,
        }
        # Only servers that are asked for these have to know them; the first two are not in the OpenAI protocol.
        for name in ("top_k", "min_p", "presence_penalty", "frequency_penalty"):
            if value := getattr(sampling, name):
                request[name] = value
        if sampling.logit_bias:
            request["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if sampling.logprobs is not None:
            request["logprobs"] = sampling.logprobs
        if sampling.seed is not None:
            request["seed"] = sampling.seed
        if sampling.stop:
            request["stop"] = list(sampling.stop)
        return request

    @asynccontextmanager
    async def _stream(self, path: str, request: dict[str, Any]) -> AsyncIterator[AsyncIterator[_Chunk]]:
        """The chunks of a streamed answer, as server-sent events."""
        with _explained():
            async with self._http.stream("POST", path, json=request) as response:
                response.raise_for_status()
                yield _chunks(response)


async def _chunks(response: httpx.Response) -> AsyncIterator[_Chunk]:
    async with aclosing(EventSource(response).aiter_sse()) as events:
        async for event in events:
            if not event.data or event.data == _DONE:
                continue
            chunk = msgspec.json.decode(event.data, type=_Chunk)
            if chunk.error:
                raise EngineFault("The model's server broke off with an error; its own log says why.")
            yield chunk


_ENDS: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "eos_token": "stop",
    "stop_sequence": "stop",
}
"""Why an answer is over: OpenAI's words, then those of Text Generation Inference."""


def _finish(choice: _Choice) -> FinishReason | None:
    """EngineFault for all other reasons, such as vLLM's `abort`: the answer is cut, and must not look whole."""
    if not choice.finish_reason:
        return None
    if (finish := _ENDS.get(choice.finish_reason)) is None:
        raise EngineFault(
            f"The model's server gave up the answer ({printable(choice.finish_reason[:60])}); ask again, or read its "
            "log."
        )
    return finish


def _chosen(choice: _Choice, most: int) -> tuple[Chosen, ...]:
    """What a server tells of its tokens; RequestRefused where it tells nothing of a text."""
    if choice.logprobs is None:
        if choice.text:
            raise RequestRefused("The model's server tells no logprobs; leave them out.", "logprobs")
        return ()
    told = choice.logprobs
    tops = told.top_logprobs or [None] * len(told.tokens)
    if not len(told.tokens) == len(told.token_logprobs) == len(tops):
        raise EngineFault("The model's server tells of more or fewer tokens than it gave; look into its log.")
    return tuple(
        Chosen(
            Chance(token, logprob),
            tuple(Chance(text, value) for text, value in sorted((top or {}).items(), key=_by_logprob)[:most]),
        )
        for token, logprob, top in zip(told.tokens, told.token_logprobs, tops, strict=True)
        if logprob is not None
    )


def _by_logprob(entry: tuple[str, float]) -> float:
    return -entry[1]


@contextmanager
def _explained() -> Iterator[None]:
    """Every trouble with the server as an EngineError. What the server says is left out: it may quote the prompt.

    What it refuses is the request's trouble (4xx), and all else is no request's: EngineFault.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        message = f"The model's server refused the request with status {status}; its own log says why."
        raise _REFUSALS.get(status, EngineFault)(message) from error
    except httpx.TimeoutException as error:
        raise AnswerTimedOut("The model's server did not answer in time; see whether it is overloaded.") from error
    except (SSEError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EngineFault("The model's server does not speak the OpenAI protocol; check its address.") from error
    except httpx.TransportError as error:
        raise EngineUnavailable("The model's server is away; start it, and send the request again.") from error
