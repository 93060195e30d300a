"""Package folders: the layer table, the signature, the files that are signed, and the keys of those who sign."""

import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from confide.packages.manifest import MANIFEST_NAME, PackageKind, parse_manifest, write_manifest
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.packages.server_package import ServerPackage, group_file
from confide.packages.signing import (
    SIGNATURE_NAME,
    SignedManifest,
    open_package,
    release_of,
    require_files,
    sign_manifest,
)
from confide.packages.succession import Succession, Withdrawal, parse_statements, publish_statement
from confide.packages.trusted_owners import OwnerBook, parse_owners

from .bench import OWNER, model, scratch, write_packages
from .script import Script


@functools.cache
def _packages() -> tuple[Path, Path]:
    return write_packages(scratch("packages"))


def manifest(data: bytes) -> None:
    """A layer table, and what everyone does with one that was taken."""
    table = parse_manifest(Path(MANIFEST_NAME), data)
    release_of(table, OWNER.public)
    if table.kind is PackageKind.SERVER:
        table.require_counterpart(table.for_shell())
    folder = scratch("manifest")
    if parse_manifest(folder / MANIFEST_NAME, write_manifest(folder, table)) != table:
        raise AssertionError("a layer table changed on its way")


def signature(data: bytes) -> None:
    """A signature beside an intact layer table."""
    shell = _packages()[0]
    folder = scratch("signature")
    (folder / MANIFEST_NAME).write_bytes((shell / MANIFEST_NAME).read_bytes())
    (folder / SIGNATURE_NAME).write_bytes(data)
    signed = open_package(folder, PackageKind.SHELL)
    if signed.signature.owner != str(OWNER.public):
        raise AssertionError("a signature that nobody made was taken")


def sealed(data: bytes) -> None:
    """A package of which any file may be damaged; what was changed must not be taken."""
    script = Script(data)
    original = _packages()[1]
    folder = scratch("sealed")
    for path in sorted(original.iterdir()):
        content = path.read_bytes()
        (folder / path.name).write_bytes(script.damaged(content) if script.number() % 2 else content)
    if surplus := script.chunk():
        name = surplus.decode(errors="replace").translate({0: "_", ord("/"): "_"})
        (folder / f"surplus-{name[:60]}").write_bytes(surplus)
    package = ServerPackage.open(folder)
    package.load()
    require_files(folder, package.manifest)
    # The signature's own file may be spelt otherwise, as long as it says the same.
    intact = [(folder / name).read_bytes() == (original / name).read_bytes() for name in package.manifest.files]
    if surplus or not all(intact) or package.signed != ServerPackage.open(original).signed:
        raise AssertionError("a changed package was taken")


def matrices(data: bytes) -> None:
    """A safetensors file of a server's package, signed as it is."""
    folder = scratch("matrices")
    path = group_file(folder, 0)
    path.write_bytes(data)
    table = msgspec.structs.replace(model().signed.manifest, files={path.name: hashlib.sha256(data).hexdigest()})
    ServerPackage(folder, SignedManifest(table, sign_manifest(b"in memory", table, OWNER))).group(0)


@functools.cache
def _tiny_shell() -> tuple[Any, Path]:
    """A shell of a model so small that its weights are a short file, and the folder it lies in."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from confide.models.protected import protect_group
    from confide.models.source import open_model
    from confide.models.split import split
    from confide.packages.shell import empty_shell

    folder = scratch("tiny")
    config = GPT2Config(vocab_size=3, n_positions=2, n_embd=2, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    client = split(open_model(str(folder)), scratch("tiny-split"), owner=OWNER).client
    table = open_package(client, PackageKind.SHELL).manifest
    model = empty_shell(client, table)
    for index, group in enumerate(table.groups):
        protect_group(model, index, [group], lambda group, x: x)
    return model, client


def shell_weights(data: bytes) -> None:
    """A shell's safetensors file, signed as it is."""
    from confide.packages.shell import SHELL_WEIGHTS, load_weights

    model = _tiny_shell()[0]
    folder = scratch("shell-weights")
    (folder / SHELL_WEIGHTS).write_bytes(data)
    load_weights(model, folder, "cpu")


