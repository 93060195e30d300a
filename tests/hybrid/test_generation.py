"""Generations whose server gives one wrong answer: what it sees of that, and what the user does."""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from confide.errors import ConnectionLost, IntegrityError, ServerDistrusted
from confide.evaluate.uniformity import uniformity_p_value
from confide.hybrid.client.generation import Lengths
from confide.hybrid.client.padding import NO_PADDING, Padding
from confide.hybrid.client.remote import RemoteModel
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.service import LayerService
from confide.models.source import open_model
from confide.models.split import SplitSummary, split
from confide.packages.server_package import ServerPackage
from confide.packages.shell import load_shell
from confide.rlwe.parameters import PLAINTEXT_BITS
from owners import OWNER

from .local import FromFrame, LocalClient, Tamper
from .twin import TWIN

Shape = tuple[int, int, int, int]
"""Group, first index since the run began, tokens, bytes."""

GROUPS = 4
NEW = 12
FULL = Padding(prompt=16, answer=None)
PROMPT = torch.tensor([[5, 17, 60, 2, 33]])
OTHER = torch.tensor([[9, 1, 44, 71, 12, 6, 8]])


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SplitSummary:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "gpt2":
        config = GPT2Config(vocab_size=97, n_positions=24, n_embd=16, n_layer=1, n_head=2, eos_token_id=0)
        GPT2LMHeadModel(config).save_pretrained(folder / "model")
    else:
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=97,
                hidden_size=16,
                intermediate_size=20,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
                eos_token_id=0,
            )
        ).save_pretrained(folder / "model")
    return split(open_model(str(folder / "model")), folder / "split", owner=OWNER)


@dataclass
class Lab:
    """Opens models on services of their own."""

    parts: SplitSummary
    folder: Path
    opened: list[RemoteModel] = field(default_factory=list)

    def model(self, tamper: Tamper | None = None, padding: Padding = FULL, name: str = "a") -> RemoteModel:
        package = ServerPackage.open(self.parts.server)
        ledger = Ledger(self.folder / f"state-{name}")
        service = LayerService(package.signed, package.load(), ledger, TWIN, insecure_no_licences=True)
        client = LocalClient(self.parts.client, service, tamper, packs=self.folder / f"packs-{name}")
        product = client.product(padding=padding)
        self.opened.append(RemoteModel(client, load_shell(client.folder, product, "cpu", {OWNER.public}), product))
        return self.opened[-1]


