"""Predicted bytes are those of a real run; predicted times behave as times do."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from confide import HybridModel
from confide.evaluate.cost_model import (
    Cut,
    GroupRate,
    GroupShape,
    Network,
    Rates,
    SkeletonTimes,
    disclosure,
    pack_cost,
    prompt_cost,
    token_cost,
)
from confide.evaluate.plan import Choice, protection_choices
from confide.hybrid.client.padding import Padding
from confide.hybrid.client.prepare import Progress
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger.licences import ANONYMOUS
from confide.hybrid.server.ledger.usage import Account, Answerable, solving_tokens
from confide.hybrid.server.service import LayerService
from confide.models.roles import find_layers
from confide.models.source import open_model
from confide.models.split import SplitSummary, split
from confide.packages.server_package import ServerPackage
from confide.rlwe.scheme import RLWE
from hybrid.small import running
from owners import OWNER

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
PROMPT, ANSWER = 20, 3
RATES = Rates(
    GroupRate(0.1, 1e-4, 1e-4, 1e-7),
    GroupRate(3e-4, 0, 0, 1e-10),
    GroupRate(0, 1e-8, 1e-8, 2e-11),
    5e-11,
    0.004,
    2e-10,
    3e-11,
)
SKELETON = SkeletonTimes(token=0.002, prompt=0.02, tokens=PROMPT)


@dataclass(frozen=True)
class Run:
    """What a choice says, and what preparing and generating then moved."""

    choice: Choice
    summary: SplitSummary
    pack_bytes: int
    disk_bytes: int
    prompt_bytes: int
    answer_bytes: int
    answer_round_trips: int


@pytest.fixture(scope="module", params=["one layer", "mlp", "all,lm_head"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A tiny Llama, split as a choice says, served and used."""
    torch.manual_seed(2)
    folder: Path = tmp_path_factory.mktemp("run")
    LlamaForCausalLM(CONFIG).save_pretrained(folder / "model")
    source = open_model(str(folder / "model"))
    choice = next(one for one in protection_choices(find_layers(source.config)) if one.name == request.param)
    summary = split(source, folder / "split", owner=OWNER, protect=choice.protect)
    package = ServerPackage.open(summary.server)
    service = LayerService(package.signed, package.load(), Ledger(folder / "state"), RLWE, insecure_no_licences=True)
    options = {"owner": OWNER.public.raw, "padding": Padding(answer=1)}
    with running(service) as url, HybridModel.from_shell(summary.client, server=url, **options) as model:
        moved: list[Progress] = []
        model.prepare(1, moved.append)
        files = [path for path in (summary.client / "packs").glob("pack-*/*") if path.name in ("masks.bin", "keys")]
        ids = torch.full((1, PROMPT), 5)
        prompt = _generate(model, ids, 1)
        whole = _generate(model, ids, ANSWER)
        yield Run(
            choice,
            summary,
            pack_bytes=moved[-1].bytes_done,
            disk_bytes=sum(path.stat().st_size for path in files),
            prompt_bytes=prompt[0],
            answer_bytes=whole[0] - prompt[0],
            answer_round_trips=whole[1] - prompt[1],
        )


def _generate(model: HybridModel, ids: torch.Tensor, tokens: int) -> tuple[int, int]:
    """Bytes and round trips of a prompt and so many tokens."""
    before = replace(model.traffic)
    model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    now = model.traffic
    return now.bytes_up + now.bytes_down - before.bytes_up - before.bytes_down, now.round_trips - before.round_trips


def test_parameters_are_those_that_a_split_counts(run: Run) -> None:
    assert run.choice.cut.protected_weights == run.summary.protected_parameters


def test_a_pack_moves_and_stores_what_was_predicted(run: Run) -> None:
    assert pack_cost(run.choice.cut, RATES, Network()).bytes == run.pack_bytes
    assert run.choice.cut.pack.bytes_on_disk == run.disk_bytes


def test_a_prompt_and_a_token_move_what_was_predicted(run: Run) -> None:
    cut = run.choice.cut
    assert prompt_cost(cut, RATES, SKELETON, Network()).bytes == run.prompt_bytes
    assert token_cost(cut, RATES, SKELETON, Network()).bytes * (ANSWER - 1) == run.answer_bytes
    assert len(cut.protected) * (ANSWER - 1) == run.answer_round_trips


WIDE = Cut((GroupShape(3072, 768), GroupShape(768, 3072)), (GroupShape(50257, 768, head=True),))

milliseconds = st.floats(0, 1)
bandwidths = st.floats(1e3, 1e10)


@given(milliseconds, milliseconds, bandwidths, bandwidths)
def test_a_worse_network_never_makes_anything_faster(near: float, further: float, narrow: float, wider: float) -> None:
    good = Network(near, narrow + wider)
    bad = Network(near + further, narrow)
    for cost in (
        lambda network: pack_cost(WIDE, RATES, network),
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
    assert free.bytes == 2 * 4 * (3072 + 768)
    assert narrow.seconds - free.seconds == pytest.approx(free.bytes / 1e6)


def test_weights_that_no_cache_holds_take_longer() -> None:
    small, large = (Cut((GroupShape(1024, columns),), ()) for columns in (8192, 8193))
    extra = (
        token_cost(large, RATES, SKELETON, Network()).seconds - token_cost(small, RATES, SKELETON, Network()).seconds
    )
    assert extra == pytest.approx(RATES.uncached * 1024 * 8193, rel=0.01)


def test_a_prompt_takes_a_round_trip_for_what_a_server_may_owe() -> None:
    # 2 MiB hold the answers to 170 tokens of 3072 outputs and to 682 of 768.
    waits = [
        prompt_cost(WIDE, RATES, replace(SKELETON, tokens=tokens), network).seconds
        for tokens in (672, 688)
        for network in (Network(round_trip=1.0), Network())
    ]
    assert round(waits[0] - waits[1]) == 4 + 1
    assert round(waits[2] - waits[3]) == 5 + 2


def test_disclosure_is_metered_as_the_ledger_does() -> None:
    said = disclosure(WIDE.protected, 100)
    narrowest = Answerable(4096, solving_tokens(768))
    account = Account(ANONYMOUS, now=lambda: 0.0)
    account.charge(100, 0, 100)
    assert said.share == account.share_disclosed(0, narrowest)
    assert said.bits == 102 * 32 * (3072 + 768)
    account.charge(said.licence_tokens - 100, 0, said.licence_tokens - 100)
    assert account.share_disclosed(0, narrowest) <= 1 < account.share_disclosed(0, narrowest, 1)
