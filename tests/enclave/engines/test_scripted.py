"""Models that say any sequence of tokens: no answer is an error or without an end, streamed or whole."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tests.enclave.engines.conftest import Answer, answer
from tests.scripted import POSITIONS, byte_fallback, byte_level, fast, save, saying
from tokenizers import Tokenizer, processors

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.engines.engine import Message, Sampling
from confide.enclave.engines.forms import Form
from confide.enclave.engines.gguf_engine import GgufEngine
from confide.enclave.engines.transformers_engine import TransformersEngine
from confide.errors import EngineError, EngineFault
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import open_model

PROMPT = "ab"
KINDS = {"fallback": (byte_fallback(), "</s>"), "bytes": (byte_level("<end>", "<turn>"), "<end>")}


class Scripted:
    """A transformers engine whose model's script can be changed, behind the API."""

    def __init__(self, tokenizer: Tokenizer, end: str, **more: Any) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id(end)
        self.size = tokenizer.get_vocab_size()
        self.asked = tokenizer.encode(PROMPT).ids
        self.model = saying([], len(self.asked), self.size, self.end)
        self.engine = TransformersEngine(self.model, fast(tokenizer, eos_token=end, **more), "model")
        self.client = TestClient(api_app(Serving(self.engine)), raise_server_exceptions=False)

    def say(self, script: Sequence[int]) -> None:
        said = saying(script, len(self.asked), self.size, self.end)
        with torch.no_grad():
            self.model.lm_head.weight.copy_(said.lm_head.weight)

    def ask(self, **more: Any) -> tuple[str, str]:
        """Text and finish reason, whole and streamed alike."""
        body = {"model": "model", "prompt": PROMPT, "max_tokens": 40, "temperature": 0} | more
        whole = self.client.post("/v1/completions", json=body)
        assert whole.status_code == 200, whole.text
        stream = self.client.post("/v1/completions", json=body | {"stream": True}).text
        lines = [line[6:].strip(" ") for line in stream.split("\n") if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
        choice = whole.json()["choices"][0]
        assert "".join(part["text"] for part in choices) == choice["text"]
        assert choices[-1]["finish_reason"] == choice["finish_reason"]
        return choice["text"], choice["finish_reason"]


@pytest.fixture(scope="module", params=KINDS)
def scripted(request: pytest.FixtureRequest) -> Scripted:
    return Scripted(*KINDS[request.param])


def test_any_tokens_are_what_the_library_makes_of_them(scripted: Scripted) -> None:
    tokenizer, before = scripted.tokenizer, scripted.asked[-1:]
    letter = tokenizer.token_to_id("b")

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.integers(0, scripted.size - 1).filter(lambda token: token != scripted.end), max_size=24))
    def check(script: list[int]) -> None:
        scripted.say([*script, letter])
        expected = tokenizer.decode([*before, *script, letter])[len(tokenizer.decode(before)) :]
        assert scripted.ask() == (expected, "stop")

    check()


def test_all_of_unicode_comes_out_as_it_is(scripted: Scripted) -> None:
    @settings(max_examples=15, deadline=None)
    @given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=9))
    def check(text: str) -> None:
        script = scripted.tokenizer.encode(f"x{text}x").ids
        scripted.say([token for token in script if token != scripted.end][:50])
        said, finish = scripted.ask(max_tokens=POSITIONS - len(scripted.asked))
        assert (said.lstrip(" "), finish) == (f"x{text}x", "stop")

    check()


NEWER: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "ab", "max_output_tokens": 40},
    "/v1/messages": {"messages": [{"role": "user", "content": "ab"}], "max_tokens": 40},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "ab"}]},
}


@pytest.mark.parametrize("path", NEWER)
def test_incomplete_characters_are_held_back_in_every_stream(path: str) -> None:
    tokenizer, end = KINDS["fallback"]
    scripted = Scripted(tokenizer, end, chat_template=PROMPT)
    script = [tokenizer.token_to_id(token) for token in ("b", "<0xC3>", "<0xA9>", "a", "<0xF0>", "<0x9F>")]
    scripted.say(script)
    body = NEWER[path] | {"model": "model", "temperature": 0, "stream": True}
    stream = scripted.client.post(path, json=body).text
    assert "\ufffd" not in stream
    assert "\\ud" not in stream
    events = [json.loads(line[6:]) for line in stream.split("\n") if line.startswith("data: {")]
    deltas = [event.get("delta", "") or event.get("choices", [{}])[0].get("delta", "") for event in events]
    texts = [one if isinstance(one, str) else one.get("content") or one.get("text") or "" for one in deltas]
    assert "".join(texts).strip() == "béa"
    assert any("é" in text for text in texts)
    whole = scripted.client.post(path, json=body | {"stream": False}).text
    assert "béa" in whole
    assert "\ufffd" not in whole
    asyncio.run(scripted.engine.close())


