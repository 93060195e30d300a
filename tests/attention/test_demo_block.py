"""One window of the demo model through its first block, encrypted: the twin is what ciphertexts give."""

from pathlib import Path

import pytest
import torch

from confide.attention.gpt2 import EncryptedAttentionGPT2
from confide.attention.server import AttentionServer
from confide.models.source import open_model

TOKENS = 16


@pytest.mark.slow
def test_one_encrypted_window_of_the_demo_model_is_its_twin(tmp_path: Path) -> None:
    source = open_model("demo")
    stock, tokenizer = source.load_model(), source.load_tokenizer()
    start = torch.tensor([tokenizer("The old king called his three sons")["input_ids"][:3]] * 40)
    torch.manual_seed(3)
    sampled = stock.generate(start, max_length=400, do_sample=True, pad_token_id=0)
    *texts, window = [ids for row in sampled for ids in row[: row.numel() // TOKENS * TOKENS].split(TOKENS)]
    model = EncryptedAttentionGPT2.from_pretrained("demo", layers=[0], heads="all")
    model.compile([ids.tolist() for ids in texts], TOKENS)
    model.save_evaluation_keys(tmp_path)
    server = AttentionServer(model.plans[0], model.weights[0], tmp_path / "0")
    model.evaluate = lambda layer, message: server.evaluate(message)
    results = {}
    for mode in ("clear", "simulate", "execute"):
        model.mode = mode
        with torch.inference_mode():
            results[mode] = model.model(window[None], use_cache=False).logits
    assert (results["execute"] - results["simulate"]).abs().max() < 1e-3 * results["clear"].abs().max()
    assert (results["simulate"] - results["clear"]).abs().max() < 0.05
