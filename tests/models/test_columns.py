"""Rows that are too long for any plaintext modulus: their columns are split into groups, whose products are added."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tests.hybrid.server.world import serving
from tests.owners import OWNER
from transformers import GPT2Config, GPT2LMHeadModel

from confide import HybridModel
from confide.errors import InsecureParameters, InvalidPackage
from confide.hybrid.server.service import LayerService
from confide.ledger.ledger import Ledger
from confide.packages.manifest import MANIFEST_NAME, Manifest, joined, read_manifest
from confide.packages.server_package import ServerPackage, row_norms
from confide.rlwe.parameters import Parameters, Profile

INNER = 10_240
C_PROJ = "transformer.h.0.mlp.c_proj"
PROMPT = torch.tensor([[3, 1, 4]])


def model() -> GPT2LMHeadModel:
    """Its second MLP matrix has rows of 127 and -127, 10,240 of them."""
    torch.manual_seed(5)
    sizes: dict[str, Any] = {"vocab_size": 40, "n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 1}
    made = GPT2LMHeadModel(GPT2Config(**sizes, n_inner=INNER, bos_token_id=None, eos_token_id=None)).eval()
    matrix = made.transformer.h[0].mlp.c_proj.weight
    matrix.data = torch.where(torch.rand_like(matrix) < 0.5, 0.01, -0.01)
    return made


def test_such_rows_fit_into_no_group() -> None:
    weights = torch.full((8, INNER), 127, dtype=torch.int8)
    with pytest.raises(InsecureParameters, match="split the columns"):
        Parameters.derive(Profile.PRIVATE_WEIGHTS, row_norms(weights), rows=8, columns=INNER)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    hybrid = HybridModel(model(), protect="mlp", progress=False)
    expected = hybrid.generate(PROMPT, max_new_tokens=8, do_sample=False, pad_token_id=0)
    hybrid.mode = "simulate"
    assert torch.equal(hybrid.generate(PROMPT, max_new_tokens=8, do_sample=False, pad_token_id=0), expected)
    return hybrid.split(tmp_path_factory.mktemp("columns") / "out", OWNER), expected


def test_a_layer_in_two_groups_gives_the_same_text(parts: Any, tmp_path: Path) -> None:
    summary, expected = parts
    manifest = read_manifest(summary.server)
    lines = [(group.name, group.first_column, group.columns) for group in manifest.groups]
    assert lines[1:] == [(f"{C_PROJ}", 0, 6144), (f"{C_PROJ}.part2", 6144, 4096)]
    assert summary.layers == 2
    package = ServerPackage.open(summary.server)
    service = LayerService(package.signed, package.load(), Ledger(tmp_path / "state"), insecure_no_licences=True)
    with serving(service) as served:
        options: dict[str, Any] = {"server": served.url, "owner": OWNER.public.raw, "progress": False}
        with HybridModel.from_shell(summary.client, **options) as private:
            assert torch.equal(private.generate(PROMPT, max_new_tokens=8, do_sample=False, pad_token_id=0), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"first_column": 6145},
        {"first_column": 6143},
        {"activation_bits": 9},
        {"first_column": 0},
        {"layers": ()},
    ],
)
def test_parts_that_do_not_fit_together_are_refused(parts: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    manifest: Manifest = read_manifest(parts[0].server)
    *others, last = manifest.groups
    if change == {"layers": ()}:
        change = {"layers": (msgspec.structs.replace(last.layers[0], name="another"),)}
    changed = msgspec.structs.replace(manifest, groups=(*others, msgspec.structs.replace(last, **change)))
    (tmp_path / MANIFEST_NAME).write_bytes(msgspec.json.encode(changed))
    with pytest.raises(InvalidPackage, match=r"fit together|named twice"):
        read_manifest(tmp_path)


def test_the_first_part_begins_at_the_first_column(parts: Any, tmp_path: Path) -> None:
    manifest: Manifest = read_manifest(parts[0].server)
    first = msgspec.structs.replace(manifest.groups[0], first_column=1)
    (tmp_path / MANIFEST_NAME).write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, groups=(first,))))
    with pytest.raises(InvalidPackage, match="fit together"):
        read_manifest(tmp_path)
    assert [(start, len(found)) for start, found in joined(read_manifest(parts[0].server).groups)] == [(0, 1), (1, 2)]


def test_parts_are_bound_to_their_place(parts: Any) -> None:
    manifest: Manifest = read_manifest(parts[0].server)
    first, middle, last = manifest.groups
    moved = msgspec.structs.replace(last, first_column=0, name="other")
    other = msgspec.structs.replace(manifest, groups=(first, middle, moved))
    assert other.table_digest() != manifest.table_digest()
