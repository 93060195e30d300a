"""GGUF models in llama.cpp, in this process, with its continuous batching.

xllamacpp's server listens over HTTP by itself. Here it is given a Unix socket in a folder of its own that nobody else
may enter, never a port, and a key nobody knows; once the model is loaded the socket stops listening and the folder
goes. What remains are calls inside this process.

Requests are computed together, so the last bit of a logit may depend on what else runs: a seed gives the same answer
in all but the closest of choices. No request's prompt cache serves another, or answers' timing would tell one user of
another's prompts.
"""

import asyncio
import ctypes
import os
import secrets
import socket
import stat
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import xllamacpp
from gguf import GGUFReader, Keys, LlamaFileType
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from confide.enclave.engines.answer_text import HeldTokens, TokenBytes
from confide.enclave.engines.engine import PARALLEL, Chance, Chosen, EngineFacts, Piece, Prompt, Sampling
from confide.enclave.engines.guides import Guides
from confide.enclave.engines.held import digest_of
from confide.enclave.engines.memory import available_bytes
from confide.enclave.engines.prompts import Prompted, Prompts
from confide.errors import EngineError, EngineFault, EngineUnavailable, PromptRefused, PromptTooLong

BATCH: Final = 1024
"""Tokens computed together at most, for which all running answers wait; also the longest text to embed."""
GRAIN: Final = 256
"""Contexts are of a multiple of this many tokens where memory decides."""
_SILENT: Final = -1
_RANDOM_SEED: Final = 2**32 - 1
"""llama.cpp's seeds are 32 bits wide; this one means that it shall choose."""


