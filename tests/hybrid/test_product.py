"""Answers that are not the model's, each kind a thousand times, and what a server learns from giving one."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from confide.errors import IntegrityError, InvalidPackage, ServerDistrusted, WrongShape
from confide.evaluate.uniformity import uniformity_p_value
from confide.hybrid import wire
from confide.hybrid.client import product as module
from confide.hybrid.client.padding import NO_PADDING, Padding
from confide.hybrid.client.product import RemoteProduct
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.service import LayerService
from confide.packages.checks import CHECKS_NAME
from confide.packages.manifest import PackageKind
from confide.packages.signing import SignedManifest, sign_manifest
from confide.rlwe.parameters import PLAINTEXT_BITS
from confide.rlwe.scheme import Scheme
from owners import OWNER

from .local import FromFrame, LocalClient, Tamper, add_one, values
from .small import activations, exact, manifest_for, small_weights
from .twin import TWIN, TwinClient, TwinServer

TRIES = 1000


def service_with(weights: list[Tensor], state: Path, scheme: Scheme = TWIN) -> LayerService:
    """Claims to be the small model's; computes with these weights, offline and online."""
    manifest = manifest_for(small_weights(), PackageKind.SERVER)
    signed = SignedManifest(manifest, sign_manifest(b"in memory", manifest, OWNER))
    return LayerService(signed, weights, Ledger(state), scheme, insecure_no_licences=True)


def caught(product: RemoteProduct, group: int, x: Tensor) -> bool:
    """Whether the answer for one token is found wrong; if so, none of it may come back."""
    result = product(group, x)
    found = product.breach is not None
    assert torch.equal(result, torch.zeros_like(result) if found else exact(small_weights()[group], x))
    product.breach = None
    return found


def times_caught(client: LocalClient, prepare: Callable[[Tensor], Tensor] = lambda x: x) -> int:
    product = client.product(padding=NO_PADDING)
    tokens = [prepare(x[None]) for x in activations(client.parameters[0], TRIES, seed=3)]
    return sum(caught(product, 0, x) for x in tokens)


# -- servers that compute something else -------------------------------------------------------------------------


def flip(bits: range) -> Tamper:
    generator = np.random.default_rng(1)

    def tamper(message: wire.Online, reply: wire.Answer) -> wire.Answer:
        numbers = values(reply, message).view(np.uint32)
        place = generator.integers(numbers.size)
        numbers.reshape(-1)[place] ^= np.uint32(1 << int(generator.choice(bits)))
        return wire.Answer(wire.payload(numbers))

    return tamper


class Replay:
    """Answers with the answer to the frame before."""

    def __init__(self) -> None:
        self._old: dict[int, wire.Answer] = {}

    def __call__(self, message: wire.Online, reply: wire.Answer) -> wire.Answer:
        old = self._old.get(message.group)
        self._old[message.group] = reply
        return old or wire.Answer(memoryview(bytes(len(reply.values))))


def swapped(weights: Tensor) -> Tensor:
    """The group's two layers the other way round."""
    return weights.roll(2, dims=0)


def four_bits(weights: Tensor) -> Tensor:
    return (weights.float() / 16).round().clamp(-8, 7).mul(16).to(torch.int8)


CHEATING: dict[str, Tamper] = {
    "one unit": add_one,
    "one bit": flip(range(2, 32)),
    "replay": Replay(),
    "nothing": lambda message, reply: wire.Answer(memoryview(bytes(len(reply.values)))),
}


@pytest.mark.parametrize("kind", list(CHEATING))
def test_a_changed_answer_is_caught_1000_of_1000_times(shell: Path, service: LayerService, kind: str) -> None:
    with LocalClient(shell, service, CHEATING[kind]) as client:
        assert times_caught(client) == TRIES