def shell_config(data: bytes) -> None:
    """A shell's configuration, signed as it is. Whoever is trusted to sign may make a model as large as they like."""
    from confide.packages.shell import empty_shell

    if re.search(rb"[0-9]{4}|[0-9.]e", data, re.IGNORECASE):
        return
    folder = scratch("shell-config")
    (folder / "config.json").write_bytes(data)
    empty_shell(folder, open_package(_tiny_shell()[1], PackageKind.SHELL).manifest)


def _seeds_of_shell_config() -> list[bytes]:
    values = msgspec.json.decode((_tiny_shell()[1] / "config.json").read_bytes())
    few = {"model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "activation_function", "n_inner"}
    return [msgspec.json.encode({name: value for name, value in values.items() if name in few}), b"null", b"[[["]


def _seeds_of_shell_weights() -> list[bytes]:
    return [(_tiny_shell()[1] / "model.safetensors").read_bytes()]


def trusted(data: bytes) -> None:
    """The file of trusted owners."""
    parse_owners(data)


def statements(data: bytes) -> None:
    """What owners say of their keys."""
    for statement in parse_statements(data):
        OwnerBook({OWNER.public: ""}).take_in(statement)


def _seeds_of_trusted() -> list[bytes]:
    gone = f"succeeded {OWNER.public} {OWNER.public}\nwithdrawn {OWNER.public}\ndistrusted {OWNER.public}\n"
    return [f"{OWNER.public} Example Ltd\n\n{OWNER.public}\n".encode(), gone.encode()]


def _seeds_of_statements() -> list[bytes]:
    path = scratch("statements") / "statements.json"
    path.unlink(missing_ok=True)
    new = OwnerKey.generate()
    for statement in (Succession.make(OWNER, new), Withdrawal.make(OWNER.public, new)):
        publish_statement(path, statement)
    return [path.read_bytes()]


def owner_key(data: bytes) -> None:
    """A private key's file, and a public key as somebody writes it."""
    path = scratch("owner") / "owner.key"
    path.touch(mode=0o600)
    path.write_bytes(data)
    for attempt in (
        lambda: OwnerKey.read(path, lambda: "a passphrase"),
        lambda: OwnerPublicKey.parse(data.decode("utf-8", "surrogateescape")),
    ):
        _tolerating(attempt)


def _tolerating(attempt: Callable[[], object]) -> None:
    from confide.errors import ConfideError

    try:
        attempt()
    except ConfideError:
        return


def _seeds_of_owner_key() -> list[bytes]:
    path = scratch("owner") / "seed.key"
    OWNER.write(path)
    return [path.read_bytes(), str(OWNER.public).encode(), b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"]


def _content(kind: int, name: str) -> bytes:
    return (_packages()[kind] / name).read_bytes()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "manifest": manifest,
    "signature": signature,
    "sealed": sealed,
    "matrices": matrices,
    "shell-weights": shell_weights,
    "shell-config": shell_config,
    "trusted": trusted,
    "owner-statements": statements,
    "owner-key": owner_key,
}
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "manifest": lambda: [_content(kind, MANIFEST_NAME) for kind in (0, 1)],
    "signature": lambda: [_content(0, SIGNATURE_NAME)],
    "sealed": lambda: [bytes(5), bytes([1, 60, 0, 0, 0, 1, 65]) + bytes(4), bytes([0, 0, 0, 0, 3]) + b"odd"],
    "matrices": lambda: [_content(1, "group-00000.safetensors")],
    "shell-weights": _seeds_of_shell_weights,
    "shell-config": _seeds_of_shell_config,
    "trusted": _seeds_of_trusted,
    "owner-statements": _seeds_of_statements,
    "owner-key": _seeds_of_owner_key,
}