class GgufEngine(Prompted):
    """The Engine of a GGUF file, which may be a memfd's path under /proc/self/fd.

    name: the model's in the API. context: tokens of each request at most, and no more than the model's own; as many as
    there is memory for where not given. parallel: how many requests are computed at once; each has its own memory, and
    more wait. threads: all cores where not given; fewer are
    better where others compute too, since llama.cpp's threads spin while they wait for each other.
    Raises EngineError where llama.cpp cannot load the file.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        context: int | None = None,
        parallel: int = PARALLEL,
        threads: int | None = None,
    ) -> None:
        file = read_gguf(path)
        fitting = _fitting_context(
            min(file.context, context or file.context), parallel * file.token_bytes, given=bool(context)
        )
        prompts = Prompts(tokenizer_of(path, file), fitting, by_text=True)
        threads = threads or len(os.sched_getaffinity(0))
        super().__init__(_facts(name, file.quantization, prompts, file.context, threads, parallel), prompts)
        self._server = _load(path, self._prompts.context, parallel, threads)
        self._held = _find_in_memory(path, file.tensors)
        added = prompts.tokenizer.added_tokens_decoder
        self._specials = [str(token) for token in added.values() if token.special]
        self._ends = frozenset(index for index, token in added.items() if token.special)
        self._guides = _guides(prompts.tokenizer)
        self._in_use = threading.Lock()
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="llama.cpp request")
        self._closed = False

    async def generate(self, prompt: str | Prompt, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """An answer as llama.cpp gives it. Raises PromptTooLong, and EngineError where llama.cpp refuses."""
        prompt = await self._as_prompt(prompt)
        self._prompts.require_fit(len(prompt.tokens), sampling)
        self._prompts.require_known(sampling.logit_bias, len(self._prompts.tokenizer))
        guide = None if sampling.form is None else await self._guides.guide(sampling.form)
        done, tokens, ids = 0, HeldTokens(), list[int]()
        shown = [name for name in self._specials if any(name in text for text in sampling.stop)]
        markers = [name for name in self._specials if name in sampling.markers]
        shown = [name for name in shown if name not in markers]
        request = _request(prompt.text, sampling) | {"preserved_tokens": shown + markers}
        async with aclosing(self._complete(request)) as chunks:
            async for chunk in chunks:
                _require_no_error(chunk)
                choice = chunk["choices"][0]
                _require_numbers(choice)
                ids += (entry["id"] for entry in (choice["logprobs"] or {}).get("content", ()))
                now = int(chunk["timings"]["predicted_n"])
                text = choice["text"]
                if sampling.logprobs is not None:
                    _hold(tokens, choice, sampling.logprobs)
                for name in shown:  # made visible for the stop texts alone
                    text = text.replace(name, "")
                if guide is not None:
                    await asyncio.to_thread(guide.read, text, ended=choice["finish_reason"] == "stop")
                if now > done or text or choice["finish_reason"]:
                    finish = choice["finish_reason"]
                    stop = self._stopped_by(ids, sampling.stop) if finish == "stop" else None
                    yield Piece(text, now - done, finish, chosen=tokens.take(), stop=stop)
                    done = now

    async def embed(self, texts: Sequence[str | Prompt]) -> list[list[float]]:
        """The mean over tokens of the last hidden state, scaled to Euclidean length 1."""
        prompts = [await self._as_prompt(text) for text in texts]
        for prompt in prompts:
            self._prompts.require_short(len(prompt.tokens), min(BATCH, self._prompts.context))
        self._require_open()
        request = {"input": [prompt.text for prompt in prompts]}
        answer = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._server.handle_embeddings, request
        )
        _require_no_error(answer)
        return [list(row["embedding"]) for row in sorted(answer["data"], key=lambda row: row["index"])]

    def weights_digest(self) -> str:
        """Over the file's tensors where llama.cpp has mapped them.

        Of some types it makes a rearranged copy for some processors, at once when it loads; that copy is not seen here.
        """
        with self._in_use:
            self._require_open()
            return digest_of((held.name, held.type, held.shape, held.content()) for held in self._held)

    async def margins(self, prompt: str, tokens: int) -> list[float]:
        """From the probabilities that llama.cpp gives."""
        self._prompts.require_fit(len((await self.read(prompt)).tokens), Sampling(tokens))
        request = _request(prompt, Sampling(tokens, temperature=0, logprobs=2))
        margins: list[float] = []
        async with aclosing(self._complete(request)) as chunks:
            async for chunk in chunks:
                _require_no_error(chunk)
                for entry in (chunk["choices"][0].get("logprobs") or {}).get("content", ()):
                    best, next_best = sorted((option["logprob"] for option in entry["top_logprobs"]), reverse=True)
                    margins.append(best - next_best)
                ended = chunk["choices"][0]["finish_reason"] == "stop"
        return margins[:-1] if ended and margins else margins

    async def close(self) -> None:
        """End what runs, and let go of the model."""
        self._closed = True
        self._guides.close()
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._in_use.acquire)  # whoever reads the weights is done, and nobody else begins
        self._in_use.release()
        del self._server

    async def _complete(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """llama.cpp's chunks of one completion. Closing the generator ends it at the next token."""
        self._require_open()
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        wanted = True

        def over() -> bool:
            return not wanted or self._closed

        def deliver(chunk: dict[str, Any]) -> bool:
            """Called by llama.cpp on a thread of ours; True ends the completion."""
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            except RuntimeError:  # the event loop is gone
                return True
            return over()

        def work() -> None:
            if not over():
                self._server.handle_completions(request, deliver)

        finished = loop.run_in_executor(self._threads, work)
        finished.add_done_callback(lambda _: chunks.put_nowait(None))
        try:
            while (chunk := await chunks.get()) is not None:
                yield chunk
            await finished
            self._require_open()
        finally:
            wanted = False

    def _stopped_by(self, tokens: list[int], stop: tuple[str, ...]) -> str | None:
        """As `Piece.stop`, of an answer that is over: llama.cpp does not say it, but which tokens it made."""
        if not stop:
            return None
        text = str(self._prompts.tokenizer.decode(tokens))
        found = [(position, one) for one in stop if (position := text.find(one)) >= 0]
        if found:
            return min(found)[1]
        return None if tokens and tokens[-1] in self._ends else ""

    def _require_open(self) -> None:
        if self._closed:
            raise EngineUnavailable("The engine is closed; send the request again once it serves.")