@pytest.mark.parametrize("change", [swapped, four_bits])
@pytest.mark.parametrize("when", ["always", "online only"])
def test_another_model_is_caught_1000_of_1000_times(
    shell: Path, tmp_path: Path, change: Callable[[Tensor], Tensor], when: str
) -> None:
    weights = [change(matrix) for matrix in small_weights()]
    service = service_with(small_weights() if when == "online only" else weights, tmp_path / "state")
    with LocalClient(shell, service) as client:
        client.prepare(1)
        service._online_weights = weights
        assert times_caught(client) == TRIES


def test_a_bit_below_the_rounding_is_wrong_and_caught_or_changes_nothing(shell: Path, service: LayerService) -> None:
    with LocalClient(shell, service, flip(range(2))) as client:
        times_caught(client)  # which asserts that what is not caught is right


def test_honest_answers_are_never_refused(shell: Path, service: LayerService) -> None:
    with LocalClient(shell, service) as client:
        assert times_caught(client) == 0


# -- the parity attack: W + E answers rightly or wrongly as a bit of x has it --------------------------------------

INPUT = 3


def added(exponent: int) -> Tamper:
    """Online, W + 2^exponent e_INPUT in the first row: 4 * 2^exponent * d more."""

    def tamper(message: wire.Online, reply: wire.Answer) -> wire.Answer:
        numbers = values(reply, message).astype(np.int64)
        d = np.frombuffer(message.masked, np.int32).reshape(message.count, -1)[:, INPUT].astype(np.int64)
        numbers[:, 0] += (d << (exponent + 2)) % (1 << 32)
        return wire.Answer(wire.payload(numbers.astype(np.int32)))

    return tamper


class AddsOffline(TwinServer):
    """Offline, W + 2^29 e_INPUT in the first row; a mask comes here times 4."""

    def answer(self, mask_seed, p1_seed, p0, request):  # type: ignore[no-untyped-def]
        for first, high, low in super().answer(mask_seed, p1_seed, p0, request):
            more = (self._masks[INPUT] << 29).to(torch.int32)
            high[1, 0] += more
            yield first, high, low


def with_parity(odd: bool) -> Callable[[Tensor], Tensor]:
    def prepare(x: Tensor) -> Tensor:
        x[0, INPUT] = (x[0, INPUT] >> 1 << 1) + odd
        return x

    return prepare


@pytest.mark.parametrize("odd", [True, False])
def test_the_parity_attack_is_caught_exactly_when_the_bit_is_set(shell: Path, tmp_path: Path, odd: bool) -> None:
    # So a caught attack is one bit of x: the reason why the server must not see that it was caught.
    service = service_with(small_weights(), tmp_path / "state", Scheme(TWIN.name, TwinClient, AddsOffline))
    with LocalClient(shell, service, added(29)) as client:
        parameters = client.parameters[0]
        assert abs(with_parity(odd)(activations(parameters, 1))).max() <= parameters.max_activation + 1
        assert times_caught(client, with_parity(odd)) == (TRIES if odd else 0)


def test_the_parity_attack_online_only_is_caught_where_it_changes_anything(shell: Path, service: LayerService) -> None:
    with LocalClient(shell, service, added(29)) as client:
        product = client.product(padding=NO_PADDING)
        odd = wrong = 0
        for x in activations(client.parameters[0], TRIES, seed=4):
            wrong += caught(product, 0, x[None])
            odd += int(np.frombuffer(client.frames[-1].masked, np.int32)[INPUT]) & 1
        assert wrong == odd > TRIES // 3


def test_the_same_attack_one_bit_higher_is_nothing(shell: Path, service: LayerService) -> None:
    # 4 * 2^30 d is a multiple of 2^32, in which answers are counted: with t = 2^30 it vanishes identically.
    with LocalClient(shell, service, added(30)) as client:
        assert times_caught(client) == 0
    message = wire.Online(b"p" * 16, 0, 0, 1, memoryview(np.arange(8, dtype=np.int32).tobytes()))
    reply = wire.Answer(memoryview(bytes(48)))
    assert bytes(added(30)(message, reply).values) == bytes(48)


