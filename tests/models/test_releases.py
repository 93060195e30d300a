"""A release names those whose place it takes, in both halves, under its owner's signature."""

from pathlib import Path

import msgspec
import pytest

from confide.errors import InvalidPackage
from confide.models.source import open_model
from confide.models.split import split
from confide.packages.manifest import MANIFEST_NAME, MAX_SUPERSEDED, PackageKind, Provenance
from confide.packages.signing import SignedManifest, open_package, superseded_by
from confide.rlwe.parameters import Profile
from families import FAMILIES, save_random
from owners import OWNER, sign_again


def test_a_release_supersedes_all_that_the_one_before_did(tmp_path: Path) -> None:
    source = open_model(str(save_random(FAMILIES["gpt2"], tmp_path / "model")))
    provenance, digests = Provenance("1"), []
    for number, protect in enumerate(("mlp", "attention", "all")):
        made = split(
            source,
            tmp_path / str(number),
            owner=OWNER,
            protect=protect,
            provenance=provenance,
            profile=Profile.OPEN_WEIGHTS,
        )
        halves = [open_package(made.client, PackageKind.SHELL), open_package(made.server, PackageKind.SERVER)]
        assert [half.manifest.provenance for half in halves] == [provenance] * 2
        assert halves[0].release.digest == halves[1].release.digest
        assert provenance.supersedes == tuple(reversed(digests))
        digests.append(halves[0].release.digest)
        provenance = Provenance(str(number + 2), superseded_by(halves[number % 2]))
    assert len(set(digests)) == 3


def test_what_is_superseded_is_bounded(tmp_path: Path) -> None:
    source = open_model(str(save_random(FAMILIES["gpt2"], tmp_path / "model")))
    made = split(source, tmp_path / "out", owner=OWNER, protect="mlp", profile=Profile.OPEN_WEIGHTS)
    signed = open_package(made.client, PackageKind.SHELL)
    full = Provenance("1", tuple(f"{number:064x}" for number in range(MAX_SUPERSEDED)))
    many = SignedManifest(msgspec.structs.replace(signed.manifest, provenance=full), signed.signature)
    assert len(superseded_by(many)) == MAX_SUPERSEDED
    path = made.client / MANIFEST_NAME
    for odd in ({"version": "\x1b[2J"}, {"supersedes": ["0"]}, {"adapter": "x" * 64}, {"more": 1}):
        content = msgspec.json.decode(path.read_bytes())
        path.write_bytes(msgspec.json.encode(content | {"provenance": odd}))
        with pytest.raises(InvalidPackage):
            sign_again(made.client)
        path.write_bytes(msgspec.json.encode(content))
