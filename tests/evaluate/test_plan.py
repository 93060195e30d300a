"""Which choices a plan compares, for models of which there is a configuration and nothing else, and where it warns."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import FalconConfig, GPT2Config, LlamaConfig, PreTrainedConfig

from confide.evaluate import plan
from confide.evaluate.cost_model import GroupRate, Network, Rates
from confide.evaluate.plan import Outlook, make_plan, protection_choices, warnings
from confide.evaluate.skeleton import time_skeleton
from confide.models.roles import find_layers
from confide.models.source import Source, open_model

from .rates import CLIENT, SERVER

RATES = Rates(
    ahead=GroupRate(1e-5, 6e-8, 1e-8, 0),
    token=GroupRate(3.4e-4, 0, 0, 8e-11),
    prompt_token=GroupRate(0, 1e-8, 1e-8, 2.5e-11),
    uncached=5e-11,
    kept_token=2e-10,
    kept_prompt_token=3e-11,
    server=SERVER,
    client=CLIENT,
)
"""Those of a machine with two cores."""
LLAMA_7B = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)


def of_config(config: PreTrainedConfig, folder: Path) -> Source:
    """A model that is nothing but its config.json."""
    config.save_pretrained(folder)
    return open_model(str(folder))


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return of_config(LLAMA_7B, tmp_path_factory.mktemp("llama-7b"))


@pytest.fixture(scope="module")
def near(seven_billion: Source) -> list[Outlook]:
    """With a server on this machine."""
    return planned(seven_billion)


def planned(source: Source, network: Network | None = None, tokens: int = 4096, prompt: int = 16) -> list[Outlook]:
    return make_plan(source, RATES, network or Network(), tokens=tokens, prompt=prompt)


def codes(found: list[plan.Warned]) -> dict[str, tuple[str, ...]]:
    return {warned.code: warned.choices for warned in found}


def test_seven_billion_parameters_are_counted_without_weights(near: list[Outlook]) -> None:
    found = {one.choice.name: one for one in near}
    assert list(found) == ["one layer", "attention", "mlp", "all", "all,lm_head"]
    assert found["all"].choice.cut.protected_weights == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert found["all"].share == pytest.approx(6_476_005_376 / 6_738_415_616)
    assert [one.round_trips for one in found.values()] == [1, 64, 64, 128, 129]
    outputs = 32 * (3 * 4096 + 4096 + 2 * 11008 + 4096)
    assert found["all"].choice.cut.hint_bytes == 5 * 2048 * outputs
    assert found["all"].choice.cut.server_bytes == found["all"].choice.cut.protected_weights + 2048 * outputs
    # pads, values and p0 of each token
    inputs = 32 * (4096 + 4096 + 4096 + 11008)
    assert found["all"].choice.cut.pool_bytes(10) == 10 * (8 * inputs + 4 * outputs + 6 * 2048)


def test_seven_billion_parameters_get_every_warning(seven_billion: Source) -> None:
    slow = Network(round_trip=0.05, bandwidth=100e6 / 8)
    found = warnings(planned(seven_billion, slow), slow, 4096)
    by_code = codes(found)
    assert by_code["hint-size"] == ("all", "all,lm_head")
    assert by_code["hint-fetching"] == ("mlp", "all", "all,lm_head")
    assert {"all", "all,lm_head"} <= set(by_code["slow-token"])
    assert by_code["disclosure"] == ("one layer", "attention", "mlp", "all", "all,lm_head")
    for warned in found:
        assert warned.message.count(". ") == 0
        assert warned.message.endswith(".")
    assert "takes 14 GB" in found[0].message
    assert "511 of 4,096 tokens" in found[-1].message


def test_work_ahead_that_takes_longer_than_tokens_is_said(seven_billion: Source, near: list[Outlook]) -> None:
    rates = replace(RATES, ahead=GroupRate(0, 1e-5, 0, 0))
    [said] = [
        one
        for one in warnings(make_plan(seven_billion, rates, Network(), tokens=1, prompt=1), Network(), 1)
        if one.code == "work-ahead"
    ]
    assert "all" in said.choices
    assert "more cores" in said.message
    assert "work-ahead" not in codes(warnings(near, Network(), 1))


def test_a_slow_token_is_blamed_on_what_makes_it_slow(seven_billion: Source, near: list[Outlook]) -> None:
    far = Network(round_trip=1.0)
    [waits] = [one for one in warnings(planned(seven_billion, far), far, 1) if one.code == "slow-token"]
    slow_machine = [replace(one, token=replace(one.token, seconds=60.0)) for one in near]
    [works] = [one for one in warnings(slow_machine, Network(), 1) if one.code == "slow-token"]
    assert "nearer" in waits.message
    assert "faster machines" in works.message


def test_the_demo_model_gets_no_warning_within_its_licence() -> None:
    assert warnings(planned(open_model("demo"), tokens=30), Network(), 30) == []


def test_the_demo_model_warns_of_nothing_but_disclosure_beyond_it() -> None:
    found = warnings(planned(open_model("demo")), Network(), 4096)
    assert codes(found) == {"disclosure": ("one layer", "attention", "mlp", "all")}
    assert "after 30 to 31 of 4,096 tokens" in found[0].message


def test_a_tied_head_is_no_choice(tmp_path: Path) -> None:
    source = of_config(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2), tmp_path)
    assert [one.name for one in protection_choices(find_layers(source.config))] == [
        "one layer",
        "attention",
        "mlp",
        "all",
    ]


def test_attention_and_mlp_on_one_input_share_a_round_trip(tmp_path: Path) -> None:
    config = FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, parallel_attn=True)
    choices = {one.name: one for one in protection_choices(find_layers(of_config(config, tmp_path).config))}
    assert len(choices["all"].cut.protected) == 2 * 3
    assert len(choices["attention"].cut.protected) == 2 * 2
    # What is protected and what is kept are all linear layers together, however they are grouped.
    total = {one.cut.protected_weights + sum(group.weights for group in one.cut.kept) for one in choices.values()}
    assert len(total) == 1


def test_a_skeleton_of_many_blocks_takes_longer() -> None:
    few, many = (
        time_skeleton(GPT2Config(vocab_size=64, n_embd=64, n_layer=layers, n_head=2), 16) for layers in (1, 16)
    )
    assert 0 < few.token < many.token
    assert 0 < few.prompt < many.prompt
