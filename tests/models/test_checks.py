import stat
from pathlib import Path

import msgspec
import numpy as np
import pytest
import rich.pretty

from confide.errors import InvalidPackage
from confide.models.split import SplitSummary
from confide.packages.checks import CHECKS_NAME, Checks, checks_for, read_checks, write_checks
from confide.packages.manifest import read_manifest
from confide.packages.server_package import ServerPackage, group_file
from confide.rlwe.freivalds import PRIME


def opened(halves: SplitSummary) -> Checks:
    return read_checks(halves.client / CHECKS_NAME, read_manifest(halves.client))


def wrong_tokens(checks: Checks, halves: SplitSummary) -> int:
    """How many answers of the server's own matrices a set refuses."""
    package = ServerPackage.open(halves.server)
    wrong = 0
    for index, check in enumerate(checks.answer_checks(package.manifest.groups)):
        weights = package.weights(index).numpy().astype(np.int64)
        x = np.random.default_rng(index).integers(-127, 128, (3, weights.shape[1]), dtype=np.int32)
        wrong += int((~check((x @ weights.T).astype(np.int32), x)).sum())
        wrong += int(check((x @ weights.T + 1).astype(np.int32), x).sum())
    return wrong


def test_a_split_leaves_checks_that_its_server_passes(halves: SplitSummary) -> None:
    assert stat.S_IMODE((halves.client / CHECKS_NAME).stat().st_mode) == 0o600
    assert not (halves.server / CHECKS_NAME).exists()
    assert wrong_tokens(opened(halves), halves) == 0


def test_a_fresh_set_has_a_secret_of_its_own(llama_halves: SplitSummary, tmp_path: Path) -> None:
    made = checks_for(ServerPackage.open(llama_halves.server))
    path = tmp_path / "licensee"
    write_checks(path, made)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read = read_checks(path, read_manifest(llama_halves.client))
    assert read == made
    assert wrong_tokens(read, llama_halves) == 0
    shipped = opened(llama_halves)
    assert shipped.seed != made.seed
    assert not set(shipped.vectors) & set(made.vectors)


def test_no_set_is_made_of_a_damaged_package(llama_halves: SplitSummary, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "server"
    shutil.copytree(llama_halves.server, folder)
    path = group_file(folder, 1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidPackage):
        checks_for(ServerPackage.open(folder))


def changed(checks: Checks, **fields: object) -> bytes:
    return msgspec.msgpack.encode(msgspec.to_builtins(checks, builtin_types=(bytes,)) | fields)


ODD = {
    "nothing": lambda checks: b"",
    "no MessagePack": lambda checks: b"\xc1",
    "deep": lambda checks: b"\x91" * 10_000,
    "cut": lambda checks: changed(checks)[:-1],
    "surplus bytes": lambda checks: changed(checks) + b"\0",
    "surplus field": lambda checks: changed(checks, more=1),
    "another format": lambda checks: changed(checks, format=2),
    "another model": lambda checks: changed(checks, model_digest=bytes(32)),
    "another table": lambda checks: changed(checks, table_digest=bytes(32)),
    "a short seed": lambda checks: changed(checks, seed=bytes(31)),
    "no vectors": lambda checks: changed(checks, vectors=[]),
    "a vector too few": lambda checks: changed(checks, vectors=checks.vectors[:-1]),
    "a vector too many": lambda checks: changed(checks, vectors=[*checks.vectors, b""]),
    "a short vector": lambda checks: changed(checks, vectors=[checks.vectors[0][:-8], *checks.vectors[1:]]),
    "a value beyond the field": lambda checks: changed(
        checks, vectors=[PRIME.to_bytes(8, "little") + checks.vectors[0][8:], *checks.vectors[1:]]
    ),
    "far too large": lambda checks: changed(checks, more=bytes(1 << 20)),
}


@pytest.mark.parametrize("odd", list(ODD))
def test_an_odd_file_is_refused_without_quoting_it(llama_halves: SplitSummary, tmp_path: Path, odd: str) -> None:
    path = tmp_path / "odd"
    path.touch(0o600)
    path.write_bytes(ODD[odd](opened(llama_halves)))
    with pytest.raises(InvalidPackage, match="confide checks") as caught:
        read_checks(path, read_manifest(llama_halves.client))
    assert caught.value.__cause__ is None
    assert len(str(caught.value)) < 300 + len(str(path))


def test_a_missing_file_says_where_to_get_one(llama_halves: SplitSummary, tmp_path: Path) -> None:
    with pytest.raises(InvalidPackage, match="confide checks SERVER_FOLDER --out FILE"):
        read_checks(tmp_path / "none", read_manifest(llama_halves.client))


def test_nothing_secret_is_shown(llama_halves: SplitSummary) -> None:
    checks = opened(llama_halves)
    for shown in (repr(checks), str(checks), rich.pretty.pretty_repr(checks), str(msgspec.ValidationError(checks))):
        assert repr(checks.seed)[2:12] not in shown
        assert repr(checks.vectors[0])[2:12] not in shown
