"""One model in its three modes: the same integers in each."""

import logging
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer

from confide import HybridModel
from confide.errors import ConfideError, ModelNotSupported, WrongMode
from confide.hybrid.mode import Mode
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.service import LayerService
from confide.hybrid.simulate import SimulatedProduct, load_simulated
from confide.models.clear import ClearProduct, load_clear
from confide.models.precision import Recipe
from confide.models.source import open_model
from confide.packages.server_package import ServerPackage
from confide.rlwe.parameters import Parameters, Profile
from confide.rlwe.scheme import RLWE
from owners import OWNER

from .small import running

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def demo() -> HybridModel:
    """One layer group only: a whole pack takes a second."""
    return HybridModel("demo", protect=r"h\.0\.attn\.c_attn", progress=False)


def ids_of(model: HybridModel) -> dict[str, torch.Tensor]:
    return dict(model.tokenizer("The old man", return_tensors="pt"))


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("tokens", [1, 5])
def test_simulated_products_are_exact(profile: Profile, tokens: int) -> None:
    weights = torch.randint(-127, 128, (24, 64), dtype=torch.int8)
    l1, l2 = int(weights.long().abs().sum(1).max()), float(weights.double().norm(dim=1).max())
    parameters = Parameters.derive(profile, rows=24, columns=64, row_l1=l1, row_l2=l2)
    product = SimulatedProduct([weights], [parameters])
    bound = parameters.max_activation
    for _ in range(50):
        x = torch.randint(-bound, bound + 1, (tokens, 64), dtype=torch.int32)
        assert torch.equal(product(0, x), ClearProduct([weights])(0, x))
    x = torch.full((tokens, 64), bound, dtype=torch.int32)
    assert torch.equal(product(0, x), ClearProduct([weights])(0, x))


def test_noise_above_the_budget_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation adds the noise it claims to add: with too much of it, results are wrong."""
    weights = torch.randint(-127, 128, (24, 64), dtype=torch.int8)
    parameters = Parameters.derive(Profile.PRIVATE_WEIGHTS, rows=24, columns=64, row_l1=64 * 127, row_l2=1016.0)
    monkeypatch.setattr(Parameters, "switched_noise_std", 2000.0)
    x = torch.ones(1, 64, dtype=torch.int32)
    product = SimulatedProduct([weights], [parameters])
    assert not torch.equal(product(0, x), ClearProduct([weights])(0, x))


def test_all_modes_say_the_same(demo: HybridModel, tmp_path: Path) -> None:
    inputs = ids_of(demo)
    assert demo.mode is Mode.CLEAR
    clear = demo.generate(**inputs, **GREEDY)
    demo.mode = "simulate"
    assert demo.mode is Mode.SIMULATE
    assert torch.equal(demo.generate(**inputs, **GREEDY), clear)
    parts = demo.split(tmp_path / "out", OWNER)
    for load in (load_clear, load_simulated):
        assert torch.equal(load(parts.client, parts.server).generate(**inputs, **GREEDY), clear)
    package = ServerPackage.open(parts.server)
    ledger = Ledger(tmp_path / "state")
    service = LayerService(package.signed, package.load(), ledger, RLWE, insecure_no_licences=True)
    options = {"owner": OWNER.public.raw, "progress": False}
    with running(service) as url, HybridModel.from_shell(parts.client, server=url, **options) as private:
        assert private.mode is Mode.REMOTE
        assert torch.equal(private.generate(**inputs, **GREEDY), clear)
        assert private.lengths is not None
        assert private.lengths.visible_answer == 16
        assert private.trust.prompt.hidden_from == ("the layer server",)
        assert "the layer server" in private.trust.weights.seen_by
        assert str(private.trust).count("\n") == 6
        for change in (lambda: setattr(private, "mode", "clear"), lambda: private.split(tmp_path / "b", OWNER)):
            with pytest.raises(WrongMode, match="on its server"):
                change()


def test_what_needs_a_server_says_so(demo: HybridModel) -> None:
    for use in (lambda: demo.traffic, lambda: demo.prepare(1), lambda: demo.tokens_left, lambda: demo.client):
        with pytest.raises(WrongMode, match="from_shell"):
            use()
    with pytest.raises(WrongMode, match="confide serve"):
        demo.mode = "remote"
    with pytest.raises(ValueError, match="quick"):
        demo.mode = "quick"
    assert demo.trust.protection == "none"
    assert demo.trust.prompt.hidden_from == ()


def test_a_refused_choice_is_refused_at_once() -> None:
    with pytest.raises(ModelNotSupported, match="lm_head"):
        HybridModel("demo", protect="lm_head")


def test_bits_by_layer() -> None:
    few = HybridModel("demo", protect="mlp", recipe=Recipe.parse(["2"]), progress=False)
    many = HybridModel("demo", protect="mlp", progress=False)
    ids = ids_of(many)["input_ids"]
    assert not torch.equal(few(ids).logits, many(ids).logits)


def test_calibrating_brings_few_bits_closer_to_the_float_model() -> None:
    recipe = Recipe.parse(["3"])
    models = [HybridModel("demo", recipe=recipe, progress=False) for _ in range(2)]
    stock = open_model("demo").load_model()
    ids = ids_of(models[0])["input_ids"]
    text = stock.generate(ids, do_sample=True, max_length=300, pad_token_id=0)
    models[1].calibrate([text, "It was a dark night."])
    plain, calibrated = ((model(text[:, :200]).logits - stock(text[:, :200]).logits).norm() for model in models)
    assert calibrated < 0.9 * plain
    with pytest.raises(WrongMode, match="quantized already"):
        models[1].calibrate(["x"])
    with pytest.raises(ConfideError, match="less than 8 bits"):
        HybridModel("demo", progress=False).calibrate(["x"])


def test_streamers(demo: HybridModel, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ids_of(demo)
    text = demo.tokenizer.decode(demo.generate(**inputs, **GREEDY)[0])
    capsys.readouterr()
    demo.generate(**inputs, **GREEDY, streamer=TextStreamer(demo.tokenizer))
    assert capsys.readouterr().out.strip() == text.strip()
    streamer = TextIteratorStreamer(demo.tokenizer)
    thread = Thread(target=demo.generate, kwargs=inputs | GREEDY | {"streamer": streamer})
    thread.start()
    assert "".join(streamer).strip() == text.strip()
    thread.join()


def test_chat_follows_the_template_that_the_shell_keeps(demo: HybridModel, tmp_path: Path) -> None:
    message = [{"role": "user", "content": "The old man"}]
    with pytest.raises(WrongMode, match="chat template"):
        demo.chat(message)
    demo.tokenizer.chat_template = TEMPLATE
    answer = demo.chat(message, **GREEDY)
    assert answer
    parts = demo.split(tmp_path / "out", OWNER)
    from confide.packages.shell import shell_tokenizer

    assert shell_tokenizer(parts.client).chat_template == TEMPLATE


def test_bars_show_steps_and_go_away(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = HybridModel("demo", protect="attention")
        model(torch.tensor([[1, 2]]))
    assert "quantizing" in capfd.readouterr().err
