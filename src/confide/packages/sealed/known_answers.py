"""What a sealed model answered when it was sealed: a few prompts, and the first words of each answer.

They lie in the package as one more encrypted and signed file, since they say something about the model. Whoever serves
the model has it give them again: see `confide.enclave.self_test`.
"""

from typing import Annotated, Final, Literal

import msgspec

from confide.errors import InvalidPackage
from confide.packages.manifest import Digest, Record

FILE_NAME: Final = "known-answers.json"
MAX_BYTES: Final = 1 << 18
MAX_TOKENS: Final = 64


class KnownAnswer(Record, frozen=True):
    """Greedily, `prompt` goes on with `answer`, which has so many tokens and does not end there.

    margin: by how much the logit of each of its tokens exceeded that of any other, at least.
    """

    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]
    answer: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
    margin: Annotated[float, msgspec.Meta(gt=0)]


class KnownAnswers(Record, frozen=True):
    """engine, version: what gave them. weights: digest of the weights in its memory; see `Engine.weights_digest`."""

    format: Literal[1]
    engine: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    weights: Digest
    answers: Annotated[tuple[KnownAnswer, ...], msgspec.Meta(min_length=1, max_length=32)]

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(answer.tokens for answer in self.answers)

    def encode(self) -> bytes:
        """As the package holds it."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, content: bytes) -> "KnownAnswers":
        """InvalidPackage for anything that `encode` did not make."""
        try:
            return msgspec.json.decode(content, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise InvalidPackage(f"{FILE_NAME} holds no known answers; seal the model again.") from None