@pytest.fixture
def lab(parts: SplitSummary, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(parts, tmp_path)
    yield made
    for model in made.opened:
        model.close()


def client_of(model: RemoteModel) -> LocalClient:
    assert isinstance(model.client, LocalClient)
    return model.client


def generate(model: RemoteModel, ids: Tensor = PROMPT, **options: object) -> Tensor:
    arguments = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    result = model.generate(ids, **(arguments | options))
    assert isinstance(result, Tensor)
    return result


def shapes(model: RemoteModel) -> list[Shape]:
    """What a server sees of frames besides their uniform content."""
    frames = client_of(model).frames
    return [(frame.group, frame.first - frames[0].first, frame.count, len(frame.masked)) for frame in frames]


OPTIONS: dict[str, dict[str, object]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "beams": {"num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
    "an end": {"eos_token_id": list(range(97)), "min_new_tokens": 4},
}


@pytest.fixture(scope="module")
def passing(parts: SplitSummary, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Shape]]:
    """What a server sees of runs without a failure."""
    lab = Lab(parts, tmp_path_factory.mktemp("passing"))
    model = lab.model()
    seen = {}
    for name, options in OPTIONS.items():
        generate(model, **options)
        seen[name] = shapes(model)
        client_of(model).frames.clear()
    model.close()
    return seen


FRAMES = [("greedy", frame) for frame in (0, GROUPS - 1, GROUPS, NEW * GROUPS - 1)]


@pytest.mark.parametrize(("options", "frame"), [*FRAMES, *((name, 3 * GROUPS + 2) for name in OPTIONS)])
def test_a_failing_run_looks_like_a_passing_one(
    lab: Lab, passing: dict[str, list[Shape]], options: str, frame: int
) -> None:
    model = lab.model(FromFrame(frame))
    with pytest.raises(IntegrityError):
        generate(model, **OPTIONS[options])
    assert shapes(model) == passing[options]
    prompts_in_two_parts = options == "beams"  # of 16 tokens for each of three beams
    assert len(passing[options]) == (NEW + prompts_in_two_parts) * GROUPS


@pytest.mark.parametrize("frame", [2, 3 * GROUPS + 5])
def test_nothing_after_a_failure_depends_on_the_prompt(lab: Lab, frame: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name, prompt in (("a", PROMPT), ("b", OTHER)):
        monkeypatch.setattr(os, "urandom", random.Random(7).randbytes)
        model = lab.model(FromFrame(frame), name=name)
        with pytest.raises(IntegrityError):
            generate(model, prompt)
        seen.append([bytes(sent.masked) for sent in client_of(model).frames])
    assert len(seen[0]) == NEW * GROUPS
    assert seen[0][frame] != seen[1][frame]
    assert seen[0][frame + 1 :] == seen[1][frame + 1 :]


def test_what_follows_a_failure_is_uniform(lab: Lab) -> None:
    model = lab.model(FromFrame(1), Padding(answer=256))
    with pytest.raises(IntegrityError):
        generate(model)
    seen = [np.frombuffer(frame.masked, np.int32) for frame in client_of(model).frames[2:]]
    assert sum(map(len, seen)) > 15_000
    assert uniformity_p_value(seen, PLAINTEXT_BITS) > 1e-6


class Shown(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ends = 0

    def put(self, value: Tensor) -> None:
        self.tokens += value.reshape(-1).tolist()

    def end(self) -> None:
        self.ends += 1


def test_the_streamer_shows_what_was_verified_and_nothing_else(lab: Lab) -> None:
    whole, broken = Shown(), Shown()
    generate(lab.model(name="a"), streamer=whole)
    with pytest.raises(IntegrityError):
        generate(lab.model(FromFrame(4 * GROUPS), name="b"), streamer=broken)
    # The prompt, and one token for each of the four forward passes that were right.
    assert broken.tokens == whole.tokens[: PROMPT.shape[1] + 4]
    assert (whole.ends, broken.ends) == (1, 1)


def test_a_failure_burns_the_packs_and_refuses_the_server(lab: Lab) -> None:
    model = lab.model(FromFrame(3 * GROUPS + 1))
    with pytest.raises(IntegrityError, match="token"):
        generate(model)
    entry = client_of(model)._refused.entries()[0]
    # One mask is one token: 16 of the padded prompt's, of which 5 are real, then a token for each step.
    assert entry.token == PROMPT.shape[1] + 2
    assert entry.layers
    assert list((lab.folder / "packs-a").glob("pack-*")) == []
    with pytest.raises(IntegrityError):
        generate(model)
    model.close()
    with pytest.raises(ServerDistrusted):
        LocalClient(lab.parts.client, client_of(model)._service, packs=lab.folder / "packs-a")


def test_a_plain_forward_pass_goes_to_its_end_and_then_raises(lab: Lab) -> None:
    model = lab.model(FromFrame(2))
    with pytest.raises(IntegrityError), torch.inference_mode():
        model(PROMPT)
    assert [count for _, _, count, _ in shapes(model)] == [16] * GROUPS


def test_the_stock_model_raises_too(lab: Lab) -> None:
    model = lab.model(FromFrame(2 * GROUPS))
    with pytest.raises(IntegrityError):
        model.model.generate(PROMPT, max_new_tokens=NEW, pad_token_id=0, do_sample=False)  # type: ignore[operator]
    assert len(shapes(model)) == 3 * GROUPS


def test_another_error_is_itself(lab: Lab) -> None:
    def break_off(message: object, reply: object) -> object:
        raise ConnectionLost("Gone.")

    model = lab.model(break_off)  # type: ignore[arg-type]
    with pytest.raises(ConnectionLost):
        generate(model)
    assert client_of(model)._refused.entries() == []


def test_an_error_after_a_failure_hides_nothing_from_the_user(lab: Lab) -> None:
    class Broken(FromFrame):
        def __call__(self, message, reply):  # type: ignore[no-untyped-def]
            if self._left < -GROUPS:
                raise ConnectionLost("Gone.")
            return super().__call__(message, reply)

    model = lab.model(Broken(1))
    with pytest.raises(IntegrityError):
        generate(model)
    assert len(client_of(model)._refused.entries()) == 1


@pytest.mark.parametrize(
    ("padding", "prompt", "answer"),
    [(FULL, 16, 12), (Padding(), 16, 16), (Padding(4, 8), 8, 16), (NO_PADDING, 5, 12), (Padding(3, 7), 6, 14)],
)
def test_lengths_are_padded_and_reported(lab: Lab, padding: Padding, prompt: int, answer: int) -> None:
    model = lab.model(padding=padding)
    assert model.lengths is None
    result = generate(model, min_new_tokens=NEW)
    assert result.shape[1] == PROMPT.shape[1] + NEW
    assert model.lengths == Lengths(5, prompt, NEW, answer)
    counts = [count for _, _, count, _ in shapes(model)]
    assert counts == [prompt] * GROUPS + [1] * (GROUPS * (answer - 1))


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 9), ({"max_new_tokens": None, "max_length": 14}, 9)],
)
def test_the_longest_answer_is_found_as_transformers_finds_it(lab: Lab, options: dict[str, object], most: int) -> None:
    model = lab.model()
    generate(model, **({"max_new_tokens": 9, "eos_token_id": list(range(97))} | options))
    assert model.lengths is not None
    assert (model.lengths.answer, model.lengths.visible_answer) == (1, most)


