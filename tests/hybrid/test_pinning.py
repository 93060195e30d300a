"""Whose shell a client runs, and whose release a server must present, before anything else is sent."""

import shutil
from pathlib import Path

import pytest

from confide import errors
from confide.hybrid import wire
from confide.hybrid.client.client import HybridClient
from confide.hybrid.server.server import load_service
from confide.hybrid.server.service import LayerService, Session
from confide.packages.owner import OwnerKey
from confide.packages.trusted import trust
from owners import OWNER, STRANGER, reseal

from .small import running, small_service, twin_client, write_packages

Server = tuple[str, LayerService]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of this test's own, in which nobody is trusted."""
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the messages that arrive at the server."""
    kinds: list[str] = []
    handle = Session.handle

    def watched(session: Session, message: wire.FromClient) -> wire.FromServer:
        kinds.append(type(message).__name__)
        return handle(session, message)

    monkeypatch.setattr(Session, "handle", watched)
    return kinds


@pytest.mark.parametrize("owner", [OWNER.public.raw, str(OWNER.public), f" {str(OWNER.public).upper()} "])
def test_the_owner_given_will_do(shell: Path, server: Server, owner: str | bytes) -> None:
    twin_client(shell, server[0], owner=owner).close()


def test_without_one_any_trusted_owner_will_do(shell: Path, server: Server, seen: list[str]) -> None:
    with pytest.raises(errors.UntrustedOwner, match=OWNER.public.fingerprint):
        twin_client(shell, server[0], owner=None)
    trust(STRANGER.public)
    with pytest.raises(errors.UntrustedOwner):
        twin_client(shell, server[0], owner=None)
    assert seen == []
    trust(OWNER.public)
    twin_client(shell, server[0], owner=None).close()


def test_the_owner_given_is_the_only_one(shell: Path, server: Server, seen: list[str]) -> None:
    trust(OWNER.public)
    with pytest.raises(errors.UntrustedOwner):
        twin_client(shell, server[0], owner=STRANGER.public.raw)
    with pytest.raises(errors.OwnerKeyError):
        twin_client(shell, server[0], owner="nonsense")
    assert seen == []


def test_the_shell_of_another_owner_is_refused(shell: Path, server: Server, seen: list[str]) -> None:
    reseal(shell, STRANGER)
    with pytest.raises(errors.UntrustedOwner, match="confide owner trust"):
        twin_client(shell, server[0])
    assert seen == []


def test_a_changed_shell_is_refused(shell: Path, server: Server, seen: list[str]) -> None:
    path = shell / "manifest.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(errors.InvalidPackage, match="changed after"):
        twin_client(shell, server[0])
    assert seen == []


def test_the_release_of_another_owner_is_refused_first(shell: Path, tmp_path: Path, seen: list[str]) -> None:
    service = small_service(tmp_path / "state", owner=STRANGER)
    with running(service) as url:
        with pytest.raises(errors.UntrustedOwner, match=STRANGER.public.fingerprint):
            twin_client(shell, url)
    assert seen == ["Hello"]


@pytest.mark.parametrize("release", [bytes(64), STRANGER.sign(b"anything"), OWNER.sign(b"anything")])
def test_a_release_that_is_not_signed_is_refused_first(
    shell: Path, server: Server, seen: list[str], monkeypatch: pytest.MonkeyPatch, release: bytes
) -> None:
    welcome = server[1].welcome

    def forged(hello: wire.Hello) -> object:
        account, answer = welcome(hello)
        answer.release = release
        return account, answer

    monkeypatch.setattr(server[1], "welcome", forged)
    with pytest.raises(errors.ModelMismatch, match="written together"):
        twin_client(shell, server[0])
    assert seen == ["Hello"]


def test_every_connection_is_checked(shell: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with twin_client(shell, server[0]) as client:
        monkeypatch.setattr(server[1], "_release_signature", bytes(64))
        with pytest.raises(errors.ModelMismatch):
            client.connect()


@pytest.mark.parametrize("owner", [OWNER, STRANGER])
def test_a_server_presents_what_its_package_holds(tmp_path: Path, owner: OwnerKey) -> None:
    shell, server = write_packages(tmp_path / "packages", owner=owner)
    with running(load_service(server, tmp_path / "state", insecure_no_licences=True)) as url:
        HybridClient(shell, url, owner=owner.public.raw).close()


def test_a_server_does_not_start_with_a_changed_package(tmp_path: Path) -> None:
    _, server = write_packages(tmp_path / "packages")
    for name in ("manifest.json", "signature.json", "group-00001.safetensors"):
        damaged = Path(shutil.copytree(server, tmp_path / name))
        content = (damaged / name).read_bytes()
        (damaged / name).write_bytes(content[:-5] + b"xxxxx")
        with pytest.raises(errors.InvalidPackage):
            load_service(damaged, tmp_path / "state")
