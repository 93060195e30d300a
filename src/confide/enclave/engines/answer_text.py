"""From tokens to text as it streams: what the tokenizer makes of them whole, in whole characters, and no stop text.

Tokens are not characters. A byte-level tokenizer's may end within one. With byte fallback there is a token for each
byte, and what a run of them stands for is known at its end alone: where any of it is broken, transformers takes all of
it for that. So a run is held back until another token follows.
"""

import codecs
import json
import re
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from confide.enclave.engines.engine import Chosen

_BYTE_OF: Final = {letter: byte for byte, letter in bytes_to_unicode().items()}
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LOOK_BACK: Final = 256
"""Tokens of a prompt among which one is looked for that an answer can be decoded after."""
_LONGEST_CHARACTER: Final = 4
_BROKEN: Final = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """The text of one answer, in parts.

    prompt: its tokens, which decide how the answer's first one reads. stop: texts at which the answer ends; special
    tokens count by their names where a stop text holds these. They are not shown, but for those named in `markers`.
    stopped_by: the stop text that ended it.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str], markers: Sequence[str] = ()
    ) -> None:
        self.stopped = False
        self.stopped_by: str | None = None
        specials = {index: str(token) for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        counting = (*stop, *markers)
        self._specials = {
            index: name if any(name in text for text in counting) else "" for index, name in specials.items()
        }
        self._markers = frozenset(markers)
        self._decoding = _decoding(tokenizer, [token for token in prompt if token not in specials])
        self._stop = stop
        self._held = ""
        self._shown: list[bool] = []
        self._chosen = HeldTokens()

    def add(self, token: int, chosen: Chosen | None = None) -> str:
        """What a token adds that can be shown, perhaps nothing yet. Sets `stopped` once a stop text is complete."""
        before = len(self._held)
        self._read(token)
        if chosen is not None:
            self._chosen.add(chosen, len(self._held) - before)
        return self._next()

    def take_chosen(self) -> tuple[Chosen, ...]:
        """What is known of the tokens whose text has been given since this was last asked; all of it at the end."""
        return self._chosen.take()

    def _read(self, token: int) -> None:
        name = self._specials.get(token)
        if name is None:
            self._hold(self._decoding.add(token))
        elif name:
            self._hold(self._decoding.rest())  # no character goes on behind what ends an answer
            self._hold(name, shown=name in self._markers)

    def rest(self) -> str:
        """What was held back, when the answer ends otherwise. Bytes that are no whole character are left out.

        Sets `stopped` where a stop text was among it.
        """
        self._hold(self._decoding.rest())
        shown = self._next()
        if self.stopped:
            return shown
        shown += self._take(len(self._held))
        self._chosen.give_all()
        return shown

    def _hold(self, text: str, *, shown: bool = True) -> None:
        self._held += text
        self._shown += [shown] * len(text)

    def _next(self) -> str:
        found = [(position, text) for text in self._stop if (position := self._held.find(text)) >= 0]
        if found:
            first, self.stopped_by = min(found)
            self.stopped = True
            self._chosen.give(first)
            self._chosen.stop()
            return self._take(first)
        length = len(self._held) - self._may_become_stop()
        self._chosen.give(length)
        return self._take(length)

    def _take(self, length: int) -> str:
        taken = "".join(letter for letter, shown in zip(self._held[:length], self._shown, strict=False) if shown)
        self._held, self._shown = self._held[length:], self._shown[length:]
        return taken

    def _may_become_stop(self) -> int:
        """Length of the longest end of the held text that a stop text begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        ends = range(min(longest, len(self._held)), 0, -1)
        return next((end for end in ends if any(text.startswith(self._held[-end:]) for text in self._stop)), 0)


class HeldTokens:
    """What is known of tokens, held until their text is given; lengths are in whatever unit the caller counts."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, int, Chosen]] = deque()
        self._ready: list[Chosen] = []
        self._made = self._given = 0

    def add(self, chosen: Chosen, length: int) -> None:
        """A token that has so much text."""
        self._waiting.append((self._made, self._made + length, chosen))
        self._made += length

    def give(self, length: int) -> None:
        """So much more text is given."""
        self._given += length
        self._made = max(self._made, self._given)  # there may be text of tokens of which nothing is known
        while self._waiting and self._waiting[0][1] <= self._given:
            self._ready.append(self._waiting.popleft()[2])

    def give_all(self) -> None:
        """All text is, or it was none that is ever shown."""
        self._ready += [chosen for _, _, chosen in self._waiting]
        self._waiting.clear()

    def stop(self) -> None:
        """No more text is given: tokens that began before its end count, and those behind do not."""
        self._ready += [chosen for start, _, chosen in self._waiting if start < self._given]
        self._waiting.clear()

    def take(self) -> tuple[Chosen, ...]:
        """Those that are ready, once."""
        ready, self._ready = tuple(self._ready), []
        return ready


class TokenBytes:
    """The bytes that each token of a tokenizer stands for, as far as one token alone can say.

    specials: tokens that are no text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        kinds = _kinds(json.loads(tokenizer.decoder.__getstate__())) if tokenizer.decoder is not None else []
        self._byte_level = "ByteLevel" in kinds
        added = tokenizer.get_added_tokens_decoder()
        self._added = {index: str(token) for index, token in added.items()}
        self.specials = frozenset(index for index, token in added.items() if token.special)

    def __call__(self, token: int) -> bytes:
        """Nothing for a number that is no token, as vocabularies are padded with."""
        if token in self._added:
            return self._added[token].encode()
        name = self._tokenizer.id_to_token(token) or ""
        if self._byte_level:
            codes = [_BYTE_OF.get(letter, -1) for letter in name]
            return name.encode() if -1 in codes else bytes(codes)
        if found := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(found.group(1), 16)])
        return name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


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
