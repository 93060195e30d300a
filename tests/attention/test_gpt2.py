"""A GPT-2 with encrypted attention: the same text in every mode, and no mode that fails in silence."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from confide.attention.gpt2 import EncryptedAttentionGPT2, OutsideCalibrationWarning
from confide.attention.server import AttentionServer
from confide.errors import OutsideCalibration, PromptTooLong, WrongMode
from confide.evaluate.perplexity import compare_perplexity, measure_loss
from confide.evaluate.windows import cut_windows

TOKENS = 4
NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None}
PROMPT = torch.tensor([[3, 14, 15]])


def tiny(layers: tuple[int, ...] = (0,), heads: str | list[int] = "all") -> EncryptedAttentionGPT2:
    torch.manual_seed(4)
    sizes = {"vocab_size": 50, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, initializer_range=0.2, **NO_SPECIAL)  # type: ignore[arg-type]
    return EncryptedAttentionGPT2(GPT2LMHeadModel(config).eval(), layers, heads)  # type: ignore[arg-type]


def texts(count: int = 200) -> list[list[int]]:
    return torch.randint(0, 50, (count, TOKENS), generator=torch.Generator().manual_seed(6)).tolist()


def logits(model: EncryptedAttentionGPT2, ids: torch.Tensor = PROMPT) -> torch.Tensor:
    with torch.inference_mode():
        return model.model(ids, use_cache=False).logits


@pytest.fixture(scope="module")
def compiled() -> EncryptedAttentionGPT2:
    model = tiny()
    shown = model.compile(texts(), TOKENS)
    for word in ("layer 0", "levels", "rotations", "multiplications", "keys", "ciphertexts", "estimated"):
        assert word in shown
    return model


@pytest.mark.parametrize(("layers", "heads"), [((0,), "all"), ((0, 1), "all"), ((1,), [1])])
def test_the_twin_is_near_float_and_clear_is_stock(layers: tuple[int, ...], heads: str | list[int]) -> None:
    model = tiny(layers, heads)
    stock = logits(model)
    model.compile(texts(), TOKENS)
    model.mode = "simulate"
    simulated = logits(model)
    assert 0 < (simulated - stock).abs().max() < 0.02
    model.mode = "clear"
    assert torch.equal(logits(model), stock)


def test_texts_are_generated_in_the_same_way(compiled: EncryptedAttentionGPT2) -> None:
    compiled.mode = "clear"
    stock = compiled.generate(PROMPT, 2, do_sample=False, pad_token_id=0)
    compiled.mode = "simulate"
    assert torch.equal(compiled.generate(PROMPT, 2, do_sample=False, pad_token_id=0), stock)
    both = compiled.generate(PROMPT.repeat(2, 1), 2, do_sample=False, pad_token_id=0)
    assert torch.equal(both, stock.repeat(2, 1))


@pytest.mark.slow
def test_execution_is_the_twin_on_ciphertexts(tmp_path: Path) -> None:
    model = tiny()
    model.compile(texts(), TOKENS)
    written = model.save_evaluation_keys(tmp_path)
    assert written == sum(path.stat().st_size for path in (tmp_path / "0").iterdir())
    server = AttentionServer(model.plans[0], model.weights[0], tmp_path / "0", workers=1)
    seen: list[tuple[int, bytes]] = []

    def evaluate(layer: int, message: bytes) -> bytes:
        seen.append((layer, message))
        return server.evaluate(message)

    model.evaluate = evaluate
    model.mode = "simulate"
    expected, simulated = model.generate(PROMPT, 1, do_sample=False, pad_token_id=0), logits(model)
    model.mode = "execute"
    options = {"output_logits": True, "return_dict_in_generate": True}
    found = model.generate(PROMPT, 1, do_sample=False, pad_token_id=0, **options)
    assert torch.equal(found.sequences, expected)
    assert (found.logits[0] - simulated[:, -1]).abs().max() < 1e-3
    assert [layer for layer, _ in seen] == [0]


def test_what_is_longer_than_compiled_for_is_refused_before_anything_runs(compiled: EncryptedAttentionGPT2) -> None:
    compiled.mode = "simulate"
    with pytest.raises(PromptTooLong, match="takes 5"):
        compiled.generate(PROMPT, 3, do_sample=False)
    with pytest.raises(PromptTooLong, match="4 tokens"):
        logits(compiled, torch.zeros(1, 5, dtype=torch.long))
    compiled.mode = "clear"
    assert compiled.generate(PROMPT, 9, do_sample=False, pad_token_id=0).shape == (1, 12)


def test_padding_and_a_kv_cache_are_refused(compiled: EncryptedAttentionGPT2) -> None:
    compiled.mode = "simulate"
    with pytest.raises(WrongMode, match="padding"):
        compiled.generate(PROMPT, 1, attention_mask=torch.tensor([[0, 1, 1]]), do_sample=False)
    with pytest.raises(WrongMode, match="use_cache=False"):
        compiled.model(PROMPT)


def test_modes_need_what_they_compute_with() -> None:
    model = tiny()
    for mode in ("simulate", "execute"):
        with pytest.raises(WrongMode, match="compile"):
            model.mode = mode
    with pytest.raises(WrongMode, match="compile"):
        model.save_evaluation_keys(Path("unused"))
    model.compile(texts(), TOKENS)
    with pytest.raises(WrongMode, match="save_evaluation_keys"):
        model.mode = "execute"
    assert model.mode == "clear"


def test_numbers_outside_the_calibrated_ranges_are_reported() -> None:
    model = tiny()
    model.compile(texts(), TOKENS)
    model.mode = "simulate"
    logits(model)
    gain = model.model.get_parameter("transformer.h.0.ln_1.weight")
    gain.data *= 2  # inputs larger than ever, and scores by the square of it
    with pytest.raises(OutsideCalibration, match="compile again"):
        logits(model)
    model.strict = False
    with pytest.warns(OutsideCalibrationWarning, match="layer 0"):
        assert logits(model).isfinite().all()
    gain.data *= 1.5  # the polynomials overflow
    with pytest.raises(OutsideCalibration, match="compile again"):
        logits(model)


@pytest.fixture
def books(test_data: Path) -> str:
    return (test_data / "data" / "demo-validation" / "books_heldout.txt").read_text(encoding="utf-8")[:60_000]


@pytest.mark.slow
def test_perplexity_of_the_demo_model_stays_within_a_hundredth(books: str) -> None:
    """In windows of 16 tokens, on other pages than those it is calibrated on; what is out of range is not scored."""
    model = EncryptedAttentionGPT2.from_pretrained("demo", layers=[0])
    assert model.tokenizer is not None
    windows = cut_windows(books, model.tokenizer, 16, max_windows=760).ids
    measured = windows[:60]
    stock = [measure_loss(model.model, ids) for ids in measured]
    model.compile(windows[60:])
    model.mode = "simulate"
    simulated, reference = [], []
    for ids, loss in zip(measured, stock, strict=True):
        try:
            simulated.append(measure_loss(model.model, ids))
            reference.append(loss)
        except OutsideCalibration:
            continue
    assert len(simulated) >= 57
    ratio = compare_perplexity(simulated, reference).ratio
    assert 0.99 < ratio.low <= ratio.high < 1.01
    assert [loss.logits for loss in simulated] != [loss.logits for loss in reference]