def test_llama_cpp_tells_a_stop_text_from_an_end(gguf: Callable[..., Path]) -> None:
    vocabulary = KINDS["fallback"][0].get_vocab()

    async def ends(*stops: tuple[str, ...]) -> list[str | None]:
        engine = GgufEngine(gguf([vocabulary[token] for token in "abc"]), "model", threads=1, parallel=1)
        try:
            samplings = [Sampling(20, 0, stop=stop) for stop in stops]
            return [[piece async for piece in engine.generate(PROMPT, one)][-1].stop for one in samplings]
        finally:
            await engine.close()

    assert asyncio.run(ends((), ("x",), ("c",), ("bc",), ("x", "c"))) == [None, None, "c", "bc", "c"]


def test_a_special_token_may_be_a_stop_text(scripted: Scripted) -> None:
    special = "<turn>" if scripted.tokenizer.token_to_id("<turn>") is not None else "<s>"
    a, other, b = (scripted.tokenizer.token_to_id(token) for token in ("a", special, "b"))
    scripted.say([a, other, b])
    assert scripted.ask() == ("ab", "stop")
    assert scripted.ask(stop=[special]) == ("a", "stop")
    assert scripted.ask(stop=[special + "b"]) == ("a", "stop")
    assert scripted.ask(stop=[special + "c"]) == ("ab", "stop")


def test_a_form_is_kept_with_any_tokenizer(scripted: Scripted) -> None:
    scripted.say([scripted.tokenizer.token_to_id(letter) for letter in "ab"])
    schema = {"type": "array", "items": {"enum": ["ab", "é🙂", "\n"]}, "minItems": 3, "maxItems": 3}
    form = Form.of_schema(schema, "response_format")
    for seed in range(3):
        made = asyncio.run(answer(scripted.engine, PROMPT, Sampling(40, seed=seed, form=form)))
        assert made.finish == "stop"
        assert set(json.loads(made.text)) <= {"ab", "é🙂", "\n"}


@pytest.mark.parametrize("marker", ["[TOOL_CALLS]", "[OTHER]"])
def test_special_tokens_that_mark_calls_are_seen_and_not_shown(marker: str) -> None:
    """As Mistral's are."""
    tokenizer = byte_level("<end>", marker)
    template = "{# [TOOL_CALLS] #}{{ tools[0].function.name if tools }}{{ messages[-1].content }}"
    scripted = Scripted(tokenizer, "<end>", chat_template=template)
    said = '[{"name":"f","arguments":{}}]'
    scripted.asked = tokenizer.encode("fab").ids
    scripted.say([tokenizer.token_to_id(marker), *tokenizer.encode(said).ids])
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"model": "model", "messages": [{"role": "user", "content": "ab"}], "max_tokens": 50, "temperature": 0}
    choice = scripted.client.post("/v1/chat/completions", json=body | {"tools": tools}).json()["choices"][0]
    if marker == "[OTHER]":  # which is never shown
        assert (choice["message"]["content"], choice["finish_reason"]) == (said, "stop")
    else:
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    asyncio.run(scripted.engine.close())


def test_the_tokens_of_a_conversation_are_those_of_its_template() -> None:
    tokenizer = fast(byte_fallback(), bos_token="<s>", eos_token="</s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    for template in ("{{ messages[0].content }}", "{{ bos_token }}{{ messages[0].content }}"):
        tokenizer.chat_template = template
        engine = TransformersEngine(saying([], 4, 291, 2), tokenizer, "model")
        prompt = asyncio.run(engine.read([Message("user", "ab")]))
        stock = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], add_generation_prompt=True)
        assert list(prompt.tokens) == stock["input_ids"]
        assert len(asyncio.run(engine.read("ab")).tokens) == 1 + len(
            tokenizer("ab", add_special_tokens=False)["input_ids"]
        )
        asyncio.run(engine.close())


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_no_answer(odd: float, temperature: float) -> None:
    scripted = Scripted(*KINDS["bytes"])
    with torch.no_grad():
        scripted.model.lm_head.weight[7, 3] = odd
    body = {"model": "model", "prompt": PROMPT, "max_tokens": 4, "temperature": temperature}
    refused = scripted.client.post("/v1/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "engine-fault")
    asyncio.run(scripted.engine.close())


@pytest.fixture
def gguf(tmp_path: Path) -> Callable[..., Path]:
    def make(script: Sequence[int], edit: Callable[[Any], None] = lambda _: None) -> Path:
        tokenizer, end = KINDS["fallback"]
        model = saying(
            script, len(tokenizer.encode(PROMPT).ids), tokenizer.get_vocab_size(), tokenizer.token_to_id(end)
        )
        folder = save(model, tokenizer, tmp_path / "model", bos_token="<s>", eos_token=end)
        return write_gguf(open_model(str(folder)), tmp_path / "model.gguf", GgufType.F16).path

    return make


def llama_cpp(file: Path, *samplings: Sampling, **options: Any) -> list[Answer]:
    async def main() -> list[Answer]:
        engine = GgufEngine(file, "model", threads=1, parallel=1, **options)
        try:
            return [await answer(engine, PROMPT, sampling) for sampling in samplings]
        finally:
            await engine.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["<0xC3>", "<0xA9>", "b"], "éb"),
        (["<0xE2>", "<0x82>", "a", "<0xAC>", "b"], "\ufffda\ufffdb"),
        (["<0xF0>", "<0x9F>", "<0x99>", "<0x82>"], "🙂"),
        (["b", "<0xF0>", "<0x9F>"], "b"),
    ],
)
def test_llama_cpps_answers_end_too_whatever_their_bytes(
    gguf: Callable[..., Path], tokens: list[str], text: str
) -> None:
    vocabulary = KINDS["fallback"][0].get_vocab()
    (said,) = llama_cpp(gguf([vocabulary[token] for token in tokens]), Sampling(20, 0))
    assert (said.text, said.finish) == (text, "stop")