# -- what a server sees after a wrong answer -------------------------------------------------------------------


def test_after_a_wrong_answer_come_zeros_and_uniform_numbers(shell: Path, service: LayerService) -> None:
    with LocalClient(shell, service) as client:
        product = client.product()
        x = activations(client.parameters[0], 16)
        assert torch.equal(product(0, x), exact(small_weights()[0], x))
        client.tamper = add_one
        assert not product(0, x).any()
        client.tamper = None
        client.frames.clear()
        for _ in range(200):
            assert not product(0, x).any()
        seen = [np.frombuffer(frame.masked, np.int32) for frame in client.frames]
        assert uniformity_p_value(seen, PLAINTEXT_BITS) > 1e-6
        assert len({part.tobytes() for part in seen}) == 200


def test_the_breach_names_layer_and_token(shell: Path, service: LayerService) -> None:
    def last_token(message: wire.Online, reply: wire.Answer) -> wire.Answer:
        numbers = values(reply, message)
        numbers[4, 1] ^= 1 << 20
        return wire.Answer(wire.payload(numbers))

    with LocalClient(shell, service) as client:
        product = client.product(padding=NO_PADDING)
        product(1, activations(client.parameters[1], 7))
        client.tamper = last_token
        product(1, activations(client.parameters[1], 5))
        assert product.breach is not None
        assert (product.breach.group, product.breach.layers, product.breach.token) == ("g1", ("g1.a", "g1.b"), 11)
        with pytest.raises(IntegrityError, match=r"g1 \(g1\.a, g1\.b\), token 11"):
            product.require_intact()


@pytest.mark.parametrize(("owed", "alike"), [(wire.MAX_OWED, 3), (10 * 4 * 12, 4)])
def test_what_follows_a_wrong_answer_does_not_depend_on_what_was_asked(
    shell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owed: int, alike: int
) -> None:
    # Parts of the same call are on their way when the answer comes, unless there is room for one answer only.
    monkeypatch.setattr(module, "PART_TOKENS", 10)
    monkeypatch.setattr(wire, "MAX_OWED", owed)
    runs = []
    for seed in (1, 2):
        monkeypatch.setattr(os, "urandom", random.Random(0).randbytes)
        service = service_with(small_weights(), tmp_path / f"state-{seed}")
        with LocalClient(shell, service, add_one, packs=tmp_path / f"packs-{seed}") as client:
            product = client.product(padding=NO_PADDING)
            for _ in range(2):
                assert not product(0, activations(client.parameters[0], 25, seed)).any()
            runs.append([(frame.count, bytes(frame.masked)) for frame in client.frames])
    assert [count for count, _ in runs[0]] == [10, 10, 5] * 2
    assert runs[0][0] != runs[1][0]
    assert runs[0][-alike:] == runs[1][-alike:]
    assert all(one != other for one, other in zip(runs[0][:-alike], runs[1][:-alike], strict=True))