def _guides(tokenizer: PreTrainedTokenizerBase) -> Guides:
    """What holds answers to forms, by the model's tokens where these are known, and by bytes where not."""
    if not tokenizer.is_fast:
        return Guides(lambda _: b"", 0, (), ())
    content = TokenBytes(cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer)
    return Guides(content, len(tokenizer), content.specials, ())


@dataclass(frozen=True)
class _Stored:
    """A tensor of the file. type: GGUF's. shape: fastest dimension first, as in the file. start, size: in bytes."""

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file but for its weights.

    context: the model's own, in tokens. token_bytes: of KV cache for each token of context. tokenizer: where the file
    has the description that transformers knows, beside llama.cpp's.
    """

    architecture: str
    context: int
    quantization: str
    token_bytes: int
    tokenizer: PreTrainedTokenizerBase | None
    tensors: tuple[_Stored, ...]


@dataclass(frozen=True)
class _Held:
    """A tensor of the file where it lies in memory. type: GGUF's. shape: fastest dimension first, as in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    address: int
    bytes: int

    def content(self) -> memoryview:
        """To be read while llama.cpp has the file mapped."""
        return memoryview((ctypes.c_ubyte * self.bytes).from_address(self.address))


def _find_in_memory(path: Path, tensors: Iterable[_Stored]) -> tuple[_Held, ...]:
    """The tensors of a loaded file. EngineError if it is not mapped whole: then what is held cannot be known."""
    status = path.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    mappings = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, where, inode = line.split(maxsplit=5)[:5]
        if (where, int(inode)) == (device, status.st_ino):
            start, end = (int(address, 16) for address in span.split("-"))
            mappings.append((int(offset, 16), start, end - start))
    held = []
    for tensor in tensors:
        end = tensor.start + tensor.size
        starts = [
            start - offset for offset, start, length in mappings if offset <= tensor.start <= end <= offset + length
        ]
        if not starts:
            raise EngineError("llama.cpp does not hold the weights as they are in the file; use the pinned xllamacpp.")
        held.append(_Held(tensor.name, tensor.type, tensor.shape, starts[0] + tensor.start, tensor.size))
    return tuple(held)


def _facts(
    name: str, quantization: str, prompts: Prompts, own_context: int, threads: int, parallel: int
) -> EngineFacts:
    return EngineFacts(
        name,
        "llama.cpp",
        quantization,
        prompts.context,
        version=f"xllamacpp {xllamacpp.__version__}",
        dtype=quantization,
        template=prompts.template,
        settings={
            "threads": str(threads),
            "parallel": str(parallel),
            "model-context": str(own_context),
            "cpu": xllamacpp.get_system_info(),
        },
        parallel=parallel,
    )


def _hold(tokens: HeldTokens, choice: dict[str, Any], most: int) -> None:
    """Note a chunk's tokens and text, in bytes. Of a token that ends within a character llama.cpp tells nothing."""

    def chance(entry: dict[str, Any]) -> Chance:
        return Chance.of(bytes(entry["bytes"]), float(entry["logprob"]))

    for entry in (choice["logprobs"] or {}).get("content", ()):
        if entry["bytes"]:  # the others end answers, and are never shown
            top = tuple(chance(one) for one in entry["top_logprobs"][:most])
            tokens.add(Chosen(chance(entry), top), len(entry["bytes"]))
    tokens.give(len(choice["text"].encode(errors="surrogatepass")))
    if choice["finish_reason"] == "stop":
        tokens.stop()
    elif choice["finish_reason"]:
        tokens.give_all()


