"""From tokens to text as it streams: whole characters only, and nothing of a stop text."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class AnswerText:
    """The text of one answer, in parts.

    prompt: its tokens, which decide how the answer's first one reads. stop: texts at which the answer ends.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._stop = stop
        self._held = ""

    def add(self, token: int) -> str:
        """What a token adds that can be shown, perhaps nothing yet. Sets `stopped` once a stop text is complete."""
        self._held += self._stream.step(self._tokenizer, token) or ""
        found = [position for text in self._stop if (position := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            return self._take(min(found))
        return self._take(len(self._held) - self._may_become_stop())

    def rest(self) -> str:
        """What was held back, when the answer ends otherwise. Bytes that are no whole character are left out."""
        return self._take(len(self._held))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken

    def _may_become_stop(self) -> int:
        """Length of the longest end of the held text that a stop text begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        ends = range(min(longest, len(self._held)), 0, -1)
        return next((end for end in ends if any(text.startswith(self._held[-end:]) for text in self._stop)), 0)
