from pathlib import Path

import pytest
import torch

from confide.errors import ConnectionLost, ProtocolError, RequestConflict
from confide.hybrid import wire
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.prepare import Progress
from confide.hybrid.server.service import LayerService
from confide.rlwe.parameters import Profile
from confide.rlwe.scheme import RLWE
from owners import OWNER

from .small import activations, exact, running, small_service, small_weights, twin_client, write_packages


def check_products(client, progress=None) -> None:  # type: ignore[no-untyped-def]
    product = client.product(progress)
    for index, weights in enumerate(small_weights()):
        for tokens in (1, 1, 7, 40):
            x = activations(client.parameters[index], tokens)
            assert torch.equal(product(index, x), exact(weights, x))
    product.close()


def test_products_are_exact_with_the_twin(shell: Path, server: tuple[str, LayerService]) -> None:
    with twin_client(shell, server[0]) as client:
        client.prepare(1)
        check_products(client)


@pytest.mark.parametrize("profile", list(Profile))
def test_products_are_exact_with_the_encryption(tmp_path: Path, profile: Profile) -> None:
    from confide.hybrid.client.client import HybridClient

    shell, _ = write_packages(tmp_path / "packages", profile)
    with (
        running(small_service(tmp_path / "state", RLWE, profile=profile)) as url,
        HybridClient(shell, url, owner=OWNER.public.raw) as client,
    ):
        client.prepare(1)
        check_products(client)


def test_a_pack_is_prepared_when_none_is_left(shell: Path, server: tuple[str, LayerService]) -> None:
    with twin_client(shell, server[0]) as client:
        steps: list[Progress] = []
        check_products(client, steps.append)
        assert steps[-1].bytes_done == steps[-1].bytes_total == client.traffic.bytes_up + client.traffic.bytes_down


def test_tokens_round_up_to_packs(shell: Path, server: tuple[str, LayerService]) -> None:
    with twin_client(shell, server[0]) as client:
        assert client.tokens_left == 0
        client.prepare(1)
        assert client.tokens_left == 4096
        client.prepare(4097)
        assert client.tokens_left == 3 * 4096


def test_traffic_is_what_was_announced(shell: Path, server: tuple[str, LayerService]) -> None:
    with twin_client(shell, server[0]) as client:
        pack = client.prepare(1)[0]
        on_disk = sum((pack.folder / name).stat().st_size for name in ("keys", "masks.bin"))
        assert on_disk == client.traffic.bytes_on_disk


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_an_interrupted_preparation_resumes_with_identical_bytes(
    shell: Path, server: tuple[str, LayerService], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    sent: dict[tuple[object, ...], bytes] = {}
    repeated = []
    real = LayerConnection.send
    current: list[wire.OfflineBegin] = []

    def send(self: LayerConnection, message: wire.FromClient) -> None:
        if isinstance(message, wire.OfflineBegin):
            current[:] = [message]
        if isinstance(message, wire.OfflineBegin | wire.OfflineRows):
            first = message.first_row if isinstance(message, wire.OfflineRows) else -1
            key = (current[0].pack, current[0].group, first)
            frame = wire.encode(message)
            if key in sent:
                repeated.append(key)
            assert sent.setdefault(key, frame) == frame
        real(self, message)

    monkeypatch.setattr(LayerConnection, "send", send)
    calls = []

    def interrupt(progress: Progress) -> None:
        calls.append(progress)
        if len(calls) == step:
            raise Interrupt

    with twin_client(shell, server[0]) as client:
        with pytest.raises(Interrupt):
            client.prepare(1, interrupt)
        assert client.tokens_left == 0
    with twin_client(shell, server[0]) as client:
        client.prepare(1)
        assert len({key[0] for key in sent}) == 1, "a second pack was begun"
        assert repeated or step % 3 == 0, "nothing was sent again"
        check_products(client)


def test_a_server_that_changes_its_seed_gets_no_second_public_key(
    shell: Path, server: tuple[str, LayerService], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two public keys of one secret under two p1 would be two equations for it."""
    url, service = server

    def interrupt(progress: Progress) -> None:
        raise Interrupt

    with twin_client(shell, url) as client:
        with pytest.raises(Interrupt):
            client.prepare(1, interrupt)
        service.ledger.server_seed = b"another seed, chosen with care!!"
        with pytest.raises(ProtocolError, match="changed its seed"):
            client.prepare(1)


def test_the_answer_to_a_repeated_request_is_identical(tmp_path: Path) -> None:
    service = small_service(tmp_path, RLWE)
    begin, rows = offline_request(service)
    answers = []
    for _ in range(2):
        session = _greeted(service)
        request = session.begin_offline(begin)
        request.add_rows(rows)
        answers.append([wire.encode(block) for block in request.answer()])
    assert answers[0] == answers[1]
    changed = bytearray(rows.words)
    changed[0] ^= 1
    request = _greeted(service).begin_offline(begin)
    request.add_rows(wire.OfflineRows(0, memoryview(bytes(changed))))
    with pytest.raises(RequestConflict):
        next(request.answer())


def offline_request(service: LayerService) -> tuple[wire.OfflineBegin, wire.OfflineRows]:
    parameters = service.group(0)[1]
    secret = service.scheme.client(b"k" * 32, parameters.ring_degree)
    pack, nonce = b"p" * 16, b"n" * 32
    p0 = secret.public_key(wire.p1_seed(service.ledger.server_seed, nonce, pack), parameters)
    words = secret.encrypt_rows(torch.ones(parameters.columns, 4096, dtype=torch.int32), parameters, 0, 0)
    begin = wire.OfflineBegin(pack, 0, nonce, secret.public_seed(0), p0.numpy().tobytes())
    return begin, wire.OfflineRows(0, wire.payload(words.numpy()))


def _greeted(service: LayerService):  # type: ignore[no-untyped-def]
    from confide.hybrid.server.service import Session

    session = Session(service)
    session.handle(wire.Hello(wire.PROTOCOL_VERSION, service.scheme.name, service.model_digest, service.table_digest))
    return session


def test_masks_answered_behind_the_folders_back_are_burned(
    shell: Path, server: tuple[str, LayerService], tmp_path: Path
) -> None:
    import shutil

    with twin_client(shell, server[0]) as client:
        client.prepare(1)
    shutil.copytree(shell / "packs", tmp_path / "copy")
    with twin_client(shell, server[0]) as client:
        check_products(client)
    with twin_client(shell, server[0], packs=tmp_path / "copy") as client:
        ready = client.ready_packs()
        assert ready[0].next_block * 16 >= 49
        check_products(client)


def test_a_server_that_lost_its_record_burns_the_packs(shell: Path, tmp_path: Path) -> None:
    service = small_service(tmp_path / "state")
    with running(service) as url, twin_client(shell, url) as client:
        client.prepare(1)
        service.ledger._store.clear("requests")
        service.ledger._packs.clear()
        assert client.ready_packs() == []
        assert client.tokens_left == 0


def test_nothing_is_half_done_when_the_server_dies(shell: Path, tmp_path: Path) -> None:
    with running(small_service(tmp_path / "state")) as url, twin_client(shell, url, patience=0.1) as client:
        client.prepare(1)
        product = client.product()
        x = activations(client.parameters[0], 1)
        product(0, x)
    with pytest.raises(ConnectionLost, match="confide serve"):
        product(0, x)