def _request(prompt: str, sampling: Sampling) -> dict[str, Any]:
    """A completion in the words of llama.cpp's server. What Sampling does not name is turned off."""
    if sampling.temperature == 0 and sampling.logprobs is None:
        # The greedy choice in other words: among two candidates the best one's probability is soon known, where that
        # among a whole vocabulary takes a tenth of a small model's step. Of a single one llama.cpp would say 1 unseen.
        chosen: dict[str, Any] = {"samplers": ["penalties", "top_k", "temperature"], "top_k": 2, "temperature": 0}
        chosen |= {"post_sampling_probs": True}
    else:
        chosen = {
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
        }
    return {
        "prompt": prompt,
        "stream": True,
        "return_progress": True,  # so that a long prompt can be given up half read
        "timings_per_token": True,
        "cache_prompt": False,
        "max_tokens": sampling.max_tokens,
        **chosen,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repeat_penalty": 1.0,
        "repeat_last_n": len(prompt) + sampling.max_tokens,  # all there is, and more
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()},
        **({} if sampling.form is None else {"grammar": sampling.form.grammar}),
        "seed": _RANDOM_SEED if sampling.seed is None else sampling.seed % _RANDOM_SEED,
        "stop": list(sampling.stop),
        "logprobs": max(1, sampling.logprobs or 0),  # one, by which one can tell that the model computes numbers
    }


def _require_no_error(answer: dict[str, Any]) -> None:
    """An error by its kind alone: what llama.cpp says about it may quote the request."""
    if error := answer.get("error"):
        kind = str(error.get("type"))
        if kind == "exceed_context_size_error":
            raise PromptTooLong("The prompt does not fit the model's context; shorten it.")
        raise PromptRefused(f"llama.cpp refused the request as {kind}; check the request, or try another model.")


def _require_numbers(choice: dict[str, Any]) -> None:
    """EngineFault where the model's logits are not finite, of which llama.cpp makes tokens all the same."""
    for entry in (choice["logprobs"] or {}).get("content", ()):
        if entry["prob" if "prob" in entry else "logprob"] is None:  # how JSON has a NaN
            raise EngineFault(
                "The model computes what is no number, so it has no answer; its operator must restart it."
            )


def read_gguf(path: Path) -> GgufFile:
    """A GGUF file but for its weights. EngineError where it is no language model's."""
    try:
        reader = GGUFReader(path)
        fields = reader.fields
        architecture = str(fields["general.architecture"].contents())
        file_type = LlamaFileType(fields["general.file_type"].contents())
        return GgufFile(
            architecture=architecture,
            context=int(fields[f"{architecture}.context_length"].contents()),
            quantization=file_type.name.removeprefix("MOSTLY_").removeprefix("ALL_").lower(),
            token_bytes=_cache_bytes(lambda name: _number(fields, f"{architecture}.{name}")),
            tokenizer=_own_tokenizer(fields),
            tensors=tuple(
                _Stored(
                    one.name,
                    one.tensor_type.name,
                    tuple(map(int, one.shape)),
                    int(one.data_offset),
                    int(one.n_bytes),
                )
                for one in reader.tensors
            ),
        )
    except (OSError, ValueError, KeyError, IndexError, OverflowError, TypeError) as error:
        raise EngineError(
            f"{path} is not a GGUF file of a language model; make one with `confide quantize`."
        ) from error


def _own_tokenizer(fields: Mapping[str, Any]) -> PreTrainedTokenizerBase | None:
    """From the description that the GGUF specification calls tokenizer.huggingface.json, if there is one."""
    if Keys.Tokenizer.HF_JSON not in fields:
        return None
    names = {name: f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "unknown")}
    ids = {name: int(fields[key].contents()) for name, key in names.items() if key in fields}
    template = fields.get(Keys.Tokenizer.CHAT_TEMPLATE)
    try:
        backend = Tokenizer.from_str(str(fields[Keys.Tokenizer.HF_JSON].contents()))
    except Exception as error:  # the library raises what it stumbles over
        raise EngineError("The GGUF file's own description of its tokenizer is damaged; get the file again.") from error
    special = {name: backend.id_to_token(token) for name, token in ids.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special.get("bos"),
        eos_token=special.get("eos"),
        unk_token=special.get("unknown"),
        chat_template=str(template.contents()) if template else None,
    )


