"""Whole models, encrypted for real: private generation equals the clear quantized model's, token for token."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    TextIteratorStreamer,
)

from confide import HybridModel
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.service import LayerService
from confide.models.clear import ClearProduct, load_clear
from confide.models.source import open_model
from confide.models.split import split
from confide.packages.server_package import ServerPackage
from confide.packages.shell import load_shell
from confide.rlwe.parameters import Profile
from confide.rlwe.scheme import RLWE
from families import FAMILIES, save_random
from owners import OWNER

from .recording import Recording
from .small import running


@dataclass
class Pair:
    """A private model on a running server, and its clear reference."""

    private: HybridModel
    clear: PreTrainedModel


def opened(
    model: str, folder: Path, profile: Profile = Profile.PRIVATE_WEIGHTS, protect: str = "all"
) -> Iterator[Pair]:
    summary = split(open_model(model), folder / "split", owner=OWNER, profile=profile, protect=protect)
    package = ServerPackage.open(summary.server)
    ledger = Ledger(folder / "state")
    service = LayerService(package.signed, package.load(), ledger, RLWE, insecure_no_licences=True)
    with running(service) as url, HybridModel.from_shell(summary.client, server=url, owner=OWNER.public.raw) as private:
        private.prepare(1)
        yield Pair(private, load_clear(summary.client, summary.server))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=2, eos_token_id=0, bos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    yield from opened(str(folder / "model"), folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    yield from opened(str(folder / "model"), folder, Profile.OPEN_WEIGHTS)


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Attention and MLP share a layer group, and the head, which is not tied, is protected too."""
    folder = tmp_path_factory.mktemp("phi")
    yield from opened(str(save_random(FAMILIES["phi"], folder / "model")), folder, protect="all,lm_head")


@pytest.fixture(params=["gpt2", "llama", "phi"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def generated(pair: Pair, ids: Tensor, mask: Tensor | None = None, seed: int = 0, **options: object) -> list[Tensor]:
    """The private and the clear model's sequences."""
    results = []
    for model in (pair.private, pair.clear):
        torch.manual_seed(seed)
        arguments = {
            "max_new_tokens": 12,
            "pad_token_id": 0,
            "attention_mask": torch.ones_like(ids) if mask is None else mask,
        }
        results.append(model.generate(ids, **(arguments | options)))
    return results


PROMPT = torch.tensor([[5, 17, 60, 2, 33]])


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.9, "top_k": 20, "seed": 4},
        {"do_sample": True, "top_p": 0.8, "seed": 5},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "use_cache": False, "max_new_tokens": 3},
    ],
    ids=["greedy", "top-k", "top-p", "beams", "no cache"],
)
def test_tokens_equal_the_clear_models(pair: Pair, options: dict[str, object]) -> None:
    private, clear = generated(pair, PROMPT, **options)  # type: ignore[arg-type]
    assert torch.equal(private, clear)
    assert private.shape[1] > PROMPT.shape[1]


def test_a_batch_with_left_padding_equals_the_clear_models(pair: Pair) -> None:
    ids = torch.tensor([[0, 0, 5, 17], [3, 9, 27, 61]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    private, clear = generated(pair, ids, mask, do_sample=False)
    assert torch.equal(private, clear)


def test_logits_are_equal_bit_for_bit(pair: Pair) -> None:
    with torch.inference_mode():
        private, clear = pair.private(PROMPT).logits, pair.clear(PROMPT).logits
    assert torch.equal(private, clear)


def test_a_forward_pass_counts_its_traffic(pair: Pair) -> None:
    before = pair.private.traffic.bytes_up, pair.private.traffic.bytes_down, pair.private.traffic.round_trips
    with torch.inference_mode():
        pair.private(PROMPT)
    groups = pair.private.client.parameters
    tokens = pair.private.padding.prompt_tokens(PROMPT.shape[1])
    assert tokens == 16
    assert pair.private.traffic.round_trips - before[2] == len(groups)
    assert pair.private.traffic.bytes_up - before[0] == 4 * tokens * sum(group.columns for group in groups)
    assert pair.private.traffic.bytes_down - before[1] == 4 * tokens * sum(group.rows for group in groups)


def test_the_trained_llama_tells_its_story_privately(test_data: Path, tmp_path: Path) -> None:
    for pair in opened(str(test_data / "models" / "stories260k-llama"), tmp_path):
        private, clear = generated(pair, torch.tensor([[1]]), do_sample=False, max_new_tokens=40)
        assert torch.equal(private, clear)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield from opened("demo", tmp_path_factory.mktemp("demo"))


def test_the_demo_model_streams_and_equals_its_clear_self(demo: Pair) -> None:
    import threading

    tokenizer = demo.private.tokenizer
    assert tokenizer is not None
    inputs = tokenizer("The wolf said", return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer)
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    thread = threading.Thread(target=demo.private.generate, kwargs={**inputs, **options, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    clear = demo.clear.generate(**inputs, **options)  # type: ignore[arg-type]
    assert text == tokenizer.decode(clear[0])


def test_every_integer_of_the_demo_model_is_the_clear_one(demo: Pair) -> None:
    client = demo.private.client
    private = Recording(demo.private._remote._product)
    clear = Recording(ClearProduct(ServerPackage.open(client.folder.parent / "server").load()))
    ids = torch.tensor([[7, 8, 9]])
    with torch.inference_mode():
        load_shell(client.folder, private)(ids)
        load_shell(client.folder, clear)(ids)
    assert len(private.given) == 24
    for (group, product), (clear_group, clear_product) in zip(private.given, clear.given, strict=True):
        assert group == clear_group
        assert torch.equal(product, clear_product)
