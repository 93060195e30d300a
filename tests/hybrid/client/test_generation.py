"""Private generation against the clear quantized model: the same tokens, and what the server sees of their number."""

import pytest
import torch
from torch import Tensor

from confide.hybrid.client.padding import NO_PADDING, Padding
from confide.models.clear import load_clear
from confide.models.split import SplitSummary

from .conftest import Open
from .fake import serving

PROMPT = torch.tensor([[5, 17, 60, 2, 33]])
NEW = 12

OPTIONS: dict[str, dict[str, object]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "no cache": {"use_cache": False},
    "an end": {"eos_token_id": list(range(50)), "min_new_tokens": 4},
    "an end, sampled": {"eos_token_id": list(range(20)), "do_sample": True, "num_return_sequences": 3},
}


def generate(model: object, ids: Tensor = PROMPT, **options: object) -> Tensor:
    arguments = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    result = model.generate(ids, **(arguments | options))  # type: ignore[attr-defined]
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("padding", [NO_PADDING, Padding(), Padding(16, None)], ids=["none", "some", "full"])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_token_is_that_of_the_clear_model(
    either: SplitSummary, open_shell: Open, options: str, padding: Padding
) -> None:
    clear = load_clear(either.client, either.server)
    with serving(either.server) as server:
        model = open_shell(either, server, padding=padding)
        # The second one shows that padding leaves the random numbers where they were.
        runs = 2 if "do_sample" in OPTIONS[options] else 1
        torch.manual_seed(3)
        expected = [generate(clear, **OPTIONS[options]) for _ in range(runs)]
        torch.manual_seed(3)
        given = [generate(model, **OPTIONS[options]) for _ in range(runs)]
        for one, other in zip(given, expected, strict=True):
            assert one.tolist() == other.tolist()
