"""A generation that was interrupted and is begun again: the same bytes again, free of charge, and never other ones."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from confide import errors
from confide.hybrid import wire
from confide.hybrid.client import link as link_module
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.packs import PackStore
from confide.hybrid.client.padding import NO_PADDING
from confide.hybrid.client.product import CheckedGroup, RemoteProduct
from confide.hybrid.client.supply import MaskSupply
from confide.hybrid.server.service import Admitted, LayerService
from confide.rlwe import masks

from .small import activations, exact, running, small_service, small_weights, twin_client
from .test_kill import Log
from .test_packs import GROUPS, MODEL, prepared

Sent = dict[tuple[bytes, int, int], set[bytes]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackStore]:
    with PackStore(tmp_path_factory.mktemp("packs"), MODEL, GROUPS) as made:
        yield made


def values(group: int, tokens: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng((group, tokens, seed))
    bound = GROUPS[group].max_activation
    return generator.integers(-bound, bound, (tokens, GROUPS[group].columns), dtype=np.int32)


def send(supply: MaskSupply, sent: Sent, group: int, x: np.ndarray, most: int = 1000) -> list[tuple[bytes, int]]:
    """Mask and 'send' activations; where it went. No mask may ever carry two values, and answers must unmask."""
    places, done = [], 0
    for segment in supply.take(group, x, most):
        np.testing.assert_array_equal(segment.inputs, x[done : done + len(segment.masks)])
        masked = masks.mask(segment.inputs, segment.masks, GROUPS[group])
        for offset, row in enumerate(masked):
            hashes = sent.setdefault((segment.pack, group, segment.first + offset), set())
            hashes.add(row.tobytes())
            assert len(hashes) == 1, "a mask carried two values"
        places.append((segment.pack, segment.first))
        done += len(masked)
    return places


class TestSupply:
    @pytest.fixture
    def supply(self, store: PackStore) -> MaskSupply:
        return MaskSupply(store, [prepared(store)], 2, refill=lambda: [prepared(store)])

    def test_a_run_begun_again_gets_the_same_masks_for_the_same_activations(self, supply: MaskSupply) -> None:
        sent: Sent = {}
        steps = [(group, values(group, tokens, 0)) for tokens in (20, 1, 1, 30) for group in (0, 1)]
        supply.begin_run()
        first = [send(supply, sent, group, x) for group, x in steps[:5]]
        supply.begin_run()
        assert [send(supply, sent, group, x) for group, x in steps[:5]] == first
        assert [send(supply, sent, group, x)[0][1] for group, x in steps[5:]] == [21, 22, 22]

    def test_other_activations_get_masks_past_everything_used(self, supply: MaskSupply) -> None:
        sent: Sent = {}
        supply.begin_run()
        send(supply, sent, 0, values(0, 20, 0))
        send(supply, sent, 1, values(1, 20, 0))
        send(supply, sent, 0, values(0, 5, 0))
        supply.begin_run()
        send(supply, sent, 0, values(0, 20, 0))
        assert send(supply, sent, 1, values(1, 20, 1))[0][1] == 25
        assert send(supply, sent, 0, values(0, 5, 0))[0][1] == 25, "a run that diverged went back to its old course"

    @pytest.mark.parametrize("tokens", [3, 19, 21, 40])
    def test_another_length_is_another_request(self, supply: MaskSupply, tokens: int) -> None:
        """The server knows a retry by its first index, its length and its data."""
        x = values(0, 40, 0)
        supply.begin_run()
        send(supply, {}, 0, x[:20])
        supply.begin_run()
        assert send(supply, {}, 0, x[:tokens])[0][1] == 20

    def test_a_run_that_ended_is_not_begun_again(self, supply: MaskSupply) -> None:
        supply.begin_run()
        send(supply, {}, 0, values(0, 3, 0))
        supply.end_run()
        supply.begin_run()
        assert send(supply, {}, 0, values(0, 3, 0))[0][1] == 3

    def test_without_a_run_nothing_is_given_twice(self, supply: MaskSupply) -> None:
        assert [send(supply, {}, 0, values(0, 3, 0))[0][1] for _ in range(3)] == [0, 3, 6]

    def test_a_new_course_is_repeated_in_turn(self, supply: MaskSupply) -> None:
        sent: Sent = {}
        a, b, c = (values(0, 4, seed) for seed in range(3))
        courses = []
        for course in ((a, b), (a, c), (a, c, b), (a, c, b)):
            supply.begin_run()
            courses.append([send(supply, sent, 0, x)[0][1] for x in course])
        assert courses == [[0, 4], [0, 8], [0, 8, 12], [0, 8, 12]]

    def test_a_run_may_cross_packs_and_segments(self, supply: MaskSupply) -> None:
        sent: Sent = {}
        x = values(0, 4090, 0)
        for repetition in range(2):
            supply.begin_run()
            send(supply, sent, 0, x, most=1000)
            places = send(supply, sent, 0, x[:30], most=1000)
            assert [first for _, first in places] == [4090, 0], repetition
        assert len({pack for pack, _, _ in sent}) == 2

    def test_arrays_of_a_long_run_are_forgotten_though_its_keys_are_kept(self, supply: MaskSupply) -> None:
        supply.begin_run()
        for _ in range(2):
            for _ in range(200):
                for group in range(2):
                    supply.take(group, values(group, 1, 0), 1)
            assert sum(bool(taken.arrays) for taken in supply._taken) <= 2
            supply.begin_run()
        supply.end_run()
        assert len(supply._taken) <= 1

    def test_a_group_that_lags_behind_keeps_nothing_in_memory(self, supply: MaskSupply) -> None:
        """Such as an output head, which does not see a prompt's tokens."""
        supply.begin_run()
        supply.take(1, values(1, 1, 0), 1000)
        supply.take(0, values(0, 200, 0), 1000)
        assert sum(len(taken.arrays) for taken in supply._taken) <= 2
        supply.end_run()
        assert len(supply._taken) <= 1
        first = [supply.take(group, values(group, 1, 0), 1000)[0].first for group in range(2)]
        assert first == [200, 200]

    def test_an_exception_while_masks_are_made_spends_no_mask_on_two_values(
        self, supply: MaskSupply, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: Sent = {}
        supply.begin_run()
        send(supply, sent, 0, values(0, 5, 0))
        with monkeypatch.context() as patch:
            patch.setattr(MaskSupply, "_segment", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                send(supply, sent, 0, values(0, 5, 1))
        supply.begin_run()
        send(supply, sent, 0, values(0, 5, 0))
        assert send(supply, sent, 0, values(0, 5, 2))[0][1] == 10


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


STEP = st.tuples(st.integers(0, 1), st.sampled_from([1, 1, 2, 15, 16, 17, 40]), st.integers(0, 1))


@settings(max_examples=150, deadline=None)
@given(runs=st.lists(st.tuples(st.lists(STEP, max_size=12), st.booleans()), max_size=8), most=st.sampled_from([7, 64]))
def test_whatever_the_runs_no_mask_carries_two_values(
    store: PackStore, runs: list[tuple[list[tuple[int, int, int]], bool]], most: int
) -> None:
    """Runs that share beginnings, diverge, are cut off anywhere, end or do not; activations are few, so they recur."""
    supply = MaskSupply(store, [prepared(store)], 2, refill=lambda: [prepared(store)])
    sent: Sent = {}
    for steps, ends in runs:
        supply.begin_run()
        for group, tokens, seed in steps:
            send(supply, sent, group, values(group, tokens, seed), most)
        if ends:
            supply.end_run()


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=12), cut=st.integers(0, 11))
def test_wherever_a_run_is_cut_its_repetition_uses_no_mask_more(
    store: PackStore, steps: list[tuple[int, int, int]], cut: int
) -> None:
    used = []
    for cuts in ([], [cut], [cut, cut // 2]):
        supply, sent = MaskSupply(store, [prepared(store)], 2), {}
        for until in (*cuts, len(steps)):
            supply.begin_run()
            for group, tokens, seed in steps[:until]:
                send(supply, sent, group, values(group, tokens, seed))
        used.append(sorted((group, index) for _, group, index in sent))
    assert used[0] == used[1] == used[2]


# -- products over the network ---------------------------------------------------------------------------------


def work(product: RemoteProduct, columns: list[Tensor], stop: Callable[[int], None] = lambda _: None) -> None:
    """A generation: a prompt and a few tokens through both groups, each product checked."""
    weights = small_weights()
    with product.generation():
        for step, x in enumerate(columns):
            stop(step)
            assert torch.equal(product(step % 2, x), exact(weights[step % 2], x))


def inputs(parameters: list[object]) -> list[Tensor]:
    return [
        activations(parameters[step % 2], 20 if step < 2 else 1, seed=step)  # type: ignore[arg-type]
        for step in range(10)
    ]


def used(service: LayerService) -> int:
    return service.ledger.anonymous().used


def test_a_generation_that_lost_its_server_is_repeated_without_a_token_more(
    shell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "LONGEST_WAIT", 0.05)
    log = Log()
    with ExitStack() as servers:
        service = small_service(tmp_path / "state", observer=log)
        url = servers.enter_context(running(service))
        port = int(url.rpartition(":")[2])
        with twin_client(shell, url, patience=0.1) as client:
            client.prepare(1)
            product = client.product(padding=NO_PADDING)
            for lost_at in (0, 1, 5, 8):
                with pytest.raises(errors.ConnectionLost):
                    work(product, inputs(client.parameters), lambda s, at=lost_at: servers.close() if s == at else None)
                service = small_service(tmp_path / "state", observer=log)
                servers.enter_context(running(service, port=port))
            work(product, inputs(client.parameters))
            assert used(service) == 24
            work(product, inputs(client.parameters))
            assert used(service) == 48, "a generation that ended was taken for one that was interrupted"
            product.close()
    assert log.keys_with_two_values() == []


def test_an_interrupt_between_request_and_answer_costs_nothing(
    shell: Path, server: tuple[str, LayerService], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, service = server
    real = LayerConnection.receive
    with twin_client(shell, url) as client:
        client.prepare(1)
        product = client.product(padding=NO_PADDING)
        for at in range(1, 10, 2):
            calls = iter(range(100))

            def receive(self: LayerConnection, kind: type, at: int = at, calls: Iterator[int] = calls) -> object:
                if kind is wire.Answer and next(calls) == at:
                    raise KeyboardInterrupt
                return real(self, kind)

            with monkeypatch.context() as patch:
                patch.setattr(LayerConnection, "receive", receive)
                with pytest.raises(KeyboardInterrupt):
                    work(product, inputs(client.parameters))
        work(product, inputs(client.parameters))
        product.close()
    assert used(service) == 24


def test_other_inputs_after_an_interrupt_get_other_masks(shell: Path, tmp_path: Path) -> None:
    log = Log()
    service = small_service(tmp_path / "state", observer=log)
    with running(service) as url, twin_client(shell, url) as client:
        client.prepare(1)
        product = client.product(padding=NO_PADDING)
        x = inputs(client.parameters)

        def stop(step: int) -> None:
            if step == 7:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            work(product, x, stop)
        x[4] = -x[4]
        work(product, x)
        product.close()
        # Two tokens were common to both; the second course took three tokens more than those and the lost two.
        assert used(service) == 20 + 3 + 3
    assert log.keys_with_two_values() == []


def test_a_refused_index_is_not_asked_for_again(
    shell: Path, server: tuple[str, LayerService], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure the server may have burned what the client would repeat."""
    url, service = server
    with twin_client(shell, url) as client:
        client.prepare(1)
        product = client.product(padding=NO_PADDING)
        with monkeypatch.context() as patch:
            patch.setattr(service.ledger, "spend", _refuse)
            with pytest.raises(errors.IndexUsed):
                work(product, inputs(client.parameters))
        work(product, inputs(client.parameters))
        product.close()


def _refuse(*_: object) -> None:
    raise errors.IndexUsed("Burned.")


def test_a_repetition_hides_a_wrong_answer_as_well(
    shell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that breaks a run off and answers its repetition wrongly must not see whether that was noticed."""
    log = Log()
    service = small_service(tmp_path / "state", observer=log)
    real = LayerService.answers

    def wrong(self: LayerService, group: int, admitted: list[Admitted]) -> list[wire.Answer]:
        return [wire.Answer(memoryview(bytes(len(answer.values)))) for answer in real(self, group, admitted)]

    with running(service) as url, twin_client(shell, url) as client:
        client.prepare(1)
        product = client.product(padding=NO_PADDING)
        x = inputs(client.parameters)
        with pytest.raises(KeyboardInterrupt):
            work(product, x, lambda step: _interrupt() if step == 8 else None)
        seen = {key: set(hashes) for key, hashes in log.seen.items()}
        monkeypatch.setattr(LayerService, "answers", wrong)
        with product.generation():
            for step in range(8):
                assert not product(step % 2, torch.full_like(x[step], step) if step else x[0]).any()
        assert product.breach
        assert log.seen == seen, "the repetition was another one"
        assert used(service) == 23
        with pytest.raises(errors.IntegrityError):
            product.require_intact()


@pytest.mark.parametrize("wrong", range(7))
def test_no_mask_carries_two_values_whichever_answer_is_wrong(
    shell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    """One call may take several requests, and their masks are these activations' whatever happens in between."""
    log = Log()
    service = small_service(tmp_path / "state", observer=log)
    real = LayerService.answers
    lies = iter([False] * wrong + [True])

    def answers(self: LayerService, group: int, admitted: list[Admitted]) -> list[wire.Answer]:
        found = real(self, group, admitted)
        if not next(lies, False):
            return found
        return [wire.Answer(memoryview(bytes(len(answer.values)))) for answer in found]

    with running(service) as url, twin_client(shell, url) as client:
        client.prepare(1)
        monkeypatch.setattr(CheckedGroup, "most_tokens", 4)
        monkeypatch.setattr(LayerService, "answers", answers)
        product = client.product(padding=NO_PADDING)
        x = activations(client.parameters[0], 12)

        def interrupted(times: int) -> None:
            with product.generation():
                for _ in range(times):
                    product(0, x)
                raise KeyboardInterrupt

        for times in (1, 2, 2):
            with pytest.raises(KeyboardInterrupt):
                interrupted(times)
        assert product.breach
    assert log.keys_with_two_values() == []


# -- a whole model ---------------------------------------------------------------------------------------------


def test_a_model_interrupted_while_generating_bills_each_token_once(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, StoppingCriteria, StoppingCriteriaList

    from confide.hybrid.client.remote import RemoteModel
    from confide.hybrid.server.ledger import Ledger
    from confide.models.source import open_model
    from confide.models.split import split
    from confide.packages.server_package import ServerPackage
    from confide.packages.shell import load_shell
    from owners import OWNER

    from .twin import TWIN

    class Interrupt(StoppingCriteria):  # type: ignore[misc]
        def __init__(self, length: int) -> None:
            self.length = length

        def __call__(self, ids: Tensor, scores: object, **_: object) -> Tensor:
            if ids.shape[1] == self.length:
                raise KeyboardInterrupt
            return torch.zeros(len(ids), dtype=torch.bool)

    config = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=0, bos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    parts = split(open_model(str(tmp_path / "model")), tmp_path / "split", owner=OWNER)
    package = ServerPackage.open(parts.server)
    service = LayerService(package.signed, package.load(), Ledger(tmp_path / "state"), TWIN, insecure_no_licences=True)
    prompt = torch.tensor([[5, 17, 60, 2, 33]])
    options = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0, "do_sample": False, "max_new_tokens": 9}
    with running(service) as url, twin_client(parts.client, url) as client:
        product = client.product()
        model = RemoteModel(client, load_shell(client.folder, product, "cpu", {OWNER.public}), product)
        whole = model.generate(prompt, **options)
        once = used(service)
        for length in (8, 6, 12):
            with pytest.raises(KeyboardInterrupt):
                model.generate(prompt, **options, stopping_criteria=StoppingCriteriaList([Interrupt(length)]))
        assert torch.equal(model.generate(prompt, **options), whole)
        assert used(service) == 2 * once
        product.close()
