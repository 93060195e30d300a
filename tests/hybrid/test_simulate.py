"""The protocol's arithmetic in one process: the integers of the clear model, and wrong ones where noise is too wide."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from confide.hybrid import simulate
from confide.hybrid.simulate import SimulatedProduct, load_simulated
from confide.models.clear import ClearProduct, load_clear
from confide.models.source import open_model
from confide.models.split import split
from confide.packages.server_package import StoredGroup, row_norms
from confide.rlwe.parameters import Parameters, Profile
from families import FAMILIES, randomise
from owners import OWNER


def group(rows: int, columns: int, profile: Profile, *, masked: bool) -> tuple[StoredGroup, Parameters]:
    generator = torch.Generator().manual_seed(rows)
    weights = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)
    u = torch.randint(-32, 32, (rows, 2048), dtype=torch.int8, generator=generator) if masked else None
    return StoredGroup(weights, u), Parameters.derive(profile, row_norms(weights), rows=rows, columns=columns)


@pytest.mark.parametrize(
    ("profile", "masked"),
    [(Profile.PRIVATE_WEIGHTS, True), (Profile.PRIVATE_WEIGHTS, False), (Profile.OPEN_WEIGHTS, False)],
)
@pytest.mark.parametrize("columns", [1, 64, 3000])
@pytest.mark.parametrize("tokens", [1, 5])
def test_simulated_products_are_exact(profile: Profile, masked: bool, columns: int, tokens: int) -> None:
    stored, parameters = group(24, columns, profile, masked=masked)
    product, clear = SimulatedProduct([stored], [parameters]), ClearProduct([stored.weights])
    bound = parameters.max_activation
    for _ in range(10):
        x = torch.randint(-bound, bound + 1, (tokens, columns), dtype=torch.int32)
        assert torch.equal(product(0, x), clear(0, x))
    for extreme in (bound, -bound):
        x = torch.full((tokens, columns), extreme, dtype=torch.int32) * stored.weights[0].sign().int()
        assert torch.equal(product(0, x), clear(0, x))


def test_noise_above_the_budget_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation adds the noise it claims to add: with too much of it, results are wrong."""
    stored, parameters = group(24, 64, Profile.PRIVATE_WEIGHTS, masked=True)
    x = torch.ones(8, 64, dtype=torch.int32)
    monkeypatch.setattr(simulate, "NOISE_STDS", 0.5)
    assert not torch.equal(SimulatedProduct([stored], [parameters])(0, x), ClearProduct([stored.weights])(0, x))


@pytest.mark.parametrize("profile", list(Profile))
def test_both_folders_of_a_split_give_the_clear_models_logits(profile: Profile, tmp_path: Path) -> None:
    randomise(LlamaForCausalLM(FAMILIES["llama"])).save_pretrained(tmp_path / "model")
    parts = split(open_model(str(tmp_path / "model")), tmp_path / "out", owner=OWNER, hint=False, profile=profile)
    ids = torch.arange(2, 14)[None]
    with torch.inference_mode():
        clear, simulated = (load(parts.client, parts.server)(ids).logits for load in (load_clear, load_simulated))
    assert torch.equal(clear, simulated)