def test_a_special_token_may_be_a_stop_text_for_llama_cpp(gguf: Callable[..., Path]) -> None:
    vocabulary = KINDS["fallback"][0].get_vocab()
    file = gguf([vocabulary[token] for token in ("a", "<s>", "b")])
    plain, stopped, longer, other = llama_cpp(
        file, *(Sampling(20, 0, stop=stop) for stop in ((), ("<s>",), ("<s>b",), ("<s>c",)))
    )
    assert [one.text for one in (plain, stopped, longer, other)] == ["ab", "a", "a", "ab"]


def test_every_end_token_is_in_the_file(tmp_path: Path) -> None:
    tokenizer = byte_fallback("<turn>", "<message>", "<fourth>")
    ids = tokenizer.get_vocab()
    asked = len(tokenizer.encode(PROMPT).ids)
    model = saying([ids["a"], ids["<message>"], ids["b"]], asked, tokenizer.get_vocab_size(), 2)
    model.generation_config.eos_token_id = [ids["<turn>"], ids["<message>"]]
    folder = save(model, tokenizer, tmp_path / "model", bos_token="<s>", eos_token="</s>")
    (said,) = llama_cpp(write_gguf(open_model(str(folder)), tmp_path / "m.gguf", GgufType.F16).path, Sampling(20, 0))
    assert (said.text, said.finish) == ("a", "stop")
    model.generation_config.eos_token_id = [ids["<turn>"], ids["<message>"], ids["<fourth>"]]
    model.save_pretrained(folder)
    with pytest.raises(Exception, match="4 tokens end its answers"):
        write_gguf(open_model(str(folder)), tmp_path / "m.gguf", GgufType.F16)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_llama_cpp_loads_no_weights_that_are_no_numbers(gguf: Callable[..., Path], odd: float) -> None:
    file = gguf([])
    reader = GGUFReader(file, "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_up.bias")
    tensor.data[3] = odd
    reader.data.flush()
    with pytest.raises(EngineError, match="not finite"):
        llama_cpp(file, Sampling(1, 0))


@pytest.mark.parametrize("temperature", [0, 1])
def test_llama_cpp_gives_no_answer_from_logits_that_are_no_numbers(tmp_path: Path, temperature: float) -> None:
    tokenizer, end = KINDS["fallback"]
    model = saying([], len(tokenizer.encode(PROMPT).ids), tokenizer.get_vocab_size(), tokenizer.token_to_id(end))
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(3e38)  # a number, and what comes of it is none
    folder = save(model, tokenizer, tmp_path / "model", bos_token="<s>", eos_token=end)
    file = write_gguf(open_model(str(folder)), tmp_path / "model.gguf", GgufType.F16).path
    with pytest.raises(EngineFault, match="no number"):
        llama_cpp(file, Sampling(4, temperature))


def test_a_context_is_what_fits_and_no_more_than_the_models(
    gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gguf([])
    cache = 2 * 2 * POSITIONS  # keys and values of one layer, two bytes each

    def context(room: int, **options: Any) -> int:
        monkeypatch.setattr("confide.enclave.engines.gguf_engine.available_bytes", lambda: 2 * room)
        engine = GgufEngine(file, "model", threads=1, **{"parallel": 2} | options)
        asyncio.run(engine.close())
        return engine.facts.context

    monkeypatch.setattr("confide.enclave.engines.gguf_engine.GRAIN", 8)
    assert context(1 << 30) == POSITIONS
    assert context(1 << 30, context=1000) == POSITIONS
    assert context(1 << 30, context=20) == 20
    assert context(2 * cache * 35) == 32
    assert context(2 * cache * 35, parallel=1) == POSITIONS
    for options in ({"context": 40}, {"parallel": 64}):
        with pytest.raises(EngineError, match=r"lower --context or --parallel"):
            context(2 * cache * 35, **options)
