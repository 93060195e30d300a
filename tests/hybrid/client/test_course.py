"""What a server sees of where a text ends and of a wrong answer: nothing; and what the user sees of it: all."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from confide.errors import IntegrityError, ModelClosed, ServerDistrusted, WrongMode
from confide.hybrid.client.generation import Lengths
from confide.hybrid.client.padding import NO_PADDING, Padding
from confide.hybrid.client.refusals import RefusalList
from confide.hybrid.model import HybridModel
from confide.models.clear import load_clear
from confide.models.split import SplitSummary

from .conftest import Open
from .fake import FakeServer, FromFrame, add_one, serving
from .test_generation import NEW, OPTIONS, PROMPT, generate

FULL = Padding(16, None)
Shape = tuple[int, int, int]


def shapes(server: FakeServer) -> list[Shape]:
    """What a server sees of products besides their content; where one block of pads ended is no matter of the text."""
    seen: list[Shape] = []
    last = None
    for frame in server.frames:
        if seen and last is not None and seen[-1][0] == frame.group and last != frame.block:
            group, count, size = seen.pop()
            seen.append((group, count + frame.count, size + len(frame.planes)))
        else:
            seen.append((frame.group, frame.count, len(frame.planes)))
        last = frame.block
    server.frames.clear()
    return seen


ENDS = {
    "its longest": {},
    "an end": {"eos_token_id": list(range(60)), "min_new_tokens": 3},
    "at once": {"eos_token_id": list(range(97))},
}


@pytest.mark.parametrize("more", [{}, {"do_sample": True}], ids=["greedy", "sampling"])
def test_a_server_sees_no_end(either: SplitSummary, open_shell: Open, more: dict[str, object]) -> None:
    with serving(either.server) as server:
        model = open_shell(either, server, padding=FULL)
        seen = []
        for ends in ENDS.values():
            generate(model, **(more | ends))
            seen.append(shapes(server))
            assert model.lengths is not None
            assert model.lengths.visible_answer == NEW
        assert seen[0] == seen[1] == seen[2]
        assert len(seen[0]) > NEW


def test_an_end_is_rounded_up(model: HybridModel, server: FakeServer) -> None:
    generate(model, max_new_tokens=30, eos_token_id=list(range(97)))
    assert model.lengths == Lengths(5, 16, 1, 16)


@pytest.mark.parametrize(
    ("name", "frame"),
    [*((name, 17) for name in OPTIONS), *((name, frame) for name in ("greedy", "several") for frame in (0, 3))],
)
def test_a_failing_run_looks_like_a_passing_one(
    parts: SplitSummary, server: FakeServer, open_shell: Open, name: str, frame: int
) -> None:
    passing = open_shell(parts, server, padding=FULL)
    generate(passing, **OPTIONS[name])
    expected = shapes(server)
    passing.close()
    model = open_shell(parts, server, padding=FULL)
    server.tamper = FromFrame(frame)
    with pytest.raises(IntegrityError, match="confide distrust"):
        generate(model, **OPTIONS[name])
    assert shapes(server) == expected
    greetings = server.greetings
    model.close()
    for attempt in (lambda: generate(model), lambda: model(PROMPT), model.product.require_server):
        with pytest.raises(IntegrityError, match="confide distrust"):  # and not that it is closed
            attempt()
    with pytest.raises(ServerDistrusted):
        open_shell(parts, server)
    assert not server.frames
    assert server.greetings == greetings
    (entry,) = RefusalList().entries()
    assert entry.server.startswith(server.url)
    RefusalList().clear()
    server.tamper = None
    generate(open_shell(parts, server))


def test_a_wrong_answer_to_padding_alone_changes_nothing_the_server_sees(
    parts: SplitSummary, server: FakeServer, open_shell: Open
) -> None:
    model = open_shell(parts, server)
    generate(model, max_new_tokens=40, eos_token_id=list(range(97)))
    expected = shapes(server)
    server.tamper = FromFrame(len(expected) - 2)
    with pytest.raises(IntegrityError):
        generate(model, max_new_tokens=40, eos_token_id=list(range(97)))
    assert shapes(server) == expected


def test_a_failing_run_goes_as_far_as_any_could(model: HybridModel, server: FakeServer) -> None:
    server.tamper = FromFrame(2)
    with pytest.raises(IntegrityError):
        generate(model, max_new_tokens=40, eos_token_id=list(range(97)))
    assert model.lengths is not None
    assert model.lengths.visible_answer == 48


def test_wrong_answers_never_reach_the_model(model: HybridModel, server: FakeServer) -> None:
    clean: list[Tensor] = []
    hook = model.model.get_submodule("transformer.h.0.mlp.c_fc").register_forward_hook(
        lambda _, __, output: clean.append(output)
    )
    server.tamper = lambda message, answer: add_one(message, answer)
    with pytest.raises(IntegrityError):
        generate(model)
    hook.remove()
    bias = model.model.get_submodule("transformer.h.0.mlp.c_fc").bias
    assert len(clean) > 10
    assert all(bool((output == bias).all()) for output in clean)


class _Collected(BaseStreamer):
    def __init__(self) -> None:
        self.given: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.given.append(value)

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_gets_the_text_and_no_padding(model: HybridModel) -> None:
    streamer = _Collected()
    result = generate(model, streamer=streamer, eos_token_id=list(range(97)), min_new_tokens=3)
    assert torch.cat([value.flatten() for value in streamer.given]).tolist() == result[0].tolist()
    assert streamer.ended == 1
    assert result.shape[1] < PROMPT.shape[1] + NEW


def test_a_streamer_gets_nothing_after_a_wrong_answer(model: HybridModel, server: FakeServer) -> None:
    streamer = _Collected()
    server.tamper = FromFrame(4 * 4)
    with pytest.raises(IntegrityError):
        generate(model, streamer=streamer)
    assert len(streamer.given) == 1 + 4
    assert streamer.ended == 1


def test_a_users_own_criterion_is_recorded(model: HybridModel, parts: SplitSummary) -> None:
    class After(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 9)

    clear = load_clear(parts.client, parts.server)
    result = generate(model, stopping_criteria=[After()])
    assert result.tolist() == generate(clear, stopping_criteria=[After()]).tolist()
    assert result.shape[1] == 9


def test_everything_that_generate_returns_ends_where_the_text_does(model: HybridModel, parts: SplitSummary) -> None:
    clear = load_clear(parts.client, parts.server)
    options = {"return_dict_in_generate": True, "output_scores": True, "eos_token_id": list(range(60))}
    arguments = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "min_new_tokens": 3} | options
    ours, theirs = model.generate(PROMPT, **arguments), clear.generate(PROMPT, **arguments)  # type: ignore[operator]
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert len(ours.scores) == len(theirs.scores)
    assert ours.past_key_values.get_seq_length() == theirs.past_key_values.get_seq_length()


def test_a_conversation_goes_on_with_its_cache(model: HybridModel, parts: SplitSummary) -> None:
    clear = load_clear(parts.client, parts.server)
    caches = DynamicCache(config=model.model.config), DynamicCache(config=clear.config)
    texts = [PROMPT, PROMPT]
    for _ in range(2):
        for place, (runner, cache) in enumerate(zip((model, clear), caches, strict=True)):
            ids = texts[place]
            texts[place] = generate(runner, ids, past_key_values=cache, eos_token_id=list(range(50)), min_new_tokens=2)
        texts = [torch.cat([text, torch.tensor([[7, 8]])], 1) for text in texts]
        assert texts[0].tolist() == texts[1].tolist()
        assert caches[0].get_seq_length() == caches[1].get_seq_length()


@pytest.mark.parametrize("padding", [NO_PADDING, FULL, Padding(16, 16)])
def test_a_text_may_fill_the_models_positions(
    parts: SplitSummary, server: FakeServer, open_shell: Open, padding: Padding
) -> None:
    clear = load_clear(parts.client, parts.server)
    prompt = torch.arange(1, 56)[None]
    model = open_shell(parts, server, padding=padding)
    assert generate(model, prompt, max_new_tokens=9).tolist() == generate(clear, prompt, max_new_tokens=9).tolist()


REFUSED: dict[str, dict[str, object]] = {
    "beams": {"num_beams": 2},
    "prompt look-up": {"prompt_lookup_num_tokens": 3},
    "a draft model": {"assistant_model": object()},
    "a loop of one's own": {"custom_generate": lambda *_, **__: None},
    "a static cache": {"cache_implementation": "static"},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_what_the_text_would_steer_is_refused_before_anything_is_sent(
    model: HybridModel, server: FakeServer, options: dict[str, object]
) -> None:
    for runner in (model, model.model):
        with pytest.raises(WrongMode, match=r"leave|num_beams=1"):
            generate(runner, **options)
    assert not server.frames
    generate(model)


def test_the_stock_model_generates_with_padding_too(model: HybridModel, server: FakeServer) -> None:
    private = generate(model, eos_token_id=list(range(97)))
    expected = shapes(server)
    assert generate(model.model, eos_token_id=list(range(97))).tolist() == private.tolist()
    assert shapes(server) == expected
    assert len(expected) > 16


# -- closed, threads -------------------------------------------------------------------------------------------


def test_nothing_is_sent_after_close(model: HybridModel, server: FakeServer) -> None:
    generate(model)
    model.close()
    before, greetings = len(server.raw), server.greetings
    for attempt in (lambda: generate(model), lambda: generate(model.model), lambda: model(PROMPT), model.close):
        if attempt == model.close:
            attempt()
        else:
            with pytest.raises(ModelClosed):
                attempt()
    assert (len(server.raw), server.greetings) == (before, greetings)


def test_close_ends_what_another_thread_generates(model: HybridModel, server: FakeServer) -> None:
    problems: list[BaseException] = []
    begun = threading.Event()
    server.before = lambda message: begun.set()

    def run() -> None:
        try:
            generate(model, max_new_tokens=50)
        except ModelClosed as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    model.close()
    thread.join(20)
    seen = len(server.raw)
    assert not thread.is_alive()
    assert len(problems) == 1
    assert len(server.raw) == seen


def test_threads_take_turns(model: HybridModel, parts: SplitSummary) -> None:
    clear = load_clear(parts.client, parts.server)
    prompts = [torch.tensor([[number, 3, 2 * number]]) for number in range(1, 5)]
    results: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda n=number, ids=ids: results.update({n: generate(model, ids)[0].tolist()}))
        for number, ids in enumerate(prompts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {number: generate(clear, ids)[0].tolist() for number, ids in enumerate(prompts)}
