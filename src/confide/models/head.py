"""The output head that stays with the client computes in integers: heads are large, and used once for each token."""

from torch import nn
from transformers import PreTrainedModel

from confide.models.integers import IntegerForward, integers_of


def quantize_head(model: PreTrainedModel) -> None:
    """Have a model's output head compute in integers, where it is a plain linear layer that is not protected.

    Its float weights stay, for the embedding that may share them and for whoever saves the model.
    """
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and head.weight.device.type == "cpu":
        forward = IntegerForward(*integers_of(head.weight.detach()), head.bias)
        setattr(head, "forward", forward)  # noqa: B010 - a method for its stubs
