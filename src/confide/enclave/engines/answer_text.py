"""From tokens to text as it streams: what the tokenizer makes of them whole, in whole characters, and no stop text.

Tokens are not characters. A byte-level tokenizer's may end within one. With byte fallback there is a token for each
byte, and what a run of them stands for is known at its end alone: where any of it is broken, transformers takes all of
it for that. So a run is held back until another token follows.
"""

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any, Final, Protocol

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE_OF: Final = {letter: byte for byte, letter in bytes_to_unicode().items()}
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LOOK_BACK: Final = 256
"""Tokens of a prompt among which one is looked for that an answer can be decoded after."""
_LONGEST_CHARACTER: Final = 4
_BROKEN: Final = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """The text of one answer, in parts.

    prompt: its tokens, which decide how the answer's first one reads. stop: texts at which the answer ends; special
    tokens, which are never shown, count by their names where a stop text holds these.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.stopped = False
        specials = {index: str(token) for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._specials = {index: name if any(name in text for text in stop) else "" for index, name in specials.items()}
        self._decoding = _decoding(tokenizer, [token for token in prompt if token not in specials])
        self._stop = stop
        self._held = ""
        self._shown: list[bool] = []

    def add(self, token: int) -> str:
        """What a token adds that can be shown, perhaps nothing yet. Sets `stopped` once a stop text is complete."""
        name = self._specials.get(token)
        if name is None:
            self._hold(self._decoding.add(token))
        elif name:
            self._hold(self._decoding.rest())  # no character goes on behind what ends an answer
            self._hold(name, shown=False)
        return self._next()

    def rest(self) -> str:
        """What was held back, when the answer ends otherwise. Bytes that are no whole character are left out.

        Sets `stopped` where a stop text was among it.
        """
        self._hold(self._decoding.rest())
        shown = self._next()
        return shown if self.stopped else shown + self._take(len(self._held))

    def _hold(self, text: str, *, shown: bool = True) -> None:
        self._held += text
        self._shown += [shown] * len(text)

    def _next(self) -> str:
        found = [position for text in self._stop if (position := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            return self._take(min(found))
        return self._take(len(self._held) - self._may_become_stop())

    def _take(self, length: int) -> str:
        taken = "".join(letter for letter, shown in zip(self._held[:length], self._shown, strict=False) if shown)
        self._held, self._shown = self._held[length:], self._shown[length:]
        return taken

    def _may_become_stop(self) -> int:
        """Length of the longest end of the held text that a stop text begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        ends = range(min(longest, len(self._held)), 0, -1)
        return next((end for end in ends if any(text.startswith(self._held[-end:]) for text in self._stop)), 0)


class _Decoding(Protocol):
    """Tokens of one text in, characters out."""

    def add(self, token: int) -> str: ...

    def rest(self) -> str: ...


def _decoding(tokenizer: Tokenizer, prompt: Sequence[int]) -> _Decoding:
    kinds = _kinds(json.loads(tokenizer.decoder.__getstate__())) if tokenizer.decoder is not None else []
    if kinds == ["ByteLevel"]:
        return _ByteLevel(tokenizer)
    return _Windowed(tokenizer, prompt, fallback="ByteFallback" in kinds)


def _kinds(decoder: dict[str, Any]) -> list[str]:
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else None
    return [decoder["type"]] if parts is None else [kind for part in parts for kind in _kinds(part)]


class _ByteLevel:
    """Every token is bytes, each written as a letter; a token with other letters stands for itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        name = self._tokenizer.id_to_token(token) or ""
        codes = [_BYTE_OF.get(letter, -1) for letter in name]
        return self._characters.decode(name.encode() if -1 in codes else bytes(codes))

    def rest(self) -> str:
        self._characters.reset()
        return ""


class _Windowed:
    """Tokens decoded after one that came before, since decoders strip what a text begins with."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], *, fallback: bool) -> None:
        self._tokenizer = tokenizer
        self._fallback = fallback
        last = next((token for token in reversed(prompt[-_LOOK_BACK:]) if self._byte(token) is None), None)
        self._before = [] if last is None else [last]
        self._held: list[int] = []

    def add(self, token: int) -> str:
        self._held.append(token)
        if self._byte(token) is not None:
            return ""
        text = self._text()
        if not self._fallback and text.endswith(_BROKEN) and len(self._held) < _LONGEST_CHARACTER:
            return ""
        self._before, self._held = [token], []
        return text

    def rest(self) -> str:
        if self._fallback:
            characters = codecs.getincrementaldecoder("utf-8")("replace")
            characters.decode(bytes(byte for token in self._held if (byte := self._byte(token)) is not None))
            del self._held[len(self._held) - len(characters.getstate()[0]) :]
        text = self._text()
        self._held = []
        return text if self._fallback else text.rstrip(_BROKEN)

    def _text(self) -> str:
        known = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._held)[len(known) :]

    def _byte(self, token: int) -> int | None:
        if not self._fallback:
            return None
        found = _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token) or "")
        return int(found.group(1), 16) if found else None
