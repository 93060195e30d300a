"""How often two models would have chosen the same next token."""

import torch
from transformers import PreTrainedModel


@torch.inference_mode()
def top1_agreement(model: PreTrainedModel, token_ids: list[int], prompt_tokens: int) -> float:
    """The share of generated tokens that `model`, fed the same tokens before each (teacher forcing), ranks first.

    token_ids: prompt and generated tokens; the generated ones start at `prompt_tokens`.
    """
    ids = torch.tensor([token_ids], device=model.device)
    choices = model(ids).logits[0, prompt_tokens - 1 : -1].argmax(-1)
    return float((choices == ids[0, prompt_tokens:]).double().mean())
