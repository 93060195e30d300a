"""A GPT-2 whose attention block a server computes on ciphertexts: it never sees text, scores or its own results.

The two sides are functions here. What the client hands to the server, and back, is all that would cross a network.
A tiny random model, so that it runs in seconds; `from_pretrained` opens real ones.
"""

import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from confide.attention import AttentionServer, EncryptedAttentionGPT2

TOKENS = 4


def main() -> None:
    torch.manual_seed(1)
    sizes = {"vocab_size": 50, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, initializer_range=0.2, bos_token_id=None, eos_token_id=None)
    model = EncryptedAttentionGPT2(GPT2LMHeadModel(config).eval(), layers=[0], heads="all")

    # In which ranges scores lie decides on polynomials, levels and parameters.
    print(model.compile(torch.randint(0, 50, (200, TOKENS)).tolist(), tokens=TOKENS))

    prompt = torch.tensor([[3, 14, 15]])
    options = {"do_sample": False, "pad_token_id": 0}
    texts = {"clear": model.generate(prompt, 1, **options)}
    model.mode = "simulate"  # the circuit in clear numbers
    texts["simulate"] = model.generate(prompt, 1, **options)

    with tempfile.TemporaryDirectory() as folder:
        written = model.save_evaluation_keys(Path(folder))  # the secret key stays with the model's client
        print(f"evaluation keys for the server: {written / 1e6:.0f} MB")
        server = AttentionServer(model.plans[0], model.weights[0], Path(folder, "0"))

        def evaluate(layer: int, message: bytes) -> bytes:
            answer = server.evaluate(message)
            print(f"layer {layer}: {len(message) / 1e6:.1f} MB to the server, {len(answer) / 1e6:.1f} MB back")
            return answer

        model.evaluate = evaluate
        model.mode = "execute"
        texts["execute"] = model.generate(prompt, 1, **options)

    for mode, text in texts.items():
        print(f"{mode:<10} {text[0].tolist()}")
    same = all(torch.equal(text, texts["clear"]) for text in texts.values())
    print(f"the same tokens in every mode: {same}")


if __name__ == "__main__":
    main()
