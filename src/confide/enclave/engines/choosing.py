"""How the next token is chosen from its logits, and what is told of its probability; the same wherever torch computes.

Penalties are those of OpenAI's API reference (Advanced usage, Parameter details): the logit of a token that the answer
has c times already becomes logit - c * frequency_penalty - (c > 0) * presence_penalty.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from confide.enclave.engines.engine import Chance, Chosen, Sampling


class Adjusting:
    """Penalties and biases of one answer. Its work is the same for every token, whichever it is."""

    def __init__(self, sampling: Sampling) -> None:
        self._presence, self._frequency = sampling.presence_penalty, sampling.frequency_penalty
        self._bias = sampling.logit_bias
        self._counts = torch.zeros(0)
        self._biases = torch.zeros(0)
        self._idle = not (self._presence or self._frequency or self._bias)

    def __call__(self, logits: Tensor) -> Tensor:
        """logits: float32 of shape [vocabulary]; the same, adjusted."""
        if self._idle:
            return logits
        if not len(self._counts):
            self._counts = torch.zeros(len(logits))
            self._biases = torch.zeros(len(logits))
            if self._bias:
                self._biases[torch.tensor(list(self._bias))] = torch.tensor(
                    list(self._bias.values()), dtype=torch.float
                )
        counts = self._counts
        return logits + self._biases - self._frequency * counts - self._presence * (counts > 0)

    def add(self, token: int) -> None:
        """The answer has this token now."""
        if len(self._counts):
            self._counts[token] += 1


class Chooser:
    """Chooses the tokens of one answer: penalties and biases, temperature, top_k, top_p, min_p, then by chance.

    guide: gives the logits of a step with -inf for tokens that may not come, where the answer has a form.
    """

    def __init__(self, sampling: Sampling, guide: Callable[[Tensor], Tensor] | None = None) -> None:
        self._adjusting = Adjusting(sampling)
        self._guide = guide
        self._draw = _drawer(sampling)

    def __call__(self, logits: Tensor) -> int:
        """logits: float32 of shape [vocabulary]."""
        logits = self._adjusting(logits)
        token = self._draw(logits if self._guide is None else self._guide(logits))
        self._adjusting.add(token)
        return token


def _drawer(sampling: Sampling) -> Callable[[Tensor], int]:
    if sampling.temperature == 0:
        return lambda logits: int(logits.argmax())
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed % 2**64)
    nothing = torch.LongTensor(1, 0)  # these look at no earlier token

    def draw(logits: Tensor) -> int:
        probabilities = warpers(nothing, logits[None]).softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=generator))

    return draw


class Likely:
    """The logarithms of probabilities for the next token, and the most probable ones; kept until a token is chosen."""

    def __init__(self, logits: Tensor, most: int) -> None:
        """logits: float32 of shape [vocabulary], as the model gives them. most: how many tokens to tell beside it."""
        self._logprobs = logits.log_softmax(-1)
        self._top = self._logprobs.topk(min(most, len(logits)))

    def chosen(self, token: int, content: Callable[[int], bytes]) -> Chosen:
        """What is told of a token. content: the bytes that a token stands for."""

        def chance(token: int) -> Chance:
            return Chance.of(content(token), float(self._logprobs[token]))

        return Chosen(chance(token), tuple(chance(int(one)) for one in self._top.indices))