def context_bytes(path: Path) -> int:
    """Of a GGUF file, what a token of context takes in memory. EngineError where it is no language model's."""
    return read_gguf(path).token_bytes


def _number(fields: Mapping[str, Any], name: str) -> int | None:
    """A number of the metadata; of an array, one for each layer, the largest."""
    if name not in fields:
        return None
    value = fields[name].contents()
    return max(map(int, value), default=0) if isinstance(value, list) else int(value)


def _cache_bytes(number: Callable[[str], int | None]) -> int:
    """Keys and values of every layer in float16, as llama.cpp keeps them; some architectures take less."""
    heads = number("attention.head_count") or 1
    heads_kv = number("attention.head_count_kv")
    width = (number("embedding_length") or 0) // heads
    lengths = [number(f"attention.{name}_length") or width for name in ("key", "value")]
    return 2 * (number("block_count") or 0) * (heads if heads_kv is None else heads_kv) * sum(lengths)


def _fitting_context(most: int, token_bytes: int, *, given: bool) -> int:
    """Tokens of context that there is memory for. EngineError for none, and where somebody asked for more."""
    room = available_bytes() // 2  # the other half is for what is computed
    if most * token_bytes <= room:
        return most
    fitting = room // token_bytes // GRAIN * GRAIN
    if given or not fitting:
        raise EngineError(
            f"A context of {most} tokens takes {most * token_bytes / 1e9:.1f} GB of memory for all requests at once, "
            f"and {room / 1e9:.1f} GB can be had for it, which is enough for {fitting}; lower --context or --parallel, "
            "or find more memory."
        )
    return fitting


def tokenizer_of(path: Path, file: GgufFile) -> PreTrainedTokenizerBase:
    """The model's tokenizer. EngineError where transformers cannot read it."""
    if file.tokenizer is not None:
        return file.tokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(path.parent), gguf_file=path.name, trust_remote_code=False
        )
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise EngineError(
            f"transformers cannot read the tokenizer of a {file.architecture} model from its GGUF file; make the file "
            "with `confide quantize`, which puts the tokenizer's own description in."
        ) from error
    return tokenizer


def _load(path: Path, context: int, parallel: int, threads: int) -> xllamacpp.Server:
    """A server without a listener."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = parallel
    params.n_ctx = parallel * context
    params.n_batch = params.n_ubatch = BATCH
    params.fit_params = False  # llama.cpp would shorten the context where memory is short
    params.check_tensors = True  # no weight may be infinite or no number
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.verbosity = _SILENT
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    params.api_keys = [secrets.token_urlsafe(32)]
    with tempfile.TemporaryDirectory(prefix="confide-") as folder:
        address = os.path.join(folder, "closed.sock")
        params.hostnames = [address]
        try:
            server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise EngineError(
                f"llama.cpp cannot load {path}: tensors are missing or not finite, its architecture is unknown, or it "
                "is too large for the memory with so many requests at once; check the file, or lower the context."
            ) from error
        _stop_listening(address)
    # Its loop may not have begun yet, and does not hear of an end before that: whoever lets go of it waits for ever.
    server.handle_embeddings({"input": [[0]]})
    return server


def _stop_listening(address: str) -> None:
    """Shut this process's own listener on a Unix socket. EngineError if there is none: then it may be anywhere."""
    for number in map(int, os.listdir("/proc/self/fd")):
        with _socket(number) as candidate:
            if candidate and candidate.family == socket.AF_UNIX and candidate.getsockname() == address:
                candidate.shutdown(socket.SHUT_RDWR)
                return
    raise EngineError("llama.cpp does not listen where it was told to; use the version of xllamacpp that is pinned.")


@contextmanager
def _socket(number: int) -> Iterator[socket.socket | None]:
    """A copy of a file descriptor as a socket, or None where it is not one."""
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            yield None
            return
        copy = socket.socket(fileno=os.dup(number))
    except OSError:  # closed by another thread in the meantime
        yield None
        return
    with copy:
        yield copy
