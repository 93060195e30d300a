import hashlib
import stat
from pathlib import Path

import msgspec
import numpy as np
import pytest
import rich.pretty

from confide.errors import ConfideError, InvalidPackage, UntrustedOwner
from confide.models.precision import Recipe
from confide.models.source import Source
from confide.models.split import SplitSummary, split
from confide.packages.checks import CHECKS_NAME, Checks, checks_for, read_checks, write_checks
from confide.packages.manifest import read_manifest
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.packages.server_package import ServerPackage, group_file
from confide.rlwe.freivalds import PRIME
from owners import OWNER, STRANGER


def opened(halves: SplitSummary) -> Checks:
    return read(halves.client / CHECKS_NAME, halves)


def read(path: Path, halves: SplitSummary, owner: OwnerPublicKey = OWNER.public) -> Checks:
    return read_checks(path, read_manifest(halves.client), owner)


def wrong_tokens(checks: Checks, halves: SplitSummary) -> int:
    """How many answers of the server's own matrices a set refuses."""
    package = ServerPackage.open(halves.server)
    wrong = 0
    for index, check in enumerate(checks.answer_checks(package.manifest.groups)):
        weights = package.group(index).weights.numpy().astype(np.int64)
        x = np.random.default_rng(index).integers(-127, 128, (3, weights.shape[1]), dtype=np.int32)
        wrong += int((~check((x @ weights.T).astype(np.int32), x)).sum())
        wrong += int(check((x @ weights.T + 1).astype(np.int32), x).sum())
    return wrong


def test_a_split_leaves_checks_that_its_server_passes(halves: SplitSummary) -> None:
    assert stat.S_IMODE((halves.client / CHECKS_NAME).stat().st_mode) == 0o600
    assert not (halves.server / CHECKS_NAME).exists()
    assert wrong_tokens(opened(halves), halves) == 0


def test_a_fresh_set_has_a_secret_of_its_own(llama_halves: SplitSummary, tmp_path: Path) -> None:
    made = checks_for(ServerPackage.open(llama_halves.server), "acme", 7)
    path = tmp_path / "licensee"
    write_checks(path, made, OWNER)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read(path, llama_halves)
    assert found == made
    assert (found.licence, found.serial) == ("acme", 7)
    assert wrong_tokens(found, llama_halves) == 0
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
    """A set with other fields, signed by its owner all the same."""
    return signed(msgspec.msgpack.encode(msgspec.to_builtins(checks, builtin_types=(bytes,)) | fields))


def signed(content: bytes, owner: OwnerKey = OWNER) -> bytes:
    statement = b"confide check vectors 2\0" + hashlib.sha256(content).digest()
    return msgspec.msgpack.encode({"checks": content, "signature": owner.sign(statement)})


ODD = {
    "nothing": lambda checks: b"",
    "no MessagePack": lambda checks: b"\xc1",
    "no MessagePack, signed": lambda checks: signed(b"\xc1"),
    "deep": lambda checks: b"\x91" * 10_000,
    "deep, signed": lambda checks: signed(b"\x91" * 1000),
    "cut": lambda checks: changed(checks)[:-1],
    "surplus bytes": lambda checks: changed(checks) + b"\0",
    "surplus field": lambda checks: changed(checks, more=1),
    "another format": lambda checks: changed(checks, format=1),
    "another release": lambda checks: changed(checks, release=bytes(32)),
    "no release": lambda checks: changed(checks, release=b""),
    "control characters": lambda checks: changed(checks, licence="\x1b[31m"),
    "no serial": lambda checks: changed(checks, serial=-1),
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
        read(path, llama_halves)
    assert caught.value.__cause__ is None
    assert len(str(caught.value)) < 300 + len(str(path))
    assert type(caught.value) is InvalidPackage


def test_an_intact_set_that_is_written_by_hand_is_taken(llama_halves: SplitSummary, tmp_path: Path) -> None:
    """So that it is what each odd one has of its own that is refused."""
    (tmp_path / "set").write_bytes(changed(opened(llama_halves)))
    assert read(tmp_path / "set", llama_halves) == opened(llama_halves)


def test_whoever_runs_the_server_cannot_make_a_set(llama_halves: SplitSummary, tmp_path: Path) -> None:
    """They have the matrices, and would know the secret."""
    forged = checks_for(ServerPackage.open(llama_halves.server))
    assert wrong_tokens(forged, llama_halves) == 0
    path = tmp_path / "forged"
    write_checks(path, forged, STRANGER)
    with pytest.raises(UntrustedOwner, match="could forge answers"):
        read(path, llama_halves)
    content = msgspec.msgpack.encode(forged)
    for signature in (bytes(64), OWNER.sign(content), msgspec.msgpack.decode(signed(b"other"))["signature"]):
        path.write_bytes(msgspec.msgpack.encode({"checks": content, "signature": signature}))
        with pytest.raises(UntrustedOwner):
            read(path, llama_halves)


def test_a_set_of_the_same_owner_for_another_model_is_refused(
    llama_halves: SplitSummary, tiny_llama: Source, tmp_path: Path
) -> None:
    """For as many layers of the same widths: only the release tells them apart."""
    other = split(tiny_llama, tmp_path / "out", owner=OWNER, recipe=Recipe.parse(["7"], []), hint=False)
    with pytest.raises(InvalidPackage, match="for this shell's model"):
        read(other.client / CHECKS_NAME, llama_halves)


def test_a_set_is_bound_to_who_signed_the_release(llama_halves: SplitSummary, tmp_path: Path) -> None:
    """The stranger signs a set for the owner's release, and a client that trusts the stranger reads it."""
    write_checks(tmp_path / "set", opened(llama_halves), STRANGER)
    with pytest.raises(InvalidPackage, match="for this shell's model"):
        read(tmp_path / "set", llama_halves, STRANGER.public)


@pytest.mark.parametrize(("licence", "serial"), [("x" * 65, 0), ("\n", 0), ("\xe9", 0), ("", -1), ("", 1 << 32)])
def test_names_that_no_set_can_hold(llama_halves: SplitSummary, licence: str, serial: int) -> None:
    with pytest.raises(ConfideError, match="printable"):
        checks_for(ServerPackage.open(llama_halves.server), licence, serial)


def test_a_missing_file_says_where_to_get_one(llama_halves: SplitSummary, tmp_path: Path) -> None:
    with pytest.raises(InvalidPackage, match="confide checks SERVER_FOLDER --out FILE"):
        read(tmp_path / "none", llama_halves)


def test_nothing_secret_is_shown(llama_halves: SplitSummary) -> None:
    checks = opened(llama_halves)
    for shown in (repr(checks), str(checks), rich.pretty.pretty_repr(checks), str(msgspec.ValidationError(checks))):
        assert repr(checks.seed)[2:12] not in shown
        assert repr(checks.vectors[0])[2:12] not in shown