def test_the_longest_answer_of_the_models_own_settings(lab: Lab) -> None:
    model = lab.model()
    everything = list(range(97))
    model.generate(PROMPT, eos_token_id=everything, pad_token_id=0)
    assert model.lengths is not None
    assert model.lengths.visible_answer == (19 if lab.parts.model_type == "gpt2" else 20)
    model.model.generation_config.max_new_tokens = 3  # type: ignore[union-attr]
    model.generate(input_ids=PROMPT, eos_token_id=everything, pad_token_id=0)
    assert model.lengths.visible_answer == 3


def test_a_processor_that_chokes_on_a_failed_run_does_not_show(lab: Lab) -> None:
    model = lab.model(FromFrame(2 * GROUPS))
    calls = []

    def fussy(ids: Tensor, scores: Tensor) -> Tensor:
        calls.append(ids)
        if len(calls) > 2:
            raise ValueError("What is this?")
        return scores

    with pytest.raises(IntegrityError):
        generate(model, logits_processor=[fussy])
    assert len(shapes(model)) == NEW * GROUPS
    with pytest.raises(ValueError, match="What is this"):
        generate(lab.model(name="b"), logits_processor=[fussy])


def test_positional_arguments_are_those_of_transformers(lab: Lab) -> None:
    from transformers import GenerationConfig

    model = lab.model()
    model.generate(PROMPT, GenerationConfig(max_new_tokens=7, eos_token_id=list(range(97)), pad_token_id=0), None, [])
    assert model.lengths == Lengths(5, 16, 1, 7)


def test_padding_leaves_the_users_cache_alone(lab: Lab) -> None:
    model = lab.model(padding=Padding(answer=32))
    cache = DynamicCache(config=model.model.config)
    model.generate(PROMPT, past_key_values=cache, max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
    assert cache.get_seq_length() == PROMPT.shape[1] + 3
    result = model.generate(PROMPT, return_dict_in_generate=True, max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
    assert result.past_key_values.get_seq_length() == PROMPT.shape[1] + 3


def test_a_cache_of_fixed_size_is_padded_with_another(lab: Lab) -> None:
    model = lab.model(padding=Padding(answer=32))
    generate(model, cache_implementation="static")
    assert len(shapes(model)) == 32 * GROUPS