def test_a_token_is_counted_over_all_frames_of_a_call(
    shell: Path, service: LayerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_TOKENS", 10)
    with LocalClient(shell, service, FromFrame(1)) as client:
        product = client.product(padding=NO_PADDING)
        product(0, activations(client.parameters[0], 25))
        assert product.breach is not None
        assert product.breach.token == 10


def test_a_caught_server_is_refused_and_its_packs_are_burned(shell: Path, service: LayerService) -> None:
    with LocalClient(shell, service, add_one) as client:
        client.prepare(4097)
        product = client.product()
        x = activations(client.parameters[0], 1)
        product(0, x)
        assert len(list(client.store.folder.glob("pack-*"))) == 2
        for _ in range(2):
            with pytest.raises(IntegrityError):
                product.require_intact()
        with pytest.raises(IntegrityError):
            product(0, x)
        assert list(client.store.folder.glob("pack-*")) == []
        assert client.tokens_left == 0
        for attempt in (client.prepare, client.product):
            with pytest.raises(ServerDistrusted):
                attempt()
    with pytest.raises(ServerDistrusted, match=r"g0\.a, g0\.b"):
        LocalClient(shell, service)
    service.ledger.server_seed = b"another" + bytes(25)  # by its address
    with pytest.raises(ServerDistrusted):
        LocalClient(shell, service)


def test_a_refused_server_is_not_connected_to(
    shell: Path, service: LayerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confide.hybrid.client.refusals import RefusalList

    with LocalClient(shell, service, add_one) as client:
        product = client.product()
        product(0, activations(client.parameters[0], 1))
        with pytest.raises(IntegrityError):
            product.require_intact()
    monkeypatch.setattr(LocalClient, "connect", lambda self: pytest.fail("it connected"))
    with pytest.raises(ServerDistrusted):
        LocalClient(shell, service)
    monkeypatch.undo()
    RefusalList(shell / "packs").clear()
    LocalClient(shell, service).close()


def test_a_shell_without_checks_is_refused_before_connecting(
    shell: Path, service: LayerService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (shell / CHECKS_NAME).rename(tmp_path / "mine")
    monkeypatch.setattr(LocalClient, "connect", lambda self: pytest.fail("it connected"))
    with pytest.raises(InvalidPackage, match="confide checks"):
        LocalClient(shell, service)
    monkeypatch.undo()
    LocalClient(shell, service, checks=tmp_path / "mine").close()


@pytest.mark.parametrize("size", [0, 4, -4])
def test_an_answer_of_the_wrong_size_may_raise_at_once(shell: Path, service: LayerService, size: int) -> None:
    def cut(message: wire.Online, reply: wire.Answer) -> wire.Answer:
        content = bytes(reply.values)
        return wire.Answer(memoryview(content[:size] if size < 0 else content * (size > 0) + bytes(size)))

    with LocalClient(shell, service, cut) as client:
        product = client.product()
        with pytest.raises(WrongShape):
            product(0, activations(client.parameters[0], 1))
        assert product.breach is None


# -- padding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "width", "visible"), [(1, 1, 1), (2, 1, 16), (17, 1, 32), (6, 2, 32), (2, 2, 2)])
def test_calls_of_more_than_a_step_are_padded(
    shell: Path, service: LayerService, tokens: int, width: int, visible: int
) -> None:
    with LocalClient(shell, service) as client:
        product = client.product(padding=Padding(16, 16))
        product.width = width
        x = activations(client.parameters[0], tokens)
        assert torch.equal(product(0, x), exact(small_weights()[0], x))
        assert [frame.count for frame in client.frames] == [visible]
        assert product.traffic.bytes_up == 4 * 8 * visible


def test_a_generations_first_call_is_a_prompt_however_short(shell: Path, service: LayerService) -> None:
    with LocalClient(shell, service) as client:
        product = client.product()
        x = [activations(parameters, 1) for parameters in client.parameters]
        for _ in range(2):
            with product.generation():
                for group in (0, 1, 0, 1):
                    assert torch.equal(product(group, x[group]), exact(small_weights()[group], x[group]))
        assert [frame.count for frame in client.frames] == [16, 16, 1, 1] * 2


def test_idling_sends_as_much_and_returns_zeros(shell: Path, service: LayerService) -> None:
    with LocalClient(shell, service) as client:
        product = client.product()
        x = activations(client.parameters[0], 3)
        with product.idling():
            assert not product(0, x).any()
        assert torch.equal(product(0, x), exact(small_weights()[0], x))
        assert [frame.count for frame in client.frames] == [16, 16]


def test_a_wrong_answer_to_padding_is_caught_too(shell: Path, service: LayerService) -> None:
    with LocalClient(shell, service, add_one) as client:
        product = client.product()
        with product.idling():
            product(0, activations(client.parameters[0], 3))
        assert product.breach is not None
