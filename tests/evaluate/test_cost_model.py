"""Predicted bytes are those of real packages and messages; predicted times behave as times do."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from confide.evaluate.cost_model import (
    Cut,
    GroupRate,
    GroupShape,
    Network,
    Rates,
    SkeletonTimes,
    ahead_cost,
    disclosure,
    prompt_cost,
    token_cost,
)
from confide.evaluate.plan import Choice, protection_choices
from confide.hybrid.client.pads.pool import BLOCK_TOKENS
from confide.ledger.licences import DEFAULT_DISCLOSURE
from confide.ledger.usage import licensed_tokens, share_disclosed
from confide.models.roles import find_layers
from confide.models.source import open_model
from confide.models.split import SplitSummary, split
from confide.packages.manifest import Group, Layer
from confide.packages.server_package import ServerPackage
from confide.rlwe.pads import mask
from owners import OWNER

from .rates import CLIENT, SERVER

CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
    eos_token_id=0,
    bos_token_id=1,
)
PROMPT = 20
RATES = Rates(
    ahead=GroupRate(1e-5, 6e-8, 1e-8, 0),
    token=GroupRate(3e-4, 0, 0, 1e-10),
    prompt_token=GroupRate(0, 1e-8, 1e-8, 2e-11),
    uncached=5e-11,
    kept_token=2e-10,
    kept_prompt_token=3e-11,
    server=SERVER,
    client=CLIENT,
)
SKELETON = SkeletonTimes(token=0.002, prompt=0.02, tokens=PROMPT)


@dataclass(frozen=True)
class Halves:
    """What a choice says, and what splitting so made."""

    choice: Choice
    summary: SplitSummary


@pytest.fixture(scope="module", params=["one layer", "mlp", "all,lm_head"])
def halves(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Halves:
    """A tiny Llama, split as a choice says."""
    torch.manual_seed(2)
    folder: Path = tmp_path_factory.mktemp("run")
    LlamaForCausalLM(CONFIG).save_pretrained(folder / "model")
    source = open_model(str(folder / "model"))
    choice = next(one for one in protection_choices(find_layers(source.config)) if one.name == request.param)
    return Halves(choice, split(source, folder / "split", owner=OWNER, protect=choice.protect))


def test_parameters_and_hint_are_those_that_a_split_makes(halves: Halves) -> None:
    cut = halves.choice.cut
    assert cut.protected_weights == halves.summary.protected_parameters
    assert cut.hint_bytes == halves.summary.hint_bytes
    loaded = ServerPackage.open(halves.summary.server).load()
    assert cut.server_bytes == sum(group.weights.nbytes + group.u.nbytes for group in loaded if group.u is not None)


def test_a_token_moves_the_digits_and_answers_of_each_group(halves: Halves) -> None:
    cut = halves.choice.cut
    package = ServerPackage.open(halves.summary.server)
    size = 0
    for group, stored in zip(package.manifest.groups, package.load(), strict=True):
        parameters = group.parameters(package.manifest.profile)
        x = np.ones((3, group.columns), np.int32)
        planes = mask(x, np.zeros((3, group.columns), np.int64), parameters)
        size += planes.nbytes + 4 * 3 * len(stored.weights)
    assert cut.online_bytes(3) == size
    assert token_cost(cut, RATES, SKELETON, Network()).bytes * 3 == size


WIDE = Cut((GroupShape(3072, 768), GroupShape(768, 3072)), (GroupShape(50257, 768, head=True),))

milliseconds = st.floats(0, 1)
bandwidths = st.floats(1e3, 1e10)


@given(milliseconds, milliseconds, bandwidths, bandwidths)
def test_a_worse_network_never_makes_anything_faster(near: float, further: float, narrow: float, wider: float) -> None:
    good = Network(near, narrow + wider)
    bad = Network(near + further, narrow)
    for cost in (
        lambda network: ahead_cost(WIDE, RATES, network),
        lambda network: token_cost(WIDE, RATES, SKELETON, network),
        lambda network: prompt_cost(WIDE, RATES, SKELETON, network),
    ):
        assert cost(bad).seconds >= cost(good).seconds >= cost(Network()).seconds
        assert cost(bad).bytes == cost(good).bytes


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_longer_prompts_cost_more(short: int, more: int) -> None:
    network = Network(0.01, 1e6)
    few, many = (
        prompt_cost(WIDE, RATES, replace(SKELETON, tokens=tokens), network) for tokens in (short, short + more)
    )
    assert few.seconds <= many.seconds
    assert few.bytes <= many.bytes


def test_a_round_trip_and_a_byte_cost_what_the_network_says() -> None:
    free = token_cost(WIDE, RATES, SKELETON, Network())
    far = token_cost(WIDE, RATES, SKELETON, Network(round_trip=0.05))
    narrow = token_cost(WIDE, RATES, SKELETON, Network(bandwidth=1e6))
    assert far.seconds - free.seconds == pytest.approx(2 * 0.05)
    assert free.bytes == (6 + 4) * (3072 + 768)
    assert narrow.seconds - free.seconds == pytest.approx(free.bytes / 1e6)


def test_weights_that_no_cache_holds_take_longer() -> None:
    small, large = (Cut((GroupShape(1024, columns),), ()) for columns in (8192, 8193))
    extra = (
        token_cost(large, RATES, SKELETON, Network()).seconds - token_cost(small, RATES, SKELETON, Network()).seconds
    )
    assert extra == pytest.approx(RATES.uncached * 1024 * 8193, rel=0.01)


def test_a_prompt_within_the_first_block_waits_for_no_work_ahead() -> None:
    lengths = (BLOCK_TOKENS, BLOCK_TOKENS + 16)
    short, longer = (prompt_cost(WIDE, RATES, replace(SKELETON, tokens=tokens), Network()) for tokens in lengths)
    linear = BLOCK_TOKENS * sum(RATES.prompt_token.seconds(group) for group in WIDE.protected)
    head = WIDE.kept[0].weights * RATES.kept_token
    assert short.seconds == pytest.approx(SKELETON.prompt + linear + head)
    extra = 16 * ahead_cost(WIDE, RATES, Network()).seconds
    assert longer.seconds - short.seconds == pytest.approx(extra + linear * 16 / BLOCK_TOKENS)


def test_a_prompt_takes_one_round_trip_a_group_and_brings_its_p0() -> None:
    near, far = (prompt_cost(WIDE, RATES, SKELETON, network) for network in (Network(), Network(round_trip=1.0)))
    assert far.seconds - near.seconds == pytest.approx(2)
    assert near.bytes == 32 * (6 * 2048 + (6 + 4) * (3072 + 768))  # 20 tokens look like 32


def test_disclosure_counts_answers_and_check_vectors() -> None:
    said = disclosure(WIDE.protected, 100)
    assert said.bits == 100 * 32 * (3072 + 768) + 61 * (3072 + 768)
    # The layer of 768 inputs and 3072 outputs is solved first.
    assert said.share == pytest.approx((100 * 32 + 61 / 4) / (8 * 768))
    assert disclosure(WIDE.protected, said.licence_tokens).share <= DEFAULT_DISCLOSURE
    assert disclosure(WIDE.protected, said.licence_tokens + 1).share > DEFAULT_DISCLOSURE


def test_disclosure_is_metered_as_the_ledger_does() -> None:
    """Which knows the weights' own entropy; here it is that of 8 bits."""
    for shape in WIDE.protected:
        group = Group("g", (Layer("g", shape.rows),), shape.columns, 8, 30, 8.0 * shape.columns)
        said = disclosure([shape], 100)
        assert said.share == pytest.approx(share_disclosed(group, 100))
        assert said.licence_tokens == licensed_tokens(DEFAULT_DISCLOSURE, group)
